"""Files into a project's folder, all of them or none: a failure leaves what was there."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from comfy_runner.errors import InvalidInput, MachineError, Problem
from comfy_runner.publishing.keeping import RECORD, Change, Content, Record, fault, is_inside

UNDO = ".comfy-runner-undo"
"""Folder in a project with what it was; there only while it changes."""
ADDED = "added.json"
"""File in it with the paths that were not there before. Without it there is nothing to undo."""
SCRATCH = ".comfy-runner-new-"
"""How the folder with new files begins, in the project."""
BESIDE = ".comfy-runner-make-"
"""How it begins beside a project that is not there yet."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep all others who ask so out of a folder, if there is one.

    Raises: `InvalidInput` where somebody else is at it, and for what cannot be looked into.
    """
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    except OSError as err:
        problem = Problem("bad_folder", f"{folder} cannot be read: {err.strerror}.", input="DIR")
        raise InvalidInput([problem]) from err
    try:
        with suppress(OSError):  # not every file system has locks
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = f"Another comfy-runner new is at work in {folder}."
                problem = Problem("busy_folder", what, "Wait for its end.", input="DIR")
                raise InvalidInput([problem]) from None
        yield
    finally:
        os.close(place)  # which unlocks it, too


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
        if folder.exists():  # also an empty one is not replaced: somebody's shell may stand in it
            _change(folder, change, files)
        else:
            _make(folder, files)
    except OSError as err:
        what = f"{folder} cannot be written: {err}. Nothing was changed."
        hint = "Free or unlock what it names, or name another folder."
        raise InvalidInput([Problem("bad_folder", what, hint, input="DIR")]) from err


def restore(folder: Path) -> bool:
    """Bring back what a project was before a change that was cut off. Returns whether any was.

    The folder is one in which one is `alone`. What was kept may have come with the project from
    elsewhere: nothing outside of it is touched, nor read.

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
        added, saved = _kept(folder)
        for path in added:
            (folder / path).unlink(missing_ok=True)
            _drop_empty(folder, path)
        for path in saved:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(undo / "files" / path, undo / "part")
            (undo / "part").replace(target)
        listing.unlink()
        shutil.rmtree(undo)
    except (OSError, ValueError) as err:
        what = f"A change of {folder} was cut off, and what it was cannot be brought back: {err}."
        raise MachineError(f"{what} It is still in {undo}.") from err
    return True


def _kept(folder: Path) -> tuple[list[str], list[str]]:
    """The paths that a change added, and those whose files it kept.

    Raises: `OSError`; `ValueError` for what leads out of the project.
    """
    undo = f"{UNDO}/files"
    added = json.loads((folder / UNDO / ADDED).read_bytes())
    if not isinstance(added, list) or not all(isinstance(path, str) for path in added):
        raise ValueError(f"{ADDED} is no list of paths")
    found = sorted((folder / undo).rglob("*"))
    saved = [path.relative_to(folder / undo).as_posix() for path in found if path.is_file()]
    for path in (f"{UNDO}/part", *added, *saved, *(f"{undo}/{path}" for path in saved)):
        if not is_inside(path):
            raise ValueError(f"{path} is outside of the project")
        if why := fault(folder, path):
            raise ValueError(why)
    return added, saved


def _make(folder: Path, files: Mapping[str, Content]) -> None:
    """A whole new project: written beside its place, then renamed."""
    with tempfile.TemporaryDirectory(prefix=BESIDE, dir=folder.parent) as scratch:
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
