"""How the downloads of a run come along: bytes, rate and time left, of each file and in all."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

WINDOW = 5.0
"""Seconds that a rate looks back."""
SAMPLES = 20
"""Points in that time that a rate remembers."""
LEAST = 0.5
"""Seconds that must be known before there is a rate: the first bytes come in a burst."""
HEARTBEAT = 1.0
"""Seconds after which the last state is told again, so that a caller can look at its clock."""
KILO = 1000


@dataclass(frozen=True, slots=True)
class Overall:
    """How far all downloads of a run have come."""

    done: int
    """Bytes that stand."""
    total: int | None
    """Bytes of all files; None while the size of one is unknown."""
    rate: float
    """Bytes per second of late; 0 where nothing came."""
    files_done: int
    """Files that are in place."""
    files: int

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all is there, at this rate; None where nobody can say."""
        return _seconds_left(self.done, self.total, self.rate)


@dataclass(frozen=True, slots=True)
class Downloading:
    """How far the download of one weight has come; equal to another where as many bytes stand."""

    name: str
    """Folder and name, such as `loras/x.safetensors`."""
    done: int
    """Bytes that stand; they may go back when a download begins anew."""
    total: int | None
    """Bytes of the whole file, where they are known."""
    rate: float = field(default=0.0, compare=False)
    """Bytes per second of late; 0 where nothing came."""
    overall: Overall | None = field(default=None, compare=False)
    """All downloads of the run at that moment; None where there is only this one to tell of."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the file is there, at this rate; None where nobody can say."""
        return _seconds_left(self.done, self.total, self.rate)

    def __str__(self) -> str:
        """Such as `120 MB of 2.1 GB, 85 MB/s, 24 s left (3 of 5 files, 4.0 of 9.1 GB in all)`."""
        text = told(self.done, self.total, self.rate, self.seconds_left)
        overall = self.overall
        if overall is None or overall.files < 2:  # noqa: PLR2004 - of one file all is said
            return text
        counted = f"{overall.files_done} of {overall.files} files"
        return f"{text} ({counted}, {bytes_of(overall.done, overall.total)} in all)"


class Steps[T, R]:
    """What a generator yields, one by one, and then what it returned."""

    result: R
    """There once the last step was taken."""

    def __init__(self, steps: Generator[T, None, R]) -> None:
        """Who has made the generator closes it."""
        self._steps = steps

    def __iter__(self) -> Iterator[T]:
        self.result = yield from self._steps


class Meter:
    """What the threads of several downloads report, for the one thread that tells it on.

    `expect`, `report` and `finish` may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._fresh: dict[str, None] = {}  # a set that keeps its order
        self._latest = ""
        self._given = clock()
        self._rate = _Rate()

    def expect(self, key: str, total: int | None) -> None:
        """A file is to come, of so many bytes if they are known: it counts among all files."""
        with self._lock:
            self._files.setdefault(key, _File()).total = total
            self._fresh[key] = None

    def report(self, key: str, done: int, total: int | None) -> None:
        """So many bytes of a file stand; fewer than before when its download began anew.

        The first bytes reported may be those of an earlier run: they count for no rate. Without a
        `total` the one that was known is kept.
        """
        with self._lock:
            now = self._clock()
            file = self._files.setdefault(key, _File())
            file.is_done = False
            come = 0 if file.done is None else max(0, done - file.done)
            file.done = done
            file.total = file.total if total is None else total
            if file.total is not None and done > file.total:
                file.total = None  # nobody knows, it seems
            file.rate.add(now, come)
            self._rate.add(now, come)
            self._fresh[key] = None

    def finish(self, key: str) -> None:
        """The file is in place, also when it came without a report of its last bytes."""
        with self._lock:
            file = self._files.setdefault(key, _File())
            file.is_done = True
            if file.total is None:
                file.total = file.done or 0
            file.done = file.total
            self._fresh[key] = None

    def fresh(self) -> list[Downloading]:
        """The present states of the files of which something was told since the last call."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
            return self._states(list(fresh))

    def heartbeat(self) -> list[Downloading]:
        """What is fresh; after each `HEARTBEAT` seconds without anything the last state again."""
        with self._lock:
            fresh, self._fresh = list(self._fresh), {}
            if not fresh and self._latest and self._clock() - self._given >= HEARTBEAT:
                fresh = [self._latest]
            return self._states(fresh)

    def overall(self) -> Overall:
        """How far all downloads have come."""
        with self._lock:
            return self._overall(self._clock())

    def _states(self, keys: list[str]) -> list[Downloading]:
        if not keys:
            return []
        now = self._clock()
        self._latest, self._given = keys[-1], now
        overall = self._overall(now)
        files = [(key, self._files[key]) for key in keys]
        return [
            Downloading(key, file.done or 0, file.total, file.rate.at(now), overall)
            for key, file in files
        ]

    def _overall(self, now: float) -> Overall:
        files = self._files.values()
        totals = [file.total for file in files if file.total is not None]
        return Overall(
            done=sum(file.done or 0 for file in files),
            total=sum(totals) if len(totals) == len(files) else None,
            rate=self._rate.at(now),
            files_done=sum(file.is_done for file in files),
            files=len(files),
        )


class _Rate:
    """Bytes per second over the last `WINDOW` seconds."""

    def __init__(self) -> None:
        self._come = 0
        self._heard = -math.inf
        self._samples: deque[tuple[float, int]] = deque()  # (second, bytes come until then)

    def add(self, now: float, count: int) -> None:
        """So many bytes have come since the last call."""
        self._come += count
        if count:
            self._heard = now
        if not self._samples or now - self._samples[-1][0] >= WINDOW / SAMPLES:
            self._samples.append((now, self._come))

    def at(self, now: float) -> float:
        """The rate; 0 while too little is known."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()
        if now - self._heard >= WINDOW:
            return 0.0
        since, come = self._samples[0]
        return (self._come - come) / (now - since) if now - since >= LEAST else 0.0


@dataclass(slots=True)
class _File:
    """What was told of one file."""

    total: int | None = None
    done: int | None = None
    """None before the first report."""
    is_done: bool = False
    rate: _Rate = field(default_factory=_Rate)


def told(done: int, total: int | None, rate: float, seconds_left: float | None) -> str:
    """Such as `120 MB of 2.1 GB, 85 MB/s, 24 s left`, without what is not known."""
    text = bytes_of(done, total)
    if done == total:
        return text
    if rate:
        text += f", {_size(rate)}/s"
    return text if seconds_left is None else f"{text}, {_time(seconds_left)} left"


def bytes_of(done: int, total: int | None) -> str:
    """Such as `4.0 of 9.1 GB`, `120 MB of 2.1 GB`, or `120 MB` where no total is known."""
    number, unit = _size(done).split(" ")
    if total is None:
        return f"{number} {unit}"
    whole = _size(total)
    return f"{number} of {whole}" if whole.endswith(f" {unit}") else f"{number} {unit} of {whole}"


def _size(count: float) -> str:
    """Bytes as they are read in passing: `512 B`, `1.3 MB`, `120 MB`, `23.8 GB`."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if count < KILO:
            break
        count, unit = count / KILO, larger
    exact = unit == "GB" or (unit != "B" and count < 9.95)  # noqa: PLR2004 - two digits do
    return f"{count:.1f} {unit}" if exact else f"{count:.0f} {unit}"


def _time(seconds: float) -> str:
    """Such as `24 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _seconds_left(done: int, total: int | None, rate: float) -> float | None:
    if total is None or not rate:
        return 0.0 if done == total else None
    return max(0, total - done) / rate
