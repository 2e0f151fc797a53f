"""Files into a project's folder, all of them or none: a failure leaves what was there."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from comfy_runner.errors import InvalidInput, MachineError, Problem
from comfy_runner.publishing.keeping import RECORD, Change, Content, Record

UNDO = ".comfy-runner-undo"
"""Folder in a project with what it was; there only while it changes."""
ADDED = "added.json"
"""File in it with the paths that were not there before. Without it there is nothing to undo."""
SCRATCH = ".comfy-runner-new-"
"""How the folder with new files begins, in the project or beside it."""


def apply(folder: Path, change: Change, record: Record) -> None:
    """Make a folder what the change says, and write the record.

    All new files are written aside first, then renamed. What they replace is kept until the last
    one is in place, for `restore`: at once after a failure, at the next call after a crash.

    Raises: `InvalidInput` where the folder cannot be written; it is as it was then.
    """
    folder = folder.absolute()
    files = {**change.write, RECORD: record.to_json().encode()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and any(folder.iterdir()):
            _change(folder, change, files)
        else:
            _make(folder, files)
    except OSError as err:
        what = f"{folder} cannot be written: {err}. Nothing was changed."
        hint = "Free or unlock what it names, or name another folder."
        raise InvalidInput([Problem("bad_folder", what, hint, input="DIR")]) from err


def restore(folder: Path) -> bool:
    """Bring back what a project was before a change that was cut off. Returns whether any was.

    Raises: `MachineError` where that fails; what it was stays in `UNDO`.
    """
    undo = folder / UNDO
    listing = undo / ADDED
    try:
        for scratch in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(scratch)
        if not undo.is_dir():
            return False
        if not listing.is_file():  # cut off when all was done
            shutil.rmtree(undo)
            return False
        for path in json.loads(listing.read_bytes()):
            (folder / path).unlink(missing_ok=True)
            _drop_empty(folder, path)
        for saved in sorted((undo / "files").rglob("*")):
            if saved.is_file():
                target = folder / saved.relative_to(undo / "files")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(saved, undo / "part")
                (undo / "part").replace(target)
        listing.unlink()
        shutil.rmtree(undo)
    except (OSError, ValueError) as err:
        what = f"A change of {folder} was cut off, and what it was cannot be brought back: {err}."
        raise MachineError(f"{what} It is still in {undo}.") from err
    return True


def _make(folder: Path, files: Mapping[str, Content]) -> None:
    """A whole new project: written beside its place, then renamed."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder.parent) as scratch:
        made = Path(scratch, "project")
        for path, content in files.items():
            _write(made, path, content)
        made.replace(folder)


def _change(folder: Path, change: Change, files: Mapping[str, Content]) -> None:
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        fresh, undo = Path(scratch, "new"), Path(scratch, "undo")
        for path, content in files.items():
            _write(fresh, path, content)
        copies = {path: _free(folder, f"{path}.orig") for path in change.lost}
        (undo / "files").mkdir(parents=True)
        for path in [*files, *change.remove]:
            if (folder / path).exists():
                (undo / "files" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(folder / path, undo / "files" / path)
        added = [path for path in files if not (folder / path).exists()]
        (undo / ADDED).write_text(json.dumps([*added, *copies.values()]), "utf-8")
        undo.rename(folder / UNDO)
        try:
            for path, copy in copies.items():
                shutil.copy2(folder / path, folder / copy)
            for path in files:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / path).replace(folder / path)
            for path in change.remove:
                (folder / path).unlink()
                _drop_empty(folder, path)
        except BaseException:
            restore(folder)
            raise
        (folder / UNDO / ADDED).unlink()  # from here on the new project holds
        shutil.rmtree(folder / UNDO)


def _write(folder: Path, path: str, content: Content) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, target)
    else:
        target.write_bytes(content)
    if path.startswith("script/"):
        target.chmod(0o755)


def _free(folder: Path, name: str) -> str:
    number, free = 1, name
    while (folder / free).exists():
        number += 1
        free = f"{name}{number}"
    return free


def _drop_empty(folder: Path, path: str) -> None:
    """Remove the folders that a file was the last one of."""
    for parent in PurePosixPath(path).parents:
        place = folder / parent
        if place == folder or not place.is_dir() or any(place.iterdir()):
            return
        place.rmdir()
