"""Archives on their way into a folder: what they may hold, and what they may not."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfy_runner.errors import Cancelled
from comfy_runner.fetch import packed
from comfy_runner.fetch.archives import BadArchive, find_weights, unpack

LIMIT = 1_000_000
MODES = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz"}
KINDS = [*MODES, "x.tar.zst", "x.zip"]


def pack(path: Path, members: Mapping[str, bytes]) -> Path:
    """An archive of the kind that the name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in members.items():
                made.writestr(name, content)
        return path
    if path.suffix == ".zst":
        plain = pack(path.with_name("plain.tar"), members)
        path.write_bytes(zstandard.compress(plain.read_bytes()))
        plain.unlink()
        return path
    with tarfile.open(path, MODES.get(path.name, "w")) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder to unpack into, with a neighbour that nobody may touch."""
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "neighbour.txt").write_text("mine")
    return tmp_path / "staging" / "folder"


def unpacked(archive: Path, folder: Path, **options: Any) -> dict[str, bytes]:
    """Path to content of each file that came out; nothing else is there."""
    paths = unpack(archive, folder, **{"max_bytes": LIMIT, **options})
    there = {path for path in folder.rglob("*") if not path.is_dir()}
    assert there == set(paths)
    assert not any(path.is_symlink() for path in there)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def refused(archive: Path, folder: Path, **options: Any) -> BadArchive:
    with pytest.raises(BadArchive) as caught:
        unpack(archive, folder, **{"max_bytes": LIMIT, "shown": "the archive", **options})
    assert str(caught.value).startswith("the archive: ")
    assert str(folder.parent) not in str(caught.value)
    return caught.value


CONTENT = {"lora.safetensors": os.urandom(5000), "set/one/b.txt": b"b" * 3000, "empty.txt": b""}


# What comes out


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_is_known_by_its_first_bytes(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, {**CONTENT, "./dot.txt": b"d"}).rename(tmp_path / "download")
    assert unpacked(archive, folder) == {**CONTENT, "dot.txt": b"d"}


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_of_the_kind_that_was_told(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, CONTENT)
    assert unpacked(archive, folder, kind="zip" if name == "x.zip" else "tar") == CONTENT


@pytest.mark.parametrize("name", KINDS)
def test_one_member_alone(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, {"./vae/ae.safetensors": b"ae", "vae/readme.md": b"r"})
    assert unpacked(archive, folder, only="vae/ae.safetensors", strip=1) == {
        "ae.safetensors": b"ae"
    }


def test_a_member_that_is_not_there_is_told_with_what_is(folder: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", dict.fromkeys([f"{n}.txt" for n in range(20)], b""))
    error = refused(archive, folder, only="ae.safetensors")
    assert error.what.startswith("It has no member 'ae.safetensors'; it holds '0.txt', '1.txt', ")
    assert error.what.endswith(" and 12 more.")


def test_leading_folders_are_taken_off(folder: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", {"a/b/c.txt": b"c", "a/d.txt": b"d", "e.txt": b"e"})
    assert unpacked(archive, folder, strip=1) == {"b/c.txt": b"c", "d.txt": b"d"}
    assert "so deep" in refused(archive, folder, strip=3).what


def test_an_archive_without_files_gives_none(folder: Path, tmp_path: Path) -> None:
    assert unpacked(pack(tmp_path / "x.tar", {}), folder, kind="tar") == {}
    assert unpacked(pack(tmp_path / "x.zip", {}), folder) == {}


def test_modes_and_owners_of_an_archive_do_not_count(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("a")
        member.mode, member.uid, member.mtime = 0o6777, 12345, 1
        tar.addfile(member)
    (path,) = unpack(tmp_path / "x.tar", folder, max_bytes=LIMIT)
    assert path.stat().st_mode & 0o7111 == 0
    assert path.stat().st_uid == os.getuid()
    assert path.stat().st_mtime > 1


@pytest.mark.parametrize("name", ["x.tar.bz2", "x.tar.xz", "x.tar.zst"])
def test_streams_one_after_the_other_are_one_archive(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """As parallel compressors write them."""
    plain = pack(tmp_path / "x.tar", CONTENT).read_bytes()
    packers = {"bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
    compress: Callable[[bytes], bytes] = packers[name.rpartition(".")[2]]
    pieces = [plain[start : start + 1000] for start in range(0, len(plain), 1000)]
    archive = tmp_path / name
    archive.write_bytes(b"".join(map(compress, pieces)) + bytes(8 if name.endswith("xz") else 0))
    assert unpacked(archive, folder) == CONTENT


def test_a_sparse_file_comes_whole(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(sparse(real=20_000))
    assert unpacked(tmp_path / "x.tar", folder) == {
        "holes": bytes(9_488) + b"x" * 512 + bytes(10_000)
    }


def sparse(real: int) -> bytes:
    """A tar in GNU's old format for sparse files: 512 bytes at 9488, and holes around them."""
    member = tarfile.TarInfo("holes")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (9_488, 512)
    header[483:495] = b"%011o\0" % real
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512 + bytes(1024)


