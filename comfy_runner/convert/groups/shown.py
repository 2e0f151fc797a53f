"""What a group node shows of its inner nodes, and under which names."""

from collections.abc import Iterator, Mapping
from typing import Any

from comfy_runner.convert.groups.entry import Entry, input_slots, listed
from comfy_runner.convert.groups.group import Group, Output, Place
from comfy_runner.convert.network import Kind
from comfy_runner.convert.shapes import CONTROLLED_NAMES, Branch, Socket, Widget
from comfy_runner.convert.ui import UiNode


def show(name: str, entry: Entry) -> Group:
    """The group of that name; inputs and outputs are what is not connected inside."""
    return _Showing(name, entry).group()


class _Showing:
    def __init__(self, name: str, entry: Entry) -> None:
        self._name = name
        self._entry = entry
        self._inner = entry.inner
        self._labels = [_labels(item.node, "inputs") for item in entry.inner]
        self._wired = {link.target for link in entry.links}
        self._seen: dict[str, int] = {}
        self._sockets: dict[str, Socket] = {}
        self._widgets: dict[str, Widget] = {}
        self._places: dict[str, Place] = {}
        self._doubtful: set[str] = set()

    def group(self) -> Group:
        last = [place for number in range(len(self._inner)) for place in self._add(number)]
        for number, widget in last:
            if (number, widget.name) not in self._wired:
                self._add_widget(number, widget)
        return Group(
            self._name,
            self._inner,
            self._entry.links,
            tuple(self._sockets.values()),
            tuple(self._widgets.values()),
            self._places,
            frozenset(self._doubtful),
            tuple(self._outputs()),
        )

    def _add(self, number: int) -> list[tuple[int, Widget]]:
        """Add a node's widgets and sockets; gives those that come last, being inputs too.

        Those are in the order of their slots, as JavaScript sorts numbers: 10 before 9.
        """
        item = self._inner[number]
        converted: dict[int, Widget] = {}
        slots = {slot.name: n for n, slot in enumerate(item.node.slots) if slot.is_widget}
        for widget in item.widgets:
            if widget.name in slots:
                converted[slots[widget.name]] = widget
            else:
                self._add_widget(number, widget)
        grown = {s.autogrow.group if s.autogrow else s.name: s for s in item.sockets}
        for name, socket in grown.items():
            place = Place(number, input_slots(item)[0][0] if item.kind is Kind.PASS else name)
            if place not in self._wired:
                outer = self._free_name(number, name)
                if self._entry.setting(number, "input", name, "visible") is not False:
                    self._sockets[outer] = socket._replace(name=outer)
                    self._places[outer] = place
        return [(number, converted[slot]) for slot in sorted(converted, key=str)]

    def _add_widget(self, number: int, widget: Widget) -> None:
        item = self._inner[number]
        outer = self._free_name(number, widget.name)
        if widget.type == "INT" and widget.name in CONTROLLED_NAMES:
            widget = widget._replace(places=2, control=True)
        self._widgets[outer] = _renamed(widget, widget.name, outer, item.held)
        self._places[outer] = Place(number, widget.name)
        if widget.name in item.doubtful:
            self._doubtful.add(outer)

    def _free_name(self, number: int, name: str) -> str:
        """What the group node calls an input: its own name, or the node's title before it."""
        item = self._inner[number]
        given = self._entry.setting(number, "input", name, "name")
        free = key = given if isinstance(given, str) else self._labels[number].get(name, name)
        if key in self._seen or (item.kind is Kind.PRIMITIVE and item.node.title):
            title = item.node.title or item.node.type
            free = key = f"{title} {name}"
            if key in self._seen:
                free = f"{title} {self._seen[key]} {name}"
        self._seen[key] = self._seen.get(key, 1) + 1
        return free

    def _outputs(self) -> Iterator[Output]:
        """The outputs that are not connected inside, or are connected outside too."""
        inside = {(link.origin, link.slot) for link in self._entry.links}
        inside -= self._entry.external.keys()
        seen: set[str] = set()
        for number, item in enumerate(self._inner):
            labels = _labels(item.node, "outputs")
            title = item.node.title or item.node.type
            for slot, (name, kind) in enumerate(item.outputs):
                shown = self._entry.setting(number, "output", slot, "visible")
                if (number, slot) in inside if shown is None else not shown:
                    continue
                given = self._entry.setting(number, "output", slot, "name")
                label = given if given and isinstance(given, str) else labels.get(name, name)
                tries = (label, f"{title} {label}", f"{title} {number} {label}")
                free = next((text for text in tries if text not in seen), tries[-1])
                seen.add(free)
                yield Output(free, kind, number, slot)


def _labels(node: UiNode, side: str) -> dict[str, str]:
    """Name to what the author called it, of the inputs or outputs that have such a label."""
    labels = {}
    for entry in listed(node.raw.get(side)):
        match entry:
            case {"name": str() as name, "label": str() as label}:
                labels[name] = label
    return labels


def _renamed(widget: Widget, old: str, new: str, held: Mapping[str, Any]) -> Widget:
    """A widget by the group node's name for it; it starts with the value that it has inside."""
    children = widget.children and {
        key: Branch(tuple(_renamed(child, old, new, held) for child in branch.widgets))
        for key, branch in widget.children.items()
    }
    return widget._replace(
        name=new + widget.name.removeprefix(old),
        default=held.get(widget.name, widget.default),
        children=children,
    )
