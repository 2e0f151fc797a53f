"""Another program that brings files: watched, its words redacted, and ended with all it started."""

import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Self

from comfy_runner.errors import Cancelled, DownloadFailed, describe_exit
from comfy_runner.fetch.transfer import Transfer
from comfy_runner.fetch.urls import redacted

log = logging.getLogger(__name__)

TICK = 0.05
"""Longest wait, in seconds, between two looks at the program and its files."""
LONGEST_LINE = 16 * 1024
"""Bytes of a printed line that are kept; the rest of it is dropped."""
LOGGED_LINES = 100
"""How many lines of one program are logged: it may print one for each request of a loop."""
END_TIMEOUT = 5.0
"""Seconds for a killed program to be gone."""

PASSED_ON = re.compile(
    "PATH|HOME|TMPDIR|LANG|LC_.*|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    "|LD_LIBRARY_PATH|GOMAXPROCS|GODEBUG|((HTTPS?|ALL|NO)_PROXY)|((https?|all|no)_proxy)"
)

# Run as `python -I -S -c ... PARENT PROGRAM ARGUMENT...`. Linux ties the signal to the thread that
# started the process, which is the one that waits for it; exec keeps it (prctl(2), 1 =
# PR_SET_PDEATHSIG). What Python ignores, such as SIGPIPE, exec would hand on.
LAUNCH = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as err:
    sys.exit(f"cannot start {sys.argv[2]}: {err.strerror}")
"""


class Unfinished(DownloadFailed):
    """Another program left this file unfinished, and our own engine may well finish it."""

    def __init__(self, program: str, transfer: Transfer, reason: str) -> None:
        """`reason` is the end of a sentence, such as `it ended with exit code 1`."""
        super().__init__(f"{program} did not bring {redacted(transfer.remote.url)}: {reason}.")


def chosen_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of `environment` that a program needs to find its files and the network."""
    return {name: value for name, value in environment.items() if PASSED_ON.fullmatch(name)}


def without_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """The text as it may be shown: URLs without user, password and query, and no `secrets`."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    # Without a limit to the scheme the time would be the square of a long word's length.
    text = re.sub(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s\"'<>]+", lambda url: redacted(url[0]), text)
    return re.sub(r"\?\S*", "?...", text)


class Program:
    """One started program in a session of its own; leave its `with` block, and it is gone.

    On Linux it dies with the thread that started it, even by SIGKILL: that thread has to stay.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        request: bytes,
        secrets: Sequence[str] = (),
    ) -> None:
        """Start it; `request` is written to its standard input. Raises: `OSError`.

        What it prints on standard error is logged without URLs' queries and without `secrets`.
        """
        self.printed: deque[str] = deque()
        """Lines of its standard output that nobody has taken yet."""
        self._name = Path(command[0]).name
        self._secrets = tuple(secrets)
        self._request = request
        self._logged = 0
        self._popen = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        pipes = (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        assert all(pipes)  # noqa: S101 (for mypy: they were asked for)
        self._in, self._out, self._err = (pipe.fileno() for pipe in pipes if pipe)
        self._rests = {self._out: b"", self._err: b""}
        self._poll = select.poll()
        self._poll.register(self._in, select.POLLOUT)
        for descriptor in self._rests:
            self._poll.register(descriptor, select.POLLIN)
            os.set_blocking(descriptor, False)
        os.set_blocking(self._in, False)

    @property
    def pid(self) -> int:
        """Its process id, which is its group's and its session's too."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """As `subprocess` gives it; None while it runs."""
        return self._popen.poll()

    def wait(self, seconds: float) -> None:
        """Wait until it prints, takes its request or ends, at most so long, and read what came."""
        if not self._rests:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
            return
        for descriptor, _ in self._poll.poll(seconds * 1000):
            if descriptor == self._in:
                self._write()
            else:
                self._read(descriptor)

    def end(self) -> None:
        """Kill it with its group and read the last it printed; the second time nothing happens."""
        if self.exit_code is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            try:
                self._popen.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                log.warning("%s is not gone %.0f s after it was killed", self._name, END_TIMEOUT)
        for descriptor in tuple(self._rests):
            # Something that left the group may hold the pipe open: no wait for its end.
            self._read(descriptor)
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()
        self._rests.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _write(self) -> None:
        try:
            self._request = self._request[os.write(self._in, self._request[: 1 << 16]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._request = b""
        if not self._request and self._popen.stdin is not None:
            self._poll.unregister(self._in)
            self._popen.stdin.close()

    def _read(self, descriptor: int) -> None:
        """Read all that waits in a pipe, but never more than a pipe holds: it may never stop."""
        for _ in range(16):
            try:
                chunk = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return
            *lines, rest = (self._rests[descriptor] + chunk).split(b"\n")
            self._rests[descriptor] = rest[:LONGEST_LINE]
            if not chunk:
                lines.append(self._rests.pop(descriptor))
                self._poll.unregister(descriptor)
            for line in lines:
                self._take(descriptor, line[:LONGEST_LINE].decode(errors="replace").strip())
            if not chunk:
                return

    def _take(self, descriptor: int, line: str) -> None:
        if not line:
            return
        if descriptor == self._out:
            self.printed.append(line)
            return
        self._logged += 1
        if self._logged <= LOGGED_LINES:
            log.info("%s: %s", self._name, without_secrets(line, self._secrets)[:500])


def watch(
    program: Program,
    look: Callable[[], int | None],
    *,
    cancelled: Event,
    stall: float,
    deadline: float,
) -> str:
    """Let a program work until it ends or has to. Returns why it stopped, in words.

    `look` is called at each turn: it gives the bytes that stand, or None when nothing more is
    wanted. Without a new byte for `stall` seconds, or after `deadline` seconds in all, the watch
    is over; the program is still to be ended then. Raises: `Cancelled`.
    """
    started = grown = time.monotonic()
    most = -1
    while True:
        program.wait(TICK)
        exit_code = program.exit_code  # asked first: all it wrote before its end is seen below
        standing = look()
        if cancelled.is_set():
            raise Cancelled("The download was cancelled.")
        if standing is None:
            return "all is there"
        if exit_code is not None:
            return f"it ended with {describe_exit(exit_code)}"
        now = time.monotonic()
        if standing > most:
            most, grown = standing, now
        if now - grown > stall:
            return f"it brought no new byte for {stall:g} s"
        if now - started > deadline:
            return f"it needed more than {deadline:g} s"
