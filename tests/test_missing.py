"""The report on nodes whose class is not installed."""

from typing import Any

import pytest
from graphs import catalog

from comfy_runner.convert import convert
from comfy_runner.errors import InvalidWorkflow, Problem
from comfy_runner.graph.check import check
from comfy_runner.graph.missing import Origin, address_of, packs_with, report
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import Node, parse


def told(*nodes: Node, origins: dict[str, Origin] | None = None) -> list[Problem]:
    return list(report({node.id: node for node in nodes}, catalog(), origins or {}))


def node_of(node_id: str, class_type: str, title: str = "") -> Node:
    return Node(node_id, class_type, {}, title)


def test_one_problem_for_each_class_names_all_its_nodes() -> None:
    first, other = told(
        node_of("1", "VHS_LoadVideo", "Clip"),
        node_of("2", "SaveImage"),
        node_of("12:3", "VHS_LoadVideo", "Mask"),
        node_of("4", "NoSuchNode"),
    )
    assert (first.code, first.node_id, first.title) == ("unknown_class_type", "1", "Clip")
    assert "'VHS_LoadVideo'" in first.what
    assert first.what.endswith(", also needed by node 12:3 (Mask).")
    assert (other.node_id, other.title) == ("4", "NoSuchNode")


def test_of_many_nodes_of_one_class_a_dozen_are_named_and_the_rest_counted() -> None:
    (problem,) = told(*(node_of(str(number), "NoSuchNode") for number in range(1, 100)))
    assert problem.node_id == "1"
    assert problem.what.endswith(
        ", also needed by nodes 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 86 more."
    )


def test_the_bundled_index_names_the_pack_and_its_address() -> None:
    (problem,) = told(node_of("1", "VHS_LoadVideo"))
    assert "comfyui-videohelpersuite (https://github.com/" in problem.hint
    assert "comfy-runner nodes why" in problem.hint


def test_what_the_file_says_goes_before_the_index() -> None:
    origin = Origin("my-fork-of-vhs", "1.2.3")
    (problem,) = told(node_of("1", "VHS_LoadVideo"), origins={"1": origin})
    assert "my-fork-of-vhs 1.2.3" in problem.hint
    assert "comfyui-videohelpersuite" not in problem.hint


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        (
            Origin("ComfyUI-KJNodes", "1.1"),
            "ComfyUI-KJNodes 1.1 (https://github.com/kijai/ComfyUI-KJNodes)",
        ),
        (
            Origin("someone/Some-Nodes"),
            "someone/Some-Nodes (https://github.com/someone/Some-Nodes)",
        ),
        (Origin("unheard-of"), "unheard-of"),
    ],
)
def test_a_pack_is_told_with_its_address_where_that_is_known(origin: Origin, text: str) -> None:
    assert str(origin) == text


def test_a_well_known_pack_has_an_address_in_any_case() -> None:
    assert address_of("COMFYUI-KJNodes") == "https://github.com/kijai/ComfyUI-KJNodes"
    assert address_of("unheard-of") == ""


def test_a_class_of_two_packs_names_both() -> None:
    (problem,) = told(node_of("1", "Text Concatenate"))
    assert len(packs_with("Text Concatenate")) > 1
    assert all(pack.id in problem.hint for pack in packs_with("Text Concatenate"))


@pytest.mark.parametrize(
    ("class_type", "hint"),
    [
        ("9dd5b4a5-0a9a-4b0f-8f0a-2f6e34d7c1aa", "subgraph whose definition is not in the file"),
        ("workflow>mine", "group node whose definition is not in the file"),
        ("workflow/mine", "group node whose definition is not in the file"),
        ("SaveImagee", "Did you mean 'SaveImage'"),
        # Not "Did you mean 'GLIGENLoader' or 'VAELoader'?"
        (
            "InsightFaceLoader",
            "Add its pack (`comfy-runner nodes why WORKFLOW` tells how)",
        ),
        ("zzzzzzzzzzzzzzz", "Add its pack (`comfy-runner nodes why WORKFLOW` tells how)"),
    ],
)
def test_other_missing_classes_have_their_own_cure(class_type: str, hint: str) -> None:
    (problem,) = told(node_of("1", class_type))
    assert hint in problem.hint


def test_an_api_node_is_said_to_be_a_paid_service() -> None:
    problems = list(report({"1": node_of("1", "GeminiNode")}, NodeCatalog({"object_info": {}}), {}))
    assert "paid service" in problems[0].hint


def test_a_core_node_of_another_comfyui_is_told_as_such() -> None:
    (problem,) = told(node_of("1", "OldThing"), origins={"1": Origin("comfy-core", "0.3.10")})
    assert "another ComfyUI, 0.3.10" in problem.hint


def test_no_core_class_is_in_the_index() -> None:
    core = catalog().raw["object_info"]
    assert not [name for name in core if packs_with(name)]


