"""`custom_nodes.lock.json`: which packs of custom nodes belong to the project, and from where."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from comfy_runner.errors import InvalidInput, Problem

FILE = "custom_nodes.lock.json"

VERSION = 1

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
REGISTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
REGISTRY_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,59}")
GIT_URL = re.compile(
    r"(https|ssh|file)://[^\s?#]+|[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:[^\s:]\S*"
)
"""Over TLS or ssh, or a repository on this machine; `git@host:path` is ssh, too."""
ARCHIVE_URL = re.compile(r"https?://[^\s#]+")
PASSWORD = re.compile(r"https?://[^/@]+@|[a-z]+://[^/@:]+:[^/@]*@")
"""A user or password in an address, which would stand in the lock for everybody to read."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character of UTF-16, which Python's texts may hold alone."""

IGNORED_BY_COMFYUI = ".disabled"
"""Ending of folders that ComfyUI 0.30 does not load (nodes.py init_external_custom_nodes)."""

EDIT = "Correct the file, or let comfy-runner nodes add write the entry."


@dataclass(frozen=True, slots=True)
class GitSource:
    """A commit of a git repository."""

    url: str
    commit: str
    """Full id: 40 or 64 hexadecimal digits."""
    ref: str = ""
    """Branch or tag that was asked for, which `nodes lock --upgrade` follows; empty for none."""

    def __str__(self) -> str:
        return f"{self.url} at {self.ref and f'{self.ref}, '}{self.commit[:12]}"


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """A version in the Comfy Registry."""

    id: str
    version: str
    url: str = ""
    """Where its archive was fetched; empty to ask the registry."""
    sha256: str = ""
    """Of the archive; empty until it was fetched first."""

    def __str__(self) -> str:
        return f"{self.id} {self.version} of the registry"


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """A zip or tar somewhere."""

    url: str
    sha256: str = ""
    """Of the archive; empty until it was fetched first."""

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A folder of this machine."""

    path: str
    """Relative to the folder of the lock, with `/`; the pack's own name where it lies in place."""

    def __str__(self) -> str:
        return f"the folder {self.path}"


Source = GitSource | RegistrySource | ArchiveSource | LocalSource


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPack:
    """One pack: where it comes from, and what was found in it."""

    name: str
    """Of its folder in `custom_nodes`."""
    source: Source
    digest: str = ""
    """`trees.digest` of its files; empty until it was fetched first."""
    requirements: tuple[str, ...] = ()
    """Python packages that it asks for, as it writes them."""
    leave_out: tuple[str, ...] = ()
    """Names of those that are not installed for it: its author's wish, and risk."""
    classes: tuple[str, ...] = ()
    """Node classes that it brings, sorted."""
    imported: bool = False
    """Whether the classes were told by the imported pack; else they were read in its source."""
    install_script: bool = False
    """Whether its `install.py` may be run."""


@dataclass(frozen=True, slots=True)
class PackLock:
    """All packs of a project, by name in any letter case."""

    packs: tuple[LockedPack, ...] = ()

    def get(self, name: str) -> LockedPack | None:
        """The pack of that name in any letter case, since some disks know only one."""
        for pack in self.packs:
            if pack.name.casefold() == name.casefold():
                return pack
        return None

    def having(self, *changed: LockedPack) -> "PackLock":
        """The same lock with these packs added, or in the place of those of the same names."""
        names = {pack.name.casefold() for pack in changed}
        kept = (pack for pack in self.packs if pack.name.casefold() not in names)
        return PackLock(tuple(sorted((*kept, *changed), key=lambda pack: pack.name.casefold())))

    def with_class(self, class_type: str) -> tuple[LockedPack, ...]:
        """The packs that bring a node class of this name."""
        return tuple(pack for pack in self.packs if class_type in pack.classes)


