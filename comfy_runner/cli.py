"""The command line: results on standard output, everything else on standard error."""

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from comfy_runner import __version__, replaying
from comfy_runner.boot_commands import boot
from comfy_runner.comfyui import install as installer
from comfy_runner.comfyui import saved_catalog
from comfy_runner.comfyui.saved_catalog import Known
from comfy_runner.command_line import (
    DOUBT_CURE,
    EXIT_CALLER,
    EXIT_MACHINE,
    EXIT_RUN,
    EXIT_TERMINATED,
    WORKFLOW,
    AllOutputsOption,
    JsonOption,
    Preference,
    PreferOption,
    RefreshOption,
    WorkflowArgument,
    doubts_told,
    errors_as_json,
    known_nodes,
    make_folder,
    offline_catalog,
    read_document,
    refuse,
    tell_doubt,
    tell_remarks,
    tokens,
)
from comfy_runner.config import Config
from comfy_runner.console import Narration, errors, show_inputs, show_plan
from comfy_runner.convert import ui
from comfy_runner.convert.editor import Conversion
from comfy_runner.convert.formats import read_workflow
from comfy_runner.converting import convert_all, to_json, write
from comfy_runner.doctor import examine
from comfy_runner.errors import CallerError, ComfyRunnerError, MachineError, RunError
from comfy_runner.graph import inputs as workflow_inputs
from comfy_runner.graph.document import is_editor, load
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.values import FileName
from comfy_runner.graph.workflow import parse
from comfy_runner.manifest_commands import manifest_app
from comfy_runner.pack_commands import nodes_app
from comfy_runner.publishing_commands import new, schema_diff
from comfy_runner.runner import Runner
from comfy_runner.runs.files import GivenFile, InputFolder, numbered
from comfy_runner.runs.outputs import free_name
from comfy_runner.runs.plan import Plan, node_policy, prepare
from comfy_runner.runs.preloading import Ahead
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import OUTDATED, Finished, Request
from comfy_runner.serving import prediction as serving
from comfy_runner.serving_commands import predict, serve, write_schema
from comfy_runner.weights.store import WeightStore, read_manifest
from comfy_runner.weights_commands import cache_app, pull

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(manifest_app)
app.add_typer(cache_app)
app.add_typer(nodes_app)
app.command()(pull)
app.command()(boot)
app.command()(new)
app.command()(schema_diff)
app.command()(predict)
app.command()(serve)
app.command(name="schema")(write_schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Tell the version."),
    ] = False,
) -> None:
    """Run any ComfyUI workflow: here, or as a Cog model."""


class PictureFormat(StrEnum):
    """Formats that pictures can come back in."""

    ORIGINAL = "original"
    WEBP = "webp"
    JPG = "jpg"
    PNG = "png"


class Way(StrEnum):
    """Where ComfyUI can be had from."""

    ARCHIVE = "archive"
    GIT = "git"


NO_FILE = "Check the path; a text that begins with @ is written with two: @@."

ValueOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="ADDRESS=VALUE",
        help="Set an input, such as '6.text=a fox' or KSampler.seed=7; '@path' is a file.",
    ),
]
FileOption = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", help="A file that the workflow names; repeatable."),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="Seed for every seed input. Default: random.")
]
KeepSeedsOption = Annotated[
    bool, typer.Option("--keep-seeds", help="Keep the workflow's own seeds.")
]


