"""Models fetched, and read into the page cache, while ComfyUI boots."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.comfyui import memory, saved_catalog
from comfy_runner.config import Config
from comfy_runner.documents import source
from comfy_runner.errors import Cancelled, ComfyRunnerError, InvalidInput, Problem
from comfy_runner.graph.nodes import NodeCatalog, did_you_mean
from comfy_runner.runs.plan import needed_models
from comfy_runner.weights.manifest import Manifest, human_size
from comfy_runner.weights.progress import Downloading, Steps
from comfy_runner.weights.store import Addressed, WeightStore
from comfy_runner.weights.weight import Weight

log = logging.getLogger(__name__)

SETTING = "COMFY_RUNNER_PRELOAD"

SHARE = 0.5
"""Part of the free memory that may be filled: ComfyUI needs the rest for itself."""

CHUNK = 8 * 1024**2
"""Bytes that are read at once, between two looks whether to go on."""

LINE_EVERY = 5.0
"""Least seconds between two log lines about what is fetched."""

KIB = 1024


class Preloading:
    """The models of the setting `preload`: fetched and read by a thread of its own."""

    def __init__(self, config: Config, manifest: Manifest, store: WeightStore) -> None:
        """Nothing is done yet. Raises: `InvalidInput` for what the setting cannot mean."""
        self._config = config
        self._manifest = manifest
        self._store = store
        self._credentials: Mapping[str, str] = {}
        self._weights, self._workflows = _wanted(config.preload, manifest)
        self._stopped = threading.Event()
        self._fetched = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, credentials: Mapping[str, str]) -> None:
        """Begin, where there is anything to do; `credentials` as for `WeightStore.ensure`."""
        if self._config.preload and self._thread is None:
            self._credentials = credentials
            # A daemon, since atexit functions, which stop it, run when all other threads ended.
            self._thread = threading.Thread(target=self._work, name="preload", daemon=True)
            self._thread.start()

    def wait_fetched(self) -> None:
        """Return when what was missing is in place, or was found not to come, which is logged."""
        if self._thread is not None:
            self._fetched.wait()

    def stop(self) -> None:
        """Read no more: somebody else needs the disk."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, and wait until it has."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            try:
                paths = self._fetch()
            finally:
                self._fetched.set()
            spare = free_memory()
            report = read_ahead(paths, int((spare or 0) * SHARE), self._stopped)
        except Cancelled:
            log.info("Preload: it was stopped.")
        except OSError as err:
            log.warning("Preload: %s", err)
        else:
            log.info("Preload: %s", report)

    def _fetch(self) -> list[Path]:
        """Fetch what is missing; the files of all models that are there then, in their order."""
        catalog = _catalog(self._config)
        weights, labels = dict.fromkeys(self._weights), dict[str, None]()
        addressed: dict[Addressed, None] = {}
        for path in self._workflows:
            try:
                models = needed_models(
                    source.read(path, field=str(path)),
                    catalog=catalog,
                    manifest=self._manifest,
                    on_disk=self._store.listing,
                )
            except ComfyRunnerError as err:
                log.warning("Preload: the models of %s are not known: %s", path, err)
                continue
            weights |= dict.fromkeys(models.missing.values())
            labels |= dict.fromkeys(models.present)
            addressed |= {Addressed(a.address, a.folder, a.sha256): None for a in models.asked}
        try:
            made = self._ensure(weights, addressed)
        except Cancelled:
            raise
        except ComfyRunnerError:
            made = self._ensure_each(weights, addressed)  # one that does not come ends all others
        labels |= dict.fromkeys([*(weight.label for weight in weights), *made])
        return [path for label in labels for path in self._files(label, catalog)]

    def _ensure(
        self, weights: Mapping[Weight, None], addressed: Mapping[Addressed, None]
    ) -> list[str]:
        """Have them in place; what those with an address are called then, as `folder/name`."""
        fetching = self._store.ensure(
            weights, addressed, credentials=self._credentials, cancelled=self._stopped
        )
        with closing(fetching):
            steps = Steps(fetching)
            told = TellDownloads("Preload")
            for update in steps:
                told.tell(update)
        return [f"{wanted.folder}/{name}" for wanted, name in steps.result.names.items()]

    def _ensure_each(
        self, weights: Mapping[Weight, None], addressed: Mapping[Addressed, None]
    ) -> list[str]:
        """As `_ensure`, one by one; what does not come is logged."""
        made: list[str] = []
        alone = [*(({w: None}, {}) for w in weights), *(({}, {a: None}) for a in addressed)]
        for weight, wanted in alone:
            try:
                made += self._ensure(weight, wanted)
            except Cancelled:
                raise
            except ComfyRunnerError as err:
                log.warning("Preload: %s", err)
        return made

    def _files(self, label: str, catalog: NodeCatalog) -> Iterator[Path]:
        """The files of a model, named as `folder/name`, in the folders that ComfyUI looks in."""
        folder, _, name = label.partition("/")
        shape = catalog.model_folder(folder)
        for place in dict.fromkeys((*(shape.places if shape else ()), folder)):
            path = self._config.models / place / name
            if path.is_file():
                yield path
                return
            if path.is_dir():
                yield from sorted(each for each in path.rglob("*") if each.is_file())
                return


