"""A group node as the rest of this package knows it: what is inside, and what shows of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from comfy_runner.convert.network import Kind
from comfy_runner.convert.shapes import Shape, Socket, Widget
from comfy_runner.convert.ui import UiNode
from comfy_runner.convert.widgets import read_values

UNKNOWN = "?"
"""Type of the widgets of a class that is not installed."""


class Inner(NamedTuple):
    """A node inside a group node, and what of it the group node may show."""

    node: UiNode
    kind: Kind
    sockets: tuple[Socket, ...] = ()
    widgets: tuple[Widget, ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    """Name and type."""
    held: Mapping[str, Any] = {}
    """Widget name to the value that it has without the group node."""
    doubtful: frozenset[str] = frozenset()
    """Widgets that its class may have got after the file was saved."""
    size: int = 1
    """How many nodes it counts for."""


class Place(NamedTuple):
    """An input of an inner node, which is told by its index."""

    node: int
    name: str


class InnerLink(NamedTuple):
    """A connection between two inner nodes."""

    origin: int
    slot: int
    target: Place
    type: str
    wanted: str
    """The type of the target's input."""


class Output(NamedTuple):
    """An output of an inner node under the group node's name for it."""

    name: str
    type: str
    node: int
    slot: int


class Group(NamedTuple):
    """What every group node of one name has in common."""

    name: str
    inner: tuple[Inner, ...]
    links: tuple[InnerLink, ...]
    sockets: tuple[Socket, ...]
    widgets: tuple[Widget, ...]
    """In the order of the group node's `widgets_values`."""
    places: Mapping[str, Place]
    """Where each socket and widget belongs."""
    doubtful: frozenset[str]
    """Widgets that the file may know nothing of."""
    outputs: tuple[Output, ...]

    def place(self, name: str) -> Place | None:
        """Where an input belongs; a member of a dynamic one goes by the name before the dot."""
        if name in self.places:
            return self.places[name]
        head, dot, rest = name.partition(".")
        found = self.places.get(head) if dot else None
        return None if found is None else Place(found.node, f"{found.name}.{rest}")

    def values(self, node: UiNode) -> dict[str, Any]:
        """Widget name to value of a group node.

        Where it stores fewer values than it has places, inputs that its inner nodes store no value
        for have none, or else those of unknown classes, which may be only a pack's editor's.
        """
        widgets = self.widgets
        if isinstance(node.values, list):
            count = len(node.values)
            known = tuple(w for w in widgets if w.name not in self.doubtful)
            tries = (widgets, known, tuple(w for w in known if w.type != UNKNOWN))
            exact = (t for t in tries if sum(w.places for w in t) == count)
            fitting = (t for t in tries if sum(1 if w.control else w.places for w in t) <= count)
            widgets = next(exact, next(fitting, tries[-1]))
        none: frozenset[str] = frozenset()
        form = Shape((), widgets, none, (), (), (), "", legacy=None, is_output=False, custom=none)
        return read_values(node.type, form, node.values)
