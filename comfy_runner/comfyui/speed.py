"""How fast torch computes in ComfyUI's process.

The launcher loads it by path, in ComfyUI's process: only the standard library is imported here.
"""

from collections.abc import Sequence
from typing import Any

VARIABLE = "COMFY_RUNNER_TORCH"
"""Tells ComfyUI's process what `tune` is to do."""


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