class TellDownloads:
    """Logs how downloads come along: now and then, and each file's end."""

    def __init__(self, task: str) -> None:
        """`task` begins each line."""
        self._task = task
        self._told = 0.0
        self._ended: set[str] = set()

    def tell(self, update: Downloading) -> None:
        """Log one update, if there is anything new in it."""
        now = time.monotonic()
        has_ended = update.total is not None and update.done >= update.total
        if update.name in self._ended or not (has_ended or now - self._told >= LINE_EVERY):
            return
        if has_ended:
            self._ended.add(update.name)
        self._told = now
        log.info("%s: fetching %s: %s", self._task, update.name, update)


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """What `read_ahead` did."""

    files: int
    """Files that were read to their end."""
    size: int
    """Bytes that were read."""
    seconds: float
    too_big: tuple[str, ...] = ()
    """Names of the files that would have taken more memory than was allowed."""
    stopped: bool = False
    """Whether it ended before it was through."""

    def __str__(self) -> str:
        text = f"{self.files} file{'s' * (self.files != 1)}, {human_size(self.size)}"
        text += f", read into the page cache in {self.seconds:.1f} s"
        if self.stopped:
            text += ", until it was stopped"
        if self.too_big:
            text += f"; left out, for they would take too much memory: {', '.join(self.too_big)}"
        return f"{text}."


def read_ahead(paths: Iterable[Path], limit: int, stopped: threading.Event) -> ReadAhead:
    """Read files so that the system keeps them in its page cache, at most `limit` bytes of them.

    A file is read whole or, where it does not fit any more, not at all; one that is named twice
    counts once. What cannot be read is logged. Setting `stopped` ends it within a `CHUNK`.
    """
    began = time.monotonic()
    buffer = bytearray(CHUNK)
    files = size = 0
    too_big = []
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            with path.open("rb", buffering=0) as file:
                if size + path.stat().st_size > limit:
                    too_big.append(path.name)
                    continue
                while not stopped.is_set() and (count := file.readinto(buffer)):
                    size += count
        except OSError as err:
            log.warning("Preload: %s cannot be read: %s", path.name, err.strerror)
            continue
        if stopped.is_set():
            break
        files += 1
    seconds = time.monotonic() - began
    return ReadAhead(files, size, seconds, tuple(too_big), stopped.is_set())


def free_memory(root: Path = memory.ROOT) -> int | None:
    """Bytes that can be filled without taking them from a program; None if the system tells none.

    Not more than a container may use at all: what the rest of it uses is not looked at.
    """
    with suppress(OSError):
        for line in (root / "proc" / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                free = int(value.split()[0]) * KIB
                return min(free, memory.available(root) or free)
    return None


def _wanted(names: Iterable[str], manifest: Manifest) -> tuple[list[Weight], list[Path]]:
    """The weights that the setting names or whose group it names, and the files of workflows."""
    listed = {f"{folder}/{each.name}": each for each in manifest.weights for folder in each.folders}
    weights: list[Weight] = []
    workflows: list[Path] = []
    problems = []
    for name in names:
        labels = manifest.groups.get(name, (name,))
        path = Path(name).absolute()
        if all(label in listed for label in labels):
            weights += [listed[label] for label in labels]
        elif path.is_file():
            workflows.append(path)
        else:
            what = f"{name!r} is no group and no weight of the manifest, and no file."
            guess = did_you_mean(name, (*manifest.groups, *listed))
            hint = guess or "Name a group, a weight as folder/name, or the path of a workflow."
            problems.append(Problem("bad_setting", what, hint, input=SETTING))
    if problems:
        raise InvalidInput(problems)
    return weights, workflows


def _catalog(config: Config) -> NodeCatalog:
    """ComfyUI's own classes, and those of custom nodes as they were when it ran last."""
    own, saved = saved_catalog.builtin(), saved_catalog.load(config)
    return own if saved is None else own.with_classes_of(saved)
