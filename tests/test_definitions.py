"""Odd node definitions: made sound, and then neither the converter nor the check breaks on one."""

import json
from typing import Any

import pytest
from graphs import catalog

from comfy_runner.comfyui.definitions import ANYTHING, MEMBERS, holds_classes, sound
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.check import check
from comfy_runner.graph.inputs import bind, discover, reseed, seeds
from comfy_runner.graph.nodes import NodeCatalog


def inputs(*raw: Any) -> dict[str, Any]:
    return {"input": {"required": {"a": list(raw)}}}


def autogrow(**template: Any) -> dict[str, Any]:
    return inputs("COMFY_AUTOGROW_V3", {"template": template})


def choice(*options: Any) -> dict[str, Any]:
    return inputs("COMFY_DYNAMICCOMBO_V3", {"options": list(options)})


IMAGE = {"required": {"x": ["IMAGE", {}]}}

ODD: dict[str, dict[str, Any]] = {
    "a text": {"input": {"required": {"a": "INT"}}},
    "nothing": {"input": {"required": {"a": None}}},
    "an object": {"input": {"required": {"a": {"type": "INT"}}}},
    "an empty list": inputs(),
    "a number as type": inputs(5, {}),
    "options null": inputs("INT", None),
    "options a list": inputs("INT", [1]),
    "limits as text": inputs("INT", {"default": 3, "min": "0", "max": "10"}),
    "limits null": {"input": {"required": {"seed": ["INT", {"min": None, "max": None}]}}},
    "limits inverted": {"input": {"required": {"seed": ["INT", {"min": 1, "max": 0}]}}},
    "limit as float": {"input": {"required": {"seed": ["INT", {"min": 0.0, "max": 1e19}]}}},
    "default an object": inputs("INT", {"default": {"x": 1}}),
    "widget type a list": inputs("INT", {"widgetType": ["x"]}),
    "combo without options": inputs("COMBO", {}),
    "combo with options null": inputs("COMBO", {"options": None}),
    "combo with odd choices": inputs([1, None, {"a": 1}, ["x"]], {"default": ["x"]}),
    "combo without choices": inputs([]),
    "required null": {"input": {"required": None, "optional": None}},
    "required a list": {"input": {"required": ["a", "b"]}},
    "optional a number": {"input": {"required": {"a": ["INT", {}]}, "optional": 5}},
    "autogrow alone": inputs("COMFY_AUTOGROW_V3"),
    "autogrow template null": inputs("COMFY_AUTOGROW_V3", {"template": None}),
    "autogrow template empty": autogrow(),
    "autogrow without input": autogrow(prefix="x", min=1, max=3),
    "autogrow input null": autogrow(input=None, prefix="x", min=1, max=3),
    "autogrow all null": autogrow(input=IMAGE, prefix=None, min=None, max=None),
    "autogrow counts as text": autogrow(input=IMAGE, prefix="x", min="a", max="b"),
    "autogrow counts beyond all": autogrow(input=IMAGE, prefix="x", min=-5, max=10**12),
    "autogrow odd names": autogrow(input=IMAGE, names=[None, 1, {}], min=0),
    "choices null": inputs("COMFY_DYNAMICCOMBO_V3", {"options": None}),
    "choices as texts": choice("x", "y"),
    "choice without key": choice({"inputs": {}}),
    "choice with a list as key": choice({"key": [1], "inputs": {}}),
    "choice without inputs": choice({"key": "k"}),
    "choice with inputs null": choice({"key": "k", "inputs": {"required": None}}),
    "slot alone": inputs("COMFY_DYNAMICSLOT_V3"),
    "slot all null": inputs("COMFY_DYNAMICSLOT_V3", {"slotType": None, "inputs": None}),
    "match without template": inputs("COMFY_MATCHTYPE_V3"),
    "outputs null": {"input": {}, "output": None, "output_node": None},
    "outputs odd": {"input": {}, "output": [None, ["a"], 5]},
    "order a list": {**inputs("INT", {}), "input_order": ["a"]},
    "order odd": {**inputs("INT", {}), "input_order": {"required": [["a"], "a"], "optional": None}},
    "matches odd": {"input": {}, "output": ["*"], "output_matchtypes": [None, {"a": 1}]},
    "title an object": {"input": {}, "display_name": {"a": 1}},
}


@pytest.mark.parametrize("definition", ODD.values(), ids=ODD.keys())
def test_no_odd_definition_breaks_what_reads_it(definition: dict[str, Any]) -> None:
    made = sound({"Odd": {"output": ["IMAGE"], "output_node": True, **definition}})
    known = NodeCatalog({"object_info": {**catalog().raw["object_info"], **made}})
    document = {
        "nodes": [
            {
                "id": 1,
                "type": "Odd",
                "inputs": [{"name": "a", "type": "IMAGE", "link": 1}],
                "widgets_values": [3, "fixed", "x"],
            },
            {"id": 2, "type": "EmptyImage", "widgets_values": [8, 8, 1, 0]},
            {"id": 3, "type": "Odd", "widgets_values": ["k"]},
            {"id": 4, "type": "Odd", "widgets_values": {"a": 7, "seed": 4}},
        ],
        "links": [[1, 2, 0, 1, 0, "IMAGE"]],
    }
    try:
        workflow = read_workflow(document, known).workflow
    except InvalidWorkflow as err:  # such as a choice that is none
        assert {problem.input for problem in err.problems} == {"a"}  # noqa: PT017
        return
    found = discover(workflow, known)
    assert {entry.node_id for entry in found} <= {"1", "2", "3", "4"}
    json.dumps([entry.as_json() for entry in found])
    bind(workflow, {"3.a": "k", "4.a": "3"}, known)
    assert seeds(reseed(workflow, 77, known), known).keys() == seeds(workflow, known).keys()
    check(workflow, known)


def test_sound_definitions_stay_as_they_are() -> None:
    core = catalog().raw["object_info"]
    assert sound(core) == core


def test_an_input_that_says_nothing_takes_anything() -> None:
    made = sound({"Odd": {"input": {"required": {"a": "INT", "b": ["INT", {}]}}}})
    assert made["Odd"]["input"]["required"] == {"a": ANYTHING, "b": ["INT", {}]}


def test_only_the_bad_members_are_left_out() -> None:
    options = {"default": 3, "min": "0", "max": 10, "widgetType": 5}
    made = sound({"Odd": {**inputs("INT", options), "output": ["INT"], "extra": 1}})
    assert made["Odd"] == {
        "input": {"required": {"a": ["INT", {"default": 3, "max": 10}]}},
        "output": ["INT"],
        "extra": 1,
    }


def test_an_autogrow_has_no_more_members_than_comfyui_makes() -> None:
    made = sound({"Odd": autogrow(input=IMAGE, prefix="x", min=-5, max=10**12)})
    _, options = made["Odd"]["input"]["required"]["a"]
    assert (options["template"]["min"], options["template"]["max"]) == (0, MEMBERS)


def test_what_is_no_definition_is_left_out() -> None:
    assert sound({"Fox": 3, "Hare": {"input": {}, "output": []}}).keys() == {"Hare"}


@pytest.mark.parametrize(
    "raw", [None, [], {}, {"Fox": 3}, {"1": {"class_type": "A", "inputs": {}}}]
)
def test_other_documents_hold_no_classes(raw: object) -> None:
    assert not holds_classes(raw)
