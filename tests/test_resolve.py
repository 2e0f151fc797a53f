"""Where an input's value comes from: through reroutes, bypassed nodes and subgraphs."""

from typing import Any

import pytest
from editor_files import (
    document,
    empty_image,
    invert,
    save_image,
    sent,
    subgraph,
    ui,
    with_probes,
)

from comfy_runner.convert.resolve import connects
from comfy_runner.errors import InvalidWorkflow


def image(file: Any, node_id: str = "9") -> Any:
    """What the saving node of a file gets, or `None`."""
    return sent(file, with_probes())[node_id]["inputs"].get("images")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "image", True),
        ("IMAGE", "MASK", False),
        ("*", "MASK", True),
        ("MASK", "", True),
        ("IMAGE,MASK", "mask", True),
        ("A,B", "C,b", True),
        ("A,B", "C,D", False),
        ("A,*", "C", True),
        ("A,", "C", True),
    ],
)
def test_types_that_may_be_connected(one: str, other: str, expected: bool) -> None:
    assert connects(one, other) is expected
    assert connects(other, one) is expected


def chain(*between: dict[str, Any]) -> dict[str, Any]:
    """A picture, nodes 2, 3, ... that each take link n - 1 and give link n, and a saving node."""
    last = len(between) + 1
    links = [(key, key, 0, key + 1, 0, "IMAGE") for key in range(1, last)]
    links.append((last, last, 0, 9, 0, "IMAGE"))
    return document([empty_image(1), *between, save_image(9, last)], links)


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ([], ["1", 0]),
        ([ui(2, "Reroute", links={"": 1})], ["1", 0]),
        ([ui(2, "Reroute", links={"": 1}, mode=2)], None),
        ([ui(2, "Reroute", links={"": 1}, mode=4)], ["1", 0]),
        ([ui(2, "Reroute")], None),
        ([ui(2, "Reroute", links={"": None})], None),
        ([invert(2, 1)], ["2", 0]),
        ([invert(2, 1, mode=2)], None),
        ([invert(2, 1, mode=4)], ["1", 0]),
        ([invert(2, None, mode=4)], None),
        ([invert(2, 1, mode=4), ui(3, "Reroute", links={"": 2}), invert(4, 3, mode=4)], ["1", 0]),
        ([invert(2, 1, mode=4), invert(3, 2, mode=2)], None),
        ([ui(2, "Note")], None),
        ([ui(2, "PrimitiveNode", ["x"])], None),
        ([ui(2, "NoSuchNode", mode=2)], None),
        (
            [
                ui(
                    2,
                    "NoSuchNode",
                    mode=4,
                    inputs=[
                        {"name": "a", "type": "MASK"},
                        {"name": "b", "type": "IMAGE", "link": 1},
                    ],
                    outputs=[{"name": "IMAGE", "type": "IMAGE"}],
                )
            ],
            ["1", 0],
        ),
        ([ui(2, "NoSuchNode", mode=4)], None),
        ([ui(2, "CLIPTextEncode", ["x"], links={"clip": 1}, mode=4)], None),
    ],
)
def test_the_way_up_a_link(between: list[dict[str, Any]], expected: Any) -> None:
    assert image(chain(*between)) == expected


@pytest.mark.parametrize("names", [("a", "b"), ("", "")])
def test_output_k_of_a_reroute_is_what_its_input_k_gets(names: tuple[str, str]) -> None:
    inputs = [{"name": name, "type": "*", "link": key} for key, name in enumerate(names, 1)]
    nodes = [
        empty_image(1),
        empty_image(2),
        {"id": 3, "type": "Reroute", "inputs": inputs},
        save_image(8, 3),
        save_image(9, 4),
    ]
    links = [(key, key, 0, 3, key - 1, "*") for key in (1, 2)]
    links += [(3, 3, 0, 8, 0, "*"), (4, 3, 1, 9, 0, "*")]
    made = sent(document(nodes, links))
    assert made["8"]["inputs"]["images"] == ["1", 0]
    assert made["9"]["inputs"]["images"] == ["2", 0]


def member(number: int) -> str:
    """The name of an input of a CreateList."""
    return f"inputs.input{number}"


@pytest.mark.parametrize(("target", "name"), [("SaveImage", "images"), ("PreviewAny", "source")])
def test_a_bypassed_list_passes_its_first_member_on(target: str, name: str) -> None:
    nodes = [
        *(empty_image(key) for key in (1, 2)),
        ui(3, "CreateList", links={member(0): 1, member(1): 2}, mode=4),
        ui(9, target, links={name: 3}),
    ]
    links = [(key, key, 0, 3, key - 1, "IMAGE") for key in (1, 2)] + [(3, 3, 0, 9, 0, "*")]
    assert sent(document(nodes, links))["9"]["inputs"][name] == ["1", 0]


