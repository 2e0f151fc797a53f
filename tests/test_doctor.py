"""What the doctor says of bytecode."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from comfy_runner.config import PROJECT, Config
from comfy_runner.doctor import Finding, examine


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Settings for a tree and a pack without bytecode."""
    for name in (
        *("ComfyUI/comfy/sd.py", "ComfyUI/comfy/tests/a.py", "ComfyUI/comfy_extras/nodes_a.py"),
        *("packs/fox/__init__.py", "packs/off.disabled/__init__.py", "packs/requirements.lock"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return replace(
        Config.from_environment(),
        home=tmp_path / "home",
        comfyui=tmp_path / "ComfyUI",
        custom_nodes=tmp_path / "packs",
    )


def found(config: Config, name: str = "bytecode") -> Finding:
    [finding] = [finding for finding in examine(config) if finding.name == name]
    return finding


def counts(finding: Finding) -> tuple[int, int]:
    """How many modules have bytecode, and of how many."""
    have, _, of, *_ = finding.value.split()
    return int(have), int(of)


def test_what_has_no_bytecode_is_named_with_a_command_that_makes_it(config: Config) -> None:
    before = found(config)
    names, _, command = before.cure.partition(" anew. Run: ")
    assert "ComfyUI, fox" in names
    *program, last = shlex.split(command)
    assert last == str(config.custom_nodes)
    assert program[-1] == str(config.comfyui)
    folders = [str(config.comfyui), str(config.custom_nodes)]
    subprocess.run([*program[:3], *folders], cwd=PROJECT, check=True)
    after = found(config)
    assert not {"ComfyUI", "fox"} & set(after.cure.replace(",", "").split())
    (had, looked), (have, still) = counts(before), counts(after)
    assert (have - had, still) == (3, looked)


def test_everything_that_a_start_imports_is_looked_at(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "nothing here"))
    finding = found(config)
    assert finding.ok, "it is slow, and works"
    assert finding.value.startswith("0 of ")
    assert counts(finding)[1] > 300
    assert "Each start compiles Python itself, aiohttp, " in finding.cure
    assert " more anew. Run: " in finding.cure


def test_packs_are_what_comfyui_loads(config: Config) -> None:
    assert found(config, "custom_nodes.packs").value == ["fox"]
