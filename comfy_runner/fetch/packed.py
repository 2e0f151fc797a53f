"""What a packed file holds, read piece by piece: within bounds of memory, and not without end."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, cast

import zstandard

MAX_TAR_HEADERS = 16 * 1024**2
"""Bytes that a tar may hold besides its files: names, folders, links, padding."""
TAR_HEADER = 4096
"""Bytes more of them for each file."""
MAX_TAR_EXTENSION = 16 * 1024
"""Bytes of one such header: Python before 3.12.6 needs the square of them in time (CVE-2024-6232).
"""
MAX_ZIP_INDEX = 4 * 1024**2
"""Bytes that a zip's index may have; Python reads it whole."""
ZIP_ENTRY = 64
"""Bytes more of it for each file that is allowed."""
XZ_MEMORY = 100 * 1024**2
"""Most bytes of memory that an xz stream may want: `xz -9` takes 65 MiB, and it could ask for 4 GB.
"""
ZSTD_WINDOW = 128 * 1024**2
"""Most bytes of memory that a zstandard stream may want: `zstd --long` takes these."""
BUFFER = 64 * 1024
"""Bytes that are read at once."""

_Codec = bz2.BZ2Decompressor | lzma.LZMADecompressor


class Decompressed:
    """What a compressed file holds; `lzma.open` would give an xz stream all memory it asks for."""

    def __init__(self, raw: IO[bytes], codec: Callable[[], _Codec]) -> None:
        self._raw = raw
        self._make = codec
        self._codec = codec()

    def read(self, size: int, /) -> bytes:
        """Raises: `EOFError`, `OSError` or `lzma.LZMAError` for a file that is cut or broken."""
        chunk = b""
        while not chunk:
            data = b""
            if self._codec.eof:
                # Parallel compressors write one stream after the other; xz pads with zeros.
                data = (self._codec.unused_data or self._raw.read(BUFFER)).lstrip(b"\0")
                if not data:
                    return b""
                self._codec = self._make()
            elif self._codec.needs_input and not (data := self._raw.read(BUFFER)):
                raise EOFError
            chunk = self._codec.decompress(data, size)
        return chunk


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


Stream = IO[bytes] | gzip.GzipFile | Decompressed


def _zstd(raw: IO[bytes]) -> Stream:
    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    return cast(IO[bytes], unpacker.stream_reader(raw, read_across_frames=True))


COMPRESSIONS: Mapping[bytes, Callable[[IO[bytes]], Stream]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": lambda raw: Decompressed(raw, bz2.BZ2Decompressor),
    b"\xfd7zXZ\x00": lambda raw: Decompressed(raw, _xz),
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""First bytes of a compressed file to what reads it."""


EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
"""Types of headers that say more of the member that follows; Python reads each whole."""


class MeteredTar(io.BufferedIOBase):
    """A tar's bytes, as far as they are allowed: a small file may unpack to headers without end."""

    def __init__(self, stream: Stream, check: Callable[[], None]) -> None:
        """`check` is called before each read, and may raise."""
        self._allowed = MAX_TAR_HEADERS
        self._stream = stream
        self._check = check

    def admit(self, size: int) -> None:
        """A file of so many bytes comes. Raises: `tarfile.ReadError` for a size below 0."""
        if size < 0:
            raise tarfile.ReadError("a file in it has a size below 0")
        # A sparse file has fewer bytes here than its size: what it leaves is not for headers.
        self._allowed = min(self._allowed + TAR_HEADER, MAX_TAR_HEADERS) + size

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises: `tarfile.ReadError` beyond what is allowed."""
        self._check()
        chunk = self._stream.read(BUFFER if size is None or size < 0 else size)
        self._allowed -= len(chunk)
        if self._allowed < 0:
            raise tarfile.ReadError("it holds more besides its files than any archive needs")
        return chunk


class FrugalMember(tarfile.TarInfo):
    """A tar's member that has no header without end in front of it."""

    # The entry point for subclasses, as the source of Python's tarfile calls it.
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Raises: `tarfile.ReadError` for a header that is too long."""
        if self.type in EXTENSIONS and self.size > MAX_TAR_EXTENSION:
            raise tarfile.ReadError("a header in it is longer than any archive needs")
        return cast(tarfile.TarInfo, super()._proc_member(tar))  # type: ignore[misc]


class FrugalZip(io.BufferedReader):
    """A zip's bytes; nobody reads an index without end at once."""

    def __init__(self, path: Path, max_files: int) -> None:
        super().__init__(io.FileIO(path))
        self._limit = MAX_ZIP_INDEX + ZIP_ENTRY * max_files

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises: `zipfile.BadZipFile` for more than the limit."""
        if size is not None and size > self._limit:
            raise zipfile.BadZipFile("its index is longer than any archive needs")
        return super().read(size)
