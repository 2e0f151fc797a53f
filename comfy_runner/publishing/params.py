"""One input of a model from a candidate: its Python type, limits, choices and description."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from comfy_runner.graph.nodes import InputSpec
from comfy_runner.graph.values import Unfit, coerce
from comfy_runner.publishing.candidates import Candidate
from comfy_runner.publishing.confidential import is_confidential
from comfy_runner.publishing.interface import Kind, Param
from comfy_runner.publishing.literals import settled
from comfy_runner.publishing.naming import identifier

MOST_CHOICES = 60
"""Choices of an input that lists them; of more a caller is told where they are from."""

EXACT = 2**53
"""The largest size of a limit: Cog keeps them as floats."""

KINDS: dict[str, Kind] = {
    "INT": "int",
    "FLOAT": "float",
    "BOOLEAN": "bool",
    "STRING": "str",
    "COLOR": "str",
}

ACCEPT = {"image": "image/*", "audio": "audio/*", "video": "video/*"}
ACCEPT_IN = {"3d": ".glb,.gltf,.obj,.fbx,.stl,.ply,.splat,.ksplat,.spz"}
"""Subfolder to the endings of what belongs there (`Load3D` in ComfyUI 0.30, nodes_load_3d.py)."""

SAYINGS = {
    "prompt": "What to make, in words.",
    "negative_prompt": "What to keep out of the result, in words.",
    "width": "Width in pixels.",
    "height": "Height in pixels.",
    "length": "Number of frames.",
    "frame_count": "Number of frames.",
    "batch_size": "How many are made at once.",
    "duration": "Length in seconds.",
    "seconds": "Length in seconds.",
    "fps": "Frames in a second.",
    "aspect_ratio": "Width to height.",
    "megapixels": "Size in millions of pixels.",
    "steps": "Number of sampling steps.",
    "cfg": "How closely the prompt is followed.",
    "guidance": "How closely the prompt is followed.",
    "denoise": "How much of the given picture is made anew, from 0 to 1.",
    "lora_strength": "How much the LoRA counts.",
}
"""What the inputs of these names are for, where their nodes do not say it."""
HELD = re.compile(r"\w+ \((.+)\)")
"""Titles such as `Int (Frame rate)`."""
WORDS = {"image": "picture", "audio": "recording", "video": "video", "file": "file"}


def param(
    name: str,
    candidate: Candidate,
    specs: Sequence[InputSpec],
    *,
    is_present: bool,
    goals: Sequence[InputSpec] = (),
    choices_from: str = "",
    listed: Sequence[str] = (),
) -> Param:
    """The input of that name for a candidate; `specs` are those of its targets, first one first.

    `is_present`: whether the file that the workflow names comes with the project. `goals` are the
    inputs that its value goes on to, whose limits are its own as long as its default keeps to them.
    `listed` are the names that `choices_from` stands for just now.
    """
    spec = specs[0]
    made = Param(
        name=name,
        targets=tuple(map(".".join, candidate.targets)),
        kind="str",
        description="",
        default=candidate.value,
    )
    if spec.takes_file:
        made = replace(
            made,
            kind="Path",
            default=None,
            required=not is_present,
            blank=is_present,
            accept=ACCEPT_IN.get(spec.subfolder) or ACCEPT.get(spec.file_kind, ""),
        )
    elif spec.folder is not None or choices_from:
        made = replace(made, choices=tuple(listed) or None, choices_from=choices_from)
        if isinstance(made.default, str):
            made = replace(made, default=_as_listed(made.default, listed))
    elif spec.choices is not None:
        made = _of_choices(made, spec.choices)
    else:
        made = _of_type(made, KINDS[spec.type], specs)
    if is_confidential(candidate.settable.input, made.default):
        made = replace(made, blank=True, default=None)  # nor in a schema, a README or a test
    text = _description(name, candidate, spec, is_listed=bool(choices_from))
    made = settled(replace(made, description=text))
    if not made.blank and not made.required and not _is_settable(specs, made.default):
        made = replace(made, blank=True, default=None)
    return _told(_within(made, goals), spec)


def _of_type(made: Param, kind: Kind, specs: Sequence[InputSpec]) -> Param:
    value = made.default
    match kind:
        case "int" | "float":
            try:
                value = (int if kind == "int" else float)(value)
            except (TypeError, ValueError, OverflowError):
                value = None
            low = max(_limits(specs, "min"), default=None)
            high = min(_limits(specs, "max"), default=None)
            return replace(
                made,
                kind=kind,
                default=value,
                minimum=low if low is not None and abs(low) <= EXACT else None,
                maximum=high if high is not None and abs(high) <= EXACT else None,
            )
        case "bool":
            return replace(made, kind=kind, default=value if isinstance(value, bool) else None)
    return replace(made, kind=kind, default=value if isinstance(value, str) else None)


def _within(made: Param, goals: Sequence[InputSpec]) -> Param:
    """The same with the limits of what its value goes on to, where it has none itself."""
    value = made.default
    if made.kind not in ("int", "float") or made.choices is not None or value is None:
        return made
    low, high = max(_limits(goals, "min"), default=None), min(_limits(goals, "max"), default=None)
    if made.minimum is None and low is not None and -EXACT <= low <= value:
        made = replace(made, minimum=low)
    if made.maximum is None and high is not None and value <= high <= EXACT:
        made = replace(made, maximum=high)
    return made


def _of_choices(made: Param, choices: Sequence[Any]) -> Param:
    """The choices, where they are few: of one type, or else all as text."""
    kinds = {type(choice) for choice in choices}
    kind: Kind = "str"
    if kinds == {int}:
        kind = "int"
    elif kinds and kinds <= {int, float}:
        kind = "float"
    make = {"int": int, "float": float}.get(kind, str)
    shown = tuple(dict.fromkeys(map(make, choices)))
    default = made.default
    if isinstance(default, str | int | float):
        default = next((one for one in shown if str(one) == str(default)), default)
    few = 0 < len(shown) <= MOST_CHOICES
    return replace(made, kind=kind, default=default, choices=shown if few else None)


def _as_listed(name: str, listed: Sequence[str]) -> str:
    """A model's name as the list has it, which has no backslashes."""
    plain = name.replace("\\", "/")
    return plain if plain in listed else name


