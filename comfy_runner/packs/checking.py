"""Whether each locked pack is whole, has what it asks for, and loads in the real ComfyUI."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_runner.config import Config
from comfy_runner.errors import CallerError
from comfy_runner.packs import environment, trees
from comfy_runner.packs.adding import select
from comfy_runner.packs.folder import PackFolder
from comfy_runner.packs.importing import Tried, try_packs
from comfy_runner.packs.lock import LockedPack, PackLock

Tell = Callable[[str], object]

SHOWN_CLASSES = 8

FAULTS = {
    "same": "",
    "missing": "It is not installed. Run comfy-runner nodes install.",
    "older": "It is of an older lock. Run comfy-runner nodes install.",
    "own": "It has changed since it was locked. Run comfy-runner nodes lock.",
    "edited": "comfy-runner nodes install --overwrite undoes that.",
    "unknown": "Its folder is not what the lock names. Have it replaced with comfy-runner nodes"
    " install --overwrite, or keep it: comfy-runner nodes add with its path.",
}
"""What is wrong with a folder that stands so, and what to do; `own` is an edited one in place."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of one pack."""

    name: str
    faults: tuple[str, ...]
    """What is wrong, each with what to do; empty for a pack that is as it should be."""
    notes: tuple[str, ...]
    tried: Tried | None
    """How it loaded; None where it was not tried."""


def check(
    config: Config, names: Sequence[str] = (), *, limit: float | None, tell: Tell
) -> tuple[Checked, ...]:
    """Look at locked packs, all of them where none is named; nothing is changed.

    With a `limit` in seconds they are loaded in a ComfyUI of their own, which runs their code.

    Raises: `InvalidInput` for a lock that does not hold, `StartFailed` where ComfyUI does not start
    even without packs.
    """
    folder = PackFolder(config)
    lock = folder.read()
    chosen = select(lock, names)
    unmet = environment.unmet(chosen, environment.ours(config.project))
    there = [pack.name for pack in chosen if folder.target(pack.name).is_dir()]
    tried = {}
    if limit is not None and there:
        tried = {each.name: each for each in try_packs(config, there, limit=limit, tell=tell)}
    found = []
    for pack in chosen:
        faults, notes = _files(folder, pack)
        cure = "Run comfy-runner nodes install."
        faults += [f"{what} {cure}" for what in unmet.get(pack.name, ())]
        loaded = tried.get(pack.name)
        if loaded is not None:
            more_faults, more_notes = _loaded(pack, loaded)
            faults += more_faults
            notes += more_notes
        notes += _shared(pack, lock)
        found.append(Checked(pack.name, tuple(faults), tuple(notes), loaded))
    return tuple(found)


def _files(folder: PackFolder, pack: LockedPack) -> tuple[list[str], list[str]]:
    """Faults and notes about the pack's folder."""
    try:
        state = folder.state(pack)
    except CallerError as err:
        return [str(err)], []
    added = state.edits.added
    notes = [f"Files were added to it: {trees.listed(added)}."] if added else []
    standing: str = state.standing
    if standing == "edited" and folder.in_place(pack):
        standing = "own"
    fault = FAULTS[standing]
    if standing == "edited":
        fault = f"It was changed: {trees.listed(state.edits.changed)}. {fault}"
    faults = [fault] if fault else []
    if pack.install_script and trees.script_due(folder.target(pack.name)):
        faults.append("Its install.py has not run to its end. Run comfy-runner nodes install.")
    return faults, notes


def _loaded(pack: LockedPack, tried: Tried) -> tuple[list[str], list[str]]:
    """Faults and notes about how the pack loaded."""
    if not tried.ok:
        return [f"It does not load:\n{tried.why}"], []
    notes = [f"It loads, but not without a fault:\n{tried.why}"] if tried.why else []
    gone = sorted({*pack.classes} - {*tried.classes})
    new = sorted({*tried.classes} - {*pack.classes})
    if pack.imported and (gone or new):
        told = "; ".join(
            f"{what} {_few(names)}" for what, names in (("gone", gone), ("new", new)) if names
        )
        notes.append(f"Its classes are not those of the lock ({told}).")
    return [], notes


def _shared(pack: LockedPack, lock: PackLock) -> list[str]:
    """Classes that another pack has, too: ComfyUI takes those of the pack that it loads last."""
    others: dict[str, list[str]] = {}
    for class_type in pack.classes:
        for other in lock.with_class(class_type):
            if other.name != pack.name:
                others.setdefault(other.name, []).append(class_type)
    return [f"{name} has classes of the same names: {_few(of)}." for name, of in others.items()]


def _few(names: Sequence[str]) -> str:
    left = len(names) - SHOWN_CLASSES
    return ", ".join(names[:SHOWN_CLASSES]) + (f" and {left} more" if left > 0 else "")
