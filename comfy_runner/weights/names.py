"""The names of all known weights: indexed, and those that look like one that nobody knows."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import PurePosixPath

from comfy_runner.weights.references import LONGEST_NAME
from comfy_runner.weights.weight import Weight

LEAST_SIMILARITY = 0.6
"""Share of equal letters from which a name is suggested."""
MOST = 3
"""How many names are suggested."""
OTHERS = "url/"
"""Where in each model folder the weights stand that callers gave addresses of: nobody else's
business."""

_Index = Mapping[tuple[str | None, str], tuple[Weight, ...]]


class Names:
    """The names of all known weights, indexed once."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._weights = weights

    @cached_property
    def exact(self) -> _Index:
        """Weights by folder and name, and by name alone (folder None); so are the others."""
        return _index(self._weights, lambda weight: [weight.name])

    @cached_property
    def aliases(self) -> _Index:
        """By their other names."""
        return _index(self._weights, lambda weight: weight.aliases)

    @cached_property
    def bases(self) -> _Index:
        """By name without folders."""
        return _index(self._weights, lambda weight: [base_name(weight.name)])

    @cached_property
    def folded(self) -> _Index:
        """By name in small letters."""
        return _index(self._weights, lambda weight: [weight.name.casefold()])

    @cached_property
    def _known(self) -> list[tuple[str, Weight]]:
        return [(essence(weight.name), weight) for weight in self._weights]

    def nearest(self, folder: str | None, name: str, listed: Collection[str]) -> list[str]:
        """At most three similar names, with folder and size; the folder's own files come first.

        `listed` are the folder's files on disk.
        """
        if len(name) > LONGEST_NAME:
            return []
        wanted = essence(name)
        rated = []
        known = set()
        for other, weight in self._known:
            same_folder = folder in weight.folders
            if same_folder:
                known.add(weight.name)
            if rating := similarity(wanted, other):
                rated.append((rating + (0.02 if same_folder else 0), weight.described))
        for entry in listed:
            if entry in known or entry.startswith(OTHERS):
                continue
            if rating := similarity(wanted, essence(entry)):
                rated.append((rating + 0.02, f"{folder}/{entry} (on disk)"))
        rated.sort(key=lambda pair: (-pair[0], pair[1]))
        return [described for _, described in rated[:MOST]]


def base_name(name: str) -> str:
    """A name without its folders."""
    return name.rpartition("/")[2]


def essence(name: str) -> str:
    """A name without what people spell differently: folder, extension, separators, case."""
    return re.sub(r"[^a-z0-9]", "", PurePosixPath(name).stem.lower())


def similarity(wanted: str, other: str) -> float:
    """Share of equal letters, 0..1; 0 for less than `LEAST_SIMILARITY`."""
    both = len(wanted) + len(other)
    # The cheap upper bounds come first: the true ratio takes a hundred times as long.
    if 2 * min(len(wanted), len(other)) < LEAST_SIMILARITY * both or not both:
        return 0
    matcher = SequenceMatcher(None, other, wanted, autojunk=False)
    if matcher.quick_ratio() < LEAST_SIMILARITY:
        return 0
    ratio = matcher.ratio()
    return ratio if ratio >= LEAST_SIMILARITY else 0


def _index(weights: Iterable[Weight], keys: Callable[[Weight], Iterable[str]]) -> _Index:
    """Weights by folder and key, and by key alone (folder None)."""
    index: dict[tuple[str | None, str], tuple[Weight, ...]] = {}
    for weight in weights:
        for key in keys(weight):
            for folder in (*weight.folders, None):
                found = index.get((folder, key), ())
                # All keys of one weight come in a row; to compare weights takes long.
                if not found or found[-1] is not weight:
                    index[folder, key] = (*found, weight)
    return index
