"""The weights manifest: which files there are, what else they are called, and who is meant."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Self

from comfy_runner.errors import Problem
from comfy_runner.weights.manifest_format import read
from comfy_runner.weights.weight import Implication, Source, Weight, map_legacy

__all__ = [
    "Found",
    "Implication",
    "Manifest",
    "Missing",
    "OnDisk",
    "Reference",
    "Resolution",
    "Source",
    "Weight",
    "map_legacy",
    "vae_approx_names",
]

IMAGE_TAES = frozenset({"taesd", "taesdxl", "taesd3", "taef1", "taef2"})
VIDEO_TAES = ("taehv", "lighttaew2_2", "lighttaew2_1", "lighttaehy1_5", "taeltx_2")
"""The small autoencoders of `VAELoader` in nodes.py, 0.30.0."""
GENERIC = frozenset(
    [
        "adapter_model",
        "diffusion_pytorch_model",
        "ip-adapter",
        "ip_adapter",
        "lora",
        "model",
        "pytorch_lora_weights",
        "pytorch_model",
    ]
)
"""Base names that many different models share: only their sub-folder tells them apart."""

LEAST_SIMILARITY = 0.6
"""Share of equal letters from which a name is suggested."""

Listing = Callable[[str], Collection[str]]
"""Model folder to the names of the files in it, as ComfyUI lists them."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model name in a node."""

    node_id: str
    title: str
    class_type: str
    input: str
    folder: str | None
    """Model folder that the input lists; None where it is not known."""
    name: str


@dataclass(frozen=True, slots=True)
class OnDisk:
    """The file is there already."""

    name: str
    """The name that must stand in the graph."""


@dataclass(frozen=True, slots=True)
class Found:
    """The manifest has the file."""

    weight: Weight
    """The weight as it must be installed: its `name` may be the path that the workflow asks for."""
    rewritten_to: str | None = None
    """The name that must stand in the graph; None when the workflow's own is right."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Neither disk nor manifest has the file, or more than one is meant."""

    problem: Problem
    """Its code is `unknown_model`, `ambiguous_model`, `bad_model_name` or `unsupported_weight`."""


Resolution = OnDisk | Found | Missing


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
    def _steps(self) -> tuple["_Index", "_Index", "_Index", "_Index"]:
        """Exact names, aliases, base names, names without regard to case."""
        return (
            _index(self.weights, lambda weight: [weight.name]),
            _index(self.weights, lambda weight: weight.aliases),
            _index(self.weights, lambda weight: [PurePosixPath(weight.name).name]),
            _index(self.weights, lambda weight: [weight.name.casefold()]),
        )

    def implied(self, class_type: str, inputs: Mapping[str, Any]) -> tuple[Weight, ...]:
        """The weights that a node loads without naming them."""
        found = {w: None for hint, w in self._by_class.get(class_type, ()) if hint.holds(inputs)}
        return tuple(found)

    def resolve(  # noqa: PLR0911 - one return for each step, in their order
        self, reference: Reference, on_disk: Listing
    ) -> Resolution:
        """Which file a reference means; never one that is merely similar.

        First match wins: on disk, exact name, alias, base name, name without regard to case. Where
        a step finds several files, the reference is ambiguous.
        """
        name = normalised(reference.name)
        if name is None:
            return Missing(_problem(reference, "bad_model_name", *BAD_NAME))
        folder = map_legacy(reference.folder) if reference.folder else None
        listed = on_disk(folder) if folder else ()
        for spelling in (reference.name, name):
            if spelling in listed:
                return OnDisk(spelling)
        exact, aliases, bases, folded = self._steps
        own_name = name if name != reference.name else None
        if found := exact.get((folder, name)):
            return self._one(reference, found, own_name)
        if found := aliases.get((folder, name)):
            return self._one(reference, found, found[0].name)
        base = PurePosixPath(name)
        if base.stem.lower() not in GENERIC and (found := bases.get((folder, base.name))):
            # ComfyUI compares the whole relative path, so the file goes where the workflow says.
            return self._one(reference, found, own_name, install_as=name)
        alike = {entry for entry in listed if entry.casefold() == name.casefold()}
        found = folded.get((folder, name.casefold()), ())
        if found and not alike:
            return self._one(reference, found, found[0].name)
        if len(alike) == 1 and {weight.name for weight in found} <= alike:
            return OnDisk(alike.pop())
        return Missing(self._unknown(reference, folder, name, listed))

    def _one(
        self,
        reference: Reference,
        found: tuple[Weight, ...],
        rewritten_to: str | None,
        install_as: str = "",
    ) -> Found | Missing:
        """The only candidate, or the problem that there are several."""
        if len(found) > 1:
            candidates = ", ".join(map(_described, found[:5])) + (", ..." if found[5:] else "")
            return Missing(
                _problem(
                    reference,
                    "ambiguous_model",
                    f"The model {reference.name!r} could be any of {candidates}.",
                    "Write the path of the one that is meant into the workflow.",
                )
            )
        weight = found[0]
        if weight.unsupported is not None:
            return Missing(_problem(reference, "unsupported_weight", *weight.unsupported))
        return Found(replace(weight, name=install_as) if install_as else weight, rewritten_to)

    def _unknown(
        self, reference: Reference, folder: str | None, name: str, listed: Collection[str]
    ) -> Problem:
        place = f" in the folder {folder}" if folder else ""
        nearest = _nearest(folder, name, self.weights, listed)
        hint = (
            f"Nearest known: {', '.join(nearest)}. Write one of these into the workflow, or add"
            if nearest
            else "Add"
        )
        return _problem(
            reference,
            "unknown_model",
            f"The model {reference.name!r} is neither on disk{place} nor in the weights manifest.",
            f"{hint} the model to weights_manifest.json.",
        )