# What does not


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "member", ["../neighbour.txt", "a/../../neighbour.txt", "/etc/x", "..\\neighbour.txt"]
)
def test_a_member_that_leads_out_is_refused(
    folder: Path, tmp_path: Path, name: str, member: str
) -> None:
    error = refused(pack(tmp_path / name, {"fine.txt": b"", member: b"evil"}), folder)
    assert repr(member) in error.what
    assert "leads out" in error.what
    assert (folder.parent / "neighbour.txt").read_text() == "mine"
    assert {path.name for path in folder.parent.iterdir()} == {"folder", "neighbour.txt"}


ODD = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a device, pipe",
    b"Z": "something else",
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("target", ["fine.txt", "../neighbour.txt"])
def test_what_is_no_plain_file_is_refused_or_left_out(
    folder: Path, tmp_path: Path, kind: bytes, target: str
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("fine.txt"))
        member = tarfile.TarInfo("odd")
        member.type, member.linkname = kind, target
        tar.addfile(member)
    error = refused(tmp_path / "x.tar", folder)
    assert "'odd' is " in error.what
    assert ODD[kind] in error.what
    (folder / "fine.txt").unlink()
    assert unpacked(tmp_path / "x.tar", folder, odd="leave out") == {"fine.txt": b""}


def test_a_link_beside_the_one_wanted_member_does_no_harm(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("latest")
        link.type, link.linkname = tarfile.SYMTYPE, "ae.safetensors"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("ae.safetensors"))
    assert unpacked(tmp_path / "x.tar", folder, only="ae.safetensors") == {"ae.safetensors": b""}
    assert "a symbolic link" in refused(tmp_path / "x.tar", folder, only="latest").what


def test_a_symbolic_link_in_a_zip_is_refused(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        made.writestr(link, "../neighbour.txt")
    assert "'link' is a symbolic link" in refused(tmp_path / "x.zip", folder).what


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_one_name_twice_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    error = refused(pack(tmp_path / name, {"a/b": b"1", "./a/b": b"2"}), folder)
    assert error.code == "same_name"
    assert "'a/b'" in error.what
    assert (folder / "a" / "b").read_bytes() == b"1"


def test_what_stands_in_the_folder_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "a").symlink_to("../neighbour.txt")
    assert refused(pack(tmp_path / "x.tar", {"a": b"evil"}), folder).code == "same_name"
    (folder / "a").unlink()
    (folder / "a").symlink_to("../nothing.txt")
    assert "File exists" in refused(tmp_path / "x.tar", folder).what
    assert {path.name for path in folder.parent.iterdir()} == {"folder", "neighbour.txt"}


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("a/" + "x" * 201, "a name of 201 bytes"),
        ("ü" * 101, "a name of 202 bytes"),
        ("a/" * 40 + "x", "more than 40 folders"),
        (("x" * 195 + "/") * 30 + "x", "File name too long"),
    ],
)
def test_names_that_no_later_step_could_hold_are_refused(
    folder: Path, tmp_path: Path, name: str, member: str, told: str
) -> None:
    error = refused(pack(tmp_path / name, {member: b""}), folder)
    assert told in error.what
    assert len(error.what) < 300


