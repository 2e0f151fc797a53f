"""Nodes that fail, hang, report odd things or write files, each on demand."""

import ctypes
import os
import threading
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import server


class _Passing:
    """Takes a text and gives it on, so that these nodes can be chained."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"
    OUTPUT_NODE = True


class TestRaise(_Passing):
    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"message": ("STRING", {"default": "as asked"})}}

    def run(self, message):
        raise RuntimeError(message)


class TestSleep(_Passing):
    """Waits; looks for an interrupt every 50 ms, or never."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "seconds": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 600.0}),
                "interruptible": ("BOOLEAN", {"default": True}),
            },
            "optional": {"after": ("*",)},
        }

    def run(self, seconds, interruptible, after=None):  # noqa: ARG002
        never = threading.Event()
        if not interruptible:
            never.wait(seconds)
            return (str(seconds),)
        for _ in range(int(seconds / 0.05)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            never.wait(0.05)
        return (str(seconds),)


class TestChatter(_Passing):
    """Works for ever, and tells everybody about something else all the time, as some packs do."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def run(self):
        never = threading.Event()
        while True:
            server.PromptServer.instance.send_sync("chatter", {"load": 1})
            comfy.model_management.throw_exception_if_processing_interrupted()
            never.wait(0.05)


class TestExit(_Passing):
    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"code": ("INT", {"default": 7, "min": 0, "max": 255})}}

    def run(self, code):
        os._exit(code)


class TestSegfault(_Passing):
    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def run(self):
        ctypes.string_at(0)


class TestKillWorker(_Passing):
    """ComfyUI catches Exception in nodes, which SystemExit is not."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def run(self):
        raise SystemExit


class TestUiValues(_Passing):
    """Reports values that are no files."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def run(self):
        return {
            "ui": {
                "text": ["one", "two"],
                "number": [1.5, 2],
                "table": [{"name": "a", "size": 3}],
                "not_a_number": [float("nan")],
                "empty": [],
            },
            "result": ("",),
        }


class TestWriteFiles(_Passing):
    """Writes `count` text files to `subfolder` of the output folder and reports them."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "subfolder": ("STRING", {"default": "a/b"}),
                "count": ("INT", {"default": 2, "min": 0, "max": 1000}),
                "text": ("STRING", {"default": "text"}),
            }
        }

    def run(self, subfolder, count, text):
        folder = Path(folder_paths.get_output_directory()) / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"file_{number:05}.txt" for number in range(count)]
        for name in names:
            (folder / name).write_text(text)
        return {
            "ui": {
                "files": [
                    {"filename": name, "subfolder": subfolder, "type": "output"} for name in names
                ]
            },
            "result": (text,),
        }


class TestProgress(_Passing):
    """Counts `steps` steps of `delay` seconds."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "steps": ("INT", {"default": 3, "min": 1, "max": 1000}),
                "delay": ("FLOAT", {"default": 0.01, "min": 0.0, "max": 10.0}),
            }
        }

    def run(self, steps, delay):
        bar = comfy.utils.ProgressBar(steps)
        never = threading.Event()
        for _ in range(steps):
            never.wait(delay)
            bar.update(1)
        return (str(steps),)


class TestModelInputs(_Passing):
    """Lists model folders in the ways that packs do; never run."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        (loras,) = folder_paths.get_folder_paths("loras")[:1]
        return {
            "required": {
                "either": (
                    folder_paths.get_filename_list("checkpoints")
                    + folder_paths.get_filename_list("unet"),
                ),
                "listed_by_hand": (["None", *(os.listdir(loras) if os.path.isdir(loras) else [])],),  # noqa: PTH112, PTH208
                "dynamic": (
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "off", "inputs": {}},
                            {
                                "key": "on",
                                "inputs": {
                                    "required": {
                                        "name": (
                                            "COMBO",
                                            {"options": folder_paths.get_filename_list("vae")},
                                        )
                                    }
                                },
                            },
                        ]
                    },
                ),
            },
            "optional": {
                "grown": (
                    "COMFY_AUTOGROW_V3",
                    {
                        "template": {
                            "input": {
                                "required": {"it": (folder_paths.get_filename_list("loras"),)}
                            },
                            "prefix": "lora",
                            "min": 0,
                            "max": 2,
                        }
                    },
                )
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, either, input_types):  # noqa: ARG003, N802
        return True

    def run(self, **_):
        return ("",)


class TestBrokenInputs(_Passing):
    """Does not even tell its inputs once it is loaded."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        raise OSError("no inputs today")

    def run(self):
        return ("",)


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        TestRaise,
        TestSleep,
        TestChatter,
        TestExit,
        TestSegfault,
        TestKillWorker,
        TestUiValues,
        TestWriteFiles,
        TestProgress,
        TestModelInputs,
        TestBrokenInputs,
    )
} | {"Test / with slash": TestRaise}
