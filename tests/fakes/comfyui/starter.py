"""Starts the fake ComfyUI in FOLDER, says so, and ends, or waits to be killed.

Run as `python starter.py FOLDER MODELS end|wait`.
"""

import signal
import sys
from pathlib import Path

from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config

config = Config(
    comfyui=Path(__file__).parent,
    models=Path(sys.argv[2]),
    device="cpu",
    comfyui_args=("--fault", "stubborn"),
)
process = ComfyProcess(config, Path(sys.argv[1]))
process.start()
process.wait_ready(30)
print("ready", flush=True)
if sys.argv[3] == "wait":
    signal.pause()
