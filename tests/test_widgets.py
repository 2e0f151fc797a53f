"""The values of widgets: `widgets_values` handed out by position or by name."""

from typing import Any

import pytest
from editor_files import core, document, empty_image, save_image, sent, with_probes

from comfy_runner.convert.shapes import MISSING, PREVIEW_VIEW, Shape, shape
from comfy_runner.convert.widgets import has_socket, read_values, slots_of, widget_of
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.nodes import NodeCatalog

SAMPLER = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def of(class_type: str) -> Shape:
    """The shape of one of ComfyUI's own classes, or of a probe."""
    found = with_probes().derived(shape, class_type)
    assert found is not None
    return found


def values(class_type: str, stored: Any) -> dict[str, Any]:
    """The values that a node of the class has."""
    return read_values(class_type, of(class_type), stored)


def test_values_are_handed_out_by_position_and_the_control_value_has_a_place() -> None:
    stored = [5, "randomize", 30, 7.5, "dpmpp_2m", "karras", 0.4]
    assert list(values("KSampler", stored).items()) == [
        ("seed", 5),
        ("steps", 30),
        ("cfg", 7.5),
        ("sampler_name", "dpmpp_2m"),
        ("scheduler", "karras"),
        ("denoise", 0.4),
    ]


@pytest.mark.parametrize("control", ["fixed", "randomize", "increment", "decrement", True, False])
def test_a_control_value_may_be_a_boolean_as_years_ago(control: Any) -> None:
    found = values("KSampler", [5, control, 30, 7.5, "euler", "normal", 1.0])
    assert (found["seed"], found["steps"]) == (5, 30)


@pytest.mark.parametrize("control", [None, "increment-wrap"])
def test_a_control_value_may_be_null_or_one_of_a_combo(control: Any) -> None:
    assert values("KSampler", [5, control, 30])["steps"] == 30


def test_missing_values_leave_the_defaults_and_spare_ones_are_ignored() -> None:
    assert values("KSampler", [5])["steps"] == 20
    assert values("KSampler", None) == values("KSampler", [])
    assert values("EmptyImage", [1, 2, 3, 4, 5, "six"]) == values("EmptyImage", [1, 2, 3, 4])


def test_nothing_is_checked_or_changed() -> None:
    stored = [2**64 + 1, "fixed", -3, "much", 4, {"a": 1}, [1]]
    assert list(values("KSampler", stored).values()) == [2**64 + 1, -3, "much", 4, {"a": 1}, [1]]


def test_an_object_is_read_by_name_for_any_class() -> None:
    stored = {"steps": 30, "denoise": None, "unknown": 1, "control_after_generate": "fixed"}
    found = values("KSampler", stored)
    assert found == {"seed": 0, "steps": 30, "cfg": 8.0, **SAMPLER, "denoise": None}


def test_an_object_may_hold_the_inputs_of_a_dynamic_combo() -> None:
    stored = {"resize_type": "scale by multiplier", "resize_type.multiplier": 3.5}
    found = values("ResizeImageMaskNode", stored)
    assert found["resize_type"] == "scale by multiplier"
    assert found["resize_type.multiplier"] == 3.5


def test_null_is_a_value_except_where_the_editor_mends_it() -> None:
    found = values("ProbeWidgets", [None] * 30)
    assert found["seed"] is found["f"] is found["b"] is found["s"] is found["color"] is None
    assert (found["lst"], found["cmb"], found["nums"]) == ("a", "x", 1)
    assert found["empty"] is None
    assert (found["multi"], found["dyn"]) == ("", "")


