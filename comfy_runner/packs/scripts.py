"""A pack's own `install.py`, run where the lock says that it may be."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from comfy_runner.comfyui.process import child_environment
from comfy_runner.config import Config
from comfy_runner.errors import MachineError
from comfy_runner.packs import trees

TIMEOUT = 1800.0
"""Seconds until a script is given up."""

SHOWN_LINES = 12
"""Lines of its output that an error repeats, the last ones."""


def run(config: Config, pack: Path, tell: Callable[[str], object]) -> None:
    """Run `install.py` in a pack's folder, if there is one, with the environment of ComfyUI.

    It gets no tokens. What it writes counts as added to the pack, not as part of it. Once it has
    run to its end, that is noted in the folder.

    Raises: `MachineError` with its last lines where it fails or takes too long.
    """
    script = pack / "install.py"
    if not script.is_file():
        trees.script_done(pack)
        return
    tell(f"Running {script} ...")
    paths = os.pathsep.join((str(config.comfyui), str(pack)))
    try:
        done = subprocess.run(  # noqa: S603 - the lock says that it may run
            [sys.executable, str(script)],
            cwd=pack,
            env={**child_environment(os.environ), "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise MachineError(f"{script} did not end within {TIMEOUT:.0f} s.") from err
    if done.returncode:
        lines = "".join(f"\n  | {line}" for line in done.stdout.splitlines()[-SHOWN_LINES:])
        raise MachineError(f"{script} failed with exit code {done.returncode}.{lines}")
    trees.script_done(pack)
