"""What a workflow's author chose to show: names, places and outputs."""

import json
from typing import Any

import pytest
from editor_files import TEMPLATES, core

from comfy_runner.convert import Conversion, convert
from comfy_runner.graph.inputs import Exposed, bind, discover

DEFINITION = "11111111-1111-4111-8111-111111111111"
GRAPH = "22222222-2222-4222-8222-222222222222"


def of_template(name: str) -> Conversion:
    return convert(json.loads((TEMPLATES / f"{name}.json").read_bytes()), core())


def shown(conversion: Conversion) -> dict[str, tuple[tuple[str, str], ...]]:
    return {entry.name: entry.targets for entry in conversion.exposed}


def test_an_app_of_plain_nodes_goes_by_their_labels() -> None:
    conversion = of_template("template_contact_sheet-step_1.app")
    assert shown(conversion) == {
        "Character Image": (("1", "image"),),
        "Scene Image": (("2", "image"),),
        "Product Image": (("5", "image"),),
        "aspect_ratio": (("3", "aspect_ratio"),),
        "resolution": (("3", "resolution"),),
        "prompt": (("125", "value"),),
    }
    assert conversion.outputs == ("4",)


def test_equal_labels_have_the_nodes_title_before_them() -> None:
    assert list(shown(of_template("templates-subject_product_swap.app"))) == [
        "Load Subject Image.image",
        "Load Product Image.image",
        "resolution",
    ]


@pytest.mark.parametrize(
    ("template", "name", "target"),
    [
        # An inner node's own widget, whose instance calls its input otherwise.
        ("image_krea2_turbo_int8_image_style_reference", "prompt", ("30:19", "value")),
        # A whole address in place of an id.
        ("image_mage_flow_turbo_t2i_int8", "prompt", ("12:5", "prompt")),
        # Shown by an older editor through proxyWidgets only.
        ("utility_z_image_turbo_2k_upscaler.app", "denoise", ("87:69", "denoise")),
        ("templates_graphic_design_recomposer", "choice", ("143:135", "choice")),
    ],
)
def test_a_widget_of_a_subgraph_is_found_inside(
    template: str, name: str, target: tuple[str, str]
) -> None:
    assert shown(of_template(template))[name] == (target,)


def test_a_primitive_inside_a_subgraph_sets_all_that_it_drives() -> None:
    assert shown(of_template("templates_graphic_design_recomposer"))["resolution"] == (
        ("143:130", "resolution"),
        ("143:157", "model.resolution"),
    )


def test_what_is_gone_is_noted_and_stops_nothing() -> None:
    conversion = of_template("template_product_placement")
    assert list(shown(conversion)) == [
        "prompt",
        *(f"Product {number}" for number in (1, 2, 3)),
        "Composition",
    ]
    assert "The app shows input prompt of node 4, which is not there to be set." in conversion.notes


def test_without_a_chosen_output_that_is_left_all_count() -> None:
    conversion = of_template("templates_mjm_image_to_3d")
    assert conversion.outputs == ()
    assert "The app returns what node 22 makes, which does not run." in conversion.notes


def test_an_output_that_is_chosen_twice_counts_once() -> None:
    document = saved(outputs=["9", 9])
    assert convert(document, core()).outputs == ("9",)


