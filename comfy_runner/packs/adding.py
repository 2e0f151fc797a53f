"""Packs entered into the lock, or their entries brought up to date."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from comfy_runner.config import Config
from comfy_runner.errors import CallerError, InvalidInput, Problem
from comfy_runner.packs import declared, environment, scripts, trees
from comfy_runner.packs.asked import Asked, name_for
from comfy_runner.packs.fetching import INIT, Fetching
from comfy_runner.packs.folder import PackFolder, State
from comfy_runner.packs.importing import Tried, try_packs
from comfy_runner.packs.lock import (
    ArchiveSource,
    GitSource,
    LocalSource,
    LockedPack,
    PackLock,
    RegistrySource,
    parse,
    write,
)

log = logging.getLogger(__name__)

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a person wants of a pack."""

    name: str = ""
    """For its folder; empty for the place's own."""
    leave_out: tuple[str, ...] = ()
    """Requirements that are not to be installed for it."""
    install_script: bool = False
    """Whether its `install.py` may be run."""
    overwrite: bool = False
    """Whether a folder with other content is replaced."""
    install: bool = True
    """Whether its requirements are installed."""
    limit: float | None = None
    """Seconds that ComfyUI may take to start with it; None: it is not tried."""


@dataclass(frozen=True, slots=True)
class Entered:
    """What came of entries that were made or renewed."""

    packs: tuple[LockedPack, ...]
    notes: tuple[str, ...]
    """What the author should know, one sentence each."""
    tried: tuple[Tried, ...] = ()
    """Of those that were tried in ComfyUI."""


def add(config: Config, fetching: Fetching, asked: Asked, wishes: Wishes, tell: Tell) -> Entered:
    """Fetch a pack, resolve its requirements with all others, put it in place, and lock it.

    Nothing is changed unless it is a pack and all requirements go together. Its code runs only
    where it is tried in ComfyUI, or its script may run. `tell` takes a line of progress.

    Raises: `InvalidInput`, `DownloadFailed`, `HashMismatch`, `MachineError`.
    """
    folder = fetching.folder
    name = name_for(asked, wishes.name)
    with folder.claimed():
        lock = folder.read()
        before = lock.get(name)
        pack = LockedPack(
            name=before.name if before else name,
            source=fetching.found(asked),
            leave_out=tuple(sorted({*wishes.leave_out, *(before.leave_out if before else ())})),
            install_script=wishes.install_script,
        )
        standing = _replaceable(folder, pack, before, wishes.overwrite)
        tell(f"Fetching {pack.name} from {pack.source} ...")
        pack, notes = _read(fetching, pack)
        if before and _place(before) != _place(pack):
            notes.append(f"{pack.name} came from {before.source} until now.")
        _require_readable(lock.having(pack))
        found = environment.resolve(
            lock.having(pack).packs,
            environment.ours(config.project),
            config.project,
            before=folder.read_requirements(),
        )
        if wishes.install:
            staged = folder.staging / "requirements.lock"
            staged.write_text(found.text, encoding="utf-8")
            environment.install(staged, config.project)
        if not folder.in_place(pack):
            edits, has_script = standing.edits, pack.install_script
            folder.settle(folder.staging / pack.name, pack.name, edits, script_due=has_script)
        folder.save(lock.having(pack), found.text)
        if pack.install_script:
            scripts.run(config, folder.target(pack.name), tell)
        tried: tuple[Tried, ...] = ()
        if wishes.limit is not None:
            tried = try_packs(config, [pack.name], limit=wishes.limit, tell=tell)
            pack = _as_tried(pack, tried)
            folder.save(lock.having(pack))
    return Entered((pack,), (*notes, *found.notes), tried)


def refresh(
    config: Config,
    fetching: Fetching,
    names: Sequence[str] = (),
    *,
    upgrade: bool,
    limit: float | None,
    tell: Tell,
) -> Entered:
    """Fetch packs anew and bring their entries up to date; all of them where none is named.

    With `upgrade` branches, tags and registry packs are followed to where they are now, and Python
    packages to their newest versions that fit. Only the two locks are changed, and only where
    everything could be fetched and resolved. With a `limit` in seconds, packs that have changed are
    tried in ComfyUI.

    Raises: as `add`.
    """
    folder = fetching.folder
    with folder.claimed():
        lock = folder.read()
        chosen = select(lock, names)
        renewed: list[LockedPack] = []
        notes: list[str] = []
        for before in chosen:
            source = fetching.newer(before.source) if upgrade else before.source
            if upgrade and isinstance(source, GitSource) and not source.ref:
                notes.append(
                    f"{before.name} stays at {source.commit[:12]}: no branch or tag was asked for."
                    " To have one followed: comfy-runner nodes add with --ref."
                )
            tell(f"Fetching {before.name} from {source} ...")
            pack, told = _read(fetching, replace(before, source=source))
            if pack.digest == before.digest and before.imported:
                pack = replace(pack, classes=before.classes, imported=True)
            renewed.append(pack)
            notes += told
        new = lock.having(*renewed)
        _require_readable(new)
        found = environment.resolve(
            new.packs,
            environment.ours(config.project),
            config.project,
            before="" if upgrade else folder.read_requirements(),
        )
        untried = [pack.name for pack in renewed if not pack.imported]
        tried: tuple[Tried, ...] = ()
        if limit is not None and untried:
            place = replace(config, custom_nodes=folder.staging)
            for pack in renewed:
                if folder.in_place(pack):
                    trees.copy(folder.target(pack.name), folder.staging / pack.name)
            tried = try_packs(place, untried, limit=limit, tell=tell)
            renewed = [_as_tried(pack, tried) for pack in renewed]
        folder.save(new.having(*renewed), found.text)
    return Entered(tuple(renewed), (*notes, *found.notes), tried)


