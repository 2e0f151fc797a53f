"""`custom_nodes` made to match its lock, with people's work left alone."""

import json
import shutil
from pathlib import Path

import pytest
from fakes.git_repositories import Repository, pack_files, write_files
from pack_projects import Project, make_project

from comfy_runner.comfyui.bytecode import is_compiled
from comfy_runner.errors import HashMismatch, InvalidInput, MachineError
from comfy_runner.packs import checking


@pytest.fixture
def fox(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "fox")
    made.commit(pack_files("Fox", more={"requirements.txt": "tiny<2\n"}))
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fox: Repository) -> Project:
    """A project with the pack `fox`, locked at its branch."""
    made = make_project(tmp_path, monkeypatch)
    made.add(fox, "main")
    return made


def test_what_is_locked_is_fetched_where_it_is_missing(project: Project) -> None:
    shutil.rmtree(project.nodes / "fox")
    done = project.install(frozen=True)
    assert (done.placed, done.kept) == (("fox",), ())
    assert project.folder.state(project.locked("fox")).standing == "same"
    done = project.install(frozen=True)
    assert (done.placed, done.kept) == ((), ("fox",))


def test_an_older_folder_follows_the_lock(project: Project, fox: Repository) -> None:
    fox.commit(pack_files("Fox", "Bear", more={"settings.json": "{}"}))
    project.lock(upgrade=True)
    write_files(project.nodes / "fox", {"mine/notes.txt": "mine", "settings.json": "mine"})
    assert project.install().placed == ("fox",)
    state = project.folder.state(project.locked("fox"))
    assert (state.standing, state.edits.added) == ("same", ("mine/notes.txt",))
    assert (project.nodes / "fox" / "mine" / "notes.txt").read_text() == "mine"
    assert (project.nodes / "fox" / "settings.json").read_text() == "{}"


def test_packs_come_with_bytecode(project: Project, fox: Repository) -> None:
    init = project.nodes / "fox" / "__init__.py"
    assert is_compiled(init)
    fox.commit(pack_files("Fox", "Bear"))
    project.lock(upgrade=True)
    project.install()
    assert "Bear" in init.read_text()
    assert is_compiled(init)
    shutil.rmtree(project.nodes / "fox" / "__pycache__")
    assert project.install(frozen=True).kept == ("fox",)
    assert is_compiled(init)


