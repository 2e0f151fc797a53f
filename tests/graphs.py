"""Small workflows and the catalog that many tests share."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from comfy_runner.comfyui import saved_catalog
from comfy_runner.graph.nodes import NodeCatalog

HERE = Path(__file__).resolve().parent
WORKFLOWS = HERE.parent / "workflows"


@cache
def catalog() -> NodeCatalog:
    """The catalog of ComfyUI 0.30.0 with no custom nodes and empty model folders."""
    return saved_catalog.builtin()


def fixture(name: str) -> bytes:
    """A file of tests/fixtures."""
    return (HERE / "fixtures" / name).read_bytes()


def bundled(name: str) -> dict[str, Any]:
    """A bundled workflow as JSON, a new one each time."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """One node of a workflow."""
    meta = {"_meta": {"title": title}} if title else {}
    return {"class_type": class_type, "inputs": inputs, **meta}


def picture(**changes: Any) -> dict[str, Any]:
    """A graph that needs no model: a plain picture, saved. `changes` go to the first node."""
    plain = {"width": 64, "height": 48, "batch_size": 1, "color": 0xFF0000, **changes}
    return {
        "1": node("EmptyImage", "Plain", **plain),
        "2": node("SaveImage", "Save it", images=["1", 0], filename_prefix="plain"),
    }


def quick_and_slow() -> dict[str, Any]:
    """A graph whose first output is there at once, while another node works for a minute."""
    return picture() | {
        "3": node("ImageInvert", image=["1", 0]),
        "4": node("TestSleep", "Slow", seconds=60.0, interruptible=True, after=["3", 0]),
    }
