"""One archive while it is unpacked: its members one by one, each judged before it is written."""

import errno
import lzma
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NoReturn, cast

import zstandard

from comfy_runner.errors import Cancelled, DownloadFailed
from comfy_runner.fetch.packed import (
    BUFFER,
    COMPRESSIONS,
    FrugalMember,
    FrugalZip,
    MeteredTar,
    Stream,
)

Kind = Literal["", "tar", "zip"]
"""Kind of archive; empty for the one that its first bytes tell. A tar may be compressed."""
Odd = Literal["refuse", "leave out"]
"""What is done about links, devices and pipes; none of them is ever made."""

MAX_DEPTH = 40
"""Most folders inside each other: each file may make as many."""
LISTED = 8
"""How many members an error names."""

BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    zstandard.ZstdError,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # encrypted, or compressed in a way that Python does not know
    ValueError,  # a name that no file can have
)
"""What Python 3.12 raises for archives that are broken in one way or another."""

ARCHIVE_FAULTS = frozenset(
    {None, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR}
)
"""Errors of the system that an archive brings about; others, such as a full disk, are ours."""

UNREADABLE: Mapping[bytes, str] = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
"""First bytes of what people send and Python 3.12 cannot unpack, and its name."""

ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2})
"""How a zip's files may be compressed: LZMA in a zip gets all the memory it asks for, up to 4 GB.
"""


class BadArchive(DownloadFailed):
    """An archive that is broken, too big, or holds what it must not."""

    def __init__(self, archive: str, code: str, what: str, hint: str = "") -> None:
        self.code = code
        """`bad_archive`, `archive_too_big` or `same_name`."""
        self.what = what
        """What is wrong, without the archive's name; it names the member."""
        self.hint = hint
        super().__init__(f"{archive}: {what} {hint}".rstrip())


def encodable(text: str) -> str:
    """The text with `?` for what was no UTF-8 on disk or in an archive, so it can be printed."""
    return text.encode(errors="replace").decode()


