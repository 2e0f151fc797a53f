"""What is installed here: ComfyUI, its node packs, Python, torch."""

import importlib.metadata
import os
import platform
import tomllib
from collections.abc import Iterator
from pathlib import Path

from comfy_runner import __version__
from comfy_runner.comfyui.source import tree_digest, tree_files, tree_version
from comfy_runner.config import Config
from comfy_runner.runs.contents import hashed, sha256_of
from comfy_runner.runs.receipt import Pack, Surroundings
from comfy_runner.runs.withholding import cleaned

LARGE_FILE = 1024 * 1024
"""Bytes from which a file of a node pack counts by its size alone: those are models, no code."""


def surroundings(config: Config) -> Surroundings:
    """What is installed; reads all files of ComfyUI and its node packs, so ask once for a start.

    Not with `device` and `memory_mode`, which only a running ComfyUI can tell. Node packs are read
    first: some write into their own folders when they are loaded.

    Raises: `OSError` for a file of ComfyUI that cannot be read.
    """
    packs = tuple(_packs(config.custom_nodes))
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    return Surroundings(
        comfy_runner=__version__,
        comfyui=tree_version(config.comfyui),
        comfyui_tree=tree_digest(config.comfyui),
        comfyui_args=tuple(cleaned(argument, ()) for argument in config.comfyui_args),
        python=platform.python_version(),
        torch=torch,
        torch_settings=config.torch,
        platform=platform.platform(),
        packs=packs,
    )


def _packs(folder: Path) -> Iterator[Pack]:
    """The node packs in a folder (`nodes.py` init_external_custom_nodes, ComfyUI 0.30.0)."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        is_module = path.suffix == ".py" if path.is_file() else path.name != "__pycache__"
        if not is_module or path.name.startswith(".") or path.name.endswith(".disabled"):
            continue
        yield Pack(path.name, _pack_version(path), _commit(path), _pack_digest(path))


def _pack_version(pack: Path) -> str:
    try:
        project = tomllib.loads((pack / "pyproject.toml").read_text()).get("project")
    except (OSError, ValueError, RecursionError):
        return ""
    return str(project.get("version", "")) if isinstance(project, dict) else ""


def _commit(pack: Path) -> str:
    """The commit that is checked out, read as git keeps it: gitrepository-layout(5)."""
    try:
        head = (pack / ".git" / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        loose = pack / ".git" / name
        if loose.is_file():
            return loose.read_text().strip()
        for line in (pack / ".git" / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.partition(" ")[0]
    except (OSError, ValueError):
        pass
    return ""


def _pack_digest(pack: Path) -> str:
    def lines() -> Iterator[bytes]:
        for name in tree_files(pack) if pack.is_dir() else [""]:
            path = pack / name
            size = path.stat().st_size
            yield (
                os.fsencode(name) + f" {sha256_of(path) if size < LARGE_FILE else size}\n".encode()
            )

    try:
        return hashed(lines())
    except OSError:
        return ""
