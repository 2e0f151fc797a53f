"""Reading a binary file piece by piece, never more of it than a workflow can have."""

import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

from comfy_runner.graph.document import MAX_DOCUMENT_BYTES

Members = Iterator[tuple[str, Any]]
"""Name and value of each piece of metadata, in the file's order; a value is text or JSON.

The iterator raises `EOFError` where the file ends too early, `ValueError`, `struct.error` or
`RecursionError` where it is broken.
"""

MAX_PARTS = 500_000
"""How many chunks or boxes of a file are looked at: a hostile one has millions."""


def parts() -> Iterator[None]:
    """As many turns as a file may have parts. Raises: `ValueError` after that."""
    yield from itertools.repeat(None, MAX_PARTS)
    raise ValueError("it has too many parts")


def take(file: BinaryIO, count: int) -> bytes:
    """The next `count` bytes. Raises: `EOFError` at the end, `ValueError` for too many."""
    if count > MAX_DOCUMENT_BYTES:
        raise ValueError(f"one piece of metadata has {count / 1e6:.0f} MB")
    content = file.read(count)
    if len(content) < count:
        raise EOFError
    return content


def decoded(text: bytes) -> str:
    """Text that is UTF-8, or Latin-1 where it is not."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


class Rationed:
    """A file for a library that might read all of it: after `ration` bytes it seems to end."""

    def __init__(self, file: BinaryIO, ration: int) -> None:
        self.file = file
        self.left = ration
        # To go somewhere else in the file costs nothing.
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        """At most the next `count` bytes."""
        content = self.file.read(min(count, self.left))
        self.left -= len(content)
        return content