def test_a_place_of_each_kind_is_counted() -> None:
    stored = [
        *(1, "fixed"),  # seed
        *(2, "fixed"),  # noise_seed
        *(3, "fixed"),  # n
        *(0.5, "fixed"),  # f
        "c",
        *("y", "fixed", "filter"),  # cmb
        ["p"],
        "e",
        2,
        False,
        "s",
        "d",
        4,  # opt_int
        {"points": []},
        {"min": 1},
        ["#000"],
        [{}],
        *({"x": 1}, 1, 2, 3, 4),  # bbox
        "#123456",
        5,
        6,
        "t",
    ]
    required = {"seed": 1, "noise_seed": 2, "n": 3, "f": 0.5, "lst": "c", "cmb": "y"}
    required |= {"multi": ["p"], "empty": "e", "nums": 2, "b": False, "s": "s", "dyn": "d"}
    optional = {"opt_int": 4, "curve": {"points": []}, "rng": {"min": 1}, "cols": ["#000"]}
    optional |= {"boxes": [{}], "bbox": {"x": 1}, "color": "#123456"}
    optional |= {"nosock": 5, "hid": 6, "tail": "t"}
    assert values("ProbeWidgets", stored) == required | optional


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([1, 2, 3], {"a": 1, "b": 3}),
        ([1, 2], {"a": 1, "b": 2}),
        ([1, 2, 3, 4], {"a": 1, "b": 2}),
    ],
)
def test_a_list_with_values_for_sockets_loses_them_if_its_length_says_so(
    stored: list[int], expected: dict[str, int]
) -> None:
    inputs = {"a": ["INT"], "x": ["FLOAT", {"forceInput": True}], "b": ["INT"]}
    assert read_values("Old", made(inputs), stored) == expected


def made(required: dict[str, Any]) -> Shape:
    """The shape of a class with these inputs."""
    info = {"input": {"required": required}}
    found = NodeCatalog({"object_info": {"Made": info}}).derived(shape, "Made")
    assert found is not None
    return found


DEEP = [
    {"key": "1", "inputs": {"required": {"n": ["INT"]}}},
    {"key": "2", "inputs": {"required": {"image": ["IMAGE"]}}},
    {"key": "true", "inputs": {"required": {"b": ["INT"]}}},
]
RICH = {"seed": ["INT", {"default": 1}], "deep": ["COMFY_DYNAMICCOMBO_V3", {"options": DEEP}]}
OPTIONS = [{"key": "plain", "inputs": {}}, {"key": "rich", "inputs": {"required": RICH}}]


def dynamic() -> Shape:
    """A class with a dynamic combo, one in its second choice, and an integer after it."""
    combo = ["COMFY_DYNAMICCOMBO_V3", {"options": OPTIONS}]
    return made({"x": combo, "after": ["INT", {"default": 9}]})


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([], {"x": "plain", "after": 9}),
        (["plain", 3], {"x": "plain", "after": 3}),
        (["rich"], {"x": "rich", "x.seed": 1, "x.deep": "1", "x.deep.n": 0, "after": 9}),
        (
            ["rich", 5, 1, 7, 3],
            {"x": "rich", "x.seed": 5, "x.deep": 1, "x.deep.n": 7, "after": 3},
        ),
        (["rich", 5, 2, 3], {"x": "rich", "x.seed": 5, "x.deep": 2, "after": 3}),
        (
            ["rich", 5, True, 7, 3],
            {"x": "rich", "x.seed": 5, "x.deep": True, "x.deep.b": 7, "after": 3},
        ),
        (
            ["rich", 5, None, 3],
            {"x": "rich", "x.seed": 5, "x.deep": "1", "after": 3, "x.deep.n": 0},
        ),
        (["gone", 3, 4], {"x": "gone", "after": 3}),
        (["", 3, 4], {"x": "", "after": 3}),
        ([7, 3], {"x": 7, "after": 3}),
        ([["rich"], 3], {"x": ["rich"], "after": 3}),
        ([{"a": 1}, 3], {"x": {"a": 1}, "after": 3}),
        ([None, 3], {"x": "plain", "after": 3}),
        ({"x": "rich", "x.deep": 2}, {"x": "rich", "x.seed": 1, "x.deep": 2, "after": 9}),
        ({"x": ["rich"], "x.seed": 3}, {"x": ["rich"], "after": 9}),
        ({"x": "gone", "after": 1}, {"x": "gone", "after": 1}),
    ],
)
def test_a_dynamic_combo_has_the_inputs_of_its_stored_choice(
    stored: Any, expected: dict[str, Any]
) -> None:
    found = read_values("Dynamic", dynamic(), stored)
    assert list(found.items()) == list(expected.items())


