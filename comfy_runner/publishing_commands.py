"""The commands that make a model repository of a workflow."""

import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from comfy_runner.comfyui import saved_catalog
from comfy_runner.command_line import (
    EXIT_CALLER,
    JsonOption,
    Preference,
    PreferOption,
    doubts_told,
    errors_as_json,
    offline_catalog,
    read_document,
    refuse,
    tokens,
)
from comfy_runner.config import Config
from comfy_runner.console import errors
from comfy_runner.convert.formats import read_workflow
from comfy_runner.publishing.candidates import Candidate, candidates
from comfy_runner.publishing.differing import show_diff
from comfy_runner.publishing.keeping import MANIFEST, Choices, read_record
from comfy_runner.publishing.making import Made, Order, make, named, stored_document
from comfy_runner.publishing.placing import text
from comfy_runner.publishing.readme import quoted
from comfy_runner.publishing.replacing import alone, apply, restore
from comfy_runner.weights.hosts.locate import Hosts
from comfy_runner.weights.manifests.document import write
from comfy_runner.weights.manifests.files import read_file
from comfy_runner.weights.manifests.host_look import HostLook
from comfy_runner.weights.manifests.locking import lock as ask_hosts

LONGEST_VALUE = 48
"""Letters of a value that the list of candidates shows."""

WorkflowOrFolder = Annotated[
    str,
    typer.Argument(
        help="Workflow as the editor saves or exports it, or a file that ComfyUI made: a path, a"
        " URL, a data URI, or - for standard input. Or the folder of a project, to make it anew.",
        metavar="WORKFLOW",
        show_default=False,
    ),
]


