"""What a project was made from, and what making it again does to its files."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.publishing import marks

RECORD = "comfy-runner.json"
"""The file that tells what made the project: what was chosen, and a digest of each file."""
VERSION = 1

MARKED = frozenset({"README.md", "cog.yaml", "predict.py", "script/test"})
"""Files with places that are their author's."""
MANIFEST, PACKS = "weights_manifest.json", "custom_nodes/custom_nodes.lock.json"
REPLACEABLE = frozenset({".cog/openapi_schema.json", MANIFEST, PACKS})
"""Files that other commands change too; what they have to say is in the new ones."""
GENERATED_CHOICES = re.compile(r"(?<=\n)# choices from .*\n[A-Z0-9_]+\b[^\n]*?[(\[](?s:.*?)[)\]]\n")
"""A constant of predict.py that `comfy-runner schema` writes anew."""

Content = bytes | Path
"""What a file of the project holds: bytes, or what stands in a file of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What `new` was told, which holds until it is told otherwise."""

    name: str = ""
    model: str = ""
    inputs: Mapping[str, str] | None = None
    """Name to address; None for the default choice."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Address to value."""
    outputs: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    """Name of an input to `folder:NAME` or `group:NAME`."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the last `new` left behind in a project."""

    choices: Choices
    weights: tuple[str, ...] = ()
    """The manifest's entries that it wrote, as `folder/name`; others are the author's."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Path to the digest of what it wrote there (see `digest`)."""

    def to_json(self) -> str:
        """The record as the text of its file."""
        document = {
            "version": VERSION,
            "choices": asdict(self.choices),
            "weights": list(self.weights),
            "files": dict(sorted(self.digests.items())),
        }
        return f"{json.dumps(document, indent=2, ensure_ascii=False)}\n"


@dataclass(frozen=True, slots=True)
class Change:
    """What making a project again does to its folder."""

    write: Mapping[str, Content]
    remove: tuple[str, ...]
    keep: tuple[str, ...]
    """Edited files that the new project would have as the last one: the edit stays."""
    lost: tuple[str, ...]
    """Edited files that are given up; each is kept as `FILE.orig`."""
    digests: Mapping[str, str]
    """Of all files of the new project."""


def read_record(folder: Path) -> Record | None:
    """What the last `new` left in a project; None where there is nothing yet but perhaps `.git`.

    Raises: `InvalidInput` for a folder that holds something else, or a record that does not hold.
    """
    path = folder / RECORD
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir() and all(entry.name == ".git" for entry in folder.iterdir()):
            return None
        if not folder.exists():
            return None
        what = f"{folder} is not empty, and no project that comfy-runner new made."
        problem = Problem("not_ours", what, "Name a new folder.", input="DIR")
        raise InvalidInput([problem]) from None
    except (OSError, ValueError) as err:
        raise _bad_record(path, str(err)) from err
    match document:
        case {
            "version": 1,
            "choices": {
                "name": str(name),
                "model": str(model),
                "inputs": (dict() | None) as inputs,
                "fixed": dict(fixed),
                "outputs": list(outputs),
                "choices": dict(choices),
            },
            "weights": list(weights),
            "files": dict(files),
        }:
            texts = [*outputs, *weights, *files.values(), *choices.values()]
            texts += (inputs or {}).values()
            if all(isinstance(text, str) for text in texts) and all(map(is_inside, files)):
                made = Choices(
                    name=name,
                    model=model,
                    inputs=inputs,
                    fixed=fixed,
                    outputs=tuple(outputs),
                    choices=choices,
                )
                return Record(made, tuple(weights), files)
        case {"version": int(version)} if version > VERSION:
            raise _bad_record(path, f"it is of version {version}, and {VERSION} is known here")
    raise _bad_record(path, "it is not as comfy-runner new writes it")


