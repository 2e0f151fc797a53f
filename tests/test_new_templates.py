"""Official templates of twelve kinds as models: what each takes, and what two of them make."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import av
import pytest
from cog_server import READY, CogServer
from editor_files import TEMPLATES
from fakes.file_server import FileServer
from graphs import HERE
from PIL import Image
from test_schema import NoDocker

from comfy_runner.publishing_commands import new
from comfy_runner.serving import schema

PICTURES = {"output_format": "str", "output_quality": "int"}
SEED = {"seed": "int"}
SIZE = {"width": "int", "height": "int"}

KINDS: dict[str, tuple[dict[str, str], int]] = {
    # Picture of a text.
    "image_z_image_turbo": ({"prompt": "str", **SIZE, "steps": "int", **SEED, **PICTURES}, 3),
    # Picture of a picture.
    "image_qwen_image_edit_2509": (
        {"prompt": "str", "negative_prompt": "str", "image": "file!", "enable_turbo_mode": "bool"}
        | {**SEED, **PICTURES},
        4,
    ),
    # Part of a picture, under a mask in it.
    "flux_fill_inpaint_example": ({"prompt": "str", "image": "file!", **SEED, **PICTURES}, 4),
    # Several pictures.
    "utility_image_stitch": ({**{f"image{n}": "file!" for n in range(1, 5)}, **PICTURES}, 0),
    # Subgraphs, with more on their fronts than a model has by default.
    "basic_image_color_adjustment": (
        {"image": "file!", "glow_value": "float", "glow_value_1": "float", "glow_value_2": "float"}
        | {"color": "str", "grain_amount": "float", "grain_size": "float"}
        | {"color_amount": "float", "luminance_bias": "float"}
        | {"chromatic_aberration_value": "float", "temperature": "float", "tint": "float"}
        | {"saturation": "float", "vibrance": "float", "input_black": "float"}
        | {"input_white": "float", **PICTURES},
        0,
    ),
    # App Mode.
    "template_qwen_image_illustration_lora": (
        {"prompt": "str", **SIZE, "lora_strength": "float", "steps": "int", **SEED, **PICTURES},
        4,
    ),
    # Video of a picture.
    "video_wan2_2_14B_i2v": (
        {"prompt": "str", "start_image": "file!", "enable_turbo_mode": "bool", **SIZE}
        | {"duration": "float", **SEED},
        6,
    ),
    # Video of a picture and a recording.
    "video_ltx2_3_ia2v": (
        {"prompt": "str", "image": "file!", "audio": "file!", "prompt_enhance": "bool"}
        | {"audio_start": "float", "fps": "int", **SIZE, "duration": "float", **SEED},
        5,
    ),
    # Sound.
    "audio_ace_step_1_5_checkpoint": (
        {"tags": "str", "lyrics": "str", "seconds": "float", "batch_size": "int", "steps": "int"}
        | {"cfg": "float", "cfg_scale": "float", **SEED},
        1,
    ),
    # Upscaling, of a video.
    "utility-gan_upscaler": ({"video": "file!"}, 1),
    # A body in space.
    "3d_moge_perspective_to_mesh": (
        {"image": "file!", "inference_resolution": "int", "inference_batch_size": "int"}
        | {"mesh_frame_index": "int", "mesh_decimation": "int", "mesh_gap_threshold": "float"}
        | {"mesh_texture": "bool", "auto_resize_input": "bool"},
        1,
    ),
    # Text.
    "llm_qwen3vl_text_gen": ({"prompt": "str", "image": "file!", **SEED}, 1),
}
"""Template to its inputs, in order, where `file!` has to be given, and the count of its weights."""

TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}

MODEL = HERE.parent / "assets" / "weights" / "realesr-animevideov3.safetensors"
HUB = "Comfy-Org/Real-ESRGAN_repackaged/resolve/main/RealESRGAN_x4plus.safetensors"
"""Where the upscaler's template has its model from; here another of that kind stands there."""

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No models and no packs, as a new user has them."""
    for name in [name for name in os.environ if name.startswith("COMFY_RUNNER_")]:
        monkeypatch.delenv(name)
    for name in ("home", "models", "custom_nodes"):
        monkeypatch.setenv(f"COMFY_RUNNER_{name.upper()}", str(tmp_path / "own" / name))


def made(name: str, folder: Path) -> Path:
    """The project of a template, as it comes."""
    new(str(TEMPLATES / f"{name}.json"), folder, yes=True)
    return folder


def inputs(folder: Path) -> dict[str, str]:
    """Each input of a project to its type, in order, as the schema has them."""
    schemas = json.loads((folder / schema.SCHEMA).read_text())["components"]["schemas"]
    required = schemas["Input"].get("required", ())
    found = sorted(schemas["Input"]["properties"].items(), key=lambda each: each[1]["x-order"])
    return {
        name: ("file" if shape.get("format") == "uri" else _type(shape, schemas))
        + ("!" if name in required else "")
        for name, shape in found
    }


def _type(shape: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    if choices := shape.get("allOf"):
        return _type(schemas[choices[0]["$ref"].rpartition("/")[2]], schemas)
    return TYPES[shape["type"]]


@pytest.mark.parametrize("name", KINDS)
def test_a_template_becomes_a_model_that_needs_no_edit(name: str, tmp_path: Path) -> None:
    folder = made(name, tmp_path / "project")
    expected, count = KINDS[name]
    assert inputs(folder) == expected
    assert list(inputs(folder)) == list(expected)
    assert schema.is_current(folder)
    weights = json.loads((folder / "weights_manifest.json").read_text())["weights"]
    assert len(weights) == count
    assert all(weight["urls"] for weight in weights)
    ruff = str(Path(sys.executable).with_name("ruff"))
    for check in (["check"], ["format", "--check"]):
        told = subprocess.run(
            [ruff, *check, "--no-cache", "predict.py"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stdout


def test_what_a_workflow_shows_beyond_the_usual_number_of_inputs_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("basic_image_color_adjustment", tmp_path / "project")
    told = capsys.readouterr().err
    assert "more than the 16 inputs that a model has by default" in told
    assert "preserve_luminosity" in told


@pytest.mark.skipif(shutil.which("cog") is None, reason="Cog's command line is not on PATH")
def test_cog_itself_makes_the_same_schema_of_each(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), NoDocker) as docker:
        thread = threading.Thread(target=docker.serve_forever, args=(0.05,))
        thread.start()
        try:
            for name in KINDS:
                folder = made(name, tmp_path / name)
                ours = json.loads((folder / schema.SCHEMA).read_text())
                (folder / schema.SCHEMA).unlink()
                told = subprocess.run(
                    ["cog", "build", "--use-cog-base-image=false"],
                    cwd=folder,
                    env={
                        **os.environ,
                        "DOCKER_HOST": f"tcp://127.0.0.1:{docker.server_port}",
                        "COG_NO_UPDATE_CHECK": "1",
                        "HOME": str(tmp_path),
                    },
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=False,
                )
                assert (folder / schema.SCHEMA).exists(), told.stderr
                theirs = json.loads((folder / schema.SCHEMA).read_text())
                assert theirs | {"info": None} == ours | {"info": None}
        finally:
            docker.shutdown()
            thread.join()


def served(folder: Path, comfyui_tree: Path, home: Path, **more: str) -> CogServer:
    """Cog's server of a project, which runs the project's own copy of the package."""
    return CogServer(
        folder,
        {
            "PYTHONPATH": str(folder),
            "COMFY_RUNNER_HOME": str(home),
            "COMFY_RUNNER_MODELS": str(home / "models"),
            "COMFY_RUNNER_COMFYUI": str(comfyui_tree),
            "COMFY_RUNNER_CUSTOM_NODES": str(folder / "custom_nodes"),
            "COMFY_RUNNER_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            **more,
        },
    )


def uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def content(result: str) -> io.BytesIO:
    """A file that came back inline."""
    return io.BytesIO(base64.b64decode(result.partition(",")[2]))


def plain(colour: str) -> str:
    """A small picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return uri(file.getvalue(), "image/png")


