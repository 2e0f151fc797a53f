"""The models that a workflow names: where each name stands, and how another is put there."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from comfy_runner.errors import Problem
from comfy_runner.fetch.endings import MODELS
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.graph.nodes import InputSpec, NodeCatalog, NodeClass, type_and_options
from comfy_runner.graph.workflow import Node, Workflow
from comfy_runner.weights.embeddings import TOKEN, embedding_names, with_embedding
from comfy_runner.weights.hosts.addresses import Address, shown

EMBEDDINGS = "embeddings"
"""The model folder of what texts name."""
LONGEST_NAME = 300
"""Characters up to which a text can be a model's name."""

DYNAMIC = frozenset({"COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"})
"""Types of inputs that bring others (`comfy_api/latest/_io.py`, 0.30.0)."""

Form = Literal["path", "lora", "stem", "token"]
"""How a name is written: as ComfyUI lists the file (`path`); so, or by less than that (`lora`);
by the file's name without folder and ending (`stem`); as `embedding:NAME` in a text (`token`)."""

TRIED: Mapping[Form, tuple[str, ...]] = {
    "path": (),
    "lora": (".safetensors", ".ckpt", ".pt", ".bin"),
    "stem": (".safetensors", ".ckpt", ".pt", ".bin"),
    "token": (".safetensors", ".pt", ".bin"),
}
"""What is tried after a name, in this order (`token`: `load_embed` in comfy/sd1_clip.py, 0.30.0).
Except for a `path`, the file may also stand in any subfolder."""

EMPTY_PARTS = re.compile(r"//|/$|(^|/)\.(/|$)")
"""Parts of a path that say nothing."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model name in a node."""

    node_id: str
    title: str
    class_type: str
    input: str
    folder: str | None
    """Model folder that the input lists; None where it is not known."""
    name: str
    within: tuple[str | int, ...] = ()
    """Keys and indices that lead to the name inside the input's value."""
    form: Form = "path"
    certain: bool = True
    """Whether it is sure that a file is meant, and that the node fails without it."""

    @property
    def place(self) -> tuple[str, str]:
        """Node id and input, with the way inside the input: different for each reference."""
        token = [f"{TOKEN}{self.name}"] if self.form == "token" else []
        return self.node_id, ".".join([self.input, *map(str, self.within), *token])

    @property
    def shown(self) -> str:
        """The name as it may be shown: people paste URLs with tokens where a name belongs."""
        return redacted(self.name) if scheme(self.name) or "?" in self.name else self.name

    def problem(self, code: str, what: str, hint: str = "") -> Problem:
        """A `Problem` that stands at this input."""
        title = self.title or self.class_type
        return Problem(code, what, hint, node_id=self.node_id, title=title, input=self.input)


@dataclass(frozen=True, slots=True)
class AskedWeight:
    """A model that a node gets from an address, under a name that is made once its bytes are known.

    The address is the caller's, or that of the workflow's author, so its bytes never get a name
    that a workflow of somebody else could mean.
    """

    node_id: str
    input: str
    """Name of the input; dotted for a name inside an input's value."""
    folder: str
    """Model folder that the file belongs into."""
    address: Address
    text: str = field(repr=False)
    """The address as it was given, which may hold a token."""
    reference: Reference = field(repr=False)
    """Where the installed name must stand."""
    sha256: str | None = None
    """Hash that the file must have, where the workflow says it."""

    @property
    def shown(self) -> str:
        """The address without what could be secret in it."""
        return shown(self.address)

    def as_json(self) -> dict[str, Any]:
        """What is asked for, as a JSON object."""
        return {
            "node_id": self.node_id,
            "input": self.input,
            "folder": self.folder,
            "from": self.shown,
            "sha256": self.sha256,
        }


def find(workflow: Workflow, catalog: NodeCatalog) -> Iterator[Reference]:
    """Every name of a model, in the workflow's order; of unknown classes what `PACKS` can read.

    Choices of a model input that are no files, such as `pixel_space`, are not among them. Where
    the folder is not known, only what ends as models do counts, and is not among the choices.
    """
    for node in workflow.nodes.values():
        if (known := catalog.get(node.class_type)) is not None:
            specs = catalog.derived(_fixed_inputs, node.class_type) or known.inputs(node.inputs)
            yield from _in_inputs(node, known, specs)
        if reader := PACKS.get(node.class_type):
            yield from reader(node)


def put(workflow: Workflow, reference: Reference, name: str) -> Workflow:
    """A copy in which another file is named where the reference stands, in the reference's form."""
    if reference.form == "stem":
        name = PurePosixPath(name).stem
    value = workflow.nodes[reference.node_id].inputs[reference.input]
    changed = _placed(value, reference.within, reference, name)
    return workflow.replace_inputs(reference.node_id, {reference.input: changed})


def spellings(reference: Reference, name: str) -> tuple[str, ...]:
    """The paths that a normalised name may stand for, in the order in which they are tried."""
    return (name, *(f"{name}{ending}" for ending in TRIED[reference.form]))


