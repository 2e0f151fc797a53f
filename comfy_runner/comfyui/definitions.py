"""Node definitions as custom packs write them, made such that the rest can rely on their shape."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

SECTIONS = ("required", "optional")

ANYTHING = ["*", {}]
"""What an input counts as whose definition says nothing."""

MEMBERS = 100
"""How many members an autogrow can have (`comfy_api/latest/_io.py` 0.30)."""


def holds_classes(object_info: Any) -> bool:
    """Whether it is what `/object_info` answers: an object with at least one class in it."""
    return isinstance(object_info, dict) and any(
        isinstance(entry, dict) and isinstance(entry.get("input"), dict)
        for entry in object_info.values()
    )


def sound(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """What `/object_info` answers, each member of the kind that ComfyUI's own nodes have.

    Packs leave members out, write `None`, or a text for a number, and their nodes run all the
    same: ComfyUI 0.30 passes on what they say (`server.py` node_info). An input that says nothing
    useful takes anything; what is no definition at all is left out. Sound ones stay as they are.
    """
    return {name: _class(entry) for name, entry in object_info.items() if isinstance(entry, dict)}


def _class(entry: Mapping[str, Any]) -> dict[str, Any]:
    made = {**entry, "output": _list(entry.get("output"))}
    if "input" in entry:
        given = _mapping(entry["input"])
        rest = {name: value for name, value in given.items() if name not in SECTIONS}
        made["input"] = {**_sections(given), **rest}
    if not isinstance(entry.get("display_name") or "", str):
        del made["display_name"]
    if (matches := entry.get("output_matchtypes")) is not None:
        made["output_matchtypes"] = [
            name if isinstance(name, str) else None for name in _list(matches)
        ]
    if (order := entry.get("input_order")) is not None:
        made["input_order"] = {
            section: [name for name in names if isinstance(name, str)]
            for section, names in _mapping(order).items()
            if isinstance(names, list)
        }
    return made


def _sections(definition: Any) -> dict[str, dict[str, Any]]:
    """`required` and `optional` inputs."""
    sections = _mapping(definition)
    return {
        name: {key: _input(raw) for key, raw in inputs.items()}
        for name in SECTIONS
        if isinstance(inputs := sections.get(name), dict)
    }


def _input(raw: Any) -> list[Any]:
    match raw:
        case [str() | list() as kind, dict() as options, *_]:
            made = _options(kind, options)
            return ANYTHING if made is None else [kind, made]
        case [str() | list() as kind, *_] if (made := _options(kind, {})) is not None:
            return [kind, made] if made else [kind]
        case _:
            return ANYTHING


def _options(kind: Any, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The options of an input; `None` where it cannot be known what it takes."""
    match kind:
        case "COMFY_AUTOGROW_V3":
            template = _template(_mapping(options.get("template")))
            return {**options, "template": template} if template else None
        case "COMFY_DYNAMICCOMBO_V3":
            return {**options, "options": _choices(options.get("options"))}
        case "COMFY_DYNAMICSLOT_V3":
            return {**options, "inputs": _sections(options.get("inputs"))}
        case _:
            bad = _bad_limits(options)
            if not isinstance(options.get("widgetType", ""), str):
                bad.append("widgetType")
            return _without(options, bad)


def _bad_limits(options: Mapping[str, Any]) -> list[str]:
    """Limits that are no numbers, or both where nothing lies between them."""
    given = [name for name in ("min", "max", "step") if name in options]
    bad = [name for name in given if not _is_number(options[name])]
    if not bad and "min" in given and "max" in given and options["min"] > options["max"]:
        return ["min", "max"]
    return bad


def _template(template: Mapping[str, Any]) -> dict[str, Any]:
    """The template of an autogrow; empty when its members cannot be known."""
    inputs = _sections(template.get("input"))
    names = [name for name in _list(template.get("names")) if isinstance(name, str)]
    if not any(inputs.values()) or not (names or isinstance(template.get("prefix"), str)):
        return {}
    made = {**_without(template, ["names"]), "input": inputs}
    if names:
        made["names"] = names
    else:
        made["max"] = _between(template.get("max"), MEMBERS)
    if "min" in template or not names:
        made["min"] = _between(template.get("min"), 1)
    return made


def _choices(raw: Any) -> list[dict[str, Any]]:
    """The choices of a dynamic combo, each with the inputs that it brings."""
    return [
        {**choice, "inputs": _sections(choice.get("inputs"))}
        for choice in _list(raw)
        if isinstance(choice, dict) and isinstance(choice.get("key"), str | int | float)
    ]


def _between(count: Any, otherwise: int) -> int:
    """The count of members that is meant, from none to `MEMBERS`."""
    return max(0, min(int(count), MEMBERS)) if _is_number(count) else otherwise


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _without(members: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


def _mapping(raw: Any) -> Mapping[str, Any]:
    return raw if isinstance(raw, dict) else {}


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []
