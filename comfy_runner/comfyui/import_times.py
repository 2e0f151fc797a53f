"""Which packages a booting ComfyUI imports, how long each takes, and for which node pack.

Loaded by the launcher by path, in ComfyUI's process: only the standard library is imported here.
It hooks into the loaders of CPython 3.12 (importlib._bootstrap_external), so that modules count
that are run late (`lazy`), too. What searching for a module takes counts for its importer.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import Any

PYTHON, COMFYUI = "Python", "ComfyUI"
"""What the standard library's modules and those of ComfyUI's tree are counted as."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package, or a node pack's own code, as far as it was imported at boot."""

    name: str
    pack: str
    """The node pack that was loading then; empty for ComfyUI itself."""
    modules: int
    seconds: float
    """Without what its modules import from other packages."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Modules of a package that had no bytecode."""

    name: str
    modules: int
    seconds: float
    file: str
    """One of them."""


@dataclass(frozen=True, slots=True)
class Deferrable:
    """Modules of `lazy.DEFERRED` that were run at boot."""

    name: str
    """As in the table, such as `scipy`."""
    pack: str
    """As in `Package`."""
    seconds: float
    """With all that they import."""


@dataclass(frozen=True, slots=True)
class ImportTimes:
    """What was measured from the launcher's start until all nodes were loaded."""

    packages: tuple[Package, ...]
    """The slowest first."""
    compiled: tuple[Compiled, ...]
    """The slowest first."""
    deferrable: tuple[Deferrable, ...]
    """The slowest first."""
    cpu: float
    """Seconds that the process has computed, all threads together."""
    disk: int | None
    """Bytes that it had read from a disk, and not from memory; None where that is not known."""


def read(path: Path) -> ImportTimes:
    """What ComfyUI's process has written. Raises: `OSError`."""
    told = json.loads(path.read_text())
    return ImportTimes(
        packages=tuple(Package(*row) for row in told["packages"]),
        compiled=tuple(Compiled(*row) for row in told["compiled"]),
        deferrable=tuple(Deferrable(*row) for row in told["deferrable"]),
        cpu=told["cpu"],
        disk=told["disk"],
    )


class Meter:
    """Measures each module that is run, from `start` to `stop`."""

    def __init__(self, path: str, tree: str, packs: Any, table: Iterable[Any]) -> None:
        """`path` is that of the file to write, `tree` is ComfyUI's folder, `packs` the
        `inside.PackTeller`, and `table` is `lazy.DEFERRED`."""
        self._path = path
        self._tree = tree.rstrip(os.sep) + os.sep
        self._packs = packs
        self._deferred = {name for entry in table for name in entry.modules.split()}
        self._packages: dict[tuple[str, str], tuple[int, float]] = {}
        self._compiled: dict[str, tuple[int, float, str]] = {}
        self._deferrable: dict[tuple[str, str], float] = {}
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []

    def start(self) -> None:
        """Measure from now on."""
        self._wrap(SourceFileLoader, "exec_module", lambda module: module.__name__)
        # Loading a library happens when its module is made.
        self._wrap(ExtensionFileLoader, "create_module", lambda spec: spec.name, counts=0)
        self._wrap(ExtensionFileLoader, "exec_module", lambda module: module.__name__)
        compiling: Any = SourceFileLoader.source_to_code

        def compile_timed(loader: Any, *given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return compiling(loader, *given, **named)
            finally:
                self._count_compiled(loader, time.perf_counter() - began)

        self._replace(SourceFileLoader, "source_to_code", compile_timed)

    def stop(self) -> None:
        """Measure no more, and write what was measured."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        with self._lock:
            packages = [(*key, *row) for key, row in self._packages.items()]
            compiled = [(name, *row) for name, row in self._compiled.items()]
            deferrable = [(*key, seconds) for key, seconds in self._deferrable.items()]
        told = {
            "packages": sorted(packages, key=lambda row: -row[3]),
            "compiled": sorted(compiled, key=lambda row: -row[2]),
            "deferrable": sorted(deferrable, key=lambda row: -row[2]),
            "cpu": time.process_time(),
            "disk": read_from_disk(),
        }
        Path(self._path).write_text(json.dumps(told))

    def _wrap(
        self, loader: type, method: str, name_of: Callable[[Any], str], *, counts: int = 1
    ) -> None:
        usual = getattr(loader, method)

        def timed(self_: Any, subject: Any) -> Any:
            with self._measured(name_of(subject), str(self_.path), counts):
                return usual(self_, subject)

        self._replace(loader, method, timed)

    def _replace(self, loader: type, method: str, ours: Callable[..., Any]) -> None:
        own = vars(loader).get(method)  # else it is inherited
        setattr(loader, method, ours)
        if own is None:
            self._undo.append(lambda: delattr(loader, method))
        else:
            self._undo.append(lambda: setattr(loader, method, own))

    @contextmanager
    def _measured(self, name: str, file: str, counts: int) -> Iterator[None]:
        here = vars(self._thread)
        within = here.setdefault("within", [])  # of each module being run: seconds of inner ones
        entry = "" if here.get("deferred") else self._entry(name)
        here["deferred"] = here.get("deferred") or entry
        pack = self._packs.told
        within.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            own = seconds - within.pop()
            if within:
                within[-1] += seconds
            key = (self._package(name, file, pack), pack)
            with self._lock:
                modules, before = self._packages.get(key, (0, 0.0))
                self._packages[key] = (modules + counts, before + own)
                if entry:
                    here["deferred"] = ""
                    so_far = self._deferrable.get((entry, pack), 0.0)
                    self._deferrable[entry, pack] = so_far + seconds

    def _count_compiled(self, loader: Any, seconds: float) -> None:
        name = self._package(loader.name, str(loader.path), self._packs.told)
        with self._lock:
            modules, before, file = self._compiled.get(name, (0, 0.0, str(loader.path)))
            self._compiled[name] = (modules + 1, before + seconds, file)

    def _entry(self, name: str) -> str:
        """The module of the table that this one is, or is below; empty where there is none."""
        while name and name not in self._deferred:
            name = name.rpartition(".")[0]
        return name

    def _package(self, name: str, file: str, pack: str) -> str:
        """What a module is counted as."""
        top = name.partition(".")[0]
        if file.startswith(self._tree):
            return COMFYUI
        if top.startswith(os.sep):  # what ComfyUI calls the modules of node packs
            return pack or Path(top).name
        return PYTHON if top in sys.stdlib_module_names else top


def read_from_disk(told: Path = Path("/proc/self/io")) -> int | None:
    """Bytes that this process has read from a disk; Linux alone tells, and not everywhere."""
    with suppress(OSError, ValueError):
        for line in told.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "read_bytes":
                return int(value)
    return None
