"""Children that are forked from a process which has imported torch, and that process; Linux only.

`forkserver.py` is what runs there.
"""

import array
import atexit
import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from comfy_runner.errors import describe_exit

log = logging.getLogger(__name__)
comfyui_log = logging.getLogger("comfyui")

PROGRAM = Path(__file__).with_name("forkserver.py")

LONGEST = 4096
"""Bytes of an answer."""

PATIENCE = 120.0
"""Seconds that a fork server has for its imports; one that has not forked by then never will."""

LOOK_EVERY = 1.0
"""Seconds between two looks whether its time is up."""

END_TIME = 5.0
"""Seconds that a fork server has to end itself."""


class Forked:
    """One child of a fork server."""

    def __init__(self, server: "ForkServer", number: int, output: int) -> None:
        self.output = output
        """Reading end of the pipe that takes all it prints."""
        self.memory: int | None = None
        """Bytes that it held at most; known once somebody else has killed it."""
        self.pid = 0
        """Its process id, and that of its group; 0 until it has been forked."""
        self.number = number
        self.since = time.monotonic()
        """When it was asked for."""
        self._file = open(output, "rb", buffering=0)  # noqa: SIM115 (closed with the child)
        self._server = server
        self._status: int | None = None
        self._is_ended = False
        """Whether we have it killed."""
        self._ended = threading.Event()

    @property
    def parent(self) -> int:
        """Process id of its parent."""
        return self._server.pid

    def poll(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._status

    def wait(self, timeout: float) -> int:
        """How it ended. Raises: `subprocess.TimeoutExpired`."""
        if not self._ended.wait(timeout) or self._status is None:
            raise subprocess.TimeoutExpired("ComfyUI", timeout)
        return self._status

    def ask_for_stacks(self) -> None:
        """Have it print what its threads do."""
        if self.pid and self._status is None:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGUSR1)

    def end(self) -> None:
        """Kill it with its group; it may not have ended yet when this returns."""
        self._is_ended = True
        if self._status is None:
            self._server.end(self)

    def kill(self) -> None:
        """End the fork server, which has not obeyed, with all its children."""
        if self._status is None:
            self._server.kill()

    def close(self) -> None:
        """Close the pipe."""
        self._file.close()

    def has_ended(self, status: int, memory: int | None) -> None:
        """Know that it has ended; only the first time counts."""
        if self._status is None:
            self.memory = None if self._is_ended else memory
            self._status = status
        self._ended.set()

    def forget(self) -> None:
        """Know, in a process that was forked from ours, that it is none of its business."""
        self._ended = threading.Event()
        self.has_ended(-signal.SIGKILL, None)


