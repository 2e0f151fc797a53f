"""Looking after the content store: what dead processes left, what is lost, what is broken."""

import errno
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.weights.kept import locks
from comfy_runner.weights.kept.files import Kind, UnfitTree, digest, discard
from comfy_runner.weights.kept.index import NameRow
from comfy_runner.weights.kept.linking import finish
from comfy_runner.weights.kept.shelf import ID, Shelf

log = logging.getLogger(__name__)

STAGING_AGE = 86400.0
"""Seconds that an unfinished download waits to be gone on with."""

DAMAGE = frozenset({errno.EIO, errno.EBADMSG})
"""What the system says of a file whose bytes are lost; most other faults pass."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as a list shows it."""

    id: str
    kind: Kind
    size: int
    """Bytes."""
    names: tuple[str, ...]
    """Such as `loras/x.safetensors`, sorted."""
    last_used: float
    """In seconds since 1970."""
    pinned: bool
    """Whether a run uses it now, in this process or another."""
    shown: str
    """Where it came from, as it may be shown; empty when that is not known."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What cleaning up did."""

    staging: int = 0
    """Unfinished files and folders that were removed."""
    adopted: int = 0
    """Objects that stood in the store without being in the index."""
    lost: int = 0
    """Objects that were in the index without standing in the store."""
    names: int = 0
    """Names that were forgotten: they are gone, or lead to another file now."""
    locks: int = 0
    """Lock files that were removed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What reading one object again found."""

    id: str
    names: tuple[str, ...]
    """Its names when it was looked at."""
    fault: str
    """What is wrong with it; empty when it is sound."""
    removed: bool = False
    """Whether the object and its names were removed: not while a run uses it."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What belongs to one unfinished piece of work in the staging folder."""

    key: str
    paths: tuple[Path, ...]
    size: int
    """Bytes of the disk."""
    changed: float
    """When the latest of them changed, in seconds since 1970."""

    @property
    def resumable(self) -> bool:
        """Whether somebody may go on with it: a download, but no half unpacked archive."""
        return not self.key.startswith("name-") and not any(
            ".scratch" in path.name for path in self.paths
        )

    def remove(self, shelf: Shelf) -> bool:
        """Remove it unless somebody works on it, or has done so since; whether it is gone."""
        lock = shelf.locks / f"{self.key}.lock"
        with locks.held_if_free(lock) as free:
            now = _work(self.key, _staged(shelf).get(self.key, ()))
            if not free or (now is not None and now.changed != self.changed):
                return False
            for path in now.paths if now is not None else ():
                discard(path)
            return True


def tidy(shelf: Shelf, *, staging_age: float = STAGING_AGE) -> Collected:
    """Bring disk and index together again after a crash; reads no file's content."""
    with shelf.changing():
        adopted, lost = _match_objects(shelf)
        _finish_names(shelf)
        names = _match_names(shelf)
        return Collected(_clean_staging(shelf, staging_age), adopted, lost, names)


def remove_locks(shelf: Shelf) -> int:
    """Remove the files of locks that nobody holds; how many there were."""
    files = [path for path in shelf.locks.iterdir() if path.name != "store.lock"]
    return sum(locks.remove_if_free(path) for path in files)


def leftovers(shelf: Shelf) -> list[Leftovers]:
    """All unfinished work in the staging folder, the oldest first, whether it goes on or not."""
    found = [_work(key, paths) for key, paths in _staged(shelf).items()]
    return sorted(filter(None, found), key=lambda work: work.changed)


def _staged(shelf: Shelf) -> dict[str, list[Path]]:
    """What stands in the staging folder, by its key; what is only still to be deleted goes."""
    groups: dict[str, list[Path]] = {}
    for path in shelf.staging.iterdir():
        if path.name.startswith("gone-"):
            discard(path)
        else:
            groups.setdefault(path.name.partition(".")[0], []).append(path)
    return groups


def _work(key: str, paths: Collection[Path]) -> Leftovers | None:
    """What belongs to a key as it is now; None when nothing of it is there any more."""
    inside = [status for path in paths for status in _statuses(path)]
    if not inside:
        return None
    size = sum(status.st_blocks * 512 for status in inside)
    return Leftovers(key, tuple(paths), size, max(status.st_mtime for status in inside))


def entries(shelf: Shelf) -> list[Entry]:
    """All objects, the least recently used first."""
    shown = shelf.index.shown()
    names: dict[str, list[str]] = {}
    for name in shelf.index.names():
        if shelf.stands(name):
            names.setdefault(name.object_id, []).append(name.path)
    return [
        Entry(
            row.id,
            row.kind,
            row.size,
            tuple(names.get(row.id, ())),
            row.used,
            locks.is_held(shelf.pin_file(row.id)),
            shown.get(row.id, ""),
        )
        for row in shelf.index.objects()
    ]


