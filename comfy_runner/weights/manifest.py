"""The weights manifest: which files there are, what else they are called, and who is meant."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from comfy_runner.weights.manifests.document import read
from comfy_runner.weights.names import Names
from comfy_runner.weights.references import AskedWeight, Reference, normalised
from comfy_runner.weights.resolving import (
    Found,
    Hints,
    Listing,
    Missing,
    OnDisk,
    Resolution,
    hints_by_name,
    resolve,
)
from comfy_runner.weights.weight import Implication, Source, Weight, human_size, map_legacy

__all__ = [
    "AskedWeight",
    "Found",
    "Hints",
    "Implication",
    "Listing",
    "Manifest",
    "Missing",
    "OnDisk",
    "Reference",
    "Resolution",
    "Source",
    "Weight",
    "hints_by_name",
    "human_size",
    "map_legacy",
    "normalised",
    "vae_approx_names",
]

IMAGE_TAES = frozenset({"taesd", "taesdxl", "taesd3", "taef1", "taef2"})
VIDEO_TAES = ("taehv", "lighttaew2_2", "lighttaew2_1", "lighttaehy1_5", "taeltx_2")
"""The small autoencoders of `VAELoader` in nodes.py, 0.30.0."""


@dataclass(frozen=True)
class Manifest:
    """All known weights."""

    weights: tuple[Weight, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name to weights, as `folder/name`, that are fetched together ahead of any run."""

    @classmethod
    def parse(cls, document: str | bytes | Mapping[str, Any]) -> Self:
        """The manifest in a JSON text or in what was decoded from one.

        Raises: `InvalidInput`, naming every fault of every entry.
        """
        weights, groups = read(document)
        return cls(weights, groups)

    @cached_property
    def _by_class(self) -> dict[str, list[tuple[Implication, Weight]]]:
        index: dict[str, list[tuple[Implication, Weight]]] = {}
        for weight in self.weights:
            for implication in weight.implied_by:
                index.setdefault(implication.class_type, []).append((implication, weight))
        return index

    @cached_property
    def _names(self) -> Names:
        return Names(self.weights)

    def implied(self, class_type: str, inputs: Mapping[str, Any]) -> tuple[Weight, ...]:
        """The weights that a node loads without naming them."""
        found = {w: None for hint, w in self._by_class.get(class_type, ()) if hint.holds(inputs)}
        return tuple(found)

    def stands_for_others(self, class_type: str, input_name: str, name: str) -> bool:
        """Whether exactly this name in the input of a class makes it load weights by other names.

        What a node loads besides, whatever the input says, tells nothing of the name.
        """
        return any(
            hint.input in (None, input_name) and hint.equals == name
            for hint, _ in self._by_class.get(class_type, ())
        )

    def resolve(
        self,
        reference: Reference,
        on_disk: Listing,
        *,
        hints: Hints | None = None,
        folders: Collection[str] = (),
        suggest: bool = True,
    ) -> Resolution:
        """Which file a reference means; never one that is merely similar.

        First match wins: an address, a file on disk, exact name, alias, what the workflow's own
        `hints` (see `hints_by_name`) say, base name, name without regard to case, and at last a
        repository that is written like a path. Where a step finds several files, the reference is
        ambiguous. The hash of a hint must be that of the manifest's file; its URL counts only for
        a name that the manifest does not have. A text that may be no model's name at all is never
        rewritten: only what has exactly that name counts. `folders` are the model folders to look
        in for a reference that knows none. Without `suggest`, similar names are not looked for.
        """
        return resolve(
            self._names, reference, on_disk, hints=hints or {}, folders=folders, suggest=suggest
        )


def vae_approx_names(listing: Iterable[str]) -> frozenset[str]:
    """The names that `VAELoader` offers besides the folder `vae`, given the one of `vae_approx`.

    As `VAELoader.vae_list` in nodes.py, 0.30.0: an image autoencoder has two files and is offered
    by its bare name once both are there, a video one by its file's name, `pixel_space` always.
    """
    names = {"pixel_space"}
    halves: set[tuple[str, str]] = set()
    for file in listing:
        name, _, rest = file.partition("_")
        if rest and name in IMAGE_TAES:
            halves |= {
                (name, half) for half in ("encoder", "decoder") if rest.startswith(f"{half}.")
            }
        elif file.startswith(VIDEO_TAES):
            names.add(file)
    return frozenset(names | {n for n in IMAGE_TAES if {(n, "encoder"), (n, "decoder")} <= halves})
