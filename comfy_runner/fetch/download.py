"""Bytes from a URL to a verified file: staged, judged, then renamed, so that no part ever shows."""

import base64
import binascii
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import requests

from comfy_runner.errors import Cancelled
from comfy_runner.fetch.answers import (
    BUSY,
    Attempts,
    Interrupted,
    Reply,
    ask,
    is_page,
    media_type,
    persist,
    retry_after,
    signed_on,
    validator,
)
from comfy_runner.fetch.policy import OPEN, Policy
from comfy_runner.fetch.staged import Expect, Progress, StagedFile
from comfy_runner.fetch.transport import interruptible_session
from comfy_runner.fetch.urls import EXTENSIONS, bad_url, clean_name, scheme

CHUNK = 256 * 1024
"""Most bytes that are read at once; less where the server is slower."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server may take, how often it is asked again, and where it may stand."""

    connect: float = 10.0
    """Seconds until a connection must stand."""
    stall: float = 60.0
    """Seconds that a server may send nothing."""
    retries: int = 5
    """Attempts after the first that may fail in a row without a new byte."""
    backoff: float = 0.5
    """Seconds before the first retry; doubled each time, up to 15."""
    policy: Policy = OPEN
    """Where it may stand."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched and passed every check."""

    path: Path
    """Where it stands now; the caller owns it."""
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""
    name: str
    """File name that the source gives it; safe as one part of a path."""


def fetch(
    source_url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    max_bytes: int | None = None,
    expect: Expect = "any",
    credentials: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    base: Path | None = None,
    allow_local: bool = False,
    staging: Path | None = None,
    cancelled: threading.Event | None = None,
    patience: Patience | None = None,
) -> Fetched:
    """The file behind a URL, verified, at `target`; a file that stood there is replaced.

    `http`, `https` and `data` URLs always work; `file:` and relative ones only with `allow_local`,
    and relative ones start at `base`. `credentials` maps a host to its bearer token, which goes to
    that host alone. `staging` is the folder for the unfinished file, on the target's filesystem;
    the target's own folder by default. Setting `cancelled` ends the call within about 0.1 s, but
    for a connection that is being made.

    Raises: `InvalidInput` for a URL that cannot be used (`bad_url`) and for more than `max_bytes`
    (`file_too_large`), `HashMismatch`, `DownloadFailed`, `Cancelled`. Nothing is left behind then.
    """
    event = cancelled or threading.Event()
    part = StagedFile(
        source_url,
        target,
        staging=staging or target.parent,
        size=size,
        max_bytes=max_bytes,
        progress=progress,
    )
    try:
        match scheme(source_url):
            case "http" | "https":
                name = _Download(
                    source_url,
                    part,
                    expect=expect,
                    credentials=credentials or {},
                    cancelled=event,
                    patience=patience or Patience(),
                ).run()
            case "data":
                name = _decode(source_url, part)
            case "file" | "" if allow_local:
                name = _copy(source_url, base, part, event)
            case _:
                bad_url(source_url, "it must start with https:// or http://, or be a data: URL.")
        part.judge(sha256, expect)
        part.settle()
    finally:
        part.discard()
    return Fetched(target, part.done, part.sha256, name)


