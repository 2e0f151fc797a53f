"""PrimitiveNode: a value that is written into every widget that it is connected to."""

from typing import Any

import pytest
from editor_files import document, empty_image, invert, sent, subgraph, ui, with_probes


def driven(
    stored: Any, *targets: dict[str, Any], links: Any = None, **rest: Any
) -> dict[str, dict[str, Any]]:
    """The inputs of the nodes that link 1, 2, ... of a primitive ends at."""
    links = links or [(number, 1, 0, 2, 0, "*") for number in range(1, 5)]
    made = sent(document([ui(1, "PrimitiveNode", stored, **rest), *targets], links), with_probes())
    return {key: node["inputs"] for key, node in made.items()}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([700, "randomize"], 700),
        ([700], 700),
        ([], 64),
        (None, 64),
        ({"value": 700}, 64),
        ([None], 1),
        (["text"], "text"),
        (["700"], 700),
        ([" 7e2"], 700),
        ([" "], 1),
        (["inf"], "inf"),
        (["7_00"], "7_00"),
        ([True], 1),
        ([99_999], 16_384),
        ([-5], 1),
        ([0.5], 1),
        ([700.5], 701),
        ([2**70], 16_384),
        ([float("inf")], 16_384),
        ([[1]], {"__value__": [1]}),
    ],
)
def test_the_value_goes_into_the_widget_and_numbers_into_its_range(
    stored: Any, expected: Any
) -> None:
    assert driven(stored, empty_image(2, links={"width": 1}))["2"]["width"] == expected


def test_a_number_is_brought_into_what_all_ranges_have_in_common() -> None:
    sampler = ui(3, "KSampler", [5, "fixed", 20], links={"steps": 2})
    made = driven([12_000], empty_image(2, links={"width": 1}), sampler)
    assert (made["2"]["width"], made["3"]["steps"]) == (10_000, 10_000)


def test_a_widget_of_another_kind_takes_the_number_that_fits_the_first() -> None:
    text = ui(3, "ProbeSink", {"s": "x"}, links={"s": 2})
    made = driven([99_999], empty_image(2, links={"width": 1}), text)
    assert (made["2"]["width"], made["3"]["s"]) == (16_384, 16_384)


@pytest.mark.parametrize(
    ("stored", "class_type", "name", "expected"),
    [
        (77, "EmptyLatentImage", "width", 80),
        (16, "EmptyLatentImage", "width", 16),
        (2**53 + 1, "KSampler", "seed", 2**53 + 1),
        (7.123, "KSampler", "cfg", 7.1),
        (7.25, "KSampler", "cfg", 7.3),
        (0.555, "KSampler", "denoise", 0.56),
        (-3, "KSampler", "denoise", 0),
        (7.123456, "ProbeSink", "f", 7.1),
        (float("inf"), "ProbeSink", "i", float("inf")),
        (1e300, "KSampler", "cfg", 100),
        (3, "ProbeWidgets", "n", 5),
        (None, "KSampler", "sampler_name", "euler"),
        (None, "CLIPTextEncode", "text", ""),
        ("", "KSampler", "scheduler", ""),
    ],
)
def test_a_number_stands_on_the_steps_of_its_widget(
    stored: Any, class_type: str, name: str, expected: Any
) -> None:
    made = driven([stored, "fixed"], ui(2, class_type, links={name: 1}))
    assert made["2"][name] == expected


def test_a_number_stands_on_steps_that_all_have_in_common() -> None:
    wide = ui(3, "EmptyLatentImage", links={"width": 2})
    made = driven([77], empty_image(2, links={"width": 1}), wide)
    assert (made["2"]["width"], made["3"]["width"]) == (80, 80)
    made = driven([0.555], ui(2, "ProbeSink", links={"f": 1}), sampler(3, "denoise", 2))
    assert (made["2"]["f"], made["3"]["denoise"]) == (0.6, 0.56)


def test_ranges_that_contradict_the_first_do_not_count() -> None:
    made = driven([77], sampler(2, "cfg", 1), sampler(3, "denoise", 2))
    assert (made["2"]["cfg"], made["3"]["denoise"]) == (77, 1)
    steps = ui(3, "SDTurboScheduler", links={"steps": 2})  # at most 10, while a width is 16 or more
    made = driven([77], ui(2, "EmptyLatentImage", links={"width": 1}), steps)
    assert (made["2"]["width"], made["3"]["steps"]) == (80, 80)


def sampler(node_id: int, name: str, link: int) -> dict[str, Any]:
    """A sampler with one of its widgets connected."""
    return ui(node_id, "KSampler", links={name: link})


def test_where_the_first_link_leads_to_no_widget_none_is_driven() -> None:
    made = driven([700], invert(2, 1), empty_image(3, links={"width": 2}))
    assert made["3"]["width"] == 64
    # A socket of a widget's type is enough.
    made = driven(
        [700], ui(2, "ProbeWidgets", links={"forced": 1}), empty_image(3, links={"width": 2})
    )
    assert made["3"]["width"] == 700