def test_a_longer_name_may_be_allowed(folder: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", {"x" * 255: b"1"})
    assert unpacked(archive, folder, max_name_bytes=255) == {"x" * 255: b"1"}


# Limits


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_that_unpacks_to_too_much_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    archive = pack(tmp_path / name, {"a": bytes(LIMIT), "b": b"!"})
    assert refused(archive, folder).code == "archive_too_big"
    there = sum(path.stat().st_size for path in folder.rglob("*"))
    assert there <= LIMIT
    assert there == 0 or name != "x.zip"  # a zip tells all sizes in advance


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_of_too_many_files_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, {f"{number}.txt": b"" for number in range(21)})
    assert refused(archive, folder, max_files=20).code == "archive_too_big"
    assert len(unpack(archive, folder / "again", max_bytes=LIMIT, max_files=21)) == 21


def test_what_is_not_wanted_counts_too(folder: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar.gz", {"a": b"a", "b": bytes(LIMIT)})
    assert refused(archive, folder, only="a").code == "archive_too_big"


def test_a_sparse_file_is_refused_for_the_size_that_it_would_have(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(sparse(real=8_000_000_000))
    assert refused(tmp_path / "x.tar", folder).code == "archive_too_big"
    assert list(folder.iterdir()) == []


def test_a_size_below_zero_buys_no_room(folder: Path, tmp_path: Path) -> None:
    member = tarfile.TarInfo("a")
    member.size = -1_000_000_000
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "below 0" in refused(tmp_path / "x.tar", folder).what


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.tar.zst"])
def test_headers_without_end_are_not_read_to_their_end(
    folder: Path, tmp_path: Path, name: str
) -> None:
    empty = tarfile.TarInfo("folder")
    empty.type = tarfile.DIRTYPE
    bomb = empty.tobuf(tarfile.USTAR_FORMAT) * 40_000
    packers: dict[str, Callable[[bytes], bytes]] = {
        "x.tar.gz": lambda raw: gzip.compress(raw, 1),
        "x.tar.bz2": bz2.compress,
        "x.tar.xz": lambda raw: lzma.compress(raw, preset=0),
        "x.tar.zst": zstandard.compress,
    }
    (tmp_path / name).write_bytes(packers[name](bomb))
    assert "besides its files" in refused(tmp_path / name, folder).what


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_header_is_not_looked_into(folder: Path, tmp_path: Path, kind: bytes) -> None:
    # Older tarfile modules would search such digits for hours.
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 4_000_000
    bomb = header.tobuf(tarfile.USTAR_FORMAT) + b"1" * 4_000_000
    (tmp_path / "x.tar").write_bytes(bomb)
    assert "a header in it is longer" in refused(tmp_path / "x.tar", folder).what


def test_what_other_programs_write_into_headers_does_no_harm(folder: Path, tmp_path: Path) -> None:
    member = tarfile.TarInfo("long folder/" * 30 + "x.txt")
    member.pax_headers = {"LIBARCHIVE.xattr.com.apple.provenance": "A" * 8000, "mtime": "1.5"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    assert unpacked(tmp_path / "x.tar", folder) == {member.name: b""}


def test_files_by_the_thousand_have_headers_by_the_megabyte(folder: Path, tmp_path: Path) -> None:
    many = {f"{'long folder/' * 20}{number}.txt": b"" for number in range(12_000)}
    archive = pack(tmp_path / "x.tar", many)
    assert archive.stat().st_size > packed.MAX_TAR_HEADERS
    last = next(reversed(many))
    assert unpacked(archive, folder, only=last, max_bytes=0, max_files=12_000) == {last: b""}


def test_an_index_without_end_is_not_read(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    end = b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + (5_000_000).to_bytes(4, "little") + bytes(6)
    archive.write_bytes(b"PK\x03\x04" + bytes(5_000_000 - 4) + end)
    assert "its index is longer" in refused(archive, folder).what


def test_a_zip_with_lzma_which_may_ask_for_much_memory_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as made:
        made.writestr("lora.safetensors", b"x" * 100)
    error = refused(tmp_path / "x.zip", folder)
    assert "a rare way (member 'lora.safetensors')" in error.what
    assert "deflate" in error.hint


def test_a_zstandard_stream_that_asks_for_much_memory_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "x.tar.zst").write_bytes(packer.compress(bytes(1000)) + packer.flush())
    assert "x.tar.zst" not in refused(tmp_path / "x.tar.zst", folder).what


def test_an_xz_that_asks_for_much_memory_is_refused(folder: Path, tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    plain = pack(tmp_path / "x.tar", CONTENT).read_bytes()
    stream = bytearray(lzma.compress(plain, filters=filters))
    assert stream[16] == 16  # the dictionary's size as xz codes it, in the block's header
    stream[16] = 32  # 256 MiB
    header = 4 * (stream[12] + 1)
    checksum = zlib.crc32(stream[12 : 12 + header - 4])
    stream[12 + header - 4 : 12 + header] = checksum.to_bytes(4, "little")
    (tmp_path / "x.tar.xz").write_bytes(stream)
    assert "emory usage limit" in refused(tmp_path / "x.tar.xz", folder).what


@pytest.mark.parametrize("name", KINDS)
def test_memory_does_not_grow_with_the_files(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, {"a": bytes(40_000_000)})
    tracemalloc.start()
    try:
        unpack(archive, folder, max_bytes=50_000_000)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000  # 8 MiB of them are xz's dictionary
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", KINDS)
def test_cancelling_ends_it(folder: Path, tmp_path: Path, name: str) -> None:
    cancelled = Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        unpack(pack(tmp_path / name, CONTENT), folder, max_bytes=LIMIT, cancelled=cancelled)
    assert not any(path.is_file() for path in folder.rglob("*"))


# Broken ones


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_that_is_cut_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, CONTENT)
    os.truncate(archive, 4000)
    assert "cannot be unpacked: " in refused(archive, folder).what


def test_the_checksum_of_a_compressed_tar_is_checked(folder: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar.gz", CONTENT)
    raw = bytearray(archive.read_bytes())
    raw[-8] ^= 1
    archive.write_bytes(raw)
    assert "CRC" in refused(archive, folder).what


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "neither a tar nor a zip"),
        (b"<html>", "neither a tar nor a zip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive"),
        (b"Rar!\x1a\x07\x01\x00", "a rar archive"),
    ],
)
def test_what_is_no_archive_of_ours_is_told(
    folder: Path, tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    assert told in refused(tmp_path / "x", folder).what


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_archive_gives_its_files_or_an_error_of_ours(
    folder: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    archive = pack(tmp_path / name, {"a/b.txt": b"hello" * 50, "c.png": bytes(range(256))})
    raw = bytearray(archive.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    archive.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with suppress(BadArchive):
        assert all(path.is_file() for path in unpack(archive, folder, max_bytes=LIMIT))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


# Trained models


def found(folder: Path, *names: str) -> str:
    return str(find_weights([folder / name for name in names], folder).relative_to(folder))


def test_the_one_safetensors_of_a_trained_model_is_found(tmp_path: Path) -> None:
    # A folder of that name around it all means nothing.
    folder = tmp_path / "checkpoint-1" / ".staging"
    wanted = "output/flux_train_replicate/lora.safetensors"
    assert found(folder, wanted) == wanted
    others = [
        "output/flux_train_replicate/config.yaml",
        "output/flux_train_replicate/optimizer.pt",
        "output/flux_train_replicate/captions/1.txt",
        "output/flux_train_replicate/optimizer.safetensors",
        "__MACOSX/output/lora.safetensors",
        "output/flux_train_replicate/._lora.safetensors",
        "output/checkpoint-500/lora.safetensors",
    ]
    assert found(folder, *others, wanted) == wanted
    assert found(folder, "checkpoint-500/LORA.SAFETENSORS") == "checkpoint-500/LORA.SAFETENSORS"


def test_several_candidates_are_listed(tmp_path: Path) -> None:
    with pytest.raises(BadArchive) as caught:
        found(tmp_path, "a/unet.safetensors", "a/text.safetensors", "a/readme.md")
    assert "'a/unet.safetensors', 'a/text.safetensors'." in str(caught.value)
    assert "readme" not in str(caught.value)
    with pytest.raises(BadArchive, match="2 safetensors files"):
        found(tmp_path, "checkpoint-1/a.safetensors", "checkpoint-2/a.safetensors")


def test_no_candidate_is_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match=r"no safetensors file; it holds 'lora\.pt', 'a\.txt'\."):
        found(tmp_path, "lora.pt", "a.txt")
    with pytest.raises(BadArchive, match="holds no file at all"):
        found(tmp_path)
