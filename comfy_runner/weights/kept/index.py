"""The content store's index in SQLite; a broken one is moved aside and made anew from the disk."""

import sqlite3
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from comfy_runner.weights.kept.files import Kind

APPLICATION = 0x436F5374
VERSION = 1
BUSY = 30.0
"""Seconds that another process's transaction may be waited for."""
BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
SCHEMA = (
    "CREATE TABLE objects (id TEXT PRIMARY KEY, kind TEXT NOT NULL, size INTEGER NOT NULL,"
    " used REAL NOT NULL)",
    "CREATE TABLE names (path TEXT PRIMARY KEY, object TEXT NOT NULL, mark TEXT NOT NULL,"
    " owned INTEGER NOT NULL)",
    "CREATE TABLE pending (path TEXT PRIMARY KEY, object TEXT NOT NULL, mark TEXT NOT NULL,"
    " owned INTEGER NOT NULL)",
    "CREATE TABLE origins (identity TEXT PRIMARY KEY, object TEXT NOT NULL, version TEXT NOT NULL,"
    " file_name TEXT NOT NULL, private INTEGER NOT NULL, immutable INTEGER NOT NULL,"
    " shown TEXT NOT NULL, checked_at REAL NOT NULL)",
    "CREATE INDEX names_of_object ON names (object)",
    "CREATE INDEX origins_of_object ON origins (object)",
)


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One object."""

    id: str
    kind: Kind
    size: int
    used: float
    """When it was last used, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class NameRow:
    """One name of an object."""

    path: str
    """Below the models folder, such as `loras/x.safetensors`."""
    object_id: str
    mark: str = ""
    """What tells our copy from another file; empty for links."""
    owned: bool = True
    """Whether the store made it: a person's file with the same bytes is never removed."""


@dataclass(frozen=True, slots=True)
class OriginRow:
    """What one place gave."""

    identity: str
    """Hash of what the place is called."""
    object_id: str
    version: str
    file_name: str
    private: bool
    immutable: bool
    shown: str
    checked_at: float


@dataclass(frozen=True, slots=True)
class Scan:
    """What stands on the disk."""

    objects: Collection[ObjectRow] = ()
    names: Collection[NameRow] = ()


class _Unfit(Exception):
    """The file is no index of this version."""


