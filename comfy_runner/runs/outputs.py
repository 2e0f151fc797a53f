"""What an output node made: which files, which values, and what to call them."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from comfy_runner.graph.workflow import Node

LONGEST_PART = 60
"""Longest stretch of a title or file name, in characters, that goes into an output's name."""


TOO_DEEP = "The node has reported a value that is nested too deeply to be written.\n"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that ComfyUI reports, by its own three coordinates."""

    filename: str
    subfolder: str
    type: str
    """`output`, `temp` (a preview) or `input`."""

    @property
    def is_preview(self) -> bool:
        """Whether it is not meant to be kept."""
        return self.type != "output"


@dataclass(frozen=True, slots=True)
class OutputValue:
    """Text or another JSON value that a node reports instead of a file."""

    kind: str
    """ComfyUI's name for it, such as `text`."""
    text: str
    """The content of its file."""
    suffix: str
    """`.txt` or `.json`."""


def files(output: Mapping[str, Any]) -> Iterator[OutputFile]:
    """Every file in a node's ui object, whatever kind it stands under (`images`, `gifs`, ...)."""
    for entries in output.values():
        for entry in entries if isinstance(entries, list) else ():
            match entry:
                case {"filename": str() as filename, "type": str() as kind} if filename:
                    yield OutputFile(filename, str(entry.get("subfolder") or ""), kind)


def values(output: Mapping[str, Any]) -> Iterator[OutputValue]:
    """Everything in a node's ui object that is no file: one value for each kind.

    A single text becomes a `.txt`, anything else a `.json`. The flag `animated` says something
    about the files beside it and is no value of its own (`comfy_api/latest/_ui.py` 0.30).
    """
    for kind, entries in output.items():
        if kind == "animated":
            continue
        if isinstance(entries, list):
            rest = [entry for entry in entries if not _is_file(entry)]
            if not rest:
                continue
            value = rest[0] if len(rest) == 1 else rest
        else:
            value = entries
        if isinstance(value, str):
            yield OutputValue(kind, value, ".txt")
        elif value is not None:
            try:
                text = json.dumps(_finite(value), ensure_ascii=False, indent=2)
            except RecursionError:
                yield OutputValue(kind, TOO_DEEP, ".txt")
            else:
                yield OutputValue(kind, f"{text}\n", ".json")


def name_for(node: Node | None, node_id: str, made: str, taken: set[str]) -> str:
    """A name that tells the node, is safe in a URL and a shell, and is not in `taken`.

    `9_Save-Image_fox_00001.png` for the file `fox_00001_.png` of node 9, `Save Image`. The name
    is added to `taken`.
    """
    path = PurePosixPath(made)
    suffix = re.sub(r"[^A-Za-z0-9.]", "", path.suffix)[:12]
    parts = (node_id, node.label if node else "", path.name.removesuffix(path.suffix))
    stem = "_".join(part for part in map(_safe, parts) if part) or "output"
    name = free_name(stem, suffix, lambda name: name.lower() in taken)
    taken.add(name.lower())
    return name


def free_name(stem: str, suffix: str, is_taken: Callable[[str], bool]) -> str:
    """The first of `STEM.png`, `STEM-2.png`, `STEM-3.png`, ... that is not taken."""
    name, number = f"{stem}{suffix}", 1
    while is_taken(name):
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace(":", "."))[:LONGEST_PART].strip("._-")


def _is_file(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "filename" in entry and "type" in entry


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as `null`: ComfyUI sends them, strict JSON has none."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list():
            return [_finite(item) for item in value]
        case _:
            return value
