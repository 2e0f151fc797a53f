"""How an object stands under a name: made in one step, known again, taken away."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from comfy_runner.fetch.staged import sync

Kind = Literal["file", "tree"]
Way = Literal["hard link", "symbolic link", "copy"]
WAYS: Sequence[Way] = ("hard link", "symbolic link", "copy")
"""How names are made, best first."""
NO_LINKS = frozenset(
    [
        errno.EXDEV,
        errno.EPERM,
        errno.EACCES,
        errno.EMLINK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EINVAL,
    ]
)
"""What a filesystem says that cannot make such a link; a full disk is something else."""


class UnfitTree(Exception):
    """A folder holds what no tree may hold."""


def members(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path, with `/`, and status of each thing in a folder that is no folder itself."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in files:
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix(), path.lstat()
        for name in folders:
            path = Path(parent, name)
            if path.is_symlink():
                yield path.relative_to(folder).as_posix(), path.lstat()


def measure(path: Path) -> tuple[Kind, int] | None:
    """Kind and bytes of an object; None when none stands there."""
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return "file", found.st_size
        if stat.S_ISDIR(found.st_mode):
            return "tree", sum(member.st_size for _, member in members(path))
    except FileNotFoundError:
        pass
    return None


def digest(path: Path) -> str:
    """The id that an object should have: 64 hexadecimal digits.

    A file's is its sha256; a folder's is made of the paths and hashes of its files, sorted by
    path. Raises: `UnfitTree` for links, special files and for a folder without files; `OSError`.
    """
    if not path.is_dir():
        return _sha256(path)
    whole = hashlib.sha256()
    found = sorted(members(path))
    if not found:
        raise UnfitTree("it holds no file.")
    for name, member in found:
        if not stat.S_ISREG(member.st_mode):
            raise UnfitTree(f"{name!r} is a link or a special file.")
        whole.update(os.fsencode(name) + b"\0" + _sha256(path / name).encode() + b"\n")
    return whole.hexdigest()


def sync_all(path: Path) -> None:
    """Make a file, or a folder with all that is in it, survive a crash of the machine."""
    if not path.is_dir():
        sync(path)
        return
    for parent, _, files in os.walk(path):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


def mark_of(path: Path) -> str:
    """What tells a copy that we made from what a person put in its place."""
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode):  # its files are compared on their own
        return f"{found.st_ino}"
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def stands(target: Path, source: Path, mark: str) -> bool:
    """Whether the object at `source` stands whole at `target`: as links, or as the marked copy."""
    try:
        found = target.lstat()
        if stat.S_ISLNK(found.st_mode):
            return target.samefile(source)
        if stat.S_ISREG(found.st_mode):
            if mark:
                return mark == mark_of(target) and source.is_file()
            return os.path.samestat(found, source.lstat())
        if stat.S_ISDIR(found.st_mode) and source.is_dir():
            copied = bool(mark) and mark == mark_of(target)
            return all(
                os.path.samestat(member, there := (target / name).lstat())
                or (copied and member.st_size == there.st_size)
                for name, member in members(source)
            )
    except OSError:
        pass
    return False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a name stands, and where what is to stand there, or stood there, is kept meanwhile."""

    target: Path
    beside: Path
    """Unfinished file in the target's folder: a rename from it always works."""
    staged: Path
    """Unfinished folder in the store: ComfyUI would list the files of one beside the target."""
    gone: Path
    """What is being removed, in the target's folder, where it cannot be moved to the store."""

    @classmethod
    def of(cls, models: Path, staging: Path, name: str) -> "Place":
        """The place of the name `name`, such as `loras/x.safetensors`."""
        target, key = models / name, key_of(name)
        return cls(
            target,
            target.with_name(f".{key}.part"),
            staging / f"name-{key}",
            target.with_name(f".{key}.gone"),
        )

    def leftovers(self) -> list[Path]:
        """What a dead process left of its work at this name."""
        return [path for path in (self.beside, self.staged, self.gone) if os.path.lexists(path)]


def key_of(text: str) -> str:
    """A short name that is safe as a file name, and tells nothing of the text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def stage(source: Path, place: Place, ways: Sequence[Way]) -> tuple[Path, str]:
    """Make a name for an object: where it stands until it is renamed, and its mark if it is a copy.

    Raises: `OSError` when none of the ways works here.
    """
    for way in ways:
        part = place.staged if source.is_dir() and way == "hard link" else place.beside
        discard(part)
        try:
            match way:
                case "hard link" if source.is_dir():
                    _hard_link_tree(source, part, place.beside)
                case "hard link":
                    part.hardlink_to(source)
                case "symbolic link":
                    _symbolic_link(source, part)
                case "copy" if source.is_dir():
                    shutil.copytree(source, part, copy_function=shutil.copyfile)
                    sync_all(part)
                case "copy":
                    shutil.copyfile(source, part)
                    sync_all(part)
                case _:
                    assert_never(way)
        except OSError as err:
            discard(part)
            if err.errno not in NO_LINKS or way == ways[-1]:
                raise
        else:
            return part, mark_of(part) if way == "copy" else ""
    raise ValueError("No way to make a name was given.")


def discard(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, if there is one."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(path, ignore_errors=True)


def take_away(place: Place, source: Path, aside: Callable[[Place], None]) -> None:
    """Remove a name that stands for an object, and nothing else that a person put into a tree.

    `aside` gets a folder out of the way in one step.
    """
    target = place.target
    if target.is_symlink() or not target.is_dir():
        target.unlink(missing_ok=True)
        return
    ours = {name for name, _ in members(source)}
    if ours.issuperset(name for name, _ in members(target)):
        aside(place)
        return
    for name in ours:
        (target / name).unlink(missing_ok=True)
    for parent, _, _ in os.walk(target, topdown=False):
        with suppress(OSError):  # it is not empty
            Path(parent).rmdir()


def same_content(target: Path, source: Path, identity: str) -> bool:
    """Whether what stands at `target` has the bytes of the object; reads them all."""
    try:
        if measure(target) != measure(source):
            return False
        return digest(target) == identity
    except (OSError, UnfitTree):
        return False


def _hard_link_tree(source: Path, part: Path, probe: Path) -> None:
    made = False
    for parent, folders, files in os.walk(source):
        there = part / Path(parent).relative_to(source)
        there.mkdir(exist_ok=True)
        for name in folders:
            (there / name).mkdir()
        for name in files:
            if not made:
                # Tells whether the target is on another disk, where a rename would fail as well.
                probe.hardlink_to(Path(parent, name))
                probe.unlink()
                made = True
            (there / name).hardlink_to(Path(parent, name))


def _symbolic_link(source: Path, part: Path) -> None:
    models = source.parent.parent.parent.resolve()
    folder = part.parent.resolve()
    inside = folder.is_relative_to(models)
    # Inside the models folder a relative link holds wherever the folder is mounted.
    part.symlink_to(os.path.relpath(source.resolve(), folder) if inside else source.resolve())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _raise(err: OSError) -> None:
    raise err
