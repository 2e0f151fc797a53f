"""Small files in the editor's own format, and the catalogs that they are converted with."""

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import comfyui_workflow_templates_json
from graphs import fixture

from comfy_runner.comfyui import saved_catalog
from comfy_runner.convert import convert
from comfy_runner.graph.nodes import NodeCatalog

TEMPLATES = Path(comfyui_workflow_templates_json.__file__).parent / "templates"
"""The workflows that ComfyUI offers."""


@cache
def core() -> NodeCatalog:
    """Every class of ComfyUI 0.30.0, those of paid services too."""
    return saved_catalog.builtin()


@cache
def with_probes() -> NodeCatalog:
    """The same, and four classes made to try the editor with."""
    return catalog_of(recorded("synthetic.object_info"))


def catalog_of(classes: Mapping[str, Any]) -> NodeCatalog:
    """ComfyUI's own classes and these, given as `/object_info` gives them."""
    return NodeCatalog({"object_info": {**core().raw["object_info"], **classes}})


@cache
def recorded(name: str) -> dict[str, Any]:
    """A file of tests/fixtures/editor; nothing may change what it holds."""
    found: dict[str, Any] = json.loads(gzip.decompress(fixture(f"editor/{name}.json.gz")))
    return found


def sent(
    document: Mapping[str, Any], catalog: NodeCatalog | None = None, **how: Any
) -> dict[str, dict[str, Any]]:
    """What is sent for a document: id to node in API format."""
    return convert(document, catalog or core(), **how).workflow.to_json()


def ui(
    node_id: Any, node_type: str, values: Any = None, *, mode: int = 0, **rest: Any
) -> dict[str, Any]:
    """A node; `links` in `rest` is input name to link id, anything else stands in the node."""
    links = rest.pop("links", {})
    inputs = [{"name": name, "type": "*", "link": link} for name, link in links.items()]
    stored = {} if values is None else {"widgets_values": values}
    return {
        "id": node_id,
        "type": node_type,
        "mode": mode,
        "inputs": inputs,
        **stored,
        **rest,
    }


def document(
    nodes: Sequence[Any], links: Any = (), subgraphs: Sequence[Any] = (), **rest: Any
) -> dict[str, Any]:
    """A file; links are `(id, origin, slot, target, slot, type)`."""
    numbers = [n["id"] for n in nodes if isinstance(n, dict) and isinstance(n.get("id"), int)]
    return {
        "last_node_id": max(numbers, default=0),
        "nodes": list(nodes),
        "links": (
            [list(link) if isinstance(link, tuple) else link for link in links]
            if isinstance(links, list | tuple)
            else links
        ),
        "version": 0.4,
        **({"definitions": {"subgraphs": list(subgraphs)}} if subgraphs else {}),
        **rest,
    }


def subgraph(
    key: str,
    nodes: Sequence[Any],
    links: Sequence[tuple[Any, ...]] = (),
    inputs: Sequence[tuple[str, str]] = (),
    outputs: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """A definition; its links come from -10 where they come from an input, and go to -20."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")

    def ports(given: Sequence[tuple[str, str]], end: int, outside: int) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "type": kind,
                "linkIds": [link[0] for link in links if link[end : end + 2] == (outside, number)],
            }
            for number, (name, kind) in enumerate(given)
        ]

    return {
        "id": key,
        "name": key,
        "nodes": list(nodes),
        "links": [dict(zip(names, link, strict=True)) for link in links],
        "inputs": ports(inputs, 1, -10),
        "outputs": ports(outputs, 3, -20),
    }


def empty_image(node_id: Any, values: Any = (64, 48, 1, 0), **rest: Any) -> dict[str, Any]:
    """A node that makes a picture."""
    return ui(node_id, "EmptyImage", list(values) if isinstance(values, tuple) else values, **rest)


def save_image(node_id: Any, link: Any, prefix: Any = "p", **rest: Any) -> dict[str, Any]:
    """A node that saves what the link brings."""
    return ui(node_id, "SaveImage", [prefix], links={"images": link}, **rest)


def invert(node_id: Any, link: Any, **rest: Any) -> dict[str, Any]:
    """A node that takes a picture and gives one."""
    return ui(node_id, "ImageInvert", links={"image": link}, **rest)
