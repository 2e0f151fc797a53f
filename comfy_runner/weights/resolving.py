"""Which file is meant by a name in a workflow, step by step; never one that is merely similar."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from comfy_runner.convert.models import ModelHint
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.urls import scheme
from comfy_runner.weights.hosts.addresses import Address, parse
from comfy_runner.weights.names import Names, base_name
from comfy_runner.weights.references import (
    AskedWeight,
    Reference,
    means,
    normalised,
    spellings,
    stands_for,
)
from comfy_runner.weights.weight import Weight, map_legacy

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

SHOWN_CANDIDATES = 5
"""How many of the weights that could be meant an error lists."""

BAD_NAME = (
    "The model name must be a path under the model folder: not empty, not absolute, without '..'.",
    "Choose the model again in ComfyUI.",
)

Listing = Callable[[str], Collection[str]]
"""Model folder to the names of the files in it, as ComfyUI lists them."""
Hints = Mapping[str, Sequence[ModelHint]]
"""Normalised name to what the workflow itself says of models of that name."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """The file is there already."""

    name: str
    """The name that must stand in the graph."""
    folder: str = ""
    """The model folder that has it, where the reference itself does not know."""


@dataclass(frozen=True, slots=True)
class Found:
    """The manifest has the file."""

    weight: Weight
    """The weight as it must be installed: its `name` may be the path that the workflow asks for,
    its hash the one that the workflow says."""
    rewritten_to: str | None = None
    """The name that must stand in the graph; None when the workflow's own is right."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Neither disk nor manifest has the file, or more than one is meant."""

    problem: Problem
    """Its code is `unknown_model`, `ambiguous_model`, `bad_model_name`, `hash_contradicts`, or
    `bad_url` for an address that cannot be used."""


Resolution = OnDisk | Found | AskedWeight | Missing


def resolve(  # noqa: PLR0911 - one return for each thing that decides
    names: Names,
    reference: Reference,
    on_disk: Listing,
    *,
    hints: Hints,
    folders: Collection[str],
    suggest: bool,
) -> Resolution:
    """What `Manifest.resolve` says."""
    if scheme(reference.name) and (address := _address(reference)):
        return address
    name = normalised(reference.name)
    if name is None:
        return Missing(reference.problem("bad_model_name", *BAD_NAME))
    folder = map_legacy(reference.folder) if reference.folder else None
    tried = spellings(reference, name)
    if there := _on_disk(reference, [folder] if folder else folders, tried, on_disk):
        return there
    said = _said(reference, folder, tried, hints)
    hashes = list(dict.fromkeys(hint.sha256 for hint in said if hint.sha256))
    if len(hashes) > 1:
        return _contradiction(reference, hashes[0], hashes[1], "in another place")
    sha256 = next(iter(hashes), None)
    listed = on_disk(folder) if folder else ()
    outcome = _known(names, reference, folder, tried)
    may_be_any_text = reference.form == "path" and not reference.certain
    if may_be_any_text and isinstance(outcome, Found) and outcome.rewritten_to:
        outcome = None
    outcome = outcome or _hinted(reference, folder, folders, said, sha256)
    if not may_be_any_text:
        outcome = (
            outcome
            or _by_base(names, reference, folder, name)
            or _by_case(names, reference, folder, tried, listed)
            or _address(reference, bare_repositories=True)
        )
    if isinstance(outcome, Found):
        return _with_hash(reference, outcome, sha256)
    if outcome is not None:
        return outcome
    nearest = names.nearest(folder, name, listed) if suggest else []
    return Missing(_unknown(reference, folder, nearest))


def hints_by_name(hints: Iterable[ModelHint]) -> Hints:
    """What a workflow says of its models, as `resolve` takes it."""
    index: dict[str, list[ModelHint]] = {}
    for hint in hints:
        if (name := normalised(hint.name)) is not None:
            index.setdefault(name, []).append(hint)
    return index


def _on_disk(
    reference: Reference, folders: Iterable[str], tried: Sequence[str], on_disk: Listing
) -> OnDisk | None:
    """The file that the node would find now."""
    for folder in folders:
        listed = on_disk(folder)
        place = "" if reference.folder else folder
        for spelling in (reference.name, *tried):
            if spelling in listed:
                return OnDisk(spelling, place)
        if reference.form != "path":
            for file in sorted(listed):
                if means(reference, tried, file):
                    return OnDisk(file, place)
    return None


def _known(
    names: Names, reference: Reference, folder: str | None, tried: Sequence[str]
) -> Resolution | None:
    """The weight of that name or alias."""
    for index in (names.exact, names.aliases):
        for name in tried:
            if found := index.get((folder, name)):
                return _one(reference, found)
    return None


