"""Installing ComfyUI: from a real sdist by real pip, and from a real git repository."""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from comfy_runner.comfyui import install as installing
from comfy_runner.comfyui.bytecode import is_compiled, modules
from comfy_runner.comfyui.install import install
from comfy_runner.comfyui.source import tree_digest, tree_version
from comfy_runner.config import PROJECT, Config
from comfy_runner.errors import DownloadFailed, HashMismatch, MachineError

TREE = {
    "main.py": "print('hello')\n",
    "comfyui_version.py": '__version__ = "1.2.3"\n',
    "nodes/a node.py": "X = 1\n",
    "nodes/__init__.py": "",
    "nodes.py": "Y = 2\n",
    "Über/read me.txt": "a\n",
}
WRONG = "0" * 64


def write_tree(folder: Path, files: Mapping[str, str] = TREE) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class Project:
    """A project folder whose comfyui.toml names a small archive and a small repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index"
        self.repository = folder / "repository"
        self.index.mkdir(parents=True)
        self.config = Config(
            project=folder, home=folder / "home", comfyui=folder / "home" / "ComfyUI"
        )
        self.lines: list[str] = []
        self.pin = {
            "version": "1.2.3",
            "sha256": WRONG,
            "archive_tree": WRONG,
            "url": str(self.repository),
            "tag": "v1.2.3",
            "git_tree": WRONG,
        }

    def write_pin(self, **changes: str) -> None:
        self.pin |= changes
        (self.folder / "comfyui.toml").write_text(
            """
            version = "{version}"
            [archive]
            requirement = "tiny-comfy==1.0"
            sha256 = "{sha256}"
            subdir = "vendor/ComfyUI"
            tree = "{archive_tree}"
            [git]
            url = "{url}"
            tag = "{tag}"
            tree = "{git_tree}"
            """.format_map(self.pin)
        )

    def add_archive(self, files: Mapping[str, str] = TREE) -> None:
        """An sdist that tells, by a file `ran`, when any code in it is run."""
        ran = f"open({str(self.folder / 'ran')!r}, 'w').close()\n"
        members = {
            "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-comfy\nVersion: 1.0\n",
            "setup.py": f"{ran}from setuptools import setup\n"
            "setup(name='tiny-comfy', version='1.0', packages=[])\n",
            **{f"vendor/ComfyUI/{name}": text for name, text in files.items()},
        }
        path = self.index / "tiny_comfy-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, text in members.items():
                member = tarfile.TarInfo(f"tiny_comfy-1.0/{name}")
                content = text.encode()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        tree = tree_digest(write_tree(self.folder / "expected", files))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.write_pin(sha256=sha256, archive_tree=tree)

    def add_repository(self, tag: str = "v1.2.3", files: Mapping[str, str] = TREE) -> None:
        write_tree(self.repository, files)
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "a")
        self.git("tag", tag)
        self.write_pin(git_tree=tree_digest(self.repository))

    def git(self, *words: str) -> None:
        subprocess.run(["git", "-C", str(self.repository), *words], check=True)

    def install(self, **options: object) -> Path:
        return install(self.config, report=self.lines.append, **options)  # type: ignore[arg-type]

    def left_over(self) -> set[str]:
        home = self.config.home
        return {path.name for path in home.iterdir()} - {"ComfyUI.lock"} if home.is_dir() else set()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path / "a project")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", made.index.as_uri())
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    return made


def test_the_digest_is_what_the_shell_command_in_cog_yaml_prints(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    write_tree(tree, {".git/config": "no", "nodes/__pycache__/a.pyc": "no", "sub/.git/kept": "yes"})
    (tree / "link.py").symlink_to("main.py")
    commands = yaml.safe_load((PROJECT / "cog.yaml").read_text())["build"]["run"]
    [pipeline] = re.findall(r"\$\((find .*? \| sha256sum) \|", "\n".join(commands))
    printed = subprocess.run(
        ["sh", "-c", pipeline], cwd=tree, check=True, capture_output=True, text=True
    )
    assert printed.stdout.split()[0] == tree_digest(tree)


@pytest.mark.parametrize("change", ["content", "name", "extra", "missing"])
def test_the_digest_changes_with_every_file(tmp_path: Path, change: str) -> None:
    tree = write_tree(tmp_path / "tree")
    before = tree_digest(tree)
    match change:
        case "content":
            (tree / "nodes.py").write_text("Y = 3\n")
        case "name":
            (tree / "nodes.py").rename(tree / "nodes2.py")
        case "extra":
            (tree / "nodes" / "extra").touch()
        case "missing":
            (tree / "nodes" / "__init__.py").unlink()
    assert tree_digest(tree) != before


def test_the_archive_is_installed_once(project: Project) -> None:
    project.add_archive()
    tree = project.install()
    assert tree == project.config.comfyui
    assert (tree / "nodes/a node.py").read_text() == "X = 1\n"
    assert all(map(is_compiled, modules(tree))), "bytecode comes with it"
    assert tree_digest(tree) == project.pin["archive_tree"]
    assert project.left_over() == {"ComfyUI", "ComfyUI.json"}
    (project.index / "tiny_comfy-1.0.tar.gz").unlink()
    project.lines.clear()
    assert project.install() == tree
    assert project.lines == []


def test_an_archive_with_another_hash_is_neither_run_nor_unpacked(project: Project) -> None:
    project.add_archive()
    recorded = project.pin["sha256"]
    project.write_pin(sha256=WRONG)
    with pytest.raises(HashMismatch) as caught:
        project.install()
    assert recorded in str(caught.value)
    assert WRONG in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (project.folder / "ran").exists()
    assert project.left_over() == set()
    project.write_pin(sha256=recorded)
    project.install()
    assert (project.folder / "ran").exists(), "the witness works"


def test_an_archive_that_climbs_out_of_its_folder_is_refused(project: Project) -> None:
    project.add_archive({**TREE, "../escaped": "x"})
    with pytest.raises(MachineError, match="cannot be unpacked"):
        project.install()
    assert not list(project.config.home.rglob("escaped"))
    assert project.left_over() == set()


def test_a_package_that_pip_cannot_find_is_told_in_one_line(project: Project) -> None:
    project.write_pin()
    with pytest.raises(DownloadFailed) as caught:
        project.install()
    assert "No matching distribution found for tiny-comfy==1.0" in str(caught.value)
    assert "Check the network" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert project.left_over() == set()


def test_an_index_that_does_not_answer_is_told_as_such(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_pin()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(DownloadFailed, match="index does not answer") as caught:
            project.install()
    assert "\n" not in str(caught.value)


def test_the_repository_is_installed_at_its_tag(project: Project) -> None:
    project.add_repository()
    tree = project.install(way="git")
    assert tree_digest(tree) == project.pin["git_tree"]
    assert json.loads((tree.parent / "ComfyUI.json").read_text()) == {
        "version": "1.2.3",
        "way": "git",
        "tree": project.pin["git_tree"],
    }


def test_an_installed_tree_that_lacks_bytecode_gets_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add_repository()
    tree = project.install(way="git")
    shutil.rmtree(tree / "__pycache__")
    assert not is_compiled(tree / "main.py")
    project.install(way="git")
    assert is_compiled(tree / "main.py")
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "elsewhere"))
    assert not is_compiled(tree / "main.py")
    project.install(way="git")
    assert is_compiled(tree / "main.py")
    assert list((tmp_path / "elsewhere").rglob("main.*.pyc"))


def test_an_upgrade_gets_bytecode_of_its_own(project: Project) -> None:
    project.add_repository()
    tree = project.install(way="git")
    old = (tree / "main.py").stat()
    write_tree(project.repository, {"main.py": "print('HELLO')\n"})
    project.git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qam", "b")
    project.git("tag", "--force", "v1.2.3")
    project.write_pin(git_tree=tree_digest(project.repository))
    project.install(way="git")
    os.utime(tree / "main.py", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert all(map(is_compiled, modules(tree)))
    shown = subprocess.check_output([sys.executable, "-c", "import main"], cwd=tree, text=True)
    assert shown == "HELLO\n"


def test_bytecode_that_cannot_be_written_is_told_and_no_failure(project: Project) -> None:
    project.add_repository(files={**TREE, "nodes/__pycache__": "x"})
    tree = project.install(way="git")
    assert is_compiled(tree / "main.py")
    assert not is_compiled(tree / "nodes" / "__init__.py")
    assert project.lines[-1].startswith(f"Not all bytecode could be written in {tree}: ")


def test_a_missing_tag_is_told_in_one_line(project: Project) -> None:
    project.add_repository(tag="v9")
    with pytest.raises(DownloadFailed, match=r"v1\.2\.3 not found") as caught:
        project.install(way="git")
    assert "\n" not in str(caught.value)


def test_a_tree_that_differs_is_told_with_both_digests_and_how_to_accept_it(
    project: Project,
) -> None:
    project.add_repository()
    found = project.pin["git_tree"]
    project.write_pin(git_tree=WRONG)
    with pytest.raises(HashMismatch) as caught:
        project.install(way="git")
    for part in (found, WRONG, f"{len(TREE)} files", "[git] in comfyui.toml"):
        assert part in str(caught.value)
    assert project.left_over() == set()
    project.write_pin(git_tree=found)
    assert project.install(way="git").is_dir()


def test_verify_finds_a_changed_file(project: Project) -> None:
    project.add_repository()
    tree = project.install(way="git")
    project.install(verify=True)
    assert "unchanged" in project.lines[-1]
    (tree / "main.py").write_text("print('changed')\n")
    project.install()
    with pytest.raises(HashMismatch, match="Delete the folder"):
        project.install(verify=True)


def test_a_tree_of_an_older_pin_is_replaced(project: Project) -> None:
    project.add_repository()
    tree = project.install(way="git")
    (project.repository / "nodes.py").unlink()
    project.add_repository(tag="v1.3.0", files={"new.py": "Z = 3\n"})
    project.write_pin(version="1.3.0", tag="v1.3.0")
    project.install(way="git")
    assert (tree / "new.py").is_file()
    assert not (tree / "nodes.py").exists()
    assert project.left_over() == {"ComfyUI", "ComfyUI.json"}


def test_what_an_interrupted_installation_left_is_removed(project: Project) -> None:
    project.add_repository()
    write_tree(project.config.home / "ComfyUI.staging" / "tree", {"half": "x"})
    project.config.comfyui.mkdir()
    tree = project.install(way="git")
    assert not (tree / "half").exists()
    assert project.left_over() == {"ComfyUI", "ComfyUI.json"}


def test_a_tree_of_the_users_own_is_described_and_left_alone(project: Project) -> None:
    project.add_repository()
    tree = write_tree(project.config.comfyui, {**TREE, "mine.py": "mine\n"})
    before = tree_digest(project.config.home)
    assert project.install(way="git") == tree
    assert tree_digest(project.config.home) == before
    [line] = project.lines
    assert "1.2.3" in line
    assert "not those of the pinned 1.2.3" in line


def test_a_folder_that_is_no_comfyui_is_refused(project: Project) -> None:
    project.write_pin()
    write_tree(project.config.comfyui, {"thesis.txt": "x"})
    with pytest.raises(MachineError, match=r"has no main\.py"):
        project.install()
    assert (project.config.comfyui / "thesis.txt").is_file()


def test_a_file_in_the_place_of_the_folder_is_refused(project: Project) -> None:
    project.write_pin()
    write_tree(project.config.home, {"ComfyUI": "x"})
    with pytest.raises(MachineError, match="is a file"):
        project.install()
    assert project.config.comfyui.read_text() == "x"


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_pin()
    monkeypatch.setattr(installing, "ROOM", 10**18)
    with pytest.raises(MachineError, match=r"needs \d+ MB of disk at .*home; \d+ MB are free"):
        project.install()
    assert project.left_over() == set()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EROFS, "cannot be written: Read-only file system"),
        (errno.EIO, "could not be installed"),
    ],
)
def test_a_failing_disk_is_told_and_leaves_nothing(
    project: Project, number: int, said: str
) -> None:
    project.add_repository()

    def fails(_line: str) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(MachineError, match=said):
        install(project.config, way="git", report=fails)
    assert project.left_over() == set()


def test_a_second_installation_at_the_same_time_is_refused(project: Project) -> None:
    project.add_repository()
    project.config.home.mkdir()
    with (project.config.home / "ComfyUI.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match="by another process"):
            project.install(way="git")
    assert project.install(way="git").is_dir()


@pytest.mark.parametrize("text", ["version = 1 2", 'version = "1"', 'version = "1"\narchive = {}'])
def test_a_damaged_pin_is_told_with_its_file(project: Project, text: str) -> None:
    (project.folder / "comfyui.toml").write_text(text)
    with pytest.raises(MachineError, match=r"comfyui\.toml is damaged"):
        project.install()


def test_it_runs_with_nothing_but_the_standard_library(project: Project) -> None:
    """As `script/bootstrap` runs it; `-S` leaves every installed package out."""
    program = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import runpy;"
        "runpy.run_module('comfy_runner.comfyui.install', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        env={"COMFY_RUNNER_COMFYUI": str(project.folder), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(r".* is not empty and is no ComfyUI .*\n", done.stderr)


def test_the_version_of_a_tree_without_one_is_unknown(tmp_path: Path) -> None:
    assert tree_version(tmp_path) == "of unknown version"
