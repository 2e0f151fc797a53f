"""An imported list into a manifest: the manifest's own entries stay, and conflicts are told."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from comfy_runner.weights.manifests.document import Content
from comfy_runner.weights.manifests.importing import Imported
from comfy_runner.weights.weight import Source, Weight


@dataclass(frozen=True, slots=True)
class Merged:
    """A manifest with what a list added."""

    content: Content
    added: tuple[str, ...]
    """The new entries, as `folder/name`."""
    completed: tuple[str, ...]
    """Those that got a hash, a size or another mirror."""
    conflicts: tuple[str, ...]
    """What the list says otherwise than the manifest, which stays as it is."""


def merge(manifest: Content, imported: Imported) -> Merged:
    """The manifest with the entries that it lacks, after its own.

    An entry of the manifest keeps all that it says. It gets a hash or size that it lacks from an
    entry of the list that names one of its URLs, and further mirrors where both state one hash.
    A group of the manifest keeps its members; a group of the list that names an entry which could
    not be taken is left out.
    """
    weights = list(manifest.weights)
    places = {
        (folder, weight.name): number
        for number, weight in enumerate(weights)
        for folder in weight.folders
    }
    taken = {(f, name) for w in weights for f in w.folders for name in (w.name, *w.aliases)}
    added: list[str] = []
    completed: list[str] = []
    conflicts: list[str] = []
    for weight in imported.weights:
        owners = {places[f, weight.name] for f in weight.folders if (f, weight.name) in places}
        if owners:
            for number in sorted(owners):
                fuller, clashes = _complete(weights[number], weight)
                if fuller != weights[number]:
                    weights[number] = fuller
                    completed.append(fuller.label)
                conflicts += clashes
        elif any((folder, weight.name) in taken for folder in weight.folders):
            conflicts.append(f"{weight.label} is an alias in the manifest.")
        else:
            free = [a for a in weight.aliases if all((f, a) not in taken for f in weight.folders)]
            conflicts += [
                f"The alias {alias} of {weight.label} is taken in the manifest."
                for alias in weight.aliases
                if alias not in free
            ]
            taken |= {(f, name) for f in weight.folders for name in (weight.name, *free)}
            weights.append(replace(weight, aliases=tuple(free)))
            added.append(weight.label)
    known = {f"{folder}/{weight.name}" for weight in weights for folder in weight.folders}
    groups = dict(manifest.groups)
    for name, members in imported.groups.items():
        lost = [member for member in members if member not in known]
        if lost or groups.setdefault(name, members) != members:
            why = f"names {', '.join(lost)}" if lost else "has other members in the manifest"
            conflicts.append(f"The group {name} of the list is left out: it {why}.")
    bases = {**imported.bases, **manifest.bases}
    content = replace(manifest, weights=tuple(weights), groups=groups, bases=bases)
    return Merged(content, tuple(added), tuple(completed), tuple(conflicts))


def _complete(own: Weight, other: Weight) -> tuple[Weight, list[str]]:
    """The manifest's entry with what the list knows of the same file, and what contradicts."""
    urls = _urls(own.urls)
    same_place = bool(urls & _urls(other.urls))
    if own.sha256 and other.sha256 and own.sha256 != other.sha256:
        return own, [f"{own.label} has another sha256 in the list: {other.sha256}."]
    if own.sha256 and own.sha256 == other.sha256:
        new = [source for source in other.urls if source.url not in urls]
        return replace(own, urls=(*own.urls, *new), size=own.size or other.size), []
    if same_place:
        sizes = {size for size in (own.size, other.size) if size}
        if len(sizes) > 1:
            return own, [f"{own.label} has another size in the list: {other.size} bytes."]
        fuller = replace(own, sha256=own.sha256 or other.sha256, size=own.size or other.size)
        return fuller, []
    listed = ", ".join(source.url for source in other.urls)
    return own, [f"{own.label} has other URLs in the list, perhaps other content: {listed}."]


def _urls(sources: Iterable[Source]) -> set[str]:
    return {source.url for source in sources}
