"""What filled the GPU's memory, in words, from ComfyUI's log and its list of devices."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfy_runner.comfyui.memory import figure

REQUESTED = re.compile(r"Requested to load (\w+)")
LOADED = re.compile(r"loaded (?:completely|partially);.* ([\d.]+) MB loaded")
"""Lines of comfy/model_management.py and comfy/model_patcher.py, ComfyUI 0.30.0."""


def loaded_models(lines: Iterable[str]) -> tuple[str, ...]:
    """The models that a log tells were loaded, such as `Flux (11350 MB)`, each once, in order."""
    sizes: dict[str, str] = {}
    waiting: list[str] = []
    for line in lines:
        if requested := REQUESTED.search(line):
            waiting.append(requested[1])
            sizes.setdefault(requested[1], "")
        elif (loaded := LOADED.search(line)) and waiting:
            sizes[waiting.pop(0)] = f" ({float(loaded[1]):.0f} MB)"
    return tuple(name + size for name, size in sizes.items())


def memory_report(lines: Iterable[str], devices: Sequence[Mapping[str, Any]]) -> str:
    """Sentences on what a run had loaded and on what it ran; `devices` as ComfyUI tells them."""
    models = loaded_models(lines)
    sentences = [f"It had loaded {', '.join(models)}." if models else "It had loaded no model."]
    for device in devices:
        total, free = figure(device["vram_total"]), figure(device["vram_free"])
        sentences.append(f"{device['name']} has {total} of memory, {free} of it free now.")
    return " ".join(sentences)
