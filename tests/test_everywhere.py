"""cg-use-everywhere: which links it adds, in files of its version 7 and of those before."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from editor_files import (
    catalog_of,
    document,
    empty_image,
    invert,
    save_image,
    sent,
    subgraph,
    ui,
)

from comfy_runner.convert import convert
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.nodes import NodeCatalog

NEW = {"version": "7.8"}

CLASSES: Mapping[str, Any] = {
    "Anything Everywhere": {"input": {"required": {}, "optional": {"anything": ["*"]}}},
    "Names": {
        "input": {
            "required": {},
            "optional": {
                **{key: ["CONDITIONING"] for key in ("positive", "negative", "neg_prompt")},
                **{key: ["THING"] for key in ("front", "back", "front left")},
                "any": ["*"],
                "choice": [["one", "two"]],
                "text": ["STRING", {}],
                "seed": ["INT", {}],
                "steps": ["INT", {}],
            },
        },
        "output_node": True,
    },
    "Thing": {"input": {"required": {}}, "output": ["THING", "THING"]},
    "Sentence": {"input": {"required": {}}, "output": ["STRING"]},
    "Condition": {"input": {"required": {}}, "output": ["CONDITIONING"]},
}


@cache
def catalog() -> NodeCatalog:
    return catalog_of(CLASSES)


def sender(
    node_id: Any,
    *inputs: tuple[str, Any],
    kind: str = "Anything Everywhere",
    values: Any = None,
    **rest: Any,
) -> dict[str, Any]:
    """A node of the pack; `inputs` are name and link. New unless `properties` say otherwise."""
    properties = rest.pop("properties", {"ue_properties": {**NEW, **rest.pop("rules", {})}})
    slots = [{"name": name, "type": "*", "link": link} for name, link in inputs]
    return ui(node_id, kind, values or [], inputs=slots, properties=properties, **rest)


def slots(*names: str, kind: str = "IMAGE") -> list[dict[str, Any]]:
    return [{"name": name, "type": kind, "link": None} for name in names]


def saver(node_id: Any, **rest: Any) -> dict[str, Any]:
    """A saving node that is not connected."""
    return ui(node_id, "SaveImage", ["p"], **{"inputs": slots("images"), **rest})


def spread(*nodes: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """Picture 1 on link 1 to node 3, picture 2 on link 2 to node 4, and these nodes."""
    links = [(1, 1, 0, 3, 0, "IMAGE"), (2, 2, 0, 4, 0, "IMAGE")]
    return document([empty_image(1), empty_image(2), *nodes], links, **rest)


def images(file: Any) -> dict[str, Any]:
    """What each saving node gets."""
    return {
        key: node["inputs"].get("images")
        for key, node in sent(file, catalog()).items()
        if node["class_type"] == "SaveImage"
    }


def named(*nodes: dict[str, Any], links: Sequence[Any] = (), **rest: Any) -> dict[str, Any]:
    """The links that node 9, of the class with many inputs, gets."""
    taker = ui(9, "Names", ["one", "t", 7, "fixed", 8], **rest)
    inputs = sent(document([*nodes, taker], links), catalog())["9"]["inputs"]
    return {name: value[0] for name, value in inputs.items() if isinstance(value, list)}


def test_an_input_that_is_not_connected_gets_what_is_spread() -> None:
    made = sent(spread(sender(3, ("anything", 1)), saver(8), save_image(9, 5), invert(5, None)))
    assert made["8"]["inputs"]["images"] == ["1", 0]
    assert made["5"]["inputs"]["image"] == ["1", 0]
    assert made.keys() == {"1", "2", "5", "8", "9"}


def test_an_input_that_is_connected_keeps_its_link() -> None:
    file = spread(sender(3, ("anything", 1)), saver(8), save_image(9, 9))
    file["links"].append([9, 2, 0, 9, 0, "IMAGE"])
    assert images(file) == {"8": ["1", 0], "9": ["2", 0]}


@pytest.mark.parametrize(
    "kind", ["Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?"]
)
def test_senders_are_not_sent_installed_or_not(kind: str) -> None:
    made = sent(spread(sender(3, ("anything", 1), kind=kind), saver(8)), catalog())
    assert made.keys() == {"1", "2", "8"}


@pytest.mark.parametrize("mode", [2, 4])
def test_a_sender_that_is_switched_off_sends_nothing(mode: int) -> None:
    assert images(spread(sender(3, ("anything", 1), mode=mode), saver(8))) == {"8": None}


def test_a_muted_source_is_not_spread_and_a_bypassed_one_is_passed_by() -> None:
    file = spread(sender(3, ("anything", 1)), saver(8))
    file["nodes"][0]["mode"] = 2
    assert images(file) == {"8": None}
    file = spread(invert(5, 1, mode=4), sender(3, ("anything", 6)), saver(8))
    file["links"] = [[1, 1, 0, 5, 0, "IMAGE"], [6, 5, 0, 3, 0, "IMAGE"]]
    assert images(file) == {"8": ["1", 0]}


def test_a_sender_s_own_source_is_not_fed_by_it() -> None:
    file = spread(invert(5, None), sender(3, ("anything", 6)), saver(8))
    file["links"] = [[6, 5, 0, 3, 0, "IMAGE"]]
    made = sent(file)
    assert made["8"]["inputs"]["images"] == ["5", 0]
    assert "image" not in made["5"]["inputs"]


def test_the_source_of_a_link_without_a_type_has_one() -> None:
    file = spread(sender(3, ("anything", 1)), saver(8))
    file["links"][0][5] = "*"
    file["nodes"][0]["outputs"] = [{"name": "IMAGE", "type": "IMAGE"}]
    assert images(file) == {"8": ["1", 0]}


def test_a_source_outside_a_subgraph_has_the_type_of_its_input() -> None:
    node = sender(3, ("anything", 1))
    inner = subgraph(
        "inner", [node, saver(8)], [(1, -10, 0, 3, 0, "*")], [("in", "IMAGE"), ("other", "MASK")]
    )
    links = [(1, 1, 0, 5, 0, "IMAGE")]
    file = document([empty_image(1), ui(5, "inner", links={"in": 1})], links, [inner])
    assert images(file) == {"5:8": ["1", 0]}


def test_nodes_that_pass_on_each_other_spread_nothing() -> None:
    file = spread(sender(3, ("anything", 6)), invert(5, 7, mode=4), invert(6, 6, mode=4), saver(8))
    file["links"] += [[6, 5, 0, 6, 0, "IMAGE"], [7, 6, 0, 5, 0, "IMAGE"]]
    assert images(file) == {"8": None}


def test_a_closed_socket_and_a_node_that_wants_nothing_stay_open() -> None:
    closed = {"ue_properties": {**NEW, "input_ue_unconnectable": {"images": True}}}
    file = spread(
        sender(3, ("anything", 1)),
        saver(7, properties=closed),
        saver(8, properties={"rejects_ue_links": True}),
    )
    assert images(file) == {"7": None, "8": None}


@pytest.mark.parametrize(
    ("properties", "listed", "expected"),
    [
        ({"ue_properties": {**NEW, "widget_ue_connectable": {}}}, True, {}),
        ({"ue_properties": {**NEW, "widget_ue_connectable": {"seed": True}}}, True, {"seed": "1"}),
        ({"widget_ue_connectable": {"steps": True}}, True, {"steps": "1"}),
        ({}, False, {}),
        ({}, True, {"seed": "1"}),
    ],
)
def test_widgets_get_links_only_where_their_author_let_them(
    properties: dict[str, Any], listed: bool, expected: dict[str, str]
) -> None:
    seed = [{"name": "seed", "type": "INT", "link": None, "widget": {"name": "seed"}}]
    number = ui(1, "PrimitiveInt", [5, "fixed"])
    links = [(1, 1, 0, 3, 0, "INT")]
    rest = {"properties": properties, "inputs": seed if listed else []}
    assert named(number, sender(3, ("anything", 1)), links=links, **rest) == expected


@pytest.mark.parametrize("mode", [2, 4])
def test_a_bypassed_node_hands_on_what_it_gets(mode: int) -> None:
    file = spread(sender(3, ("anything", 1)), invert(5, None, mode=mode), save_image(9, 6))
    file["links"].append([6, 5, 0, 9, 0, "IMAGE"])
    assert images(file) == {"9": ["1", 0] if mode == 4 else None}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"title_regex": "^Fin"}, {"7", "8"}),
        ({"title_regex": "al$"}, {"7"}),
        ({"title_regex": "al$", "title_regex_invert": True}, {"8", "9"}),
        ({"title_regex": "fin"}, set()),
        ({"title_regex": "(?<word>Final|Save)"}, {"7", "9"}),
        ({"title_regex": ".*"}, {"7", "8", "9"}),
        ({"title_regex": ""}, {"7", "8", "9"}),
        ({"input_regex": "image"}, {"7", "9"}),
        ({"input_regex": "^picture$"}, {"8"}),
    ],
)
def test_patterns_choose_nodes_and_inputs(rules: dict[str, Any], expected: set[str]) -> None:
    labelled = [{**slots("images")[0], "label": "picture"}]
    file = spread(
        sender(3, ("anything", 1), rules=rules),
        saver(7, title="Final"),
        saver(8, title="Finish", inputs=labelled),
        saver(9),
    )
    assert {key for key, link in images(file).items() if link} == expected


@pytest.mark.parametrize(
    ("text", "title"),
    [("[[a]x", "[x"), ("^[a&&b|c~~d]$", "~"), (r"\/\d", "/5"), ("a{2", "a{2"), (r"[\]&]", "]")],
)
def test_patterns_are_read_as_javascript_reads_them(text: str, title: str) -> None:
    file = spread(
        sender(3, ("anything", 1), rules={"title_regex": text}), saver(8, title=title), saver(9)
    )
    assert images(file) == {"8": ["1", 0], "9": None}


@pytest.mark.parametrize("text", ["(", "*", "x" * 501])
def test_a_pattern_that_cannot_be_read_is_named(text: str) -> None:
    file = spread(sender(3, ("anything", 1), rules={"title_regex": text}), saver(8))
    with pytest.raises(InvalidWorkflow) as caught:
        images(file)
    [problem] = caught.value.problems
    assert (problem.code, problem.node_id) == ("unreadable_pattern", "3")


BOX = {"size": [100, 50]}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"group_restricted": 1}, {"7"}),
        ({"group_restricted": 2}, {"8", "9"}),
        ({"color_restricted": 1}, {"7", "8"}),
        ({"color_restricted": 2}, {"9"}),
        ({"group_restricted": 2, "color_restricted": 1}, {"8"}),
        ({"group_regex": "^Other"}, {"8"}),
        ({"group_regex": "^Other", "group_regex_invert": True}, {"7"}),
        ({"group_regex": "^Other", "group_restricted": 1}, set()),
    ],
)
def test_groups_and_colours_restrict(rules: dict[str, Any], expected: set[str]) -> None:
    file = spread(
        sender(3, ("anything", 1), rules=rules, color="#322", pos=[10, 50], **BOX),
        saver(7, color="#322", pos={"0": 20, "1": 100}, **BOX),
        saver(8, color="#322", pos=[400, 100], **BOX),
        saver(9, pos=[190, 100], flags={"collapsed": True}, **BOX),
        groups=[
            {"title": "Own", "bounding": [0, 0, 200, 300]},
            {"title": "Other group", "bounding": [350, 0, 200, 300]},
        ],
    )
    assert {key for key, link in images(file).items() if link} == expected


@pytest.mark.parametrize("bounding", [[10**400, 0, 200, 300], [0, 0, 200], ["0", 0, 200, 300], 5])
def test_a_group_without_a_place_has_no_nodes(bounding: Any) -> None:
    file = spread(
        sender(3, ("anything", 1), rules={"group_restricted": 1}, pos=[10, 50], **BOX),
        saver(8, pos=[20, 100], **BOX),
        groups=[{"title": "Nowhere", "bounding": bounding}],
    )
    assert images(file) == {"8": None}


@pytest.mark.parametrize("odd", [10**400, "1", None, [1]])
def test_a_rule_of_another_shape_is_no_rule(odd: Any) -> None:
    rules = {"send_to_any": odd, "string_to_combo": odd, "group_restricted": odd}
    assert images(spread(sender(3, ("anything", 1), rules=rules), saver(8))) == {"8": ["1", 0]}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {}, None),
        ({"priority": 11}, {}, "1"),
        ({}, {"input_regex": "images"}, "2"),
        ({"group_restricted": 2}, {"color_restricted": 1}, "2"),
        ({"priority": 40}, {"input_regex": "images"}, "1"),
        ({"priority": 0}, {"priority": None}, None),
    ],
)
def test_the_highest_priority_wins_and_a_tie_gives_nothing(
    one: dict[str, Any], other: dict[str, Any], expected: str | None
) -> None:
    file = spread(
        sender(3, ("anything", 1), rules=one), sender(4, ("anything", 2), rules=other), saver(8)
    )
    assert images(file) == {"8": [expected, 0] if expected else None}
    notes = convert(file, catalog()).notes
    if expected:
        assert not notes
    else:
        [note] = notes
        assert "Input images of node 8 (SaveImage) is left open" in note
        assert "3 (Anything Everywhere), 4 (Anything Everywhere)" in note


@pytest.mark.parametrize(
    ("rule", "own", "expected"),
    [
        (0, ("front", "back"), {"front": "1", "back": "2"}),
        (1, ("front", "ba"), {"front": "1", "front left": "1", "back": "2"}),
        (2, ("my front", "left"), {"front": "1", "front left": "2"}),
        (3, ("Many", "Few"), {"front": "1", "front left": "1", "back": "1"}),
        (4, ("^front$", "l.ft|back"), {"front": "1", "front left": "2", "back": "2"}),
    ],
)
def test_a_type_that_is_sent_twice_goes_by_name(
    rule: int, own: tuple[str, str], expected: dict[str, str]
) -> None:
    things = [ui(1, "Thing"), ui(2, "Thing")]
    links = [(1, 1, 0, 3, 0, "THING"), (2, 2, 0, 3, 1, "THING")]
    node = sender(3, (own[0], 1), (own[1], 2), rules={"repeated_type_rule": rule})
    assert named(*things, node, links=links, title="Many") == expected


def test_a_type_that_is_sent_once_goes_by_name_where_asked() -> None:
    node = sender(3, ("back", 1), rules={"apply_to_unrepeated": 1})
    assert named(ui(1, "Thing"), node, links=[(1, 1, 0, 3, 0, "THING")]) == {"back": "1"}


def test_texts_can_go_to_choices_and_anything_to_any() -> None:
    opened = {"ue_properties": {**NEW, "widget_ue_connectable": {"choice": True}}}
    links = [(1, 1, 0, 3, 0, "STRING")]
    for rules, expected in (
        ({}, {}),
        ({"string_to_combo": 1}, {"choice": "1"}),
        ({"send_to_any": 1}, {"any": "1"}),
    ):
        nodes = (ui(1, "Sentence"), sender(3, ("anything", 1), rules=rules))
        assert named(*nodes, links=links, properties=opened) == expected


def test_any_node_can_spread_its_outputs() -> None:
    rules = {**NEW, "output_not_broadcasting": {"second": True}, "input_regex": "front"}
    thing = ui(
        1,
        "Thing",
        outputs=[{"name": "first", "type": "THING"}, {"name": "second", "type": "THING"}],
        properties={"ue_convert": True, "ue_properties": rules},
    )
    assert named(thing) == {"front": "1", "front left": "1"}


def test_prompts_go_to_the_inputs_of_their_name() -> None:
    conditions = [ui(1, "Condition"), ui(2, "Condition")]
    links = [(1, 1, 0, 3, 0, "CONDITIONING"), (2, 2, 0, 3, 1, "CONDITIONING")]
    node = sender(3, ("CONDITIONING", 1), ("CONDITIONING", 2), kind="Prompts Everywhere")
    assert named(*conditions, node, links=links) == {"positive": "1", "negative": "2"}
    old = {**node, "properties": {}}
    assert named(*conditions, old, links=links) == {
        "positive": "1",
        "negative": "2",
        "neg_prompt": "2",
    }


@pytest.mark.parametrize("properties", [{}, {"ue_properties": NEW}])
def test_a_seed_goes_to_seeds(properties: dict[str, Any]) -> None:
    node = ui(4, "Seed Everywhere", [77, "fixed"], properties=properties)
    seed = [{"name": "seed", "type": "INT", "link": None, "widget": {"name": "seed"}}]
    steps = [{"name": "steps", "type": "INT", "link": None, "widget": {"name": "steps"}}]
    taker = ui(9, "Names", ["one", "t", 7, "fixed", 8], inputs=[*seed, *steps])
    made = sent(document([node, taker]), catalog())
    assert (made["9"]["inputs"]["seed"], made["9"]["inputs"]["steps"]) == (["4", 0], 8)
    assert made["4"]["class_type"] == "PrimitiveInt"
    assert made["4"]["inputs"] == {"value": 77}


def test_an_input_whose_link_the_pack_took_back_is_not_connected() -> None:
    file = spread(sender(3, ("anything", 1)), save_image(8, 13))
    assert images(file) == {"8": ["1", 0]}
    file = spread(save_image(8, 13), save_image(9, 1), extra={"links_added_by_ue": [13]})
    file["links"] = [[1, 1, 0, 9, 0, "IMAGE"]]
    assert images(file) == {"8": None, "9": ["1", 0]}


def test_any_other_link_that_is_missing_is_a_fault() -> None:
    file = spread(save_image(8, 14), extra={"links_added_by_ue": [13]})
    with pytest.raises(InvalidWorkflow, match="connected by link 14"):
        sent(file)


def test_a_subgraph_is_a_world_of_its_own() -> None:
    inner = subgraph(
        "inner",
        [sender(20, ("anything", 201)), saver(21), invert(22, None)],
        [(201, -10, 0, 20, 0, "IMAGE")],
        [("in", "IMAGE")],
        [("out", "IMAGE")],
    )
    file = document(
        [empty_image(1), ui(5, "inner", links={"in": 1}), save_image(8, 2), saver(9)],
        [(1, 1, 0, 5, 0, "IMAGE"), (2, 5, 0, 8, 0, "IMAGE")],
        [inner],
    )
    made = sent(file, catalog())
    assert made["5:21"]["inputs"]["images"] == ["1", 0]
    assert made["5:22"]["inputs"]["image"] == ["1", 0]
    assert made["8"]["inputs"]["images"] == ["1", 0]
    assert "images" not in made["9"]["inputs"]


def test_an_instance_gets_links_like_any_node() -> None:
    inner = subgraph(
        "inner", [save_image(21, 201)], [(201, -10, 0, 21, 0, "IMAGE")], [("in", "IMAGE")]
    )
    file = spread(sender(3, ("anything", 1)), ui(5, "inner", inputs=slots("in")))
    file["definitions"] = {"subgraphs": [inner]}
    assert images(file) == {"5:21": ["1", 0]}


def test_links_are_added_in_the_order_of_the_inputs() -> None:
    things = [ui(1, "Thing"), ui(2, "Condition")]
    links = [(1, 1, 0, 3, 0, "THING"), (2, 2, 0, 4, 0, "CONDITIONING")]
    nodes = [*things, sender(4, ("anything", 2)), sender(3, ("anything", 1))]
    taken = named(*nodes, links=links, inputs=slots("negative", kind="CONDITIONING"))
    assert list(taken) == ["positive", "negative", "neg_prompt", "front", "back", "front left"]


OLD: dict[str, Any] = {}


def old(node_id: Any, kind: str, *inputs: tuple[str, Any], **rest: Any) -> dict[str, Any]:
    return sender(node_id, *inputs, kind=kind, **{"properties": OLD, **rest})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("Anything Everywhere", {"a"}), ("Anything Everywhere3", {"a", "b", "c"})],
)
def test_old_senders_send_as_many_inputs_as_they_had(kind: str, expected: set[str]) -> None:
    kinds = {"a": "IMAGE", "b": "MASK", "c": "CONDITIONING"}
    sources = [empty_image(1), ui(2, "SolidMask", [1.0, 8, 8]), ui(5, "Condition")]
    links = [(1, 1, 0, 3, 0, "IMAGE"), (2, 2, 0, 3, 1, "MASK"), (5, 5, 0, 3, 2, "CONDITIONING")]
    takers = [saver(6), ui(7, "InvertMask"), ui(9, "Names")]
    node = old(3, kind, ("a", 1), ("b", 2), ("c", 5))
    made = sent(document([*sources, *takers, node], links), catalog())
    taken = {
        "a": made["6"]["inputs"].get("images"),
        "b": made["7"]["inputs"].get("mask"),
        "c": made["9"]["inputs"].get("positive"),
    }
    assert {name for name in kinds if taken[name]} == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([".*", "images", ".*"], {"7", "8"}),
        (["Final", ".*"], {"7"}),
        ([".*", "other"], set()),
        ([".*", "+images"], set()),
        ([".*", ".*", "Box"], {"8"}),
        ([".*", ".*", None], {"7", "8"}),
        ([], {"7", "8"}),
    ],
)
def test_old_patterns_are_the_values_of_the_sender(values: list[Any], expected: set[str]) -> None:
    file = spread(
        old(3, "Anything Everywhere?", ("IMAGE", 1), values=values),
        saver(7, title="Final", pos=[500, 500], **BOX),
        saver(8, pos=[10, 50], **BOX),
        groups=[{"title": "Box", "bounding": [0, 0, 200, 200]}],
    )
    assert {key for key, link in images(file).items() if link} == expected


@pytest.mark.parametrize(("text", "expected"), [("images", ["1", 0]), ("other", None), (5, None)])
def test_an_old_pattern_can_come_from_another_node(text: Any, expected: Any) -> None:
    node = old(3, "Anything Everywhere?", ("IMAGE", 1), ("input_regex", 6), values=["", "x"])
    file = spread(node, ui(6, "PrimitiveString", [text]), saver(8))
    file["links"].append([6, 6, 0, 3, 1, "STRING"])
    assert images(file) == {"8": expected}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("Anything Everywhere", OLD), ("Anything Everywhere?", OLD), "2"),
        (("Anything Everywhere", OLD), ("Anything Everywhere3", OLD), "1"),
        (("Anything Everywhere", OLD), ("Anything Everywhere", OLD), None),
        (("Anything Everywhere", {"color_restricted": 1}), ("Anything Everywhere", OLD), "1"),
        (
            ("Anything Everywhere", {"color_restricted": 1}),
            ("Anything Everywhere", {"group_restricted": 2}),
            "1",
        ),
        (("Anything Everywhere?", OLD), ("Anything Everywhere?", {"priority_boost": 3}), "2"),
    ],
)
def test_old_priorities(one: tuple[str, Any], other: tuple[str, Any], expected: str | None) -> None:
    file = spread(
        old(3, one[0], ("IMAGE", 1), properties=one[1]),
        old(4, other[0], ("IMAGE", 2), properties=other[1]),
        saver(8),
    )
    assert images(file) == {"8": [expected, 0] if expected else None}


def test_old_senders_stay_in_their_group() -> None:
    file = spread(
        old(
            3,
            "Anything Everywhere",
            ("IMAGE", 1),
            properties={"group_restricted": True},
            pos=[9, 50],
        ),
        saver(7, pos=[20, 60]),
        saver(8, pos=[900, 60]),
        groups=[{"title": "", "bounding": [0, 0, 200, 200]}],
    )
    assert images(file) == {"7": ["1", 0], "8": None}


def test_old_senders_feed_what_only_bypassed_nodes_are_connected_to() -> None:
    passed_by = invert(5, None, mode=4)
    file = spread(old(3, "Anything Everywhere", ("IMAGE", 1)), passed_by, save_image(8, 6))
    file["links"].append([6, 5, 0, 8, 0, "IMAGE"])
    assert images(file) == {"8": ["1", 0]}


def test_a_tie_leaves_an_output_of_a_subgraph_open() -> None:
    inner = subgraph(
        "inner",
        [
            empty_image(10),
            empty_image(11),
            sender(3, ("anything", 1)),
            sender(4, ("anything", 2), title="Second"),
        ],
        [(1, 10, 0, 3, 0, "IMAGE"), (2, 11, 0, 4, 0, "IMAGE")],
        outputs=[("made", "IMAGE")],
    )
    file = document([ui(5, "inner"), save_image(9, 1)], [(1, 5, 0, 9, 0, "IMAGE")], [inner])
    assert images(file) == {"9": None}
    [note] = convert(file, catalog()).notes
    assert note == (
        "Output made of a subgraph is left open: nodes 3 (Anything Everywhere), 4 (Second) fit it"
        " equally."
    )
