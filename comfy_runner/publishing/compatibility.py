"""What a model's callers meet when its inputs change, by the rules that cog-safe-push has.

The rules are those of `check_backwards_compatible` and `lint` in cog_safe_push/schema.py of
replicate/cog-safe-push. Where it compares less than callers would notice (unions, lengths,
patterns, the items of lists, an input that becomes required), this is stricter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_runner.errors import InvalidInput, Problem

Json = Mapping[str, Any]

SHOWN = 8
"""How many choices a sentence lists."""
_TYPES = {
    ("string", ""): "str",
    ("string", "uri"): "Path",
    ("string", "password"): "Secret",
    ("integer", ""): "int",
    ("number", ""): "float",
    ("boolean", ""): "bool",
    ("object", ""): "dict",
}
"""Type and format in a schema to what predict.py calls them."""
_LIMITS = (
    # key of a schema, what it is called, whether a higher value refuses more
    ("minimum", "minimum", True),
    ("maximum", "maximum", False),
    ("minLength", "least length", True),
    ("maxLength", "greatest length", False),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two interfaces."""

    breaking: bool
    """Whether a call that was right may now be refused or answered otherwise, so that
    cog-safe-push or a caller would object."""
    input: str
    """The input's name; empty for what concerns the output."""
    what: str
    """What has changed, as a sentence."""

    def __str__(self) -> str:
        mark = "! " if self.breaking else "  "
        return f"{mark}{self.input or 'output'}: {self.what}"

    def as_json(self) -> dict[str, Any]:
        """The change as a flat object: `breaking`, `input`, `what`."""
        return {"breaking": self.breaking, "input": self.input, "what": self.what}


def compare(old: Json, new: Json) -> list[Change]:
    """What `new` changes for those who call `old`: two OpenAPI documents as Cog writes them.

    Breaking changes come first; within both halves, those of inputs in the order of the document,
    then those of the output. Empty when nothing is different that a caller could notice.

    Raises: `InvalidInput` for a document without the inputs and output of a model.
    """
    before, after = _inputs(old, "OLD"), _inputs(new, "NEW")
    changes: list[Change] = []
    for name, was in before.items():
        if name not in after:
            changes.append(Change(True, name, "It is gone."))
            continue
        changes += [Change(breaks, name, what) for breaks, what in _differences(was, after[name])]
    changes += [_added(name, now) for name, now in after.items() if name not in before]
    changes += [Change(breaks, "", what) for breaks, what in _outputs(old, new)]
    return sorted(changes, key=lambda change: not change.breaking)


def lint(document: Json) -> list[Problem]:
    """What cog-safe-push would find wrong with the inputs: those without a description.

    Deprecated inputs need none. Raises: `InvalidInput` as `compare` does.
    """
    return [
        Problem("no_description", "It has no description.", "Say what it is for.", input=name)
        for name, each in _inputs(document, "schema").items()
        if not each.description and not each.deprecated
    ]


@dataclass(frozen=True, slots=True)
class _Input:
    """One input of a model, read from its schema."""

    type: str
    """What predict.py calls it, such as `list[Path]` or `int | str`."""
    variants: frozenset[str]
    choices: tuple[Any, ...] | None
    limits: Mapping[str, float]
    pattern: str
    has_default: bool
    default: Any
    required: bool
    description: str
    deprecated: bool
    accept: str


def _inputs(document: Json, field: str) -> dict[str, _Input]:
    match document:
        case {"components": {"schemas": {"Input": {"properties": dict(properties)} as whole}}}:
            schemas = document["components"]["schemas"]
            required = whole.get("required", ())
            return {
                name: _input(shape, schemas, required=name in required)
                for name, shape in properties.items()
            }
        case {"components": {"schemas": {"Input": dict()}}}:
            return {}
        case _:
            what = "It is no OpenAPI document of a Cog model: it has no components.schemas.Input."
            hint = "Give a project's folder or its .cog/openapi_schema.json."
            raise InvalidInput([Problem("no_schema", what, hint, input=field)])


def _input(shape: Json, schemas: Json, *, required: bool) -> _Input:
    choices = None
    match shape:
        case {"allOf": [{"$ref": str(reference)}, *_]}:
            values = schemas.get(reference.rpartition("/")[2], {})
            choices, kind = tuple(values.get("enum", ())), _type(values)
        case _:
            kind = _type(shape)
    limits = {key: shape[key] for key, _, _ in _LIMITS if key in shape}
    return _Input(
        type=kind,
        variants=frozenset(kind.split(" | ")),
        choices=choices,
        limits=limits,
        pattern=shape.get("pattern", ""),
        has_default="default" in shape,
        default=shape.get("default"),
        required=required,
        description=shape.get("description", ""),
        deprecated=shape.get("deprecated", False),
        accept=shape.get("x-cog-accept", ""),
    )


