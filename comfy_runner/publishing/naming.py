"""Names of a model's inputs: Python identifiers in lower case, made from labels and titles."""

import builtins
import keyword
import re
import unicodedata
from collections.abc import Collection

COMMON = ("seed", "output_format", "output_quality", "hf_token", "civitai_token", "timeout")
"""Inputs that a model may have besides those of its workflow."""

RESERVED = frozenset(
    {*COMMON, "self", "cls", "values", "results", "path", "l", *keyword.softkwlist}
    | {name for name in (*dir(builtins), *keyword.kwlist) if name.islower()}
)
"""What no input is called: what a predict.py needs itself, and what it would hide."""

LONGEST = 40
"""Characters of the longest name that is made; one that the author gives may be longer."""


def identifier(text: str) -> str:
    """The text as a snake_case identifier of ASCII; empty where it has no Latin letter."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"'s\b", "s", plain)
    plain = re.sub(r"([a-z0-9])([A-Z][a-z])", r"\1_\2", plain)
    words = re.findall(r"[a-z0-9]+", plain.lower())
    if not any(re.search("[a-z]", word) for word in words):
        return ""
    name = ""
    for word in words:
        longer = f"{name}_{word}" if name else word
        if len(longer) > LONGEST:
            break
        name = longer
    name = name or words[0][:LONGEST]
    return name if name[0].isalpha() else f"n{name}"


def is_usable(name: str) -> bool:
    """Whether an input may be called so."""
    return re.fullmatch("[a-z][a-z0-9_]*", name) is not None and name not in RESERVED


def free(name: str, prefix: str, taken: Collection[str]) -> str:
    """The name, or else one with the prefix, or a number behind it, that is usable and not taken.

    `name` and `prefix` are identifiers; both may be empty. A name that Python has itself, such as
    `object`, becomes `object_input`: `object_2` would make callers look for the first.
    """
    name = name or "value"
    if not prefix and name not in COMMON and not is_usable(name):
        name = f"{name}_input"
    longer = prefix if prefix.endswith(name) else f"{prefix}_{name}"
    for attempt in (name, longer if prefix and len(longer) <= LONGEST else name):
        if is_usable(attempt) and attempt not in taken:
            return attempt
    stem = name.rstrip("0123456789")
    digits = name.removeprefix(stem)
    stem, number = (stem, int(digits) + 1) if digits else (f"{name}_", 2)
    while not is_usable(made := f"{stem}{number}") or made in taken:
        number += 1
    return made
