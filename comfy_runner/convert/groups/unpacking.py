"""Puts subgraphs in place of the group nodes of a file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_runner.convert import ui
from comfy_runner.convert.groups.defined import Groups, check_size
from comfy_runner.convert.groups.entry import listed
from comfy_runner.convert.groups.group import Group, Inner, Place
from comfy_runner.convert.network import Kind
from comfy_runner.convert.shapes import MISSING
from comfy_runner.convert.ui import (
    INPUT_NODE,
    OUTPUT_NODE,
    Definition,
    Graph,
    Port,
    Slot,
    UiDocument,
    UiLink,
    UiNode,
)
from comfy_runner.graph.nodes import NodeCatalog


def unpack(document: UiDocument, catalog: NodeCatalog) -> UiDocument:
    """A copy in which an instance of a definition of its own stands for every group node.

    The ids of nodes must be unique over the file already (`ids.renumber`), since the editor opens
    the subgraphs first. Then each group node's inner nodes get the next free ids, and its instance
    the one after them. A group node without an entry in `extra.groupNodes` stays as it is, a node
    of an unknown class.

    Differs from the front end where that loses what the file holds:

    - a muted or bypassed group node stays so;
    - choices that a class gives as a list are widgets, as in the editors that saved such files;
    - connections into converted widgets and into reroutes inside are kept, in any order of slots;
    - a value that the group node lacks is the inner node's own, not the class's default;
    - group nodes inside subgraphs stay there, and those inside group nodes are unpacked too;
    - nodes of unknown classes are kept, so that they can be named.

    Raises: `InvalidWorkflow` for a group node that holds itself or too much, or an entry among its
    nodes that is none.
    """
    entries = document.extra.get("groupNodes")
    if not isinstance(entries, dict) or not entries:
        return document
    return _Unpacking(document, Groups(entries, document.definitions, catalog)).run()


class _Unpacking:
    """Goes through the graphs of a file, and through those that it makes."""

    def __init__(self, document: UiDocument, groups: Groups) -> None:
        self._document = document
        self._groups = groups
        self._definitions = dict(document.definitions)
        self._waiting = list(self._definitions)
        graphs = [document.root, *(known.graph for known in document.definitions.values())]
        self._counter = max(
            [document.last_node_id, *(ui.number(key) or 0 for g in graphs for key in g.nodes)]
        )
        self._made = 0

    def run(self) -> UiDocument:
        root = self._unpacked(self._document.root)
        for key in self._waiting:  # it grows on the way
            graph = self._unpacked(self._definitions[key].graph)
            self._definitions[key] = self._definitions[key]._replace(graph=graph)
        return self._document._replace(
            root=root, definitions=self._definitions, last_node_id=self._counter
        )

    def _unpacked(self, graph: Graph) -> Graph:
        """The graph with instances in place of its group nodes, behind the other nodes."""
        instances: dict[str, tuple[UiNode, Mapping[int, int]]] = {}
        for key, node in graph.nodes.items():
            group = self._groups.of(node)
            if group is not None:
                instances[key] = self._instance(group, node), _output_numbers(group, node)
        if not instances:
            return graph
        nodes = {key: node for key, node in graph.nodes.items() if key not in instances}
        nodes |= {made.id: made for made, _ in instances.values()}
        links = dict(graph.links)
        for key, link in graph.links.items():
            if link.origin in instances:
                made, numbers = instances[link.origin]
                slot = numbers.get(link.slot, link.slot)
                links[key] = link._replace(origin=made.id, slot=slot)
        return Graph(nodes, links)

    def _instance(self, group: Group, node: UiNode) -> UiNode:
        """An instance in place of a group node; its definition is kept."""
        self._made += sum(1 if item.kind is Kind.INSTANCE else item.size for item in group.inner)
        check_size(node, self._made)
        ids = [str(self._counter + n) for n in range(1, len(group.inner) + 1)]
        self._counter += len(ids) + 1
        key = f"{node.type}#{self._counter}"
        linked = _linked_inputs(group, node)
        self._definitions[key] = _definition(key, group, ids, linked, group.values(node))
        self._waiting.append(key)
        slots = tuple(slot._replace(name=name) for name, slot in linked.items())
        raw = {**node.raw, "title": node.title or group.name}
        return UiNode(str(self._counter), key, node.mode, slots, None, raw)


def _output_numbers(group: Group, node: UiNode) -> dict[int, int]:
    """Number of an output in the file to the group's number for the output of the same name."""
    names = [name for name, _ in node.outputs()]
    often = Counter(names)
    known = {output.name: number for number, output in enumerate(group.outputs)}
    return {
        number: known[name]
        for number, name in enumerate(names)
        if name in known and often[name] == 1
    }


