"""The engine of our own: ranged requests on many connections at once, every file resumable."""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace

from comfy_runner.errors import CallerError, Cancelled, DownloadFailed
from comfy_runner.fetch.answers import (
    BROKEN,
    BUSY,
    Interrupted,
    is_page,
    reason,
    retry_after,
)
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.jobs import File, Jobs, Leave, Renew
from comfy_runner.fetch.lines import Lines, Stream
from comfy_runner.fetch.pace import LOOK, Pace
from comfy_runner.fetch.pieces import Assembly, Piece
from comfy_runner.fetch.staged import PartState
from comfy_runner.fetch.transfer import Delivered, Done, Outcome, Remote, Report, Transfer
from comfy_runner.fetch.transport import TICK

log = logging.getLogger(__name__)

WORKERS = 32
"""Most connections for all files together: enough where a host limits the speed of each."""
BUFFER = 1024**2
"""Bytes that a worker reads before it writes; nothing else of a file is held in memory."""
SAVE_EVERY = 0.2
"""Seconds between two notes of what stands, which is what a killed process loses."""
MAX_REPAIRS = 3
"""How often in a row a file is looked for anew without a new byte."""
MAX_CHANGES = 3
"""How often a file may change while it is fetched."""
CROWDED = frozenset({429, 503})
"""Answers by which a host says that there are too many requests."""

PARTIAL = 206


def download(
    transfers: Sequence[Transfer],
    *,
    done: Done,
    report: Report,
    cancelled: threading.Event,
    patience: Patience,
    probe_again: Callable[[Remote], Remote],
    workers: int = WORKERS,
    hashing: bool = True,
) -> None:
    """Bring all files, as `Engine` says, the largest first.

    `workers` is the most connections for all files together, each with a buffer of 1 MiB: they
    begin as few, and become more as long as that is of use.
    Unless `hashing` is off, what is delivered has its sha256. What `done` gets is the transfer
    with its remote as it was found last. Beside each part of more than one piece stands
    `<part>.state`, also once it is delivered: whoever moves or removes the part removes it.

    Raises: `Cancelled`, and whatever `done`, `report` and `probe_again` raise that is no error
    of one file.
    """
    _Crew(
        [File(transfer) for transfer in transfers],
        done=done,
        report=report,
        cancelled=cancelled,
        patience=patience,
        probe_again=probe_again,
        workers=workers,
        hashing=hashing,
    ).run()


@dataclass(frozen=True, slots=True)
class _Hands:
    """What a worker works with."""

    lines: Lines
    buffer: memoryview
    leave: Leave
    came: list[int]
    """The bytes that it has read: one number."""


class _Crowded(Interrupted):
    """The host says that there are too many requests."""


