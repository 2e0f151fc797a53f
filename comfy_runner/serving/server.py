"""Cog's real HTTP server as a child process: started, waited for, asked, ended."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import requests

from comfy_runner.errors import InvalidInput, MachineError, Problem
from comfy_runner.fetch.outside import LAUNCH

LISTENING = re.compile(r"Starting coglet server on (127\.0\.0\.1:\d+)")
"""The line in which the server tells the port that it was given."""
START_TIMEOUT = 30.0
"""Seconds for the server to open its port."""
STOP_TIMEOUT = 20.0
"""Seconds for the server and its worker to end by themselves before they are killed."""
BUSY_TIMEOUT = 10.0
"""Seconds that a request is repeated while the server answers that it has no free slot."""
SILENCE = 60.0
"""Seconds without a byte after which a stream counts as broken: coglet 0.23 sends a keep-alive
line every 15."""
PRINTED = re.compile(r"\S+Z +(?P<level>[A-Z]+) (?P<target>[\w:]+): (?P<text>.*)")
"""A line of the server's log as coglet 0.23 writes it with LOG_FORMAT=console."""
SOURCE = re.compile(r" source=Std(out|err)$")
SETUP_FAILED = re.compile(
    r"\A.*\bSetup failed: (setup failed: |failed to load predictor: )?", re.DOTALL
)
"""What coglet 0.23 puts before the message of setup's exception."""
OK, UNFIT, BUSY = 200, 422, 409
"""HTTP statuses of Cog's answers: also a prediction that failed is OK."""


@dataclass(frozen=True)
class Reply:
    """The answer to a prediction."""

    status: int
    """The HTTP status: 200 also for a prediction that failed, 422 for input that does not fit."""
    body: dict[str, Any]
    """The JSON object of the answer; `status`, `output`, `logs`, `error` for a prediction."""


class ServerFailed(MachineError):
    """The server ended, its setup failed, or it was not ready in time.

    Ends with the last lines of its log, but for a failed setup that somebody has heard.
    """

    code = "server_failed"


