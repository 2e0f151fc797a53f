"""The command line, run as its users run it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_runner.config import Config

PROGRAM = str(Path(sys.executable).with_name("comfy-runner"))


class Program:
    """`comfy-runner` with its own home, in a folder of its own."""

    def __init__(self, config: Config, folder: Path, **more: str) -> None:
        """`more` are variables besides those that the configuration makes."""
        self.folder = folder
        self.environment: Mapping[str, str] = {
            **os.environ,
            "COMFY_RUNNER_HOME": str(config.home),
            "COMFY_RUNNER_COMFYUI": str(config.comfyui),
            "COMFY_RUNNER_MODELS": str(config.models),
            "COMFY_RUNNER_CUSTOM_NODES": str(config.custom_nodes),
            "COMFY_RUNNER_DEVICE": "cpu",
            "COMFY_RUNNER_PRIVATE_ADDRESSES": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def __call__(self, *arguments: object, code: int = 0, given: bytes = b"") -> tuple[str, str]:
        """Run it to its end with this standard input; standard output and standard error."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            input=given,
            capture_output=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout.decode(), done.stderr.decode()

    def command(self, *arguments: object) -> list[str]:
        """What is run."""
        return [PROGRAM, *map(str, arguments)]

    def workflow(self, document: Any) -> Path:
        """A workflow file with this content."""
        path = self.folder / "workflow.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path