class _Crew:
    """The workers, and the queue that they share."""

    def __init__(
        self,
        files: Sequence[File],
        *,
        done: Done,
        report: Report,
        cancelled: threading.Event,
        patience: Patience,
        probe_again: Callable[[Remote], Remote],
        workers: int,
        hashing: bool,
    ) -> None:
        self.done = done
        self.report = report
        self.cancelled = cancelled
        self.patience = patience
        self.probe_again = probe_again
        self.workers = workers
        self.hashing = hashing
        # A file of unknown size may be the largest of all.
        largest = sorted(files, key=lambda file: -(file.remote.size or 1 << 62))
        self.jobs = Jobs(largest, workers)
        self.came: list[list[int]] = []  # bytes that each worker has read
        self.noting = threading.Lock()  # one at a time reports and saves

    def run(self) -> None:
        """Work until each file has its outcome."""
        count = min(self.workers, sum(1 + (f.remote.size or 0) // BUFFER for f in self.jobs.files))
        saved = time.monotonic()
        pace = Pace(max(count, 1))
        try:
            with ThreadPoolExecutor(pace.most, thread_name_prefix="download") as pool:
                try:
                    working = {pool.submit(self._work) for _ in range(pace.now)}
                    while working and not self.cancelled.is_set():
                        ended, working = wait_for(
                            working,
                            timeout=LOOK if pace.now < pace.most else TICK,
                            return_when=FIRST_EXCEPTION,
                        )
                        for future in ended:
                            future.result()
                        came = sum(count for [count] in self.came)
                        more = pace.more(came, waiting=self.jobs.is_waiting())
                        working |= {pool.submit(self._work) for _ in range(more)}
                        saving = time.monotonic() - saved >= SAVE_EVERY
                        saved = time.monotonic() if saving else saved
                        self._note(saving=saving)
                finally:
                    self.jobs.stop()
        finally:
            for file in self.jobs.files:
                if file.assembly is not None:
                    file.assembly.save()
                    file.assembly.close()
        if self.jobs.files:
            raise Cancelled("The download was cancelled.")

    def _note(self, *, saving: bool) -> None:
        """Report how far each file is, and note it beside its part."""
        for file in self.jobs.fetching():
            with self.noting:
                assembly = file.assembly
                if assembly is None or file.step != "fetch":
                    continue
                if (count := assembly.count) != file.reported:
                    file.reported = count
                    self.report(file.transfer.key, count, file.remote.size)
                    if saving:
                        assembly.save()

    def _work(self) -> None:
        leave = Leave(self.jobs.halt)
        buffer = memoryview(bytearray(BUFFER))
        lines = Lines(
            leave,
            connect=self.patience.connect,
            stall=self.patience.stall,
            policy=self.patience.policy,
        )
        came = [0]
        self.came.append(came)
        job = None
        try:
            while (job := self.jobs.take(job)) is not None:
                file, piece = job
                if piece is None:
                    self._step(file, buffer)
                    continue
                leave.file = file
                self._bring(file, piece, _Hands(lines, buffer, leave, came))
                leave.file = None
        finally:
            lines.close()

    # What a worker does for a file alone

    def _step(self, file: File, buffer: memoryview) -> None:
        settling = file.step == "settle"
        try:
            match file.step:
                case "open":
                    self._open(file)
                case "repair":
                    self._repair(file)
                case "settle" if file.fault is None and file.assembly is not None:
                    file.assembly.follow(buffer, self.jobs.halt)
        except DownloadFailed as err:
            file.fault = err
            file.step = "settle"
        if settling and not self.jobs.halt.is_set():
            self._settle(file)

    def _open(self, file: File) -> None:
        remote = file.remote
        state = None
        if remote.ranges and remote.size is not None and not file.unranged:
            state = PartState(size=remote.size, version=remote.version, sha256=remote.sha256)
        assembly = Assembly(file.transfer.part, remote.size, state, self.hashing, file.shown)
        file.assembly = assembly
        assembly.open(self.workers, self.patience.retries, self.patience.backoff)
        file.pending = deque(piece for piece in assembly.pieces if piece.at != piece.end)
        file.stood = assembly.count
        file.step = "fetch" if file.pending else "settle"

    def _repair(self, file: File) -> None:
        """Find the file again; go on where its content is the same, else begin anew."""
        renewal, assembly, old = file.renewal, file.assembly, file.remote
        if renewal is None or assembly is None:
            raise AssertionError("A file is repaired only when something is wrong.")
        file.repairs = 1 if assembly.count > file.stood else file.repairs + 1
        if file.repairs > MAX_REPAIRS:
            file.fail(f"{renewal.reason} Gave up after {file.repairs} attempts. Try again later.")
            return
        file.stood = assembly.count
        log.info("%s: %s Looking for it again.", file.shown, renewal.reason)
        try:
            remote = self.probe_again(old)
        except CallerError as err:
            raise DownloadFailed(str(err)) from err
        file.transfer = replace(file.transfer, remote=remote)
        stated = remote.sha256 is not None and remote.sha256 == old.sha256
        same = (remote.size, remote.ranges) == (old.size, old.ranges) and (
            stated or remote.version == old.version
        )
        if same and not renewal.unranged:
            file.step = "fetch"
            return
        file.unranged = same
        file.changes += not same
        if file.changes > MAX_CHANGES:
            file.fail("its content changes all the time. Try again later.")
            return
        assembly.close()
        file.step = "open"

    def _settle(self, file: File) -> None:
        """Tell the outcome; once it is told nothing more is written beside the part."""
        assembly = file.assembly
        with self.noting:
            outcome: Outcome = file.fault or DownloadFailed(f"{file.shown} could not be fetched.")
            count = 0
            if assembly is not None:
                count = assembly.count
                assembly.save()
                assembly.close()
                if file.fault is None:
                    outcome = Delivered(count, assembly.sha256())
            file.step = "settled"
            self.report(file.transfer.key, count, file.remote.size)
        self.done(file.transfer, outcome)

    # What it does for a piece

    def _bring(self, file: File, piece: Piece, hands: _Hands) -> None:
        assembly = file.assembly
        if assembly is None:
            raise AssertionError("A piece belongs to an assembly.")
        before = piece.at
        pause: float | None = None
        crowded = False
        try:
            if _exchange(file.remote, assembly, piece, hands):
                assembly.follow(hands.buffer, hands.leave)
                return
            why = ""
        except Interrupted as interrupted:
            why, pause = interrupted.reason, interrupted.retry_after
            crowded = isinstance(interrupted, _Crowded)
        except Cancelled:
            self.jobs.put_back(file, piece)
            return
        except Renew as renewal:
            self.jobs.renew(file, piece, renewal)
            return
        except DownloadFailed as err:
            self.jobs.give_up(file, err)
            return
        except CallerError as err:  # the policy, once a name has changed its meaning
            self.jobs.give_up(file, DownloadFailed(str(err)))
            return
        except BROKEN as err:
            why = reason(err, connect=self.patience.connect, stall=self.patience.stall)
        moved = assembly.state is not None and piece.at > before
        self.jobs.again(file, piece, why, moved=moved, pause=pause, crowded=crowded)


def _exchange(remote: Remote, assembly: Assembly, piece: Piece, hands: _Hands) -> bool:
    """One request and its answer. Returns whether the piece is whole then."""
    headers = {"Authorization": remote.authorization} if remote.authorization else {}
    ranged = assembly.state is not None
    if ranged:
        headers["Range"] = f"bytes={piece.at}-{_end(piece) - 1}"
        if remote.validator:
            headers["If-Range"] = remote.validator
    else:
        assembly.restart(piece)
    stream = hands.lines.get(remote.final_url, headers)
    try:
        _judge(stream, ranged=ranged)
        until = _fit(stream.headers, piece, remote) if ranged else _length(stream.headers, remote)
        whole = len(hands.buffer)
        while until is None or piece.at < until:
            room = whole if until is None else min(whole, until - piece.at)
            count = stream.read_into(hands.buffer[:room])
            if not count:
                break
            hands.came[0] += count
            assembly.write(piece, hands.buffer[:count])
            if hands.leave.is_set():
                raise Cancelled("The download was cancelled.")
        if until is not None and piece.at < until:
            missing = until - piece.at
            raise Interrupted(f"the server closed the connection {missing} bytes too early.")
        if until is None:
            assembly.end_here(piece)
        return piece.at == piece.end
    finally:
        stream.close()


def _end(piece: Piece) -> int:
    if piece.end is None:
        raise AssertionError("A range has an end.")
    return piece.end


def _judge(stream: Stream, *, ranged: bool) -> None:
    """Raises unless the answer brings bytes of the file."""
    status = stream.status_code
    if status in BUSY:
        kind = _Crowded if status in CROWDED else Interrupted
        raise kind(f"the server is busy or broken (HTTP {status}).", retry_after(stream.headers))
    if status not in (200, PARTIAL) or (status == PARTIAL and not ranged):
        raise Renew(f"the server answered HTTP {status}.")
    if is_page(stream.headers) and "Content-Disposition" not in stream.headers:
        raise Renew("the server sent a web page instead of the file.")
    if ranged and status != PARTIAL:
        # Either If-Range tells that the content is another one, or ranges have come to be ignored.
        raise Renew("the server sent the whole file instead of a part.", unranged=True)


def _fit(headers: Mapping[str, str], piece: Piece, remote: Remote) -> int:
    """The byte after the last of this answer. Raises: `Renew` where it is not what was asked."""
    fits = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if fits is None or "Content-Encoding" in headers or int(fits[1]) != piece.at:
        raise Renew("the server sent another part of the file than was asked for.", unranged=True)
    until = int(fits[2]) + 1
    if not piece.at < until <= _end(piece):
        raise Renew("the server sent another part of the file than was asked for.", unranged=True)
    tag = headers.get("ETag", "")
    # A weak tag cannot stand in If-Range, but tells of a change all the same.
    known = remote.version if remote.version.startswith("W/") else remote.validator
    another = known.startswith(('"', "W/")) and tag not in ("", known)
    if another or fits[3] not in ("*", str(remote.size)):
        raise Renew("its content has changed.")
    return until


def _length(headers: Mapping[str, str], remote: Remote) -> int | None:
    """Bytes of a whole body, where they are known. Raises: `Renew` where they have changed."""
    length = headers.get("Content-Length", "")
    if "Transfer-Encoding" in headers or "Content-Encoding" in headers or not length.isdecimal():
        return None if "Content-Encoding" in headers else remote.size
    if remote.size is not None and int(length) != remote.size:
        raise Renew("its content has changed.")
    return int(length)
