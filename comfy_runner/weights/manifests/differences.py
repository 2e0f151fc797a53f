"""What two manifests say differently, entry by entry."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from comfy_runner.fetch.urls import redacted
from comfy_runner.weights.manifests.document import Content
from comfy_runner.weights.manifests.text import entry_json
from comfy_runner.weights.weight import Weight


@dataclass(frozen=True, slots=True)
class Change:
    """One member of one entry, group or base that both manifests have."""

    label: str
    """`folder/name` of the entry in the new manifest, or the group's or base's name."""
    member: str
    old: object
    """As in the JSON; None where the old manifest says nothing."""
    new: object


@dataclass(frozen=True, slots=True)
class Differences:
    """All differences; empty when the manifests say the same."""

    added: tuple[str, ...] = ()
    """Entries of the new manifest alone, as `folder/name`."""
    removed: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    """Old and new `folder/name` of the same file."""
    changed: tuple[Change, ...] = ()
    groups: tuple[Change, ...] = ()
    bases: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, member.name) for member in fields(self))

    def as_json(self) -> dict[str, Any]:
        """The differences for a program; lists of names, pairs and objects."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The differences for a person, one a line."""
        yield from (f"- {label}" for label in self.removed)
        yield from (f"+ {label}" for label in self.added)
        yield from (f"> {old} is now {new}" for old, new in self.moved)
        for kind, changes in (("", self.changed), ("group ", self.groups), ("base ", self.bases)):
            for change in changes:
                place = " ".join(filter(None, (f"{kind}{change.label}", change.member)))
                yield f"~ {place}: {_shown(change.old)} -> {_shown(change.new)}"


def differences(old: Content, new: Content) -> Differences:
    """What the new manifest says differently than the old one; the order of entries is no matter.

    An entry is the same one while its first folder and name are. One that went is moved, not
    removed, when exactly one that came has its hash, or its URLs where no hash is known.
    """
    before = {weight.label: weight for weight in old.weights}
    after = {weight.label: weight for weight in new.weights}
    gone = {label: weight for label, weight in before.items() if label not in after}
    come = {label: weight for label, weight in after.items() if label not in before}
    pairs = dict(_moves(gone, come))
    changed = [
        change
        for label, weight in after.items()
        if (former := before.get(label) or before.get(pairs.get(label, ""))) is not None
        for change in _changes(label, former, weight)
    ]
    return Differences(
        added=tuple(label for label in come if label not in pairs),
        removed=tuple(label for label in gone if label not in pairs.values()),
        moved=tuple((former, label) for label, former in pairs.items()),
        changed=tuple(changed),
        groups=tuple(_entries(old.groups, new.groups)),
        bases=tuple(_entries(old.bases, new.bases)),
    )


def _moves(gone: Mapping[str, Weight], come: Mapping[str, Weight]) -> Iterator[tuple[str, str]]:
    """New to old label of the files that are surely the same."""
    counts = Counter(map(_identity, gone.values())), Counter(map(_identity, come.values()))
    former = {_identity(weight): label for label, weight in gone.items()}
    for label, weight in come.items():
        identity = _identity(weight)
        if identity in former and all(count[identity] == 1 for count in counts):
            yield label, former[identity]


def _identity(weight: Weight) -> object:
    return weight.sha256 or (weight.urls, weight.files)


def _changes(label: str, old: Weight, new: Weight) -> Iterator[Change]:
    before, after = entry_json(old), entry_json(new)
    # What a moved entry is called now stands in `moved`.
    told = {"name", *(["folders"] if old.folders[1:] == new.folders[1:] else [])}
    for member in dict.fromkeys([*before, *after]):
        values = before.get(member), after.get(member)
        if values[0] != values[1] and not (old.label != new.label and member in told):
            if member == "urls":
                values = _harmless(values[0]), _harmless(values[1])
            yield Change(label, member, *values)


def _harmless(urls: Any) -> list[object]:
    """The URLs as they may be shown; a query, which may be a signature, is `?...`."""

    def cut(url: str) -> str:
        return f"{redacted(url)}{'?...' if '?' in url else ''}"

    return [cut(u) if isinstance(u, str) else {**u, "url": cut(u["url"])} for u in urls]


def _entries(old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Change]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Change(name, "", old.get(name), new.get(name))


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
