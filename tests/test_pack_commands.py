"""`comfy-runner nodes` as its users call it, with the real git, uv and ComfyUI."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import typer
from fakes.git_repositories import Repository, pack_files, write_files
from fakes.wheels import wheel
from graphs import node

from comfy_runner.config import PROJECT, Config
from comfy_runner.pack_commands import nodes_app
from comfy_runner.packs.lock import parse, write

CODE = """
import sys
from comfy_runner.errors import ComfyRunnerError
from comfy_runner.pack_commands import nodes_app
try:
    nodes_app()
except ComfyRunnerError as err:
    sys.exit(str(err))
"""

RESTYLE = """
import numpy
import tiny

class Restyle:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    def run(self, image):
        return (image * float(tiny.VERSION) / 2,)

NODE_CLASS_MAPPINGS = {f"Restyle {tiny.VERSION}": Restyle}
"""


class Program:
    """`comfy-runner nodes` in an environment that has all of ours and can get more."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder
        self.nodes = folder / "custom_nodes"
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
        )
        here = Path(sysconfig.get_path("purelib"))
        (site,) = (folder / "venv").glob("lib/*/site-packages")
        (site / "ours.pth").write_text(f"{here}\n{PROJECT}\n")
        wheel(folder / "wheels", "tiny", "1.0")
        wheel(folder / "wheels", "tiny", "2.0")
        uv = folder / "uv.toml"
        uv.write_text(f'no-index = true\nfind-links = ["{folder / "wheels"}"]\n')
        self.environment = {
            **os.environ,
            "COMFY_RUNNER_HOME": str(folder / "home"),
            "COMFY_RUNNER_COMFYUI": str(config.comfyui),
            "COMFY_RUNNER_CUSTOM_NODES": str(self.nodes),
            "COMFY_RUNNER_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{here.parents[2] / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "UV_CONFIG_FILE": str(uv),
            "UV_CACHE_DIR": str(folder / "uv-cache"),
            "UV_DEFAULT_INDEX": "https://none.invalid/simple",
        }

    def __call__(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        """Run it to its end; standard output and standard error."""
        done = subprocess.run(
            [self.python, "-c", CODE, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    def tiny(self) -> str:
        """The version of `tiny` in its environment; empty for none."""
        code = "import tiny; print(tiny.VERSION)"
        done = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()


@pytest.fixture
def program(comfy_config: Config, tmp_path: Path) -> Program:
    return Program(comfy_config, tmp_path)


@pytest.fixture
def restyle(tmp_path: Path) -> Repository:
    """A pack whose code needs what it asks for."""
    made = Repository(tmp_path / "restyle")
    made.commit({"__init__.py": RESTYLE, "requirements.txt": "numpy>=2\ntiny<2\n"})
    return made


def test_a_pack_with_a_dependency_is_added_and_loads(program: Program, restyle: Repository) -> None:
    out, _ = program("add", restyle.url, "--ref", "main")
    assert out == f"restyle: {restyle.url} at main, {restyle.head[:12]}, 1 classes.\n"
    assert program.tiny() == "1.0"
    locked = json.loads((program.nodes / "custom_nodes.lock.json").read_text())
    assert locked["packs"][0]["classes"] == ["Restyle 1.0"]
    assert locked["packs"][0]["classes_from"] == "import"
    out, _ = program("check", "--json", "--no-import")
    assert json.loads(out)["packs"][0]["ok"]
    out, _ = program("why", "Restyle 1.0")
    assert out == "Restyle 1.0: restyle, which the lock has.\n"


def test_packs_are_listed_installed_and_checked_without_comfyui(
    program: Program, restyle: Repository
) -> None:
    out, told = program("add", restyle.url, "--no-import", "--no-deps-install")
    assert "0 classes (read in its source)" in out
    assert program.tiny() == ""
    out, _ = program("check", "--no-import", code=4)
    assert out == ("FAIL restyle\n     tiny<2 is not installed. Run comfy-runner nodes install.\n")
    write_files(program.nodes / "stranger", pack_files("Stranger"))
    out, told = program("install", "--frozen")
    assert out == "0 packs installed, 1 were there already.\n"
    assert told == (
        "stranger is not in the lock. To lock it: comfy-runner nodes add with its path.\n"
    )
    assert program.tiny() == "1.0"
    out, _ = program("check", "--no-import")
    assert out == "ok   restyle\n"
    out, _ = program("list", "--json")
    listed = json.loads(out)
    assert [(pack["name"], pack["state"]) for pack in listed["packs"]] == [("restyle", "same")]
    assert listed["unlocked"] == ["stranger"]
    out, told = program("lock", "--upgrade", "--no-import")
    assert out == "restyle: unchanged.\n"
    assert told.startswith(f"Fetching restyle from {restyle.url} at ")


def test_what_is_wrong_is_told_and_nothing_is_added(program: Program, restyle: Repository) -> None:
    restyle.commit({"requirements.txt": "torch==1.0\n"})
    _, told = program("add", restyle.url, "--no-import", code=1)
    assert "pack restyle: It asks for torch==1.0; we have torch" in told.replace("input ", "")
    assert list(program.nodes.iterdir()) == []


def test_what_a_workflow_lacks_is_told_with_what_to_type(program: Program) -> None:
    workflow = program.folder / "workflow.json"
    workflow.write_text(
        json.dumps(
            {"1": node("KSampler"), "2": node("ImageResizeKJv2"), "3": node("No\x1b[2J\ud800")}
        )
    )
    out, _ = program("why", workflow, code=2)
    assert out.splitlines() == [
        "ImageResizeKJv2: after the list of well-known packs, comfy-runner nodes add"
        " https://github.com/kijai/ComfyUI-KJNodes",
        r"No\x1b[2J\ud800: unknown.",
    ]
    out, _ = program("why", "KSampler", "--json")
    assert json.loads(out)["classes"][0]["builtin"]
    _, told = program("why", "none.json", code=1)
    assert "There is no file none.json." in told


PAGES = [PROJECT / "docs" / "custom-nodes.md", PROJECT / "custom_nodes" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_can_be_typed_so(page: Path) -> None:
    commands = typer.main.get_group(nodes_app).commands
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for line in "".join(blocks).splitlines() if line.startswith("comfy-runner")]
    assert lines
    for line in lines:
        program, nodes, name, *arguments = shlex.split(line)
        assert (program, nodes) == ("comfy-runner", "nodes")
        commands[name].make_context(name, arguments)


def test_the_projects_own_lock_holds() -> None:
    path = PROJECT / "custom_nodes" / "custom_nodes.lock.json"
    text = path.read_text()
    assert write(parse(text)) == text
