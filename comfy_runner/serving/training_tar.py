"""The tar of a training: weights, a manifest of them, and maybe a workflow, all verified."""

import hashlib
import json
import tarfile
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any
from unicodedata import normalize

from comfy_runner.config import Config
from comfy_runner.documents import source as documents
from comfy_runner.errors import CallerError, DownloadFailed, InvalidInput, MachineError, Problem
from comfy_runner.fetch.archives import BadArchive, find_weights
from comfy_runner.fetch.endings import WEIGHTS
from comfy_runner.fetch.judge import judge
from comfy_runner.fetch.staged import sync
from comfy_runner.fetch.urls import clean_name
from comfy_runner.weights.bringing.made_names import ending
from comfy_runner.weights.kept.space import free_bytes
from comfy_runner.weights.manifests.document import content, write
from comfy_runner.weights.weight import Source, Weight, human_size

MANIFEST, WORKFLOW, MODELS = "manifest.json", "workflow.json", "models"
"""What the tar holds: a weights manifest whose URLs are paths in the tar, maybe a workflow, and the
files as `models/FOLDER/NAME`."""
LORAS = "loras"
"""Where the one file of somebody else's training belongs."""
MAX_MANIFEST = 16 * 1024**2
"""Bytes that the manifest may have."""
ANEW = "Make it anew with train.py."


@dataclass(frozen=True, slots=True)
class Packed:
    """One file that goes into a tar."""

    weight: Weight
    """Its names, size and hash; its only URL is its path in the tar."""
    path: Path
    """Where its bytes are."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What came out of a tar."""

    weights: tuple[Weight, ...]
    """Each with its size and hash."""
    workflow: Mapping[str, Any] | None
    files: Mapping[str, Path]
    """A weight's label to its file."""


def packed(weight: Weight, path: Path, sha256: str) -> Packed:
    """The file of a weight as it goes into a tar; `weight.urls` do not count.

    Its names are in Unicode's NFC, in which a manifest is read.
    """
    name, *folders = (normalize("NFC", each) for each in (weight.name, *weight.folders))
    weight = replace(weight, name=name, folders=tuple(folders))
    url = f"{MODELS}/{weight.label}"
    size = path.stat().st_size
    return Packed(replace(weight, urls=(Source(url),), size=size, sha256=sha256), path)


def write_tar(
    folder: Path, files: Sequence[Packed], workflow: Mapping[str, Any] | None, *, reserve: int
) -> Path:
    """A new tar in a folder, the same bytes for the same content; its name tells the content.

    Nothing in it is compressed, as weights hardly get smaller. `reserve` bytes of the disk stay
    free. A tar that is written only in part is never seen.

    Raises: `MachineError` for want of room, `DownloadFailed` for a file that is another one now.
    """
    files = sorted(files, key=lambda file: file.weight.label)
    texts = {MANIFEST: write(file.weight for file in files).encode()}
    if workflow is not None:
        texts[WORKFLOW] = f"{json.dumps(workflow, indent=2)}\n".encode()
    needed = sum(file.path.stat().st_size for file in files) + sum(map(len, texts.values()))
    needed += tarfile.RECORDSIZE * (1 + len(files))  # headers and padding
    free = free_bytes(folder)
    if free < needed + reserve:
        raise MachineError(
            f"The tar needs {human_size(needed)} in {folder}; {human_size(free)} are free, of which"
            f" {human_size(reserve)} must stay so. Free some space, or pack less."
        )
    digest = hashlib.sha256(b"\0".join(texts.values())).hexdigest()
    target = folder / f"trained-{digest[:12]}.tar"
    part = folder / f".{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(part, "x", format=tarfile.GNU_FORMAT) as tar:
            for name, text in texts.items():
                tar.addfile(_header(name, len(text)), BytesIO(text))
            for file in files:
                _add(tar, file)
        sync(part)
        part.replace(target)
    except OSError as err:
        raise MachineError(
            f"The tar could not be written into {folder}: {err.strerror or err}. Free some space"
            " there, or make the folder writable."
        ) from err
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return target


