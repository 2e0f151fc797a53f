"""`comfy-runner manifest`: check, lock, import, export and compare weights manifests."""

import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from comfy_runner.command_line import JsonOption, make_folder, refuse, tokens
from comfy_runner.config import Config
from comfy_runner.errors import DownloadFailed
from comfy_runner.weights.hosts.locate import Hosts
from comfy_runner.weights.manifests.differences import differences
from comfy_runner.weights.manifests.document import Content, schema, write
from comfy_runner.weights.manifests.exports import cog_block, pget_list
from comfy_runner.weights.manifests.files import read_file
from comfy_runner.weights.manifests.host_look import HostLook
from comfy_runner.weights.manifests.lists import PACKAGE, Kind, read_list
from comfy_runner.weights.manifests.locking import lock as ask_hosts
from comfy_runner.weights.manifests.merging import merge

EXIT_DIFFERENT = 1
"""What `diff` ends with when there is a difference, as `diff` of any system does."""
COG_MODELS = "/src/.comfy/models"
"""The models folder in a container that Cog builds."""

manifest_app = typer.Typer(
    name="manifest",
    help="Check, lock, import, export and compare weights manifests.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Form(StrEnum):
    """What a manifest can be written as."""

    COG = "cog"
    PGET = "pget"


FileArgument = Annotated[
    Path | None,
    typer.Argument(
        help="The manifest. Default: the project's.", metavar="FILE", show_default=False
    ),
]


@manifest_app.command()
def validate(file: FileArgument = None) -> None:
    """Tell whether a manifest is right: every fault, by entry and place.

    Exit: 0 it is, 2 it is not or cannot be read.
    """
    path = _default(file)
    found = read_file(path)
    groups = f", {len(found.groups)} groups" if found.groups else ""
    print(f"{path}: {len(found.weights)} weights{groups}, no fault.")


@manifest_app.command(name="schema")
def print_schema() -> None:
    """Print the JSON Schema of manifests, for editors."""
    print(json.dumps(schema(), indent=2))


@manifest_app.command()
def lock(
    file: FileArgument = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; ask for all, and tell what differs.")
    ] = False,
    update: Annotated[
        bool,
        typer.Option("--update", help="Ask for all, and take the hosts' word where it differs."),
    ] = False,
    download: Annotated[
        bool,
        typer.Option("--download", help="Fetch a file whose hash no host states, to hash it."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="FOLDER/NAME, name or group; repeatable."),
    ] = None,
) -> None:
    """Fill in the sizes and hashes that a manifest lacks, from what the hosts state.

    Where a host contradicts the manifest, or two mirrors each other, nothing is taken. What one
    entry fails with stops no other. Tokens come from HF_TOKEN, CIVITAI_TOKEN, GITHUB_TOKEN.

    Exit: 0 done, though perhaps no host states some hash; 2 something differs (with --check:
    something is missing, too); 4 something could not be asked.
    """
    if check and update:
        refuse("two_modes", "Both --check and --update are given.", "Give one.", "--check")
    path, config = _default(file), Config.from_environment()
    manifest, hosts = read_file(path), Hosts.of(config)
    cancelled = threading.Event()
    scratch = None
    if download:
        scratch = config.home
        make_folder(scratch, "COMFY_RUNNER_HOME")
    look = HostLook(
        path.absolute().parent,
        hosts=hosts,
        credentials=hosts.tokens(tokens()),
        environment=os.environ,
        cancelled=cancelled,
        scratch=scratch,
    )
    locked = ask_hosts(
        manifest,
        look,
        listing=look.files,
        tell=lambda done, total, label: _say(f"{done} of {total}: {label}"),
        cancelled=cancelled,
        only=only or (),
        again=check or update,
        update=update,
    )
    if not check and locked.content != manifest:
        _write(path, _text(locked.content))
    verb = "would get" if check else "got"
    _say_all(locked.differing, locked.failed)
    cure = "" if download else " With --download it is fetched and hashed."
    _say_all(
        f"{label} lacks a size or hash that no host states.{cure}" for label in locked.incomplete
    )
    print(f"{path}: {len(locked.filled)} entries {verb} a size or hash.")
    if locked.failed:
        raise DownloadFailed(f"{len(locked.failed)} sources could not be asked, see above.")
    if (locked.differing and not update) or (check and locked.filled):
        what = f"{len(locked.differing)} differences, {len(locked.filled)} entries to fill in."
        hint = "Look at what differs; manifest lock fills in, manifest lock --update overwrites."
        refuse("not_locked", what, hint, str(path))


