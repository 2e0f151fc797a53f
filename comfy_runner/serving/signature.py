"""What the class in predict.py takes and returns, read from its text as Cog's command line does.

Cog never runs predict.py. What it refuses, drops or garbles is a `Problem` here, and so is what
it reads but no predict.py of ours needs: inherited `run`, quoted annotations, `Annotated`,
`TypedDict`, models as output of `run`, shared `Input` objects, training classes. Its rules stand
in replicate/cog at 6110c912 (0.22.0, the last before 0.23.0):
`pkg/schema/{types,schema_type,python/*}.go`.
"""

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.serving.literals import Source, Wrong

type _Method = ast.FunctionDef | ast.AsyncFunctionDef

_JSON = ("str", "int", "float", "bool", "dict")
_FILES = ("Path", "File")
_SCALARS = (*_JSON, *_FILES, "Secret")
_LITERALS = {"int": (int,), "float": (int, float), "bool": (bool,), "dict": (dict,)}
"""The Python types that stand for a scalar; without an entry, str."""
_SYNONYMS = {
    "Dict": "dict",
    "List": "list",
    "AsyncIterator": "Iterator",
    "AsyncConcatenateIterator": "ConcatenateIterator",
}
_SETTINGS: Mapping[str, tuple[Callable[[Source, ast.expr], Any], Sequence[str]]] = {
    "default": (Source.value, ()),
    "description": (Source.value, ()),
    "deprecated": (Source.literal, ()),
    "ge": (Source.limit, ("int", "float")),
    "le": (Source.limit, ("int", "float")),
    "min_length": (Source.length, ("str",)),
    "max_length": (Source.length, ("str",)),
    "regex": (Source.literal, ("str",)),
    "accept": (Source.literal, _FILES),
    "choices": (Source.choices, ("str", "int", "float", "bool")),
}
"""The arguments of `Input`: how each is read, and on which types it has an effect; () for all."""
_KINDS = {"description": str, "regex": str, "accept": str, "deprecated": bool}
_INPUT_TYPES = (
    "Use str, int, float, bool, Path, Secret, dict, list[...] of these, Optional[...] of these, "
    "or a union of str, int, float, bool, dict and lists of these."
)
_OUTPUT_TYPES = "Use str, int, float, bool, Path, dict, Any, list[...] or Iterator[...]."


@dataclass(frozen=True, slots=True)
class Type:
    """What an annotation says."""

    name: str
    """A scalar such as `str` or `Path`, `list`, `Union`, `Iterator` or `ConcatenateIterator`."""
    members: tuple["Type", ...] = ()
    """The type of the items or of an output dict's values, or a union's variants."""
    nullable: bool = False

    def takes(self, value: object) -> bool:
        """Whether a default or choice is of this type; None only where null may be sent."""
        match self.name, value:
            case _, None:
                return self.nullable
            case "Union", _:
                return any(member.takes(value) for member in self.members)
            case "list", _:
                return isinstance(value, list) and all(map(self.members[0].takes, value))
        # Not isinstance: a bool is an int to Python, but not to JSON.
        return type(value) in _LITERALS.get(self.name, (str,))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One input."""

    name: str
    type: Type
    settings: Mapping[str, Any]
    """What `Input` is told by name, or by a plain default; None only for `default`."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a class takes, in the order of its source, and what it returns."""

    parameters: tuple[Parameter, ...]
    output: Type
    streaming: bool


def read(text: str, class_name: str) -> Signature:
    """The signature of a class's `run` (or `predict`) in the text of a predict.py.

    Raises: `InvalidInput` with everything that is wrong; `Problem.input` is the name of the
    parameter, empty for what concerns the method or the file.
    """
    reader = _reader(text)
    found = None
    with reader.collecting():
        found = reader.signature(class_name)
    if found is None or reader.problems:
        raise InvalidInput(reader.problems)
    return found


