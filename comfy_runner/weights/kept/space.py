"""Making room in the content store: what is least recently used goes, and nothing in vain."""

import logging
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.errors import DownloadFailed
from comfy_runner.weights.kept import care, locks
from comfy_runner.weights.kept.care import Leftovers
from comfy_runner.weights.kept.index import ObjectRow
from comfy_runner.weights.kept.shelf import Shelf
from comfy_runner.weights.weight import human_size

log = logging.getLogger(__name__)

SETTLE = 1.0
"""Seconds that a filesystem may take until removed bytes count as free."""
TICK = 0.05
IN_VAIN = 2
"""Removals in a row that may free nothing before no more are tried."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much the store may hold."""

    reserve: int
    """Bytes of the disk that stay free."""
    limit: int | None
    """Most bytes of all objects together."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    row: ObjectRow
    frees: int
    """Bytes of the disk that its removal gives back."""


@dataclass(frozen=True, slots=True)
class _Lack:
    """What is missing for a download, in bytes; nothing where it is not above 0."""

    disk: int
    kept: int
    """Missing because of the limit of what the store may keep."""

    def __bool__(self) -> bool:
        return self.disk > 0 or self.kept > 0


def make_room(
    shelf: Shelf,
    budget: Budget,
    needed: int,
    *,
    keep: Collection[str],
    release: Callable[[], None] | None,
) -> None:
    """See `ObjectStore.make_room`."""
    lack = _lack(shelf, budget, needed)
    if not lack:
        return
    candidates, stale = [], []
    if shelf.writable:
        candidates = _candidates(shelf, keep)
        stale = [work for work in care.leftovers(shelf) if not _is_worked_on(shelf, work)]
    disk = sum(candidate.frees for candidate in candidates) + sum(work.size for work in stale)
    kept = sum(candidate.row.size for candidate in candidates)
    if lack.disk > disk or lack.kept > kept:
        raise DownloadFailed(_too_small(shelf, budget, needed, lack, _Lack(disk, kept)))
    for work in stale:
        if _lack(shelf, budget, needed).disk <= 0:
            break
        work.remove(shelf)
    if not _lack(shelf, budget, needed):
        return
    if release is not None:
        release()
    _evict(shelf, budget, needed, candidates)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _lack(shelf: Shelf, budget: Budget, needed: int) -> _Lack:
    disk = needed + budget.reserve - free_bytes(shelf.root)
    if budget.limit is None:
        return _Lack(disk, 0)
    used = sum(row.size for row in shelf.index.objects()) if shelf.root.is_dir() else 0
    return _Lack(disk, used + needed - budget.limit)


def _candidates(shelf: Shelf, keep: Collection[str]) -> list[_Candidate]:
    """What may go, the least recently used first."""
    return [
        _Candidate(row, shelf.frees(row.id))
        for row in shelf.index.objects()
        if row.id not in keep and not locks.is_held(shelf.pin_file(row.id))
    ]


def _is_worked_on(shelf: Shelf, work: Leftovers) -> bool:
    return locks.is_held(shelf.locks / f"{work.key}.lock")


def _evict(shelf: Shelf, budget: Budget, needed: int, candidates: Collection[_Candidate]) -> None:
    vain = 0
    for candidate in candidates:
        lack = _lack(shelf, budget, needed)
        if not lack:
            return
        # What frees nothing on a full disk would go in vain.
        if lack.kept <= 0 and not candidate.frees:
            continue
        before = free_bytes(shelf.root)
        names = [row.path for row in shelf.index.names(candidate.row.id)]
        if not _remove(shelf, candidate.row):
            continue
        size = human_size(candidate.row.size)
        shown = ", ".join(names) or candidate.row.id[:12]
        log.info("Removed the model %s (%s) to make room.", shown, size)
        if lack.disk <= 0:
            continue
        rose = _has_risen(shelf, before + candidate.frees // 2)
        vain = 0 if rose else vain + 1
        if vain == IN_VAIN:
            raise DownloadFailed(
                f"There is no room for {human_size(needed)} under {shelf.models}: removing "
                f"{vain} models did not free their space, so a running program still has them "
                f"open. {human_size(_lack(shelf, budget, needed).disk)} are missing. "
                "Restart ComfyUI, or free some space."
            )
    lack = _lack(shelf, budget, needed)
    if lack:
        raise DownloadFailed(_too_small(shelf, budget, needed, lack, _Lack(0, 0)))


def _remove(shelf: Shelf, row: ObjectRow) -> bool:
    """Remove an object unless it is in use, or was used since it was looked at."""
    with shelf.changing(), locks.held_if_free(shelf.pin_file(row.id)) as free:
        if not free or shelf.index.find(row.id) != row:
            return False
        try:
            shelf.drop(row.id)
        except OSError as err:
            log.warning("The model %s could not be removed: %s.", row.id[:12], err.strerror)
            return False
        return True


def _has_risen(shelf: Shelf, wanted: int) -> bool:
    """Whether so many bytes are free, now or soon: some filesystems free them a little later."""
    deadline = time.monotonic() + SETTLE
    while free_bytes(shelf.root) < wanted:
        if time.monotonic() > deadline:
            return False
        # A filesystem has no event to wait for.
        time.sleep(TICK)
    return True


def _too_small(shelf: Shelf, budget: Budget, needed: int, lack: _Lack, freeable: _Lack) -> str:
    if lack.kept > freeable.kept:
        limit = budget.limit or 0
        return (
            f"The model store is too small: {human_size(needed)} are to come, its limit is "
            f"{human_size(limit)}, {human_size(lack.kept + limit - needed)} are in it and "
            f"{human_size(freeable.kept)} of them could go, so "
            f"{human_size(lack.kept - freeable.kept)} are missing. Raise "
            "COMFY_RUNNER_MAX_WEIGHTS_BYTES, or ask for fewer models at once."
        )
    free = free_bytes(shelf.root)
    return (
        f"The disk is too small for the weights: {human_size(needed)} are to come, "
        f"{human_size(free)} are free, of which {human_size(budget.reserve)} must stay so, and "
        f"{human_size(freeable.disk)} could be freed, so "
        f"{human_size(lack.disk - freeable.disk)} are missing. "
        f"Free some space under {shelf.models}, or lower COMFY_RUNNER_DISK_RESERVE."
    )
