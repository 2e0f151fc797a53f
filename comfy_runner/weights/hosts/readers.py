"""How each host's addresses are written: URLs, prefixes and AIRs, read into their kinds."""

import re
from collections.abc import Callable, Mapping
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlunsplit

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.urls import redacted
from comfy_runner.weights.hosts.kinds import (
    FOLDERS,
    REPO_PART,
    REPOSITORY,
    VERSION,
    Address,
    CivitAI,
    HuggingFace,
    Plain,
    Replicate,
    RepositoryKind,
    is_file,
)

HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
CIVITAI_HOSTS = frozenset(
    f"{sub}civitai.{end}" for sub in ("", "www.") for end in ("com", "red", "green")
)
REPLICATE_HOSTS = frozenset({"replicate.com", "www.replicate.com"})

HUB_FORMS = (
    "Forms that work: owner/repo, hf://owner/repo/file.safetensors and "
    "https://huggingface.co/owner/repo/resolve/main/file.safetensors."
)
CIVITAI_FORMS = (
    "Forms that work: https://civitai.com/models/MODEL?modelVersionId=VERSION and "
    "https://civitai.com/api/download/models/VERSION."
)
AIR_FORMS = (
    "Forms that work: urn:air:sdxl:lora:civitai:MODEL@VERSION and "
    "urn:air:sdxl:vae:huggingface:owner/repo@main."
)
REPLICATE_FORMS = (
    "Forms that work: https://replicate.com/owner/model, replicate:owner/model and "
    "owner/model:VERSION, where the version has 64 hexadecimal digits."
)
GITHUB_FORMS = "Give the link of one file: .../releases/download/TAG/FILE or .../raw/BRANCH/FILE."

REVISION = "main|master|[0-9a-f]{40}"
"""What is surely a revision, where a file could stand, too."""
HUB_VERBS = frozenset({"blob", "resolve", "raw", "tree"})
HUB_PAGES = re.compile(
    "api|blog|chat|collections|docs|enterprise|join|learn|login|models|new|organizations|papers"
    "|posts|pricing|search|settings|tasks"
)
REPLICATE_PAGES = re.compile(
    "about|account|api|blog|changelog|collections|deployments|docs|explore|home|p|pricing"
    "|predictions|search|signin|trainings"
)
REPLICATE_TABS = frozenset({"_weights", "api", "examples", "playground", "readme", "train"})


def refuse(text: str, why: str, hint: str = "") -> NoReturn:
    """Raises: `InvalidInput` (`bad_url`), showing nothing of the text that may be secret."""
    raise InvalidInput([Problem("bad_url", f"{_harmless(text)!r} cannot be used: {why}", hint)])


def _harmless(text: str) -> str:
    """A text without what could be secret in it."""
    shown_text = redacted(text) if "//" in text else re.sub(r"[?#].*", "", text, flags=re.DOTALL)
    return shown_text if len(shown_text) <= 300 else f"{shown_text[:297]}..."  # noqa: PLR2004


def check_printable(text: str) -> None:
    """Raises: `InvalidInput` for control characters and the like, which hide what is asked."""
    if not text.isprintable():
        refuse(text, "it holds characters that cannot be seen.", "Copy the address again.")


def _segments(text: str, path: str) -> list[str]:
    segments = [unquote(part) for part in path.split("/") if part]
    for segment in segments:
        if segment in (".", "..") or not segment.isprintable():
            refuse(text, "its path is malformed.")
    return segments


def _userinfo(parts: SplitResult) -> str:
    """The token in `https://user:token@host/` or `https://token@host/`, which git takes."""
    if parts.password:
        return unquote(parts.password)
    # How tokens of Hugging Face and Replicate begin; anything else is the name of a user.
    user = unquote(parts.username or "")
    return user if user.startswith(("hf_", "r8_")) else ""


def read_hub_url(text: str, parts: SplitResult) -> HuggingFace:
    """The file or repository at a page or download of Hugging Face, by the URL's path."""
    form = dict(parse_qsl(parts.query)).get("format", "").lower()
    if not re.fullmatch("[a-z0-9]{0,15}", form):
        refuse(text, "it chooses a file by what is no extension.", HUB_FORMS)
    return _read_hub(text, _segments(text, parts.path), form=form, token=_userinfo(parts))


