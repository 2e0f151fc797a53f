"""ComfyUI as the launcher starts it: closed to strangers, and telling what goes wrong in it."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests
import websocket

from comfy_runner.comfyui.client import ComfyClient, Disconnected
from comfy_runner.comfyui.inside import WORKER_DIED
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
from comfy_runner.errors import StartFailed

BOOT_TIMEOUT = 180.0

PATHS = (
    *("/prompt", "/queue", "/history", "/view?filename=a.png", "/object_info", "/system_stats"),
    *("/internal/logs", "/comfy_runner/health", "/comfy_runner/catalog", "/", "/no/such/page"),
    *("/api/prompt", "/extensions/core/x.js", "/ws?clientId=1", "/userdata?dir=."),
)

STRANGER = """
import json, sys, urllib.error, urllib.request
port, *paths = json.load(sys.stdin)
for path in paths:
    for method in ("GET", "POST", "OPTIONS"):
        try:
            urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, data=b"{}")
            )
        except urllib.error.HTTPError as err:
            print(err.code, err.read().decode().strip())
        else:
            print("let in", method, path)
"""


def test_another_process_is_told_nothing(comfy: ComfyProcess) -> None:
    asked = f"[{comfy.port}, {', '.join(f'"{path}"' for path in PATHS)}]"
    told = subprocess.run(
        [sys.executable, "-c", STRANGER], input=asked, capture_output=True, text=True, check=True
    )
    answers = told.stdout.splitlines()
    assert len(answers) == 3 * len(PATHS)
    assert set(answers) == {"403 This ComfyUI answers only the program that started it."}


def answer(port: int, headers: str, path: str = "/queue", method: str = "GET") -> bytes:
    """The status line and headers of the answer to exactly this request."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{headers}\r\n".encode())
        got = b""
        while b"\r\n\r\n" not in got:
            part = connection.recv(4096)
            if not part:
                break
            got += part
        return got


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "localhost:{port}", "127.0.0.1", "127.0.0.1:1"],
)
def test_only_our_own_host_name_is_answered(comfy: ComfyProcess, host: str) -> None:
    """A page whose name was made to lead to this machine, and that had learnt the token."""
    key = f"Authorization: Bearer {comfy.token}\r\n"
    ours = f"Host: 127.0.0.1:{comfy.port}\r\n"
    assert answer(comfy.port, key + ours).startswith(b"HTTP/1.1 200")
    theirs = f"Host: {host.format(port=comfy.port)}\r\n"
    assert answer(comfy.port, key + theirs).startswith(b"HTTP/1.1 403")
    assert b" 200 " not in answer(comfy.port, key + ours + theirs).partition(b"\r\n")[0]


@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer x", "{token}", "Bearer {token}x", "\xff"])
def test_only_the_token_of_this_boot_opens(comfy: ComfyProcess, given: str) -> None:
    key = f"Authorization: {given.format(token=comfy.token)}\r\n"
    ours = f"Host: 127.0.0.1:{comfy.port}\r\n"
    assert answer(comfy.port, key + ours).startswith(b"HTTP/1.1 403")


def test_no_socket_is_opened_for_a_stranger(comfy: ComfyProcess) -> None:
    with ComfyClient(comfy.base_url) as stranger, pytest.raises(Disconnected, match="403"):
        stranger.connect(str(uuid.uuid4()))


def test_a_refused_body_is_not_read(comfy: ComfyProcess) -> None:
    """An upload of any size ends at the door."""
    headers = f"Host: 127.0.0.1:{comfy.port}\r\nContent-Length: 1000000000\r\n"
    refused = answer(comfy.port, headers, "/upload/image", "POST")
    assert refused.startswith(b"HTTP/1.1 403")
    assert b"connection: close" in refused.lower()


