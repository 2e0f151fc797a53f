"""The engine for files in Hugging Face's Xet store: huggingface_hub brings them, in a child."""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from threading import Event
from urllib.parse import unquote, urlsplit

from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.outside import (
    Program,
    Unfinished,
    chosen_environment,
    watch,
    without_secrets,
)
from comfy_runner.fetch.transfer import Delivered, Done, Remote, Report, Transfer

log = logging.getLogger(__name__)

NAME = "huggingface_hub"
PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds this package."""
AT_ONCE = 4
"""Files that the child brings at once; Xet brings the parts of each at once, too."""

SETTINGS = {
    "HF_XET_HIGH_PERFORMANCE": "1",
    # In high performance hf-xet 1.8 buffers half of the machine's memory, unless it is told.
    "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER_SIZE": "256mb",
    "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER_PERFILE_SIZE": "64mb",
    "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER_LIMIT": "512mb",
    "HF_XET_TELEMETRY_ENABLED": "0",
    # Its five attempts take more than a minute where only the store's host cannot be reached.
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "4",
}
"""The child's environment, where ours has no other `HF_XET_` value."""

FIXED = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONWARNINGS": "ignore",
}


def available() -> bool:
    """Whether huggingface_hub can reach a Xet store: without hf_xet it is one slow connection."""
    return find_spec("huggingface_hub") is not None and find_spec("hf_xet") is not None


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file in a repository of the Hub."""

    repo_type: str
    """`model`, `dataset` or `space`."""
    repo_id: str
    """`owner/name`, or a name alone."""
    filename: str
    """Path in the repository."""


def repo_file(url: str, endpoint: str) -> RepoFile | None:
    """What a `resolve` URL below `endpoint` stands for; None for any other URL."""
    if not url.startswith(f"{endpoint}/"):
        return None
    path = urlsplit(url).path.removeprefix(f"{urlsplit(endpoint).path}/")
    found = re.fullmatch(r"(?:(dataset|space)s/)?([^/]+(?:/[^/]+)?)/resolve/[^/]+/(.+)", path)
    if found is None:
        return None
    filename = unquote(found[3])
    parts = PurePosixPath(filename).parts
    if not parts or "\\" in filename or ".." in parts or parts[0] == "/":
        return None
    return RepoFile(found[1] or "model", unquote(found[2]), filename)


class Hub:
    """An engine: one child with huggingface_hub brings all files of a call.

    What it leaves undone has the outcome `Unfinished`, and no part: Xet writes in no order. While
    it works, its files stand in a folder beside the part, under the part's name and `.hub`, which
    also takes the place of the user's own Hugging Face cache.
    """

    def __init__(
        self,
        endpoint: str = "https://huggingface.co",
        *,
        credentials: Mapping[str, str],
        deadline: float,
        stall: float = 60.0,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`credentials` maps a host to its token; the endpoint's is used.

        The child is ended after `deadline` seconds in all, or `stall` seconds without a new byte.
        """
        self._endpoint = endpoint.rstrip("/")
        self._token = credentials.get(urlsplit(endpoint).hostname or "", "")
        self._deadline = deadline
        self._stall = stall
        self._environment = environment

    def fits(self, transfer: Transfer) -> bool:
        """Whether the file is one of a Xet store of this endpoint, and nothing of it stands."""
        return (
            transfer.remote.xet
            and bool(transfer.remote.commit)
            and repo_file(transfer.remote.url, self._endpoint) is not None
            and not (transfer.part.exists() and transfer.part.stat().st_size)
        )

    def __call__(
        self,
        transfers: Sequence[Transfer],
        *,
        done: Done,
        report: Report,
        cancelled: Event,
        patience: Patience,
        probe_again: Callable[[Remote], Remote],  # noqa: ARG002 (Xet renews its URLs itself)
    ) -> None:
        """Bring all files; see `Engine`. Raises: `Cancelled`."""
        files = []
        for transfer in transfers:
            wanted = repo_file(transfer.remote.url, self._endpoint)
            if wanted is not None and self.fits(transfer):
                files.append(_File(transfer, wanted, report))
            else:
                done(transfer, Unfinished(NAME, transfer, "it is no file in its Xet store"))
        if not files:
            return
        try:
            reason = self._bring(files, done, cancelled, patience)
        finally:
            for file in files:
                shutil.rmtree(file.folder, ignore_errors=True)
        for file in files:
            if not file.settled:
                file.give_up(reason, done)

    def _bring(
        self, files: Sequence["_File"], done: Done, cancelled: Event, patience: Patience
    ) -> str:
        """Run the child until nothing more is to be had of it. Returns why it stopped."""
        with ExitStack() as stack:
            try:
                for file in files:
                    file.clear()
                program = stack.enter_context(
                    Program(
                        [sys.executable, "-m", "comfy_runner.fetch.hub"],
                        folder=files[0].folder,
                        environment=self._child_environment(files[0].folder, patience),
                        request=self._request(files),
                        secrets=[self._token],
                    )
                )
            except OSError as err:
                return f"it could not be started ({err.strerror})"

            def look() -> int | None:
                while program.printed:
                    told = json.loads(program.printed.popleft())
                    file = files[told["number"]]
                    if told["fault"]:
                        file.give_up(without_secrets(told["fault"], [self._token]), done)
                    else:
                        file.settle(done)
                for file in files:
                    file.look()
                left = any(not file.settled for file in files)
                return sum(file.standing for file in files) if left else None

            reason = watch(
                program, look, cancelled=cancelled, stall=self._stall, deadline=self._deadline
            )
            program.end()
            look()
        return reason

    def _request(self, files: Sequence["_File"]) -> bytes:
        """What the child reads; the token stands in no argument and no environment."""
        wanted = [
            {
                "repo_id": file.wanted.repo_id,
                "repo_type": file.wanted.repo_type,
                "filename": file.wanted.filename,
                "revision": file.transfer.remote.commit,
                "local_dir": str(file.local),
            }
            for file in files
        ]
        return json.dumps({"token": self._token, "files": wanted}).encode()

    def _child_environment(self, folder: Path, patience: Patience) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in self._environment.items()
            if name.startswith("HF_XET_") and name != "HF_XET_CACHE"
        }
        return {
            **chosen_environment(self._environment),
            **SETTINGS,
            "HF_XET_CLIENT_CONNECT_TIMEOUT": f"{max(1, round(patience.connect))}s",
            **inherited,
            **FIXED,
            **({"HF_HUB_ENABLE_HF_TRANSFER": "1"} if _knows_hf_transfer() else {}),
            "HF_ENDPOINT": self._endpoint,
            "HF_HOME": str(folder / "home"),
            "HF_XET_CACHE": str(folder / "home" / "xet"),
            "HF_HUB_ETAG_TIMEOUT": str(max(1, round(patience.connect))),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(max(1, round(patience.stall))),
            "PYTHONPATH": str(PACKAGES),
        }