def test_an_api_workflow_gets_the_same_report() -> None:
    document = {"1": {"class_type": "VHS_VideoCombine", "inputs": {}}}
    (problem,) = check(parse(document), catalog())
    assert "comfyui-videohelpersuite" in problem.hint


def saved(*nodes: dict[str, Any], links: list[Any]) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": links, "version": 0.4}


SOURCE = {"id": 1, "type": "EmptyImage", "widgets_values": [8, 8, 1, 0]}
UNKNOWN = {
    "id": 2,
    "type": "Sharpener",
    "inputs": [{"name": "image", "type": "IMAGE", "link": 1}],
    "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [2]}],
    "properties": {"cnr_id": "sharp-pack", "ver": "2.0.1"},
}
SAVE = {
    "id": 3,
    "type": "SaveImage",
    "inputs": [{"name": "images", "type": "IMAGE", "link": 2}],
    "widgets_values": ["x"],
}
LINKS = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]


def test_the_editors_file_names_pack_and_version() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        convert(saved(SOURCE, UNKNOWN, SAVE, links=LINKS), catalog())
    (problem,) = caught.value.problems
    assert problem.node_id == "2"
    assert "sharp-pack 2.0.1" in problem.hint


@pytest.mark.parametrize("mode", [2, 4])
def test_a_muted_or_bypassed_node_may_be_missing(mode: int) -> None:
    conversion = convert(saved(SOURCE, {**UNKNOWN, "mode": mode}, SAVE, links=LINKS), catalog())
    assert "2" not in conversion.workflow.nodes
    assert ("images" in conversion.workflow.nodes["3"].inputs) is (mode == 4)


def test_a_node_that_no_output_needs_may_be_missing() -> None:
    save = {**SAVE, "inputs": [{"name": "images", "type": "IMAGE", "link": 3}]}
    links = [LINKS[0], [3, 1, 0, 3, 0, "IMAGE"]]
    document = saved(SOURCE, UNKNOWN, save, links=links)
    conversion = convert(document, catalog())
    assert conversion.workflow.nodes.keys() == {"1", "3"}
    assert any("Node 2 (Sharpener) is left out" in note for note in conversion.notes)


def test_a_missing_node_without_outputs_may_be_one_that_saves() -> None:
    unknown = {**UNKNOWN, "outputs": []}
    save = {**SAVE, "inputs": [{"name": "images", "type": "IMAGE", "link": 3}]}
    links = [LINKS[0], [3, 1, 0, 3, 0, "IMAGE"]]
    with pytest.raises(InvalidWorkflow, match="Sharpener"):
        convert(saved(SOURCE, unknown, save, links=links), catalog())


def loose(class_type: str, *kinds: str, link: int | None = 1) -> dict[str, Any]:
    """A picture that is saved, and a node of that class beside it whose outputs nothing takes."""
    unknown = {
        "id": 2,
        "type": class_type,
        "inputs": [{"name": "image", "type": "IMAGE", "link": link}],
        "outputs": [{"name": kind, "type": kind, "links": None} for kind in kinds],
    }
    save = {**SAVE, "inputs": [{"name": "images", "type": "IMAGE", "link": 3}]}
    return saved(SOURCE, unknown, save, links=[LINKS[0], [3, 1, 0, 3, 0, "IMAGE"]])


@pytest.mark.parametrize(
    ("class_type", "kinds"),
    [
        ("VHS_VideoCombine", ("VHS_FILENAMES",)),
        ("ShowText|pysssss", ("STRING",)),
        ("Image Save", ("IMAGE", "STRING")),
        ("SaverOfNobody", ("FILENAMES",)),
        ("SaverOfNobody", ("STRING",)),
        ("SaverOfNobody", ()),
    ],
)
def test_a_missing_node_that_saves_or_shows_is_not_left_out(
    class_type: str, kinds: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidWorkflow, match="No node class"):
        convert(loose(class_type, *kinds), catalog())


@pytest.mark.parametrize(
    ("class_type", "kinds", "link"),
    [
        ("FaceDetailer", ("IMAGE", "IMAGE", "MASK"), 1),
        ("StepOfNobody", ("IMAGE", "STRING"), 1),
        ("NoteOfNobody", (), None),
        ("NumberOfNobody", ("NUMBER",), None),
    ],
)
def test_a_missing_node_that_only_hands_on_is_left_out(
    class_type: str, kinds: tuple[str, ...], link: int | None
) -> None:
    conversion = convert(loose(class_type, *kinds, link=link), catalog())
    assert conversion.workflow.nodes.keys() == {"1", "3"}
    assert any("is left out" in note for note in conversion.notes)


def test_without_any_output_the_missing_nodes_are_named() -> None:
    document = saved(SOURCE, UNKNOWN, links=[LINKS[0]])
    with pytest.raises(InvalidWorkflow, match="Sharpener"):
        convert(document, catalog())
