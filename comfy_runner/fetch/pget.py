"""The engine that hands files to `pget multifile`, and trusts it with nothing but the bytes.

What pget does, and does not do, was measured with its newest version (v0.11.0 and what followed).
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event

from comfy_runner.errors import Cancelled, ComfyRunnerError, InvalidInput, Problem
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.outside import Program, Unfinished, chosen_environment, watch
from comfy_runner.fetch.staged import PartState, forget_state
from comfy_runner.fetch.transfer import Delivered, Done, Remote, Report, Transfer
from comfy_runner.fetch.urls import scheme

log = logging.getLogger(__name__)

CHUNK = 16_000_000
"""Bytes that pget asks for at once and keeps in memory: its `-m 16M`, which is decimal."""
TINY = 1024**2
"""A file of fewer bytes is not worth a program."""
LONGEST_URL = 60 * 1024
"""Bytes: a line over 64 KiB silently ends pget's list."""
CHECKS = 4
"""How many servers are asked at once whether their file changed."""
CACHE_SETTINGS = (
    "PGET_CACHE_",
    "PGET_FORCE_CACHE_",
    "PGET_HOST_IP",
    "PGET_PROXY_AUTH_HEADER",
)
"""How pget's variables begin that lead to a cache near it; others would change what we set."""


def find(setting: str) -> Path | None:
    """The pget that is to be used; None where there is none or none is wanted.

    `setting` is `auto` (look on PATH), `off`, or the path of the program. Raises: `InvalidInput`
    (`bad_setting`) where that path is no program.
    """
    match setting:
        case "off":
            return None
        case "auto":
            found = shutil.which("pget")
            return Path(found).absolute() if found else None
        case _:
            path = Path(setting)
            if not path.is_file() or not os.access(path, os.X_OK):
                what = f"{setting!r} is no program that can be run."
                cure = "Give the path of pget, auto to look for it on PATH, or off."
                raise InvalidInput([Problem("bad_setting", what, cure, input="pget")])
            return path.absolute()


def fits(transfer: Transfer) -> bool:
    """Whether pget can be trusted to bring this file, from its first byte on.

    It panics where a server ignores ranges of a file that is larger than one chunk, fails without
    a length, sends its own headers to wherever a redirect leads, and always starts anew.
    """
    remote = transfer.remote
    return (
        scheme(remote.final_url) in ("http", "https")
        and not remote.authorization
        and not any(letter.isspace() for letter in remote.final_url)
        and len(remote.final_url.encode(errors="replace")) < LONGEST_URL
        and remote.size is not None
        and remote.size >= TINY
        and (remote.ranges or remote.size <= CHUNK)
        and _size(transfer.part) == 0
    )


