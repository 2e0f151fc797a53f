"""One started ComfyUI: read, asked what it does, and ended with its group."""

import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from comfy_runner.comfyui.forking import Forked
from comfy_runner.comfyui.guard import KILLED
from comfy_runner.comfyui.inside import LOADING, PHASE, READY

log = logging.getLogger(__name__)
comfyui_log = logging.getLogger("comfyui")

HERE = Path(__file__).resolve().parent
KEPT_LINES = 200
LONGEST_LINE = 64 * 1024  # bytes
END_TIMEOUT = 10.0  # seconds for a killed process to be gone

STACK_TIMEOUT = 2.0
"""Seconds that a process has to tell what its threads do."""

STACK_PAUSE = 0.3
"""Seconds without a line after which it has told."""

FRAMES = 6
"""How many calls of a thread are told, the innermost first."""

LEVELS = {
    "[DEBUG]": logging.DEBUG,
    "[WARNING]": logging.WARNING,
    "[ERROR]": logging.ERROR,
    "[CRITICAL]": logging.CRITICAL,
}
"""How ComfyUI's log lines begin; INFO is what all others are passed on as."""

ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

PACK_LOADS = re.compile(re.escape(LOADING) + r"(?P<moment>\d+\.\d+)(?: (?P<pack>.+))?")

PHASE_ENDS = re.compile(re.escape(PHASE) + r"(?P<name>\S+) (?P<moment>\d+\.\d+)")

FATAL = "Fatal Python error: "
THREAD = re.compile(r"(Current t|T)hread 0x[0-9a-f]+ .*:")
FRAME = re.compile(r'  (File ".*", line \d+ in .*|\.\.\.)')


class Guarded:
    """A program with its guard, see `guard.py`; it ends at the latest when this one does."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        """Start `command`. Raises: `OSError`."""
        self._popen = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", str(HERE / "guard.py"), *command],
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.PIPE,  # never written to: that it ends is the message
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._popen.stdout is not None  # noqa: S101 (for mypy: it was asked for)
        self.pid = self._popen.pid
        """That of the guard."""
        self.parent = self.pid
        """Process id of the program's parent."""
        self.output = self._popen.stdout.fileno()
        """Reading end of the pipe that takes all it prints."""
        self.memory: int | None = None
        """Not known here: the guard prints it."""
        self.poll = self._popen.poll
        self.wait = self._popen.wait
        self.kill = self._popen.kill

    def ask_for_stacks(self) -> None:
        """Have the program print what its threads do."""
        self._popen.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        """Kill the program with its group; it may not have ended yet when this returns."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def close(self) -> None:
        """Close the pipe."""
        if self._popen.stdout is not None:
            self._popen.stdout.close()


class Child:
    """One started process; it ends at the latest when this program does."""

    def __init__(self, started: "Guarded | Forked") -> None:
        self.started = started
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.loading = ""
        """The node pack that ComfyUI is loading; empty when it loads none."""
        self.packs: list[tuple[str, float]] = []
        """The node packs that were loaded, each with its begin by `time.monotonic`, in their order;
        an empty name stands for the end of the one before."""
        self.phases: list[tuple[str, float]] = []
        """The phases of its boot that are over, each with its end by `time.monotonic`."""
        self.spoke = threading.Event()
        """Set when it is ready, as it says itself, and when it has ended."""
        self._most_memory: int | None = None
        self._stacks: list[list[str]] | None = None
        self._told = threading.Event()
        # A daemon, because atexit functions run only after all other threads ended.
        self.reader = threading.Thread(target=self._read, name="comfyui-log", daemon=True)
        self.reader.start()

    @property
    def most_memory(self) -> int | None:
        """Bytes that the process held at most; known once somebody else has killed it."""
        return self.started.memory if self._most_memory is None else self._most_memory

    def end(self) -> None:
        """Kill the process and its group, and wait for it; nothing happens the second time."""
        self.started.end()
        try:
            self.started.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.warning("ComfyUI is not gone %.0f s after it was killed", END_TIMEOUT)
            self.started.kill()
            with suppress(subprocess.TimeoutExpired):
                self.started.wait(END_TIMEOUT)
        self.finish_reading()

    def last_words(self, count: int = 20) -> tuple[str, ...]:
        """The lines that tell best why the process ended, at most `count`: mostly the last ones.

        After a fatal signal they are those from the signal's name on: `faulthandler` goes on with
        the innermost call and ends with a list of modules.
        """
        lines = tuple(self.lines)
        for number, line in enumerate(lines):
            if line.startswith(FATAL):
                return lines[max(0, number - 1) :][:count]
        return lines[-count:]

    def stack(self, function: str) -> tuple[str, ...]:
        """What the thread that runs `function` is doing, innermost call first, at most `FRAMES`.

        Empty where there is no such thread or ComfyUI has not come to `inside.explain_on_request`;
        then it may end.
        """
        stacks: list[list[str]] = []
        self._stacks = stacks
        deadline = time.monotonic() + STACK_TIMEOUT
        self.started.ask_for_stacks()
        while time.monotonic() < deadline:
            if not self._told.wait(STACK_PAUSE if stacks else STACK_TIMEOUT):
                break
            self._told.clear()
        self._stacks = None
        for calls in stacks:
            if any(call.endswith(f" in {function}") for call in calls):
                return tuple(calls[:FRAMES])
        return ()

    def finish_reading(self) -> None:
        """Wait until the last line of an ended process is in `lines`."""
        self.reader.join(END_TIMEOUT)
        if not self.reader.is_alive():
            self.started.close()

    def _read(self) -> None:
        for raw in self._raw_lines():
            # Of a progress bar that redraws itself, the last state counts.
            text = raw.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
            line = ANSI.sub("", text).rstrip()
            if line and not self._is_for_us(line):
                self.lines.append(line)
                level, _, _ = line.partition(" ")
                comfyui_log.log(LEVELS.get(level, logging.INFO), "%s", line)
        self.spoke.set()

    def _is_for_us(self, line: str) -> bool:
        """Take in a line that the launcher or the guard prints for this class."""
        if pack := PACK_LOADS.fullmatch(line):
            self.loading = pack["pack"] or ""
            self.packs.append((self.loading, float(pack["moment"])))
            return True
        if line.startswith(KILLED) and line[len(KILLED) :].isdecimal():
            self._most_memory = int(line[len(KILLED) :])
            return True
        if phase := PHASE_ENDS.fullmatch(line):
            self.phases.append((phase["name"], float(phase["moment"])))
            if phase["name"] == READY:
                self.spoke.set()
            return True
        stacks = self._stacks
        if stacks is None:
            return False
        if THREAD.fullmatch(line):
            stacks.append([])
        elif stacks and FRAME.fullmatch(line):
            stacks[-1].append(line.strip())
        else:
            return False
        self._told.set()
        return True

    def _raw_lines(self) -> Iterator[bytes]:
        descriptor = self.started.output
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        rest = b""
        while True:
            # The pipe may outlive the process: something that left its group can hold it open.
            ended = self.started.poll() is not None
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
