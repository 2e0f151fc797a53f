"""What is known of node classes: their inputs for the values that a node has."""

import pytest
from editor_files import catalog_of
from graphs import catalog

from comfy_runner.graph.nodes import NodeCatalog

GROWN = {
    "input": {
        "required": {
            "slot": [
                "COMFY_DYNAMICSLOT_V3",
                {
                    "slotType": "IMAGE",
                    "inputs": {
                        "required": {"strength": ["FLOAT", {"default": 1.0}]},
                        "optional": {"mask": ["MASK", {}]},
                    },
                },
            ]
        }
    },
    "output": ["IMAGE"],
}
"""As `comfy_api/latest/_io.py` 0.30 describes a DynamicSlot, which no class of its own has."""


def test_a_dynamic_slot_brings_its_inputs_once_it_is_connected() -> None:
    known = catalog_of({"Grown": GROWN}).get("Grown")
    assert known is not None
    assert [(spec.name, spec.type, spec.required) for spec in known.inputs({}).values()] == [
        ("slot", "IMAGE", False)
    ]
    assert [
        (spec.name, spec.type, spec.required) for spec in known.inputs({"slot": ["1", 0]}).values()
    ] == [("slot", "IMAGE", False), ("slot.strength", "FLOAT", True), ("slot.mask", "MASK", False)]


@pytest.mark.parametrize(
    ("class_type", "name", "kind"),
    [
        ("LoadImage", "image", "image"),
        ("LoadAudio", "audio", "audio"),
        ("LoadVideo", "file", "video"),
        ("LoadLatent", "latent", "file"),
    ],
)
def test_an_input_tells_what_kind_of_file_it_takes(class_type: str, name: str, kind: str) -> None:
    known = catalog().get(class_type)
    assert known is not None
    spec = known.inputs({})[name]
    assert spec.takes_file
    assert spec.file_kind == kind


def test_a_model_folder_tells_where_it_is_and_what_it_lists() -> None:
    folder = catalog().model_folder("loras")
    assert folder is not None
    assert ".safetensors" in folder.extensions
    assert catalog().model_folder("no_such_folder") is None
    assert NodeCatalog({"object_info": {}}).model_folder("loras") is None
