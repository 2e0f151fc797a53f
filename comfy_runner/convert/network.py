"""The graphs of a file as the editor holds them: nodes built, values and links in place."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from operator import itemgetter
from typing import Any, NamedTuple

from comfy_runner.convert.shapes import Shape, contradicted, shape
from comfy_runner.convert.ui import (
    BYPASS,
    INPUT_NODE,
    NEVER,
    Definition,
    Graph,
    Port,
    UiDocument,
    UiLink,
    UiNode,
)
from comfy_runner.convert.widgets import has_socket, read_values
from comfy_runner.errors import InvalidWorkflow, Problem
from comfy_runner.graph.nodes import NodeCatalog

MAX_DEPTH = 50
"""How deep subgraphs may stand in each other."""

MAX_NODES = 50_000
"""How many nodes a file may have once its subgraphs are written out."""


class Kind(Enum):
    """What a node is to the conversion."""

    REAL = auto()
    """A node of a known class: it is sent."""
    UNKNOWN = auto()
    """A node of a class that is not in the catalog."""
    INSTANCE = auto()
    """It stands for the nodes of a definition."""
    PASS = auto()
    """Output k is what input k gets: a reroute."""
    PRIMITIVE = auto()
    """It writes its value into the widgets that it is connected to."""
    SET = auto()
    """It passes on what it gets, and every `GET` of its name gives the same."""
    GET = auto()
    """It gives what the nearest `SET` of its name gets."""
    SENDER = auto()
    """It spreads what it gets over inputs that it is not connected to; it is never sent."""
    NOTE = auto()
    """It is only there to be looked at or clicked on."""


EDITOR_NODES = {
    "Reroute": Kind.PASS,
    "Note": Kind.NOTE,
    "MarkdownNote": Kind.NOTE,
    "PrimitiveNode": Kind.PRIMITIVE,
}
"""Nodes that only the editor knows (`extensions/core/`)."""

type ValueRule = Callable[[UiNode, Shape, dict[str, Any]], dict[str, Any]]
"""From a node, its shape and the values handed out by the editor's own rules to those sent."""


class Packs(NamedTuple):
    """What the front ends of node packs add to the editor's rules."""

    kinds: Mapping[str, Kind]
    """Nodes that only a front end knows. An installed class of the same name wins, but not over a
    `SENDER`, whose class does nothing."""
    sets: Mapping[str, str]
    """Type of a `GET` to the type of its `SET`."""
    successors: Mapping[str, str]
    """Type to the class that has its place where its own is not installed."""
    value_rule: Callable[[str], ValueRule | None]
    """The rule for the values of a type's nodes."""


NO_PACKS = Packs({}, {}, {}, lambda _: None)


@dataclass(slots=True, eq=False)
class NetNode:
    """One node of a network; filled in phase by phase, so it is not frozen."""

    node: UiNode
    kind: Kind
    shape: Shape | None = None
    """Of a `REAL` node."""
    network: "Network | None" = None
    """What an `INSTANCE` stands for."""
    links: dict[str, str] = field(default_factory=dict)
    """Input name to the id of the link that ends there."""
    values: dict[str, Any] = field(default_factory=dict)
    """Widget name to value, of a `REAL` node."""
    promoted: dict[str, Any] = field(default_factory=dict)
    """Input name to value, for each input of an `INSTANCE` that has a widget."""
    proxied: dict[tuple[str, str], str] = field(default_factory=dict)
    """Id and widget of an inner node, as `proxyWidgets` names them, to the input for it."""
    successor: str = ""
    """Of a `PRIMITIVE`: the input of the definition that took its place."""
    signal: tuple[str, str] = ("", "")
    """Of a `SET`, and of the one that a `GET` looks for: its type and name."""

    @property
    def is_off(self) -> bool:
        """Whether it is muted or bypassed."""
        return self.node.mode in (NEVER, BYPASS)

    @property
    def held(self) -> dict[str, Any]:
        """Name to value of each widget that it shows."""
        return self.promoted if self.kind is Kind.INSTANCE else self.values


