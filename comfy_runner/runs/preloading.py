"""Models fetched, and read into the page cache, while ComfyUI boots."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from comfy_runner.comfyui import saved_catalog
from comfy_runner.config import Config
from comfy_runner.documents import source
from comfy_runner.errors import Cancelled, ComfyRunnerError, InvalidInput, Problem, TimedOut
from comfy_runner.graph.nodes import NodeCatalog, did_you_mean
from comfy_runner.runs.page_cache import free_memory, read_ahead
from comfy_runner.runs.plan import Plan, needed_models
from comfy_runner.runs.run import Finished, Request
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.progress import Downloading, Steps
from comfy_runner.weights.store import Addressed, Ensured, WeightStore
from comfy_runner.weights.weight import Weight

log = logging.getLogger(__name__)

SETTING = "COMFY_RUNNER_PRELOAD"

SHARE = 0.5
"""Part of the free memory that may be filled: ComfyUI needs the rest for itself."""

LINE_EVERY = 5.0
"""Least seconds between two log lines about what is fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """The models of the run that is to follow, which they are fetched ahead for."""

    weights: tuple[Weight, ...]
    """What the manifest has and the disk has not."""
    asked: tuple[Addressed, ...]
    """What comes from addresses of the request or the workflow."""
    present: tuple[str, ...]
    """What is on disk, as `folder/name`: it is not to make room for the rest."""
    credentials: Mapping[str, str]
    """Host to token."""
    tell: Callable[[Downloading], object]
    """Called from another thread with how the downloads come along."""

    @classmethod
    def of(cls, plan: Plan, request: Request, tell: Callable[[Downloading], object]) -> "Ahead":
        """All models of a plan that was made for the request without ComfyUI."""
        return cls(
            weights=plan.weights,
            asked=tuple(Addressed(a.address, a.folder, a.sha256) for a in plan.asked),
            present=plan.present,
            credentials=request.credentials,
            tell=tell,
        )


