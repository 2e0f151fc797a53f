"""What the commands share: their common options, what they read, and how they refuse."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import typer

from comfy_runner.comfyui import saved_catalog
from comfy_runner.config import Config
from comfy_runner.console import errors
from comfy_runner.convert.editor import Conversion
from comfy_runner.converting import remarks
from comfy_runner.documents import source
from comfy_runner.errors import ComfyRunnerError, InvalidInput, Problem
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.runner import Runner
from comfy_runner.serving import prediction as serving

EXIT_CALLER, EXIT_RUN, EXIT_MACHINE, EXIT_TERMINATED = 2, 3, 4, 143
"""Whose fault it is: the caller's, the workflow's, ours; or somebody sent SIGTERM."""
TOKEN_VARIABLES = {
    "CIVITAI_API_TOKEN": "civitai.com",
    **{name.upper(): host for name, host in serving.TOKEN_HOSTS.items()},
    "GITHUB_TOKEN": "github.com",
}
"""Environment variable to the host that its token belongs to."""


class Preference(StrEnum):
    """Formats of a graph, named as ComfyUI names them in the files it saves."""

    PROMPT = "prompt"
    WORKFLOW = "workflow"


WORKFLOW = typer.Argument(
    help="Workflow as the editor saves or exports it, or a file that ComfyUI made (picture, video,"
    " recording, model): a path, a URL, a data URI, or - for standard input.",
    metavar="WORKFLOW",
)
WorkflowArgument = Annotated[str, WORKFLOW]
PreferOption = Annotated[
    Preference,
    typer.Option(
        help="Which graph counts where there are two: prompt has run, workflow is the editor's."
    ),
]
AllOutputsOption = Annotated[
    bool, typer.Option("--all-outputs", help="Outputs too that its App Mode does not show.")
]
RefreshOption = Annotated[
    bool, typer.Option("--refresh", help="Ask ComfyUI for its nodes, even if they are known.")
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]


def tell_remarks(conversion: Conversion) -> None:
    """Print what there is to know about a conversion, on standard error."""
    for note in remarks(conversion):
        errors.print(f"Note: {note}", markup=False)


def refuse(code: str, what: str, hint: str, field: str) -> NoReturn:
    """Raises: `InvalidInput` with one problem."""
    raise InvalidInput([Problem(code, what, hint, input=field)])


def read_document(workflow: str, prefer: Preference, config: Config) -> Mapping[str, Any]:
    """The graph of the workflow that the command line names."""
    place: Path | BinaryIO | str = Path(workflow)
    if workflow == "-":
        place = sys.stdin.buffer
    elif source.is_address(workflow):
        place = workflow
    return source.read(
        place, prefer=prefer.value, max_bytes=config.max_input_bytes, field="WORKFLOW"
    )


def offline_catalog(config: Config, object_info: Path | None) -> NodeCatalog:
    """The given catalog, or ComfyUI's own with the custom nodes that are known here."""
    if object_info is not None:
        return saved_catalog.read(object_info)
    known, saved = saved_catalog.builtin(), saved_catalog.load(config)
    # Where ComfyUI has not been started yet, a pack may tell its classes itself, as ours does.
    for told in sorted(config.custom_nodes.glob("*/object_info.json")):
        known = known.with_classes_of(saved_catalog.read(told))
    return known if saved is None else known.with_classes_of(saved)


def tokens() -> dict[str, str]:
    """Host to token, as far as the environment has tokens."""
    return serving.tokens_in(os.environ, TOKEN_VARIABLES)


def known_catalog(config: Config, refresh: bool) -> NodeCatalog:
    """The saved node catalog, or the one that ComfyUI gives when it is started for that."""
    saved = None if refresh else saved_catalog.load(config)
    if saved is not None:
        return saved
    errors.print("Asking ComfyUI for its nodes; this is needed once.")
    with Runner(config.for_one_run()) as runner:
        return runner.catalog(refresh=True)


@contextmanager
def errors_as_json(wanted: bool) -> Iterator[None]:
    """Prints an error for a program, too, before it ends the command."""
    try:
        yield
    except ComfyRunnerError as err:
        if wanted:
            print(json.dumps({"error": err.as_json()}))
        raise


def make_folder(out: Path, option: str = "--out") -> None:
    """The output folder, made before there is something to lose."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as err:
        refuse("bad_folder", f"{out} cannot be written: {err.strerror}.", "Use another.", option)
