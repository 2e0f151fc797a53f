"""What torch is told in ComfyUI's process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_runner.comfyui import speed, tuning

TUNED = """
import json, sys
import torch
from comfy_runner.comfyui import speed

for settings in json.loads(sys.argv[1]):
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
    speed.tune(torch, settings)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    print(precision, matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
"""


def test_torch_is_set_up_as_told_and_can_still_tell_its_precision() -> None:
    """It refuses to tell one that was set in two ways."""
    expected = {
        (): "highest False False False",
        ("tf32",): "high True True False",
        ("tf32", "matmul=medium"): "medium True True False",
        ("matmul=high",): "high True False False",
        ("matmul=highest", "cudnn_benchmark"): "highest False False True",
    }
    told = subprocess.run(
        [sys.executable, "-c", TUNED, json.dumps(list(expected))],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert told.stdout.splitlines() == list(expected.values())


def test_what_is_compiled_is_kept_in_the_cache(tmp_path: Path) -> None:
    folders = {
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/torchinductor",
        "TRITON_CACHE_DIR": f"{tmp_path}/triton",
    }
    assert folders.items() <= tuning.variables(tmp_path, ()).items()
    assert speed.VARIABLE not in tuning.variables(tmp_path, ())
    settings = ("tf32", "matmul=high")
    assert tuning.variables(tmp_path, settings)[speed.VARIABLE] == "tf32,matmul=high"


@pytest.mark.parametrize(
    ("cores", "quota", "count"),
    [
        (1, None, 1),
        (2, None, 1),
        (2, 1.5, 1),
        (8, None, 8),
        (64, 4.0, 4),
        (64, 3.9, 3),
        (64, 2.0, 1),
        (64, 0.5, 1),
        (4, 16.0, 4),
    ],
)
def test_there_are_no_more_threads_than_cores_that_can_be_used(
    cores: int, quota: float | None, count: int
) -> None:
    assert tuning.threads(cores, quota) == count


SYSTEMS: dict[str, tuple[dict[str, str], float | None]] = {
    "no container": ({"proc/self/cgroup": "0::/user/me\n"}, None),
    "version 2, seen from inside": (
        {"proc/self/cgroup": "0::/outside/name\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        1.5,
    ),
    "version 2, less further up": (
        {
            "proc/self/cgroup": "0::/pod/one\n",
            "sys/fs/cgroup/pod/one/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/cpu.max": "800000 100000\n",
        },
        4.0,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/other\n4:cpu,cpuacct:/job\n3:cpuset:/\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "nonsense": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"},
        None,
    ),
    "something else": ({}, None),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_container_s_share_is_known(tmp_path: Path, system: str) -> None:
    files, expected = SYSTEMS[system]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert tuning.quota(tmp_path) == expected


def test_threads_are_only_set_where_torch_would_take_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    limit = tmp_path / "sys" / "fs" / "cgroup" / "cpu.max"
    limit.parent.mkdir(parents=True)

    def told(cores: int, quota: str) -> str | None:
        monkeypatch.setattr(tuning, "usable_cores", lambda: cores)
        limit.write_text(quota)
        return tuning.variables(tmp_path, (), tmp_path).get("OMP_NUM_THREADS")

    assert told(16, "max 100000") is None
    assert told(16, "400000 100000") == "4"
    assert told(2, "max 100000") == "1"
    assert told(1, "max 100000") is None


def test_what_somebody_has_set_for_mkl_goes_before_our_number() -> None:
    """Both variables are torch's own, and it is torch that tells."""
    asked = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    both = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2", "MKL_DYNAMIC": "FALSE"}
    told = subprocess.run(asked, capture_output=True, text=True, check=True, env=both)
    assert told.stdout == "2\n"