def test_four_pictures_are_stitched_over_http(tmp_path: Path, comfyui_tree: Path) -> None:
    folder = made("utility_image_stitch", tmp_path / "project")
    given = {f"image{n}": plain(colour) for n, colour in enumerate(COLOURS, 1)}
    with served(folder, comfyui_tree, tmp_path / "home") as server:
        server.wait_ready(READY)
        reply = server.predict({**given, "output_format": "webp", "output_quality": 100})
        assert reply.body["status"] == "succeeded", reply.body
        (result,) = reply.body["output"]
        assert result.startswith("data:image/webp")
        with Image.open(content(result)) as image:
            width, height = image.size
            corners = [
                image.getpixel((x * width // 4, y * height // 4)) for y in (1, 3) for x in (1, 3)
            ]
        assert corners == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)]

        lacking = server.predict({name: given[name] for name in ("image1", "image2", "image3")})
        assert lacking.status == 422
        assert lacking.body["detail"][0]["loc"][-1] == "image4"
        wrong = server.predict({**given, "output_quality": "high"})
        assert wrong.status == 422
        failed = server.predict({**given, "image3": uri(b"no picture", "text/plain")})
        assert failed.body["status"] == "failed"
        assert "node 14 (Load Image" in failed.body["error"]
        assert server.predict(given).body["status"] == "succeeded"


def video() -> bytes:
    """Two frames, the left half of which is dark."""
    file = io.BytesIO()
    frame = Image.new("RGB", (32, 32), "white")
    frame.paste("black", (0, 0, 16, 32))
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 32
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()


def test_a_video_is_upscaled_over_http_with_weights_that_setup_fetches(
    tmp_path: Path, comfyui_tree: Path, server: FileServer
) -> None:
    folder = made("utility-gan_upscaler", tmp_path / "project")
    server.serve(HUB, MODEL.read_bytes(), ranges=True, etag='"1"')
    more = {
        "COMFY_RUNNER_HF_ENDPOINT": server.url("").rstrip("/"),
        "COMFY_RUNNER_PRIVATE_ADDRESSES": "1",
    }
    with served(folder, comfyui_tree, tmp_path / "home", **more) as cog:
        logs = cog.wait_ready(READY)["setup"]["logs"]
        assert "upscale_models/RealESRGAN_x4plus.safetensors" in logs
        asked = len(server.asked)
        reply = cog.predict({"video": uri(video(), "video/mp4")})
        assert len(server.asked) == asked
    assert reply.body["status"] == "succeeded", reply.body
    (result,) = reply.body["output"]
    assert result.startswith("data:video/mp4")
    with av.open(content(result)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert [frame.size for frame in frames] == [(128, 128)] * 2
    assert max(frames[0].getpixel((16, 64))) < 60
    assert min(frames[0].getpixel((112, 64))) > 195