def write(lock: PackLock) -> str:
    """The JSON text of a lock, which `parse` reads: the same text for the same lock."""
    packs = [
        {
            "name": pack.name,
            "source": _source_json(pack.source),
            "digest": pack.digest,
            "requirements": list(pack.requirements),
            **({"leave_out": sorted(pack.leave_out)} if pack.leave_out else {}),
            "install_script": pack.install_script,
            "classes_from": "import" if pack.imported else "source",
            "classes": sorted(pack.classes),
        }
        for pack in sorted(lock.packs, key=lambda pack: pack.name.casefold())
    ]
    text = json.dumps({"version": VERSION, "packs": packs}, indent=2, ensure_ascii=False) + "\n"
    # A pack may call its classes what no file in UTF-8 can hold.
    return SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def parse(text: str, shown: str = FILE) -> PackLock:
    """The lock in a JSON text; `shown` is what errors call the file.

    Raises: `InvalidInput` with every problem, each naming its entry.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise InvalidInput([_fault(shown, "", f"It is no JSON: {err}.")]) from err
    if not isinstance(raw, dict) or not isinstance(raw.get("packs"), list):
        raise InvalidInput([_fault(shown, "", "It must be an object with a list `packs`.")])
    if raw.get("version") != VERSION:
        what = f"Its version is {raw.get('version')!r}; this program reads version {VERSION}."
        raise InvalidInput([Problem("bad_lock", what, "Use a newer comfy-runner.", input=shown)])
    problems: list[Problem] = []
    packs: list[LockedPack] = []
    for position, entry in enumerate(raw["packs"], 1):
        reader = _Entry(entry if isinstance(entry, dict) else {})
        pack = reader.pack()
        named = f"entry {position}" + (f" ({pack.name})" if pack.name else "")
        if any(pack.name.casefold() == other.name.casefold() for other in packs):
            reader.faults.append("An entry before it has the same name.")
        packs.append(pack)
        if not isinstance(entry, dict):
            reader.faults = ["It is no object."]
        problems += [_fault(shown, named, fault) for fault in reader.faults]
    if problems:
        raise InvalidInput(problems)
    return PackLock().having(*packs)


def check_name(name: str) -> str:
    """Why a pack's folder cannot have this name; empty where it can."""
    if not NAME.fullmatch(name):
        return (
            f"{name!r} is no name for a pack's folder: it takes letters, digits, '.', '_' and '-'."
        )
    endings = (IGNORED_BY_COMFYUI, ".py", ".lock", ".json")  # the last two are of files here
    if name.casefold().endswith(endings) or name.casefold() == "__pycache__":
        return f"{name!r} is no name for a pack's folder: its ending means something else."
    return ""


def check_git_url(url: str) -> str:
    """Why a pack cannot be fetched from this repository; empty where it can."""
    if PASSWORD.match(url):
        return "There is a user or password in the address; leave that to git's own set-up."
    if not GIT_URL.fullmatch(url):
        return f"{url!r} is no git repository over https or ssh, nor one of this machine (file://)."
    return ""


def _source_json(source: Source) -> dict[str, str]:
    match source:
        case GitSource(url, commit, ref):
            found = {"git": url, "ref": ref, "commit": commit}
        case RegistrySource(id, version, url, sha256):
            found = {"registry": id, "version": version, "url": url, "sha256": sha256}
        case ArchiveSource(url, sha256):
            found = {"archive": url, "sha256": sha256}
        case LocalSource(path):
            found = {"local": path}
        case _:
            assert_never(source)
    return {name: value for name, value in found.items() if value}


def _fault(shown: str, entry: str, what: str) -> Problem:
    return Problem("bad_lock", what, EDIT, input=f"{shown}, {entry}" if entry else shown)


