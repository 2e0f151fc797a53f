"""The editor's own file, parsed once: graphs of nodes and links, and the definitions of subgraphs.

Rules are those of ComfyUI's front end 1.47.12 (`lib/litegraph/src/LGraph.ts` configure) where no
other source is named.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from comfy_runner.errors import InvalidWorkflow, Problem

NEVER, BYPASS = 2, 4
"""Modes of a node that does not run; any other mode is live (`LGraphEventMode`)."""

INPUT_NODE, OUTPUT_NODE = "-10", "-20"
"""Ids that links of a definition have for its own inputs and outputs."""

MAX_DIGITS = 15
"""Longest id that is taken for a number; JavaScript counts exactly up to here."""


class Slot(NamedTuple):
    """An input of a node, as the file has it."""

    name: str
    type: str
    link: str | None
    """Id of the link that ends here."""
    is_widget: bool
    """Whether the file calls it a widget's input."""


class UiLink(NamedTuple):
    """A connection; where it ends is told by the node there, see `Slot.link`."""

    origin: str
    """Id of the node that it comes from; `INPUT_NODE` in a definition for the definition's own."""
    slot: int
    target: str
    target_slot: int
    type: str


class UiNode(NamedTuple):
    """A node as the file has it."""

    id: str
    type: str
    mode: int
    slots: tuple[Slot, ...]
    values: Any
    """`widgets_values`: a list, an object, or `None`."""
    raw: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The title that its author gave it, or nothing."""
        title = self.raw.get("title")
        return title if isinstance(title, str) else ""

    @property
    def properties(self) -> Mapping[str, Any]:
        """Its properties; empty where there are none."""
        properties = self.raw.get("properties")
        return properties if isinstance(properties, dict) else {}

    def outputs(self) -> list[tuple[str, str]]:
        """Name and type of each output slot that the file has."""
        raw = self.raw.get("outputs")
        return [
            (str(entry.get("name", "")), type_name(entry.get("type")))
            for entry in (raw if isinstance(raw, list) else ())
            if isinstance(entry, dict)
        ]

    def listed_links(self) -> list[str] | None:
        """Ids of the links of its first output; `None` where the file has no outputs."""
        raw = self.raw.get("outputs")
        if not isinstance(raw, list):
            return None
        links = _list(raw[0].get("links")) if raw and isinstance(raw[0], dict) else []
        return [key for key in map(identifier, links) if key is not None]

    def problem(self, path: str, code: str, what: str, hint: str = "", name: str = "") -> Problem:
        """A `Problem` at this node of the graph at `path` (`12:` inside instance 12)."""
        return Problem(code, what, hint, f"{path}{self.id}", self.title or self.type, name)


class Port(NamedTuple):
    """An input or output of a subgraph definition."""

    name: str
    type: str
    link_ids: tuple[str, ...]
    """Inner links of the port, in the file's order."""
    label: str


class Graph(NamedTuple):
    """The nodes and links of the root or of one definition."""

    nodes: Mapping[str, UiNode]
    """Node id to node, in the file's order."""
    links: Mapping[str, UiLink]
    again: Mapping[str, str] = {}
    """Where a definition has several nodes of one id: key of each but the first, to that id."""


class Definition(NamedTuple):
    """A subgraph that instances stand for."""

    id: str
    name: str
    graph: Graph
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class UiDocument(NamedTuple):
    """A whole file."""

    root: Graph
    definitions: Mapping[str, Definition]
    """Definition id to definition, in the file's order."""
    last_node_id: int
    """Where the editor goes on counting node ids."""
    extra: Mapping[str, Any]


def read(document: Mapping[str, Any]) -> UiDocument:
    """Parse the editor's file, an object with a list `nodes`; schema 0.4, 1.0 and anything between.

    The shape of each link decides how it is read, not the version that the file claims, on which
    the front end refuses files.

    Raises: `InvalidWorkflow` with every entry that is no node.
    """
    problems: list[Problem] = []
    state = document.get("state")
    last = document.get("last_node_id")
    if last is None and isinstance(state, dict):
        last = state.get("lastNodeId")
    root = _graph(document, "", problems)
    definitions: dict[str, Definition] = {}
    for raw in _raw_definitions(document):
        name = str(raw.get("name") or "subgraph")
        definition = Definition(
            str(raw["id"]),
            name,
            _graph(raw, name, problems),
            _ports(raw.get("inputs")),
            _ports(raw.get("outputs")),
        )
        definitions.setdefault(definition.id, definition)
    if problems:
        raise InvalidWorkflow(problems)
    extra = document.get("extra")
    return UiDocument(
        root,
        definitions,
        number(identifier(last) or "") or 0,
        extra if isinstance(extra, dict) else {},
    )


