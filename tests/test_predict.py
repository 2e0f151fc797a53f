"""The model as its callers see it: predict.py behind Cog's real HTTP server."""

import base64
import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cog_server import PROJECT, READY, CogServer, Reply, settings
from fakes.file_server import FileServer, running
from graphs import bundled, node, picture, quick_and_slow
from loras import lora, workflow
from PIL import Image

SLOW = {"1": node("TestSleep", "Slow", seconds=60.0, interruptible=True)}


@pytest.fixture(scope="module")
def hub() -> Iterator[FileServer]:
    """What the served model takes for Hugging Face."""
    with running() as served:
        yield served


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    comfyui_tree: Path,  # noqa: ARG001
    hub: FileServer,
) -> Iterator[CogServer]:
    """The served model, ready."""
    environment = settings(
        tmp_path_factory.mktemp("home"),
        COMFY_RUNNER_HF_ENDPOINT=hub.url("").rstrip("/"),
        COMFY_RUNNER_PRIVATE_ADDRESSES="1",
    )
    with CogServer(PROJECT, environment) as server:
        server.wait_ready(READY)
        yield server


def predict(server: CogServer, document: dict[str, Any] | str, **inputs: Any) -> Reply:
    text = document if isinstance(document, str) else json.dumps(document)
    return server.predict({"workflow_json": text, **inputs}, timeout=120)


def succeeded(reply: Reply) -> list[bytes]:
    """The files of a prediction that must have succeeded."""
    assert reply.status == 200
    assert reply.body["status"] == "succeeded", reply.body
    return [base64.b64decode(item.partition(",")[2]) for item in reply.body["output"]]


def error_of(reply: Reply) -> str:
    assert reply.status == 200
    assert reply.body["status"] == "failed"
    error: str = reply.body["error"]
    return error


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return file.getvalue()


def test_a_client_of_cog_comfyui_works_unchanged(server: CogServer) -> None:
    document = {
        "1": node("LoadImage", image="input.png"),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="inverted"),
    }
    reply = predict(
        server,
        document,
        input_file=data_uri(png((255, 0, 10)), "image/png"),
        return_temp_files=False,
        all_outputs=False,
        output_format="webp",
        output_quality=100,
        randomise_seeds=True,
        force_reset_cache=False,
    )
    (content,) = succeeded(reply)
    assert reply.body["output"][0].startswith("data:image/webp;")
    with Image.open(io.BytesIO(content)) as image:
        assert image.convert("RGB").getpixel((3, 3)) == (0, 255, 245)


def test_prompt_and_seed_reach_the_picture_and_are_told(server: CogServer) -> None:
    values = {"Positive prompt.text": "a green circle on a white background"}
    reply = predict(server, bundled("text_to_picture"), inputs=json.dumps(values), seed=2**63)
    (content,) = succeeded(reply)
    with Image.open(io.BytesIO(content)) as image:
        red, green, blue = image.convert("RGB").getpixel((64, 64))  # type: ignore[misc]
    assert green > max(red, blue)
    assert f"Seed 7.seed = {2**63}" in reply.body["logs"]
    assert "step 12 of 12" in reply.body["logs"]
    metrics = reply.body["metrics"]
    assert metrics["seed"] == str(2**63)
    assert metrics["outputs"] == 1
    assert metrics["progress"] == 1.0


def test_a_whole_number_may_be_written_as_a_float(server: CogServer) -> None:
    """JSON Schema calls 2.0 an integer, and some languages write all their numbers so."""
    reply = predict(server, bundled("text_to_picture"), seed=2.0, output_quality=100.0)
    assert len(succeeded(reply)) == 1
    assert reply.body["metrics"]["seeds"] == {"7.seed": 2}


def test_the_workflow_may_be_a_data_uri_or_an_upload(server: CogServer) -> None:
    uri = data_uri(json.dumps(picture()).encode(), "application/json")
    assert len(succeeded(predict(server, uri))) == 1
    assert len(succeeded(server.predict({"workflow_file": uri}, timeout=60))) == 1