def new(
    workflow: WorkflowOrFolder,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of the project.", metavar="DIR", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model is called. Default: as the folder.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The model on Replicate.")
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=ADDRESS",
            help="An input of the model and what it sets, such as prompt=6.text; repeatable."
            " Default: what the workflow's app shows, else what suits.",
        ),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS=VALUE", help="A value that is set for good; repeatable."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Id or title of a node whose results count; repeatable."),
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE",
            help="Where an input's choices come from: folder:loras, or group:NAME of the manifest.",
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="A file that the workflow names; it comes along."),
    ] = None,
    prefer: PreferOption = Preference.PROMPT,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Drop what was chosen before, and begin anew.")
    ] = False,
    lock: Annotated[
        bool, typer.Option("--lock", help="Ask the hosts for sizes and hashes of the weights.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Give up edits outside the marked places; see FILE.orig."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a model repository with typed inputs of a workflow; nothing is run.

    `new DIR`, or `new WORKFLOW DIR` again, makes a project anew: what was chosen before holds, what
    stands between `begin: yours` and `end: yours` stays, and what changes for callers is told.
    """
    config = Config.from_environment()
    with errors_as_json(as_json), ExitStack() as held:
        if folder is None:
            folder, workflow = _again(Path(workflow))
        folder = folder.absolute()
        held.enter_context(alone(folder))
        if restore(folder):
            errors.print("Note: a change that was cut off is undone.")
        record = read_record(folder)
        old = record.choices if record and not forget else Choices()
        order = Order(
            folder=folder,
            document=read_document(workflow, prefer, config),
            choices=named(
                folder,
                Choices(
                    name=name or old.name,
                    model=model or old.model,
                    inputs=_pairs(value, "--input", "prompt=6.text") or old.inputs,
                    fixed=_pairs(fix, "--fix", "7.cfg=1.0") or old.fixed,
                    outputs=tuple(output or old.outputs),
                    choices=_pairs(choices, "--choices", "lora=folder:loras") or old.choices,
                ),
            ),
            files=file or (),
            overwrite=overwrite,
        )
        catalog = offline_catalog(config, None)
        asks = sys.stdin.isatty() and sys.stderr.isatty() and not (yes or as_json)
        if asks and order.choices.inputs is None:
            found = candidates(read_workflow(order.document, catalog), catalog)
            chosen = _choose(found)
            order = replace(order, choices=replace(order.choices, inputs=chosen))
        with doubts_told(config):
            made = make(order, catalog=catalog, builtin=saved_catalog.builtin(), config=config)
        _tell(made)
        if asks and not dry_run and any(each.breaking for each in made.differences):
            question = "Some calls that are right today would break. Go on?"
            if not typer.confirm(question, err=True):
                errors.print("Nothing was changed.")
                sys.exit(EXIT_CALLER)
        if not dry_run:
            if read_record(folder) != record:  # there was no folder to be alone in
                what = f"Somebody else has made the project in {folder} meanwhile."
                refuse("busy_folder", what, "Look at it, and try again.", "DIR")
            apply(folder, made.change, made.record)
            if lock:
                _lock(folder, config)
    if as_json:
        print(json.dumps(_as_json(folder, made, dry_run=dry_run)))
    elif dry_run:
        print(f"{folder}: {len(made.change.write)} files would be written. Nothing was changed.")
    else:
        print(f"{folder} is ready. What to do next:")
        print(f"  cd {quoted(str(folder))}")
        print("  script/test   # sets itself up, serves the model and makes one prediction")
        print(f"  script/push   # publishes it as {made.project.model}, with Docker and cog")


def schema_diff(
    old: Annotated[
        str, typer.Argument(help="Folder of a project, a predict.py, a schema file, or -.")
    ],
    new: Annotated[str, typer.Argument(help="Likewise.")],
    as_json: JsonOption = False,
) -> None:
    """Tell what another interface changes for callers, by the rules of cog-safe-push.

    Exit: 0 nothing breaks; 2 some calls that are right today would break, or a file is no schema.
    """
    with errors_as_json(as_json):
        show_diff(old, new, as_json=as_json)


def _again(folder: Path) -> tuple[Path, str]:
    """The project in a folder, and where its workflow is."""
    try:
        is_folder = folder.is_dir()
    except OSError:  # no file can be called so
        is_folder = False
    if not is_folder:
        what = "It is not said where the project goes."
        refuse("no_folder", what, "Name a folder: comfy-runner new WORKFLOW DIR.", "DIR")
    if read_record(folder) is None:
        what = f"There is no project in {folder} yet."
        refuse("no_project", what, "Name a workflow, too: comfy-runner new WORKFLOW DIR.", "DIR")
    return folder, str(stored_document(folder))


def _pairs(options: Sequence[str] | None, option: str, example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for each in options or ():
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            refuse("bad_option", f"{each!r} has no =.", f"Write it like {example}.", option)
        if name.strip() in pairs:
            refuse("set_twice", f"{name.strip()!r} is given twice.", "Give it once.", option)
        pairs[name.strip()] = value
    return pairs


def _choose(found: Sequence[Candidate]) -> dict[str, str] | None:
    """The inputs that a person ticks, as name to address; None for the default choice."""
    ticked = {number for number, each in enumerate(found, 1) if each.is_default}
    default = set(ticked)
    while True:
        table = Table("", "", "Input", "Sets", "Now", box=None, pad_edge=False)
        for number, each in enumerate(found, 1):
            mark = "x" if number in ticked else ""
            value = text(each.value)
            value = value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}\u2026"
            places = ", ".join(".".join(place) for place in each.targets)
            table.add_row(str(number), mark, each.name, places, value)
        errors.print(table, markup=False)
        answer = typer.prompt(
            "Numbers to tick or untick, or Enter to go on", default="", show_default=False, err=True
        )
        words = answer.replace(",", " ").split()
        if not words:
            break
        strange = [w for w in words if not w.isdecimal() or not 1 <= int(w) <= len(found)]
        if strange:
            errors.print(f"There is no {', '.join(strange)}.", markup=False)
        else:
            ticked ^= {int(word) for word in words}
    if ticked == default:
        return None
    return {each.name: each.address for number, each in enumerate(found, 1) if number in ticked}


def _tell(made: Made) -> None:
    """What there is to know before anything is written, on standard error."""
    for note in made.notes:
        errors.print(f"Note: {note}", markup=False)
    for difference in made.differences:
        errors.print(str(difference), markup=False)
    for path in made.change.keep:
        errors.print(f"Note: {path} was edited and stays as it is.", markup=False)
    for path in made.change.lost:
        errors.print(f"Note: the edited {path} is kept as {path}.orig.", markup=False)
    names = [param.name for param in made.interface.params] or ["none"]
    errors.print(f"Inputs: {', '.join(names)}.", markup=False)


def _lock(folder: Path, config: Config) -> None:
    """Fill in the sizes and hashes that the hosts tell; what they do not tell is no fault."""
    path = folder / MANIFEST
    manifest, hosts, cancelled = read_file(path), Hosts.of(config), threading.Event()
    look = HostLook(
        folder,
        hosts=hosts,
        credentials=hosts.tokens(tokens()),
        environment=os.environ,
        cancelled=cancelled,
        scratch=None,
    )
    locked = ask_hosts(
        manifest,
        look,
        listing=look.files,
        tell=lambda done, total, label: errors.print(f"{done} of {total}: {label}", markup=False),
        cancelled=cancelled,
        only=(),
        again=False,
        update=False,
    )
    for line in (*locked.differing, *locked.failed):
        errors.print(f"Note: {line}", markup=False)
    if locked.content != manifest:
        found = locked.content
        part = path.with_name(f"{path.name}.part")
        part.write_text(
            write(found.weights, found.groups, found.bases, schema=found.schema), "utf-8"
        )
        part.replace(path)


def _as_json(folder: Path, made: Made, *, dry_run: bool) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "name": made.project.name,
        "model": made.project.model,
        "dry_run": dry_run,
        "inputs": [
            {
                "name": param.name,
                "type": param.kind,
                "targets": list(param.targets),
                "default": param.default,
                "required": param.required,
            }
            for param in made.interface.params
        ],
        "outputs": list(made.interface.outputs),
        "weights": [weight.as_json() for weight in made.project.needed],
        "written": sorted(made.change.write),
        "removed": list(made.change.remove),
        "kept": list(made.change.keep),
        "given_up": list(made.change.lost),
        "changes": [difference.as_json() for difference in made.differences],
        "notes": list(made.notes),
    }
