"""Nodes that break the process they run in, or its memory, each on demand."""

import ctypes
import os
import signal
import threading

import torch
from comfy.cli_args import args


class _Breakdown:
    """Takes nothing and, where it gets so far, gives a text."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}, "optional": {"after": ("*",)}}


class TestKilled(_Breakdown):
    """Is killed as the kernel does it when memory runs out."""

    def run(self, after=None):  # noqa: ARG002
        os.kill(os.getpid(), signal.SIGKILL)


class TestDeadlock(_Breakdown):
    def run(self, after=None):  # noqa: ARG002
        lock = threading.Lock()
        with lock:
            lock.acquire()


class TestKillWorkerQuietly(_Breakdown):
    """Ends the thread that runs it, after putting Python's own hook back, as some packs do."""

    def run(self, after=None):  # noqa: ARG002
        threading.excepthook = threading.__excepthook__
        raise SystemExit


class TestHoldInterpreter(_Breakdown):
    """No other thread gets a turn, so the server is silent."""

    def run(self, after=None):  # noqa: ARG002
        ctypes.PyDLL(None).sleep(600)


class TestOutOfMemory(_Breakdown):
    """Fails as a GPU does, unless ComfyUI keeps little in memory and `always` is off."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {"always": ("BOOLEAN", {"default": True})},
            "optional": {"after": ("*",)},
        }

    def run(self, always, after=None):  # noqa: ARG002
        if always or not args.cache_none:
            raise torch.OutOfMemoryError("Tried to allocate 1024.00 GiB")
        return {"ui": {"text": ["it fitted"]}, "result": ("it fitted",)}


class TestGrow(_Breakdown):
    """Holds this many bytes more, for good."""

    HELD = []  # noqa: RUF012

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"size": ("INT", {"default": 0, "min": 0, "max": 2**40})}}

    def run(self, size):
        self.HELD.append(b"x" * size)
        return {"ui": {"text": ["grown"]}, "result": ("grown",)}


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        TestKilled,
        TestDeadlock,
        TestKillWorkerQuietly,
        TestHoldInterpreter,
        TestOutOfMemory,
        TestGrow,
    )
}
