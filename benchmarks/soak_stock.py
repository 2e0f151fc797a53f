"""Everything that the server under a soak can leak: processes, threads, open files, files."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from subjects import CogServer

SLACK = {"threads": 4, "files": 6}
"""How many more a process may have at the end: pools grow by one where two things coincide."""


class Family:
    """The server, its worker, ComfyUI, and its fork server or guard."""

    def __init__(self, server: CogServer) -> None:
        self.server = psutil.Process(server.pid)

    def members(self) -> Mapping[str, psutil.Process]:
        """Role to process; what has no known role is told by its command line."""
        found = {"server": self.server}
        for process in self.server.children(recursive=True):
            command = " ".join(process.cmdline())
            if "guard.py" in command:
                role = "guard"
            elif "launcher.py" in command or is_forked(process):
                role = "comfyui"
            elif "forkserver.py" in command:
                role = "fork server"
            elif "cog" in command and "worker" not in found:
                role = "worker"
            else:
                role = f"{process.pid} {process.status()} {command[:100]}"
            found[role] = process
        return found

    def memory(self) -> Mapping[str, float]:
        """MiB of each process."""
        return {role: one.memory_info().rss / 2**20 for role, one in self.members().items()}


def is_forked(process: psutil.Process) -> bool:
    """Whether a fork server is the parent of the process."""
    parent = process.parent()
    return parent is not None and "forkserver.py" in " ".join(parent.cmdline())


@dataclass(frozen=True)
class Stock:
    """Everything that can leak, counted."""

    counts: Mapping[str, Mapping[str, int]]
    """Role to how many threads and open files the process has."""
    files: Counter[str]
    """Shape of each path in the home folder, and how many there are."""

    @classmethod
    def take(cls, family: Family, home: Path) -> "Stock":
        """What there is now."""
        counts = {
            role: {"threads": process.num_threads(), "files": process.num_fds()}
            for role, process in family.members().items()
        }
        return cls(counts, Counter(shapes(home)))

    def leaks(self, before: "Stock") -> Iterator[str]:
        """What is here that was not there before."""
        for role in self.counts.keys() - before.counts.keys():
            yield f"process: {role}"
        for role, counts in before.counts.items():
            for what, count in counts.items():
                now = self.counts.get(role, {}).get(what, 0)
                if now > count + SLACK[what] or not now:
                    yield f"{role}: {now} {what}, {count} before"
        for shape, count in (self.files - before.files).items():
            yield f"file: {count} more of {shape}"


def shapes(home: Path) -> Iterator[str]:
    """Paths of the files in a folder; names made at random all look the same.

    Models and saved catalogs are left out: they are kept on purpose, within limits of their own.
    """
    for path in home.rglob("*"):
        if path.is_file() and path.relative_to(home).parts[0] not in ("models", "cache"):
            yield re.sub(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*|\d+", "#", str(path.relative_to(home)))
