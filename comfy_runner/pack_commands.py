"""`comfy-runner nodes`: packs of custom nodes, locked, installed, checked and looked up."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from comfy_runner.comfyui import saved_catalog
from comfy_runner.command_line import (
    EXIT_CALLER,
    EXIT_MACHINE,
    JsonOption,
    Preference,
    errors_as_json,
    read_document,
    refuse,
)
from comfy_runner.config import Config
from comfy_runner.documents import source as documents
from comfy_runner.errors import CallerError
from comfy_runner.packs import adding, asked, checking, installing, lookup, registry
from comfy_runner.packs.adding import Entered, Wishes
from comfy_runner.packs.fetching import Fetching
from comfy_runner.packs.folder import PackFolder
from comfy_runner.packs.importing import Tried
from comfy_runner.packs.lock import LockedPack
from comfy_runner.packs.lookup import Answer, Use

nodes_app = typer.Typer(
    name="nodes",
    help="Packs of custom nodes: add, lock, install, check and look up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NamesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="NAME...", help="Packs. Default: all.")
]
LimitOption = Annotated[
    float,
    typer.Option(
        "--time-limit", min=1, help="Seconds that ComfyUI may take to start with the packs."
    ),
]
RegistryOption = Annotated[
    str,
    typer.Option(
        "--registry", envvar="COMFY_RUNNER_REGISTRY_ENDPOINT", help="Where the Comfy Registry is."
    ),
]
ImportOption = Annotated[
    bool,
    typer.Option(
        "--import/--no-import", help="Load the packs in ComfyUI, which runs their code, or not."
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace folders that were changed by hand, too.")
]
NoDepsOption = Annotated[
    bool, typer.Option("--no-deps-install", help="Leave the Python environment as it is.")
]
TIME_LIMIT = 300.0


@nodes_app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="OWNER/NAME on GitHub, a git address, an id in the Comfy Registry, the address"
            " of a zip or tar, or a folder.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of its folder. Default: its own.")] = "",
    ref: Annotated[str, typer.Option(help="Branch, tag, commit, or version in the registry.")] = "",
    leave_out: Annotated[
        list[str] | None,
        typer.Option(metavar="PACKAGE", help="A requirement not to install; repeatable."),
    ] = None,
    run_install_script: Annotated[
        bool, typer.Option("--run-install-script", help="Let the pack's own install.py run.")
    ] = False,
    overwrite: OverwriteOption = False,
    no_deps_install: NoDepsOption = False,
    do_import: ImportOption = True,
    time_limit: LimitOption = TIME_LIMIT,
    endpoint: RegistryOption = registry.ENDPOINT,
) -> None:
    """Fetch a pack, resolve its requirements together with all others, and lock it.

    Nothing is changed where they do not go together, or would move a package of ours.

    Exit: 0 added, though perhaps it does not load, which is told; 2 refused; 4 not fetched.
    """
    config = Config.from_environment()
    wishes = Wishes(
        name=name,
        leave_out=tuple(leave_out or ()),
        install_script=run_install_script,
        overwrite=overwrite,
        install=not no_deps_install,
        limit=time_limit if do_import else None,
    )
    fetching = Fetching(PackFolder(config), endpoint)
    entered = adding.add(config, fetching, asked.read(source, ref), wishes, _say)
    _tell_entered(entered)
    for pack in entered.packs:
        print(f"{pack.name}: {pack.source}, {_classes(pack)}.")


@nodes_app.command()
def lock(
    names: NamesArgument = None,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Follow branches, tags, the registry and the package index."
        ),
    ] = False,
    do_import: ImportOption = True,
    time_limit: LimitOption = TIME_LIMIT,
    endpoint: RegistryOption = registry.ENDPOINT,
) -> None:
    """Fetch packs anew and write what they are now into the lock; nothing is installed.

    Exit: 0 done, 2 refused, 4 something could not be fetched; then nothing has changed.
    """
    config = Config.from_environment()
    fetching = Fetching(PackFolder(config), endpoint)
    before = fetching.folder.read()
    limit = time_limit if do_import else None
    entered = adding.refresh(config, fetching, names or (), upgrade=upgrade, limit=limit, tell=_say)
    _tell_entered(entered)
    for pack in entered.packs:
        same = before.get(pack.name) == pack
        print(f"{pack.name}: {'unchanged' if same else f'{pack.source}, {_classes(pack)}'}.")


@nodes_app.command()
def install(
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Take both locks as they are, and write neither.")
    ] = False,
    overwrite: OverwriteOption = False,
    no_deps_install: NoDepsOption = False,
    endpoint: RegistryOption = registry.ENDPOINT,
) -> None:
    """Make custom_nodes match its lock, and install what the packs ask for.

    Everything is fetched, compared and resolved before anything changes. Packs that are not in
    the lock stay.

    Exit: 0 done, 2 refused, 4 something could not be fetched or is not what was locked.
    """
    config = Config.from_environment()
    done = installing.install(
        config,
        Fetching(PackFolder(config), endpoint),
        frozen=frozen,
        overwrite=overwrite,
        deps=not no_deps_install,
        tell=_say,
    )
    _say_all(done.notes)
    _say_strangers(done.strangers)
    print(f"{len(done.placed)} packs installed, {len(done.kept)} were there already.")


@nodes_app.command(name="list")
def list_packs(as_json: JsonOption = False) -> None:
    """Tell which packs are locked, from where, and whether they are there."""
    folder = PackFolder(Config.from_environment())
    locked = folder.read()
    rows: list[dict[str, Any]] = [
        {
            "name": pack.name,
            "source": str(pack.source),
            "state": _standing(folder, pack),
            "classes": len(pack.classes),
        }
        for pack in locked.packs
    ]
    if as_json:
        print(json.dumps({"packs": rows, "unlocked": folder.strangers(locked)}))
        return
    for row in rows:
        print(f"{row['name']}: {row['source']}; {row['classes']} classes; {row['state']}")
    _say_strangers(folder.strangers(locked))


@nodes_app.command()
def check(
    names: NamesArgument = None,
    do_import: ImportOption = True,
    time_limit: LimitOption = TIME_LIMIT,
    as_json: JsonOption = False,
) -> None:
    """Tell whether each pack is whole, has what it asks for, and loads in ComfyUI.

    Exit: 0 all is well, 4 something is not.
    """
    config = Config.from_environment()
    limit = time_limit if do_import else None
    with errors_as_json(as_json):
        found = checking.check(config, names or (), limit=limit, tell=_say)
    if as_json:
        rows = [
            {
                "name": each.name,
                "ok": not each.faults,
                "faults": each.faults,
                "notes": each.notes,
                "seconds": each.tried.seconds if each.tried else None,
                "classes": each.tried.classes if each.tried else None,
            }
            for each in found
        ]
        print(json.dumps({"packs": rows}))
    else:
        for each in found:
            loaded = f", {_loaded(each.tried)}" if each.tried and each.tried.ok else ""
            print(f"{'FAIL' if each.faults else 'ok  '} {each.name}{loaded}")
            for line in "\n".join((*each.faults, *each.notes)).splitlines():
                print(f"     {line}")
    if any(each.faults for each in found):
        sys.exit(EXIT_MACHINE)


@nodes_app.command()
def why(
    what: Annotated[
        str, typer.Argument(metavar="CLASS|WORKFLOW", help="A node class, or a workflow's file.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Tell which pack has a node class, or those of a workflow, and what to type to add it.

    Exit: 0 everything is there, 2 something has to be added or is unknown.
    """
    config = Config.from_environment()
    own, locked = saved_catalog.builtin(), PackFolder(config).read()
    with errors_as_json(as_json):
        wanted: Sequence[Use] = [Use(what)]
        if is_file := Path(what).is_file() or documents.is_address(what) or what == "-":
            wanted = lookup.uses(read_document(what, Preference.WORKFLOW, config), own)
        elif what.endswith(".json"):
            refuse("no_file", f"There is no file {what}.", "Check the path.", "CLASS|WORKFLOW")
    answers = [lookup.why(use, locked, own) for use in wanted]
    if as_json:
        print(json.dumps({"classes": [_json(answer) for answer in answers]}))
    else:
        shown = [answer for answer in answers if not (is_file and answer.builtin)]
        for answer in shown:
            print(_line(answer))
        if not shown:
            print("Every node is ComfyUI's own.")
    if not all(answer.builtin or answer.locked for answer in answers):
        sys.exit(EXIT_CALLER)


