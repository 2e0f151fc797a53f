"""Judges what has come, unpacks it, keeps it in the store, and gives it its names."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from comfy_runner.errors import CallerError, DownloadFailed
from comfy_runner.fetch.archives import find_weights, unpack
from comfy_runner.fetch.judge import judge
from comfy_runner.fetch.staged import PartState, forget_state
from comfy_runner.weights.bringing.keeping import Keeping
from comfy_runner.weights.bringing.made_names import ending
from comfy_runner.weights.bringing.tasks import File, Group, Lead, Means
from comfy_runner.weights.kept.objects import Object
from comfy_runner.weights.weight import Weight

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Files that are judged and kept at once."""
UNPACKED = 200 * 1000**3
"""Most bytes that an archive of weights may unpack to."""
UNPACKED_FILES = 100_000
"""Most files that an archive of weights may hold."""

Fail = Callable[[Sequence[Lead], DownloadFailed], None]
Refuse = Callable[[Sequence[Lead], CallerError], None]


class Installing:
    """Threads that install what has come while more is coming; leaving the block waits for them."""

    def __init__(
        self,
        means: Means,
        keeping: Keeping,
        *,
        fail: Fail,
        refuse: Refuse,
    ) -> None:
        """`fail` is told of leads that come to nothing, `refuse` of what is the caller's fault."""
        self._means = means
        self._keeping = keeping
        self._fail = fail
        self._refuse = refuse
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="installing")
        self._futures: list[Future[None]] = []

    def submit(self, group: Group, work: Callable[[], None]) -> None:
        """Do some work; a failure of it is the group's."""

        def attempt() -> None:
            try:
                work()
            except DownloadFailed as err:
                self._fail(group.leads, err)
            except CallerError as err:
                self._refuse(group.leads, err)

        self._futures.append(self._pool.submit(attempt))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for future in self._futures:
            future.result()

    def take(self, group: Group, file: File, size: int, sha256: str | None) -> None:
        """Judge a file that stands in its part; install the group once all its files do.

        `sha256` is the hash of the bytes, where it was made already. Raises: `DownloadFailed`.
        """
        part = group.part(self._means.objects, file)
        stated = file.remote.sha256 if file.remote else None
        expected = (file.sha256 if file.path else group.sha256) or stated
        try:
            found = judge(
                part,
                name=self._judged_as(group.leads[0], file),
                size=file.size if file.path else group.size,
                sha256=expected,
                known_sha256=sha256,
                shown=file.place.shown,
            )
        except DownloadFailed:
            discard(part)  # it must not be gone on with
            raise
        self._keeping.count(size)
        self._means.meter.finish(file.label)
        unknown = "" if expected else " It is not verified: no sha256 of it is known."
        log.info("Fetched %s.%s", file.label, unknown)
        if file.path:
            self._add_to_folder(group, file, part)
        else:
            self._install(group, part, found, size)

    def _judged_as(self, lead: Lead, file: File) -> str:
        """The name whose ending says what a file must be."""
        if file.place.extract:
            return f"archive.{file.place.extract}"
        wanted = lead.task.wanted
        if isinstance(wanted, Weight):
            return file.path or wanted.name
        name = lead.file_name
        allowed = self._means.allow_pickles
        return f"weight{ending(name, allow_pickles=allowed, shown=file.place.shown)}"

    def _install(self, group: Group, part: Path, sha256: str, size: int) -> None:
        """Make a file on its own, or what is in it, what all leads of the group want."""
        keeping = self._keeping
        whole: Object | None = None
        # What takes the part over comes after what only reads it.
        try:
            for lead in sorted(group.leads, key=lambda lead: not lead.place.extract):
                if lead.place.extract:
                    self._install_unpacked(lead, part)
                    continue
                if whole is None:
                    keeping.pin(sha256)
                    whole = self._means.objects.add_file(part, sha256, size=size)
                keeping.remember(lead, whole, lead.file_name)
                keeping.give_names(lead.task, whole, lead.file_name)
        except (DownloadFailed, CallerError):
            discard(part)
            raise
        discard(part)

    def _install_unpacked(self, lead: Lead, archive: Path) -> None:
        """Take out of an archive what one lead is for; its failure is no other lead's."""
        try:
            with storing(lead.task.label):
                kept, name = self._unpack(lead, archive)
                self._keeping.remember(lead, kept, name)
                self._keeping.give_names(lead.task, kept, name)
        except DownloadFailed as err:
            self._fail([lead], err)

    def _unpack(self, lead: Lead, archive: Path) -> tuple[Object, str]:
        """What an archive is for: one file of it, or all as a folder; and what that is called."""
        means, place, task = self._means, lead.place, lead.task
        with scratch(archive) as folder:
            files = unpack(
                archive,
                folder,
                kind=place.extract,
                strip=place.strip if task.is_folder or not place.member else 0,
                only=place.member,
                max_bytes=UNPACKED,
                max_files=UNPACKED_FILES,
                shown=place.shown,
                cancelled=means.stop,
            )
            if isinstance(task.wanted, Weight) and task.is_folder:
                for member in task.wanted.files:
                    file = folder / member.path
                    if not file.is_file():
                        raise DownloadFailed(f"{place.shown} does not hold {member.path}.")
                    _judge_member(file, member.path, member.size, member.sha256, place.shown)
                return self._keep_tree(folder), ""
            if place.member or len(files) == 1:
                file = files[0]
            else:
                file = find_weights(files, folder, shown=place.shown)
            if isinstance(task.wanted, Weight):
                name, size = task.wanted.name, task.wanted.size
            else:
                shown, allowed = f"{file.name} of {place.shown}", means.allow_pickles
                name = f"weight{ending(file.name, allow_pickles=allowed, shown=shown)}"
                size = None
            sha256 = _judge_member(file, name, size, task.sha256, place.shown)
            self._keeping.pin(sha256)
            kept = means.objects.add_file(file, sha256, size=file.stat().st_size)
            return kept, file.name

    def _add_to_folder(self, group: Group, file: File, part: Path) -> None:
        """Note one file of a folder; the last one makes the folder whole."""
        means, remote = self._means, file.remote
        if remote is not None and remote.size is not None:
            # Should another file fail, or the machine, this one is not fetched again.
            state = PartState(
                size=remote.size,
                version=remote.version,
                sha256=remote.sha256,
                spans=((0, remote.size),),
            )
            with suppress(OSError):
                state.save(part)
        if not group.add(file, part):
            return
        label = group.leads[0].task.label
        with storing(label), scratch(group.part(means.objects, file)) as folder:
            for path, come in group.come.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                come.replace(folder / path)
                forget_state(come)
            kept = self._keep_tree(folder)
            for lead in group.leads:
                self._keeping.remember(lead, kept, "")
                self._keeping.give_names(lead.task, kept, "")

    def _keep_tree(self, folder: Path) -> Object:
        """Take a folder into the store, pinned."""
        return self._means.objects.add_tree(folder, pin=self._keeping.pin)


@contextmanager
def scratch(part: Path) -> Iterator[Path]:
    """A folder for what is made of an unfinished file, under its lock; it is gone afterwards."""
    # Its name begins with the part's key: so the store knows whose it is.
    folder = part.with_name(f"{part.name.partition('.')[0]}.scratch")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turns what the disk refuses into `DownloadFailed`."""
    try:
        yield
    except OSError as err:
        raise DownloadFailed(
            f"{what} could not be stored: {err.strerror}. Free some space, or make the models"
            " folder writable."
        ) from err


def discard(part: Path) -> None:
    """Remove what came, and what an engine has noted about it."""
    for file in part.parent.glob(f"{part.name}*"):
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)


def _judge_member(file: Path, name: str, size: int | None, sha256: str | None, shown: str) -> str:
    """The hash of a file out of an archive. Raises: `DownloadFailed`."""
    return judge(file, name=name, size=size, sha256=sha256, shown=f"{file.name} of {shown}")