@dataclass(slots=True, eq=False)
class Network:
    """The root, or one definition; what is promoted out of it may add inputs, so not frozen."""

    nodes: dict[str, NetNode]
    links: dict[str, UiLink]
    inputs: list[Port]
    outputs: list[Port]
    name: str = ""
    """What the author calls the definition."""
    size: int = 0
    """How many nodes there are with those inside its instances."""
    instances: list[NetNode] = field(default_factory=list)
    """Every node that stands for this network."""
    targets: dict[str, tuple[NetNode, str]] = field(init=False)
    """Link id to the node and the input where it ends."""
    fed: dict[int, list[str]] = field(init=False)
    """Number of an input to its links inside, those that the definition lists first."""
    sets: dict[tuple[str, str], NetNode] = field(init=False)
    """Type and name of each `SET`, to the first of them in the file's order."""

    def __post_init__(self) -> None:
        self.sets = {}
        for node in self.nodes.values():
            if node.kind is Kind.SET:
                self.sets.setdefault(node.signal, node)
        self.targets = {
            link_id: (node, name)
            for node in self.nodes.values()
            for name, link_id in node.links.items()
        }
        self.fed = {number: list(port.link_ids) for number, port in enumerate(self.inputs)}
        for link_id, link in self.links.items():
            if link.origin == INPUT_NODE:
                listed = self.fed.setdefault(link.slot, [])
                if link_id not in listed:
                    listed.append(link_id)

    def feed(self, node: NetNode, name: str) -> None:
        """Connect the newest input to a node's input, in place of what is connected there."""
        link_id, number = f"promoted:{len(self.links)}", len(self.inputs) - 1
        self.targets.pop(node.links.get(name, ""), None)
        self.links[link_id] = UiLink(INPUT_NODE, number, node.node.id, 0, "*")
        self.fed.setdefault(number, []).append(link_id)
        self.targets[link_id] = (node, name)
        node.links[name] = link_id

    def connect(self, link: UiLink, node: NetNode, name: str) -> None:
        """Add a link that ends at a node's input, in place of what is connected there."""
        link_id = f"added:{len(self.links)}"
        self.targets.pop(node.links.get(name, ""), None)
        self.links[link_id] = link
        if link.origin == INPUT_NODE:
            self.fed.setdefault(link.slot, []).append(link_id)
        self.targets[link_id] = (node, name)
        node.links[name] = link_id


def driven(network: Network, primitive: NetNode) -> list[tuple[NetNode, str]]:
    """Each node and input that a PrimitiveNode is connected to, in the order of its links."""
    return [target for target in reached(network, primitive) if target is not None]


def reached(network: Network, primitive: NetNode) -> list[tuple[NetNode, str] | None]:
    """The node and input where each link of a PrimitiveNode ends, `None` for one that was cut.

    Its links are those that its output lists; without outputs in the file, all that end somewhere.
    """
    listed = primitive.node.listed_links()
    ends: list[tuple[NetNode, str] | None] = []
    for link_id in network.links if listed is None else listed:
        link = network.links.get(link_id)
        is_its = link is not None and link.origin == primitive.node.id
        target = network.targets.get(link_id) if is_its else None
        if target is not None or listed is not None:
            ends.append(target)
    return ends


def build(
    document: UiDocument, catalog: NodeCatalog, packs: Packs = NO_PACKS
) -> tuple[Network, list[Network]]:
    """The root's network, and every network that it holds, inner ones before outer ones.

    Raises: `InvalidWorkflow` for a subgraph that holds itself, or more than `MAX_NODES`.
    """
    builder = _Builder(document.definitions, catalog, packs)
    root = builder.network(document.root, (), (), "", ())
    return root, builder.done


