"""Weights to the text of a manifest: stable, one readable entry after the other."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from comfy_runner.weights.manifests.schema import WEIGHT
from comfy_runner.weights.weight import Implication, Member, Source, Weight

WIDTH = 100
"""Columns that a written line should keep to."""


def write(
    weights: Iterable[Weight],
    groups: Mapping[str, Iterable[str]] | None = None,
    bases: Mapping[str, str] | None = None,
    *,
    schema: str = "",
) -> str:
    """The text of a manifest that `content` reads back as the same weights, groups and bases.

    Everything stays in the given order. Members that say nothing new are left out; a URL that
    starts at one of the bases is written so.
    """
    document = {
        **({"$schema": schema} if schema else {}),
        "version": 1,
        **({"bases": dict(bases)} if bases else {}),
        "weights": [entry_json(weight, bases) for weight in weights],
        **({"groups": {name: list(group) for name, group in groups.items()}} if groups else {}),
    }
    return f"{_pretty(document, 0)}\n"


def entry_json(weight: Weight, bases: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One entry as it stands in a manifest, with the members that say something."""
    spoken = _spoken(weight)
    spoken["urls"] = [_written(source, bases or {}) for source in weight.urls]
    for key in ("files", "implied_by"):
        if key in spoken:
            spoken[key] = [_spoken(part) for part in spoken[key]]
    return {key: spoken[key] for key in WEIGHT if key in spoken}


def _written(source: Source, bases: Mapping[str, str]) -> str | dict[str, Any]:
    members = {**_spoken(source), "url": _abbreviated(source.url, bases)}
    return members if len(members) > 1 else _abbreviated(source.url, bases)


def _abbreviated(url: str, bases: Mapping[str, str]) -> str:
    """The URL with the longest base that it starts with, where reading gives the same URL."""
    for name, base in sorted(bases.items(), key=lambda pair: -len(pair[1])):
        start = f"{base.rstrip('/')}/"
        rest = url.removeprefix(start)
        if rest not in ("", url) and not rest.startswith("/"):
            return f"{name}:{rest}"
    return url


def _spoken(part: Weight | Source | Member | Implication) -> dict[str, Any]:
    """The members whose value is not what is taken without them."""
    spoken: dict[str, Any] = {}
    for member in fields(part):
        value = getattr(part, member.name)
        if value != member.default:
            spoken[member.name] = value
    return spoken


def _pretty(value: Any, depth: int, before: int = 0) -> str:
    """JSON where whatever fits into a line has one, but for the file, its lists and its entries.

    `before` counts the columns that are taken in the first line.
    """
    flat = json.dumps(value, ensure_ascii=False)
    is_entry = depth == 2 and isinstance(value, dict)  # noqa: PLR2004 - below the file and a list
    fits = depth > 1 and not is_entry and before + len(flat) < WIDTH
    if fits or not value or not isinstance(value, dict | list):
        return flat
    margin, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict):
        keys = {f"{json.dumps(key, ensure_ascii=False)}: ": member for key, member in value.items()}
        lines = [f"{k}{_pretty(v, depth + 1, len(margin) + len(k))}" for k, v in keys.items()]
        opening, closing = "{", "}"
    else:
        lines = [_pretty(member, depth + 1, len(margin)) for member in value]
        opening, closing = "[", "]"
    body = ",\n".join(f"{margin}{line}" for line in lines)
    return f"{opening}\n{body}\n{end}{closing}"
