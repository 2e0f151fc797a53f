"""The files that come with a request: unpacked, fetched, and laid into ComfyUI's input folder."""

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from threading import Event
from typing import BinaryIO

from comfy_runner.errors import CallerError, DownloadFailed, InvalidInput, MachineError, Problem
from comfy_runner.fetch.archives import BadArchive, encodable, unpack
from comfy_runner.fetch.download import Patience, fetch
from comfy_runner.fetch.policy import OPEN, Policy
from comfy_runner.fetch.urls import clean_name
from comfy_runner.runs.outputs import free_name
from comfy_runner.runs.plan import FileNeed

log = logging.getLogger(__name__)

PLAYLISTS = frozenset(
    {".m3u8", ".m3u", ".pls", ".ffconcat", ".ffcat", ".mpd", ".ism", ".sdp", ".cue", ".asx"}
)
"""Endings of files that name other files."""
PLAYLIST_STARTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"<mpd", b"<asx", b"v=0\r", b"v=0\n")
PLAYLIST_HEAD = 512
"""Bytes in which such a start is looked for."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")

MAX_ARCHIVE_FILES = 2000
"""Most files that one archive may hold."""

MAX_NAME_BYTES = 200
"""Longest file name; file systems end at 255, and a name made from it is somewhat longer."""

LONGEST_NAME = 255
"""Bytes of the longest file name that a file system takes."""


@dataclass(frozen=True, slots=True)
class GivenFile:
    """A file that came with the request."""

    path: Path
    name: str
    """Its name as the caller knows it, without a folder."""
    alias: str = ""
    """Another name that a workflow may use for it, such as `input.png`."""


class InputFolder:
    """ComfyUI's input folder, filled for one run and emptied after it."""

    def __init__(self, folder: Path, max_bytes: int, policy: Policy = OPEN) -> None:
        """`max_bytes` is the most that one file, or one archive unpacked, may have.

        `policy` says where the URLs of a request may lead.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._policy = policy

    def clear(self) -> None:
        """Take everything out again."""
        empty(self._folder)

    def lay(self, given: Sequence[GivenFile]) -> dict[str, Path]:
        """Put the given files into the folder, archives unpacked with their tree.

        Returns name or path in the folder to the file; a file with an alias is there twice.

        Raises: `InvalidInput` for two files of one name and for an archive that is broken, too
        big, or holds a path that leads out of it; `MachineError` when the disk takes no file.
        What was laid until then stays until `clear`.
        """
        laid: dict[str, Path] = {}
        with _storing():
            for file in given:
                if file.name.lower().endswith(ARCHIVES):
                    laid.update(self._unpack(file))
                    continue
                for name in dict.fromkeys(filter(None, (safe_name(file.name), file.alias))):
                    laid[name] = self._free(name)
                    shutil.copyfile(file.path, laid[name])  # no link: a node may write to its input
        return laid

    def stage(
        self,
        needs: Sequence[FileNeed],
        laid: Mapping[str, Path],
        cancelled: Event,
    ) -> dict[tuple[str, str], str]:
        """Fetch what is given by URL and give each needed file a name made from its content.

        So two files of one name never meet, and ComfyUI keeps cached what depends on a file only
        while the file stays the same. Returns (node id, input) to the name to write there.

        Raises: `DownloadFailed`, `Cancelled`, `InvalidInput` for a file that is too big or a URL
        that cannot be used, and `MachineError` when the disk takes no file.
        """
        fetched: dict[str, Path] = {}
        staged: dict[tuple[str, str], str] = {}
        with _storing():
            for need in needs:
                if not need.is_url:
                    file = laid[need.source]
                elif need.source in fetched:
                    file = fetched[need.source]
                else:
                    file = self._fetch(need, cancelled)
                    fetched[need.source] = file
                staged[need.node_id, need.input] = self._by_content(file, need.subfolder)
        return staged

    def _fetch(self, need: FileNeed, cancelled: Event) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=".fetched-", dir=self._folder))
        part = folder / "part"
        try:
            result = fetch(
                need.source,
                part,
                max_bytes=self._max_bytes,
                expect="media",
                cancelled=cancelled,
                patience=Patience(retries=2, policy=self._policy),  # somebody waits for it
            )
        except CallerError as err:
            raise type(err)(
                replace(problem, node_id=need.node_id, input=need.input) for problem in err.problems
            ) from err
        except DownloadFailed as err:
            raise DownloadFailed(f"node {need.node_id}, input {need.input}: {err}") from err
        return part.rename(folder / safe_name(result.name))

    def _by_content(self, file: Path, subfolder: str) -> str:
        with file.open("rb") as stream:
            _refuse_playlist(file, stream)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        # Brackets would do harm: ComfyUI reads `x.png [output]` as a file of another folder.
        name = clean_name(f"{file.stem[:60]}-{digest}{file.suffix.lower()}")
        target = self._folder / subfolder / name
        if not target.exists():
            if subfolder and target.parent.is_file():
                raise _bad_file(
                    "same_name", subfolder, "This name belongs to a folder.", "Rename the file."
                )
            target.parent.mkdir(exist_ok=True)
            link_or_copy(file, target)
        return str(PurePosixPath(subfolder, name))

    def _free(self, path: str) -> Path:
        """The place in the folder for a file of the request; nothing stands there yet."""
        target = self._folder / path
        if target.exists():
            raise _bad_file(
                "same_name",
                path,
                "Two of the files have this name.",
                "Rename one of them, or put them into folders of one zip.",
            )
        return target

    def _unpack(self, file: GivenFile) -> dict[str, Path]:
        """Links and devices of an archive are left out: they mean nothing among input files."""
        try:
            paths = unpack(
                file.path,
                self._folder,
                kind="zip" if file.name.lower().endswith(".zip") else "tar",
                max_bytes=self._max_bytes,
                max_files=MAX_ARCHIVE_FILES,
                max_name_bytes=LONGEST_NAME,
                odd="leave out",
                shown=file.name,
            )
        except BadArchive as err:
            raise _bad_file(err.code, file.name, err.what, err.hint) from err
        return {path.relative_to(self._folder).as_posix(): path for path in paths}


def _refuse_playlist(file: Path, stream: BinaryIO) -> None:
    """Raises: `InvalidInput` for a list of other files, which FFmpeg follows wherever they are."""
    head = stream.read(PLAYLIST_HEAD).lstrip(b"\xef\xbb\xbf\r\n\t ").lower()
    stream.seek(0)
    if file.suffix.lower() in PLAYLISTS or head.startswith(PLAYLIST_STARTS):
        raise _bad_file(
            "playlist",
            file.name,
            "It is a list of other files, not a file with sound or pictures itself.",
            "Send the sound or film itself.",
        )


def empty(folder: Path) -> None:
    """Take everything out of a folder; one that is not there is empty already."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _storing() -> Iterator[None]:
    """Raise a `MachineError` for a disk that takes no file."""
    try:
        yield
    except OSError as err:
        raise MachineError(
            f"The files of the request cannot be stored: {err.strerror or err}."
            " Free some space on the disk, or send the request again."
        ) from err


