"""A pack's files, fetched out of archives and folders."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from fakes.file_server import FileServer
from fakes.git_repositories import pack_files, tarball, write_files
from pack_projects import Project, make_project

from comfy_runner.errors import HashMismatch, InvalidInput
from comfy_runner.fetch.archives import BadArchive
from comfy_runner.packs.lock import ArchiveSource


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_project(tmp_path, monkeypatch)


def test_an_archive_is_pinned_when_it_is_fetched_first(
    project: Project, server: FileServer
) -> None:
    body = tarball(pack_files("Fox"), top="fox-1.0")
    url = server.serve("fox.tar.gz", body)
    project.add(url)
    entry = project.locked("fox")
    assert entry.source == ArchiveSource(url, hashlib.sha256(body).hexdigest())
    assert (project.nodes / "fox" / "__init__.py").is_file()
    server.serve("fox.tar.gz", tarball(pack_files("Bear"), top="fox-1.1"))
    with pytest.raises(HashMismatch, match="Nothing of it was unpacked"):
        project.lock()
    assert project.locked("fox") == entry


def test_an_archive_that_leads_out_is_refused(project: Project, server: FileServer) -> None:
    url = server.serve("fox.tar.gz", tarball({"__init__.py": "", "../../out.py": ""}))
    with pytest.raises(BadArchive, match="leads out of the folder"):
        project.add(url)
    assert project.names() == set()


def test_what_has_no_init_is_no_pack(project: Project, server: FileServer) -> None:
    url = server.serve("fox.tar.gz", tarball({"README.md": "", "inner/__init__.py": ""}))
    with pytest.raises(InvalidInput, match=r"has no __init__\.py at its top") as caught:
        project.add(url)
    assert caught.value.problems[0].hint == "Is it one of its folders: inner?"


def test_links_in_an_archive_are_left_out(project: Project, server: FileServer) -> None:
    raw = io.BytesIO(tarball(pack_files("Fox")))
    with tarfile.open(fileobj=raw) as packed:
        members = [(member, packed.extractfile(member)) for member in packed]
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            for member, content in members:
                tar.addfile(member, content)
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    project.add(server.serve("fox.tar.gz", made.getvalue()))
    found = {path.name for path in (project.nodes / "fox").iterdir()}
    assert found == {"__init__.py", "__pycache__", ".comfy_runner.json"}


def test_a_folder_with_links_is_refused(project: Project, tmp_path: Path) -> None:
    elsewhere = write_files(tmp_path / "bear", pack_files("Bear"))
    (elsewhere / "link").symlink_to("/etc")
    with pytest.raises(InvalidInput, match="holds links or odd names: link"):
        project.add(str(elsewhere))
    assert project.names() == set()


def test_a_folder_that_is_gone_is_told(project: Project, tmp_path: Path) -> None:
    elsewhere = write_files(tmp_path / "bear", pack_files("Bear"))
    project.add(str(elsewhere))
    elsewhere.rename(tmp_path / "gone")
    with pytest.raises(InvalidInput, match=r"There is no folder \.\./\.\./bear beside the lock"):
        project.lock()
