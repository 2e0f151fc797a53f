"""The receipt of a run: what it was made of and what it made, to be compared and replayed."""

import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Self

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph.document import RUN_MARK

VERSION = 1
"""Of the format: members may be added without a new one."""

METRICS_BYTES = 2000
"""Most bytes of JSON that a receipt adds to the metrics."""

SLOWEST = 8
"""How many nodes the metrics name."""

FILE_DIGITS = 16
"""Digits of a file's sha256 that `workflow_digest` counts: those in the file's staged name."""

SHOWN_LABEL = 60
"""Characters of a label in the metrics."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in the workflow."""

    node_id: str
    input: str
    within: tuple[Any, ...] = ()
    """Keys and indices that lead to it inside the input's value."""

    @property
    def address(self) -> str:
        """`NODE.INPUT`, as a request's values name it."""
        return f"{self.node_id}.{self.input}"


@dataclass(frozen=True, slots=True)
class UsedWeight:
    """A model file that the workflow names or implies."""

    folder: str
    name: str
    sha256: str | None = None
    """Of the file; of a folder the digest that the store gives it; None where that is not known."""
    size: int | None = None
    """Bytes."""
    source: str = ""
    """Where it came from, without secrets; empty where that is not known."""
    places: tuple[Place, ...] = ()
    """Where the workflow named the source itself instead of the file."""

    @property
    def label(self) -> str:
        """Folder and name, such as `loras/x.safetensors`."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True, slots=True)
class UsedFile:
    """A file that came with the request, or from a URL in it."""

    name: str
    """As the caller called it."""
    sha256: str
    """Only its first `FILE_DIGITS` digits in a run that was not asked for its receipt."""
    size: int
    """Bytes."""
    source: str = ""
    """The URL, without secrets; empty for a file that was sent."""
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack:
    """A node pack that was installed."""

    name: str
    version: str = ""
    """As its `pyproject.toml` says."""
    commit: str = ""
    """Of its git repository, if it is one."""
    digest: str = ""
    """sha256 over its files; larger ones than 1 MiB count by their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a run depends on besides its request and its weights."""

    comfy_runner: str = ""
    comfyui: str = ""
    comfyui_tree: str = ""
    """`tree_digest` of ComfyUI's files as they are now."""
    comfyui_args: tuple[str, ...] = ()
    python: str = ""
    torch: str = ""
    torch_settings: tuple[str, ...] = ()
    """How torch was told to trade exactness for speed; the setting `torch`."""
    platform: str = ""
    device: str = ""
    """What ComfyUI computed on, in its words: `cpu`, or such as `cuda:0 NVIDIA T4 : native`."""
    memory_mode: str = ""
    """`usual`, or `low` for a run that had been out of GPU memory and was repeated with less."""
    packs: tuple[Pack, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A result file."""

    name: str
    node_id: str
    sha256: str
    size: int
    """Bytes."""
    content: str = ""
    """Digest without the metadata, which names the run: `pixels:`, `packets:` or `tensors:` and a
    sha256; empty where the file itself is all there is."""


@dataclass(frozen=True, slots=True)
class NodeTime:
    """How long ComfyUI worked at a node."""

    node_id: str
    title: str
    """The node's title, or its class_type when it has none."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Everything that is needed to tell whether another run is the same, and to repeat this one.

    Only a run that succeeded has one; if it was not asked for, without `surroundings`, `outputs`,
    and the hashes of files.
    It holds no secret: addresses are without user, password and query, and tokens are taken out.
    """

    run_id: str
    began: str
    """When, in UTC, as ISO 8601."""
    workflow_digest: str
    """See `workflow_digest`."""
    workflow: Mapping[str, Any]
    """As submitted, in API format: with the request's values and seeds, and with the caller's own
    names of files."""
    withheld: tuple[str, ...] = ()
    """`NODE.INPUT` of each value that had a secret in it, and so is not whole."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`output_format`, `output_quality`, `previews`, `all_outputs` of the request."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Address to value, as the request set it."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """Address to seed."""
    weights: tuple[UsedWeight, ...] = ()
    files: tuple[UsedFile, ...] = ()
    surroundings: Surroundings = field(default_factory=Surroundings)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Phase to its seconds."""
    node_seconds: tuple[NodeTime, ...] = ()
    """The nodes that ran, in the order in which they began; cached ones are not among them."""
    fetched_bytes: int = 0
    peak_memory: int | None = None
    """Most bytes of memory that ComfyUI had during the run."""
    outputs: tuple[Made, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The receipt as a JSON object; `parse` reads it again."""
        return {"receipt": VERSION, **asdict(self)}

    def text(self) -> str:
        """The content of a `receipt.json`."""
        return f"{json.dumps(self.as_json(), indent=2)}\n"

    @classmethod
    def parse(cls, document: str | bytes | Mapping[str, Any]) -> Self:
        """The receipt in a JSON text or in what was decoded from one; unknown members are ignored.

        Raises: `InvalidInput` with one problem when it is none, or one of a later version.
        """
        try:
            found = json.loads(document) if isinstance(document, str | bytes) else document
        except (ValueError, RecursionError) as err:
            raise _no_receipt(f"It is not JSON: {err}.") from err
        version = found.get("receipt") if isinstance(found, Mapping) else None
        if not isinstance(version, int) or version < 1:
            raise _no_receipt('It is no JSON object with the member "receipt".')
        if version > VERSION:
            what = f"The receipt has version {version}; this program reads version {VERSION}."
            raise InvalidInput([Problem("newer_receipt", what, "Use a newer comfy-runner.")])
        try:
            return typing.cast("Self", _read(cls, found, "receipt"))
        except _Unfit as err:
            raise _no_receipt(f"{err}.") from err


def receipt_metrics(receipt: Receipt) -> Mapping[str, Any]:
    """What a receipt adds to the metrics, in at most `METRICS_BYTES` of JSON.

    `workflow_digest`; `weights`, label to sha256 or None; `node_seconds`, the slowest nodes, label
    to seconds; `peak_memory` in bytes, where known. Where not all have room, the last ones go.
    """
    slowest = sorted(receipt.node_seconds, key=lambda node: -node.seconds)[:SLOWEST]
    weights: dict[str, Any] = {w.label[-SHOWN_LABEL:]: w.sha256 for w in receipt.weights}
    nodes = {
        f"{node.node_id} {node.title}"[:SHOWN_LABEL]: round(node.seconds, 3) for node in slowest
    }
    metrics: dict[str, Any] = {
        "workflow_digest": receipt.workflow_digest,
        "weights": weights,
        "node_seconds": nodes,
    }
    if receipt.peak_memory is not None:
        metrics["peak_memory"] = receipt.peak_memory
    while len(json.dumps(metrics)) > METRICS_BYTES:
        (weights if weights else nodes).popitem()
    return metrics


def workflow_digest(workflow: Mapping[str, Any], files: Iterable[UsedFile]) -> str:
    """The sha256 of a workflow as JSON with sorted keys and no white space.

    Only class_types and inputs count, without the mark of the run; an input that takes a file
    counts by the file's content, as `sha256:` and the first `FILE_DIGITS` digits of its hash,
    whatever it is called.
    """
    contents = {
        (place.node_id, place.input): f"sha256:{file.sha256[:FILE_DIGITS]}"
        for file in files
        for place in file.places
    }
    bare = {
        node_id: {
            "class_type": node["class_type"],
            "inputs": {
                name: contents.get((node_id, name), value)
                for name, value in node["inputs"].items()
                if name != RUN_MARK
            },
        }
        for node_id, node in workflow.items()
    }
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Unfit(ValueError):
    """Something in the JSON is not what its member holds."""


def _no_receipt(what: str) -> InvalidInput:
    hint = "Give a receipt.json that a run has made."
    return InvalidInput([Problem("not_a_receipt", what, hint, input="receipt")])


def _read(kind: Any, value: Any, place: str) -> Any:
    """A JSON value as what its type says. Raises: `_Unfit`, naming the member."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _read_object(kind, value, place)
    if origin is types.UnionType and value is not None:
        return _read(arguments[0], value, place)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(arguments[0], item, f"{place}[{n}]") for n, item in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Any or type(value) is kind or (origin is types.UnionType and value is None):
        return value
    raise _Unfit(f"Its member {place} does not fit")


def _read_object(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise _Unfit(f"Its member {place} is no object")
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for member in fields(kind):
        if member.name in value:
            found[member.name] = _read(
                hints[member.name], value[member.name], f"{place}.{member.name}"
            )
        elif member.default is MISSING and member.default_factory is MISSING:
            raise _Unfit(f"Its member {place}.{member.name} is missing")
    return kind(**found)
