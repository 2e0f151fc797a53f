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
from comfy_runner.comfyui.saved_catalog import Known
from comfy_runner.config import Config
from comfy_runner.console import errors
from comfy_runner.convert.editor import Conversion
from comfy_runner.converting import remarks
from comfy_runner.documents import source
from comfy_runner.errors import CallerError, ComfyRunnerError, InvalidInput, Problem
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
DOUBT_CURE = "`comfy-runner check --refresh WORKFLOW` starts it once to make sure."
"""What to do about a `Known.doubt`."""


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
    bool, typer.Option("--refresh", help="Start ComfyUI and ask it for its nodes.")
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
    return saved_catalog.offline(config) if object_info is None else saved_catalog.read(object_info)


def tokens() -> dict[str, str]:
    """Host to token, as far as the environment has tokens."""
    return serving.tokens_in(os.environ, TOKEN_VARIABLES)


def known_nodes(config: Config, refresh: bool) -> Known:
    """What is known of the nodes; with `refresh` ComfyUI is started, which knows for certain."""
    if not refresh:
        return saved_catalog.known(config)
    errors.print("Asking ComfyUI for its nodes ...")
    with Runner(config.for_one_run()) as runner:
        return Known(runner.catalog(refresh=True))


def tell_doubt(doubt: str) -> None:
    """Print why what is said of the nodes may be wrong (`Known.doubt`), on standard error."""
    if doubt:
        errors.print(f"Note: {doubt} {DOUBT_CURE}", markup=False)


@contextmanager
def doubts_told(config: Config) -> Iterator[None]:
    """Prints why a class that is not known may be there all the same, before the error says so."""
    try:
        yield
    except CallerError as err:
        if any(problem.code == "unknown_class_type" for problem in err.problems):
            tell_doubt(saved_catalog.known(config).doubt)
        raise


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
