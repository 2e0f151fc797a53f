"""Documents: which wrappers are taken off, which graph is chosen, what is refused and why."""

import json
import math
from typing import Any

import pytest
from graphs import node, picture
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidWorkflow, Problem
from comfy_runner.graph.document import (
    MAX_DOCUMENT_BYTES,
    MAX_WRAPPERS,
    RUN_MARK,
    WRAPPERS,
    is_editor,
    load,
)

EDITOR: dict[str, Any] = {"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}
GRAPH = picture()
EXTRA = {"extra_pnginfo": {"workflow": EDITOR}, "client_id": "x"}
ITEM = [3, "an-id", GRAPH, EXTRA, ["2"]]
RUN = {"prompt": ITEM, "outputs": {"2": {"images": []}}, "status": {"completed": True}, "meta": {}}


def refused(document: Any) -> Problem:
    with pytest.raises(InvalidWorkflow) as caught:
        load(document)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    "document",
    [
        GRAPH,
        {"prompt": GRAPH, "client_id": "x", "extra_data": {"extra_pnginfo": {}}},
        {"workflow": GRAPH},
        {"output": GRAPH},
        {"input": {"workflow": GRAPH, "images": [{"name": "a.png", "image": "Zm94"}]}},
        {"input": {"workflow_json": json.dumps(GRAPH), "randomise_seeds": True}},
        {"version": "abc", "input": {"workflow_json": json.dumps({"prompt": GRAPH})}},
        {"input": {"prompt": "a fox", "workflow": {"prompt": json.dumps(GRAPH)}}},
        {"prompt": json.dumps(json.dumps(GRAPH))},
        RUN,
        {"an-id": RUN},
        {"an-id": RUN, "another": {**RUN, "outputs": {}}},
        {"an-id": RUN, "another": {"prompt": [4, "another", GRAPH, {}, []]}},
        {"queue_running": [ITEM], "queue_pending": []},
        {"id": "an-id", "status": "completed", "workflow": {"prompt": GRAPH, "extra_data": EXTRA}},
        {"asset": {"version": "2.0", "extras": {"prompt": json.dumps(GRAPH)}}, "meshes": []},
    ],
)
def test_a_graph_is_found_in_its_wrappers(document: dict[str, Any]) -> None:
    assert load(document) == GRAPH
    assert load(json.dumps(document)) == GRAPH
    assert load(json.dumps(document).encode()) == GRAPH


@pytest.mark.parametrize("document", [ITEM, json.dumps(GRAPH)])
def test_a_document_may_be_a_queue_item_or_json_in_json(document: Any) -> None:
    assert load(json.dumps(document)) == GRAPH


@pytest.mark.parametrize(
    "document",
    [
        EDITOR,
        {"workflow": EDITOR},
        {"prompt": EDITOR},
        {"share_id": "s", "workflow_id": "w", "workflow_json": EDITOR, "assets": []},
        {"name": "Blueprint", "info": {"node_pack": "core"}, "data": json.dumps(EDITOR)},
        {"input": {"workflow_json": json.dumps(EDITOR)}},
        {"prompt": {}, "workflow": EDITOR},
        {"prompt": "a fox", "workflow": EDITOR},
    ],
)
def test_an_editor_document_is_found_too(document: dict[str, Any]) -> None:
    assert load(document) == EDITOR
    assert is_editor(load(document))
    assert not is_editor(GRAPH)


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": GRAPH, "workflow": EDITOR},
        {"workflow": EDITOR, "output": GRAPH},
        {"prompt": GRAPH, "extra_data": {"extra_pnginfo": {"workflow": EDITOR}}},
        {"input": {"workflow": {"prompt": json.dumps(GRAPH), "workflow": json.dumps(EDITOR)}}},
        {"an-id": RUN},
    ],
)
def test_the_caller_chooses_between_two_formats(document: dict[str, Any]) -> None:
    assert load(document) == GRAPH
    assert load(document, "prompt") == GRAPH
    assert load(document, "workflow") == EDITOR


def test_where_there_is_one_format_it_is_taken_whatever_is_preferred() -> None:
    assert load(EDITOR, "prompt") == EDITOR
    assert load({"prompt": GRAPH, "workflow": None}, "workflow") == GRAPH


