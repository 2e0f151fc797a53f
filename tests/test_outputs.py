"""What nodes report, and what the result files are called."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.graph.workflow import Node
from comfy_runner.runs.outputs import OutputFile, files, name_for, values


def entry(filename: str, kind: str = "output", subfolder: str = "") -> dict[str, str]:
    return {"filename": filename, "subfolder": subfolder, "type": kind}


@pytest.mark.parametrize("kind", ["images", "gifs", "audio", "video", "3d", "latents", "a_images"])
def test_files_are_found_under_any_name(kind: str) -> None:
    output = {kind: [entry("a.bin", subfolder="x/y")], "animated": [True]}
    assert list(files(output)) == [OutputFile("a.bin", "x/y", "output")]
    assert list(values(output)) == []


def test_previews_are_told_apart() -> None:
    found = list(files({"images": [entry("a.png", "temp"), entry("b.png")]}))
    assert [file.is_preview for file in found] == [True, False]


def test_a_text_is_a_txt_and_anything_else_a_json() -> None:
    output = {
        "text": ["a red fox"],
        "lines": ["one", "two"],
        "size": [640, 480],
        "score": [float("nan")],
        "plain": "no list",
        "nothing": [],
        "null": None,
    }
    found = {value.kind: (value.suffix, value.text) for value in values(output)}
    assert found["text"] == (".txt", "a red fox")
    assert found["plain"] == (".txt", "no list")
    assert json.loads(found["lines"][1]) == ["one", "two"]
    assert json.loads(found["size"][1]) == [640, 480]
    assert json.loads(found["score"][1]) is None
    assert found.keys() == {"text", "lines", "size", "score", "plain"}


def test_values_beside_files_are_kept() -> None:
    output = {"images": [entry("a.png"), {"caption": "a fox"}], "tags": ["fox, snow"]}
    assert [json.loads(v.text) if v.suffix == ".json" else v.text for v in values(output)] == [
        {"caption": "a fox"},
        "fox, snow",
    ]


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.sampled_from(["filename", "type", "x"]), inner)
            ),
            max_leaves=10,
        ),
    )
)
def test_any_report_can_be_read(output: dict[str, Any]) -> None:
    list(files(output))
    for value in values(output):
        if value.suffix == ".json":
            json.loads(value.text, parse_constant=pytest.fail)


def test_names_tell_the_node() -> None:
    node = Node("12:5", "SaveImage", {}, "Save the fox!")
    assert name_for(node, "12:5", "fox_00001_.png", set()) == "12.5_Save-the-fox_fox_00001.png"
    assert name_for(None, "7", "a b.mp4", set()) == "7_a-b.mp4"


@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=80), st.text(max_size=80))))
def test_names_are_safe_and_unique(parts: list[tuple[str, str, str]]) -> None:
    taken: set[str] = set()
    names = [name_for(Node(i, title, {}, title), i, made, taken) for i, title, made in parts]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
        assert len(name) < 250


def test_a_value_that_is_nested_too_deeply_is_told_as_such() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    (value,) = values({"deep": [{"value": deep}]})
    assert value.suffix == ".txt"
    assert "too deeply" in value.text
