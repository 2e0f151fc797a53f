"""All settings, read once from the environment: nothing else in the package looks at it."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comfy_runner.errors import InvalidInput, Problem

PROJECT = Path(__file__).resolve().parent.parent
"""The folder that holds `predict.py`, `comfyui.toml` and `weights_manifest.json`."""

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where things are and how long they may take; folders need not exist yet."""

    project: Path = PROJECT
    """Folder of the model repository."""
    home: Path = PROJECT / ".comfy"
    """Folder for everything that is made at run time; safe to delete."""
    comfyui: Path = PROJECT / ".comfy" / "ComfyUI"
    """The ComfyUI source tree: the folder with `main.py`."""
    models: Path = PROJECT / ".comfy" / "models"
    """Folder with the model folders (`checkpoints`, `loras`, ...)."""
    manifest: Path = PROJECT / "weights_manifest.json"
    """The weights manifest."""
    custom_nodes: Path = PROJECT / "custom_nodes"
    """Folder with custom node packs."""
    device: Device = "auto"
    """What ComfyUI computes on; `auto` is the GPU where there is one."""
    comfyui_args: tuple[str, ...] = ()
    """More command-line arguments for ComfyUI, after ours."""
    boot_timeout: float = 300.0
    """Seconds until ComfyUI must answer after its start."""
    run_timeout: float = 3600.0
    """Seconds that one run may take when the request sets no `timeout`."""
    stall_timeout: float = 900.0
    """Seconds that a run may go without any sign of progress."""
    max_input_bytes: int = 2 * 1024**3
    """Largest file, in bytes, that is taken as one input of a request."""

    @property
    def cache(self) -> Path:
        """Folder for saved catalogs."""
        return self.home / "cache"

    @property
    def runs(self) -> Path:
        """Folder under which each started ComfyUI gets a folder of its own."""
        return self.home / "runs"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Config":
        """The settings of this machine.

        Every field but `project` is `COMFY_RUNNER_` and its name in capitals, such as
        `COMFY_RUNNER_RUN_TIMEOUT`. An empty variable counts as unset. `comfyui` and `models`
        follow `home` unless they are set. `comfyui_args` is split at white space.

        Raises: `InvalidInput`, naming every variable that does not fit.
        """
        if environment is None:
            environment = os.environ
        given = {
            name.removeprefix("COMFY_RUNNER_").lower(): value
            for name, value in environment.items()
            if name.startswith("COMFY_RUNNER_") and value
        }
        problems: list[Problem] = []

        def path(name: str, default: Path) -> Path:
            if name not in given:
                return default
            try:
                return Path(given[name]).expanduser().absolute()
            except RuntimeError as err:  # ~ of somebody unknown
                what = f"{given[name]!r} cannot be used: {err}"
                problems.append(Problem("bad_setting", what, input=f"COMFY_RUNNER_{name.upper()}"))
                return default

        def number(name: str, default: float) -> float:
            if name not in given:
                return default
            try:
                value = float(given[name])
            except ValueError:
                value = math.nan
            if math.isfinite(value) and value > 0:
                return value
            problems.append(
                Problem(
                    "bad_setting",
                    f"{given[name]!r} is not a number above 0.",
                    input=f"COMFY_RUNNER_{name.upper()}",
                )
            )
            return default

        device: Device = "auto"
        match given.get("device", "auto"):
            case "auto" | "cpu" | "cuda" as device:
                pass
            case other:
                problems.append(
                    Problem(
                        "bad_setting",
                        f"{other!r} is not auto, cpu or cuda.",
                        input="COMFY_RUNNER_DEVICE",
                    )
                )
        home = path("home", cls.home)
        config = cls(
            home=home,
            comfyui=path("comfyui", home / "ComfyUI"),
            models=path("models", home / "models"),
            manifest=path("manifest", cls.manifest),
            custom_nodes=path("custom_nodes", cls.custom_nodes),
            device=device,
            comfyui_args=tuple(given.get("comfyui_args", "").split()),
            boot_timeout=number("boot_timeout", cls.boot_timeout),
            run_timeout=number("run_timeout", cls.run_timeout),
            stall_timeout=number("stall_timeout", cls.stall_timeout),
            max_input_bytes=max(1, int(number("max_input_bytes", cls.max_input_bytes))),
        )
        if problems:
            raise InvalidInput(problems)
        return config
