"""The places in generated files that are their author's, between marks."""

import re
from collections.abc import Iterator

BEGIN = re.compile(r"[ \t]*(?:#|<!--) begin: yours(?: -->)?\s*")
END = re.compile(r"[ \t]*(?:#|<!--) end: yours(?: -->)?\s*")


def carried(old: str, new: str) -> str:
    """The new text with what stands between the marks of the old one, place by place.

    Raises: `ValueError` for a mark without its twin, and where the old text has another number of
    places and something in one of them.
    """
    theirs = _places(old)
    if not any(theirs):
        return new
    if len(theirs) != len(_places(new)):
        raise ValueError(f"it has {len(theirs)} marked places, the new one {len(_places(new))}")
    result: list[str] = []
    for line, is_theirs in _lines(new):
        if not is_theirs:
            result.append(line)
        if BEGIN.fullmatch(line):
            result.append(theirs.pop(0))
    return "".join(result)


def skeleton(text: str) -> str:
    """The text without what is its author's. Raises: `ValueError` for a mark without its twin."""
    return "".join(line for line, is_theirs in _lines(text) if not is_theirs)


def _places(text: str) -> list[str]:
    """What stands in each place."""
    places: list[str] = []
    for line, is_theirs in _lines(text):
        if is_theirs:
            places[-1] += line
        elif BEGIN.fullmatch(line):
            places.append("")
    return places


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it stands between two marks."""
    inside = False
    for line in text.splitlines(keepends=True):
        if BEGIN.fullmatch(line):
            if inside:
                raise ValueError("two marks `begin: yours` stand without an end between them")
            inside = True
            yield line, False
        elif END.fullmatch(line):
            if not inside:
                raise ValueError("a mark `end: yours` has no beginning")
            inside = False
            yield line, False
        else:
            yield line, inside
    if inside:
        raise ValueError("a mark `begin: yours` has no end")
