"""Inputs of a model that are texts, numbers, switches and choices; each gives its value on."""

from numbers import Integral, Real

from .settings import CATEGORY, description_widget, name_widget

PLAIN = {
    str: (str, "a text"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
}
"""Python type of an output to what may be given for it, numpy's numbers too, and in words."""

FARTHEST = 2**53 - 1
"""Size of the limits that are none: integers beyond are inexact in the editor's JavaScript."""


class ComfyRunnerText:
    """A text."""

    DESCRIPTION = "A text that callers of the model can give."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("STRING",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """The name, the value and what is said of it."""
        return {
            "required": {
                "name": name_widget("text"),
                "value": ("STRING", {"default": "", "multiline": True}),
            },
            "optional": {"description": description_widget()},
        }

    def give(self, *, name, value, **_):
        """The value."""
        return (_plain(name, value, str),)


class ComfyRunnerInteger:
    """A whole number within limits."""

    DESCRIPTION = "A whole number that callers of the model can give, within these limits."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("INT",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """The name, the value, what is said of it, its limits and its grid."""
        return {
            "required": {"name": name_widget("integer"), "value": ("INT", _reach(0))},
            "optional": {
                "description": description_widget(),
                **_limits("INT", FARTHEST),
                "step": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": FARTHEST,
                        "tooltip": "The value is the minimum (0 without one) and a multiple of it.",
                        "socketless": True,
                    },
                ),
            },
        }

    def give(self, *, name, value, minimum=-FARTHEST, maximum=FARTHEST, step=1, **_):
        """The value. Raises: ValueError for one that is out of the limits or off the grid."""
        value = _plain(name, value, int)
        _check_limits(name, value, minimum, maximum)
        start = minimum if minimum > -FARTHEST else 0
        if (value - start) % step:
            raise ValueError(f"Input {name!r}: {value} is not on its grid of {step} from {start}.")
        return (value,)


class ComfyRunnerNumber:
    """A number within limits."""

    DESCRIPTION = "A number that callers of the model can give, within these limits."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """The name, the value, what is said of it, its limits and its step."""
        return {
            "required": {
                "name": name_widget("number"),
                "value": ("FLOAT", {**_reach(0.0), "step": 0.01}),
            },
            "optional": {
                "description": description_widget(),
                **_limits("FLOAT", float(FARTHEST)),
                "step": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": float(FARTHEST),
                        "step": 0.01,
                        "tooltip": "What a slider moves by. Any value within the limits is taken.",
                        "socketless": True,
                    },
                ),
            },
        }

    def give(self, *, name, value, minimum=-FARTHEST, maximum=FARTHEST, **_):
        """The value. Raises: ValueError for one that is out of the limits."""
        value = _plain(name, value, float)
        _check_limits(name, value, minimum, maximum)
        return (value,)


class ComfyRunnerSwitch:
    """True or false."""

    DESCRIPTION = "Something that callers of the model can switch on and off."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("BOOLEAN",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """The name, the value and what is said of it."""
        return {
            "required": {
                "name": name_widget("switch"),
                "value": ("BOOLEAN", {"default": False}),
            },
            "optional": {"description": description_widget()},
        }

    def give(self, *, name, value, **_):
        """The value."""
        return (_plain(name, value, bool),)


class ComfyRunnerChoice:
    """One of several texts."""

    DESCRIPTION = "A text out of a list, from which callers of the model can choose."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("STRING",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """The name, the value, the choices and what is said of it."""
        return {
            "required": {
                "name": name_widget("choice"),
                "value": ("STRING", {"default": "", "tooltip": "One of the choices."}),
                "choices": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "What can be chosen, each on a line of its own.",
                        "socketless": True,
                    },
                ),
            },
            "optional": {"description": description_widget()},
        }

    def give(self, *, name, value, choices, **_):
        """The value. Raises: ValueError for one that is not among the choices, if there are any."""
        value = _plain(name, value, str)
        known = [line.strip() for line in choices.splitlines() if line.strip()]
        if known and value not in known:
            told = ", ".join(known)
            raise ValueError(f"Input {name!r}: {value!r} is none of its choices: {told}.")
        return (value,)


def _plain(name, value, kind):
    """The value as exactly this type. A link from a node that gives anything may bring anything,
    and who takes a text or number from here relies on it.
    """
    taken, words = PLAIN[kind]
    if not isinstance(value, taken):
        raise TypeError(f"Input {name!r}: it takes {words}, not a {type(value).__name__}.")
    return kind(value)


def _reach(default):
    kind = type(default)
    return {"default": default, "min": kind(-FARTHEST), "max": kind(FARTHEST)}


def _limits(kind, farthest):
    """The widgets of the two limits; one that is at its own end is no limit."""
    own = {"min": -farthest, "max": farthest, "socketless": True}
    return {
        "minimum": (
            kind,
            {
                "default": -farthest,
                **own,
                "tooltip": "The smallest value; as it is, there is none.",
            },
        ),
        "maximum": (
            kind,
            {"default": farthest, **own, "tooltip": "The largest value; as it is, there is none."},
        ),
    }


def _check_limits(name, value, minimum, maximum):
    if minimum > maximum:
        what = f"its minimum {minimum} is above its maximum {maximum}. Change them in the node."
        raise ValueError(f"Input {name!r}: {what}")
    if value < minimum:
        raise ValueError(f"Input {name!r}: {value} is below its minimum {minimum}.")
    if value > maximum:
        raise ValueError(f"Input {name!r}: {value} is above its maximum {maximum}.")
