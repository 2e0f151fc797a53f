"""The JSON of a weights manifest, version 1: read into weights, with every fault of every entry."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from unicodedata import normalize

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.weights.weight import Implication, Member, Source, Weight, map_legacy

RELATIVE = re.compile(r"(?!/)(?!.*(^|/)\.\.?(/|$))(?!.*//)[^\x00-\x1f\\]+(?<!/)")
"""A path below some folder: no `.`, `..`, backslash or control character."""
HASH = re.compile(r"[0-9a-f]{64}")
ENTRY_KEYS = frozenset(
    [
        "name",
        "folders",
        "kind",
        "urls",
        "size",
        "sha256",
        "files",
        "aliases",
        "implied_by",
        "license",
        "license_url",
        "non_commercial",
        "gated",
        "air",
        "note",
    ]
)
SOURCE_KEYS = frozenset(["url", "auth", "env", "extract", "member", "strip", "size", "sha256"])


def read(
    document: str | bytes | Mapping[str, Any],
) -> tuple[tuple[Weight, ...], dict[str, tuple[str, ...]]]:
    """The weights, in the file's order, and the groups of `folder/name` by their names.

    The document is `{"version": 1, "bases": {NAME: URL}, "groups": {NAME: ["folder/name"]},
    "weights": [...]}`; a URL `NAME:path` starts at that base.

    Raises: `InvalidInput` with all problems.
    """
    if isinstance(document, str | bytes):
        try:
            document = json.loads(document)
        except (ValueError, RecursionError) as err:
            what = f"The weights manifest is no JSON: {err}."
            raise InvalidInput([Problem("bad_manifest", what)]) from err
    problems: list[Problem] = []
    if not isinstance(document, Mapping):
        what = "The weights manifest must be a JSON object."
        raise InvalidInput([Problem("bad_manifest", what)])
    top = _Object(document, "", "the manifest", problems)
    top.only(frozenset({"version", "bases", "groups", "weights"}))
    if document.get("version") != 1 or document.get("version") is True:
        top.fault("version", "must be 1.")
    if "weights" not in document:
        top.fault("weights", "is missing.")
    bases = {name: url for name, url in top.mapping("bases").items() if _is_base(top, name, url)}
    entries = [
        (entry, weight)
        for entry in top.objects("weights")
        if (weight := _weight(entry, bases)) is not None
    ]
    _check_identities(entries)
    weights = tuple(weight for _, weight in entries)
    known = {f"{folder}/{weight.name}" for weight in weights for folder in weight.folders}
    groups: dict[str, tuple[str, ...]] = {}
    for name in top.mapping("groups"):
        members = _Object(top.mapping("groups"), "groups", f"group {name}", problems).texts(name)
        groups[name] = tuple(_present_name(member) for member in members)
        problems += [
            Problem("bad_manifest", f"no weight is called {member!r}.", input=f"groups.{name}")
            for member in groups[name]
            if member not in known
        ]
    if problems:
        raise InvalidInput(problems)
    return weights, groups


class _Object:
    """One JSON object of the manifest, whose members are read with every fault noted."""

    def __init__(
        self, members: Mapping[str, Any], place: str, label: str, problems: list[Problem]
    ) -> None:
        self.members = members
        self.place = place
        self.label = label
        self.problems = problems

    def fault(self, key: str, what: str) -> None:
        place = f"{self.place}.{key}" if self.place and key else self.place or key
        self.problems.append(
            Problem("bad_manifest", f"{self.label}: {key or 'the entry'} {what}", input=place)
        )

    def only(self, allowed: frozenset[str]) -> None:
        for key in self.members.keys() - allowed:
            self.fault(key, "is no known member.")

    def text(self, key: str, *, required: bool = False) -> str:
        value: object = self.members.get(key, "")
        if not isinstance(value, str):
            self.fault(key, "must be a text.")
            return ""
        if required and not value:
            self.fault(key, "is missing.")
        return value

    def choice[T: str](self, key: str, default: T, *others: T) -> T:
        value = self.members.get(key, default)
        for allowed in (default, *others):
            if value == allowed:
                return allowed
        self.fault(key, f"must be one of {', '.join(filter(None, (default, *others)))}.")
        return default

    def flag(self, key: str) -> bool:
        value = self.members.get(key, False)
        if not isinstance(value, bool):
            self.fault(key, "must be true or false.")
        return value is True

    def whole(self, key: str, least: int) -> int | None:
        value = self.members.get(key)
        if value is None or (type(value) is int and value >= least):
            return value
        self.fault(key, f"must be a whole number of at least {least}.")
        return None

    def digest(self, key: str) -> str | None:
        value = self.members.get(key)
        if value is None or (isinstance(value, str) and HASH.fullmatch(value)):
            return value
        self.fault(key, "must be 64 hexadecimal digits in small letters.")
        return None

    def relative(self, key: str, value: object) -> str:
        if isinstance(value, str) and RELATIVE.fullmatch(value):
            return normalize("NFC", value)
        self.fault(key, f"must be a relative path without '..' or '\\', not {value!r}.")
        return ""

    def texts(self, key: str) -> list[str]:
        return [value for value in self.array(key) if self._is_text(key, value)]

    def objects(self, key: str) -> Iterator["_Object"]:
        for number, value in enumerate(self.array(key)):
            place = f"{self.place}.{key}[{number}]" if self.place else f"{key}[{number}]"
            label = self.label if self.place else _label(value)
            if isinstance(value, Mapping):
                yield _Object(value, place, label, self.problems)
            else:
                _Object({}, place, label, self.problems).fault("", "must be an object.")

    def array(self, key: str, *, least: int = 0) -> list[Any]:
        value = self.members.get(key, [])
        if not isinstance(value, list):
            self.fault(key, "must be a list.")
            return []
        if len(value) < least:
            self.fault(key, f"must be a list of at least {least}.")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.members.get(key, {})
        if isinstance(value, Mapping):
            return value
        self.fault(key, "must be an object.")
        return {}

    def _is_text(self, key: str, value: object) -> bool:
        if isinstance(value, str) and value:
            return True
        self.fault(key, f"must hold texts only, not {value!r}.")
        return False


def _weight(entry: _Object, bases: Mapping[str, str]) -> Weight | None:
    """The weight; None when it has no name or folder, which is noted."""
    entry.only(ENTRY_KEYS)
    name = entry.relative("name", entry.members.get("name"))
    paths = [entry.relative("folders", value) for value in entry.array("folders", least=1)]
    folders = [map_legacy(folder) for folder in paths if folder]
    if len(set(folders)) < len(folders):
        entry.fault("folders", "names the same folder twice.")
    sources = tuple(_sources(entry, bases))
    weight = Weight(
        name=name,
        folders=tuple(dict.fromkeys(folders)),
        urls=sources,
        kind=entry.choice("kind", "file", "dir"),
        size=entry.whole("size", 1),
        sha256=entry.digest("sha256"),
        files=tuple(map(_member, entry.objects("files"))),
        aliases=tuple(normalize("NFC", alias) for alias in entry.texts("aliases")),
        implied_by=tuple(map(_implication, entry.objects("implied_by"))),
        license=entry.text("license"),
        license_url=entry.text("license_url"),
        note=entry.text("note"),
        air=entry.text("air"),
        gated=entry.flag("gated"),
        non_commercial=entry.flag("non_commercial"),
    )
    if weight.air and not weight.air.startswith("urn:air:"):
        entry.fault("air", "must start with urn:air:.")
    return weight if name and folders else None


def _sources(entry: _Object, bases: Mapping[str, str]) -> Iterator[Source]:
    for number, value in enumerate(entry.array("urls", least=1)):
        key = f"urls[{number}]"
        if not isinstance(value, str | Mapping):
            entry.fault(key, "must be a URL or an object with one.")
            continue
        members = {"url": value} if isinstance(value, str) else value
        source = _Object(members, f"{entry.place}.{key}", entry.label, entry.problems)
        source.only(SOURCE_KEYS)
        yield Source(
            url=_url(source, bases),
            auth=source.choice("auth", "none", "hf", "civitai", "bearer_env"),
            env=source.text("env", required=members.get("auth") == "bearer_env"),
            extract=source.choice("extract", "", "tar", "zip"),
            member=source.text("member"),
            strip=source.whole("strip", 0) or 0,
            size=source.whole("size", 1),
            sha256=source.digest("sha256"),
        )


def _url(source: _Object, bases: Mapping[str, str]) -> str:
    url = source.text("url", required=True)
    kind = scheme(url)
    if kind in bases:
        return f"{bases[kind].rstrip('/')}/{url[len(kind) + 1 :].lstrip('/')}"
    if url and kind == "":
        return source.relative("url", url)
    if kind not in ("", "http", "https", "file"):
        source.fault("url", f"{redacted(url)!r} has an unknown scheme; bases: {sorted(bases)}.")
    elif ".." in url.split("/"):
        source.fault("url", "must not hold '..'.")
    return url


def _member(file: _Object) -> Member:
    file.only(frozenset({"path", "size", "sha256"}))
    return Member(
        file.relative("path", file.members.get("path")),
        file.whole("size", 0),
        file.digest("sha256"),
    )


def _implication(hint: _Object) -> Implication:
    hint.only(frozenset({"class_type", "input", "equals", "contains"}))
    equals = hint.members.get("equals")
    if not isinstance(equals, str | int | float | None):
        hint.fault("equals", "must be a text, a number, true or false.")
        equals = None
    return Implication(
        hint.text("class_type", required=True),
        hint.text("input") or None,
        equals,
        hint.text("contains") or None,
    )


def _check_identities(entries: list[tuple[_Object, Weight]]) -> None:
    """Note every name and alias that means more than one weight of a folder."""
    taken: dict[tuple[str, str], str] = {}
    names = [(entry, weight, "name", weight.name) for entry, weight in entries]
    aliases = [(e, weight, "aliases", alias) for e, weight in entries for alias in weight.aliases]
    for entry, weight, key, name in names + aliases:
        for folder in weight.folders:
            owner = taken.setdefault((folder, name), entry.place)
            if owner != entry.place or (key == "aliases" and name == weight.name):
                entry.fault(key, f"{name!r} in {folder} is taken by {owner}.")


def _is_base(top: _Object, name: str, url: object) -> bool:
    if scheme(f"{name}:") != name or name in ("http", "https", "file", "data"):
        top.fault(f"bases.{name}", "must be named with small letters, and not as a scheme.")
        return False
    if not isinstance(url, str) or scheme(url) not in ("http", "https"):
        top.fault(f"bases.{name}", "must be an http or https URL.")
        return False
    return True


def _label(value: object) -> str:
    """What an entry is called in a problem, as far as it says so: `loras/x.safetensors`."""
    match value:
        case {"name": str(name), "folders": [str(folder), *_]}:
            return f"{folder}/{name}"
        case {"name": str(name)}:
            return name
        case _:
            return "an entry without a name"


def _present_name(member: str) -> str:
    folder, slash, name = member.partition("/")
    return f"{map_legacy(folder)}{slash}{normalize('NFC', name)}"
