"""The supervised ComfyUI child: started, waited for, read, and ended with all it started."""

import atexit
import http.client
import json
import logging
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from comfy_runner.comfyui.device import choose_device
from comfy_runner.config import Config
from comfy_runner.errors import StartFailed, describe_exit

log = logging.getLogger(__name__)
comfyui_log = logging.getLogger("comfyui")

HERE = Path(__file__).resolve().parent
KEPT_LINES = 200
LONGEST_LINE = 64 * 1024  # bytes
PORT_ATTEMPTS = 4
END_TIMEOUT = 10.0  # seconds for a killed process to be gone

LEVELS = {
    "[DEBUG]": logging.DEBUG,
    "[WARNING]": logging.WARNING,
    "[ERROR]": logging.ERROR,
    "[CRITICAL]": logging.CRITICAL,
}
"""How ComfyUI's log lines begin; INFO is what all others are passed on as."""

ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

PASSED_ON = re.compile(
    "PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TEMP|TMP|LD_LIBRARY_PATH|LD_PRELOAD"
    "|CUDA_.*|NVIDIA_.*|NCCL_.*|CUBLAS_.*|CUDNN_.*|HIP_.*|ROCR_.*|HSA_.*|PYTORCH_.*|TORCH.*|TRITON_.*"
    "|OMP_.*|MKL_.*|OPENBLAS_.*|NUMEXPR_.*|KMP_.*|GOMP_.*"
    "|VIRTUAL_ENV|PYTHONPYCACHEPREFIX|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    "|XDG_.*|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|HF_ENDPOINT"
)
SECRET = re.compile("TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH")


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Keeps huggingface_hub 2.4, transformers 5 and datasets from asking the hub for anything."""


def child_environment(environment: Mapping[str, str], *, hub: bool = False) -> dict[str, str]:
    """The part of `environment` that ComfyUI gets, since core nodes can print what they have.

    Hugging Face can be asked only with `hub`: a node pack that fetches a model in the middle of a
    run is neither verified nor counted. PYTHONDONTWRITEBYTECODE is not passed on: without a
    bytecode cache a start takes twice as long.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if PASSED_ON.fullmatch(name) and not SECRET.search(name)
    }
    return {**passed, **({} if hub else OFFLINE), "PYTHONUNBUFFERED": "1"}


