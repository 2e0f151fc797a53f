"""The values that a node's widgets hold: `widgets_values` handed out as the editor does it.

Rules are those of the front end 1.47.12 (`lib/litegraph/src/LGraphNode.ts` configure,
`scripts/app.ts` loadGraphData).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comfy_runner.convert.shapes import MISSING, Branch, Shape, Socket, Widget

SAMPLERS = ("KSampler", "KSamplerAdvanced")
"""Classes whose sampler had names that began with `sample_` years ago."""


def read_values(class_type: str, shape: Shape, stored: Any) -> dict[str, Any]:
    """Name to value of every widget that is sent, in the order of the widgets.

    `stored` is the node's `widgets_values`. A list is handed out by position, an object by name
    whatever the class is, which the front end leaves to the packs that write them. A value that is
    absent leaves the widget's default; none is checked or changed, but for a few repairs of old
    files, and values that the editor makes anew on sending: a view that is stored stays, anything
    else is what it makes where nothing was recorded or loaded.
    """
    values: dict[str, Any] = {}
    if isinstance(stored, Mapping):
        _by_name(shape.widgets, stored, values)
    else:
        listed = [] if stored is None else _without_forced(shape, stored)
        after = _hand_out(shape.widgets, listed, 0, values)
        if class_type == "CustomCombo":
            _complete_custom_combo(listed, after, values)
    for widget in shape.made:
        if not isinstance(values[widget.name], dict):
            values[widget.name] = widget.default
    _repair(class_type, shape, values)
    return values


def widget_of(shape: Shape, values: Mapping[str, Any], name: str) -> Widget | None:
    """The widget of that name that a node with these values has."""
    return next((w for w in _present(shape.widgets, values) if w.name == name), None)


def slots_of(shape: Shape, values: Mapping[str, Any]) -> Iterator[Socket | Widget]:
    """Every input of a node with these values in the order of its slots; groups are not grown."""
    yield from shape.sockets
    yield from _slots(shape.widgets, values)


def has_socket(shape: Shape, values: Mapping[str, Any], name: str) -> bool:
    """Whether a node with these values has a socket of that name, grown or not yet."""
    return any(
        name == item.name or (item.autogrow is not None and name in item.autogrow.names)
        for item in slots_of(shape, values)
        if isinstance(item, Socket)
    )


def _slots(
    items: Sequence[Socket | Widget], values: Mapping[str, Any]
) -> Iterator[Socket | Widget]:
    for item in items:
        yield item
        if isinstance(item, Widget) and item.children is not None:
            branch = branch_of(item, values.get(item.name))
            if branch is not None:
                yield from _slots(branch.inputs, values)


def _present(widgets: Sequence[Widget], values: Mapping[str, Any]) -> Iterator[Widget]:
    return (item for item in _slots(widgets, values) if isinstance(item, Widget))


def _hand_out(
    widgets: Sequence[Widget], stored: Sequence[Any], position: int, values: dict[str, Any]
) -> int:
    """Give each widget its places from `position` on; returns where the next one's are."""
    end = len(stored)
    for widget in widgets:
        value = stored[position] if widget.places and position < end else widget.default
        if widget.sent:
            values[widget.name] = value
        position += widget.places
        if widget.children is not None:
            branch = branch_of(widget, value)
            if branch is not None:
                position = _hand_out(branch.widgets, stored, position, values)
    return position


def _by_name(widgets: Sequence[Widget], stored: Mapping[str, Any], values: dict[str, Any]) -> None:
    for widget in widgets:
        value = stored.get(widget.name, widget.default)
        if widget.sent:
            values[widget.name] = value
        branch = branch_of(widget, value)
        if branch is not None:
            _by_name(branch.widgets, stored, values)


def branch_of(widget: Widget, value: Any) -> Branch | None:
    """The inputs that a value of a dynamic combo brings; a number means the choice it spells."""
    if not value or widget.children is None:
        return None
    if value.__class__ is not str:
        if not isinstance(value, int):
            return None
        value = "true" if value is True else str(value)
    return widget.children.get(value)


def _without_forced(shape: Shape, stored: Sequence[Any]) -> Sequence[Any]:
    """The list without the values that old files hold for inputs that are sockets now."""
    if shape.legacy is None or len(stored) != len(shape.legacy):
        return stored
    return [value for value, kept in zip(stored, shape.legacy, strict=True) if kept]


def _complete_custom_combo(stored: Sequence[Any], after: int, values: dict[str, Any]) -> None:
    """Its options end with the first that is empty; `index` follows (`customWidgets.ts`)."""
    options = [values["option1"]]
    for option in stored[after:]:
        if not options[-1]:
            break
        options.append(option)
    if options[-1]:
        options.append("")
    if values["choice"] is None and options[0]:
        values["choice"] = options[0]
    values.update({f"option{number}": option for number, option in enumerate(options, 1)})
    values["index"] = options.index(values["choice"]) if values["choice"] in options else -1


def _repair(class_type: str, shape: Shape, values: dict[str, Any]) -> None:
    """What the editor mends after loading: old names of samplers, and places that hold null."""
    sampler = values.get("sampler_name")
    if class_type in SAMPLERS and isinstance(sampler, str):
        values["sampler_name"] = sampler.removeprefix("sample_")
    if None not in values.values():
        return
    for widget in _present(shape.widgets, values):
        if values.get(widget.name, MISSING) is None:
            values[widget.name] = without_null(widget)
            if widget.children:
                _hand_out(widget.children[str(widget.default)].widgets, (), 0, values)


def without_null(widget: Widget) -> Any:
    """What the editor puts in place of a null: a first choice, or an empty text; `None` else."""
    if widget.type == "COMBO":
        if isinstance(widget.default, list):  # of which several can be chosen
            return ""
        choices = widget.options.get("options")
        return widget.default if widget.children else choices[0] if choices else None
    is_long = widget.type == "STRING" and widget.options.get("multiline")
    return "" if is_long or widget.type == "MARKDOWN" else None
