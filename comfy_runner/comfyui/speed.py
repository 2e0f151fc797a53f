"""How fast torch computes in ComfyUI's process, and where what it compiles is kept between boots.

The launcher loads it by path, in ComfyUI's process: only the standard library is imported here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VARIABLE = "COMFY_RUNNER_TORCH"
"""Tells ComfyUI's process what `tune` is to do."""

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}
"""Variable that says where compiled code is kept (torch 2.11, triton 3.6) to a folder's name."""


def variables(cache: Path, settings: Sequence[str]) -> Mapping[str, str]:
    """The variables that ComfyUI's process gets, unless somebody has set them otherwise.

    `cache` is the folder below which compiled code is kept, `settings` is the setting `torch`.
    """
    folders = {name: str(cache.absolute() / folder) for name, folder in CACHES.items()}
    return {**folders, **({VARIABLE: ",".join(settings)} if settings else {})}


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
