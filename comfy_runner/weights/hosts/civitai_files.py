"""The one file that is meant among those that CivitAI lists for a model or a version of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from comfy_runner.errors import DownloadFailed, InvalidInput, Problem
from comfy_runner.weights.hosts.addresses import CivitAI, canonical
from comfy_runner.weights.hosts.api import HostApi, Refusal, malformed
from comfy_runner.weights.hosts.hub_files import HASH, refuse_many
from comfy_runner.weights.hosts.kinds import FOLDERS

MODEL_FILES = frozenset({"Model", "Pruned Model"})
"""Types of the files that are the model itself: others are its VAE, its training data, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CivitaiFile:
    """A file of one version of a model on CivitAI."""

    version_id: int
    file_id: int
    name: str
    path: str
    """Path and query of its download."""
    type: str
    format: str
    size: str
    fp: str
    quant: str
    size_kb: float | None
    """About so many times 1024 bytes."""
    sha256: str | None
    primary: bool
    folder: str = ""
    """Model folder that its type belongs into."""
    gated: bool = False


def choose_civitai_file(address: CivitAI, host: str, api: HostApi) -> CivitaiFile:
    """The file of a version that the address chooses, else the version's primary one.

    Without a version it is the newest that everybody may have, else the newest. `host` is
    CivitAI's URL; its answers are those of `/api/v1/models/ID` and `/api/v1/model-versions/ID`.

    Raises: `InvalidInput` (`ambiguous_weight`, `no_weight`, `bad_url`), `DownloadFailed`.
    """
    number = address.version_id or address.model_id
    what = f"the {'version' if address.version_id else 'model'} {number} on CivitAI"
    kind = "model-versions" if address.version_id else "models"
    url = f"{host}/api/v1/{kind}/{number}"
    answer = api.read(url, Refusal(what, "CIVITAI_TOKEN"))
    if address.version_id:
        version: Any = answer
        owner = answer.get("modelId")
        if address.model_id and isinstance(owner, int) and owner != address.model_id:
            told = f"Version {number} on CivitAI belongs to model {owner}, not {address.model_id}."
            raise InvalidInput([Problem("bad_url", told, "Copy the address again.")])
        model = answer.get("model")
    else:
        version, model = _newest(answer, what, url), answer
    match version, model:
        case {"id": int(version_id), "files": list(files)}, {"type": str(type_name)}:
            pass
        case _:
            malformed(url)
    gated = version.get("availability") == "EarlyAccess"
    listed = [_civitai_file(entry, version_id, type_name, gated=gated, url=url) for entry in files]
    if not listed:
        raise DownloadFailed(
            f"{what[0].upper()}{what[1:]} has no files to fetch: it may have been taken down."
        )
    return _chosen(address, listed)


def _newest(answer: Mapping[str, Any], what: str, url: str) -> Mapping[str, Any]:
    match answer:
        case {"modelVersions": list(versions)}:
            pass
        case _:
            malformed(url)
    published = [
        version
        for version in versions
        if isinstance(version, dict) and version.get("status", "Published") == "Published"
    ]
    if not published:
        raise DownloadFailed(
            f"{what[0].upper()}{what[1:]} has no published version: it may have been taken down."
        )
    # The dates are in ISO 8601 and UTC, so they sort as texts. Where none is known the first wins.
    return max(
        published,
        key=lambda version: (
            version.get("availability") != "EarlyAccess",
            str(version.get("publishedAt") or ""),
        ),
    )


def _civitai_file(
    entry: Any, version_id: int, type_name: str, *, gated: bool, url: str
) -> CivitaiFile:
    match entry:
        case {"id": int(file_id), "name": str(name)}:
            pass
        case _:
            malformed(url)
    metadata, hashes = entry.get("metadata"), entry.get("hashes")
    metadata = metadata if isinstance(metadata, dict) else {}
    digest = str(hashes.get("SHA256")) if isinstance(hashes, dict) else ""
    size = entry.get("sizeKB")
    kind = str(entry.get("type") or "")
    # A version of a checkpoint may bring its VAE along.
    own = FOLDERS.get(kind.lower().replace(" ", ""), "")
    chosen = {key: str(metadata.get(key) or "") for key in ("format", "size", "fp", "quantType")}
    return CivitaiFile(
        version_id=version_id,
        file_id=file_id,
        name=name,
        path=_download_path(entry.get("downloadUrl"), version_id, {"type": kind, **chosen}),
        type=kind,
        format=chosen["format"],
        size=chosen["size"],
        fp=chosen["fp"],
        quant=chosen["quantType"],
        size_kb=float(size) if isinstance(size, int | float) else None,
        sha256=digest.lower() if HASH.fullmatch(digest) else None,
        primary=entry.get("primary") is True,
        folder=own or FOLDERS.get(type_name.lower().replace(" ", ""), ""),
        gated=gated,
    )


def _download_path(url: object, version_id: int, query: Mapping[str, str]) -> str:
    """Path and query of a file's download, whatever host and token the answer names.

    The query is as `createSerializedFileDownloadUrl` in CivitAI's
    `src/server/common/model-helpers.ts` makes it: the file's number, or, where the file is
    another version's, its traits.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
    except ValueError:
        parts = urlsplit("")
    path = f"/api/download/models/{version_id}"
    pairs = [(key, value) for key, value in parse_qsl(parts.query) if key in ("fileId", *query)]
    if parts.path != path:
        pairs = [(key, value) for key, value in query.items() if value]
    return f"{path}?{urlencode(pairs, quote_via=quote)}" if pairs else path


def _chosen(address: CivitAI, files: Sequence[CivitaiFile]) -> CivitaiFile:
    """What the address chooses; among several the primary one, or the only model."""
    number = files[0].version_id
    if address.file_id:
        fitting = [file for file in files if file.file_id == address.file_id]
    else:
        fitting = [file for file in files if _fits(file, address)]
    if not fitting:
        there = ", ".join(sorted(_described(file) for file in files))
        what = f"Version {number} on CivitAI has no file like the one that the address chooses."
        raise InvalidInput([Problem("no_weight", what, f"It has {there}.")])
    primary = [file for file in fitting if file.primary]
    models = [file for file in fitting if file.type in MODEL_FILES]
    for candidates in (fitting, primary, models):
        if len(candidates) == 1:
            return candidates[0]
    what = f"Version {number} on CivitAI has {len(fitting)} files that could be meant."
    return refuse_many(
        what,
        [
            (
                canonical(CivitAI(version_id=number, file_id=file.file_id)),
                None if file.size_kb is None else int(file.size_kb * 1024),
            )
            for file in fitting
        ],
    )


def _fits(file: CivitaiFile, address: CivitAI) -> bool:
    pairs = (
        (address.type, file.type),
        (address.size, file.size),
        (address.fp, file.fp),
        (address.quant, file.quant),
    )
    if any(wanted and wanted.lower() != has.lower() for wanted, has in pairs):
        return False
    wanted = address.format.lower()
    # An AIR says an extension, CivitAI's own addresses a format such as SafeTensor.
    return wanted in ("", file.format.lower()) or file.name.lower().endswith(f".{wanted}")


def _described(file: CivitaiFile) -> str:
    traits = (file.type, file.format, file.size, file.fp, file.quant)
    return f"{file.name} ({', '.join(trait for trait in traits if trait)})"
