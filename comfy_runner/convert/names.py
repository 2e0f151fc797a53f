"""Values of widgets by the name of their node, for texts with `%Node.widget%`."""

from collections.abc import Iterator
from typing import Any

from comfy_runner.convert.network import NetNode, Network
from comfy_runner.convert.shapes import MISSING


class Names:
    """The nodes of a file by name, those of all subgraphs included."""

    def __init__(self, root: Network) -> None:
        self._root = root
        self._found: dict[str, NetNode] | None = None

    def value(self, name: str, widget: str) -> Any:
        """What the named node's widget holds now.

        A name is a node's property `Node name for S&R`, or else its title; the first node counts,
        those inside an instance before it (front end 1.47.12 `utils/searchAndReplace.ts`).

        Raises: `KeyError` where there is no such node or widget.
        """
        if self._found is None:
            self._found = self._by_name()
        value = self._found[name].held[widget]
        if value is MISSING:
            raise KeyError(widget)
        return value

    def _by_name(self) -> dict[str, NetNode]:
        nodes = list(_all_nodes(self._root))
        found: dict[str, NetNode] = {}
        for node in nodes:
            name = node.node.properties.get("Node name for S&R")
            if isinstance(name, str):
                found.setdefault(name, node)
        for node in nodes:
            title = node.node.title or (node.shape.title if node.shape else node.node.type)
            found.setdefault(title, node)
        return found


def _all_nodes(network: Network) -> Iterator[NetNode]:
    for node in network.nodes.values():
        if node.network is not None:
            yield from _all_nodes(node.network)
        yield node