@dataclass(slots=True)
class Brought:
    """What was fetched ahead."""

    files: int = 0
    size: int = 0
    """Bytes."""
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds that the run waited for it, with ComfyUI up."""

    def counted(self, finished: Finished) -> Finished:
        """The end of the run that it was fetched for, with it.

        Its seconds count as those of the phase `fetch`, though ComfyUI started meanwhile; where no
        file came, those that the run waited.
        """
        seconds = dict(finished.seconds)
        seconds["prepare"] -= self.waited
        seconds["fetch"] += self.seconds if self.files else self.waited
        return replace(
            finished,
            seconds=seconds,
            fetched_files=finished.fetched_files + self.files,
            fetched_bytes=finished.fetched_bytes + self.size,
        )


class Preloading:
    """The models of the setting `preload`, and those of the first run where they are known.

    They are fetched and read by a thread of its own. What the setting names and does not come is
    logged; what the run needs and does not come is the run's failure.
    """

    def __init__(
        self, config: Config, manifest: Manifest, store: WeightStore, ahead: Ahead | None = None
    ) -> None:
        """Nothing is done yet. Raises: `InvalidInput` for what the setting cannot mean."""
        self._config = config
        self._manifest = manifest
        self._store = store
        self._ahead = ahead
        self.brought = Brought()
        """What was fetched for the first run."""
        self._is_first = True
        """Whether no run has come yet."""
        self._failure: ComfyRunnerError | None = None
        """Why not all of it came."""
        self._credentials: Mapping[str, str] = {}
        self._weights, self._workflows = _wanted(config.preload, manifest)
        self._stopped = threading.Event()
        self._fetched = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, credentials: Mapping[str, str]) -> None:
        """Begin, where there is anything to do; `credentials` as for `WeightStore.ensure`."""
        if (self._config.preload or self._ahead) and self._thread is None:
            self._credentials = credentials
            # A daemon, since atexit functions, which stop it, run when all other threads ended.
            self._thread = threading.Thread(target=self._work, name="preload", daemon=True)
            self._thread.start()

    def wait_fetched(self) -> None:
        """Return when what the setting names is in place, or was found not to come."""
        if self._thread is not None and self._config.preload:
            self._fetched.wait()

    def give_way(self, deadline: float) -> None:
        """Read no more, since a run needs the disk; the first one gets what is fetched for it.

        Raises: for the first run as `WeightStore.ensure`, and `TimedOut` when it is not all there
        by the `deadline`, a moment of `time.monotonic`.
        """
        is_first, self._is_first = self._is_first, False
        try:
            if not is_first or self._ahead is None or self._thread is None:
                return
            began = time.monotonic()
            if not self._fetched.wait(max(0.0, deadline - began)):
                raise TimedOut(
                    "The time for the run was over while weights were fetched; it was stopped."
                )
            self.brought.waited = min(time.monotonic() - began, self.brought.seconds)
            if self._failure is not None:
                raise self._failure
        finally:
            self.stop()

    def stop(self) -> None:
        """Fetch and read no more."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, and wait until it has."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        # Who has not asked for anything ahead need not be told how it went.
        level = logging.INFO if self._config.preload else logging.DEBUG
        with ExitStack() as pins:
            try:
                try:
                    labels = self._fetch_for_run(pins)
                    catalog = saved_catalog.offline(self._config)
                    labels += self._fetch(catalog)
                finally:
                    self._fetched.set()
                paths = [path for label in labels for path in self._files(label, catalog)]
                report = read_ahead(paths, int((free_memory() or 0) * SHARE), self._stopped)
            except Cancelled:
                log.log(level, "Preload: it was stopped.")
            except OSError as err:
                log.warning("Preload: %s", err)
            else:
                log.log(level, "Preload: %s", report)

    def _fetch_for_run(self, pins: ExitStack) -> list[str]:
        """Fetch what the first run lacks, and hold what it needs with `pins`; all as labels."""
        ahead = self._ahead
        if ahead is None:
            return []
        began = time.monotonic()
        try:
            pins.enter_context(self._store.in_use(ahead.present))
            ensured = self._ensured(
                ahead.weights, ahead.asked, ahead.credentials, ahead.tell, pins=pins
            )
        except Cancelled:
            raise
        except ComfyRunnerError as err:
            self._failure = err
            return []
        seconds = time.monotonic() - began
        self.brought = Brought(ensured.files, ensured.size, seconds)
        return [
            *ahead.present,
            *(weight.label for weight in ahead.weights),
            *_made(ensured),
        ]

    def _fetch(self, catalog: NodeCatalog) -> list[str]:
        """Fetch what the setting names and is missing; all models of it, in their order."""
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
        return list(labels | dict.fromkeys([*(weight.label for weight in weights), *made]))

    def _ensure(
        self, weights: Mapping[Weight, None], addressed: Mapping[Addressed, None]
    ) -> list[str]:
        """Have them in place; what those with an address are called then, as `folder/name`."""
        tell = TellDownloads("Preload").tell
        return _made(self._ensured([*weights], [*addressed], self._credentials, tell))

    def _ensured(
        self,
        weights: Collection[Weight],
        addressed: Collection[Addressed],
        credentials: Mapping[str, str],
        tell: Callable[[Downloading], object],
        pins: ExitStack | None = None,
    ) -> Ensured:
        fetching = self._store.ensure(
            weights, addressed, credentials=credentials, cancelled=self._stopped, pins=pins
        )
        with closing(fetching):
            steps = Steps(fetching)
            for update in steps:
                tell(update)
        for note in steps.result.notes:
            log.info("%s", note)
        return steps.result

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


def _made(ensured: Ensured) -> list[str]:
    """What models with an address are called now, as `folder/name`."""
    return [f"{wanted.folder}/{name}" for wanted, name in ensured.names.items()]


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
