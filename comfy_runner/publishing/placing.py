"""Where each node of a graph stands in its picture: as in the editor's file, or in layers."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_runner.convert import ui
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.document import is_editor
from comfy_runner.graph.workflow import Workflow

HEAD = 30.0
"""Height of a node's title, which stands above its position: `LiteGraph.NODE_TITLE_HEIGHT` of the
front end 1.47.12."""
ROW = 20.0
"""Height of a slot: `LiteGraph.NODE_SLOT_HEIGHT` of the front end 1.47.12."""
WIDTH = 240.0
GAP = 60.0
MAX_NODES = 500
"""Most nodes that are drawn."""
WIDEST, TALLEST = 460.0, 200.0
"""Size that a node has at most, unless its rows need more: many are large for what they show."""
MAX_ROWS = 12
"""Most inputs that a node of an API graph shows."""
FAR = 1e6
"""Positions beyond this are no positions."""
COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


@dataclass(frozen=True, slots=True)
class Row:
    """One line in a node: an input, and an output beside it."""

    input: str = ""
    value: str = ""
    """What stands in the input, as text."""
    is_slot: bool = False
    """Whether the input takes a connection."""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A node as it is drawn; `x` and `y` are its upper left corner, the title included."""

    id: str
    title: str
    class_type: str
    x: float
    y: float
    width: float
    height: float
    rows: tuple[Row, ...] = ()
    runs: bool = True
    """Whether it is a part of what runs: neither muted nor bypassed."""
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection between two boxes."""

    origin: str
    slot: int
    target: str
    input: str
    type: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """A group of the editor's file."""

    title: str
    x: float
    y: float
    width: float
    height: float
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a picture shows."""

    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    frames: tuple[Frame, ...] = ()
    left_out: int = 0
    """How many nodes there were too many."""


def place(document: Mapping[str, Any], workflow: Workflow) -> Scene:
    """The scene of a document (API graph or editor's) and of the workflow that it becomes.

    An editor's file whose positions cannot be used is laid out like an API graph, from `workflow`.
    """
    if is_editor(document):
        try:
            scene = _of_editor(document, workflow)
        except InvalidWorkflow:
            scene = None
        if scene is not None:
            return scene
    return _in_layers(workflow)


def text(value: Any) -> str:
    """A value as one line of a picture."""
    match value:
        case {"__value__": inner}:
            return text(inner)
        case bool():
            return "true" if value else "false"
        case str():
            return " ".join(value.split())
        case float():
            return f"{value:g}"
        case _:
            return str(value)[:200]


def _of_editor(document: Mapping[str, Any], workflow: Workflow) -> Scene | None:
    """The root graph where its author put it; None where the file has no usable positions."""
    parsed = ui.read(document)
    boxes: dict[str, Box] = {}
    nodes = [node for node in parsed.root.nodes.values() if node.slots or node.outputs()]
    for node in nodes:  # what has neither is a note
        definition = parsed.definitions.get(node.type)
        box = _box(node, definition.name if definition else "", workflow)
        if box is None:
            return None
        if len(boxes) < MAX_NODES:
            boxes[node.id] = box
    left_out = len(nodes) - len(boxes)
    wires = tuple(_drawn_wires(parsed.root, boxes))
    frames = tuple(_frames(document.get("groups")))
    return Scene(tuple(boxes.values()), wires, frames, left_out) if boxes else None


def _box(node: ui.UiNode, subgraph: str, workflow: Workflow) -> Box | None:
    corner, size = _pair(node.raw.get("pos")), _pair(node.raw.get("size"))
    if corner is None:
        return None
    class_type = subgraph or node.type
    title = node.title or class_type
    width, height = size or (WIDTH, 80.0)
    flags = node.raw.get("flags")
    rows = tuple(_rows(node, workflow))
    if isinstance(flags, dict) and flags.get("collapsed"):
        width, height, rows = min(WIDTH, 7.0 * len(title) + 30), 0.0, ()
    height = min(height, max(TALLEST, ROW * len(rows) + 8))
    colour = node.raw.get("color")
    return Box(
        node.id,
        title,
        class_type,
        corner[0],
        corner[1] - HEAD,
        max(min(width, WIDEST), 40.0),
        max(height, 0.0) + HEAD,
        rows[: int(max(height, 0.0) / ROW)],
        node.id in workflow.nodes
        or any(key.startswith(f"{node.id}:") for key in workflow.nodes)
        or node.mode not in (ui.NEVER, ui.BYPASS),
        colour if isinstance(colour, str) and COLOUR.fullmatch(colour) else "",
    )


def _rows(node: ui.UiNode, workflow: Workflow) -> Iterator[Row]:
    """Slots first, outputs beside them, then the values that the workflow has."""
    slots = [slot.name for slot in node.slots if not slot.is_widget]
    outputs = [name or kind for name, kind in node.outputs()]
    for number in range(max(len(slots), len(outputs))):
        name = slots[number] if number < len(slots) else ""
        output = outputs[number] if number < len(outputs) else ""
        yield Row(name, is_slot=bool(name), output=output)
    running = workflow.nodes.get(node.id)
    linked = {slot.name for slot in node.slots if slot.link is not None}
    inputs = running.inputs if running else {}
    links = {name for name, _ in running.links()} if running else set()
    for name, value in inputs.items():
        if name not in slots:
            is_slot = name in links or name in linked
            yield Row(name, "" if is_slot else text(value), is_slot)


def _drawn_wires(graph: ui.Graph, boxes: Mapping[str, Box]) -> Iterator[Wire]:
    for node in graph.nodes.values():
        for slot in node.slots:
            link = graph.links.get(slot.link) if slot.link is not None else None
            if link is not None and node.id in boxes and link.origin in boxes:
                yield Wire(link.origin, link.slot, node.id, slot.name, slot.type or link.type)


def _frames(raw: Any) -> Iterator[Frame]:
    for group in raw if isinstance(raw, list) else ():
        match group:
            case {"bounding": [x, y, width, height], **more}:
                corner, size = _pair([x, y]), _pair([width, height])
                if corner and size and min(size) > 0:
                    colour = str(more.get("color") or "")
                    colour = colour if COLOUR.fullmatch(colour) else ""
                    yield Frame(str(more.get("title") or ""), *corner, *size, colour)


def _pair(raw: Any) -> tuple[float, float] | None:
    """Two usable numbers, from a list or from `{"0": x, "1": y}`."""
    match raw:
        case [x, y, *_] | {"0": x, "1": y}:
            numbers = (x, y)
        case _:
            return None
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        return None
    if any(abs(n) > FAR or not math.isfinite(n) for n in numbers):
        return None
    return float(x), float(y)


def _in_layers(workflow: Workflow) -> Scene:
    """Columns by the longest way from a node without links, each node near what it is linked to."""
    ids = list(workflow.nodes)[:MAX_NODES]
    known = set(ids)
    sources = {
        key: list(
            dict.fromkeys(
                link.node_id for _, link in workflow.nodes[key].links() if link.node_id in known
            )
        )
        for key in ids
    }
    columns: dict[int, list[str]] = defaultdict(list)
    for key, layer in _layers(ids, sources).items():
        columns[layer].append(key)
    tops: dict[str, float] = {}
    boxes: list[Box] = []
    for layer in sorted(columns):
        column = sorted(columns[layer], key=lambda key: _middle(sources[key], tops))
        y = 0.0
        for key in column:
            node = workflow.nodes[key]
            links = [name for name, _ in node.links()]
            rows = [Row(name, is_slot=True) for name in links]
            rows += [Row(n, text(v)) for n, v in node.inputs.items() if n not in links]
            rows = rows[:MAX_ROWS]
            height = HEAD + ROW * len(rows) + 8
            x = layer * (WIDTH + GAP)
            boxes.append(Box(key, node.label, node.class_type, x, y, WIDTH, height, tuple(rows)))
            tops[key] = y
            y += height + GAP / 2
    wires = tuple(
        Wire(link.node_id, link.slot, key, name)
        for key in ids
        for name, link in workflow.nodes[key].links()
        if link.node_id in known
    )
    return Scene(tuple(boxes), wires, (), len(workflow.nodes) - len(ids))


def _layers(ids: list[str], sources: Mapping[str, list[str]]) -> dict[str, int]:
    """Each node's column. What only feeds one place stands just before it; circles come last."""
    users: dict[str, list[str]] = defaultdict(list)
    for key in ids:
        for source in sources[key]:
            users[source].append(key)
    missing = {key: len(sources[key]) for key in ids}
    layers = {key: 0 for key in ids if not missing[key]}
    waiting = list(layers)
    for key in waiting:  # grows as it goes
        for user in users[key]:
            missing[user] -= 1
            layers[user] = max(layers.get(user, 0), layers[key] + 1)
            if not missing[user]:
                waiting.append(user)
    last = max(layers.values(), default=0)
    done = set(waiting)
    placed = {key: layers[key] if key in done else last + 1 for key in ids}
    for key in waiting:
        if not sources[key] and users[key]:
            placed[key] = max(0, min(placed[user] for user in users[key]) - 1)
    return placed


def _middle(sources: list[str], tops: Mapping[str, float]) -> float:
    known = [tops[source] for source in sources if source in tops]
    return sum(known) / len(known) if known else 0.0