def _limits(specs: Sequence[InputSpec], option: str) -> Iterator[float]:
    for spec in specs:
        limit = spec.options.get(option)
        if isinstance(limit, int | float) and not isinstance(limit, bool) and math.isfinite(limit):
            yield limit


def _is_settable(specs: Sequence[InputSpec], value: Any) -> bool:
    """Whether a request that gives just this value is taken."""
    try:
        for spec in specs:
            coerce(spec, value)
    except Unfit:
        return False
    return True


def _description(name: str, candidate: Candidate, spec: InputSpec, *, is_listed: bool) -> str:
    one, words = candidate.settable, name.replace("_", " ").capitalize()
    place = f"node {one.node_id} ({one.title})"
    tip = str(spec.options.get("tooltip") or "").strip()
    if spec.takes_file:
        text = tip or f"The {WORDS[spec.file_kind]} that {place} loads."
        mask = " What is transparent in it is the mask." if candidate.has_mask else ""
        return f"{_sentence(text)}{mask}"
    if spec.folder is not None:
        text = tip or f"The model that {place} loads as {one.input}."
        return text if is_listed else f"{_sentence(text)} A name in {spec.folder}, or an address."
    if name in ("prompt", "negative_prompt") or (not tip and name in SAYINGS):
        return SAYINGS[name]
    if tip:
        return tip
    if one.input == "value" and one.class_type.startswith("Primitive"):
        # Untitled, such a node is called after its type alone.
        return HELD.sub(r"\1", one.title) if name in identifier(one.title) else words
    own = one.input.rpartition(".")[2]
    return f"{words} of {place}." if own == name else f"{words}: {own} of {place}."


def _told(made: Param, spec: InputSpec) -> Param:
    """With what a caller has to know besides."""
    told = [_sentence(made.description)]
    step = spec.options.get("step")
    if made.kind == "int" and isinstance(step, int) and step > 1 and made.choices is None:
        told.append(f"In steps of {step} from {spec.options.get('min', 0)}.")
    if spec.choices is not None and made.choices is None and not (spec.takes_file or spec.folder):
        told.append(f"One of the {len(spec.choices)} choices that ComfyUI lists for it.")
    if made.blank:  # a run has new seeds wherever it is given none
        told.append("Blank for a random one." if spec.is_seed else "Blank for the workflow's own.")
    return settled(replace(made, description=" ".join(told)))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", ":", "。")) else f"{text}."
