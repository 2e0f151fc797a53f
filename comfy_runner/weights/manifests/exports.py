"""A manifest in the forms of other tools: Cog's `weights:` block, a list for `pget multifile`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml  # type: ignore[import-untyped]

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.weights.hosts import addresses
from comfy_runner.weights.weight import Source, Weight

LONGEST_LINE = 60 * 1024
"""Bytes of a line from which pget is not sure to read the list to its end: it stops at 64 KiB."""
COG_REMARK = "# Experimental in Cog 0.23: cog.yaml must say model:, not image:."
ANCHORED = re.compile(r"[!#*?\[\]\\]|\s$|^\s")
"""What means something else in a pattern of a `.gitignore`."""


@dataclass(frozen=True, slots=True)
class Export:
    """A manifest's text for another tool."""

    text: str
    left_out: tuple[str, ...] = ()
    """What the tool cannot do, one entry each: `folder/name: reason.`"""


class _Unfit(Exception):
    """The tool cannot fetch from this source; the text says why."""


def cog_block(weights: Iterable[Weight], models: str) -> Export:
    """The `weights:` block of cog.yaml, Cog 0.23 (experimental), for the models folder `models`.

    Cog mounts folders, read-only and disjoint, and keeps a source's file names: each folder below
    `models` that gets files is one block with a source for each file. So a weight whose file is
    called otherwise at its source is left out, and one below a folder that has files of its own.
    Cog sends a token (HF_TOKEN) for `hf:` sources only, and records URLs in `weights.lock`: what
    holds a query is left out. Rules: pkg/config/validate.go and pkg/model/weightsource, 6110c912.

    Raises: `InvalidInput` when `models` is no absolute path.
    """
    root = PurePosixPath(models)
    if not root.is_absolute() or ".." in root.parts:
        what = f"{models!r} is no absolute path: Cog mounts weights at one."
        raise InvalidInput([Problem("bad_folder", what, "Such as /src/models.", input="--models")])
    sources: dict[PurePosixPath, list[dict[str, Any]]] = {}
    left_out: list[str] = []
    # Shallow folders first: then the deeper ones find what stands above them.
    copies = sorted(_copies(weights), key=lambda copy: len(copy[1].parts))
    for weight, path in copies:
        target = root / path.parent
        above = next((folder for folder in sources if folder in target.parents), None)
        try:
            source = _cog_source(weight, path, above)
        except _Unfit as unfit:
            left_out.append(f"{path}: {unfit}.")
        else:
            sources.setdefault(target, []).append(source)
    names = _block_names(sources, root)
    blocks = [
        {"name": names[target], "target": str(target), "source": found}
        for target, found in sources.items()
    ]
    text = yaml.safe_dump({"weights": blocks}, sort_keys=False, allow_unicode=True, width=1000)
    return Export(f"{COG_REMARK}\n{text}", tuple(left_out))


def pget_list(weights: Iterable[Weight], models: str) -> Export:
    """The lines `URL DESTINATION` for `pget multifile`, 0.11, below the folder `models`.

    pget has no comments, quoting, archives, folders or tokens, and one failing line can make it
    hang: what it cannot fetch is left out. The list holds each entry's first URL that it can.
    """
    lines: list[str] = []
    left_out: list[str] = []
    for weight, path in _copies(weights):
        destination = str(PurePosixPath(models) / path)
        try:
            line = _pget_line(weight, destination)
        except _Unfit as unfit:
            left_out.append(f"{path}: {unfit}.")
        else:
            lines.append(line)
    return Export("".join(f"{line}\n" for line in lines), tuple(left_out))


def _copies(weights: Iterable[Weight]) -> Iterator[tuple[Weight, PurePosixPath]]:
    """Each weight with each path below the models folder that it has."""
    for weight in weights:
        for folder in weight.folders:
            yield weight, PurePosixPath(folder) / weight.name


