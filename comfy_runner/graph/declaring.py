"""Nodes of our own pack, comfy_runner_nodes, which declare what a model takes and gives.

The pack is `custom_nodes/comfy_runner_nodes`; what its classes are called stands here and there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from comfy_runner.graph.nodes import InputSpec
from comfy_runner.graph.workflow import Node

VALUES: Mapping[str, str] = {
    "ComfyRunnerText": "value",
    "ComfyRunnerInteger": "value",
    "ComfyRunnerNumber": "value",
    "ComfyRunnerSwitch": "value",
    "ComfyRunnerChoice": "value",
    "ComfyRunnerImage": "image",
}
"""Class that declares an input of the model, to the input of its own that holds the value."""

RESULT = "ComfyRunnerResult"
"""Class whose nodes make the model's results."""

FARTHEST = 2**53 - 1
"""Size of a limit that is none: how far the pack's own widgets reach."""

LIMITS = {"minimum": "min", "maximum": "max", "step": "step"}
"""Input of a number's node to the option of ComfyUI's that means the same."""


def text_of(node: Node, name: str) -> str:
    """The text in an input, on one line; empty where there is none or another node gives it."""
    value = node.inputs.get(name)
    return " ".join(value.split()) if isinstance(value, str) else ""


def description(node: Node) -> str:
    """What its author says of a declared input; empty for nothing and for any other node."""
    return text_of(node, "description") if node.class_type in VALUES else ""


def narrowed(node: Node, specs: Mapping[str, InputSpec]) -> Mapping[str, InputSpec]:
    """What can be set in a node of these specs: of one that declares an input, only its value.

    Nor can the name of a result be set. The value is limited as the node's author says in its other
    inputs: `min`, `max`, `step` and `tooltip` are options then, and a text with choices is a
    `COMBO`. A limit that another node gives is not known; limits with nothing between them are left
    to the node, which tells.
    """
    if node.class_type == RESULT:
        return {key: spec for key, spec in specs.items() if key != "name"}
    name = VALUES.get(node.class_type)
    if name is None or name not in specs:
        return specs
    spec = specs[name]
    options = {key: value for key, value in spec.options.items() if key not in ("min", "max")}
    options |= dict(_limits(node, spec))
    if told := description(node):
        options["tooltip"] = told
    choices = tuple(_choices(node)) if spec.type == "STRING" else ()
    if choices:
        return {name: replace(spec, type="COMBO", options=options, choices=choices)}
    return {name: replace(spec, options=options)}


def _limits(node: Node, spec: InputSpec) -> Iterator[tuple[str, Any]]:
    given = {
        option: int(value) if spec.type == "INT" else float(value)
        for name, option in LIMITS.items()
        if spec.type in ("INT", "FLOAT")
        and isinstance(value := node.inputs.get(name), int | float)
        and abs(value) < FARTHEST
    }
    low, high = given.get("min"), given.get("max")
    if low is not None and high is not None and low > high:
        del given["min"], given["max"]
    if given.get("step") == 0:  # a number's step that is none
        del given["step"]
    return iter(given.items())


def _choices(node: Node) -> Iterator[str]:
    """The choices, which stand on a line each, without repetition."""
    text = node.inputs.get("choices")
    lines = text.splitlines() if isinstance(text, str) else []
    return iter(dict.fromkeys(line.strip() for line in lines if line.strip()))
