"""Cog's real HTTP server as a child process, for tests of a predict.py from the outside."""

from pathlib import Path

from graphs import HERE

from comfy_runner.config import Config
from comfy_runner.serving.server import CogServer, Reply, ServerFailed

__all__ = ["PROJECT", "READY", "CogServer", "Reply", "ServerFailed", "settings"]

PROJECT = HERE.parent
"""The folder of the predict.py that is shipped."""
READY = 180.0
"""Seconds for its setup, which boots ComfyUI."""


def settings(home: Path, **more: str) -> dict[str, str]:
    """The environment of the shipped model: on the CPU, with the test nodes, in a folder of its
    own. `more` adds to it."""
    return {
        "COMFY_RUNNER_HOME": str(home),
        "COMFY_RUNNER_COMFYUI": str(Config.from_environment().comfyui),
        "COMFY_RUNNER_CUSTOM_NODES": str(HERE / "custom_nodes"),
        "COMFY_RUNNER_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        **more,
    }
