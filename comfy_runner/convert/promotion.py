"""The values that instances of subgraphs hold for widgets inside them.

Rules are those of the front end 1.47.12 (`lib/litegraph/src/subgraph/SubgraphNode.ts`,
`core/graph/subgraph/migration/proxyWidgetMigration.ts`).
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from comfy_runner.convert.network import Kind, NetNode, Network, reached
from comfy_runner.convert.shapes import MISSING
from comfy_runner.convert.ui import INPUT_NODE, Port
from comfy_runner.convert.widgets import widget_of, without_null

REASONS = frozenset(
    {"missingSourceNode", "missingSourceWidget", "missingSubgraphInput"}
    | {"ambiguousSubgraphInput", "unlinkedSourceWidget", "primitiveBypassFailed"}
)
"""Why the editor could not place a value."""

PREFIX = re.compile(r"\s*(\d+)\s*:\s*(.+)", re.DOTALL)
"""What older editors wrote before the name of a widget from further inside: `12: seed`."""


def promote(networks: Sequence[Network]) -> None:
    """Give every instance its values; inner networks come before outer ones.

    An input that feeds a widget inside has that widget's value, until the instance has its own.
    The instance's `widgets_values` go by position to the inputs that have a widget, or, in files
    that list `proxyWidgets`, to the entries of that list. The front end does both with such files,
    so that an input that is not listed gets a value meant for another; this does only the latter.
    """
    for network in networks:
        instances = [
            (node, node.network) for node in network.nodes.values() if node.network is not None
        ]
        for instance, inner in instances:
            _take_inner_values(instance, inner)
            if not _proxies(instance):
                _take_stored(instance, inner, instance.node.values)
            instance.promoted.update(_quarantined(instance))
        for instance, inner in instances:
            proxies = _proxies(instance)
            if proxies:
                _Migration(instance, inner, proxies).run()
            for name, value in instance.promoted.items():
                if value is None:
                    instance.promoted[name] = _without_null(instance, name)


def _sources(network: Network, number: int) -> Iterator[tuple[NetNode, str]]:
    """Where the links of an input end inside, in the order that the definition lists them."""
    for link_id in network.fed.get(number, ()):
        link = network.links.get(link_id)
        if link is not None and link_id in network.targets and link.origin == INPUT_NODE:
            yield network.targets[link_id]


def first_source(network: Network, number: int) -> tuple[str, str] | None:
    """Id and input of the first node that shows a definition's input as a widget of its own."""
    for node, name in _sources(network, number):
        if node.kind is Kind.INSTANCE or name in node.values:
            return node.node.id, name
    return None


def _take_inner_values(instance: NetNode, network: Network) -> None:
    """Each input whose first widget inside gives it one."""
    instance.promoted = {}
    for number, port in enumerate(network.inputs):
        for node, name in _sources(network, number):
            if name in node.held:
                instance.promoted[port.name] = node.held[name]
                break


def _take_stored(instance: NetNode, network: Network, stored: Any) -> None:
    if isinstance(stored, dict):
        known = instance.promoted.keys() & stored.keys()
        instance.promoted.update({name: stored[name] for name in known})
    elif stored:
        # Two inputs of one name share one value, and yet each has a place.
        names = [port.name for port in network.inputs if port.name in instance.promoted]
        instance.promoted.update(zip(names, stored, strict=False))


def _without_null(instance: NetNode, name: str) -> Any:
    """What the editor puts in place of a null that an instance holds: a combo's first choice."""
    while instance.network is not None:
        network = instance.network
        number = next(i for i, port in enumerate(network.inputs) if port.name == name)
        source = next((s for s in _sources(network, number) if s[1] in s[0].held), None)
        if source is None:
            return None
        instance, name = source
    widget = widget_of(instance.shape, instance.values, name) if instance.shape else None
    mended = None if widget is None else without_null(widget)
    return None if mended == "" else mended


def _quarantined(instance: NetNode) -> dict[str, Any]:
    """Values that the editor could not place once and kept; they beat the others.

    One entry of another shape voids the list (`core/schemas/proxyWidgetQuarantineSchema.ts`).
    """
    found: dict[str, Any] = {}
    for entry in _property(instance, "proxyWidgetErrorQuarantine"):
        match entry:
            case {"originalEntry": original, "reason": str() as reason, "attemptedAtVersion": 1}:
                if not _is_entry(original) or reason not in REASONS:
                    return {}
                value = entry.get("hostValue")
                if original[0] == "-1" and original[1] in instance.promoted and value is not None:
                    found.setdefault(original[1], value)
            case _:
                return {}
    return found


def _proxies(instance: NetNode) -> list[list[str]]:
    """The legacy list of promoted widgets; one entry of another shape voids it."""
    entries = _property(instance, "proxyWidgets")
    return entries if all(map(_is_entry, entries)) else []


def _is_entry(raw: Any) -> bool:
    """Whether it is a node's id and a widget's name, perhaps with another id."""
    return (
        isinstance(raw, list) and len(raw) in (2, 3) and all(isinstance(part, str) for part in raw)
    )


