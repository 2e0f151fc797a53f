"""The content store's folders and the steps on them that other modules put together."""

import errno
import os
import re
import secrets
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.staged import sync
from comfy_runner.weights.kept import locks
from comfy_runner.weights.kept.files import (
    Kind,
    Place,
    Way,
    measure,
    members,
    stands,
    take_away,
)
from comfy_runner.weights.kept.index import Index, NameRow, ObjectRow, Scan

UNWRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Object:
    """A file or a folder that the store keeps."""

    id: str
    """A file's sha256; a folder's digest of its files' paths and hashes. 64 hex digits."""
    kind: Kind
    size: int
    """Bytes, of a folder those of all its files."""
    path: Path
    """Where it stands in the store; it belongs to the store, and names lead to it."""


class Shelf:
    """The folders of one store, its locks and its index.

    Whatever gives an object or a name its place, or takes it, happens while `changing` is held:
    it is for short steps. Who uses an object for longer holds its pin, shared; who removes one
    needs the pin alone and never waits for it, so that the two locks cannot lock each other out.
    """

    def __init__(self, models: Path, ways: Sequence[Way]) -> None:
        self.models = models
        self.ways = ways
        self.root = models / ".store"
        self.objects = self.root / "objects"
        self.staging = self.root / "staging"
        self.locks = self.root / "locks"
        self.index = Index(
            self.root / "index.sqlite",
            writable=lambda: self.writable,
            changing=self.changing,
            scan=self.scan,
        )
        self._thread = threading.local()

    @property
    def writable(self) -> bool:
        """Whether there is a store that can be changed; a folder baked into an image is not."""
        return os.access(self.locks, os.W_OK)

    def make(self) -> None:
        """Make the folders, that of the locks last. Raises: `OSError`."""
        for folder in (self.objects, self.staging, self.locks):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of the whole store; a thread may do so again while it does."""
        if getattr(self._thread, "changing", False):
            yield
            return
        with locks.held(self.locks / "store.lock"):
            self._thread.changing = True
            try:
                yield
            finally:
                self._thread.changing = False

    @contextmanager
    def storing(self, what: str) -> Iterator[None]:
        """Turns what the disk or SQLite refuses into `DownloadFailed`."""
        try:
            yield
        except (OSError, sqlite3.Error) as err:
            raise DownloadFailed(
                f"{what} could not be stored under {self.models}: {_reason(err)}. "
                "Free some space there, or make the folder writable."
            ) from err

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns what the disk or SQLite refuses to tell into `DownloadFailed`."""
        try:
            yield
        except (OSError, sqlite3.Error) as err:
            raise DownloadFailed(
                f"The model store {self.root} cannot be used: {_reason(err)}."
            ) from err

    def pin_file(self, identity: str) -> Path:
        """The lock that keeps an object: shared by all who use it."""
        return self.locks / f"{identity}.pin"

    @contextmanager
    def pinned(self, identities: Collection[str]) -> Iterator[None]:
        """Keep objects from being removed. Raises: `DownloadFailed`."""
        with ExitStack() as pins:
            with self.storing("The note that models are in use"):
                for identity in sorted(set(identities)):
                    pins.callback(os.close, self._pin(identity))
            yield

    def _pin(self, identity: str) -> int:
        path = self.pin_file(identity)
        try:
            return locks.wait_for(path, shared=True)
        except OSError as err:
            if err.errno not in UNWRITABLE:
                raise
        # Nobody removes anything from a folder that cannot be written to: any file will do.
        return os.open(path if path.exists() else os.devnull, os.O_RDONLY)

    def name_lock(self, name: str) -> Path:
        """The lock of who makes a name; it tells whose the unfinished work in staging is."""
        return self.locks / f"{self.place(name).staged.name}.lock"

    def place(self, name: str) -> Place:
        """The place of a name below the models folder."""
        return Place.of(self.models, self.staging, name)

    def get(self, identity: str) -> Object | None:
        """The object, if all its bytes are there."""
        if not ID.fullmatch(identity):
            return None
        path = self.objects / identity
        found = measure(path)
        if found is None:
            return None
        row = self.index.find(identity)
        if row is not None and (row.kind, row.size) != found:
            return None
        return Object(identity, *found, path)

    def stands(self, row: NameRow) -> bool:
        """Whether the name leads to its object."""
        return stands(self.models / row.path, self.objects / row.object_id, row.mark)

    def enter(self, identity: str) -> Object | None:
        """Put what stands in the store under this id into the index."""
        found = measure(self.objects / identity)
        if found is None:
            return None
        self.index.add(ObjectRow(identity, *found, time.time()))
        return Object(identity, *found, self.objects / identity)

    def drop(self, identity: str) -> None:
        """Remove an object with all its names, the names first; needs `changing`."""
        path = self.objects / identity
        parents = set()
        # Who was making a name is dead, or the object would be pinned: the name may stand already.
        pending = [row for row in self.index.pending() if row.object_id == identity]
        for row in [*self.index.names(identity), *pending]:
            if row.owned and self.stands(row):
                place = self.place(row.path)
                take_away(place, path, self.put_away)
                parents.add(place.target.parent)
        for parent in parents:
            with suppress(FileNotFoundError):
                sync(parent)
        if path.is_dir():
            self._bury(path)
        else:
            path.unlink(missing_ok=True)
        self.index.forget_object(identity)

    def drop_name(self, name: str) -> None:
        """Remove one name of an object, which stays; needs `changing`."""
        row = self.index.name(name)
        if row is not None and row.owned and self.stands(row):
            place = self.place(name)
            take_away(place, self.objects / row.object_id, self.put_away)
        self.index.forget_names([name])

    def put_away(self, place: Place) -> None:
        """Remove what stands at a name, in one step, whatever it is; needs `changing`."""
        if place.target.is_symlink() or not place.target.is_dir():
            place.target.unlink(missing_ok=True)
            return
        try:
            self._bury(place.target)
        except OSError:  # it stands on another disk
            place.target.replace(place.gone)
            shutil.rmtree(place.gone, ignore_errors=True)

    def _bury(self, folder: Path) -> None:
        grave = self.staging / f"gone-{secrets.token_hex(8)}"
        folder.replace(grave)
        shutil.rmtree(grave, ignore_errors=True)

    def frees(self, identity: str) -> int:
        """Bytes of the disk that come back when an object goes with all its names.

        What somebody else has linked as well does not come back.
        """
        path = self.objects / identity
        ours: dict[int, int] = {}
        for row in self.index.names(identity):
            if row.owned and self.stands(row):
                for found in _statuses(self.models / row.path):
                    ours[found.st_ino] = ours.get(found.st_ino, 0) + 1
        return sum(
            found.st_blocks * 512
            for found in _statuses(path)
            if found.st_nlink <= 1 + ours.get(found.st_ino, 0)
        )

    def scan(self) -> Scan:
        """What stands on the disk: objects by their ids, names by their inodes.

        Copies cannot be told from a person's own files, and stay theirs.
        """
        objects = {}
        files: dict[tuple[int, int], list[tuple[str, str]]] = {}
        standing: list[Path] = []
        with suppress(FileNotFoundError, NotADirectoryError):
            standing += self.objects.iterdir()
        for path in standing:
            if not ID.fullmatch(path.name) or (found := measure(path)) is None:
                continue
            # Who cannot write holds no lock, and others may remove an object meanwhile.
            with suppress(FileNotFoundError):
                own = path.lstat()
                inside = [("", own)] if found[0] == "file" else [*members(path)]
                objects[path.name] = ObjectRow(path.name, *found, own.st_mtime)
                for member, status in inside:
                    key = status.st_dev, status.st_ino
                    files.setdefault(key, []).append((path.name, member))
        return Scan(tuple(objects.values()), tuple(self._scan_names(files) if files else ()))

    def _scan_names(self, files: dict[tuple[int, int], list[tuple[str, str]]]) -> Iterator[NameRow]:
        tops = [path for path in self.models.iterdir() if path.name != ".store" and path.is_dir()]
        seen: set[str] = set()
        for parent, folders, names in (entry for top in tops for entry in os.walk(top)):
            for name in [*names, *folders]:
                path = Path(parent, name)
                for row in self._rows_for(path, files):
                    if row.path not in seen and _storable(row.path) and self.stands(row):
                        seen.add(row.path)
                        yield row

    def _rows_for(
        self, path: Path, files: dict[tuple[int, int], list[tuple[str, str]]]
    ) -> Iterator[NameRow]:
        """The names that may be behind one thing in a model folder."""
        try:
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                leads = path.resolve()
                if leads.parent == self.objects.resolve():
                    yield NameRow(path.relative_to(self.models).as_posix(), leads.name)
                return
        except OSError:
            return
        for identity, member in files.get((status.st_dev, status.st_ino), ()):
            name = path.relative_to(self.models).as_posix()
            if not member:
                yield NameRow(name, identity)
            elif name.endswith(f"/{member}"):
                yield NameRow(name.removesuffix(f"/{member}"), identity)


def _reason(err: Exception) -> str:
    return (err.strerror if isinstance(err, OSError) else None) or str(err)


def _statuses(path: Path) -> list[os.stat_result]:
    """The status of a file, or of each file in a folder."""
    try:
        if path.is_symlink():
            return []
        return [found for _, found in members(path)] if path.is_dir() else [path.lstat()]
    except FileNotFoundError:
        return []


def _storable(name: str) -> bool:
    """Whether SQLite takes the name: it must be Unicode, and lead into a model folder."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "/" in name
