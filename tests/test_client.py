"""Talking to ComfyUI: the real one, and a socket that breaks off where a test wants it to."""

import json
import socket
import uuid
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
from fakes.comfyui.sockets import BINARY, CLOSE, TEXT, frame, socket_server

from comfy_runner.comfyui.client import ComfyClient, Disconnected, Messages
from comfy_runner.comfyui.process import ComfyProcess, free_port
from comfy_runner.errors import InvalidWorkflow, MachineError, Problem

Workflow = dict[str, dict[str, Any]]


def node(class_type: str, *, title: str = "", **inputs: object) -> dict[str, Any]:
    entry: dict[str, Any] = {"class_type": class_type, "inputs": inputs}
    return {**entry, "_meta": {"title": title}} if title else entry


def new_id() -> str:
    return str(uuid.uuid4())


def until_end(messages: Messages) -> Iterator[dict[str, Any]]:
    """The messages of a run, up to and with the one that ends it."""
    while True:
        message = messages.receive(20)
        assert isinstance(message, dict)
        yield message
        if message["type"] == "executing" and message["data"]["node"] is None:
            return


ECHO = {"1": {"class_type": "PreviewAny", "inputs": {"source": "x"}}}


def run(client: ComfyClient, workflow: Workflow) -> tuple[str, list[dict[str, Any]]]:
    run_id = new_id()
    with client.connect(run_id) as messages:
        client.submit(workflow, run_id)
        return run_id, list(until_end(messages))


def test_run_from_submit_to_file(comfy: ComfyProcess, client: ComfyClient) -> None:
    run_id, messages = run(
        client,
        {
            "1": node("EmptyImage", width=32, height=16, batch_size=1, color=255),
            "2": node("SaveImage", images=["1", 0], filename_prefix=f"client/{new_id()}"),
        },
    )
    kinds = [message["type"] for message in messages if message["type"] != "status"]
    assert kinds[0] == "execution_start"
    assert kinds[-2:] == ["execution_success", "executing"]
    (executed,) = (message["data"] for message in messages if message["type"] == "executed")
    (image,) = executed["output"]["images"]
    assert (executed["node"], executed["prompt_id"]) == ("2", run_id)
    assert (comfy.output / image["subfolder"] / image["filename"]).is_file()

    history = client.history(run_id)
    assert history is not None
    assert history["outputs"]["2"]["images"] == [image]
    client.forget(run_id)
    assert client.history(run_id) is None
    client.forget(run_id)


def test_progress_state_is_left_out_and_progress_is_not(client: ComfyClient) -> None:
    _, messages = run(client, {"1": node("TestProgress", steps=3, delay=0.0)})
    assert "progress_state" not in {message["type"] for message in messages}
    steps = [message["data"]["value"] for message in messages if message["type"] == "progress"]
    assert steps == sorted(set(steps))  # ComfyUI leaves some out
    assert steps[-1] == 3


def test_values_that_are_no_strict_json_arrive(client: ComfyClient) -> None:
    _, messages = run(client, {"1": node("TestUiValues")})
    (output,) = (m["data"]["output"] for m in messages if m["type"] == "executed")
    assert output["text"] == ["one", "two"]
    assert output["table"] == [{"name": "a", "size": 3}]
    (value,) = output["not_a_number"]
    assert value != value  # noqa: PLR0124 (that is how a NaN is known)


def test_failure_of_a_node_is_told_and_the_server_lives_on(client: ComfyClient) -> None:
    run_id, messages = run(client, {"1": node("TestRaise", message="on purpose")})
    (error,) = (m["data"] for m in messages if m["type"] == "execution_error")
    assert error["exception_message"].strip() == "on purpose"
    history = client.history(run_id)
    assert history is not None
    assert history["status"]["status_str"] == "error"
    assert client.worker_alive()


def refused(client: ComfyClient, workflow: Workflow) -> tuple[Problem, ...]:
    run_id = new_id()
    with pytest.raises(InvalidWorkflow) as failure:
        client.submit(workflow, run_id)
    assert ".py" not in str(failure.value)  # no traceback
    assert run_id not in client.queue()[1]
    return failure.value.problems


IMAGE = {"width": 32, "height": 16, "batch_size": 1, "color": 255}


