"""Cog's server as a child process: what is known of it, and that it is gone afterwards."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from comfy_runner.errors import InvalidInput
from comfy_runner.serving import schema
from comfy_runner.serving.server import CogServer, ServerFailed, told

SLOW = """
import sys
import time
from typing import Iterator
import cog
from cog import Input

class Predictor(cog.BaseRunner):
    @cog.streaming
    def run(self, seconds: float = Input(default=60.0, ge=0)) -> Iterator[str]:
        yield "started"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.02)
        yield "done"
"""
STUCK = """
    def setup(self) -> None:
        try:
            print("settling down", flush=True)
            for _ in range(3000):
                time.sleep(0.02)
        finally:
            open("tidied", "w").close()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A model that sleeps for as long as it is told."""
    return made(tmp_path, SLOW)


def made(folder: Path, text: str) -> Path:
    (folder / "predict.py").write_text(text, "utf-8")
    (folder / "cog.yaml").write_text("run: predict.py:Predictor\n")
    schema.write(folder)
    return folder


class Heard:
    """The lines that a server told, and that a certain one was among them."""

    def __init__(self, awaited: str) -> None:
        self.lines: list[str] = []
        self.awaited = threading.Event()
        self._awaited = awaited

    def __call__(self, line: str) -> None:
        if (text := told(line)) is not None:
            self.lines.append(text)
            if text == self._awaited:
                self.awaited.set()


def test_a_running_prediction_can_be_cancelled_and_the_next_one_runs(project: Path) -> None:
    with CogServer(project) as server:
        server.wait_ready(60)
        events = server.stream({}, prediction_id="one")
        assert next(event for event in events if event[0] == "output")[1]["chunk"] == "started"
        assert server.cancel("one") == 200
        name, last = list(events)[-1]
        assert (name, last["status"], last["output"]) == ("completed", "canceled", ["started"])
        assert server.predict({"seconds": 0}).body["output"] == ["started", "done"]
        assert server.cancel("one") == 404
        group = server.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_what_does_not_fit_is_told_for_each_input_when_it_is_streamed(project: Path) -> None:
    with CogServer(project) as server:
        server.wait_ready(60)
        with pytest.raises(InvalidInput) as caught:
            list(server.stream({"seconds": -1}))
    (problem,) = caught.value.problems
    assert (problem.code, problem.input) == ("bad_input", "seconds")
    assert problem.what == "-1 is less than the minimum of 0."


def test_a_failed_setup_is_told_at_once_with_its_message(tmp_path: Path) -> None:
    raising = "\n    def setup(self):\n        raise RuntimeError('no weights here')\n"
    project = made(tmp_path, SLOW + raising)
    with (
        CogServer(project) as server,
        pytest.raises(ServerFailed, match=r"setup failed: RuntimeError: no weights here\n  \| "),
    ):
        server.wait_ready(60)
    with (
        CogServer(project, hear=Heard("")) as server,
        pytest.raises(ServerFailed, match=r"setup failed: RuntimeError: no weights here$"),
    ):
        server.wait_ready(60)


def test_a_server_that_ends_is_told_at_once_with_its_last_lines(project: Path) -> None:
    with (
        CogServer(project, {"COG_PREDICT_TYPE_STUB": ""}) as server,
        pytest.raises(ServerFailed, match="COG_PREDICT_TYPE_STUB"),
    ):
        server.wait_ready(60)


def test_a_setup_that_is_given_up_tidies_up_and_is_gone(tmp_path: Path) -> None:
    heard = Heard("settling down")
    with CogServer(made(tmp_path, SLOW + STUCK), hear=heard) as server:
        assert heard.awaited.wait(30), server.log
        with pytest.raises(ServerFailed, match=r"after 0\.0001 s"):
            server.wait_ready(0.0001)
        family = psutil.Process(server.pid).children(recursive=True)
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert (tmp_path / "tidied").exists()
    assert heard.lines == ["settling down"]


def test_what_a_server_says_while_it_ends_is_logged_and_not_told(project: Path) -> None:
    heard: list[str] = []
    with CogServer(project, hear=heard.append) as server:
        server.wait_ready(60)
    assert [*server.log][: len(heard)] == heard
    assert 0 < len(heard) < len(server.log)


OWNER = """
import sys
from pathlib import Path
from comfy_runner.serving.server import CogServer

with CogServer(Path(sys.argv[1])) as server:
    server.wait_ready(60)
    print(server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to another")
def test_the_server_goes_with_a_killed_owner(project: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        family = [server, *server.children(recursive=True)]
        owner.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(family, timeout=20)[1] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("2026-11-23T10:00:00.1Z  INFO coglet::setup: Booting source=Stdout", "Booting"),
        ("2026-11-23T10:00:00.1Z  INFO coglet::setup: a: b source=Stderr", "a: b"),
        ("2026-11-23T10:00:00.1Z  WARN coglet::x::y: Stripped fields=[]", "Stripped fields=[]"),
        ("2026-11-23T10:00:00.1Z  INFO coglet: Server ready num_slots=1", None),
        ("2026-11-23T10:00:00.1Z  INFO coglet::prediction: said source=Stdout", None),
        ("2026-11-23T10:00:00.1Z ERROR coglet: Worker initialization failed", None),
        ("Traceback (most recent call last):", None),
    ],
)
def test_of_the_log_a_person_hears_what_setup_prints_and_warnings(
    line: str, says: str | None
) -> None:
    assert told(line) == says
