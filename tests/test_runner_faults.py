"""Faults of the child, each on the real ComfyUI: told with the cause, and the next run works."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import HERE, node, picture
from PIL import Image

from comfy_runner.comfyui import saved_catalog
from comfy_runner.comfyui.client import ComfyClient
from comfy_runner.comfyui.keeper import Keeper
from comfy_runner.config import Config
from comfy_runner.errors import (
    Crashed,
    InvalidInput,
    InvalidWorkflow,
    MachineError,
    RunError,
    Stalled,
    StartFailed,
    TimedOut,
)
from comfy_runner.runner import Runner
from comfy_runner.runs.files import GivenFile
from comfy_runner.runs.receipt import Receipt
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Planned, Progress, Request, Run

MIB = 1024**2


@pytest.fixture(scope="module")
def fragile(comfy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A started runner of this module's own, whose restarts can be counted."""
    home = tmp_path_factory.mktemp("fragile")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with Runner(replace(comfy_config, home=home, max_restarts=2)) as runner:
            yield runner


def run(runner: Runner, document: dict[str, Any]) -> list[Path]:
    updates = runner.run(Request(document=document))
    return [update.path for update in updates if isinstance(update, Output)]


def works(runner: Runner) -> bool:
    """Whether the next run is a good one."""
    (path,) = run(runner, picture())
    return path.is_file() and runner.health() == "ok" and runner.why == ""


