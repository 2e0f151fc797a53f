"""The texts in PNG, WebP, JPEG, AVIF and EXR pictures; no picture is ever decoded.

Pillow reads PNG text behind the pixels only after decoding them, and WebP and AVIF files whole.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from comfy_runner.documents.parts import Members, decoded, parts, take
from comfy_runner.graph.document import MAX_DOCUMENT_BYTES

MAX_TAGS = 1000
"""How many EXIF tags are looked at; each may name the same megabytes."""

EXIF_NAMES = {
    0x010D: "DocumentName",
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x0132: "DateTime",
    0x013B: "Artist",
    0x8298: "Copyright",
    0x9286: "UserComment",
    0x9C9C: "XPComment",
}
SUB_IFD, USER_COMMENT, XP_TAGS = 0x8769, 0x9286, range(0x9C9B, 0x9CA0)
EXIF_TEXT_TYPES = (1, 2, 7, 129)
"""BYTE, ASCII, UNDEFINED and UTF-8, which are one byte each."""


def png(file: BinaryIO) -> Members:
    """Text chunks before and behind the pixels.

    `comf` is ComfyUI's own chunk in animated pictures (`comfy_api/latest/_ui.py` 0.30).
    """
    file.seek(8)
    for _ in parts():
        length, kind = struct.unpack(">I4s", take(file, 8))
        if kind == b"IEND":
            return
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"comf"):
            name, _, rest = take(file, length).partition(b"\0")
            yield name.decode("latin-1"), decoded(_png_text(kind, rest))
            length = 0
        file.seek(length + 4, 1)


def _png_text(kind: bytes, rest: bytes) -> bytes:
    if kind == b"zTXt":
        return _inflated(rest[1:])
    if kind == b"iTXt":
        text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        return _inflated(text) if rest[:1] == b"\1" else text
    return rest


def _inflated(packed: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(packed, MAX_DOCUMENT_BYTES)
    except zlib.error as err:
        raise ValueError("a compressed text in it is damaged") from err
    if inflate.unconsumed_tail:
        raise ValueError("a compressed text in it is too big")
    return text


def webp(file: BinaryIO) -> Members:
    """The EXIF chunk; it mostly stands at the end."""
    file.seek(12)
    for _ in parts():
        head = file.read(8)
        if not head:
            return
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            yield from exif(take(file, length))
            return
        file.seek(length + length % 2, 1)


def jpeg(file: BinaryIO) -> Members:
    """EXIF and comment segments; they stand before the pixels."""
    file.seek(2)
    for _ in parts():
        start, kind = take(file, 2)
        if start != 0xFF:  # noqa: PLR2004
            raise ValueError("its segments are damaged")
        if kind == 0xFF:  # noqa: PLR2004 - a fill byte
            file.seek(-1, 1)
            continue
        if kind in (0xDA, 0xD9):  # pixels, or the end
            return
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # noqa: PLR2004 - these have no content
            continue
        (length,) = struct.unpack(">H", take(file, 2))
        content = take(file, max(0, length - 2))
        if kind == 0xE1 and content.startswith(b"Exif\0"):  # noqa: PLR2004
            yield from exif(content)
        elif kind == 0xFE:  # noqa: PLR2004
            yield "comment", decoded(content)


def exr(file: BinaryIO) -> Members:
    """The attributes of type string in the first header (`comfy_extras/nodes_images.py` 0.30)."""
    file.seek(8)
    for _ in parts():
        name = _name(file)
        if not name:
            return
        kind = _name(file)
        (length,) = struct.unpack("<I", take(file, 4))
        if kind == b"string":
            yield decoded(name), decoded(take(file, length))
        else:
            file.seek(length, 1)


def _name(file: BinaryIO) -> bytes:
    """A name of at most 255 bytes and the zero byte behind it."""
    name = bytearray()
    while (letter := take(file, 1)) != b"\0":
        name += letter
        if len(name) > 255:  # noqa: PLR2004
            raise ValueError("its header is damaged")
    return bytes(name)


def avif(file: BinaryIO) -> Members:
    """The EXIF item: `iinf` names it, `iloc` says where it stands (ISO/IEC 14496-12)."""
    file.seek(0)
    for kind, length in _boxes(file):
        if kind == b"meta":
            meta = take(file, length)
            inner = dict(_inner_boxes(meta[4:]))
            for extent in _exif_extents(inner):
                yield from exif(_extent(file, inner, *extent))
            return
        file.seek(length, 1)


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and content's length of each box; the file must stand at its content's end then."""
    for _ in parts():
        head = file.read(8)
        if not head:
            return
        length, kind = struct.unpack(">I4s", head)
        behind = 8
        if length == 1:
            (length,) = struct.unpack(">Q", take(file, 8))
            behind = 16
        if length < behind:  # 0 means up to the end of the file
            return
        yield kind, length - behind


