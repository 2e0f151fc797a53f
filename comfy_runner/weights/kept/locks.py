"""Locks on files: they hold across threads and processes, and a dead process gives them up."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from comfy_runner.errors import Cancelled, DownloadFailed

FIRST_TICK = 0.002
"""Seconds until a lock is asked for again the first time; doubled each time."""
TICK = 0.1
"""Longest wait, in seconds, between two tries."""
LOOKS = 2
"""How often a lock that is not free is tried again at once."""
PATIENCE = 120.0
"""Seconds that a lock which is only held for short steps may be waited for."""


def take(path: Path, *, shared: bool = False) -> int | None:
    """A file descriptor that holds the lock until it is closed; None when others are in the way.

    The file is made if need be. Raises: `OSError`.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # Somebody removed the file between our two steps: a lock on it would protect nothing.
        os.close(descriptor)


def wait_for(path: Path, *, shared: bool = False, patience: float = PATIENCE) -> int:
    """As `take`, but waits for the lock. Raises: `DownloadFailed` after `patience` seconds."""
    deadline = time.monotonic() + patience
    tick = FIRST_TICK
    while (descriptor := take(path, shared=shared)) is None:
        if time.monotonic() > deadline:
            raise DownloadFailed(
                f"The model store is locked by another process for more than {patience:.0f} s: "
                f"{path}. End that process if it hangs."
            )
        # A lock of another process has no event to wait for.
        time.sleep(tick)
        tick = min(2 * tick, TICK)
    return descriptor


@contextmanager
def held(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock. Raises: `DownloadFailed` when it is not to be had, `OSError`."""
    descriptor = wait_for(path, shared=shared)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_unless_stopped(path: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the lock, however long it takes to get it. Raises: `Cancelled` once `stop` is set."""
    tick = FIRST_TICK
    while (descriptor := take(path)) is None:
        if stop.wait(tick):
            raise Cancelled("Waiting for another download was cancelled.")
        tick = min(2 * tick, TICK)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Whether the lock was free; it is held then."""
    descriptor = take(path)
    for _ in range(LOOKS):
        if descriptor is None:
            # Who only looks whether it is held, holds it for a moment.
            time.sleep(FIRST_TICK)
            descriptor = take(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock, shared or not; looks without making the file."""
    held = _seems_held(path)
    for _ in range(LOOKS):
        if held:
            # Somebody else who looks at this moment is nobody who holds it.
            time.sleep(FIRST_TICK)
            held = _seems_held(path)
    return held


def remove_if_free(path: Path) -> bool:
    """Remove a lock's file unless somebody holds the lock; whether it was removed."""
    with suppress(FileNotFoundError), held_if_free(path) as free:
        if free:
            path.unlink()
            return True
    return False


def _seems_held(path: Path) -> bool:
    """Whether the lock is not free just now, be it only because another one looks as well."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that stands at the path."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)