def test_a_circle_of_reroutes_ends_in_nothing() -> None:
    nodes = [ui(1, "Reroute", links={"": 2}), ui(2, "Reroute", links={"": 1}), save_image(9, 3)]
    links = [(1, 1, 0, 2, 0, "*"), (2, 2, 0, 1, 0, "*"), (3, 1, 0, 9, 0, "*")]
    assert image(document(nodes, links)) is None


def test_a_circle_through_a_subgraph_ends_in_nothing() -> None:
    inner = subgraph(
        "inner", [], [(1, -10, 0, -20, 0, "IMAGE")], [("image", "IMAGE")], [("IMAGE", "IMAGE")]
    )
    nodes = [ui(1, "inner", links={"image": 1}), save_image(9, 2)]
    links = [(1, 1, 0, 1, 0, "IMAGE"), (2, 1, 0, 9, 0, "IMAGE")]
    assert image(document(nodes, links, [inner])) is None


SOCKETS = {"a": 1, "b1": 2, "b2": 3, "i": 4, "ab": 5, "star": 6}
"""Inputs of the probe that is bypassed, each with the output of another that feeds it."""


def bypassed(slot: int, taker: str, connected: dict[str, int]) -> Any:
    """What an input of the probe sink gets from an output of a bypassed probe."""
    outputs = {"a": 0, "b1": 1, "b2": 1, "i": 3, "ab": 6, "star": 2}
    nodes = [
        ui(1, "ProbeSrc"),
        ui(2, "ProbeAB", [5], links=connected, mode=4),
        ui(3, "ProbeSink", links={taker: 9}),
    ]
    links = [(SOCKETS[name], 1, outputs[name], 2, 0, "*") for name in connected]
    made = sent(document(nodes, [*links, (9, 2, slot, 3, 0, "*")]), with_probes())
    return made["3"]["inputs"].get(taker)


@pytest.mark.parametrize(
    ("slot", "taker", "expected"),
    [
        # The bypassed node's slots are a PA, b1 PB, b2 PB, ab PA,PB, star *, i INT.
        (0, "a", ["1", 0]),  # slot 0 fits neither; the first of just that type
        (0, "b", ["1", 1]),
        (1, "b", ["1", 1]),
        (1, "a", ["1", 0]),
        (3, "c", ["1", 2]),  # PC: nothing is of just that type, the star fits
        (0, "star", ["1", 0]),
        (1, "star", ["1", 1]),
        (3, "star", ["1", 6]),
        (5, "star", ["1", 3]),
        (7, "star", ["1", 0]),  # beyond the inputs: the first
        (2, "i", ["1", 3]),
        (9, "ab", ["1", 6]),
    ],
)
def test_what_a_bypassed_node_hands_on(slot: int, taker: str, expected: Any) -> None:
    assert bypassed(slot, taker, SOCKETS) == expected


def test_a_bypassed_node_hands_on_nothing_where_the_fitting_input_is_open() -> None:
    assert bypassed(0, "b", {"b2": 3}) is None
    assert bypassed(2, "i", {"star": 6}) == 1  # the sink's own value


def test_the_own_value_of_a_widget_is_sent_where_its_link_ends_in_nothing() -> None:
    nodes = [
        ui(1, "PrimitiveInt", [700, "fixed"], mode=2),
        empty_image(2, links={"width": 1}),
        ui(3, "CLIPTextEncode", ["{a|a} // b"], links={"text": 2}),
    ]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "INT"), (2, 1, 0, 3, 0, "STRING")]))
    assert made["2"]["inputs"]["width"] == 64
    assert made["3"]["inputs"]["text"] == "a "


def through(
    *nodes: Any, links: Any, inputs: Any = (("image", "IMAGE"),), **instance: Any
) -> dict[str, Any]:
    """A picture through one instance of a subgraph with these nodes to a saving node."""
    inner = subgraph("inner", nodes, links, inputs, [("IMAGE", "IMAGE")])
    instance = {"links": {"image": 1}, **instance}
    root = [empty_image(1), ui(2, "inner", **instance), save_image(9, 2)]
    return document(root, [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 9, 0, "IMAGE")], [inner])


INVERTED = [(1, -10, 0, 10, 0, "IMAGE"), (2, 10, 0, -20, 0, "IMAGE")]


