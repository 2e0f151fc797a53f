"""What an engine is given and gives back: one file on a server, and how its download went."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.download import Patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file on a server, as a first small request found it."""

    url: str = field(repr=False)
    """The URL that was asked, without user and password."""
    final_url: str = field(repr=False)
    """Where the redirects ended; it may be signed, and so be as secret as a token."""
    authorization: str = field(default="", repr=False)
    """The Authorization header that `final_url` itself wants; empty where it wants none."""
    size: int | None = None
    """Bytes of the whole file, where the server says them."""
    validator: str = ""
    """What If-Range may say: a strong ETag, or Last-Modified; empty where nothing may."""
    version: str = ""
    """Tells this content from another under the same URL: ETag, else Last-Modified, else size."""
    ranges: bool = False
    """Whether the server answered a range with that range."""
    sha256: str | None = None
    """The hash that the host states: 64 hexadecimal digits."""
    commit: str = ""
    """The commit that a Hugging Face revision stands for."""
    xet: bool = False
    """Whether Hugging Face keeps the file in its Xet store."""
    private: bool = False
    """Whether the answer came only because of a token, of a user and password, or of a signed
    URL: whoever cannot show one must not get the file out of a cache."""
    name: str = "file"
    """File name that the server gives it; safe as one part of a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One file to bring."""

    key: str
    """What progress and outcomes call it, such as `loras/x.safetensors`."""
    remote: Remote
    part: Path
    """File for the bytes. What a former attempt at the same version left there is gone on with;
    the engine may keep its state beside it, as files whose names begin with the part's."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """All bytes of a file stand in its part; nobody has judged them."""

    size: int
    sha256: str | None = None
    """Hash of the bytes, where the engine made it while they came."""


Outcome = Delivered | DownloadFailed
Report = Callable[[str, int, int | None], None]
"""Called with a transfer's key, the bytes that stand, and those of the whole file if known."""
Done = Callable[[Transfer, Outcome], None]
"""Called once for each transfer, from any thread, as soon as its outcome is known."""


class Engine(Protocol):
    """A way to bring files."""

    def __call__(
        self,
        transfers: Sequence[Transfer],
        *,
        done: Done,
        report: Report,
        cancelled: threading.Event,
        patience: Patience,
        probe_again: Callable[[Remote], Remote],
    ) -> None:
        """Bring all files; returns once each has an outcome.

        A failure of one does not stop the others. `probe_again` finds a file anew whose signed
        URL has expired. Once `cancelled` is set the call ends within a second and raises
        `Cancelled`; parts stay, to be gone on with.
        """
