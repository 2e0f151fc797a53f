"""Inputs and results that nodes of our pack declare: their names, limits and choices."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from editor_files import catalog_of, document, save_image, ui
from graphs import HERE, bundled, node

from comfy_runner.convert.editor import Conversion
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import Problem
from comfy_runner.graph.inputs import Bound, Settable, bind, discover
from comfy_runner.graph.nodes import NodeCatalog

OBJECT_INFO = HERE.parent / "custom_nodes" / "comfy_runner_nodes" / "object_info.json"

LIMITED: Mapping[str, Any] = {"minimum": 1, "maximum": 50, "step": 1}


@cache
def catalog() -> NodeCatalog:
    """ComfyUI's classes and those of the pack."""
    return catalog_of(json.loads(OBJECT_INFO.read_text()))


def read(graph: dict[str, Any]) -> Conversion:
    return read_workflow(graph, catalog())


def shown(conversion: Conversion) -> dict[str, tuple[tuple[str, str], ...]]:
    return {entry.name: entry.targets for entry in conversion.exposed}


def settable(of: dict[str, Any]) -> Settable:
    """The one input that a node declares, in a workflow of its own."""
    conversion = read({"1": of})
    (found,) = discover(conversion.workflow, catalog(), conversion.exposed)
    return found


def bound(of: dict[str, Any], values: dict[str, Any]) -> Bound:
    conversion = read({"1": of})
    return bind(conversion.workflow, values, catalog(), conversion.exposed)


def problem(of: dict[str, Any], value: Any) -> Problem:
    (found,) = bound(of, {of["inputs"]["name"]: value}).problems
    return found


def number(name: str = "steps", value: float = 20, kind: str = "Integer", **more: Any) -> Any:
    return node(f"ComfyRunner{kind}", name=name, value=value, **more)


def choice(choices: str, value: str = "oil") -> dict[str, Any]:
    return node("ComfyRunnerChoice", name="style", value=value, choices=choices)


def app(*inputs: Any, outputs: Any = ()) -> dict[str, Any]:
    """A member of an editor's document: what its app shows."""
    return {"extra": {"linearData": {"inputs": list(inputs), "outputs": list(outputs)}}}


def everything() -> dict[str, Any]:
    """A graph with each node of the pack."""
    return {
        "8": node("ComfyRunnerResult", images=["6", 0], name="picture"),
        "1": node("ComfyRunnerText", name="prompt", value="a fox", description="What to draw."),
        "2": number(**LIMITED),
        "3": number("cfg", 7.5, "Number", minimum=0.0, maximum=30.0, step=0.5),
        "4": node("ComfyRunnerSwitch", name="upscale", value=True),
        "5": choice("oil\nink"),
        "6": node("ComfyRunnerImage", name="photo", image="a.png"),
        "7": node("PreviewImage", images=["6", 0]),
    }


def test_declared_inputs_and_results_are_the_authors_choice() -> None:
    conversion = read(everything())
    assert shown(conversion) == {
        "prompt": (("1", "value"),),
        "steps": (("2", "value"),),
        "cfg": (("3", "value"),),
        "upscale": (("4", "value"),),
        "style": (("5", "value"),),
        "photo": (("6", "image"),),
    }
    assert conversion.outputs == ("8",)
    assert conversion.notes == ()


def test_nothing_else_of_such_nodes_can_be_set() -> None:
    conversion = read(everything())
    found = discover(conversion.workflow, catalog(), conversion.exposed)
    assert [(one.address, one.kind, one.value, one.exposed) for one in found] == [
        ("prompt", "STRING", "a fox", True),
        ("steps", "INT", 20, True),
        ("cfg", "FLOAT", 7.5, True),
        ("upscale", "BOOLEAN", True, True),
        ("style", "COMBO", "oil", True),
        ("photo", "image", "a.png", True),
    ]
    (refused,) = bound(number(**LIMITED), {"1.maximum": 99}).problems
    assert (refused.code, refused.hint) == ("no_such_input", "It has value.")


def test_limits_and_description_are_told_to_those_who_ask() -> None:
    told = settable(number(description="How long\nto work.", **LIMITED | {"step": 2}))
    assert (told.minimum, told.maximum, told.step) == (1, 50, 2)
    assert told.description == "How long to work."
    assert told.as_json()["description"] == "How long to work."


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"minimum": -(2**53 - 1), "maximum": 2**53 - 1},
        {"minimum": ["2", 0], "maximum": "high"},
        {"minimum": 9, "maximum": 3},
        {"minimum": float("nan"), "maximum": float("inf")},
    ],
    ids=["left out", "as in a new node", "not known", "crossed", "no numbers"],
)
def test_limits_that_are_none_are_left_out(left: dict[str, Any]) -> None:
    told = settable(number(**left))
    assert (told.minimum, told.maximum) == (None, None)
    assert bound(number(**left), {"steps": -7}).problems == ()


def test_a_numbers_limits_are_fractions_and_its_step_refuses_nothing() -> None:
    cfg = number("cfg", 7.5, "Number", minimum=0, maximum=30, step=0.5)
    told = settable(cfg)
    assert (told.minimum, told.maximum, told.step) == (0.0, 30.0, 0.5)
    assert isinstance(told.minimum, float)
    (binding,) = bound(cfg, {"cfg": 7.3}).bindings
    assert binding.value == 7.3
    # Its step is 0 in a new node, which is none: the class's own is told then, if any.
    assert settable(number("cfg", 7.5, "Number", step=0.0)).step == 0.01


