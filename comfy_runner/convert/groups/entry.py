"""One entry of `extra.groupNodes`, parsed: the inner nodes with their connections."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from comfy_runner.convert import ui
from comfy_runner.convert.groups.group import Inner, InnerLink, Place
from comfy_runner.convert.network import Kind
from comfy_runner.convert.shapes import MISSING, WIDGETS, Socket, Widget

OUTSIDE = -1
"""Origin of a connection from outside, which only tells a type."""

PRIMITIVE_PLACES = {"INT": 2, "FLOAT": 2, "COMBO": 3}
"""Places of a PrimitiveNode's value with its control value and, for choices, a filter."""


class Entry(NamedTuple):
    """What an entry says."""

    inner: tuple[Inner, ...]
    links: tuple[InnerLink, ...]
    external: Mapping[tuple[int, int], str]
    """Index and slot of each output that is connected outside too, to its type."""
    config: Any
    """What its author renamed or hid, as the file has it."""

    def setting(self, number: int, side: str, key: str | int, name: str) -> Any:
        """What the author set for an input or output of an inner node, or `None`."""
        found = self.config
        for step in (number, side, key, name):
            found = found.get(str(step)) if isinstance(found, dict) else None
        return found


def read_entry(raw: Mapping[str, Any], inner: Sequence[Inner]) -> Entry:
    """Parse an entry whose nodes are these; what is no connection is left out.

    A PrimitiveNode or Reroute is given what its connections make of it.
    """
    slots = [input_slots(item) for item in inner]
    links = [link for found in listed(raw.get("links")) if (link := _link(found, slots))]
    external = dict(_external(raw.get("external")))
    onward: dict[tuple[int, int], list[InnerLink]] = {}
    into: dict[int, list[InnerLink]] = {}
    for link in links:
        into.setdefault(link.target.node, []).append(link)
        if link.origin != OUTSIDE:
            onward.setdefault((link.origin, link.slot), []).append(link)
    told = list(inner)
    for number, item in enumerate(inner):
        taken = onward.get((number, 0), [])
        if item.kind is Kind.PRIMITIVE and taken:
            told[number] = _primitive(item, taken[0], told)
        elif item.kind is Kind.PASS:
            kind = _passed(taken, into.get(number, []), external.get((number, 0)), inner)
            if kind is not None:
                socket = Socket(kind, kind)
                told[number] = item._replace(sockets=(socket,), outputs=((kind, kind),))
    links = [link for link in links if link.origin != OUTSIDE]
    return Entry(tuple(told), tuple(links), external, raw.get("config"))


def listed(raw: Any) -> list[Any]:
    """A list as it is, and an empty one for anything else."""
    return raw if isinstance(raw, list) else []


def input_slots(item: Inner) -> list[tuple[str, str]]:
    """Name and type of each input slot of an inner node; what the file lacks is the class's."""
    slots = [(slot.name, slot.type) for slot in item.node.slots]
    if item.kind is Kind.PASS:
        return slots[:1] or [("", "*")]
    own = [(socket.name, socket.type) for socket in item.sockets]
    own += ((widget.name, widget.type) for widget in item.widgets)
    return slots + own[len(slots) :]


def _link(raw: Any, slots: Sequence[Sequence[tuple[str, str]]]) -> InnerLink | None:
    """A connection, its target's input found by the slot that the file has there."""
    match raw:
        case [start, start_slot, end, end_slot, *rest]:
            origin = OUTSIDE if start is None else _index(start)
            slot, target, place = _index(start_slot), _index(end), _index(end_slot)
        case _:
            return None
    if origin is None or slot is None or target is None or place is None:
        return None
    if max(origin, target) >= len(slots) or place >= len(slots[target]):
        return None
    name, wanted = slots[target][place]
    kind = ui.type_name(rest[1]) if len(rest) > 1 else "*"
    return InnerLink(origin, slot, Place(target, name), kind, wanted)


def _external(raw: Any) -> Iterator[tuple[tuple[int, int], str]]:
    """Lists that hold a whole node in place of its index never counted for any editor."""
    for entry in listed(raw):
        match entry:
            case [node, slot, kind, *_] if kind is not None:
                at, number = _index(node), _index(slot)
                if at is not None and number is not None:
                    yield (at, number), ui.type_name(kind)


def _index(value: Any) -> int | None:
    text = ui.identifier(value)
    return None if text is None else ui.number(text)


def _primitive(item: Inner, link: InnerLink, inner: Sequence[Inner]) -> Inner:
    """A PrimitiveNode that is connected has the widget of what it drives, named `value`."""
    driven = inner[link.target.node]
    widget = next((w for w in driven.widgets if w.name == link.target.name), None)
    kind = link.type if widget is None else widget.type
    outputs = ((kind, kind),)
    if kind not in WIDGETS:
        return item._replace(sockets=(Socket("value", kind),), outputs=outputs)
    stored = listed(item.node.values)
    value = stored[0] if stored else driven.held.get(link.target.name, MISSING)
    places = 1 if widget is None else PRIMITIVE_PLACES.get(kind, 1)
    shown = Widget("value", kind, value, places, control=places > 1)
    return item._replace(widgets=(shown,), outputs=outputs, held={"value": value})


def _passed(
    onward: Sequence[InnerLink],
    into: Sequence[InnerLink],
    outside: str | None,
    inner: Sequence[Inner],
) -> str | None:
    """The type by which a Reroute shows; `None` between two inner nodes, where it does not."""
    feeding = next((link for link in into if link.origin != OUTSIDE), None)
    if onward and feeding is not None and outside is None:
        return None
    if onward:
        kinds = [link.wanted for link in onward]
    elif feeding is not None:
        outputs = inner[feeding.origin].node.outputs()
        kinds = [kind for _, kind in outputs[feeding.slot : feeding.slot + 1]]
    else:
        kinds = [*(link.type for link in into[:1]), outside or "*"]
    return next((kind for kind in kinds if kind != "*"), "*")
