"""Runs one program and ends all of its processes as soon as it, or whoever started it, is gone.

Run as `python -I -S guard.py PROGRAM ARGUMENT...` with the reading end of a pipe as standard
input. Nothing is ever written to that pipe: its end means that the starter closed it or died, even
by SIGKILL. The program gets a process group of its own, default signal handlers, and `/dev/null` as
standard input. The guard ends as the program did: with its exit code, or by the same signal. It
passes SIGUSR1 on, and tells in a last line how much memory the program held when somebody else has
killed it.

Only the standard library is used, so that the guard is there within milliseconds, and it has one
thread, because Linux ties the parent-death signal to the thread that started the child.
"""

import ctypes
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h

MEANT_FOR_OTHERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a terminal or a container sends to every process: the starter decides what it means."""

DEFAULT_IN_CHILD = (
    *MEANT_FOR_OTHERS,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)
"""Signals that may be ignored here, or already in our parent; exec would hand that on."""

KILLED = "guard: killed; most memory held at once, in bytes: "
"""Begins the line about a program that was killed."""

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, getrusage(2)


def main(command: list[str]) -> NoReturn:
    """Run `command` and end as it did."""
    for number in MEANT_FOR_OTHERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = start(command)
    signal.signal(signal.SIGUSR1, lambda *_: pass_on(child))
    end_like(watch(child, wake))


def start(command: list[str]) -> int:
    """Start `command` in a process group of its own; its process id, which is the group's too."""
    guard = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    child = os.fork()
    if child:
        # Both sides do it: the group must exist before either of them goes on.
        with suppress(OSError):
            os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)
        for number in DEFAULT_IN_CHILD:
            signal.signal(number, signal.SIG_DFL)
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != guard:  # it died before the call above
                os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606 (no shell is wanted)
    except OSError as err:
        os.write(2, f"cannot start {command[0]}: {err.strerror}\n".encode())
    finally:
        os._exit(127)


def watch(child: int, wake: int) -> int:
    """Wait for the child's end or ours, and leave nothing of its group; its wait status."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if wake in ready:
            os.read(wake, 4096)
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                os.write(2, f"\n{KILLED}{usage.ru_maxrss * MAXRSS_UNIT}\n".encode())
            kill_group(child)
            return status
        if 0 in ready and not os.read(0, 4096):
            kill_group(child)
            return os.waitpid(child, 0)[1]


def pass_on(child: int) -> None:
    """SIGUSR1 for the child, whose handler prints what it is doing."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGUSR1)


def kill_group(group: int) -> None:
    """SIGKILL for every process of the group; none may be left."""
    # macOS answers EPERM for a group of zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def end_like(status: int) -> NoReturn:
    """End this process as `status` says that another one ended."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's core is the one of interest
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