def _standing(folder: PackFolder, pack: LockedPack) -> str:
    try:
        return folder.state(pack).standing
    except CallerError:  # `check` tells why
        return "unknown"


def _json(answer: Answer) -> dict[str, Any]:
    return {
        "class": answer.class_type,
        "builtin": answer.builtin,
        "locked": [pack.name for pack in answer.locked],
        "add": answer.commands,
        "similar": answer.similar,
    }


def _line(answer: Answer) -> str:
    # The workflow may be a stranger's: its names do not move the cursor.
    name = _shown(answer.class_type)
    if answer.builtin:
        told = "ComfyUI itself has it."
    elif answer.locked:
        told = f"{' and '.join(pack.name for pack in answer.locked)}, which the lock has."
    elif answer.commands:
        told = f"after {answer.source}, {' or '.join(answer.commands)}"
    else:
        similar = " or ".join(map(repr, answer.similar))
        told = f"unknown. Did you mean {similar}?" if similar else "unknown."
    return f"{name}: {told}"


def _shown(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _tell_entered(entered: Entered) -> None:
    _say_all(entered.notes)
    for tried in entered.tried:
        if not tried.ok:
            _say(
                f"{tried.name} does not load; its classes were read in its source instead.\n"
                f"{tried.why}"
            )
        elif tried.why:
            _say(f"{tried.name} loads, but not without a fault:\n{tried.why}")


def _classes(pack: LockedPack) -> str:
    read = "" if pack.imported else " (read in its source)"
    return f"{len(pack.classes)} classes{read}"


def _loaded(tried: Tried) -> str:
    seconds = "" if tried.seconds is None else f" in {tried.seconds:.1f} s"
    return f"{len(tried.classes)} classes{seconds}"


def _say_strangers(names: Sequence[str]) -> None:
    for name in names:
        cure = "To lock it: comfy-runner nodes add with its path."
        if name.endswith(".py"):
            cure = "The lock takes folders only: make it the __init__.py of one."
        _say(f"{name} is not in the lock. {cure}")


def _say_all(lines: Iterable[str]) -> None:
    for line in lines:
        _say(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
