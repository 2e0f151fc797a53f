"""The content store: model files kept once under their sha256, with names as hard links to them."""

import logging
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from comfy_runner.errors import DownloadFailed, InvalidInput, Problem
from comfy_runner.fetch.staged import sync
from comfy_runner.fetch.urls import redacted
from comfy_runner.weights.kept import care, locks
from comfy_runner.weights.kept.care import STAGING_AGE, Collected, Entry, Finding
from comfy_runner.weights.kept.files import (
    WAYS,
    UnfitTree,
    Way,
    digest,
    discard,
    key_of,
    sync_all,
)
from comfy_runner.weights.kept.index import OriginRow
from comfy_runner.weights.kept.linking import link
from comfy_runner.weights.kept.shelf import ID, Object, Shelf
from comfy_runner.weights.kept.space import Budget, make_room

__all__ = ["Collected", "Entry", "Finding", "Object", "ObjectStore", "Origin"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """What the store remembers of one place: what it gave, and when that was last true."""

    object_id: str
    """The object; pin it and get it, since others may remove it."""
    version: str
    """Tells the content from a later one of the same place."""
    file_name: str
    """What the place calls the file."""
    private: bool
    """Whether it was given only to somebody with a secret."""
    immutable: bool
    """Whether the place can never give anything else, so that it need not be asked again."""
    shown: str
    """The place as it may be shown."""
    checked_at: float
    """When the place was last asked, in seconds since 1970."""


class ObjectStore:
    """Objects under `.store` in a models folder, shared by any number of threads and processes.

    A process may die at any moment: what stands is whole, and the next store that is made cleans
    up behind it. Nothing is made before something is to be kept. In a folder that cannot be
    written to, all that only reads works, pins hold and `touch` does nothing.

    All methods that write raise `DownloadFailed` where the disk refuses. Between `add_file` and
    `link` an object is safe only while it is pinned, which may be done before it is there.
    """

    def __init__(
        self,
        models: Path,
        *,
        reserve: int,
        limit: int | None = None,
        ways: Sequence[Way] = WAYS,
    ) -> None:
        """`reserve` bytes of the disk stay free; `limit` is for the bytes of all objects.

        `ways` are the ways to make a name, best first.
        """
        self.models = models
        self._shelf = Shelf(models, ways)
        self._budget = Budget(reserve, limit)
        if self._shelf.writable:
            try:
                with self._shelf.storing("What dead processes left"):
                    self._shelf.make()
                    care.tidy(self._shelf)
            except DownloadFailed as err:
                log.warning("The model store could not be cleaned up: %s", err)

    # Unfinished work

    @property
    def staging(self) -> Path:
        """Folder for unfinished files, on the store's disk; it may not be there before `part`."""
        return self._shelf.staging

    def part(self, key: str) -> Path:
        """Where the download of `key` goes: the same in every process, so that it can be resumed.

        More files whose names begin with the part's may stand beside it. Only who holds the
        key's lock may touch them; while nobody does, they go after a day, or for want of room.
        """
        return self._staged(key, "part")

    def scratch(self, key: str) -> Path:
        """A path for what cannot be gone on with, such as a half unpacked archive.

        As `part`, but it goes as soon as a store is made while nobody holds the key's lock.
        """
        return self._staged(key, "scratch")

    def _staged(self, key: str, ending: str) -> Path:
        with self._shelf.storing("An unfinished download"):
            self._shelf.make()
        return self.staging / f"{key_of(key)}.{ending}"

    @contextmanager
    def locked(self, key: str, stop: threading.Event) -> Iterator[None]:
        """Hold the lock of a key, alone among all threads and processes.

        Raises: `Cancelled` once `stop` is set while somebody else holds it.
        """
        with ExitStack() as stack:
            with self._shelf.storing("The lock of a download"):
                self._shelf.make()
                lock = self._lock(key_of(key))
                stack.enter_context(locks.held_unless_stopped(lock, stop))
            yield

    @contextmanager
    def try_locked(self, key: str) -> Iterator[bool]:
        """Whether nobody held the lock of a key; it is held then."""
        with ExitStack() as stack:
            with self._shelf.storing("The lock of a download"):
                self._shelf.make()
                free = stack.enter_context(locks.held_if_free(self._lock(key_of(key))))
            yield free

    def _lock(self, name: str) -> Path:
        return self._shelf.locks / f"{name}.lock"

    # Objects

    def add_file(self, path: Path, sha256: str, *, size: int) -> Object:
        """Take over a verified file, best one in `staging`: it is gone from `path` afterwards.

        `sha256` is believed. When the store has the object already, the file is just removed. What
        stands beside a part in `staging`, with a name that begins with the part's, goes as well.
        """
        sha256 = sha256.lower()
        if not ID.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no sha256.")
        with self._shelf.storing(path.name):
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                raise DownloadFailed(
                    f"{path.name} cannot be kept: it has {found.st_size} bytes where {size} were "
                    "expected."
                )
            return self._add(path, sha256)

    def add_tree(self, folder: Path, *, pin: Callable[[str], None] = lambda _: None) -> Object:
        """Take over a folder, best one in `staging`: it is gone from `folder` afterwards.

        All files are read. `pin` is called with the id before others can see the object, which
        they may evict as soon as it is there. Raises: `DownloadFailed` for links and special
        files, and for a folder without files.
        """
        with self._shelf.storing(folder.name):
            try:
                identity = digest(folder)
            except UnfitTree as err:
                raise DownloadFailed(f"The folder {folder.name} cannot be kept: {err}") from err
            pin(identity)
            return self._add(folder, identity)

    def _add(self, path: Path, identity: str) -> Object:
        shelf = self._shelf
        shelf.make()
        target = shelf.objects / identity
        with shelf.pinned([identity]):
            sync_all(path)
            state = [*path.parent.glob(f"{path.name}?*")] if path.parent == self.staging else []
            with shelf.changing():
                standing = shelf.get(identity)
                if standing is not None:
                    discard(path)
                else:
                    # Something of another size is broken, and so are its names.
                    shelf.drop(identity)
                    path.rename(target)
                    sync(shelf.objects)
                entered = shelf.enter(identity)
            for file in state:  # of whoever fetched it
                discard(file)
        if entered is None:
            raise DownloadFailed(f"{identity} vanished from {shelf.objects}.")
        return entered

    def get(self, identity: str) -> Object | None:
        """The object of this id, if it stands in the store with the right size."""
        with self._shelf.reading():
            return self._shelf.get(identity)

    def touch(self, identities: Collection[str]) -> None:
        """Note that objects are used now: the least recently used go first. Never fails."""
        if self._shelf.writable:
            try:
                self._shelf.index.touch(identities, time.time())
            except (sqlite3.Error, OSError, DownloadFailed) as err:
                log.warning("The use of models could not be noted: %s", err)

    @contextmanager
    def pin(self, identities: Collection[str]) -> Iterator[None]:
        """Keep objects, there or still to come, from being removed by anybody.

        Ends with the process at the latest. Ask for the object after pinning it: it may have been
        removed before.
        """
        with suppress(DownloadFailed), self._shelf.storing("The note that models are in use"):
            self._shelf.make()
        with self._shelf.pinned(identities):
            yield

    # Names

    def link(self, object: Object, folder: str, name: str, *, replace: bool = False) -> Path:  # noqa: A002
        """The path `folder/name` below the models folder, at which the object stands now.

        It gets there in one step, as a hard link; on another disk as a symbolic link, and where
        there are none as a copy. A folder is made of hard links. An object of the store that stood
        there loses this name. A file that somebody else put there stays if it has the same bytes,
        and otherwise with `replace` only.

        Raises: `InvalidInput` for a name that is taken (`name_taken`) or leads out of the folder
        (`bad_name`); `DownloadFailed` also when the object is gone.
        """
        path = _joined(folder, name)
        if self.named(folder, name) != object:
            with self._shelf.storing(path):
                link(self._shelf, object.id, path, replace=replace)
        return self.models / path

    def named(self, folder: str, name: str) -> Object | None:
        """The object that a name leads to; None for other files and when there is nothing."""
        with self._shelf.reading():
            row = self._shelf.index.name(_joined(folder, name))
            if row is None or not self._shelf.stands(row):
                return None
            return self._shelf.get(row.object_id)

    # Origins

    def remember(
        self,
        identity: str,
        version: str,
        object: Object,  # noqa: A002
        *,
        file_name: str,
        private: bool,
        immutable: bool,
        shown: str = "",
    ) -> None:
        """Note which object a place gave just now.

        `identity` is what the place is called without secrets; only its hash is kept. `shown` is
        an address to show, of which user, password and query are not kept.
        """
        row = OriginRow(
            key_of(identity),
            object.id,
            _unicode(version),
            _unicode(file_name),
            private,
            immutable,
            redacted(shown) if shown else "",
            time.time(),
        )
        with self._shelf.storing("Where a model came from"):
            self._shelf.make()
            self._shelf.index.remember(row)

    def recall(self, identity: str) -> Origin | None:
        """What is remembered of a place, if its object is still there."""
        with self._shelf.reading():
            row = self._shelf.index.origin(key_of(identity))
            if row is None or self._shelf.get(row.object_id) is None:
                return None
        return Origin(
            row.object_id,
            row.version,
            row.file_name,
            row.private,
            row.immutable,
            row.shown,
            row.checked_at,
        )

    # Room

    def make_room(
        self,
        needed: int,
        *,
        keep: Collection[str] = (),
        release: Callable[[], None] | None = None,
    ) -> None:
        """Make room for `needed` bytes that are not on the disk yet.

        Removes unfinished downloads whose key nobody has locked, then the least recently used
        objects with all their names, but none that is pinned or in `keep`, nor any file that is
        not the store's. `release` is called once before the first object goes: it should make
        ComfyUI close its files, since an open file frees nothing.

        Raises: `DownloadFailed` with nothing removed when all of that would not be enough; and
        when two objects in a row freed nothing, since somebody has them open.
        """
        with self._shelf.reading():
            make_room(self._shelf, self._budget, needed, keep=keep, release=release)

    # Looking after it

    def entries(self) -> list[Entry]:
        """All objects, the least recently used first."""
        with self._shelf.reading():
            return care.entries(self._shelf)

    def remove(self, what: str) -> Entry:
        """Remove an object, by its id, with all its names; or one name, by `folder/name`.

        With its last name an object goes as well. The entry as it was before.

        Raises: `InvalidInput` when there is no such thing (`not_in_store`), or a run uses it
        (`in_use`).
        """
        with self._shelf.reading():
            return care.remove(self._shelf, what)

    def verify(self) -> Iterator[Finding]:
        """Read all objects again, one finding each; broken ones go with their names.

        Closing the iterator early ends it. An object that a run uses is only reported.
        """
        with self._shelf.reading():
            yield from care.verify(self._shelf)

    def gc(self, *, staging_age: float = STAGING_AGE) -> Collected:
        """Clean up: unfinished work that nobody goes on with and that is older than `staging_age`
        seconds, names that are gone, objects without an entry, locks that nobody holds.

        Removes no object.
        """
        if not self._shelf.writable:
            return Collected()
        with self._shelf.reading():
            self._shelf.make()
            done = care.tidy(self._shelf, staging_age=staging_age)
            return replace(done, locks=care.remove_locks(self._shelf))


def _unicode(text: str) -> str:
    """The text with a `?` for each half of a character, which SQLite does not take."""
    return text.encode(errors="replace").decode()


def _joined(folder: str, name: str) -> str:
    """Folder and name as one path. Raises: `InvalidInput` when it leads elsewhere."""
    path = f"{folder}/{name}"
    parts = path.split("/")
    try:
        path.encode()
        bad = ".." in parts or "." in parts or "" in parts or parts[0] == ".store" or "\0" in path
    except UnicodeEncodeError:
        bad = True
    if bad:
        what = f"{path!r} is no name below the models folder."
        raise InvalidInput([Problem("bad_name", what, "Use a plain relative path.")])
    return PurePosixPath(path).as_posix()
