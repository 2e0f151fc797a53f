"""Cog's side: the schema of predict.py, and predictions turned into runs.

The names here are for predict.py. Those of `prediction` are imported at their first use, which is
after `start` has begun with the longest import of all, that of torch in another process.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from comfy_runner.serving.starting import start

if TYPE_CHECKING:
    from comfy_runner.runs.results import Output
    from comfy_runner.serving.prediction import Narrator, is_healthy, request

__all__ = ["Narrator", "Output", "is_healthy", "request", "start"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("comfy_runner.serving.prediction"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