class ForkServer:
    """The process, which ends with this one at the latest; for any thread."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Start it; it imports on its own. Raises: `OSError`."""
        self._children: dict[int, Forked] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._is_closed = False
        """Whether it is to end."""
        self.lost = False
        """Whether it is gone, or has to be."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as if_it_fails, theirs:
            if_it_fails.enter_context(ours)
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", str(PROGRAM), str(theirs.fileno())],
                cwd="/",
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            if_it_fails.pop_all()
        self._ours = ours
        assert self._process.stdout is not None  # noqa: S101 (for mypy: it was asked for)
        self.pid = self._process.pid
        # Daemons, because atexit functions run only after all other threads ended.
        self._threads = [
            threading.Thread(target=self._listen, name="fork-server", daemon=True),
            threading.Thread(
                target=_pass_on, args=(self._process.stdout,), name="fork-server-log", daemon=True
            ),
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    @property
    def is_idle(self) -> bool:
        """Whether it has no child."""
        return not self._children

    def start(
        self, environment: Mapping[str, str], tree: Path, digest: str, arguments: Sequence[str]
    ) -> Forked:
        """Fork a ComfyUI, as soon as everything is imported; see `launcher.main`.

        Raises: `OSError` when the fork server is gone. Should that happen only now, the child ends
        as if it were killed.
        """
        request = {
            "environment": dict(environment),
            "tree": str(tree),
            "digest": digest,
            "arguments": list(arguments),
        }
        # In a file, since a message has a size that it must not exceed, and an environment none.
        with open(os.memfd_create("request"), "w+b") as file:  # noqa: PTH123
            file.write(json.dumps(request).encode())
            file.seek(0)
            reading, writing = os.pipe()
            try:
                with self._lock:
                    self._count += 1
                    child = self._children[self._count] = Forked(self, self._count, reading)
                    try:
                        self._send({"start": child.number}, file.fileno(), writing)
                    except OSError:
                        del self._children[child.number]
                        child.close()
                        raise
            finally:
                os.close(writing)
        return child

    def end(self, child: Forked) -> None:
        """Have a child killed with its group."""
        with self._lock, contextlib.suppress(OSError):
            self._send({"end": child.number})
        if not child.pid:
            # It imports and takes no request, and will find both at once. Had it forked only just
            # now, it would kill the child now.
            child.has_ended(-signal.SIGKILL, None)

    def close(self) -> None:
        """End it, and all its children."""
        self._is_closed = self.lost = True
        atexit.unregister(self.close)
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        if not any(child.pid for child in list(self._children.values())):
            self._process.kill()  # it may be importing
        for thread in self._threads:
            thread.join(2 * END_TIME)

    def kill(self) -> None:
        """End it by force; its children end with it."""
        self.lost = True
        self._process.kill()

    def forget(self) -> None:
        """Leave it, in a process that was forked from ours, to the one that has started it."""
        self._is_closed = self.lost = True
        atexit.unregister(self.close)
        self._lock = threading.Lock()
        self._ours.close()
        self._process.returncode = 0  # as subprocess has it for what is no child
        for child in self._children.values():
            child.forget()
        self._children.clear()

    def _send(self, request: Mapping[str, int], *descriptors: int) -> None:
        """Send a request at once, or not. Raises: `OSError`, also where too much is waiting."""
        given = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        self._ours.sendmsg([json.dumps(request).encode()], given if descriptors else [], flags)

    def _listen(self) -> None:
        """Take in what it tells, until it is gone."""
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        while True:
            if not poll.poll(LOOK_EVERY * 1000):
                self._lose_patience()
                continue
            try:
                text = self._ours.recv(LONGEST)
            except OSError:
                text = b""
            if not text:
                break
            told = json.loads(text)
            child = self._children[told["number"]]
            if "pid" in told:
                child.pid = told["pid"]
            else:
                del self._children[child.number]
                child.has_ended(os.waitstatus_to_exitcode(told["status"]), told["memory"])
        self.lost = True
        try:
            status = self._process.wait(END_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if not self._is_closed:
            log.warning("ComfyUI's fork server ended (%s).", describe_exit(status))
        with self._lock:
            self._ours.close()
            left = list(self._children.values())
            self._children.clear()
        for child in left:
            if child.pid:  # it has ended with the fork server, what it started perhaps not
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.has_ended(-signal.SIGKILL, None)

    def _lose_patience(self) -> None:
        """Kill it where it has not forked what it was asked to for too long."""
        begin = time.monotonic() - PATIENCE
        if any(child.since < begin and not child.pid for child in list(self._children.values())):
            log.warning("ComfyUI's fork server has not forked within %.0f s.", PATIENCE)
            self.kill()


_servers: dict[tuple[object, ...], ForkServer] = {}
_lock = threading.RLock()


def fork(
    variables: Mapping[str, str],
    environment: Mapping[str, str],
    tree: Path,
    digest: str,
    arguments: Sequence[str],
) -> Forked:
    """A ComfyUI from the `shared` fork server with these variables; see `ForkServer.start`.

    Raises: `OSError`.
    """
    with _lock:
        return shared(variables).start(environment, tree, digest, arguments)


def shared(variables: Mapping[str, str]) -> ForkServer:
    """The fork server of this program that has these variables; started at its first use.

    One that has no child and other variables, or packages that have changed since it imported
    them, is ended. Raises: `OSError`.
    """
    packages = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    changed = [folder.stat().st_mtime_ns for folder in packages]
    key = (*changed, frozenset(variables.items()))
    with _lock:
        for other, server in list(_servers.items()):
            if server.lost or (other != key and server.is_idle):
                del _servers[other]
                server.close()
        if key not in _servers:
            _servers[key] = ForkServer(variables)
        return _servers[key]


def close_idle() -> None:
    """End the fork servers of this program that have no child: each holds some 300 MB alone."""
    with _lock:
        for key, server in list(_servers.items()):
            if server.lost or server.is_idle:
                del _servers[key]
                server.close()


def _leave_to_parent() -> None:
    """In a process that was forked from this one: have no part in its fork servers."""
    global _lock  # noqa: PLW0603 (another thread may have held it)
    _lock = threading.RLock()
    for server in _servers.values():
        server.forget()
    _servers.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _pass_on(output: IO[bytes]) -> None:
    """Log what the fork server prints itself."""
    with output:
        for line in output:
            comfyui_log.warning("fork server: %s", line.decode(errors="replace").rstrip())
