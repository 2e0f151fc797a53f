"""The values that instances of subgraphs hold for widgets inside them."""

import json
from typing import Any

import pytest
from editor_files import document, empty_image, invert, sent, subgraph, ui

PORTS = [("width", "INT"), ("image", "IMAGE"), ("height", "INT")]


def sized(**inner: Any) -> dict[str, Any]:
    """A definition that promotes two widgets of one node, with a socket between."""
    return subgraph(
        "sized",
        [empty_image(10, links={"height": 3, "width": 1}, **inner)],
        [(1, -10, 0, 10, 0, "INT"), (3, -10, 2, 10, 0, "INT")],
        PORTS,
    )


def size(made: Any, node_id: str = "1:10") -> tuple[Any, Any]:
    """Width and height as a node is sent with them."""
    inputs = made[node_id]["inputs"]
    return inputs["width"], inputs["height"]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (None, (64, 48)),
        ([], (64, 48)),
        ([7], (7, 48)),
        ([7, 8], (7, 8)),
        ([7, 8, 9], (7, 8)),
        ([None, 8], (None, 8)),
        ([[1, 2], {"a": 1}], ({"__value__": [1, 2]}, {"a": 1})),
        ({"height": 8, "unknown": 1, "image": 2}, (64, 8)),
    ],
)
def test_an_instance_has_values_for_the_inputs_with_a_widget(stored: Any, expected: Any) -> None:
    assert size(sent(document([ui(1, "sized", stored)], subgraphs=[sized()]))) == expected


def test_each_instance_has_values_of_its_own() -> None:
    made = sent(document([ui(1, "sized", [1, 2]), ui(2, "sized")], subgraphs=[sized()]))
    assert (size(made), size(made, "2:10")) == ((1, 2), (64, 48))


def test_a_link_of_the_instance_comes_before_its_value() -> None:
    nodes = [ui(1, "sized", [1, 2], links={"width": 1}), ui(3, "PrimitiveInt", [9, "fixed"])]
    links = [(1, 3, 0, 1, 0, "INT")]
    assert size(sent(document(nodes, links, [sized()]))) == (["3", 0], 2)
    # A link that ends in nothing leaves the inner widget's own value, not the promoted one.
    nodes[1]["mode"] = 2
    assert size(sent(document(nodes, links, [sized()]))) == (64, 2)


def test_a_promoted_text_is_sent_raw() -> None:
    inner = subgraph(
        "inner",
        [
            ui(10, "CLIPTextEncode", ["{a|a}"], links={"text": 1}),
            ui(11, "SaveImage", ["x"], links={"filename_prefix": 2}),
        ],
        [(1, -10, 0, 10, 0, "STRING"), (2, -10, 1, 11, 0, "STRING")],
        [("text", "STRING"), ("name", "STRING")],
    )
    made = sent(document([ui(1, "inner", ["{b|c} // d", "%date:yyyy%"])], subgraphs=[inner]))
    assert made["1:10"]["inputs"]["text"] == "{b|c} // d"
    assert made["1:11"]["inputs"]["filename_prefix"] == "%date:yyyy%"
    made = sent(document([ui(1, "inner")], subgraphs=[inner]))
    assert made["1:10"]["inputs"]["text"] == "{a|a}"


def outer(values: Any, **rest: Any) -> dict[str, Any]:
    """A definition that promotes the width of an instance of `sized`."""
    return subgraph(
        "outer",
        [ui(20, "sized", values, links={"width": 5}, **rest)],
        [(5, -10, 0, 20, 0, "INT")],
        [("w", "INT")],
    )


@pytest.mark.parametrize(
    ("outermost", "middle", "expected"),
    [
        (None, None, (64, 48)),
        (None, [7, 8], (7, 8)),
        ([5], [7, 8], (5, 8)),
        ([5], None, (5, 48)),
        ([None], [7, 8], (None, 8)),
    ],
)
def test_the_outermost_value_wins(outermost: Any, middle: Any, expected: Any) -> None:
    file = document([ui(1, "outer", outermost)], subgraphs=[outer(middle), sized()])
    assert size(sent(file), "1:20:10") == expected