def read_tar(folder: Path, paths: Collection[Path], config: Config, *, shown: str) -> Contents:
    """What was unpacked into a folder, once all of it is what it should be.

    Without a manifest it is a trained model's tar of somebody else: its one safetensors file is
    then a LoRA, called as it is there. `shown` names the tar in errors.

    Raises: `BadArchive`, `HashMismatch` and other kinds of `DownloadFailed`; `InvalidInput` for a
    manifest or workflow that does not hold, and for files that must not be loaded.
    """
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    if MANIFEST in names and any(name.startswith(f"{MODELS}/") for name in names):
        found = _of_ours(names, shown)
    else:
        file = find_weights([*paths], folder, shown=shown)
        weight = Weight(name=clean_name(file.name), folders=(LORAS,), urls=(Source(file.name),))
        found = Contents((weight,), None, {weight.label: file})
    for weight in found.weights:
        check_loadable(weight.name, config, f"{weight.label} of {shown}")
    sound = (_judged(weight, found.files[weight.label], shown) for weight in found.weights)
    return replace(found, weights=tuple(sound))


def check_loadable(name: str, config: Config, shown: str) -> None:
    """Whether ComfyUI may load a file of this name, whose bytes somebody else has chosen.

    Raises: `InvalidInput` for what is no weight, and for one whose loading could run its code.
    """
    if PurePosixPath(name).suffix.lower() not in WEIGHTS:
        what = f"{shown} has the name of no model file."
        hint = "Name it as a model, such as loras/style.safetensors."
        raise InvalidInput([Problem("no_weight", what, hint)])
    ending(name, allow_pickles=config.allow_pickles, shown=shown)


def _of_ours(names: Mapping[str, Path], shown: str) -> Contents:
    if names[MANIFEST].stat().st_size > MAX_MANIFEST:
        raise BadArchive(shown, "bad_archive", f"Its {MANIFEST} is too long.", ANEW)
    workflow = None
    place = MANIFEST
    try:
        weights = content(names[MANIFEST].read_bytes()).weights
        if WORKFLOW in names:
            place = WORKFLOW
            workflow = documents.read(names[WORKFLOW])
    except CallerError as err:
        raise type(err)(
            replace(problem, input=" of ".join(filter(None, (problem.input, place, shown))))
            for problem in err.problems
        ) from err
    files = {weight.label: _member(weight, names, shown) for weight in weights}
    if len(set(files.values())) < len(files):
        what = f"Its {MANIFEST} names one member for two weights."
        raise BadArchive(shown, "bad_archive", what, ANEW)
    others = names.keys() - {MANIFEST, WORKFLOW, *(weight.urls[0].url for weight in weights)}
    if others:
        what = f"Its {MANIFEST} does not name its member {min(others)!r}."
        raise BadArchive(shown, "bad_archive", what, ANEW)
    return Contents(weights, workflow, files)


def _member(weight: Weight, names: Mapping[str, Path], shown: str) -> Path:
    path = weight.urls[0].url
    if weight.kind != "file" or path not in names or not path.startswith(f"{MODELS}/"):
        what = f"It holds no file for {weight.label} of its {MANIFEST}."
        raise BadArchive(shown, "bad_archive", what, ANEW)
    if weight.size is None or weight.sha256 is None:
        what = f"Its {MANIFEST} does not say the size and sha256 of {weight.label}."
        raise BadArchive(shown, "bad_archive", what, ANEW)
    return names[path]


def _judged(weight: Weight, file: Path, shown: str) -> Weight:
    """The weight with the size and hash that its file was found to have."""
    sha256 = judge(
        file,
        name=weight.name,
        size=weight.size,
        sha256=weight.sha256,
        shown=f"{weight.label} of {shown}",
    )
    return replace(weight, size=file.stat().st_size, sha256=sha256)


def _header(name: str, size: int) -> tarfile.TarInfo:
    """A member's header, in which nothing tells when and by whom it was made."""
    header = tarfile.TarInfo(name)
    header.size = size
    return header


def _add(tar: tarfile.TarFile, file: Packed) -> None:
    weight = file.weight
    with file.path.open("rb") as raw:
        source = _Hashed(raw)
        tar.addfile(_header(weight.urls[0].url, weight.size or 0), source)
        if source.sha256 != weight.sha256 or raw.read(1):
            raise DownloadFailed(f"{weight.label} has changed while it was packed. Ask again.")


class _Hashed(BytesIO):
    """A file that is hashed as it is read."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__()
        self._raw = raw
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hash of what was read so far: 64 hexadecimal digits."""
        return self._hash.hexdigest()

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes."""
        chunk = self._raw.read(-1 if size is None else size)
        self._hash.update(chunk)
        return chunk
