"""The unfinished file beside its target: counted and hashed as it grows, judged, then renamed."""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

from comfy_runner.errors import DownloadFailed, HashMismatch, InvalidInput, Problem
from comfy_runner.fetch.endings import SAFETENSORS
from comfy_runner.fetch.urls import redacted

BUFFER = 1024**2
"""Bytes that are written at once: TLS hands them out by the 16 kB."""
TMPFS = 0x01021994
"""The kind of filesystem that Linux calls so; from its linux/magic.h."""
MAX_HEADER = 100_000_000
"""Longest header, in bytes, that the safetensors library takes."""

Expect = Literal["weight", "media", "any"]
"""What the bytes should be: weights and media are no web page, and weights have a sound header."""
Progress = Callable[[int, int | None], None]
"""Called with the bytes that stand so far, and those of the whole file where they are known."""


class StagedFile:
    """The unfinished file of one download; `discard` it at the end, settled or not."""

    def __init__(
        self,
        source_url: str,
        target: Path,
        *,
        staging: Path,
        size: int | None,
        max_bytes: int | None,
        progress: Progress | None,
    ) -> None:
        self.shown = redacted(source_url)
        """The URL as it may be shown."""
        self.target = target
        self.total = size
        """Bytes of the whole file, where they are known."""
        self.done = 0
        """Bytes written."""
        self.size = size
        self._max_bytes = max_bytes
        self._progress = progress
        self._path = staging / f".{secrets.token_hex(8)}.part"
        self._file: BinaryIO | None = None
        self._head = b""
        self._hash = hashlib.sha256()

    @property
    def file(self) -> BinaryIO:
        """The open file, which is made at the first use."""
        if self._file is None:
            try:
                self.target.parent.mkdir(parents=True, exist_ok=True)
                self._path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except OSError as err:
                self._cannot_write(err)
            self._file = os.fdopen(descriptor, "wb", BUFFER)
        return self._file

    def discard(self) -> None:
        """Remove the unfinished file; a settled one stays."""
        try:
            # On a full disk closing writes again, and fails again: that was told already.
            with suppress(OSError):
                if self._file is not None:
                    self._file.close()
        finally:
            self._path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Hash of what is written so far: 64 hexadecimal digits."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Forget what stands in the file."""
        self.file.seek(0)
        self.file.truncate()
        self.done = 0
        self._head = b""
        self._hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append; raises as `admit` does, and `DownloadFailed` where the disk refuses."""
        self.admit(self.done + len(chunk))
        try:
            self.file.write(chunk)
        except OSError as err:
            self._cannot_write(err)
        if not self.done:
            self._head = chunk[:512]
        self._hash.update(chunk)
        self.done += len(chunk)
        if self._progress is not None:
            self._progress(self.done, self.total)

    def admit(self, count: int, *, whole: bool = False) -> None:
        """Raises when a file of so many bytes, or `whole` of exactly so many, is not wanted."""
        if self._max_bytes is not None and count > self._max_bytes:
            what = f"{self.shown} is larger than the limit of {self._max_bytes} bytes."
            raise InvalidInput([Problem("file_too_large", what, "Give a smaller file.")])
        if self.size is not None and (count > self.size or (whole and count != self.size)):
            told = f"has {count}" if whole else "has more"
            raise HashMismatch(
                f"{self.shown} is not the file that was asked for: it {told} bytes where "
                f"{self.size} were expected. Correct the size or the URL."
            )

    def judge(self, sha256: str | None, expect: Expect) -> None:
        """Raises: `HashMismatch`, or `DownloadFailed` for an empty, wrong or broken file."""
        if not self.done:
            self.fail("the file is empty.")
        if expect != "any" and re.match(rb"\s*<(!doctype html|html)", self._head, re.IGNORECASE):
            self.fail_as_page()
        self.admit(self.done, whole=True)
        if sha256 is not None and self.sha256 != sha256.lower():
            raise HashMismatch(
                f"{self.shown} is not the file that was asked for: its sha256 is {self.sha256}, "
                f"expected was {sha256}. Correct the hash or the URL."
            )
        try:
            self.file.flush()
        except OSError as err:
            self._cannot_write(err)
        if expect == "weight" and self.target.suffix.lower() in SAFETENSORS:
            reason = safetensors_fault(self._path)
            if reason:
                self.fail(f"it is no sound safetensors file: {reason}")

    def settle(self) -> None:
        """Put the file at its final name, durably."""
        try:
            os.fsync(self.file.fileno())
            self._path.replace(self.target)
            sync(self.target.parent)
        except OSError as err:
            self._cannot_write(err)

    def fail_as_page(self) -> NoReturn:
        """Raises: `DownloadFailed` for a web page in the place of a file."""
        self.fail(
            "the server sent a web page instead of the file.",
            "The page may ask for a login or a licence: open the address in a browser.",
        )

    def fail(self, reason: str, cure: str = "") -> NoReturn:
        """Raises: `DownloadFailed`."""
        raise DownloadFailed(f"{self.shown} could not be fetched: {reason} {cure}".rstrip())

    def _cannot_write(self, err: OSError) -> NoReturn:
        raise DownloadFailed(
            f"{self.shown} could not be stored in {self.target.parent}: {err.strerror}. "
            "Free some space there, or make the folder writable."
        ) from err


Spans = tuple[tuple[int, int], ...]
"""Ranges of bytes that stand: first byte and the one after the last, sorted, apart."""


def merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """The same bytes as spans that neither touch nor overlap."""
    whole: list[tuple[int, int]] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if whole and begin <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((begin, end))
    return tuple(whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartState:
    """What is known of an unfinished file, kept beside it, so that another process can go on.

    The JSON in `<part>.state`: format (1), size, version, sha256 or null, spans [[first, end]],
    boot.
    """

    size: int
    """Bytes of the whole file; the part has as many, with holes."""
    version: str
    """The content's version, as its host tells it."""
    sha256: str | None
    """Hash that the whole file must have, where it is known."""
    spans: Spans = ()

    def save(self, part: Path) -> None:
        """Write it beside the part; whoever reads sees the old state or this one."""
        path = _state_path(part)
        fields = {
            "format": 1,
            "size": self.size,
            "version": self.version,
            "sha256": self.sha256,
            "spans": self.spans,
            "boot": _boot(),
        }
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(json.dumps(fields))
        beside.replace(path)

    def resumed(self, part: Path) -> "PartState":
        """This state with the spans that a former attempt at the same content left in the part.

        Where no hash can tell afterwards, they are trusted only as long as the machine has not
        been started anew, and only if the host names the version: what was not yet on the disk
        when the machine stopped may be missing in the midst of the file.
        """
        try:
            left = json.loads(_state_path(part).read_bytes())
            spans = merged((int(begin), int(end)) for begin, end in left["spans"])
            known = self.sha256 is not None and left["sha256"] == self.sha256
            same = left["version"] == self.version and left["sha256"] in (None, self.sha256)
            here = left["boot"] == _boot() != "" and self.version not in ("", str(self.size))
            fits = left["format"] == 1 and left["size"] == self.size == part.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return self
        inside = not spans or (spans[0][0] >= 0 and spans[-1][1] <= self.size)
        if fits and inside and (known or (same and (here or self.sha256 is not None))):
            return replace(self, spans=spans)
        return self


