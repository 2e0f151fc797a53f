"""What in a workflow looks like a secret, and would be published with the project."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from comfy_runner.fetch.urls import is_signed
from comfy_runner.graph.workflow import Workflow
from comfy_runner.runs.withholding import is_secret

TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}|gh[opsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})(?![A-Za-z0-9])"
)
"""Tokens as Hugging Face, Replicate, GitHub, OpenAI and others, and AWS write them."""
URL = re.compile(r"""https?://[^\s"'<>]+""", re.IGNORECASE)


def is_confidential(name: str, value: Any) -> bool:
    """Whether the value of an input of that name looks like nobody's business."""
    if not isinstance(value, str) or not value.strip():
        return False
    return is_secret(name) or bool(TOKENS.search(value)) or any(map(_lets_in, URL.findall(value)))


def warnings(
    document: Mapping[str, Any], workflow: Workflow, fixed: Mapping[str, Any]
) -> Iterator[str]:
    """A sentence for each place whose text looks so, without the text.

    `document` becomes `workflow`; `fixed` is address to value. All of them stand in the project.
    """
    told = False
    for node in workflow.nodes.values():
        for name, value in node.inputs.items():
            if is_confidential(name, value):
                told = True
                yield (
                    f"What node {node.id} ({node.label}) has as {name} looks like a secret: it"
                    " stands in workflows/workflow.json. Take it out before you publish that."
                )
    if not told and any(is_confidential(name, value) for name, value in _texts(document)):
        yield (
            "Something in the workflow looks like a secret: it stands in workflows/workflow.json."
            " Take it out before you publish that."
        )
    for address, value in fixed.items():
        if is_confidential(address.rpartition(".")[2], value):
            yield (
                f"What is fixed at {address} looks like a secret: it stands in predict.py and"
                " comfy-runner.json. Take it out before you publish them."
            )


def _lets_in(url: str) -> bool:
    """Whether the URL has a password or a token in it."""
    try:
        return urlsplit(url).password is not None or is_signed(url)
    except ValueError:
        return False


def _texts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All texts in some JSON, however deep, each with the name that it stands under."""
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        name, value = waiting.pop()
        match value:
            case str():
                yield name, value
            case Mapping():
                waiting += value.items()
            case list():
                waiting += (("", each) for each in value)
