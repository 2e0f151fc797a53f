"""How long a start takes, phase by phase."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

SHOWN_PACKS = 5
"""How many node packs a line names before it only counts them, the slowest first."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a start; its moments are those of `time.monotonic`."""

    name: str
    began: float
    ended: float
    parts: tuple["Phase", ...] = ()
    """The node packs that began to load in it, in their order, each under its folder's name."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    def __str__(self) -> str:
        """Such as `nodes 2.31 s (node packs: one 1.20 s, two 0.30 s, 12 more 0.40 s)`."""
        text = f"{self.name} {self.seconds:.2f} s"
        if not self.parts:
            return text
        slowest = sorted(self.parts, key=lambda part: -part.seconds)
        told = [str(part) for part in slowest[:SHOWN_PACKS]]
        if rest := slowest[SHOWN_PACKS:]:
            told.append(f"{len(rest)} more {sum(part.seconds for part in rest):.2f} s")
        return f"{text} (node packs: {', '.join(told)})"


def boot_phases(
    began: float, ends: Sequence[tuple[str, float]], packs: Sequence[tuple[str, float]]
) -> tuple[Phase, ...]:
    """The phases of a boot that are over, each beginning where the one before ends.

    `ends` has the name and end of each, `packs` which node pack began to load when, or with an
    empty name when the one before was loaded; all in their order, from the moment `began`.
    """
    loaded = [Phase(pack, start, end) for (pack, start), (_, end) in pairwise(packs) if pack]
    phases = []
    for name, ended in ends:
        parts = tuple(pack for pack in loaded if began <= pack.began < ended)
        phases.append(Phase(name, began, ended, parts))
        began = ended
    return tuple(phases)


class Timeline:
    """When what began and ended, whichever thread did it."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float | None]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens within is a phase of this name; of several the last counts."""
        began = time.monotonic()
        self._spans[name] = (began, None)
        try:
            yield
        finally:
            self._spans[name] = (began, time.monotonic())

    def timed[**Given, Result](
        self, name: str, work: Callable[Given, Result]
    ) -> Callable[Given, Result]:
        """The same work as a phase of this name, to be done by whoever calls it."""

        def do(*given: Given.args, **named: Given.kwargs) -> Result:
            with self.phase(name):
                return work(*given, **named)

        return do

    def phases(self) -> tuple[Phase, ...]:
        """The phases that are over, in the order in which they began."""
        spans = sorted(self._spans.items(), key=lambda span: span[1][0])
        return tuple(Phase(name, began, end) for name, (began, end) in spans if end is not None)

    def lines(self, boot: Sequence[Phase], since: float) -> list[str]:
        """Each phase in words, with its seconds: those of the `boot`, the others, and all in all.

        What is still under way is told as that. All of it began at the moment `since`.
        """
        now = time.monotonic()
        waiting = [
            f"{name} is still under way, after {now - began:.2f} s"
            for name, (began, end) in list(self._spans.items())
            if end is None
        ]
        ready = boot[-1].ended if boot else since
        others = [
            f"{phase}{', while ComfyUI started' if phase.ended <= ready else ''}"
            for phase in self.phases()
        ]
        return [*map(str, boot), *others, *waiting, f"{now - since:.2f} s in all"]
