"""Reading the editor's file: nodes and links, or an error that says what is none."""

import json
from typing import Any

import pytest
from editor_files import document, empty_image, invert, save_image, sent, subgraph, ui

from comfy_runner.convert.ui import read
from comfy_runner.errors import InvalidWorkflow


def test_what_is_no_node_is_named_by_its_place_and_all_at_once() -> None:
    nodes = [
        empty_image(1),
        "x",
        None,
        {"id": 4},
        {"id": 5, "type": ""},
        {"type": "SaveImage", "title": "Mine"},
        {"id": True, "type": "SaveImage"},
        {"id": [6], "type": "SaveImage"},
        {"id": "", "type": "SaveImage"},
        {"id": 7, "type": ["SaveImage"]},
    ]
    inner = subgraph("inner", [[]])
    with pytest.raises(InvalidWorkflow) as caught:
        read(document(nodes, subgraphs=[{**inner, "name": "My part"}]))
    problems = caught.value.problems
    assert {problem.code for problem in problems} == {"not_a_node"}
    assert [(p.what, p.node_id, p.title) for p in problems] == [
        ("Entry 1 of nodes is no object.", "", ""),
        ("Entry 2 of nodes is no object.", "", ""),
        ("Entry 3 of nodes has no type.", "4", ""),
        ("Entry 4 of nodes has no type.", "5", ""),
        ("Entry 5 of nodes has no id.", "", "Mine"),
        ("Entry 6 of nodes has no id.", "", "SaveImage"),
        ("Entry 7 of nodes has no id.", "", "SaveImage"),
        ("Entry 8 of nodes has no id.", "", "SaveImage"),
        ("Entry 9 of nodes has no type.", "7", "['SaveImage']"),
        ("Entry 0 of nodes in subgraph 'My part' is no object.", "", ""),
    ]
    assert all(problem.hint for problem in problems)


LINKS = [
    [1, 1, 0, 2, 0, "IMAGE"],
    [1, 1, 0, 2, 0],
    ["1", "1", "0", "2", "0", "IMAGE"],
    [1.0, 1.0, 0.0, 2.0, 0.0, 0],
    [1, 1, 0, None, None, None, "more"],
    {"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "IMAGE"},
    {"id": "1", "origin_id": "1", "origin_slot": 0},
]


@pytest.mark.parametrize("link", LINKS, ids=json.dumps)
@pytest.mark.parametrize("version", [0.4, 1, 0.3, "0.4", None])
def test_a_link_is_read_by_its_shape_whatever_the_version(link: Any, version: Any) -> None:
    nodes = [empty_image(1), save_image(2, 1)]
    assert sent(document(nodes, [link], version=version))["2"]["inputs"]["images"] == ["1", 0]


def test_links_may_stand_in_an_object() -> None:
    nodes = [empty_image(1), save_image(2, "a")]
    made = sent(document(nodes, {"0": {"id": "a", "origin_id": 1, "origin_slot": 0}}))
    assert made["2"]["inputs"]["images"] == ["1", 0]


@pytest.mark.parametrize(
    "link",
    [
        None,
        "x",
        7,
        [],
        [1, 1, 0, 2],
        [None, 1, 0, 2, 0, "IMAGE"],
        [1, None, 0, 2, 0, "IMAGE"],
        [1, 1, None, 2, 0, "IMAGE"],
        [1, 1, -1, 2, 0, "IMAGE"],
        [1, 1, "first", 2, 0, "IMAGE"],
        [1, 1, 0.5, 2, 0, "IMAGE"],
        [True, 1, 0, 2, 0, "IMAGE"],
        {"id": 1},
        {"origin_id": 1, "origin_slot": 0},
    ],
    ids=json.dumps,
)
def test_what_is_no_link_is_missed_where_it_is_needed(link: Any) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        sent(document([empty_image(1), save_image(2, 1, title="Mine")], [link]))
    [problem] = caught.value.problems
    assert (problem.code, problem.where) == ("broken_link", "node 2 (Mine), input images")


@pytest.mark.parametrize("links", [None, 3, "x"])
def test_a_file_without_links_has_none(links: Any) -> None:
    assert sent(document([save_image(2, None)]) | {"links": links})["2"]["inputs"] == {
        "filename_prefix": "p"
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3, "3"),
        ("3", "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (-4, "-4"),
        ("a:b", "a:b"),
        (10**18, "1" + "0" * 18),
        (10**400, "1" + "0" * 400),
    ],
)
def test_ids_are_compared_as_texts(given: Any, expected: str) -> None:
    nodes = [empty_image(given), save_image(2, given)]
    made = sent(document(nodes, [(expected, expected, 0, 2, 0, "IMAGE")]))
    assert made["2"]["inputs"]["images"] == [expected, 0]
    assert made[expected]["class_type"] == "EmptyImage"


