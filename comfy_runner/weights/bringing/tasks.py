"""What is to be brought: weights as tasks, where their sources lead, and what they are named."""

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from comfy_runner.errors import (
    CallerError,
    Cancelled,
    DownloadFailed,
    HashMismatch,
    InvalidInput,
)
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.policy import OPEN, Policy
from comfy_runner.fetch.transfer import Engine, Remote, Transfer
from comfy_runner.weights.hosts.addresses import Address
from comfy_runner.weights.hosts.places import Hosts, Place
from comfy_runner.weights.kept.objects import ObjectStore
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.progress import Meter
from comfy_runner.weights.weight import Source, Weight


@dataclass(frozen=True, slots=True)
class Addressed:
    """A weight that is known by its address alone; its name is made when it is there."""

    address: Address
    folder: str
    """The model folder that it belongs into."""
    sha256: str | None = None
    name: str = ""
    """What it should be called, apart from the part that its content adds."""


class Task:
    """One weight on its way."""

    def __init__(self, wanted: Weight | Addressed, label: str) -> None:
        self.wanted = wanted
        self.label = label
        """What progress and errors call it."""
        self.sources: Sequence[Source | Address] = (
            wanted.urls if isinstance(wanted, Weight) else [wanted.address]
        )
        self.tried = 0
        self.failures: list[DownloadFailed] = []
        self.lost = False
        """Whether its last source has failed."""
        self.name = ""
        """Its name in the model folder, once it stands there."""

    @property
    def is_out(self) -> bool:
        """Whether every source has been tried."""
        return self.tried >= len(self.sources)

    @property
    def is_folder(self) -> bool:
        """Whether the weight is a whole folder."""
        return isinstance(self.wanted, Weight) and self.wanted.kind == "dir"

    @property
    def sha256(self) -> str | None:
        """Hash that the weight itself must have."""
        return self.wanted.sha256.lower() if self.wanted.sha256 else None

    def refuse(self, refusal: CallerError) -> None:
        """Note that the source that was tried last cannot be used.

        Raises: the refusal, unless another source in the manifest may be all right.
        """
        taken = any(problem.code == "name_taken" for problem in refusal.problems)
        if len(self.sources) == 1 or taken:
            raise refusal
        self.fail(DownloadFailed(str(refusal)))

    def fail(self, failure: DownloadFailed) -> None:
        """Note that the source that was tried last has failed."""
        self.failures.append(failure)
        self.lost = self.is_out


@dataclass(slots=True, kw_only=True, eq=False)
class File:
    """One file that a source leads to: the weight itself, an archive, or one file of a folder."""

    label: str
    """What progress calls it."""
    place: Place
    locate: Callable[[], Place]
    """Finds the place anew, as its URL may be signed and expire."""
    path: str = ""
    """Where it stands in a weight that is a folder; empty for a file on its own."""
    size: int | None = None
    """Bytes that it must have."""
    sha256: str | None = None
    """Hash that it must have."""
    remote: Remote | None = None
    """What the host tells; None for a file of this machine and for a `data:` URL."""
    policy: Policy = OPEN
    """Where its host may stand."""

    @property
    def expected_size(self) -> int | None:
        """Bytes that will come, where anybody knows."""
        return self.remote.size if self.remote and self.remote.size else self.size


@dataclass(slots=True, kw_only=True, eq=False)
class Lead:
    """What one source of a task leads to: a file, or all files of a folder."""

    task: Task
    files: Sequence[File]

    @property
    def is_tree(self) -> bool:
        """Whether the files of a folder are fetched one by one."""
        return bool(self.files[0].path)

    @property
    def place(self) -> Place:
        """Where it is, or the first of its files."""
        return self.files[0].place

    @property
    def remote(self) -> Remote | None:
        """What the host tells of the file, or of the first of several."""
        return self.files[0].remote

    @property
    def source(self) -> str:
        """The same for all leads to the same bytes, as far as their hosts tell."""
        if self.is_tree:
            return "\n".join([self.task.label, *(f"{f.path}\t{f.size}" for f in self.files)])
        return f"{self.place.identity}\n{self.version}"

    @property
    def key(self) -> str:
        """The lock and the unfinished file are called by it.

        A hash that somebody states must not lead to what another one, who has a token, is about
        to fetch.
        """
        file = self.files[0]
        if not self.is_tree and not self.is_private:
            known = file.sha256 or (file.remote and file.remote.sha256)
            if known:
                return known
        return hashlib.sha256(self.source.encode(errors="surrogatepass")).hexdigest()

    @property
    def identity(self) -> str:
        """What the store remembers the result by; it holds no secret."""
        place = self.place
        if self.is_tree:
            return "\n".join(["tree", *(f"{f.path}\t{f.place.identity}" for f in self.files)])
        if not place.extract:
            return place.identity
        tree = "\ntree" if self.task.is_folder else ""
        return f"{place.identity}\n{place.member}\n{place.strip}{tree}"

    @property
    def version(self) -> str:
        """Tells the content from a later one; empty where the hosts do not."""
        versions = [file.remote.version if file.remote else "" for file in self.files]
        if not self.is_tree or "" in versions:
            return "" if "" in versions else versions[0]
        return hashlib.sha256("\n".join(versions).encode(errors="replace")).hexdigest()

    @property
    def is_private(self) -> bool:
        """Whether the host answered only to somebody with a secret."""
        return any(file.remote.private for file in self.files if file.remote)

    @property
    def file_name(self) -> str:
        """What the host calls the file."""
        return self.place.name or (self.remote.name if self.remote else "file")


