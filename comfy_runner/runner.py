"""Runs workflows: one ComfyUI child, one run at a time, results as they are made."""

import atexit
import contextlib
import functools
import logging
import shutil
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from comfy_runner.comfyui import saved_catalog
from comfy_runner.comfyui.client import ComfyClient, Disconnected
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
from comfy_runner.errors import MachineError, StartFailed
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.runs.files import InputFolder, empty
from comfy_runner.runs.run import Machine, Request, Run, Update
from comfy_runner.weights.store import WeightStore, read_manifest

log = logging.getLogger(__name__)

State = Literal["starting", "ok", "restarting", "broken"]


class Runner:
    """Owns a ComfyUI and runs workflows on it, one at a time.

    Not for several threads at once; `health` may be asked from any.
    """

    def __init__(self, config: Config) -> None:
        """Read the manifest; nothing is started.

        Raises: `InvalidInput` for a manifest that is missing or does not hold.
        """
        self.config = config
        self.manifest = read_manifest(config.manifest)
        self.store = WeightStore(config)
        self._folder = config.runs / uuid.uuid4().hex
        self._lock = FileLock(f"{self._folder}.lock")
        """Held while the folder is in use; what nobody holds was left by a killed process."""
        self._results = self._folder / "results"
        self.process = ComfyProcess(config, self._folder)
        """The ComfyUI child; for looking at."""
        self._catalog: NodeCatalog | None = None
        self._connected: ComfyClient | None = None
        self._state: State = "starting"
        self._unfinished = False
        """Whether a run was not seen to its end, so that ComfyUI may still be at it."""

    def start(self) -> None:
        """Start ComfyUI and wait until it answers.

        Raises: `StartFailed` with the last lines of ComfyUI's log.
        """
        atexit.register(self.close)
        try:
            self._claim_folder()
            self.process.start()
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End ComfyUI and remove everything that was made for it, results included."""
        atexit.unregister(self.close)
        self._state = "broken"
        self.process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def __enter__(self) -> "Runner":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def health(self) -> State:
        """How the runner is; only `broken` needs somebody's hand."""
        if self._state == "ok" and not self.process.alive:
            return "restarting"
        return self._state

    def residency(self) -> Mapping[str, Any]:
        """What is here already: the manifest's model folders, each with the names on disk."""
        folders = sorted({folder for weight in self.manifest.weights for folder in weight.folders})
        return {"on_disk": {folder: sorted(self.store.listing(folder)) for folder in folders}}

    def catalog(self, *, refresh: bool = False) -> NodeCatalog:
        """Every node class that the running ComfyUI knows; asked for once, then kept and saved.

        With `refresh` it is asked again: a node pack may load now, or list other files.

        Raises: `MachineError` when ComfyUI does not answer.
        """
        try:
            if refresh:
                self._catalog = saved_catalog.save(self.config, self._client().catalog())
            elif self._catalog is None:
                self._catalog = saved_catalog.of(self.config, self._client().catalog)
        except Disconnected as err:
            raise MachineError(f"ComfyUI did not tell its nodes: {err}") from err
        return self._catalog

    def run(self, request: Request) -> Generator[Update]:
        """Run one workflow; yields what happens, each result the moment its node has made it.

        Closing the iterator, or an exception thrown into it, cancels the run. Result files stay
        until the next run starts.

        Raises: `CallerError` before anything is run; `RunError` when a node fails or nothing is
        made; `MachineError` when ComfyUI dies or hangs, or a download fails.
        """
        self._bring_up()
        self.process.forget_lines()
        for folder in (self._results, self.process.output, self.process.temp):
            empty(folder)
        run = Run(self._machine(), request)
        # A second cancel can strike while the first is dealt with: then this stays true.
        self._unfinished = True
        try:
            yield from run.updates()
        finally:
            if run.end():
                self._unfinished = False
            else:
                self._restart()

    def _claim_folder(self) -> None:
        """Take the folder, and remove those that killed processes have left.

        Raises: `StartFailed` when the home folder cannot be written.
        """
        runs = self.config.runs
        try:
            runs.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except OSError as err:
            raise StartFailed(f"{runs} cannot be written: {err.strerror}.") from err
        for folder in [entry for entry in runs.iterdir() if entry.is_dir()]:
            lock = FileLock(f"{folder}.lock")
            with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)

    def _machine(self) -> Machine:
        return Machine(
            process=self.process,
            client=self._client(),
            catalog=self.catalog(),
            refresh=functools.partial(self.catalog, refresh=True),
            manifest=self.manifest,
            store=self.store,
            inputs=InputFolder(self.process.input, self.config.max_input_bytes),
            results=self._results,
            run_timeout=self.config.run_timeout,
            stall_timeout=self.config.stall_timeout,
        )

    def _client(self) -> ComfyClient:
        """A client of the ComfyUI that runs now: each start has another address."""
        if self._connected is None or self._connected.base_url != self.process.base_url:
            self._connected = ComfyClient(self.process.base_url)
        return self._connected

    def _bring_up(self) -> None:
        """Start ComfyUI again where it ended or got stuck since the last run, and wait for it."""
        if self._unfinished or not self.process.alive:
            self._restart()
        if self._state != "ok":
            self._await_ready()

    def _restart(self) -> None:
        """Kill what runs and start it again; `_await_ready` waits for it."""
        log.warning("ComfyUI ended or did not stop a run: starting it again.")
        self._state = "restarting"
        try:
            self.process.restart()
        except StartFailed:
            self._state = "broken"
            raise
        self._unfinished = False

    def _await_ready(self) -> None:
        try:
            self.process.wait_ready(self.config.boot_timeout)
        except StartFailed:
            self._state = "broken"
            raise
        self._state = "ok"
