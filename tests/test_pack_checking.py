"""What `nodes check` finds of each pack, without loading any."""

import shutil
from pathlib import Path

import pytest
from fakes.git_repositories import Repository, pack_files, write_files
from pack_projects import Project, make_project

from comfy_runner.packs import checking
from comfy_runner.packs.checking import Checked


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the packs `bear` and `fox`, and `own` in place."""
    made = make_project(tmp_path, monkeypatch)
    for name in ("fox", "bear"):
        Repository(tmp_path / name).commit(pack_files(name, f"{name} 2", "Shared"))
        made.add(f"file://{tmp_path / name}")
    made.add(str(write_files(made.nodes / "own", pack_files("Own"))))
    return made


def checked(project: Project, *names: str) -> dict[str, Checked]:
    found = checking.check(project.config, names, limit=None, tell=project.told.append)
    return {each.name: each for each in found}


def test_packs_as_locked_have_no_fault(project: Project) -> None:
    found = checked(project)
    assert list(found) == ["bear", "fox", "own"]
    assert [each.faults for each in found.values()] == [(), (), ()]
    assert found["fox"].notes == ("bear has classes of the same names: Shared.",)
    assert list(checked(project, "OWN")) == ["own"]


def test_folders_that_are_not_as_locked_are_told(project: Project) -> None:
    write_files(project.nodes / "fox", {"__init__.py": "", "settings.ini": ""})
    shutil.rmtree(project.nodes / "bear")
    write_files(project.nodes / "own", {"more.py": ""})
    found = checked(project)
    assert found["fox"].faults == (
        "It was changed: __init__.py. comfy-runner nodes install --overwrite undoes that.",
    )
    assert found["fox"].notes[0] == "Files were added to it: settings.ini."
    assert found["bear"].faults == ("It is not installed. Run comfy-runner nodes install.",)
    assert found["own"].faults == (
        "It has changed since it was locked. Run comfy-runner nodes lock.",
    )


def test_a_folder_that_is_another_is_told(project: Project) -> None:
    shutil.rmtree(project.nodes / "bear")
    write_files(project.nodes / "bear", pack_files("Other"))
    (project.nodes / "fox" / "link").symlink_to("/etc")
    found = checked(project)
    assert found["bear"].faults[0].startswith("Its folder is not what the lock names.")
    assert "holds links or odd names: link" in found["fox"].faults[0]


def test_what_is_not_installed_is_told(project: Project, tmp_path: Path) -> None:
    cat = Repository(tmp_path / "cat")
    cat.commit(pack_files("Cat", more={"requirements.txt": "tiny\nnumpy\n"}))
    project.add(cat)
    assert checked(project, "cat")["cat"].faults == (
        "tiny is not installed. Run comfy-runner nodes install.",
    )
