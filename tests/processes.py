"""Processes that a test watches, and the files that they leave."""

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def children_of(process: int, told: bytes = b"") -> list[int]:
    """The process ids of what a process started; `told` stands in their command lines."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since
            found += map(int, (task / "children").read_text().split())
    return [child for child in found if told in Path(f"/proc/{child}/cmdline").read_bytes()]


def only_child_of(process: int, told: bytes) -> int:
    """The process id of the one such child."""
    found = children_of(process, told)
    assert len(found) == 1
    return found[0]


@contextmanager
def until_gone(process: int) -> Iterator[None]:
    """Fails unless the process has ended soon after the block."""
    descriptor = os.pidfd_open(process)
    try:
        yield
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(5000), "it still runs"
    finally:
        os.close(descriptor)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
