"""Turning what a caller gives into what ComfyUI wants: type, range, choices, step."""

import json
from typing import Any

from comfy_runner.errors import Problem
from comfy_runner.graph.check import outside, reach, shown
from comfy_runner.graph.nodes import InputSpec

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})


class FileName(str):
    """A value that names a file of the request, so it fits only an input that takes one."""

    __slots__ = ()


class Unfit(Exception):
    """A value or an address that does not fit, and why; caught where all problems are listed."""

    def __init__(self, code: str | Problem, what: str = "", hint: str = "") -> None:
        self.problem = code if isinstance(code, Problem) else Problem(code, what, hint)


def coerce(spec: InputSpec, value: Any) -> Any:
    """The value as ComfyUI wants it for this input, checked for type, range, step and choices.

    Stricter than ComfyUI 0.30, which takes 64.9 for 64 and "false" for true. Text is read as a
    number or a truth value where one is wanted, since that is how the command line gives it.

    Raises: `Unfit`.
    """
    if spec.takes_file:
        if isinstance(value, str):
            return value
        raise Unfit("wrong_type", f"{shown(value)} is neither a file's name nor a URL.")
    if isinstance(value, FileName):
        what = f"It takes {'a model' if spec.folder else spec.type}, not a file."
        raise Unfit("no_file_input", what, "Give the value itself.")
    if spec.folder is not None and not isinstance(value, str):
        raise Unfit("wrong_type", f"{shown(value)} is not the name of a model.")
    match spec.type:
        case "INT":
            value = _whole_number(value)
        case "FLOAT":
            value = _number(value)
        case "BOOLEAN":
            value = _truth(value)
        case "STRING":
            value = _text(value)
        case "COMBO" | "COMFY_DYNAMICCOMBO_V3":
            value = _choice(spec, value)
    for problem in outside(spec, value):
        raise Unfit(problem)
    if spec.type == "INT":
        _check_step(spec, value)
    return value


def _whole_number(value: Any) -> int:
    if isinstance(value, bool):
        raise Unfit("wrong_type", f"{shown(value)} is not a whole number.")
    if isinstance(value, str):
        try:
            return int(value.strip())
        except ValueError:
            value = _number(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    raise Unfit("wrong_type", f"{shown(value)} is not a whole number.")


def _number(value: Any) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            pass
        else:
            if number - number == 0:  # neither infinite nor NaN
                return number
    raise Unfit("wrong_type", f"{shown(value)} is not a number.")


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise Unfit("wrong_type", f"{shown(value)} is neither true nor false.", "Write true or false.")


def _text(value: Any) -> str:
    match value:
        case str():
            return value
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            raise Unfit("wrong_type", f"{shown(value)} is not text.")


def _choice(spec: InputSpec, value: Any) -> Any:
    """The choice that reads like the value: a list may hold numbers where the caller gave text."""
    if spec.choices is None or isinstance(value, list) or value in spec.choices:
        return value
    return next((choice for choice in spec.choices if str(choice) == str(value)), value)


def _check_step(spec: InputSpec, value: int) -> None:
    """Whole numbers keep to their step as in the editor (1.47.12 `useIntWidget`): from min up."""
    step = spec.options.get("step")
    if not isinstance(step, int) or step <= 1:
        return
    low = spec.options.get("min", 0)
    over = (value - low) % step
    if over:
        raise Unfit(
            "off_step",
            f"{value} is not on its grid of {step} from {low}.",
            f"The nearest are {value - over} and {value - over + step}. {reach(spec)}".strip(),
        )
