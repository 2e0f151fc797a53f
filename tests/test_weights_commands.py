"""Weights fetched ahead, listed and removed as users do it; an official template from nothing."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import pytest
from editor_files import TEMPLATES
from fakes.file_server import FileServer
from graphs import HERE, WORKFLOWS, node
from program import Program

from comfy_runner.config import Config

MODEL = HERE.parent / "assets" / "weights" / "realesr-animevideov3.safetensors"
HUB = "Comfy-Org/Real-ESRGAN_repackaged/resolve/main/RealESRGAN_x4plus.safetensors"
"""Where the template's one model is on Hugging Face."""
TEMPLATE = TEMPLATES / "utility-gan_upscaler.json"


@pytest.fixture
def program(comfy_config: Config, server: FileServer, tmp_path: Path) -> Program:
    """The program with no models, and a Hugging Face of its own."""
    config = replace(comfy_config, home=tmp_path / "home", models=tmp_path / "models")
    return Program(config, tmp_path, COMFY_RUNNER_HF_ENDPOINT=server.url("").rstrip("/"))


def video(path: Path) -> Path:
    """A video of two frames."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 32
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    return path


def test_an_official_template_runs_from_an_empty_cache_with_one_command(
    program: Program, server: FileServer
) -> None:
    server.serve(HUB, MODEL.read_bytes(), ranges=True, etag='"1"')
    given = video(program.folder / "gan_input.mp4")

    out, err = program("run", TEMPLATE, "-f", given, "--json")
    made = json.loads(out)
    with av.open(program.folder / made["outputs"][0]) as container:
        assert (container.streams.video[0].width, container.streams.video[0].frames) == (128, 2)
    assert (made["files_fetched"], made["fetched_bytes"]) == (1, MODEL.stat().st_size)
    assert "Fetching upscale_models/RealESRGAN_x4plus.safetensors: 1.3 of 1.3 MB" in err

    asked = len(server.asked)
    again, _ = program("run", TEMPLATE, "-f", given, "--json")
    assert json.loads(again)["files_fetched"] == 0
    assert len(server.asked) == asked


def test_weights_are_pulled_ahead_for_workflows_groups_and_by_name(
    program: Program, server: FileServer
) -> None:
    server.serve(HUB, MODEL.read_bytes(), ranges=True, etag='"1"')
    models = program.folder / "models"
    label = "upscale_models/RealESRGAN_x4plus.safetensors"

    out, err = program("pull", WORKFLOWS / "text_to_picture.json", "utility-gan_upscaler")
    assert {Path(line).relative_to(models).parts[0] for line in out.splitlines()} == {
        *("diffusion_models", "text_encoders", "upscale_models", "vae"),
    }
    assert "Fetched 4 files" in err
    assert (models / label).read_bytes() == MODEL.read_bytes()

    out, _ = program("pull", TEMPLATE, label, "--json")
    assert json.loads(out)["models"] == [str(models / label)]
    assert json.loads(out)["fetched_files"] == 0

    elsewhere = program.folder / "volume"
    program("pull", label, "--models", elsewhere)
    assert (elsewhere / label).read_bytes() == MODEL.read_bytes()


def test_pull_says_what_it_cannot_make_sense_of(program: Program) -> None:
    _, err = program("pull", code=2)
    assert "It is not said what to fetch. Name a workflow, a group" in err
    _, err = program("pull", "utility-gan_upscalr", code=2)
    assert "Did you mean 'utility-gan_upscaler'" in err
    _, err = program("pull", "q" * 5000, code=2)
    assert "is no file, no group and no weight" in err
    assert "Check the path" in err
    assert len(err) < 1000
    unknown = program.workflow(
        {
            "1": node("UpscaleModelLoader", "Model", model_name="nobody-knows-this.pth"),
            "2": node("ImageUpscaleWithModel", upscale_model=["1", 0], image=["3", 0]),
            "3": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
            "4": node("SaveImage", images=["2", 0], filename_prefix="x"),
        }
    )
    _, err = program("pull", unknown, code=2)
    assert "node 1 (Model), input model_name: The model 'nobody-knows-this.pth'" in err


def test_what_is_kept_can_be_listed_checked_and_removed(program: Program) -> None:
    program("pull", WORKFLOWS / "upscale.json")
    models = program.folder / "models"
    out, _ = program("cache", "ls", "--json")
    (entry,) = json.loads(out)
    assert entry["names"] == [f"upscale_models/{MODEL.name}"]
    out, err = program("cache", "ls")
    assert entry["id"][:12] in out
    assert "1 kept, 1.3 MB in all." in err
    assert program("cache", "verify")[0] == f"upscale_models/{MODEL.name}: ok\n"

    (models / "upscale_models" / MODEL.name).write_bytes(b"x" * MODEL.stat().st_size)
    out, err = program("cache", "verify", code=4)
    assert "BROKEN" in out
    assert "Removed." in out
    assert program("cache", "ls", "--json")[0] == "[]\n"

    program("pull", WORKFLOWS / "upscale.json")
    out, _ = program("cache", "rm", entry["id"][:12])
    assert out == f"Removed upscale_models/{MODEL.name} (1.3 MB).\n"
    assert not (models / "upscale_models" / MODEL.name).exists()
    _, err = program("cache", "rm", f"upscale_models/{MODEL.name}", code=2)
    assert MODEL.name in err
    program("cache", "gc", "--now")


def test_one_of_several_names_can_be_removed(program: Program) -> None:
    known = {"name": "a.safetensors", "folders": ["loras", "vae"], "urls": [str(MODEL.name)]}
    listed = program.folder / "own.json"
    listed.write_text(json.dumps({"version": 1, "weights": [known]}))
    (program.folder / MODEL.name).write_bytes(MODEL.read_bytes())
    program("pull", "--manifest", listed, "vae/a.safetensors")
    out, _ = program("cache", "rm", "vae/a.safetensors")
    assert out == "Removed vae/a.safetensors; the file stays as loras/a.safetensors.\n"
    out, _ = program("cache", "rm", "loras/a.safetensors")
    assert out == "Removed loras/a.safetensors (1.3 MB).\n"


def test_check_tells_what_would_come_and_from_where(program: Program) -> None:
    given = video(program.folder / "gan_input.mp4")
    out, _ = program("check", TEMPLATE, "-f", given)
    assert (
        "Fetches upscale_models/RealESRGAN_x4plus.safetensors (size unknown) from huggingface.co."
        in out
    )
    address = "https://civitai.com/api/download/models/1?token=s3cret"
    out, err = program(
        "check", TEMPLATE, "-f", given, "-i", f"UpscaleModelLoader.model_name={address}"
    )
    assert "civitai.com" in out
    assert "s3cret" not in out + err
    document = {
        "1": node("VAELoader", vae_name="taef1"),
        "2": node("PreviewAny", source=["1", 0]),
    }
    out, _ = program("check", program.workflow(document))
    assert "To fetch in all: 2 of unknown size." in out


def test_an_interrupted_pull_is_gone_on_with(program: Program, server: FileServer) -> None:
    body = MODEL.read_bytes()
    served = {"ranges": True, "etag": '"1"'}
    server.serve(HUB, body, **served, hold_after=200_000)
    label = "upscale_models/RealESRGAN_x4plus.safetensors"
    with subprocess.Popen(
        program.command("pull", label),
        cwd=program.folder,
        env=program.environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        assert server.holding.wait(30)
        process.kill()
    assert not (program.folder / "models" / label).exists()
    server.release.set()
    server.serve(HUB, body, **served)
    program("pull", label)
    assert (program.folder / "models" / label).read_bytes() == body
