"""The inputs of a prediction as somebody types them, made into what the model's schema wants."""

import base64
import json
import math
import mimetypes
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph.check import shown
from comfy_runner.graph.nodes import did_you_mean

Json = Mapping[str, Any]

MAX_FILES = 74 * 2**20
"""Bytes of files in one request: coglet 0.23 takes 100 MiB, and base64 adds a third."""
LISTED = 20
"""How many names or choices a message lists."""
SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
ADDRESS = re.compile(r"(https?://|data:)", re.IGNORECASE)


def typed(given: Sequence[str], document: Json) -> dict[str, Any]:
    """The values of a request from texts `NAME=VALUE`, by the OpenAPI document of the model.

    A value `@PATH` is a file, which becomes a data URI whatever the input's type, as `cog predict`
    does it; a text that begins with @ is written with two. The items of a list come one by one
    under the same name, or as JSON. Nothing after the `=` leaves out what is no text.

    Raises: `InvalidInput` with everything that does not fit, as far as names, types, choices and
    limits go, and with what is missing.
    """
    schemas = document["components"]["schemas"]
    shapes: Json = schemas["Input"].get("properties", {})
    required: Iterable[str] = schemas["Input"].get("required", ())
    texts: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for option in given:
        name, equals, text = option.partition("=")
        if not equals or not name:
            what = f"{shown(option)} has no value."
            problems.append(Problem("bad_option", what, "Write NAME=VALUE.", input="-i"))
        elif name not in shapes:
            hint = did_you_mean(name, shapes) or f"It has {_listed(shapes)}."
            what = "The model has no such input."
            problems.append(Problem("unknown_input", what, hint, input=name))
        else:
            texts.setdefault(name, []).append(text)
    values: dict[str, Any] = {}
    for name, each in texts.items():
        try:
            value = _value(name, each, _resolved(shapes[name], schemas))
        except _Unfit as err:
            problems.append(Problem(err.code, err.what, err.hint, input=name))
        else:
            values |= {} if value is None else {name: value}
    for name in required:
        if name not in texts:
            hint = f"Give -i {name}=VALUE. {shapes[name].get('description', '')}".strip()
            problems.append(Problem("missing_input", "It has to be given.", hint, input=name))
    if not problems:
        problems += _too_much(texts)
    if problems:
        raise InvalidInput(problems)
    return values


def _too_much(texts: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """A problem where files that fit one by one do not fit into one request."""
    paths = [
        Path(text[1:])
        for each in texts.values()
        for text in each
        if text.startswith("@") and not text.startswith("@@")
    ]
    size = sum(path.stat().st_size for path in paths)
    if size > MAX_FILES:
        what = f"The files have {size} bytes together, and a request to Cog holds {MAX_FILES}."
        yield Problem("large_files", what, "Give URLs of them.", input="-i")


class _Unfit(Exception):
    """A text that is no value of its input."""

    def __init__(self, code: str, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.code, self.what, self.hint = code, what, hint


def _resolved(shape: Json, schemas: Json) -> Json:
    """The shape with its choices in it."""
    match shape:
        case {"allOf": [{"$ref": str(reference)}, *_]}:
            choices: Json = schemas[reference.rpartition("/")[2]]
            return choices
        case _:
            return shape


def _value(name: str, texts: Sequence[str], shape: Json) -> Any:
    """The value of an input; None where it is left out."""
    if shape.get("type") == "array":
        if len(texts) == 1:
            if not texts[0]:
                return None
            if texts[0].startswith("["):
                return _json(texts[0], shape)
        return [_one(name, text, shape["items"]) for text in texts]
    if len(texts) > 1:
        raise _Unfit("given_twice", "It is given more than once.", "It takes one value.")
    (text,) = texts
    is_text = shape.get("type", "string") == "string" and shape.get("format") != "uri"
    return None if not text and not is_text else _one(name, text, shape)


def _one(name: str, text: str, shape: Json) -> Any:
    if "enum" in shape:
        return _choice(text, shape["enum"])
    if "anyOf" in shape:
        return _either(name, text, shape["anyOf"])
    if read := _READERS.get(shape.get("type", "")):
        return read(text, shape)
    return _text(name, text, is_file=shape.get("format") == "uri")


def _text(name: str, text: str, *, is_file: bool) -> str:
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@"):
        return _data_uri(Path(text[1:]))
    if is_file and not ADDRESS.match(text):
        found = f"Write {name}=@{text} to send that file." if _is_file(text) else ""
        hint = found or f"Write {name}=@PATH for a file of this machine, or a URL."
        raise _Unfit("no_file_given", f"{shown(text)} is no URL.", hint)
    return text


def _choice(text: str, choices: Sequence[Any]) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    names = [str(choice) for choice in choices]
    hint = did_you_mean(text, names) or f"It takes {_listed(names)}."
    raise _Unfit("no_such_choice", f"{shown(text)} is not one of the choices.", hint)


def _either(name: str, text: str, variants: Sequence[Json]) -> Any:
    """What the text is first, texts coming last since everything is one."""
    faults = []
    for shape in sorted(variants, key=lambda each: each.get("type") == "string"):
        try:
            return _one(name, text, shape)
        except _Unfit as err:
            faults.append(err.what)
    raise _Unfit("no_variant", " ".join(faults))


def _integer(text: str, shape: Json) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text):
        raise _Unfit("no_int", f"{shown(text)} is no whole number.")
    return _limited(int(text), shape)


def _number(text: str, shape: Json) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Unfit("no_float", f"{shown(text)} is no number.")
    return _limited(value, shape)


def _limited[Number: (int, float)](value: Number, shape: Json) -> Number:
    if "minimum" in shape and value < shape["minimum"]:
        raise _Unfit("too_small", f"{value} is below the minimum {shape['minimum']}.")
    if "maximum" in shape and value > shape["maximum"]:
        raise _Unfit("too_large", f"{value} is above the maximum {shape['maximum']}.")
    return value


def _switch(text: str, _: Json) -> bool:
    if text.lower() not in SWITCHES:
        raise _Unfit("no_bool", f"{shown(text)} is neither true nor false.")
    return SWITCHES[text.lower()]


def _json(text: str, shape: Json) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise _Unfit("no_json", f"It is not JSON: {err}.") from err
    kind, name = (list, "list") if shape["type"] == "array" else (dict, "object")
    if not isinstance(value, kind):
        raise _Unfit("no_json", f"It is no JSON {name}.")
    return value


_READERS: Mapping[str, Callable[[str, Json], Any]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _switch,
    "array": _json,
    "object": _json,
}


def _data_uri(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_FILES:
            what = f"{path} has {size} bytes, and a request to Cog holds {MAX_FILES}."
            raise _Unfit("large_file", what, "Give a URL of it.")
        content = path.read_bytes()
    except OSError as err:
        hint = "Check the path; a text that begins with @ is written with two: @@."
        raise _Unfit("no_file", f"{path} cannot be read: {err.strerror}.", hint) from err
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no file can be called so
        return False


def _listed(names: Iterable[str]) -> str:
    known = [*names]
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return ", ".join(known[:LISTED]) + more
