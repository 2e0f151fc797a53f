"""What a caller gives as a workflow, taken apart: JSON, wrapper by wrapper, to the graph inside."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from comfy_runner.errors import InvalidWorkflow, Problem

MAX_DOCUMENT_BYTES = 32 * 1024 * 1024
"""Largest document that is read, in bytes: the largest template is 1 MB, ComfyUI takes 100 MB."""

RUN_MARK = "comfy_runner_run"
"""Unknown input that makes an output node run again: ComfyUI 0.30 counts it in its cache key."""

CACHE_MARK = "is_changed"
"""Member in which ComfyUI 0.30 keeps what a node said of its sources in the run that saved the
graph, and which it believes in a later one (`execution.py` IsChangedCache)."""

HOW_TO_SAVE = "In ComfyUI choose Workflow > Save or Export and use that file."

MAX_WRAPPERS = 16
"""How deep a graph may stand in wrappers, text counting as one: known chains are half as long."""

SHOWN_NAMES = 8
"""How many members of an unknown document an error names."""

Preference = Literal["prompt", "workflow"]
"""Which of two graphs is meant: `prompt` the one in API format, `workflow` the editor's."""

# In this order, so that of two graphs of one format the first wins.
WRAPPERS = (
    "prompt",  # POST /prompt, an entry of /history, metadata that ComfyUI saves (server.py 0.30)
    "workflow",  # the same metadata, worker-comfyui's requests, /api/jobs (comfy_execution/jobs.py)
    "workflow_json",  # requests of cog-comfyui; a share (sharing/schemas/shareSchemas.ts 1.47.12)
    "input",  # requests of Replicate and RunPod
    "output",  # what the front end's graphToPrompt gives beside `workflow` (executionUtil.ts)
    "extra_data",  # POST /prompt
    "extra_pnginfo",
    "data",  # a blueprint as /global_subgraphs gives it (app/subgraph_manager.py 0.30)
    "asset",  # glTF: asset.extras (comfy_extras/nodes_save_3d.py 0.30)
    "extras",
)
"""Members that can hold a graph, as an object or as JSON text."""


def load(
    document: str | bytes | Mapping[str, Any], prefer: Preference = "prompt"
) -> Mapping[str, Any]:
    """The graph in a document: an API graph (id to node), or an editor document (`is_editor`).

    The document is JSON text, in UTF-8 or UTF-16, or the parsed object. The graph may stand in
    any of `WRAPPERS`, one in another, or in the queue items of ComfyUI's `/history` and `/queue`.
    Where there is one of each format, `prefer` says which is meant. The marks that our own runs
    and ComfyUI leave in an API graph are taken out.

    Raises: `InvalidWorkflow` when there is no graph, or no telling which of several is meant.
    """
    loaded = document if isinstance(document, Mapping) else parse_json(document)
    found = _Found()
    found.search(loaded)
    first, second = (found.api, found.editor)
    if prefer == "workflow":
        first, second = second, first
    for graphs in (first, second):
        if graphs:
            return graphs[0]
    raise InvalidWorkflow([next(found.faults(loaded))])


def is_editor(graph: Mapping[str, Any]) -> bool:
    """Whether it is the editor's own format: an object with a list of nodes."""
    return isinstance(graph.get("nodes"), list)


def parse_json(text: str | bytes, name: str = "The document") -> Any:
    """What the JSON text says; integers are exact, NaN and Infinity are taken.

    `name` stands in messages. Raises: `InvalidWorkflow`.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise _refused(
            "document_too_big",
            f"{name} has more than the {MAX_DOCUMENT_BYTES / 1e6:.0f} MB that are read.",
            "Move embedded files out of it: pass pictures as files or URLs.",
        )
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        text = text.lstrip("\ufeff")
        if not text.strip():
            raise _refused("empty_document", "No workflow was given.", HOW_TO_SAVE)
        return json.loads(text)
    except UnicodeDecodeError as err:
        what = f"{name} is not text in UTF-8 or UTF-16."
        raise _refused("not_json", what, HOW_TO_SAVE) from err
    except json.JSONDecodeError as err:
        what = f"{name} is not JSON: {err.msg} at line {err.lineno}, column {err.colno}."
        raise _refused("not_json", what, HOW_TO_SAVE) from err
    except ValueError as err:  # Python reads no number of more than 4300 digits
        raise _refused("not_json", f"{name} cannot be read: {err}.") from err
    except RecursionError as err:
        raise _refused("too_deep", f"{name} is nested too deeply.") from err


def json_type(value: Any) -> str:
    """What JSON calls such a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