def _property(instance: NetNode, name: str) -> list[Any]:
    """A property that is a list, or JSON text of one."""
    raw = instance.node.properties.get(name)
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            return []
    return raw if isinstance(raw, list) else []


class _Migration:
    """Turns one instance's `proxyWidgets` into inputs of its definition, and gives them values."""

    def __init__(self, instance: NetNode, network: Network, entries: list[list[str]]) -> None:
        self._instance = instance
        self._network = network
        self._entries = entries

    def run(self) -> None:
        """Widgets and inputs first, then PrimitiveNodes, then inputs that are called by name."""
        primitives: dict[str, list[int]] = {}
        by_name: list[int] = []
        for number, (node_id, name, *rest) in enumerate(self._entries):
            node = self._network.nodes.get(node_id)
            if node_id == "-1":
                by_name.append(number)
            elif node is not None and node.kind is Kind.PRIMITIVE:
                primitives.setdefault(node_id, []).append(number)
            else:
                self._give(number, self._place(node_id, name, rest[0] if rest else ""))
        for node_id, numbers in primitives.items():
            names = {_plain(self._entries[number][1])[0] for number in numbers}
            found = self._take_over(self._network.nodes[node_id], names)
            self._give(numbers[0], found)
        for number in by_name:
            name = self._entries[number][1]
            self._give(number, name if name in self._instance.promoted else None)

    def _give(self, number: int, name: str | None) -> None:
        """Give an input the value that an entry has."""
        if name is None:
            return
        node_id, widget, *_ = self._entries[number]
        self._instance.proxied[node_id, widget] = name
        stored = self._instance.node.values
        value = stored[number] if isinstance(stored, list) and number < len(stored) else None
        if value is not None:
            self._instance.promoted[name] = value

    def _place(self, node_id: str, name: str, hint: str) -> str | None:
        """The name of the instance's input that an entry means; made where there is none."""
        plain, inner_id = _plain(name)
        for wanted, source in ((name, hint), (plain, inner_id or hint)):
            found = self._input_for(node_id, wanted)
            if found is not None:
                return found
            node = self._network.nodes.get(node_id)
            if node is None or name.startswith("$$"):
                continue
            inner = _widget_name(node, wanted, source)
            if inner is not None:
                return self._expose(node, inner)
        return None

    def _input_for(self, node_id: str, name: str) -> str | None:
        """The input whose first widget inside is that one."""
        for number, port in enumerate(self._network.inputs):
            if first_source(self._network, number) == (node_id, name):
                return port.name
        return None

    def _expose(self, node: NetNode, name: str) -> str:
        """A new input of the definition that feeds this widget, and nothing else does."""
        value = node.held[name]
        kind = "*"
        if node.shape is not None:
            widget = widget_of(node.shape, node.values, name)
            kind = widget.type if widget is not None else "*"
        new = self._new_input(name, kind, value)
        self._network.feed(node, name)
        return new

    def _take_over(self, primitive: NetNode, names: Collection[str]) -> str | None:
        """One new input in place of a PrimitiveNode, for all that it drives.

        There is none where entries name several of its widgets, or where it has lost a link: then
        it goes on driving the others. The front end looks the driven widgets up by slot numbers
        that are out of date by then, and so can feed the wrong one; here they are found by their
        links.
        """
        if primitive.successor:
            return primitive.successor
        targets = [target for target in reached(self._network, primitive) if target is not None]
        if not targets or None in reached(self._network, primitive) or len(names) > 1:
            return None
        node, first = targets[0]
        title = primitive.node.title
        kind = primitive.node.outputs()
        new = self._new_input(
            title if title and title != "PrimitiveNode" else next(iter(names)),
            kind[0][1] if kind else "*",
            node.held.get(first, MISSING),
        )
        for node, inner in targets:
            self._network.feed(node, inner)
        primitive.successor = new
        return new

    def _new_input(self, name: str, kind: str, value: Any) -> str:
        """Adds an input under a free name; every instance has it, with the inner value."""
        taken = {port.name for port in self._network.inputs}
        free, number = name, 0
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        self._network.inputs.append(Port(free, kind, (), ""))
        for instance in self._network.instances:
            instance.promoted[free] = value
        return free


def _plain(name: str) -> tuple[str, str]:
    """The widget's own name, and the id of the innermost node that its prefixes name."""
    inner_id = ""
    while (match := PREFIX.fullmatch(name)) is not None:
        inner_id, name = match.group(1), match.group(2)
    return name, inner_id


def _widget_name(node: NetNode, name: str, inner_id: str) -> str | None:
    """The node's widget of that name; for an instance also by the name it has further inside."""
    if node.network is None:
        return name if name in node.values else None
    for number, port in enumerate(node.network.inputs):
        if port.name not in node.promoted:
            continue
        if port.name == name and not inner_id:
            return name
        source = next(_sources(node.network, number), None)
        if source is not None and source[1] == name and inner_id in ("", source[0].node.id):
            return port.name
    return name if name in node.promoted else None
