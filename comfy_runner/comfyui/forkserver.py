"""A process that has imported what every ComfyUI imports first, and forks ComfyUIs on request.

Run as `python -P forkserver.py DESCRIPTOR`, where the descriptor is a socket (SOCK_SEQPACKET) to
who started it. It has computed nothing and has not touched a GPU; what a child does, its threads,
sockets and node packs, comes after the fork. A child is led by `launcher.main`, as in a process of
its own, has a process group of its own, and ends with the fork server.

Requests are JSON objects:

    {"start": number}   with two descriptors: a file with {"environment", "tree", "digest",
                        "arguments"}, read from its begin, and the pipe for the child's output
    {"end": number}     kill the child with all of its group

Answers: `{"number", "pid"}` once it is forked, and `{"number", "status", "memory"}` once it has
ended, by whatever: its wait status and the most bytes it held at once. A start whose end is asked
for before it was looked at is answered, and not made. The end of the socket, when whoever started
it is gone, ends it with all children.

Loaded by path, in ComfyUI's process: only the standard library is imported here.
"""

import ctypes
import gc
import importlib
import importlib.util
import json
import logging
import os
import select
import signal
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    *("torch", "numpy", "safetensors.torch", "einops", "PIL.Image", "PIL.ImageOps"),
    *("PIL.PngImagePlugin", "aiohttp.web", "av", "yaml", "psutil", "tqdm", "pydantic_settings"),
    "simpleeval",
)
"""What ComfyUI imports before it takes any argument into account; no CUDA is asked for by it."""

IMPORT_TIME = 600
"""Seconds after which imports that do not end are given up."""

LONGEST = 4096
"""Bytes of a request."""

NOT_STARTED = 127 << 8
"""Wait status of a child that could not be forked: exit code 127, as the guard has it."""

TOO_LATE = "Torch already imported"
"""In main.py's warning that its variables for torch come too late; they are all for GPUs."""


def main(descriptor: int) -> None:
    """Import, then serve until whoever started this is gone. In a child: be a ComfyUI."""
    os.set_inheritable(descriptor, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(IMPORT_TIME)
    gc.disable()
    launcher = launcher_beside()
    for library in LIBRARIES:
        with suppress(ImportError):  # ComfyUI will tell
            importlib.import_module(library)
    signal.alarm(0)
    gc.freeze()  # the children share the memory for as long as nobody writes to it
    request = ForkServer(socket.socket(fileno=descriptor), launcher.beside("guard")).serve()
    # A child goes on here and ends as any program, with its atexit functions and its traceback.
    launcher.main(request["tree"], request["digest"], request["arguments"])


def launcher_beside() -> Any:
    """The launcher, which lies in this folder and knows how to load the rest of it."""
    path = Path(__file__).with_name("launcher.py")
    spec = importlib.util.spec_from_file_location("comfy_runner_launcher", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018, S101 (it ends with .py)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ForkServer:
    """Forks children, and watches over them."""

    def __init__(self, client: socket.socket, guard: Any) -> None:
        """`guard` is that module."""
        self.client = client
        self.client.setblocking(False)
        self.guard = guard
        self.wanted: dict[int, tuple[int, int]] = {}
        """Number to the descriptors of what is to be forked."""
        self.children: dict[int, int] = {}
        """Number to process id."""
        self.wake, self.waker = os.pipe()
        os.set_blocking(self.waker, False)
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> dict[str, Any]:
        """Take requests and tell of ends until the client is gone.

        Returns only in a child, with what it was asked to be.
        """
        poll = select.poll()
        poll.register(self.client, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self.wake in ready:
                os.read(self.wake, 4096)
                self.tell_ends()
            if self.client.fileno() in ready:
                self.take_requests()
            while self.wanted:
                number = next(iter(self.wanted))
                request = self.fork(number, *self.wanted.pop(number))
                if request is not None:
                    return request

    def take_requests(self) -> None:
        """Take all requests that there are; fork nothing yet."""
        while True:
            try:
                text, descriptors, _, _ = socket.recv_fds(self.client, LONGEST, 2)
            except BlockingIOError:
                return
            except OSError:
                text, descriptors = b"", []
            if not text:
                self.leave()
            request = json.loads(text)
            if "start" in request:
                match descriptors:
                    case [file, output]:
                        self.wanted[request["start"]] = (file, output)
                    case _:  # there were too many open
                        close(*descriptors)
                        self.tell_end(request["start"], NOT_STARTED)
            elif request["end"] in self.wanted:
                close(*self.wanted.pop(request["end"]))
                self.tell_end(request["end"], signal.SIGKILL)
            elif request["end"] in self.children:
                self.guard.kill_group(self.children[request["end"]])

    def leave(self) -> NoReturn:
        """End with all children, and leave none of them to a parent that may not ask for it."""
        for pid in self.children.values():
            self.guard.kill_group(pid)
        for pid in self.children.values():
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        os._exit(0)

    def tell_ends(self) -> None:
        """Tell of each child that has ended, and leave nothing of its group."""
        numbers = {pid: number for number, pid in self.children.items()}
        while self.children:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            # Nobody else can have its id before it is asked for.
            if ended.si_pid in numbers:
                self.guard.kill_group(ended.si_pid)
            pid, status, usage = os.wait4(ended.si_pid, 0)
            if pid in numbers:
                del self.children[numbers[pid]]
                self.tell_end(numbers[pid], status, usage.ru_maxrss * self.guard.MAXRSS_UNIT)

    def tell_end(self, number: int, status: int, memory: int | None = None) -> None:
        """Tell how a child has ended."""
        self.tell({"number": number, "status": status, "memory": memory})

    def tell(self, answer: dict[str, Any]) -> None:
        """Send an answer; that nobody takes it is noticed by the next read."""
        with suppress(OSError):
            self.client.send(json.dumps(answer).encode())

    def fork(self, number: int, file: int, output: int) -> dict[str, Any] | None:
        """Fork a child; in it, what it was asked to be, and None here."""
        server = os.getpid()
        try:
            with warnings.catch_warnings():
                # Libraries for algebra have threads, and handlers that end them before a fork.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError as err:
            with suppress(OSError):  # nobody may read it any more
                os.write(output, f"cannot fork: {err.strerror}\n".encode())
            close(file, output)
            self.tell_end(number, NOT_STARTED)
            return None
        if not pid:
            return self.become_child(server, file, output)
        with suppress(OSError):
            os.setpgid(pid, pid)
        close(file, output)
        self.children[number] = pid
        self.tell({"number": number, "pid": pid})
        return None

    def become_child(self, server: int, file: int, output: int) -> dict[str, Any]:
        """Have what a process of its own would have: group, signals, descriptors, variables."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (*self.guard.DEFAULT_IN_CHILD, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        # As the interpreter sets them up itself.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(self.guard.PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != server:  # it died before the call above
            os._exit(1)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        self.client.close()
        close(self.wake, self.waker, output)
        for other in self.wanted.values():
            close(*other)
        with open(file, "rb") as written:
            request: dict[str, Any] = json.loads(written.read())
        os.chdir(request["tree"])
        os.environ.clear()
        os.environ.update(request["environment"])
        # Who asks for no seed gets one of the system's, which numpy 2 and torch 2.11 take when they
        # are loaded (CPUGeneratorImpl.cpp). Python sees to its own after a fork.
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed()
        torch: Any = sys.modules.get("torch")
        if torch is not None:
            torch.default_generator.seed()
        logging.getLogger().addFilter(lambda record: TOO_LATE not in str(record.msg))
        return request


def close(*descriptors: int) -> None:
    """Close all of them."""
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]))