def _inner_boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if length < 8:  # noqa: PLR2004
            return
        yield kind, content[position + 8 : position + length]
        position += length


class _Numbers:
    """Numbers of different widths, one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def next(self, width: int) -> int:
        """The next big-endian number of so many bytes."""
        self.position += width
        if self.position > len(self.content):
            raise EOFError
        return int.from_bytes(self.content[self.position - width : self.position])


def _exif_extents(boxes: dict[bytes, bytes]) -> Iterator[tuple[int, int, int]]:
    """Construction method, offset and length of each piece of the EXIF item."""
    wanted = _exif_items(boxes.get(b"iinf", b""))
    if not wanted:
        return
    numbers = _Numbers(boxes.get(b"iloc", b""))
    version = numbers.next(4) >> 24
    sizes = numbers.next(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    wide = 4 if version == 2 else 2  # noqa: PLR2004
    for _ in range(numbers.next(wide)):
        item = numbers.next(wide)
        method = numbers.next(2) & 15 if version in (1, 2) else 0
        numbers.next(2)
        base = numbers.next(base_size)
        for _ in range(numbers.next(2)):
            numbers.next(index_size)
            offset, length = base + numbers.next(offset_size), numbers.next(length_size)
            if item in wanted:
                yield method, offset, length


def _exif_items(iinf: bytes) -> set[int]:
    entries = iinf[6:] if iinf[:1] == b"\0" else iinf[8:]
    found = set()
    for kind, entry in _inner_boxes(entries):
        wide = 4 if entry[:1] == b"\3" else 2
        if kind == b"infe" and entry[6 + wide : 10 + wide] == b"Exif":
            found.add(int.from_bytes(entry[4 : 4 + wide]))
    return found


def _extent(
    file: BinaryIO, boxes: dict[bytes, bytes], method: int, offset: int, length: int
) -> bytes:
    if method == 1:
        return boxes.get(b"idat", b"")[offset : offset + length]
    file.seek(offset)
    return take(file, length)


def exif(content: bytes) -> Members:
    """The texts of an EXIF block: its first directory and the one that holds UserComment.

    ComfyUI writes `prompt:{...}` into Model and `workflow:{...}` into Make and the tags before it
    (`comfy_api/latest/_ui.py` 0.30); custom nodes use other tags, and JSON in UserComment.
    """
    start = re.search(rb"II\*\0|MM\0\*", content[:64])
    if start is None:
        raise ValueError("its EXIF block is damaged")
    content = content[start.start() :]
    order = "<" if content[:1] == b"I" else ">"
    (first,) = struct.unpack_from(order + "I", content, 4)
    left = MAX_DOCUMENT_BYTES
    for directory in (first, *_sub_directories(content, first, order)):
        for tag, kind, count, place in _tags(content, directory, order):
            if kind in EXIF_TEXT_TYPES and left > 0:
                left -= count
                raw = content[place : place + count]
                if len(raw) < count:
                    raise EOFError
                yield _named(tag, _exif_text(tag, raw))


def _sub_directories(content: bytes, directory: int, order: str) -> Iterator[int]:
    for tag, _, _, place in _tags(content, directory, order):
        if tag == SUB_IFD:
            yield struct.unpack_from(order + "I", content, place)[0]
            return


def _tags(content: bytes, directory: int, order: str) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and the place of the value."""
    (count,) = struct.unpack_from(order + "H", content, directory)
    for number in range(min(count, MAX_TAGS)):
        entry = directory + 2 + 12 * number
        tag, kind, length, place = struct.unpack_from(order + "HHII", content, entry)
        # Four bytes or fewer stand in the entry itself.
        is_inside = length <= 4 or kind == 4  # noqa: PLR2004
        yield tag, kind, length, entry + 8 if is_inside else place


def _exif_text(tag: int, raw: bytes) -> str:
    if tag == USER_COMMENT and raw[:8] == b"UNICODE\0":
        return raw[8:].decode("utf-16-be" if raw[8:9] == b"\0" else "utf-16", "replace")
    if tag == USER_COMMENT and raw[:8] in (b"ASCII\0\0\0", bytes(8)):
        raw = raw[8:]
    if tag in XP_TAGS:
        return raw.decode("utf-16-le", "replace")
    return decoded(raw)


def _named(tag: int, text: str) -> tuple[str, str]:
    """A text and its name: the one that stands before its JSON, else the tag's."""
    text = text.strip("\0 ")
    name, _, value = text.partition(":")
    if name.isidentifier() and value.lstrip()[:1] == "{":
        return name, value
    if tag == USER_COMMENT and text.startswith("{"):
        return "comment", text
    if "Steps: " in text:
        return "parameters", text
    return EXIF_NAMES.get(tag, f"EXIF tag {tag:#06x}"), text