class Child:
    """One started process with its guard; it ends at the latest when this program does."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        """Start `command`. Raises: `OSError`."""
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.popen = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", str(HERE / "guard.py"), *command],
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.PIPE,  # never written to: that it ends is the message
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # A daemon, because atexit functions run only after all other threads ended.
        self.reader = threading.Thread(target=self._read, name="comfyui-log", daemon=True)
        self.reader.start()

    def end(self) -> None:
        """Kill the process and its group, and wait for it; nothing happens the second time."""
        if self.popen.stdin is not None:
            self.popen.stdin.close()
        try:
            self.popen.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.warning("ComfyUI is not gone %.0f s after it was killed", END_TIMEOUT)
            self.popen.kill()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(END_TIMEOUT)
        self.finish_reading()

    def finish_reading(self) -> None:
        """Wait until the last line of an ended process is in `lines`."""
        self.reader.join(END_TIMEOUT)
        if self.popen.stdout is not None and not self.reader.is_alive():
            self.popen.stdout.close()

    def _read(self) -> None:
        for raw in self._raw_lines():
            # Of a progress bar that redraws itself, the last state counts.
            text = raw.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
            line = ANSI.sub("", text).rstrip()
            if line:
                self.lines.append(line)
                level, _, _ = line.partition(" ")
                comfyui_log.log(LEVELS.get(level, logging.INFO), "%s", line)

    def _raw_lines(self) -> Iterator[bytes]:
        assert self.popen.stdout is not None  # noqa: S101 (for mypy: it was asked for)
        descriptor = self.popen.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        rest = b""
        while True:
            # The pipe may outlive the process: something that left its group can hold it open.
            ended = self.popen.poll() is not None
            if not poll.poll(500):
                if ended:
                    break
                continue
            chunk = os.read(descriptor, LONGEST_LINE)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
            if len(rest) > LONGEST_LINE:
                yield rest
                rest = b""
        yield rest


class ComfyProcess:
    """ComfyUI in a folder of its own: started, waited for, watched and ended, from any thread."""

    def __init__(
        self, config: Config, folder: Path, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Nothing is started or written yet.

        `folder` is made when needed; it holds what ComfyUI reads and writes, and its owner removes
        it. `environment` is where the child's variables are chosen from.
        """
        self.config = config
        self.folder = folder.absolute()
        self.input = self.folder / "input"
        self.output = self.folder / "output"
        self.temp = self.folder / "temp"
        self.port = 0
        self.device = ""
        """`cpu` or `cuda`; empty before the first start."""
        self._environment = environment
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._wanted = False

    @property
    def base_url(self) -> str:
        """Where the server answers; changes with each start."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process runs; it may still be starting."""
        child = self._child
        return child is not None and child.popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the last process ended, negative for a signal; None while it runs or before."""
        child = self._child
        return None if child is None else child.popen.poll()

    def tail(self, count: int = 20) -> tuple[str, ...]:
        """The last lines that ComfyUI printed, oldest first, at most 200; see `forget_lines`."""
        child = self._child
        return () if child is None else tuple(child.lines)[-count:]

    def forget_lines(self) -> None:
        """Let `tail` begin anew: what one caller's run printed is no business of the next's."""
        if self._child is not None:
            self._child.lines.clear()

    def describe(self) -> dict[str, str | int | bool | None]:
        """The state as flat JSON."""
        child = self._child
        return {
            "alive": self.alive,
            "exit_code": self.exit_code,
            "pid": None if child is None else child.popen.pid,
            "base_url": self.base_url,
            "device": self.device,
        }

    def start(self) -> None:
        """Start the process, which then boots on its own; `wait_ready` follows it.

        Raises: `StartFailed` when there is no ComfyUI, a folder cannot be written, or the process
        cannot be started. `RuntimeError` when it runs already.
        """
        with self._lock:
            if self.alive:
                raise RuntimeError("ComfyUI runs already")
            if not (self.config.comfyui / "main.py").is_file():
                raise StartFailed(
                    f"There is no ComfyUI in {self.config.comfyui}. Run script/bootstrap."
                )
            self.device, reason = choose_device(self.config, self._environment)
            log.info("ComfyUI computes on %s: %s", self.device, reason)
            self._wanted = True
            atexit.unregister(self.stop)
            atexit.register(self.stop)
            self._spawn()

    def wait_ready(self, timeout: float) -> None:
        """Return when ComfyUI answers and its worker runs; at most `timeout` seconds.

        Raises: `StartFailed` with the last lines printed, at once when the process ends. Out of
        time, the process is killed.
        """
        deadline = time.monotonic() + timeout
        attempt = 1
        while True:
            child = self._child
            if child is None:
                raise StartFailed("ComfyUI was not started.")
            try:
                exit_code = child.popen.wait(0.05)
            except subprocess.TimeoutExpired:
                if self._answers(child):
                    return
                if time.monotonic() > deadline:
                    self.stop()
                    self._fail(child, f"ComfyUI did not answer within {timeout:.0f} s.")
                continue
            child.finish_reading()
            with self._lock:
                if not self._wanted:
                    raise StartFailed("ComfyUI was stopped while it started.")
                if self._child is not child:  # another thread started it again
                    continue
                taken = f"Port {self.port} is already in use"
                if attempt < PORT_ATTEMPTS and any(taken in line for line in child.lines):
                    log.warning("port %d was taken while ComfyUI started; once more", self.port)
                    attempt += 1
                    self._spawn()
                    continue
            self._fail(child, f"ComfyUI ended while it started ({describe_exit(exit_code)}).")

    def stop(self) -> None:
        """Kill ComfyUI and everything it started; nothing happens when it does not run."""
        with self._lock:
            self._wanted = False
            if self._child is not None:
                self._child.end()
            atexit.unregister(self.stop)

    def restart(self) -> None:
        """`stop`, then `start` in the same folder: inputs and outputs stay, `temp` is emptied."""
        with self._lock:
            self.stop()
            self.start()

    def _spawn(self) -> None:
        if self._child is not None:
            self._child.end()
        try:
            self._prepare_folders()
            self.port = free_port()
            self._child = Child(
                self._command(),
                self.config.comfyui,
                child_environment(self._environment, hub=self.config.hub_at_run_time),
            )
        except OSError as err:
            raise StartFailed(f"ComfyUI could not be started: {err}") from err

    def _prepare_folders(self) -> None:
        # Without custom_nodes ComfyUI 0.30 ends at once (main.py execute_prestartup_script).
        own = [self.folder / name for name in ("custom_nodes", "user")]
        for folder in (*own, self.input, self.output, self.temp, self.config.models):
            folder.mkdir(parents=True, exist_ok=True)
        # JSON is YAML, and quotes any path.
        custom_nodes = self.config.custom_nodes.absolute()
        paths = {"custom_nodes": str(custom_nodes)} if custom_nodes.is_dir() else {}
        self._paths_file.write_text(json.dumps({"comfy_runner": paths}))

    @property
    def _paths_file(self) -> Path:
        return self.folder / "model_paths.yaml"

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-P", str(HERE / "launcher.py"), str(self.config.comfyui)),
            *("--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(self.folder)),
            *("--models-directory", str(self.config.models.absolute())),
            *("--extra-model-paths-config", str(self._paths_file)),
            *("--database-url", "sqlite:///:memory:"),
            *("--disable-api-nodes", "--disable-auto-launch"),
            *("--cache-classic", "--preview-method", "none"),
            *(["--cpu"] if self.device == "cpu" else []),
            *self.config.comfyui_args,
        ]

    def _answers(self, child: Child) -> bool:
        """Whether it is this child that answers on the port, and its worker runs."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.0)
        try:
            connection.request("GET", "/comfy_runner/health")
            health = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        # Another ComfyUI may have got the port: ours has the guard as its parent.
        return bool(health == {"worker_alive": True, "guard": child.popen.pid})

    def _fail(self, child: Child, what: str) -> None:
        lines = tuple(child.lines)[-20:]
        raise StartFailed(what + ("".join(f"\n  | {line}" for line in lines) or " It was silent."))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