def test_a_pack_without_room_for_bytecode_is_kept_all_the_same(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(project.nodes / "fox" / "__pycache__")
    (project.nodes / "fox" / "__pycache__").touch()
    assert project.install().kept == ("fox",)
    assert "not all bytecode could be written in" in caplog.text


def test_a_folder_with_edits_is_left_alone(project: Project) -> None:
    write_files(project.nodes / "fox", {"__init__.py": "mine = 1\n"})
    with pytest.raises(InvalidInput, match=r"changed since it was installed: __init__\.py"):
        project.install()
    assert (project.nodes / "fox" / "__init__.py").read_text() == "mine = 1\n"
    assert project.install(overwrite=True).placed == ("fox",)
    assert project.folder.state(project.locked("fox")).standing == "same"


def test_every_folder_in_the_way_is_told(project: Project, tmp_path: Path) -> None:
    bear = Repository(tmp_path / "bear")
    bear.commit(pack_files("Bear"))
    project.add(bear)
    shutil.rmtree(project.nodes / "bear")
    write_files(project.nodes / "bear", pack_files("Other"))
    write_files(project.nodes / "fox", {"__init__.py": "mine = 1\n"})
    with pytest.raises(InvalidInput) as caught:
        project.install()
    assert [problem.input for problem in caught.value.problems] == ["pack bear", "pack fox"]


def test_packs_that_are_not_locked_are_told_and_stay(project: Project) -> None:
    write_files(project.nodes / "stranger", pack_files("Stranger"))
    write_files(project.nodes, {"single.py": "", "off.disabled/__init__.py": "", ".x/a": ""})
    assert project.install().strangers == ("single.py", "stranger")
    assert (project.nodes / "stranger" / "__init__.py").is_file()


def test_what_is_not_what_was_locked_is_not_installed(project: Project) -> None:
    raw = json.loads(project.folder.lock_file.read_text())
    raw["packs"][0]["digest"] = "0" * 64
    project.folder.lock_file.write_text(json.dumps(raw))
    shutil.rmtree(project.nodes / "fox")
    with pytest.raises(HashMismatch, match="comfy-runner nodes lock fox"):
        project.install()
    assert not (project.nodes / "fox").exists()


def test_a_clone_made_by_hand_counts_where_it_is_the_locked_one(
    project: Project, fox: Repository
) -> None:
    shutil.rmtree(project.nodes / "fox")
    fox.git("clone", "--quiet", fox.url, str(project.nodes / "fox"))
    assert project.folder.state(project.locked("fox")).standing == "same"
    assert project.install(frozen=True).kept == ("fox",)
    assert (project.nodes / "fox" / ".git").is_dir()


def test_frozen_wants_both_locks_to_say_everything(project: Project) -> None:
    raw = json.loads(project.folder.lock_file.read_text())
    del raw["packs"][0]["digest"]
    raw["packs"][0]["requirements"].append("numpy")
    text = json.dumps(raw)
    project.folder.lock_file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        project.install(frozen=True)
    assert [problem.input for problem in caught.value.problems] == [
        *("pack fox", "requirements.lock")
    ]
    assert project.folder.lock_file.read_text() == text
    shutil.rmtree(project.nodes / "fox")
    project.install()
    assert project.locked("fox").digest
    assert project.install(frozen=True).kept == ("fox",)


def test_packages_are_resolved_anew_when_ours_change(project: Project) -> None:
    with (project.path / "requirements.txt").open("a") as file:
        file.write("six==1.0\n")
    with pytest.raises(InvalidInput, match="of what the packs ask for now"):
        project.install(frozen=True)
    project.install()
    project.install(frozen=True)


def test_a_pack_in_place_that_changed_is_told_and_frozen_refuses_it(project: Project) -> None:
    own = write_files(project.nodes / "own", pack_files("Own"))
    project.add(str(own))
    write_files(own, pack_files("Own", "More"))
    assert project.install().notes == (
        "own has changed since it was locked. Run comfy-runner nodes lock, and look at what"
        " changes.",
    )
    with pytest.raises(InvalidInput, match="Its folder has changed"):
        project.install(frozen=True)
    shutil.rmtree(own)
    with pytest.raises(InvalidInput, match="its only source"):
        project.install()


def test_an_entry_written_by_hand_gets_what_the_pack_asks_for(
    project: Project, fox: Repository
) -> None:
    entry = {"name": "fox", "source": {"git": fox.url, "commit": fox.head}}
    project.folder.lock_file.write_text(json.dumps({"version": 1, "packs": [entry]}))
    shutil.rmtree(project.nodes / "fox")
    project.install()
    assert project.locked("fox").requirements == ("tiny<2",)
    assert project.locked("fox").classes == ("Fox",)
    assert "tiny==1.0" in project.folder.read_requirements()


def test_a_script_that_failed_is_run_again(project: Project, tmp_path: Path) -> None:
    script = "import os\nopen('made.txt', 'w')\nraise SystemExit(not os.path.exists('../ready'))\n"
    bear = Repository(tmp_path / "bear")
    bear.commit(pack_files("Bear", more={"install.py": script}))
    with pytest.raises(MachineError, match=r"install\.py failed"):
        project.add(bear, install_script=True)
    with pytest.raises(MachineError, match=r"install\.py failed"):
        project.install()
    (found,) = checking.check(project.config, ["bear"], limit=None, tell=project.told.append)
    assert "Its install.py has not run to its end" in found.faults[0]
    write_files(project.nodes, {"ready": ""})
    assert project.install().kept == ("bear", "fox")
    (found,) = checking.check(project.config, ["bear"], limit=None, tell=project.told.append)
    assert found.faults == ()
    (project.nodes / "bear" / "made.txt").unlink()
    project.install()
    assert not (project.nodes / "bear" / "made.txt").exists()


def test_a_folder_with_links_is_replaced_only_if_asked(project: Project, tmp_path: Path) -> None:
    models = write_files(tmp_path / "models", {"a.bin": "x"})
    (project.nodes / "fox" / "models").symlink_to(models)
    with pytest.raises(InvalidInput, match="holds links or odd names: models") as caught:
        project.install()
    assert caught.value.problems[0].input == "pack fox"
    assert caught.value.problems[0].hint.endswith("replaced with --overwrite.")
    assert project.install(overwrite=True).placed == ("fox",)
    assert (models / "a.bin").is_file()
    assert project.folder.state(project.locked("fox")).standing == "same"
