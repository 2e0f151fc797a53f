"""Runs workflows: one ComfyUI child, one run at a time, results as they are made."""

import atexit
import contextlib
import functools
import logging
import secrets
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from comfy_runner.comfyui import saved_catalog
from comfy_runner.comfyui.client import ComfyClient, Disconnected
from comfy_runner.comfyui.keeper import Keeper, State
from comfy_runner.comfyui.phases import Timeline
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.comfyui.vram import memory_report
from comfy_runner.config import Config
from comfy_runner.errors import Crashed, MachineError, RunError, Stalled, StartFailed, TimedOut
from comfy_runner.fetch.policy import Policy
from comfy_runner.graph.inputs import MAX_SEED
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.runs import warming
from comfy_runner.runs.files import InputFolder, empty
from comfy_runner.runs.plan import node_policy
from comfy_runner.runs.preloading import Ahead, Preloading
from comfy_runner.runs.receipt import Surroundings
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Machine, Request, Run, Update
from comfy_runner.runs.surroundings import surroundings
from comfy_runner.weights.store import WeightStore, read_manifest

log = logging.getLogger(__name__)

ENDING = 2.0
"""Seconds that a ComfyUI which cannot be reached is given to be known as ended."""


class Runner:
    """Owns a ComfyUI and runs workflows on it, one at a time.

    Not for several threads at once; `health` may be asked from any.
    """

    def __init__(self, config: Config, ahead: Ahead | None = None) -> None:
        """Read the manifest; nothing is started.

        `ahead` is what the first run needs: it is fetched while ComfyUI starts, and the run waits
        for it and fails where it does not come.

        Raises: `InvalidInput` for a manifest that is missing or does not hold, and for settings
        that do not go together.
        """
        self.config = config
        self.manifest = read_manifest(config.manifest)
        self.store = WeightStore(config)
        self._policy = node_policy(config)
        self._preloading = Preloading(config, self.manifest, self.store, ahead)
        warming.check(config.warm_up)
        self.warmed: warming.Warmed | None = None
        """How the warm-up went; None where there was none."""
        self._folder = config.runs / uuid.uuid4().hex
        self._lock = FileLock(f"{self._folder}.lock")
        """Held while the folder is in use; what nobody holds was left by a killed process."""
        self._results = self._folder / "results"
        self.process = ComfyProcess(config, self._folder)
        """The ComfyUI child; for looking at."""
        self.timeline = Timeline()
        """What else than ComfyUI's own phases the start was about, and how long that took."""
        self._keeper = Keeper(self.process)
        self._catalog: NodeCatalog | None = None
        self._connected: ComfyClient | None = None
        self._address = ("", "")
        """Base URL and token of the ComfyUI that `_connected` is a client of."""
        self._begun = False
        """Whether ComfyUI may have begun with the current run."""
        self._gave_output = False
        """Whether the current run has told a result."""
        self._looker = ThreadPoolExecutor(2, "surroundings")
        self._seen: Future[Surroundings] | None = None
        """What is installed, looked at while ComfyUI starts."""
        self._started_with: Future[str] | None = None
        """The fingerprint of what ComfyUI has loaded."""
        self._known_restarts = 0
        """As `restarts`, when that fingerprint was taken."""

    @property
    def why(self) -> str:
        """Why `health` is not ok, or has not been of late, in one line; empty after a success."""
        return self._keeper.why

    @property
    def restarts(self) -> int:
        """How often ComfyUI was started again, for whatever reason."""
        return self._keeper.restarts

    def start(self, *, credentials: Mapping[str, str] | None = None) -> None:
        """Start ComfyUI and wait until it answers. A runner that failed to start is closed.

        What the setting `preload` names is fetched meanwhile, and then the workflow of `warm_up`
        is run; the log tells where either fails. `credentials` is host to token, for both.

        Raises: `StartFailed` with the last lines of ComfyUI's log. `MachineError` once closed.
        """
        self._keeper.check_open()
        atexit.register(self.close)
        try:
            self._claim_folder()
            self._seen = self._looker.submit(
                self.timeline.timed("surroundings", surroundings), self.config
            )
            self._preloading.start(credentials or {})
            wait = self._preloading.wait_fetched
            fetched = self._looker.submit(
                self.timeline.timed("preload", wait) if self.config.preload else wait
            )
            self._keeper.start()
            self._look_at_files()
            fetched.result()
            if self.config.warm_up is not None:
                self._warm_up(self.config.warm_up, credentials or {})
            self._keeper.check_open()
        except BaseException as err:
            self._keeper.close(str(err).partition("\n")[0] or "It was closed.")
            self.close()
            raise

    def _warm_up(self, path: Path, credentials: Mapping[str, str]) -> None:
        """Run the workflow in a file for nothing but what ComfyUI keeps of it."""
        with self.timeline.phase("warm-up"):
            self.warmed = warming.warm_up(path, self.catalog, self.run, credentials)
        with contextlib.suppress(OSError):
            empty(self._results)

    def close(self) -> None:
        """End ComfyUI for good and remove everything that was made for it, results included."""
        atexit.unregister(self.close)
        self._preloading.stop()
        self._keeper.close()
        self._preloading.close()
        self._looker.shutdown(cancel_futures=True)
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
        return self._keeper.health()

    def catalog(self, *, refresh: bool = False) -> NodeCatalog:
        """Every node class that the running ComfyUI knows; asked for once, then kept and saved.

        With `refresh` it is asked again: a node pack may load now, or list other files.

        Raises: `MachineError` when ComfyUI does not answer.
        """
        if refresh:
            raw = self._ask(ComfyClient.catalog)
            self._catalog = saved_catalog.save(self.config, raw, self._fingerprint())
        elif self._catalog is None:
            ask = functools.partial(self._ask, ComfyClient.catalog)
            with self.timeline.phase("catalog"):
                self._catalog = saved_catalog.of(self.config, ask, self._fingerprint())
        return self._catalog

    def _look_at_files(self) -> None:
        """Take the fingerprint of what ComfyUI, which has just been started, loads."""
        self._known_restarts = self._keeper.restarts
        self._started_with = self._looker.submit(saved_catalog.fingerprint, self.config)

    def _notice_restart(self) -> None:
        """Look at the files again where ComfyUI was started again; right after that may be."""
        if self._keeper.restarts != self._known_restarts and not self._keeper.closed:
            self._look_at_files()

    def _fingerprint(self) -> str:
        """That of the files that ComfyUI runs, which may be others by now; empty if unknown."""
        if self._started_with is None or self._keeper.restarts != self._known_restarts:
            return ""
        try:
            return self._started_with.result()
        except OSError as err:
            log.warning("ComfyUI's files cannot be looked at: %s", err)
            return ""

    def surroundings(self) -> Surroundings:
        """What is installed, as it was when ComfyUI was first started, and what it runs on now.

        Raises: `OSError` for an installed file that could not be read. `MachineError`.
        """
        if self._seen is None:
            raise RuntimeError("ComfyUI was not started")
        (main, *_) = self._ask(ComfyClient.devices)
        mode = "low" if self.process.low_memory else "usual"
        return replace(self._seen.result(), device=str(main["name"]), memory_mode=mode)

    def run(self, request: Request) -> Generator[Update]:
        """Run one workflow; yields what happens, each result the moment its node has made it.

        Closing the iterator, or an exception thrown into it, cancels the run. Result files stay
        until the next run starts. A run that is out of GPU memory before its first result begins
        once more, with the same seeds, in a ComfyUI that keeps as little as it can there; one that
        ComfyUI has not taken because it died before, in one that is started for it.

        Raises: `CallerError` before anything is run; `RunError` when a node fails or nothing is
        made; `MachineError` when ComfyUI dies or hangs, or a download fails, and once the runner is
        closed; `TimedOut`, also while ComfyUI starts, which then goes on for the next run.
        """
        request, deadline = self._settled(request)
        self._preloading.give_way(deadline)
        try:
            yield from self._attempts(request, deadline)
        except RunError as err:
            if not self._is_worth_a_retry(err, deadline):
                raise
            failure = err
        else:
            return
        log.warning("%s The run begins once more, in a ComfyUI that needs less.", failure)
        try:
            yield from self._attempts(request, deadline, low_memory=True)
        except (StartFailed, TimedOut) as err:
            raise failure from err
        finally:
            if self.process.low_memory:
                self._keeper.start_again("The run that needs less memory is over", quiet=True)
                self._notice_restart()

    def with_ahead(self, update: Update) -> Update:
        """An update of the first run, with what was fetched for it while ComfyUI started."""
        if not isinstance(update, Finished):
            return update
        return self._preloading.brought.counted(update)

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

    def _attempts(
        self, request: Request, deadline: float, *, low_memory: bool = False
    ) -> Generator[Update]:
        """Run the workflow, once more where ComfyUI had died before it was given it."""
        try:
            yield from self._attempt(request, deadline, low_memory=low_memory)
        except Crashed as err:
            if self._begun or self._keeper.closed or time.monotonic() >= deadline:
                raise
            log.warning("%s The run begins once more.", str(err).partition("\n")[0])
        else:
            return
        yield from self._attempt(request, deadline, low_memory=low_memory)

    def _attempt(self, request: Request, deadline: float, *, low_memory: bool) -> Generator[Update]:
        """Run the workflow once and leave ComfyUI free, or starting again.

        The text of an error for want of memory tells what filled it.
        """
        self._begun = self._gave_output = False
        self._keeper.occupied = self._keeper.occupied or not self._is_settled(deadline)
        try:
            self._keeper.bring_up(deadline, low_memory=low_memory)
        finally:
            self._notice_restart()
        self.process.forget_lines()
        try:
            for folder in (self._results, self.process.output, self.process.temp):
                empty(folder)
            run = Run(self._machine(), request)
        except OSError as err:
            raise _unusable(err) from err
        # A second cancel can strike while the first is dealt with: then this stays true.
        self._keeper.occupied = True
        fault = replaced = False
        try:
            with contextlib.closing(run.updates()) as updates:
                for update in updates:
                    self._gave_output |= isinstance(update, Output)
                    yield update
            self._keeper.forgive()
        except RunError as err:
            self._keeper.forgive()  # it is the workflow's fault
            if not err.out_of_memory:
                raise
            # Told before ComfyUI may be started again, when it knows nothing of this any more.
            replaced = low_memory or self._is_worth_a_retry(err, deadline)
            before = "So did a second run that needs less. " if low_memory else ""
            raise self._explained(err, before) from err
        except OSError as err:
            raise _unusable(err) from err
        except Stalled as err:
            fault = True
            calls = "".join(f"\n  | {call}" for call in self.process.stuck_at())
            if calls:
                raise Stalled(f"{err} It was here, innermost call first:{calls}") from err
            raise
        except Crashed:
            fault, self._begun = True, run.begun
            raise
        finally:
            free = run.end()
            self._keeper.after_run(free=free, fault=fault, replaced=replaced)
            self._notice_restart()

    def _is_settled(self, deadline: float) -> bool:
        """Whether ComfyUI has forgotten the run before; it is asked to while the result goes out.

        If not, whatever keeps it from answering would keep the next run, too. Raises: `TimedOut`
        when it has not answered by the `deadline`.
        """
        if self._connected is None or self._address != (self.process.base_url, self.process.token):
            return True  # it was started again, and knows of none
        try:
            if self._connected.settle(deadline - time.monotonic()):
                return True
        except (MachineError, Disconnected) as err:
            log.warning("ComfyUI cannot be asked to forget a run: %s", err)
            return False
        raise TimedOut("The time for the run was over before ComfyUI had forgotten the last one.")

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

    def _ask[Answer](self, question: Callable[[ComfyClient], Answer]) -> Answer:
        """What ComfyUI answers. Raises: `Crashed` when it has ended, or else `MachineError`."""
        try:
            return question(self._client())
        except Disconnected as err:
            if self.process.ends_within(ENDING):
                raise self.process.crashed("before it answered") from err
            raise MachineError(f"ComfyUI did not answer: {err}") from err

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


def _unusable(err: OSError) -> MachineError:
    return MachineError(
        f"A file of the run cannot be written or read: {err.strerror or err}."
        " Free some space on the disk, or send the request again."
    )