@dataclass(slots=True)
class _Found:
    """The graphs in a document, in the order in which they were found."""

    api: list[Mapping[str, Any]] = field(default_factory=list)
    editor: list[Mapping[str, Any]] = field(default_factory=list)
    broken: list[Problem] = field(default_factory=list)
    """Members that should hold a graph and are no JSON."""
    empty: bool = False

    def search(self, value: Any, name: str = "", level: int = 0) -> None:
        """Look into a value, which stands under `name` in another one."""
        if level > MAX_WRAPPERS:
            return
        if isinstance(value, str):
            self.search(self._parsed(value, name), name, level + 1)
        elif _is_queue_item(value):
            for part in value[2:4]:
                self.search(part, name, level + 1)
        elif not isinstance(value, Mapping):
            return
        elif is_editor(value):
            self.editor.append(value)
        elif any(isinstance(node, Mapping) and "class_type" in node for node in value.values()):
            self.api.append(_unmarked(value))
        elif not value:
            self.empty = True
        else:
            self._search_runs(value, level)
            for key in WRAPPERS:
                if key in value:
                    self.search(value[key], key, level + 1)

    def _search_runs(self, value: Mapping[str, Any], level: int) -> None:
        """Look into the whole answer of `/history` or `/queue`, which may hold many runs.

        Raises: `InvalidWorkflow` when they are not all of one graph.
        """
        first: _Found | None = None
        for item in _runs(value):
            found = _Found()
            found.search(item, "prompt", level + 1)
            if first is None:
                first = found
            elif (found.api or found.editor) != (first.api or first.editor):
                ids = ", ".join(_short(item[1]) for item in list(_runs(value))[-SHOWN_NAMES:])
                raise _refused(
                    "several_workflows",
                    f"The document holds runs of different workflows (the last ones: {ids}).",
                    "Give one of them: what /history/ID answers, or its member alone.",
                )
        if first is not None:
            self.api += first.api
            self.editor += first.editor
            self.broken += first.broken

    def _parsed(self, text: str, name: str) -> Any:
        """What a text says that may be JSON; None when it is none."""
        if text.lstrip("\ufeff \t\r\n")[:1] not in ("{", "[", '"'):
            if name == "workflow_json" and text.strip():
                what = "The member workflow_json is no JSON."
                hint = "If it is an address, give that address itself as the workflow."
                self.broken.append(Problem("not_json", what, hint))
            return None
        try:
            return parse_json(text, f"The text in {name!r}" if name else "The text in it")
        except InvalidWorkflow as err:
            self.broken += err.problems
            return None

    def faults(self, document: Any) -> Iterator[Problem]:
        """Why no graph was found; the first is what the caller should hear."""
        yield from self.broken
        if self.empty:
            yield Problem("empty_workflow", "The workflow has no nodes.", HOW_TO_SAVE)
        if not isinstance(document, Mapping):
            what = f"The document is a JSON {json_type(document)}, not an object of nodes."
            yield Problem("not_a_workflow", what, HOW_TO_SAVE)
        elif isinstance(document.get("templates"), list):
            yield Problem(
                "node_templates",
                "This is an export of node templates: pieces to paste in the editor, no workflow.",
                f"Paste the piece into a workflow. {HOW_TO_SAVE}",
            )
        else:
            members = ", ".join(_short(name) for name in list(document)[:SHOWN_NAMES])
            left = len(document) - SHOWN_NAMES
            yield Problem(
                "not_a_workflow",
                "There is no workflow in it: it is a JSON object with the members"
                f" {members}{f' and {left} more' if left > 0 else ''}.",
                HOW_TO_SAVE,
            )


def _is_queue_item(value: Any) -> bool:
    """`[number, id, graph, extra_data, outputs]`, as ComfyUI keeps a run (`execution.py` 0.30)."""
    match value:
        case [int() | float(), str(), Mapping(), *_]:
            return True
        case _:
            return False


def _runs(value: Mapping[str, Any]) -> Iterator[Any]:
    """The queue item of every run in an answer of `/history` or `/queue`."""
    for name, entry in value.items():
        items: list[Any] = []
        if name in ("queue_running", "queue_pending") and isinstance(entry, list):
            items = entry
        elif name not in WRAPPERS and isinstance(entry, Mapping):
            items = [entry.get("prompt")]
        yield from filter(_is_queue_item, items)


def _unmarked(graph: Mapping[str, Any]) -> Mapping[str, Any]:
    """The graph without the marks of the run that saved it."""

    def unmarked(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        kept = {name: value for name, value in node.items() if name != CACHE_MARK}
        inputs = kept.get("inputs")
        if isinstance(inputs, Mapping) and RUN_MARK in inputs:
            kept["inputs"] = {name: value for name, value in inputs.items() if name != RUN_MARK}
        return kept

    return {node_id: unmarked(node) for node_id, node in graph.items()}


def _short(name: Any) -> str:
    """A name from the document as a message may show it."""
    text = repr(name)
    return text if len(text) <= 40 else f"{text[:36]}...'"  # noqa: PLR2004


def _refused(code: str, what: str, hint: str = "") -> InvalidWorkflow:
    return InvalidWorkflow([Problem(code, what, hint)])
