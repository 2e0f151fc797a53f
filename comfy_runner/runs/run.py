"""One run of one request: planned, fetched for, submitted, followed to its end, collected."""

import contextlib
import functools
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any

from comfy_runner.comfyui.client import ComfyClient, Disconnected
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.errors import (
    CallerError,
    Cancelled,
    InvalidInput,
    MachineError,
    Problem,
    TimedOut,
)
from comfy_runner.fetch.transport import alarm
from comfy_runner.graph.inputs import MAX_SEED
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.policy import NodePolicy
from comfy_runner.runs.events import Execution, NodeOutput, Progress
from comfy_runner.runs.files import GivenFile, InputFolder
from comfy_runner.runs.following import Following
from comfy_runner.runs.media import OutputFormat
from comfy_runner.runs.plan import Plan, prepare
from comfy_runner.runs.receipt import Receipt, Surroundings
from comfy_runner.runs.recording import Recorder
from comfy_runner.runs.results import Output, Results
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.progress import Downloading, Steps
from comfy_runner.weights.store import Addressed, Ensured, WeightStore

log = logging.getLogger(__name__)

OUTDATED = ("not_in_list", "unknown_class_type")
"""Problems that a saved catalog may be to blame for: a node pack lists what it finds on disk, or
could not be loaded when the catalog was saved."""

FREEING = 1.0
"""Seconds that ComfyUI is given to drop its models."""

CANCEL_GRACE = 5.0
"""Seconds that a cancelled node has to stop before the child is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asks for."""

    document: str | bytes | Mapping[str, Any]
    """The workflow: JSON text or the parsed object."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Address to value."""
    files: tuple[GivenFile, ...] = ()
    seed: int | None = None
    """Seed for every seed input that `values` does not set; `None` for a random one."""
    randomise_seeds: bool = True
    """Whether a missing `seed` means a random one; if not, the workflow's own are kept."""
    output_format: OutputFormat = "original"
    output_quality: int = 95
    """0 to 100, for jpg and webp."""
    previews: bool = False
    """Whether temporary files, such as PreviewImage makes, are results too."""
    outputs: tuple[str, ...] = ()
    """Ids of the only output nodes that count; empty for those that the workflow's author chose."""
    all_outputs: bool = False
    """Whether outputs count that the workflow's author did not choose, where there is a choice."""
    reset_cache: bool = False
    """Whether every node runs again, whatever is cached."""
    timeout: float | None = None
    """Seconds for the whole run; `None` for the setting `run_timeout`."""
    credentials: Mapping[str, str] = field(default_factory=dict)
    """Host name to the token that it, and nobody else, is sent."""
    receipt: bool = False
    """Whether the run's `receipt.json` is the last of its results."""
    started: float | None = None
    """Since when the `timeout` counts, by `time.monotonic`; `None` for the begin of the run."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The request holds; this is what will happen."""

    run_id: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over and everything that it made has been told."""

    seconds: Mapping[str, float]
    """Phase (`prepare`, `fetch`, `run`) to its seconds."""
    nodes_total: int
    nodes_cached: int
    outputs: int
    fetched_files: int = 0
    """Weights that were not here before."""
    fetched_bytes: int = 0
    receipt: Receipt | None = None
    """Without what costs time, unless the request asked for it."""


Update = Planned | Downloading | Progress | Output | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a run works with; its owner is the `Runner`."""

    process: ComfyProcess
    client: ComfyClient
    catalog: NodeCatalog
    refresh: Callable[[], NodeCatalog]
    """Asks ComfyUI for its catalog as it is now."""
    manifest: Manifest
    store: WeightStore
    inputs: InputFolder
    results: Path
    """Folder for result files."""
    policy: NodePolicy
    """Which nodes a workflow may use."""
    max_urls: int
    """Most URLs that one request may have fetched."""
    run_timeout: float
    """Seconds for a run that sets no `timeout`."""
    stall_timeout: float
    """Seconds that a run may go without a sign of progress."""
    around: Callable[[], Surroundings]
    """Tells what is installed, and what ComfyUI runs on."""


