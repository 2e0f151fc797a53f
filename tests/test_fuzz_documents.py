"""Documents of every odd shape: each is a plan, or one clear error of ours."""

import copy
import json
import random
from contextlib import suppress
from typing import Any

import pytest
from editor_files import TEMPLATES
from graphs import bundled, catalog, node, picture
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comfy_runner.documents import source
from comfy_runner.errors import CallerError
from comfy_runner.graph.document import WRAPPERS
from comfy_runner.runs.plan import Plan, prepare
from comfy_runner.weights.manifest import Manifest

HALF = "\ud83d"
"""Half of an emoji, as a text that was cut in the middle of one ends with."""

TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            *("", "1", "-1", "1e999", "1:2", "a.b", "\0", HALF, "../x", "__proto__", "__class__"),
            *("{a.__init__}", "%s%n", "\u202eevil", "nodes", "class_type", "inputs", "links"),
            *("EmptyImage", "SaveImage", "LoadImage", "Reroute", "PrimitiveNode", "Note"),
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**400]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(TEXTS | st.sampled_from(WRAPPERS), inner, max_size=4),
    ),
    max_leaves=12,
)

EDITOR = {
    "nodes": [
        {"id": 1, "type": "EmptyImage", "widgets_values": [64, 48, 1, 0], "inputs": []},
        {"id": 2, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}]},
        {
            "id": 3,
            "type": "SaveImage",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 2}],
            "widgets_values": ["x"],
            "properties": {"models": [{"name": "a.safetensors", "url": "https://a.b/c"}]},
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    "extra": {"linearData": {"inputs": [[1, "color"]], "outputs": [3]}},
    "version": 0.4,
}
"""A whole file of the editor, small enough for a few changes to hit each part of it."""

SOUND = [picture(), EDITOR, bundled("text_to_picture"), bundled("upscale")]

SMALL_TEMPLATES = sorted(path for path in TEMPLATES.glob("*.json") if path.stat().st_size < 30_000)


def prepared(document: Any, **more: Any) -> Plan:
    """The plan for ComfyUI's own classes, no known weights and empty model folders."""
    nothing: Any = lambda _folder, _known: ()  # noqa: E731
    return prepare(document, catalog=catalog(), manifest=Manifest(), on_disk=nothing, **more)


def planned(document: Any, **more: Any) -> Plan | None:
    """The plan; None where the document was refused, with an error that can be told."""
    try:
        plan = prepared(document, **more)
    except CallerError as err:
        told = err
    else:
        json.dumps(plan.as_json())
        return plan
    assert told.problems
    assert all(problem.code and problem.what for problem in told.problems)
    json.dumps(told.as_json())
    return None


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every object and list within a value, with each of its keys."""
    match value:
        case dict():
            own = [(value, key) for key in value]
        case list():
            own = [(value, number) for number in range(len(value))]
        case _:
            return []
    return own + [place for holder, key in own for place in places(holder[key])]


def damage(document: Any, chance: random.Random, odd: list[Any]) -> Any:
    """A copy with some places removed, replaced by odd values, doubled, or exchanged."""
    damaged = copy.deepcopy(document)
    for value in odd:
        found = places(damaged)
        if not found:
            return value
        holder, key = chance.choice(found)
        match chance.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(value)] = holder.pop(key)
            case 2:
                other, there = chance.choice(found)
                # A copy, or a graph could come to hold itself, which no JSON does.
                holder[key] = copy.deepcopy(other[there])
            case 3 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case _:
                holder[key] = value
    return damaged


@given(VALUES)
def test_any_json_is_a_plan_or_refused(document: Any) -> None:
    planned(json.dumps(document))


@settings(max_examples=60)
@given(st.sampled_from(SOUND), st.randoms(use_true_random=False), st.lists(VALUES, max_size=4))
def test_a_damaged_document_is_a_plan_or_refused(
    document: Any, chance: random.Random, odd: list[Any]
) -> None:
    planned(json.dumps(damage(document, chance, odd)))


@settings(max_examples=20)
@given(
    st.sampled_from(SMALL_TEMPLATES),
    st.randoms(use_true_random=False),
    st.lists(VALUES, min_size=1, max_size=6),
)
def test_a_damaged_template_is_a_plan_or_refused(
    path: Any, chance: random.Random, odd: list[Any]
) -> None:
    planned(damage(json.loads(path.read_bytes()), chance, odd), seed=7)


@given(
    st.sampled_from(SOUND[:2]),
    st.dictionaries(
        st.sampled_from(["1.width", "1.color", "2.filename_prefix", "color", "SaveImage.images"])
        | TEXTS,
        VALUES,
        max_size=4,
    ),
    st.lists(TEXTS, max_size=3),
)
@example(picture(), {"1.width": float("nan")}, [])
@example(picture(), {"1.width": 10**400}, [])
@example(picture(), {HALF: HALF}, [HALF])
def test_any_value_fits_or_is_refused(document: Any, values: Any, files: list[str]) -> None:
    planned(document, values=values, files=files, seed=1)


@given(st.text(max_size=30) | st.binary(max_size=60), st.sampled_from(["{", "[", '"', "data:", ""]))
@example("data:,", "")
@example("data:application/json;base64,!!", "")
@example(b"\xff\xfe{", "")
def test_any_text_is_a_graph_or_refused(text: str | bytes, begin: str) -> None:
    given_text = begin + text if isinstance(text, str) else begin.encode() + text
    if isinstance(given_text, str) and given_text.lower().startswith(("http:", "https:")):
        return
    with suppress(CallerError):
        assert source.read(given_text) is not None


@pytest.mark.parametrize("depth", [90, 110, 400, 990, 1400, 2000, 5000, 200_000])
@pytest.mark.parametrize(
    "document",
    [
        "%s",
        '{"prompt": %s}',
        '{"1": {"class_type": "PrimitiveString", "inputs": {"value": %s}}}',
        '{"1": {"class_type": "PreviewAny", "inputs": {}, "_meta": {"title": %s}}}',
        '{"nodes": [{"id": 1, "type": "SaveImage", "widgets_values": %s}], "links": []}',
        '{"nodes": [{"id": 1, "type": "SaveImage", "properties": %s}], "links": []}',
        '{"nodes": [], "links": [], "definitions": {"subgraphs": %s}, "extra": %s}',
        '{"nodes": %s, "links": %s}',
    ],
)
def test_any_depth_is_read_or_refused(document: str, depth: int) -> None:
    for left, right in ("[]", ('{"a":', "}")):
        deep = f"{left * depth}1{right * depth}"
        assert planned(document.replace("%s", deep)) is None


@pytest.mark.parametrize("depth", [90, 400, 990])
def test_a_deep_value_is_refused_by_name(depth: int) -> None:
    values = json.loads('{"1.width": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(CallerError, match=r"input 1\.width"):
        prepared(picture(), values=values)


def test_a_name_that_was_cut_in_the_middle_of_a_letter_is_no_obstacle() -> None:
    graph = picture() | {"3": node("PreviewAny", f"cut {HALF}", source=["1", 0])}
    plan = planned(json.dumps(graph))
    assert plan is not None
    assert plan.outputs == ("2", "3")