def main() -> None:
    """Run the command line and exit: 0 done, 2 the caller's fault, 3 the run failed, 4 ours."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # so that all is tidied up
    try:
        app()
    except CallerError as err:
        _fail(err, EXIT_CALLER)
    except RunError as err:
        _fail(err, EXIT_RUN)
    except (ComfyRunnerError, OSError) as err:
        _fail(err, EXIT_MACHINE)


@app.command()
def run(
    workflow: WorkflowArgument,
    prefer: PreferOption = Preference.PROMPT,
    value: ValueOption = None,
    file: FileOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("output"),
    seed: SeedOption = None,
    keep_seeds: KeepSeedsOption = False,
    picture_format: Annotated[
        PictureFormat, typer.Option("--format", help="Format of pictures.")
    ] = PictureFormat.ORIGINAL,
    quality: Annotated[int, typer.Option(min=0, max=100, help="Quality of jpg and webp.")] = 95,
    previews: Annotated[bool, typer.Option("--previews", help="Temporary files too.")] = False,
    all_outputs: AllOutputsOption = False,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds for the run.")] = None,
    receipt: Annotated[bool, typer.Option("--receipt", help="A receipt.json, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a workflow and put its results into a folder."""
    config = Config.from_environment()
    values, files = _request_values(value, file)
    with errors_as_json(as_json):
        document = read_document(workflow, prefer, config)
    request = Request(
        document=document,
        values=values,
        files=files,
        seed=seed,
        randomise_seeds=not keep_seeds,
        output_format=picture_format.value,
        output_quality=quality,
        previews=previews,
        all_outputs=all_outputs,
        timeout=timeout,
        credentials=tokens(),
        receipt=receipt,
    )
    summary: dict[str, Any] = {}
    made: list[str] = []
    with errors_as_json(as_json), Narration() as narration:
        plan = _check_early(config, request)
        make_folder(out)
        narration.boot()
        ahead = Ahead.of(plan, request, narration.tell) if plan else None
        runner = Runner(config.for_one_run(), ahead)
        with runner, closing(runner.run(request)) as updates:
            narration.booted()
            for each in updates:
                update = runner.with_ahead(each)
                narration.tell(update)
                summary |= serving.metrics(update)
                if isinstance(update, Output):
                    made.append(str(_kept(update.path, out)))
                    if not as_json:
                        narration.result(made[-1])
    if as_json:
        print(json.dumps({**summary, "outputs": made}))


