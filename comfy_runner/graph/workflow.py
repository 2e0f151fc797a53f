"""A workflow in ComfyUI's API format: parsed once, walked, copied with changes, written as JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_runner.errors import InvalidWorkflow, Problem

MAX_DOCUMENT_BYTES = 32 * 1024 * 1024
"""Largest document that is read, in bytes: the largest template is 1 MB, ComfyUI takes 100 MB."""

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


def parse(document: str | bytes | Mapping[str, Any]) -> Workflow:
    """Read a workflow in API format, given as JSON text or as the parsed object.

    The wrapper `{"prompt": {...}}` that ComfyUI's own `POST /prompt` takes is accepted too.

    Raises: `InvalidWorkflow` with every problem of the document's shape.
    """
    graph = _unwrap(_load(document))
    problems = [problem for node_id, node in graph.items() for problem in _misshapen(node_id, node)]
    if problems:
        raise InvalidWorkflow(problems)
    return Workflow({node_id: _parse_node(node_id, node) for node_id, node in graph.items()})


def _load(document: str | bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(document, str | bytes):
        return document
    size = len(document)
    if size > MAX_DOCUMENT_BYTES:
        raise _no_workflow(
            "document_too_big",
            f"The document has {size / 1e6:.0f} MB;"
            f" at most {MAX_DOCUMENT_BYTES / 1e6:.0f} MB are read.",
            "Move embedded files out of it: pass pictures as files or URLs.",
        )
    if not document.strip():
        raise _no_workflow("empty_document", "No workflow was given.", HOW_TO_EXPORT)
    try:
        loaded = json.loads(document)
    except UnicodeDecodeError as err:
        raise _no_workflow("not_json", "The document is not text in UTF-8.", HOW_TO_EXPORT) from err
    except json.JSONDecodeError as err:
        raise _no_workflow(
            "not_json",
            f"The document is not JSON: {err.msg} at line {err.lineno}, column {err.colno}.",
            HOW_TO_EXPORT,
        ) from err
    except ValueError as err:  # Python reads no number of more than 4300 digits
        raise _no_workflow("not_json", f"The document cannot be read: {err}.") from err
    except RecursionError as err:
        raise _no_workflow("too_deep", "The document is nested too deeply.") from err
    if not isinstance(loaded, dict):
        raise _no_workflow(
            "not_a_workflow",
            f"The document is a JSON {_json_type(loaded)}, not an object of nodes.",
            HOW_TO_EXPORT,
        )
    return loaded


HOW_TO_EXPORT = "In ComfyUI choose Workflow > Export (API) and use that file."


def _unwrap(document: Mapping[str, Any]) -> Mapping[str, Any]:
    prompt = document.get("prompt")
    if isinstance(prompt, Mapping) and "class_type" not in prompt:
        document = prompt
    if isinstance(document.get("nodes"), list):
        raise _no_workflow(
            "editor_format",
            "This is the editor's own format (File > Save), which cannot be run yet.",
            f"{HOW_TO_EXPORT} Converting the editor's format is the next step of this project.",
        )
    if not document:
        raise _no_workflow("empty_workflow", "The workflow has no nodes.", HOW_TO_EXPORT)
    if not any(isinstance(node, Mapping) and "class_type" in node for node in document.values()):
        found = ", ".join(repr(key) for key in list(document)[:5])
        raise _no_workflow(
            "not_a_workflow",
            f"No member of the document is a node with a class_type (it has {found}).",
            HOW_TO_EXPORT,
        )
    return document


def _misshapen(node_id: str, node: Any) -> Iterator[Problem]:
    if not isinstance(node, Mapping):
        yield Problem(
            "not_a_node", f"It is a JSON {_json_type(node)}, not an object.", node_id=node_id
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
        if _is_deeper(value, MAX_DEPTH):
            yield Problem(
                "too_deep",
                f"The value is nested deeper than {MAX_DEPTH} levels.",
                node_id=node_id,
                title=title,
                input=name,
            )
        elif isinstance(value, list) and _as_link(value) is None:
            yield Problem(
                "bad_link",
                "A list here is a link and must be [node id, output index].",
                'A list that is a value is written {"__value__": [...]}.',
                node_id=node_id,
                title=title,
                input=name,
            )


def _parse_node(node_id: str, node: Mapping[str, Any]) -> Node:
    inputs = {name: _as_link(value) or value for name, value in node["inputs"].items()}
    extra = {key: value for key, value in node.items() if key not in ("class_type", "inputs")}
    return Node(node_id, node["class_type"], inputs, _title(node), extra)


def _node_to_json(node: Node) -> dict[str, Any]:
    inputs = {
        name: [value.node_id, value.slot] if isinstance(value, Link) else value
        for name, value in node.inputs.items()
    }
    return {"class_type": node.class_type, "inputs": inputs, **node.extra}


def _as_link(value: Any) -> Link | None:
    """A link where ComfyUI sees one: any list of length 2 (`execution.py` 0.30 validate_inputs)."""
    match value:
        case [str() | int() as node_id, int() as slot] if not isinstance(
            node_id, bool
        ) and not isinstance(slot, bool):
            return Link(str(node_id), slot)
        case _:
            return None


def _title(node: Mapping[str, Any]) -> str:
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title.strip() if isinstance(title, str) else ""


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects nest deeper than `limit`; level by level, so never recursing."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _no_workflow(code: str, what: str, hint: str = "") -> InvalidWorkflow:
    return InvalidWorkflow([Problem(code, what, hint)])
