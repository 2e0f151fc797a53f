"""What each node class takes and gives: the catalog that ComfyUI reports about itself."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

WIDGET_TYPES = frozenset(
    {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "COLOR", "COLORS", "CURVE", "RANGE"}
    | {"BOUNDING_BOX", "BOUNDING_BOXES", "COMFY_DYNAMICCOMBO_V3"}
)
"""Types whose value stands in the node itself (front end 1.47.12, `scripts/widgets.ts`)."""

UPLOAD_FLAGS = ("image_upload", "audio_upload", "video_upload", "file_upload")
"""Options that mark a combo as a file of ComfyUI's input folder, each with its kind in front."""

SEED_NAMES = ("seed", "noise_seed", "rand_seed")
"""Names under which packs keep seeds; the list that replicate/cog-comfyui randomises."""


LONGEST_NAME = 300
"""Characters up to which a text can be a misspelt name."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a node class, as far as it is known for the values at hand."""

    name: str
    """Full name, dotted inside dynamic inputs: `codec.encoding`."""
    type: str
    """ComfyUI's type: `INT`, `COMBO`, `MODEL`, a union `FLOAT,INT`, or `*` for anything."""
    required: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    """ComfyUI's own options: default, min, max, step, multiline, ..."""
    choices: tuple[Any, ...] | None = None
    """A combo's allowed values; `None` for other types and for lists that are fetched later."""
    folder: str | None = None
    """The model folder whose files are the choices, such as `checkpoints`."""
    takes_file: bool = False
    """Whether the value names a file of ComfyUI's input folder."""
    subfolder: str = ""
    """Where in the input folder such a file belongs: `3d` for models, else nothing."""

    @property
    def is_widget(self) -> bool:
        """Whether a person sets it in the node rather than connecting it."""
        return self.type in WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def default(self) -> Any:
        """What the editor puts there: the class's default, or the first choice of a combo."""
        return self.options.get("default", self.choices[0] if self.choices else None)

    @property
    def is_seed(self) -> bool:
        """Whether it is a random seed.

        The option `control_after_generate` does not say so: PrimitiveInt, which may well hold a
        width, has it too.
        """
        return self.type == "INT" and self.name.rpartition(".")[2] in SEED_NAMES

    @property
    def file_kind(self) -> str:
        """What kind of file it takes: `image`, `audio`, `video`, or just `file`."""
        for flag in UPLOAD_FLAGS:
            if self.options.get(flag):
                return flag.removesuffix("_upload")
        return "file"