@pytest.mark.parametrize(
    ("value", "code"),
    [(0, "too_small"), (51, "too_big"), (8, "off_step"), ("many", "wrong_type")],
)
def test_a_value_beyond_the_authors_limits_is_refused(value: Any, code: str) -> None:
    found = problem(number(**LIMITED | {"step": 2}), value)
    assert (found.code, found.input) == (code, "steps")


def test_limits_hold_by_every_address() -> None:
    for address in ("steps", "STEPS", "1.value", "ComfyRunnerInteger.value", "value"):
        (found,) = bound(number(**LIMITED), {address: 99}).problems
        assert (found.code, found.hint) == ("too_big", "It goes from 1 to 50.")


def test_a_choice_is_one_of_the_lines() -> None:
    style = choice("  oil \n\nink\noil\r\nfelt pen\n")
    assert settable(style).choices == ("oil", "ink", "felt pen")
    (binding,) = bound(style, {"style": "felt pen"}).bindings
    assert binding.value == "felt pen"
    found = problem(style, "inc")
    assert found.code == "not_in_list"
    assert found.hint == "Did you mean 'ink'? Choose from oil, ink, felt pen."


def test_without_lines_a_choice_is_any_text() -> None:
    assert settable(choice(" \n")).kind == "STRING"
    assert bound(choice(""), {"style": "any"}).problems == ()


def test_a_file_and_a_switch_are_checked_as_everywhere() -> None:
    photo = node("ComfyRunnerImage", name="photo", image="a.png")
    (binding,) = bound(photo, {"photo": "https://example.com/b.png"}).bindings
    assert binding.takes_file
    switch = node("ComfyRunnerSwitch", name="upscale", value=True)
    assert problem(switch, "perhaps").code == "wrong_type"


def test_equal_names_have_their_nodes_id_before_them() -> None:
    conversion = read({"1": number("Steps"), "12:5": number("steps"), "3": number("1.Steps")})
    assert list(shown(conversion)) == ["1.Steps", "12:5.steps", "3.1.Steps"]
    assert conversion.notes == (
        "2 inputs are called 'steps', so each has its node's id before the name.",
    )


def test_without_a_name_the_title_counts() -> None:
    graph = {"1": number(" "), "2": number(""), "3": number(["1", 0])}
    graph["1"]["_meta"] = {"title": "How long"}
    assert list(shown(read(graph))) == ["How long", "2.value", "3.value"]


def test_a_value_that_another_node_gives_is_no_input() -> None:
    graph = {"1": number("steps"), "2": number("more", ["1", 0]), "3": node("ComfyRunnerText")}
    assert list(shown(read(graph))) == ["steps"]


def test_without_such_nodes_nothing_is_chosen() -> None:
    conversion = read(bundled("text_to_picture"))
    assert (conversion.exposed, conversion.outputs, conversion.notes) == ((), (), ())


def editor_document(**rest: Any) -> dict[str, Any]:
    """A file of the editor: a picture given, turned and saved twice."""
    return document(
        [
            ui(1, "ComfyRunnerImage", ["photo", "a.png", "What to turn.", "image"]),
            ui(2, "ComfyRunnerChoice", ["turn", "90 degrees", "none\n90 degrees", "How far."]),
            ui(3, "ImageRotate", ["none"], links={"image": 1}),
            ui(4, "ComfyRunnerResult", ["turned"], links={"images": 2}),
            ui(5, "ComfyRunnerInteger", ["steps", 20, "", 1, 50, 1]),
            save_image(6, 3),
        ],
        [(1, 1, 0, 3, 0, "IMAGE"), (2, 3, 0, 4, 0, "IMAGE"), (3, 3, 0, 6, 0, "IMAGE")],
        **rest,
    )


def test_a_document_of_the_editor_is_read_likewise() -> None:
    conversion = read(editor_document())
    assert shown(conversion) == {
        "photo": (("1", "image"),),
        "turn": (("2", "value"),),
        "steps": (("5", "value"),),
    }
    assert conversion.outputs == ("4",)
    found = discover(conversion.workflow, catalog(), conversion.exposed)
    photo, turn, steps = found[:3]
    assert (photo.value, photo.description) == ("a.png", "What to turn.")
    assert (turn.choices, turn.description) == (("none", "90 degrees"), "How far.")
    assert (steps.minimum, steps.maximum) == (1, 50)


def test_an_app_goes_first_and_limits_hold_all_the_same() -> None:
    conversion = read(editor_document(**app([5, "value"], outputs=[6])))
    assert shown(conversion) == {"value": (("5", "value"),)}
    assert conversion.outputs == ("6",)
    bad = bind(conversion.workflow, {"value": 51}, catalog(), conversion.exposed)
    assert [each.code for each in bad.problems] == ["too_big"]


def test_what_an_app_does_not_choose_is_as_declared() -> None:
    only_inputs = read(editor_document(**app([3, "rotation"])))
    assert (list(shown(only_inputs)), only_inputs.outputs) == (["rotation"], ("4",))
    only_outputs = read(editor_document(**app(outputs=[6])))
    assert (list(shown(only_outputs)), only_outputs.outputs) == (["photo", "turn", "steps"], ("6",))
