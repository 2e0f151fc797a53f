"""The models folder: what is in it, and how what is missing gets there."""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.config import Config
from comfy_runner.errors import Cancelled, DownloadFailed, InvalidInput, Problem
from comfy_runner.fetch import hub, pget
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.policy import Policy
from comfy_runner.fetch.staged import sync
from comfy_runner.fetch.transfer import Engine, Transfer
from comfy_runner.graph.nodes import ModelFolder
from comfy_runner.weights.bringing.job import Bringing
from comfy_runner.weights.bringing.tasks import Addressed, Means, Task
from comfy_runner.weights.hosts.addresses import shown
from comfy_runner.weights.hosts.places import Hosts
from comfy_runner.weights.kept.objects import ObjectStore
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.manifests.files import read_file
from comfy_runner.weights.progress import HEARTBEAT, Downloading, Meter
from comfy_runner.weights.weight import Weight

__all__ = ["Addressed", "Downloading", "Ensured", "WeightStore", "read_manifest"]

log = logging.getLogger(__name__)

TICK = 0.1
"""Longest wait, in seconds, between two looks at what happens."""


@dataclass(frozen=True, slots=True)
class Ensured:
    """What is in place now."""

    names: Mapping[Addressed, str]
    """For each address the name in its model folder."""
    files: int = 0
    """How many files were fetched; what was there already does not count."""
    size: int = 0
    """Bytes that were fetched."""
    notes: tuple[str, ...] = ()
    """What else there is to know, one sentence each."""


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file. Raises: `InvalidInput` when it cannot be read or does not hold."""
    found = read_file(path, "Write one, or set COMFY_RUNNER_MANIFEST.")
    return Manifest(found.weights, found.groups)


class WeightStore:
    """A models folder as ComfyUI reads it, shared by any number of processes.

    What is fetched is kept by its content (`objects`), and its names in the model folders lead to
    it. Files that somebody else put there are used as they are, and never touched.
    """

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        """`environment` has the tokens that a manifest names. Raises: `InvalidInput`."""
        self.models = config.models
        self.folders = ModelFolders(config.models)
        self.objects = ObjectStore(
            config.models, reserve=config.disk_reserve, limit=config.max_weights_bytes
        )
        self._config = config
        self._environment = environment
        self._hosts = Hosts.of(config)
        self._pget = pget.find(config.pget)

    def listing(self, folder: str, shape: ModelFolder | None = None) -> frozenset[str]:
        """The names in a model folder as ComfyUI lists them; see `ModelFolders.listing`."""
        return self.folders.listing(folder, shape)

    @contextmanager
    def in_use(self, labels: Collection[str]) -> Iterator[None]:
        """Keep models, as `folder/name`, from being evicted, and note that they are used now.

        Raises: `DownloadFailed` when one is evicted at this very moment.
        """
        found = self._objects_of(labels)
        with self.objects.pin(found.values()):
            lost = [label for label in found if label not in self._objects_of([label])]
            if lost:
                raise DownloadFailed(
                    f"{', '.join(lost)} had to make room for other models just now. Ask again: what"
                    " is missing is fetched then."
                )
            self.objects.touch(found.values())
            yield

    def _objects_of(self, labels: Collection[str]) -> Mapping[str, str]:
        """The ids of the store's objects among models that are named as `folder/name`."""
        places = ((label, *label.partition("/")[::2]) for label in labels)
        return {
            label: known.id
            for label, folder, name in places
            if (known := self.objects.named(folder, name)) is not None
        }

    def ensure(
        self,
        weights: Collection[Weight],
        addressed: Collection[Addressed] = (),
        *,
        credentials: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
        patience: Patience | None = None,
        release: Callable[[], None] | None = None,
        pins: ExitStack | None = None,
    ) -> Generator[Downloading, None, Ensured]:
        """Fetch what is missing, verified and in place; yields how far that has come.

        Each file is fetched once, however many processes want it. `credentials` maps a host to the
        token that it alone is sent. `release` is called before anything is evicted. What is in
        place stays at least until `pins` are closed. Setting `cancelled` ends it soon; so does
        closing the iterator. At least once a second, without news the last update again.

        Raises: `DownloadFailed` with every failure, or `HashMismatch` when those were the only
        ones; `InvalidInput` for addresses and settings that do not hold; `Cancelled`.
        """
        began = time.monotonic()
        stop = threading.Event()
        with ExitStack() as own:
            kept = pins or own
            tasks = self._tasks(weights, addressed, kept)
            if not tasks:
                return Ensured({})
            means = self._means(credentials or {}, stop, patience or Patience(), release, kept)
            bringing = Bringing(means)
            limit = began + self._config.fetch_timeout
            with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
                try:
                    job = pool.submit(bringing.run, tasks)
                    for update in _follow(job, means.meter, stop, cancelled, limit):
                        yield update or Downloading(tasks[0].label, 0, None)
                finally:
                    stop.set()
            self._raise(job, cancelled)
        names = {task.wanted: task.name for task in tasks if isinstance(task.wanted, Addressed)}
        brought = bringing.brought
        return Ensured(names, brought.files, brought.size, tuple(brought.notes))

    def _tasks(
        self, weights: Collection[Weight], addressed: Collection[Addressed], pins: ExitStack
    ) -> list[Task]:
        """What is not in place; what is in place is pinned, so that the rest does not evict it."""
        tasks: list[Task] = []
        for weight in dict.fromkeys(weights):
            labels = [f"{folder}/{weight.name}" for folder in weight.folders]
            found = self._objects_of(labels).values()
            pins.enter_context(self.objects.pin(found))
            self.objects.touch(found)
            if not self.folders.holds(weight) and not self._linked(weight):
                tasks.append(Task(weight, weight.label))
        counts: dict[str, int] = {}
        for wanted in dict.fromkeys(addressed):
            label = f"{wanted.folder}/{shown(wanted.address)}"
            counts[label] = counts.get(label, 0) + 1
            # Addresses that differ in what must not be shown are still two.
            again = f" ({counts[label]})" if counts[label] > 1 else ""
            tasks.append(Task(wanted, f"{label}{again}"))
        return tasks

    def _raise(self, job: Future[None], cancelled: threading.Event | None) -> None:
        """Raise what the job raised, in the caller's words."""
        timed_out = False
        try:
            job.result()
        except Cancelled:
            timed_out = cancelled is None or not cancelled.is_set()
            if not timed_out:
                raise
        if timed_out:
            raise DownloadFailed(
                f"Fetching the weights took longer than {self._config.fetch_timeout:g} s. What has"
                " come is kept: ask again, or raise COMFY_RUNNER_FETCH_TIMEOUT."
            )
        if cancelled is not None and cancelled.is_set():
            raise Cancelled("Fetching weights was cancelled.")

    def _means(
        self,
        credentials: Mapping[str, str],
        stop: threading.Event,
        patience: Patience,
        release: Callable[[], None] | None,
        pins: ExitStack,
    ) -> Means:
        known = self._hosts.tokens(credentials)
        deadline = self._config.fetch_timeout
        fast: list[tuple[Callable[[Transfer], bool], Engine]] = []
        if hub.available():
            engine = hub.Hub(
                self._hosts.hf,
                credentials=known,
                deadline=deadline,
                stall=patience.stall,
                environment=self._environment,
            )
            fast.append((engine.fits, engine))
        if self._pget is not None:
            fast.append(
                (
                    pget.fits,
                    pget.Pget(
                        self._pget,
                        deadline=deadline,
                        stall=patience.stall,
                        environment=self._environment,
                    ),
                )
            )
        return Means(
            objects=self.objects,
            folders=self.folders,
            meter=Meter(),
            base=self._config.manifest.parent,
            hosts=self._hosts,
            credentials=known,
            environment=self._environment,
            stop=stop,
            patience=patience,
            fast=fast,
            pins=pins,
            recheck_after=self._config.recheck_after,
            allow_pickles=self._config.allow_pickles,
            policy=Policy.of(self._config),
            release=release,
        )

    def _linked(self, weight: Weight) -> bool:
        """Whether what stands in one of the weight's folders does for all of them."""
        for folder in weight.folders:
            standing = self.folders.find(weight, folder)
            if standing is None:
                continue
            missing = [f for f in weight.folders if self.folders.find(weight, f) is None]
            known = self.objects.named(folder, weight.name)
            if known is not None:
                for other in missing:
                    self.objects.link(known, other, weight.name)
                return True
            if standing.is_dir():
                continue
            try:
                for other in missing:
                    _link(standing, self.models / other / weight.name)
            except OSError as err:
                raise DownloadFailed(
                    f"{weight.label} could not be stored under {self.models}: {err.strerror}. "
                    "Free some space there, or make the folder writable."
                ) from err
            return True
        return False


