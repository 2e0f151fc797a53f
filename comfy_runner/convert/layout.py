"""Which nodes stand in which of the groups that a file's author drew around them."""

from collections.abc import Mapping
from typing import Any

from comfy_runner.convert.network import Network

TITLE_HEIGHT = 30
"""Pixels that a node's title takes above its position."""


class Grouped:
    """The groups of a file with their nodes: those with their centre in it.

    How wide a collapsed node is cannot be known from a file; its full width is taken.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        """`document` is the editor's file, whose `groups` have a title and a `bounding` each."""
        self._raw = {"": document.get("groups")}
        definitions = document.get("definitions")
        entries = definitions.get("subgraphs") if isinstance(definitions, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                self._raw.setdefault(str(entry.get("id")), entry.get("groups"))
        self._found: dict[str, list[tuple[str, frozenset[str]]]] = {}

    def of(self, network: Network) -> list[tuple[str, frozenset[str]]]:
        """Title and node ids of every group of that graph."""
        key = network.instances[0].node.type if network.instances else ""
        if key not in self._found:
            raw = self._raw.get(key)
            centres = {node_id: _centre(node.node.raw) for node_id, node in network.nodes.items()}
            self._found[key] = [
                (str(group.get("title") or ""), _inside(group.get("bounding"), centres))
                for group in (raw if isinstance(raw, list) else ())
                if isinstance(group, dict)
            ]
        return self._found[key]

    def around(self, network: Network, node_id: str) -> frozenset[str]:
        """Ids of all nodes of the groups in which that node stands."""
        return frozenset().union(*(ids for _, ids in self.of(network) if node_id in ids))


def _inside(bounding: Any, centres: Mapping[str, tuple[float, float]]) -> frozenset[str]:
    left, top, width, height = _numbers(bounding, 4) or (0.0, 0.0, 0.0, 0.0)
    return frozenset(
        node_id
        for node_id, (x, y) in centres.items()
        if left <= x < left + width and top <= y < top + height
    )


def _centre(raw: Mapping[str, Any]) -> tuple[float, float]:
    x, y = _numbers(raw.get("pos"), 2) or (0.0, 0.0)
    width, height = _numbers(raw.get("size"), 2) or (0.0, 0.0)
    flags = raw.get("flags")
    if isinstance(flags, dict) and flags.get("collapsed"):
        height = 0.0
    return x + width / 2, y - TITLE_HEIGHT + (height + TITLE_HEIGHT) / 2


def _numbers(raw: Any, count: int) -> tuple[float, ...] | None:
    """So many numbers, as a list or as an object with keys 0, 1, ..."""
    if isinstance(raw, dict):
        raw = [raw.get(str(place)) for place in range(count)]
    if not isinstance(raw, list) or len(raw) < count:
        return None
    numbers = [value for value in raw[:count] if value.__class__ in (int, float)]
    try:
        return tuple(map(float, numbers)) if len(numbers) == count else None
    except OverflowError:
        return None
