"""Runs workflows: one ComfyUI child, one run at a time, results as they are made."""

import atexit
import contextlib
import functools
import logging
import math
import secrets
import shutil
import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from comfy_runner.comfyui import memory, saved_catalog
from comfy_runner.comfyui.client import ComfyClient, Disconnected
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.comfyui.vram import memory_report
from comfy_runner.config import Config
from comfy_runner.errors import Crashed, MachineError, RunError, Stalled, StartFailed, TimedOut
from comfy_runner.fetch.policy import Policy
from comfy_runner.graph.inputs import MAX_SEED
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.runs.files import InputFolder, empty
from comfy_runner.runs.plan import node_policy
from comfy_runner.runs.receipt import Surroundings
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Machine, Request, Run, Update
from comfy_runner.runs.surroundings import surroundings
from comfy_runner.weights.store import WeightStore, read_manifest

log = logging.getLogger(__name__)

State = Literal["starting", "ok", "restarting", "broken"]

MEMORY_SHARE = 0.9
"""Part of the memory there is that ComfyUI may hold between runs when no limit is set."""


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
        self._policy = node_policy(config)
        self._folder = config.runs / uuid.uuid4().hex
        self._lock = FileLock(f"{self._folder}.lock")
        """Held while the folder is in use; what nobody holds was left by a killed process."""
        self._results = self._folder / "results"
        self.process = ComfyProcess(config, self._folder)
        """The ComfyUI child; for looking at."""
        self._catalog: NodeCatalog | None = None
        self._connected: ComfyClient | None = None
        self._address = ("", "")
        """Base URL and token of the ComfyUI that `_connected` is a client of."""
        self._state: State = "starting"
        self._closed = False
        self._boot_began = 0.0
        """When ComfyUI was started last, by `time.monotonic`."""
        self.why = ""
        """Why `health` is not ok, or has not been of late, in one line; empty after a success."""
        self.restarts = 0
        """How often ComfyUI was started again, for whatever reason."""
        self._failures = 0
        """How often it was at fault since the last run that it took to an end."""
        self._gave_output = False
        """Whether the current run has told a result."""
        self._around: Surroundings | None = None
        self._unfinished = False
        """Whether a run was not seen to its end, so that ComfyUI may still be at it."""

    def start(self) -> None:
        """Start ComfyUI and wait until it answers. A runner that failed to start is closed.

        Raises: `StartFailed` with the last lines of ComfyUI's log. `MachineError` once closed.
        """
        self._check_open()
        atexit.register(self.close)
        try:
            self._claim_folder()
            self._boot_began = time.monotonic()
            self.process.start()
            self._await_ready()
        except BaseException as err:
            self.close()
            self.why = str(err).partition("\n")[0] or self.why
            raise

    def close(self) -> None:
        """End ComfyUI for good and remove everything that was made for it, results included."""
        if not self._closed:
            self._closed, self.why = True, "It was closed."
        atexit.unregister(self.close)
        self._state = "broken"
        self.process.stop()
        if self._connected is not None:
            self._connected.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            Path(self._lock.lock_file).unlink()

    def __enter__(self) -> "Runner":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def health(self) -> State:
        """How the runner is; only `broken` needs somebody's hand, and `why` tells the reason.

        May ask ComfyUI, for a second at most.
        """
        if self._failures >= self.config.max_restarts:
            return "broken"
        if self._state == "ok" and not self.process.alive:
            return "restarting"
        if self._state == "restarting" and self.process.answers():
            return "ok"
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

    def surroundings(self) -> Surroundings:
        """What is installed here; looked at once, since all its files are read."""
        if self._around is None:
            self._around = surroundings(self.config, self.process.device)
        return self._around

    def run(self, request: Request) -> Generator[Update]:
        """Run one workflow; yields what happens, each result the moment its node has made it.

        Closing the iterator, or an exception thrown into it, cancels the run. Result files stay
        until the next run starts. A run that is out of GPU memory before its first result begins
        once more, with the same seeds, in a ComfyUI that keeps as little as it can there.

        Raises: `CallerError` before anything is run; `RunError` when a node fails or nothing is
        made; `MachineError` when ComfyUI dies or hangs, or a download fails, and once the runner is
        closed; `TimedOut`, also while ComfyUI starts, which then goes on for the next run.
        """
        request, deadline = self._settled(request)
        try:
            yield from self._attempt(request, deadline)
        except RunError as err:
            if not self._is_worth_a_retry(err, deadline):
                raise
            failure = err
        else:
            return
        log.warning("%s The run begins once more, in a ComfyUI that needs less.", failure)
        try:
            yield from self._attempt(request, deadline, low_memory=True)
        except (StartFailed, TimedOut) as err:
            raise failure from err
        finally:
            if self.process.low_memory:
                self._start_again("The run that needs less memory is over", quiet=True)

    def _settled(self, request: Request) -> tuple[Request, float]:
        """The request with what must not change in a second attempt, and when it has to be over."""
        seed = request.seed
        if seed is None and request.randomise_seeds:
            seed = secrets.randbelow(MAX_SEED)
        started = time.monotonic() if request.started is None else request.started
        deadline = started + (request.timeout or self.config.run_timeout)
        return replace(request, seed=seed, started=started), deadline

    def _is_worth_a_retry(self, err: RunError, deadline: float) -> bool:
        """Whether the run may succeed in a ComfyUI that needs less memory."""
        return (
            err.out_of_memory
            and self.config.oom_retry
            and not self._gave_output
            and not self.process.low_memory
            and time.monotonic() < deadline
        )

    def _attempt(
        self, request: Request, deadline: float, *, low_memory: bool = False
    ) -> Generator[Update]:
        """Run the workflow once and leave ComfyUI free, or starting again.

        The text of an error for want of memory tells what filled it.
        """
        self._bring_up(deadline, low_memory=low_memory)
        self._gave_output = False
        self.process.forget_lines()
        try:
            for folder in (self._results, self.process.output, self.process.temp):
                empty(folder)
            run = Run(self._machine(), request)
        except OSError as err:
            raise _unusable(err) from err
        # A second cancel can strike while the first is dealt with: then this stays true.
        self._unfinished = True
        failed = replaced = False
        try:
            with contextlib.closing(run.updates()) as updates:
                for update in updates:
                    self._gave_output |= isinstance(update, Output)
                    yield update
            self._forgive()
        except RunError as err:
            self._forgive()  # it is the workflow's fault
            if not err.out_of_memory:
                raise
            # Told before ComfyUI may be started again, when it knows nothing of this any more.
            replaced = low_memory or self._is_worth_a_retry(err, deadline)
            before = "So did a second run that needs less. " if low_memory else ""
            raise self._explained(err, before) from err
        except OSError as err:
            raise _unusable(err) from err
        except Stalled as err:
            failed = True
            calls = "".join(f"\n  | {call}" for call in self.process.stuck_at())
            if calls:
                raise Stalled(f"{err} It was here, innermost call first:{calls}") from err
            raise
        except Crashed:
            failed = True
            raise
        finally:
            self._after(run, failed=failed, replaced=replaced)

    def _forgive(self) -> None:
        """Forget how often ComfyUI was at fault: it works."""
        if not self._closed:
            self._failures, self.why = 0, ""

    def _after(self, run: Run, *, failed: bool, replaced: bool) -> None:
        """End the run, and have ComfyUI ready for the next one or on its way.

        `failed`: whether ComfyUI was at fault. `replaced`: whether it is started again anyway.
        """
        is_free = run.end()
        if self._closed:
            return
        if not self.process.alive:
            self._start_again(str(self.process.crashed("during a run")), failed=True, quiet=True)
        elif not is_free:
            # A node that no cancel and no deadline can interrupt says nothing about ComfyUI.
            self._start_again("ComfyUI did not stop a run", failed=failed, quiet=True)
        else:
            self._unfinished = False
            limit = self.config.max_child_memory or int((memory.available() or 0) * MEMORY_SHARE)
            held = None if replaced else self.process.memory()
            if held is not None and 0 < limit < held:
                figures = f"{memory.figure(held)} of {memory.figure(limit)}"
                self._start_again(f"ComfyUI holds {figures} that it may", quiet=True)

    def _explained(self, err: RunError, before: str) -> RunError:
        """The error of a run that is out of memory, with what filled it."""
        try:
            devices = self._client().devices()
        except (MachineError, Disconnected):
            devices = ()
        report = memory_report(self.process.tail(200), devices)
        return RunError(
            err.node_id,
            err.title,
            err.class_type,
            err.exception_type,
            f"{err.message} {before}{report}",
            out_of_memory=True,
        )

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
            inputs=InputFolder(
                self.process.input, self.config.max_input_bytes, Policy.of(self.config)
            ),
            results=self._results,
            policy=self._policy,
            max_urls=self.config.max_urls,
            run_timeout=self.config.run_timeout,
            stall_timeout=self.config.stall_timeout,
            around=self.surroundings,
        )

    def _client(self) -> ComfyClient:
        """A client of the ComfyUI that runs now: each start has an address and token of its own."""
        address = (self.process.base_url, self.process.token)
        if self._connected is None or self._address != address:
            if self._connected is not None:
                self._connected.close()
            self._connected, self._address = ComfyClient(*address), address
        return self._connected

    def _check_open(self) -> None:
        """Raises: `MachineError` once the runner is closed."""
        if self._closed:
            raise MachineError(f"This runner takes no more runs. {self.why}")

    def _bring_up(self, deadline: float, *, low_memory: bool) -> None:
        """Start ComfyUI again where it ended or got stuck since the last run, and wait for it.

        Raises: `StartFailed`. `TimedOut` when it is not ready by the `deadline`.
        """
        self._check_open()
        start_again = functools.partial(self._start_again, low_memory=low_memory)
        if not self.process.alive:
            start_again(str(self.process.crashed("between two runs")), failed=True)
        elif self._unfinished:
            start_again("A run was not seen to its end")
        elif self.process.low_memory != low_memory:
            start_again("ComfyUI is to use more or less memory")
        if self._state != "ok":
            self._await_ready(deadline)

    def _start_again(
        self, reason: str, *, low_memory: bool = False, failed: bool = False, quiet: bool = False
    ) -> None:
        """Kill what runs and start it again; `_await_ready` waits for it.

        `failed`: whether ComfyUI was at fault. `quiet`: whether a failure is left for the next run
        to find, which tries once more.
        """
        if self._closed:
            return
        reason = reason.partition("\n")[0]
        log.warning("%s: starting ComfyUI again.", reason.rstrip("."))
        self.restarts += 1
        self.why = reason
        if failed:
            self._failures += 1
            if self._failures >= self.config.max_restarts:
                self.why = f"{self._failures} restarts without a successful run: {reason}"
        self._state = "restarting"
        self._boot_began = time.monotonic()
        try:
            self.process.restart(low_memory=low_memory)
        except StartFailed as err:
            self._state, self.why = "broken", str(err)
            if not quiet:
                raise
            log.warning("%s", err)
        else:
            self._unfinished = False

    def _await_ready(self, deadline: float = math.inf) -> None:
        """Wait for ComfyUI, which has the time for a boot since its start, however many wait.

        Raises: `StartFailed`. `TimedOut` when it is not ready by the `deadline`.
        """
        try:
            is_ready = self.process.wait_ready(
                self.config.boot_timeout, since=self._boot_began, until=deadline
            )
        except StartFailed as err:
            self._state, self.why = "broken", str(err).partition("\n")[0]
            raise
        if not is_ready:
            raise TimedOut("The time for the run was over while ComfyUI started; it starts on.")
        self._state = "ok"
        if not self._failures:
            self.why = ""


def _unusable(err: OSError) -> MachineError:
    return MachineError(
        f"A file of the run cannot be written or read: {err.strerror or err}."
        " Free some space on the disk, or send the request again."
    )
