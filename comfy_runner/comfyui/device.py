"""Whether ComfyUI computes on the GPU or on the CPU of this machine, found out without torch."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from comfy_runner.config import Config


def choose_device(config: Config, environment: Mapping[str, str]) -> tuple[str, str]:
    """`cpu` or `cuda`, and why; torch is not asked, since loading it takes seconds and memory."""
    if config.device != "auto":
        return config.device, "as configured"
    if "--cpu" in config.comfyui_args:
        return "cpu", "COMFY_RUNNER_COMFYUI_ARGS has --cpu"
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return "cpu", "CUDA_VISIBLE_DEVICES names no GPU"
    # /proc/driver/nvidia tells nothing here: a container sees its host's.
    device_files = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if device_files:
        return "cuda", f"found {device_files[0]}"
    listed = gpus_listed(environment.get("PATH"))
    return ("cuda" if listed.startswith("GPU ") else "cpu"), f"nvidia-smi: {listed}"


def gpus_listed(path: str | None) -> str:
    """The first line of `nvidia-smi -L`, or why there is none."""
    program = shutil.which("nvidia-smi", path=path)
    if program is None:
        return "not found, and no NVIDIA device in /dev"
    try:
        done = subprocess.run(  # noqa: S603
            [program, "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"does not work: {err}"
    return next(iter(done.stdout.splitlines()), "no answer")
