"""The JSON of a weights manifest, version 1: read into weights, with every fault of every entry."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NoReturn
from unicodedata import normalize
from urllib.parse import urlsplit

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.weights.hosts import addresses
from comfy_runner.weights.manifests.members import HALF, Members
from comfy_runner.weights.manifests.schema import (
    IMPLICATION,
    MEMBER,
    SOURCE,
    TOP,
    WEIGHT,
    schema,
)
from comfy_runner.weights.manifests.text import write
from comfy_runner.weights.weight import Implication, Member, Source, Weight, map_legacy

__all__ = ["Content", "content", "read", "schema", "write"]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_SCHEMES = frozenset({"http", "https", "file", "data", *addresses.PREFIXES})
"""What a base cannot be called."""


@dataclass(frozen=True, slots=True)
class Content:
    """All that a manifest's file says."""

    weights: tuple[Weight, ...] = ()
    """In the file's order; their URLs are whole, also those that the file starts at a base."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)
    """Names that stand for the beginning of a URL."""
    schema: str = ""
    """Where an editor finds the schema."""


def read(
    document: str | bytes | Mapping[str, Any],
) -> tuple[tuple[Weight, ...], dict[str, tuple[str, ...]]]:
    """The weights, in the file's order, and the groups of `folder/name` by their names.

    Raises: `InvalidInput` with all problems, as `content` does.
    """
    found = content(document)
    return found.weights, dict(found.groups)


def content(document: str | bytes | Mapping[str, Any]) -> Content:
    """What a manifest says, given as JSON or as what was decoded from it.

    The document is `{"version": 1, "bases": {NAME: URL}, "groups": {NAME: ["folder/name"]},
    "weights": [...]}`; a URL `NAME:path` starts at that base.

    Raises: `InvalidInput` with all problems.
    """
    if isinstance(document, str | bytes):
        try:
            document = json.loads(document, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as err:
            what = f"The weights manifest is no JSON: {err}."
            raise InvalidInput([Problem("bad_manifest", what)]) from err
    problems: list[Problem] = []
    if not isinstance(document, Mapping):
        what = "The weights manifest must be a JSON object."
        raise InvalidInput([Problem("bad_manifest", what)])
    top = Members(document, "", "the manifest", problems)
    top.only(TOP)
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
        group = Members(top.mapping("groups"), "groups", f"group {name}", problems)
        groups[name] = tuple(_present_name(member) for member in group.texts(name))
        problems += [
            Problem(
                "bad_manifest",
                f"group {name}: no weight is called {member!r}.",
                "Write FOLDER/NAME of an entry.",
                input=f"groups.{name}",
            )
            for member in groups[name]
            if member not in known
        ]
    found = Content(weights, groups, bases, top.text("$schema"))
    if problems:
        raise InvalidInput(problems)
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _weight(entry: Members, bases: Mapping[str, str]) -> Weight | None:
    """The weight; None when it has no name or folder, which is noted."""
    entry.only(WEIGHT)
    name = entry.relative("name", entry.members.get("name"))
    paths = [entry.relative("folders", value) for value in entry.array("folders", least=1)]
    folders = [map_legacy(folder) for folder in paths if folder]
    if len(set(folders)) < len(folders):
        entry.fault("folders", "names the same folder twice.")
    if any(folder.startswith(".") for folder in folders):
        entry.fault("folders", "must not begin with a dot: such folders are ours.")
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
        license_url=entry.link("license_url"),
        note=entry.text("note"),
        air=entry.text("air"),
        gated=entry.flag("gated"),
        non_commercial=entry.flag("non_commercial"),
    )
    if weight.air and not weight.air.startswith("urn:air:"):
        entry.fault("air", "must start with urn:air:.")
    paths = [member.path for member in weight.files if member.path]
    if paths and weight.kind != "dir":
        entry.fault("files", 'belongs to the kind "dir".')
    if len(set(paths)) < len(paths):
        entry.fault("files", "names the same path twice.")
    return weight if name and folders else None


def _sources(entry: Members, bases: Mapping[str, str]) -> Iterator[Source]:
    for number, value in enumerate(entry.array("urls", least=1)):
        key = f"urls[{number}]"
        if not isinstance(value, str | Mapping):
            entry.fault(key, "must be a URL or an object with one.")
            continue
        members = {"url": value} if isinstance(value, str) else value
        source = Members(members, f"{entry.place}.{key}", entry.label, entry.problems)
        source.only(SOURCE)
        found = Source(
            url=_url(source, bases),
            auth=source.choice("auth", "none", "hf", "civitai", "bearer_env"),
            env=source.text("env", required=members.get("auth") == "bearer_env"),
            extract=source.choice("extract", "", "tar", "zip"),
            member=source.text("member"),
            strip=source.whole("strip", 0) or 0,
            size=source.whole("size", 1),
            sha256=source.digest("sha256"),
        )
        if found.env and found.auth != "bearer_env":
            source.fault("env", 'belongs to the auth "bearer_env".')
        if found.env and not VARIABLE.fullmatch(found.env):
            source.fault("env", "must be the name of an environment variable, not a token.")
        for key in ("member", "strip"):
            if getattr(found, key) and "extract" not in members:
                source.fault(key, "belongs to an archive: extract is missing.")
        yield found


def _url(source: Members, bases: Mapping[str, str]) -> str:
    url = source.text("url", required=True)
    kind = scheme(url)
    if kind in bases:
        url = f"{bases[kind].rstrip('/')}/{url[len(kind) + 1 :].lstrip('/')}"
        kind = scheme(url)
    match kind:
        case "":
            return source.relative("url", url) if url else ""
        case "http" | "https":
            _check_web(source, url)
        case "file" if ".." in url.split("/"):
            source.fault("url", "must not hold '..'.")
        case "data" if "," not in url:
            source.fault("url", "needs a comma before its content.")
        case _ if kind in addresses.PREFIXES:
            _check_address(source, url)
        case _ if kind not in ("file", "data"):
            known = f"bases: {', '.join(sorted(bases)) or 'none'}"
            source.fault("url", f"{redacted(url)!r} has an unknown scheme; {known}.")
    return url


def _check_address(source: Members, url: str) -> None:
    try:
        addresses.parse(url)
    except InvalidInput as err:
        source.fault("url", f"cannot be used. {err}")


def _check_web(source: Members, url: str) -> None:
    if ".." in url.partition("?")[0].split("/"):
        source.fault("url", "must not hold '..'.")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s\x00-\x1f]", url):
        source.fault("url", f"{redacted(url)!r} is no usable address: write a space as %20.")


def _member(file: Members) -> Member:
    file.only(MEMBER)
    return Member(
        file.relative("path", file.members.get("path")),
        file.whole("size", 0),
        file.digest("sha256"),
    )


def _implication(hint: Members) -> Implication:
    hint.only(IMPLICATION)
    equals = hint.members.get("equals")
    is_odd = not isinstance(equals, str | int | float | None) or equals in (inf, -inf)
    if is_odd or HALF.search(str(equals)):
        hint.fault("equals", "must be a text, a number, true or false.")
        equals = None
    return Implication(
        hint.text("class_type", required=True),
        hint.text("input") or None,
        equals,
        hint.text("contains") or None,
    )


def _check_identities(entries: list[tuple[Members, Weight]]) -> None:
    """Note every name and alias that means more than one weight of a folder."""
    taken: dict[tuple[str, str], str] = {}
    names = [(entry, weight, "name", weight.name) for entry, weight in entries]
    aliases = [(e, weight, "aliases", alias) for e, weight in entries for alias in weight.aliases]
    for entry, weight, key, name in names + aliases:
        for folder in weight.folders:
            owner = taken.setdefault((folder, name), entry.place)
            if owner != entry.place or (key == "aliases" and name == weight.name):
                entry.fault(key, f"{name!r} in {folder} is taken by {owner}.")


def _is_base(top: Members, name: str, url: object) -> bool:
    if scheme(f"{name}:") != name or name in OWN_SCHEMES:
        top.fault(f"bases.{name}", "must be named with small letters, and not as a scheme.")
        return False
    if not isinstance(url, str) or scheme(url) not in ("http", "https"):
        top.fault(f"bases.{name}", "must be an http or https URL.")
        return False
    _check_web(Members({}, f"bases.{name}", f"the manifest: base {name}", top.problems), url)
    return True


def _present_name(member: str) -> str:
    folder, slash, name = member.partition("/")
    return f"{map_legacy(folder)}{slash}{normalize('NFC', name)}"