@dataclass(frozen=True, slots=True)
class Training:
    """What a training function takes, in the order of its source, and what it returns."""

    parameters: tuple[Parameter, ...]
    output: Mapping[str, Type]
    """The fields of the model that it returns, none of which has a default."""


def read_training(text: str, name: str) -> Training:
    """The signature of a function `name` at the top level of the text of a train.py.

    Raises: as `read`.
    """
    reader = _reader(text)
    found = None
    with reader.collecting():
        found = reader.training(name)
    if found is None or reader.problems:
        raise InvalidInput(reader.problems)
    return found


def _reader(text: str) -> "_Reader":
    try:
        return _Reader(Source(text))
    except SyntaxError as err:
        what = f"This is not Python: {err.msg} (line {err.lineno})."
        raise InvalidInput([Problem("syntax_error", what)]) from err


class _Reader:
    def __init__(self, source: Source) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._imports = {
            alias.asname or alias.name: alias.name
            if isinstance(node, ast.Import)
            else f"{node.module}.{alias.name}"
            for node in source.tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }

    @contextmanager
    def collecting(self, parameter: str = "") -> Iterator[None]:
        """Turns a `Wrong` raised in its body into a problem of that parameter, and goes on."""
        try:
            yield
        except Wrong as err:
            self.problems.append(Problem(err.code, err.what, err.hint, input=parameter))

    def signature(self, class_name: str) -> Signature:
        method = _method(self._source.tree, class_name)
        streaming = False
        with self.collecting():
            streaming = self._streams(method)
        parameters = self._parameters(self._arguments(method.args))
        if method.returns is None:
            raise Wrong("missing_return_type", "It has no return type.", "Write Iterator[Path].")
        output = _output(_annotation(method.returns))
        self._check_spelling(method.returns)
        if streaming and not output.name.endswith("Iterator"):
            what = f"{method.name} is to stream, but returns no iterator."
            raise Wrong("streaming_without_iterator", what, "Return Iterator[...].")
        return Signature(parameters, output, streaming)

    def training(self, name: str) -> Training:
        body = self._source.tree.body
        functions = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
        if len(functions) != 1:
            what = f"There are {len(functions)} functions {name} at the top level."
            raise Wrong("function_not_found", what, "Define it once, not in an if.")
        (function,) = functions
        parameters = self._parameters(self._arguments(function.args, first=None))
        returned = "" if function.returns is None else _annotation(function.returns).name
        models = [n for n in body if isinstance(n, ast.ClassDef) and n.name == returned]
        if len(models) != 1 or [ast.unparse(base) for base in models[0].bases] != ["BaseModel"]:
            what = "It does not return a BaseModel of its own file."
            raise Wrong("unsupported_output", what, "Return TrainingOutput(weights=...).")
        output = {}
        for field in models[0].body:
            match field:
                case ast.AnnAssign(target=ast.Name(id=key), annotation=annotation, value=None):
                    output[key] = _output(_annotation(annotation), inner=True)
                case ast.Expr(value=ast.Constant(value=str())):
                    pass  # its docstring
                case _:
                    what = f"{returned} has more than fields without defaults."
                    raise Wrong("unsupported_output", what, "Write weights: Path alone.")
        return Training(parameters, output)

    def _parameters(
        self, arguments: Sequence[tuple[ast.arg, ast.expr | None]]
    ) -> tuple[Parameter, ...]:
        parameters = []
        for arg, default in arguments:
            with self.collecting(arg.arg):
                parameters.append(self._parameter(arg, default))
        return tuple(parameters)

    def _streams(self, method: _Method) -> bool:
        found = False
        for decorator in method.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            head, dot, tail = ast.unparse(called).partition(".")
            match f"{self._imports.get(head, head)}{dot}{tail}".split("."):
                case ["cog", "streaming"]:
                    self._source.check_bare(decorator)
                    found = True
                case [*_, "streaming"]:
                    what = "Cog does not recognise this @streaming."
                    raise Wrong("unknown_streaming", what, "Write import cog and @cog.streaming.")
                case [*_, "concurrent"]:
                    raise Wrong("concurrent", "There is one run at a time.", "Take this away.")
        return found

    def _arguments(
        self, args: ast.arguments, *, first: str | None = "self"
    ) -> list[tuple[ast.arg, ast.expr | None]]:
        """The inputs with their default expressions; `first` is no input, and must be there."""
        for arg in filter(None, (args.vararg, args.kwarg)):
            with self.collecting(arg.arg):
                raise Wrong("star_parameter", "Cog ignores it for its stars.", "Name each input.")
        plain = [*args.posonlyargs, *args.args]
        both = [*zip_longest(plain[::-1], args.defaults[::-1])][::-1]
        with self.collecting():
            if args.posonlyargs:
                raise Wrong("positional_only", "Cog passes inputs by name.", "Take the / away.")
            if first is None:
                both = [(ast.arg(""), None), *both]
            elif not plain or plain[0].arg != first or plain[0].annotation or both[0][1]:
                raise Wrong("no_self", "The first parameter is not a plain self.", "Write self.")
        return [*both[1:], *zip(args.kwonlyargs, args.kw_defaults, strict=True)]

    def _check_spelling(self, annotation: ast.expr) -> None:
        self._source.check_bare(annotation)
        text, plain = self._source.text(annotation), ast.unparse(annotation)
        if text != plain:
            what = f"Cog may not read the annotation {' '.join(text.split())}."
            raise Wrong("unreadable_annotation", what, f"Write {plain}, on one line.")

    # One input

    def _parameter(self, arg: ast.arg, default: ast.expr | None) -> Parameter:
        if arg.annotation is None:
            raise Wrong("missing_annotation", "It has no annotation.", f"Write {arg.arg}: str.")
        if not arg.arg.isascii():
            raise Wrong("bad_name", "Cog garbles names beyond ASCII.", "Rename it.")
        kind = _input(_annotation(arg.annotation))
        self._check_spelling(arg.annotation)
        settings = self._settings(arg.arg, default)
        if kind.name == "Secret" and settings.get("default", "") is None:
            # For a Secret, and for nothing else, Cog takes None to mean that it may be left out.
            kind = replace(kind, nullable=True)
        _check(arg.arg, kind, settings)
        return Parameter(arg.arg, kind, settings)

    def _settings(self, name: str, node: ast.expr | None) -> Mapping[str, Any]:
        match node:
            case None:
                return {}
            case ast.Call(func=ast.Name(id=called)) if (
                called == "Input" or self._imports.get(called) == "cog.Input"
            ):
                self._source.check_bare(node)
            case _:
                return {"default": self._source.value(node)}
        for argument in node.args:
            with self.collecting(name):
                text = ast.unparse(argument)
                raise Wrong("unnamed_setting", f"Cog ignores {text}.", f"Write default={text}.")
        settings: dict[str, Any] = {}
        for keyword in node.keywords:
            with self.collecting(name):
                setting, unset = keyword.arg or "**", ast.unparse(keyword.value) == "None"
                if setting not in _SETTINGS:
                    what = f"Cog ignores {setting} of Input."
                    raise Wrong("unknown_setting", what, f"It reads {', '.join(_SETTINGS)}.")
                if unset and setting not in ("default", "choices"):
                    continue  # Cog does the same.
                value = _SETTINGS[setting][0](self._source, keyword.value)
                if not isinstance(value, _KINDS.get(setting, object)):
                    raise Wrong("not_literal", f"{value!r} is no {setting}.", "Write one literal.")
                settings[setting] = value
        return settings


