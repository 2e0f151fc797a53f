"""Tells what is put off in its process, and runs Python there; imports nothing that can wait."""

import json
import sys
from types import ModuleType

import torch
from aiohttp import web
from server import PromptServer

LAZY = sys.modules["comfy_runner_lazy"]


def names():
    """Where something is imported to that has not been used yet: module, name, and what it is."""
    for module in list(sys.modules.values()):
        own = LAZY._own(module) if isinstance(module, ModuleType) else {}  # noqa: SLF001
        for key, value in list(own.items()):
            if type(value) is LAZY.Name:
                yield module, key, value


def state(module):
    """Of a module: `put off`, `run`, or `folder` for one that has nothing to run."""
    if type(module) is LAZY.Unrun:
        return "put off"
    is_folder = isinstance(module, ModuleType) and module.__dict__.get("__file__") is None
    return "folder" if is_folder and hasattr(module, "__path__") else "run"


@PromptServer.instance.routes.get("/tests/modules")
async def modules(_):
    """Each module's state, and where there are names of what is put off."""
    return web.json_response(
        {
            "modules": {name: state(module) for name, module in list(sys.modules.items())},
            "names": [f"{module.__name__}:{key}" for module, key, _ in names()],
        }
    )


class TestPython:
    """Runs lines of Python; gives what they call `answer`."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"code": ("STRING", {"multiline": True})}}

    def run(self, code):
        place = {"names": names, "state": state, "LAZY": LAZY, "__name__": "builtins"}
        exec(compile(code, "asked", "exec"), place)  # noqa: S102
        answer = json.dumps(place["answer"], default=str)
        return {"ui": {"text": [answer]}, "result": (answer,)}


class TestChirp:
    """A second of sound that rises."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"rate": ("INT", {"default": 16000, "min": 1, "max": 192000})}}

    def run(self, rate):
        seconds = torch.arange(rate, dtype=torch.float64) / rate
        waveform = (torch.sin(2000 * seconds**2) * 0.5).to(torch.float32)
        return ({"waveform": waveform.reshape(1, 1, -1), "sample_rate": rate},)


NODE_CLASS_MAPPINGS = {"TestPython": TestPython, "TestChirp": TestChirp}