def test_every_error_of_every_node_is_a_problem(client: ComfyClient) -> None:
    image = node("EmptyImage", title="Blank", **{**IMAGE, "width": 0, "height": 99999})
    workflow = {
        "1": image,
        "2": node("SaveImage", images=["1", 0]),
        "3": node("ImageScale", image=["1", 0], upscale_method="by hand", width=8, height="tall"),
        "4": node("PreviewImage", images=["3", 0]),
        "5": node("SaveImage", images=[1, 2, 3], filename_prefix="x"),
    }
    problems = {
        (problem.node_id, problem.title, problem.input): (problem.code, problem.what)
        for problem in refused(client, workflow)
    }
    assert problems == {
        ("1", "Blank", "width"): (
            "value_smaller_than_min",
            "Value 0 smaller than min of 1.",
        ),
        ("1", "Blank", "height"): (
            "value_bigger_than_max",
            "Value 99999 bigger than max of 16384.",
        ),
        ("2", "SaveImage", "filename_prefix"): (
            "required_input_missing",
            "Required input is missing.",
        ),
        ("3", "ImageScale", "upscale_method"): (
            "value_not_in_list",
            "Value not in list: 'by hand' not in "
            "['nearest-exact', 'bilinear', 'area', 'bicubic', 'lanczos'].",
        ),
        ("3", "ImageScale", "height"): (
            "invalid_input_type",
            "Failed to convert an input value to a INT value: "
            "tall, invalid literal for int() with base 10: 'tall'.",
        ),
        ("3", "ImageScale", "crop"): (
            "required_input_missing",
            "Required input is missing.",
        ),
        ("5", "SaveImage", "images"): (
            "bad_linked_input",
            "Bad linked input, must be a length-2 list of [node_id, slot_index].",
        ),
    }


def test_partly_valid_workflow_is_refused(client: ComfyClient) -> None:
    """ComfyUI answers 200 to it and would run the part that is valid."""
    workflow = {
        "1": node("EmptyImage", **IMAGE),
        "2": node("PreviewImage", images=["1", 0]),
        "3": node("LoadImage", image="no such file.png"),
        "4": node("PreviewImage", images=["3", 0]),
    }
    (problem,) = refused(client, workflow)
    assert (problem.node_id, problem.code, problem.input) == (
        "3",
        "custom_validation_failed",
        "image",
    )
    assert problem.what.endswith("Invalid image file: no such file.png.")


@pytest.mark.parametrize(
    ("workflow", "code", "place"),
    [
        (
            {"1": node("NoSuchClass", title="Mine")},
            "missing_node_type",
            "node 1 (Mine)",
        ),
        ({"1": node("EmptyImage", **IMAGE)}, "prompt_no_outputs", ""),
        (
            {"1": node("PreviewImage", images=["9", 0])},
            "exception_during_validation",
            "node 1 (PreviewImage)",
        ),
        (
            {"1": node("PreviewAny", source=["1", 0])},
            "dependency_cycle",
            "node 1 (PreviewAny)",
        ),
    ],
    ids=["unknown class", "no output", "dangling link", "cycle"],
)
def test_error_of_the_whole_workflow_is_a_problem(
    client: ComfyClient, workflow: Workflow, code: str, place: str
) -> None:
    problem = refused(client, workflow)[0]
    assert (problem.code, problem.where) == (code, place)
    assert problem.what


def test_status_500_is_the_machines_fault(client: ComfyClient) -> None:
    workflow: Workflow = {"1": {"class_type": "PreviewAny", "inputs": None}}
    with pytest.raises(MachineError, match=r"POST /prompt with status 500\."):
        client.submit(workflow, new_id())


def test_run_id_must_be_one_that_comfyui_takes(client: ComfyClient) -> None:
    with pytest.raises(ValueError, match="not a UUID"):
        client.submit({"1": node("PreviewAny", source="x")}, new_id().upper())


def test_running_and_waiting_runs_can_be_cancelled(client: ComfyClient) -> None:
    sleeper: Workflow = {"1": node("TestSleep", seconds=60.0, interruptible=True)}
    running, waiting = new_id(), new_id()
    with client.connect(running) as messages:
        client.submit(sleeper, running)
        client.submit(sleeper, waiting)
        received = iter(lambda: messages.receive(20), None)
        assert any(
            isinstance(message, dict) and message["type"] == "executing" for message in received
        )
        assert client.queue() == ((running,), (waiting,))
        assert client.history(running) is None
        assert client.cancel(waiting)
        assert client.queue() == ((running,), ())
        assert client.cancel(running)
        kinds = [message["type"] for message in until_end(messages)]
    assert "execution_interrupted" in kinds
    assert client.queue() == ((), ())
    assert not client.cancel(running)
    assert not client.cancel(new_id())
    assert client.history(waiting) is None


def test_silence_is_none(client: ComfyClient) -> None:
    with client.connect(new_id()) as messages:
        status = messages.receive(10)
        assert isinstance(status, dict)
        assert status["type"] == "status"
        assert messages.receive(0.01) is None
        assert messages.receive(0) is None


def test_catalog_has_every_class_that_tells_its_inputs(client: ComfyClient) -> None:
    catalog = client.catalog()
    assert {"KSampler", "TestRaise", "Test / with slash"} <= set(catalog["object_info"])
    assert "TestBrokenInputs" not in catalog["object_info"]
    assert {"version", "model_inputs", "file_inputs", "unchecked", "folders"} <= set(catalog)


def test_free_is_accepted(client: ComfyClient) -> None:
    client.free()
    assert client.worker_alive()