def forget_state(part: Path) -> None:
    """Remove what `PartState.save` wrote beside the part."""
    path = _state_path(part)
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.new").unlink(missing_ok=True)


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.state")


def _boot() -> str:
    """Tells this start of the machine from all others; empty where the system has no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def reserve(descriptor: int, size: int) -> None:
    """Make a file so long, with room for all of it where the filesystem can promise that.

    Raises: `OSError`. posix_fallocate is not used: where the filesystem cannot, the C library
    writes into every block instead, which takes as long as the download. For the same reason
    nothing is reserved in memory (tmpfs), where there is only looked whether there is room.
    """
    library = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(library, "fallocate", None)
    if _is_memory(library, descriptor):
        disk = os.fstatvfs(descriptor)
        taken = os.fstat(descriptor).st_blocks * 512
        if size > taken + disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif fallocate is not None:
        place = (ctypes.c_int(descriptor), ctypes.c_int(0), ctypes.c_int64(0), ctypes.c_int64(size))
        while fallocate(*place):
            match ctypes.get_errno():
                case errno.EINTR:
                    continue
                case errno.EOPNOTSUPP | errno.ENOSYS | errno.EINVAL:
                    break
                case code:
                    raise OSError(code, os.strerror(code))
    os.ftruncate(descriptor, size)


def _is_memory(library: ctypes.CDLL, descriptor: int) -> bool:
    """Whether a file lies in tmpfs, as Linux's `fstatfs` tells."""
    if sys.platform != "linux":
        return False
    told = (ctypes.c_long * 32)()  # longer than the structure, which begins with the kind
    return not library.fstatfs(ctypes.c_int(descriptor), told) and told[0] == TMPFS


def safetensors_fault(path: Path) -> str:
    """Why a file is no sound safetensors file; empty when its header covers it exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            return "its header does not fit into it."
        header = file.read(length)
    try:
        spans = sorted(
            (int(tensor["data_offsets"][0]), int(tensor["data_offsets"][1]))
            for name, tensor in json.loads(header).items()
            if name != "__metadata__"
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "its header cannot be read."
    end = 0
    for begin, next_begin in spans:
        if begin != end or next_begin < begin:
            return "its tensors overlap or leave holes."
        end = next_begin
    expected = 8 + length + end
    return "" if size == expected else f"it has {size} bytes where its header says {expected}."


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