class _Builder:
    def __init__(
        self,
        definitions: Mapping[str, Definition],
        catalog: NodeCatalog,
        packs: Packs,
    ) -> None:
        self._definitions = definitions
        self._catalog = catalog
        self._packs = packs
        self._networks: dict[str, Network] = {}
        self.done: list[Network] = []

    def network(
        self,
        graph: Graph,
        inputs: tuple[Port, ...],
        outputs: tuple[Port, ...],
        name: str,
        inside: tuple[str, ...],
    ) -> Network:
        nodes = {key: self._node(node, inside) for key, node in graph.nodes.items()}
        size = sum(1 + (node.network.size if node.network else 0) for node in nodes.values())
        if size > MAX_NODES:
            place = f"subgraph {name!r}" if name else "workflow"
            what = f"With its subgraphs written out, the {place} has more than {MAX_NODES} nodes."
            raise InvalidWorkflow([Problem("too_many_nodes", what, "Use fewer of them.")])
        network = Network(nodes, dict(graph.links), list(inputs), list(outputs), name, size)
        self.done.append(network)
        return network

    def _node(self, node: UiNode, inside: tuple[str, ...]) -> NetNode:
        definition = self._definitions.get(node.type)
        if definition is not None:
            return self._instance(node, definition, inside)
        kind = EDITOR_NODES.get(node.type)
        if kind is None:
            kind = self._packs.kinds.get(node.type)
            if kind is not Kind.SENDER:
                form = self._catalog.derived(shape, node.type)
                if form is not None:
                    return self._real(node, form)
        if kind is None:
            successor = self._packs.successors.get(node.type)
            if successor is not None and successor in self._catalog:
                return self._node(node._replace(type=successor), inside)
            kind = Kind.UNKNOWN
        elif kind is Kind.PASS:
            node = _with_own_names(node)
        links = {slot.name: slot.link for slot in node.slots if slot.link is not None}
        made = NetNode(node, kind, links=links)
        if kind is Kind.SET:
            made.signal = (node.type, _first_value(node))
        elif kind is Kind.GET:
            made.signal = (self._packs.sets[node.type], _first_value(node))
        return made

    def _real(self, node: UiNode, form: Shape) -> NetNode:
        told = contradicted(form, node.slots)
        known = self._catalog.get(node.type) if told else None
        if known is not None:
            form = shape(known, told)
        values = read_values(node.type, form, node.values)
        rule = self._packs.value_rule(node.type)
        if rule is not None:
            values = rule(node, form, values)
        return NetNode(node, Kind.REAL, form, None, _real_links(node, form, values), values)

    def _instance(self, node: UiNode, definition: Definition, inside: tuple[str, ...]) -> NetNode:
        network = self._networks.get(definition.id)
        if network is None:
            if definition.id in inside or len(inside) >= MAX_DEPTH:
                raise InvalidWorkflow([_endless(node, definition, definition.id in inside)])
            deeper = (*inside, definition.id)
            network = self.network(
                definition.graph, definition.inputs, definition.outputs, definition.name, deeper
            )
            self._networks[definition.id] = network
        names = {port.name for port in network.inputs}
        links = {s.name: s.link for s in node.slots if s.link is not None and s.name in names}
        made = NetNode(node, Kind.INSTANCE, network=network, links=links)
        network.instances.append(made)
        return made


def _with_own_names(node: UiNode) -> UiNode:
    """A reroute whose inputs have names of their own: where it has several, none has one."""
    if len({slot.name for slot in node.slots}) == len(node.slots):
        return node
    slots = (slot._replace(name=f"{number}") for number, slot in enumerate(node.slots))
    return node._replace(slots=tuple(slots))


def _first_value(node: UiNode) -> str:
    """The text that a node's values begin with; nothing for any other value."""
    match node.values:
        case [str() as first, *_]:
            return first
        case _:
            return ""


def _endless(node: UiNode, definition: Definition, holds_itself: bool) -> Problem:
    if holds_itself:
        what = f"The subgraph {definition.name!r} holds itself."
        return node.problem("", "endless_subgraph", what, "Delete the inner instance.")
    what = f"Subgraphs stand in each other more than {MAX_DEPTH} deep."
    return node.problem("", "too_deep", what, "Unpack some of them.")


def _real_links(node: UiNode, form: Shape, values: Mapping[str, Any]) -> dict[str, str]:
    """The links of a node's inputs, each under the name of an input that the node has.

    A widget's input whose widget is gone is dropped, as is a socket of another choice of a dynamic
    combo; a socket that the class no longer has is kept, as the front end keeps it
    (`extensions/core/widgetInputs.ts`).
    """
    links: dict[str, str] = {}
    for name, _, link, is_widget in node.slots:
        if link is None:
            continue
        if name in form.socket_names or name in values:
            links[name] = link
        elif form.dynamic and name.startswith(form.dynamic):
            if has_socket(form, values, name):
                links[name] = link
        elif not is_widget:
            links[name] = link
    return links


def execution_order(network: Network) -> list[NetNode]:
    """The nodes as the editor walks them: each when the last of its inputs has been reached.

    Nodes without connected inputs come first, in the file's order, and those of circles last
    (`lib/litegraph/src/LGraph.ts` computeExecutionOrder).
    """
    waits = dict.fromkeys(network.nodes, 0)
    onward: dict[str, list[tuple[int, str]]] = {}
    for link_id, link in network.links.items():
        target = network.targets.get(link_id)
        if target is not None and link.origin in network.nodes:
            key = target[0].node.id
            waits[key] += 1
            onward.setdefault(link.origin, []).append((link.slot, key))
    ready = deque(key for key, count in waits.items() if not count)
    order: list[NetNode] = []
    while ready:
        reached = ready.popleft()
        order.append(network.nodes[reached])
        del waits[reached]
        for _, key in sorted(onward.get(reached, ()), key=itemgetter(0)):
            waits[key] -= 1
            if not waits[key]:
                ready.append(key)
    return [*order, *(network.nodes[key] for key in waits)]
