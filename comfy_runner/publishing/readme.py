"""The README of a generated project: its tables and its example calls."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from comfy_runner.fetch.urls import scheme
from comfy_runner.graph.workflow import Workflow
from comfy_runner.publishing.interface import Interface, Param
from comfy_runner.weights.weight import Weight, human_size

LONGEST_DEFAULT = 60
"""Letters of a default that the table shows."""
MOST_CHOICES = 8
"""Choices that the table lists."""

NO_WEIGHTS = "The workflow needs none."


def fields(
    interface: Interface,
    workflow: Workflow,
    weights: Sequence[Weight],
    local: Collection[str],
    values: Mapping[str, Any],
) -> dict[str, str]:
    """What goes into the template.

    `local` are models, as `folder/name`, for which there is no address; `values` are example
    values, in which a file is its path in the project: those of the inputs of the kind `Path`.
    """
    files = {param.name for param in interface.params if param.kind == "Path"}
    sent = {name: (f"{URL}{value}" if name in files else value) for name, value in values.items()}
    cog_inputs = " ".join(
        f"-i {quoted(f'{name}=@{value}' if name in files else f'{name}={value}')}"
        for name, value in values.items()
    )
    return {
        "inputs": "\n".join(_rows(interface)),
        "outputs": _outputs(interface, workflow),
        "fence": _fence(cog_inputs),
        "cog_inputs": cog_inputs,
        "json": json.dumps({"input": sent}, ensure_ascii=False, indent=2),
        "python": _python(values, files),
        "weights": _weights(weights, local, is_late=bool(interface.tokens)),
    }


URL = "https://example.com/"
"""Where the files of the examples might be: a caller sends addresses."""


def quoted(text: str) -> str:
    """The text as one word of a POSIX shell, in double quotes where that reads best."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _fence(code: str) -> str:
    """What begins and ends a block that holds the code, whose texts may hold blocks themselves."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))


def _python(values: Mapping[str, Any], files: Collection[str]) -> str:
    lines = [
        f'        "{name}": '
        + (f'open({_literal(value)}, "rb"),' if name in files else f"{_literal(value)},")
        for name, value in values.items()
    ]
    return "\n".join(["{", *lines, "    }"]) if lines else "{}"


def _literal(value: Any) -> str:
    """A value as Python writes it, a text in double quotes where that needs no escapes."""
    literal = repr(value)
    plain = literal[1:-1] == value and '"' not in literal
    return f'"{value}"' if plain else literal


def _rows(interface: Interface) -> list[str]:
    rows = [
        f"| `{param.name}` | {_type(param)} | {_default(param)} | {_cell(param.description)} |"
        for param in interface.params
    ]
    if interface.seed:
        rows.append("| `seed` | int | random | Repeats a result; the log tells the one in use. |")
    if interface.pictures:
        rows += [
            "| `output_format` | original, webp, jpg or png | `original` | Format of pictures. |",
            "| `output_quality` | int, 0 to 100 | `95` | Quality of jpg and webp. |",
        ]
    hosts = {"hf_token": "Hugging Face", "civitai_token": "CivitAI"}
    rows += [
        f"| `{token}` | secret | none | Token of {hosts.get(token, token)} for its weights. |"
        for token in interface.tokens
    ]
    return rows


def _type(param: Param) -> str:
    if param.kind == "Path":
        return f"file, {_cell(param.accept)}" if param.accept else "file"
    if param.choices and len(param.choices) <= MOST_CHOICES:
        return "one of " + ", ".join(f"`{_cell(str(choice))}`" for choice in param.choices)
    if param.choices:
        return f"one of {len(param.choices)} choices"
    limits = [
        f"{word} {limit:g}" if isinstance(limit, float) else f"{word} {limit}"
        for word, limit in (("from", param.minimum), ("to", param.maximum))
        if limit is not None
    ]
    return f"{param.kind}, {' '.join(limits)}" if limits else param.kind


def _default(param: Param) -> str:
    if param.required:
        return "**required**"
    if param.blank:
        return "the workflow's own"
    text = _cell(str(param.default))
    if len(text) > LONGEST_DEFAULT:
        text = f"{text[:LONGEST_DEFAULT]}\u2026"
    return f"`{text}`" if text else "empty"


def _cell(text: str) -> str:
    """A text in one cell of a table: in one line, and nothing in it is markup."""
    line = " ".join(text.replace("`", "'").split())
    return re.sub(r"([|<>\[\]*_\\])", r"\\\1", line) if not _is_code(line) else line


def _is_code(line: str) -> bool:
    return re.fullmatch(r"[\w .,;:()/'!?%+=*-]*", line) is not None


def _outputs(interface: Interface, workflow: Workflow) -> str:
    if not interface.outputs:
        return "It returns the files of every output node, each as soon as it is made."
    nodes = [
        _cell(f"{key} ({workflow.nodes[key].label})" if key in workflow.nodes else key)
        for key in interface.outputs
    ]
    word = "nodes" if len(nodes) > 1 else "node"
    return f"It returns the files of {word} {', '.join(nodes)}, each as soon as it is made."


def _weights(weights: Sequence[Weight], local: Collection[str], *, is_late: bool) -> str:
    if not weights and not local:
        return NO_WEIGHTS
    when = "by the first prediction, as they need a token" if is_late else "in setup"
    lines = [
        f"Fetched {when}, verified, and kept in `.comfy/models`. Heed the licences.",
        "",
        "| file | size | licence | from |",
        "| --- | --- | --- | --- |",
    ]
    for weight in weights:
        size = "unknown" if weight.size is None else human_size(weight.size)
        terms = _cell(weight.license) or "unknown"
        if weight.license and _is_link(weight.license_url):
            terms = f"[{terms}]({weight.license_url})"
        flags = ["**non-commercial**"] if weight.non_commercial else []
        if weight.gated:
            flags.append("**gated**: accept its terms there, and give a token")
        said = "; ".join([terms, *flags])
        lines.append(f"| `{_cell(weight.label)}` | {size} | {said} | {_origin(weight)} |")
    lines += [f"| `{_cell(label)}` | unknown | unknown | **no address known** |" for label in local]
    if local:
        lines += [
            "",
            "What has no address must be in the models folder of the machine that runs the model,"
            " or get an entry in `weights_manifest.json`.",
        ]
    return "\n".join(lines)


def _origin(weight: Weight) -> str:
    """Where a weight comes from, as a link where there is an address without secrets."""
    url = weight.urls[0].url if weight.urls else ""
    return f"[{weight.origin}]({url})" if _is_link(url) else _cell(weight.origin)


def _is_link(url: str) -> bool:
    """Whether it leads to the web, and is nothing but a link in a text of Markdown."""
    return scheme(url) in ("http", "https") and bool(re.fullmatch(r"[\w:/.~%+-]+", url))
