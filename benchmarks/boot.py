"""Seconds from start to ready on the CPU: a bare ComfyUI, our runner, and Cog's server with it.

  bare     python main.py, until GET /system_stats answers
  runner   Runner(config).start() in a process that has imported it, until it returns
  cog      the real Cog server with predict.py, until GET /health-check says READY

All three start ComfyUI with the same arguments and environment, one after the other, and take turns
in who is first. Before, each is started once without being timed, so that bytecode is there and
the disk's cache is warm for all.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from subjects import (
    NO_BYTECODE,
    Flags,
    bare_comfyui,
    cog_server,
    machine,
    print_table,
    rounds,
    workplace,
)

from comfy_runner.runner import Runner

Boot = Callable[[], AbstractContextManager[object]]
"""Entering starts something and returns when it is ready; leaving ends it."""


def main() -> None:
    """Boot, time and print."""
    options = arguments()
    print(f"Before: {machine()}")
    with workplace() as config:
        with Runner(config) as runner:
            flags = Flags.of(runner)
        boots: Mapping[str, Boot] = {
            "bare": lambda: bare_comfyui(config, flags),
            "runner": lambda: Runner(config),
            "cog": lambda: cog_server(config),
        }
        for boot in boots.values():
            with boot():
                pass
        if options.no_bytecode:
            os.environ[NO_BYTECODE] = "1"
        seconds: dict[str, list[float]] = {name: [] for name in boots}
        for name in rounds(list(boots), options.repeats):
            with no_bytecode() if options.no_bytecode else nothing():
                seconds[name].append(timed(boots[name]))
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    print(f"After:  {machine()}")
    show(seconds)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="boots of each kind (default 5)")
    parser.add_argument(
        "--no-bytecode",
        action="store_true",
        help="PYTHONDONTWRITEBYTECODE is set and no boot finds bytecode, as in an image that was"
        " built without",
    )
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    return options


def timed(boot: Boot) -> float:
    """Seconds until it is ready; it has ended when this returns."""
    start = time.perf_counter()
    with boot():
        return time.perf_counter() - start


@contextmanager
def no_bytecode() -> Iterator[None]:
    """What is started within looks for bytecode in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="comfy-runner-benchmark-") as empty:
        os.environ["PYTHONPYCACHEPREFIX"] = empty
        try:
            yield
        finally:
            del os.environ["PYTHONPYCACHEPREFIX"]


@contextmanager
def nothing() -> Iterator[None]:
    """Changes nothing."""
    yield


def show(seconds: Mapping[str, list[float]]) -> None:
    """Print one line for each kind of boot."""
    bare = statistics.median(seconds["bare"])
    print_table(
        ("boot", "count", "min s", "median s", "max s", "ratio to bare"),
        [
            (
                name,
                str(len(values)),
                f"{min(values):.2f}",
                f"{statistics.median(values):.2f}",
                f"{max(values):.2f}",
                f"{statistics.median(values) / bare:.2f}",
            )
            for name, values in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