@dataclass(frozen=True, slots=True)
class _Member:
    """One thing in an archive that is no folder."""

    name: str
    """Its path, as the archive has it."""
    size: int
    odd: str
    """What it is in words, when it is no plain file."""
    open: Callable[[], IO[bytes] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacking:
    """One call of `archives.unpack`, whose arguments these are; `only` has plain slashes."""

    shown: str
    folder: Path
    strip: int
    only: str
    max_bytes: int
    max_files: int
    max_name_bytes: int
    odd: Odd
    cancelled: threading.Event

    def kind_of(self, raw: IO[bytes]) -> Kind:
        """What the first bytes say. Raises: `BadArchive` when they are no archive's."""
        head = raw.read(512)
        raw.seek(0)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return "zip"
        if head.startswith(tuple(COMPRESSIONS)) or head[257:262] == b"ustar":
            return "tar"
        self._refuse_unreadable(head)
        return self._fail("It is neither a tar nor a zip.")

    def zipped(self, archive: Path) -> Iterator[_Member]:
        """The members of a zip, once they are known to keep the limits all together."""
        with (
            self._blaming(),
            FrugalZip(archive, self.max_files) as raw,
            zipfile.ZipFile(raw) as opened,
        ):
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            for entry in entries:
                if entry.compress_type not in ZIP_METHODS:
                    self._fail(
                        "The archive cannot be unpacked: it is compressed in a rare way"
                        f" (member {_quoted(entry.filename)}).",
                        "Make the zip anew with the usual compression (deflate).",
                    )
            members = [
                _Member(
                    entry.filename,
                    entry.file_size,
                    "a symbolic link" if stat.S_ISLNK(entry.external_attr >> 16) else "",
                    partial(opened.open, entry),
                )
                for entry in entries
            ]
            plain = [member for member in members if not member.odd]
            self._check_limits(len(plain), sum(member.size for member in plain))
            yield from members

    def tarred(self, raw: IO[bytes]) -> Iterator[_Member]:
        """The members of a tar, each to be read before the next one is asked for."""
        head = raw.read(6)
        raw.seek(0)
        self._refuse_unreadable(head)
        stream: Stream = raw
        for magic, open_packed in COMPRESSIONS.items():
            if head.startswith(magic):
                stream = open_packed(raw)
        metered = MeteredTar(stream, self._check_cancelled)
        with (
            self._blaming(),
            tarfile.open(
                fileobj=cast(IO[bytes], metered),
                mode="r|",
                bufsize=BUFFER,
                tarinfo=FrugalMember,
            ) as tar,
        ):
            for member in tar:
                if member.isdir():
                    continue
                odd = _type(member)
                if not odd:
                    metered.admit(member.size)
                yield _Member(member.name, member.size, odd, partial(tar.extractfile, member))
            if stream is not raw:  # its checksum stands at its end
                while metered.read(BUFFER):
                    pass

    def write(self, members: Iterator[_Member]) -> list[Path]:
        """Write them all. Raises: see `unpack`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = size = 0
        written: list[Path] = []
        others: list[str] = []
        for member in members:
            self._check_cancelled()
            if member.odd and self.odd == "leave out":
                continue
            if not member.odd:
                files, size = files + 1, size + member.size
                self._check_limits(files, size)
            path = self._inside(member.name)
            if self.only and str(path) != self.only:
                others.append(str(path))
                continue
            if member.odd:
                self._fail(
                    f"Its member {_quoted(member.name)} is {member.odd}, which is not unpacked.",
                    "Pack plain files.",
                )
            if parts := path.parts[self.strip :]:
                written.append(self._write(member, self.folder.joinpath(*parts)))
        if not written and (self.only or self.strip):
            wanted = f"member {_quoted(self.only)}" if self.only else "file in a folder so deep"
            there = f"; it holds {listed(others)}" if others else ""
            self._fail(f"It has no {wanted}{there}.", "Correct the member or strip it is given.")
        return written

    def _write(self, member: _Member, target: Path) -> Path:
        """A plain file with the member's content.

        Python reads no more of a member than the size that was told for it and checked.
        """
        with self._blaming(member):
            if target.exists():
                what = f"Two files are called {_quoted(str(target.relative_to(self.folder)))}."
                hint = "Rename one of them, or put them into different folders."
                raise BadArchive(self.shown, "same_name", what, hint)
            target.parent.mkdir(parents=True, exist_ok=True)
            left = member.size
            with target.open("xb") as sink, closing(cast(IO[bytes], member.open())) as source:
                while chunk := source.read(BUFFER):
                    self._check_cancelled()
                    sink.write(chunk)
                    left -= len(chunk)
            if left:
                raise EOFError
        return target

    def _inside(self, name: str) -> PurePosixPath:
        """The member's path, once it is sure to lead nowhere but into the folder."""
        path = PurePosixPath(plain(name))
        if path.is_absolute() or ".." in path.parts or not path.parts:
            self._fail(f"Its member {_quoted(name)} leads out of the folder that it belongs into.")
        if len(path.parts) > MAX_DEPTH:
            self._fail(f"Its member {_quoted(name)} stands in more than {MAX_DEPTH} folders.")
        longest = max(len(part.encode()) for part in path.parts)
        if longest > self.max_name_bytes:
            self._fail(
                f"Its member {_quoted(name)} has a name of {longest} bytes; at most"
                f" {self.max_name_bytes} are taken.",
                "Rename it.",
            )
        return path

    def _check_limits(self, files: int, size: int) -> None:
        if files > self.max_files or size > self.max_bytes:
            what = (
                f"The archive holds {files} files of {size / 1e6:.0f} MB together; at"
                f" most {self.max_files} files of {self.max_bytes / 1e6:.0f} MB are taken."
            )
            raise BadArchive(self.shown, "archive_too_big", what)

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled(f"Unpacking {self.shown} was cancelled.")

    def _refuse_unreadable(self, head: bytes) -> None:
        for magic, name in UNREADABLE.items():
            if head.startswith(magic):
                self._fail(f"It is a {name} archive.", "Pack it as a tar, tar.gz or zip.")

    @contextmanager
    def _blaming(self, member: _Member | None = None) -> Iterator[None]:
        """Tells what is the archive's own fault as such."""
        try:
            yield
        except (*BROKEN_ARCHIVE, OSError) as err:
            told = None
            if isinstance(err, OSError):
                if err.errno not in ARCHIVE_FAULTS:
                    raise
                told = err.strerror  # not where the folder is
            # Some of Python's messages hold the names of members, which may be long.
            reason = encodable(told or str(err))[:200].rstrip(".") or "it ends too early"
            place = f" (member {_quoted(member.name)})" if member else ""
            what = f"The archive cannot be unpacked: {reason}{place}."
            raise BadArchive(self.shown, "bad_archive", what) from err

    def _fail(self, what: str, hint: str = "") -> NoReturn:
        raise BadArchive(self.shown, "bad_archive", what, hint)


def _type(member: tarfile.TarInfo) -> str:
    """What a tar's member is in words, when it is no plain file."""
    if member.issym():
        return "a symbolic link"
    if member.islnk():
        return "a hard link"
    return "" if member.isreg() else "a device, pipe or something else"


def plain(name: str) -> str:
    """A member's name as a path, also where Windows has written it."""
    return str(PurePosixPath(encodable(name).replace("\\", "/")))


def _quoted(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 100 else f"{text[:97]}..."  # noqa: PLR2004


def listed(names: Sequence[str]) -> str:
    """Some names and how many more there are."""
    shown = ", ".join(_quoted(name) for name in names[:LISTED]) or "no file at all"
    return f"{shown} and {len(names) - LISTED} more" if names[LISTED:] else shown