def _by_base(
    names: Names, reference: Reference, folder: str | None, name: str
) -> Resolution | None:
    """The weight with that base name, for the path that the workflow asks for."""
    for spelling in spellings(reference, name):
        base = base_name(spelling)
        found = names.bases.get((folder, base))
        if found and PurePosixPath(base).stem.lower() not in GENERIC:
            # ComfyUI compares the whole relative path, so the file goes where the workflow says;
            # it need not where a name without a folder is found in any.
            anywhere = reference.form != "path" and "/" not in name
            return _one(reference, found, install_as="" if anywhere else spelling)
    return None


def _by_case(
    names: Names,
    reference: Reference,
    folder: str | None,
    tried: Sequence[str],
    listed: Collection[str],
) -> Resolution | None:
    """The weight, or the file on disk, of that name when case does not count."""
    folded = [spelling.casefold() for spelling in tried]
    alike = {entry for entry in listed if entry.casefold() in folded}
    found = next((w for s in folded if (w := names.folded.get((folder, s)))), ())
    if found and not alike:
        return _one(reference, found)
    if len(alike) == 1 and {weight.name for weight in found} <= alike:
        return OnDisk(alike.pop())
    return None


def _address(reference: Reference, *, bare_repositories: bool = False) -> Resolution | None:
    """What the name means as an address; None when it is none, or no folder is known for it."""
    if reference.folder is None or reference.form in ("stem", "token"):
        return None
    try:
        address = parse(reference.name)
    except InvalidInput as err:
        problem = err.problems[0]
        return Missing(reference.problem(problem.code, problem.what, problem.hint))
    if address is None and bare_repositories:
        with suppress(InvalidInput):  # so it is an ordinary name after all
            address = parse(reference.name, bare_repositories=True)
    return _asked(reference, reference.folder, address, reference.name) if address else None


def _asked(
    reference: Reference, folder: str, address: Address, text: str, sha256: str | None = None
) -> AskedWeight:
    node_id, name = reference.place
    return AskedWeight(node_id, name, map_legacy(folder), address, text, reference, sha256)


def _said(
    reference: Reference, folder: str | None, tried: Sequence[str], hints: Hints
) -> Sequence[ModelHint]:
    """What the workflow says of the model: the node itself, else the rest of the file."""
    fitting = [
        hint
        for spelling in tried
        for hint in hints.get(spelling, ())
        if folder is None or map_legacy(hint.directory or folder) == folder
    ]
    return [hint for hint in fitting if hint.node_id == reference.node_id] or fitting


def _hinted(
    reference: Reference,
    folder: str | None,
    folders: Collection[str],
    said: Sequence[ModelHint],
    sha256: str | None,
) -> Resolution | None:
    """The file behind the URL that the workflow gives."""
    for hint, address in _addresses(said):
        place = folder or map_legacy(hint.directory)
        # A stranger's folder is taken only where ComfyUI has such a model folder.
        if folder is not None or place in folders:
            return _asked(reference, place, address, hint.url, sha256)
    return None


def _addresses(hints: Iterable[ModelHint]) -> Iterator[tuple[ModelHint, Address]]:
    for hint in hints:
        try:
            address = parse(hint.url) if scheme(hint.url) else None
        except InvalidInput:
            continue
        if address is not None:
            yield hint, address


def _with_hash(reference: Reference, found: Found, sha256: str | None) -> Found | Missing:
    """The same weight, which must have the hash that the workflow says as well."""
    weight = found.weight
    if sha256 is None or weight.kind == "dir" or weight.sha256 == sha256:
        return found
    if weight.sha256 is not None:
        return _contradiction(reference, sha256, weight.sha256, "in the weights manifest")
    return replace(found, weight=replace(weight, sha256=sha256))


def _contradiction(reference: Reference, said: str, other: str, where: str) -> Missing:
    what = (
        f"The workflow says that the model {reference.shown!r} has the SHA256 {said}, but {where}"
        f" it has {other}."
    )
    hint = "Correct the hash that is wrong, or name another model."
    return Missing(reference.problem("hash_contradicts", what, hint))


def _unknown(reference: Reference, folder: str | None, nearest: Sequence[str]) -> Problem:
    place = f" in the folder {folder}" if folder else ""
    choose = f"Nearest known: {', '.join(nearest)}. Write one of these into the workflow, or add"
    return reference.problem(
        "unknown_model",
        f"The model {reference.shown!r} is neither on disk{place} nor in the weights manifest.",
        f"{choose if nearest else 'Add'} the model to weights_manifest.json.",
    )


def _one(reference: Reference, found: tuple[Weight, ...], install_as: str = "") -> Found | Missing:
    """The only candidate, or the problem that there are several."""
    if len(found) > 1:
        candidates = ", ".join(weight.described for weight in found[:SHOWN_CANDIDATES])
        candidates += ", ..." if found[SHOWN_CANDIDATES:] else ""
        what = f"The model {reference.shown!r} could be any of {candidates}."
        hint = "Write the path of the one that is meant into the workflow."
        return Missing(reference.problem("ambiguous_model", what, hint))
    weight = replace(found[0], name=install_as) if install_as else found[0]
    return Found(weight, None if stands_for(reference, weight.name) else weight.name)
