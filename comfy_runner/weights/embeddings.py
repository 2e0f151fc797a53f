"""The embeddings that a text names as `embedding:NAME`, read as ComfyUI's text encoders do."""

import re
from collections.abc import Iterator

TOKEN = "embedding:"  # noqa: S105 - no password
DEEPEST = 50
"""How deep parentheses are looked into."""


def embedding_names(text: str) -> list[str]:
    """The names that a text encoder loads for a text, without regard to which encoder it is.

    As `tokenize_with_weights` in comfy/sd1_clip.py, 0.30.0: `embedding:NAME` counts at the start
    and after white space, of the text and of each pair of parentheses, whose weight (`:1.2`) is
    taken off before. A name ends at white space, `<` or `[`; commas around it do not belong to it.
    """
    hidden = text.replace("\\(", "\ue000").replace("\\)", "\ue001")
    names = []
    for part in _unweighted(hidden):
        words = re.split(rf"(?<=\s){TOKEN}", part.replace("\ue000", "(").replace("\ue001", ")"))
        first, *rest = words
        if first.startswith(TOKEN):
            rest.insert(0, first.removeprefix(TOKEN))
        for word in rest:
            name = re.split(r"[<\[]", (word.strip("\n").split() or [""])[0], maxsplit=1)[0]
            names.append(name.strip(","))
    return [name for name in dict.fromkeys(names) if name]


def with_embedding(text: str, old: str, new: str) -> str:
    """The text with another name in its `embedding:OLD` tokens; parentheses may be escaped."""
    escaped = [name.replace("(", "\\(").replace(")", "\\)") for name in (old, new)]
    ways = "|".join(re.escape(name) for name in dict.fromkeys([old, escaped[0]]))
    pattern = rf"(?<![^\s(])({TOKEN},*)(?:{ways})(?=,*(?:[\s<\[:()]|$))"
    return re.sub(pattern, lambda found: found[1] + escaped[1], text)


def _unweighted(text: str) -> Iterator[str]:
    """The parts of a text, from left to right, without its parentheses and their weights."""
    waiting = [(text, 0)]
    while waiting:
        part, depth = waiting.pop()
        inner = []
        for piece in _pieces(part):
            whole = depth < DEEPEST and piece[0] == "(" and piece[-1] == ")"
            inner.append((_without_weight(piece[1:-1]), depth + 1) if whole else (piece, -1))
        if inner == [(part, -1)] or depth < 0:
            yield part
        else:
            waiting += reversed(inner)


def _pieces(text: str) -> Iterator[str]:
    """Each pair of parentheses that is in no other, and what stands between them."""
    start = depth = 0
    for found in re.finditer(r"[()]", text):
        if found[0] == "(":
            if depth == 0 and found.start() > start:
                yield text[start : found.start()]
                start = found.start()
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                yield text[start : found.end()]
                start = found.end()
    if start < len(text):
        yield text[start:]


def _without_weight(text: str) -> str:
    """The inside of a pair of parentheses without its `:1.2`."""
    before, colon, weight = text.rpartition(":")
    try:
        float(weight)
    except ValueError:
        return text
    return before if colon and before else text
