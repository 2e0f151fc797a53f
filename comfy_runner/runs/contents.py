"""What is in a result file besides its metadata, which names the run."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageSequence

from comfy_runner.runs.media import UNREADABLE

CHUNK = 1024 * 1024
"""Bytes that are read at once; most bytes of the header of a safetensors file."""

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})

RECORDINGS = frozenset(
    {".mp4", ".webm", ".mkv", ".mov", ".flac", ".mp3", ".opus", ".ogg", ".wav", ".m4a"}
)

TENSORS = frozenset({".safetensors", ".latent"})


BROKEN = (
    *UNREADABLE,
    RuntimeError,  # an AVIF; and its child RecursionError, for JSON that is nested too deep
    ArithmeticError,  # this and the next two: tables of a picture that contradict each other
    LookupError,
    AssertionError,
    zlib.error,
    MemoryError,  # a size that no file has
)
"""What is raised by the readers of broken files."""


def content_digest(path: Path) -> str:
    """What is in a file besides its metadata; see `Made.content`. Empty for an unreadable one.

    Raises nothing for any file: a node may write whatever it likes.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in PICTURES:
            return f"pixels:{hashed(_pixels(path))}"
        if suffix in RECORDINGS:
            return f"packets:{hashed(_packets(path))}"
        if suffix in TENSORS:
            return f"tensors:{hashed(_tensors(path))}"
    except BROKEN:
        pass
    return ""


def sha256_of(path: Path) -> str:
    """The hash of a file. Raises: `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashed(parts: Iterable[bytes]) -> str:
    """The sha256 of all parts in a row."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _pixels(path: Path) -> Iterator[bytes]:
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            plain = frame.convert("RGBA") if frame.mode in ("P", "PA") else frame
            yield f"{plain.mode} {plain.size} {frame.info.get('duration', 0)}\n".encode()
            yield plain.tobytes()


def _packets(path: Path) -> Iterator[bytes]:
    """The encoded streams without their container: decoding would cost far more and tell no more.

    Equal samples from one encoder give equal packets.
    """
    import av  # noqa: PLC0415 - a tenth of a second of each start, for receipts of recordings only

    try:
        with av.open(str(path)) as container:
            for stream in container.streams:
                codec = stream.codec_context.name if stream.codec_context else ""
                yield f"{stream.index} {stream.type} {codec}\n".encode()
            for packet in container.demux():
                yield f"{packet.stream_index} {packet.pts} {packet.size}\n".encode()
                yield bytes(packet)
    except av.FFmpegError as err:
        raise ValueError("it is damaged or cut off") from err


def _tensors(path: Path) -> Iterator[bytes]:
    """A safetensors file without its `__metadata__`: length of the header, header, tensors."""
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), CHUNK)))
        if not isinstance(header, dict):
            raise ValueError("the header is no object")  # noqa: TRY004 - as json does
        header.pop("__metadata__", None)
        yield json.dumps(header, sort_keys=True).encode()
        while chunk := file.read(CHUNK):
            yield chunk
