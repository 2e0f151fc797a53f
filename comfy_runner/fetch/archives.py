"""Archives unpacked into a folder: plain files only, none outside it, none past the limits."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path

from comfy_runner.fetch.endings import SAFETENSORS
from comfy_runner.fetch.unpacking import (
    BadArchive,
    Kind,
    Odd,
    Unpacking,
    encodable,
    listed,
    plain,
)

__all__ = ["BadArchive", "Kind", "Odd", "encodable", "find_weights", "promised", "unpack"]

MAX_FILES = 2000
"""Most files that one archive may hold, unless the caller knows better."""
MAX_NAME_BYTES = 200
"""Longest file name; file systems end at 255, and a name made from it is somewhat longer."""
TRAINING_STATE = re.compile(r"checkpoint-\d+")
"""Folder of an unfinished training, as diffusers' and accelerate's trainers leave it."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    kind: Kind = "",
    strip: int = 0,
    only: str = "",
    max_bytes: int,
    max_files: int = MAX_FILES,
    max_name_bytes: int = MAX_NAME_BYTES,
    odd: Odd = "refuse",
    shown: str = "",
    cancelled: threading.Event | None = None,
) -> list[Path]:
    """The files of a zip, or of a tar plain or in gzip, bzip2, xz or zstandard, in
    their order in it.

    They are written into `folder`, which should be empty: what stands there already is never
    overwritten. After a failure it holds a part of them, to be removed by the caller. Nothing of
    what the archive says of modes, owners and times counts, and nothing is synced to the disk.

    `strip` takes leading folders off; files with no more parts than that are left out. `only` is
    the path in the archive of the one file to unpack. The limits count all files of the archive,
    also those left out. `shown` is what errors call the archive. The archive is read to its end,
    so that the checksum of a compressed one is checked too; memory stays bounded.

    Raises: `BadArchive`; `Cancelled` soon after `cancelled` is set; `OSError` when the archive
    cannot be read or the disk takes no file.
    """
    job = Unpacking(
        shown=shown or archive.name,
        folder=folder,
        strip=strip,
        only=plain(only) if only else "",
        max_bytes=max_bytes,
        max_files=max_files,
        max_name_bytes=max_name_bytes,
        odd=odd,
        cancelled=cancelled or threading.Event(),
    )
    with archive.open("rb") as raw:
        if (kind or job.kind_of(raw)) == "zip":
            return job.write(job.zipped(archive))
        return job.write(job.tarred(raw))


def promised(name: str) -> Kind:
    """The kind of archive that the ending of a file's name promises; empty for none."""
    found = re.search(r"\.(tar(\.(gz|xz|bz2|zst))?|tgz|txz|tbz2?|tzst|zip)$", name.lower())
    if found is None:
        return ""
    return "zip" if found[1] == "zip" else "tar"


def find_weights(paths: Sequence[Path], folder: Path, *, shown: str = "The archive") -> Path:
    """The one safetensors file among what was unpacked into `folder`, as of a trained model.

    Besides it there may be captions, logs and other files. What macOS adds, an optimiser's state
    and the `checkpoint-500` folders of an unfinished training do not count.

    Raises: `BadArchive` that lists the candidates where there is none, or more than one.
    """
    names = {path: path.relative_to(folder) for path in paths}
    found = [
        path
        for path, name in names.items()
        if name.suffix.lower() in SAFETENSORS
        and "__MACOSX" not in name.parts
        and not name.name.startswith(".")
        and not name.name.lower().startswith("optimizer")
    ]
    finished = [
        path for path in found if not any(map(TRAINING_STATE.fullmatch, names[path].parts[:-1]))
    ]
    candidates = finished or found
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        them = listed([str(names[path]) for path in candidates])
        what = f"It holds {len(candidates)} safetensors files, and one was expected: {them}."
        hint = "Name the one you want in a manifest, as its source's member."
    else:
        what = f"It holds no safetensors file; it holds {listed([str(n) for n in names.values()])}."
        hint = "Give the address of an archive with the trained weights, or of the file itself."
    raise BadArchive(shown, "bad_archive", what, hint)