def test_the_editors_own_file_runs_as_the_app_that_it_is(server: CogServer) -> None:
    """As *Save* writes it: with an input by the author's name, and the chosen output alone."""
    document = {
        "nodes": [
            {
                "id": 1,
                "type": "EmptyImage",
                "inputs": [{"name": "color", "label": "Paint", "widget": {"name": "color"}}],
                "widgets_values": [8, 8, 1, 0],
            },
            *(
                {
                    "id": number,
                    "type": class_type,
                    "inputs": [{"name": "images", "type": "IMAGE", "link": number}],
                    "widgets_values": ["x"],
                }
                for number, class_type in ((2, "PreviewImage"), (3, "SaveImage"))
            ),
        ],
        "links": [[2, 1, 0, 2, 0, "IMAGE"], [3, 1, 0, 3, 0, "IMAGE"]],
        "extra": {"linearData": {"inputs": [[1, "color"]], "outputs": [2]}},
        "version": 0.4,
    }
    reply = predict(server, document, inputs='{"Paint": 255}')
    (content,) = succeeded(reply)
    with Image.open(io.BytesIO(content)) as image:
        assert image.convert("RGB").getpixel((3, 3)) == (0, 0, 255)
    assert "node 2, Preview Image" in reply.body["logs"]
    assert len(succeeded(predict(server, document, all_outputs=True, return_temp_files=True))) == 2


def test_a_private_lora_is_an_address_and_a_token_that_nobody_sees(
    server: CogServer, hub: FileServer
) -> None:
    body = lora(7)
    hub.serve("me/private/resolve/main/style.safetensors", body, ranges=True, etag='"7"')
    request = {
        "inputs": json.dumps(
            {"20.lora_name": "https://huggingface.co/me/private/blob/main/style.safetensors"}
        ),
        "hf_token": "hf_s3cret",
        "seed": 1,
    }
    first = predict(server, workflow(), **request)
    again = predict(server, workflow(), **request)

    pictures = [Image.open(io.BytesIO(*succeeded(reply))) for reply in (first, again)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    tokens = {asked.headers.get("Authorization") for asked in hub.asked}
    assert tokens == {"Bearer hf_s3cret"}
    assert "s3cret" not in json.dumps(first.body) + json.dumps(again.body)
    assert first.body["metrics"]["fetched_bytes"] >= len(body)
    assert again.body["metrics"]["fetched_bytes"] == 0
    assert "Fetching loras/" in first.body["logs"]


def test_several_files_are_known_by_their_names(server: CogServer) -> None:
    # A data URI carries no name: Cog calls such a file "file" with the ending of its type.
    document = {
        "1": node("LoadImage", "Photo", image="somewhere.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    reply = predict(
        server,
        document,
        input_files=[data_uri(png((1, 2, 3)), "image/png")],
        inputs='{"Photo.image": "file.png"}',
    )
    with Image.open(io.BytesIO(succeeded(reply)[0])) as image:
        assert image.convert("RGB").getpixel((3, 3)) == (1, 2, 3)


def test_files_stream_the_moment_they_are_made(server: CogServer) -> None:
    """The quick file is there while the slow node still works: only a cancel ends that one."""
    events = server.stream(
        {"workflow_json": json.dumps(quick_and_slow())}, 60, prediction_id="streamed"
    )
    seen = []
    for event, data in events:
        seen.append(event)
        if event == "output":
            assert data["chunk"].startswith("data:image/png;")
            assert server.cancel("streamed") == 200
        if event == "completed":
            assert data["status"] == "canceled"
            assert len(data["output"]) == 1
    assert seen.count("output") == 1
    assert seen[0] == "start"
    assert seen[-1] == "completed"
    assert "log" in seen
    assert "metric" in seen
    assert len(succeeded(predict(server, picture()))) == 1


def test_a_cancelled_prediction_stops_and_the_next_one_works(server: CogServer) -> None:
    begun = threading.Event()

    def watch() -> None:
        for event, data in server.stream(
            {"workflow_json": json.dumps(SLOW)}, 60, prediction_id="to-cancel"
        ):
            if event == "log" and "node 1 (Slow)" in data["data"]:
                begun.set()
            if event == "completed":
                ended.append(data["status"])

    ended: list[str] = []
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert begun.wait(30)
    assert server.cancel("to-cancel") == 200
    watcher.join(30)
    assert ended == ["canceled"]
    assert len(succeeded(predict(server, picture()))) == 1


UI = '{"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}'


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "No workflow was given."),
        ({"workflow_json": "  "}, "No workflow was given."),
        ({"workflow_json": "{}"}, "The workflow has no nodes."),
        ({"workflow_json": "{oops"}, "is not JSON"),
        ({"workflow_json": "[1]"}, "not an object of nodes"),
        ({"workflow_json": UI}, "The required input of type IMAGE is missing."),
        ({"workflow_json": "file:///etc/hostname"}, "is not JSON"),
        ({"workflow_file": "/etc/hostname"}, "workflow_file"),
        ({"workflow_json": "X", "input_file": "/etc/hostname"}, "input_file"),
        ({"workflow_json": "X", "input_files": [""]}, "input_files"),
        ({"workflow_json": "X", "inputs": "[]"}, "It is no JSON object."),
        ({"workflow_json": "X", "inputs": '{"9.nope": 1}'}, "9.nope"),
        ({"workflow_json": "X", "inputs": '{"1.width": 0}'}, "below the minimum 1"),
    ],
)
def test_a_bad_request_gets_one_clear_error(
    server: CogServer, inputs: dict[str, Any], says: str
) -> None:
    given = {
        name: json.dumps(picture()) if value == "X" else value for name, value in inputs.items()
    }
    error = error_of(server.predict(given, timeout=60))
    assert says in error
    assert "Traceback" not in error
    assert str(PROJECT) not in error


