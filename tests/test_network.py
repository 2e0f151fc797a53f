"""The graphs of a file as the editor holds them: which nodes and links count, in what order."""

from typing import Any

import pytest
from editor_files import (
    catalog_of,
    document,
    empty_image,
    invert,
    save_image,
    sent,
    subgraph,
    ui,
    with_probes,
)


def inputs(file: Any, node_id: str = "1") -> dict[str, Any]:
    """The inputs that a node is sent with."""
    found: dict[str, Any] = sent(file, with_probes())[node_id]["inputs"]
    return found


def test_a_link_takes_the_place_of_a_widgets_value() -> None:
    nodes = [empty_image(1, links={"width": 1}), ui(2, "PrimitiveInt", [7, "fixed"])]
    made = inputs(document(nodes, [(1, 2, 0, 1, 0, "INT")]))
    assert made == {"width": ["2", 0], "height": 48, "batch_size": 1, "color": 0}


def test_a_link_to_an_input_that_the_class_lacks_is_sent_unless_it_was_a_widgets() -> None:
    node = invert(1, 1)
    node["inputs"] += [
        {"name": "gone", "link": 1},
        {"name": "gone widget", "link": 1, "widget": {"name": "gone widget"}},
        {"name": "open", "link": None},
    ]
    made = inputs(document([node, empty_image(2)], [(1, 2, 0, 1, 0, "IMAGE")]))
    assert made == {"image": ["2", 0], "gone": ["2", 0]}


RESIZE = {"input": 1, "resize_type.match": 1, "resize_type.longer_size": 2}


def test_a_link_to_another_choice_of_a_dynamic_combo_is_dropped() -> None:
    node = ui(1, "ResizeImageMaskNode", ["scale longer dimension", 512], links=RESIZE)
    nodes = [node, empty_image(2), ui(3, "PrimitiveInt", [7, "fixed"])]
    made = inputs(document(nodes, [(1, 2, 0, 1, 0, "IMAGE"), (2, 3, 0, 1, 0, "INT")]))
    assert made["resize_type"] == "scale longer dimension"
    assert made["resize_type.longer_size"] == ["3", 0]
    assert "resize_type.match" not in made


def test_every_connected_member_of_a_group_that_grows_is_sent() -> None:
    links = {"images.image0": 1, "images.image7": 1, "images.image99999": 1}
    nodes = [ui(1, "BatchImagesNode", [], links=links), empty_image(2)]
    made = inputs(document(nodes, [(1, 2, 0, 1, 0, "IMAGE")]))
    # The last is no member; the editor keeps a socket that the class no longer has.
    assert made == {name: ["2", 0] for name in links}


def test_the_link_of_the_first_of_two_inputs_of_a_name_is_overwritten() -> None:
    node = invert(1, 1)
    node["inputs"].append({"name": "image", "link": 2})
    nodes = [node, empty_image(2), empty_image(3)]
    links = [(1, 2, 0, 1, 0, "IMAGE"), (2, 3, 0, 1, 0, "IMAGE")]
    assert inputs(document(nodes, links)) == {"image": ["3", 0]}


def test_what_a_link_says_about_its_end_does_not_count() -> None:
    nodes = [empty_image(1), save_image(2, 1), save_image(3, None)]
    links = [(1, 1, 0, 3, 5, "NONSENSE"), (2, 1, 0, 3, 0, "IMAGE")]
    made = sent(document(nodes, links))
    assert made["2"]["inputs"]["images"] == ["1", 0]
    assert "images" not in made["3"]["inputs"]


def test_one_link_may_end_at_several_inputs() -> None:
    nodes = [empty_image(1), save_image(2, 1), save_image(3, 1)]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "IMAGE")]))
    assert made["2"]["inputs"] == made["3"]["inputs"]


def test_a_slot_beyond_the_outputs_is_sent_as_it_is() -> None:
    nodes = [empty_image(1), save_image(2, 1)]
    made = sent(document(nodes, [(1, 1, 10**20, 2, 0, "IMAGE")]))
    assert made["2"]["inputs"]["images"] == ["1", 10**20]


def test_a_circle_of_real_nodes_is_sent_as_it_is() -> None:
    nodes = [invert(1, 2), invert(2, 1), invert(3, 3)]
    links = [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 1, 0, "IMAGE"), (3, 3, 0, 3, 0, "IMAGE")]
    made = sent(document(nodes, links))
    assert {key: node["inputs"]["image"] for key, node in made.items()} == {
        "1": ["2", 0],
        "2": ["1", 0],
        "3": ["3", 0],
    }


def test_each_node_comes_when_the_last_of_its_inputs_has_been_reached() -> None:
    nodes = [
        ui("join", "ImageBatch", links={"image1": 1, "image2": 3}),
        invert("loop", 5),
        invert("far", 2),
        empty_image("start"),
        empty_image("alone"),
        invert("near", 4),
    ]
    links = [
        (1, "start", 0, "join", 0, "IMAGE"),
        (2, "start", 0, "far", 0, "IMAGE"),
        (3, "far", 0, "join", 1, "IMAGE"),
        (4, "start", 0, "near", 0, "IMAGE"),
        (5, "loop", 0, "loop", 0, "IMAGE"),
    ]
    assert list(sent(document(nodes, links))) == ["start", "alone", "far", "near", "join", "loop"]


def test_links_of_lower_outputs_are_followed_first() -> None:
    nodes = [
        ui("all", "ProbeSrc"),
        ui("late", "ProbeSink", links={"b": 1}),
        ui("early", "ProbeSink", links={"a": 2}),
    ]
    links = [(1, "all", 1, "late", 0, "PB"), (2, "all", 0, "early", 0, "PA")]
    assert list(sent(document(nodes, links), with_probes())) == ["all", "early", "late"]


def test_inner_nodes_follow_their_instance_in_the_files_order() -> None:
    inner = subgraph(
        "inner",
        [save_image("z", 1), empty_image("a")],
        [(1, "a", 0, "z", 0, "IMAGE")],
    )
    nodes = [ui("first", "inner"), empty_image("second"), ui("third", "inner")]
    assert list(sent(document(nodes, subgraphs=[inner]))) == [
        *("first:z", "first:a"),
        "second",
        *("third:z", "third:a"),
    ]


@pytest.mark.parametrize("node_type", ["Note", "MarkdownNote", "Reroute", "PrimitiveNode"])
def test_nodes_of_the_editor_are_not_sent_even_if_a_pack_has_such_a_class(node_type: str) -> None:
    catalog = catalog_of({node_type: {"input": {}, "output": [], "output_node": True}})
    assert sent(document([ui(1, node_type, ["x"])]), catalog) == {}


def test_a_definition_comes_before_a_class_of_its_name() -> None:
    inner = subgraph("SaveImage", [empty_image(10)])
    assert list(sent(document([ui(1, "SaveImage", ["p"])], subgraphs=[inner]))) == ["1:10"]