def _link(source: Path, target: Path) -> None:
    """A second name for a file, where the disk has such a thing, else a symbolic link.

    Raises: `InvalidInput` when something else stands there; `OSError`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for make in (target.hardlink_to, target.symlink_to):
        try:
            make(source.resolve())
        except FileExistsError:
            if not target.is_file():
                what = f"{target} is in the way of a model: it is no file, or a link to nowhere."
                raise InvalidInput([Problem("name_taken", what, "Move it away.")]) from None
            return
        except OSError:
            if make == target.symlink_to:
                raise
        else:
            sync(target.parent)
            return


def _follow(
    job: Future[None],
    meter: Meter,
    stop: threading.Event,
    cancelled: threading.Event | None,
    limit: float,
) -> Iterator[Downloading | None]:
    """What the meter tells until the job has ended; None where it has had nothing to tell yet.

    After `limit`, by `time.monotonic`, the job is stopped.
    """
    given, is_silent = time.monotonic(), True
    running = True
    while running:
        running = bool(wait([job], timeout=TICK).not_done)
        now = time.monotonic()
        if (cancelled is not None and cancelled.is_set()) or now > limit:
            stop.set()
        told = meter.heartbeat()
        yield from told
        is_silent = is_silent and not told
        if running and is_silent and now - given >= HEARTBEAT:
            given = now
            yield None