def test_the_server_listens_on_loopback_alone(comfy: ComfyProcess) -> None:
    assert comfy.comfyui_pid is not None
    listening = [
        connection.laddr
        for connection in psutil.Process(comfy.comfyui_pid).net_connections("all")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", comfy.port)]


def test_the_token_is_nowhere_to_be_found(comfy: ComfyProcess, client: ComfyClient) -> None:
    """Not in arguments, environment, log, answers or files; ComfyUI has its digest only."""
    client.catalog()
    assert comfy.comfyui_pid is not None
    comfyui = psutil.Process(comfy.comfyui_pid)
    family = [comfyui, *comfyui.parents()[:2]]  # the fork server, or the guard, and we
    told = [text for process in family for text in (*process.cmdline(), str(process.environ()))]
    with requests.Session() as session:
        session.trust_env = False
        for path in ("/system_stats", "/internal/logs"):
            key = {"Authorization": f"Bearer {comfy.token}"}
            told.append(session.get(comfy.base_url + path, headers=key, timeout=10).text)
    files = [path for path in comfy.folder.rglob("*") if path.is_file()]
    told += [*comfy.tail(200), *(path.read_text("latin1") for path in files)]
    assert len(comfy.token) >= 43
    assert not [text for text in told if comfy.token in text]
    # So we looked in the right places.
    assert any(str(comfy.folder) in text for text in told)


def test_the_process_ends_with_the_worker_and_says_why(sacrificed_comfy: ComfyProcess) -> None:
    """ComfyUI would take prompts for ever and run none."""
    comfy, run_id = sacrificed_comfy, str(uuid.uuid4())
    with (
        ComfyClient(comfy.base_url, comfy.token) as client,
        client.connect(run_id) as messages,
    ):
        with suppress(Disconnected):  # it may be gone before it has answered the request
            client.submit({"1": {"class_type": "TestKillWorker", "inputs": {}}}, run_id)
        with pytest.raises(Disconnected):
            deque(iter(lambda: messages.receive(10), None))
    with pytest.raises(StartFailed, match="exit code 70"):
        comfy.wait_ready(10)
    assert comfy.exit_code == WORKER_DIED
    lines = comfy.tail(20)
    assert lines[-1] == "[ERROR] The thread that runs prompts died, and ComfyUI ends with it."
    assert lines[-2] == "SystemExit"
    assert any("breakdowns" in line or "faults" in line for line in lines)


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    """Folder of node packs, with one in it that is good."""
    folder = tmp_path / "packs"
    (folder / "good").mkdir(parents=True)
    (folder / "good" / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")
    return folder


@pytest.fixture
def booting(comfy_config: Config, packs: Path, tmp_path: Path) -> Iterator[ComfyProcess]:
    """A ComfyUI with these packs; not started."""
    config = replace(comfy_config, custom_nodes=packs, models=tmp_path / "models")
    process = ComfyProcess(config, tmp_path / "run", {**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        process.stop()


CRASHES = {
    "segfault": ("import ctypes; ctypes.string_at(0)", "signal SIGSEGV", "Segmentation fault"),
    "exit": ("raise SystemExit('no torch for me')", "exit code 1", "no torch for me"),
    "kill": ("import os; os.kill(os.getpid(), 9)", "it held up to", "signal SIGKILL"),
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_pack_that_ends_the_boot_is_named(booting: ComfyProcess, packs: Path, crash: str) -> None:
    code, how, last_words = CRASHES[crash]
    (packs / "bad").mkdir()
    (packs / "bad" / "prestartup_script.py").write_text(code)
    booting.start()
    with pytest.raises(StartFailed, match="It was loading the node pack bad") as failure:
        booting.wait_ready(BOOT_TIMEOUT)
    assert how in str(failure.value)
    assert last_words in str(failure.value)


@pytest.mark.parametrize("file", ["prestartup_script.py", "__init__.py"])
def test_a_pack_that_hangs_in_its_import_is_named_with_the_place(
    booting: ComfyProcess, packs: Path, tmp_path: Path, file: str
) -> None:
    os.mkfifo(tmp_path / "hangs")
    code = (
        f"open({str(tmp_path / 'hangs')!r}, 'w').write('x')\n"
        "import threading\n"
        "def wait_for_godot():\n"
        "    threading.Event().wait()\n"
        "wait_for_godot()\n"
    )
    (packs / "bad").mkdir()
    (packs / "bad" / file).write_text(code)
    reading = os.open(tmp_path / "hangs", os.O_RDONLY | os.O_NONBLOCK)
    booting.start()
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    assert poll.poll(BOOT_TIMEOUT * 1000)
    os.close(reading)
    with pytest.raises(StartFailed, match="It was loading the node pack bad") as failure:
        booting.wait_ready(0.1)
    assert "in wait_for_godot" in str(failure.value)
    assert booting.exit_code == -signal.SIGKILL


def test_a_taken_port_is_replaced(booting: ComfyProcess) -> None:
    booting.start()
    first = booting.port
    with socket.create_server(("127.0.0.1", first)):
        booting.wait_ready(BOOT_TIMEOUT)
    assert booting.port != first
    assert booting.answers()


def test_the_states_of_all_nodes_are_not_sent_with_each_step(comfy: ComfyProcess) -> None:
    run_id = str(uuid.uuid4())
    key = [f"Authorization: Bearer {comfy.token}"]
    socket = websocket.create_connection(
        f"ws://127.0.0.1:{comfy.port}/ws?clientId={run_id}", header=key, suppress_origin=True
    )
    with closing(socket), ComfyClient(comfy.base_url, comfy.token) as client:
        socket.settimeout(BOOT_TIMEOUT)
        client.submit(
            {"1": {"class_type": "TestProgress", "inputs": {"steps": 2, "delay": 0.0}}}, run_id
        )
        kinds = []
        while kinds[-1:] != ["execution_success"]:
            kinds.append(json.loads(socket.recv())["type"])
        client.forget(run_id)
    assert "progress" in kinds
    assert "progress_state" not in kinds
