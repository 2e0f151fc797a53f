"""Imports while ComfyUI boots what can wait for ComfyUI itself, each in another way."""

import importlib
import json

import app.database.db as database
import comfy.audio_encoders.whisper
import comfy.ldm.hunyuan_video.upsampler
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.sd1_clip
import kornia.filters.canny
import requests.exceptions
import scipy
import torch
import torch._dynamo as dynamo
import torch.export
import torchvision.transforms.functional as tvf
from app.assets.seeder import asset_seeder
from comfy.ldm.flux.layers import MLPEmbedder
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.sd import StageA
from comfy.text_encoders import flux
from kornia.filters import canny
from scipy import special, stats
from spandrel import *  # noqa: F403
from tokenizers import Tokenizer
from torchaudio.functional import resample
from torchsde import BrownianInterval
from transformers import CLIPTokenizer, T5TokenizerFast

try:
    import spandrel_extra_arches
except ImportError:
    spandrel_extra_arches = None
try:
    requests.get("http://127.0.0.1:1/", timeout=1)
except (requests.exceptions.Timeout, requests.exceptions.ConnectionError) as err:
    REFUSED = type(err).__name__

integrate = importlib.import_module("scipy.integrate")


usual_attention = comfy.ldm.modules.attention.optimized_attention


def optimized_attention(*given, **named):
    """In the place of ComfyUI's, as packs with faster ones put theirs."""
    return usual_attention(*given, **named)


comfy.ldm.modules.attention.optimized_attention = optimized_attention


class Tokens(CLIPTokenizer):
    """One's own tokenizer."""


class Encoder(comfy.sd1_clip.CLIPTokenizer, flux.FluxTokenizer):
    """A class of the library by the name that ComfyUI has it, and one of ComfyUI."""

    def __init__(self):
        """Without files."""


class Embedder(MLPEmbedder):
    """A part of a model with a forward of its own."""

    def forward(self, x):
        return super().forward(x) + 1


class Both(StageA, torch.nn.Module):
    """One more base."""


upsampler = comfy.ldm.hunyuan_video.upsampler
USUAL = upsampler.SRModel3DV2.__init__
upsampler.SRModel3DV2.__init__ = lambda self, *_, **__: setattr(self, "patched", True)
comfy.model_base.ImageConcatWithNoiseAugmentation.patched = "in model_base"
kornia.filters.Canny.patched = True
AutoencoderKL.patched = True


@dynamo.disable
def never_compiled(x):
    return x + 1


@torch.compile(backend="eager")
def compiled(x):
    return never_compiled(torch.sin(x)) * 2


class TestImporters:
    """Uses all of it."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def run(self):
        import comfy.ldm.cascade.stage_a  # noqa: PLC0415
        import comfy.ldm.cosmos.blocks  # noqa: PLC0415
        import comfy.ldm.models.autoencoder as autoencoders  # noqa: PLC0415
        import comfy.ldm.wan.model  # noqa: PLC0415
        from comfy.ldm.modules.diffusionmodules import upscaling  # noqa: PLC0415

        ones = torch.ones(1, 4)
        embedder = Embedder(4, 4, operations=torch.nn)
        told = {
            "bases": [base.__name__ for base in Encoder.__bases__],
            "the same": comfy.sd1_clip.CLIPTokenizer is CLIPTokenizer,
            "tokenizer": issubclass(Tokens, CLIPTokenizer)
            and callable(T5TokenizerFast.from_pretrained),
            "embedder": isinstance(embedder, MLPEmbedder) and list(embedder(ones).shape),
            "both": Both.__mro__[1] is comfy.ldm.cascade.stage_a.StageA,
            "patched": [
                upsampler.SRModel3DV2().patched and USUAL is not upsampler.SRModel3DV2.__init__,
                upscaling.ImageConcatWithNoiseAugmentation.patched,
                autoencoders.AutoencoderKL.patched,
            ],
            "attention": [
                module.optimized_attention is usual_attention
                for module in (comfy.ldm.wan.model, comfy.ldm.cosmos.blocks)
            ],
            "canny": list(canny(torch.rand(1, 3, 8, 8))[0].shape),
            "compiled": bool((compiled(ones) == (torch.sin(ones) + 1) * 2).all()),
            "exported": str(
                type(torch.export.export(torch.nn.Linear(4, 4), (ones,)).module()(ones)).__name__
            ),
            "resized": list(tvf.resize(torch.rand(1, 3, 8, 8), [4, 4]).shape),
            "resampled": list(resample(torch.rand(1, 100), 100, 50).shape),
            "scipy": [round(float(stats.beta.ppf(0.5, 2, 3)), 4), float(special.expit(0.0))],
            "integral": round(integrate.quad(lambda x: x, 0, 1)[0], 4),
            "brownian": list(BrownianInterval(0.0, 1.0, size=(2, 2))(0.2, 0.4).shape),
            "refused": REFUSED,
            "whisper": comfy.audio_encoders.whisper.__name__,
            "spandrel": ModelLoader.__name__,  # noqa: F405
            "extra": spandrel_extra_arches is None or spandrel_extra_arches.__name__,
            "tokenizers": Tokenizer.__name__,
            "version": scipy.__version__ == scipy.version.version,
            "assets": [asset_seeder.is_disabled(), callable(database.init_db)],
        }
        return {"ui": {"text": [json.dumps(told)]}, "result": ("",)}


NODE_CLASS_MAPPINGS = {"TestImporters": TestImporters}