def _first[T](weight: Weight, convert: Callable[[Source], T]) -> T:
    """What the first source that fits gives. Raises: `_Unfit` with the reason of each."""
    reasons: dict[str, None] = {}
    if weight.kind == "dir":
        raise _Unfit("it is a whole folder")
    for source in weight.urls:
        try:
            return convert(source)
        except _Unfit as unfit:
            reasons[str(unfit)] = None
    raise _Unfit("; ".join(reasons))


def _pget_line(weight: Weight, destination: str) -> str:
    def usable(source: Source) -> str:
        url = _web_url(source)
        if weight.gated or source.auth != "none":
            raise _Unfit("it wants a token, and pget sends none")
        return url

    if re.search(r"\s", destination):
        raise _Unfit(f"pget cannot write to {destination!r}, which holds a space")
    line = f"{_first(weight, usable)} {destination}"
    if len(line.encode()) > LONGEST_LINE:
        raise _Unfit("its line is too long for pget")
    return line


def _web_url(source: Source) -> str:
    """The https or http URL of the file itself."""
    if source.extract:
        raise _Unfit(f"it comes as an archive ({source.extract})")
    if scheme(source.url) == "hf":
        return addresses.canonical(_hub_file(source.url))
    if scheme(source.url) not in ("http", "https"):
        raise _Unfit(f"{redacted(source.url)!r} is no web address")
    if "@" in urlsplit(source.url).netloc:
        raise _Unfit("its URL holds a user or password")
    return source.url


def _hub_file(url: str) -> addresses.HuggingFace:
    match addresses.parse(url):
        case addresses.HuggingFace(path=path) as address if path:
            return address
    raise _Unfit(f"{redacted(url)!r} is no file")


def _cog_source(weight: Weight, path: PurePosixPath, above: PurePosixPath | None) -> dict[str, Any]:
    """The source of a block for a file that is to be called like `path`."""

    def usable(source: Source) -> dict[str, Any]:
        if scheme(source.url) == "" and not source.extract:
            return _cog_local(source, path)
        url = _web_url(source)
        address = addresses.parse(url)
        if isinstance(address, addresses.HuggingFace) and address.path == path.name:
            _check_name(address.path, path, pattern=True)
            if address.kind == "models" and "/" not in address.revision:
                revision = "" if address.revision == "main" else f"@{address.revision}"
                return {"uri": f"hf://{address.repo_id}{revision}", "include": [f"/{path.name}"]}
        if weight.gated or source.auth != "none":
            raise _Unfit("it wants a token, which Cog sends for the top of a repository only")
        if urlsplit(url).query:
            raise _Unfit("its URL has a query, which Cog would record in weights.lock")
        _check_name(unquote(PurePosixPath(urlsplit(url).path).name), path, pattern=False)
        return {"uri": url}

    if above is not None:
        raise _Unfit(f"it would be mounted inside {above}, which Cog forbids")
    return _first(weight, usable)


def _cog_local(source: Source, path: PurePosixPath) -> dict[str, Any]:
    local = PurePosixPath(source.url)
    _check_name(local.name, path, pattern=True)
    if local.parent == PurePosixPath():
        raise _Unfit("Cog does not take the project's own folder as a source")
    return {"uri": str(local.parent), "include": [f"/{local.name}"]}


def _check_name(name: str, path: PurePosixPath, *, pattern: bool) -> None:
    if name != path.name:
        raise _Unfit(f"it is called {name} at its source, and Cog renames nothing")
    if pattern and ANCHORED.search(name):
        raise _Unfit("its name means something else as a pattern of Cog")


def _block_names(targets: Iterable[PurePosixPath], root: PurePosixPath) -> Mapping[Any, str]:
    """A name for each folder that fits into an image's tag: `[a-z0-9]+([._-][a-z0-9]+)*`."""
    names: dict[PurePosixPath, str] = {}
    for target in targets:
        text = target.relative_to(root).as_posix().lower()
        stem = re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "weights"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[target] = name
    return names
