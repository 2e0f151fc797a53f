"""A workflow's graph as an SVG: nodes, what stands in them, and their connections."""

from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from comfy_runner.graph.workflow import Workflow
from comfy_runner.publishing.placing import HEAD, ROW, Box, Frame, Scene, Wire, place

MARGIN = 24.0
WIDEST, TALLEST = 1400.0, 2400.0
"""Pixels that a picture takes at most; it holds as many details whatever its size."""
LETTER = 6.1
"""About the width of a letter of 11 pixels, so that texts end before their boxes do."""
LONGEST = 200
"""Most letters that are drawn of one text."""

ACCENT = "#f0a030"
WIRE = "#8592a3"
WIRES: Mapping[str, str] = {
    "MODEL": "#9d8df1",
    "CLIP": "#d9b13b",
    "VAE": "#e0695e",
    "CONDITIONING": "#e0945a",
    "LATENT": "#d873c4",
    "IMAGE": "#4fa3e0",
    "MASK": "#5fb98a",
    "AUDIO": "#4fbfb0",
    "VIDEO": "#6f8fe8",
}
"""Colours that can be told apart on light and on dark ground."""

STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#d7dce2}"
    ".t{font-size:12px;font-weight:600;fill:#fff}.c{font-size:9px;fill:#aab3bd}"
    ".v{fill:#9fb0c3}.s{fill:" + ACCENT + ";font-weight:600}.g{fill:#8592a3;font-size:14px}"
    ".b{fill:#2b3138;stroke:#66717d}.w{fill:none;stroke-width:2;opacity:.8}.o{opacity:.45}"
)


