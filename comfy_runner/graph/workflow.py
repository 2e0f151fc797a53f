"""A workflow in ComfyUI's API format: parsed once, walked, copied with changes, written as JSON."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_runner.errors import InvalidWorkflow, Problem
from comfy_runner.graph.document import is_editor, json_type, load

MAX_DEPTH = 100
"""How deep values may nest: ComfyUI 0.30 loses its worker thread near 900 (`execution.py`)."""


@dataclass(frozen=True, slots=True)
class Link:
    """An input's connection to an output slot of another node."""

    node_id: str
    """Id of the node that the value comes from."""
    slot: int
    """Index among that node's outputs, from 0."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a workflow."""

    id: str
    class_type: str
    inputs: Mapping[str, Any]
    """Input name to its value; a `Link` where it is connected, plain JSON otherwise."""
    title: str = ""
    """The title that its author gave it (`_meta.title`), or nothing."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Members other than class_type and inputs, kept as they came."""

    @property
    def label(self) -> str:
        """What to call the node in a message: its title, else its class_type."""
        return self.title or self.class_type

    def links(self) -> Iterator[tuple[str, Link]]:
        """Every connected input: its name and its link, in the workflow's order."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))

    def problem(self, code: str, what: str, hint: str = "", input: str = "") -> Problem:  # noqa: A002 - the field's own word
        """A `Problem` that stands at this node."""
        return Problem(code, what, hint, node_id=self.id, title=self.label, input=input)


@dataclass(frozen=True, slots=True)
class Workflow:
    """A graph of nodes; never changed, only copied with changes."""

    nodes: Mapping[str, Node]
    """Node id to node, in the document's order."""

    def replace_inputs(self, node_id: str, values: Mapping[str, Any]) -> "Workflow":
        """A copy in which the named inputs of one node have new values; the node must exist."""
        node = self.nodes[node_id]
        changed = replace(node, inputs={**node.inputs, **values})
        return Workflow({**self.nodes, node_id: changed})

    def only(self, node_ids: frozenset[str]) -> "Workflow":
        """A copy with just these nodes, in the same order."""
        return Workflow({key: node for key, node in self.nodes.items() if key in node_ids})

    def upstream(self, roots: frozenset[str]) -> frozenset[str]:
        """The ids in `roots` and of every existing node that they need, directly or not."""
        seen: set[str] = set()
        waiting = [node_id for node_id in roots if node_id in self.nodes]
        while waiting:
            node_id = waiting.pop()
            if node_id in seen:
                continue
            seen.add(node_id)
            waiting += [
                link.node_id
                for _, link in self.nodes[node_id].links()
                if link.node_id in self.nodes
            ]
        return frozenset(seen)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The workflow as ComfyUI's `POST /prompt` takes it: id to class_type, inputs, the rest."""
        return {node_id: _node_to_json(node) for node_id, node in self.nodes.items()}


TOO_DEEP = f"The value is nested deeper than {MAX_DEPTH} levels."


def parse(document: str | bytes | Mapping[str, Any]) -> Workflow:
    """Read a workflow in API format, given as JSON text or as the parsed object.

    It may stand in any wrapper that `document.load` takes off. A list that can be no link is a
    value, and gets the wrapper that ComfyUI wants for it: ComfyUI 0.30 takes that off in place
    (`execution.py` get_input_data), so that the workflows in the files it saves lack it.

    Raises: `InvalidWorkflow` with every problem of the document's shape.
    """
    graph = load(document)
    if is_editor(graph):
        what = "This is the editor's own format, not the API format."
        raise InvalidWorkflow([Problem("editor_format", what, "Convert it first.")])
    problems = [
        problem for node_id, node in graph.items() for problem in _misshapen(node_id, node, graph)
    ]
    if problems:
        raise InvalidWorkflow(problems)
    return Workflow({node_id: _parse_node(node_id, node, graph) for node_id, node in graph.items()})


def _misshapen(node_id: str, node: Any, graph: Collection[str]) -> Iterator[Problem]:
    if not isinstance(node, Mapping):
        yield Problem(
            "not_a_node", f"It is a JSON {json_type(node)}, not an object.", node_id=node_id
        )
        return
    title = _title(node) or str(node.get("class_type") or "")
    class_type, inputs = node.get("class_type"), node.get("inputs")
    if not isinstance(class_type, str) or not class_type:
        yield Problem(
            "no_class_type",
            "The node has no class_type.",
            "Export the workflow again, with all its custom nodes installed.",
            node_id=node_id,
            title=title,
        )
    if not isinstance(inputs, Mapping):
        yield Problem(
            "no_inputs",
            "The node has no inputs object.",
            'Write "inputs": {} for a node without inputs.',
            node_id=node_id,
            title=title,
        )
        return
    for name, value in inputs.items():
        if is_too_deep(value):
            yield Problem("too_deep", TOO_DEEP, node_id=node_id, title=title, input=name)
        elif isinstance(value, list) and _is_broken_link(value, graph):
            yield Problem(
                "bad_link",
                "A list here is a link and must be [node id, output index].",
                'A list that is a value is written {"__value__": [...]}.',
                node_id=node_id,
                title=title,
                input=name,
            )


def _parse_node(node_id: str, node: Mapping[str, Any], graph: Collection[str]) -> Node:
    inputs = {
        name: _link_or_value(value, graph) if isinstance(value, list) else value
        for name, value in node["inputs"].items()
    }
    extra = {key: value for key, value in node.items() if key not in ("class_type", "inputs")}
    return Node(node_id, node["class_type"], inputs, _title(node), extra)


def _node_to_json(node: Node) -> dict[str, Any]:
    inputs = {
        name: [value.node_id, value.slot] if isinstance(value, Link) else value
        for name, value in node.inputs.items()
    }
    return {"class_type": node.class_type, "inputs": inputs, **node.extra}


def _link_or_value(value: list[Any], graph: Collection[str]) -> Any:
    return _as_link(value, graph) or {"__value__": value}


def _as_link(value: list[Any], graph: Collection[str]) -> Link | None:
    """The link that a list is; one that begins with a number is one where there is such a node."""
    match value:
        case [bool(), _] | [_, bool()]:
            return None
        case [str() as node_id, int() as slot]:
            return Link(node_id, slot)
        case [int() as number, int() as slot] if str(number) in graph:
            return Link(str(number), slot)
        case _:
            return None


def _is_broken_link(value: list[Any], graph: Collection[str]) -> bool:
    """Whether a list names a node and is no link all the same."""
    if _as_link(value, graph) is not None or not value:
        return False
    first = value[0]
    return isinstance(first, str | int) and not isinstance(first, bool) and str(first) in graph


def _title(node: Mapping[str, Any]) -> str:
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title.strip() if isinstance(title, str) else ""


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects nest deeper than `MAX_DEPTH`; level by level, so not recursing."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