def select(lock: PackLock, names: Sequence[str]) -> tuple[LockedPack, ...]:
    """The packs of these names; all of them for none. Raises: `InvalidInput`."""
    problems = [
        Problem(
            "unknown_pack",
            f"The lock has no pack {name!r}.",
            f"It has {', '.join(pack.name for pack in lock.packs) or 'none'}.",
            input="NAME",
        )
        for name in names
        if lock.get(name) is None
    ]
    if problems:
        raise InvalidInput(problems)
    wanted = {name.casefold() for name in names}
    return tuple(pack for pack in lock.packs if not wanted or pack.name.casefold() in wanted)


def refuse_edited(states: Iterable[tuple[LockedPack, State]]) -> None:
    """Raises: `InvalidInput` that names each pack whose folder holds somebody's work."""
    problems = []
    for pack, state in states:
        match state.standing:
            case "edited":
                files = trees.listed(state.edits.changed)
                what = f"Its folder was changed since it was installed: {files}."
            case "unknown":
                what = "There is a folder of its name with other content, which is not from here."
            case _ if state.has_history:
                what = "Its folder is a git repository, whose branches and commits would be lost."
            case _:
                continue
        hint = "Keep what you need of it, and replace it with --overwrite."
        problems.append(Problem("edited_pack", what, hint, input=f"pack {pack.name}"))
    if problems:
        raise InvalidInput(problems)


def _replaceable(
    folder: PackFolder, pack: LockedPack, before: LockedPack | None, overwrite: bool
) -> State:
    """How the pack's folder stands, once it is known that it may be replaced."""
    if folder.in_place(pack):
        return State("same")
    try:
        state = folder.state(before or pack)
    except CallerError:
        state = State("unknown")
    if not overwrite and before and folder.in_place(before) and state.standing != "missing":
        what = "Its folder is the only source of the pack that the lock has by this name."
        hint = "Give the new one another name with --name, or replace it with --overwrite."
        raise InvalidInput([Problem("edited_pack", what, hint, input=f"pack {pack.name}")])
    if not overwrite:
        refuse_edited([(pack, state)])
    return state


def _read(fetching: Fetching, pack: LockedPack) -> tuple[LockedPack, list[str]]:
    """The entry with all that its files tell, and what there is to note; staged if it is fetched.

    For a pack in place nothing is fetched.
    """
    folder = fetching.folder
    if folder.in_place(pack):
        tree = folder.target(pack.name)
        _require_init(pack, tree)
        (tree / trees.RECORD).unlink(missing_ok=True)  # it is nobody's copy any more
    else:
        tree = folder.staging / pack.name
        pack = replace(pack, source=fetching.bring(pack, tree))
    found = declared.examine(tree)
    notes = [f"{pack.name}: {note}" for note in found.notes]
    if found.has_script and not pack.install_script:
        notes.append(
            f"{pack.name} has an install.py, which is not run. Read it; where it does what you"
            " need, add the pack with --run-install-script."
        )
    entry = replace(
        pack,
        digest=trees.digest(trees.contents(tree)),
        requirements=found.requirements,
        classes=found.classes,
        imported=False,
    )
    return entry, notes


def _require_readable(lock: PackLock) -> None:
    """Raises: `InvalidInput` for a lock that nobody could read once it were written."""
    parse(write(lock))


def _place(pack: LockedPack) -> str:
    """Where the pack comes from, whatever its version."""
    match pack.source:
        case GitSource(place) | RegistrySource(place) | ArchiveSource(place) | LocalSource(place):
            return place
        case _:
            assert_never(pack.source)


def _require_init(pack: LockedPack, tree: Path) -> None:
    if isinstance(pack.source, LocalSource) and not (tree / INIT).is_file():
        what = f"{tree} is no pack of nodes: it has no {INIT}."
        raise InvalidInput([Problem("no_pack", what, input=f"pack {pack.name}")])


def _as_tried(pack: LockedPack, tried: Iterable[Tried]) -> LockedPack:
    """The entry with the classes that ComfyUI told, where the pack was tried and loaded."""
    for each in tried:
        if each.name == pack.name and each.ok:
            return replace(pack, classes=each.classes, imported=True)
    return pack
