"""Files of a request on their way into ComfyUI's input folder."""

import base64
import gzip
import io
import os
import re
import resource
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import pytest
from fakes.file_server import FileServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfy_runner.errors import (
    Cancelled,
    DownloadFailed,
    InvalidInput,
    MachineError,
    Problem,
)
from comfy_runner.runs import files
from comfy_runner.runs.files import GivenFile, InputFolder, empty, link_or_copy, safe_name
from comfy_runner.runs.plan import FileNeed

LIMIT = 100_000

Pack = Callable[[Path, Mapping[str, bytes]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ComfyUI's input folder, with a neighbour that nobody may touch."""
    folder = tmp_path / "comfyui" / "input"
    folder.mkdir(parents=True)
    (folder.parent / "neighbour.txt").write_text("mine")
    return folder


@pytest.fixture
def inputs(folder: Path) -> InputFolder:
    return InputFolder(folder, LIMIT)


def pack_zip(path: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def pack_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


PACKED = [("x.zip", pack_zip), ("x.tar", pack_tar), ("x.tar.gz", pack_tar), ("X.TGZ", pack_tar)]


def packed(tmp_path: Path, name: str, pack: Pack, members: Mapping[str, bytes]) -> GivenFile:
    path = tmp_path / name.lower()
    pack(path, members)
    return GivenFile(path, name)


def made(tmp_path: Path, name: str, content: bytes, alias: str = "") -> GivenFile:
    """A given file whose own path says nothing about its name, as Cog's do."""
    path = tmp_path / f"upload-{len(list(tmp_path.iterdir()))}"
    path.write_bytes(content)
    return GivenFile(path, name, alias)


def problem(inputs: InputFolder, *given_files: GivenFile) -> Problem:
    """The one problem that the files are refused for."""
    with pytest.raises(InvalidInput) as caught:
        inputs.lay(given_files)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def laid_there(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def need(source: str, node_id: str = "1", *, is_url: bool = False, subfolder: str = "") -> FileNeed:
    return FileNeed(node_id, "image", source, is_url, subfolder)


# Laying


def test_files_are_laid_under_their_names_and_aliases(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    photo = made(tmp_path, "Photo 1.PNG", b"a", alias="input.png")
    laid = inputs.lay([photo, made(tmp_path, "b.wav", b"b")])
    assert laid == {name: folder / name for name in ("Photo 1.PNG", "input.png", "b.wav")}
    assert laid_there(folder) == {"Photo 1.PNG": b"a", "input.png": b"a", "b.wav": b"b"}


def test_a_laid_file_is_no_link_to_the_caller_s(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    mine = made(tmp_path, "a.png", b"mine")
    inputs.lay([mine])
    with (folder / "a.png").open("r+b") as written_by_a_node:
        written_by_a_node.write(b"else")
    assert mine.path.read_bytes() == b"mine"


def test_a_file_whose_alias_is_its_name_is_laid_once(inputs: InputFolder, tmp_path: Path) -> None:
    assert inputs.lay([made(tmp_path, "input.png", b"a", alias="input.png")]).keys() == {
        "input.png"
    }


@pytest.mark.parametrize(("first", "second"), [("a.png", "a.png"), ("x/a.png", "y\\a.png")])
def test_two_files_of_one_name_are_refused(
    inputs: InputFolder, tmp_path: Path, first: str, second: str
) -> None:
    found = problem(inputs, made(tmp_path, first, b"1"), made(tmp_path, second, b"2"))
    assert (found.code, found.input) == ("same_name", "file a.png")


@pytest.mark.parametrize("archive_first", [True, False])
def test_a_file_and_an_archive_s_member_of_one_name_are_refused(
    inputs: InputFolder, tmp_path: Path, archive_first: bool
) -> None:
    pair = [packed(tmp_path, "x.zip", pack_zip, {"a.png": b"1"}), made(tmp_path, "a.png", b"2")]
    assert problem(inputs, *(pair if archive_first else reversed(pair))).code == "same_name"


@pytest.mark.parametrize(("name", "pack"), PACKED)
def test_an_archive_is_unpacked_with_its_tree(
    inputs: InputFolder, folder: Path, tmp_path: Path, name: str, pack: Pack
) -> None:
    content = {"a.png": b"a", "set/one/b.png": os.urandom(3000), "empty.txt": b"", "é ü.png": b"u"}
    laid = inputs.lay([packed(tmp_path, name, pack, {**content, "./dot.txt": b"d"})])
    assert laid_there(folder) == {**content, "dot.txt": b"d"}
    assert laid == {path: folder / path for path in (*content, "dot.txt")}


def test_folders_of_an_archive_are_no_files(inputs: InputFolder, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("set")
        archive.writestr("set/a.png", b"a")
    tar = tmp_path / "y.tar"
    with tarfile.open(tar, "w") as made_tar:
        made_tar.add(tmp_path, "other", recursive=False)
    assert inputs.lay([GivenFile(path, "x.zip"), GivenFile(tar, "y.tar")]).keys() == {"set/a.png"}


def test_a_tar_that_is_compressed_but_not_called_so_is_read(
    inputs: InputFolder, tmp_path: Path
) -> None:
    path = tmp_path / "x.tgz"
    pack_tar(path, {"a.png": b"a"})
    assert inputs.lay([GivenFile(path, "x.tar")]).keys() == {"a.png"}


def test_backslashes_are_folders(inputs: InputFolder, folder: Path, tmp_path: Path) -> None:
    tar = packed(tmp_path, "x.tar", pack_tar, {"set\\a.png": b"a"})
    assert inputs.lay([tar])["set/a.png"].read_bytes() == b"a"
    assert laid_there(folder) == {"set/a.png": b"a"}


def test_names_in_no_encoding_can_be_printed(inputs: InputFolder, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("café.png"))
    names = list(inputs.lay([GivenFile(path, "x.tar")]))
    assert [name.encode() for name in names] == [b"caf?.png"]


@pytest.mark.parametrize(("name", "pack"), PACKED)
@pytest.mark.parametrize(
    "member", ["../neighbour.txt", "a/../../neighbour.txt", "/etc/x", "..\\neighbour.txt", "\\x"]
)
def test_a_path_that_leads_out_is_refused(
    inputs: InputFolder, folder: Path, name: str, pack: Pack, member: str
) -> None:
    uploads = folder.parent.parent
    found = problem(inputs, packed(uploads, name, pack, {member: b"evil"}))
    assert (found.code, found.input) == ("bad_archive", f"file {name}")
    assert "leads out" in found.what
    assert (folder.parent / "neighbour.txt").read_text() == "mine"
    assert {path.name for path in folder.parent.iterdir()} == {"input", "neighbour.txt"}


def test_links_and_devices_are_left_out(inputs: InputFolder, folder: Path, tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
        ):
            member = tarfile.TarInfo(f"odd-{number}")
            member.type, member.linkname = kind, "../neighbour.txt"
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("fine.txt"))
    plain_zip = tmp_path / "x.zip"
    with zipfile.ZipFile(plain_zip, "w") as zipped:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "../neighbour.txt")
    laid = inputs.lay([GivenFile(tar, "x.tar"), GivenFile(plain_zip, "x.zip")])
    assert laid.keys() == {"fine.txt"}
    assert [path.name for path in folder.iterdir()] == ["fine.txt"]


def test_a_member_behind_a_link_of_the_archive_stays_inside(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, ".."
        archive.addfile(link)
        member = tarfile.TarInfo("way/neighbour.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    inputs.lay([GivenFile(tar, "x.tar")])
    assert laid_there(folder) == {"way/neighbour.txt": b"evil"}
    assert (folder.parent / "neighbour.txt").read_text() == "mine"


def test_what_an_archive_says_of_modes_does_not_count(inputs: InputFolder, tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        member = tarfile.TarInfo("a")
        member.mode, member.uid = 0o6777, 12345
        archive.addfile(member)
    status = inputs.lay([GivenFile(tar, "x.tar")])["a"].stat()
    assert status.st_mode & 0o7111 == 0
    assert status.st_uid == os.getuid()


@pytest.mark.parametrize(("name", "pack"), PACKED)
def test_an_archive_that_unpacks_to_too_much_is_refused(
    inputs: InputFolder, folder: Path, tmp_path: Path, name: str, pack: Pack
) -> None:
    half = bytes(LIMIT // 2)
    fits = {"a": half, "b": half}
    found = problem(inputs, packed(tmp_path, name, pack, {**fits, "c": b"!"}))
    assert found.code == "archive_too_big"
    assert sum(map(len, laid_there(folder).values())) <= LIMIT
    inputs.clear()
    assert inputs.lay([packed(tmp_path, name, pack, fits)]).keys() == {"a", "b"}


@pytest.mark.parametrize(("name", "pack"), PACKED)
def test_an_archive_of_too_many_files_is_refused(
    inputs: InputFolder,
    tmp_path: Path,
    name: str,
    pack: Pack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "MAX_ARCHIVE_FILES", 20)
    many = {f"{number}.txt": b"" for number in range(21)}
    assert problem(inputs, packed(tmp_path, name, pack, many)).code == "archive_too_big"
    inputs.clear()
    del many["0.txt"]
    assert len(inputs.lay([packed(tmp_path, name, pack, many)])) == 20


def test_the_most_files_of_an_archive_are_far_from_its_limit_of_headers(
    inputs: InputFolder, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar.gz"
    many = {f"{'long folder/' * 20}{number}.txt": b"" for number in range(files.MAX_ARCHIVE_FILES)}
    pack_tar(path, many)
    assert inputs.lay([GivenFile(path, "x.tar.gz")]).keys() == many.keys()


def header_bomb() -> bytes:
    """A tar whose one header claims, and has, 64 MB of names."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 64_000_000
    return header.tobuf(tarfile.USTAR_FORMAT) + bytes(64_000_000)


def entry_bomb() -> bytes:
    """A tar of 125000 folders."""
    member = tarfile.TarInfo("folder")
    member.type = tarfile.DIRTYPE
    return member.tobuf(tarfile.USTAR_FORMAT) * 125_000


def skipped_bomb() -> bytes:
    """A tar whose first member is of no known kind, and 64 MB long."""
    member = tarfile.TarInfo("odd")
    member.type, member.size = b"Z", 64_000_000
    return member.tobuf(tarfile.USTAR_FORMAT) + bytes(64_000_000)


@pytest.mark.parametrize("bomb", [header_bomb, entry_bomb, skipped_bomb])
def test_a_tar_of_nothing_but_headers_is_not_read_to_its_end(
    inputs: InputFolder, folder: Path, tmp_path: Path, bomb: Callable[[], bytes]
) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bomb(), 1))
    assert path.stat().st_size < 1_000_000
    found = problem(inputs, GivenFile(path, "x.tar.gz"))
    assert found.code == "bad_archive"
    assert laid_there(folder) == {}


def lying_zip(tmp_path: Path, content: bytes, told: int) -> GivenFile:
    """A zip whose index says `told` bytes for its member."""
    path = tmp_path / "x.zip"
    pack_zip(path, {"a": content})
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    for offset in (22, central + 24):
        raw[offset : offset + 4] = told.to_bytes(4, "little")
    path.write_bytes(raw)
    return GivenFile(path, "x.zip")


def test_a_zip_that_lies_about_a_size_does_not_fill_the_disk(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    found = problem(inputs, lying_zip(tmp_path, bytes(50 * LIMIT), 10))
    assert found.code == "bad_archive"
    assert len(laid_there(folder).get("a", b"")) <= 10


def test_a_zip_is_refused_for_the_size_that_it_tells(inputs: InputFolder, tmp_path: Path) -> None:
    assert problem(inputs, lying_zip(tmp_path, b"x", LIMIT + 1)).code == "archive_too_big"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_an_archive_with_one_name_twice_is_refused(
    inputs: InputFolder, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name == "x.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", b"1")
            archive.writestr("a", b"2")
    else:
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("a"))
            tar.addfile(tarfile.TarInfo("./a"))
    assert problem(inputs, GivenFile(path, name)).code == "same_name"


@pytest.mark.parametrize(("name", "pack"), PACKED)
@pytest.mark.parametrize("members", [("a", "a/b"), ("x" * 256,)])
def test_names_that_the_disk_cannot_hold_are_the_archive_s_fault(
    inputs: InputFolder, folder: Path, name: str, pack: Pack, members: tuple[str, ...]
) -> None:
    uploads = folder.parent.parent
    found = problem(inputs, packed(uploads, name, pack, dict.fromkeys(members, b"")))
    assert found.code == "bad_archive"
    assert str(folder) not in str(found)


def broken_archives() -> Iterator[tuple[str, bytes]]:
    """Archives that made Python 3.12 raise each something else."""
    yield "nothing.zip", b""
    yield "nothing.tar", b""
    yield "text.zip", b"no archive at all"
    yield "text.tar", b"no archive at all" * 100
    yield "text.tgz", b"no archive at all"
    yield "cut.tgz", gzip.compress(bytes(10_000))[:20]
    yield "not-deflated.tgz", gzip.compress(b"x")[:10] + b"\xff" * 50
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            archive.writestr("é", b"hello" * 100)
        whole = bytearray(buffer.getvalue())
        central = whole.index(b"PK\x01\x02")
        content = bytearray(whole)
        begin = 41 if kind == zipfile.ZIP_LZMA else 32  # behind its own header
        content[begin:central] = b"\xff" * (central - begin)
        yield f"content-{kind}.zip", bytes(content)
        yield f"cut-{kind}.zip", bytes(whole[: central - 3])
        name = bytearray(whole)
        name[central + 46 : central + 48] = b"\xff\xff"
        yield f"name-{kind}.zip", bytes(name)
        encrypted = bytearray(whole)
        encrypted[central + 8] |= 1
        encrypted[6] |= 1
        yield f"encrypted-{kind}.zip", bytes(encrypted)
        unknown = bytearray(whole)
        unknown[central + 10] = 77
        unknown[8] = 77
        yield f"unknown-{kind}.zip", bytes(unknown)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("x")
        member.pax_headers = {"path": "a\0b.png"}
        tar.addfile(member)
    yield "nul.tar", buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"), [pytest.param(*archive, id=archive[0]) for archive in broken_archives()]
)
def test_a_broken_archive_is_the_caller_s_fault(
    inputs: InputFolder, tmp_path: Path, name: str, content: bytes
) -> None:
    found = problem(inputs, made(tmp_path, name, content))
    assert (found.code, found.input) == ("bad_archive", f"file {name}")
    assert "cannot be unpacked: " in found.what
    assert not re.search(r": \.$|\.\.$", found.what)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([("x.zip", pack_zip), ("x.tar", pack_tar), ("x.tgz", pack_tar)]), st.data())
def test_a_damaged_archive_gives_its_files_or_an_error_of_ours(
    inputs: InputFolder, tmp_path: Path, kind: tuple[str, Pack], data: st.DataObject
) -> None:
    inputs.clear()
    file = packed(tmp_path, *kind, {"a/b.txt": b"hello" * 50, "c.png": bytes(range(256))})
    raw = bytearray(file.path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    file.path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with suppress(InvalidInput):
        assert all(path.is_file() for path in inputs.lay([file]).values())


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """No file may get longer than this."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(("name", "pack"), [*PACKED, ("plain.bin", None)])
def test_a_full_disk_is_not_the_caller_s_fault(
    inputs: InputFolder, folder: Path, tmp_path: Path, name: str, pack: Pack | None
) -> None:
    content = os.urandom(20_000)
    file = packed(tmp_path, name, pack, {"a": content}) if pack else made(tmp_path, name, content)
    with full_disk(9_000), pytest.raises(MachineError, match="cannot be stored: File too large"):
        inputs.lay([file])
    inputs.clear()
    assert list(folder.iterdir()) == []


# Staging


def test_a_staged_name_comes_from_the_content(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    laid = inputs.lay([made(tmp_path, "Fox.PNG", b"fox")])
    name = inputs.stage([need("Fox.PNG")], laid, Event())["1", "image"]
    assert re.fullmatch(r"Fox-[0-9a-f]{16}\.png", name)
    assert (folder / name).read_bytes() == b"fox"

    inputs.clear()
    laid = inputs.lay([made(tmp_path, "Fox.PNG", b"another")])
    assert inputs.stage([need("Fox.PNG")], laid, Event())["1", "image"] != name

    inputs.clear()
    laid = inputs.lay([made(tmp_path, "Fox.PNG", b"fox")])
    assert inputs.stage([need("Fox.PNG")], laid, Event())["1", "image"] == name


def test_one_file_for_two_inputs_is_staged_once(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    laid = inputs.lay([made(tmp_path, "a.png", b"a")])
    staged = inputs.stage([need("a.png", "1"), need("a.png", "2")], laid, Event())
    assert staged["1", "image"] == staged["2", "image"]
    assert len(laid_there(folder)) == 2


def test_a_file_for_3d_nodes_goes_into_their_folder(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    laid = inputs.lay([made(tmp_path, "cube.glb", b"cube"), made(tmp_path, "b.glb", b"b")])
    needs = [need("cube.glb", subfolder="3d"), need("b.glb", "2", subfolder="3d")]
    staged = inputs.stage(needs, laid, Event())
    assert staged["1", "image"].startswith("3d/cube-")
    assert (folder / staged["1", "image"]).read_bytes() == b"cube"
    assert (folder / staged["2", "image"]).read_bytes() == b"b"


def test_a_file_called_like_that_folder_is_refused(inputs: InputFolder, tmp_path: Path) -> None:
    laid = inputs.lay([made(tmp_path, "3d", b"cube")])
    with pytest.raises(InvalidInput, match="belongs to a folder"):
        inputs.stage([need("3d", subfolder="3d")], laid, Event())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("film.m3u8", b"anything"),
        ("FILM.Pls", b"anything"),
        ("film.mp4", b"#EXTM3U\n#EXTINF:1,\n../neighbour.txt\n"),
        ("film.mp4", b"\xef\xbb\xbf\n  ffconcat version 1.0\nfile ../neighbour.txt\n"),
        ("sound.wav", b"[Playlist]\nFile1=../neighbour.txt\n"),
    ],
)
def test_a_list_of_other_files_is_refused(
    inputs: InputFolder, folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    laid = inputs.lay([made(tmp_path, name, content)])
    with pytest.raises(InvalidInput, match="It is a list of other files") as caught:
        inputs.stage([need(name)], laid, Event())
    (problem,) = caught.value.problems
    assert (problem.code, problem.input) == ("playlist", f"file {name}")
    assert set(folder.iterdir()) == set(laid.values())


@pytest.mark.parametrize(
    "name", ["x.png [output]", "a/b/[temp].png", "ü" * 99 + ".png", "🦊.webp", "noending", ".png"]
)
def test_staged_names_mean_nothing_to_comfyui(
    inputs: InputFolder, folder: Path, tmp_path: Path, name: str
) -> None:
    laid = inputs.lay([made(tmp_path, name, b"a")])
    (source,) = laid
    staged = inputs.stage([need(source)], laid, Event())["1", "image"]
    assert re.fullmatch(r"[\w. -]{17,100}", staged, re.ASCII)
    assert (folder / staged).read_bytes() == b"a"


def test_the_same_url_is_fetched_once(
    inputs: InputFolder, folder: Path, server: FileServer
) -> None:
    url = server.serve("fox.png", b"fox") + "?size=1"
    needs = [need(url, "1", is_url=True), need(url, "2", is_url=True)]
    staged = inputs.stage(needs, {}, Event())
    assert len(server.asked) == 1
    assert staged["1", "image"] == staged["2", "image"]
    assert re.fullmatch(r"fox-[0-9a-f]{16}\.png", staged["1", "image"])
    assert (folder / staged["1", "image"]).read_bytes() == b"fox"


def test_different_files_of_one_name_keep_apart(
    inputs: InputFolder, folder: Path, tmp_path: Path, server: FileServer
) -> None:
    urls = [server.serve("a/fox.png", b"first"), server.serve("b/fox.png", b"second")]
    laid = inputs.lay([made(tmp_path, "fox.png", b"third")])
    needs = [need(url, str(number), is_url=True) for number, url in enumerate(urls)]
    staged = inputs.stage([*needs, need("fox.png", "2")], laid, Event())
    assert [(folder / staged[n, "image"]).read_bytes() for n in "012"] == [
        b"first",
        b"second",
        b"third",
    ]


def test_a_data_uri_is_staged(inputs: InputFolder, folder: Path) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(b'fox').decode()}"
    name = inputs.stage([need(uri, is_url=True)], {}, Event())["1", "image"]
    assert re.fullmatch(r"file-[0-9a-f]{16}\.png", name)
    assert (folder / name).read_bytes() == b"fox"


@pytest.mark.parametrize("how", [{}, {"length": False}, {"chunked": True}])
def test_a_fetched_file_that_is_too_big_is_the_caller_s_fault(
    inputs: InputFolder, server: FileServer, how: dict[str, bool]
) -> None:
    url = server.serve("big.png", bytes(LIMIT + 1), **how)
    with pytest.raises(InvalidInput) as caught:
        inputs.stage([need(url, "7", is_url=True)], {}, Event())
    (found,) = caught.value.problems
    assert (found.code, found.node_id, found.input) == ("file_too_large", "7", "image")


@pytest.mark.parametrize("url", ["http://", "https://[::1", "data:image/png;base64,???", "data:x"])
def test_a_url_that_cannot_be_used_is_the_caller_s_fault_and_has_a_place(
    inputs: InputFolder, url: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        inputs.stage([need(url, "7", is_url=True)], {}, Event())
    (found,) = caught.value.problems
    assert (found.code, found.node_id, found.input) == ("bad_url", "7", "image")
    assert "???" not in str(found)


def test_a_failed_fetch_leaves_nothing_that_clear_does_not_take(
    inputs: InputFolder, folder: Path, server: FileServer
) -> None:
    good, bad = server.serve("good.png", b"good"), server.url("missing.png")
    with pytest.raises(DownloadFailed, match=r"^node 2, input image: .* no such file"):
        inputs.stage([need(good, is_url=True), need(bad, "2", is_url=True)], {}, Event())
    assert not [name for name in laid_there(folder) if name.endswith("part")]
    inputs.clear()
    assert list(folder.iterdir()) == []


def test_a_web_page_is_no_picture(inputs: InputFolder, server: FileServer) -> None:
    url = server.serve("a.png", b"<html>log in</html>", headers={"Content-Type": "text/html"})
    with pytest.raises(DownloadFailed, match="web page"):
        inputs.stage([need(url, is_url=True)], {}, Event())


def test_cancelling_ends_a_fetch(inputs: InputFolder, server: FileServer) -> None:
    cancelled = Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        inputs.stage([need(server.serve("a.png", b"a"), is_url=True)], {}, cancelled)


def test_an_archive_cannot_stand_in_the_way_of_a_fetch(
    inputs: InputFolder, folder: Path, tmp_path: Path, server: FileServer
) -> None:
    laid = inputs.lay([packed(tmp_path, "x.zip", pack_zip, {".fetched-0/part": b"in the way"})])
    url = server.serve("a.png", b"a")
    name = inputs.stage([need(url, is_url=True)], laid, Event())["1", "image"]
    assert (folder / name).read_bytes() == b"a"


def test_a_full_disk_while_staging_is_not_the_caller_s_fault(inputs: InputFolder) -> None:
    uri = f"data:,{'x' * 20_000}"
    with full_disk(9_000), pytest.raises(MachineError, match="File too large"):
        inputs.stage([need(uri, is_url=True)], {}, Event())


# Pieces


def test_clear_takes_everything_and_follows_no_link(
    inputs: InputFolder, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    (folder / "link").symlink_to(outside)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c.txt").write_text("c")
    inputs.clear()
    assert list(folder.iterdir()) == []
    assert (outside / "kept.txt").read_text() == "kept"


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    empty(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@given(st.text(max_size=400))
def test_safe_names_are_one_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert safe == Path(safe).name
    assert not safe.startswith((".", " "))
    assert 0 < len(safe.encode()) <= files.MAX_NAME_BYTES
    assert not re.search(r"[\x00-\x1f\x7f/\\]", safe)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("fox.png", "fox.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\fox.png", "fox.png"),
        ("..", "file"),
        ("", "file"),
        ("/", "file"),
        (".hidden.png", "hidden.png"),
        ("ü" * 300 + ".png", "ü" * 98 + ".png"),
        ("a" * 300 + ".png", "a" * 196 + ".png"),
        ("a." + "b" * 300, "a." + "b" * 198),
        ("a\udcff.png", "a?.png"),
    ],
)
def test_safe_names_keep_what_they_can(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_linking_copies_where_it_cannot_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    link_or_copy(Path("/proc/self/comm"), tmp_path / "c")
    assert (tmp_path / "c").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    link_or_copy(tmp_path / "link", tmp_path / "d")
    assert not (tmp_path / "d").is_symlink()
