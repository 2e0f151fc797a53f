"""What is installed where, and what is missing."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comfy_runner.comfyui import saved_catalog
from comfy_runner.comfyui.device import choose_device
from comfy_runner.comfyui.source import read_pin, tree_version
from comfy_runner.config import Config
from comfy_runner.errors import CallerError, ComfyRunnerError
from comfy_runner.serving import schema
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.manifest import human_size
from comfy_runner.weights.store import read_manifest

LOW_DISK = 5_000_000_000
"""Bytes of free disk below which a model may not find room."""

PACKAGES = ("cog", "coglet", "torch", "torchvision", "torchaudio", "safetensors", "aiohttp")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """Dotted, such as `comfyui.path`."""
    value: Any
    ok: bool = True
    cure: str = ""
    """What to do when it is not ok, or what would make it better."""


def examine(config: Config) -> tuple[Finding, ...]:
    """Look at everything that a run needs; nothing is started."""
    return (
        *_python(),
        *_comfyui(config),
        *_project(config),
        *_weights(config),
        *_machine(config),
    )


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    fits = sys.version_info[:2] == (3, 12)
    yield Finding("python.version", version, fits, "" if fits else "Python 3.12 is needed.")
    yield Finding("python.path", sys.executable)
    for package in PACKAGES:
        try:
            yield Finding(f"package.{package}", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"package.{package}", None, False, "Run script/bootstrap.")


def _comfyui(config: Config) -> Iterator[Finding]:
    installed = (config.comfyui / "main.py").is_file()
    cure = "" if installed else "Run script/bootstrap, or comfy-runner install."
    yield Finding("comfyui.path", str(config.comfyui), installed, cure)
    if installed:
        version, wanted = tree_version(config.comfyui), read_pin(config.project).version
        cure = "" if version == wanted else f"This project is made for ComfyUI {wanted}."
        yield Finding("comfyui.version", version, not cure, cure)
        catalog = saved_catalog.load(config)
        yield Finding(
            "comfyui.saved_catalog",
            None if catalog is None else f"{len(catalog)} node classes",
            cure="" if catalog else "It is made by the next run.",
        )


def _project(config: Config) -> Iterator[Finding]:
    try:
        current = schema.is_current(config.project)
        cure = "" if current else "Run comfy-runner schema."
    except (ComfyRunnerError, OSError) as err:
        current, cure = False, str(err)
    yield Finding("cog.schema", "up to date" if current else "old or missing", current, cure)
    packs = (
        sorted(entry.name for entry in config.custom_nodes.iterdir() if _is_pack(entry.name))
        if config.custom_nodes.is_dir()
        else []
    )
    yield Finding("custom_nodes.path", str(config.custom_nodes))
    yield Finding("custom_nodes.packs", packs)


def _is_pack(name: str) -> bool:
    return not name.startswith((".", "_")) and not name.endswith((".md", ".txt", ".json"))


def _weights(config: Config) -> Iterator[Finding]:
    yield Finding("models.path", str(config.models))
    try:
        manifest = read_manifest(config.manifest)
    except CallerError as err:
        yield Finding("manifest", str(config.manifest), False, str(err))
        return
    folders = ModelFolders(config.models)
    here = sum(folders.holds(weight) for weight in manifest.weights)
    yield Finding("manifest.path", str(config.manifest))
    yield Finding("manifest.weights", len(manifest.weights))
    yield Finding("manifest.weights_on_disk", here)


def _machine(config: Config) -> Iterator[Finding]:
    device, reason = choose_device(config, os.environ)
    yield Finding("device", f"{device} ({reason})")
    yield Finding("pget", shutil.which("pget"))
    folder = next(path for path in (config.models, *config.models.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    cure = "" if free > LOW_DISK else f"Little room for models at {folder}."
    yield Finding("disk.free", human_size(free), not cure, cure)