class _Download:
    """One file over HTTP: as many attempts as patience allows, resumed where the server can."""

    def __init__(
        self,
        url: str,
        part: StagedFile,
        *,
        expect: Expect,
        credentials: Mapping[str, str],
        cancelled: threading.Event,
        patience: Patience,
    ) -> None:
        self.url = url
        self.part = part
        self.expect = expect
        self.credentials = credentials
        self.cancelled = cancelled
        self.patience = patience
        self.validator = ""  # what If-Range says; empty when the server cannot resume

    def run(self) -> str:
        """Write the whole body to the part. Returns the file's name."""
        with interruptible_session(self.cancelled, self.patience.policy) as session:
            return persist(
                lambda: self._attempt(session),
                Attempts(self.patience.retries, self.patience.backoff),
                url=self.url,
                done=lambda: self.part.done,
                timeout=(self.patience.connect, self.patience.stall),
                cancelled=self.cancelled,
                refuse=self.part.fail,
                give_up=self.part.fail,
            )

    def _attempt(self, session: requests.Session) -> str:
        headers: dict[str, str] = {}
        if self.part.done and self.validator:
            headers |= {"Range": f"bytes={self.part.done}-", "If-Range": self.validator}
        url, authorization = signed_on(self.url, self.credentials)
        answer = ask(
            session,
            url,
            headers,
            authorization=authorization,
            timeout=(self.patience.connect, self.patience.stall),
            refuse=self.part.fail,
        )
        with answer.response as response:
            self._judge(response)
            total = self._begin(response, ranged="Range" in headers)
            encoded = "Content-Encoding" in response.headers
            while chunk := response.raw.read1(CHUNK, decode_content=encoded):
                self.part.write(chunk)
            expected = self.part.size if total is None else total
            if expected is not None and self.part.done < expected:
                got = f"{self.part.done} of {expected} bytes"
                raise Interrupted(f"the server closed the connection after {got}.")
            return name_of(self.url, response)

    def _judge(self, response: requests.Response) -> None:
        status = response.status_code
        match status:
            case 200 | 206:
                pass
            case 416:
                self.validator = ""
                self.part.restart()
                raise Interrupted("the server could not resume the file.")
            case 401 | 403:
                self.part.fail(
                    f"the server refused access (HTTP {status}).",
                    "It may need a token for this host, or a licence that must be accepted.",
                )
            case 404 | 410:
                self.part.fail(f"there is no such file (HTTP {status}).", "Check the address.")
            case _ if status in BUSY:
                raise Interrupted(
                    f"the server is busy or broken (HTTP {status}).", retry_after(response.headers)
                )
            case _:
                self.part.fail(f"the server answered HTTP {status}.", "Check the address.")
        if self.expect != "any" and is_page(response.headers):
            self.part.fail_as_page()

    def _begin(self, response: requests.Response, *, ranged: bool) -> int | None:
        """Prepare the part for the body that follows. Returns the whole file's bytes if known."""
        headers = response.headers
        total: int | None = None
        if response.status_code == 206:  # noqa: PLR2004
            fits = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if not ranged or fits is None or int(fits[1]) != self.part.done:
                self.validator = ""
                self.part.restart()
                raise Interrupted("the server sent another part of the file than was asked for.")
            total = None if fits[2] == "*" else int(fits[2])
        else:
            self.part.restart()
            length = headers.get("Content-Length", "")
            if (
                length.isdecimal()
                and not {"Content-Encoding", "Transfer-Encoding"} & headers.keys()
            ):
                total = int(length)
            resumable = headers.get("Accept-Ranges", "").lower() == "bytes"
            self.validator = validator(headers) if resumable else ""
        if total is not None:
            self.part.admit(total, whole=True)
        self.part.total = self.part.size if total is None else total
        return total


def name_of(url: str, response: Reply) -> str:
    """The file's name: from Content-Disposition, else from the URL, with an extension if known."""
    disposition = response.headers.get("Content-Disposition", "")
    if coded := re.search(
        r"filename\*\s*=\s*(utf-8|iso-8859-1)'[^']*'([^;\s]+)", disposition, re.I
    ):
        return clean_name(unquote(coded[2].strip('"'), encoding=coded[1], errors="replace"))
    if plain := re.search(r'filename\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^;\s]+))', disposition, re.I):
        return clean_name(re.sub(r"\\(.)", r"\1", plain[1] or plain[2] or ""))
    asked, answered = (
        clean_name(unquote(PurePosixPath(urlsplit(address).path).name))
        for address in (url, response.url)
    )
    for name in (asked, answered):
        if PurePosixPath(name).suffix:
            return name
    return asked + EXTENSIONS.get(media_type(response.headers), "")


def _decode(url: str, part: StagedFile) -> str:
    """Write the payload of a `data:` URL. Returns the file's name."""
    head, comma, payload = url.partition(",")
    kind, *options = head.removeprefix("data:").lower().split(";")
    if not comma:
        bad_url(url, "a data: URL needs a comma before its content.")
    raw = unquote_to_bytes(payload)
    if "base64" in options:
        try:
            raw = base64.b64decode(re.sub(rb"\s", b"", raw), validate=True)
        except binascii.Error:
            bad_url(url, "its content is not valid base64.")
    part.write(raw)
    return clean_name("file" + EXTENSIONS.get(kind, ""))


def _copy(url: str, base: Path | None, part: StagedFile, cancelled: threading.Event) -> str:
    """Copy a file of this machine. Returns its name."""
    local = unquote(urlsplit(url).path) if scheme(url) == "file" else url
    if ".." in PurePosixPath(local).parts:
        bad_url(url, "a path must not hold '..'.")
    if local.startswith("/") and scheme(url) == "":
        bad_url(url, "a path must be relative to the manifest, or a file: URL.")
    if base is None and not local.startswith("/"):
        bad_url(url, "there is no folder that a relative path could start at.")
    path = (base or Path("/")) / local
    try:
        with path.open("rb") as source:
            part.total = os.fstat(source.fileno()).st_size
            part.admit(part.total, whole=True)
            while chunk := source.read(CHUNK):
                if cancelled.is_set():
                    raise Cancelled(f"Copying {part.shown} was cancelled.")
                part.write(chunk)
    except OSError as err:
        part.fail(f"the file cannot be read ({err.strerror}).", "Is the project complete?")
    return clean_name(path.name)
