"""Seconds from start to ready, and the memory that takes: a bare ComfyUI, and ours in four ways.

  bare     python main.py, until GET /system_stats answers
  plain    Runner(config).start() in a process that has imported it, until it returns, with
           COMFY_RUNNER_LAZY_BOOT and COMFY_RUNNER_FORK_SERVER off
  lazy     the same with the lazy boot alone
  cog      the real Cog server with predict.py, until GET /health-check says READY
  restart  ComfyUI is killed with SIGKILL, restarted, and ready again; from the kill on

cog and restart have the settings of this project, whatever the defaults are. All start ComfyUI with
the same arguments and environment, one after the other, and take turns in who is first. Before,
each is started once without being timed, so that bytecode is there and the disk's cache is warm.
With --no-bytecode no boot finds any. There is no row restart then: the first boot of its ComfyUI
would leave bytecode, and a fork server that has imported torch, to the second.

Memory is PSS, in which what processes share counts once, summed over all processes that the row
has started: ComfyUI, its guard, a fork server, and in the row cog also Cog's server and worker. Not
counted is this program, which has the Runner of the other rows. A ComfyUI that somebody else runs
meanwhile from the same environment takes its part of what is shared. `MiB` is when it is ready, the
median; the peak is sampled during the boot that is not timed.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from subjects import (
    NO_BYTECODE,
    Flags,
    PeakMemory,
    bare_comfyui,
    cog_server,
    descendants,
    lone_runner,
    machine,
    memory,
    print_table,
    rounds,
    workplace,
)

from comfy_runner.config import Config
from comfy_runner.runner import Runner

MIB = 1024**2

Boot = Callable[[], AbstractContextManager[float | None]]
"""Entering starts something and returns when it is ready; leaving ends it. It gives the moment by
`time.perf_counter` from which on it counts; None: when it was entered."""


@dataclass(frozen=True)
class Timed:
    """One boot."""

    seconds: float
    memory: int | None
    """Bytes when it was ready; None where the system does not tell."""


def main() -> None:
    """Boot, time and print."""
    options = arguments()
    print(f"Before: {machine()}")
    with workplace(gpu=options.gpu) as config:
        plain = replace(config, lazy_boot=False, fork_server=False)
        with Runner(plain) as runner:
            flags = Flags.of(runner)
        boots: dict[str, Boot] = {
            "bare": lambda: untimed(bare_comfyui(config, flags)),
            "plain": lambda: untimed(Runner(plain)),
            "lazy": lambda: untimed(Runner(replace(plain, lazy_boot=True))),
            "cog": lambda: untimed(cog_server(config)),
        }
        if not options.no_bytecode:
            boots["restart"] = lambda: restarted(config)
        peaks = {name: peak(boot) for name, boot in boots.items()}
        if options.no_bytecode:
            os.environ[NO_BYTECODE] = "1"
        timed: dict[str, list[Timed]] = {name: [] for name in boots}
        for name in rounds(list(boots), options.repeats):
            with no_bytecode() if options.no_bytecode else nullcontext():
                timed[name].append(time_boot(boots[name]))
            print(f"{name}: {timed[name][-1].seconds:.2f} s", file=sys.stderr)
    print(f"After:  {machine()}")
    show(timed, peaks)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="boots of each kind (default 5)")
    parser.add_argument("--gpu", action="store_true", help="on the GPU instead of the CPU")
    parser.add_argument(
        "--no-bytecode",
        action="store_true",
        help="PYTHONDONTWRITEBYTECODE is set and no boot finds bytecode, as in an image that was"
        " built without; then there is no row restart",
    )
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    return options


@contextmanager
def untimed(subject: AbstractContextManager[object]) -> Iterator[None]:
    """The subject, counted from its start on."""
    with subject:
        yield


@contextmanager
def restarted(config: Config) -> Iterator[float]:
    """A runner whose ComfyUI was killed and is ready again; its fork server ends with it."""
    with lone_runner(config) as runner:
        process = runner.process
        if process.comfyui_pid is None:
            sys.exit("ComfyUI did not tell its process id.")
        began = time.perf_counter()
        os.kill(process.comfyui_pid, signal.SIGKILL)
        process.restart()
        process.wait_ready(config.boot_timeout)
        yield began


def time_boot(boot: Boot) -> Timed:
    """Boot once; it has ended when this returns."""
    before = descendants()
    entered = time.perf_counter()
    with boot() as began:
        seconds = time.perf_counter() - (entered if began is None else began)
        return Timed(seconds, memory(descendants() - before))


def peak(boot: Boot) -> int | None:
    """Bytes that a boot holds at most until it is ready; None where the system does not tell."""
    watched = PeakMemory()
    with watched, boot():
        watched.look()
    return watched.bytes


@contextmanager
def no_bytecode() -> Iterator[None]:
    """What is started within looks for bytecode in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="comfy-runner-benchmark-") as empty:
        os.environ["PYTHONPYCACHEPREFIX"] = empty
        try:
            yield
        finally:
            del os.environ["PYTHONPYCACHEPREFIX"]


def show(timed: Mapping[str, list[Timed]], peaks: Mapping[str, int | None]) -> None:
    """Print one line for each kind of boot."""
    bare = statistics.median(each.seconds for each in timed["bare"])
    head = ("boot", "count", "min s", "median s", "max s", "ratio to bare", "MiB", "peak MiB")
    rows = []
    for name, boots in timed.items():
        seconds = [each.seconds for each in boots]
        held = [each.memory for each in boots if each.memory is not None]
        figures = (min(seconds), statistics.median(seconds), max(seconds))
        rows.append(
            (
                *(name, str(len(boots)), *(f"{value:.2f}" for value in figures)),
                f"{statistics.median(seconds) / bare:.2f}",
                *map(in_mib, (statistics.median(held) if held else None, peaks[name])),
            )
        )
    print_table(head, rows)


def in_mib(size: float | None) -> str:
    """Bytes as MiB; `-` where they are not known."""
    return "-" if size is None else f"{size / MIB:.0f}"


if __name__ == "__main__":
    main()