def read_hub_text(text: str) -> HuggingFace:
    """`[hf:][//]owner/repo[@revision][/path]`, as huggingface_hub's file system writes it."""
    path = re.sub(r"^hf:(//)?", "", text, flags=re.IGNORECASE).partition("?")[0]
    return _read_hub(text, _segments(text, path))


def _read_hub(text: str, segments: list[str], *, form: str = "", token: str = "") -> HuggingFace:
    kind: RepositoryKind = "models"
    match segments:
        case ["datasets" | "spaces" as kind, *segments]:
            pass
        case [page, *_] if HUB_PAGES.fullmatch(page.lower()):
            refuse(text, "it is a page of Hugging Face, not a model.", HUB_FORMS)
    # A few old repositories, such as gpt2, have no owner.
    count = 1 if segments[1:2] and segments[1] in HUB_VERBS else 2
    name, at, stated = "/".join(segments[:count]).partition("@")
    rest = [*stated.split("/"), *segments[count:]] if at else segments[count:]
    if not REPOSITORY.fullmatch(name) or len(segments) < count:
        refuse(text, "it names no repository on Hugging Face.", HUB_FORMS)
    verb = ""
    if not at and rest and rest[0] in HUB_VERBS:
        verb, *rest = rest
    elif not at and rest and re.match(r"(?i)https?:", text):
        refuse(text, "it is a page of Hugging Face, not a file.", HUB_FORMS)
    revision, rest = _take_revision(rest) if verb or at else ("main", rest)
    path = "/".join(rest)
    if {".", "..", ""} & {*revision.split("/"), *(path.split("/") if path else ())}:
        refuse(text, "its revision or path is malformed.", HUB_FORMS)
    if not path and verb not in ("", "tree"):
        refuse(text, "it names no file.", HUB_FORMS)
    named = verb not in ("", "tree") or is_file(path)
    if kind == "spaces" and not named:
        refuse(text, "a space is a program, not a model.", HUB_FORMS)
    return HuggingFace(
        repo_id=name,
        revision=revision,
        path=path if named else "",
        directory="" if named else path,
        kind=kind,
        format="" if named else form,
        token=token,
    )


def _take_revision(parts: list[str]) -> tuple[str, list[str]]:
    """The revision, where three parts make `refs/pr/1`, and what follows it."""
    match parts:
        case ["refs", "pr" | "convert" as space, number, *rest]:
            return f"refs/{space}/{number}", rest
        case [revision, *rest]:
            return revision, rest
        case _:
            return "main", []


def _parse_civitai_url(text: str, parts: SplitResult) -> CivitAI:
    query = dict(parse_qsl(parts.query))
    model: str | None = None
    version: str | None = None
    match _segments(text, parts.path):
        case ["models", model, *_] | ["api", "v1", "models", model]:
            version = query.get("modelVersionId")
        case ["model-versions", version] | ["api", "v1", "model-versions", version]:
            pass
        case ["api", "download", "models", version]:
            pass
        case _:
            refuse(text, "it is no model on CivitAI.", CIVITAI_FORMS)
    selectors = [query.get(key, "") for key in ("type", "format", "size", "fp", "quantType")]
    if not all(re.fullmatch(r"[\w .+-]{0,40}", value) for value in selectors):
        refuse(text, "it chooses a file in a way that CivitAI does not know.")
    kind, form, size, precision, quant = selectors
    numbers = (model, version, query.get("fileId") if version else None)
    model_id, version_id, file_id = (None if n is None else _number(text, n) for n in numbers)
    return CivitAI(
        model_id=model_id,
        version_id=version_id,
        file_id=file_id,
        type=kind,
        format=form,
        size=size,
        fp=precision,
        quant=quant,
        token=query.get("token") or query.get("api_key") or _userinfo(parts),
    )


