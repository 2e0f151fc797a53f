"""What is installed where, and what is missing."""

import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_runner.comfyui import bytecode, saved_catalog
from comfy_runner.comfyui.device import choose_device
from comfy_runner.comfyui.source import read_pin, tree_version
from comfy_runner.config import Config
from comfy_runner.errors import CallerError, ComfyRunnerError
from comfy_runner.packs.folder import is_loaded
from comfy_runner.serving import schema
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.manifest import human_size
from comfy_runner.weights.store import read_manifest

LOW_DISK = 5_000_000_000
"""Bytes of free disk below which a model may not find room."""

NAMED = 6
"""How many packages without bytecode are named."""

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
        *_bytecode(config),
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


def _bytecode(config: Config) -> Iterator[Finding]:
    """How much of what a start of ComfyUI imports need not be compiled for it; by a sample."""
    looked = found = 0
    bare: dict[Path, set[str]] = {}
    for folder, whole, modules in _imported(config):
        for module in modules:
            looked += 1
            if bytecode.is_compiled(module):
                found += 1
            else:
                name = whole or module.relative_to(folder).parts[0].removesuffix(".py")
                bare.setdefault(folder, set()).add(name)
    cure = ""
    if bare:
        names = [name for named in bare.values() for name in sorted(named, key=str.lower)]
        more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
        command = [sys.executable, "-m", bytecode.__name__, *map(str, bare)]
        cure = (
            f"Each start compiles {', '.join(names[:NAMED])}{more} anew. Run: {shlex.join(command)}"
        )
    yield Finding("bytecode", f"{found} of {looked} modules of a start", cure=cure)


def _imported(config: Config) -> Iterator[tuple[Path, str, Iterable[Path]]]:
    """Folders, each with files in it that a start of ComfyUI imports.

    And with what they are all known by; where that is empty, it is the name in the folder.
    """
    python, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    ours, packs = Path(__file__).parent, config.custom_nodes
    yield python, "Python itself", bytecode.boot_modules(python)
    yield packages, "", bytecode.boot_modules(packages)
    yield ours, "comfy_runner", bytecode.modules(ours)
    tree = (path for pattern in bytecode.BOOT_TREE for path in config.comfyui.glob(pattern))
    yield config.comfyui, "ComfyUI", tree
    loaded = filter(is_loaded, packs.iterdir() if packs.is_dir() else ())
    files = (path / "__init__.py" if path.is_dir() else path for path in loaded)
    yield packs, "", (path for path in files if path.is_file())


def _project(config: Config) -> Iterator[Finding]:
    try:
        current = schema.is_current(config.project)
        cure = "" if current else "Run comfy-runner schema."
    except (ComfyRunnerError, OSError) as err:
        current, cure = False, str(err)
    yield Finding("cog.schema", "up to date" if current else "old or missing", current, cure)
    packs = (
        sorted(entry.name for entry in config.custom_nodes.iterdir() if is_loaded(entry))
        if config.custom_nodes.is_dir()
        else []
    )
    yield Finding("custom_nodes.path", str(config.custom_nodes))
    yield Finding("custom_nodes.packs", packs)


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