@pytest.mark.parametrize(("listed", "expected"), [([2, 1], 5), ([1, 2], 64), ([1], 64)])
def test_it_starts_with_the_first_link_that_its_output_lists(
    listed: list[int], expected: int
) -> None:
    outputs = [{"name": "INT", "type": "INT", "links": listed}]
    targets = [empty_image(2, links={"width": 1}), empty_image(3, (5, 6, 1, 0), links={"width": 2})]
    assert driven(None, *targets, outputs=outputs)["2"]["width"] == expected


@pytest.mark.parametrize("outputs", [[], [None], [{}], [{"links": None}], [{"links": [2]}]])
def test_a_link_that_its_output_does_not_list_drives_nothing(outputs: Any) -> None:
    made = driven([700], empty_image(2, links={"width": 1}), outputs=outputs)
    assert made["2"]["width"] == 64


@pytest.mark.parametrize("mode", [0, 2, 4])
def test_it_does_so_even_when_it_is_muted(mode: int) -> None:
    assert driven([700], empty_image(2, links={"width": 1}), mode=mode)["2"]["width"] == 700


def test_a_muted_target_counts_for_the_range() -> None:
    made = driven(
        [12_000],
        empty_image(2, links={"width": 1}),
        ui(3, "KSampler", [5, "fixed", 20], links={"steps": 2}, mode=2),
    )
    assert made["2"]["width"] == 10_000


def test_nothing_goes_through_a_reroute_or_into_a_socket() -> None:
    reroute = ui(3, "Reroute", links={"": 1})
    links = [(1, 1, 0, 3, 0, "*"), (2, 3, 0, 2, 0, "*")]
    made = driven([700], reroute, empty_image(2, links={"width": 2}), links=links)
    assert made["2"]["width"] == 64
    made = driven([700], ui(2, "ProbeWidgets", {}, links={"forced": 1}))
    assert "forced" not in made["2"]


def test_a_promoted_widget_keeps_the_value_inside() -> None:
    inner = subgraph(
        "inner",
        [empty_image(10, links={"width": 1})],
        [(1, -10, 0, 10, 0, "INT")],
        [("width", "INT")],
    )
    nodes = [ui(1, "PrimitiveNode", [700]), ui(2, "inner", [300], links={"width": 1})]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "INT")], [inner]))
    assert made["2:10"]["inputs"]["width"] == 64


def test_it_drives_its_neighbours_inside_a_subgraph() -> None:
    inner = subgraph(
        "inner",
        [ui(9, "PrimitiveNode", [700]), empty_image(10, links={"width": 1})],
        [(1, 9, 0, 10, 0, "INT")],
    )
    made = sent(document([ui(1, "inner"), ui(2, "inner")], subgraphs=[inner]))
    assert [node["inputs"]["width"] for node in made.values()] == [700, 700]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"Run widget replace on values": True}, "64 x 48"),
        ({"Run widget replace on values": False}, "%A.width% x %A.height%"),
        ({}, "%A.width% x %A.height%"),
        (None, "%A.width% x %A.height%"),
    ],
)
def test_its_text_may_name_other_widgets(properties: Any, expected: str) -> None:
    nodes = [
        ui(1, "PrimitiveNode", ["%A.width% x %A.height%"], properties=properties),
        ui(2, "PrimitiveString", [""], links={"value": 1}),
        empty_image(3, title="A"),
    ]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "STRING")]))
    assert made["2"]["inputs"]["value"] == expected


def test_it_may_name_a_primitive_that_comes_later_and_its_value_in_range() -> None:
    replacing = {"Run widget replace on values": True}
    nodes = [
        ui(1, "PrimitiveNode", ["%B.value%"], properties=replacing),
        ui(2, "SaveImage", ["p"], links={"filename_prefix": 1}),
        ui(3, "PrimitiveNode", [99_999], title="B"),
        empty_image(4, links={"width": 2}),
    ]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "STRING"), (2, 3, 0, 4, 0, "INT")]))
    assert made["2"]["inputs"]["filename_prefix"] == "16384"


def test_links_from_it_that_end_nowhere_are_passed_over() -> None:
    links = [(1, 1, 0, 2, 0, "INT"), (2, 1, 0, 77, 0, "INT"), (3, 1, 0, None, None, "INT")]
    assert driven([700], empty_image(2, links={"width": 1}), links=links)["2"]["width"] == 700


def test_where_neither_it_nor_its_first_target_has_a_value_nothing_is_written() -> None:
    loader = ui(2, "UpscaleModelLoader", links={"model_name": 1})  # there are no such models
    text = ui(3, "ProbeSink", {"s": "x"}, links={"s": 2})
    made = driven(None, loader, text)
    assert "model_name" not in made["2"]
    assert made["3"]["s"] == "x"
