"""A pack's files: their digest, and what was changed."""

import os
import subprocess
from pathlib import Path

import pytest
from fakes.git_repositories import Repository, write_files

from comfy_runner.comfyui.source import tree_digest
from comfy_runner.errors import InvalidInput
from comfy_runner.packs import trees
from comfy_runner.packs.trees import Edits

FILES = {"__init__.py": "X = 1\n", "a/b c.txt": "b", "Über.json": "{}", "a/.hidden": "h"}


def test_the_digest_is_that_of_the_sha256_lines(tmp_path: Path) -> None:
    """The same as of ComfyUI's own tree, so that a shell can check it."""
    tree = write_files(tmp_path / "tree", FILES)
    found = trees.contents(tree)
    assert set(found) == set(FILES)
    assert trees.digest(found) == tree_digest(tree)
    shell = "find . -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    told = subprocess.run(["sh", "-c", shell], cwd=tree, capture_output=True, check=True)
    assert told.stdout.split()[0].decode() == trees.digest(found)


def test_git_and_bytecode_do_not_count(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "tree")
    repository.commit(FILES)
    clean = trees.contents(write_files(tmp_path / "clean", FILES))
    more = {"a/__pycache__/b.cpython-312.pyc": "x", "c.pyc": "x", "sub/.git": "gitdir: ..\n"}
    write_files(repository.folder, more)
    assert trees.contents(repository.folder) == clean
    trees.strip(repository.folder)
    left = {path.relative_to(repository.folder).as_posix() for path in repository.folder.rglob("*")}
    assert left == {"a", "sub", *FILES}


@pytest.mark.parametrize("name", ["link", "a/link", "a\\b", "a\nb"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, name: str) -> None:
    tree = write_files(tmp_path / "tree", FILES)
    if "link" in name:
        (tree / name).symlink_to("/etc")
    else:
        (tree / name).write_text("x")
    with pytest.raises(InvalidInput, match="holds links or odd names"):
        trees.contents(tree)


def test_edits_are_told_from_what_was_recorded(tmp_path: Path) -> None:
    tree = write_files(tmp_path / "tree", FILES)
    assert trees.recorded(tree) is None
    digest = trees.record(tree)
    ours = trees.recorded(tree)
    assert ours == trees.contents(tree)
    assert trees.digest(ours) == digest
    assert trees.edits(ours, trees.contents(tree)) == Edits()
    (tree / "Über.json").unlink()
    write_files(tree, {"__init__.py": "X = 2\n", "settings.json": "{}"})
    assert trees.edits(ours, trees.contents(tree)) == Edits(
        ("__init__.py", "Über.json"), ("settings.json",)
    )


@pytest.mark.parametrize("text", ["", "[]", '{"files": []}', '{"files": {"a": 1}}'])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / trees.RECORD).write_text(text)
    assert trees.recorded(tmp_path) is None


def test_a_copy_has_the_files_and_nothing_else(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "tree")
    repository.commit(FILES)
    trees.copy(repository.folder, tmp_path / "copy")
    assert not (tmp_path / "copy" / ".git").exists()
    assert trees.contents(tmp_path / "copy") == trees.contents(repository.folder)


def test_files_in_git_lfs_are_found(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    tree = write_files(tmp_path, {"a.bin": pointer, "b.bin": "b", "c.bin": pointer + "x" * 2000})
    assert trees.lfs_pointers(tree, trees.contents(tree)) == ("a.bin",)


def test_names_that_are_no_utf8_can_be_noted_and_printed(tmp_path: Path) -> None:
    """As many packs from China have them, in GBK."""
    name = os.fsdecode(b"caf\xe9.txt")
    tree = write_files(tmp_path, {"__init__.py": "", name: "x"})
    digest = trees.record(tree)
    noted = trees.recorded(tree)
    assert noted == trees.contents(tree)
    assert trees.digest(noted) == digest
    assert trees.listed((name, "a\x1b[2Jb")) == "caf?.txt, a?[2Jb"


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        trees.contents(tmp_path / "none")


def test_a_folder_in_the_place_of_our_record_is_refused(tmp_path: Path) -> None:
    tree = write_files(tmp_path, {"__init__.py": "", f"{trees.RECORD}/more.py": ""})
    with pytest.raises(InvalidInput, match=r"odd names: \.comfy_runner\.json"):
        trees.contents(tree)
