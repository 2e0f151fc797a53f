"""What is right: looks at the answers to the soak's requests, down to pixels and words."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

Colour = tuple[int, ...]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Answer:
    """What a caller got."""

    status: str
    """`succeeded`, `failed`, `canceled`, `refused` by the schema, `gone` where nobody listened."""
    files: tuple[bytes, ...] = ()
    error: str = ""


Judge = Callable[[Answer], str]
"""Says what is wrong with an answer; empty when nothing is."""


@dataclass
class Pictures:
    """The first sampled picture of each kind, which every later one has to equal."""

    known: dict[tuple[object, ...], bytes] = field(default_factory=dict)

    def judge(self, *kind: object) -> Judge:
        """Whether the answer has the one picture of this kind, pixel for pixel."""

        def judged(answer: Answer) -> str:
            if wrong := produced(answer, 1):
                return wrong
            pixels = opened(answer.files[0]).tobytes()
            if pixels != self.known.setdefault(kind, pixels):
                return f"another picture than the first one of {kind}"
            twins = [other for other, seen in self.known.items() if seen == pixels]
            return f"the same picture for {twins}" if twins[1:] else ""

        return judged


def produced(answer: Answer, count: int) -> str:
    """Empty when the answer is a success with so many files."""
    if answer.status != "succeeded":
        return f"{answer.status}: {answer.error}"
    return "" if len(answer.files) == count else f"{len(answer.files)} files instead of {count}"


def painted(colour: Colour, size: tuple[int, int], tolerance: int = 0, margin: int = 0) -> Judge:
    """Whether the answer is one picture of one colour, as far as `tolerance` allows.

    `margin` is how many pixels of its edge are not looked at.
    """

    def judged(answer: Answer) -> str:
        if wrong := produced(answer, 1):
            return wrong
        picture = opened(answer.files[0])
        if picture.size != size:
            return f"a picture of {picture.size} instead of {size}"
        inner = (margin, margin, size[0] - margin, size[1] - margin)
        extremes = picture.crop(inner).getextrema()
        for wanted, (low, high) in zip(colour, extremes, strict=True):
            if low < wanted - tolerance or high > wanted + tolerance:
                return f"colours {extremes} instead of {colour}"
        return ""

    return judged


def written(text: str) -> Judge:
    """Whether the answer is this text alone."""
    wanted = (text.encode(),)
    return lambda answer: (
        produced(answer, 1)
        or ("" if answer.files == wanted else f"{answer.files} instead of {wanted}")
    )


def fails(*says: str, status: str = "failed") -> Judge:
    """Whether the answer has this status, no file, and an error that says all of these."""

    def judged(answer: Answer) -> str:
        missing = [part for part in says if part not in answer.error]
        if answer.status != status or answer.files:
            told = f"{answer.status} with {len(answer.files)} files: {answer.error}"
            return f"{told}, instead of {status}"
        if missing:
            return f"the error does not say {missing}: {answer.error!r}"
        return "a traceback in the error" if "Traceback" in answer.error else ""

    return judged


def either(first: Judge, second: Judge) -> Judge:
    """Whether the answer is right for one of the two."""
    return lambda answer: first(answer) and second(answer) and f"{first(answer)}; {second(answer)}"


def opened(content: bytes) -> Image.Image:
    """The picture, decoded, as RGB."""
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB")


def is_gone(answer: Answer) -> str:
    """Empty for a caller that has gone away."""
    return "" if answer.status == "gone" else f"{answer.status}: {answer.error}"