@dataclass(frozen=True, slots=True)
class NodeClass:
    """One node class."""

    name: str
    outputs: tuple[str, ...]
    """Type of each output slot; `COMBO` where the class gives a list of values."""
    is_output: bool
    """Whether running it is a reason of its own to run the graph (`OUTPUT_NODE`)."""
    definition: Mapping[str, Mapping[str, Any]]
    """`required` and `optional` inputs, as `/object_info` gives them."""
    folders: Mapping[str, str]
    """Input name to model folder."""
    extras: Mapping[str, tuple[Any, ...]]
    """Model or file input to the choices it offers besides files, such as `pixel_space`."""
    file_inputs: Mapping[str, str]
    """Input that names a file of ComfyUI's input folder, to the subfolder that it lists."""
    unchecked: frozenset[str]
    """Inputs whose range and choices the class checks itself; `*` is all, `@types` links too."""
    title: str
    """What the editor calls a node of the class."""
    order: Mapping[str, tuple[str, ...]]
    """Names of the `required` and `optional` inputs in the class's own order."""
    output_matches: tuple[str, ...]
    """For each output whose type follows the inputs, the id of their template; else nothing."""

    def inputs(self, values: Mapping[str, Any]) -> dict[str, InputSpec]:
        """Name to spec of every input that the class has, given a node's present values.

        Dynamic inputs are expanded as ComfyUI does it (`comfy_api/latest/_io.py` 0.30
        `parse_class_inputs`): a dynamic combo brings the inputs of its chosen option, an autogrow
        its numbered or named slots, a dynamic slot its inputs once it is connected.
        """
        return {spec.name: spec for spec in self._expand(self.definition, values, "")}

    def checks(self, name: str) -> bool:
        """Whether ComfyUI itself checks range and choices of this input."""
        return not self.unchecked & {"*", name}

    def _expand(
        self, definition: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any], prefix: str
    ) -> Iterator[InputSpec]:
        for section in ("required", "optional"):
            for name, raw in (definition.get(section) or {}).items():
                kind, options = type_and_options(raw)
                full = f"{prefix}{name}"
                required = section == "required"
                match kind:
                    case "COMFY_AUTOGROW_V3":
                        yield from self._autogrow(full, options["template"], values)
                    case "COMFY_DYNAMICCOMBO_V3":
                        choices = tuple(option["key"] for option in options["options"])
                        yield InputSpec(full, kind, required, options, choices)
                        for option in options["options"]:
                            if option["key"] == values.get(full):
                                yield from self._expand(option["inputs"], values, f"{full}.")
                    case "COMFY_DYNAMICSLOT_V3":
                        slot_type = str(options.get("slotType", "*"))
                        yield InputSpec(full, slot_type, False, options)
                        if full in values:
                            yield from self._expand(options["inputs"], values, f"{full}.")
                    case _:
                        yield self._spec(full, kind, options, required)

    def _autogrow(
        self, full: str, template: Mapping[str, Any], values: Mapping[str, Any]
    ) -> Iterator[InputSpec]:
        names = template.get("names") or [
            f"{template['prefix']}{number}" for number in range(template["max"])
        ]
        section, inputs = next(
            (section, inputs) for section, inputs in template["input"].items() if inputs
        )
        raw = next(iter(inputs.values()))
        for number, name in enumerate(names):
            required = section == "required" and number < template.get("min", 0)
            if required or number <= template.get("min", 0) or f"{full}.{name}" in values:
                definition = {"required" if required else "optional": {name: raw}}
                yield from self._expand(definition, values, f"{full}.")

    def _spec(self, name: str, kind: Any, options: Mapping[str, Any], required: bool) -> InputSpec:
        choices: tuple[Any, ...] | None = None
        if isinstance(kind, list):
            kind, choices = "COMBO", tuple(kind)
        elif kind == "COMBO" and isinstance(options.get("options"), list):
            choices = tuple(options["options"])
        folder = self.folders.get(name)
        # What a listing offers changes with the disk; only the choices besides it always hold.
        choices = self.extras.get(name, choices)
        takes_file = name in self.file_inputs or any(options.get(flag) for flag in UPLOAD_FLAGS)
        subfolder = self.file_inputs.get(name, "")
        return InputSpec(name, str(kind), required, options, choices, folder, takes_file, subfolder)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model folder lists."""

    places: tuple[str, ...]
    """Folders below the models folder, in ComfyUI's order."""
    extensions: frozenset[str]
    """Endings of the files that count, in lower case; empty for all."""