def _linked_inputs(group: Group, node: UiNode) -> dict[str, Slot]:
    """The group node's connected inputs by the group's names for them.

    Where the file has other names, but as many sockets, they go by their order.
    """
    names = {slot.name for slot in node.slots}
    sockets = [slot for slot in node.slots if not slot.is_widget]
    by_order = len(sockets) == len(group.sockets)
    linked = {
        slot.name: slot
        for slot in node.slots
        if slot.link is not None and group.place(slot.name) is not None
    }
    for slot, socket in zip(sockets, group.sockets, strict=True) if by_order else ():
        if slot.link is not None and slot.name not in linked and socket.name not in names:
            linked[socket.name] = slot
    return linked


def _definition(
    key: str,
    group: Group,
    ids: Sequence[str],
    linked: Mapping[str, Slot],
    values: Mapping[str, Any],
) -> Definition:
    """The inside of one group node.

    Every socket and widget is an input, since a bypassed group node passes them on, but only what
    is connected leads inside: the values of widgets stand in the inner nodes.
    """
    links: dict[str, UiLink] = {}
    connected: list[dict[str, str]] = [{} for _ in ids]

    def connect(link_id: str, origin: str, slot: int, target: Place, kind: str) -> None:
        links[link_id] = UiLink(origin, slot, ids[target.node], 0, kind)
        connected[target.node][target.name] = link_id

    for number, link in enumerate(group.links):
        connect(str(number), ids[link.origin], link.slot, link.target, link.type)
    ports = {socket.name: socket.type for socket in group.sockets if socket.autogrow is None}
    ports |= {widget.name: widget.type for widget in group.widgets}
    ports |= {name: slot.type for name, slot in linked.items() if name not in ports}
    inputs: list[Port] = []
    for number, (name, kind) in enumerate(ports.items()):
        place = group.place(name) if name in linked else None
        inner: tuple[str, ...] = ()
        if place is not None:
            inner = (f"in {number}",)
            connect(inner[0], INPUT_NODE, number, place, kind)
        inputs.append(Port(name, kind, inner, ""))
    outputs: list[Port] = []
    for number, output in enumerate(group.outputs):
        inner = (f"out {number}",)
        links[inner[0]] = UiLink(ids[output.node], output.slot, OUTPUT_NODE, number, output.type)
        outputs.append(Port(output.name, output.type, inner, ""))
    changed: list[dict[str, Any]] = [{} for _ in ids]
    for name, value in values.items():
        place = group.place(name)
        if place is not None and value is not MISSING:
            changed[place.node][place.name] = value
    nodes = {
        node_id: item.node._replace(
            id=node_id,
            slots=_with_links(item.node.slots, its_links),
            values=_with_values(item, its_values),
        )
        for node_id, item, its_links, its_values in zip(
            ids, group.inner, connected, changed, strict=True
        )
    }
    return Definition(key, group.name, Graph(nodes, links), tuple(inputs), tuple(outputs))


def _with_links(slots: Sequence[Slot], connected: Mapping[str, str]) -> tuple[Slot, ...]:
    """The slots with these connections and no others; what the file lacks comes last."""
    kept = [slot._replace(link=connected.get(slot.name)) for slot in slots]
    names = {slot.name for slot in slots}
    new = (Slot(name, "*", link, False) for name, link in connected.items() if name not in names)
    return (*kept, *new)


def _with_values(item: Inner, changed: Mapping[str, Any]) -> Any:
    """An inner node's `widgets_values` with those that the group node has for it."""
    stored = item.node.values
    if all(item.held.get(name, MISSING) is value for name, value in changed.items()):
        return stored
    held = {name: value for name, value in item.held.items() if value is not MISSING}
    match item.kind:
        case Kind.PRIMITIVE:
            return [changed["value"], *listed(stored)[1:]]
        case Kind.UNKNOWN:
            return list({**held, **changed}.values())
        case _:
            return {**(stored if isinstance(stored, dict) else {}), **held, **changed}
