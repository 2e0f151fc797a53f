"""Where the value of an input really comes from: through reroutes, bypassed nodes and subgraphs.

Rules are those of the front end 1.47.12 (`lib/litegraph/src/subgraph/ExecutableNodeDTO.ts`,
`LiteGraphGlobal.ts` isValidConnection), but for what the docstrings tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from comfy_runner.convert.network import Kind, NetNode, Network
from comfy_runner.convert.shapes import MISSING, Shape, Socket
from comfy_runner.convert.ui import BYPASS, INPUT_NODE, NEVER, OUTPUT_NODE, UiLink
from comfy_runner.convert.widgets import slots_of
from comfy_runner.graph.workflow import Link


class Value(NamedTuple):
    """An input gets a value that stands in an instance."""

    value: Any
    place: tuple[str, str]
    """The instance's id in the API workflow, and its input."""


class Broken(NamedTuple):
    """An input names a link, a node or a name that is not in the file."""

    what: str
    cure: str = "Connect it again in the editor, or remove the connection."


type Source = Link | Value | Broken | None


@dataclass(slots=True, eq=False)
class Scope:
    """A network where it stands: the root, or one instance of a definition."""

    network: Network
    path: str = ""
    """What stands before the ids of its nodes in the API workflow: `12:3:`."""
    outer: "Scope | None" = None
    instance: NetNode | None = None
    """The node that it stands for in `outer`."""
    inner: dict[str, "Scope"] = field(default_factory=dict)
    """The scopes of its instances that were entered so far."""
    found: dict[tuple[str, str], Source] = field(default_factory=dict)
    """What each link and type came to so far, so that long ways are gone once."""

    def enter(self, instance: NetNode, network: Network) -> "Scope":
        """The scope of the nodes of an instance, which stands for that network."""
        key = instance.node.id
        scope = self.inner.get(key)
        if scope is None:
            scope = Scope(network, f"{self.path}{key}:", self, instance)
            self.inner[key] = scope
        return scope

    def end_of(self, link_id: str, node: NetNode, name: str) -> Source:
        """What the named input of one of its nodes gets from the link that ends there."""
        link = self.network.links.get(link_id)
        origin = self.network.nodes.get(link.origin) if link is not None else None
        if link is None or origin is None or origin.kind is not Kind.REAL or origin.is_off:
            return self.source(link_id, dict(input_slots(self.network, node)).get(name, "*"))
        return Link(f"{self.path}{link.origin}", link.slot)

    def source(self, link_id: str, kind: str) -> Source:
        """What an input of type `kind` gets from a link that ends at it.

        `None` when the way ends in nothing: a muted node, a bypassed one without a fitting input,
        an open reroute, or a circle of those, for which the front end refuses the whole workflow
        even where there is none (two instances of one definition in series).
        """
        scope: Scope = self
        way: list[tuple[Scope, str, str]] = []
        seen: set[tuple[str, str, str]] = set()
        while True:
            known = scope.found.get((link_id, kind), MISSING)
            if known is not MISSING:
                found = known
                break
            key = (scope.path, link_id, kind)
            if key in seen:
                found = None
                break
            seen.add(key)
            way.append((scope, link_id, kind))
            step = _step(scope, link_id, kind)
            if not isinstance(step, _Onward):
                found = step
                break
            scope, link_id, kind = step
        for place, past_id, past_kind in way:
            place.found[past_id, past_kind] = found
        return found


class _Onward(NamedTuple):
    scope: Scope
    link_id: str
    kind: str


def _step(scope: Scope, link_id: str, kind: str) -> Source | _Onward:
    """One step up a link: to its end, or to the next link."""
    link = scope.network.links.get(link_id)
    if link is None:
        return Broken(f"It is connected by link {link_id}, which is not in the file.")
    if link.origin == INPUT_NODE and scope.instance is not None and scope.outer is not None:
        return _outward(scope, scope.outer, scope.instance, link)
    origin = scope.network.nodes.get(link.origin)
    if origin is None:
        return Broken(f"It is connected to node {scope.path}{link.origin}, which does not exist.")
    if origin.node.mode == BYPASS:
        return _past_bypassed(scope, origin, link.slot, kind)
    return None if origin.node.mode == NEVER else _through(scope, origin, link.slot, kind)