def _type(shape: Json) -> str:
    match shape:
        case {"anyOf": [*variants]}:
            return " | ".join(_type(variant) for variant in variants)
        case {"type": "array", "items": items}:
            return f"list[{_type(items)}]"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"dict[str, {_type(values)}]"
        case {"type": "object", "properties": dict(members)}:
            return "{" + ", ".join(f"{key}: {_type(each)}" for key, each in members.items()) + "}"
        case {"type": str(name)}:
            return _TYPES.get((name, shape.get("format", "")), name)
        case _:
            return "anything"


def _differences(was: _Input, now: _Input) -> Iterator[tuple[bool, str]]:
    """Whether it breaks, and the sentence."""
    if was.variants != now.variants:
        yield _retyped(was, now)
        return
    yield from _choices(was.choices, now.choices)
    yield from _limits(was.limits, now.limits)
    if now.pattern != was.pattern:
        what = f"It has to match {now.pattern!r} now" if now.pattern else "It may be any text now"
        yield bool(now.pattern), f"{what}, before {was.pattern!r}." if was.pattern else f"{what}."
    if now.required and not was.required:
        yield True, "It is required now."
    elif was.required and not now.required:
        yield False, f"It may be left out now{_preset(now)}."
    elif (was.has_default, was.default) != (now.has_default, now.default):
        yield False, f"Its default is {now.default!r} now, before {was.default!r}."
    if now.description != was.description:
        what = f"Its description is now: {now.description}"
        yield False, what if now.description else "Its description is gone."
    if now.deprecated != was.deprecated:
        yield False, "It is deprecated now." if now.deprecated else "It is no longer deprecated."
    if now.accept != was.accept:
        yield False, f"A browser offers {now.accept or 'all files'} for it now."


def _retyped(was: _Input, now: _Input) -> tuple[bool, str]:
    what = f"It is {now.type} now, before {was.type}"
    if not was.variants < now.variants:
        return True, f"{what}."
    # cog-safe-push looks at the type of an input that is no union, and a union has none.
    known = len(was.variants) == 1
    return known, f"{what}{', which cog-safe-push refuses although it takes more' * known}."


def _choices(
    was: tuple[Any, ...] | None, now: tuple[Any, ...] | None
) -> Iterator[tuple[bool, str]]:
    match was, now:
        case None, None:
            return
        case None, [*choices]:
            yield True, f"It takes only {_listed(choices)} now, before any value of its type."
        case [*_], None:
            # Its schema has no choices to look up then, and cog-safe-push ends with a KeyError.
            yield True, "It takes any value now, which cog-safe-push refuses: it had choices."
        case [*before], [*after]:
            if gone := [choice for choice in before if choice not in after]:
                yield True, f"It no longer takes {_listed(gone)}."
            if added := [choice for choice in after if choice not in before]:
                yield False, f"It takes {_listed(added)} as well."


def _limits(was: Mapping[str, float], now: Mapping[str, float]) -> Iterator[tuple[bool, str]]:
    for key, name, upward in _LIMITS:
        before, after = was.get(key), now.get(key)
        if before == after:
            continue
        if before is None:
            yield True, f"It has a {name} now: {_number(after)}."
        elif after is None:
            yield False, f"It has no {name} any more, before {_number(before)}."
        else:
            narrower = (after > before) is upward
            yield narrower, f"Its {name} is {_number(after)} now, before {_number(before)}."


def _added(name: str, now: _Input) -> Change:
    # As cog-safe-push has it: without a default it counts as required, even if it may be blank.
    if now.has_default:
        return Change(False, name, f"It is new{_preset(now)}.")
    if now.required:
        return Change(True, name, "It is new and required.")
    what = "It is new, and cog-safe-push takes it for required: give it default=None."
    return Change(True, name, what)


def _outputs(old: Json, new: Json) -> Iterator[tuple[bool, str]]:
    was, now = (
        _type(document["components"]["schemas"].get("Output", {})) for document in (old, new)
    )
    if was != now:
        yield True, f"It is {now} now, before {was}."
    before, after = (is_streaming(document) for document in (old, new))
    if before != after:
        yield before, f"It can {'no longer' if before else 'now'} be streamed."


def is_streaming(document: Json) -> bool:
    """Whether the model answers as a stream of events to those who ask for one."""
    match document:
        case {"paths": {"/predictions": {"post": {"x-cog-streaming": True}}}}:
            return True
        case _:
            return False


def _preset(now: _Input) -> str:
    return f"; its default is {now.default!r}" if now.default is not None else ""


def _number(value: float | None) -> str:
    """Without a fraction that is none, as a schema file has it."""
    return f"{value:.0f}" if value is not None and value == int(value) else f"{value}"


def _listed(choices: list[Any]) -> str:
    more = f" and {len(choices) - SHOWN} more" if len(choices) > SHOWN else ""
    return ", ".join(repr(choice) for choice in choices[:SHOWN]) + more
