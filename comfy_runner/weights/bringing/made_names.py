"""What a weight is called that came from somebody's address, and whether it may come at all."""

from pathlib import PurePosixPath

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.endings import RUN_NO_CODE, WEIGHTS
from comfy_runner.fetch.urls import clean_name

FROM_ADDRESSES = "url"
"""Where in a model folder the weights stand that came from somebody's address."""


def ending(name: str, *, allow_pickles: bool, shown: str) -> str:
    """The ending, with its dot, that a caller's weight gets: that of its name.

    A name without an ending that is known gets `.safetensors`, and must be one then. Raises:
    `InvalidInput` (`unsafe_weight`) for a weight whose loading could run its code.
    """
    suffix = PurePosixPath(clean_name(name)).suffix
    if suffix.lower() not in WEIGHTS:
        return ".safetensors"
    if suffix.lower() in RUN_NO_CODE or allow_pickles:
        return suffix
    raise InvalidInput(
        [
            Problem(
                "unsafe_weight",
                f"{shown} is called {clean_name(name)!r}; only .safetensors, .sft and .gguf files"
                " are fetched from the address of a caller, since loading others can run code.",
                "Give the address of a safetensors file, or set COMFY_RUNNER_ALLOW_PICKLES.",
            )
        ]
    )


def made_name(name: str, identity: str) -> str:
    """The name of a file that came from an address: its own, and a part of its content's hash.

    Another content gets another name, so that ComfyUI, which remembers models by their names,
    never takes the one for the other.
    """
    clean = clean_name(name)
    suffix = PurePosixPath(clean).suffix
    suffix = suffix if suffix.lower() in WEIGHTS else ""
    stem = clean.removesuffix(suffix) if suffix else clean
    return f"{FROM_ADDRESSES}/{stem[:80]}-{identity[:12]}{suffix or '.safetensors'}"