class Pget:
    """An engine: one `pget multifile` brings all files of a call.

    What it leaves undone has the outcome `Unfinished`; its first bytes stand in the part then,
    with a `PartState` beside it, so that `ranged.download` goes on with them. While it works, a
    file's bytes stand beside the part, under the part's name and `.pget`.
    """

    def __init__(
        self,
        path: Path,
        *,
        deadline: float,
        stall: float = 60.0,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`path` is the program, as `find` gives it.

        It is ended after `deadline` seconds in all, or `stall` seconds without a new byte in any
        file. It writes whole chunks only, of which up to 16 are under way: a line that needs
        longer than `stall` for the first of them (4 MB/s for a minute) is taken for a stalled one.
        """
        self._path = path
        self._deadline = deadline
        self._stall = stall
        self._environment = environment

    def __call__(
        self,
        transfers: Sequence[Transfer],
        *,
        done: Done,
        report: Report,
        cancelled: Event,
        patience: Patience,
        probe_again: Callable[[Remote], Remote],
    ) -> None:
        """Bring all files; see `Engine`. Raises: `Cancelled`.

        `probe_again` tells of a whole file without a known hash whether it changed meanwhile:
        pget would mix both contents without a word.
        """
        files = []
        for transfer in sorted(transfers, key=lambda each: each.remote.size or 0, reverse=True):
            if fits(transfer):
                files.append(_File(transfer, done, report))
            else:
                done(transfer, Unfinished("pget", transfer, "it is no file for pget"))
        if not files:
            return
        try:
            reason = self._bring(files, cancelled, patience, probe_again)
        finally:
            for file in files:
                file.leave_prefix()
        for file in files:
            if not file.settled:
                file.give_up(reason)

    def _bring(
        self,
        files: Sequence["_File"],
        cancelled: Event,
        patience: Patience,
        probe_again: Callable[[Remote], Remote],
    ) -> str:
        """Run pget until nothing more is to be had of it. Returns why it stopped, in words."""
        with ExitStack() as stack:
            checks = stack.enter_context(ThreadPoolExecutor(CHECKS, thread_name_prefix="pget"))
            try:
                folder = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="comfy-runner-pget-"))
                )
                for number, file in enumerate(files):
                    # pget's list knows no quotes, so a name in it must not hold spaces; it
                    # follows a link whose target is still to be made.
                    file.clear()
                    (folder / str(number)).symlink_to(file.path)
                program = stack.enter_context(
                    Program(
                        self._command(patience),
                        folder=folder,
                        environment=self._chosen_environment(folder),
                        request=_listed(files),
                    )
                )
            except OSError as err:
                return f"it could not be started ({err.strerror})"

            def look() -> int | None:
                for file in files:
                    if file.look() and not _has_open(program.pid, file.path):
                        if file.check is None:
                            file.check = checks.submit(file.is_unchanged, probe_again)
                        if file.check.done():
                            file.settle()
                left = any(not file.settled for file in files)
                return sum(file.standing for file in files) if left else None

            reason = watch(
                program, look, cancelled=cancelled, stall=self._stall, deadline=self._deadline
            )
            program.end()
            for file in files:
                if file.look():
                    file.check = file.check or checks.submit(file.is_unchanged, probe_again)
            for file in files:
                if file.check is not None and not file.settled:
                    file.settle()
        return reason

    def _command(self, patience: Patience) -> list[str]:
        workers = min(max(4 * (os.cpu_count() or 1), 8), 16)
        flags = {
            "-c": str(workers),
            "-m": f"{CHUNK // 10**6}M",
            "--connect-timeout": f"{patience.connect:g}s",
            "--log-level": "warn",
        }
        pairs = [part for pair in flags.items() for part in pair]
        return [str(self._path), "multifile", "-", "-f", *pairs]

    def _chosen_environment(self, folder: Path) -> dict[str, str]:
        """No token that is none of pget's business, and a pid file for which nobody else waits."""
        kept = {
            name: value
            for name, value in self._environment.items()
            if name.startswith(CACHE_SETTINGS)
        }
        private = {"PGET_PID_FILE": str(folder / "pid")}
        return {**chosen_environment(self._environment), **kept, **private}


class _File:
    """One file of a call: where pget writes it, and how far it got."""

    def __init__(self, transfer: Transfer, done: Done, report: Report) -> None:
        self.transfer = transfer
        self.url = transfer.remote.final_url
        self.size = transfer.remote.size or 0
        # A real path, as the system names open files by it.
        self.path = transfer.part.parent.resolve() / f"{transfer.part.name}.pget"
        self.standing = 0
        """Bytes at the last look."""
        self.check: Future[bool] | None = None
        """Whether the whole file is still the one that was wanted."""
        self.settled = False
        """Whether its outcome was told."""
        self._done = done
        self._report = report

    def clear(self) -> None:
        """Remove what a killed attempt left: nobody knows whose bytes they are."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        forget_state(self.transfer.part)

    def look(self) -> bool:
        """Tell what came. Returns whether all stands and nothing was told of it yet."""
        if self.settled:
            return False
        standing = _size(self.path)
        if standing != self.standing:
            self.standing = standing
            self._report(self.transfer.key, standing, self.size)
        return standing == self.size

    def is_unchanged(self, probe_again: Callable[[Remote], Remote]) -> bool:
        """Whether its server still has the content that was found before; a hash tells later."""
        remote = self.transfer.remote
        if remote.sha256 or remote.version in ("", str(self.size)):
            return True
        return probe_again(remote).version == remote.version

    def settle(self) -> None:
        """Make the whole file the part as soon as its check ends, or leave it to another engine."""
        if self.check is None:
            raise AssertionError("A file is settled only after its check.")
        match self.check.exception():
            case None if self.check.result():
                self.path.replace(self.transfer.part)
                self.settled = True
                self._done(self.transfer, Delivered(self.size))
            case None:
                self.path.unlink()
                self.give_up("its content changed meanwhile")
            case Cancelled() as err:
                raise err
            case ComfyRunnerError():
                self.leave_prefix()
                self.give_up("its server could not be asked whether it changed meanwhile")
            case err:
                raise err

    def give_up(self, reason: str) -> None:
        """Tell that another engine has to bring it."""
        self.settled = True
        log.info("pget left %s unfinished: %s", self.transfer.key, reason)
        self._done(self.transfer, Unfinished("pget", self.transfer, reason))

    def leave_prefix(self) -> None:
        """Leave the first bytes in the part: pget writes in order, so that they are the first."""
        remote, part = self.transfer.remote, self.transfer.part
        standing = 0 if self.settled else _size(self.path)
        if not remote.ranges or not 0 < standing <= self.size:
            self.path.unlink(missing_ok=True)  # more than all is another file
            return
        # The last byte is left to whoever goes on: its server then says whether all is as it was.
        length = min(standing, self.size - 1)
        state = PartState(
            size=self.size, version=remote.version, sha256=remote.sha256, spans=((0, length),)
        )
        with suppress(OSError):  # nothing is lost but time: who goes on begins anew
            os.truncate(self.path, self.size)
            self.path.replace(part)
            state.save(part)


def _listed(files: Sequence[_File]) -> bytes:
    """What pget reads: each line a URL and, relative to its folder, where to write."""
    return "".join(f"{file.url} {number}\n" for number, file in enumerate(files)).encode()


def _has_open(process: int, path: Path) -> bool:
    """Whether a process has the file open; also where the system does not tell."""
    try:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                if descriptor.readlink() == path:
                    return True
    except OSError:
        return True
    return False


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
