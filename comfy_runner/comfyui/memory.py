"""How much memory a process holds and how much there is, as Linux tells in /proc and /sys."""

from pathlib import Path

from comfy_runner.comfyui.cgroups import groups, text

ROOT = Path("/")
KIB = 1024
GIB = 1024**3


def held(pid: int, root: Path = ROOT) -> int | None:
    """Bytes of memory that a process alone holds; None where the system does not tell.

    Mapped files, such as safetensors, do not count: they cost nothing that cannot be taken back.
    """
    try:
        status = (root / "proc" / str(pid) / "status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "RssAnon" not in fields:
        return None
    return sum(int(fields[name].split()[0]) * KIB for name in ("RssAnon", "RssShmem"))


def available(root: Path = ROOT) -> int | None:
    """Bytes of memory that there are for us: the machine's, or less where a container has a limit.

    None where the system does not tell.
    """
    limits = []
    try:
        for line in (root / "proc" / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemTotal":
                limits.append(int(value.split()[0]) * KIB)
    except OSError:
        return None
    for folder in groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = text(folder / name).strip()
            if limit.isdecimal():  # or "max"
                limits.append(int(limit))
    return min(limits, default=None)


def kills(root: Path = ROOT) -> int:
    """How many processes of our container the kernel has killed for lack of memory so far."""
    for folder in groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            for line in text(folder / name).splitlines():
                match line.split():
                    case ["oom_kill", count]:
                        return int(count)
    return 0


def figure(size: int) -> str:
    """Bytes for people: `3.2 GiB`."""
    return f"{size / GIB:.1f} GiB"
