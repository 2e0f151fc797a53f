"""What the benchmarks start and measure memory with: `benchmarks/subjects.py`."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from graphs import HERE

sys.path.append(str(HERE.parent / "benchmarks"))  # its modules are programs, no package
from subjects import PeakMemory, descendants, lone_runner, memory

from comfy_runner.config import Config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells in /proc")

MIB = 1024**2
SIZE = 64 * MIB

HOLDS = f"""
import os, sys
held = b"x" * {SIZE}
if sys.argv[1] == "two":
    os.fork()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(count: str) -> Iterator[set[int]]:
    """Processes that hold `SIZE` bytes, one of them or two that share it; their ids."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", HOLDS, count],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        yield {int(process.stdout.readline()) for _ in range(2 if count == "two" else 1)}
        process.stdin.close()


def test_all_that_was_started_is_found() -> None:
    before = descendants()
    with holding("two") as processes:
        assert descendants() - before == processes
        assert any(descendants(each) == processes - {each} for each in processes)
    assert not processes & descendants()


def test_what_processes_share_counts_once() -> None:
    with holding("one") as one, holding("two") as two:
        single, both = memory(one), memory(two)
        assert single is not None
        assert both is not None
        assert SIZE < single < SIZE + 20 * MIB
        assert SIZE < both < SIZE + 30 * MIB


def test_nothing_that_a_runner_has_started_serves_the_next_one(
    comfy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT+6")  # a fork server that no other test uses
    before = descendants()
    with lone_runner(comfy_config) as runner:
        assert runner.process.is_forked
        assert descendants() - before
    assert not descendants() - before


def test_no_process_holds_no_memory() -> None:
    with holding("one") as ended:
        pass
    assert memory(ended) is None


def test_the_peak_is_of_what_was_started_within() -> None:
    with holding("one"), PeakMemory() as watched:
        assert watched.bytes is None
        with holding("one"):
            watched.look()
        watched.look()
    assert watched.bytes is not None
    assert SIZE < watched.bytes < SIZE + 20 * MIB
