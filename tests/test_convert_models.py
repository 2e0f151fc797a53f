"""What an editor's file says of its models, by the ids of the converted workflow."""

from typing import Any

import pytest
from graphs import catalog, picture

from comfy_runner.convert import convert
from comfy_runner.convert.formats import read_workflow
from comfy_runner.convert.models import ModelHint

HASH = "ab" * 32


def model(name: str, **more: Any) -> dict[str, Any]:
    """An entry of `properties.models`."""
    return {"name": name, "url": f"https://host/{name}", "directory": "vae", **more}


def loader(node_id: int, *models: Any, mode: int = 0) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": "VAELoader",
        "mode": mode,
        "widgets_values": ["a.safetensors"],
        "outputs": [{"name": "VAE", "type": "VAE", "links": []}],
        "properties": {"models": list(models)},
    }


def instance(node_id: int, definition: str, mode: int = 0) -> dict[str, Any]:
    return {"id": node_id, "type": definition, "mode": mode, "inputs": [], "outputs": []}


def definition(ident: str, *nodes: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": ident,
        "name": ident,
        "nodes": list(nodes),
        "links": [],
        "inputs": [],
        "outputs": [],
    }


def hints(*nodes: dict[str, Any], **top: Any) -> tuple[ModelHint, ...]:
    document = {"nodes": list(nodes), "links": [], "version": 0.4, **top}
    return convert(document, catalog()).models


def test_a_node_says_where_its_models_come_from() -> None:
    said = hints(loader(3, model("a.safetensors", hash=HASH.upper(), hash_type="SHA256")))
    url = "https://host/a.safetensors"
    assert said == (ModelHint("a.safetensors", url, "vae", HASH, "3"),)
    assert url not in repr(said)


def test_the_file_says_it_too() -> None:
    said = hints(loader(3, model("a.pt")), models=[model("b.pt", directory=5), {"url": "x"}, 7])
    assert [(h.name, h.directory, h.node_id) for h in said] == [
        ("a.pt", "vae", "3"),
        ("b.pt", "", ""),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        model("a.pt", hash=HASH),
        model("a.pt", hash=HASH, hash_type="BLAKE3"),
        model("a.pt", hash="ab", hash_type="SHA256"),
        model("a.pt", hash=7, hash_type=8),
    ],
)
def test_only_a_whole_sha256_counts(entry: dict[str, Any]) -> None:
    assert [hint.sha256 for hint in hints(loader(3, entry))] == [None]


@pytest.mark.parametrize("entry", [None, "a.pt", [], {}, {"name": ""}, {"name": 3}])
def test_what_is_no_entry_is_passed_over(entry: Any) -> None:
    assert [hint.name for hint in hints(loader(3, entry, model("a.pt")))] == ["a.pt"]


@pytest.mark.parametrize("properties", [None, [], {"models": None}, {"models": {"name": "a"}}])
def test_properties_of_any_shape_can_be_read(properties: Any) -> None:
    assert hints({**loader(3), "properties": properties}) == ()


@pytest.mark.parametrize("mode", [2, 4])
def test_muted_and_bypassed_nodes_say_nothing(mode: int) -> None:
    nodes = [loader(3, model("a.pt"), mode=mode), loader(4, model("b.pt")), instance(5, "D", mode)]
    definitions = {"subgraphs": [definition("D", loader(8, model("c.pt")))]}
    assert [hint.name for hint in hints(*nodes, definitions=definitions)] == ["b.pt"]


def test_inner_nodes_have_the_ids_of_the_converted_workflow() -> None:
    definitions = {
        "subgraphs": [
            definition("Outer", instance(20, "Inner"), loader(21, model("a.pt"))),
            definition("Inner", loader(30, model("b.pt")), loader(1, model("c.pt"))),
        ]
    }
    document = {
        "nodes": [instance(1, "Outer"), instance(2, "Outer")],
        "links": [],
        "version": 0.4,
        "last_node_id": 2,
        "definitions": definitions,
    }
    made = convert(document, catalog())
    said = {hint.node_id: hint.name for hint in made.models}
    assert said.keys() <= made.workflow.nodes.keys()
    # The inner 1 has the id of a node outside, so the editor gives it another.
    assert said == {
        **{f"{number}:20:30": "b.pt" for number in (1, 2)},
        **{f"{number}:20:31": "c.pt" for number in (1, 2)},
        **{f"{number}:21": "a.pt" for number in (1, 2)},
    }


def test_an_api_export_says_nothing() -> None:
    assert read_workflow(picture(), catalog()).models == ()
