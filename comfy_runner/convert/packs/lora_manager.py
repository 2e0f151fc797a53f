"""The values of ComfyUI-Lora-Manager's nodes (25e72b43, `utils.js`, `trigger_word_toggle.js`)."""

import re
from collections.abc import Sequence
from typing import Any

from comfy_runner.convert.packs.values import exact_number
from comfy_runner.convert.shapes import Shape
from comfy_runner.convert.ui import UiNode
from comfy_runner.convert.widgets import read_values

LORA = re.compile(r"<lora:([^:]+):([-\d.]+)(?::([-\d.]+))?>")
META = "__lm_autocomplete_meta_"
"""How the names of entries begin that only the text's completion needs."""

LORAS_IN_TEXT = frozenset(
    f"{name} (LoraManager)" for name in ("Lora Loader", "Lora Stacker", "WanVideo Lora Select")
)


def lora_manager(node: UiNode, shape: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """By name where the file lists its widgets, else by position without what only the text's
    completion needs; then the widgets that only the front end has."""
    if not isinstance(node.values, list):
        return values
    names = node.properties.get("__lm_widget_ids")
    if isinstance(names, list) and len(names) == len(node.values):
        named = dict(zip(map(str, names), node.values, strict=True))
        rest = [named[n] for n in named if n not in values and not n.startswith(META)]
        values = read_values(node.type, shape, named)
    else:
        rest = [v for v in node.values if not (isinstance(v, dict) and "textWidgetName" in v)]
        values = read_values(node.type, shape, rest)
    if node.type in LORAS_IN_TEXT:
        candidates = map(_unwrapped, (values.get("loras"), *rest))
        loras = next((entry for entry in candidates if isinstance(entry, list)), [])
        return {**values, "loras": _merged(values.get("text"), loras)}
    if node.type == "TriggerWord Toggle (LoraManager)":
        return _trigger_words(node, shape, rest)
    return values


def _trigger_words(node: UiNode, shape: Shape, stored: Sequence[Any]) -> dict[str, Any]:
    """Switches, a list and a text; files from before a third switch have the list in its place."""
    lists = [_unwrapped(entry) for entry in stored]
    place = next((n for n, entry in enumerate(lists) if isinstance(entry, list)), len(lists))
    toggles = lists[place] if place < len(lists) else []
    return {
        **read_values(node.type, shape, stored[:place]),
        "toggle_trigger_words": [_weighted(toggle) for toggle in toggles],
        "orinalMessage": next((e for e in stored[place + 1 :] if isinstance(e, str)), ""),
    }


def _unwrapped(value: Any) -> Any:
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


def _merged(text: Any, loras: Sequence[Any]) -> list[dict[str, Any]]:
    """The LoRAs of the text: as the list has them, others with the text's strengths at the end."""
    told = {}
    for name, strength, clip in LORA.findall(text if isinstance(text, str) else ""):
        strengths = (_strength(strength), _strength(clip or strength))
        told[name] = {"strength": strengths[0], "clipStrength": strengths[1]}
    merged = [
        {"active": True, "expanded": False, **told[name], **lora}
        for lora in loras
        if isinstance(lora, dict) and isinstance(name := lora.get("name"), str) and name in told
    ]
    known = {lora["name"] for lora in merged}
    return merged + [{"name": n, "active": True, **told[n]} for n in told if n not in known]


def _strength(text: str) -> float | int | None:
    try:
        strength = float(text)
    except ValueError:
        return None
    if exact_number(strength) is None:
        return None
    return int(strength) if strength.is_integer() else strength


def _weighted(toggle: Any) -> Any:
    match toggle:
        case {"text": str() as text, "strength": strength} if exact_number(strength) is not None:
            return {**toggle, "text": f"({text}:{strength:.2f})"}
        case _:
            return toggle
