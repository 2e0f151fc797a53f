"""`comfy-runner pull` and `cache`: weights fetched ahead of any run, and those that are kept."""

import json
import re
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from comfy_runner.command_line import (
    EXIT_MACHINE,
    AllOutputsOption,
    JsonOption,
    Preference,
    PreferOption,
    errors_as_json,
    offline_catalog,
    read_document,
    refuse,
    tokens,
)
from comfy_runner.config import Config
from comfy_runner.console import Narration, errors, table_console
from comfy_runner.documents import source
from comfy_runner.graph.check import shown
from comfy_runner.graph.nodes import did_you_mean
from comfy_runner.runs.plan import needed_models
from comfy_runner.weights.kept.objects import ObjectStore
from comfy_runner.weights.manifest import Manifest, human_size
from comfy_runner.weights.progress import Steps
from comfy_runner.weights.store import Addressed, WeightStore, read_manifest
from comfy_runner.weights.weight import Weight

cache_app = typer.Typer(
    name="cache",
    help="The weights that were fetched and are kept: list, remove, check, clean up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def pull(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to fetch for: a workflow (as for run), a group of the manifest, or one of"
            " its weights as folder/name.",
            metavar="WORKFLOW|GROUP|WEIGHT...",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every weight of the manifest.")
    ] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="The weights manifest. Default: the project's.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="The models folder. Default: the project's.")
    ] = None,
    prefer: PreferOption = Preference.PROMPT,
    all_outputs: AllOutputsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch weights ahead of any run: for an image, for a volume. Needs no ComfyUI."""
    config = Config.from_environment()
    config = replace(
        config,
        manifest=manifest.absolute() if manifest else config.manifest,
        models=models.absolute() if models else config.models,
    )
    with errors_as_json(as_json):
        known = read_manifest(config.manifest)
        store = WeightStore(config)
        ahead = _Ahead(config, known, store)
        if everything:
            ahead.weights.update(dict.fromkeys(known.weights))
        for name in wanted or ():
            ahead.add(name, prefer, all_outputs=all_outputs)
        if not ahead.anything and not wanted:
            what = "It is not said what to fetch."
            cure = "Name a workflow, a group of the manifest, folder/name of a weight, or --all."
            refuse("nothing_asked", what, cure, "WORKFLOW|GROUP|WEIGHT")
        made = ahead.fetch()
    if as_json:
        print(json.dumps(made))
    else:
        for path in made["models"]:
            print(path)


class _Ahead:
    """What is to be fetched ahead, collected from all that was named."""

    def __init__(self, config: Config, manifest: Manifest, store: WeightStore) -> None:
        self.weights: dict[Weight, None] = {}
        self._addressed: dict[Addressed, None] = {}
        self._present: dict[str, None] = {}
        self._config = config
        self._manifest = manifest
        self._store = store

    @property
    def anything(self) -> bool:
        """Whether there is something to have."""
        return bool(self.weights or self._addressed or self._present)

    def add(self, name: str, prefer: Preference, *, all_outputs: bool) -> None:
        """A group, a weight, or a workflow and the models that it needs.

        Raises: `UnknownModel`, `InvalidWorkflow`.
        """
        labels = self._manifest.groups.get(name, (name,))
        listed = {
            f"{folder}/{weight.name}": weight
            for weight in self._manifest.weights
            for folder in weight.folders
        }
        if all(label in listed for label in labels):
            self.weights.update(dict.fromkeys(listed[label] for label in labels))
            return
        if name != "-" and not source.is_address(name) and not _is_file(name):
            guess = did_you_mean(name, (*self._manifest.groups, *listed))
            what = f"{shown(name)} is no file, no group and no weight of {self._config.manifest}."
            hint = guess or "Check the path; `comfy-runner check` shows what a workflow needs."
            refuse("nothing_called", what, hint, "WORKFLOW|GROUP|WEIGHT")
        models = needed_models(
            read_document(name, prefer, self._config),
            catalog=offline_catalog(self._config, None),
            manifest=self._manifest,
            on_disk=self._store.listing,
            all_outputs=all_outputs,
        )
        for note in models.notes:
            errors.print(f"Note: {note}", markup=False)
        self.weights.update(dict.fromkeys(models.missing.values()))
        self._present.update(models.present)
        self._addressed.update(
            dict.fromkeys(Addressed(a.address, a.folder, a.sha256) for a in models.asked)
        )

    def fetch(self) -> dict[str, Any]:
        """Fetch it all, shown on standard error. Returns what is there now."""
        started = time.monotonic()
        with Narration() as narration:
            fetching = self._store.ensure(self.weights, self._addressed, credentials=tokens())
            with closing(fetching):
                steps = Steps(fetching)
                for update in steps:
                    narration.tell(update)
        ensured = steps.result
        for note in ensured.notes:
            errors.print(f"Note: {note}", markup=False)
        seconds = time.monotonic() - started
        errors.print(
            f"Fetched {ensured.files} file{'s' * (ensured.files != 1)},"
            f" {human_size(ensured.size)}, in {seconds:.1f} s."
        )
        labels = [
            *self._present,
            *(f"{folder}/{weight.name}" for weight in self.weights for folder in weight.folders),
            *(f"{wanted.folder}/{name}" for wanted, name in ensured.names.items()),
        ]
        return {
            "models": [str(self._config.models / label) for label in dict.fromkeys(labels)],
            "fetched_files": ensured.files,
            "fetched_bytes": ensured.size,
            "seconds": round(seconds, 3),
        }


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # no file can be called so
        return False


def _objects() -> ObjectStore:
    config = Config.from_environment()
    return ObjectStore(config.models, reserve=config.disk_reserve, limit=config.max_weights_bytes)


@cache_app.command("ls")
def show(as_json: JsonOption = False) -> None:
    """List the weights that are kept, the least recently used first: these go first."""
    entries = _objects().entries()
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries]))
        return
    table = Table("Id", "Size", "Last used", "Names", "From", box=None, pad_edge=False)
    for entry in entries:
        used = datetime.fromtimestamp(entry.last_used).astimezone()
        table.add_row(
            entry.id[:12],
            human_size(entry.size),
            f"{used:%Y-%m-%d %H:%M}" + (" in use" if entry.pinned else ""),
            ", ".join(entry.names) or "-",
            entry.shown or "-",
        )
    if entries:
        table_console().print(table)
    total = human_size(sum(entry.size for entry in entries))
    errors.print(f"{len(entries)} kept, {total} in all.")


@cache_app.command("rm")
def remove(
    what: Annotated[
        list[str],
        typer.Argument(
            help="folder/name, an id, or the beginning of one (8 digits or more).",
            metavar="NAME|ID...",
        ),
    ],
) -> None:
    """Remove weights that are kept: one name, or by its id the file with all its names.

    With its last name a file goes as well. What a run uses stays.
    """
    objects = _objects()
    for each in what:
        entry = objects.remove(_whole(objects, each))
        others = [name for name in entry.names if name != each]
        if each in entry.names and others:
            print(f"Removed {each}; the file stays as {', '.join(others)}.")
        else:
            names = ", ".join(entry.names) or entry.id[:12]
            print(f"Removed {names} ({human_size(entry.size)}).")


def _whole(objects: ObjectStore, what: str) -> str:
    """The id that begins so, where there is exactly one."""
    if not re.fullmatch("[0-9a-f]{8,63}", what):
        return what
    found = [entry.id for entry in objects.entries() if entry.id.startswith(what)]
    return found[0] if len(found) == 1 else what


@cache_app.command()
def verify(as_json: JsonOption = False) -> None:
    """Read all that is kept again; what is broken is removed, and fetched when it is needed."""
    broken = 0
    for finding in _objects().verify():
        broken += bool(finding.fault)
        if as_json:
            print(json.dumps(asdict(finding)), flush=True)
        else:
            state = "ok"
            if finding.fault:
                fate = (
                    "Removed." if finding.removed else "It stays, since it cannot be removed now."
                )
                state = f"BROKEN: {finding.fault} {fate}"
            print(f"{', '.join(finding.names) or finding.id[:12]}: {state}", flush=True)
    if broken:
        errors.print(f"{broken} broken.")
        sys.exit(EXIT_MACHINE)


@cache_app.command()
def gc(
    now: Annotated[
        bool, typer.Option("--now", help="Unfinished downloads too, however young.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Clean up what died processes left; no weight is removed."""
    objects = _objects()
    done = objects.gc(staging_age=0) if now else objects.gc()
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        print(
            f"{done.staging} unfinished and {done.locks} lock files removed; {done.adopted} found"
            f" again, {done.lost} lost, {done.names} names forgotten."
        )
