"""The values of ComfyUI-VideoHelperSuite's nodes (4ee72c0, `VHS.core.js`)."""

from collections.abc import Mapping
from typing import Any

from comfy_runner.convert.packs.values import named
from comfy_runner.convert.shapes import Shape
from comfy_runner.convert.ui import UiNode, number
from comfy_runner.convert.widgets import read_values

COMBINE = "VHS_VideoCombine"

_LOADED = "video force_rate force_size frame_load_cap skip_first_frames select_every_nth"

_LISTS: Mapping[str, str] = {
    "VHS_LoadImages": "directory button image_load_cap skip_first_images select_every_nth",
    "VHS_LoadImagesPath": "directory image_load_cap skip_first_images select_every_nth",
    COMBINE: "frame_rate loop_count filename_prefix format pingpong save_image",
    "VHS_LoadVideo": _LOADED,
    "VHS_LoadVideoPath": _LOADED,
}
"""What the places of lists meant before the pack stored objects, in late 2023."""

_FORCED_SIZES: Mapping[str, Mapping[str, int]] = {
    "Disabled": {"custom_width": 0, "custom_height": 0},
    "Custom Width": {"custom_height": 0},
    "Custom Height": {"custom_width": 0},
}
"""What the old `force_size` meant where it named no size."""


def video_helper(node: UiNode, shape: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """By name, also under old names; the widgets of the chosen video format follow `format`."""
    names = _LISTS.get(node.type, "").split()
    match node.values:
        case dict() as given:
            stored = given
        case list() as listed if names:
            stored = named(node, *names) if len(listed) >= len(names) else {}
            if isinstance(stored.get("select_every_nth"), str):  # there was a button once
                del stored["select_every_nth"]
        case list():
            return values
        case _:
            stored = {}
    if "save_image" in stored:
        stored = {"save_output": stored["save_image"], **stored}
    sizes = _forced_size(stored.get("force_size"))
    values = read_values(node.type, shape, {**stored, **sizes})
    if node.type != COMBINE:
        return values
    sent: dict[str, Any] = {}
    for name, value in values.items():
        sent[name] = value
        if name == "format":
            sent |= _format_widgets(shape, value, stored)
    return sent


def _forced_size(text: Any) -> Mapping[str, int]:
    """The sizes that the old `force_size` meant, such as `512x?` or `Custom Width`."""
    if not isinstance(text, str):
        return {}
    width, cross, height = text.replace("?", "0").partition("x")
    if cross:
        return {"custom_width": number(width) or 0, "custom_height": number(height) or 0}
    return _FORCED_SIZES.get(text, {})


def _format_widgets(shape: Shape, chosen: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    options = next((w.options for w in shape.widgets if w.name == "format"), {})
    formats = options.get("formats")
    entries = formats.get(chosen) if isinstance(formats, dict) and isinstance(chosen, str) else None
    values: dict[str, Any] = {}
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case [str() as name, kind, *rest]:
                spec = rest[0] if rest and isinstance(rest[0], dict) else {}
                first = kind[0] if isinstance(kind, list) and kind else None
                value = stored.get(name, spec.get("default", first))
                if value is not None:
                    values[name] = value
    return values
