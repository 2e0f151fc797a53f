"""Memory figures, from this machine and from what other systems tell."""

import os
from pathlib import Path

import pytest

from comfy_runner.comfyui import memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


SYSTEMS: dict[str, tuple[dict[str, str], int | None, int]] = {
    "no container": ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/user/me\n"}, 16384000, 0),
    "version 2, seen from inside": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/outside/name\n",
            "sys/fs/cgroup/memory.max": "1000000\n",
            "sys/fs/cgroup/memory.events": "low 0\noom 3\noom_kill 2\n",
        },
        1000000,
        2,
    ),
    "version 2, limit further up": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/one\n",
            "sys/fs/cgroup/pod/one/memory.max": "max\n",
            "sys/fs/cgroup/pod/one/memory.events": "oom_kill 1\n",
            "sys/fs/cgroup/pod/memory.max": "2000000\n",
            "sys/fs/cgroup/pod/memory.events": "oom_kill 9\n",
        },
        2000000,
        1,
    ),
    "version 1": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu:/\n4:memory:/job\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "3000000\n",
            "sys/fs/cgroup/memory/job/memory.oom_control": "under_oom 0\noom_kill 4\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        3000000,
        4,
    ),
    "something else": ({}, None, 0),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_narrowest_limit_counts(tmp_path: Path, system: str) -> None:
    files, available, kills = SYSTEMS[system]
    root = write(tmp_path, files)
    assert memory.available(root) == available
    assert memory.kills(root) == kills


def test_mapped_files_are_not_held(tmp_path: Path) -> None:
    status = "VmRSS:\t 900 kB\nRssAnon:\t 100 kB\nRssFile:\t 790 kB\nRssShmem:\t 10 kB\n"
    root = write(tmp_path, {"proc/7/status": status, "proc/8/status": "Name:\tzombie\n"})
    assert memory.held(7, root) == 110 * 1024
    assert memory.held(8, root) is None
    assert memory.held(9, root) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no Linux")
def test_this_process_holds_something() -> None:
    held, available = memory.held(os.getpid()), memory.available()
    assert held is not None
    assert available is not None
    assert 2**20 < held < available


def test_figures_are_for_people() -> None:
    assert memory.figure(1536 * 2**20) == "1.5 GiB"
