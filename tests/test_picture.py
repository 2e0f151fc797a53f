"""The picture of a graph: whole, readable, and of a bounded size."""

import json
import math
import xml.etree.ElementTree as ET
from functools import cache
from importlib import resources
from typing import Any

import pytest
from graphs import bundled, catalog, node
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.convert.formats import read_workflow
from comfy_runner.graph.workflow import parse
from comfy_runner.publishing.picture import TALLEST, WIDEST, draw
from comfy_runner.publishing.placing import MAX_NODES, Scene, place

SVG = "{http://www.w3.org/2000/svg}"

TEMPLATES = (
    "flux_schnell",
    "02_qwen_Image_edit_subgraphed",
    "video_wan2_2_14B_s2v",
    "audio_stable_audio_example",
    "hidream_i1_dev",
)


@cache
def template(name: str) -> dict[str, Any]:
    folder = resources.files("comfyui_workflow_templates_json") / "templates"
    loaded: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return loaded


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


def editor(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An editor's file with these nodes, all of a class without inputs."""
    made = [
        {"id": number, "type": "EmptyImage", "pos": [0, 0], "size": [200, 100], "outputs": []}
        | {"inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}]}
        | each
        for number, each in enumerate(nodes, 1)
    ]
    return {"nodes": made, "links": [], "version": 0.4, **more}


def drawn(document: dict[str, Any], **shown: str) -> str:
    """The picture of a document whose nodes all run; `shown` with _ for the dot."""
    workflow = parse({str(n["id"]): node(n["type"]) for n in document["nodes"]})
    return draw(document, workflow, {k.replace("_", "."): v for k, v in shown.items()})


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_picture_of_a_template_shows_every_node_that_is_no_note(name: str) -> None:
    document = template(name)
    workflow = read_workflow(document, catalog()).workflow
    scene = place(document, workflow)
    svg = draw(document, workflow)
    shown = {str(n["id"]) for n in document["nodes"] if n.get("inputs") or n.get("outputs")}
    assert {box.id for box in scene.boxes} == shown
    assert len(ET.fromstring(svg).findall(f"{SVG}g")) == len(shown)  # noqa: S314
    assert len(scene.wires) == sum(
        slot.get("link") is not None for n in document["nodes"] for slot in n.get("inputs", ())
    )


def test_the_picture_of_an_api_graph_names_nodes_classes_and_values() -> None:
    document = bundled("text_to_picture")
    found = texts(draw(document, parse(document), {"4.text": "prompt", "6.width": "width"}))
    assert "Positive prompt" in found
    assert "CLIPTextEncode" in found
    assert "steps: 12" in found
    assert "width: 128" in found
    assert any(line.startswith("prompt (text): a red circle") for line in found)


def test_boxes_of_an_api_graph_do_not_overlap_and_links_go_to_the_right() -> None:
    for name in ("text_to_picture", "upscale"):
        scene = place(bundled(name), parse(bundled(name)))
        assert_apart(scene)
        boxes = {box.id: box for box in scene.boxes}
        assert scene.wires
        for wire in scene.wires:
            assert boxes[wire.origin].x + boxes[wire.origin].width < boxes[wire.target].x


def assert_apart(scene: Scene) -> None:
    for one in scene.boxes:
        for other in scene.boxes:
            beside = one.x + one.width <= other.x or other.x + other.width <= one.x
            above = one.y + one.height <= other.y or other.y + other.height <= one.y
            assert one is other or beside or above


def test_an_input_inside_a_subgraph_stands_at_its_instance() -> None:
    document = template("02_qwen_Image_edit_subgraphed")
    workflow = read_workflow(document, catalog()).workflow
    inner = next(key for key in workflow.nodes if ":" in key)
    svg = draw(document, workflow, {f"{inner}.text": "my_prompt"})
    assert "my_prompt" in texts(svg)


def test_an_input_of_a_collapsed_node_is_named_below_it() -> None:
    document = editor({"flags": {"collapsed": True}})
    assert "how_wide" in texts(drawn(document, **{"1_width": "how_wide"}))


def test_groups_of_the_file_are_drawn_and_strange_ones_left_out() -> None:
    groups: list[Any] = [
        {"title": "Step 1", "bounding": [-10, -50, 300, 200], "color": "#3f789e"},
        {"title": "No place"},
        {"title": "Flat", "bounding": [0, 0, 0, 0]},
        {"title": "Bad colour", "bounding": [0, 0, 9, 9], "color": '"/><script>'},
        "none",
    ]
    svg = drawn(editor({}, groups=groups))
    assert "Step 1" in texts(svg)
    assert "No place" not in svg
    assert "Flat" not in svg
    assert "script" not in svg


def test_what_does_not_run_is_faint() -> None:
    document = editor({"mode": 0}, {"mode": 4, "pos": [300, 0]})
    workflow = parse({"1": node("EmptyImage")})
    groups = ET.fromstring(draw(document, workflow)).findall(f"{SVG}g")  # noqa: S314
    assert [group.get("class") for group in groups] == [None, "o"]


@given(st.text(), st.text())
def test_any_title_and_any_value_make_a_whole_picture(title: str, value: str) -> None:
    document = {"1": node("EmptyImage", title, text=value)}
    svg = draw(document, parse(document), {"1.text": "prompt"}, title=title)
    ET.fromstring(svg)  # noqa: S314
    svg.encode()


@pytest.mark.parametrize("broken", [None, [1], ["a", 0], [math.nan, 0], [1e300, 0], [True, 1]])
def test_a_file_without_usable_positions_is_laid_out(broken: Any) -> None:
    document = editor({"pos": broken}, {"pos": [10, 20]})
    workflow = parse({"1": node("EmptyImage"), "2": node("EmptyImage")})
    scene = place(document, workflow)
    assert_apart(scene)
    assert len(scene.boxes) == 2


def test_positions_may_be_objects() -> None:
    document = editor({"pos": {"0": 70, "1": 90}, "size": {"0": 210, "1": 80}})
    (box,) = place(document, parse({"1": node("EmptyImage")})).boxes
    assert (box.x, box.y, box.width) == (70, 60, 210)


def test_a_circle_of_links_is_drawn() -> None:
    graph = {
        "1": node("ImageInvert", image=["2", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0]),
    }
    scene = place(graph, parse(graph))
    assert len(scene.boxes) == len(scene.wires) == 3
    assert_apart(scene)


def test_a_large_graph_gives_a_picture_of_bounded_size() -> None:
    long = "word " * 2000
    graph = {"0": node("EmptyImage", text=long)} | {
        str(n): node("ImageBlend", long, image1=[str(n - 1), 0], image2=[str(n // 2), 0], text=long)
        for n in range(1, MAX_NODES + 100)
    }
    svg = draw(graph, parse(graph))
    root = ET.fromstring(svg)  # noqa: S314
    assert len(root.findall(f"{SVG}g")) == MAX_NODES
    assert "and 100 more nodes" in texts(svg)
    assert float(root.get("width", "")) <= WIDEST
    assert float(root.get("height", "")) <= TALLEST
    assert len(svg) < 1_500_000


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    document = bundled("text_to_picture")
    svg = draw(document, parse(document))
    assert svg.count("http") == 1  # the name space
    assert not any(word in svg for word in ("<script", "href", "@import", "url(", "<image"))
