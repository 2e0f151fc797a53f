"""Nodes that declare, inside the editor, what a model of the workflow takes and gives."""

from .pictures import ComfyRunnerImage, ComfyRunnerResult
from .values import (
    ComfyRunnerChoice,
    ComfyRunnerInteger,
    ComfyRunnerNumber,
    ComfyRunnerSwitch,
    ComfyRunnerText,
)

NODE_CLASS_MAPPINGS = {
    node_class.__name__: node_class
    for node_class in (
        ComfyRunnerText,
        ComfyRunnerInteger,
        ComfyRunnerNumber,
        ComfyRunnerSwitch,
        ComfyRunnerChoice,
        ComfyRunnerImage,
        ComfyRunnerResult,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "ComfyRunnerText": "Model Input: Text",
    "ComfyRunnerInteger": "Model Input: Integer",
    "ComfyRunnerNumber": "Model Input: Number",
    "ComfyRunnerSwitch": "Model Input: Switch",
    "ComfyRunnerChoice": "Model Input: Choice",
    "ComfyRunnerImage": "Model Input: Image",
    "ComfyRunnerResult": "Model Result: Images",
}