def test_the_inputs_of_other_choices_are_not_there() -> None:
    form = dynamic()
    rich = read_values("Dynamic", form, ["rich", 5, 2, 3])
    assert has_socket(form, rich, "x.deep.image")
    assert not has_socket(form, {"x": "plain"}, "x.deep.image")
    assert not has_socket(form, rich, "x.deep")
    assert [item.name for item in slots_of(form, rich)] == [
        "x",
        "x.seed",
        "x.deep",
        "x.deep.image",
        "after",
    ]
    found = widget_of(form, rich, "x.seed")
    assert found is not None
    assert found.type == "INT"
    assert widget_of(form, {"x": "plain"}, "x.seed") is None
    assert widget_of(form, rich, "x.deep.image") is None


def test_a_sampler_loses_the_beginning_that_its_name_had() -> None:
    stored = [5, True, 20, 8.0, "sample_euler", "normal", 1.0]
    assert values("KSampler", stored)["sampler_name"] == "euler"
    select = read_values("KSamplerSelect", of("KSamplerSelect"), ["sample_euler"])
    assert select["sampler_name"] == "sample_euler"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([], {"choice": MISSING, "index": -1, "option1": ""}),
        (
            ["b", 0, "a", "b"],
            {"choice": "b", "index": 1, "option1": "a", "option2": "b", "option3": ""},
        ),
        (["", 9, "a", "", None], {"choice": "", "index": 1, "option1": "a", "option2": ""}),
        (["b", 9, "a", "", "b"], {"choice": "b", "index": -1, "option1": "a", "option2": ""}),
        ([None, 9, "a"], {"choice": "a", "index": 0, "option1": "a", "option2": ""}),
        (["z", 0, "a"], {"choice": "z", "index": -1, "option1": "a", "option2": ""}),
    ],
)
def test_a_custom_combo_counts_its_options(stored: Any, expected: dict[str, Any]) -> None:
    assert values("CustomCombo", stored) == expected


def test_what_the_editor_makes_anew_is_not_taken_from_the_file() -> None:
    assert values("RecordAudio", ["old.wav", ""]) == {"audio": ""}
    assert values("Preview3D", ["m.glb", "x"]) == {"model_file": "m.glb", "image": ""}


@pytest.mark.parametrize("stored", [["", 5], [None, 5], ["x", 5]])
def test_a_view_that_is_not_stored_is_that_of_a_new_preview(stored: Any) -> None:
    found = values("PreviewPointCloud", stored)
    assert found["viewport_state"] == PREVIEW_VIEW
    assert found["width"] == 5


def test_a_view_that_is_stored_stays() -> None:
    view = {"camera_info": {"zoom": 3}, "model_3d_info": []}
    found = values("Load3DAdvanced", ["a.glb", view, 5, 6])
    assert found == {"model_file": "a.glb", "viewport_state": view, "width": 5, "height": 6}


def test_the_inputs_of_a_dynamic_combo_are_no_dynamic_prompts() -> None:
    text = {"t": ["STRING", {"dynamicPrompts": True}]}
    options = [{"key": "k", "inputs": {"required": text}}]
    form = made({"x": ["COMFY_DYNAMICCOMBO_V3", {"options": options}]})
    found = widget_of(form, {"x": "k"}, "x.t")
    assert found is not None
    assert found.options["dynamicPrompts"] is False


def test_every_class_of_comfyui_reads_any_list_and_any_object() -> None:
    odd: list[Any] = [None, True, -1, 2**70, 0.5, "x", [], {}, ["x", 0], {"a": [1]}]
    for class_type in core().raw["object_info"]:
        form = of(class_type)
        plain = read_values(class_type, form, None)
        for item in odd:
            assert read_values(class_type, form, [item] * 40).keys() >= {
                name for name in plain if "." not in name
            }
            read_values(class_type, form, dict.fromkeys(plain, item))


def test_a_value_that_nests_too_deeply_is_told_at_its_node() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    nodes = [empty_image(1), save_image(2, 1, deep)]
    with pytest.raises(InvalidWorkflow) as caught:
        sent(document(nodes, [(1, 1, 0, 2, 0, "IMAGE")]))
    (problem,) = caught.value.problems
    assert (problem.code, problem.node_id, problem.input) == ("too_deep", "2", "filename_prefix")
