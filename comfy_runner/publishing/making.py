"""`comfy-runner new`, less what it asks and tells: from a document to the change of a folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from comfy_runner.config import PROJECT, Config
from comfy_runner.convert.editor import Conversion
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import CallerError, InvalidInput, Problem
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.packs.folder import REQUIREMENTS, PackFolder
from comfy_runner.packs.lock import FILE as LOCK
from comfy_runner.packs.lock import PackLock
from comfy_runner.packs.lock import parse as parse_lock
from comfy_runner.publishing import confidential, keeping
from comfy_runner.publishing.choosing import Lists, design
from comfy_runner.publishing.compatibility import Change as Difference
from comfy_runner.publishing.compatibility import compare
from comfy_runner.publishing.examples import GIVEN
from comfy_runner.publishing.gathering import (
    gather,
    gather_packs,
    known_weights,
    own_files,
    own_manifest,
)
from comfy_runner.publishing.interface import Interface
from comfy_runner.publishing.keeping import Change, Choices, Content, Record
from comfy_runner.publishing.listed import names
from comfy_runner.publishing.project import WORKFLOW, Project, contents
from comfy_runner.serving import schema
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.manifests.document import Content as Entries
from comfy_runner.weights.manifests.files import read_file

MODEL = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*")
"""What Replicate calls a model."""
PACKAGES = f"custom_nodes/{REQUIREMENTS}"
NOBODY = "your-name"
"""Owner of a model until its author says who that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made, and where."""

    folder: Path
    document: Mapping[str, Any]
    choices: Choices
    files: Sequence[Path] = ()
    """Files to bring along, each known to the workflow by its name."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A project, ready to be written (`replacing.apply`)."""

    project: Project
    change: Change
    record: Record
    differences: tuple[Difference, ...]
    """What changes for callers of the project as it was."""
    notes: tuple[str, ...]

    @property
    def interface(self) -> Interface:
        """What the model takes and gives."""
        return self.project.interface


def make(order: Order, *, catalog: NodeCatalog, builtin: NodeCatalog, config: Config) -> Made:
    """Work out the whole project; nothing is written. `builtin` has ComfyUI's own classes only.

    Raises: `CallerError` with every problem of the workflow, the choices, the models and the files
    in the folder; `MachineError` where the package has no files to copy.
    """
    folder, choices = order.folder, order.choices
    record = keeping.read_record(folder)
    problems = [*_misnamed(choices), *_unusable(order.files)]
    old = read_file(folder / keeping.MANIFEST) if _has(folder, keeping.MANIFEST) else Entries()
    known = known_weights(old, read_file(config.manifest))
    conversion = read_workflow(order.document, catalog)
    kept = [path for path in record.digests if path.startswith(f"{GIVEN}/")] if record else []
    files = {Path(path).name: folder / path for path in kept if _has(folder, path)}
    files |= {path.name: path for path in order.files}
    present = {*files, *_present(folder)}
    folders, groups = ModelFolders(config.models), Manifest(known.weights, known.groups)
    lists = partial(names, folders=folders, manifest=groups)
    interface, found = _design(conversion, catalog, choices, present, lists)
    problems += found
    try:
        gathered = gather(
            order.document,
            interface,
            catalog=catalog,
            known=known,
            config=config,
            present=present,
        )
    except CallerError as err:
        told = {(each.node_id, each.input, each.code) for each in problems}
        problems += [e for e in err.problems if (e.node_id, e.input, e.code) not in told]
        if not found and len(problems) == len(err.problems):
            raise
    if problems:
        raise InvalidInput(problems)
    packs, pack_files, pack_notes = gather_packs(
        order.document,
        conversion,
        builtin=builtin,
        folder=PackFolder(config),
        project=_lock(folder),
    )
    packages = _packages(folder, packs, PackFolder(config))
    listed = {s.partition(":")[2] for s in choices.choices.values() if s.startswith("group:")}
    manifest = own_manifest(known, gathered, old, record.weights if record else (), listed)
    project = Project(
        name=choices.name,
        model=choices.model,
        interface=replace(interface, tokens=gathered.tokens),
        document=order.document,
        workflow=conversion.workflow,
        manifest=manifest,
        needed=gathered.needed,
        local=gathered.local,
        packs=packs,
        pack_requirements=packages.read_text("utf-8", "replace") if packages else "",
        files=files,
    )
    made: dict[str, Content] = {
        **contents(project, PROJECT),
        **own_files(manifest, (config.manifest.parent, folder)),
        **pack_files,
        **({PACKAGES: packages} if packages else {}),
    }
    change, differences = _compared(folder, record, made, overwrite=order.overwrite)
    theirs = {w.label for w in old.weights} - {*(record.weights if record else ())}
    written = [weight.label for weight in manifest.weights if weight.label not in theirs]
    return Made(
        project,
        change,
        Record(choices, tuple(written), change.digests),
        differences,
        (
            *conversion.notes,
            *interface.notes,
            *gathered.notes,
            *pack_notes,
            *confidential.warnings(order.document, conversion.workflow, interface.fixed),
        ),
    )


