"""Files read into the system's page cache, so that whoever needs them next waits for no disk."""

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.comfyui import memory
from comfy_runner.weights.manifest import human_size

log = logging.getLogger(__name__)

CHUNK = 8 * 1024**2
"""Bytes that are read at once, between two looks whether to go on."""

KIB = 1024


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
            log.warning("%s cannot be read: %s", path.name, err.strerror)
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
