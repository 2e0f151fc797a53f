"""PrimitiveNode: a value that is written into every widget it is connected to.

Rules are those of the front end 1.47.12 (`extensions/core/widgetInputs.ts`,
`widgetValuePropagation.ts`, `useIntWidget.ts`, `useFloatWidget.ts`, `utils/nodeDefUtil.ts`).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from comfy_runner.convert.network import Kind, NetNode, Network, reached
from comfy_runner.convert.shapes import MISSING, WIDGETS, Widget
from comfy_runner.convert.widgets import slots_of, widget_of, without_null

NUMBERS = ("INT", "FLOAT")
"""Types of widgets that hold numbers."""

IGNORED = frozenset(
    {"default", "forceInput", "defaultInput", "control_after_generate", "multiline"}
    | {"tooltip", "dynamicPrompts"}
)
"""Options in which two widgets may differ and still take one number."""

MERGED = frozenset({"min", "max", "step"})
"""Options of which two widgets take what they have in common."""

EXACT = 2**53
"""Numbers from here on have no digits after the point."""

DECIMAL = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.ASCII | re.IGNORECASE)
"""What JavaScript reads as a number too: `inf` and `1_000` are numbers for Python alone."""

type Options = Mapping[str, Any]

WIDGET = "value"
"""What the widget of a PrimitiveNode is called, in `%Node.value%` for one."""


def push(networks: Sequence[Network], replace_text: Callable[[str], str]) -> None:
    """Write the value of every PrimitiveNode into its targets, muted or not.

    A number is brought into the range and onto the steps that its targets have in common, and then
    onto those of each. `replace_text` writes out `%Node.widget%` and dates, where the node says so.
    Through a Reroute, into a socket or into an instance nothing is written, and the target keeps
    its own value; where the first link leads to no widget, all of them do.
    """
    driving = [
        (primitive, targets)
        for network in networks
        for primitive in network.nodes.values()
        if primitive.kind is Kind.PRIMITIVE and (targets := _targets(network, primitive))
    ]
    for primitive, targets in driving:
        value = _value(primitive, targets)
        if value is not MISSING:
            primitive.values[WIDGET] = value
    for primitive, targets in driving:
        value = primitive.values.get(WIDGET, MISSING)
        if value is MISSING:
            continue
        if isinstance(value, str) and primitive.node.properties.get("Run widget replace on values"):
            value = replace_text(value)
        for target in targets:
            target.node.values[target.name] = _as_typed(value, target.widget)


class _Target(NamedTuple):
    """A widget that a PrimitiveNode writes into."""

    node: NetNode
    name: str
    widget: Widget


def _targets(network: Network, primitive: NetNode) -> list[_Target]:
    ends = reached(network, primitive)
    if not ends or ends[0] is None or not _is_widget_like(*ends[0]):
        return []
    found = []
    for node, name in filter(None, ends):
        widget = widget_of(node.shape, node.values, name) if node.shape is not None else None
        if widget is not None and name in node.values:
            found.append(_Target(node, name, widget))
    return found


def _is_widget_like(node: NetNode, name: str) -> bool:
    """Whether a PrimitiveNode takes its kind from an input: from a widget, or a widget's type."""
    if node.shape is None:
        return node.kind is Kind.INSTANCE
    return name in node.values or any(
        item.name == name and item.type in WIDGETS for item in slots_of(node.shape, node.values)
    )


def _value(primitive: NetNode, targets: Sequence[_Target]) -> Any:
    stored = primitive.node.values
    first = targets[0]
    value = stored[0] if isinstance(stored, list) and stored else first.node.values[first.name]
    if first.widget.type in NUMBERS:
        return _in_common(value, [target.widget for target in targets])
    return without_null(first.widget) if value is None else value


