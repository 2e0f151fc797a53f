"""What is sent for a file, compared with what the real editor sends for it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from editor_files import (
    TEMPLATES,
    core,
    document,
    empty_image,
    invert,
    recorded,
    save_image,
    sent,
    subgraph,
    ui,
    with_probes,
)

from comfy_runner.convert import convert
from comfy_runner.errors import InvalidWorkflow

type Api = Mapping[str, Mapping[str, Any]]


def same(left: Any, right: Any) -> bool:
    """Whether two values are one: numbers by value, and a boolean is no number."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def differences(ours: Api, theirs: Api, unstable: list[list[str]]) -> list[tuple[Any, ...]]:
    """Each node or input that differs: id, input, what is sent here, what the editor sends."""
    found: list[tuple[Any, ...]] = []
    for key in ours.keys() | theirs.keys():
        here, there = ours.get(key), theirs.get(key)
        if here is None or there is None or here["class_type"] != there.get("class_type"):
            found.append((key, "", here, there))
            continue
        for name in here["inputs"].keys() | there["inputs"].keys():
            pair = (here["inputs"].get(name, "absent"), there["inputs"].get(name, "absent"))
            if [key, name] not in unstable and not same(*pair):
                found.append((key, name, *pair))
    if not found and list(ours) != list(theirs):
        found.append(("", "order", list(ours), list(theirs)))
    return sorted(found, key=str)


def template(name: str) -> Any:
    """A workflow that ComfyUI offers, the very file that the editor was asked about."""
    raw = (TEMPLATES / f"{name}.json").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == recorded("templates.prompts")[name]["sha256"]
    return json.loads(raw)


RECOMPOSER = "templates_graphic_design_recomposer"
"""The editor counts slots that have moved, and sends the model's name as the aspect ratio."""

UNKNOWN_CLASSES = {
    "template_rob_realistic_2k_images_quick_variations": {
        "126:96": "AILab_QwenVL",
        "104:107": "ImageRemoveAlpha+",
    },
    "templates_mjm_looped_restyler": {"89:87": "GetImageSizeAndCount"},
}
"""Templates with classes that ComfyUI 0.30.0 does not have, which the editor sends without one."""


@pytest.mark.parametrize(
    "name", sorted(recorded("templates.prompts").keys() - UNKNOWN_CLASSES.keys() - {RECOMPOSER})
)
def test_a_template_is_sent_as_the_editor_sends_it(name: str) -> None:
    expected = recorded("templates.prompts")[name]
    ours = sent(template(name))
    assert differences(ours, expected["prompt"], expected.get("unstable", [])) == []


def test_a_primitive_inside_a_subgraph_drives_what_it_is_connected_to() -> None:
    expected = recorded("templates.prompts")[RECOMPOSER]["prompt"]
    assert differences(sent(template(RECOMPOSER)), expected, []) == [
        ("143:157", "model.aspect_ratio", "16:9", "gemini-3-pro-image-preview")
    ]


@pytest.mark.parametrize("name", UNKNOWN_CLASSES)
def test_a_template_with_classes_that_are_absent_is_refused_by_their_names(name: str) -> None:
    assert set(UNKNOWN_CLASSES[name].values()) == set(
        recorded("templates.prompts")[name]["missing_types"]
    )
    with pytest.raises(InvalidWorkflow) as caught:
        convert(template(name), core())
    said = {problem.node_id: problem for problem in caught.value.problems}
    assert said.keys() == UNKNOWN_CLASSES[name].keys()
    for node_id, class_type in UNKNOWN_CLASSES[name].items():
        assert said[node_id].code == "unknown_class_type"
        assert repr(class_type) in said[node_id].what


ACE_STEP = "Text to Audio (ACE-Step 1.5)"
"""The editor hands a null meant for another widget to a length in seconds."""


def blueprint(tree: Path, name: str) -> Any:
    """A subgraph that ComfyUI offers, the very file that the editor was asked about."""
    raw = (tree / "blueprints" / f"{name}.json").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == recorded("blueprints.prompts")[name]["sha256"]
    return json.loads(raw)


@pytest.mark.parametrize("name", sorted(recorded("blueprints.prompts").keys() - {ACE_STEP}))
def test_a_blueprint_is_sent_as_the_editor_sends_it(name: str, comfyui_tree: Path) -> None:
    expected = recorded("blueprints.prompts")[name]
    ours = sent(blueprint(comfyui_tree, name))
    assert differences(ours, expected["prompt"], expected.get("unstable", [])) == []


