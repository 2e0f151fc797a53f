"""The fork server with small programs, with the real ComfyUI, and when it is killed or stopped."""

import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import node
from PIL import Image

from comfy_runner.comfyui import child, forking
from comfy_runner.comfyui.forking import Forked, ForkServer
from comfy_runner.comfyui.inside import PHASE
from comfy_runner.comfyui.process import ComfyProcess, child_environment
from comfy_runner.config import Config
from comfy_runner.runner import Runner
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a fork server")

LIMIT = 60.0
"""Seconds for what takes a few on a quiet machine."""

WAITS = "import signal; print('up', flush=True); signal.pause()"

Start = Callable[..., Forked]


def variables() -> dict[str, str]:
    """What the shared fork server has in all tests."""
    return {**child_environment(os.environ), "COMFY_RUNNER_LAZY_BOOT": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """The shared fork server, which has forked; it keeps a child, and lives as long."""
    with begun(tmp_path_factory.mktemp("kept"), forking.shared(variables()), WAITS) as kept:
        assert read_line(kept) == b"up\n"
        yield forking.shared(variables())


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """Variables with which a fork server has nothing to import, and is there at once."""
    none = tmp_path / "none"
    none.mkdir()
    for name in ("torch", "numpy", "safetensors", "einops", "PIL", "aiohttp", "av", "yaml"):
        (none / f"{name}.py").write_text("raise ImportError")
    for name in ("psutil", "tqdm", "pydantic_settings", "simpleeval"):
        (none / f"{name}.py").write_text("raise ImportError")
    return {"PATH": os.defpath, "PYTHONPATH": str(none)}


@pytest.fixture
def own_server(light: Mapping[str, str]) -> Iterator[ForkServer]:
    """A fork server that a test may break."""
    server = ForkServer(light)
    yield server
    server.kill()  # it may have been stopped
    server.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program as ComfyUI's main.py in a child of a fork server."""
    with ExitStack() as stack:
        count = iter(range(100))

        def start(
            server: ForkServer, code: str, environment: Mapping[str, str] | None = None
        ) -> Forked:
            folder = tmp_path / f"tree{next(count)}"
            folder.mkdir()
            return stack.enter_context(begun(folder, server, code, environment))

        yield start


class begun:  # noqa: N801 (used as a function)
    """A started program, which is ended and seen to its end afterwards."""

    def __init__(
        self,
        folder: Path,
        server: ForkServer,
        code: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        (folder / "main.py").write_text(code)
        given = variables() if environment is None else environment
        self.child = server.start(given, folder, "digest", ["--an", "argument"])

    def __enter__(self) -> Forked:
        return self.child

    def __exit__(self, *_: object) -> None:
        self.child.end()
        self.child.wait(LIMIT)
        self.child.close()


def read_line(child: Forked) -> bytes:
    """The next line that is not the launcher's."""
    line = b""
    while not line.endswith(b"\n") or line.startswith(PHASE.encode()) or not line.strip():
        line = b"" if line.endswith(b"\n") else line
        poll = select.poll()
        poll.register(child.output, select.POLLIN)
        assert poll.poll(LIMIT * 1000)
        read = os.read(child.output, 1)
        if not read:
            return line
        line += read
    return line


def reaches_end(descriptor: int) -> bool:
    """Whether everything that could write to the pipe is gone, at the latest after a while."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(LIMIT * 1000):
        if not os.read(descriptor, 4096):
            return True
    return False


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('a text')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_a_child_ends_as_its_program_does(
    server: ForkServer, start: Start, code: str, status: int
) -> None:
    assert start(server, code).wait(LIMIT) == status


def test_what_ends_with_the_interpreter_is_done(server: ForkServer, start: Start) -> None:
    """As in a process of its own, other threads are waited for, and a failure is told."""
    code = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()"
        "\nraise RuntimeError('told')"
    )
    child = start(server, code)
    assert child.wait(LIMIT) == 1
    lines = []
    while line := read_line(child):
        lines.append(line)
    assert lines[0] == b"Traceback (most recent call last):\n"
    assert lines[-3:] == [b"RuntimeError: told\n", b"thread\n", b"at exit\n"]


def test_the_memory_is_known_of_who_is_killed_by_somebody_else(
    server: ForkServer, start: Start
) -> None:
    killed = start(server, "x = bytearray(300_000_000)\n" + WAITS)
    assert read_line(killed) == b"up\n"
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(LIMIT) == -signal.SIGKILL
    assert killed.memory is not None
    assert killed.memory > 300_000_000
    ended = start(server, WAITS)
    assert read_line(ended) == b"up\n"
    ended.end()
    assert ended.wait(LIMIT) == -signal.SIGKILL
    assert ended.memory is None


STATE = """
import json, os, random, signal, sys, threading
import numpy, torch
def handler(number):
    found = signal.getsignal(number)
    return getattr(found, "__name__", str(found))
def opened():
    for each in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            yield each, os.readlink(f"/proc/self/fd/{each}").partition(":")[0]
        except FileNotFoundError:  # that of the listing itself
            pass
print("STATE" + json.dumps({
    "signals": {str(each): handler(each) for each in sorted(signal.valid_signals())},
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "folder": os.getcwd(),
    "variables": dict(os.environ),
    "descriptors": list(opened()),
    "arguments": len(sys.argv),
    "path": sys.path,
    "leads": os.getpgrp() == os.getpid(),
    "threads": [each.name for each in threading.enumerate()],
    "torch_threads": torch.get_num_threads(),
    "main": sys.modules["__main__"].__file__,
    "flags": str(sys.flags),
}))
"""


def test_a_child_has_what_a_process_of_its_own_has(tmp_path: Path, server: ForkServer) -> None:
    """It gets no signal handler, descriptor or variable of the fork server."""
    (tmp_path / "main.py").write_text(STATE)
    config = Config(home=tmp_path, comfyui=tmp_path, models=tmp_path / "models", device="cpu")
    states: list[dict[str, Any]] = []
    for forks in (True, False):
        process = ComfyProcess(replace(config, fork_server=forks), tmp_path / "run")
        process.start()
        assert process.ends_within(LIMIT)
        assert process.pid != server.pid
        (line,) = (line for line in process.tail(200) if line.startswith("STATE"))
        states.append(json.loads(line.removeprefix("STATE")))
        process.stop()
    assert states[0] == states[1]
    assert states[0]["variables"]["TRITON_CACHE_DIR"] == str(tmp_path / "cache" / "triton")


# Starts a fork server with these variables and a child in this folder; see `program`.
BEGIN = """
import os, signal, sys
from pathlib import Path
from comfy_runner.comfyui import forking
from comfy_runner.comfyui.inside import PHASE
def begin():
    server = forking.shared({name: os.environ[name] for name in ("PATH", "PYTHONPATH")})
    return server, server.start({}, Path(sys.argv[1]), "digest", [])
def line(child):
    with open(child.output, closefd=False) as output:
        return next(line for line in output if line.strip() and not line.startswith(PHASE))
"""


@contextmanager
def program(
    light: Mapping[str, str], tree: Path, code: str, *more: str
) -> Iterator[subprocess.Popen[str]]:
    """A program that can start a fork server, for a `tree` whose main.py is there."""
    places = os.pathsep.join([light["PYTHONPATH"], *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + code, tree, *more],
        env={**light, "PYTHONPATH": places},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_signals_that_we_ignore_or_block_reach_a_child(
    light: Mapping[str, str], tmp_path: Path
) -> None:
    """Cog may have started us with SIGTERM ignored, and a thread may have blocked signals."""
    (tmp_path / "main.py").write_text(
        "import signal\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,"
        " signal.getsignal(signal.SIGINT) == signal.default_int_handler,"
        " len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), flush=True)\n"
    )
    ignoring = (
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD, signal.SIGTERM))\n"
        "server, child = begin()\n"
        "print(line(child), child.wait(20))\n"
    )
    with program(light, tmp_path, ignoring) as process:
        assert process.communicate(timeout=LIMIT)[0].split() == ["True", "True", "0", "0"]


def test_a_process_that_is_forked_from_ours_has_no_part_in_it(
    light: Mapping[str, str], tmp_path: Path
) -> None:
    """It ends with its atexit functions, and leaves the fork server and its children alone."""
    (tmp_path / "main.py").write_text(WAITS)
    forks = (
        "server, child = begin()\n"
        "print(line(child).strip(), flush=True)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    child.end()\n"
        "    child.kill()\n"
        "    server.close()\n"
        "    server.end(child)\n"
        "    print(child.wait(0), flush=True)\n"
        "    sys.exit(4)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), server.lost, child.poll())\n"
        "again = server.start({}, Path(sys.argv[1]), 'digest', [])\n"
        "print(line(again).strip(), child.poll())\n"
        "child.end()\n"
        "print(child.wait(20))\n"
    )
    with program(light, tmp_path, forks) as process:
        told = process.communicate(timeout=LIMIT)[0].splitlines()
    assert told == ["up", "-9", "4 False None", "up None", "-9"]


LEAVES = """
import os, signal, subprocess, sys
alive = os.open(os.environ["ALIVE"], os.O_WRONLY)
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], pass_fds=[alive])
print("up", flush=True)
signal.pause()
"""


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[int]:
    """Reading end of the named pipe that `LEAVES` and its child hold open."""
    os.mkfifo(tmp_path / "alive")
    descriptor = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("how", ["end", "kill"])
def test_nothing_outlives_us(
    light: Mapping[str, str], tmp_path: Path, alive: int, how: str
) -> None:
    (tmp_path / "main.py").write_text(LEAVES)
    waits = (
        f"os.environ['ALIVE'] = {str(tmp_path / 'alive')!r}\n"
        "server = forking.shared({'PATH': os.environ['PATH'],"
        " 'PYTHONPATH': os.environ['PYTHONPATH']})\n"
        "child = server.start(os.environ, Path(sys.argv[1]), 'digest', [])\n"
        "print(line(child), end='', flush=True)\n"
        f"if {how!r} == 'kill': signal.pause()\n"
    )
    with program(light, tmp_path, waits) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        if how == "kill":
            process.kill()
        assert process.wait(LIMIT) == (-signal.SIGKILL if how == "kill" else 0)
        assert reaches_end(alive)


@pytest.mark.parametrize("how", ["fork server", "child", "end", "close"])
def test_nothing_outlives_a_child(
    own_server: ForkServer, start: Start, tmp_path: Path, alive: int, how: str
) -> None:
    child = start(own_server, LEAVES, {"ALIVE": str(tmp_path / "alive")})
    assert read_line(child) == b"up\n"
    match how:
        case "fork server":
            os.kill(own_server.pid, signal.SIGKILL)
        case "child":
            os.kill(child.pid, signal.SIGKILL)
        case "end":
            child.end()
        case _:
            own_server.close()
    assert child.wait(LIMIT) == -signal.SIGKILL
    assert reaches_end(alive)
    assert own_server.lost == (how in ("fork server", "close"))


def test_a_fork_server_that_is_gone_is_told(own_server: ForkServer, start: Start) -> None:
    child = start(own_server, WAITS)
    assert read_line(child) == b"up\n"
    os.kill(own_server.pid, signal.SIGKILL)
    child.wait(LIMIT)
    with pytest.raises(OSError, match="file descriptor"):
        start(own_server, WAITS)
    child.end()
    child.kill()
    child.ask_for_stacks()


def test_a_child_that_is_ended_before_the_fork_is_not_waited_for(
    own_server: ForkServer, start: Start
) -> None:
    os.kill(own_server.pid, signal.SIGSTOP)  # as good as importing
    ended, stays = start(own_server, WAITS), start(own_server, WAITS)
    ended.end()
    assert ended.wait(0) == -signal.SIGKILL
    assert ended.pid == 0
    os.kill(own_server.pid, signal.SIGCONT)
    assert read_line(stays) == b"up\n"
    assert ended.pid == 0
    assert reaches_end(ended.output)


def test_a_fork_server_that_does_nothing_is_killed_for_its_children(
    own_server: ForkServer, start: Start
) -> None:
    child = start(own_server, WAITS)
    assert read_line(child) == b"up\n"
    os.kill(own_server.pid, signal.SIGSTOP)
    child.end()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.1)
    child.kill()
    assert child.wait(LIMIT) == -signal.SIGKILL
    assert reaches_end(child.output)


def test_a_fork_server_that_does_not_fork_is_given_up(
    own_server: ForkServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "PATIENCE", 0.1)
    monkeypatch.setattr(forking, "LOOK_EVERY", 0.1)
    os.kill(own_server.pid, signal.SIGSTOP)
    child = start(own_server, WAITS)
    assert child.wait(LIMIT) == -signal.SIGKILL
    assert child.memory is None
    assert own_server.lost


def test_as_many_requests_as_a_stopped_fork_server_can_take_do_not_block(
    own_server: ForkServer, start: Start
) -> None:
    os.kill(own_server.pid, signal.SIGSTOP)
    child = start(own_server, WAITS)
    for _ in range(10_000):
        own_server.end(child)
    with pytest.raises(BlockingIOError):
        start(own_server, WAITS)


def test_an_environment_may_be_larger_than_a_message(own_server: ForkServer, start: Start) -> None:
    environment = {f"NAME{number}": "x" * 100_000 for number in range(10)}
    tells = "import os; print(sum(map(len, os.environ.values())), flush=True)"
    assert read_line(start(own_server, tells, environment)) == b"1000000\n"


def test_a_child_that_cannot_be_forked_ends_nothing_else(
    own_server: ForkServer, start: Start
) -> None:
    up = start(own_server, WAITS)
    assert read_line(up) == b"up\n"
    resource.prlimit(own_server.pid, resource.RLIMIT_NOFILE, (4, 4))
    child = start(own_server, WAITS)
    assert child.wait(LIMIT) == 127
    assert up.poll() is None


FORKS_THE_THIRD_TIME = """
import errno, os
usual, count = os.fork, iter(range(3))
def fork():
    if next(count) < 2:
        raise OSError(errno.EAGAIN, "no process is left")
    return usual()