class Run:
    """One run; `updates` once, then `end` in any case."""

    def __init__(self, machine: Machine, request: Request) -> None:
        self.id = str(uuid.uuid4())
        self._machine = machine
        self._request = request
        self._timeout = request.timeout or machine.run_timeout
        self._started = time.monotonic() if request.started is None else request.started
        self._cancelled = Event()
        self._following: Following | None = None
        self._pins = contextlib.ExitStack()
        """Keeps the weights of this run on disk."""

    @property
    def begun(self) -> bool:
        """Whether ComfyUI may have begun with it, even where its answer was lost."""
        return self._following is not None and self._following.begun

    def updates(self) -> Generator[Update]:
        """Do it all; see `Runner.run`."""
        request, machine = self._request, self._machine
        _check(request)
        laid = machine.inputs.lay(request.files)
        plan = self._prepare(laid.keys())
        self._check_urls(plan)
        yield Planned(self.id, plan)
        recorder = self._record()
        planned = time.monotonic()
        ensured, names = yield from self._fetch(plan)
        staged = self._stage(plan, laid)
        fetched = time.monotonic()
        workflow = plan.to_submit(self.id, staged, weights=names, all_again=request.reset_cache)
        note = functools.partial(
            recorder.planned, plan, workflow, machine.process.input, machine.store, ensured.size
        )
        if request.receipt:
            note()  # what a node does to its files must not show
        results = Results(
            machine.results / self.id,
            {"output": machine.process.output, "temp": machine.process.temp},
            workflow,
            (request.output_format, request.output_quality),
            previews=request.previews,
            chosen=plan.chosen,
        )
        self._following = following = Following(
            machine.process,
            machine.client,
            Execution(self.id, workflow),
            stall_timeout=machine.stall_timeout,
            check_deadline=functools.partial(self._check_deadline, "while it ran"),
            time_left=self._time_left,
            told=recorder.event,
        )
        # Else it is done while ComfyUI works.
        begun = None if request.receipt else note
        recorder.begin()
        for event in following.events(workflow, begun):
            match event:
                case Progress():
                    yield event
                case NodeOutput(node_id, output):
                    for made in results.take(node_id, output):
                        recorder.output(made.path, made.node_id)
                        yield made
        if following.execution.failure is not None:
            raise following.execution.failure
        for made in results.rest(plan.outputs):
            recorder.output(made.path, made.node_id)
            yield made
        seconds = {
            "prepare": planned - self._started,
            "fetch": fetched - planned,
            "run": time.monotonic() - fetched,
        }
        receipt = recorder.finished(seconds)
        if request.receipt:
            path = machine.results / self.id / "receipt.json"
            path.write_text(receipt.text())
            yield Output(path, "", "Receipt")
        yield Finished(
            seconds,
            len(workflow.nodes),
            following.execution.cached_count,
            results.count,
            ensured.files,
            ensured.size,
            receipt,
        )

    def _record(self) -> Recorder:
        request, machine = self._request, self._machine
        names = ("output_format", "output_quality", "previews", "all_outputs")
        return Recorder(
            self.id,
            machine.around() if request.receipt else Surroundings(),
            secrets=tuple(request.credentials.values()),
            options={name: getattr(request, name) for name in names},
            comfyui=machine.process.comfyui_pid,
            whole=request.receipt,
        )

    def end(self) -> bool:
        """Leave nothing running and nothing behind but the results.

        Returns whether ComfyUI is free again; if not, it has to be killed.
        """
        self._cancelled.set()
        self._pins.close()
        machine, free = self._machine, self._following is None
        if self._following is not None:
            try:
                free = self._following.cancel(CANCEL_GRACE)
            except (MachineError, Disconnected) as err:
                log.warning("ComfyUI cannot be asked to stop the run: %s", err)
            finally:
                self._following.let_go(free=free)
        try:
            machine.inputs.clear()
        except OSError as err:
            log.warning("The input folder cannot be emptied: %s", err)
        return free

    def _prepare(self, files: Collection[str]) -> Plan:
        request, machine = self._request, self._machine
        seed = request.seed
        if seed is None and request.randomise_seeds:
            seed = secrets.randbelow(MAX_SEED)
        ask = functools.partial(
            prepare,
            request.document,
            manifest=machine.manifest,
            on_disk=machine.store.listing,
            values=request.values,
            files=files,
            seed=seed,
            now=datetime.now().astimezone(),
            outputs=request.outputs,
            all_outputs=request.all_outputs,
            policy=machine.policy,
        )
        try:
            return ask(catalog=machine.catalog)
        except CallerError as err:
            if not any(problem.code in OUTDATED for problem in err.problems):
                raise
        return ask(catalog=machine.refresh())

    def _check_urls(self, plan: Plan) -> None:
        """Raises: `InvalidInput` for a request that would have too much fetched."""
        most = self._machine.max_urls
        count = len(plan.asked) + sum(need.is_url for need in plan.files)
        if count > most:
            what = f"The request has {count} URL{'s' * (count != 1)} fetched; {most} are allowed."
            if not most:
                what = "The request has a URL fetched, which is not allowed on this machine."
            hint = "Send the files themselves, or have COMFY_RUNNER_MAX_URLS raised."
            raise InvalidInput([Problem("too_many_urls", what, hint)])

    def _fetch(
        self, plan: Plan
    ) -> Generator[Downloading, None, tuple[Ensured, Mapping[tuple[str, str], str]]]:
        """Have all weights in place until the run's end.

        Returns what was done for it, and the name for each (node id, input) with an address.
        """
        machine = self._machine
        wanted = {
            (asked.node_id, asked.input): Addressed(asked.address, asked.folder, asked.sha256)
            for asked in plan.asked
        }
        if plan.present:
            self._pins.enter_context(machine.store.in_use(plan.present))
        fetching = machine.store.ensure(
            plan.weights,
            wanted.values(),
            credentials=self._request.credentials,
            cancelled=self._cancelled,
            release=self._release,
            pins=self._pins,
        )
        steps = Steps(fetching)
        with contextlib.closing(fetching):
            for update in steps:
                self._check_deadline("while weights were fetched")
                yield update
        ensured = steps.result
        for note in ensured.notes:
            log.info("%s", note)
        return ensured, {place: ensured.names[weight] for place, weight in wanted.items()}

    def _release(self) -> None:
        """Have ComfyUI close the weights that it holds: an open file frees nothing."""
        try:
            self._machine.client.free()
        except (MachineError, Disconnected) as err:
            log.warning("ComfyUI cannot be asked to free its models: %s", err)
        else:
            self._cancelled.wait(FREEING)  # nothing tells when it has done so

    def _stage(self, plan: Plan, laid: Mapping[str, Path]) -> Mapping[tuple[str, str], str]:
        """Put the files in place, within the deadline even where a server keeps silent."""
        if not any(need.is_url for need in plan.files):
            return self._machine.inputs.stage(plan.files, laid, self._cancelled)
        with alarm(self._cancelled, self._time_left()):
            try:
                return self._machine.inputs.stage(plan.files, laid, self._cancelled)
            except Cancelled:
                self._check_deadline("while its files were fetched")
                raise

    def _time_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._timeout - (time.monotonic() - self._started)

    def _check_deadline(self, when: str) -> None:
        if self._time_left() < 0:
            raise TimedOut(
                f"The run took longer than its {self._timeout:g} s {when}; it was stopped."
            )


def _check(request: Request) -> None:
    """Raise `InvalidInput` for numbers that no run can have."""
    problems = []
    if request.timeout is not None and not request.timeout > 0:
        problems.append(
            Problem("bad_timeout", f"{request.timeout} is not above 0.", input="timeout")
        )
    if not 0 <= request.output_quality <= 100:  # noqa: PLR2004 - per cent
        problems.append(Problem("bad_quality", "It goes from 0 to 100.", input="output_quality"))
    if problems:
        raise InvalidInput(problems)
