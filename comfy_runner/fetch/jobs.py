"""The queue that the workers of a download share: files, their pieces, and what hosts bear."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.answers import UNTRUSTED
from comfy_runner.fetch.pieces import Assembly, Piece
from comfy_runner.fetch.transfer import Remote, Transfer
from comfy_runner.fetch.urls import redacted

log = logging.getLogger(__name__)

LONG = 60.0
"""Seconds that a worker waits at most before it looks into the queue again."""


class Renew(Exception):
    """The file must be looked for again: what the server answers does not fit what was found."""

    def __init__(self, reason: str, *, unranged: bool = False) -> None:
        self.reason = reason
        self.unranged = unranged
        """Whether the server does not answer ranges, unless the content has changed."""
        super().__init__(reason)


@dataclass(slots=True, eq=False)
class File:
    """One transfer on its way; all of it changes under the queue's lock."""

    transfer: Transfer
    step: Literal["open", "fetch", "repair", "settle", "settled"] = "open"
    """All but `fetch` are for one worker alone, once no other is at the file."""
    alone: bool = False
    """Whether such a worker is at it."""
    active: int = 0
    """Workers that fetch pieces of it."""
    assembly: Assembly | None = None
    pending: deque[Piece] = field(default_factory=deque)
    fault: DownloadFailed | None = None
    renewal: Renew | None = None
    unranged: bool = False
    """Whether it is read in one stream although the server seemed to answer ranges."""
    repairs: int = 0
    changes: int = 0
    stood: int = 0
    """Bytes that stood at the last repair."""
    reported: int = -1

    @property
    def remote(self) -> Remote:
        """The file as it was found last."""
        return self.transfer.remote

    @property
    def host(self) -> str:
        """The host and port that the bytes come from."""
        return urlsplit(self.remote.final_url).netloc

    @property
    def shown(self) -> str:
        """What an error calls it."""
        return redacted(self.remote.url)

    def fail(self, reason: str) -> None:
        """End it with an error; the first one counts."""
        if self.fault is None:
            self.fault = DownloadFailed(f"{self.shown} could not be fetched: {reason}")
        self.step = "settle"


@dataclass(slots=True, eq=False)
class Host:
    """How much one host bears."""

    most: int
    """Connections at once."""
    active: int = 0
    not_before: float = 0.0


@dataclass(slots=True, eq=False)
class Leave:
    """Set once a worker must leave what it reads: for good, or because its file has failed."""

    halt: threading.Event
    file: File | None = None

    def is_set(self) -> bool:
        return self.halt.is_set() or (self.file is not None and self.file.step != "fetch")


Job = tuple[File, Piece | None]
"""A file, and a piece of it to fetch or None for the step that the file is at."""


class Jobs:
    """The queue. Every change of a file that others may be at is made by one of its methods."""

    def __init__(self, files: Iterable[File], workers: int) -> None:
        """`workers` is the number of connections that a host gets at first."""
        self.files = list(files)
        """Those without an outcome, in the order in which they are begun."""
        self.halt = threading.Event()
        """Set once all workers must leave."""
        self._workers = workers
        self._hosts: dict[str, Host] = {}
        self._changed = threading.Condition()

    def stop(self) -> None:
        """Make all workers leave."""
        self.halt.set()
        with self._changed:
            self._changed.notify_all()

    def fetching(self) -> list[File]:
        """The files whose bytes are coming."""
        with self._changed:
            return [file for file in self.files if file.step == "fetch"]

    def is_waiting(self) -> bool:
        """Whether there is something to do that no worker does yet."""
        with self._changed:
            return any(file.pending or file.step == "open" for file in self.files)

    def take(self, last: Job | None) -> Job | None:
        """Give the last job back and take another; waits for one. None when all is done."""
        with self._changed:
            if last is not None:
                self._give_back(*last)
            while not self.halt.is_set() and self.files:
                now = time.monotonic()
                soonest = now + LONG
                # A small file is begun, fetched and settled by one worker in a row.
                for file in self.files if last is None else (last[0], *self.files):
                    job = self._job_of(file, now)
                    if isinstance(job, tuple):
                        return job
                    soonest = min(soonest, job)
                self._changed.wait(max(soonest - now, 0.001))
            return None

    def put_back(self, file: File, piece: Piece) -> None:
        """Let the piece be fetched by whoever comes next."""
        with self._changed:
            file.pending.appendleft(piece)

    def renew(self, file: File, piece: Piece, renewal: Renew) -> None:
        """Have the file found again before any more of it is fetched."""
        with self._changed:
            file.pending.appendleft(piece)
            if file.step == "fetch":
                file.step, file.renewal = "repair", renewal

    def give_up(self, file: File, fault: DownloadFailed) -> None:
        """End the file with an error; the first one counts."""
        with self._changed:
            file.fault = file.fault or fault
            file.step = "settle"

    def again(
        self,
        file: File,
        piece: Piece,
        why: str,
        *,
        moved: bool,
        pause: float | None,
        crowded: bool,
    ) -> None:
        """Put a piece back that did not come whole, or give its file up.

        `why` is empty where nothing failed, `moved` tells whether new bytes stand. `pause` is what
        the server asks for, in seconds; `crowded` holds back all that its host is asked for.
        """
        with self._changed:
            seconds = piece.attempts.failed(moved=moved, retry_after=pause)
            if UNTRUSTED in why:
                file.fail("the server's certificate is not trusted.")
            elif seconds is None:
                why = why or "the server sends too little at a time."
                file.fail(f"{why} Gave up after {piece.attempts.stuck} attempts. Try again later.")
            else:
                if why:
                    log.info("%s: %s Trying again.", file.shown, why)
                    piece.not_before = time.monotonic() + seconds
                if crowded:
                    host = self._host(file)
                    host.most = max(host.active // 2, 1)
                    host.not_before = max(host.not_before, piece.not_before)
                file.pending.appendleft(piece)

    def _give_back(self, file: File, piece: Piece | None) -> None:
        if piece is None:
            file.alone = False
        else:
            file.active -= 1
            self._host(file).active -= 1
        if file.step == "settled" and file in self.files:
            self.files.remove(file)
        if file.step == "fetch" and not file.pending and not file.active:
            file.step = "settle"
        self._changed.notify_all()

    def _job_of(self, file: File, now: float) -> Job | float:
        """Something to do for a file, or the time when there may be something."""
        if file.alone or file.step == "settled" or (file.step != "fetch" and file.active):
            return now + LONG
        if file.step != "fetch":
            file.alone = True
            return file, None
        host = self._host(file)
        if not file.pending or host.active >= host.most:
            return now + LONG
        piece = min(file.pending, key=lambda piece: piece.not_before)
        when = max(piece.not_before, host.not_before)
        if when > now:
            return when
        file.pending.remove(piece)
        file.active += 1
        host.active += 1
        return file, piece

    def _host(self, file: File) -> Host:
        return self._hosts.setdefault(file.host, Host(self._workers))
