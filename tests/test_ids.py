"""Ids of nodes in subgraphs: unique in the file, and those that the editor would give."""

from typing import Any

from editor_files import document, empty_image, invert, save_image, sent, subgraph, ui

from comfy_runner.convert.ids import renumber
from comfy_runner.convert.ui import read


def pair(key: str, first: Any, second: Any) -> dict[str, Any]:
    """A definition of two nodes that are connected."""
    return subgraph(
        key,
        [empty_image(first), save_image(second, 1)],
        [(1, first, 0, second, 0, "IMAGE")],
    )


def ids(document: Any) -> dict[str, list[str]]:
    """Definition id to the ids of its nodes."""
    found = renumber(read(document))
    return {key: list(definition.graph.nodes) for key, definition in found.definitions.items()}


def test_an_id_of_the_root_is_taken() -> None:
    file = document([empty_image(5), ui(8, "a")], subgraphs=[pair("a", 5, 6)])
    assert ids(file) == {"a": ["9", "6"]}
    made = sent(file)
    assert made["8:6"]["inputs"]["images"] == ["8:9", 0]


def test_definitions_are_gone_through_in_the_files_order() -> None:
    subgraphs = [pair("a", 5, 6), pair("b", 6, 5)]
    assert ids(document([ui(1, "b"), ui(2, "a")], subgraphs=subgraphs)) == {
        "a": ["5", "6"],
        "b": ["7", "8"],
    }


def test_a_higher_id_raises_the_counter_once_it_is_reached() -> None:
    subgraphs = [pair("a", 1, 2), pair("b", 50, 2)]
    assert ids(document([ui(1, "a"), ui(2, "b")], subgraphs=subgraphs)) == {
        "a": ["3", "4"],
        "b": ["50", "51"],
    }


def test_a_new_id_is_not_one_that_is_in_use() -> None:
    file = document([ui(1, "a"), empty_image(3)], subgraphs=[pair("a", 1, 3)], last_node_id=2)
    assert ids(file) == {"a": ["4", "5"]}


def test_ids_that_the_root_has_as_texts_are_free_inside() -> None:
    file = document([ui("5", "a")], subgraphs=[pair("a", 5, 6)])
    assert list(sent(file)) == ["5:5", "5:6"]


def test_names_that_are_no_numbers_must_be_unique_too() -> None:
    subgraphs = [pair("a", "x", "y"), pair("b", "x", "z")]
    assert ids(document([ui(1, "a"), ui(2, "b")], subgraphs=subgraphs)) == {
        "a": ["x", "y"],
        "b": ["3", "z"],
    }


def test_ids_too_long_to_count_are_names() -> None:
    long = 10**20
    file = document([ui(1, "a")], subgraphs=[pair("a", long, 1), pair("b", long, 3)])
    assert ids(file) == {"a": [str(long), "2"], "b": ["3", "4"]}


def test_entries_of_promoted_widgets_follow_their_nodes() -> None:
    inner = subgraph("inner", [empty_image(1)])
    proxies = [["1", "width"], ["1", "height"]]
    stored = [10, 20]
    outer = subgraph("outer", [ui(7, "inner", stored, properties={"proxyWidgets": proxies})])
    root = [ui(1, "inner", stored, properties={"proxyWidgets": proxies}), ui(2, "outer")]
    made = sent(document(root, subgraphs=[inner, outer]))
    for node_id in ("1:3", "2:7:3"):
        assert (made[node_id]["inputs"]["width"], made[node_id]["inputs"]["height"]) == (10, 20)
    assert proxies == [["1", "width"], ["1", "height"]]


def test_links_of_other_graphs_stay() -> None:
    inner = subgraph(
        "inner",
        [invert(1, 1), invert(2, 2)],
        [(1, -10, 0, 1, 0, "IMAGE"), (2, 1, 0, 2, 0, "IMAGE"), (3, 2, 0, -20, 0, "IMAGE")],
        [("image", "IMAGE")],
        [("IMAGE", "IMAGE")],
    )
    nodes = [empty_image(1), ui(2, "inner", links={"image": 1}), save_image(3, 2)]
    made = sent(document(nodes, [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE")], [inner]))
    assert made["2:4"]["inputs"]["image"] == ["1", 0]
    assert made["2:5"]["inputs"]["image"] == ["2:4", 0]
    assert made["3"]["inputs"]["images"] == ["2:5", 0]


def test_a_file_without_clashes_stays_as_it_is() -> None:
    file = read(document([ui(1, "a")], subgraphs=[pair("a", 5, 6)]))
    assert renumber(file) is file
    plain = read(document([empty_image(1)]))
    assert renumber(plain) is plain