def saved(
    inputs: list[Any] | None = None, outputs: list[Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Two instances of one definition with a widget, a plain node, and an output for each."""
    inside = {
        "id": DEFINITION,
        "name": "Scaled",
        "inputs": [{"name": "image", "linkIds": [1]}, {"name": "factor", "linkIds": [2]}],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "linkIds": [3]}],
        "nodes": [
            {
                "id": 20,
                "type": "ImageScaleBy",
                "inputs": [
                    {"name": "image", "link": 1},
                    {"name": "scale_by", "link": 2, "widget": {"name": "scale_by"}},
                ],
                "widgets_values": ["bilinear", 2.0],
            }
        ],
        "links": [
            [1, -10, 0, 20, 0, "IMAGE"],
            [2, -10, 1, 20, 1, "FLOAT"],
            [3, 20, 0, -20, 0, "*"],
        ],
    }
    nodes: list[dict[str, Any]] = [
        {
            "id": 1,
            "type": "EmptyImage",
            "title": "Canvas",
            "inputs": [{"name": "width", "label": "Breadth", "widget": {"name": "width"}}],
            "widgets_values": [8, 16, 1, 0],
        },
        *(
            {
                "id": number,
                "type": DEFINITION,
                "inputs": [{"name": "image", "link": link}, {"name": "factor", "label": label}],
                "widgets_values": [float(number)],
            }
            for number, link, label in ((5, 10, "Growth"), (6, 11, ""))
        ),
        *(
            {"id": number, "type": "SaveImage", "inputs": [{"name": "images", "link": link}]}
            for number, link in ((8, 12), (9, 13))
        ),
    ]
    nodes = [{**node, **changes.get(f"node{node['id']}", {})} for node in nodes]
    return {
        "id": GRAPH,
        "version": 0.4,
        "last_node_id": 20,
        "nodes": nodes,
        "links": [
            [10, 1, 0, 5, 0, "IMAGE"],
            [11, 1, 0, 6, 0, "IMAGE"],
            [12, 5, 0, 8, 0, "IMAGE"],
            [13, 6, 0, 9, 0, "IMAGE"],
        ],
        "definitions": {"subgraphs": [inside]},
        "extra": {"linearData": {"inputs": inputs or [], "outputs": outputs or []}},
    }


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ([1, "width"], {"Breadth": (("1", "width"),)}),
        (["1", "height", {"height": 300}], {"height": (("1", "height"),)}),
        (["1", "height", None], {"height": (("1", "height"),)}),
        ([5, "factor"], {"Growth": (("5:20", "scale_by"),)}),
        ([6, "factor"], {"factor": (("6:20", "scale_by"),)}),
        ([f"{GRAPH}:5", "factor"], {"Growth": (("5:20", "scale_by"),)}),
        ([f"{GRAPH}:6:factor", "factor"], {"factor": (("6:20", "scale_by"),)}),
        ([f"{GRAPH}:1:h%65ight", "x"], {"height": (("1", "height"),)}),
        ([20, "scale_by"], {}),  # of which of the two instances?
        ([1, "depth"], {}),
        ([7, "width"], {}),
        ([5, "image"], {}),
        (["5:20", "scale_by"], {}),
        ([None, "width"], {}),
        ([1], {}),
        ("1", {}),
        ([1, 2], {}),
    ],
)
def test_an_entry_is_found_or_noted(entry: Any, expected: dict[str, Any]) -> None:
    conversion = convert(saved([entry]), core())
    assert shown(conversion) == expected
    assert (conversion.notes == ()) is bool(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"node1": {"mode": 2}},
        {"node1": {"inputs": [{"name": "width", "link": 10, "widget": {"name": "width"}}]}},
    ],
)
def test_what_has_no_value_of_its_own_is_not_shown(changes: dict[str, Any]) -> None:
    """A muted node is not there; a connected input gets its value from elsewhere."""
    conversion = convert(saved([[1, "width"]], **changes), core())
    assert shown(conversion) == {}
    assert len(conversion.notes) == 1


@pytest.mark.parametrize("choice", [None, {}, [], "x", {"inputs": None, "outputs": {"9": 1}}])
def test_an_odd_choice_is_none(choice: Any) -> None:
    document = saved()
    document["extra"]["linearData"] = choice
    conversion = convert(document, core())
    assert (conversion.exposed, conversion.outputs, conversion.notes) == ((), (), ())


def test_all_names_are_different() -> None:
    label = {"inputs": [{"name": n, "label": "Size"} for n in ("width", "height")]}
    document = saved([[1, "width"], [1, "height"], [5, "factor"], [6, "factor"]], node1=label)
    for instance in document["nodes"][1:3]:
        instance["inputs"][1]["label"] = "Size"
    assert list(shown(convert(document, core()))) == [
        "1.Size",
        "1.height",
        "5.Size",
        "6.Size",
    ]


def test_discover_lists_the_chosen_first_and_once() -> None:
    conversion = convert(saved([[5, "factor"], [1, "width"]]), core())
    found = discover(conversion.workflow, core(), conversion.exposed)
    assert [(entry.address, entry.value) for entry in found[:2]] == [
        ("Growth", 5.0),
        ("Breadth", 8),
    ]
    assert [entry.exposed for entry in found] == [True, True] + [None] * (len(found) - 2)
    assert [(e.node_id, e.input) for e in found].count(("1", "width")) == 1
    assert found[0].as_json()["exposed"] is True
    assert "exposed" not in found[2].as_json()


def test_a_request_may_use_the_chosen_names() -> None:
    conversion = convert(saved([[5, "factor"], [1, "width"]]), core())
    values = {"growth": "3", "Breadth": 32, "6:20.scale_by": 0.5}
    bound = bind(conversion.workflow, values, core(), conversion.exposed)
    assert bound.problems == ()
    nodes = bound.workflow.nodes
    assert nodes["5:20"].inputs["scale_by"] == 3.0
    assert nodes["6:20"].inputs["scale_by"] == 0.5
    assert nodes["1"].inputs["width"] == 32


def test_a_misspelt_name_is_told_the_right_one() -> None:
    conversion = convert(saved([[5, "factor"], [1, "width"]]), core())
    bound = bind(conversion.workflow, {"Breath": 32}, core(), conversion.exposed)
    assert [problem.hint for problem in bound.problems] == ["Did you mean 'Breadth'?"]


def test_a_name_that_stands_for_several_places_sets_them_all() -> None:
    conversion = convert(saved(), core())
    both = Exposed("factor", (("5:20", "scale_by"), ("6:20", "scale_by")))
    bound = bind(conversion.workflow, {"factor": 4}, core(), (both,))
    assert [b.node_id for b in bound.bindings] == ["5:20", "6:20"]
    assert {bound.workflow.nodes[key].inputs["scale_by"] for key in ("5:20", "6:20")} == {4.0}
    bad = bind(conversion.workflow, {"factor": "much"}, core(), (both,))
    assert [(p.input, p.code) for p in bad.problems] == [("factor", "wrong_type")]
    twice = bind(conversion.workflow, {"factor": 4, "5:20.scale_by": 2}, core(), (both,))
    assert [p.code for p in twice.problems] == ["set_twice"]