def _through(scope: Scope, origin: NetNode, slot: int, kind: str) -> Source | _Onward:
    """From the output of a live node to the node itself, or on."""
    if origin.network is not None:
        return _inward(scope.enter(origin, origin.network), slot, kind)
    match origin.kind:
        case Kind.REAL | Kind.UNKNOWN:
            return Link(f"{scope.path}{origin.node.id}", slot)
        case Kind.PASS | Kind.SET:
            slots = origin.node.slots
            onward = origin.links.get(slots[slot].name) if slot < len(slots) else None
            return None if onward is None else _Onward(scope, onward, kind)
        case Kind.GET:
            return _from_set(scope, origin, kind)
        case _:
            return None


def _from_set(scope: Scope, getter: NetNode, kind: str) -> Source | _Onward:
    """From a `GET` to what feeds the first `SET` of its name, nearest graph first.

    The mode of the `SET` does not matter (ComfyUI-KJNodes of 2026-05). Its front end finds nothing
    where a name stands in two graphs of the chain, or where the `SET` is fed by the input of its
    own subgraph; here both are found.
    """
    family, name = getter.signal
    reach = [scope]
    while reach[-1].outer is not None:
        reach.append(reach[-1].outer)
    for place in reach if name else ():
        setter = place.network.sets.get(getter.signal)
        if setter is not None:
            onward = next(iter(setter.links.values()), None)
            if onward is not None:
                return _Onward(place, onward, kind)
            what = f"It gets what the {family} {name!r} (node {place.path}{setter.node.id}) gets"
            return Broken(f"{what}, and that is not connected.", "Connect it, or remove both.")
    labels = [
        label for place in reach for its_family, label in place.network.sets if its_family == family
    ]
    known = ", ".join(map(repr, dict.fromkeys(labels)))
    return Broken(
        f"It gets what the {family} {name!r} gets, through node {scope.path}{getter.node.id}, and"
        " there is none of that name.",
        f"In reach are {known}." if known else f"No {family} is in reach: add one of that name.",
    )


def _outward(scope: Scope, outer: Scope, instance: NetNode, link: UiLink) -> Source | _Onward:
    """From a node inside to what its instance's input gets, or else to the value that it holds."""
    if link.slot >= len(scope.network.inputs):
        return Broken(f"It is connected to input {link.slot} of its subgraph, which has fewer.")
    port = scope.network.inputs[link.slot]
    onward = instance.links.get(port.name)
    if onward is not None:
        return _Onward(outer, onward, port.type)
    value = instance.promoted.get(port.name, MISSING)
    place = (f"{outer.path}{instance.node.id}", port.name)
    return None if value is MISSING else Value(value, place)


def _inward(inner: Scope, slot: int, kind: str) -> Source | _Onward:
    """From an instance's output to the link that feeds it inside."""
    network = inner.network
    if slot >= len(network.outputs):
        return Broken(f"It is connected to output {slot} of a subgraph that has fewer.")
    for link_id in network.outputs[slot].link_ids:
        if link_id in network.links:
            return _Onward(inner, link_id, kind)
    for link_id, link in network.links.items():
        if link.target == OUTPUT_NODE and link.target_slot == slot:
            return _Onward(inner, link_id, kind)
    return None


def _past_bypassed(scope: Scope, node: NetNode, slot: int, kind: str) -> _Onward | None:
    """On to the input that a bypassed node passes on; it need not be connected."""
    slots = input_slots(scope.network, node)
    outputs = output_types(scope.network, node)
    given = outputs[slot] if slot < len(outputs) else "*"
    chosen = _passed_on(slots, slot, given, kind)
    if chosen is None:
        return None
    name, its_kind = slots[chosen]
    onward = node.links.get(name)
    return None if onward is None else _Onward(scope, onward, its_kind)


