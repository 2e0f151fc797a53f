"""ComfyUI's arguments: what a person may add, and how it goes with what we say ourselves.

Facts are those of comfy/cli_args.py, ComfyUI 0.30.0.
"""

import logging
from collections.abc import Iterator, Sequence

from comfy_runner.errors import InvalidInput, Problem

log = logging.getLogger(__name__)

SETTING = "COMFY_RUNNER_COMFYUI_ARGS"

MEMORY_MODES = ("--gpu-only", "--highvram", "--lowvram", "--novram", "--cpu")
"""They exclude each other (vram_group)."""

CACHES = ("--cache-ram", "--cache-classic", "--cache-lru", "--cache-none", "--high-ram")
"""They exclude each other (cache_group)."""

DYNAMIC = "--enable-dynamic-vram"
"""Counts for more than --novram (enables_dynamic_vram)."""

_ADDRESS = "would have ComfyUI listen where its runner does not ask.", "Leave it out."
_FOLDER = (
    "would take ComfyUI out of the folder that its runner made for it.",
    "Set COMFY_RUNNER_HOME to have that folder somewhere else.",
)
_END = "would have ComfyUI end at once.", "Leave it out."

REFUSED = {
    "--listen": _ADDRESS,
    "--port": _ADDRESS,
    "--tls-keyfile": _ADDRESS,
    "--tls-certfile": _ADDRESS,
    "--base-directory": _FOLDER,
    "--input-directory": _FOLDER,
    "--output-directory": _FOLDER,
    "--temp-directory": _FOLDER,
    "--user-directory": _FOLDER,
    "--models-directory": (
        "would show ComfyUI other models than its runner knows.",
        "Set COMFY_RUNNER_MODELS instead.",
    ),
    "--quick-test-for-ci": _END,
    "--list-feature-flags": _END,
}
"""What nobody may add: the rest of a sentence that says why, and what to do instead."""

NAMES = (*REFUSED, *MEMORY_MODES, *CACHES, DYNAMIC)
"""All that is looked for here, so that it must not be abbreviated."""


def check(arguments: Sequence[str], device: str) -> None:
    """Raise `InvalidInput` for what a person added that cannot be; `device` is the setting."""
    names = list(dict.fromkeys(name for name, _ in _options(arguments)))
    problems = []
    for name in names:
        if name in REFUSED:
            why, hint = REFUSED[name]
            problems.append(_problem(f"{name} {why}", hint))
        elif name not in NAMES and any(known.startswith(name) for known in NAMES if name):
            problems.append(_problem(f"{name} is short for something.", "Write it in full."))
    for group in (MEMORY_MODES, CACHES):
        found = [name for name in names if name in group]
        if len(found) > 1:
            problems.append(_problem(f"{' and '.join(found)} exclude each other.", "Keep one."))
    if "--cpu" in names and device == "cuda":
        what = "--cpu contradicts the setting COMFY_RUNNER_DEVICE=cuda."
        problems.append(_problem(what, "Leave one of them out."))
    if problems:
        raise InvalidInput(problems)


def fitted(arguments: Sequence[str], *, cpu: bool, low_memory: bool) -> list[str]:
    """What ComfyUI is told of device, memory and cache, and what a person added, as far as it fits.

    A person's cache counts for more than ours. With `low_memory`, and on the `cpu`, what would be
    against it is left out.
    """
    options = list(_options(arguments))
    ours: list[str] = []
    unfit: set[str] = set()
    if cpu:
        ours.append("--cpu")
        unfit.update(MEMORY_MODES)
    elif low_memory:
        # --lowvram does nothing where DynamicVRAM is on, which --novram switches off.
        ours.append("--novram")
        unfit.update(MEMORY_MODES, [DYNAMIC])
    if low_memory:
        ours.append("--cache-none")
        unfit.update(CACHES)
    elif not any(name in CACHES for name, _ in options):
        # The default keeps results by the memory that is free, so runs are not alike.
        ours.append("--cache-classic")
    for name in dict.fromkeys(name for name, _ in options if name in unfit and name not in ours):
        mode = "is to use little memory" if low_memory else "computes on the CPU"
        log.info("%s is left out: ComfyUI %s.", name, mode)
    return ours + [token for name, given in options if name not in unfit for token in given]


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and all words of each argument, in order; words before the first have the name ''."""
    words: list[str] = []
    for word in arguments:
        if word.startswith("--") and words:
            yield _name(words[0]), words
            words = []
        words.append(word)
    if words:
        yield _name(words[0]), words


def _name(word: str) -> str:
    return word.partition("=")[0] if word.startswith("--") else ""


def _problem(what: str, hint: str) -> Problem:
    return Problem("bad_setting", what, hint, input=SETTING)
