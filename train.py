"""Training as packaging: weights by their addresses or an upload become one tar for `setup`."""

# Cog reads the file without running it: each text is one literal.
# ruff: noqa: B008, E501

from cog import BaseModel, Input, Path, Secret

from comfy_runner.config import Config
from comfy_runner.serving.prediction import prepare
from comfy_runner.serving.training import package

prepare()  # Cog gives a function no setup, and would itself fetch the first upload by URL.


class TrainingOutput(BaseModel):
    """What Cog sends back."""

    weights: Path


def train(
    weights: str = Input(
        description="What to pack, one a line: loras/style.safetensors = https://... A place is FOLDER/NAME of ComfyUI's models folder, an address a URL, owner/repo/file on Hugging Face or a CivitAI AIR; `upload` stands for the uploaded file.",
        default="",
    ),
    upload: Path | None = Input(
        description="A weights file, or an archive with one in it, that weights calls upload.",
        default=None,
    ),
    workflow: str = Input(
        description="A workflow to pack with them: its JSON, or an http(s) URL or data URI of it.",
        default="",
    ),
    hf_token: Secret | None = Input(
        description="Hugging Face token for private and gated weights; sent to huggingface.co only.",
        default=None,
    ),
    civitai_token: Secret | None = Input(
        description="CivitAI token for private weights; sent to civitai.com only.",
        default=None,
    ),
) -> TrainingOutput:
    """Fetch and verify the weights, and pack them into one tar, which `setup` takes."""
    config = Config.from_environment()
    tar = package(
        weights,
        upload=upload,
        workflow=workflow,
        config=config,
        hf_token=hf_token,
        civitai_token=civitai_token,
    )
    return TrainingOutput(weights=Path(tar))
