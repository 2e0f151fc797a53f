"""How fast torch computes in ComfyUI's process, on how many cores, and where it keeps code.

The launcher loads it by path, in ComfyUI's process: only the standard library is imported here.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

VARIABLE = "COMFY_RUNNER_TORCH"
"""Tells ComfyUI's process what `tune` is to do."""

THREADS = "OMP_NUM_THREADS"
"""How many threads torch computes with. MKL keeps to it, too, and where somebody has set
MKL_NUM_THREADS, torch goes by that (torch 2.11, ParallelCommon.cpp intraop_default_num_threads)."""

FEW = 2
"""Cores up to which one thread is the fastest. Where others use them as well, two that wait for
each other are up to ten times slower; where nobody does, what they gain is little."""

ROOT = Path("/")

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}
"""Variable that says where compiled code is kept (torch 2.11, triton 3.6) to a folder's name."""


def variables(cache: Path, settings: Sequence[str], root: Path = ROOT) -> Mapping[str, str]:
    """The variables that ComfyUI's process gets, unless somebody has set them otherwise.

    `cache` is the folder below which compiled code is kept, `settings` is the setting `torch`,
    `root` is where the system tells how much of its cores there is for us.
    """
    folders = {name: str(cache.absolute() / folder) for name, folder in CACHES.items()}
    told = {VARIABLE: ",".join(settings)} if settings else {}
    cores = usable_cores()
    count = threads(cores, quota(root))
    # torch takes one thread for each core that the process may use, whatever its share of them.
    return {**folders, **told, **({THREADS: str(count)} if count < cores else {})}


def threads(cores: int, quota: float | None) -> int:
    """How many threads to compute with, on `cores` of which a container may use up its `quota`.

    `quota` is in cores, None for all. More threads than it allows are stopped together, each time
    that it is used up.
    """
    count = cores if quota is None else min(cores, max(1, int(quota)))
    return 1 if count <= FEW else count


def usable_cores() -> int:
    """How many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1


def quota(root: Path = ROOT) -> float | None:
    """How many cores' worth of time our container has; None where it has all that there is.

    Control groups tell it, version 2 in `cpu.max`, version 1 in `cpu.cfs_quota_us`; the one that
    has least counts, of our own and those around it.
    """
    shares = []
    for folder in _groups(root):
        allowed, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if not allowed:
            allowed = _text(folder / "cpu.cfs_quota_us").strip()
            period = _text(folder / "cpu.cfs_period_us").strip()
        if allowed.isdecimal() and period.isdecimal() and int(period):  # else "max" or -1
            shares.append(int(allowed) / int(period))
    return min(shares, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that limit our time, our own before those around it.

    As `memory` finds those for memory: what is loaded by path can import nothing from there.
    """
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup" / ("cpu" if controllers else "")
        folder = top / path.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def tune(torch: Any, settings: Sequence[str]) -> None:
    """Set torch up as the setting `torch` says; nothing changes without any.

    To be called when all node packs are loaded, since some set the same at import, and after
    ComfyUI has set cuDNN's benchmark mode (main.py start_comfyui, 0.30.0). Only torch's older
    switches are used, as ComfyUI does: torch 2.11 refuses to tell a precision that was set in
    both ways, and `allow_tf32` is a second way where a precision is set.
    """
    precision = next((each.partition("=")[2] for each in settings if "=" in each), "")
    if "tf32" in settings:
        torch.backends.cudnn.allow_tf32 = True
        precision = precision or "high"  # which sets torch.backends.cuda.matmul.allow_tf32
    if precision:
        torch.set_float32_matmul_precision(precision)
    if "cudnn_benchmark" in settings:
        torch.backends.cudnn.benchmark = True
