"""JavaScript's regular expressions, by which an author says what a sender sends to."""

import re
from typing import NamedTuple

LONGEST = 500
"""Characters up to which a pattern is read."""

PART = re.compile(r"\\.|\(\?<(?![=!])|.", re.DOTALL)


class Pattern(NamedTuple):
    """What a text must match, or must not."""

    regex: re.Pattern[str]
    inverted: bool = False

    def passes(self, text: str) -> bool:
        """Whether a text is as the pattern wants it."""
        return (self.regex.search(text) is None) is self.inverted


NEVER_PASSES = Pattern(re.compile("(?!)"))


def read(text: str) -> Pattern | None:
    """The pattern that a text spells, or `None` where it cannot be read."""
    if len(text) > LONGEST:
        return None
    try:
        return Pattern(re.compile(_translated(text), re.ASCII))
    except (re.error, OverflowError, RecursionError):
        return None


def _translated(text: str) -> str:
    """A JavaScript pattern in Python's spelling."""
    written: list[str] = []
    in_class = False
    for part in PART.findall(text):
        if in_class:
            in_class = part != "]"
            written.append(f"\\{part}" if part in "[&~|" else part)
        else:
            in_class = part == "["
            written.append("(?P<" if part == "(?<" else part)
    return "".join(written)
