"""The control groups that a process is in, which limit what its container may use; cgroups(7)."""

from collections.abc import Iterator
from pathlib import Path


def groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process, its own before those around it.

    Version 2 has one tree, version 1 one for each controller, such as `memory` and `cpu`. A
    container often sees its own group as the top, while /proc names the place that it has outside.
    """
    for line in text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup" / (controller if controllers else "")
        folder = top / path.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def text(path: Path) -> str:
    """What is in a file; empty where there is none, or we may not look."""
    try:
        return path.read_text()
    except OSError:
        return ""