def _passed_on(slots: list[tuple[str, str]], slot: int, given: str, kind: str) -> int | None:
    """Number of the input that output `slot` of a bypassed node hands to an input of type `kind`.

    The one at the same place if its type fits, else the first of just that type, else the first
    that fits.
    """
    if not slots:
        return None
    if kind in ("*", ""):
        return slot if slot < len(slots) else 0

    def fits(number: int) -> bool:
        return connects(slots[number][1], given) and connects(slots[number][1], kind)

    if slot < len(slots) and fits(slot):
        return slot
    exact = (number for number, (_, its_kind) in enumerate(slots) if its_kind == kind)
    fitting = (number for number in range(len(slots)) if fits(number))
    return next(exact, next(fitting, None))


def connects(one: str, other: str) -> bool:
    """Whether the editor lets two slots of these types be connected."""
    if one in ("", "*") or other in ("", "*"):
        return True
    left, right = one.lower(), other.lower()
    if left == right:
        return True
    if "," not in left and "," not in right:
        return False
    return any(connects(a, b) for a in left.split(",") for b in right.split(","))


def input_slots(network: Network, node: NetNode) -> list[tuple[str, str]]:
    """Name and type of every input slot, in the editor's order."""
    if node.network is not None:
        return [(port.name, port.type) for port in node.network.inputs]
    if node.shape is None:
        return [(slot.name, slot.type) for slot in node.node.slots]
    slots: list[tuple[str, str]] = []
    for item in slots_of(node.shape, node.values):
        if isinstance(item, Socket) and item.match:
            slots += (
                (name, _matched(network, node, node.shape, item.match, name))
                for name in _grown(node, item)
            )
        else:
            names = _grown(node, item) if isinstance(item, Socket) else (item.name,)
            slots += ((name, item.type) for name in names)
    known = {name for name, _ in slots}
    slots += ((s.name, s.type) for s in node.node.slots if s.name not in known and not s.is_widget)
    return slots


def output_types(network: Network, node: NetNode) -> list[str]:
    """Type of every output slot, in the editor's order."""
    if node.network is not None:
        return [port.type for port in node.network.outputs]
    if node.shape is None:
        return [kind for _, kind in node.node.outputs()]
    return [
        _matched(network, node, node.shape, match, "") if match else kind
        for kind, match in zip(node.shape.outputs, node.shape.output_matches, strict=True)
    ]


def _matched(network: Network, node: NetNode, shape: Shape, template: str, name: str) -> str:
    """The type of one member of a match-type template, or of its output when `name` is empty.

    A member takes what all others are connected to allow; the output gives what they all give
    (`core/graph/widgets/dynamicWidgets.ts`).
    """
    kinds = []
    for socket in shape.sockets:
        if socket.match == template:
            for member in _grown(node, socket):
                if member == name:
                    kinds.append(socket.type)
                else:
                    kinds.append(_connected_type(network, node.links.get(member)))
    return _common(kinds)


def _grown(node: NetNode, socket: Socket) -> Sequence[str]:
    """The names of the sockets that one socket of a shape stands for in a node."""
    if socket.autogrow is None:
        return (socket.name,)
    names = socket.autogrow.names
    taken = [number for number, name in enumerate(names) if name in node.links]
    return names[: max(socket.autogrow.least, *(number + 2 for number in taken), 0)]


def _connected_type(network: Network, link_id: str | None) -> str:
    link = network.links.get(link_id or "")
    if link is None:
        return "*"
    if link.origin == INPUT_NODE:
        ports = network.inputs
        return ports[link.slot].type if link.slot < len(ports) else "*"
    origin = network.nodes.get(link.origin)
    if origin is None:
        return "*"
    if origin.shape is not None:
        kinds = list(origin.shape.outputs)
        if link.slot < len(kinds) and origin.shape.output_matches[link.slot]:
            return link.type
    else:
        kinds = output_types(network, origin)
    return kinds[link.slot] if link.slot < len(kinds) else "*"


def _common(kinds: list[str]) -> str:
    """The types that all lists have in common; `*` has everything."""
    common: list[str] | None = None
    for kind in kinds:
        if kind in ("", "*"):
            continue
        parts = kind.split(",")
        common = parts if common is None else [part for part in common if part in parts]
    return ",".join(common) if common else "*"