class _File:
    """One file of a call: where the child puts it, and how far it got."""

    def __init__(self, transfer: Transfer, wanted: RepoFile, report: Report) -> None:
        self.transfer = transfer
        self.wanted = wanted
        self.folder = transfer.part.absolute().with_name(f"{transfer.part.name}.hub")
        self.local = self.folder / "files"
        self.standing = 0
        """Bytes at the last look."""
        self.settled = False
        """Whether its outcome was told."""
        self._report = report

    def clear(self) -> None:
        """Make the folder anew: a killed attempt may have left it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def look(self) -> None:
        """Tell what came."""
        if self.settled:
            return
        unfinished = self.local.rglob("*.incomplete")
        standing = max(map(_written, (self.local / self.wanted.filename, *unfinished)))
        if standing != self.standing:
            self.standing = standing
            self._report(self.transfer.key, standing, self.transfer.remote.size)

    def settle(self, done: Done) -> None:
        """The child has the whole file: it becomes the part, unless its size is another."""
        path, expected = self.local / self.wanted.filename, self.transfer.remote.size
        size = path.stat().st_size
        if size != (expected or size):
            self.give_up(f"it has {size} bytes where {expected} were expected", done)
            return
        path.replace(self.transfer.part)
        self.settled, self.standing = True, size
        self._report(self.transfer.key, size, expected)
        done(self.transfer, Delivered(size))

    def give_up(self, reason: str, done: Done) -> None:
        """Leave the file to another engine."""
        self.settled = True
        log.info("%s left %s unfinished: %s", NAME, self.transfer.key, reason)
        done(self.transfer, Unfinished(NAME, self.transfer, reason))


def _written(path: Path) -> int:
    """Bytes of a file that came: it may have its length before them, and holes."""
    try:
        status = path.lstat()
    except FileNotFoundError:  # renamed since
        return 0
    return min(status.st_size, status.st_blocks * 512)


def _knows_hf_transfer() -> bool:
    """Whether the installed huggingface_hub uses hf_transfer: 1.0 dropped it."""
    try:
        major = int(version("huggingface_hub").partition(".")[0])
    except (PackageNotFoundError, ValueError):
        return False
    return major < 1 and find_spec("hf_transfer") is not None


def main() -> None:
    """The child: reads what is wanted, and prints a line of JSON as soon as a file is there."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints would spoil the answers
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 (only the child needs it)

    request = json.load(sys.stdin)

    def bring(wanted: Mapping[str, str]) -> None:
        hf_hub_download(
            wanted["repo_id"],
            wanted["filename"],
            repo_type=wanted["repo_type"],
            revision=wanted["revision"],
            local_dir=wanted["local_dir"],
            token=request["token"] or False,
        )

    with answers, ThreadPoolExecutor(AT_ONCE) as pool:
        numbers = {pool.submit(bring, wanted): n for n, wanted in enumerate(request["files"])}
        for future in as_completed(numbers):
            error = future.exception()
            fault = "" if error is None else f"{type(error).__name__}: {error}"
            fault = " ".join(fault.split())[:500]
            # One write of less than a pipe takes at once: a reader gets it whole, or nothing.
            print(json.dumps({"number": numbers[future], "fault": fault}), file=answers, flush=True)


if __name__ == "__main__":
    main()