def test_a_promoted_widget_that_the_file_does_not_list_keeps_its_value(comfyui_tree: Path) -> None:
    expected = recorded("blueprints.prompts")[ACE_STEP]["prompt"]
    assert differences(sent(blueprint(comfyui_tree, ACE_STEP)), expected, []) == [
        ("21:110", "value", 120, None)
    ]


def case(name: str) -> Any:
    """The workflow of a synthetic case."""
    return recorded("synthetic.cases")[name]["workflow"]


def probed(name: str) -> dict[str, dict[str, Any]]:
    """What is sent for a synthetic case."""
    return sent(case(name), with_probes())


DIFFERENT = {
    # Values by position, for widgets that the file lists by name: the editor takes both.
    "proxy_create_input": [("2:11", "seed", 123, "txtv")],
    "proxy_create_on_one_of_two_instances": [("2:11", "seed", 123, "one")],
    "proxy_partial_not_listed_input_gets_positional": [("2:11", "seed", 123, 1)],
    # A text that ends in a backslash.
    "text_escapes": [
        ("1", "text", r"a {b|c} (d:1.2) \(e\) " + "\\", r"a {b|c} (d:1.2) \(e\) \undefined")
    ],
    # An integer that JavaScript cannot hold.
    "widgets_out_of_range_kept": [("1", "seed", 1152921504606846976, 1152921504606847000)],
    # Values by name: the editor leaves those of core classes out.
    "widgets_dict_core_node": [
        ("1", "batch_size", 2, "absent"),
        ("1", "color", 3, "absent"),
        ("1", "height", 6, "absent"),
        ("1", "width", 5, "absent"),
    ],
}
"""Cases that differ on purpose: id, input, what is sent here, what the editor sends."""

PICTURE = {
    "class_type": "EmptyImage",
    "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0},
    "_meta": {"title": "EmptyImage"},
}


def saved(node_id: str, source: str) -> dict[str, Any]:
    """The node that saves the picture of another."""
    return {
        node_id: {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "p", "images": [source, 0]},
            "_meta": {"title": "Save Image"},
        }
    }


NOT_REFUSED = {
    "schema_no_version_array_links": {"1": PICTURE, **saved("2", "1")},
    "sub_passthrough_direct": {"1": PICTURE, **saved("3", "1")},
    "sub_two_instances_inner_bypassed": {"1": PICTURE, **saved("4", "1")},
    # The editor sends these two nodes without a class.
    "unknown_setnode_getnode": {"2": PICTURE, **saved("4", "2")},
}
"""Cases that the editor refuses for no good reason, and what is sent here."""

OTHERWISE = {
    *DIFFERENT,
    *NOT_REFUSED,
    "broken_input_link_id_not_in_links",
    "unknown_node_active",
    "widgets_dict",
}


@pytest.mark.parametrize("name", sorted(recorded("synthetic.cases").keys() - OTHERWISE))
def test_a_case_is_sent_as_the_editor_sends_it(name: str) -> None:
    expected = recorded("synthetic.cases")[name]
    assert differences(probed(name), expected["prompt"], expected.get("unstable", [])) == []


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_case_differs_where_the_editor_is_at_fault(name: str) -> None:
    expected = recorded("synthetic.cases")[name]["prompt"]
    assert differences(probed(name), expected, []) == DIFFERENT[name]


@pytest.mark.parametrize("name", NOT_REFUSED)
def test_a_case_runs_though_the_editor_refuses_it(name: str) -> None:
    expected = recorded("synthetic.cases")[name]
    assert "error" in expected or "missing_types" in expected
    assert differences(probed(name), NOT_REFUSED[name], []) == []


def test_an_object_of_values_is_read_by_name() -> None:
    [probe] = probed("widgets_dict").values()
    stored = {"seed": 5, "lst": "a", "s": "dict"}
    numbers = {"noise_seed": 8, "n": 10, "f": 0.5, "nums": 1, "opt_int": 3, "nosock": 1, "hid": 2}
    texts = {"cmb": "x", "dyn": "", "tail": "tail", "color": "#000000", "b": True}
    lists = {name: {"__value__": value} for name, value in (("multi", []), ("boxes", []))}
    objects = {
        "cols": {"__value__": ["#fff"]},
        "curve": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
        "rng": {"min": 0, "max": 1},
        "bbox": {"x": 0, "y": 0, "width": 512, "height": 512},
    }
    assert probe["inputs"] == stored | numbers | texts | lists | objects