CRASHES: dict[str, tuple[str, int, str, str]] = {
    "segfault": ("TestSegfault", -signal.SIGSEGV, r"\(signal SIGSEGV\)", "Segmentation fault"),
    "exit": ("TestExit", 7, r"during the run \(exit code 7\)", "got prompt"),
    "killed": (
        "TestKilled",
        -signal.SIGKILL,
        r"during the run, killed from outside, perhaps because memory ran out: it held up to"
        r" \d+\.\d GiB of the \d+\.\d GiB that there are \(signal SIGKILL\)",
        "got prompt",
    ),
    "worker": ("TestKillWorker", 70, r"\(exit code 70\)", "The thread that runs prompts died"),
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_is_told_with_the_last_lines_and_the_next_run_works(
    fragile: Runner, crash: str
) -> None:
    class_type, exit_code, message, line = CRASHES[crash]
    inputs = {"code": 7} if crash == "exit" else {}
    restarts = fragile.restarts
    with pytest.raises(Crashed, match=message) as caught:
        run(fragile, {"1": node(class_type, **inputs)})
    assert caught.value.exit_code == exit_code
    assert any(line in told for told in caught.value.log_tail)
    assert fragile.restarts == restarts + 1
    # It starts again already. A router sends nothing to a machine that never says it is ready.
    fragile.process.wait_ready(180)
    assert fragile.health() == "ok"
    assert works(fragile)


@pytest.mark.parametrize("class_type", ["TestDeadlock", "TestHoldInterpreter"])
def test_a_stuck_node_is_told_with_its_place_and_the_next_run_works(
    fragile: Runner, monkeypatch: pytest.MonkeyPatch, class_type: str
) -> None:
    monkeypatch.setattr("comfy_runner.runs.run.CANCEL_GRACE", 0.3)
    monkeypatch.setattr("comfy_runner.comfyui.client.READ_TIMEOUT", 1.0)
    monkeypatch.setattr(fragile, "config", replace(fragile.config, stall_timeout=1.5))
    with pytest.raises(Stalled, match="no sign of progress") as caught:
        run(fragile, {"1": node(class_type)})
    here = str(caught.value).splitlines()[1]
    assert "breakdowns/__init__.py" in here
    assert here.endswith("in run")
    assert works(fragile)


def test_a_comfyui_that_dies_between_runs_is_replaced(fragile: Runner) -> None:
    assert fragile.process.comfyui_pid is not None
    os.kill(fragile.process.comfyui_pid, signal.SIGKILL)
    with pytest.raises(StartFailed, match="killed from outside"):
        fragile.process.wait_ready(10)
    assert works(fragile)


SEEDED = picture() | {
    "3": node("ImageAddNoise", image=["4", 0], seed=0, strength=0.5),
    "4": node("LoadImage", image="photo.png"),
    "5": node("SaveImage", images=["3", 0], filename_prefix="noise"),
}


def test_a_comfyui_that_dies_before_it_is_given_the_run_is_replaced_for_it(
    fragile: Runner, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    files = (GivenFile(tmp_path / "photo.png", "photo.png"),)
    restarts = fragile.restarts
    updates = fragile.run(Request(document=SEEDED, files=files, receipt=True))
    first = next(updates)
    assert isinstance(first, Planned)
    kill(fragile)
    again, *rest = updates
    assert isinstance(again, Planned)
    assert again.plan.seeds == first.plan.seeds != {}
    paths = {update.path.name: update.path for update in rest if isinstance(update, Output)}
    receipt = Receipt.parse(paths.pop("receipt.json").read_text())
    assert sorted(paths) == ["2_Save-it_plain_00001.png", "5_SaveImage_noise_00001.png"]
    assert receipt.run_id == again.run_id != first.run_id
    assert receipt.seeds == first.plan.seeds
    assert [file.name for file in receipt.files] == ["photo.png"]
    assert receipt.peak_memory is not None
    assert (receipt.surroundings.device, receipt.surroundings.memory_mode) == ("cpu", "usual")
    assert fragile.restarts == restarts + 1
    assert (fragile.health(), fragile.why) == ("ok", "")
    assert list(fragile.process.input.iterdir()) == []


def kill(runner: Runner) -> None:
    assert runner.process.comfyui_pid is not None
    os.kill(runner.process.comfyui_pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("owner", "name", "wait"),
    [(Keeper, "bring_up", False), (Run, "_prepare", True), (ComfyClient, "listen", True)],
)
def test_no_moment_before_the_run_is_given_is_the_wrong_one_to_die(
    fragile: Runner, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, wait: bool
) -> None:
    """Killed right after that call; either at once needed, or known to be gone."""
    usual, restarts = getattr(owner, name), fragile.restarts

    def then_die(*arguments: Any, **options: Any) -> Any:
        result = usual(*arguments, **options)
        monkeypatch.undo()
        kill(fragile)
        assert not wait or fragile.process.ends_within(20)
        return result

    monkeypatch.setattr(owner, name, then_die)
    assert works(fragile)
    assert fragile.restarts == restarts + 1


def test_a_comfyui_that_dies_before_it_tells_its_nodes_anew_is_replaced(
    fragile: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, restarts = Keeper.bring_up, fragile.restarts

    def then_die(*arguments: Any, **options: Any) -> None:
        usual(*arguments, **options)
        monkeypatch.undo()
        kill(fragile)

    monkeypatch.setattr(Keeper, "bring_up", then_die)
    with pytest.raises(InvalidWorkflow, match="NoSuchClass"):
        run(fragile, {"1": node("NoSuchClass")})
    assert fragile.restarts == restarts + 1
    assert works(fragile)


def test_a_comfyui_that_dies_each_time_it_is_asked_is_not_tried_for_ever(tmp_path: Path) -> None:
    with Runner(stand_in(tmp_path, "touchy")) as runner:
        with pytest.raises(Crashed, match=r"ended before it answered \(exit code 9\)"):
            run(runner, picture())
        assert runner.restarts == 1


def test_too_many_restarts_in_a_row_are_broken_until_a_run_succeeds(fragile: Runner) -> None:
    for count in range(1, 3):
        with pytest.raises(Crashed):
            run(fragile, {"1": node("TestExit", code=9)})
        assert (fragile.health() == "broken") == (count == 2)
    assert fragile.why == (
        "2 failures without a successful run: ComfyUI ended during a run (exit code 9)."
    )
    with pytest.raises(RunError, match="as asked"):
        run(fragile, {"1": node("TestRaise", message="as asked")})
    assert (fragile.health(), fragile.why) == ("ok", "")
    assert works(fragile)


def test_a_node_that_cannot_be_interrupted_is_not_comfyui_s_fault(
    fragile: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_runner.runs.run.CANCEL_GRACE", 0.3)
    monkeypatch.setattr(fragile.process, "config", replace(fragile.config, max_restarts=1))
    restarts = fragile.restarts
    document = {"1": node("TestSleep", seconds=60.0, interruptible=False)}
    with pytest.raises(TimedOut):
        list(fragile.run(Request(document=document, timeout=0.5)))
    assert fragile.restarts == restarts + 1
    assert fragile.health() != "broken"
    assert works(fragile)


def test_a_comfyui_that_has_grown_is_started_anew_between_runs(
    fragile: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert works(fragile)
    held = fragile.process.memory()
    assert held is not None
    monkeypatch.setattr(
        fragile.process, "config", replace(fragile.config, max_child_memory=held + 200 * MIB)
    )
    restarts, first = fragile.restarts, fragile.process.base_url
    run(fragile, {"1": node("TestGrow", size=1)})
    assert fragile.process.base_url == first
    run(fragile, {"1": node("TestGrow", size=400 * MIB)})
    assert fragile.restarts == restarts + 1
    assert "GiB that it may" in fragile.why
    assert works(fragile)
    now = fragile.process.memory()
    assert now is not None
    assert now < held + 200 * MIB


def test_a_home_that_cannot_be_written_is_told(comfy_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runner = Runner(replace(comfy_config, home=tmp_path / "file" / "home"))
    with pytest.raises(StartFailed, match="cannot be written: Not a directory"):
        runner.start()
    assert runner.health() == "broken"
    assert runner.why.endswith("cannot be written: Not a directory.")


def stand_in(home: Path, fault: str) -> Config:
    """Settings for what stands in for ComfyUI: at once ready, and good for no run."""
    fake = HERE / "fakes" / "comfyui"
    return replace(Config(), home=home, comfyui=fake, device="cpu", comfyui_args=("--fault", fault))


def test_a_catalog_is_saved_for_the_files_that_comfyui_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"object_info": {"Fox": {"output": ["IMAGE"], "output_node": True}}}
    monkeypatch.setattr(ComfyClient, "catalog", lambda _: told)
    config = replace(stand_in(tmp_path / "home", "serve"), custom_nodes=tmp_path / "packs")
    pack = config.custom_nodes / "pack" / "__init__.py"
    pack.parent.mkdir(parents=True)
    pack.write_text("x = 1\n")
    with Runner(config) as runner:
        seen = runner._fingerprint()  # noqa: SLF001 - so that it was taken
        pack.write_text("x = 11\n")
        assert "Fox" in runner.catalog()
        assert saved_catalog.load(config) is None
        assert saved_catalog.load(config, seen) is not None
        runner.process.stop()
        with pytest.raises(InvalidWorkflow, match="Owl"):
            run(runner, {"1": node("Owl")})
        assert runner.restarts == 1
        assert saved_catalog.load(config) is not None


def test_a_deadline_covers_the_boot_which_goes_on(tmp_path: Path) -> None:
    with Runner(stand_in(tmp_path, "serve")) as runner:
        runner.process.config = stand_in(tmp_path, "deaf")
        runner.process.stop()
        with pytest.raises(TimedOut, match="while ComfyUI started"):
            list(runner.run(Request(document=picture(), timeout=0.3)))
        booting = runner.process.pid
        runner.config = replace(runner.config, run_timeout=0.1)
        with pytest.raises(TimedOut, match="while ComfyUI started"):
            run(runner, picture())
        assert runner.process.alive
        assert runner.process.pid == booting
        assert runner.health() == "restarting"
        # The time for a boot counts from its start, not from the run that waits for it.
        runner.config = replace(runner.config, run_timeout=60.0)
        runner.process.config = replace(runner.process.config, boot_timeout=0.1)
        with pytest.raises(StartFailed, match="did not answer"):
            run(runner, picture())
        assert not runner.process.alive


def test_what_is_installed_is_looked_at_once_and_the_device_named_by_comfyui(
    tmp_path: Path,
) -> None:
    packs = tmp_path / "packs"
    (packs / "one").mkdir(parents=True)
    with Runner(replace(stand_in(tmp_path / "home", "serve"), custom_nodes=packs)) as runner:
        found = runner.surroundings()
        (packs / "two").mkdir()
        assert runner.surroundings() == found
    assert [pack.name for pack in found.packs] == ["one"]
    assert (found.device, found.memory_mode) == ("cuda:0 Some GPU : native", "usual")


def test_a_closed_runner_stays_closed(tmp_path: Path) -> None:
    with Runner(stand_in(tmp_path, "serve")) as runner:
        assert runner.health() == "ok"
    for use in (runner.start, lambda: run(runner, picture())):
        with pytest.raises(MachineError, match=r"takes no more runs\. It was closed\."):
            use()
    assert not runner.process.alive
    assert runner.health() == "broken"
    assert not list(runner.config.runs.iterdir())


def test_closing_during_a_run_leaves_nothing(
    comfy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    document = {"1": node("TestSleep", seconds=60.0, interruptible=True)}
    with Runner(replace(comfy_config, home=tmp_path)) as runner:
        updates = runner.run(Request(document=document))
        next(update for update in updates if isinstance(update, Progress))
        runner.close()
        updates.close()
        assert not runner.process.alive
        assert runner.restarts == 0
        assert runner.why == "It was closed."
        assert not list(runner.config.runs.iterdir())


@pytest.mark.parametrize(
    ("most", "says"),
    [(0, "has a URL fetched, which is not allowed"), (1, "has 2 URLs fetched; 1 ")],
)
def test_more_urls_than_allowed_are_refused(
    fragile: Runner, monkeypatch: pytest.MonkeyPatch, most: int, says: str
) -> None:
    monkeypatch.setattr(fragile, "config", replace(fragile.config, max_urls=most))
    document = picture()
    for number in range(3, 4 + most):
        url = f"https://files.example/{number}.png"
        document[str(number)] = node("LoadImage", image=url)
        document[f"1{number}"] = node("PreviewImage", images=[str(number), 0])
    with pytest.raises(InvalidInput, match=says):
        run(fragile, document)


def test_a_folder_that_vanishes_is_made_again(fragile: Runner) -> None:
    shutil.rmtree(fragile.process.folder)
    assert works(fragile)


SMALL_DISK = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from comfy_runner.config import Config
from comfy_runner.errors import MachineError, RunError
from comfy_runner.runner import Runner
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request
home, comfyui, nodes, small, large, text = sys.argv[1:]
def run(document):
    try:
        updates = list(runner.run(Request(document=json.loads(document))))
    except (RunError, MachineError) as err:
        return type(err).__name__ + ": " + str(err)
    return [update.path.name for update in updates if isinstance(update, Output)]
config = replace(
    Config(), home=Path(home), comfyui=Path(comfyui), models=Path(home, "models"),
    custom_nodes=Path(nodes), device="cpu"
)
with Runner(config) as runner:
    told = [run(small)]
    with Path(home, "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(b"x" * 4096):
                pass
        except OSError:
            pass
    told += [run(large), run(text)]
    Path(home, "filler").unlink()
    told += [run(large), runner.health()]
print(json.dumps(told))
"""


def own_mounts() -> list[str]:
    """The command before another that lets it mount what only it sees."""
    return ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*own_mounts(), "true"], check=False).returncode,
    reason="this system lets nobody mount for himself",
)
def test_a_full_disk_is_told_and_the_next_run_works(comfy_config: Config, tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=16m tmpfs "$2" && exec "$0" -c "$@"'
    (tmp_path / "home").mkdir()
    noise = {
        "1": node("EmptyImage", width=512, height=512, batch_size=1, color=0),
        "2": node("ImageAddNoise", image=["1", 0], seed=1, strength=1.0),
        "3": node("SaveImage", images=["2", 0], filename_prefix="noise"),
    }
    texts = {"1": node("TestWriteFiles", subfolder="a", count=1, text="x" * 100_000)}
    ran = subprocess.run(
        [
            *(*own_mounts(), "sh", "-c", mount, sys.executable, SMALL_DISK, tmp_path / "home"),
            *(comfy_config.comfyui, HERE / "custom_nodes"),
            *map(json.dumps, (picture(), noise, texts)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    first, full, also_full, again, health = json.loads(ran.stdout)
    assert first == ["2_Save-it_plain_00001.png"]
    assert again == ["3_SaveImage_noise_00001.png"]
    assert "No space left on device" in full
    assert "No space left on device" in also_full
    assert health == "ok"