@app.command()
def replay(
    receipt: Annotated[Path, typer.Argument(help="A receipt.json that a run has made.")],
    files: Annotated[
        list[Path] | None,
        typer.Option(help="Folder in which the run's files are looked for; repeatable."),
    ] = None,
    value: ValueOption = None,
    file: FileOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("output"),
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds for the run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Repeat a run from its receipt and tell what is different; exit code 1 for other results."""
    config = Config.from_environment()
    values, given = _request_values(value, file)
    second = None
    with errors_as_json(as_json), Narration() as narration:
        first = replaying.read(receipt)
        if replaying.is_edited(first):
            errors.print("Note: the workflow in the receipt was changed since.")
        store = WeightStore(config)
        for step in replaying.recover_weights(first, store, values=values, credentials=tokens()):
            narration.tell(step)
        request = replaying.request(
            first,
            files or (),
            on_disk=store.listing,
            values=values,
            more_files=given,
            credentials=tokens(),
            timeout=timeout,
        )
        make_folder(out)
        narration.boot()
        with Runner(config.for_one_run()) as runner, closing(runner.run(request)) as updates:
            narration.booted()
            for update in updates:
                narration.tell(update)
                if isinstance(update, Output):
                    _kept(update.path, out)
                elif isinstance(update, Finished):
                    second = update.receipt
    if second is None:
        raise MachineError("The run ended without a receipt.")
    comparison = replaying.compare(first, second)
    print(json.dumps(comparison.as_json()) if as_json else "\n".join(comparison.lines()))
    sys.exit(comparison.exit_code)


@app.command()
def check(
    workflow: WorkflowArgument,
    prefer: PreferOption = Preference.PROMPT,
    value: ValueOption = None,
    file: FileOption = None,
    seed: SeedOption = None,
    keep_seeds: KeepSeedsOption = False,
    all_outputs: AllOutputsOption = False,
    refresh: RefreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would fetch, set and run, and every problem; nothing is run."""
    config = Config.from_environment()
    values, files = _request_values(value, file)
    known: Known | None = None
    try:
        document = read_document(workflow, prefer, config)
        known = known_nodes(config, refresh)
        request = Request(
            document=document, values=values, files=files, seed=seed, all_outputs=all_outputs
        )
        plan = _plan(config, known.catalog, request)
    except CallerError as err:
        doubt = known.doubt if known is not None else ""
        if as_json:
            problems = [problem.as_json() for problem in err.problems]
            print(json.dumps({"problems": problems, **_doubt_as_json(doubt)}))
            sys.exit(EXIT_CALLER)
        tell_doubt(doubt)
        raise
    random_seeds = seed is None and not keep_seeds
    if as_json:
        told = {**plan.as_json(), "random_seeds": random_seeds, **_doubt_as_json(known.doubt)}
        print(json.dumps({"problems": [], **told}))
    else:
        tell_doubt(known.doubt)
        show_plan(plan, random_seeds=random_seeds)


@app.command()
def inputs(
    workflow: WorkflowArgument,
    prefer: PreferOption = Preference.PROMPT,
    refresh: RefreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """List what can be set in a workflow: address, type, present value, range."""
    config = Config.from_environment()
    with errors_as_json(as_json), doubts_told(config):
        document = read_document(workflow, prefer, config)
        known = known_nodes(config, refresh)
        conversion = read_workflow(document, known.catalog)
    tell_remarks(conversion)
    if any(node.class_type not in known.catalog for node in conversion.workflow.nodes.values()):
        tell_doubt(known.doubt)
    found = workflow_inputs.discover(conversion.workflow, known.catalog, conversion.exposed)
    if as_json:
        print(json.dumps([settable.as_json() for settable in found]))
    else:
        show_inputs(found)


@app.command()
def convert(
    workflows: Annotated[list[str], WORKFLOW],
    prefer: PreferOption = Preference.PROMPT,
    object_info: Annotated[
        Path | None,
        typer.Option(
            help="What ComfyUI answers at /object_info, gzipped or not. Default: ComfyUI's own"
            " nodes, and the custom nodes here once ComfyUI has told them."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the result.", metavar="FILE")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results of several workflows: NAME.json, or NAME.error.json."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides the {a|b} of dynamic prompts.")
    ] = None,
) -> None:
    """Print a workflow in API format, as the editor would send it; nothing is run."""
    config = Config.from_environment()
    catalog = offline_catalog(config, object_info)
    now = datetime.now().astimezone()

    def converted(workflow: str) -> Conversion:
        document = read_document(workflow, prefer, config)
        return read_workflow(document, catalog, seed=seed, now=now)

    if out_dir is not None:
        if out is not None:
            refuse("two_outputs", "Both --out and --out-dir are given.", "Give one.", "--out")
        make_folder(out_dir, "--out-dir")
        _convert_into(out_dir, workflows, converted)
        return
    if len(workflows) > 1:
        refuse("no_folder", "There are several workflows.", "Give --out-dir DIR.", "WORKFLOW")
    with doubts_told(config) if object_info is None else nullcontext():
        conversion = converted(workflows[0])
    tell_remarks(conversion)
    if out is None:
        print(to_json(conversion))
        return
    try:
        write(out, to_json(conversion))
    except OSError as err:
        refuse("bad_file", f"{out} cannot be written: {err.strerror}.", "Use another.", "--out")


@app.command()
def install(
    way: Annotated[Way, typer.Option(help="Where ComfyUI comes from.")] = Way.ARCHIVE,
    verify: Annotated[bool, typer.Option("--verify", help="Hash an installed tree again.")] = False,
) -> None:
    """Install the ComfyUI that comfyui.toml names; an installed one is left alone."""
    print(
        installer.install(
            Config.from_environment(), way=way.value, verify=verify, report=errors.print
        )
    )


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Tell what is installed where, and what is missing."""
    findings = examine(Config.from_environment())
    if as_json:
        print(json.dumps({finding.name: finding.value for finding in findings}))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.value}")
            if finding.cure:
                print(f"     {finding.cure}")
    if not all(finding.ok for finding in findings):
        sys.exit(EXIT_MACHINE)


def _fail(err: Exception, exit_code: int) -> NoReturn:
    errors.print(f"Error: {err}", markup=False)
    sys.exit(exit_code)


def _request_values(
    given: Sequence[str] | None, files: Sequence[Path] | None
) -> tuple[dict[str, str], tuple[GivenFile, ...]]:
    """The values and files of the options; a value `@path` becomes the name of a file."""
    values: dict[str, str] = {}
    paths = [_existing(path) for path in files or ()]
    addresses: dict[str, int] = {}
    for option in given or ():
        address, equals, value = option.partition("=")
        if not equals or not address:
            refuse("bad_option", f"{option!r} has no value.", "Write ADDRESS=VALUE.", "-i")
        values[address] = value
        if value.startswith("@@"):  # for a text that really begins with @
            values[address] = value[1:]
        elif value.startswith("@"):
            path = _existing(Path(value[1:]))
            if path not in paths:
                paths.append(path)
            addresses[address] = paths.index(path)
    named = numbered([GivenFile(path, path.name) for path in paths])
    files_named = {address: FileName(named[place].name) for address, place in addresses.items()}
    return values | files_named, named


def _existing(path: Path) -> Path:
    if not path.is_file():
        refuse("no_file", f"There is no file {path}.", NO_FILE, f"@{path}")
    return path


def _plan(config: Config, catalog: NodeCatalog, request: Request) -> Plan:
    """What a run would do, from the catalog alone."""
    store = WeightStore(config)
    with tempfile.TemporaryDirectory() as folder:
        given = InputFolder(Path(folder), config.max_input_bytes).lay(request.files)
        return prepare(
            request.document,
            catalog=catalog,
            manifest=read_manifest(config.manifest),
            on_disk=store.listing,
            values=request.values,
            files=given.keys(),
            seed=request.seed,
            now=datetime.now().astimezone(),
            all_outputs=request.all_outputs,
            policy=node_policy(config),
        )


def _check_early(config: Config, request: Request) -> Plan | None:
    """Tell what is wrong before ComfyUI is booted, as far as that is known without it.

    Returns what the run will do; None where only ComfyUI knows.
    """
    known = saved_catalog.known(config)
    try:
        plan = _plan(config, known.catalog, request)
    except CallerError as err:
        if known.doubt:
            _check_alone(config, request)
        elif not any(problem.code in OUTDATED for problem in err.problems):
            raise
        return None
    urls = len(plan.asked) + sum(need.is_url for need in plan.files)
    return plan if urls <= config.max_urls else None  # which the run refuses


def _check_alone(config: Config, request: Request) -> None:
    """Raises: `CallerError` for what is wrong whatever nodes there are."""
    read_manifest(config.manifest)
    node_policy(config)
    with tempfile.TemporaryDirectory() as folder:
        InputFolder(Path(folder), config.max_input_bytes).lay(request.files)
    graph = load(request.document)
    if is_editor(graph):
        ui.read(graph)
    else:
        parse(graph)


def _doubt_as_json(doubt: str) -> dict[str, str]:
    return {"doubt": f"{doubt} {DOUBT_CURE}"} if doubt else {}


def _convert_into(
    folder: Path, workflows: Sequence[str], converted: Callable[[str], Conversion]
) -> None:
    """Convert them all, telling each, and exit according to what failed."""
    failed: list[ComfyRunnerError] = []
    for result in convert_all(workflows, folder, converted):
        print(result.path, flush=True)
        for note in result.notes:
            errors.print(f"{result.source}: note: {note}", markup=False)
        if result.error is not None:
            errors.print(f"{result.source}: {result.error}", markup=False)
            failed.append(result.error)
    if failed:
        errors.print(f"{len(failed)} of {len(workflows)} could not be converted.")
        sys.exit(EXIT_CALLER if isinstance(failed[0], CallerError) else EXIT_MACHINE)


def _kept(result: Path, out: Path) -> Path:
    """A copy of the result in the output folder, under a name that is free there."""
    target = out / free_name(result.stem, result.suffix, lambda name: (out / name).exists())
    shutil.copyfile(result, target)
    return target