@manifest_app.command(name="import")
def import_list(
    source: Annotated[
        str,
        typer.Argument(
            help="A workflow, a folder of workflows or an installed package of templates, such as"
            f" {PACKAGE}; ComfyUI-Manager's model-list.json; cog-comfyui's weights.json.",
            metavar="SOURCE",
        ),
    ],
    kind: Annotated[
        Kind | None, typer.Option(help="What SOURCE is. Default: what it looks like.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A manifest to add to; its own entries stay as they are."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where to write. Default: --into."),
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups/--no-groups", help="A group for each workflow.")
    ] = True,
) -> None:
    """Make manifest entries of another tool's list of models.

    Without --into and --out the manifest is printed. What cannot be taken, and what contradicts
    the manifest, is told on standard error. Licences are not in such lists: look them up.

    Exit: 0 done, 2 the list or manifest cannot be read.
    """
    imported = read_list(source, kind)
    if not groups:
        imported = replace(imported, groups={})
    hint = "Check the path, or give --out instead to make a new one."
    merged = merge(read_file(into, hint) if into else Content(), imported)
    _say_all(imported.notes, merged.conflicts)
    target = out or into
    text = _text(merged.content)
    if target is None:
        sys.stdout.write(text)
    else:
        _write(target, text)
        completed = f", {len(merged.completed)} completed" if merged.completed else ""
        print(f"{target}: {len(merged.added)} entries added{completed}.")


@manifest_app.command()
def export(
    file: FileArgument = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format", help="cog: the weights block of cog.yaml. pget: a multifile list."
        ),
    ] = Form.COG,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help=f"The models folder. Default: {COG_MODELS} for cog, else the project's.",
        ),
    ] = None,
) -> None:
    """Print a manifest as Cog's experimental weights block, or as a list for pget multifile.

    What the other tool cannot fetch is told on standard error.

    Exit: 0 done, though perhaps not all entries fit; 2 the manifest cannot be read.
    """
    weights = read_file(_default(file)).weights
    if form is Form.COG:
        made = cog_block(weights, models or COG_MODELS)
    else:
        made = pget_list(weights, models or str(Config.from_environment().models))
    sys.stdout.write(made.text)
    _say_all(f"Left out: {line}" for line in made.left_out)


@manifest_app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD")],
    new: Annotated[Path, typer.Argument(metavar="NEW")],
    as_json: JsonOption = False,
) -> None:
    """Tell what two manifests say differently: - gone, + new, > renamed, ~ changed.

    Exit: 0 no difference, 1 some, 2 a manifest cannot be read.
    """
    found = differences(read_file(old), read_file(new))
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        for line in found.lines():
            print(line)
    if found:
        sys.exit(EXIT_DIFFERENT)


def _default(file: Path | None) -> Path:
    return file or Config.from_environment().manifest


def _text(manifest: Content) -> str:
    return write(manifest.weights, manifest.groups, manifest.bases, schema=manifest.schema)


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all; a link stays one."""
    target = path.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix=".manifest-", dir=target.parent) as folder:
            part = Path(folder, "part")
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                part.chmod(target.stat().st_mode & 0o777)
            part.replace(target)
    except OSError as err:
        what = f"{path} cannot be written: {err.strerror}."
        refuse("bad_file", what, "Make its folder writable, or use another.", "--out")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _say_all(*lists: Iterable[str]) -> None:
    for lines in lists:
        for line in lines:
            _say(line)
