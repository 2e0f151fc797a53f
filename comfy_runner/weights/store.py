"""The models folder: what is in it, and how what is missing gets there."""

import hashlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from comfy_runner.errors import (
    Cancelled,
    DownloadFailed,
    HashMismatch,
    InvalidInput,
    Problem,
    UnknownModel,
)
from comfy_runner.fetch.download import Patience, fetch
from comfy_runner.fetch.staged import sync_folder
from comfy_runner.graph.nodes import ModelFolder
from comfy_runner.weights.manifest import IMAGE_TAES, Manifest, human_size, vae_approx_names
from comfy_runner.weights.weight import Weight, map_legacy

__all__ = ["Downloading", "WeightStore", "vae_approx_names"]

log = logging.getLogger(__name__)

TICK = 0.1
"""Longest wait, in seconds, between two looks at what happens."""
HEARTBEAT = 1.0
"""Seconds after which the last update is repeated, so that a caller can look at its clock."""
PARALLEL = 4
"""Files that are fetched at once."""
RESERVE = 64 * 1024**2
"""Bytes of the disk that weights leave free."""
EXTENSIONS = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
"""What ComfyUI takes for a model: `supported_pt_extensions` in folder_paths.py, 0.30.0."""
MERGED: Mapping[str, tuple[str, ...]] = {
    "diffusion_models": ("unet", "diffusion_models"),
    "text_encoders": ("text_encoders", "clip"),
    "controlnet": ("controlnet", "t2i_adapter"),
}
"""Model folders that ComfyUI fills from several, in the order in which it looks: same place."""


