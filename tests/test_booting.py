"""A measured start: of the real ComfyUI, with node packs that do what makes a start slow."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from program import Program

from comfy_runner import booting
from comfy_runner.booting import Boot
from comfy_runner.comfyui import bytecode
from comfy_runner.comfyui.import_times import Compiled, Deferrable, ImportTimes, Package
from comfy_runner.comfyui.phases import Phase
from comfy_runner.config import PROJECT, Config
from comfy_runner.errors import InvalidInput, StartFailed

NODES = "\nNODE_CLASS_MAPPINGS = {}\n"

PACKS = {
    "slow pack/__init__.py": "import time\ntime.sleep(0.5)" + NODES,
    "eager/__init__.py": "from .nodes import NODE_CLASS_MAPPINGS",
    "eager/nodes.py": "import scipy.signal\nFILTER = scipy.signal.butter(1, 0.5)" + NODES,
    "early/prestartup_script.py": "import html.parser",
    "early/__init__.py": NODES,
}
"""A pack that is slow, one that uses what a lazy boot puts off, one with a script."""


@pytest.fixture(scope="module")
def config(comfy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings with these packs alone."""
    folder = tmp_path_factory.mktemp("packs")
    for name, text in PACKS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return replace(comfy_config, custom_nodes=folder)


