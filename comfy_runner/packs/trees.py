"""A pack's files on disk: what they hash to, and what was changed since they were put there."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from comfy_runner.errors import InvalidInput, MachineError, Problem
from comfy_runner.fetch.archives import encodable

RECORD = ".comfy_runner.json"
"""File in a pack's folder with the hashes of the files that we put there."""

METADATA = frozenset({".git", "__pycache__"})
BYTECODE = (".pyc", ".pyo")

LFS_HEAD = b"version https://git-lfs.github.com/spec/"
LFS_LARGEST = 1024
"""Bytes that a Git LFS pointer has at most (git-lfs, docs/spec.md)."""

LISTED = 8
"""How many files an error names."""


@dataclass(frozen=True, slots=True)
class Edits:
    """How a folder differs from what we put there."""

    changed: tuple[str, ...] = ()
    """Files of ours with other content, or gone; with `/`, sorted."""
    added: tuple[str, ...] = ()
    """Files that are not ours: many packs write their settings beside their code."""


def contents(tree: Path) -> dict[str, str]:
    """SHA-256 of every file by its path with `/`, sorted; no git metadata, no bytecode.

    Raises: `OSError`. `InvalidInput` for links and for names that a digest cannot hold.
    """
    found: dict[str, str] = {}
    odd: list[str] = []
    for folder, folders, names in os.walk(tree, onerror=_raise):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if name not in METADATA)
        odd += [name for name in folders if (here / name).is_symlink()]
        if here == tree and RECORD in folders:
            odd.append(RECORD)
        for name in names:
            path = here / name
            shown = path.relative_to(tree).as_posix()
            if name in METADATA or name.endswith(BYTECODE) or shown == RECORD:
                continue
            if path.is_symlink() or not path.is_file() or {"\n", "\\"} & set(shown):
                odd.append(shown)
                continue
            with path.open("rb") as file:
                found[shown] = hashlib.file_digest(file, "sha256").hexdigest()
    if odd:
        what = f"{tree.name} holds links or odd names: {listed(sorted(odd))}."
        hint = "A pack must be of plain files, so that it is the same everywhere."
        raise InvalidInput([Problem("odd_files", what, hint, input=tree.name)])
    return {name: found[name] for name in sorted(found, key=os.fsencode)}


def digest(files: Mapping[str, str]) -> str:
    """One SHA-256 for the files that `contents` gave: that of the lines `HASH  ./PATH`."""
    lines = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        lines.update(f"{files[name]}  ./".encode() + os.fsencode(name) + b"\n")
    return lines.hexdigest()


def record(tree: Path, *, script_due: bool = False) -> str:
    """Note in the folder itself which files are ours. Returns their digest.

    With `script_due` it is also noted that the pack's `install.py` is still to be run.
    """
    files = contents(tree)
    _note(tree, files, script_due=script_due)
    return digest(files)


def recorded(tree: Path) -> dict[str, str] | None:
    """What `record` noted; None where nothing can be read."""
    files = _noted(tree).get("files")
    if not isinstance(files, dict) or not all(isinstance(found, str) for found in files.values()):
        return None
    return files


def script_due(tree: Path) -> bool:
    """Whether `install.py` is still to be run, as `record` noted and `script_done` did not yet."""
    return _noted(tree).get("script_due") is True


def script_done(tree: Path) -> None:
    """Note that `install.py` has run to its end; for nobody's copy there is nothing to note."""
    if (files := recorded(tree)) is not None:
        _note(tree, files, script_due=False)


def edits(ours: Mapping[str, str], now: Mapping[str, str]) -> Edits:
    """How the files `now` differ from `ours`."""
    return Edits(
        tuple(sorted(name for name, found in ours.items() if now.get(name) != found)),
        tuple(sorted(name for name in now if name not in ours)),
    )


def lfs_pointers(tree: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Files whose content stands in Git LFS and was not fetched."""
    found = []
    for name in files:
        path = tree / name
        if path.stat().st_size <= LFS_LARGEST and path.read_bytes().startswith(LFS_HEAD):
            found.append(name)
    return tuple(found)


def strip(tree: Path) -> None:
    """Remove git metadata and bytecode, those of submodules too."""
    for folder, folders, names in os.walk(tree):
        here = Path(folder)
        for name in METADATA & set(folders):
            shutil.rmtree(here / name)
        folders[:] = [name for name in folders if name not in METADATA]
        for name in names:
            if name in METADATA or name.endswith(BYTECODE):
                (here / name).unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a pack's files, as `contents` lists them.

    Raises: as `contents`; `MachineError` where a file changes meanwhile or cannot be copied.
    """
    files = contents(source)
    try:
        for name in files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    except OSError as err:
        raise MachineError(f"{source} could not be copied to {target}: {err}.") from err


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first few names, fit to be printed, and how many there are besides."""
    left = len(names) - LISTED
    shown = encodable(", ".join(names[:LISTED]))
    shown = "".join(letter if letter.isprintable() else "?" for letter in shown)
    return shown + (f" and {left} more" if left > 0 else "")


def _noted(tree: Path) -> dict[str, object]:
    try:
        raw = json.loads((tree / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _note(tree: Path, files: Mapping[str, str], *, script_due: bool) -> None:
    noted = {"version": 1, "files": files, **({"script_due": True} if script_due else {})}
    # In ASCII, since a name need not be UTF-8.
    (tree / RECORD).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


def _raise(err: OSError) -> NoReturn:
    """For `os.walk`, which would leave out folders that it cannot read."""
    raise err