def _number(text: str, digits: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,15}", digits):
        refuse(text, "CivitAI's models and versions have numbers.", CIVITAI_FORMS)
    return int(digits)


def _parse_civitai_text(text: str) -> CivitAI:
    """`civitai:MODEL[@VERSION][+FILE]`."""
    return _read_civitai(text, text.partition(":")[2], "")


def _read_civitai(text: str, ident: str, model_folder: str) -> CivitAI:
    number = "([1-9][0-9]{0,15})"
    found = re.fullmatch(rf"{number}(?:@{number})?(?:\+{number})?(?:\.(\w{{1,15}}))?", ident)
    if not found:
        refuse(text, "CivitAI's models and versions have numbers.", AIR_FORMS)
    model, version, file, extension = found.groups()
    if file and not version:
        refuse(text, "a file needs its version beside it.", AIR_FORMS)
    return CivitAI(
        model_id=int(model),
        version_id=int(version) if version else None,
        file_id=int(file) if file else None,
        format=(extension or "").lower(),
        model_folder=model_folder,
    )


def _parse_air(text: str) -> Address:
    """`[urn:]air:[ecosystem:][type:]source:id[@version][+file][.format]`.

    As CivitAI's wiki page on AIR has it. On Hugging Face people also write the file in the place
    of the version, with or without its revision, so a version with a file's ending is one.
    """
    body = re.sub(r"^(urn:)?air:", "", text, flags=re.IGNORECASE)
    if body == text or body.count(":") not in (1, 2, 3):
        refuse(text, "it is no complete AIR.", AIR_FORMS)
    *kinds, source, ident = body.split(":")
    folder = FOLDERS.get(kinds[-1].lower(), "") if kinds else ""
    match source.lower():
        case "civitai":
            return _read_civitai(text, ident, folder)
        case "huggingface":
            return _read_hub_air(text, ident, folder)
        case _:
            refuse(text, f"nothing is known of the source {source!r}.", AIR_FORMS)


def _read_hub_air(text: str, ident: str, model_folder: str) -> HuggingFace:
    name, _, version = ident.partition("+")[0].partition("@")
    segments = _segments(text, name)
    repository, directories = "/".join(segments[:2]), segments[2:]
    stem, dot, ending = version.rpartition(".")
    extension = ""
    if dot and is_file(version) and re.fullmatch(REVISION, stem):
        version, extension = stem, ending.lower()
    elif not version and not directories and is_file(repository):
        repository, _, extension = repository.rpartition(".")
    revision, path = version or "main", "/".join(directories)
    if is_file(version):
        file = _segments(text, version)
        revision = "main"
        if not directories and len(file) > 1 and re.fullmatch(REVISION, file[0]):
            revision, *file = file
        path = "/".join([*directories, *file])
    if len(segments) < 2 or not REPOSITORY.fullmatch(repository):  # noqa: PLR2004
        refuse(text, "it names no repository on Hugging Face.", AIR_FORMS)
    return HuggingFace(
        repo_id=repository,
        revision=revision,
        path=path if is_file(path) else "",
        directory="" if is_file(path) else path,
        format=extension.lower(),
        model_folder=model_folder,
    )


def _parse_replicate_text(text: str) -> Replicate:
    body = re.sub(r"^replicate:(//)?", "", text, flags=re.IGNORECASE)
    found = re.fullmatch(f"({REPO_PART})/({REPO_PART})(?::({VERSION}))?", body)
    if not found:
        refuse(text, "it names no model on Replicate.", REPLICATE_FORMS)
    return Replicate(owner=found[1], model=found[2], version=found[3] or "")


def _parse_replicate_url(text: str, parts: SplitResult) -> Replicate:
    version = ""
    match _segments(text, parts.path):
        case [owner, model] | [owner, model, "versions"]:
            pass
        case [owner, model, tab] if tab in REPLICATE_TABS:
            pass
        case [owner, model, "versions", version] | [owner, model, "versions", version, "_weights"]:
            pass
        case _:
            refuse(text, "it is no model on Replicate.", REPLICATE_FORMS)
    named = re.fullmatch(f"{REPO_PART}/{REPO_PART}", f"{owner}/{model}")
    if not named or REPLICATE_PAGES.fullmatch(owner):
        refuse(text, "it is no model on Replicate.", REPLICATE_FORMS)
    if version and not re.fullmatch(VERSION, version):
        refuse(text, "its version is not complete.", REPLICATE_FORMS)
    return Replicate(owner=owner, model=model, version=version, token=_userinfo(parts))