@dataclass(frozen=True, slots=True)
class Downloading:
    """How far the download of one weight has come."""

    name: str
    """Folder and name, such as `loras/x.safetensors`."""
    done: int
    """Bytes that stand; they may go back when a download begins anew."""
    total: int | None
    """Bytes of the whole file, where they are known."""


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file. Raises: `InvalidInput` when it cannot be read or does not hold."""
    try:
        text = path.read_bytes()
    except OSError as err:
        what = f"The weights manifest {path} cannot be read: {err.strerror}."
        hint = "Write one, or set COMFY_RUNNER_MANIFEST."
        raise InvalidInput([Problem("no_manifest", what, hint)]) from err
    return Manifest.parse(text)


class WeightStore:
    """A models folder as ComfyUI reads it, shared by any number of processes.

    Unfinished files stand in `.staging` below it, where ComfyUI does not look. What a killed
    process left there goes when the next store is made.
    """

    def __init__(self, models: Path, project: Path) -> None:
        self.models = models
        self.project = project
        """Folder that relative URLs of the manifest start at."""
        self._staging = models / ".staging"
        self._remove_leftovers()

    def listing(self, folder: str, shape: ModelFolder | None = None) -> frozenset[str]:
        """The names in a model folder as ComfyUI lists them: relative, with `/`.

        `shape` is what the catalog says of the folder, where it knows it: node packs make folders
        of their own. Links are followed. Unlike in ComfyUI's own list, a link that leads nowhere
        is left out: ComfyUI would offer the name and then fail to load it.
        """
        names: set[str] = set()
        places = [self.models / name for name in shape.places] if shape else self._places(folder)
        extensions = shape.extensions if shape else EXTENSIONS
        for place in places:
            for parent, subfolders, files in os.walk(place, followlinks=True):
                subfolders[:] = [name for name in subfolders if name != ".git"]
                for name in files:
                    file = Path(parent, name)
                    if (not extensions or file.suffix.lower() in extensions) and file.exists():
                        names.add(file.relative_to(place).as_posix())
        return frozenset(names)

    def installed(self, weight: Weight) -> bool:
        """Whether the weight stands in all its folders, with the manifest's size if it says one."""
        return all(self._find(weight, folder) is not None for folder in weight.folders)

    def ensure(
        self,
        weights: Collection[Weight],
        *,
        credentials: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
        patience: Patience | None = None,
    ) -> Iterator[Downloading]:
        """Fetch what is missing, several files at once; at the end of the iterator all is there.

        Each file is verified before it gets its name. `credentials` maps a host to its bearer
        token. The first failure stops the others; closing the iterator early stops all. While it
        works the iterator yields at least about once a second, without news the last update again.

        Raises: `DownloadFailed` with every failure, or `HashMismatch` when that was the only one;
        `UnknownModel` for a weight that cannot be fetched yet; `Cancelled`.
        """
        missing = [weight for weight in dict.fromkeys(weights) if not self.installed(weight)]
        if not missing:
            return
        _refuse_unsupported(missing)
        self._check_space(missing)
        # The largest first: then no long download begins when the others are done.
        missing.sort(key=lambda weight: weight.size or 0, reverse=True)
        job = _Job(dict(credentials or {}), patience or Patience())
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="weights") as pool:
            try:
                futures = [pool.submit(self._install, weight, job) for weight in missing]
                yield from job.follow(futures, cancelled or threading.Event())
            finally:
                job.stop.set()
        _raise_failures(futures)
        if cancelled is not None and cancelled.is_set():
            raise Cancelled("Fetching weights was cancelled.")

    def _places(self, folder: str) -> list[Path]:
        present = map_legacy(folder)
        return [self.models / name for name in MERGED.get(present, (present,))]

    def _find(self, weight: Weight, folder: str) -> Path | None:
        """The file that stands for the weight in a folder; None when there is none."""
        for place in self._places(folder):
            file = place / weight.name
            with suppress(OSError):
                if file.is_file() and weight.size in (None, file.stat().st_size):
                    return file
        # VAELoader takes the first file that begins so: one of another type would be in its way.
        half = weight.name.partition(".")[0]
        if folder == "vae_approx" and half.partition("_")[0] in IMAGE_TAES:
            for place in self._places(folder):
                for file in place.glob(f"{half}.*"):
                    if file.suffix.lower() in EXTENSIONS and file.name != weight.name:
                        return file
        return None

    def _check_space(self, missing: Collection[Weight]) -> None:
        """Raises: `DownloadFailed` when the disk cannot hold the files whose size is known."""
        needed = sum(w.size or 0 for w in missing if self._find(w, w.folders[0]) is None)
        with self._storing("The weights"):
            self.models.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.models).free
        if needed and needed + RESERVE > free:
            raise DownloadFailed(
                f"The disk is too small for the weights: {human_size(needed)} are to be fetched "
                f"and {human_size(free)} are free, so {human_size(needed + RESERVE - free)} are "
                f"missing. Free some space under {self.models}."
            )

    def _install(self, weight: Weight, job: "_Job") -> None:
        """Fetch one weight unless another process has just done so, and link its other folders."""
        job.report(weight.label, 0, weight.size)
        key = _key(weight)
        folder = self._staging / key
        with self._storing(weight.label), self._locked(key, job.stop):
            if self.installed(weight):
                return
            try:
                first = self._find(weight, weight.folders[0])
                if first is None:
                    first = self.models / weight.folders[0] / weight.name
                    self._fetch_any(weight, first, folder, job)
                for other in weight.folders[1:]:
                    if self._find(weight, other) is None:
                        _link(first, self.models / other / weight.name, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _storing(self, what: str) -> Iterator[None]:
        """Turns what the disk refuses into `DownloadFailed`."""
        try:
            yield
        except OSError as err:
            raise DownloadFailed(
                f"{what} could not be stored under {self.models}: {err.strerror}. "
                "Free some space there, or make the folder writable."
            ) from err

    def _fetch_any(self, weight: Weight, target: Path, staging: Path, job: "_Job") -> None:
        """Fetch from the first mirror that gives the right file."""
        failures: list[DownloadFailed] = []
        staging = _staging_for(target, staging)
        for url in weight.plain_urls:
            try:
                fetch(
                    url,
                    target,
                    size=weight.size,
                    sha256=weight.sha256,
                    expect="weight",
                    credentials=job.credentials,
                    progress=lambda done, total: job.report(weight.label, done, total),
                    base=self.project,
                    allow_local=True,
                    staging=staging,
                    cancelled=job.stop,
                    patience=job.patience,
                )
            except DownloadFailed as err:
                failures.append(err)
            else:
                known = "" if weight.sha256 else " It is not verified: the manifest has no sha256."
                log.info("Fetched %s.%s", weight.label, known)
                return
        raise _joined(failures)

    @contextmanager
    def _locked(self, key: str, stop: threading.Event) -> Iterator[None]:
        """Hold the weight's lock, which a dead process gives up by dying."""
        self._staging.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._staging / f"{key}.lock")
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                if stop.wait(TICK):
                    raise Cancelled("Waiting for another download was cancelled.") from None
        try:
            yield
        finally:
            lock.release()

    def _remove_leftovers(self) -> None:
        """Remove the unfinished files whose process is dead: nobody holds their lock."""
        # A models folder that cannot be written to has nothing of ours.
        with suppress(PermissionError, FileNotFoundError, NotADirectoryError):
            for folder in [entry for entry in self._staging.iterdir() if entry.is_dir()]:
                with suppress(Timeout), FileLock(f"{folder}.lock", blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)


