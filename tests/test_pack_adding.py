"""Packs added to the lock, and entries renewed: from git, archives, the registry and folders."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from fakes.file_server import FileServer
from fakes.git_repositories import Repository, pack_files, tarball, write_files
from pack_projects import Project, make_project

from comfy_runner.errors import InvalidInput
from comfy_runner.packs import requirements, trees
from comfy_runner.packs.lock import GitSource, LocalSource, RegistrySource


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_project(tmp_path, monkeypatch)


@pytest.fixture
def fox(tmp_path: Path) -> Repository:
    """The repository of a pack."""
    made = Repository(tmp_path / "fox")
    made.commit(pack_files("Fox", more={"requirements.txt": "numpy>=2\ntiny<2\n"}))
    return made


def test_a_pack_is_cloned_locked_and_put_in_place(project: Project, fox: Repository) -> None:
    project.add(fox, "main")
    entry = project.locked("fox")
    assert entry.source == GitSource(fox.url, fox.head, "main")
    assert (entry.classes, entry.imported) == (("Fox",), False)
    assert entry.requirements == ("numpy>=2", "tiny<2")
    assert entry.digest == trees.digest(trees.contents(project.nodes / "fox"))
    assert not (project.nodes / "fox" / ".git").exists()
    assert project.names() == {"fox", "custom_nodes.lock.json", "requirements.lock"}
    assert requirements.pins(project.folder.read_requirements()) == {"tiny": "1.0"}


def test_a_pack_is_added_again_at_another_place(project: Project, fox: Repository) -> None:
    first = fox.head
    project.add(fox, leave_out=("tiny",))
    second = fox.commit(pack_files("Fox", "Bear"))
    project.add(fox, first)
    assert project.locked("fox").source == GitSource(fox.url, first)
    project.add(fox)
    entry = project.locked("fox")
    assert entry.source == GitSource(fox.url, second)
    assert entry.classes == ("Bear", "Fox")
    assert entry.leave_out == ("tiny",)


def test_nothing_changes_where_requirements_do_not_go_together(
    project: Project, fox: Repository, tmp_path: Path
) -> None:
    project.add(fox)
    before = {path: path.read_bytes() for path in project.nodes.rglob("*") if path.is_file()}
    bear = Repository(tmp_path / "bear")
    bear.commit(pack_files("Bear", more={"requirements.txt": "tiny==2.0\n"}))
    with pytest.raises(InvalidInput, match=r"bear asks for tiny==2\.0; fox asks for tiny<2"):
        project.add(bear)
    bear.commit(pack_files("Bear", more={"requirements.txt": "torch==1.0\n"}))
    with pytest.raises(InvalidInput, match="torch is never moved for a pack"):
        project.add(bear)
    after = {path: path.read_bytes() for path in project.nodes.rglob("*") if path.is_file()}
    assert after == before
    assert project.names() == {"fox", "custom_nodes.lock.json", "requirements.lock"}


def test_a_requirement_can_be_left_out(project: Project, tmp_path: Path) -> None:
    bear = Repository(tmp_path / "bear")
    bear.commit(pack_files("Bear", more={"requirements.txt": "torch==1.0\ntiny\n"}))
    project.add(bear, leave_out=("torch",))
    assert project.locked("bear").requirements == ("torch==1.0", "tiny")
    assert requirements.pins(project.folder.read_requirements()) == {"tiny": "2.0"}


def test_the_packs_script_is_run_only_where_the_lock_says_so(
    project: Project, tmp_path: Path
) -> None:
    script = "from pathlib import Path\nPath('made.txt').write_text('x')\n"
    bear = Repository(tmp_path / "bear")
    bear.commit(pack_files("Bear", more={"install.py": script}))
    entered = project.add(bear)
    assert "install.py, which is not run" in entered.notes[0]
    assert not (project.nodes / "bear" / "made.txt").exists()
    assert project.add(bear, install_script=True).notes == ()
    assert (project.nodes / "bear" / "made.txt").is_file()
    assert project.locked("bear").install_script
    assert project.folder.state(project.locked("bear")).standing == "same"


def test_a_pack_of_the_registry_is_pinned_by_its_archive(
    project: Project, server: FileServer
) -> None:
    body = tarball(pack_files("Fox"))
    url = server.serve("cdn/fox.tar.gz", body)
    answer = {"version": "1.2.0", "downloadUrl": url}
    server.serve("nodes/comfyui-fox/install", json.dumps(answer).encode())
    project.endpoint = server.url("")
    project.add("comfyui-fox")
    sha256 = hashlib.sha256(body).hexdigest()
    assert project.locked("comfyui-fox").source == RegistrySource(
        "comfyui-fox", "1.2.0", url, sha256
    )
    newer = tarball(pack_files("Fox", "Bear"))
    answer = {"version": "1.3.0", "downloadUrl": server.serve("cdn/new.tar.gz", newer)}
    server.serve("nodes/comfyui-fox/install", json.dumps(answer).encode())
    project.lock()
    assert project.locked("comfyui-fox").classes == ("Fox",)
    project.lock(upgrade=True)
    entry = project.locked("comfyui-fox")
    assert entry.classes == ("Bear", "Fox")
    assert isinstance(entry.source, RegistrySource)
    assert entry.source.version == "1.3.0"


def test_a_folder_elsewhere_is_copied_and_one_in_place_stays(
    project: Project, tmp_path: Path
) -> None:
    elsewhere = write_files(tmp_path / "bear", pack_files("Bear"))
    project.add(str(elsewhere))
    assert project.locked("bear").source == LocalSource("../../bear")
    assert trees.contents(project.nodes / "bear") == trees.contents(elsewhere)
    own = write_files(project.nodes / "own", pack_files("Own"))
    project.add(str(own))
    assert project.locked("own").source == LocalSource("own")
    assert not (own / trees.RECORD).exists()
    write_files(own, pack_files("Own", "More"))
    assert project.folder.state(project.locked("own")).standing == "edited"
    project.lock("own")
    assert project.locked("own").classes == ("More", "Own")
    assert project.folder.state(project.locked("own")).standing == "same"


def test_a_folder_of_the_same_name_is_not_replaced_unasked(
    project: Project, fox: Repository
) -> None:
    mine = write_files(project.nodes / "fox", {"__init__.py": "mine = 1\n"})
    with pytest.raises(InvalidInput, match="which is not from here"):
        project.add(fox)
    assert (mine / "__init__.py").read_text() == "mine = 1\n"
    project.add(fox, overwrite=True)
    assert project.folder.state(project.locked("fox")).standing == "same"


def test_lock_follows_a_branch_only_with_upgrade(project: Project, fox: Repository) -> None:
    first = fox.head
    project.add(fox, "main")
    second = fox.commit(pack_files("Fox", "Bear", more={"requirements.txt": "tiny==2.0\n"}))
    assert project.lock().packs == (project.locked("fox"),)
    assert project.locked("fox").source == GitSource(fox.url, first, "main")
    project.lock(upgrade=True)
    entry = project.locked("fox")
    assert entry.source == GitSource(fox.url, second, "main")
    assert entry.classes == ("Bear", "Fox")
    assert requirements.pins(project.folder.read_requirements()) == {"tiny": "2.0"}
    assert project.folder.state(entry).standing == "older"


def test_lock_completes_an_entry_that_was_written_by_hand(
    project: Project, fox: Repository
) -> None:
    entry = {"name": "fox", "source": {"git": fox.url, "commit": fox.head}}
    project.nodes.mkdir()
    project.folder.lock_file.write_text(json.dumps({"version": 1, "packs": [entry]}))
    project.lock()
    assert project.locked("fox").classes == ("Fox",)
    assert project.locked("fox").digest


def test_a_pack_that_is_not_locked_cannot_be_renewed(project: Project, fox: Repository) -> None:
    project.add(fox)
    with pytest.raises(InvalidInput, match="The lock has no pack 'bear'") as caught:
        project.lock("bear")
    assert caught.value.problems[0].hint == "It has fox."


def test_a_clone_with_its_own_history_is_not_replaced_unasked(
    project: Project, fox: Repository
) -> None:
    """Its branches and stashes may be nowhere else."""
    project.add(fox, "main")
    clone = project.nodes / "fox"
    shutil.rmtree(clone)
    fox.git("clone", "--quiet", fox.url, str(clone))
    fox.commit(pack_files("Fox", "Bear"))
    with pytest.raises(InvalidInput, match="Its folder is a git repository"):
        project.add(fox, "main")
    assert (clone / ".git" / "HEAD").is_file()
    project.add(fox, "main", overwrite=True)
    assert not (clone / ".git").exists()


def test_a_pack_that_comes_from_elsewhere_now_is_told(
    project: Project, fox: Repository, tmp_path: Path
) -> None:
    project.add(fox)
    first = fox.head
    assert project.add(fox, first).notes == ()
    other = Repository(tmp_path / "somebody" / "fox")
    other.commit(pack_files("Fox"))
    assert project.add(other).notes == (f"fox came from {fox.url} at {first[:12]} until now.",)


def test_upgrade_tells_what_it_cannot_follow(project: Project, fox: Repository) -> None:
    project.add(fox)
    fox.commit(pack_files("Fox", "Bear"))
    assert project.lock().notes == ()
    (note,) = project.lock(upgrade=True).notes
    assert note.startswith("fox stays at ")
    assert note.endswith("comfy-runner nodes add with --ref.")


def test_a_folder_that_is_no_pack_is_not_copied(project: Project, tmp_path: Path) -> None:
    """Not even looked through: it may be the whole project."""
    (write_files(tmp_path / "all", {"a": ""}) / "link").symlink_to("/etc")
    with pytest.raises(InvalidInput, match="is no pack of nodes"):
        project.add(str(tmp_path / "all"))


def test_what_was_only_added_comes_along_also_where_edits_are_overwritten(
    project: Project, fox: Repository
) -> None:
    project.add(fox)
    write_files(project.nodes / "fox", {"__init__.py": "mine = 1\n", "settings.json": "mine"})
    project.add(fox, overwrite=True)
    assert (project.nodes / "fox" / "settings.json").read_text() == "mine"
    assert project.folder.state(project.locked("fox")).standing == "same"


def test_a_lock_that_could_not_be_read_is_not_written(project: Project, tmp_path: Path) -> None:
    odd = write_files(tmp_path / "a\\b", pack_files("Fox"))
    with pytest.raises(InvalidInput, match="must be a path relative to the lock"):
        project.add(str(odd), name="fox")
    assert project.folder.read().packs == ()
    assert project.names() == set()


def test_a_pack_that_lies_in_place_is_not_replaced_by_another_unasked(
    project: Project, fox: Repository
) -> None:
    """Its folder is its only source."""
    own = write_files(project.nodes / "fox", pack_files("Own"))
    project.add(str(own))
    with pytest.raises(InvalidInput, match="Its folder is the only source of the pack"):
        project.add(fox)
    assert trees.contents(own).keys() == {"__init__.py"}
    assert project.locked("fox").source == LocalSource("fox")
    project.add(fox, overwrite=True)
    assert project.locked("fox").source == GitSource(fox.url, fox.head)
