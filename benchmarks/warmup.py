"""Milliseconds of the first and the second call after a start, with and without warm-up.

The bundled workflow workflows/text_to_picture.json, on the CPU, in four ways:

  plain     nothing is done ahead
  preload   COMFY_RUNNER_PRELOAD names the workflow
  warm-up   COMFY_RUNNER_WARM_UP names the workflow
  both      both do

Each time a Runner is started and asked twice, each time for another picture, so that no result is
taken from ComfyUI's cache; then it is closed. Before each start the system is asked to drop the
weights from its page cache, as in a container that has just been made; they are on disk. Timed are
`Runner.start`, and each `Runner.run` until its iterator has ended. The ways take turns in who is
first, and one start before them is not timed. ComfyUI computes with OMP_NUM_THREADS=1 unless that
is set: several threads on shared cores now and then wait for each other for seconds.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from subjects import machine, print_table, rounds, workplace

from comfy_runner.config import PROJECT, Config
from comfy_runner.runner import Runner
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request

WORKFLOW = PROJECT / "workflows" / "text_to_picture.json"

PROMPTS = ("a blue circle", "a green square")


@dataclass(frozen=True)
class Timed:
    """One start and two calls, in seconds."""

    setup: float
    first: float
    second: float


def main() -> None:
    """Start, ask, time and print."""
    options = arguments()
    print(f"Before: {machine()}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with workplace() as config:
        ways: Mapping[str, Config] = {
            "plain": config,
            "preload": replace(config, preload=(str(WORKFLOW),)),
            "warm-up": replace(config, warm_up=WORKFLOW),
            "both": replace(config, preload=(str(WORKFLOW),), warm_up=WORKFLOW),
        }
        ask_twice(config)  # fetches the weights and writes bytecode
        timed: dict[str, list[Timed]] = {name: [] for name in ways}
        for name in rounds(list(ways), options.repeats):
            forget(config.models)
            timed[name].append(ask_twice(ways[name]))
            print(f"{name}: {timed[name][-1]}", file=sys.stderr)
    print(f"After:  {machine()}")
    show(timed)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="starts of each way (default 5)")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    return options


def ask_twice(config: Config) -> Timed:
    """Start a runner and have it make two pictures."""
    runner = Runner(config)
    began = time.perf_counter()
    runner.start()
    try:
        setup = time.perf_counter() - began
        if config.warm_up is not None and (runner.warmed is None or runner.warmed.failure):
            sys.exit(f"The warm-up failed: {runner.warmed}")
        return Timed(setup, *(ask(runner, prompt) for prompt in PROMPTS))
    finally:
        runner.close()


def ask(runner: Runner, prompt: str) -> float:
    """Seconds for one picture."""
    request = Request(document=WORKFLOW.read_text(), values={"4.text": prompt})
    began = time.perf_counter()
    updates = list(runner.run(request))
    seconds = time.perf_counter() - began
    if sum(isinstance(update, Output) for update in updates) != 1:
        sys.exit(f"The runner made no picture: {updates}")
    return seconds


def forget(folder: Path) -> None:
    """Ask the system to drop all files of a folder from its page cache."""
    os.sync()  # what is not written yet cannot be dropped
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def show(timed: Mapping[str, list[Timed]]) -> None:
    """Print one line for each way."""
    rows = []
    for name, values in timed.items():
        setup = statistics.median(each.setup for each in values)
        first = statistics.median(each.first for each in values)
        second = statistics.median(each.second for each in values)
        figures = (f"{setup:.2f}", f"{first * 1000:.0f}", f"{second * 1000:.0f}")
        rows.append((name, str(len(values)), *figures, f"{first / second:.2f}"))
    head = ("way", "starts", "setup s", "first ms", "second ms", "first over second")
    print_table(head, rows)


if __name__ == "__main__":
    main()