def remove(shelf: Shelf, what: str) -> Entry:
    """See `ObjectStore.remove`."""
    _find(shelf, what)  # a store that cannot be locked is told what it lacks, too
    with shelf.changing():
        # Only now: the name may have gone to another object, and the object got other names.
        entry = _find(shelf, what)
        with locks.held_if_free(shelf.pin_file(entry.id)) as free:
            if not free:
                text, hint = f"{what} is in use by a run.", "Try again when the run has ended."
                raise InvalidInput([Problem("in_use", text, hint)])
            if what == entry.id or entry.names == (what,):
                shelf.drop(entry.id)
            else:
                shelf.drop_name(what)
    return entry


def _find(shelf: Shelf, what: str) -> Entry:
    """The object of an id or a name. Raises: `InvalidInput`."""
    for entry in entries(shelf):
        if what == entry.id or what in entry.names:
            return entry
    text = f"The model store has no {what!r}."
    hint = "`comfy-runner cache ls` shows what it has."
    raise InvalidInput([Problem("not_in_store", text, hint)])


def verify(shelf: Shelf) -> Iterator[Finding]:
    """Read every object again; a broken one goes with all its names, unless a run uses it."""
    for row in shelf.index.objects():
        names = tuple(name.path for name in shelf.index.names(row.id))
        seen = _seen(shelf, row.id)
        fault, is_damaged = _fault(shelf, row.id)
        removed: bool | None = False
        if fault:
            removed = _remove_broken(shelf, row.id, seen, is_damaged=is_damaged)
        if removed is None:
            continue
        if fault:
            log.warning("The model object %s is broken: %s", row.id, fault)
        yield Finding(row.id, names, fault, removed)


def _fault(shelf: Shelf, identity: str) -> tuple[str, bool]:
    """What is wrong with an object, if anything, and whether that is no passing trouble."""
    path = shelf.objects / identity
    with shelf.pinned([identity]):
        try:
            found = digest(path)
        except FileNotFoundError:
            return "it is gone.", True
        except UnfitTree as err:
            return str(err), True
        except OSError as err:
            return f"it cannot be read: {err.strerror}.", err.errno in DAMAGE
    return ("", False) if found == identity else (f"its content has the hash {found} now.", True)


def _remove_broken(
    shelf: Shelf, identity: str, seen: tuple[int, ...] | None, *, is_damaged: bool
) -> bool | None:
    """Remove a broken object unless a run uses it; whether it was removed.

    None when it is no more what was `seen`, as reading takes long: others have removed it, or put
    a sound one in its place.
    """
    with ExitStack() as stack:
        if shelf.writable:
            stack.enter_context(shelf.changing())
        if shelf.index.find(identity) is None or _seen(shelf, identity) != seen:
            return None
        if not shelf.writable or not is_damaged:
            return False
        free = stack.enter_context(locks.held_if_free(shelf.pin_file(identity)))
        if free:
            shelf.drop(identity)
        return free


def _seen(shelf: Shelf, identity: str) -> tuple[int, ...] | None:
    """What tells the file or folder of an object from one that came later; None without one."""
    try:
        status = (shelf.objects / identity).lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _match_objects(shelf: Shelf) -> tuple[int, int]:
    standing = {path.name for path in shelf.objects.iterdir() if ID.fullmatch(path.name)}
    known = {row.id for row in shelf.index.objects()}
    adopted = sum(shelf.enter(identity) is not None for identity in sorted(standing - known))
    for identity in known - standing:
        for row in shelf.index.names(identity):
            _forget_name(shelf, row)
        shelf.index.forget_object(identity)
    return adopted, len(known - standing)


def _finish_names(shelf: Shelf) -> None:
    """Enter the names that a dead process made, and remove what it left unfinished."""
    for row in shelf.index.pending():
        with locks.held_if_free(shelf.name_lock(row.path)) as free:
            if free:
                finish(shelf, row)


def _match_names(shelf: Shelf) -> int:
    gone = []
    for row in shelf.index.names():
        place = shelf.place(row.path)
        if place.gone.is_dir():
            shutil.rmtree(place.gone, ignore_errors=True)
        if not shelf.stands(row):
            _forget_name(shelf, row)
            gone.append(row.path)
    if gone:
        shelf.index.forget_names(gone)
    return len(gone)


def _forget_name(shelf: Shelf, row: NameRow) -> None:
    """Remove a link of ours that leads nowhere: ComfyUI would list it and fail to load it."""
    target = shelf.models / row.path
    if target.is_symlink() and not target.exists():
        with suppress(FileNotFoundError):  # a person may take it away as well
            if target.readlink().name == row.object_id:
                target.unlink()


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """The status of a file, or of a folder and all that is in it; of what goes meanwhile none."""
    for parent, _, names in os.walk(path):
        for name in ("", *names):
            with suppress(FileNotFoundError):
                yield Path(parent, name).lstat()
    if not path.is_dir():
        with suppress(FileNotFoundError):
            yield path.lstat()


def _clean_staging(shelf: Shelf, age: float) -> int:
    found = leftovers(shelf)
    # Only now: what another thread began while it was listed must not seem to come from the future.
    now = time.time()
    old = [work for work in found if not work.resumable or abs(now - work.changed) >= age]
    return sum(len(work.paths) for work in old if work.remove(shelf))