BAD_NAME = (
    "The model name must be a path under the model folder: not empty, not absolute, without '..'.",
    "Choose the model again in ComfyUI.",
)

_Index = dict[tuple[str | None, str], tuple[Weight, ...]]


def normalised(name: str) -> str | None:
    """A model name with `/`, in NFC, without a `[output]` suffix; None when it is no such path."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/")
    name = re.sub(r" ?\[(input|output|temp)\]$", "", name)
    if re.match(r"/|[A-Za-z]:/", name) or ".." in name.split("/"):
        return None
    # Doubled slashes and single dots say nothing.
    name = str(PurePosixPath(name))
    return None if name == "." or not name.isprintable() else name


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


def _index(weights: Iterable[Weight], keys: Callable[[Weight], Iterable[str]]) -> _Index:
    """Weights by folder and key, and by key alone (folder None)."""
    index: dict[tuple[str | None, str], dict[Weight, None]] = {}
    for weight in weights:
        for key in keys(weight):
            for folder in (*weight.folders, None):
                index.setdefault((folder, key), {})[weight] = None
    return {key: tuple(found) for key, found in index.items()}


def _nearest(
    folder: str | None, name: str, weights: Collection[Weight], listed: Collection[str]
) -> list[str]:
    """At most three similar names, with folder and size; the folder's own files come first."""
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(_essence(name))
    known = {w.name for w in weights if folder in w.folders}
    candidates = [(w.name, folder in w.folders, _described(w)) for w in weights]
    candidates += [(e, True, f"{folder}/{e} (on disk)") for e in listed if e not in known]
    rated = []
    for candidate, same_folder, described in candidates:
        matcher.set_seq1(_essence(candidate))
        # The two cheap upper bounds come first: the true ratio takes a hundred times as long.
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        if all(bound() >= LEAST_SIMILARITY for bound in bounds):
            rated.append((matcher.ratio() + (0.02 if same_folder else 0), described))
    rated.sort(key=lambda pair: (-pair[0], pair[1]))
    return [described for _, described in rated[:3]]


def _essence(name: str) -> str:
    """A name without what people spell differently: folder, extension, separators, case."""
    return re.sub(r"[^a-z0-9]", "", PurePosixPath(name).stem.lower())


def _described(weight: Weight) -> str:
    if weight.size is None:
        return f"{weight.label} (size unknown)"
    return f"{weight.label} ({human_size(weight.size)})"


def human_size(size: int) -> str:
    """Bytes as people read them: `512 B`, `1.3 MB`, `23.8 GB`."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:  # noqa: PLR2004 - the step between units
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def _problem(reference: Reference, code: str, what: str, hint: str) -> Problem:
    return Problem(
        code,
        what,
        hint,
        node_id=reference.node_id,
        title=reference.title or reference.class_type,
        input=reference.input,
    )
