"""What a person may write to name a pack of custom nodes, read into where it comes from."""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.archives import promised
from comfy_runner.fetch.urls import is_confidential, redacted, scheme
from comfy_runner.packs.lock import ARCHIVE_URL, PASSWORD, REGISTRY_ID, check_git_url, check_name

OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
GITHUB_PAGE = re.compile(r"(https://github\.com/[^/]+/[^/]+?)(?:\.git)?/tree/([^?#]+?)/?")
GITHUB_ARCHIVE = re.compile(r"https://(?:codeload\.)?github\.com/[^/]+/([^/]+)/.+")
SCP_FORM = re.compile(r"[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:\S+")

FORMS = (
    "Write OWNER/NAME for GitHub, the https or ssh address of a git repository, the id of a pack"
    " in the Comfy Registry, the address of a zip or tar, or a folder as ./FOLDER."
)


@dataclass(frozen=True, slots=True)
class AskedGit:
    """A git repository at a branch, tag or commit."""

    url: str
    ref: str = ""
    """Empty for the repository's own branch."""


@dataclass(frozen=True, slots=True)
class AskedRegistry:
    """A pack of the Comfy Registry."""

    id: str
    version: str = ""
    """Empty for the newest."""


@dataclass(frozen=True, slots=True)
class AskedArchive:
    """A zip or tar."""

    url: str


@dataclass(frozen=True, slots=True)
class AskedFolder:
    """A folder of this machine."""

    path: Path


Asked = AskedGit | AskedRegistry | AskedArchive | AskedFolder


def read(text: str, ref: str = "") -> Asked:
    """Where a pack is to come from; `ref` is a branch, tag, commit or version.

    A folder that exists counts before anything else. Nothing is asked over the network.

    Raises: `InvalidInput` for a text that is no such place, and for a place that would not be
    safe to fetch from.
    """
    text = text.strip()
    if ref.startswith("-"):
        _refuse(ref, f"{ref!r} is no branch, tag, commit or version.", field="--ref")
    path = _folder(text)
    if text.startswith((".", "/", "~")) or path is not None:
        if path is None:
            _refuse(text, f"There is no folder {text}.", "Check the path.")
        if ref:
            what = f"{text} is a folder, which has no {ref!r}."
            _refuse(text, what, f"For its repository write file://{path.absolute()}", "--ref")
        return AskedFolder(path.absolute())
    asked = _remote(text)
    if ref and isinstance(asked, AskedArchive):
        _refuse(text, f"{redacted(text)} is an archive, which has no {ref!r}.", field="--ref")
    if ref and isinstance(asked, AskedGit):
        return replace(asked, ref=ref)
    if ref and isinstance(asked, AskedRegistry):
        return replace(asked, version=ref)
    return asked


def name_for(asked: Asked, given: str = "") -> str:
    """The name for the pack's folder: the given one, else what the place is called.

    Raises: `InvalidInput` where that is no name for a folder.
    """
    name = given or _own_name(asked)
    if why := check_name(name):
        _refuse(name, why, "Give it another name with --name.", "--name")
    return name


def _folder(text: str) -> Path | None:
    """The folder of that name, if there is one."""
    try:
        path = Path(text).expanduser()
        return path if text and path.is_dir() else None
    except (OSError, RuntimeError):  # a name that is too long, the home of nobody
        return None


def _remote(text: str) -> Asked:
    address = text.removeprefix("git+")
    if PASSWORD.match(address):
        what = "There is a user or password in the address, which would end up in the lock."
        _refuse(redacted(address), what, "Leave it out: git uses what you have set up for it.")
    if page := GITHUB_PAGE.fullmatch(address):
        ref = unquote(page[2])
        if (why := check_git_url(page[1])) or ref.startswith("-"):
            _refuse(redacted(address), why or f"{ref!r} is no branch, tag or commit.", FORMS)
        return AskedGit(page[1], ref)
    if scheme(address) in ("http", "https"):
        is_archive = promised(PurePosixPath(urlsplit(address).path).name)
        if is_archive and address == text:
            if not is_confidential(address):
                what = "Code is not fetched over plain http, where anybody can change it."
                _refuse(redacted(address), what, "Use an https address.")
            if not ARCHIVE_URL.fullmatch(address):
                what = "The address has a space, a # or capitals before its colon."
                _refuse(redacted(address), what, "Give the address of the archive alone.")
            return AskedArchive(address)
    if scheme(address) or SCP_FORM.fullmatch(address):
        if why := check_git_url(address):
            _refuse(redacted(address), why, FORMS)
        return AskedGit(address.rstrip("/"))
    if OWNER_AND_NAME.fullmatch(address):
        return AskedGit(f"https://github.com/{address.removesuffix('.git')}")
    pack, at, version = address.partition("@")
    if REGISTRY_ID.fullmatch(pack) and bool(at) == bool(version) and address == text:
        return AskedRegistry(pack, version)
    return _refuse(text, f"{text!r} names no place that a pack could come from.", FORMS)


def _own_name(asked: Asked) -> str:
    match asked:
        case AskedGit(url):
            return re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git")
        case AskedRegistry(pack):
            return pack
        case AskedArchive(url):
            if found := GITHUB_ARCHIVE.fullmatch(url):  # the file is called after the commit or tag
                return found[1]
            name = unquote(PurePosixPath(urlsplit(url).path).name)
            return re.sub(r"\.(tar\.\w+|\w+)$", "", name)
        case AskedFolder(path):
            return path.resolve().name


def _refuse(shown: str, what: str, hint: str = "", field: str = "SOURCE") -> NoReturn:
    place = field if field != "SOURCE" or not shown else f"SOURCE {shown}"
    raise InvalidInput([Problem("bad_source", what, hint, input=place)])