os.fork = fork
raise ImportError
"""


def test_a_fork_that_fails_is_told_to_whoever_listens_and_ends_nothing_else(
    light: Mapping[str, str], start: Start
) -> None:
    Path(light["PYTHONPATH"], "torch.py").write_text(FORKS_THE_THIRD_TIME)
    server = ForkServer(light)
    try:
        child = start(server, WAITS)
        assert read_line(child) == b"cannot fork: no process is left\n"
        assert child.wait(LIMIT) == 127
        os.kill(server.pid, signal.SIGSTOP)
        unheard = start(server, WAITS)
        unheard.close()
        os.kill(server.pid, signal.SIGCONT)
        assert unheard.wait(LIMIT) == 127
        assert read_line(start(server, WAITS)) == b"up\n"
        assert not server.lost
    finally:
        server.kill()
        server.close()


def test_random_numbers_differ_without_a_seed(server: ForkServer, start: Start) -> None:
    tells = (
        "import random, numpy, torch; print(random.random(), numpy.random.rand(),"
        " numpy.random.default_rng().random(), float(torch.rand(1)), float(torch.randn(1)),"
        " flush=True)"
    )
    first, second = (read_line(start(server, tells)).split() for _ in range(2))
    assert len({*first, *second}) == 10


def test_children_share_one_fork_server(server: ForkServer, tmp_path: Path) -> None:
    config = Config(comfyui=tmp_path, models=tmp_path / "models", device="cpu")
    (tmp_path / "main.py").write_text(WAITS)
    one, other = (ComfyProcess(config, tmp_path / name) for name in ("one", "other"))
    try:
        one.start()
        other.start()
        one.restart()
        assert parent_of(wait_pid(one)) == parent_of(wait_pid(other)) == server.pid
    finally:
        one.stop()
        other.stop()


def wait_pid(process: ComfyProcess) -> int:
    """Its process id, once it has been forked and prints."""
    deadline = time.monotonic() + LIMIT
    while not process.tail() and time.monotonic() < deadline:
        assert not process.ends_within(0.05)
    assert process.pid
    return process.pid


def faulty(tmp_path: Path, code: str, **variables: str) -> ComfyProcess:
    (tmp_path / "main.py").write_text(code)
    config = Config(comfyui=tmp_path, models=tmp_path / "models", device="cpu")
    return ComfyProcess(config, tmp_path / "run", {**os.environ, **variables})


SERVES_ALONE = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if "forkserver.py" in open("/proc/self/cmdline").read():
    sys.exit("not in such company")
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"worker_alive": True, "guard": os.getppid()}).encode())
HTTPServer(("127.0.0.1", int(sys.argv[-1])), Health).serve_forever()
"""


