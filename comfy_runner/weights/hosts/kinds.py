"""The kinds of places that a weight can come from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FOLDERS: Mapping[str, str] = {
    "checkpoint": "checkpoints",
    "lora": "loras",
    "locon": "loras",
    "lycoris": "loras",
    "dora": "loras",
    "textualinversion": "embeddings",
    "embedding": "embeddings",
    "hypernetwork": "hypernetworks",
    "hypernet": "hypernetworks",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
    "unet": "diffusion_models",
    "textencoder": "text_encoders",
    "clipvision": "clip_vision",
    "motionmodule": "animatediff_models",
    "motion": "animatediff_models",
}
"""Type of an AIR, or of a model on CivitAI, in small letters, to the model folder."""
FILE_ENDING = re.compile(
    r"\.(safetensors|sft|ckpt|pt2?|pth|bin|pkl|gguf|onnx|engine|np[yz]|h5|msgpack"
    r"|tar|tgz|gz|xz|bz2|zip|7z|ya?ml|json|txt|md|png|jpe?g|webp)$",
    re.IGNORECASE,
)
"""What makes a last path part a file; a repository's name may hold other dots."""
REPO_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(?<![.-])"
REPOSITORY = re.compile(f"{REPO_PART}(?:/{REPO_PART})?")
"""As `validate_repo_id` of huggingface_hub 2.4.0 has it."""
VERSION = r"[0-9a-f]{64}"

RepositoryKind = Literal["models", "datasets", "spaces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFace:
    """A file in a repository on Hugging Face, or a place in one where a file must be chosen."""

    repo_id: str
    """`owner/name`; a few old ones have no owner."""
    revision: str = "main"
    """Branch, tag or commit."""
    path: str = ""
    """The file, with `/`; empty when it must be chosen."""
    directory: str = ""
    """Where it must be chosen; empty for the whole repository."""
    kind: RepositoryKind = "models"
    format: str = ""
    """Extension, without the dot, that the file to choose must have."""
    model_folder: str = ""
    """Model folder that the address itself states."""
    token: str = field(default="", repr=False)
    """Token that stood in the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CivitAI:
    """A model on CivitAI, a version of it, or a file of that version."""

    model_id: int | None = None
    version_id: int | None = None
    """At least one of the two is known."""
    file_id: int | None = None
    type: str = ""
    """What the file to choose must be: `Model`, `VAE`, `Training Data` and so on."""
    format: str = ""
    """`SafeTensor`, `PickleTensor`, ...; an extension where an AIR says it."""
    size: str = ""
    """`full` or `pruned`."""
    fp: str = ""
    """`fp16`, `fp32`, ..."""
    quant: str = ""
    """Quantization of a GGUF file: `Q4_K_M`, `Q8_0`, ..."""
    model_folder: str = ""
    """Model folder that the address itself states."""
    token: str = field(default="", repr=False)
    """Token that stood in the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicate:
    """The tar of weights that was trained as a model on Replicate."""

    owner: str
    model: str
    version: str = ""
    """64 hexadecimal digits; empty for the newest."""
    token: str = field(default="", repr=False)
    """Token that stood in the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """Any other file on the web."""

    url: str = field(repr=False)
    """`https:` or `http:`, as a program can open it; its query may be a signature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A `data:` URL, which is its own content."""

    url: str = field(repr=False)


Address = HuggingFace | CivitAI | Replicate | Plain | Data


def is_file(path: str) -> bool:
    """Whether the last part of a path has a file's ending."""
    return FILE_ENDING.search(path) is not None