@pytest.mark.parametrize("names", [("prompt", "workflow"), ("input", "nodes"), ("data", "asset")])
def test_a_node_whose_id_is_the_name_of_a_wrapper_stays_one(names: tuple[str, str]) -> None:
    graph = {names[0]: node("A"), names[1]: node("B", image=[names[0], 0])}
    assert load(graph) == graph
    assert load({"prompt": graph}) == graph


@given(st.lists(st.tuples(st.sampled_from(WRAPPERS), st.booleans()), max_size=5))
def test_wrappers_may_stand_in_each_other(wrappers: list[tuple[str, bool]]) -> None:
    document: Any = GRAPH
    for name, as_text in wrappers:
        document = {name: json.dumps(document) if as_text else document, "other": 1}
    assert load(document) == GRAPH


def test_the_mark_of_our_own_runs_is_taken_out() -> None:
    marked = picture()
    marked["2"]["inputs"][RUN_MARK] = "run-1"
    assert load({"prompt": marked}) == GRAPH
    assert marked["2"]["inputs"][RUN_MARK] == "run-1"
    again = picture()
    again["2"]["inputs"][RUN_MARK] = "run-2"
    assert load({"a": {"prompt": [1, "a", marked]}, "b": {"prompt": [2, "b", again]}}) == GRAPH


def test_what_comfyui_said_of_a_node_s_sources_is_taken_out() -> None:
    """It would believe it again, and take the result of then for one of now."""
    saved = picture()
    saved["1"]["is_changed"] = ["6920df77"]
    assert load(saved) == GRAPH


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_text_may_have_any_encoding_that_json_has(encoding: str) -> None:
    graph = {"1": node("A", text="Grüße, 世界 \U0001f98a")}
    assert load(json.dumps(graph, ensure_ascii=False).encode(encoding)) == graph
    assert load("\ufeff" + json.dumps(graph)) == graph


def test_numbers_keep_their_value() -> None:
    text = '{"1": {"class_type": "A", "inputs": {"seed": 18446744073709551615, "x": Infinity}}}'
    assert load(text)["1"]["inputs"] == {"seed": 2**64 - 1, "x": math.inf}
    assert math.isnan(load(text.replace("Infinity", "NaN"))["1"]["inputs"]["x"])


@pytest.mark.parametrize(
    ("document", "code", "says"),
    [
        ("", "empty_document", "No workflow was given."),
        (b"\xef\xbb\xbf \n", "empty_document", "No workflow was given."),
        ("{oops", "not_json", "The document is not JSON: Expecting property name"),
        (b"\xff\xfe\x00", "not_json", "not text in UTF-8 or UTF-16"),
        ("9" * 5000, "not_json", "cannot be read: Exceeds the limit"),
        ("[1, 2]", "not_a_workflow", "a JSON array"),
        ('"text"', "not_a_workflow", "a JSON string"),
        ({}, "empty_workflow", "The workflow has no nodes."),
        ({"input": {"workflow": {}}}, "empty_workflow", "The workflow has no nodes."),
        ({"a": 1, "b": 2}, "not_a_workflow", "a JSON object with the members 'a', 'b'."),
        ({str(n): n for n in range(10)}, "not_a_workflow", "'6', '7' and 2 more."),
        ({"x" * 100: 1}, "not_a_workflow", "xxx...'"),
        ({"input": {"prompt": "a fox"}}, "not_a_workflow", "the members 'input'."),
        ({"input": {"workflow_json": "{oops"}}, "not_json", "text in 'workflow_json' is not JSON"),
        ({"input": {"workflow_json": "https://a/b"}}, "not_json", "workflow_json is no JSON"),
        ({"templates": [{"name": "a", "data": "{}"}]}, "node_templates", "export of node templ"),
        ("[" * 100_000, "too_deep", "nested too deeply"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "document_too_big", "has more than the 34 MB"),
        (
            {"a": RUN, "b": {"prompt": [4, "b", {"1": node("A")}]}},
            "several_workflows",
            "'an-id', 'b'",
        ),
    ],
)
def test_what_is_no_workflow_is_named(document: Any, code: str, says: str) -> None:
    problem = refused(document)
    assert problem.code == code
    assert says in problem.what


def test_wrappers_without_end_are_given_up() -> None:
    document: Any = GRAPH
    for _ in range(MAX_WRAPPERS + 1):
        document = {"prompt": document}
    assert refused(document).code == "not_a_workflow"
    endless: dict[str, Any] = {}
    endless["prompt"] = endless
    assert refused(endless).code == "not_a_workflow"
