"""What a workflow's author chose to show: the editor's App Mode, `extra.linearData`.

Rules are those of the front end 1.47.12 (`stores/appModeStore.ts`,
`components/builder/AppModeWidgetList.vue`, `stores/linearOutputStore.ts`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from comfy_runner.convert.network import Kind, NetNode, Network, driven
from comfy_runner.convert.promotion import first_source
from comfy_runner.convert.ui import identifier
from comfy_runner.graph.inputs import Exposed
from comfy_runner.graph.workflow import Link, Workflow

type Place = tuple[str, str]
"""A node's id and one of its inputs."""


class Choice(NamedTuple):
    """What the author chose."""

    exposed: tuple[Exposed, ...]
    """Inputs, in the author's order."""
    outputs: tuple[str, ...]
    """Ids of the nodes whose results count; empty for all."""
    notes: tuple[str, ...]
    """What was chosen once and is not there any more, one sentence each."""


def read_choice(
    extra: Mapping[str, Any],
    root: Network,
    workflow: Workflow,
    fed: Mapping[Place, Sequence[Place]],
) -> Choice:
    """What `extra` says of the workflow that was made from `root`.

    `fed` tells for each instance and input where in the workflow its own value went. An input is
    called what the app shows: its label; where two have the same, with the node's title before it,
    or else the node's id. Entries that mean nothing any more are noted, as the editor drops them;
    where no chosen output is left, all count.
    """
    chosen = extra.get("linearData")
    if not isinstance(chosen, dict):
        return Choice((), (), ())
    notes: list[str] = []
    found: dict[tuple[Place, ...], _Shown] = {}
    for entry in _list(chosen.get("inputs")):
        shown = _find(entry, root)
        targets = tuple(_targets(shown, root, workflow, fed)) if shown else ()
        if shown is None or not targets:
            notes.append(f"The app shows {_told(entry)}, which is not there to be set.")
        else:
            found.setdefault(targets, shown)
    names = _names(list(found.values()))
    outputs: dict[str, None] = {}
    for entry in _list(chosen.get("outputs")):
        node_id = identifier(entry)
        if node_id is not None and node_id in workflow.nodes:
            outputs[node_id] = None
        else:
            notes.append(f"The app returns what node {_told(entry)} makes, which does not run.")
    return Choice(
        tuple(Exposed(name, targets) for name, targets in zip(names, found, strict=True)),
        tuple(outputs),
        tuple(notes),
    )


def read_promoted(
    root: Network, workflow: Workflow, fed: Mapping[Place, Sequence[Place]]
) -> tuple[Exposed, ...]:
    """Every widget that the subgraphs of the root show, called and fed as those of the app are."""
    found: dict[tuple[Place, ...], _Shown] = {}
    for node in root.nodes.values():
        for port in node.network.inputs if node.network is not None else ():
            shown = _Shown(node, port.name)
            targets = tuple(_targets(shown, root, workflow, fed))
            if targets and port.name in node.promoted:
                found.setdefault(targets, shown)
    names = _names(list(found.values()))
    return tuple(Exposed(name, targets) for name, targets in zip(names, found, strict=True))


@dataclass(frozen=True, slots=True)
class _Shown:
    """One widget that the app or a subgraph shows."""

    node: NetNode
    """A node of the root."""
    name: str

    @property
    def label(self) -> str:
        """What the app calls it: the author's name for it, else its own."""
        for slot in _list(self.node.node.raw.get("inputs")):
            if isinstance(slot, dict) and slot.get("name") == self.name and slot.get("label"):
                return str(slot["label"])
        ports = self.node.network.inputs if self.node.network is not None else []
        return next((port.label for port in ports if port.name == self.name), "") or self.name


def _find(entry: Any, root: Network) -> _Shown | None:
    """The widget that an entry means; ids come in four forms, of two front ends each."""
    match entry:
        case [raw_id, str() as name, *_] if (node_id := identifier(raw_id)) is not None:
            pass
        case _:
            return None
    parts = node_id.split(":")
    if len(parts) == len(("graph", "node", "widget")):
        node_id, name = unquote(parts[1]), unquote(parts[2])
    elif len(parts) == len(("graph", "node")):
        node_id = parts[1]
    node = root.nodes.get(node_id)
    if node is not None and (name in node.held or node.kind is Kind.PRIMITIVE):
        return _Shown(node, name)
    return _find_inside(node_id, name, root) if len(parts) == 1 else None


def _find_inside(node_id: str, name: str, root: Network) -> _Shown | None:
    """The one input of an instance in the root that shows a widget of this inner node."""
    found = [
        _Shown(node, port.name)
        for node in root.nodes.values()
        if node.network is not None
        for number, port in enumerate(node.network.inputs)
        if port.name in node.promoted
        and (
            first_source(node.network, number) == (node_id, name)
            or node.proxied.get((node_id, name)) == port.name
        )
    ]
    return found[0] if len(found) == 1 else None


def _targets(
    shown: _Shown, root: Network, workflow: Workflow, fed: Mapping[Place, Sequence[Place]]
) -> Iterator[Place]:
    """Where in the workflow a value for it goes; nowhere when another node gives it."""
    places: Sequence[Place]
    if shown.node.kind is Kind.PRIMITIVE:
        places = [(node.node.id, name) for node, name in driven(root, shown.node)]
    elif shown.node.kind is Kind.INSTANCE:
        places = fed.get((shown.node.node.id, shown.name), ())
    else:
        places = [(shown.node.node.id, shown.name)]
    for node_id, name in places:
        node = workflow.nodes.get(node_id)
        if node is not None and name in node.inputs and not isinstance(node.inputs[name], Link):
            yield node_id, name


def _names(found: Sequence[_Shown]) -> list[str]:
    """What to call each, all different: LABEL, TITLE.LABEL, ID.LABEL or ID.INPUT."""
    labels = Counter(shown.label.casefold() for shown in found)
    titled = Counter(_titled(shown).casefold() for shown in found)
    names: list[str] = []
    for shown in found:
        node_id = shown.node.node.id
        tries = [f"{node_id}.{shown.label}", f"{node_id}.{shown.name}"]
        if titled[_titled(shown).casefold()] == 1:
            tries.insert(0, _titled(shown))
        if labels[shown.label.casefold()] == 1:
            tries.insert(0, shown.label)
        names.append(next((text for text in tries if text not in names), tries[-1]))
    return names


def _titled(shown: _Shown) -> str:
    node = shown.node
    known = node.shape.title if node.shape else node.network.name if node.network else ""
    return f"{node.node.title or known or node.node.type}.{shown.label}"


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _told(entry: Any) -> str:
    match entry:
        case [str() | int() as node_id, str() as name, *_]:
            text = f"input {name} of node {node_id}"
        case _:
            text = str(entry)
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - a line
