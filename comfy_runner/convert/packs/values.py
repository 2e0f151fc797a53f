"""The values that nodes of packs send, where these are others than the editor's rules give.

Each rule takes a node, its shape and the values that those rules gave it, which it may change.
`table` tells which types of which pack it is for.
"""

from typing import Any

from comfy_runner.convert.packs.chance import HIGHEST_SEED
from comfy_runner.convert.shapes import Shape
from comfy_runner.convert.ui import UiNode
from comfy_runner.convert.widgets import read_values

CONSTANT = {
    "Select to add LoRA": "Select the LoRA to add to the text",
    "Select to add Wildcard": "Select the Wildcard to add to the text",
}
"""Combos that insert names, and their first choice."""


def named(node: UiNode, *names: str) -> dict[str, Any]:
    """The first values of a node's list by these names."""
    return dict(zip(names, _listed(node), strict=False))


def exact_number(value: Any) -> float | int | None:
    """A number of a size that JavaScript counts exactly."""
    if value.__class__ in (int, float) and -HIGHEST_SEED <= value <= HIGHEST_SEED:
        return value
    return None


def _listed(node: UiNode) -> list[Any]:
    return node.values if isinstance(node.values, list) else []


def power_loras(node: UiNode, _: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """Every entry with a `lora` as `lora_1`, `lora_2`, ...; a second strength only where shown."""
    entries = node.values.values() if isinstance(node.values, dict) else _listed(node)
    separate = node.properties.get("Show Strengths") == "Separate Model & Clip"
    loras = [entry for entry in entries if isinstance(entry, dict) and "lora" in entry]
    for place, lora in enumerate(loras, 1):
        sent = {key: value for key, value in lora.items() if key != "strengthTwo"}
        if separate:
            second = lora.get("strengthTwo")
            sent["strengthTwo"] = 1 if second is None else second
        values[f"lora_{place}"] = sent
    return values


def power_primitive(node: UiNode, _: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """A type and a value, which the class does not list."""
    values |= named(node, "type", "value")
    if values.get("type") == "BOOL":
        values["type"] = "BOOLEAN"
    return values


def power_puter(node: UiNode, _: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """The types of its outputs, in older files one alone, and its code; the class lists neither."""
    values |= named(node, "outputs", "code")
    outputs = values.get("outputs")
    kinds = outputs.get("outputs") if isinstance(outputs, dict) else [outputs]
    if isinstance(kinds, list) and outputs is not None:
        values["outputs"] = {"outputs": ["BOOLEAN" if kind == "BOOL" else kind for kind in kinds]}
    return values


def power_prompt(node: UiNode, _: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """Its texts by position. Which of its combos a file has depends on the author's disk; they are
    for inserting names, and only `DISABLE LORAS` is more than that. Sizes are not sent."""
    texts = {name: value for name, value in values.items() if name.startswith("prompt")}
    combos = {name: "CHOOSE" for name in values if name.startswith("insert_")}
    if "insert_lora" in combos and "DISABLE LORAS" in _listed(node)[len(texts) :]:
        combos["insert_lora"] = "DISABLE LORAS"
    return {**texts, **combos}


def efficient_loader(node: UiNode, shape: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """Before there were two choices about weights, all that follows stood two places earlier."""
    if exact_number(values.get("token_normalization")) is None:
        return values
    names = [widget.name for widget in shape.widgets]
    before = shape.widgets[: names.index("token_normalization")]
    place = sum(widget.places for widget in before)
    stored = _listed(node)
    return read_values(node.type, shape, [*stored[:place], "none", "comfy", *stored[place:]])


def efficient_sampler(node: UiNode, shape: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """Once a state such as `Sample` came first."""
    match node.values:
        case ["Sample" | "Script" | "Hold", *rest]:
            values = read_values(node.type, shape, rest)
            if "vae_decode" in values:
                values["vae_decode"] = "true"
    return values


def high_res_fix(node: UiNode, shape: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """Once it had five widgets, and began with the upscaler."""
    stored = _listed(node)
    if not stored or stored[0] in ("latent", "pixel", "both"):
        return values
    old = named(node, "latent_upscaler", "upscale_by", "hires_steps", "denoise", "iterations")
    if old["latent_upscaler"] == "SD-Latent-Upscaler":
        old["latent_upscaler"] = "city96"
    return read_values(node.type, shape, old)


def sliders(node: UiNode, _: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """The properties beat the list."""
    for axis, value_name, decimals_name in (
        ("X", "value", "decimals"),
        ("X", "valueX", "decimalsX"),
        ("Y", "valueY", "decimalsY"),
    ):
        value = exact_number(node.properties.get(value_name))
        if f"{axis}i" in values and value is not None:
            is_float = int((exact_number(node.properties.get(decimals_name)) or 0) > 0)
            values |= {f"{axis}i": int(value // 1), f"{axis}f": value, f"isfloat{axis}": is_float}
    return values


def wildcards(_: UiNode, shape: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """Two combos are always sent as their first choice; `mode` was a switch once."""
    values |= {name: text for name, text in CONSTANT.items() if name in values}
    kind = next((w.type for w in shape.widgets if w.name == "mode"), "")
    mode = values.get("mode")
    if kind == "BOOLEAN" and isinstance(mode, str):
        values["mode"] = mode.lower() == "populate"
    elif kind == "COMBO" and isinstance(mode, bool):
        values["mode"] = "populate" if mode else "fixed"
    return values


def prompt_builder(_: UiNode, __: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """`preset` only inserts texts."""
    return {**values, "preset": "#PRESET"}


def multipliers(node: UiNode, _: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """One number for each conditioning, however many there are."""
    return values | {f"multiplier{n}": value for n, value in enumerate(_listed(node), 1)}


def value_or_link(node: UiNode, _: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """A socket that is a widget while nothing is connected."""
    return values | named(node, "value")


def contents(_: UiNode, __: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """A name was once stored with its picture."""
    for name, value in values.items():
        match value:
            case {"content": str() as text}:
                values[name] = text
    return values
