"""What torch is told in ComfyUI's process."""

import json
import subprocess
import sys
from pathlib import Path

from comfy_runner.comfyui import speed

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
    assert speed.variables(tmp_path, ()) == {
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/torchinductor",
        "TRITON_CACHE_DIR": f"{tmp_path}/triton",
    }
    settings = ("tf32", "matmul=high")
    assert speed.variables(tmp_path, settings)[speed.VARIABLE] == "tf32,matmul=high"