class _Job:
    """One call of `ensure`: what its threads share."""

    def __init__(self, credentials: Mapping[str, str], patience: Patience) -> None:
        self.credentials = credentials
        self.patience = patience
        self.stop = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._fresh: dict[str, Downloading] = {}

    def report(self, name: str, done: int, total: int | None) -> None:
        """Tell the caller's thread, which sees the latest state of each file every `TICK`."""
        with self._lock:
            self._fresh[name] = Downloading(name, done, total)

    def follow(
        self, futures: Collection["Future[None]"], cancelled: threading.Event
    ) -> Iterator[Downloading]:
        """The updates until all futures are done; stops them at the first failure."""
        for future in futures:
            future.add_done_callback(lambda _: self._wake.set())
        running = set(futures)
        latest: Downloading | None = None
        yielded = time.monotonic()
        while running:
            self._wake.wait(TICK)
            self._wake.clear()
            done, running = wait(running, timeout=0)
            if cancelled.is_set() or any(future.exception() for future in done):
                self.stop.set()
            with self._lock:
                fresh, self._fresh = self._fresh, {}
            if latest is not None and time.monotonic() - yielded >= HEARTBEAT:
                fresh = fresh or {latest.name: latest}
            for update in fresh.values():
                latest, yielded = update, time.monotonic()
                yield update


def _key(weight: Weight) -> str:
    return hashlib.sha256(weight.label.encode()).hexdigest()[:16]


def _staging_for(target: Path, staging: Path) -> Path:
    """The folder for the unfinished file: one from which a rename reaches the target."""
    staging.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The model folder may be a mount, or a link to another disk.
    same_disk = staging.stat().st_dev == target.parent.stat().st_dev
    return staging if same_disk else target.parent


def _link(source: Path, target: Path, staging: Path) -> None:
    """A second name for a file, or a copy where the disk has no such thing."""
    part = _staging_for(target, staging) / f".{secrets.token_hex(8)}.part"
    try:
        try:
            part.hardlink_to(source.resolve())
        except OSError:
            shutil.copyfile(source, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(target)
        sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _refuse_unsupported(weights: Collection[Weight]) -> None:
    """Raises: `UnknownModel` for weights that come as archives or folders only."""
    problems = [
        Problem("unsupported_weight", *weight.unsupported)
        for weight in weights
        if weight.unsupported is not None
    ]
    if problems:
        raise UnknownModel(problems)


def _raise_failures(futures: Collection["Future[None]"]) -> None:
    """Raise what went wrong; that the rest was stopped is no failure of its own."""
    failures = [err for future in futures if (err := future.exception()) is not None]
    real = [err for err in failures if not isinstance(err, Cancelled)]
    for err in real:
        if not isinstance(err, DownloadFailed):
            raise err
    if real:
        raise _joined([err for err in real if isinstance(err, DownloadFailed)])


def _joined(failures: Collection[DownloadFailed]) -> DownloadFailed:
    """One error that says everything."""
    if len(failures) == 1:
        return next(iter(failures))
    lines = [f"  {number}. {failure}" for number, failure in enumerate(failures, 1)]
    kind = HashMismatch if all(isinstance(f, HashMismatch) for f in failures) else DownloadFailed
    return kind("\n".join([f"{len(failures)} downloads failed:", *lines]))