HANGS_FIRST = """
import pathlib, signal
first = pathlib.Path("started")
if not first.exists():
    first.touch()
    print("here", flush=True)
    signal.pause()
""" + SERVES_ALONE.replace('sys.exit("not in such company")', "pass")


def test_a_comfyui_that_is_killed_while_it_boots_is_forked_again_later(
    server: ForkServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = faulty(tmp_path, HANGS_FIRST)
    try:
        process.start()
        os.kill(wait_pid(process), signal.SIGKILL)
        assert process.wait_ready(LIMIT)
        assert "SIGKILL); it boots as usual now." in caplog.text
        guard = process.pid
        assert guard is not None
        assert parent_of(guard) == os.getpid()
        process.restart()
        assert process.wait_ready(LIMIT)
        assert parent_of(process.pid or 0) == server.pid
    finally:
        process.stop()


def test_a_comfyui_that_cannot_be_forked_boots_as_usual_from_then_on(
    server: ForkServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = faulty(tmp_path, SERVES_ALONE)
    try:
        process.start()
        assert process.wait_ready(LIMIT)
        (told,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
        assert told == (
            "ComfyUI ended while it booted in a shortened way (exit code 1); it boots as usual"
            " from now on. Its last line was: not in such company"
        )
        caplog.clear()
        process.restart()
        assert process.wait_ready(LIMIT)
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    finally:
        process.stop()
    assert not server.lost


@pytest.mark.parametrize("what", ["fails", "hangs"])
def test_without_a_working_fork_server_comfyui_boots_as_usual(
    server: ForkServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """It is told once, and not tried again."""
    broken = tmp_path / "forkserver.py"
    broken.write_text("1 / 0" if what == "fails" else "import signal; signal.pause()")
    monkeypatch.setattr(forking, "PROGRAM", broken)
    monkeypatch.setattr(forking, "PATIENCE", 0.1)
    monkeypatch.setattr(forking, "LOOK_EVERY", 0.1)
    process = faulty(tmp_path, SERVES_ALONE, TZ="Etc/GMT+3")
    try:
        process.start()
        assert process.wait_ready(LIMIT)
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        plainly = (
            "ComfyUI ended while it booted in a shortened way (signal SIGKILL); it boots as usual"
            " from now on."
        )
        assert told.count(plainly) == 1
        if what == "fails":
            assert "fork server: ZeroDivisionError: division by zero" in told
            assert "ComfyUI's fork server ended (exit code 1)." in told
        caplog.clear()
        process.restart()
        assert process.wait_ready(LIMIT)
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    finally:
        process.stop()
    assert not server.lost


def test_a_fork_server_that_cannot_be_started_is_tried_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = faulty(tmp_path, SERVES_ALONE, TZ="Etc/GMT+4")
    monkeypatch.setattr(forking.sysconfig, "get_path", lambda _: str(tmp_path / "none"))
    try:
        process.start()
        process.restart()
        assert process.wait_ready(LIMIT)
    finally:
        process.stop()
    (told,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert told.startswith("ComfyUI is started without a fork server from now on: ")


def test_a_stop_ends_even_what_a_stopped_fork_server_does_not(
    server: ForkServer, tmp_path: Path, alive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "END_TIMEOUT", 1.0)
    code = LEAVES.replace('os.environ["ALIVE"]', repr(str(tmp_path / "alive")))
    process = faulty(tmp_path, code, TZ="Etc/GMT+5")
    process.start()
    comfyui = wait_pid(process)
    stopped = forking.shared({**variables(), "TZ": "Etc/GMT+5"})
    assert stopped is not server
    os.kill(stopped.pid, signal.SIGSTOP)
    process.stop()
    assert reaches_end(alive)
    assert process.exit_code == -signal.SIGKILL
    assert stopped.lost
    process.restart()
    assert wait_pid(process) != comfyui
    process.stop()
    assert reaches_end(alive)


def booted(config: Config, folder: Path) -> ComfyProcess:
    process = ComfyProcess(config, folder)
    process.start()
    assert process.wait_ready(config.boot_timeout)
    return process


def test_the_real_comfyui_is_there_again_after_it_was_killed(
    server: ForkServer, comfy_config: Config, tmp_path: Path
) -> None:
    process = booted(comfy_config, tmp_path)
    try:
        assert process.pid == process.comfyui_pid
        first = process.comfyui_pid
        assert first is not None
        held = process.memory()
        assert held is not None
        assert held > 10_000_000
        os.kill(first, signal.SIGKILL)
        assert process.ends_within(LIMIT)
        assert str(process.crashed("between two runs")).startswith(
            "ComfyUI ended between two runs, killed from outside, perhaps because memory ran out:"
            " it held up to "
        )
        assert process.exit_code == -signal.SIGKILL
        process.restart()
        assert process.wait_ready(comfy_config.boot_timeout)
        assert process.comfyui_pid not in (first, None)
        assert os.getpgid(process.comfyui_pid or 0) == process.comfyui_pid
        assert not server.lost
    finally:
        process.stop()


def test_a_forked_comfyui_makes_the_same_picture(
    server: ForkServer, comfy_config: Config, tmp_path: Path
) -> None:
    document = {
        "1": node("EmptyImage", width=96, height=64, batch_size=1, color=0x204060),
        "2": node("ImageAddNoise", image=["1", 0], seed=7, strength=0.5),
        "3": node("ImageBlur", image=["2", 0], blur_radius=2, sigma=1.0),
        "4": node(
            "ImageScale",
            image=["3", 0],
            upscale_method="bicubic",
            width=160,
            height=120,
            crop="disabled",
        ),
        "5": node("SaveImage", images=["4", 0], filename_prefix="same"),
    }
    pixels, parents = [], []
    for forks in (True, False):
        config = replace(comfy_config, home=tmp_path / f"{forks}", fork_server=forks)
        with Runner(config) as runner:
            (made,) = (
                update
                for update in runner.run(Request(document=document, seed=7))
                if isinstance(update, Output)
            )
            with Image.open(made.path) as picture:
                pixels.append(picture.tobytes())
            parents.append(parent_of(runner.process.comfyui_pid))
    assert parents[0] == server.pid != parents[1]
    assert pixels[0] == pixels[1]


def parent_of(pid: int | None) -> int:
    """Process id of the parent: proc(5), the second field after the name in parentheses."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
