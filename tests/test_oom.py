"""Out of GPU memory: told with what filled it, after one more try that needs less."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import node, picture

from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.comfyui.vram import loaded_models, memory_report
from comfy_runner.config import Config
from comfy_runner.errors import RunError, StartFailed
from comfy_runner.runner import Runner
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Planned, Request, Update

LOG = (
    "got prompt",
    "Requested to load FluxClipModel_",
    "loaded completely; 41230.50 MB usable, 4777.54 MB loaded, full load: True",
    "Requested to load Flux",
    "loaded partially; 5432.10 MB usable, 5212.00 MB loaded, 6137.00 MB offloaded, "
    "100.00 MB buffer reserved, lowvram patches: 0",
    "Requested to load AutoencodingEngine",
    "Got an OOM, unloading all loaded models.",
)


def test_models_are_known_from_the_log() -> None:
    assert loaded_models(LOG) == (
        "FluxClipModel_ (4778 MB)",
        "Flux (5212 MB)",
        "AutoencodingEngine",
    )


def test_a_report_names_models_and_devices() -> None:
    device = {"name": "cuda:0 NVIDIA T4", "vram_total": 16 * 1024**3, "vram_free": 3 * 1024**3}
    assert memory_report(LOG[:3], [device]) == (
        "It had loaded FluxClipModel_ (4778 MB)."
        " cuda:0 NVIDIA T4 has 16.0 GiB of memory, 3.0 GiB of it free now."
    )
    assert memory_report((), ()) == "It had loaded no model."


SHOW_ARGUMENTS = "import sys; print(*sys.argv[1:], flush=True); sys.exit(3)"


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_the_second_try_keeps_little_in_memory(
    tmp_path: Path, device: Any, *, low_memory: bool
) -> None:
    (tmp_path / "main.py").write_text(SHOW_ARGUMENTS)
    config = Config(
        comfyui=tmp_path,
        models=tmp_path / "models",
        device=device,
        comfyui_args=("--highvram", "--fast"),
    )
    process = ComfyProcess(config, tmp_path / "run")
    process.start(low_memory=low_memory)
    with pytest.raises(StartFailed):
        process.wait_ready(30)
    (line,) = process.tail()
    given = set(line.split())
    assert ("--novram" in given) == (low_memory and device == "cuda")
    assert ("--cache-none" in given) == low_memory
    assert ("--cache-classic" in given) == (not low_memory)
    assert ("--highvram" in given) == (not low_memory and device == "cuda")
    assert ("--cpu" in given) == (device == "cpu")
    assert "--fast" in given
    assert line.endswith(f"--listen 127.0.0.1 --port {process.port}")


@pytest.fixture(scope="module")
def tight(comfy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A started runner of this module's own."""
    home = tmp_path_factory.mktemp("tight")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with Runner(replace(comfy_config, home=home)) as runner:
            yield runner


def run(runner: Runner, document: dict[str, Any]) -> list[Update]:
    return list(runner.run(Request(document=document)))


def names(updates: list[Update]) -> list[str]:
    return [update.path.name for update in updates if isinstance(update, Output)]


SEEDED = {
    "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
    "2": node("ImageAddNoise", image=["1", 0], seed=0, strength=0.5),
    "3": node("TestOutOfMemory", always=False, after=["2", 0]),
}


def test_a_run_that_fits_the_second_time_succeeds_with_the_same_seeds(tight: Runner) -> None:
    restarts = tight.restarts
    updates = list(tight.run(Request(document=SEEDED, receipt=True)))
    assert names(updates) == ["3_TestOutOfMemory_text.txt", "receipt.json"]
    (finished,) = (update for update in updates if isinstance(update, Finished))
    assert finished.receipt is not None
    assert finished.receipt.surroundings.memory_mode == "low"
    first, second = (update.plan.seeds for update in updates if isinstance(update, Planned))
    assert first == second != {}
    assert tight.restarts == restarts + 2  # there and back
    assert names(run(tight, picture())) == ["2_Save-it_plain_00001.png"]
    assert not tight.process.low_memory
    assert tight.restarts == restarts + 2


def test_a_run_that_never_fits_is_told_with_what_there_is(
    tight: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts = tight.restarts
    with monkeypatch.context() as context:
        # It holds more than it may: it is started again for the second try anyway.
        context.setattr(tight.process, "config", replace(tight.config, max_child_memory=1))
        with pytest.raises(RunError) as caught:
            run(tight, {"1": node("TestOutOfMemory", "Big", always=True)})
    assert caught.value.out_of_memory
    text = str(caught.value)
    assert text.startswith("node 1 (Big, TestOutOfMemory) failed: torch.OutOfMemoryError: ")
    assert "So did a second run that needs less. It had loaded no model. cpu has " in text
    assert text.endswith("Try a smaller size, a smaller batch or fewer frames.")
    assert tight.restarts == restarts + 2
    assert names(run(tight, picture())) == ["2_Save-it_plain_00001.png"]


def test_nothing_is_tried_again_once_a_result_was_told(tight: Runner) -> None:
    restarts = tight.restarts
    document = {
        "1": node("TestWriteFiles", subfolder="a", count=1, text="a result"),
        "2": node("TestOutOfMemory", always=False, after=["1", 0]),
    }
    seen: list[Update] = []
    with pytest.raises(RunError, match="It had loaded no model") as caught:
        seen.extend(tight.run(Request(document=document)))
    assert names(seen) == ["1_TestWriteFiles_file_00000.txt"]
    assert caught.value.out_of_memory
    assert "second run" not in str(caught.value)
    assert tight.restarts == restarts


def test_the_second_try_can_be_switched_off(tight: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tight, "config", replace(tight.config, oom_retry=False))
    restarts = tight.restarts
    with pytest.raises(RunError, match="It had loaded no model"):
        run(tight, SEEDED)
    assert tight.restarts == restarts


def test_a_cancel_during_the_second_try_leaves_the_usual_mode(tight: Runner) -> None:
    document = SEEDED | {"4": node("TestSleep", seconds=60.0, after=["3", 0], interruptible=True)}
    with closing(tight.run(Request(document=document))) as updates:
        begins = (update for update in updates if isinstance(update, Planned))
        next(begins)
        next(begins)
        assert tight.process.low_memory
    assert not tight.process.low_memory
    assert names(run(tight, picture())) == ["2_Save-it_plain_00001.png"]