def test_an_instance_stands_for_its_nodes() -> None:
    made = sent(through(invert(10, 1), links=INVERTED))
    assert list(made) == ["1", "9", "2:10"]
    assert made["2:10"]["inputs"]["image"] == ["1", 0]
    assert made["9"]["inputs"]["images"] == ["2:10", 0]


@pytest.mark.parametrize(("mode", "expected"), [(2, None), (4, ["1", 0])])
def test_an_instance_that_is_switched_off(mode: int, expected: Any) -> None:
    made = sent(through(invert(10, 1), links=INVERTED, mode=mode))
    assert list(made) == ["1", "9"]
    assert made["9"]["inputs"].get("images") == expected


def test_a_link_straight_through_a_definition() -> None:
    assert image(through(links=[(1, -10, 0, -20, 0, "IMAGE")])) == ["1", 0]


def test_an_instance_input_that_the_definition_lacks_is_dropped() -> None:
    file = through(invert(10, 1), links=INVERTED, inputs=[("other", "IMAGE")])
    assert sent(file)["2:10"]["inputs"] == {}


def test_links_that_the_definition_does_not_list_are_found_all_the_same() -> None:
    file = through(invert(10, 1), links=INVERTED)
    [definition] = file["definitions"]["subgraphs"]
    for port in (*definition["inputs"], *definition["outputs"]):
        port["linkIds"] = [777]
    made = sent(file)
    assert made["2:10"]["inputs"]["image"] == ["1", 0]
    assert made["9"]["inputs"]["images"] == ["2:10", 0]


def test_two_instances_in_series_cross_the_same_reroute_twice() -> None:
    inner = subgraph(
        "inner",
        [ui(10, "Reroute", links={"": 1}), invert(11, 2, mode=4)],
        [(1, -10, 0, 10, 0, "*"), (2, 10, 0, 11, 0, "*"), (3, 11, 0, -20, 0, "IMAGE")],
        [("image", "IMAGE")],
        [("IMAGE", "IMAGE")],
    )
    root = [empty_image(1)] + [ui(key, "inner", links={"image": key - 1}) for key in range(2, 6)]
    links = [(key, key, 0, key + 1, 0, "IMAGE") for key in range(1, 6)]
    assert image(document([*root, save_image(9, 5)], links, [inner])) == ["1", 0]


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ([(2, 10, 0, -20, 0, "IMAGE")], "link 1, which is not in the file"),
        ([(1, 77, 0, 10, 0, "IMAGE"), (2, 10, 0, -20, 0, "IMAGE")], "node 2:77, which does not"),
        ([(1, -10, 4, 10, 0, "IMAGE"), (2, 10, 0, -20, 0, "IMAGE")], "input 4 of its subgraph"),
    ],
)
def test_a_fault_inside_a_subgraph_is_named_with_the_whole_way(links: Any, says: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        sent(through(invert(10, 1, title="Inner"), links=links))
    [problem] = caught.value.problems
    assert problem.where == "node 2:10 (Inner), input image"
    assert says in problem.what


def test_a_fault_behind_a_bypassed_node_is_named_where_it_is_missed() -> None:
    nodes = [invert(1, 77, mode=4), ui(2, "Reroute", links={"": 1}), save_image(9, 2)]
    with pytest.raises(InvalidWorkflow) as caught:
        sent(document(nodes, [(1, 1, 0, 2, 0, "*"), (2, 2, 0, 9, 0, "*")]))
    [problem] = caught.value.problems
    assert problem.where == "node 9 (Save Image), input images"
    assert "link 77" in problem.what


def test_negative_slots_are_no_slots() -> None:
    nodes = [ui(1, "Reroute"), save_image(9, 1)]
    with pytest.raises(InvalidWorkflow, match="link 1"):
        sent(document(nodes, [(1, 1, -1, 9, 0, "*")]))


def test_a_bypassed_switch_hands_on_what_has_the_right_type() -> None:
    nodes = [
        empty_image(1),
        ui(2, "SolidMask", [1.0, 8, 8]),
        ui(3, "ComfySwitchNode", [True], links={"on_false": 2, "on_true": 1}, mode=4),
        save_image(9, 3),
    ]
    links = [(1, 1, 0, 3, 0, "IMAGE"), (2, 2, 0, 3, 0, "MASK"), (3, 3, 0, 9, 0, "*")]
    # Each member has the type of what the other is connected to.
    assert image(document(nodes, links)) == ["2", 0]
    nodes[2] = ui(3, "ComfySwitchNode", [True], links={"on_true": 1}, mode=4)
    assert image(document(nodes, links)) is None