def _method(tree: ast.Module, class_name: str) -> _Method:
    bodies = [n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name]
    if len(bodies) != 1:
        what = f"There are {len(bodies)} classes {class_name} at the top level."
        raise Wrong("class_not_found", what, "Define it once, not in an if.")
    functions = [n for n in bodies[0] if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    methods = [function for function in functions if function.name in ("run", "predict")]
    if not methods:
        raise Wrong("method_not_found", f"{class_name} has no run of its own.", "Define it there.")
    if len(methods) > 1:
        raise Wrong("method_conflict", f"{class_name} has run or predict twice.", "Keep one run.")
    return methods[0]


def _annotation(node: ast.expr) -> Type:
    """An annotation as a tree of names. Cog goes by these alone, whatever they were imported as."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            first = _annotation(left)
            before = first.members if isinstance(left, ast.BinOp) else (first,)
            return Type("Union", (*before, _annotation(right)))
        case ast.Subscript(value=outer, slice=inner):
            members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return Type(_annotation(outer).name, tuple(map(_annotation, members)))
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(), attr=name):
            return Type(_SYNONYMS.get(name, name))
    return Type(ast.unparse(node))


def _input(found: Type) -> Type:
    """The annotation of an input, as far as Cog knows it."""
    match found:
        case Type("dict"):
            return Type("dict")
        case Type(name, ()) if name in _SCALARS:
            return found
        case Type("Optional", (one,)):
            return replace(_input(one), nullable=True)
        case Type("list", (one,)):
            item = _input(one)
            if item.name in _SCALARS and not item.nullable:
                return Type("list", (item,))
        case Type("Union", members) if all(member.name != "Union" for member in members):
            variants = tuple(_input(member) for member in members if member.name != "None")
            nullable = len(variants) < len(members)
            if len(variants) == 1 and variants[0].name != "Union":
                return replace(variants[0], nullable=variants[0].nullable or nullable)
            items = {(v.members[0] if v.name == "list" else v).name for v in variants}
            if variants and items <= {*_JSON} and not any(v.nullable for v in variants):
                return Type("Union", variants, nullable)
    raise Wrong("unsupported_type", "Cog has no such type for an input.", _INPUT_TYPES)


def _output(found: Type, inner: bool = False) -> Type:
    """The annotation of an output, or what is inner to one, as far as Cog knows it."""
    match found:
        case Type("Iterator", (item,)) if not inner:
            return Type("Iterator", (_output(item, inner=True),))
        case Type("ConcatenateIterator", (Type("str", ()),)) if not inner:
            return found
        case Type("dict", (_, value)):
            return Type("dict", (_output(value, inner=True),))
        case Type("list", items) if len(items) <= 1:
            return Type("list", tuple(_output(item, inner=True) for item in items or [Type("Any")]))
        case Type("Any", ()):
            return Type("dict")
        case Type(name, ()) if name in _SCALARS:
            return found
    raise Wrong("unsupported_output", "Cog has no such type for an output.", _OUTPUT_TYPES)


def _check(name: str, kind: Type, settings: Mapping[str, Any]) -> None:
    """Refuses settings without effect, and choices and defaults that no request could hold."""
    for setting in settings:
        _, suits = _SETTINGS[setting]
        # Of a list only `accept` means the items.
        base = kind.members[0].name if (setting, kind.name) == ("accept", "list") else kind.name
        if suits and base not in suits:
            what = f"{setting} has no effect on this type."
            raise Wrong("useless_setting", what, f"It is for {', '.join(suits)} only.")
    default, choices = settings.get("default"), settings.get("choices")
    if choices is not None:
        known = None not in choices and all(map(kind.takes, choices))
        if not choices or not known or len(set(choices)) < len(choices):
            what = "The choices are none, or one is there twice or not of the annotated type."
            raise Wrong("bad_choice", what, "List different values of that type.")
        if name[0].isupper():
            raise Wrong("bad_name", "Cog may define this name itself.", "Begin it in lower case.")
    if default is None and "default" in settings and not kind.nullable:
        raise Wrong("none_default", "Cog ignores None for this type.", "Write Optional[...].")
    if default is not None:
        least, most = settings.get("ge", -math.inf), settings.get("le", math.inf)
        within = type(default) not in (int, float) or least <= default <= most
        if not kind.takes(default) or not within or default not in (choices or [default]):
            what = "The default is not of the annotated type, or outside the limits or choices."
            raise Wrong("bad_default", what, "Make it a value that a request could give.")