def test_of_several_nodes_with_one_id_the_last_is_sent_unless_one_is_connected() -> None:
    nodes = [empty_image(1), save_image(2, 1), empty_image(1, (5, 6, 7, 8))]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "IMAGE")]))
    assert list(made) == ["1", "2"]
    assert made["1"]["inputs"]["width"] == 5
    assert made["2"]["inputs"]["images"] == ["1", 0]
    nodes = [empty_image(1), save_image(2, 1, "first"), save_image(2, None, "second")]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "IMAGE")]))
    assert made["2"]["inputs"] == {"filename_prefix": "first", "images": ["1", 0]}


def test_of_several_nodes_with_one_id_in_a_definition_links_mean_the_last() -> None:
    nodes = [empty_image(10), empty_image(10, (5, 6, 7, 8)), save_image(11, 1)]
    inner = subgraph("inner", nodes, [(1, 10, 0, 11, 0, "IMAGE")])
    made = sent(document([ui(1, "inner")], subgraphs=[inner]))
    assert list(made) == ["1:10", "1:11", "1:12"]
    assert made["1:11"]["inputs"]["width"] == 5
    # The last node of the definition has the id that the second was given.
    assert made["1:12"]["inputs"]["images"] == ["1:11", 0]


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ({"last_node_id": 30}, "31"),
        ({"last_node_id": 30.0}, "31"),
        ({"last_node_id": 3, "state": {"lastNodeId": 40}}, "4"),
        ({"last_node_id": None, "state": {"lastNodeId": 40}}, "41"),
        ({"last_node_id": None}, "2"),
        ({"last_node_id": -50, "state": []}, "2"),
        ({"last_node_id": "x", "state": {"lastNodeId": None}}, "2"),
        ({"last_node_id": 10**4000}, "2"),
    ],
)
def test_the_editor_counts_on_from_the_number_that_the_file_tells(
    counters: dict[str, Any], expected: str
) -> None:
    inner = subgraph("inner", [empty_image(1)])
    assert list(sent(document([ui(1, "inner")], subgraphs=[inner], **counters))) == [
        f"1:{expected}"
    ]


@pytest.mark.parametrize(
    ("mode", "runs"), [(0, True), (1, True), (3, True), (None, True), ([], True), (7, True)]
)
def test_modes_but_two_are_live(mode: Any, runs: bool) -> None:
    made = sent(document([empty_image(1), invert(2, 1, mode=mode)], [(1, 1, 0, 2, 0, "IMAGE")]))
    assert ("2" in made) is runs


@pytest.mark.parametrize("mode", [2, 4, 2.0, 4.0])
def test_muted_and_bypassed_nodes_are_not_sent(mode: Any) -> None:
    assert sent(document([empty_image(1, mode=mode)])) == {}


@pytest.mark.parametrize("inputs", [None, "x", 3, {}, [None, "x", 3, []]])
def test_inputs_that_are_none_are_passed_over(inputs: Any) -> None:
    assert sent(document([{"id": 1, "type": "ImageInvert", "inputs": inputs}]))["1"]["inputs"] == {}


@pytest.mark.parametrize("link", [None, True, [], {}])
def test_an_input_without_a_link_is_open(link: Any) -> None:
    assert sent(document([invert(1, link)]))["1"]["inputs"] == {}