def test_a_link_that_is_not_in_the_file_is_named_where_it_is_needed() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        probed("broken_input_link_id_not_in_links")
    [problem] = caught.value.problems
    assert (problem.code, problem.node_id, problem.input) == ("broken_link", "2", "images")
    assert "link 99" in problem.what
    assert problem.hint


def test_a_class_that_is_not_installed_is_named() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        probed("unknown_node_active")
    [problem] = caught.value.problems
    assert (problem.code, problem.node_id) == ("unknown_class_type", "2")
    assert "'NoSuchNode'" in problem.what


def test_what_no_output_needs_may_be_broken() -> None:
    nodes = [
        empty_image(1),
        save_image(2, 1),
        invert(3, 99),
        ui(4, "NoSuchNode", ["x"], outputs=[{"name": "OUT", "type": "IMAGE"}], title="Odd"),
        invert(5, 2),
    ]
    made = convert(document(nodes, [(1, 1, 0, 2, 0, "IMAGE"), (2, 4, 0, 5, 0, "IMAGE")]), core())
    assert list(made.workflow.nodes) == ["1", "2", "3", "5"]
    assert not made.workflow.nodes["5"].inputs
    assert [note for note in made.notes if "link 99" in note]
    assert [note for note in made.notes if "Node 4 (Odd)" in note and "'NoSuchNode'" in note]


def test_every_fault_that_an_output_needs_is_told_at_once() -> None:
    nodes = [
        ui(1, "NoSuchNode", outputs=[{"name": "OUT", "type": "IMAGE"}]),
        save_image(2, 1),
        save_image(3, 99),
        save_image(4, 2, title="To a node that is gone"),
    ]
    with pytest.raises(InvalidWorkflow) as caught:
        sent(document(nodes, [(1, 1, 0, 2, 0, "IMAGE"), (2, 77, 0, 4, 0, "IMAGE")]))
    found = {(p.node_id, p.code, p.title, p.input) for p in caught.value.problems}
    assert found == {
        ("1", "unknown_class_type", "NoSuchNode", ""),
        ("3", "broken_link", "Save Image", "images"),
        ("4", "broken_link", "To a node that is gone", "images"),
    }
    assert "node 77" in str(caught.value)


def test_an_unknown_node_without_outputs_is_taken_for_one_that_saves() -> None:
    nodes = [empty_image(1), ui(2, "SaveSomewhere", links={"images": 1})]
    with pytest.raises(InvalidWorkflow, match="SaveSomewhere"):
        sent(document(nodes, [(1, 1, 0, 2, 0, "IMAGE")]))


def test_outputs_of_a_switched_off_instance_do_not_run_however_deep_it_stands() -> None:
    leaf = subgraph(
        "leaf",
        [empty_image(10), save_image(11, 1), invert(12, 2)],
        [(1, 10, 0, 11, 0, "IMAGE"), (2, 10, 0, 12, 0, "IMAGE")],
    )
    middle = subgraph("middle", [ui(20, "leaf", mode=2), ui(21, "leaf", mode=4), ui(22, "leaf")])
    made = sent(document([ui(1, "middle"), ui(2, "leaf", mode=2)], subgraphs=[leaf, middle]))
    # Inside a definition the editor sends the nodes of an instance that is off.
    off = ["1:20:10", "1:20:12", "1:21:10", "1:21:12"]
    assert list(made) == [*off, "1:22:10", "1:22:11", "1:22:12"]


@pytest.mark.parametrize("origin", ["NoSuchNode", "CreateBoundingBoxes"])
def test_nothing_in_a_switched_off_instance_is_connected_to_what_is_left_out(origin: str) -> None:
    nodes = [ui(10, origin, outputs=[{"name": "x", "type": "*"}]), invert(11, 1)]
    leaf = subgraph("leaf", nodes, [(1, 10, 0, 11, 0, "*")])
    middle = subgraph("middle", [ui(20, "leaf", mode=2)])
    made = sent(document([ui(1, "middle")], subgraphs=[leaf, middle]))
    assert {key: node["inputs"] for key, node in made.items()} == {"1:20:11": {}}