def named(folder: Path, choices: Choices) -> Choices:
    """The same with a name and a model, after the folder where none is said."""
    name = " ".join((choices.name or folder.resolve().name).split()) or "model"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
    return replace(choices, name=name, model=choices.model or f"{NOBODY}/{slug}")


def stored_document(folder: Path) -> Path:
    """Where a project has its workflow."""
    return folder / WORKFLOW


def _design(
    conversion: Conversion,
    catalog: NodeCatalog,
    choices: Choices,
    present: set[str],
    lists: Lists,
) -> tuple[Interface, list[Problem]]:
    """The interface, or that by default and what is wrong with the choices."""
    try:
        return design(
            conversion,
            catalog,
            chosen=choices.inputs,
            fixed=choices.fixed,
            outputs=choices.outputs,
            choices=choices.choices,
            present=present,
            lists=lists,
        ), []
    except InvalidInput as err:
        # What else is wrong with the workflow is told at once: with what it takes by default.
        return design(conversion, catalog, present=present), [*err.problems]


def _compared(
    folder: Path, record: Record | None, files: dict[str, Content], *, overwrite: bool
) -> tuple[Change, tuple[Difference, ...]]:
    """The change that these files make, with the schema that the resulting predict.py has."""
    carried, faults = keeping.merged(folder, files)
    blocked = [] if overwrite else [*faults]
    try:
        change = keeping.plan(folder, record, carried, overwrite=overwrite)
    except InvalidInput as err:
        known = {fault.input for fault in blocked}
        blocked += [problem for problem in err.problems if problem.input not in known]
        raise InvalidInput(blocked) from err
    if blocked:
        raise InvalidInput(blocked)
    present = folder / "predict.py"
    stays = "predict.py" in change.keep
    text = (present.read_bytes() if stays else keeping.read(carried["predict.py"])).decode()
    after = schema.generate(text)
    carried[schema.SCHEMA.as_posix()] = schema.dumps(after).encode()
    differences: tuple[Difference, ...] = ()
    if record is not None and present.is_file():
        try:
            before = schema.generate(present.read_bytes().decode("utf-8", "replace"))
        except InvalidInput:  # it was broken, and there is nothing to keep to
            before = after
        differences = tuple(compare(before, after))
    return keeping.plan(folder, record, carried, overwrite=overwrite), differences


def _misnamed(choices: Choices) -> list[Problem]:
    if MODEL.fullmatch(choices.model):
        return []
    what = f"{choices.model!r} is no name of a model on Replicate."
    hint = "Write owner/name in small letters, digits, dots, dashes and underscores."
    return [Problem("bad_model_name", what, hint, input="--model")]


def _unusable(files: Sequence[Path]) -> list[Problem]:
    found = [
        Problem("no_file", f"There is no file {path}.", "Check the path.", input="--file")
        for path in files
        if not path.is_file()
    ]
    twice = {path.name for path in files if [each.name for each in files].count(path.name) > 1}
    found += [
        Problem("same_name", f"Two files are called {name}.", "Rename one.", input="--file")
        for name in sorted(twice)
    ]
    return found


def _present(folder: Path) -> list[str]:
    """Names of the files that the project has for its workflow."""
    place = folder / GIVEN
    return [path.name for path in place.iterdir() if path.is_file()] if place.is_dir() else []


def _has(folder: Path, path: str) -> bool:
    return (folder / path).is_file()


def _packages(folder: Path, packs: PackLock, here: PackFolder) -> Path | None:
    """The lock of the packs' Python packages: the project's own, else the one of this machine."""
    own = [path for path in (folder / PACKAGES, here.requirements_file) if path.is_file()]
    return own[0] if own and packs.packs else None


def _lock(folder: Path) -> PackLock:
    """The packs of the project as it is. Raises: `InvalidInput`."""
    if not _has(folder, keeping.PACKS):
        return PackLock()
    return parse_lock((folder / keeping.PACKS).read_text("utf-8", "replace"), LOCK)
