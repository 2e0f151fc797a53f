"""Values as Python literals: those of a signature as Cog reads them off, and all others."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from comfy_runner.publishing.interface import Param

WIDTH = 100
"""Characters of the longest line, as the project's formatter has it."""

ONE, THREE = ('"', "'"), ('"""', "'''")
"""Quotes, in the order in which ruff wants them."""

INDENTED = re.compile(r"\n *\t")
"""A tab where ruff takes it for the indentation of code (E101)."""

OURS = re.compile(r"\n[ \t]*(#|<!--) (begin: yours|end: yours|choices from )")
"""A line in a text that would count as one of the generated file's own (`marks`, `predictor`)."""

JOINERS = "\u200c\u200d"
"""Characters without a shape of their own that words and pictograms are made with."""


def signature_text(value: str) -> str | None:
    """The text as a literal between whose quotes it stands as it is, as Cog wants it.

    None where there is none: characters that cannot be seen, quotes and backslashes of all kinds,
    or lines like the marks of generated files. The quotes are those that ruff's formatter leaves.
    """
    if not all(map(_is_plain, value)) or INDENTED.search(value) or OURS.search(value):
        return None
    if "\\" in value:
        # Of three quotes behind an r Cog sees only one.
        fits = "\n" not in value and (len(value) - len(value.rstrip("\\"))) % 2 == 0
        bare = re.sub(r"\\.", "", value)
        quote = next((each for each in ONE if fits and each not in bare), None)
        return f"r{quote}{value}{quote}" if quote else None
    if "\n" not in value and (quote := next((q for q in ONE if q not in value), None)):
        return f"{quote}{value}{quote}"
    quote = next((q for q in THREE if q not in value and not value.endswith(q[0])), None)
    return f"{quote}{value}{quote}" if quote else None


def signature_value(value: Any) -> str | None:
    """A text, number or truth value as Cog reads it off a signature; None where it cannot be."""
    match value:
        case str():
            return signature_text(value)
        case bool():
            return repr(value)
        case int() if -(2**63) <= value < 2**63:
            return str(value)
        case float() if math.isfinite(value):
            return _short(value)
    return None


def settled(param: Param) -> Param:
    """The same with a description, a default and choices that literals can hold.

    A default that none can hold, or that is outside the limits or choices, is left out, as are the
    choices where one of them is of that kind.
    """
    description = _one_line(param.description)
    choices = param.choices
    if choices is not None and (not choices or None in map(signature_value, choices)):
        choices = None
    default = None if param.blank or param.required else param.default
    fits = signature_value(default) is not None and (choices is None or default in choices)
    if isinstance(default, int | float):
        low, high = param.minimum, param.maximum
        fits = fits and (low is None or low <= default) and (high is None or default <= high)
    blank = param.blank or not (param.required or fits)
    return replace(
        param,
        description=description,
        choices=choices,
        choices_from=param.choices_from if choices is not None else "",
        default=None if blank else default,
        blank=blank,
    )


def written(value: Any, indent: int, used: int) -> str:
    """Any JSON value as Python writes it, over several lines where one is too short.

    `indent` is that of the line on which it begins, `used` the characters that stand around it.
    """
    if isinstance(value, str):
        return signature_text(value) or _escaped(value)
    flat = _flat(value)
    if not isinstance(value, Mapping | Sequence) or not value:
        return flat
    if is_short(flat, indent + used):
        return flat
    inner = indent + 4
    if isinstance(value, Mapping):
        lines = []
        for key, each in value.items():
            name = _flat(key)
            text = _flat(each) if isinstance(each, str) else written(each, inner, len(name) + 3)
            lines.append(f"{name}: {text}")
        return exploded("{", lines, "}", indent)
    items = [_flat(each) if isinstance(each, str) else written(each, inner, 1) for each in value]
    return exploded("[", items, "]", indent)


def one_line(text: str) -> str:
    """Any text as Python writes it on one line."""
    return _flat(text)


def listed(items: Sequence[str], indent: int, used: int) -> str:
    """A list of literals, over several lines where one is too short; see `written`."""
    flat = f"[{', '.join(items)}]"
    return flat if is_short(flat, indent + used) else exploded("[", items, "]", indent)


def is_short(code: str, used: int) -> bool:
    """Whether a piece of code surely fits on a line on which so many characters are used.

    Beyond ASCII, and with tabs, what counts as the width of a character is the formatter's affair.
    """
    return code.isascii() and not re.search(r"[\n\t]", code) and used + len(code) <= WIDTH


def exploded(begin: str, items: Iterable[str], end: str, indent: int) -> str:
    """What stands in brackets with a line for each item."""
    return "".join(
        [begin, *(f"\n{' ' * (indent + 4)}{item}," for item in items), f"\n{' ' * indent}{end}"]
    )


def _short(number: float) -> str:
    return repr(number).replace("e+", "e")


def _is_plain(char: str) -> bool:
    return char.isprintable() or char in f"\n\t{JOINERS}" or (unicodedata.category(char) == "Zs")


def _one_line(text: str) -> str:
    """A sentence as a signature can hold it."""
    line = " ".join(text.split())
    line = "".join(char for char in line if _is_plain(char))
    if signature_text(line) is None:
        line = line.replace("\\", "/").replace('"', "'")
    return line


def _flat(value: Any) -> str:
    """A value on one line."""
    match value:
        case str():
            is_plain = not re.search(r"[\n\t]", value)
            return (is_plain and signature_text(value)) or _escaped(value)
        case Mapping():
            return f"{{{', '.join(f'{_flat(key)}: {_flat(each)}' for key, each in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(_flat, value))}]"
        case float():
            return _short(value) if math.isfinite(value) else f'float("{value}")'
    return repr(value)


def _escaped(text: str) -> str:
    """A text with escapes, in the quotes that need fewer of them."""
    quote = "'" if text.count('"') > text.count("'") else '"'

    def one(char: str) -> str:
        if char in (quote, "\\"):
            return f"\\{char}"
        return char if _is_plain(char) and char not in "\n\t" else repr(char)[1:-1]

    return f"{quote}{''.join(map(one, text))}{quote}"