def test_proxy_of_the_environment_is_not_used(
    client: ComfyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert client.worker_alive()
    with client.connect(new_id()) as messages:
        assert messages.receive(10) is not None


def test_a_connection_is_kept_for_the_next_run_and_what_came_between_is_left_out(
    client: ComfyClient,
) -> None:
    run_ids, names, heard = [new_id(), new_id()], set(), []
    for run_id in run_ids:
        messages = client.listen()
        client.submit(ECHO, run_id, client_id=messages.client_id)
        heard.append(list(until_end(messages)))
        names.add(messages.client_id)
        client.after_run(run_id, messages)
        client.settle()
        assert client.history(run_id) is None
    assert len(names) == 1
    assert {m["data"]["prompt_id"] for m in heard[1] if "prompt_id" in m["data"]} == {run_ids[1]}
    assert heard[1][-1]["data"]["prompt_id"] == run_ids[1]


def test_a_kept_connection_that_broke_between_runs_is_replaced(client: ComfyClient) -> None:
    messages = client.listen()
    client.after_run(new_id(), messages)
    messages._socket.shutdown(socket.SHUT_RDWR)  # noqa: SLF001 - as the other side would
    fresh, run_id = client.listen(), new_id()
    assert fresh.client_id != messages.client_id
    with fresh:
        client.submit(ECHO, run_id, client_id=fresh.client_id)
        assert list(until_end(fresh))


def test_a_connection_that_no_run_takes_up_is_closed(
    client: ComfyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads it, and ComfyUI would hold all that node packs send to everybody."""
    closed = Event()

    class Watched(Messages):
        def close(self) -> None:
            super().close()
            closed.set()

    monkeypatch.setattr("comfy_runner.comfyui.client.KEPT", 0.05)
    plain = client.listen()
    with Watched(plain._socket.dup(), plain.client_id) as messages:  # noqa: SLF001
        plain.close()
        client.after_run(new_id(), messages)
        assert closed.wait(10)
        with client.listen() as other:
            assert other is not messages


def test_a_run_that_is_not_forgotten_is_told() -> None:
    with ComfyClient(f"http://127.0.0.1:{free_port()}") as client:
        assert client.settle()
        client.after_run(new_id())
        with pytest.raises(Disconnected):
            client.settle()


def test_server_that_is_not_there() -> None:
    with ComfyClient(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(Disconnected):
            client.worker_alive()
        with pytest.raises(Disconnected):
            client.connect(new_id())


def test_frame_that_comes_in_parts_is_kept() -> None:
    text = json.dumps({"type": "progress", "data": {"value": 1}}).encode()
    bytes_of_frame = frame(TEXT, text)
    go_on = Event()

    def script(connection: socket.socket) -> None:
        for part in (bytes_of_frame[:1], bytes_of_frame[1:10], bytes_of_frame[10:]):
            connection.sendall(part)
            assert go_on.wait(10)
            go_on.clear()
        connection.sendall(frame(BINARY, b"\0\0\0\1picture"))

    with (
        socket_server(script) as url,
        ComfyClient(url) as client,
        client.connect(new_id()) as messages,
    ):
        for _ in range(2):
            assert messages.receive(0.05) is None
            go_on.set()
        assert messages.receive(10) == json.loads(text)
        go_on.set()
        assert messages.receive(10) == b"\0\0\0\1picture"


def test_progress_state_is_not_even_parsed() -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(frame(TEXT, b'{"type": "progress_state", "data": no JSON'))
        connection.sendall(frame(TEXT, b'{"type": "status", "data": {}}'))

    with (
        socket_server(script) as url,
        ComfyClient(url) as client,
        client.connect(new_id()) as messages,
    ):
        assert messages.receive(10) == {"type": "status", "data": {}}


@pytest.mark.parametrize(
    "last_words",
    [b"", frame(CLOSE, b""), frame(TEXT, b"x" * 500)[:100], b"\xff" * 20],
    ids=["nothing", "close frame", "half a frame", "no frame"],
)
def test_dropped_socket_is_told(last_words: bytes) -> None:
    with (
        socket_server(lambda connection: connection.sendall(last_words)) as url,
        ComfyClient(url) as client,
        client.connect(new_id()) as messages,
        pytest.raises(Disconnected),
    ):
        messages.receive(10)


def test_message_that_is_no_json_is_the_machines_fault() -> None:
    with (
        socket_server(lambda connection: connection.sendall(frame(TEXT, b"<html>"))) as url,
        ComfyClient(url) as client,
        client.connect(new_id()) as messages,
        pytest.raises(MachineError, match="no JSON"),
    ):
        messages.receive(10)


def test_death_of_the_worker_is_seen_while_the_server_answers(
    sacrificed_comfy: ComfyProcess,
) -> None:
    """Where a node pack took away the hook with which the process would end."""
    comfy, run_id = sacrificed_comfy, new_id()
    with ComfyClient(comfy.base_url, comfy.token) as client, client.connect(run_id) as messages:
        assert client.worker_alive()
        client.submit({"1": node("TestKillWorkerQuietly")}, run_id)
        received = iter(lambda: messages.receive(1), None)
        assert any(
            isinstance(message, dict) and message["type"] == "executing" for message in received
        )
        while client.worker_alive():
            messages.receive(0.1)
        assert comfy.alive
        assert client.queue()[0] == (run_id,)
        assert client.history(run_id) is None
