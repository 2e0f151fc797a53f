"""Reading documents: what is a workflow, and what a caller hears when it is none."""

import json
import sys
from typing import Any

import pytest
from graphs import bundled, node, picture
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.document import MAX_DOCUMENT_BYTES
from comfy_runner.graph.workflow import Link, parse

VALUES = st.one_of(
    st.text(max_size=20),
    st.integers(min_value=-(2**64), max_value=2**64),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.tuples(st.text(max_size=3), st.integers(0, 9)).map(list),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
NODES = st.fixed_dictionaries(
    {
        "class_type": st.text(min_size=1, max_size=10),
        "inputs": st.dictionaries(st.text(max_size=8), VALUES, max_size=4),
    },
    optional={"_meta": st.fixed_dictionaries({"title": st.text(max_size=10)})},
)
DOCUMENTS = st.dictionaries(st.text(max_size=5), NODES, min_size=1, max_size=6)


@given(DOCUMENTS)
def test_a_workflow_survives_being_written_and_read(document: dict[str, Any]) -> None:
    workflow = parse(document)
    assert parse(workflow.to_json()) == workflow
    assert parse(json.dumps(workflow.to_json())) == workflow
    assert workflow.to_json() == document


@given(DOCUMENTS, st.text(max_size=5), VALUES)
def test_replacing_an_input_changes_nothing_else(
    document: dict[str, Any], name: str, value: Any
) -> None:
    workflow = parse(document)
    node_id = next(iter(workflow.nodes))
    changed = workflow.replace_inputs(node_id, {name: value})
    assert parse(document) == workflow
    assert changed.nodes[node_id].inputs[name] == value
    rest = {key: item for key, item in changed.nodes[node_id].inputs.items() if key != name}
    assert rest == {
        key: item for key, item in workflow.nodes[node_id].inputs.items() if key != name
    }
    assert [n for n in changed.nodes.values() if n.id != node_id] == [
        n for n in workflow.nodes.values() if n.id != node_id
    ]


def test_links_ids_and_titles_are_read() -> None:
    document = {"12:5": node("A", " My node ", image=[3, 1], seed=2**64 - 1), "3": node("B")}
    workflow = parse(document)
    assert workflow.nodes["12:5"].inputs == {"image": Link("3", 1), "seed": 2**64 - 1}
    assert workflow.nodes["12:5"].title == "My node"
    assert workflow.nodes["3"].label == "B"
    assert workflow.upstream(frozenset({"12:5"})) == {"12:5", "3"}


def test_the_wrapper_of_post_prompt_is_taken_off() -> None:
    assert parse({"prompt": picture(), "client_id": "x"}) == parse(picture())
    assert parse(json.dumps({"prompt": picture()}).encode()) == parse(picture())


def test_bundled_workflows_are_workflows() -> None:
    assert len(parse(bundled("upscale")).nodes) == 4
    assert len(parse(bundled("text_to_picture")).nodes) == 9


EDITOR = {"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}


@pytest.mark.parametrize(
    ("document", "code", "says"),
    [
        ("", "empty_document", "No workflow was given"),
        ("   \n", "empty_document", "No workflow was given"),
        ("{oops", "not_json", "line 1, column 2"),
        (b"\xff\xfe\x00", "not_json", "UTF-8"),
        ("[1, 2]", "not_a_workflow", "array"),
        ("null", "not_a_workflow", "null"),
        ("12", "not_a_workflow", "number"),
        ('{"a": 1, "b": 2}', "not_a_workflow", "'a', 'b'"),
        ("{}", "empty_workflow", "no nodes"),
        ('{"prompt": {}}', "empty_workflow", "no nodes"),
        (EDITOR, "editor_format", "editor's own format"),
        ({"prompt": EDITOR}, "editor_format", "Convert it first."),
        ("[" * 100_000, "too_deep", "nested"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "document_too_big", "34 MB"),
    ],
)
def test_a_document_that_is_no_workflow_is_refused(document: Any, code: str, says: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        parse(document)
    assert [problem.code for problem in caught.value.problems] == [code]
    assert says in str(caught.value)


def test_every_misshapen_node_is_named_at_once() -> None:
    deep: Any = "x"
    for _ in range(150):
        deep = [deep, 0]
    document = {
        "1": node("A", "First", list=[1, 2, 3], deep={"a": deep}),
        "2": {"class_type": "B", "_meta": {"title": "Second"}},
        "3": {"inputs": {}},
        "4": "nothing",
        "5": node("C", wrapped={"__value__": [1, 2, 3]}),
    }
    with pytest.raises(InvalidWorkflow) as caught:
        parse(document)
    found = [(p.node_id, p.code, p.title, p.input) for p in caught.value.problems]
    assert found == [
        ("1", "bad_link", "First", "list"),
        ("1", "too_deep", "First", "deep"),
        ("2", "no_inputs", "Second", ""),
        ("3", "no_class_type", "", ""),
        ("4", "not_a_node", "", ""),
    ]
    assert str(caught.value).startswith("5 problems:\n  1. node 1 (First), input list: A list")


def test_nesting_is_measured_without_recursion() -> None:
    deep: Any = []
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep, 0]
    with pytest.raises(InvalidWorkflow, match="nested deeper"):
        parse({"1": node("A", value={"x": deep})})


def test_a_list_that_can_be_no_link_is_a_value() -> None:
    """ComfyUI takes the wrapper of such values off before it saves the workflow."""
    values: dict[str, Any] = {
        "views": ["", ""],
        "colours": ["#fff", "#000"],
        "curve": [[0, 0], [1, 1]],
        "none": [],
        "range": [512, 512],
        "flags": [True, False],
    }
    workflow = parse({"1": node("A", **values), "2": node("B", a=["1", 0], b=[1, 0])})
    assert workflow.nodes["1"].inputs == {
        name: {"__value__": value} for name, value in values.items()
    }
    assert workflow.nodes["2"].inputs == {"a": Link("1", 0), "b": Link("1", 0)}


@pytest.mark.parametrize("value", [["1"], ["1", "0"], ["1", 0, 0], [1], [1, None]])
def test_a_list_that_names_a_node_and_is_no_link_is_refused(value: list[Any]) -> None:
    with pytest.raises(InvalidWorkflow, match="must be"):
        parse({"1": node("A"), "2": node("B", image=value)})
