"""The folder of packs: claimed by one command at a time, and never left half changed."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.git_repositories import Repository, pack_files, write_files
from filelock import FileLock
from pack_projects import Project, make_project

from comfy_runner.errors import InvalidInput, MachineError
from comfy_runner.packs import trees
from comfy_runner.packs.lock import PackLock


@pytest.fixture
def fox(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "fox")
    made.commit(pack_files("Fox"))
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_project(tmp_path, monkeypatch)


def test_two_commands_do_not_change_the_folder_at_once(project: Project, fox: Repository) -> None:
    project.config.home.mkdir(parents=True)
    with (
        FileLock(project.config.home / "custom_nodes.lock"),
        pytest.raises(MachineError, match="wait for its end"),
    ):
        project.add(fox)


def test_a_killed_command_leaves_the_old_pack(project: Project, fox: Repository) -> None:
    """As after the old folder was moved away, and before the new one came."""
    project.add(fox)
    old = project.folder.staging / ".old" / "fox"
    old.parent.mkdir(parents=True)
    (project.nodes / "fox").rename(old)
    assert project.install().kept == ("fox",)
    assert trees.recorded(project.nodes / "fox") is not None
    assert not project.folder.staging.exists()


def test_a_project_without_a_lock_has_no_packs(project: Project) -> None:
    assert project.folder.read() == PackLock()
    assert project.folder.read_requirements() == ""
    assert project.folder.strangers(PackLock()) == []


def test_a_lock_that_is_no_text_is_told(project: Project) -> None:
    project.nodes.mkdir()
    project.folder.lock_file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"custom_nodes\.lock\.json: It is no text"):
        project.folder.read()


def test_a_folder_that_cannot_be_made_is_told(project: Project, fox: Repository) -> None:
    project.nodes.write_text("a file")
    with pytest.raises(MachineError, match="could not be changed"):
        project.add(fox)


def test_what_stood_there_comes_back_when_its_exchange_fails(
    project: Project, fox: Repository
) -> None:
    """As where the disk does not take the new pack, or somebody types Ctrl-C."""
    project.add(fox)
    old = project.folder.staging / ".old" / "fox"
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(KeyboardInterrupt))
        stack.enter_context(project.folder.claimed())
        old.parent.mkdir(parents=True)
        (project.nodes / "fox").rename(old)
        raise KeyboardInterrupt
    assert project.folder.state(project.locked("fox")).standing == "same"
    assert not project.folder.staging.exists()


def test_whatever_comfyui_loads_unlocked_is_told(project: Project, fox: Repository) -> None:
    """It loads hidden folders as well, and on Linux both of two that differ in letter case."""
    project.add(fox)
    write_files(
        project.nodes, {f"{name}/__init__.py": "" for name in (".hidden", "FOX", "a.DISABLED")}
    )
    write_files(project.nodes, {".git/a": "", "off.disabled/__init__.py": "", ".single.py": ""})
    found = project.folder.strangers(project.folder.read())
    assert found == [".hidden", ".single.py", "FOX", "a.DISABLED"]


def test_a_file_in_the_place_of_a_pack_is_not_removed_unasked(
    project: Project, fox: Repository
) -> None:
    project.nodes.mkdir()
    (project.nodes / "fox").write_text("mine")
    with pytest.raises(InvalidInput, match="which is not from here"):
        project.add(fox)
    assert (project.nodes / "fox").read_text() == "mine"
    project.add(fox, overwrite=True)
    assert project.folder.state(project.locked("fox")).standing == "same"