def numbered(files: Sequence[GivenFile]) -> tuple[GivenFile, ...]:
    """The files under different safe names: the second `a.png` is `a-2.png`, and so on.

    An alias that is a file's own name is dropped.
    """
    named: dict[str, GivenFile] = {}
    for file in files:
        first = PurePosixPath(safe_name(file.name))
        name = free_name(first.stem, first.suffix, named.__contains__)
        if name != first.name:
            log.info("Another file is called %s, too: this one is known as %s.", first.name, name)
        named[name] = replace(file, name=name)
    return tuple(
        replace(file, alias="") if file.alias in named else file for file in named.values()
    )


def safe_name(name: str) -> str:
    """A file name without folders, control characters or a leading dot; never empty.

    It has at most `MAX_NAME_BYTES` bytes; a longer one is cut before its ending.
    """
    last = re.split(r"[/\\]", name)[-1]
    last = encodable(re.sub(r"[\x00-\x1f\x7f]", "", last).lstrip(". ")) or "file"
    suffix = PurePosixPath(last).suffix
    if len(suffix.encode()) > MAX_NAME_BYTES // 2:
        suffix = ""
    stem = last.removesuffix(suffix).encode()[: MAX_NAME_BYTES - len(suffix.encode())]
    return f"{stem.decode(errors='ignore')}{suffix}"


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where that cannot be.

    Never a symbolic link: ComfyUI 0.30 refuses one that leads out of its folders.
    """
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _bad_file(code: str, name: str, what: str, hint: str = "") -> InvalidInput:
    return InvalidInput([Problem(code, what, hint, input=f"file {name}")])