def identifier(value: Any) -> str | None:
    """An id as the text that the front end compares it as, or `None` when it is none."""
    kind = value.__class__
    if kind is int:
        return str(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is float:
        return str(int(value)) if value.is_integer() else str(value)
    return None


def number(text: str) -> int | None:
    """The integer that an id spells, or `None`."""
    if len(text) > MAX_DIGITS or not text.isdecimal() or str(int(text)) != text:
        return None
    return int(text)


def type_name(raw: Any) -> str:
    """A slot's type as text: a list of choices is `COMBO`, nothing or 0 is `*`."""
    if isinstance(raw, str):
        return raw or "*"
    return "COMBO" if isinstance(raw, list) else "*"


def _raw_definitions(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every definition; the front end writes them all at the root, but nests them in old files."""
    waiting = [document]
    while waiting:
        definitions = waiting.pop(0).get("definitions")
        raw = definitions.get("subgraphs") if isinstance(definitions, dict) else None
        for entry in raw if isinstance(raw, list) else ():
            if isinstance(entry, dict) and "id" in entry:
                yield entry
                waiting.append(entry)


def _graph(raw: Mapping[str, Any], name: str, problems: list[Problem]) -> Graph:
    """One graph, `name` being empty for the root; what is no node goes to `problems`."""
    nodes: dict[str, UiNode] = {}
    again: dict[str, str] = {}
    entries = raw.get("nodes")
    for place, entry in enumerate(entries if isinstance(entries, list) else ()):
        node = _node(entry)
        if node is None:
            problems.append(_no_node(entry, place, name))
        elif node.id not in nodes:
            nodes[node.id] = node
        elif name:
            key = f"{node.id}#{place}"
            again[key] = node.id
            nodes[key] = node._replace(id=key)
        elif not _is_fed(nodes[node.id]) and not _is_fed(node):
            nodes[node.id] = node  # of several in the root the editor sends only one
    return Graph(nodes, _links(raw.get("links")), again)


def _is_fed(node: UiNode) -> bool:
    return any(slot.link is not None for slot in node.slots)


def _node(raw: Any) -> UiNode | None:
    if raw.__class__ is not dict:
        return None
    node_id, node_type = identifier(raw.get("id")), raw.get("type")
    if not node_id or not isinstance(node_type, str) or not node_type:
        return None
    mode = _index(raw.get("mode"))
    values = raw.get("widgets_values")
    return UiNode(
        node_id,
        node_type,
        0 if mode is None else mode,
        _slots(raw.get("inputs")),
        values if isinstance(values, list | dict) else None,
        raw,
    )


def _no_node(raw: Any, position: int, graph: str) -> Problem:
    place = f"Entry {position} of nodes" + (f" in subgraph {graph!r}" if graph else "")
    if not isinstance(raw, dict):
        return Problem("not_a_node", f"{place} is no object.", "Save the workflow again.")
    missing = "type" if identifier(raw.get("id")) else "id"
    return Problem(
        "not_a_node",
        f"{place} has no {missing}.",
        "Save the workflow again.",
        node_id=identifier(raw.get("id")) or "",
        title=str(raw.get("title") or raw.get("type") or ""),
    )


def _slots(raw: Any) -> tuple[Slot, ...]:
    if raw.__class__ is not list:
        return ()
    return tuple(
        [
            Slot(
                str(entry.get("name", "")),
                type_name(entry.get("type")),
                identifier(entry.get("link")),
                bool(entry.get("widget")),
            )
            for entry in raw
            if entry.__class__ is dict
        ]
    )


def _links(raw: Any) -> dict[str, UiLink]:
    """Link id to link; what is no link is left out, and inputs that name it are found later."""
    links: dict[str, UiLink] = {}
    if isinstance(raw, dict):
        raw = list(raw.values())
    for entry in raw if isinstance(raw, list) else ():
        if entry.__class__ is list and len(entry) >= 5:  # noqa: PLR2004 - all but the type
            link_id, origin, slot, target, target_slot, *rest = entry
            kind = rest[0] if rest else "*"
        elif entry.__class__ is dict:
            link_id, origin = entry.get("id"), entry.get("origin_id")
            slot, target = entry.get("origin_slot"), entry.get("target_id")
            target_slot, kind = entry.get("target_slot"), entry.get("type")
        else:
            continue
        key, origin_id = identifier(link_id), identifier(origin)
        origin_slot = _index(slot)
        if key is not None and origin_id is not None and origin_slot is not None:
            links[key] = UiLink(
                origin_id,
                origin_slot,
                identifier(target) or "",
                _index(target_slot) or 0,
                type_name(kind),
            )
    return links


def _index(value: Any) -> int | None:
    """A number from 0 up, or `None`."""
    if value.__class__ is int:
        return int(value) if value >= 0 else None
    text = identifier(value)
    return None if text is None else number(text)


def _ports(raw: Any) -> tuple[Port, ...]:
    return tuple(
        Port(
            str(entry.get("name", "")),
            type_name(entry.get("type")),
            tuple(key for key in map(identifier, _list(entry.get("linkIds"))) if key is not None),
            str(entry.get("label") or ""),
        )
        for entry in _list(raw)
        if isinstance(entry, dict)
    )


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []
