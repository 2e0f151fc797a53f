"""What the benchmarks start and compare: a bare ComfyUI, a `Runner` and Cog's server."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from comfy_runner.comfyui import forking
from comfy_runner.comfyui.device import choose_device
from comfy_runner.comfyui.process import child_environment, free_port
from comfy_runner.config import PROJECT, Config
from comfy_runner.runner import Runner
from comfy_runner.runs.preloading import Ahead

sys.path.append(str(PROJECT / "tests"))  # they start the real server in the same way
from cog_server import CogServer, ServerFailed  # noqa: F401 - the soak has it from here

POLL = 0.02
"""Seconds between two looks whether the bare ComfyUI is ready; ours says so itself."""

SAMPLE = 0.05
"""Seconds between two looks at the memory of a boot."""

KIB = 1024

END_TIMEOUT = 20.0

NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


@contextmanager
def workplace(*, gpu: bool = False) -> Iterator[Config]:
    """Settings for ComfyUI in a temporary folder, with no models and no custom nodes.

    It is on the CPU, or on the GPU of this machine, which must be there then. The settings stand
    in this process's environment as well, from where the Cog server's worker takes them. SIGTERM
    ends the program as Ctrl-C does, so that nothing it started is left.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    comfyui = Config.from_environment().comfyui
    if not (comfyui / "main.py").is_file():
        sys.exit(f"There is no ComfyUI in {comfyui}. Run script/bootstrap.")
    with tempfile.TemporaryDirectory(prefix="comfy-runner-benchmark-") as name:
        home = Path(name)
        os.environ |= {
            "COMFY_RUNNER_HOME": str(home),
            "COMFY_RUNNER_COMFYUI": str(comfyui),
            "COMFY_RUNNER_MODELS": str(home / "models"),
            "COMFY_RUNNER_CUSTOM_NODES": str(home / "no_custom_nodes"),
            "COMFY_RUNNER_DEVICE": "auto" if gpu else "cpu",
        }
        os.environ.pop(NO_BYTECODE, None)
        config = Config.from_environment()
        device, reason = choose_device(config, os.environ)
        if gpu and device != "cuda":
            sys.exit(f"There is no GPU: {reason}.")
        yield config


@dataclass(frozen=True)
class Flags:
    """The command-line arguments that a runner gave its ComfyUI, for another ComfyUI to take."""

    arguments: tuple[str, ...]
    folder: Path
    port: int
    paths_file: str
    """What stands in the file of extra model paths."""

    @classmethod
    def of(cls, runner: Runner) -> "Flags":
        """Those of a started runner, as its ComfyUI reports them."""
        process = runner.process
        with local_session() as session:
            session.headers["Authorization"] = f"Bearer {process.token}"
            stats = session.get(f"{process.base_url}/system_stats", timeout=END_TIMEOUT).json()
        _, *arguments = stats["system"]["argv"]
        if ("--cpu" in arguments) != (process.device == "cpu"):
            sys.exit(f"ComfyUI does not run on the {process.device}: {arguments}")
        paths_file = Path(arguments[arguments.index("--extra-model-paths-config") + 1])
        return cls(tuple(arguments), process.folder, process.port, paths_file.read_text())

    def moved(self, folder: Path, port: int) -> list[str]:
        """The same arguments for another folder, which is made, and another port."""
        for name in ("custom_nodes", "user", "input", "output", "temp"):
            (folder / name).mkdir(parents=True)
        (folder / "model_paths.yaml").write_text(self.paths_file)
        return [
            str(port)
            if argument == str(self.port)
            else argument.replace(str(self.folder), str(folder))
            for argument in self.arguments
        ]


@contextmanager
def lone_runner(config: Config, ahead: Ahead | None = None) -> Iterator[Runner]:
    """A started runner whose fork server ends with it.

    It would serve the next runners of this program, which would find torch imported, and share
    memory with them.
    """
    try:
        with Runner(config, ahead) as runner:
            yield runner
    finally:
        forking.close_idle()


@dataclass(frozen=True)
class BareComfyUI:
    """A ComfyUI that was started by hand."""

    base_url: str
    output: Path


@contextmanager
def bare_comfyui(config: Config, flags: Flags) -> Iterator[BareComfyUI]:
    """`python main.py` as everybody starts it, with the runner's arguments and environment.

    Within, GET /system_stats has answered; the process is killed at the end.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(dir=config.home, prefix="bare-") as name:
        folder = Path(name)
        base_url = f"http://127.0.0.1:{port}"
        # Our child is never forbidden to write bytecode; one started by hand may be.
        refused = {name: os.environ[name] for name in (NO_BYTECODE,) if name in os.environ}
        command = [sys.executable, "main.py", *flags.moved(folder, port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                command,
                cwd=config.comfyui,
                env=child_environment(os.environ) | refused,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours alone, and the whole group can be ended
            )
        try:
            _await_answer(process, f"{base_url}/system_stats", config.boot_timeout, folder / "log")
            yield BareComfyUI(base_url, folder / "output")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(END_TIMEOUT)


def _await_answer(process: subprocess.Popen[bytes], url: str, timeout: float, log: Path) -> None:
    deadline = time.monotonic() + timeout
    with local_session() as session:
        while time.monotonic() < deadline:
            try:
                code = process.wait(POLL)
            except subprocess.TimeoutExpired:
                with suppress(requests.RequestException):
                    session.get(url, timeout=1.0).raise_for_status()
                    return
            else:
                sys.exit(f"The bare ComfyUI ended with exit code {code}:\n{log.read_text()}")
    sys.exit(f"The bare ComfyUI did not answer within {timeout:.0f} s:\n{log.read_text()}")


@contextmanager
def cog_server(config: Config) -> Iterator[str]:
    """Cog's HTTP server with our predict.py; within, /health-check says READY. Its base URL."""
    with CogServer(PROJECT) as server:
        server.wait_ready(config.boot_timeout)
        yield server.base_url


def descendants(ancestor: int | None = None) -> frozenset[int]:
    """Process ids of all that a process, by default this one, has started and what that has.

    Empty where the system is not Linux.
    """
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # The name in brackets may hold anything; see proc_pid_stat(5).
            _, parent, *_ = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found: set[int] = set()
    due = [os.getpid() if ancestor is None else ancestor]
    while due:
        new = children.get(due.pop(), [])
        found.update(new)
        due += new
    return frozenset(found)


def memory(processes: Iterable[int]) -> int | None:
    """Bytes of memory that these processes hold together; None where the system does not tell.

    The sum of their PSS: what several share, such as the code of libraries and what was there
    before a fork, is counted once, divided among those that have it.
    """
    total = 0
    for number in processes:
        try:
            text = Path(f"/proc/{number}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended, or this is not Linux
            continue
        except OSError:
            return None
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        total += int(fields["Pss"].split()[0]) * KIB if "Pss" in fields else 0
    return total or None


class PeakMemory:
    """Within, what this process starts is looked at for the most memory that it held at once."""

    def __init__(self) -> None:
        self.bytes: int | None = None
        """As `memory` counts, of all that was started since; what stood before is left out."""
        self._before = descendants()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Look once more, now."""
        now = memory(descendants() - self._before)
        self.bytes = max(filter(None, (self.bytes, now)), default=None)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE):
            self.look()


def local_session() -> requests.Session:
    """A session that keeps its connection open and asks no proxy."""
    session = requests.Session()
    session.trust_env = False
    return session


def machine() -> str:
    """Cores and load, one line: whoever reads the figures has to know what else was going on."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"cores: {cores}, load over 1, 5 and 15 minutes: {load}"


def percentile_95(values: Sequence[float]) -> float:
    """The value that 95 of 100 do not exceed, interpolated; the only value of one."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if values[1:] else values[0]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first one to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *rest = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *rest)))


def rounds(names: Sequence[str], count: int) -> Iterator[str]:
    """Each name `count` times; every round has all of them and begins with another one."""
    for number in range(count):
        turn = number % len(names)
        yield from (*names[turn:], *names[:turn])