def _in_common(value: Any, widgets: Sequence[Widget]) -> Any:
    """A number as all these take it, but for those whose options contradict the first ones'."""
    value = _number(value)
    merged: Options | None = None
    for widget in widgets:
        if widget.type == widgets[0].type and isinstance(value, int | float):
            options = _merged(merged, widget.options)
            if options is not None:
                merged = options
                value = _fitted(value, merged, whole=widget.type == "INT")
    return value


def _as_typed(value: Any, widget: Widget) -> Any:
    """A value as a widget keeps it when it is typed in: a number stands on its steps."""
    if widget.type not in NUMBERS:
        return value
    value = _number(value)
    return (
        _typed(value, widget.options, whole=widget.type == "INT")
        if isinstance(value, int | float)
        else value
    )


def _number(value: Any) -> Any:
    """A value as JavaScript counts with it, where it can be a number."""
    if value is None or isinstance(value, bool):
        return int(value or 0)
    if isinstance(value, str) and not value.strip():
        return 0
    return float(value) if isinstance(value, str) and DECIMAL.fullmatch(value) else value


def _merged(one: Options | None, other: Options) -> Options | None:
    """The options that a number for both must keep to; `None` where they contradict each other.

    Without `one` they are those of the other alone.
    """
    if one is None:
        one = other
    lows = [bound for bound in (_bound(one, "min"), _bound(other, "min")) if bound is not None]
    highs = [bound for bound in (_bound(one, "max"), _bound(other, "max")) if bound is not None]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        return None
    for key in (one.keys() | other.keys()) - IGNORED - MERGED:
        if one.get(key) != other.get(key):
            return None
    return {**one, **other, "min": low, "max": high, "step": _common(_step(one), _step(other))}


def _fitted(value: float, options: Options, *, whole: bool) -> float:
    """A number in the range of merged options and on their steps."""
    low, high = _bound(options, "min"), _bound(options, "max")
    return _on_steps(_clamped(value, low, high), options, low, high, whole=whole)


def _typed(value: float, options: Options, *, whole: bool) -> float:
    """A number as one widget keeps it: on its steps, and a float in its range too."""
    low, high = _bound(options, "min"), _bound(options, "max")
    low, high = 0 if low is None else low, 2048 if high is None else high
    return _on_steps(value, options, low, high, whole=whole)


def _on_steps(
    value: float, options: Options, low: float | None, high: float | None, *, whole: bool
) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        return value
    if whole:
        return _whole(value, _step(options), low or 0)
    precision = max(0, -math.floor(math.log10(_step(options, 0.5))))
    grain = _bound(options, "round") or (10**-precision if precision else 0)
    if grain <= 0 or abs(value) >= EXACT:
        return _clamped(value, low, high)
    rounded = Decimal(math.floor(value / grain + 0.5) * grain)
    exact = rounded.quantize(Decimal(1).scaleb(-precision), ROUND_HALF_UP)
    return _clamped(float(exact), low, high)


def _whole(value: float, step: float, low: float) -> float:
    if step == 1:
        return value if isinstance(value, int) else math.floor(value + 0.5)
    offset = math.fmod(low, step)
    on_step = math.floor((value - offset) / step + 0.5) * step + offset
    return int(on_step) if on_step == int(on_step) else on_step


def _clamped(value: float, low: float | None, high: float | None) -> float:
    if low is not None and value < low:
        value = low
    return high if high is not None and value > high else value


def _bound(options: Options, name: str) -> float | None:
    bound = options.get(name)
    return bound if isinstance(bound, int | float) and not isinstance(bound, bool) else None


def _step(options: Options, default: float = 1) -> float:
    step = _bound(options, "step")
    return step if step is not None and step > 0 and math.isfinite(step) else default


def _common(one: float, other: float) -> float:
    """The least number that is a multiple of both."""
    if one == other:
        return one
    left, right = Fraction(str(one)), Fraction(str(other))
    number = math.lcm(left.numerator * right.denominator, right.numerator * left.denominator)
    common = Fraction(number, left.denominator * right.denominator)
    return int(common) if common.denominator == 1 else float(common)
