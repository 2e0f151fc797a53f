"""The editor's own format to the API format: what the editor would send for a saved workflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from comfy_runner.convert import everywhere, packs, ui
from comfy_runner.convert.app_mode import read_choice, read_promoted
from comfy_runner.convert.groups import unpack
from comfy_runner.convert.ids import renumber
from comfy_runner.convert.models import ModelHint, model_hints
from comfy_runner.convert.names import Names
from comfy_runner.convert.network import build
from comfy_runner.convert.primitives import push
from comfy_runner.convert.promotion import promote
from comfy_runner.convert.resolve import Scope
from comfy_runner.convert.text import replace
from comfy_runner.convert.writing import Writing
from comfy_runner.errors import Problem
from comfy_runner.graph.inputs import Exposed
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import Workflow

NO_TIME = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A workflow that was made from the editor's format."""

    workflow: Workflow
    notes: tuple[str, ...] = ()
    """What was left out or decided, one sentence each."""
    problems: tuple[Problem, ...] = ()
    """What a run would lack, though the workflow can be written: inputs that only a browser fills.
    Each names a node and an input, and is cured by a value for that input."""
    exposed: tuple[Exposed, ...] = ()
    """What the author chose to show, in the author's order."""
    outputs: tuple[str, ...] = ()
    """Ids of the nodes whose results the author chose; empty for all."""
    models: tuple[ModelHint, ...] = ()
    """Where the file says that its models come from, by the ids of the workflow's nodes."""
    promoted: tuple[Exposed, ...] = ()
    """What the subgraphs in the root show of the widgets inside them, in the file's order."""


def convert(
    document: Mapping[str, Any],
    catalog: NodeCatalog,
    *,
    seed: int | None = None,
    now: datetime = NO_TIME,
) -> Conversion:
    """What the editor would send for its own file, an object with a list `nodes`.

    `seed` decides the `{a|b}` of dynamic prompts and what else is left to chance; without it these
    are the same each time, but seeds that a node draws itself stay as they are. `now` (local time)
    is the `%date%` of file names.

    Differs from the front end 1.47.12 where that is at fault:

    - integers stay exact beyond 2^53;
    - links are read by their shape, whatever version the file claims;
    - an object as `widgets_values` is read by name for every class;
    - a file with faults, or a circle of reroutes, is not refused as a whole: what no output needs
      is left out, and the rest is named;
    - values of promoted widgets go to the widgets that the file names, not to others by position;
    - output nodes inside a muted or bypassed instance do not run, however deep it stands.

    Raises: `InvalidWorkflow` with every problem of the nodes that an output needs.
    """
    parsed = unpack(renumber(ui.read(document)), catalog)
    root, networks = build(parsed, catalog, packs.PACKS)
    promote(networks)
    grouped = everywhere.Grouped(document)
    notes = [
        *packs.unmute(networks, grouped, seed or 0),
        *everywhere.connect(networks, parsed, grouped),
    ]
    names = Names(root)

    def replace_text(text: str) -> str:
        return replace(text, now, names.value)

    push(networks, replace_text)
    writing = Writing(Scope(root), catalog, seed, replace_text)
    workflow = writing.workflow()
    choice = read_choice(parsed.extra, root, workflow, writing.fed)
    return Conversion(
        workflow,
        (*notes, *writing.notes, *choice.notes),
        tuple(writing.problems),
        choice.exposed,
        choice.outputs,
        model_hints(document, root),
        read_promoted(root, workflow, writing.fed),
    )
