"""Giving an object of the content store a name in a model folder, in one step."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from comfy_runner.errors import DownloadFailed, InvalidInput, Problem
from comfy_runner.fetch.staged import sync
from comfy_runner.weights.kept import locks
from comfy_runner.weights.kept.files import discard, mark_of, same_content, stage
from comfy_runner.weights.kept.index import NameRow
from comfy_runner.weights.kept.shelf import Shelf


def link(shelf: Shelf, identity: str, path: str, *, replace: bool) -> None:
    """See `ObjectStore.link`; `path` is folder and name. Raises also `OSError`, `sqlite3.Error`.

    The index is told before anything is made, so that no crash leaves a name that it misses.
    """
    place = shelf.place(path)
    row = NameRow(path, identity)
    shelf.make()
    place.target.parent.mkdir(parents=True, exist_ok=True)
    with (
        shelf.pinned([identity]),
        locks.held(shelf.name_lock(path)),
    ):
        if shelf.get(identity) is None:
            raise DownloadFailed(f"The model for {path} was removed meanwhile. Try again.")
        with shelf.changing():
            for unfinished in shelf.index.pending():
                if unfinished.path == path:
                    finish(shelf, unfinished)
        done = _what_stays(shelf, row, replace=replace)
        try:
            if done is None:
                with shelf.changing():
                    shelf.index.begin_name(row)
                done = _make(shelf, row, replace=replace)
        finally:
            for left in place.leftovers():
                discard(left)
            with shelf.changing():
                shelf.index.end_name(path, done)


def finish(shelf: Shelf, row: NameRow) -> None:
    """Enter a name if the process that died over it had made it, and remove what it left.

    Needs `changing` and the name's lock.
    """
    for path in shelf.place(row.path).leftovers():
        discard(path)
    shelf.index.end_name(row.path, row if shelf.stands(row) else None)


def _make(shelf: Shelf, row: NameRow, *, replace: bool) -> NameRow:
    place = shelf.place(row.path)
    # A copy may take long, so others may go on meanwhile.
    part, mark = stage(shelf.objects / row.object_id, place, shelf.ways)
    row = NameRow(row.path, row.object_id, mark)
    with shelf.changing():
        if not replace and not _is_ours_or_free(shelf, row.path):
            _refuse(place.target, row.path)
        if mark:
            shelf.index.begin_name(row)
        # A rename puts no folder in the place of anything, nor anything in that of a folder.
        if _is_folder(part) or _is_folder(place.target):
            shelf.put_away(place)
        part.replace(place.target)
        sync(place.target.parent)
        shelf.index.end_name(row.path, row)
    return row


def _what_stays(shelf: Shelf, row: NameRow, *, replace: bool) -> NameRow | None:
    """What stands at the name already and is right; None when the name is to be made.

    Raises: `InvalidInput` when somebody's file stands there that may not be replaced.
    """
    target = shelf.models / row.path
    with shelf.changing():
        if shelf.stands(row):  # only the index had lost it
            return row
        if _is_ours_or_free(shelf, row.path):
            return None
    # It is no business of the store, so the store does not change it while it is read; a person
    # may: the mark must be that of the bytes that were read.
    with suppress(FileNotFoundError):
        mark = mark_of(target)
        same = same_content(target, shelf.objects / row.object_id, row.object_id)
        if same and mark == mark_of(target):
            return NameRow(row.path, row.object_id, mark, owned=False)
    if not replace and os.path.lexists(target):
        _refuse(target, row.path)
    return None


def _is_ours_or_free(shelf: Shelf, path: str) -> bool:
    """Whether a name may be made without harm to a person's file; needs `changing`."""
    if not os.path.lexists(shelf.models / path):
        return True
    known = shelf.index.name(path)
    return known is not None and known.owned and shelf.stands(known)


def _refuse(target: Path, path: str) -> NoReturn:
    what = f"{path} is there already, and is another file than the one asked for."
    raise InvalidInput([Problem("name_taken", what, f"Move {target} away, or use another name.")])


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