class CogServer:
    """Runs `python -m cog.server.http` in a project folder for as long as the `with` block.

    The project needs `.cog/openapi_schema.json` (`serving.schema.write`), or the server checks
    nothing. `env` adds to this process's environment and wins over it;
    COG_PREDICT_TYPE_STUB there names another class than `predict.py:Predictor`. `hear` gets each
    line of the log as it comes, on another thread, until the block is left. `arguments` are more
    of the server's own, such as `--x-mode train`.

    The server, its worker and their children in the same process group are gone after the block,
    and on Linux also when the thread that entered it ends in any other way.
    """

    def __init__(
        self,
        project: Path,
        env: Mapping[str, str] | None = None,
        *,
        hear: Callable[[str], None] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._project = project
        self._arguments = arguments
        self._hear = hear
        self._env = {
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            "NO_COLOR": "1",
            **os.environ,
            # The port and what setup prints are read from the log.
            "LOG_FORMAT": "console",
            "COG_LOG_LEVEL": "info",
            **(env or {}),
            "PORT": "0",
        }
        # The server starts its worker as `python`, whatever that is on PATH.
        scripts = str(Path(sys.executable).parent)
        self._env["PATH"] = os.pathsep.join((scripts, self._env.get("PATH", os.defpath)))
        self._lines: deque[str] = deque(maxlen=400)
        self._address = ""
        self._announced = threading.Event()
        self._ready = False

    def __enter__(self) -> Self:
        server = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
        server += self._arguments
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *server],
            cwd=self._project,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        printed: IO[str] = self._process.stdout  # type: ignore[assignment]  # it is a pipe
        self._printed = printed
        self._reader = threading.Thread(target=self._read_log, name="cog log")
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with suppress(ProcessLookupError):
                if self._ready:
                    # Coglet 0.23 now and then warns of a poisoned slot while it ends.
                    self._hear = None
                    self._process.terminate()
                else:
                    # At SIGTERM the server would leave a worker in setup alone; this reaches both.
                    os.killpg(self._process.pid, signal.SIGINT)
            # The log ends when the last process that can write to it has, so the worker as well.
            self._reader.join(STOP_TIMEOUT)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT)
            self._reader.join(STOP_TIMEOUT)
        if self._reader.is_alive():
            raise ServerFailed(
                f"A process outside the group holds the server's log.\n{self._tail()}"
            )
        self._printed.close()

    @property
    def base_url(self) -> str:
        """Where the server listens, without a slash at the end. Raises: `ServerFailed`."""
        # Set as well when the log ends, that is, when the server does.
        self._announced.wait(START_TIMEOUT)
        if not self._address:
            raise ServerFailed(f"The server does not listen.\n{self._tail()}")
        return f"http://{self._address}"

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines of the server and its worker, oldest first, at most 400."""
        return tuple(self._lines)

    @property
    def pid(self) -> int:
        """Process id of the server, and of the process group that its worker is in as well."""
        return self._process.pid

    def health(self) -> dict[str, Any]:
        """The JSON object of /health-check: `status`, and `setup` with its logs."""
        return self.get("/health-check")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path such as `/openapi.json`. Raises: `requests.HTTPError`."""
        with self._request("GET", path) as response:
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
        return answer

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """Waits until a prediction would be taken; returns the health.

        Raises: `ServerFailed` at once when the server ends or its setup fails, else after
        `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        health: dict[str, Any] = {"status": "not listening"}
        while time.monotonic() < deadline:
            # The address is announced before the port is open, and the end is told below.
            with suppress(requests.ConnectionError):
                health = self.health()
            if health["status"] == "READY":
                self._ready = True
                return health
            if health["status"] in ("SETUP_FAILED", "DEFUNCT"):
                reason = SETUP_FAILED.sub("", health.get("setup", {}).get("logs", "")).strip()
                tail = "" if self._hear else f"\n{self._tail()}"
                raise ServerFailed(f"The model's setup failed: {reason}{tail}")
            try:
                # There is no event for readiness, but there is one for the end of the server.
                code = self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise ServerFailed(f"The server ended with exit code {code}.\n{self._tail()}")
        raise ServerFailed(f"The server is {health['status']} after {timeout:g} s.\n{self._tail()}")

    def predict(
        self,
        values: Mapping[str, Any],
        timeout: float | None = 60.0,
        *,
        prediction_id: str | None = None,
    ) -> Reply:
        """Runs one prediction and waits for its end.

        The slot of a prediction is freed after its answer was sent, so 409 is tried again for up
        to 10 seconds, and returned after that. Raises: `requests.Timeout` after `timeout` seconds.
        """
        with self._predicting(values, prediction_id, timeout, {}) as response:
            return Reply(response.status_code, response.json())

    def stream(
        self,
        values: Mapping[str, Any],
        timeout: float | None = 60.0,
        *,
        prediction_id: str | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Runs one prediction; yields event name and JSON of each server-sent event as it comes.

        Closing the iterator cancels the prediction. Raises: `InvalidInput` for what the schema
        refuses; `ServerFailed` when the answer is no stream or `timeout` seconds pass before its
        end (checked at each line; there is at least a keep-alive line every 15 seconds).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        accept = {"Accept": "text/event-stream"}
        silence = SILENCE if timeout is None else timeout
        with self._predicting(values, prediction_id, silence, accept) as response:
            if response.status_code == UNFIT:
                raise InvalidInput(unfit(response.json()))
            if response.status_code != OK:
                raise ServerFailed(f"HTTP {response.status_code}: {response.text}")
            event = ""
            for line in response.iter_lines(chunk_size=None):
                name, _, value = line.decode().partition(":")
                if name == "event":
                    event = value.strip()
                elif name == "data":
                    yield event, json.loads(value)
                if deadline is not None and time.monotonic() > deadline:
                    raise ServerFailed(f"The stream goes on after {timeout:g} s.\n{self._tail()}")

    def cancel(self, prediction_id: str) -> int:
        """Cancels a prediction; returns the HTTP status: 200, or 404 when it is not running.

        Like its slot, a prediction is forgotten a moment after its answer: 200 until then.
        """
        with self._request("POST", f"/predictions/{prediction_id}/cancel") as response:
            return response.status_code

    @contextmanager
    def _predicting(
        self,
        values: Mapping[str, Any],
        prediction_id: str | None,
        timeout: float | None,
        headers: Mapping[str, str],
    ) -> Iterator[requests.Response]:
        body = {"input": dict(values)} | ({"id": prediction_id} if prediction_id else {})
        deadline = time.monotonic() + min(timeout or BUSY_TIMEOUT, BUSY_TIMEOUT)
        busy = threading.Event()
        while True:
            with self._request(
                "POST", "/predictions", timeout, json=body, headers=headers
            ) as reply:
                if reply.status_code != BUSY or time.monotonic() > deadline:
                    yield reply
                    return
            # Nothing tells that a slot was freed.
            busy.wait(0.02)

    @contextmanager
    def _request(
        self, method: str, path: str, timeout: float | None = 10.0, **more: Any
    ) -> Iterator[requests.Response]:
        url = self.base_url + path
        with requests.Session() as session:
            session.trust_env = False
            with session.request(method, url, timeout=timeout, stream=True, **more) as response:
                yield response

    def _read_log(self) -> None:
        for line in self._printed:
            self._lines.append(line.rstrip("\n"))
            if not self._address and (found := LISTENING.search(line)):
                self._address = found[1]
                self._announced.set()
            if (hear := self._hear) is not None:
                hear(self._lines[-1])
        self._announced.set()

    def _tail(self) -> str:
        return "\n".join(f"  | {line}" for line in [*self._lines][-40:])


def told(line: str) -> str | None:
    """What a line of the server's log has to say to a person, None for the server's own talk.

    That is what the model prints in setup, and what the server warns of.
    """
    found = PRINTED.fullmatch(line)
    if found and found["target"] == "coglet::setup":
        return SOURCE.sub("", found["text"])
    return found["text"] if found and found["level"] == "WARN" else None


def unfit(body: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems in the body of a 422 answer, one for each input that does not fit."""
    for each in body["detail"]:
        said = str(each["msg"])
        yield Problem("bad_input", f"{said[:1].upper()}{said[1:]}.", input=str(each["loc"][-1]))
