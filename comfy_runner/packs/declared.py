"""What a pack's files say about it, read without running any: requirements, classes, script."""

import ast
import re
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.packs import trees

MAX_SOURCE = 2 * 1024**2
"""Bytes of a source file that is read for classes."""

MAPPING = "NODE_CLASS_MAPPINGS"


@dataclass(frozen=True, slots=True)
class Declared:
    """What a pack asks for and brings, as far as its files tell."""

    requirements: tuple[str, ...]
    """One requirement each, as written; what they mean is for `resolution` to judge."""
    classes: tuple[str, ...]
    """Sorted; those that are made up at run time are missing."""
    notes: tuple[str, ...] = ()
    """What the author of the lock should know, one sentence each."""
    has_script: bool = False
    """Whether there is an `install.py`."""


def examine(tree: Path) -> Declared:
    """Read a pack's folder; nothing of it is run. Raises: `OSError`."""
    notes: list[str] = []
    requirements = tuple(dict.fromkeys(_requirements(tree, notes)))
    pointers = trees.lfs_pointers(tree, trees.contents(tree))
    if pointers:
        notes.append(f"{trees.listed(pointers)}: Git LFS keeps the content, which is not fetched.")
    script = (tree / "install.py").is_file()
    return Declared(requirements, tuple(sorted(set(_classes(tree)))), tuple(notes), script)


def _requirements(tree: Path, notes: list[str]) -> Iterator[str]:
    """Of `requirements.txt`, which ComfyUI-Manager installs; else those of `pyproject.toml`."""
    listed = tree / "requirements.txt"
    if listed.is_file():
        yield from _lines(listed, tree, notes, {listed.resolve()})
        return
    try:
        raw = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (ValueError, RecursionError) as err:
        notes.append(f"Its pyproject.toml cannot be read, so no requirements are known: {err}.")
        return
    project = raw.get("project")
    dependencies = project.get("dependencies") if isinstance(project, dict) else None
    for text in dependencies if isinstance(dependencies, list) else ():
        if isinstance(text, str):
            yield text.strip()


def _lines(path: Path, tree: Path, notes: list[str], seen: set[Path]) -> Iterator[str]:
    """The requirements of one file in pip's format, and of those that it includes."""
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    for raw in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        option = re.match(r"(-r|--requirement)[ =]*(.+)", line)
        if option:
            other = _included(path, option[2].strip())
            if other in seen:
                continue
            if other is not None and other.is_relative_to(tree.resolve()):
                seen.add(other)
                yield from _lines(other, tree, notes, seen)
            else:
                notes.append(f"Its {path.name} includes {option[2]!r}, which is not in the pack.")
        elif line.startswith(("-e", "--editable")):
            yield line
        elif line.startswith("-"):
            notes.append(
                f"Its {path.name} wants pip's option {line!r}, which is not followed: set up uv"
                " for such an index yourself."
            )
        elif line:
            yield re.sub(r"\s+--hash=\S+", "", line)


def _included(path: Path, name: str) -> Path | None:
    """The file that one of requirements includes; None where there is none."""
    try:
        other = (path.parent / name).resolve()
        return other if other.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _classes(tree: Path) -> Iterator[str]:
    for name in trees.contents(tree):
        path = tree / name
        if path.suffix != ".py" or path.stat().st_size > MAX_SOURCE:
            continue
        text = path.read_bytes()
        if MAPPING.encode() not in text and b"node_id" not in text:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                module = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        yield from _classes_in(module)


def _classes_in(module: ast.Module) -> Iterator[str]:
    """Class names that stand in the source as literals.

    Keys of `NODE_CLASS_MAPPINGS`, and the `node_id` of a V3 `Schema` (comfy_api/latest/_io.py of
    ComfyUI 0.30).
    """
    for node in ast.walk(module):
        match node:
            case ast.Assign(targets=targets, value=ast.Dict() as value) if any(
                map(_is_mapping, targets)
            ):
                yield from _keys(value)
            case ast.AnnAssign(target=target, value=ast.Dict() as value) if _is_mapping(target):
                yield from _keys(value)
            case ast.Assign(
                targets=[ast.Subscript(value=target, slice=ast.Constant(value=str(name)))]
            ) if _is_mapping(target):
                yield name
            case ast.Call(
                func=ast.Attribute(value=target, attr="update"), args=[ast.Dict() as value]
            ) if _is_mapping(target):
                yield from _keys(value)
            case ast.Call(
                func=ast.Attribute(attr="Schema") | ast.Name(id="Schema"), keywords=keywords
            ):
                for keyword in keywords:
                    match keyword:
                        case ast.keyword(arg="node_id", value=ast.Constant(value=str(name))):
                            yield name


def _is_mapping(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name == MAPPING
    return False


def _keys(mapping: ast.Dict) -> Iterator[str]:
    for key in mapping.keys:
        match key:
            case ast.Constant(value=str(name)):
                yield name
