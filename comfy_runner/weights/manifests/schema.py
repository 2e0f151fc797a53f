"""What a weights manifest may hold: its members in order, and the JSON Schema made of them."""

import re
from collections.abc import Mapping
from typing import Any

RELATIVE = re.compile(r"(?!/)(?!.*(^|/)\.\.?(/|$))(?!.*//)[^\x00-\x1f\\\ud800-\udfff]+(?<!/)")
"""A path below some folder: no `.`, `..`, backslash or control character."""
HASH = re.compile(r"[0-9a-f]{64}")
LARGEST = 2**53 - 1
"""Largest whole number, which every reader of JSON keeps exactly."""

SCHEMA_PATH = RELATIVE.pattern.replace(r"\ud800-\udfff", "")
_TEXT: Mapping[str, Any] = {"type": "string"}
_COUNT: Mapping[str, Any] = {"type": "integer", "minimum": 1, "maximum": LARGEST}
_DIGEST: Mapping[str, Any] = {"type": "string", "pattern": f"^{HASH.pattern}$"}
_PATH: Mapping[str, Any] = {"type": "string", "pattern": f"^{SCHEMA_PATH}$"}
TOP: Mapping[str, Any] = {
    "$schema": _TEXT,
    "version": {"const": 1},
    "bases": {
        "type": "object",
        "additionalProperties": {"type": "string", "pattern": "^https?://"},
    },
    "weights": {"type": "array", "items": {"$ref": "#/$defs/weight"}},
    "groups": {"type": "object", "additionalProperties": {"type": "array", "items": _TEXT}},
}
MEMBER: Mapping[str, Any] = {
    "path": _PATH,
    "size": {"type": "integer", "minimum": 0, "maximum": LARGEST},
    "sha256": _DIGEST,
}
IMPLICATION: Mapping[str, Any] = {
    "class_type": {"type": "string", "minLength": 1},
    "input": _TEXT,
    "equals": {"type": ["string", "number", "boolean"]},
    "contains": _TEXT,
}
SOURCE: Mapping[str, Any] = {
    "url": {"type": "string", "minLength": 1},
    "auth": {"enum": ["none", "hf", "civitai", "bearer_env"], "default": "none"},
    "env": _TEXT,
    "extract": {"enum": ["tar", "zip"]},
    "member": _TEXT,
    "strip": {"type": "integer", "minimum": 0, "maximum": LARGEST},
    "size": _COUNT,
    "sha256": _DIGEST,
}
WEIGHT: Mapping[str, Any] = {
    "name": _PATH,
    "folders": {"type": "array", "minItems": 1, "uniqueItems": True, "items": _PATH},
    "kind": {"enum": ["file", "dir"], "default": "file"},
    "urls": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/source"}},
    "size": _COUNT,
    "sha256": _DIGEST,
    "files": {"type": "array", "items": {"$ref": "#/$defs/member"}},
    "aliases": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "implied_by": {"type": "array", "items": {"$ref": "#/$defs/implication"}},
    "license": _TEXT,
    "license_url": {"type": "string", "pattern": "^https?://"},
    "non_commercial": {"type": "boolean"},
    "gated": {"type": "boolean"},
    "air": {"type": "string", "pattern": "^urn:air:"},
    "note": _TEXT,
}
"""Each table gives an object's members, in the order in which they are written."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a manifest, for editors.

    It knows nothing of what spans several members, such as two weights of one name.
    """
    source = _closed(SOURCE, "url")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Weights manifest of comfy_runner",
        **_closed(TOP, "version", "weights"),
        "$defs": {
            "weight": _closed(WEIGHT, "name", "folders", "urls"),
            "source": {"oneOf": [SOURCE["url"], source]},
            "member": _closed(MEMBER, "path"),
            "implication": _closed(IMPLICATION, "class_type"),
        },
    }


def _closed(members: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": dict(members),
    }
