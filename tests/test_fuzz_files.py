"""Archives and metadata made to do harm: limits hold, and nothing outside is touched."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from saved_files import MAKERS

from comfy_runner.documents import source
from comfy_runner.documents.embedded import MAGIC, embedded
from comfy_runner.errors import CallerError
from comfy_runner.fetch.archives import BadArchive, unpack

LIMIT = 20_000
FILES = 12

NAMES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *("a", "A", "a/b", "a/b/c", "../up", "/root", "a/../../up", "..", ".", "a\\..\\..\\up"),
            *("secret", "./a", "a//b", "\0", "x" * 300, "d/" * 60 + "x", "link/through", "link"),
            *("C:\\x", "\ud83d", "a\n", "x.safetensors", "__MACOSX/._x", "\u202ea", "é", "e\u0301"),
        ]
    ),
)
CONTENTS = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"", b"0" * 3000, b"0" * (LIMIT + 1), b"0" * 300_000]),
)
TYPES = st.sampled_from(
    [
        *(tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
        *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"?"),
    ]
)
TARGETS = st.sampled_from(["..", "/", "../secret", "secret", "a", "../../../../etc/passwd", ""])


def tar_of(members: list[tuple[str, bytes, bytes, str]], mode: str) -> bytes:
    """A tar of (name, content, type, target of a link)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zip_of(members: list[tuple[str, bytes, bytes, str]]) -> bytes:
    """The same as a zip, in which a link is a mode and its target the content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content, kind, target in members:
            entry = zipfile.ZipInfo(name)
            is_link = kind == tarfile.SYMTYPE
            entry.external_attr = (0o120777 if is_link else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(entry, target.encode() if is_link else content)
    return file.getvalue()


MEMBERS = st.lists(st.tuples(NAMES, CONTENTS, TYPES, TARGETS), max_size=6)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to unpack into, beside a file that nobody may read or change."""
    (tmp_path / "secret").write_text("s3cret")
    return tmp_path / "folder"


def check_unpacking(archive: bytes, place: Path) -> None:
    """Unpack, and look at everything that is there afterwards."""
    path = place.parent / "archive"
    path.write_bytes(archive)
    for odd in ("refuse", "leave out"):
        with suppress(BadArchive):
            paths = unpack(path, place, max_bytes=LIMIT, max_files=FILES, odd=odd)
            assert all(made.is_file() for made in paths)
        there = list(place.rglob("*"))
        assert not any(found.is_symlink() for found in there)
        plain = [found for found in there if found.is_file()]
        assert len(plain) <= FILES
        assert sum(found.stat().st_size for found in plain) <= LIMIT
        assert not any(b"s3cret" in found.read_bytes() for found in plain)
        for found in sorted(there, reverse=True):
            found.rmdir() if found.is_dir() else found.unlink()
    around = sorted(found.name for found in place.parent.iterdir())
    assert [name for name in around if name != "folder"] == ["archive", "secret"]
    assert (place.parent / "secret").read_text() == "s3cret"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MEMBERS, st.sampled_from(["w", "w:gz", "w:bz2", "w:xz", "zip"]))
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_no_archive_leads_out_of_its_folder_or_past_its_limits(
    place: Path, members: list[tuple[str, bytes, bytes, str]], mode: str
) -> None:
    with suppress(UnicodeEncodeError):  # Python makes no such archive
        check_unpacking(zip_of(members) if mode == "zip" else tar_of(members, mode), place)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["w", "w:gz", "zip"]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_no_damaged_archive_does(
    place: Path, mode: str, changes: list[tuple[int, int]], cut: int
) -> None:
    members = [
        ("a/b", b"hello" * 30, tarfile.REGTYPE, ""),
        ("link", b"", tarfile.SYMTYPE, "../secret"),
    ]
    raw = bytearray(zip_of(members) if mode == "zip" else tar_of(members, mode))
    for position, value in changes:
        raw[position % len(raw)] = value
    check_unpacking(bytes(raw[: len(raw) - cut % 200]), place)


@given(st.sampled_from(sorted(MAKERS)), st.binary(max_size=60), st.data())
def test_any_metadata_is_a_graph_or_refused(kind: str, text: bytes, draw: st.DataObject) -> None:
    texts = {"prompt": json.dumps(text.decode("latin-1")), "workflow": '{"nodes": 1}'}
    content = bytearray(MAKERS[kind](texts))
    for _ in range(draw.draw(st.integers(0, 3))):
        position = draw.draw(st.integers(0, len(content) - 5))
        # Lengths and offsets are what harm is done with.
        number = draw.draw(st.sampled_from([0, 1, 2**16 - 1, 2**31, 2**32 - 1, len(content)]))
        content[position : position + 4] = number.to_bytes(4, draw.draw(st.sampled_from(ENDS)))
    with suppress(CallerError):
        assert source.read(bytes(content)) is not None


ENDS: tuple[Any, ...] = ("big", "little")


@given(st.sampled_from(MAGIC), st.binary(max_size=200))
@example((0, b"\x89PNG\r\n\x1a\n", ("", None)), struct.pack(">I4s", 2**31, b"tEXt"))
@example((4, b"ftypavif", ("", None)), b"\0\0\0\1meta" + b"\xff" * 8)
@example((0, b"v/1\x01", ("", None)), b"\2\0\0\0" + b"a\0string\0\xff\xff\xff\xff")
def test_a_files_first_bytes_and_any_others_are_no_more_than_a_kind_of_file(
    magic: Any, rest: bytes
) -> None:
    where, begin, _ = magic
    head = (b"RIFF" + bytes(4))[:where].ljust(where, b"\0")
    found = embedded(io.BytesIO(head + begin + rest))
    assert found is not None


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I4s", len(content), kind) + content + bytes(4)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_text_that_inflates_without_end_is_refused(kind: bytes) -> None:
    bomb = zlib.compress(bytes(40_000_000), 9)
    between = b"\0\0" if kind == b"zTXt" else b"\0\1\0\0\0"
    content = b"\x89PNG\r\n\x1a\n" + chunk(kind, b"prompt" + between + bomb)
    with pytest.raises(CallerError, match="too big"):
        source.read(content)
