"""What kind of file it is, judged by its first bytes, and what ComfyUI wrote into it."""

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from comfy_runner.documents.parts import Members, Rationed, take
from comfy_runner.documents.pictures import avif, exr, jpeg, png, webp
from comfy_runner.graph.document import MAX_DOCUMENT_BYTES

HEAD = 4096
"""Bytes at a file's start that are enough to tell its kind."""

RATION = 2 * MAX_DOCUMENT_BYTES
"""Most bytes of a video or recording that are read: a damaged one is searched to its end."""

MAX_NAMES = 100
"""How many names of other metadata are kept, to be told."""

GRAPHS = ("prompt", "workflow", "comment")
"""Metadata whose values are kept; some custom nodes write both graphs as JSON into `comment`."""

PLAIN = re.compile(
    r"major_brand|minor_version|compatible_brands|encoder|creation_time|handler_name|vendor_id"
    r"|language|duration|timecode|com\.apple\..*|_statistics_.*|tsse|jfif|software|datetime|writer",
    re.IGNORECASE,
)
"""Metadata that programs write by themselves and that tells nobody anything."""

Reader = Callable[[BinaryIO], Members]


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a file of a known kind has in it."""

    kind: str
    """In words, with an article: `a PNG picture`."""
    graphs: Mapping[str, Any]
    """What stands under the names in `GRAPHS`, as text or JSON, and is not empty."""
    names: tuple[str, ...]
    """Names of the other metadata, as they came."""
    fault: str
    """Why it could not be read to its end, as half a sentence; mostly empty."""
    can_hold: bool
    """Whether ComfyUI writes workflows into files of this kind."""


def embedded(file: BinaryIO) -> Embedded | None:
    """What a file has in it; None when it is of no known kind, as text is."""
    file.seek(0)
    head = file.read(HEAD)
    size = file.seek(0, 2)
    found = _kind(head, size)
    if found is None:
        return None
    kind, reader = found
    graphs: dict[str, Any] = {}
    names: dict[str, None] = {}
    fault = ""
    try:
        for name, value in reader(file) if reader else ():
            if name.lower() in GRAPHS:
                graphs[name.lower()] = value
            elif len(names) < MAX_NAMES and not PLAIN.fullmatch(name):
                names[name] = None
    except EOFError:
        fault = "it is cut off"
    except RecursionError:
        fault = "its metadata is nested too deeply"
    except struct.error:
        fault = "it is damaged"
    except ValueError as err:
        fault = str(err)
    held = {name: value for name, value in graphs.items() if value}
    return Embedded(kind, held, tuple(names), fault, reader is not None)


def _streams(container_format: str) -> Reader:
    """Reads the tags of sound and video: those of the file and, as Ogg has them, its streams."""

    def read(file: BinaryIO) -> Members:
        import av  # noqa: PLC0415 - a tenth of a second of each start, for sound and video only

        file.seek(0)
        try:
            with av.open(
                Rationed(file, RATION),
                format=container_format,  # or else FFmpeg would open playlists, too
                # The tags are known before a frame is: look at next to none.
                options={"probesize": "65536", "analyzeduration": "1"},
            ) as container:
                yield from container.metadata.items()
                for stream in container.streams:
                    yield from stream.metadata.items()
        except (av.error.FFmpegError, UnicodeDecodeError) as err:
            raise ValueError("it is damaged or cut off") from err

    return read


def _svg(file: BinaryIO) -> Members:
    """The JSON in `<metadata><![CDATA[...]]>` (`comfy_extras/nodes_images.py` 0.30)."""
    size = file.seek(0, 2)
    file.seek(0)
    text = take(file, size)
    lower = text.lower()
    start = lower.find(b"<metadata>")
    if start < 0:
        return
    end = lower.find(b"</metadata>", start)
    if end < 0:
        raise EOFError
    inner = text[start + len(b"<metadata>") : end].strip()
    if inner.startswith(b"<![CDATA[") and inner.endswith(b"]]>"):
        yield from _object(inner[9:-3])
    else:
        yield "metadata", ""


def _glb(file: BinaryIO) -> Members:
    """`asset.extras` of the JSON chunk, which is the first (`comfy_extras/nodes_save_3d.py`)."""
    file.seek(12)
    length, kind = struct.unpack("<I4s", take(file, 8))
    if kind != b"JSON":
        raise ValueError("its first chunk is no JSON")
    for name, asset in _object(take(file, length)):
        if name == "asset" and isinstance(asset, dict) and isinstance(asset.get("extras"), dict):
            yield from asset["extras"].items()


def _safetensors(file: BinaryIO) -> Members:
    """`__metadata__` of the header (`nodes.py` SaveLatent, `nodes_model_merging.py` 0.30)."""
    file.seek(0)
    (length,) = struct.unpack("<Q", take(file, 8))
    for name, metadata in _object(take(file, length)):
        if name == "__metadata__" and isinstance(metadata, dict):
            yield from metadata.items()


def _object(text: bytes) -> Iterator[tuple[str, Any]]:
    """The members of a JSON object."""
    try:
        loaded = json.loads(text)
    except ValueError as err:
        raise ValueError("the JSON in it is damaged") from err
    yield from loaded.items() if isinstance(loaded, dict) else ()


ISO = ("an MP4 video", _streams("mp4"))
MP3 = ("an MP3 recording", _streams("mp3"))

MAGIC: tuple[tuple[int, bytes, tuple[str, Reader | None]], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", ("a PNG picture", png)),
    (0, b"\xff\xd8\xff", ("a JPEG picture", jpeg)),
    (0, b"v/1\x01", ("an EXR picture", exr)),
    (8, b"WEBP", ("a WebP picture", webp)),
    (8, b"WAVE", ("a WAV recording", None)),
    (8, b"AVI ", ("an AVI video", None)),
    (4, b"ftypavif", ("an AVIF picture", avif)),
    (4, b"ftypavis", ("an AVIF picture", avif)),
    (4, b"ftypmif1", ("an AVIF or HEIC picture", avif)),
    (4, b"ftypheic", ("a HEIC picture", avif)),
    (4, b"ftypM4A ", ("an M4A recording", _streams("mp4"))),
    (4, b"ftypqt  ", ("a MOV video", _streams("mp4"))),
    (4, b"ftyp", ISO),
    (4, b"moov", ISO),
    (4, b"mdat", ISO),
    (4, b"wide", ISO),
    (0, b"\x1a\x45\xdf\xa3", ("a WebM or Matroska video", _streams("matroska"))),
    (0, b"fLaC", ("a FLAC recording", _streams("flac"))),
    (0, b"OggS", ("an Ogg recording", _streams("ogg"))),
    (0, b"ID3", MP3),
    (0, b"glTF", ("a GLB model", _glb)),
    (0, b"ply\n", ("a PLY model", None)),
    (0, b"ply\r", ("a PLY model", None)),
    (0, b"GIF8", ("a GIF picture", None)),
    (0, b"II*\0", ("a TIFF picture", None)),
    (0, b"MM\0*", ("a TIFF picture", None)),
    (0, b"PK\x03\x04", ("a ZIP archive", None)),
    (0, b"PK\x05\x06", ("an empty ZIP archive", None)),
    (0, b"\x1f\x8b", ("a gzip archive", None)),
    (0, b"7z\xbc\xaf\x27\x1c", ("a 7-Zip archive", None)),
    (0, b"Rar!", ("a RAR archive", None)),
    (257, b"ustar", ("a tar archive", None)),
    (0, b"%PDF", ("a PDF document", None)),
    (0, b"\x7fELF", ("a program", None)),
    (0, b"GGUF", ("a GGUF model", None)),
)
"""Place, bytes, and the kind with its reader; the first that fits is taken."""


def _kind(head: bytes, size: int) -> tuple[str, Reader | None] | None:
    for place, magic, kind in MAGIC:
        if head.startswith(magic, place) and (place != 8 or head.startswith(b"RIFF")):  # noqa: PLR2004
            return kind
    # MPEG audio, layer III: eleven bits of sync, and not the byte order mark of UTF-16.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2:  # noqa: PLR2004
        return MP3
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "a safetensors file", _safetensors
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return _markup(head.lower())
    return None


def _markup(head: bytes) -> tuple[str, Reader | None]:
    if re.search(rb"<svg[\s>]", head):
        return "an SVG picture", _svg
    if re.search(rb"<(!doctype\s+html|html|head|body)[\s>]", head):
        return "an HTML page", None
    return "an XML document", None