class NodeCatalog:
    """Every node class that one ComfyUI, with its custom nodes, knows."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        """Take the catalog as `ComfyClient.catalog()` gives it (or as it was saved from there).

        `object_info` is ComfyUI's own; `model_inputs`, `file_inputs`, `unchecked` and `folders`
        come from our launcher and may be absent.
        """
        self.raw = raw
        self._info: Mapping[str, Any] = raw["object_info"]
        self._parsed: dict[str, NodeClass] = {}
        self._derived: dict[tuple[Any, str], Any] = {}
        self._folders: dict[str, dict[str, str]] = {}
        self._extras: dict[str, dict[str, tuple[Any, ...]]] = {}
        for entry in raw.get("model_inputs", ()):
            self._folders.setdefault(entry["class_type"], {})[entry["input"]] = entry["folder"]
            self._extras.setdefault(entry["class_type"], {})[entry["input"]] = tuple(
                entry.get("extras", ())
            )
        self._file_inputs: dict[str, dict[str, str]] = {}
        for entry in raw.get("file_inputs", ()):
            class_type, name = entry["class_type"], entry["input"]
            self._file_inputs.setdefault(class_type, {})[name] = entry["subfolder"]
            self._extras.setdefault(class_type, {})[name] = tuple(entry["extras"])

    def __contains__(self, class_type: str) -> bool:
        return class_type in self._info

    def __len__(self) -> int:
        return len(self._info)

    def get(self, class_type: str) -> NodeClass | None:
        """The class of that name, or `None` when it is not installed."""
        if class_type not in self._parsed:
            info = self._info.get(class_type)
            if info is None:
                return None
            self._parsed[class_type] = NodeClass(
                name=class_type,
                outputs=tuple(
                    kind if isinstance(kind, str) else "COMBO" for kind in info.get("output", ())
                ),
                is_output=bool(info.get("output_node")),
                definition=info.get("input", {}),
                folders=self._folders.get(class_type, {}),
                extras=self._extras.get(class_type, {}),
                file_inputs=self._file_inputs.get(class_type, {}),
                unchecked=frozenset(self.raw.get("unchecked", {}).get(class_type, ())),
                title=str(info.get("display_name") or class_type),
                order={
                    section: tuple(names)
                    for section, names in (info.get("input_order") or {}).items()
                },
                output_matches=tuple(name or "" for name in info.get("output_matchtypes") or ()),
            )
        return self._parsed[class_type]

    def derived[T](self, make: Callable[[NodeClass], T], class_type: str) -> T | None:
        """What `make` makes of that class, made once; `None` when it is not installed."""
        key = (make, class_type)
        if key not in self._derived:
            known = self.get(class_type)
            self._derived[key] = None if known is None else make(known)
        made: T | None = self._derived[key]
        return made

    def with_classes_of(self, other: "NodeCatalog") -> "NodeCatalog":
        """A catalog of the classes of both; what both have is as in `other`."""
        info = {**self._info, **other.raw["object_info"]}
        return NodeCatalog({**self.raw, **other.raw, "object_info": info})

    def model_folder(self, name: str) -> ModelFolder | None:
        """What that model folder lists, or `None` when this ComfyUI has no such folder."""
        entry = self.raw.get("folders", {}).get(name)
        if entry is None:
            return None
        return ModelFolder(tuple(entry["places"]), frozenset(entry["extensions"]))

    def similar(self, class_type: str) -> list[str]:
        """Up to three installed class names that look like this one, nearest first."""
        return nearest(class_type, self._info)


def nearest(name: str, candidates: Collection[str], count: int = 3) -> list[str]:
    """Up to `count` candidates that look like `name`, nearest first; case does not matter.

    A text longer than `LONGEST_NAME` is like no name, and comparing it would take minutes.
    """
    if len(name) > LONGEST_NAME:
        return []
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    found = get_close_matches(name.lower(), by_lower, n=count, cutoff=0.6)
    return [by_lower[lower] for lower in found]


def did_you_mean(name: str, candidates: Collection[str]) -> str:
    """`Did you mean 'x' or 'y'?`, or nothing when no candidate is near."""
    found = nearest(name, candidates)
    return f"Did you mean {' or '.join(repr(item) for item in found)}?" if found else ""


def types_fit(given: str, wanted: str) -> bool:
    """Whether an output of type `given` may be connected to an input of type `wanted`.

    Types are unions written `A,B`; one common member is enough, `*` and match types fit anything
    (`comfy_execution/validation.py` 0.30 `validate_node_input`, not strict).
    """
    anything = {"*", "COMFY_MATCHTYPE_V3"}
    left = {part.strip() for part in given.split(",")}
    right = {part.strip() for part in wanted.split(",")}
    return bool(left & right or left & anything or right & anything)


def type_and_options(raw: Any) -> tuple[Any, Mapping[str, Any]]:
    """Split `[type]` or `[type, options]`; an odd definition of a custom node counts as `*`."""
    match raw:
        case [kind, dict() as options, *_]:
            return kind, options
        case [kind, *_]:
            return kind, {}
        case _:
            return "*", {}