def draw(
    document: Mapping[str, Any],
    workflow: Workflow,
    shown: Mapping[str, str] | None = None,
    *,
    title: str = "Workflow",
) -> str:
    """The picture of a document (`graph.document.load`) and of the workflow that it becomes.

    Nodes stand where the editor's file has them, with its groups; those of an API graph in layers.
    `shown` is the address `NODE_ID.INPUT` of each input of the model to the name that it has
    there; these stand out. What does not run is faint. Needs no font, script or other file, and
    has no ground of its own: it can be read on light and on dark.
    """
    scene = place(document, workflow)
    left, top, right, bottom = _bounds(scene)
    width, height = right - left, bottom - top
    scale = min(1.0, WIDEST / width, TALLEST / height)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width * scale:.0f}"'
        f' height="{height * scale:.0f}" viewBox="{left:.0f} {top:.0f} {width:.0f} {height:.0f}">',
        f"<title>{_text(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    names = _names(scene, shown or {})
    boxes = {box.id: box for box in scene.boxes}
    lines += [part for frame in scene.frames for part in _frame(frame)]
    lines += [_wire(wire, boxes) for wire in scene.wires]
    lines += [part for box in scene.boxes for part in _box(box, names.get(box.id, {}))]
    if scene.left_out:
        words = f"and {scene.left_out} more nodes"
        lines.append(f'<text class="g" x="{left + MARGIN:.0f}" y="{bottom - 6:.0f}">{words}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _names(scene: Scene, shown: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Box to input to the name that the model has for it.

    An input inside a subgraph belongs to the instance that is drawn.
    """
    known = {box.id for box in scene.boxes}
    names: dict[str, dict[str, str]] = {}
    for address, name in shown.items():
        for node_id in known:
            if address.startswith(f"{node_id}."):
                names.setdefault(node_id, {})[address[len(node_id) + 1 :]] = name
                break
        else:
            outer = address.partition(":")[0]
            if outer in known:
                names.setdefault(outer, {})[address] = name
    return names


def _bounds(scene: Scene) -> tuple[float, float, float, float]:
    places: list[Box | Frame] = [*scene.boxes, *scene.frames]
    return (
        min((p.x for p in places), default=0) - MARGIN,
        min((p.y for p in places), default=0) - MARGIN,
        max((p.x + p.width for p in places), default=100) + MARGIN,
        max((p.y + p.height for p in places), default=60) + MARGIN,
    )


def _frame(frame: Frame) -> Iterator[str]:
    colour = frame.colour or WIRE
    yield (
        f'<rect x="{frame.x:.0f}" y="{frame.y:.0f}" width="{frame.width:.0f}"'
        f' height="{frame.height:.0f}" rx="6" fill="{colour}" fill-opacity=".12"'
        f' stroke="{colour}" stroke-opacity=".5"/>'
    )
    title = _clipped(frame.title, frame.width / 8)
    yield f'<text class="g" x="{frame.x + 10:.0f}" y="{frame.y + 20:.0f}">{title}</text>'


def _box(box: Box, names: Mapping[str, str]) -> Iterator[str]:
    """The box itself, its title, and what stands in it."""
    x, y, width = box.x, box.y, box.width
    room = (width - 20) / LETTER
    yield "<g>" if box.runs else '<g class="o">'
    colour = f' style="fill:{box.colour}"' if box.colour else ""
    yield (
        f'<rect class="b" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{box.height:.0f}"'
        f' rx="7"{colour}/>'
    )
    has_class = box.title != box.class_type
    baseline = y + (14 if has_class else 20)
    yield _line(x + 10, baseline, box.title, room * 0.9, "t")
    if has_class:
        yield _line(x + 10, y + 26, box.class_type, room * 1.2, "c")
    rows = {row.input for row in box.rows}
    for number, row in enumerate(box.rows):
        baseline = y + HEAD + (number + 0.7) * ROW
        output = _clipped(row.output, room / 2)
        left = room - len(output)
        if row.input in names:
            name = names[row.input]
            text = name if name == row.input else f"{name} ({row.input})"
            yield f'<circle cx="{x:.0f}" cy="{baseline - 4:.0f}" r="5" fill="{ACCENT}"/>'
            yield _line(x + 10, baseline, f"{text}: {row.value}", left, "s")
        elif row.input:
            said = f"{row.input}: {row.value}" if row.value else row.input
            yield _line(x + 10, baseline, said, left, "v" if row.is_slot else "")
        if output:
            end = x + width - 8
            yield f'<text text-anchor="end" x="{end:.0f}" y="{baseline:.0f}">{output}</text>'
    # Of a node that is collapsed, too small, or a subgraph with the input inside.
    hidden = list(dict.fromkeys(name for input_, name in names.items() if input_ not in rows))
    if hidden:
        yield f'<circle cx="{x:.0f}" cy="{y + 15:.0f}" r="5" fill="{ACCENT}"/>'
    free = max(0, int((box.height - HEAD) / ROW) - len(box.rows))
    for number, name in enumerate(hidden[:free], len(box.rows)):
        yield _line(x + 10, y + HEAD + (number + 0.7) * ROW, name, room, "s")
    if hidden[free:]:
        below = y + box.height + 13
        words = _text(", ".join(hidden[free:]))
        yield f'<text class="s" x="{x + 4:.0f}" y="{below:.0f}">{words}</text>'
    yield "</g>"


def _line(x: float, y: float, text: str, room: float, kind: str) -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.0f}" y="{y:.0f}">{_clipped(text, room)}</text>'


def _wire(wire: Wire, boxes: Mapping[str, Box]) -> str:
    origin, target = boxes[wire.origin], boxes[wire.target]
    x1, y1 = origin.x + origin.width, origin.y + _output_height(origin, wire.slot)
    x2, y2 = target.x, target.y + _input_height(target, wire.input)
    bend = max(30.0, min(abs(x2 - x1) / 2, 200.0))
    colour = WIRES.get(wire.type, WIRE)
    return (
        f'<path class="w" stroke={quoteattr(colour)} d="M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f}'
        f' {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"/>'
    )


def _output_height(box: Box, slot: int) -> float:
    """Where an output leaves its box, from the box's top."""
    named = 0 <= slot < len(box.rows) and bool(box.rows[slot].output)
    return HEAD + (slot + 0.5) * ROW if named else HEAD / 2


def _input_height(box: Box, name: str) -> float:
    for number, row in enumerate(box.rows):
        if row.input == name:
            return HEAD + (number + 0.5) * ROW
    return HEAD / 2


def _clipped(text: str, room: float) -> str:
    """As much of the text as so many letters hold, ready for XML."""
    most = max(1, min(int(room), LONGEST))
    line = " ".join(text.split())
    return _text(line if len(line) <= most else f"{line[: most - 1]}\u2026")


def _text(text: str) -> str:
    """Escaped, and without what XML cannot hold."""
    return escape("".join(letter if _is_allowed(letter) else "?" for letter in text))


def _is_allowed(letter: str) -> bool:
    """`Char` of XML 1.0: no control characters, no half of a pair."""
    return letter >= " " and not "\ud800" <= letter <= "\udfff" and letter not in "\ufffe\uffff"
