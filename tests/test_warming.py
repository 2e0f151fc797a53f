"""The run that warms ComfyUI up, and what torch is told there."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from editor_files import TEMPLATES
from graphs import bundled, catalog, node, picture
from PIL import Image

from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput
from comfy_runner.runner import Runner
from comfy_runner.runs.files import GivenFile
from comfy_runner.runs.run import Finished, Request
from comfy_runner.runs.warming import shortest, warm_up

PACK = '''
import json, os
from pathlib import Path
import torch

torch.set_float32_matmul_precision("highest")

class TestLooks:
    """Writes down what it was given, and how torch is set up, each time that it runs."""

    @classmethod
    def INPUT_TYPES(cls):
        number = ("INT", {"default": 0, "min": 0, "max": 99})
        return {
            "required": {"record": ("STRING", {}), "steps": number, "start_at_step": number},
            "optional": {"image": ("IMAGE",)},
        }

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    def run(self, record, steps, start_at_step, image):
        seen = {
            "steps": steps,
            "start_at_step": start_at_step,
            "image": list(image.shape),
            "matmul": torch.get_float32_matmul_precision(),
            "benchmark": torch.backends.cudnn.benchmark,
            "inductor": os.environ["TORCHINDUCTOR_CACHE_DIR"],
            "triton": os.environ["TRITON_CACHE_DIR"],
            "offline": [os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_OFFLINE"]],
        }
        with Path(record).open("a") as file:
            file.write(json.dumps(seen) + "\\n")
        return {"ui": {"text": ["seen"]}}

NODE_CLASS_MAPPINGS = {"TestLooks": TestLooks}
'''


LACKS_A_FILE = {
    "1": node("LoadImage", image="fox.png"),
    "2": node("SaveImage", images=["1", 0], filename_prefix="fox"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the warm-up's workflow lies, with its picture beside it, and a node pack."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "files").mkdir()
    Image.new("RGB", (16, 8)).save(folder / "files" / "fox.png")
    (folder / "packs").mkdir()
    (folder / "packs" / "looks.py").write_text(PACK)
    graph = bundled("text_to_picture") | {
        "20": node("LoadImage", image="fox.png"),
        "21": node("TestLooks", record=str(folder / "record"), image=["20", 0]),
    }
    graph["21"]["inputs"] |= {"steps": 9, "start_at_step": 4}
    (folder / "workflow.json").write_text(json.dumps(graph))
    return folder


@pytest.fixture(scope="module")
def warm_runner(comfy_config: Config, folder: Path) -> Iterator[Runner]:
    """A runner that has warmed itself up, with all that can be told to torch and ComfyUI."""
    config = replace(
        comfy_config,
        home=folder / "home",
        models=folder / "models",
        custom_nodes=folder / "packs",
        comfyui_args=("--fast", "fp16_accumulation", "autotune"),
        torch=("matmul=medium", "cudnn_benchmark"),
        warm_up=folder / "workflow.json",
        preload=(str(folder / "workflow.json"),),
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        environment.setenv("TRITON_CACHE_DIR", "/of/somebody")
        with Runner(config) as runner:
            yield runner


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "record").read_text().splitlines()]


def test_a_runner_warms_up_once_with_its_own_files_and_few_steps(
    warm_runner: Runner, folder: Path
) -> None:
    assert warm_runner.warmed is not None
    assert warm_runner.warmed.failure == ""
    assert warm_runner.warmed.seconds > 0
    first = records(folder)[0]
    assert (first["steps"], first["start_at_step"]) == (1, 0)
    assert first["image"] == [1, 8, 16, 3]
    assert not list(warm_runner._results.iterdir())  # noqa: SLF001
    assert (folder / "models" / "vae" / "tiny-mosaic-vae.pt").is_file()


def test_the_next_run_has_its_own_steps_and_models_that_are_loaded(
    warm_runner: Runner, folder: Path
) -> None:
    seen = len(records(folder))
    request = Request(
        document=(folder / "workflow.json").read_text(),
        files=(GivenFile(folder / "files" / "fox.png", "fox.png"),),
        randomise_seeds=False,
        receipt=True,
    )
    *_, finished = warm_runner.run(request)
    assert isinstance(finished, Finished)
    assert finished.nodes_cached >= 6  # loaders, prompts and size
    (last,) = records(folder)[seen:]
    assert (last["steps"], last["start_at_step"]) == (9, 4)
    assert finished.receipt is not None
    told = finished.receipt.surroundings
    assert told.torch_settings == ("matmul=medium", "cudnn_benchmark")
    assert told.comfyui_args == ("--fast", "fp16_accumulation", "autotune")


def test_torch_computes_as_told_whatever_a_pack_has_set(warm_runner: Runner, folder: Path) -> None:
    assert warm_runner.warmed is not None
    first = records(folder)[0]
    assert (first["matmul"], first["benchmark"]) == ("medium", True)


def test_what_is_compiled_outlives_the_run_and_no_hub_is_asked(
    warm_runner: Runner, folder: Path
) -> None:
    first = records(folder)[0]
    assert first["inductor"] == str(warm_runner.config.cache / "torchinductor")
    assert first["triton"] == "/of/somebody"
    assert first["offline"] == ["1", "1"]


def test_fast_options_reach_comfyui(warm_runner: Runner) -> None:
    url = f"{warm_runner.process.base_url}/system_stats"
    headers = {"Authorization": f"Bearer {warm_runner.process.token}"}
    argv = requests.get(url, headers=headers, timeout=10).json()["system"]["argv"]
    at = argv.index("--fast")
    assert argv[at + 1 : at + 3] == ["fp16_accumulation", "autotune"]


def test_a_workflow_that_fails_is_told_and_ends_nothing(
    runner: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    graph = {"1": node("TestRaise", message="no luck"), "2": picture()["1"]}
    graph["3"] = node("SaveImage", images=["2", 0], filename_prefix="x")
    (tmp_path / "workflow.json").write_text(json.dumps(graph))
    warmed = warm_up(tmp_path / "workflow.json", runner.catalog, runner.run, {})
    assert "no luck" in warmed.failure
    assert "Warm-up: it failed after " in caplog.text
    assert runner.health() == "ok"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[]", "workflow"),
        (json.dumps({"1": node("NoSuchNode")}), "NoSuchNode"),
        (json.dumps(LACKS_A_FILE), "fox.png"),
    ],
)
def test_a_workflow_that_is_wrong_is_told_too(
    runner: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, what: str
) -> None:
    (tmp_path / "workflow.json").write_text(content)
    warmed = warm_up(tmp_path / "workflow.json", runner.catalog, runner.run, {})
    assert what in warmed.failure
    is_lacking_a_file = "fox.png" in content
    assert (f"put it into {tmp_path / 'files'}." in caplog.text) == is_lacking_a_file


def test_a_runner_whose_warm_up_fails_has_started(tmp_path: Path) -> None:
    (tmp_path / "workflow.json").write_text("[]")
    config = Config(
        home=tmp_path / "home",
        comfyui=Path(__file__).resolve().parent / "fakes" / "comfyui",
        device="cpu",
        comfyui_args=("--fault", "touchy"),
        warm_up=tmp_path / "workflow.json",
    )
    with Runner(config) as runner:
        assert runner.warmed is not None
        assert runner.warmed.failure.startswith("ComfyUI ended before it answered (exit code 9).")
        assert runner.health() == "restarting"


def test_a_file_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        Runner(Config(home=tmp_path, warm_up=tmp_path / "no.json"))
    (problem,) = caught.value.problems
    assert (problem.code, problem.input) == ("bad_setting", "COMFY_RUNNER_WARM_UP")
    assert str(tmp_path / "no.json") in problem.what


def test_steps_are_cut_wherever_an_input_is_called_so() -> None:
    graph = {
        "1": node("KSampler", steps=20, seed=1),
        "2": node("KSamplerAdvanced", steps=["5", 0], start_at_step=10, end_at_step=10000),
        "3": node("BasicScheduler", steps=1, scheduler="simple"),
        "4": node("SplitSigmas", sigmas=["3", 0], step=10),
        "5": node("PrimitiveInt", value=30),
        "6": node("NoSuchNode", steps=20),
        "7": node("Flux2Scheduler", width=64, height=64),
    }
    assert shortest(graph, catalog()) == {"1.steps": 1, "2.steps": 1, "2.start_at_step": 0} | {
        "7.steps": 1
    }


def test_the_second_of_two_samplers_does_its_one_step_too() -> None:
    """It takes over in the middle, from a step that would be beyond the only one."""
    template = json.loads((TEMPLATES / "video_wan2_2_14B_t2v.json").read_text())
    cut = shortest(template, catalog())
    assert cut == {"128:81.steps": 1, "128:78.steps": 1, "128:78.start_at_step": 0}