def test_nothing_is_promoted_through_a_reroute() -> None:
    inner = subgraph(
        "inner",
        [ui(11, "Reroute", links={"": 1}), empty_image(10, links={"width": 2})],
        [(1, -10, 0, 11, 0, "*"), (2, 11, 0, 10, 0, "*")],
        [("width", "INT")],
    )
    assert size(sent(document([ui(1, "inner", [7])], subgraphs=[inner]))) == (64, 48)


def kept(name: str = "width", value: Any = 9, **changes: Any) -> dict[str, Any]:
    """A value that the editor could not place, as it keeps it."""
    entry = {"originalEntry": ["-1", name], "reason": "unlinkedSourceWidget"}
    return {**entry, "hostValue": value, "attemptedAtVersion": 1, **changes}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([kept()], (9, 2)),
        ([kept(originalEntry=["-1", "width", "x"])], (9, 2)),
        ([kept(), kept(value=10)], (9, 2)),
        (json.dumps([kept()]), (9, 2)),
        ([kept(value=None)], (1, 2)),
        ([kept("image")], (1, 2)),
        ([kept(originalEntry=["10", "width"])], (1, 2)),
        # lists that are none
        ([kept(), kept(originalEntry=["-1"])], (1, 2)),
        ([kept(), kept(reason="mood")], (1, 2)),
        ([kept(), kept(attemptedAtVersion=2)], (1, 2)),
        ([kept(), None], (1, 2)),
        ([kept(), {}], (1, 2)),
        ("odd", (1, 2)),
        (None, (1, 2)),
    ],
)
def test_values_that_the_editor_could_not_place_once_win(entries: Any, expected: Any) -> None:
    instance = ui(1, "sized", [1, 2], properties={"proxyWidgetErrorQuarantine": entries})
    assert size(sent(document([instance], subgraphs=[sized()]))) == expected


@pytest.mark.parametrize("stored", [None, [None], [None, "x"]])
def test_a_null_for_a_combo_is_its_first_choice(stored: Any) -> None:
    sampler = ui(10, "KSampler", [5, "fixed", 20, 8, None], links={"sampler_name": 1})
    inner = subgraph("inner", [sampler], [(1, -10, 0, 10, 0, "COMBO")], [("sampler_name", "COMBO")])
    middle = subgraph(
        "middle",
        [ui(20, "inner", [None], links={"sampler_name": 1})],
        [(1, -10, 0, 20, 0, "COMBO")],
        [("sampler", "COMBO")],
    )
    file = document([ui(1, "inner", stored), ui(2, "middle", stored)], subgraphs=[inner, middle])
    made = sent(file)
    assert made["1:10"]["inputs"]["sampler_name"] == "euler"
    assert made["2:20:10"]["inputs"]["sampler_name"] == "euler"


def test_two_inputs_of_one_name_share_the_last_value() -> None:
    inner = subgraph(
        "inner",
        [empty_image(10, links={"width": 1, "height": 2})],
        [(1, -10, 0, 10, 0, "INT"), (2, -10, 1, 10, 1, "INT")],
        [("size", "INT"), ("size", "INT")],
    )
    assert size(sent(document([ui(1, "inner", [7, 8])], subgraphs=[inner]))) == (8, 8)
    assert size(sent(document([ui(1, "inner", [7])], subgraphs=[inner]))) == (7, 7)


def proxied(entries: Any, stored: Any, definition: Any = None, **rest: Any) -> dict[str, Any]:
    """What is sent for one instance with a legacy list of promoted widgets."""
    instance = ui(1, "sized", stored, properties={"proxyWidgets": entries})
    return sent(document([instance], subgraphs=[definition or sized(**rest)]))


