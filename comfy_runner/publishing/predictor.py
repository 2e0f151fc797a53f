"""The text of a model's predict.py, from its interface; and its lists of choices written anew."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.publishing.interface import Interface, Param
from comfy_runner.publishing.literals import (
    exploded,
    is_short,
    listed,
    one_line,
    settled,
    signature_text,
    signature_value,
    written,
)

DOCUMENT = "workflows/workflow.json"
"""Where a model's workflow stands, seen from its project folder."""

MARKS = ("# begin: yours", "# end: yours")
"""Lines between which the author's own code is kept (`marks`)."""

MARK = re.compile(r"^# choices from (\S.*), written anew by comfy-runner schema$", re.MULTILINE)
"""The line above a list of choices that is written anew."""

RUN = '"""Run the workflow and yield each result file the moment its node has made it."""'
ALONE = "    def run(self) -> Iterator[Path]:"
SEED = "Seed; blank for a random one, which the log and the metrics tell."
FORMAT = (
    "Format of pictures; original is as the workflow made them. What a format cannot hold, such as"
    " transparency in jpg, stays original."
)
QUALITY = "Quality of jpg and webp pictures; 100 makes webp lossless."
TOKENS = {
    "hf_token": "Hugging Face token for private and gated weights; sent to huggingface.co only.",
    "civitai_token": "CivitAI token for private weights; sent to civitai.com only.",
}


def predictor(interface: Interface, name: str) -> str:
    """The text of predict.py for a model of that name, as ruff's formatter leaves it.

    Cog reads it as it stands: whatever no literal can hold is left to the workflow (`settled`).
    Between its marks (`marks.carried`) stands what is the author's: after the imports, in `setup`
    after the model, and in `run` before the results, where `values` may be changed.
    """
    params = [settled(param) for param in interface.params]
    inputs = [*map(_parameter, params), *_common(interface)]
    used = {"Input": inputs, "Secret": interface.tokens}
    names = ["BaseRunner", "Input", "Path", "Secret", "streaming"]
    names = [each for each in names if used.get(each, True)]
    title = re.sub(r"[^\w .,:()+-]+", " ", name).strip() or "This"
    lines = [
        f'"""{title}: a Cog model of the ComfyUI workflow in {DOCUMENT}."""',
        "",
        "from typing import Iterator",
        "",
        f"from cog import {', '.join(names)}",
        "",
        "from comfy_runner.serving.model import Model",
        "",
        *MARKS,
    ]
    for param in params:
        if param.choices_from:
            lines += ["", *_constant(param)]
    lines += [
        "",
        "",
        "class Predictor(BaseRunner):",
        "    def setup(self, weights: str | None = None) -> None:",
        '        """Boot ComfyUI and fetch what the workflow needs."""',
        _call("        self.model = Model", _model_arguments(interface)),
        *(f"        {mark}" for mark in MARKS),
        "",
        "    def healthcheck(self) -> bool:",
        '        """Whether predictions can be taken."""',
        "        return self.model.is_healthy()",
        "",
        "    @streaming",
        *(
            ["    def run(", "        self,", *inputs, "    ) -> Iterator[Path]:"]
            if inputs
            else [ALONE]
        ),
        f"        {RUN}",
        *_values(params, interface.fixed),
        *(f"        {mark}" for mark in MARKS),
        _call("        results = self.model.run", _run_arguments(interface)),
        "        for path in results:",
        "            yield Path(path)",
        "",
    ]
    return "\n".join(lines)


