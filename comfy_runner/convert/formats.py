"""A workflow from a document in either of ComfyUI's formats."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from comfy_runner.convert.declared import declared
from comfy_runner.convert.editor import NO_TIME, Conversion, convert
from comfy_runner.errors import InvalidWorkflow, Problem
from comfy_runner.graph.document import HOW_TO_SAVE, is_editor, load
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import parse

SHOWN_NOTES = 6
"""How many notes of a conversion an error repeats."""


def read_workflow(
    document: str | bytes | Mapping[str, Any],
    catalog: NodeCatalog,
    *,
    seed: int | None = None,
    now: datetime = NO_TIME,
) -> Conversion:
    """The workflow in the document, converted where it is in the editor's format.

    `seed` and `now` as for `convert`; a document in API format holds no choice that needs them.
    Where its app shows no inputs, those count that nodes of our pack declare, and so the results.

    Raises: `InvalidWorkflow`, also where nothing of an editor's document is left to run.
    """
    graph = load(document)
    if not is_editor(graph):
        return _with_declared(Conversion(parse(graph)))
    conversion = convert(graph, catalog, seed=seed, now=now)
    if not conversion.workflow.nodes:
        raise InvalidWorkflow([_nothing_left(conversion.notes) if graph["nodes"] else NO_NODES])
    return _with_declared(conversion)


def _with_declared(conversion: Conversion) -> Conversion:
    """With what the workflow's own nodes declare where no app chooses."""
    found = declared(conversion.workflow)
    return replace(
        conversion,
        exposed=conversion.exposed or found.exposed,
        outputs=conversion.outputs or found.outputs,
        notes=conversion.notes if conversion.exposed else (*conversion.notes, *found.notes),
    )


NO_NODES = Problem("empty_workflow", "The workflow has no nodes.", HOW_TO_SAVE)


def _nothing_left(notes: Sequence[str]) -> Problem:
    """What to say of a document whose nodes would all stay behind."""
    what = "None of the workflow's nodes would run: they are notes, or muted, bypassed or missing."
    left = len(notes) - SHOWN_NOTES
    more = [f"And {left} more."] if left > 0 else []
    return Problem("empty_workflow", what, " ".join([*notes[:SHOWN_NOTES], *more]))
