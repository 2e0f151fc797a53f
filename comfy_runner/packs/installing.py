"""`custom_nodes` made to match its lock: fetched, compared, and moved into place, or left alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.packs import declared, environment, scripts, trees
from comfy_runner.packs.adding import refuse_edited
from comfy_runner.packs.fetching import Fetching, check_digest
from comfy_runner.packs.folder import PackFolder, State
from comfy_runner.packs.lock import LockedPack, PackLock

Tell = Callable[[str], object]

LOCK_FIRST = "Run comfy-runner nodes lock, and look at what changes."


@dataclass(frozen=True, slots=True)
class Installed:
    """What was done."""

    placed: tuple[str, ...]
    """Names of the packs that were fetched."""
    kept: tuple[str, ...]
    """Of those that were there already."""
    strangers: tuple[str, ...]
    """What ComfyUI loads besides; never touched."""
    notes: tuple[str, ...]


def install(
    config: Config, fetching: Fetching, *, frozen: bool, overwrite: bool, deps: bool, tell: Tell
) -> Installed:
    """Make the folder match the lock, and the environment the packs' requirements.

    Everything is fetched, compared and resolved before anything is changed. `frozen` takes both
    locks as they are and writes neither; without it, incomplete entries are completed. Without
    `deps` the environment stays as it is. A folder that somebody changed is replaced only with
    `overwrite`; what is not in the lock stays.

    Raises: `InvalidInput` naming every pack that is in the way or not locked, `HashMismatch`,
    `DownloadFailed`, `MachineError`.
    """
    folder = fetching.folder
    with folder.claimed():
        lock = folder.read()
        pinned = environment.ours(config.project)
        if frozen:
            _require_locked(folder, lock, pinned)
        states = _states(folder, lock, overwrite=overwrite)
        notes = _look_at_own(folder, lock, states, frozen=frozen)
        due = [
            pack
            for pack in lock.packs
            if not folder.in_place(pack) and states[pack.name].standing != "same"
        ]
        if not overwrite:
            refuse_edited((pack, states[pack.name]) for pack in due)
        fetched = [_fetched(fetching, pack, tell) for pack in due]
        new = lock.having(*(pack for pack, _ in fetched))
        notes += [note for _, told in fetched for note in told]
        text = folder.read_requirements()
        if not environment.is_current(text, new.packs, pinned):
            resolution = environment.resolve(new.packs, pinned, config.project, before=text)
            text = resolution.text
            notes += resolution.notes
        if deps and text:
            staged = folder.staging / "requirements.lock"
            staged.write_text(text, encoding="utf-8")
            environment.install(staged, config.project)
        for pack in due:
            edits, has_script = states[pack.name].edits, pack.install_script
            folder.settle(folder.staging / pack.name, pack.name, edits, script_due=has_script)
        if new != lock or text != folder.read_requirements():
            folder.save(new, text)
        for pack in lock.packs:
            # Also one that was cut off, or failed, when its pack was put in place.
            if pack.install_script and trees.script_due(folder.target(pack.name)):
                scripts.run(config, folder.target(pack.name), tell)
            folder.compile(pack.name)
        placed = tuple(pack.name for pack in due)
        kept = tuple(pack.name for pack in lock.packs if pack not in due)
        return Installed(placed, kept, tuple(folder.strangers(lock)), tuple(notes))


def _states(folder: PackFolder, lock: PackLock, *, overwrite: bool) -> dict[str, State]:
    """How each pack's folder stands. Raises: `InvalidInput` for those that cannot be compared."""
    found: dict[str, State] = {}
    problems: list[Problem] = []
    for pack in lock.packs:
        try:
            found[pack.name] = folder.state(pack)
        except InvalidInput as err:
            if overwrite and not folder.in_place(pack):
                found[pack.name] = State("unknown")
                continue
            hint = "Take them out of the folder, or have it replaced with --overwrite."
            place = f"pack {pack.name}"
            problems += (replace(problem, hint=hint, input=place) for problem in err.problems)
    if problems:
        raise InvalidInput(problems)
    return found


def _fetched(
    fetching: Fetching, pack: LockedPack, tell: Tell
) -> tuple[LockedPack, tuple[str, ...]]:
    """The entry, completed, of a pack whose files are staged now and are those of the lock.

    And what there is to note of one that was written by hand, without a digest.
    """
    tell(f"Fetching {pack.name} from {pack.source} ...")
    tree = fetching.folder.staging / pack.name
    source = fetching.bring(pack, tree)
    found = trees.digest(trees.contents(tree))
    check_digest(pack, found)
    entry = replace(pack, source=source, digest=found)
    if pack.digest:
        return entry, ()
    told = declared.examine(tree)
    notes = tuple(f"{pack.name}: {note}" for note in told.notes)
    return replace(entry, requirements=told.requirements, classes=told.classes), notes


def _look_at_own(
    folder: PackFolder, lock: PackLock, states: dict[str, State], *, frozen: bool
) -> list[str]:
    """What there is to say of packs that lie in place. Raises: `InvalidInput`."""
    problems, notes = [], []
    for pack in lock.packs:
        if not folder.in_place(pack) or states[pack.name].standing == "same":
            continue
        place = f"pack {pack.name}"
        if states[pack.name].standing == "missing":
            what = "Its folder is gone, and it is its only source."
            hint = "Put it back, or take the entry out."
            problems.append(Problem("no_folder", what, hint, input=place))
        elif frozen:
            what = "Its folder has changed since it was locked."
            problems.append(Problem("edited_pack", what, LOCK_FIRST, input=place))
        else:
            notes.append(f"{pack.name} has changed since it was locked. {LOCK_FIRST}")
    if problems:
        raise InvalidInput(problems)
    return notes


def _require_locked(folder: PackFolder, lock: PackLock, pinned: environment.Ours) -> None:
    """Raises: `InvalidInput` unless both locks say everything."""
    problems = [
        Problem("not_locked", "Its entry has no digest.", LOCK_FIRST, input=f"pack {pack.name}")
        for pack in lock.packs
        if not pack.digest
    ]
    packs: Sequence[LockedPack] = lock.packs
    if not environment.is_current(folder.read_requirements(), packs, pinned):
        what = "It is not of what the packs ask for now and of what we have."
        place = str(folder.requirements_file.name)
        problems.append(Problem("not_locked", what, LOCK_FIRST, input=place))
    if problems:
        raise InvalidInput(problems)
