"""The groups that a file defines, each read when the first node of its name is met."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from comfy_runner.convert import ui
from comfy_runner.convert.groups.entry import listed, read_entry
from comfy_runner.convert.groups.group import UNKNOWN, Group, Inner
from comfy_runner.convert.groups.shown import show
from comfy_runner.convert.network import EDITOR_NODES, MAX_DEPTH, Kind
from comfy_runner.convert.shapes import MISSING, Shape, Socket, Widget, shape
from comfy_runner.convert.ui import UiNode
from comfy_runner.convert.widgets import read_values
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.nodes import NodeCatalog

PREFIXES = ("workflow>", "workflow/")
"""How the types of group nodes begin; the second until front end 1.2.63."""

MAX_INNER = 20_000
"""How many nodes the group nodes of a file may stand for."""

LARGE = 100
"""A node of an unknown class counts once more for each so many inputs and values."""


class Groups:
    """The entries of a file's `extra.groupNodes`."""

    def __init__(
        self, entries: Mapping[str, Any], definitions: Collection[str], catalog: NodeCatalog
    ) -> None:
        """`definitions` are the types of instances, which are no group nodes whatever they say."""
        self._entries = entries
        self._definitions = definitions
        self._catalog = catalog
        self._read: dict[str, Group] = {}

    def of(self, node: UiNode) -> Group | None:
        """The group that a node stands for, if it is a group node.

        Raises: `InvalidWorkflow`, which names the node, for a group that holds itself or too much,
        or an entry among its nodes that is none.
        """
        name = self._name(node.type)
        return None if name is None else self._group(name, node, ())

    def _name(self, node_type: str) -> str | None:
        if not node_type.startswith(PREFIXES) or node_type in self._definitions:
            return None
        name = node_type[len(PREFIXES[0]) :]
        entry = self._entries.get(name)
        return name if isinstance(entry, dict) and isinstance(entry.get("nodes"), list) else None

    def _group(self, name: str, asker: UiNode, inside: tuple[str, ...]) -> Group:
        """The group of that name; `asker` is the node to name where it is at fault."""
        if name not in self._read:
            if name in inside:
                what = f"The group node {name!r} holds itself."
                hint = "Delete the inner one."
                raise InvalidWorkflow([asker.problem("", "endless_subgraph", what, hint)])
            if len(inside) >= MAX_DEPTH:
                what = f"Group nodes stand in each other more than {MAX_DEPTH} deep."
                raise InvalidWorkflow([asker.problem("", "too_deep", what, "Unpack some of them.")])
            entry = self._entries[name]
            inner: list[Inner] = []
            size = 0
            for node in _nodes(entry["nodes"], name, asker):
                inner.append(self._inner(node, asker, (*inside, name)))
                size += inner[-1].size
                check_size(asker, size)
            self._read[name] = show(name, read_entry(entry, inner))
        return self._read[name]

    def _inner(self, node: UiNode, asker: UiNode, inside: tuple[str, ...]) -> Inner:
        """An inner node as its class tells; what only the editor knows shows nothing yet."""
        kind = EDITOR_NODES.get(node.type)
        if kind is not None:
            return Inner(node, kind)
        name = self._name(node.type)
        if name is not None:
            return _nested(node, self._group(name, asker, inside))
        form, known = self._catalog.derived(shape, node.type), self._catalog.get(node.type)
        if form is None or known is None:
            return _unknown(node)
        names = [name for name, _ in node.outputs()][: len(form.outputs)]
        names += form.outputs[len(names) :]
        # Here required inputs come before optional ones, and what the editor adds is required.
        optional = known.definition.get("optional") or {}
        return Inner(
            node,
            Kind.REAL,
            form.sockets,
            tuple(sorted(form.widgets, key=lambda widget: widget.name in optional)),
            tuple(zip(names, form.outputs, strict=True)),
            read_values(node.type, form, node.values),
            _absent(node, form),
        )


def check_size(node: UiNode, count: int) -> None:
    """Raises: `InvalidWorkflow`, which names the node, for more inner nodes than `MAX_INNER`."""
    if count > MAX_INNER:
        what = f"The group nodes stand for more than {MAX_INNER} nodes."
        raise InvalidWorkflow([node.problem("", "too_many_nodes", what, "Use fewer of them.")])


def _nodes(entries: Sequence[Any], group: str, asker: UiNode) -> list[UiNode]:
    """The nodes of a group; their ids are their indexes."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("type") or None, str):
            what = f"Entry {number} of the nodes of group node {group!r} is no node."
            hint = "Make the group again, or delete it."
            raise InvalidWorkflow([asker.problem("", "not_a_node", what, hint)])
    numbered = [{**entry, "id": number} for number, entry in enumerate(entries)]
    return list(ui.read({"nodes": numbered}).root.nodes.values())


def _nested(node: UiNode, group: Group) -> Inner:
    """A group node inside another."""
    return Inner(
        node,
        Kind.INSTANCE,
        group.sockets,
        group.widgets,
        tuple((output.name, output.type) for output in group.outputs),
        group.values(node),
        group.doubtful,
        1 + sum(item.size for item in group.inner),
    )


def _unknown(node: UiNode) -> Inner:
    """A node of an unknown class: what the file tells of it."""
    stored = {str(number): value for number, value in enumerate(listed(node.values))}
    sockets = tuple(Socket(slot.name, slot.type) for slot in node.slots)
    widgets = tuple(Widget(name, UNKNOWN, value) for name, value in stored.items())
    size = 1 + (len(sockets) + len(widgets)) // LARGE
    outputs = tuple(node.outputs())
    return Inner(node, Kind.UNKNOWN, sockets, widgets, outputs, stored, size=size)


def _absent(node: UiNode, form: Shape) -> frozenset[str]:
    """The widgets of a class that a node's list of values has nothing for."""
    if not isinstance(node.values, list):
        return frozenset()
    bare = tuple(w._replace(default=MISSING, sent=True) for w in form.widgets if w.places)
    found = read_values(node.type, form._replace(widgets=bare), node.values)
    return frozenset(widget.name for widget in bare if found[widget.name] is MISSING)