@pytest.fixture(scope="module")
def profiled(config: Config) -> Boot:
    """One start that was profiled, the first with these packs."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        return booting.measure(config, profile=True)


@pytest.fixture
def program(config: Config, tmp_path: Path) -> Program:
    return Program(config, tmp_path)


def test_the_phases_follow_each_other_and_are_all_of_it(profiled: Boot) -> None:
    names = [phase.name for phase in profiled.phases]
    assert names == ["interpreter", "torch", "ComfyUI", "nodes", "ready"]
    for one, other in pairwise(profiled.phases):
        assert one.began <= one.ended == other.began
    assert sum(phase.seconds for phase in profiled.phases) == pytest.approx(profiled.seconds)


def test_each_pack_is_in_the_phases_in_which_it_was_loaded(profiled: Boot) -> None:
    by_name = {phase.name: phase for phase in profiled.phases}
    assert [pack.name for pack in by_name["torch"].parts] == ["early"]
    nodes = by_name["nodes"]
    assert {pack.name for pack in nodes.parts} == {"early", "eager", "slow pack"}
    for one, other in pairwise(nodes.parts):
        assert nodes.began <= one.began <= one.ended <= other.began
    assert {name for name, _ in profiled.packs} == {"early", "eager", "slow pack"}


def test_imports_are_those_of_the_pack_that_was_loading(profiled: Boot) -> None:
    modules = {name: modules for name, modules, _ in profiled.packages()}
    assert modules["torch"] > 100
    assert modules["ComfyUI"] > 100
    assert {"scipy", "eager"} <= {name for name, _ in profiled.packages_of("eager")}
    assert dict(profiled.packages_of("slow pack")).keys() == {"slow pack"}
    assert "early" in dict(profiled.packages_of("early"))
    assert profiled.times is not None
    assert ("scipy", "eager") in {(each.name, each.pack) for each in profiled.times.deferrable}


def test_what_was_compiled_is_told(profiled: Boot) -> None:
    assert profiled.times is not None
    (found,) = (each for each in profiled.times.compiled if each.name == "eager")
    assert found.modules == 2
    assert bytecode.is_compiled(Path(found.file))


def test_a_pack_that_takes_long_is_something_to_gain(profiled: Boot) -> None:
    found = {gain.what.split(" takes ")[0]: gain for gain in booting.gains(profiled)}
    slow = found["The node pack slow pack"]
    assert slow.seconds >= 0.5
    assert str(profiled.config.custom_nodes) in slow.cure
    eager = found["The node pack eager"]
    assert "A lazy boot would do without scipy" in eager.what
    assert "inside of its functions" in eager.cure
    assert "The node pack early" not in found


def test_a_start_that_may_be_forked_is(program: Program) -> None:
    out, _ = program("boot", "--json")
    told = json.loads(out)
    names = [phase["name"] for phase in told["phases"]]
    if sys.platform == "linux":
        assert told["fork_server"] == {"used": True, "why_not": ""}
        assert names == ["interpreter", "ComfyUI", "nodes", "ready"]
    assert told["lazy_boot"] == {"used": True, "why_not": ""}
    assert told["device"] == "cpu"
    for one, other in pairwise(told["phases"]):
        assert other["start"] == pytest.approx(one["start"] + one["seconds"])
    assert sum(phase["seconds"] for phase in told["phases"]) == pytest.approx(told["seconds"])
    assert sum(phase["share"] for phase in told["phases"]) == pytest.approx(1)
    packs = [pack["name"] for phase in told["phases"] for pack in phase["packs"]]
    assert sorted(packs) == ["eager", "early", "early", "slow pack"]
    assert "profile" not in told


def test_a_profile_is_shown_with_what_to_gain(program: Program) -> None:
    program.environment = {**program.environment, "COMFY_RUNNER_FORK_SERVER": "off"}
    out, err = program("boot", "--profile")
    lines = out.splitlines()
    assert lines[0].split() == ["Phase", "Start", "Seconds", "Share"]
    assert [line.split()[0] for line in lines[1:3]] == ["interpreter", "torch"]
    assert any(line.startswith("  node pack slow pack ") for line in lines)
    at = lines.index("What to gain, in seconds at most:")
    assert any("  The node pack slow pack takes " in line for line in lines[at:])
    assert "        Set COMFY_RUNNER_FORK_SERVER=true." in lines[at:]
    assert "Fork server: not used: COMFY_RUNNER_FORK_SERVER is off." in lines[:at]
    assert "Starting ComfyUI ..." in err


def test_a_profile_can_be_read_by_a_program(profiled: Boot) -> None:
    told = json.loads(json.dumps(profiled.as_json()))
    assert told["lazy_boot"] == {"used": True, "why_not": ""}
    if sys.platform == "linux":
        why_not = "not to measure this, so that all imports are in it"
        assert told["fork_server"] == {"used": False, "why_not": why_not}
    profile = told["profile"]
    assert {pack["name"] for pack in profile["packs"]} == {"early", "eager", "slow pack"}
    assert profile["packages"][0].keys() == {"name", "modules", "seconds"}
    assert profile["cpu_seconds"] > 0
    assert told["gains"][0].keys() == {"seconds", "what", "cure"}


def test_no_comfyui_is_told_as_elsewhere(program: Program) -> None:
    program.environment = {**program.environment, "COMFY_RUNNER_COMFYUI": "/nowhere"}
    out, err = program("boot", "--json", code=4)
    assert json.loads(out)["error"]["code"] == "start_failed"
    assert "There is no ComfyUI in /nowhere. Run script/bootstrap." in err


def test_a_comfyui_that_does_not_start_is_told_with_its_last_lines(config: Config) -> None:
    broken = replace(config, comfyui_args=("--no-such-option",))
    with pytest.raises(StartFailed, match="unrecognized arguments: --no-such-option"):
        booting.measure(broken, profile=True)
    with pytest.raises(InvalidInput):
        booting.measure(replace(config, comfyui_args=("--port", "1")))


KILLED_UNLESS_PLAIN = """
import os, signal
if "COMFY_RUNNER_LAZY_BOOT" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("profile", [False, True])
def test_a_start_that_was_killed_and_done_again_was_not_shortened(
    config: Config, tmp_path: Path, profile: bool
) -> None:
    """Which is not remembered against the next one, and so is to be told of this one."""
    pack = tmp_path / "killed" / "prestartup_script.py"
    pack.parent.mkdir()
    pack.write_text(KILLED_UNLESS_PLAIN)
    (pack.parent / "__init__.py").write_text(NODES)
    told = booting.measure(replace(config, custom_nodes=tmp_path), profile=profile).as_json()
    not_used = {"used": False, "why_not": "a shortened start has failed"}
    assert told["lazy_boot"] == not_used
    if sys.platform == "linux":
        assert told["fork_server"] == not_used
    assert [phase["name"] for phase in told["phases"]][:2] == ["interpreter", "torch"]


# What to gain, where the machine or the settings are others


def boot(
    times: Mapping[str, Any], *, device: str = "cpu", is_lazy: bool = True, **more: Any
) -> Boot:
    """A start of 10 s, 4 s of them until torch was there."""
    phases = (
        Phase("interpreter", 100.0, 101.0),
        Phase("torch", 101.0, 104.0),
        Phase("nodes", 104.0, 110.0),
    )
    empty: dict[str, Any] = {"packages": (), "compiled": (), "deferrable": (), "cpu": 3.0}
    profile = ImportTimes(**{**empty, "disk": None, **times})
    return Boot(Config(**more), device, is_lazy, False, phases, profile)