def _parse_github(text: str, parts: SplitResult) -> Plain:
    match _segments(text, parts.path):
        case [] | [_] | [_, _] | [_, _, "releases"] | [_, _, "releases", "tag" | "latest"]:
            refuse(text, "it is a page, not a file.", GITHUB_FORMS)
        case [_, _, "tree", *_] | [_, _, "releases", "tag" | "expanded_assets", _]:
            refuse(text, "it is a page, not a file.", GITHUB_FORMS)
        case [_, _, "blob", _, *_]:
            path = parts.path.replace("/blob/", "/raw/", 1)
            return Plain(url=urlunsplit(parts._replace(path=path, query="", fragment="")))
    return Plain(url=text)


def _parse_drive(text: str, parts: SplitResult) -> Plain:
    """The form that also answers for files too large for Google's virus scan."""
    query = dict(parse_qsl(parts.query))
    match _segments(text, parts.path):
        case ["file", "d", ident, *_]:
            pass
        case ["open" | "uc" | "download", *_] if "id" in query:
            ident = query["id"]
        case _:
            hint = "Form that works: https://drive.google.com/file/d/ID/view."
            refuse(text, "it is no file on Google Drive.", hint)
    chosen = {"id": ident, "export": "download", "confirm": "t"}
    if "resourcekey" in query:
        chosen["resourcekey"] = query["resourcekey"]
    return Plain(url=f"https://{DRIVE}/download?{urlencode(chosen)}")


def _parse_dropbox(text: str, parts: SplitResult) -> Plain:
    """The file that a link to its page shares."""
    match _segments(text, parts.path):
        case ["s", _, _] | ["scl", "fi", _, _]:
            key = [(name, value) for name, value in parse_qsl(parts.query) if name == "rlkey"]
            query = urlencode([*key, ("dl", "1")])
            return Plain(url=urlunsplit(parts._replace(query=query, fragment="")))
        case _:
            hint = "Form that works: https://www.dropbox.com/scl/fi/.../FILE?rlkey=..."
            refuse(text, "it is no file on Dropbox.", hint)


def _page_to_file(pattern: str, file: str) -> Callable[[str, SplitResult], Plain]:
    """What turns the page of a file into the file by its path alone."""

    def read(_: str, parts: SplitResult) -> Plain:
        path = re.sub(pattern, file, parts.path, count=1)
        query = parts.query if path == parts.path else ""
        return Plain(url=urlunsplit(parts._replace(path=path, query=query, fragment="")))

    return read


DRIVE = "drive.usercontent.google.com"
PREFIXES: Mapping[str, Callable[[str], Address]] = {
    "urn": _parse_air,
    "air": _parse_air,
    "civitai": _parse_civitai_text,
    "hf": read_hub_text,
    "replicate": _parse_replicate_text,
}
HOSTS: Mapping[str, Callable[[str, SplitResult], Address]] = {
    **dict.fromkeys(HUB_HOSTS, read_hub_url),
    **dict.fromkeys(CIVITAI_HOSTS, _parse_civitai_url),
    **dict.fromkeys(REPLICATE_HOSTS, _parse_replicate_url),
    "github.com": _parse_github,
    "drive.google.com": _parse_drive,
    DRIVE: _parse_drive,
    **dict.fromkeys(("dropbox.com", "www.dropbox.com"), _parse_dropbox),
    "gitlab.com": _page_to_file("/-/blob/", "/-/raw/"),
    "hf-mirror.com": _page_to_file("/(blob|raw)/", "/resolve/"),
    **dict.fromkeys(
        ("modelscope.cn", "www.modelscope.cn"), _page_to_file("/file/view/", "/resolve/")
    ),
}