def test_a_huge_document_is_refused_and_the_server_lives(server: CogServer) -> None:
    huge = json.dumps({"1": node("PrimitiveString", value="x" * 60_000_000)})
    assert "The document has more than the 34 MB" in error_of(predict(server, huge))
    assert len(succeeded(predict(server, picture()))) == 1


def test_values_outside_of_the_schema_are_refused_by_name(server: CogServer) -> None:
    reply = server.predict({"workflow_json": "{}", "output_quality": 101}, timeout=30)
    assert reply.status == 422
    assert "output_quality" in json.dumps(reply.body)


def test_a_failed_run_tells_the_node_in_its_error(server: CogServer) -> None:
    document = picture() | {"3": node("TestRaise", "Bad", message="as asked")}
    error = error_of(predict(server, document))
    assert error.endswith("RunError: node 3 (Bad, TestRaise) failed: RuntimeError: as asked")


def test_a_crash_of_comfyui_is_told_and_survived(server: CogServer) -> None:
    error = error_of(predict(server, {"1": node("TestExit", code=9)}))
    assert "Crashed: ComfyUI ended during the run (exit code 9)." in error
    assert "as asked" not in error  # which an earlier caller's run has printed
    assert len(succeeded(predict(server, picture()))) == 1
    assert server.wait_ready(30)["status"] == "READY"


def test_nothing_survives_a_killed_server(tmp_path: Path, comfyui_tree: Path) -> None:  # noqa: ARG001
    with CogServer(PROJECT, settings(tmp_path / "home")) as server:
        server.wait_ready(READY)
        family = psutil.Process(server.pid).children(recursive=True)
        commands = " ".join(part for process in family for part in process.cmdline())
        assert "forkserver.py" in commands or "launcher.py" in commands
        for process in (psutil.Process(server.pid), *family[:1]):  # the server and its worker
            os.kill(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