@pytest.mark.parametrize("values", [None, "x", 3, True, []])
def test_values_that_are_neither_list_nor_object_leave_the_defaults(values: Any) -> None:
    node = {"id": 1, "type": "EmptyImage", "widgets_values": values}
    assert sent(document([node]))["1"]["inputs"] == {
        "width": 512,
        "height": 512,
        "batch_size": 1,
        "color": 0,
    }


@pytest.mark.parametrize("bad", [None, "x", 3, [], True])
def test_members_of_the_wrong_kind_count_as_absent(bad: Any) -> None:
    node = empty_image(1, title=bad, properties=bad, outputs=bad, flags=bad)
    title = bad if isinstance(bad, str) else "Empty Image"
    made = sent(document([node], extra=bad, definitions=bad, state=bad, groups=bad))
    assert made["1"]["_meta"] == {"title": title}
    assert read(document([node], extra=bad)).extra == {}


def test_definitions_are_found_at_the_root_and_in_each_other() -> None:
    leaf = subgraph("leaf", [save_image(20, None)])
    middle = {**subgraph("middle", [ui(10, "leaf")]), "definitions": {"subgraphs": [leaf]}}
    found = read(document([ui(1, "middle")], subgraphs=[middle, None, {"name": "no id"}]))
    assert list(found.definitions) == ["middle", "leaf"]
    assert list(sent(document([ui(1, "middle")], subgraphs=[middle]))) == ["1:10:20"]


def test_the_first_of_two_definitions_of_one_id_counts() -> None:
    both = [subgraph("it", [empty_image(10)]), subgraph("it", [save_image(10, None)])]
    [node] = sent(document([ui(1, "it")], subgraphs=both)).values()
    assert node["class_type"] == "EmptyImage"


@pytest.mark.parametrize("subgraphs", [None, "x", {}, [None], ["x"], [{}]])
def test_an_instance_of_a_definition_that_is_absent_is_an_unknown_node(subgraphs: Any) -> None:
    key = "11111111-1111-4111-8111-111111111111"
    file = document([ui(1, key, outputs=[{"name": "IMAGE", "type": "IMAGE"}]), save_image(2, 1)])
    file |= {"links": [[1, 1, 0, 2, 0, "IMAGE"]], "definitions": {"subgraphs": subgraphs}}
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file)
    [problem] = caught.value.problems
    assert (problem.node_id, problem.code) == ("1", "unknown_class_type")
    assert key in problem.what


@pytest.mark.parametrize("ports", [None, "x", [None, "x"], [{"linkIds": None}], [{"linkIds": "x"}]])
def test_ports_of_the_wrong_kind_count_as_absent(ports: Any) -> None:
    inner = {**subgraph("inner", [empty_image(10)]), "inputs": ports, "outputs": ports}
    assert list(sent(document([ui(1, "inner")], subgraphs=[inner]))) == ["1:10"]


def test_a_port_of_a_definition_that_it_lacks_is_named() -> None:
    inner = subgraph("inner", [save_image(10, 1)], [(1, -10, 5, 10, 0, "IMAGE")])
    with pytest.raises(InvalidWorkflow, match="input 5 of its subgraph") as caught:
        sent(document([ui(1, "inner")], subgraphs=[inner]))
    assert caught.value.problems[0].node_id == "1:10"
    nodes = [ui(1, "inner"), save_image(2, 1)]
    with pytest.raises(InvalidWorkflow, match="output 3 of a subgraph") as caught:
        sent(document(nodes, [(1, 1, 3, 2, 0, "IMAGE")], [subgraph("inner", [])]))
    assert caught.value.problems[0].node_id == "2"


def test_a_thousand_nodes_of_one_id_in_a_definition_all_stay() -> None:
    inner = subgraph("inner", [empty_image(2) for _ in range(1_000)])
    made = sent(document([ui(1, "inner")], subgraphs=[inner]))
    assert list(made) == [f"1:{number}" for number in range(2, 1_002)]