def test_lists_as_values_are_wrapped_and_promoted_ones_too() -> None:
    probe = ui(10, "ProbeWidgets", {"multi": ["p", "q"], "cols": []}, links={"boxes": 1})
    inner = subgraph("inner", [probe], [(1, -10, 0, 10, 0, "*")], [("boxes", "BOUNDING_BOXES")])
    made = sent(document([ui(1, "inner", [[{"x": 1}]])], subgraphs=[inner]), with_probes())
    assert made["1:10"]["inputs"]["multi"] == {"__value__": ["p", "q"]}
    assert made["1:10"]["inputs"]["cols"] == {"__value__": []}
    assert made["1:10"]["inputs"]["boxes"] == {"__value__": [{"x": 1}]}


def test_a_curve_that_is_a_bare_list_says_what_it_is() -> None:
    points = [[0, 0], [1, 1]]
    made = sent(document([ui(1, "ProbeWidgets", {"curve": points})]), with_probes())
    assert made["1"]["inputs"]["curve"] == {"__type__": "CURVE", "__value__": points}


def test_titles_are_the_authors_or_those_of_the_class() -> None:
    made = sent(document([empty_image(1, title="Mine"), save_image(2, None)]))
    assert [node["_meta"]["title"] for node in made.values()] == ["Mine", "Save Image"]


def test_numbers_come_first_and_the_rest_in_the_order_of_running() -> None:
    nodes = [
        save_image("b", 1),
        empty_image("a"),
        save_image(12, None),
        save_image(7, None),
        save_image("07", None),
    ]
    made = sent(document(nodes, [(1, "a", 0, "b", 0, "IMAGE")]))
    assert list(made) == ["7", "12", "a", "07", "b"]


def test_a_file_without_nodes_is_sent_as_nothing() -> None:
    assert sent({"nodes": []}) == {}
    assert sent(document([ui(1, "Note", ["x"]), ui(2, "MarkdownNote", ["y"])])) == {}


def test_a_subgraph_that_holds_itself_is_refused() -> None:
    own = subgraph("own", [ui(10, "other", title="The way back")])
    other = subgraph("other", [ui(20, "own")])
    with pytest.raises(InvalidWorkflow) as caught:
        sent(document([ui(1, "own")], subgraphs=[own, other]))
    [problem] = caught.value.problems
    assert problem.code == "endless_subgraph"
    assert problem.node_id in ("10", "20")
    assert "holds itself" in problem.what


def nested(depth: int, copies: int, leaf: list[Any]) -> dict[str, Any]:
    """Definitions in each other, `copies` instances of the next in each of `depth` of them."""
    definitions = [
        subgraph(
            f"level {level}", [ui(f"{level}.{n}", f"level {level + 1}") for n in range(copies)]
        )
        for level in range(depth - 1)
    ]
    return document(
        [ui(1, "level 0")], subgraphs=[*definitions, subgraph(f"level {depth - 1}", leaf)]
    )


def test_subgraphs_may_stand_in_each_other_fifty_deep() -> None:
    [(node_id, node)] = sent(nested(50, 1, [save_image(10, None)])).items()
    assert node_id.count(":") == 50
    assert node["class_type"] == "SaveImage"
    with pytest.raises(InvalidWorkflow, match="more than 50 deep") as caught:
        sent(nested(60, 1, [save_image(10, None)]))
    assert caught.value.problems[0].node_id


@pytest.mark.parametrize(
    ("depth", "leaf"), [(50, [save_image(10, None)]), (16, []), (16, [ui(10, "Note")])]
)
def test_subgraphs_that_multiply_end_in_one_error(depth: int, leaf: list[Any]) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        sent(nested(depth, 2, leaf))
    [problem] = caught.value.problems
    assert problem.code == "too_many_nodes"


def test_five_thousand_reroutes_are_followed() -> None:
    count = 5_000
    chain = [ui(key, "Reroute", links={"": key - 1}) for key in range(2, count + 2)]
    links = [(key, key, 0, key + 1, 0, "*") for key in range(1, count + 2)]
    nodes = [save_image(count + 2, count + 1), *chain, empty_image(1)]
    made = sent(document(nodes, links))
    assert list(made) == ["1", str(count + 2)]
    assert made[str(count + 2)]["inputs"]["images"] == ["1", 0]
