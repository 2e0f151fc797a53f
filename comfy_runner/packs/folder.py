"""The folder `custom_nodes`: its two locks, what lies in it, and how a pack gets there whole."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from comfy_runner.comfyui import bytecode
from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, MachineError, Problem
from comfy_runner.packs import trees
from comfy_runner.packs.lock import (
    FILE,
    IGNORED_BY_COMFYUI,
    LocalSource,
    LockedPack,
    PackLock,
    parse,
    write,
)
from comfy_runner.packs.trees import Edits

log = logging.getLogger(__name__)

REQUIREMENTS = "requirements.lock"

STAGING = f".staging{IGNORED_BY_COMFYUI}"
"""Within the folder itself, so that a move is a rename; ComfyUI does not look into it."""
OLD = ".old"
"""Within staging: what stood in a pack's place until the new one does."""

NO_EDITS = Edits()

Standing = Literal["missing", "same", "older", "edited", "unknown"]
"""A pack's folder beside its entry: not there; as locked; untouched, but of an older lock; changed
by hand; not put there by us, and of other content."""


@dataclass(frozen=True, slots=True)
class State:
    """How a pack's folder stands."""

    standing: Standing
    edits: Edits = NO_EDITS
    has_history: bool = False
    """Whether it is a git repository, whose commits, branches and stashes may be nowhere else."""


