"""LoRAs that a caller names by their addresses, on the real ComfyUI."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer
from graphs import bundled
from loras import lora, workflow
from PIL import Image

from comfy_runner.errors import DownloadFailed, InvalidInput
from comfy_runner.runner import Runner
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Request


@dataclass(frozen=True)
class Made:
    """What one run has made: its files go when the next one starts."""

    pixels: bytes
    prompt: str
    end: Finished


def run(runner: Runner, document: dict[str, Any], **values: Any) -> Made:
    updates = list(runner.run(Request(document=document, values=values, seed=1)))
    (path,) = (update.path for update in updates if isinstance(update, Output))
    (end,) = (update for update in updates if isinstance(update, Finished))
    with Image.open(path) as image:
        return Made(image.tobytes(), str(image.info["prompt"]), end)


def test_a_lora_by_address_changes_the_picture_and_costs_nothing_again(
    runner: Runner, server: FileServer
) -> None:
    body = lora(1)
    url = server.serve("style.safetensors", body, ranges=True, etag='"1"') + "?token=s3cret"
    plain = run(runner, bundled("text_to_picture"), **{"KSampler.steps": 3})

    first = run(runner, workflow(), **{"LoraLoaderModelOnly.lora_name": url})
    again = run(runner, workflow(), **{"LoraLoaderModelOnly.lora_name": url})

    assert first.pixels != plain.pixels
    assert again.pixels == first.pixels
    assert (first.end.fetched_files, first.end.fetched_bytes) == (1, len(body))
    assert (again.end.fetched_files, again.end.fetched_bytes) == (0, 0)
    # ComfyUI has kept everything but the node that saves: the model was not loaded again.
    assert again.end.nodes_cached == again.end.nodes_total - 1
    name = json.loads(first.prompt)["20"]["inputs"]["lora_name"]
    assert name.startswith("url/style-")
    assert "s3cret" not in first.prompt
    assert "127.0.0.1" not in first.prompt


def test_another_content_at_the_same_address_is_another_lora(
    runner: Runner, server: FileServer
) -> None:
    address = {"20.lora_name": server.serve("main.safetensors?x=1", b"")}
    server.serve("main.safetensors", lora(2), ranges=True, etag='"2"')
    signed = f"{address['20.lora_name']}&token=1"
    first = run(runner, workflow(), **{"20.lora_name": signed})
    server.serve("main.safetensors", lora(3), ranges=True, etag='"3"')
    second = run(runner, workflow(), **{"20.lora_name": signed})
    assert first.pixels != second.pixels
    assert second.end.fetched_files == 1


def test_several_loras_come_at_once_from_files_and_a_trained_tar(
    runner: Runner, server: FileServer
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, body in {
            "output/flux_train_replicate/lora.safetensors": lora(4),
            "output/flux_train_replicate/config.yaml": b"job: extension",
            "captions/a.txt": b"a fox",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    tar = server.serve("trained_model.tar", packed.getvalue(), ranges=True, etag='"t"')
    plain = server.serve("five.safetensors", lora(5), ranges=True, etag='"5"')

    both = run(runner, workflow(2), **{"LoRA 0.lora_name": tar, "LoRA 1.lora_name": plain})
    one = run(runner, workflow(1), **{"LoRA 0.lora_name": plain})
    again = run(runner, workflow(2), **{"LoRA 0.lora_name": tar, "LoRA 1.lora_name": plain})

    assert both.end.fetched_files == 2
    assert both.pixels != one.pixels
    assert again.pixels == both.pixels
    assert one.end.fetched_files == again.end.fetched_files == 0


def test_an_address_that_gives_no_lora_is_one_clear_error(
    runner: Runner, server: FileServer
) -> None:
    with pytest.raises(DownloadFailed, match=r"gone\.safetensors.*there is no such file"):
        run(runner, workflow(), **{"20.lora_name": server.url("gone.safetensors?token=s3cret")})
    login = server.serve(
        "login.safetensors", b"<html>Log in</html>", headers={"Content-Type": "text/html"}
    )
    with pytest.raises(DownloadFailed, match="web page"):
        run(runner, workflow(), **{"20.lora_name": login})
    pickled = server.serve("model.ckpt", b"\x80\x02c__builtin__\neval\n", ranges=True)
    with pytest.raises(InvalidInput, match="are fetched from the address of a caller"):
        run(runner, workflow(), **{"20.lora_name": pickled})
    assert not list(Path(runner.store.models, "loras").rglob("*login*"))