@pytest.mark.parametrize(
    ("entries", "stored", "expected"),
    [
        ([["10", "height"], ["10", "width"]], [8, 7], (7, 8)),
        ([["10", "height"]], [8], (64, 8)),
        ([["10", "height"], ["10", "width"]], [8], (64, 8)),
        ([["10", "height"], ["10", "width"]], [None, 7], (7, 48)),
        ([["10", "height"], ["10", "width"]], {"height": 8}, (64, 48)),
        ([["-1", "height"], ["-1", "nothing"]], [8, 9], (64, 8)),
        ([["77", "height"], ["10", "width"]], [8, 7], (7, 48)),
        ([["10", "nothing"], ["10", "width"]], [8, 7], (7, 48)),
        ([["10", "$$preview"], ["10", "width"]], [8, 7], (7, 48)),
        ([["10", "12: height"]], [8], (64, 8)),
        ([["10", " 3 : 12: height"]], [8], (64, 8)),
        ([["10", "height", "10"]], [8], (64, 8)),
        ('[["10", "height"]]', [8], (64, 8)),
        ([["-1", "width"], ["10", "width"]], [7, 8], (7, 48)),
        # lists that are none: values go by position
        ([["10", "height"], [10, "width"]], [7, 8], (7, 8)),
        ([["10", "height"], "x"], [7, 8], (7, 8)),
        ([["10"]], [7, 8], (7, 8)),
        ([["10", "height", "10", "more"]], [7, 8], (7, 8)),
        ([], [7, 8], (7, 8)),
        ("odd", [7, 8], (7, 8)),
        (None, [7, 8], (7, 8)),
    ],
)
def test_old_files_list_what_each_value_is_for(entries: Any, stored: Any, expected: Any) -> None:
    assert size(proxied(entries, stored)) == expected


def test_a_listed_widget_that_nothing_feeds_gets_an_input() -> None:
    entries = [["10", "batch_size"], ["10", "width"], ["10", "batch_size"]]
    made = proxied(entries, [4, 7, 5])
    assert made["1:10"]["inputs"] == {"width": 7, "height": 48, "batch_size": 5, "color": 0}


def test_other_instances_get_the_input_with_the_inner_value() -> None:
    one = ui(1, "sized", [4], properties={"proxyWidgets": [["10", "batch_size"]]})
    made = sent(document([one, ui(2, "sized", [7, 8])], subgraphs=[sized()]))
    assert made["1:10"]["inputs"]["batch_size"] == 4
    assert made["2:10"]["inputs"] == {"width": 7, "height": 8, "batch_size": 1, "color": 0}


def test_a_listed_widget_is_cut_from_what_fed_it_inside() -> None:
    inner = subgraph(
        "sized",
        [empty_image(10, links={"width": 1}), ui(11, "PrimitiveInt", [9, "fixed"])],
        [(1, 11, 0, 10, 0, "INT")],
    )
    made = sent(document([ui(1, "sized")], subgraphs=[inner]))
    assert made["1:10"]["inputs"]["width"] == ["1:11", 0]
    assert size(proxied([["10", "width"]], [7], inner)) == (7, 48)
    assert size(proxied([["10", "width"]], [], inner)) == (64, 48)


def test_two_widgets_of_one_name_get_an_input_each() -> None:
    inner = subgraph("sized", [empty_image(10), empty_image(11)])
    made = proxied([["11", "width"], ["10", "width"]], [5, 6], inner)
    assert (size(made), size(made, "1:11")) == ((6, 48), (5, 48))