def refresh_choices(text: str, lists: Callable[[str], Sequence[str]]) -> str:
    """The same predict.py with every list of choices that has a source as `lists` gives it now.

    Everything else stays as it is.

    Raises: `InvalidInput` for a source without names, for names that no literal can hold, for a
    default that fell out of its list, for a list that cannot be found below its mark, and for what
    is no Python.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as err:
        what = f"This is not Python: {err.msg} (line {err.lineno})."
        raise InvalidInput([Problem("syntax_error", what)]) from err
    raw = text.encode().splitlines(keepends=True)
    problems: list[Problem] = []
    changes: list[tuple[int, int, str]] = []
    for found in MARK.finditer(text):
        source = found[1]
        row = text.count("\n", 0, found.start()) + 2
        node = next((n for n in tree.body if isinstance(n, ast.Assign) and n.lineno == row), None)
        match node:
            case ast.Assign(targets=[ast.Name(id=constant)], value=ast.List(end_lineno=int(last))):
                names = list(lists(source))
                problems += _why_not(tree, constant, source, names)
                items = [signature_text(each) or "" for each in names]
                line = f"{constant} = {listed(items, 0, len(constant) + 3)}\n"
                changes.append((row - 1, last, line))
            case _:
                what = f"There is no list below the line that says {found[0]!r}."
                problems.append(Problem("bad_marks", what, "Put NAME = [...] right below it."))
    if problems:
        raise InvalidInput(problems)
    for first, last, line in reversed(changes):
        raw[first:last] = [line.encode()]
    return b"".join(raw).decode()


def _why_not(
    tree: ast.Module, constant: str, source: str, names: Sequence[str]
) -> Iterable[Problem]:
    """What is wrong with new choices."""
    if not names:
        yield Problem("no_choices", f"There is nothing in {source}.", "Fetch the models first.")
    for name in names:
        if signature_text(name) is None:
            what = f"{name!r} of {source} cannot be written in predict.py."
            yield Problem("bad_choice", what, "Rename the file.")
    for method in ast.walk(tree):
        if not isinstance(method, ast.FunctionDef):
            continue
        both = [*zip(method.args.args[::-1], method.args.defaults[::-1], strict=False)]
        for argument, value in both:
            settings = (
                {each.arg: each.value for each in value.keywords}
                if isinstance(value, ast.Call)
                else {}
            )
            match settings.get("choices"), settings.get("default"):
                case ast.Name(id=used), ast.Constant(value=str(default)) if used == constant:
                    if names and default not in names:
                        what = f"Its default {default!r} is not in {source} any more."
                        hint = f"Fetch it again, or choose another: {', '.join(names[:5])}."
                        yield Problem("lost_default", what, hint, input=argument.arg)


def _constant(param: Param) -> list[str]:
    name = f"{param.name.upper()}_CHOICES"
    items = [signature_value(choice) or "" for choice in param.choices or ()]
    return [
        f"# choices from {param.choices_from}, written anew by comfy-runner schema",
        f"{name} = {listed(items, 0, len(name) + 3)}",
    ]


def _parameter(param: Param) -> str:
    """One parameter of `run`."""
    settings = {"description": signature_text(param.description) or '""'}
    if param.blank:
        settings["default"] = "None"
    elif not param.required:
        default = float(param.default) if param.kind == "float" else param.default
        settings["default"] = signature_value(default) or '""'
    for name, limit in (("ge", param.minimum), ("le", param.maximum)):
        if limit is not None:
            bound = int(limit) if param.kind == "int" else float(limit)
            settings[name] = signature_value(bound) or "0"
    if param.choices is not None:
        if param.choices_from:
            settings["choices"] = f"{param.name.upper()}_CHOICES"
        else:
            items = [signature_value(choice) or "" for choice in param.choices]
            settings["choices"] = listed(items, 12, len("choices=,"))
    if param.accept:
        settings["accept"] = signature_text(param.accept) or '""'
    return _input(param.name, f"{param.kind}{' | None' if param.blank else ''}", settings)


def _common(interface: Interface) -> list[str]:
    """The parameters that do not come from the workflow's own inputs."""
    made = []
    if interface.seed:
        settings = {"description": f'"{SEED}"', "default": "None", "ge": "0"}
        made.append(_input("seed", "int | None", settings))
    if interface.pictures:
        choices = '["original", "webp", "jpg", "png"]'
        settings = {"description": f'"{FORMAT}"', "default": '"original"', "choices": choices}
        made.append(_input("output_format", "str", settings))
        settings = {"description": f'"{QUALITY}"', "default": "95", "ge": "0", "le": "100"}
        made.append(_input("output_quality", "int", settings))
    for name in interface.tokens:
        settings = {"description": f'"{TOKENS[name]}"', "default": "None"}
        made.append(_input(name, "Secret | None", settings))
    return made


def _input(name: str, kind: str, settings: Mapping[str, str]) -> str:
    arguments = [f"{each}={value}" for each, value in settings.items()]
    return f"{_call(f'        {name}: {kind} = Input', arguments, 1)},"


def _model_arguments(interface: Interface) -> list[str]:
    made = [f'"{DOCUMENT}"']
    if interface.outputs:
        made.append(f"outputs={written(list(interface.outputs), 12, len('outputs=,'))}")
    if interface.tokens:  # some weights can be had only with what a caller gives
        made.append("fetch=False")
    return [*made, "weights=weights"]


def _run_arguments(interface: Interface) -> list[str]:
    names = ["seed"] if interface.seed else []
    names += ["output_format", "output_quality"] if interface.pictures else []
    names += interface.tokens
    return ["values", *(f"{name}={name}" for name in names), "record_metric=self.record_metric"]


def _values(params: Sequence[Param], fixed: Mapping[str, object]) -> list[str]:
    """What `run` sets, address by address."""
    # A node's id may be any text.
    items = [f"{one_line(target)}: {param.name}" for param in params for target in param.targets]
    for target, value in fixed.items():
        key = one_line(target)
        items.append(f"{key}: {written(value, 12, len(key) + 3)}")
    return [f"        values = {exploded('{', items, '}', 8) if items else '{}'}"]


def _call(begin: str, arguments: Sequence[str], after: int = 0) -> str:
    """A call on one line where it fits with `after` more characters, else a line for each."""
    line = f"{begin}({', '.join(arguments)})"
    if is_short(line, after):
        return line
    return begin + exploded("(", arguments, ")", len(begin) - len(begin.lstrip()))
