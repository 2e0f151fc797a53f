"""The files that repeat a version agree: locks, pyproject.toml, comfyui.toml and cog.yaml."""

import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfy_runner.comfyui.source import Pin, read_pin
from comfy_runner.config import PROJECT, Config

LEFT_TO_COG = re.compile(r"cog|coglet|triton|(nvidia|cuda)-.*")
"""What Cog brings, or what comes with the torch that Cog chooses."""

ONLY_FOR_THE_BROWSER = {"comfyui-workflow-templates", "comfyui-embedded-docs"}
"""Of ComfyUI's requirements, what requirements.in leaves out and says why."""


def lock_blocks() -> dict[str, str]:
    """Package name to its lines in requirements.lock."""
    blocks = re.split(r"^(?=[a-z0-9])", read("requirements.lock"), flags=re.MULTILINE)
    return {block.partition("==")[0]: block for block in blocks[1:]}


def locked_versions() -> dict[str, str]:
    return {name: block.split()[0].partition("==")[2] for name, block in lock_blocks().items()}


def image_versions() -> dict[str, str]:
    lines = [line for line in read("requirements.txt").splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([a-z0-9-]+)==(\S+)", line) for line in lines]
    assert all(pins), "requirements.txt holds exact versions and nothing else"
    return {pin[1]: pin[2] for pin in pins if pin}


def names(requirements: Iterable[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", line) for line in requirements)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def read(name: str) -> str:
    return (PROJECT / name).read_text()


@pytest.fixture
def cog() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("cog.yaml"))
    return loaded


@pytest.fixture
def pin() -> Pin:
    return read_pin(PROJECT)


def test_every_locked_package_has_one_version_and_a_hash() -> None:
    for name, block in lock_blocks().items():
        assert re.match(rf"{re.escape(name)}==\S+ \\\n    --hash=sha256:[0-9a-f]{{64}}", block)


def test_the_lock_has_everything_that_is_asked_for() -> None:
    asked = read("requirements.in") + read("requirements-dev.in")
    wanted = names(asked.splitlines())
    wanted |= names(tomllib.loads(read("pyproject.toml"))["project"]["dependencies"])
    assert wanted <= set(locked_versions())


def test_comfyui_finds_all_of_its_requirements_in_the_lock() -> None:
    tree = Config.from_environment().comfyui
    wanted = names((tree / "requirements.txt").read_text().splitlines())
    assert wanted - set(locked_versions()) == ONLY_FOR_THE_BROWSER


def test_the_image_gets_the_versions_that_are_tested() -> None:
    locked, image = locked_versions(), image_versions()
    assert {name: locked[name] for name in image} == image
    assert not {name for name in image if LEFT_TO_COG.fullmatch(name)}


def test_the_image_gets_all_that_runs_and_nothing_that_only_develops() -> None:
    image = set(image_versions())
    runs = names(read("requirements.in").splitlines())
    assert {name for name in runs if not LEFT_TO_COG.fullmatch(name)} <= image
    # torch brings setuptools, which development asks for by name.
    develops = names(read("requirements-dev.in").splitlines()) - {"setuptools"}
    assert not develops & image


def test_cog_is_the_one_that_is_tested(cog: dict[str, Any]) -> None:
    locked = locked_versions()
    assert cog["build"]["sdk_version"] == locked["cog"] == locked["coglet"]
    assert f"COGLET_WHEEL=pypi:{locked['coglet']}" in read("cog.yaml")


def test_cog_clones_the_pinned_comfyui(cog: dict[str, Any], pin: Pin) -> None:
    [clone] = [command for command in cog["build"]["run"] if " clone " in command]
    [check] = [command for command in cog["build"]["run"] if "recorded=" in command]
    place = "/opt/ComfyUI"
    assert clone.endswith(f"--branch {pin.git.tag} {pin.git.url} {place}")
    assert f"cd {place} && recorded={pin.git.tree} " in check
    assert f"COMFY_RUNNER_COMFYUI={place}" in cog["environment"]
    assert pin.git.tag == f"v{pin.version}"


def test_the_image_build_stops_at_a_comfyui_that_differs(
    cog: dict[str, Any], pin: Pin, tmp_path: Path
) -> None:
    [check] = [command for command in cog["build"]["run"] if "recorded=" in command]
    tree = Config.from_environment().comfyui

    def run_in(folder: Path) -> "subprocess.CompletedProcess[str]":
        command = check.replace("/opt/ComfyUI", f"'{folder}'")
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    (tmp_path / "main.py").touch()
    refused = run_in(tmp_path)
    assert refused.returncode == 1
    assert " has 1 files with digest " in refused.stderr
    assert pin.git.tree in refused.stderr
    passed = run_in(tree)
    assert (passed.returncode, passed.stderr) == (0, "")


@pytest.mark.parametrize("name", ["requirements.lock", "requirements.txt"])
def test_a_lock_names_no_host_and_no_place_of_a_machine(name: str) -> None:
    assert not re.search(r"://|(^|\s)/\w|index-url|find-links", read(name))


def test_cog_keeps_no_command_of_several_lines(cog: dict[str, Any]) -> None:
    """Cog refuses a line break in build.run."""
    assert not [command for command in cog["build"]["run"] if "\n" in command]
