"""Documents in either format: what comes of them, and what is refused."""

from typing import Any

import pytest
from graphs import catalog

from comfy_runner.convert.formats import SHOWN_NOTES, read_workflow
from comfy_runner.errors import InvalidWorkflow, Problem


def refusal(document: dict[str, Any]) -> Problem:
    with pytest.raises(InvalidWorkflow) as caught:
        read_workflow(document, catalog())
    (problem,) = caught.value.problems
    return problem


def test_an_api_document_stays_as_it_is() -> None:
    document = {"7": {"class_type": "EmptyImage", "inputs": {"width": 8}, "_meta": {"title": "A"}}}
    conversion = read_workflow(document, catalog())
    assert conversion.workflow.to_json() == document
    assert conversion.notes == ()


def test_an_editors_document_is_converted() -> None:
    document = {"nodes": [{"id": 7, "type": "EmptyImage", "widgets_values": [8, 16, 1, 0]}]}
    (node,) = read_workflow(document, catalog()).workflow.nodes.values()
    assert (node.id, node.inputs["height"]) == ("7", 16)


def test_an_editors_document_without_nodes_is_refused() -> None:
    problem = refusal({"nodes": [], "links": []})
    assert (problem.code, problem.what) == ("empty_workflow", "The workflow has no nodes.")


def test_a_document_of_which_nothing_would_run_is_refused() -> None:
    muted = {"id": 1, "type": "EmptyImage", "mode": 2, "widgets_values": [8, 8, 1, 0]}
    problem = refusal({"nodes": [muted, {"id": 2, "type": "Note", "widgets_values": ["Hello"]}]})
    assert problem.code == "empty_workflow"
    assert "muted" in problem.what


def test_the_refusal_tells_what_was_left_out() -> None:
    output = [{"name": "IMAGE", "type": "IMAGE", "links": []}]
    count = SHOWN_NOTES + 3
    problem = refusal(
        {"nodes": [{"id": n, "type": "NoSuchNode", "outputs": output} for n in range(1, count + 1)]}
    )
    assert "NoSuchNode" in str(problem)