def test_a_listed_primitive_gives_its_input_to_all_that_it_drives() -> None:
    inner = subgraph(
        "sized",
        [
            ui(9, "PrimitiveNode", [5, "fixed"], title="Size"),
            empty_image(10, links={"width": 1, "height": 2}),
        ],
        [(1, 9, 0, 10, 0, "INT"), (2, 9, 0, 10, 1, "INT")],
    )
    assert size(sent(document([ui(1, "sized")], subgraphs=[inner]))) == (5, 5)
    assert size(proxied([["9", "value"]], [7], inner)) == (7, 7)
    # without a value, the first of what it drives tells it
    assert size(proxied([["9", "value"]], [], inner)) == (64, 64)
    assert size(proxied([["9", "value"], ["9", "value"]], [None, 8], inner)) == (64, 64)
    # each instance has a value of its own
    nodes = [
        ui(key, "sized", [7 + key], properties={"proxyWidgets": [["9", "value"]]}) for key in (1, 2)
    ]
    made = sent(document(nodes, subgraphs=[inner]))
    assert (size(made), size(made, "2:10")) == ((8, 8), (9, 9))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([["9", "value"], ["9", "control_after_generate"]], (5, 5)),
        ([["10", "height"], ["9", "value"]], (5, 7)),
        ([["10", "width"], ["9", "value"]], (7, 48)),
    ],
)
def test_a_listed_primitive_stays_where_it_cannot_be_replaced(entries: Any, expected: Any) -> None:
    listed = [{"name": "INT", "type": "INT", "links": [1, 2]}]
    inner = subgraph(
        "sized",
        [
            ui(9, "PrimitiveNode", [5, "fixed"], outputs=listed),
            empty_image(10, links={"width": 1, "height": 2}),
        ],
        [(1, 9, 0, 10, 0, "INT"), (2, 9, 0, 10, 1, "INT")],
    )
    assert size(proxied(entries, [7, 8], inner)) == expected


def test_a_listed_primitive_that_drives_nothing_is_passed_over() -> None:
    inner = subgraph("sized", [ui(9, "PrimitiveNode", [5]), empty_image(10)])
    assert size(proxied([["9", "value"], ["10", "width"]], [7, 8], inner)) == (8, 48)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("width", (7, 48)),
        ("10: width", (7, 48)),
        ("20: 10: width", (7, 48)),
        ("11: width", (7, 48)),
        ("99: x", (64, 48)),
    ],
)
def test_a_widget_from_further_inside_is_found_by_its_prefixes(name: str, expected: Any) -> None:
    middle = subgraph("outer", [ui(20, "sized")])
    instance = ui(1, "outer", [7], properties={"proxyWidgets": [["20", name]]})
    made = sent(document([instance], subgraphs=[middle, sized()]))
    assert size(made, "1:20:10") == expected


def test_an_instance_inside_a_definition_may_have_such_a_list_too() -> None:
    middle = outer([8, 9], properties={"proxyWidgets": [["10", "height"], ["10", "batch_size"]]})
    made = sent(document([ui(1, "outer", [7])], subgraphs=[middle, sized()]))
    assert made["1:20:10"]["inputs"] == {"width": 7, "height": 8, "batch_size": 9, "color": 0}


def test_a_class_that_is_absent_promotes_nothing() -> None:
    inner = subgraph("sized", [ui(10, "NoSuchNode", ["x"], outputs=[{"name": "A", "type": "*"}])])
    assert proxied([["10", "width"]], [7], inner) == {}


def test_an_input_whose_widget_a_list_takes_away_has_nothing_in_place_of_null() -> None:
    deep = subgraph("deep", [invert(30, 1)], [(1, -10, 0, 30, 0, "IMAGE")], [("image", "IMAGE")])
    inner = subgraph(
        "inner",
        [ui(20, "deep", links={"both": 1}), empty_image(21, [None], links={"width": 2})],
        [(1, -10, 0, 20, 0, "*"), (2, -10, 0, 21, 0, "*")],
        [("both", "*")],
    )
    inner["nodes"][0]["inputs"] = [{"name": "image", "type": "IMAGE", "link": 1}]
    instance = ui(5, "inner", [640], properties={"proxyWidgets": [["21", "width"]]})
    made = sent(document([instance], subgraphs=[deep, inner]))
    assert made["5:21"]["inputs"]["width"] == 640
    assert made["5:20:30"]["inputs"] == {"image": None}