class Index:
    """The index; each call is one short transaction with a connection of its own.

    `writable` says whether there is a folder to write to; `changing` is the lock under which the
    store changes, which the calling thread may hold already; `scan` finds what stands on the disk.
    All calls raise `sqlite3.Error` where SQLite fails.
    """

    def __init__(
        self,
        file: Path,
        *,
        writable: Callable[[], bool],
        changing: Callable[[], AbstractContextManager[None]],
        scan: Callable[[], Scan],
    ) -> None:
        self.file = file
        self._writable = writable
        self._changing = changing
        self._scan = scan

    # Reading: also where nothing can be written, and where there is no index at all

    def find(self, identity: str) -> ObjectRow | None:
        """The object of this id."""
        rows = self._read(
            lambda base: base.execute("SELECT * FROM objects WHERE id = ?", [identity]).fetchall()
        )
        return ObjectRow(*rows[0]) if rows else None

    def objects(self) -> list[ObjectRow]:
        """All objects, the least recently used first."""
        rows = self._read(
            lambda base: base.execute("SELECT * FROM objects ORDER BY used, id").fetchall()
        )
        return [ObjectRow(*row) for row in rows]

    def name(self, path: str) -> NameRow | None:
        """The name that stands, or should stand, at a path."""
        rows = self._read(
            lambda base: base.execute("SELECT * FROM names WHERE path = ?", [path]).fetchall()
        )
        return _name(rows[0]) if rows else None

    def names(self, identity: str | None = None) -> list[NameRow]:
        """The names of one object or of all, sorted."""
        rows = self._read(
            lambda base: base.execute(
                "SELECT * FROM names WHERE :id IS NULL OR object = :id ORDER BY path",
                {"id": identity},
            ).fetchall()
        )
        return [_name(row) for row in rows]

    def pending(self) -> list[NameRow]:
        """The names that are being made, or were when a process died."""
        rows = self._read(lambda base: base.execute("SELECT * FROM pending").fetchall())
        return [_name(row) for row in rows]

    def origin(self, identity: str) -> OriginRow | None:
        """What is remembered of one place."""
        rows = self._read(
            lambda base: base.execute(
                "SELECT * FROM origins WHERE identity = ?", [identity]
            ).fetchall()
        )
        for identity_, object_, version, file_name, private, immutable, shown, checked in rows:
            flags = bool(private), bool(immutable)
            return OriginRow(identity_, object_, version, file_name, *flags, shown, checked)
        return None

    def shown(self) -> dict[str, str]:
        """For each object where it came from, as it may be shown."""
        rows = self._read(
            lambda base: base.execute(
                "SELECT object, shown FROM origins WHERE shown != '' ORDER BY checked_at"
            ).fetchall()
        )
        return dict(rows)

    # Writing

    def add(self, row: ObjectRow) -> None:
        """Enter an object, or enter it anew."""
        self._write("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", astuple(row))

    def forget_object(self, identity: str) -> None:
        """Drop an object, its names and where it came from."""

        def work(base: sqlite3.Connection) -> None:
            base.execute("DELETE FROM names WHERE object = ?", [identity])
            base.execute("DELETE FROM origins WHERE object = ?", [identity])
            base.execute("DELETE FROM objects WHERE id = ?", [identity])

        self._run(work, "BEGIN IMMEDIATE")

    def touch(self, identities: Collection[str], when: float) -> None:
        """Note that objects were used."""

        def work(base: sqlite3.Connection) -> None:
            statement = "UPDATE objects SET used = max(used, ?) WHERE id = ?"
            base.executemany(statement, [(when, identity) for identity in identities])

        self._run(work, "BEGIN IMMEDIATE")

    def begin_name(self, row: NameRow) -> None:
        """Note that a name is going to be made."""
        self._write("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?)", astuple(row))

    def end_name(self, path: str, row: NameRow | None) -> None:
        """Note that a name was made, or with None that it was not."""

        def work(base: sqlite3.Connection) -> None:
            if row is not None:
                base.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", astuple(row))
            base.execute("DELETE FROM pending WHERE path = ?", [path])

        self._run(work, "BEGIN IMMEDIATE")

    def forget_names(self, paths: Collection[str]) -> None:
        """Drop names."""

        def work(base: sqlite3.Connection) -> None:
            base.executemany("DELETE FROM names WHERE path = ?", [(path,) for path in paths])

        self._run(work, "BEGIN IMMEDIATE")

    def remember(self, row: OriginRow) -> None:
        """Enter what a place gave; an earlier entry of the place is replaced."""
        self._write("INSERT OR REPLACE INTO origins VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(row))

    # The file

    def _write(self, statement: str, values: Collection[object]) -> None:
        self._run(lambda base: base.execute(statement, tuple(values)), "BEGIN IMMEDIATE")

    def _read[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._writable():
            return self._run(work, "BEGIN")
        with suppress(sqlite3.Error, _Unfit):
            return _transact(self._connect("ro"), work, "BEGIN")
        # Nothing can be mended here: what stands on the disk has to do.
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as base:
            _fill(base, self._scan())
            return work(base)

    def _run[T](self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        try:
            return _transact(self._connect("rwc"), work, begin)
        except _Unfit:
            pass
        except sqlite3.DatabaseError as err:
            if not _is_broken(err):
                raise
        self._make_anew()
        return _transact(self._connect("rwc"), work, begin)

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self.file.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY, isolation_level=None)

    def _make_anew(self) -> None:
        """Make the index from what stands on the disk, unless another process has just done so."""
        with self._changing():
            try:
                _transact(self._connect("rwc"), _examine, "BEGIN")
            except _Unfit:
                pass
            except sqlite3.DatabaseError as err:
                if not _is_broken(err):
                    raise
            else:
                return
            if self.file.stat().st_size:
                # First the journal: it must not be applied to the new file.
                for ending in ("-journal", "-wal", "-shm"):
                    self.file.with_name(f"{self.file.name}{ending}").unlink(missing_ok=True)
                self.file.replace(self.file.with_name(f"{self.file.name}.broken"))
            found = self._scan()
            with closing(self._connect("rwc")) as base:
                base.execute("BEGIN EXCLUSIVE")
                _fill(base, found)
                base.execute("COMMIT")


def _transact[T](
    connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], begin: str
) -> T:
    """Raises: `_Unfit`. What is not committed is undone as the connection closes."""
    with closing(connection) as base:
        base.execute(begin)
        version = base.execute("PRAGMA user_version").fetchone()[0]
        application = base.execute("PRAGMA application_id").fetchone()[0]
        if (application, version) != (APPLICATION, VERSION):
            raise _Unfit
        result = work(base)
        base.execute("COMMIT")
        return result


def _examine(base: sqlite3.Connection) -> None:
    if base.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise _Unfit


def _fill(base: sqlite3.Connection, found: Scan) -> None:
    for statement in SCHEMA:
        base.execute(statement)
    base.executemany("INSERT INTO objects VALUES (?, ?, ?, ?)", map(astuple, found.objects))
    base.executemany("INSERT INTO names VALUES (?, ?, ?, ?)", map(astuple, found.names))
    base.execute(f"PRAGMA application_id = {APPLICATION}")
    base.execute(f"PRAGMA user_version = {VERSION}")


def _name(row: tuple[str, str, str, int]) -> NameRow:
    path, object_id, mark, owned = row
    return NameRow(path, object_id, mark, bool(owned))


def _is_broken(err: sqlite3.DatabaseError) -> bool:
    return getattr(err, "sqlite_errorcode", 0) & 0xFF in BROKEN
