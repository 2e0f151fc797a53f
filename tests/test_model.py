"""The model that a generated predict.py calls, on the real ComfyUI."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cog import Secret
from fakes.file_server import FileServer
from graphs import WORKFLOWS, bundled, node, picture
from PIL import Image

from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, UnknownModel
from comfy_runner.runner import Runner
from comfy_runner.serving import uploads
from comfy_runner.serving.model import Model
from comfy_runner.serving.starting import own_tokens

DRAWING = WORKFLOWS / "text_to_picture.json"

Upload = Callable[[str, str], Path]


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Upload:
    """Makes a picture of one colour where Cog puts what it has decoded, under that name."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def make(name: str, colour: str) -> Path:
        path = folder / f"tmpabcdefgh{name}"
        path.write_bytes(plain(colour))
        return path

    return make


def plain(colour: str) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()


def colour(path: Path) -> Any:
    """What stands in the middle of a picture."""
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((image.width // 2, image.height // 2))


def stored(folder: Path, document: Mapping[str, Any]) -> Path:
    """The document in a file of a project."""
    path = folder / "workflow.json"
    path.write_text(json.dumps(document))
    return path


def run(model: Model, values: Mapping[str, Any], **more: Any) -> tuple[list[Path], dict[str, Any]]:
    """The results, and the metrics."""
    metrics: dict[str, Any] = {}
    results = model.run(values, record_metric=metrics.__setitem__, **more)
    return list(results), metrics


def copying() -> dict[str, Any]:
    """A graph that saves two pictures as they are: `mine.png` and `other.png`."""
    return {
        "1": node("LoadImage", image="mine.png"),
        "2": node("SaveImage", "First", images=["1", 0], filename_prefix="first"),
        "3": node("LoadImage", image="other.png"),
        "4": node("SaveImage", "Second", images=["3", 0], filename_prefix="second"),
    }


def test_values_reach_the_sampler_and_none_keeps_what_the_workflow_has(runner: Runner) -> None:
    model = Model(DRAWING, runner=runner)
    values = {
        "4.text": "a blue square on a yellow background",
        "6.width": 160,
        "6.height": None,
    }
    (path,), metrics = run(model, values, seed=5.0, output_format="webp", output_quality=90.0)
    assert path.suffix == ".webp"
    with Image.open(path) as image:
        assert image.size == (160, bundled("text_to_picture")["6"]["inputs"]["height"])
    red, green, blue = colour(path)
    assert blue > 150 > max(red, green)
    assert metrics["seed"] == 5
    assert metrics["progress"] == 1.0
    assert model.is_healthy()


def test_weights_are_in_place_before_the_first_prediction(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tiny-flux-colours.safetensors"
    if name in runner.store.listing("diffusion_models"):
        runner.store.objects.remove(f"diffusion_models/{name}")
    Model(DRAWING, runner=runner, fetch=False)
    assert name not in runner.store.listing("diffusion_models")
    Model(DRAWING, runner=runner)
    assert name in runner.store.listing("diffusion_models")
    assert re.search(rf"Fetching \S*{name}", capsys.readouterr().out)


def test_weights_of_outputs_that_nobody_chose_are_not_fetched_ahead(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings: list[Config] = []

    def start(_: str | None, config: Config) -> tuple[Runner, None]:
        settings.append(config)
        return runner, None

    monkeypatch.setattr("comfy_runner.serving.model.start", start)
    path = stored(tmp_path, picture())
    for outputs in ((), ("2",)):
        Model(path, outputs=outputs, config=Config(preload=("group",)))
    assert [config.preload for config in settings] == [("group", str(path)), ("group",)]


def test_a_model_that_nobody_knows_is_told_at_the_start(runner: Runner, tmp_path: Path) -> None:
    document = bundled("text_to_picture")
    document["1"]["inputs"]["unet_name"] = "nobodys.safetensors"
    path = stored(tmp_path, document)
    with pytest.raises(UnknownModel, match=r"nobodys\.safetensors"):
        Model(path, runner=runner)
    Model(path, runner=runner, fetch=False)


def test_a_file_of_the_caller_goes_before_the_one_of_the_project(
    runner: Runner, tmp_path: Path, upload: Upload
) -> None:
    path = stored(tmp_path, copying())
    (tmp_path / "files").mkdir()
    for name, own in (("mine.png", "red"), ("other.png", "lime")):
        (tmp_path / "files" / name).write_bytes(plain(own))
    model = Model(path, runner=runner)
    results, _ = run(model, {"1.image": None})
    assert {each.name[0]: colour(each) for each in results} == {"2": (255, 0, 0), "4": (0, 255, 0)}
    # Called like a file of the project that the other node reads.
    results, _ = run(model, {"1.image": upload("other.png", "blue")})
    assert {each.name[0]: colour(each) for each in results} == {"2": (0, 0, 255), "4": (0, 255, 0)}


def test_a_file_for_two_places_is_fetched_once(
    runner: Runner, tmp_path: Path, server: FileServer
) -> None:
    model = Model(stored(tmp_path, copying()), runner=runner)
    address = uploads.Address.of(server.serve("one.png", plain("blue")))
    try:
        results, _ = run(model, {"1.image": address, "3.image": address})
    finally:
        address.unlink()
    assert {each.name[0]: colour(each) for each in results} == {"2": (0, 0, 255), "4": (0, 0, 255)}
    assert [asked.path for asked in server.asked] == ["one.png"]


def test_a_file_of_the_project_may_be_called_anything(runner: Runner, tmp_path: Path) -> None:
    document = copying()
    names = ("My picture (1) ü 狐.png", "it's #2 & 50%.png")
    (tmp_path / "files").mkdir()
    for node_id, name, own in zip(("1", "3"), names, ("red", "lime"), strict=True):
        document[node_id]["inputs"]["image"] = name
        (tmp_path / "files" / name).write_bytes(plain(own))
    results, _ = run(Model(stored(tmp_path, document), runner=runner), {})
    assert {each.name[0]: colour(each) for each in results} == {"2": (255, 0, 0), "4": (0, 255, 0)}


def test_a_setup_that_fails_leaves_no_comfyui(tmp_path: Path, comfyui_tree: Path) -> None:
    """In a process of its own, which it prepares for Cog."""
    document = bundled("text_to_picture")
    document["1"]["inputs"]["unet_name"] = "nobodys.safetensors"
    code = f"""
from comfy_runner.config import Config
from comfy_runner.errors import UnknownModel
from comfy_runner.serving.model import Model
config = Config.from_environment()
try:
    Model({str(stored(tmp_path, document))!r}, config=config)
except UnknownModel:
    print("Left:", [*config.runs.iterdir()])
"""
    environment = {
        **os.environ,
        "COMFY_RUNNER_COMFYUI": str(comfyui_tree),
        "COMFY_RUNNER_HOME": str(tmp_path / "home"),
        "COMFY_RUNNER_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert done.stdout.splitlines()[-1] == "Left: []"


def test_a_token_is_taken_as_files_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc\n")
    monkeypatch.setenv("CIVITAI_TOKEN", " \n")
    assert own_tokens() == {"huggingface.co": "hf_abc"}


def test_a_file_that_neither_brings_is_asked_for(runner: Runner, tmp_path: Path) -> None:
    model = Model(stored(tmp_path, copying()), outputs=["2"], runner=runner)
    with pytest.raises(InvalidInput, match=r"mine\.png.* did not come with the request"):
        run(model, {})


@pytest.mark.parametrize("kind", [Path, str])
def test_no_file_of_this_machine_is_read(
    runner: Runner, tmp_path: Path, upload: Upload, kind: type
) -> None:
    outside = tmp_path / "mine.png"
    outside.write_bytes(plain("red"))
    assert upload("mine.png", "red").is_file()
    model = Model(stored(tmp_path, copying()), outputs=["2"], runner=runner)
    with pytest.raises(InvalidInput, match=r"not an uploaded file|did not come with the request"):
        run(model, {"1.image": kind(outside)})


def test_only_the_chosen_outputs_come_back_and_run(runner: Runner, tmp_path: Path) -> None:
    document = picture() | {
        "3": node("TestRaise", after=["1", 0]),
        "4": node("SaveImage", images=["3", 0]),
    }
    (path,), metrics = run(Model(stored(tmp_path, document), outputs=["2"], runner=runner), {})
    assert path.name.startswith("2_Save-it")
    assert metrics["nodes"] == 2


def test_a_token_that_is_none_is_told_by_its_name(runner: Runner, tmp_path: Path) -> None:
    model = Model(stored(tmp_path, picture()), runner=runner)
    with pytest.raises(InvalidInput, match="hf_token"):
        run(model, {}, hf_token=Secret("two words"))
    results, _ = run(model, {}, hf_token=Secret("hf_plain"), civitai_token=None)
    assert len(results) == 1


def test_a_model_without_its_document_says_so(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"There is no file .*none\.json"):
        Model(tmp_path / "none.json", runner=runner)


def test_trained_weights_that_are_not_there_are_told_before_comfyui_starts(tmp_path: Path) -> None:
    """In a process of its own, which it prepares for Cog."""
    code = f"""
from comfy_runner.config import Config
from comfy_runner.serving.model import Model
Model({str(DRAWING)!r}, weights={str(tmp_path / "none.tar")!r}, config=Config())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert "InvalidInput: input weights: There is no file" in done.stderr
    assert "Starting ComfyUI" not in done.stdout