def merged(
    folder: Path, files: Mapping[str, Content]
) -> tuple[dict[str, Content], tuple[Problem, ...]]:
    """The files with what stands in the marked places of the present ones.

    The problems are the present files whose places do not fit; of these nothing is taken.
    """
    result = dict(files)
    problems: list[Problem] = []
    for path in sorted(MARKED & files.keys()):
        if not (folder / path).is_file():
            continue
        try:
            old = (folder / path).read_bytes().decode()
            result[path] = marks.carried(old, read(files[path]).decode()).encode()
        except ValueError as err:  # what is no UTF-8, too
            what = f"What is yours in it cannot be carried over: {err}."
            hint = f"Put its marks back. --overwrite gives it up and keeps it as {path}.orig."
            problems.append(Problem("bad_marks", what, hint, input=path))
    return result, tuple(problems)


def plan(
    folder: Path, record: Record | None, files: Mapping[str, Content], *, overwrite: bool = False
) -> Change:
    """What has to be done so that the folder holds these files.

    An edited file that the last `new` wrote as this one would stays as it is. Files that no `new`
    wrote are never touched. With `overwrite`, an edited file is given up.

    Raises: `InvalidInput` naming every file that is in the way or whose edits would be lost.
    """
    known = record.digests if record else {}
    write: dict[str, Content] = {}
    remove: list[str] = []
    keep: list[str] = []
    lost: list[str] = []
    blocked: list[Problem] = []
    digests = {path: digest(path, content) for path, content in files.items()}
    for path, content in files.items():
        present = folder / path
        if why := fault(folder, path):
            blocked.append(Problem("in_the_way", why, "Move it away.", input=path))
        elif not present.exists():
            write[path] = content
        elif _raw_digest(present) == _raw_digest(content):
            continue
        elif path in REPLACEABLE or digest(path, present) == known.get(path):
            write[path] = content
        elif digests[path] == known.get(path):
            keep.append(path)
        else:
            lost.append(path)
            write[path] = content
    for path in sorted(known.keys() - files.keys()):
        if not fault(folder, path) and (folder / path).is_file():
            remove.append(path)
            if digest(path, folder / path) != known[path] and path not in REPLACEABLE:
                lost.append(path)
    if blocked or (lost and not overwrite):
        raise InvalidInput([*blocked, *(() if overwrite else map(_edited, lost))])
    return Change(write, tuple(remove), tuple(keep), tuple(lost), digests)


def digest(path: str, content: Content) -> str:
    """The sha256 of a project's file, without what its author and other commands may change."""
    if path not in MARKED:
        return _raw_digest(content)
    whole = read(content)
    with suppress(ValueError):  # of what is no text, or has broken marks, all counts
        text = marks.skeleton(whole.decode())
        whole = GENERATED_CHOICES.sub("", text).encode()
    return hashlib.sha256(whole).hexdigest()


def read(content: Content) -> bytes:
    """The bytes of a file's content."""
    return content.read_bytes() if isinstance(content, Path) else content


def _raw_digest(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(folder: Path, path: str) -> str:
    """Why a file of the project cannot be written; empty when it can."""
    place = folder
    for part in PurePosixPath(path).parts:
        place /= part
        if place.is_symlink():
            return f"{place} is a link."
        if place.exists() and place.is_dir() == (place == folder / path):
            return f"{place} is {'a folder' if place.is_dir() else 'no folder'}."
    return ""


def is_inside(path: str) -> bool:
    """Whether a path of a record, which somebody may have edited, stays in the project."""
    pure = PurePosixPath(path)
    first = pure.parts[0].lower() if pure.parts else ""
    return not pure.is_absolute() and ".." not in pure.parts and first not in ("", ".git")


def _edited(path: str) -> Problem:
    cure = f"Put it back as it was; or --overwrite, which keeps the edited one as {path}.orig."
    if path in MARKED:
        cure = f"Move your lines between `begin: yours` and `end: yours`. {cure}"
    what = "It is not as comfy-runner new wrote it, and would be overwritten."
    return Problem("edited", what, cure, input=path)


def _bad_record(path: Path, why: str) -> InvalidInput:
    hint = "Put it back as it was, or make the project anew in another folder."
    return InvalidInput(
        [Problem("bad_record", f"{path} cannot be used: {why}.", hint, input="DIR")]
    )