class _Entry:
    """Reads one entry, and notes what is wrong with it."""

    KNOWN = frozenset(
        {"name", "source", "digest", "requirements", "leave_out", "install_script"}
        | {"classes_from", "classes"}
    )

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.faults: list[str] = []

    def pack(self) -> LockedPack:
        """The entry, as far as it can be read; `faults` tells whether it counts."""
        self._refuse_unknown(self.raw, self.KNOWN)
        name = self._text(self.raw, "name")
        if why := check_name(name):
            self.faults.append(why)
        source = self.raw.get("source")
        script = self.raw.get("install_script", False)
        if not isinstance(script, bool):
            self.faults.append("Its `install_script` must be true or false.")
        origin = self.raw.get("classes_from", "source")
        if origin not in ("import", "source"):
            self.faults.append("Its `classes_from` must be import or source.")
        return LockedPack(
            name=name,
            source=self._source(source if isinstance(source, dict) else {}),
            digest=self._matching(self.raw, "digest", SHA256, "a sha256", optional=True),
            requirements=self._texts("requirements"),
            leave_out=self._texts("leave_out"),
            classes=tuple(sorted(set(self._texts("classes")))),
            imported=origin == "import",
            install_script=script is True,
        )

    def _source(self, raw: Mapping[str, Any]) -> Source:
        kinds: dict[str, Callable[[Mapping[str, Any]], Source]] = {
            "git": self._git,
            "registry": self._registry,
            "archive": self._archive,
            "local": self._local,
        }
        found = [kind for kind in kinds if kind in raw]
        if len(found) != 1:
            self.faults.append(f"Its `source` must have just one of {', '.join(kinds)}.")
            return LocalSource("")
        return kinds[found[0]](raw)

    def _git(self, raw: Mapping[str, Any]) -> GitSource:
        self._refuse_unknown(raw, {"git", "ref", "commit"})
        url = self._text(raw, "git")
        if why := check_git_url(url):
            self.faults.append(why)
        commit = self._matching(raw, "commit", COMMIT, "a full commit id in small letters")
        ref = self._text(raw, "ref", optional=True)
        if ref.startswith("-"):
            self.faults.append("Its `ref` must not begin with '-'.")
        return GitSource(url, commit, ref)

    def _registry(self, raw: Mapping[str, Any]) -> RegistrySource:
        self._refuse_unknown(raw, {"registry", "version", "url", "sha256"})
        return RegistrySource(
            self._matching(raw, "registry", REGISTRY_ID, "an id of the registry"),
            self._matching(raw, "version", REGISTRY_VERSION, "a version"),
            self._url(raw, "url", optional=True),
            self._matching(raw, "sha256", SHA256, "a sha256", optional=True),
        )

    def _archive(self, raw: Mapping[str, Any]) -> ArchiveSource:
        self._refuse_unknown(raw, {"archive", "sha256"})
        return ArchiveSource(
            self._url(raw, "archive"),
            self._matching(raw, "sha256", SHA256, "a sha256", optional=True),
        )

    def _local(self, raw: Mapping[str, Any]) -> LocalSource:
        self._refuse_unknown(raw, {"local"})
        path = self._text(raw, "local")
        if path.startswith(("/", "~")) or "\\" in path:
            self.faults.append("Its `local` must be a path relative to the lock, with '/'.")
        return LocalSource(path)

    def _refuse_unknown(self, raw: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
        if unknown := [name for name in raw if name not in known]:
            self.faults.append(f"It has what is not known: {', '.join(map(repr, unknown))}.")

    def _text(self, raw: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
        value: object = raw.get(name, "")
        if not isinstance(value, str):
            self.faults.append(f"Its `{name}` must be a text.")
            return ""
        if not value and not optional:
            self.faults.append(f"It has no `{name}`.")
        return value

    def _matching(
        self,
        raw: Mapping[str, Any],
        name: str,
        pattern: re.Pattern[str],
        what: str,
        *,
        optional: bool = False,
    ) -> str:
        value = self._text(raw, name, optional=optional)
        if value and not pattern.fullmatch(value):
            self.faults.append(f"Its `{name}` {value!r} is not {what}.")
        return value

    def _url(self, raw: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
        value = self._matching(raw, name, ARCHIVE_URL, "an http or https URL", optional=optional)
        if PASSWORD.match(value):
            self.faults.append(f"There is a user or password in its `{name}`.")
        return value

    def _texts(self, name: str) -> tuple[str, ...]:
        value = self.raw.get(name, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.faults.append(f"Its `{name}` must be a list of texts.")
            return ()
        return tuple(value)