@dataclass(slots=True, eq=False)
class Group:
    """Leads to the same content: it is fetched once for all of them."""

    key: str
    leads: list[Lead] = field(default_factory=list)
    come: dict[str, Path] = field(default_factory=dict)
    """Files of a folder that were delivered and judged, by their paths in it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def files(self) -> Sequence[File]:
        """What is to be fetched."""
        return self.leads[0].files

    @property
    def sha256(self) -> str | None:
        """Hash that a file on its own must have, whichever of the leads knows it."""
        return next((lead.files[0].sha256 for lead in self.leads if lead.files[0].sha256), None)

    @property
    def size(self) -> int | None:
        """Bytes that a file on its own must have, whichever of the leads knows it."""
        return next((lead.files[0].size for lead in self.leads if lead.files[0].size), None)

    def add(self, file: File, part: Path) -> bool:
        """Note that a file of a folder stands; whether it was the last one."""
        with self._lock:
            self.come[file.path] = part
            return len(self.come) == len(self.files)

    def part(self, objects: ObjectStore, file: File) -> Path:
        """Where the bytes of one of the files go; who holds the lock of the key owns it."""
        part = objects.part(self.key)
        if not file.path:
            return part
        digest = hashlib.sha256(file.path.encode(errors="surrogatepass")).hexdigest()
        return part.with_name(f"{part.name}.{digest[:16]}")


@dataclass(slots=True)
class Brought:
    """What came of it."""

    files: int = 0
    size: int = 0
    """Bytes that were transferred."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What weights are brought with."""

    objects: ObjectStore
    folders: ModelFolders
    meter: Meter
    base: Path
    """Folder that relative URLs of the manifest start at."""
    hosts: Hosts
    credentials: Mapping[str, str] = field(repr=False)
    """Host to the token that it alone is sent."""
    environment: Mapping[str, str] = field(repr=False)
    """Has the tokens that the manifest names."""
    stop: threading.Event
    patience: Patience
    fast: Sequence[tuple[Callable[[Transfer], bool], Engine]]
    """Engines that come before our own, each with what is fit for it."""
    pins: ExitStack
    """Keeps what was brought from being evicted until it is closed."""
    recheck_after: float
    """Seconds that a public host's last answer is believed."""
    allow_pickles: bool
    policy: Policy
    """Where the hosts of addresses may stand."""
    release: Callable[[], None] | None
    """Makes ComfyUI let go of the files that it holds."""

    def check_stop(self) -> None:
        """Raises: `Cancelled`."""
        if self.stop.is_set():
            raise Cancelled("Fetching weights was cancelled.")


def joined(failures: Collection[DownloadFailed]) -> DownloadFailed:
    """One error that says everything."""
    if len(failures) == 1:
        return next(iter(failures))
    lines = [f"  {number}. {failure}" for number, failure in enumerate(failures, 1)]
    kind = HashMismatch if all(isinstance(f, HashMismatch) for f in failures) else DownloadFailed
    return kind("\n".join([f"{len(failures)} downloads failed:", *lines]))


def raise_lost(tasks: Collection[Task]) -> None:
    """Raises: `DownloadFailed` with every failure of every task that is lost, if any is."""
    failures = [failure for task in tasks if task.lost for failure in task.failures]
    every = list({str(failure): failure for failure in failures}.values())
    if every:
        raise joined(every)


def raise_refused(refusals: Collection[CallerError]) -> None:
    """Raises: their own kind of error with every problem; `InvalidInput` where they differ."""
    problems = dict.fromkeys(problem for err in refusals for problem in err.problems)
    kinds = {type(err) for err in refusals}
    if problems:
        raise (kinds.pop() if len(kinds) == 1 else InvalidInput)(problems)