def test_nothing_is_to_gain_where_all_is_well() -> None:
    small = Compiled("a", 3, 0.01, "/a.py")
    assert booting.gains(boot({"compiled": (small,), "disk": 5_000_000})) == ()
    assert booting.gains(replace(boot({}), times=None)) == ()


def test_a_boot_that_is_not_lazy_could_be() -> None:
    rows = (Deferrable("scipy", "", 2.0), Deferrable("kornia", "a pack", 1.0))
    (gain,) = booting.gains(boot({"deferrable": rows}, is_lazy=False, lazy_boot=False))
    assert (gain.seconds, gain.cure) == (2.0, "Set COMFY_RUNNER_LAZY_BOOT=true.")
    assert "(scipy 2.00 s): COMFY_RUNNER_LAZY_BOOT is off." in gain.what
    assert booting.gains(boot({"deferrable": rows[:1]})) == ()
    (gain,) = booting.gains(boot({"deferrable": rows[:1]}, is_lazy=False))
    assert "a shortened start has failed" in gain.what
    assert "The log above tells why" in gain.cure


def test_a_fork_server_helps_where_there_can_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (gain,) = booting.gains(boot({}, fork_server=False))
    assert (gain.seconds, gain.cure) == (4.0, "Set COMFY_RUNNER_FORK_SERVER=true.")
    on_gpu = boot({}, device="cuda")
    assert booting.gains(on_gpu) == ()
    assert booting.gains(boot({}, device="cuda", fork_server=False)) == ()
    assert "CUDA does not outlive a fork" in on_gpu.why_never_forked
    monkeypatch.setattr(sys, "platform", "darwin")
    assert boot({}).why_never_forked == "only Linux has it"


def test_a_fork_that_was_not_possible_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    measured = replace(boot({}), times=None)
    assert measured.why_not_forked == "a shortened start has failed"
    assert measured.why_not_lazy == ""
    assert replace(measured, is_forked=True).why_not_forked == ""
    off = replace(measured, config=Config(fork_server=False))
    assert off.why_not_forked == "COMFY_RUNNER_FORK_SERVER is off"


def test_bytecode_that_is_there_no_longer_compiles_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("")
    row = Compiled("one", 7, 0.5, str(tmp_path / "one.py"))
    (gain,) = booting.gains(boot({"compiled": (row,)}, custom_nodes=tmp_path))
    assert gain.seconds == 0.5
    assert gain.what.startswith("7 modules had no bytecode and were compiled (one 0.50 s).")
    assert "could not be written" in gain.what
    assert gain.cure.endswith(f"-m comfy_runner.comfyui.bytecode {tmp_path}")
    assert bytecode.compile_folder(tmp_path) == ""
    (gain,) = booting.gains(boot({"compiled": (row,)}, custom_nodes=tmp_path))
    assert "the next start here finds it" in gain.what
    assert "run in its build" in gain.cure


@pytest.mark.parametrize("place", ["networkx", "transformers/models/vit", "a/tests/b"])
def test_what_is_left_out_elsewhere_is_compiled_by_the_cure(tmp_path: Path, place: str) -> None:
    folder = tmp_path
    for name in place.split("/"):
        folder /= name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    (tmp_path / "other.py").write_text("")
    row = Compiled("some", 2, 0.5, str(folder / "__init__.py"))
    (gain,) = booting.gains(boot({"compiled": (row,)}, custom_nodes=tmp_path))
    command = gain.cure.partition(": ")[2]
    subprocess.run(shlex.split(command), cwd=PROJECT, check=True)
    assert bytecode.is_compiled(folder / "__init__.py", by_hash=True)
    assert not bytecode.is_compiled(tmp_path / "other.py")


def test_what_came_from_the_disk_cost_what_was_not_computed() -> None:
    (gain,) = booting.gains(boot({"disk": 1_500_000_000}))
    assert gain.seconds == 7.0
    assert "1.5 GB came from the disk" in gain.what


def test_packages_are_added_up_over_the_packs_that_imported_them() -> None:
    rows = (
        Package("scipy", "one", 2, 0.5),
        Package("scipy", "", 3, 0.25),
        Package("a", "", 1, 0.6),
    )
    assert boot({"packages": rows}).packages() == (("scipy", 5, 0.75), ("a", 1, 0.6))
