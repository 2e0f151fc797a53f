"""What ComfyUI's process is told of computing: how, on how many cores, and where it keeps code."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from comfy_runner.comfyui import speed
from comfy_runner.comfyui.cgroups import groups, text

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
    told = {speed.VARIABLE: ",".join(settings)} if settings else {}
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
    for folder in groups(root, "cpu"):
        allowed, _, period = text(folder / "cpu.max").strip().partition(" ")
        if not allowed:
            allowed = text(folder / "cpu.cfs_quota_us").strip()
            period = text(folder / "cpu.cfs_period_us").strip()
        if allowed.isdecimal() and period.isdecimal() and int(period):  # else "max" or -1
            shares.append(int(allowed) / int(period))
    return min(shares, default=None)