class PackFolder:
    """`custom_nodes` of one project."""

    def __init__(self, config: Config) -> None:
        """Nothing is read or written yet."""
        self.path = config.custom_nodes
        self._busy = config.home / "custom_nodes.lock"

    @property
    def lock_file(self) -> Path:
        """Where the lock of packs is."""
        return self.path / FILE

    @property
    def requirements_file(self) -> Path:
        """Where the lock of their Python packages is."""
        return self.path / REQUIREMENTS

    @property
    def staging(self) -> Path:
        """Where packs are until they are whole; emptied by `claimed`."""
        return self.path / STAGING

    def read(self) -> PackLock:
        """The lock; an empty one where there is no file. Raises: `InvalidInput`, `MachineError`."""
        try:
            return parse(self.lock_file.read_text(encoding="utf-8"), FILE)
        except FileNotFoundError:
            return PackLock()
        except UnicodeDecodeError as err:
            what = f"It is no text: {err}."
            raise InvalidInput([Problem("bad_lock", what, input=FILE)]) from err
        except OSError as err:
            raise MachineError(f"{self.lock_file} cannot be read: {err.strerror}.") from err

    def read_requirements(self) -> str:
        """The text of the packages' lock; empty where there is no file."""
        try:
            return self.requirements_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def save(self, lock: PackLock, requirements: str | None = None) -> None:
        """Write the lock, and the packages' where it is given. Raises: `MachineError`."""
        if requirements is not None:
            self._write(self.requirements_file, requirements)
        self._write(self.lock_file, write(lock))

    def target(self, name: str) -> Path:
        """The folder of the pack with this name."""
        return self.path / name

    def source_of(self, pack: LockedPack) -> Path:
        """The folder that a local pack comes from."""
        assert isinstance(pack.source, LocalSource)  # noqa: S101 (for mypy)
        return self.path / pack.source.path

    def in_place(self, pack: LockedPack) -> bool:
        """Whether the pack's own source is its folder here, which is then nobody's copy."""
        if not isinstance(pack.source, LocalSource):
            return False
        return self.source_of(pack).resolve() == self.target(pack.name).resolve()

    def strangers(self, lock: PackLock) -> list[str]:
        """What ComfyUI would load here and the lock does not name."""
        if not self.path.is_dir():
            return []
        return sorted(
            path.name
            for path in self.path.iterdir()
            if is_loaded(path) and not self._is_named(path, lock)
        )

    def _is_named(self, path: Path, lock: PackLock) -> bool:
        """Whether it is a pack's folder: of a name in other letter case only where that is one."""
        pack = lock.get(path.name)
        if pack is None or pack.name == path.name:
            return pack is not None
        target = self.target(pack.name)
        return target.exists() and target.samefile(path)

    def state(self, pack: LockedPack) -> State:
        """How the pack's folder stands.

        Raises: `InvalidInput` where it holds links, `MachineError` where it cannot be read.
        """
        try:
            return self._state(pack)
        except OSError as err:
            raise MachineError(f"{self.target(pack.name)} cannot be read: {err}.") from err

    def _state(self, pack: LockedPack) -> State:
        folder = self.target(pack.name)
        if not folder.is_dir():
            is_there = os.path.lexists(folder) and not self.in_place(pack)
            return State("unknown" if is_there else "missing")
        now = trees.contents(folder)
        has_history = (folder / ".git").exists()
        if self.in_place(pack):
            return State("same" if trees.digest(now) == pack.digest else "edited")
        ours = trees.recorded(folder)
        if ours is None:
            standing: Standing = "same" if trees.digest(now) == pack.digest else "unknown"
            return State(standing, has_history=has_history)
        found = trees.edits(ours, now)
        if found.changed:
            return State("edited", found, has_history)
        standing = "same" if trees.digest(ours) == pack.digest else "older"
        return State(standing, found, has_history)

    def settle(
        self, staged: Path, name: str, edits: Edits = NO_EDITS, *, script_due: bool = False
    ) -> str:
        """Move a fetched pack into its place, in the stead of what was there; then compile it.

        Returns its digest.

        What was added beside our files there, such as settings, comes along where the name is free.
        With `script_due` it is noted there that its `install.py` is still to be run.
        """
        digest = trees.record(staged, script_due=script_due)
        target, old = self.target(name), self.staging / OLD / name
        if target.is_symlink():
            target.unlink()
        if target.exists():
            for added in edits.added:
                place = staged / added
                if not place.exists() and (target / added).is_file():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(target / added, place)
            old.parent.mkdir(exist_ok=True)
            target.rename(old)
        staged.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        self.compile(name)
        return digest

    def compile(self, name: str) -> None:
        """Write the bytecode that a pack lacks; where it cannot be, the pack just loads slower."""
        if why := bytecode.compile_folder(self.target(name)):
            log.warning("not all bytecode could be written in %s: %s", self.target(name), why)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Nobody else changes the folder meanwhile; staging is empty before and gone afterwards.

        Raises: `MachineError` where another one does, or the disk does not take it.
        """
        try:
            self._busy.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._busy, timeout=0):
                self._restore()
                self.staging.mkdir(parents=True)
                try:
                    yield
                finally:
                    self._restore()
        except Timeout as err:
            what = f"Another comfy-runner nodes command is changing {self.path}; wait for its end."
            raise MachineError(what) from err
        except OSError as err:
            place = err.filename or self.path
            raise MachineError(f"{place} could not be changed: {err.strerror or err}.") from err

    def _restore(self) -> None:
        """Put back what a command that was cut off has taken away, and remove what it has left."""
        old = self.staging / OLD
        for pack in old.iterdir() if old.is_dir() else ():
            if not self.target(pack.name).exists():
                pack.rename(self.target(pack.name))
        shutil.rmtree(self.staging, ignore_errors=True)

    def _write(self, path: Path, text: str) -> None:
        """Write a file so that it is there whole or not at all."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".lock-", dir=path.parent) as folder:
                part = Path(folder, "part")
                with part.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                part.chmod(0o644)
                part.replace(path)
        except OSError as err:
            raise MachineError(f"{path} cannot be written: {err.strerror}.") from err


def is_loaded(path: Path) -> bool:
    """Whether ComfyUI 0.30 tries to load it (nodes.py init_external_custom_nodes): a dot before the
    name keeps it from nothing.
    """
    if path.name == "__pycache__" or path.name.endswith(IGNORED_BY_COMFYUI):
        return False
    if path.is_dir():
        return not path.name.startswith(".") or (path / "__init__.py").exists()
    return path.suffix == ".py"
