"""Texts that the editor changes when it sends them: `{a|b}` and `%...%`.

Rules are those of the front end 1.47.12 (`packages/shared-frontend-utils/src/formatUtil.ts`,
`utils/searchAndReplace.ts`).
"""

import hashlib
import re
from collections.abc import Callable
from datetime import datetime

SAVERS = frozenset(
    {"SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM"}
    | {"SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveAnimatedPNG"}
    | {"SaveGLB", "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud", "SaveLatent"}
    | {"CLIPSave", "VAESave", "ModelSave", "LoraSave"}
)
"""Classes whose `filename_prefix` has its `%...%` replaced (`extensions/core/`
saveImageExtraOutput.ts`)."""

COMMENT = re.compile(r"/\*|//[^\n\r\u2028\u2029]*")
"""Where a comment begins in a dynamic prompt, in addresses such as `http://...` too."""

DYNAMIC_MARKS = ("{", "\\", "//", "/*")
"""What a text must hold for `expand` to change it."""

PLACEHOLDER = re.compile(r"%([^%]+)%")
DATE_PART = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")
UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
"""Characters that become `_`, so that a value can stand in a file name."""


class Dice:
    """Choices that follow from a seed and a place, the same on every machine."""

    def __init__(self, seed: int, place: str) -> None:
        self._key = f"{seed}\0{place}\0"
        self._rolled = 0

    def below(self, count: int) -> int:
        """A number from 0 up to `count`, each as likely as the others."""
        self._rolled += 1
        digest = hashlib.sha256(f"{self._key}{self._rolled}".encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest()) % count


def expand(text: str, dice: Dice) -> str:
    """A dynamic prompt with one of each `{a|b}` chosen, nested ones too, and without comments.

    `{one}` loses its braces, a missing `}` ends at the text's end, and `\\{`, `\\}`, `\\|` stand
    for the characters. A text that ends in a lone backslash keeps it; the front end adds
    "undefined".
    """
    text = _without_comments(text)
    # Each open brace is a list of finished options, the last of which is being written.
    open_braces: list[list[list[str]]] = [[[]]]
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        top = open_braces[-1]
        if character == "\\" and position < len(text):
            following = text[position]
            position += 1
            top[-1].append(following if following in "{}|" else character + following)
        elif character == "{":
            open_braces.append([[]])
        elif character == "|" and len(open_braces) > 1:
            top.append([])
        elif character == "}" and len(open_braces) > 1:
            _close(open_braces, dice)
        else:
            top[-1].append(character)
    while len(open_braces) > 1:
        _close(open_braces, dice)
    return "".join(open_braces[0][-1])


def _without_comments(text: str) -> str:
    """The text without `//...` and `/*...*/`; a `/*` that nothing closes stays."""
    kept: list[str] = []
    position = copied = 0
    # Where the last comment can end: without it, each of many open ones would search to the end.
    last_end = text.rfind("*/")
    while (match := COMMENT.search(text, position)) is not None:
        start, position = match.span()
        if match.group() == "/*":
            if last_end < position:
                position = start + 1
                continue
            position = text.index("*/", position) + len("*/")
        kept.append(text[copied:start])
        copied = position
    return "".join([*kept, text[copied:]])


def _close(open_braces: list[list[list[str]]], dice: Dice) -> None:
    options = open_braces.pop()
    chosen = options[dice.below(len(options))] if len(options) > 1 else options[0]
    open_braces[-1][-1].append("".join(chosen))


def replace(text: str, now: datetime, value_of: Callable[[str, str], object]) -> str:
    """The text with `%date:FORMAT%` and `%Node.widget%` written out; other `%...%` stay.

    `value_of` gives the value of a node's widget, and raises `KeyError` where there is none.
    """

    def written(match: re.Match[str]) -> str:
        inside = match.group(1)
        node, *widget = inside.split(".")
        if len(widget) != 1:
            return _date(node[5:], now) if node.startswith("date:") else match.group()
        try:
            value = value_of(node, widget[0])
        except KeyError:
            return match.group()
        return UNSAFE.sub("_", _as_text(value))

    return PLACEHOLDER.sub(written, text)


def _date(form: str, now: datetime) -> str:
    numbers = {
        "d": now.day,
        "M": now.month,
        "h": now.hour,
        "m": now.minute,
        "s": now.second,
        "yy": now.year % 100,
        "yyyy": now.year,
    }

    def written(match: re.Match[str]) -> str:
        part = match.group()
        number = numbers.get(part, numbers.get(part[0]))
        return part if number is None else f"{number:0{len(part)}d}"

    return DATE_PART.sub(written, form)


def _as_text(value: object) -> str:
    """A value as JavaScript writes it."""
    parts: list[str] = []
    waiting = [value]
    while waiting:
        match waiting.pop():
            case [*items] if items:
                waiting += reversed(items)
            case None | []:
                parts.append("")
            case bool(value):
                parts.append("true" if value else "false")
            case dict():
                parts.append("[object Object]")
            case float(value) if value.is_integer():
                parts.append(str(int(value)))
            case value:
                parts.append(str(value))
    return ",".join(parts)
