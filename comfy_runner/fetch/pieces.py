"""A file that several threads assemble from ranges of its bytes, hashed and resumable."""

import errno
import hashlib
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.answers import Attempts
from comfy_runner.fetch.staged import PartState, forget_state, merged, reserve
from comfy_runner.fetch.transport import Flag

SMALL = 8 * 1024**2
"""Bytes of a piece at least; a smaller file is one piece."""
LARGE = 16 * 1024**2
"""Bytes of a piece at most."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True, eq=False)
class Piece:
    """A range of a file, and how far it has come."""

    start: int
    at: int
    """The next byte to come: all before it, from `start` on, stand in the part."""
    end: int | None
    """The byte after the last; None while nobody knows."""
    attempts: Attempts
    not_before: float = 0.0
    """Time, as `time.monotonic` tells it, before which it must not be asked for again."""


@dataclass(slots=True, eq=False)
class Assembly:
    """The part of one file. `open` it first and `close` it at the end."""

    part: Path
    size: int | None
    """Bytes of the whole file; None while nobody knows."""
    state: PartState | None
    """What makes it resumable; None for a body that can only be read from its beginning."""
    hashing: bool
    shown: str
    """What errors call the file."""
    pieces: list[Piece] = field(default_factory=list)
    """All of them, in order and without a gap."""
    _descriptor: int = -1
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _is_noted: bool = False
    _hashed: int = 0
    _front: int = 0
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def open(self, workers: int, retries: int, backoff: float) -> None:
        """Make the part, or go on with one of the same content; then `pieces` says what to fetch.

        Raises: `DownloadFailed` where the disk refuses or has not room enough.
        """
        try:
            state = self.state.resumed(self.part) if self.state is not None else None
            spans = state.spans if state is not None else ()
            if not spans:
                forget_state(self.part)
            self.part.parent.mkdir(parents=True, exist_ok=True)
            anew = 0 if spans else os.O_TRUNC
            self._descriptor = os.open(self.part, os.O_CREAT | os.O_RDWR | anew, 0o644)
            if self.size is not None and self.size <= SMALL:
                # Whether there is room for a small file is found as soon by writing it.
                os.ftruncate(self._descriptor, self.size)
            elif self.size is not None:
                reserve(self._descriptor, self.size)
        except OSError as err:
            self._cannot_write(err)

        def piece(start: int, at: int, end: int | None) -> None:
            self.pieces.append(Piece(start, at, end, Attempts(retries, backoff)))

        if self.state is None or self.size is None:
            piece(0, 0, self.size)
            return
        step = _step(self.size, workers)
        at = 0
        for begin, end in (*spans, (self.size, self.size)):
            for start in range(at, begin, step):
                piece(start, start, min(start + step, begin))
            if begin < end:
                piece(begin, end, end)
            at = end

    @property
    def count(self) -> int:
        """Bytes that stand."""
        return sum(piece.at - piece.start for piece in self.pieces)

    def write(self, piece: Piece, block: memoryview) -> None:
        """Put the next bytes of a piece into the part. Raises: `DownloadFailed`."""
        at = piece.at
        try:
            while block:
                written = os.pwrite(self._descriptor, block, at)
                self._hash(block[:written], at)
                at += written
                block = block[written:]
        except OSError as err:
            self._cannot_write(err)
        piece.at = at

    def _hash(self, block: memoryview, at: int) -> None:
        """Hash what comes next while it is in the processor's cache; the rest is for `follow`."""
        if self.hashing and at == self._hashed and self._turn.acquire(blocking=False):
            try:
                if at == self._hashed:
                    self._digest.update(block)
                    self._hashed += len(block)
            finally:
                self._turn.release()

    def restart(self, piece: Piece) -> None:
        """Forget the only piece of a body that cannot be resumed."""
        if piece.at == piece.start:
            return
        piece.at = piece.start
        self._digest = hashlib.sha256()
        self._hashed = 0
        try:
            os.ftruncate(self._descriptor, 0)
            if self.size is not None:
                reserve(self._descriptor, self.size)
        except OSError as err:
            self._cannot_write(err)

    def end_here(self, piece: Piece) -> None:
        """Take what has come for the whole file: only its end told how long it is."""
        piece.end = piece.at
        try:
            os.ftruncate(self._descriptor, piece.at)
        except OSError as err:
            self._cannot_write(err)

    def follow(self, buffer: memoryview, leave: Flag) -> None:
        """Hash what stands without a gap from the beginning, unless another thread does."""
        if not self.hashing or not self._turn.acquire(blocking=False):
            return
        try:
            while self._hashed < (stands := self._stands()) and not leave.is_set():
                block = buffer[: min(len(buffer), stands - self._hashed)]
                count = os.preadv(self._descriptor, [block], self._hashed)
                if not count:
                    raise OSError(errno.EIO, "the file was cut from outside")  # noqa: TRY301
                self._digest.update(block[:count])
                self._hashed += count
        except OSError as err:
            self._cannot_write(err)
        finally:
            self._turn.release()

    def sha256(self) -> str | None:
        """The hash of the whole file, if it was made; 64 hexadecimal digits."""
        return self._digest.hexdigest() if self.hashing and self._hashed == self.count else None

    def save(self) -> None:
        """Note what stands, so that another process can go on."""
        count = self.count
        if self.state is None or not count:
            return
        if len(self.pieces) == 1 and count == self.size:
            # Not worth a note: it is fetched as fast as it is hashed.
            if self._is_noted:
                forget_state(self.part)
            return
        self._is_noted = True
        spans = merged((piece.start, piece.at) for piece in self.pieces)
        # Without it a later attempt begins anew, and nothing else is lost.
        with suppress(OSError):
            PartState(
                size=self.state.size,
                version=self.state.version,
                sha256=self.state.sha256,
                spans=spans,
            ).save(self.part)

    def close(self) -> None:
        """Let go of the part, which stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _stands(self) -> int:
        """Bytes that stand without a gap from the beginning."""
        while self._front < len(self.pieces) - 1 and self._is_whole(self.pieces[self._front]):
            self._front += 1
        return self.pieces[self._front].at

    def _is_whole(self, piece: Piece) -> bool:
        return piece.at == piece.end

    def _cannot_write(self, err: OSError) -> NoReturn:
        cure = "Free some space there, or make the folder writable."
        if err.errno in FULL and self.size is not None:
            taken = 0
            if self._descriptor >= 0 and not any(piece.at > piece.start for piece in self.pieces):
                with suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
            elif self._descriptor >= 0:
                taken = os.fstat(self._descriptor).st_blocks * 512
            disk = os.statvfs(self.part.parent)
            missing = max(self.size - taken - disk.f_bavail * disk.f_frsize, 1)
            cure = f"{missing} bytes are missing. Free some space there."
        raise DownloadFailed(
            f"{self.shown} could not be stored in {self.part.parent}: {err.strerror or err}. {cure}"
        ) from err


def _step(size: int, workers: int) -> int:
    """Bytes of a piece, so that all workers end at about the same time."""
    count = -(-size // LARGE)
    count = min(-(-count // workers) * workers, -(-size // SMALL)) or 1
    aligned = 64 * 1024
    return -(-size // (count * aligned)) * aligned or aligned