def means(reference: Reference, tried: Sequence[str], file: str) -> bool:
    """Whether a node finds this file of the folder by one of the spellings."""
    if reference.form == "path" or file in tried:
        return file in tried
    # Everything else is looked for in the subfolders too.
    if any(file.endswith(f"/{spelling}") for spelling in tried):
        return True
    base = file.rpartition("/")[2]
    return reference.form != "token" and any(base == t.rpartition("/")[2] for t in tried)


def stands_for(reference: Reference, file: str) -> bool:
    """Whether a node finds this file of the folder by the name as it stands there now."""
    if reference.form == "path":
        return reference.name == file
    name = normalised(reference.name)
    return name is not None and means(reference, spellings(reference, name), file)


def normalised(name: str) -> str | None:
    """A model name with `/`, in NFC, without a `[output]` suffix; None when it is no such path."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/")
    name = re.sub(r" ?\[(input|output|temp)\]$", "", name)
    if re.match(r"/|[A-Za-z]:/", name) or ".." in name.split("/"):
        return None
    if not name or EMPTY_PARTS.search(name):
        name = str(PurePosixPath(name))
    return None if name == "." or not name.isprintable() else name


def _fixed_inputs(known: NodeClass) -> Mapping[str, InputSpec] | None:
    """The inputs of a class, unless a node's values decide which it has."""
    sections = [known.definition.get(section) or {} for section in ("required", "optional")]
    kinds = [type_and_options(raw)[0] for section in sections for raw in section.values()]
    return None if DYNAMIC.intersection(map(str, kinds)) else known.inputs({})


def _in_inputs(node: Node, known: NodeClass, specs: Mapping[str, InputSpec]) -> Iterator[Reference]:
    """What the texts of a node name."""
    for name in dict.fromkeys([*specs, *node.inputs]):
        match node.inputs.get(name):
            case str(text):
                within: tuple[str, ...] = ()
            case {"__value__": str(text)}:
                within = ("__value__",)
            case _:
                continue
        spec = specs.get(name)
        if spec is None or not spec.takes_file:
            yield from _in_text(node, name, spec, text, within, checked=known.checks(name))


def _in_text(
    node: Node,
    name: str,
    spec: InputSpec | None,
    text: str,
    within: tuple[str, ...],
    *,
    checked: bool,
) -> Iterator[Reference]:
    """What one text of a node names."""
    place = (node.id, node.label, node.class_type, name)
    choices = (spec.choices or ()) if spec else ()
    if spec and spec.folder is not None:
        if text not in choices:
            yield Reference(*place, spec.folder, text, within)
        return
    if TOKEN in text and (spec is None or spec.type == "STRING"):
        for token in embedding_names(text):
            yield Reference(*place, EMBEDDINGS, token, within, "token", certain=False)
        return
    if len(text) <= LONGEST_NAME and text.lower().endswith(tuple(MODELS)) and "://" not in text:
        is_combo = spec is not None and spec.choices is not None
        if text not in choices:
            yield Reference(*place, None, text, within, certain=is_combo and checked)


def _power_lora_loader(node: Node) -> Iterator[Reference]:
    """rgthree-comfy (018ede56, `power_lora_loader.py`): those that are on and have a strength."""
    for name, value in node.inputs.items():
        match value:
            case {"on": on, "lora": str(lora), "strength": strength}:
                used = on and (strength != 0 or value.get("strengthTwo") not in (0, None))
                if name.upper().startswith("LORA_") and used and lora not in ("", "None"):
                    place = (node.id, node.label, node.class_type, name)
                    yield Reference(*place, "loras", lora, ("lora",), "lora")


def _lora_manager(node: Node) -> Iterator[Reference]:
    """ComfyUI-Lora-Manager (0ada32d0, `utils.py`): the active ones of the list."""
    match node.inputs.get("loras"):
        case {"__value__": list(entries)}:
            pass
        case _:
            return
    for number, entry in enumerate(entries):
        match entry:
            case {"name": str(lora), "active": active} if lora and active:
                place = (node.id, node.label, node.class_type, "loras")
                yield Reference(*place, "loras", lora, ("__value__", number, "name"), "stem")


PACKS: Mapping[str, Callable[[Node], Iterator[Reference]]] = {
    "Power Lora Loader (rgthree)": _power_lora_loader,
    "Lora Loader (LoraManager)": _lora_manager,
    "Lora Stacker (LoraManager)": _lora_manager,
    "WanVideo Lora Select (LoraManager)": _lora_manager,
}
"""Classes whose inputs hold models inside objects and lists, which the catalog cannot tell."""


def _placed(value: Any, within: Sequence[str | int], reference: Reference, name: str) -> Any:
    match within, value:
        case [[], str(text)] if reference.form == "token":
            return with_embedding(text, reference.name, name)
        case [[], _]:
            return name
        case [[key, *rest], dict()]:
            return {**value, key: _placed(value[key], rest, reference, name)}
        case [[int(number), *rest], list()]:
            changed = _placed(value[number], rest, reference, name)
            return [*value[:number], changed, *value[number + 1 :]]
        case _:
            return value
