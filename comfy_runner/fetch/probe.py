"""What stands behind a URL, found by one small request."""

import base64
import binascii
import re
import threading
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn
from urllib.parse import urlsplit

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.answers import (
    BUSY,
    Answer,
    Attempts,
    Interrupted,
    follow,
    is_page,
    let_go,
    persist,
    retry_after,
    signed_on,
    validator,
)
from comfy_runner.fetch.download import Patience, name_of
from comfy_runner.fetch.endings import ARCHIVES, MODELS
from comfy_runner.fetch.lines import Lines, Stream
from comfy_runner.fetch.transfer import Remote
from comfy_runner.fetch.urls import bad_url, is_signed, redacted, scheme


class Unreachable(DownloadFailed):
    """The host does not answer, or is busy or broken: nothing is known of the file."""


def probe(
    url: str,
    *,
    credentials: Mapping[str, str],
    cancelled: threading.Event,
    patience: Patience,
    lines: Lines | None = None,
) -> Remote:
    """The file behind an http or https URL: its size, hash, name, and how it can be fetched.

    Asks for its first byte alone; HEAD would fail on an address that is signed for GET.
    `credentials` maps a host to its bearer token, which goes to that host alone. Setting
    `cancelled` ends the call within about 0.1 s. Whoever looks for many files gives the same
    `lines` to all, made with the same `cancelled`; threads may share them.

    Raises: `InvalidInput` for a URL that cannot be used (`bad_url`), `DownloadFailed` where the
    server refuses, has no such file, an empty one or a web page; its kind `Unreachable` where no
    answer could be had; `Cancelled`.
    """
    if scheme(url) not in ("http", "https"):
        bad_url(url, "it must start with https:// or http://.")
    bare, authorization = signed_on(url, credentials)
    asked = _Asked(redacted(url), urlsplit(bare).hostname or "")
    timeout = (patience.connect, patience.stall)

    def attempt(headers: Mapping[str, str]) -> Remote:
        answer = follow(using.get, bare, headers, authorization=authorization, refuse=asked.fail)
        response = answer.response
        try:
            if response.status_code == 416 and headers and not asked.is_empty(response):  # noqa: PLR2004
                return attempt({})
            asked.judge(answer)
            return _remote(url, bare, answer, private=bool(authorization) or is_signed(url))
        finally:
            let_go(response)

    with ExitStack() as stack:
        using = lines or stack.enter_context(
            closing(
                Lines(
                    cancelled,
                    connect=patience.connect,
                    stall=patience.stall,
                    policy=patience.policy,
                )
            )
        )
        found = persist(
            lambda: attempt({"Range": "bytes=0-0"}),
            Attempts(patience.retries, patience.backoff),
            url=url,
            done=lambda: 0,
            timeout=timeout,
            cancelled=cancelled,
            refuse=asked.fail,
            give_up=asked.give_up,
        )
    if found.size == 0:
        asked.fail("the file is empty.")
    return found


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for, as an error may show it."""

    shown: str
    host: str

    def fail(self, reason: str, cure: str = "") -> NoReturn:
        """Raises: `DownloadFailed`."""
        raise DownloadFailed(f"{self.shown} could not be fetched: {reason} {cure}".rstrip())

    def give_up(self, reason: str) -> NoReturn:
        """Raises: `Unreachable`."""
        raise Unreachable(f"{self.shown} could not be fetched: {reason}")

    def is_empty(self, response: Stream) -> bool:
        """Whether a range was refused because there is not one byte."""
        return response.headers.get("Content-Range", "").replace(" ", "").endswith("*/0")

    def judge(self, answer: Answer[Stream]) -> None:
        """Raises: `DownloadFailed`, or `Interrupted` where asking again may help."""
        response = answer.response
        status = response.status_code
        match status:
            case 200 | 206:
                pass
            case 416:
                self.fail("the file is empty.")
            case 401 | 403:
                self._refused(answer)
            case 404 | 410:
                # Hugging Face: 404 with X-Error-Code RepoNotFound, RevisionNotFound, EntryNotFound.
                told = _told(answer)
                self.fail(f"there is no such file (HTTP {status}{told}).", "Check the address.")
            case _ if status in BUSY:
                raise Interrupted(
                    f"the server is busy or broken (HTTP {status}).", retry_after(response.headers)
                )
            case _:
                self.fail(f"the server answered HTTP {status}.", "Check the address.")
        if is_page(response.headers) and not _is_model(response):
            self.fail(
                "the server sent a web page instead of the file.",
                "The page may ask for a login or a licence: open the address in a browser.",
            )

    def _refused(self, answer: Answer[Stream]) -> NoReturn:
        """Hugging Face says in X-Error-Code why: GatedRepo, or RepoNotFound for a private one."""
        host = urlsplit(answer.response.url).hostname or self.host
        what = f"{host} refused access (HTTP {answer.response.status_code}{_told(answer)})."
        if _header(answer, "X-Error-Code") == "GatedRepo":
            cure = f"Accept the model's licence on {host}, and give a token of that account."
        elif answer.authorization:
            cure = (
                f"The token for {host} may be wrong, expired, or of an account that has not "
                "accepted the model's licence."
            )
        elif is_signed(answer.response.url):
            cure = "The signed address may have expired: ask for a new one."
        else:
            cure = f"Give a token for {host}, and accept the model's licence if it has one."
        self.fail(what, cure)


def _told(answer: Answer[Stream]) -> str:
    """The reason that Hugging Face gives, to stand in brackets; empty without one."""
    code = _header(answer, "X-Error-Code")
    message = _header(answer, "X-Error-Message").rstrip(".")
    told = ": ".join(text for text in (code, message) if text)
    told = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", told)
    printable = "".join(letter for letter in told if letter.isprintable())
    return f", {printable[:300]}" if printable else ""


def _header(answer: Answer[Stream], name: str) -> str:
    """The header of the first answer along the redirects that has it."""
    return next((headers[name] for headers in answer.hops if headers.get(name)), "")


def _is_model(response: Stream) -> bool:
    """Whether a page is only a file that the server did not recognise."""
    attached = response.headers.get("Content-Disposition", "").strip().lower()
    name = PurePosixPath(name_of(response.url, response))
    return attached.startswith("attachment") and name.suffix.lower() in MODELS | ARCHIVES


def _remote(url: str, bare: str, answer: Answer[Stream], *, private: bool) -> Remote:
    response = answer.response
    headers = response.headers
    encoded = "Content-Encoding" in headers
    size: int | None = None
    ranges = False
    if response.status_code == 206:  # noqa: PLR2004
        fits = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
        if fits is not None:
            size = None if fits[3] == "*" or encoded else int(fits[3])
            ranges = (fits[1], fits[2]) == ("0", "0") and not encoded
    elif headers.get("Content-Length", "").isdecimal() and not (
        encoded or "Transfer-Encoding" in headers
    ):
        size = int(headers["Content-Length"])
    # Hugging Face answers with a redirect that states size and hash of what it leads to.
    linked = _header(answer, "X-Linked-Size")
    if size is None and linked.isdecimal():
        size = int(linked)
    stated = validator(headers)
    tag = _header(answer, "X-Linked-Etag") or headers.get("ETag", "")
    version = tag or headers.get("Last-Modified", "") or ("" if size is None else str(size))
    return Remote(
        url=bare,
        final_url=response.url or bare,
        authorization=answer.authorization,
        size=size,
        validator=stated,
        version=version,
        ranges=ranges,
        sha256=_sha256(answer),
        commit=_header(answer, "X-Repo-Commit"),
        xet=bool(_header(answer, "X-Xet-Hash")),
        private=private,
        name=name_of(url, response),
    )


def _sha256(answer: Answer[Stream]) -> str | None:
    """The hash that the host states, if it is one of the whole file."""
    for headers in answer.hops:
        # A file outside Hugging Face's large-file store has the 40 digits of a git blob there.
        linked = headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"').lower()
        if re.fullmatch(r"[0-9a-f]{64}", linked):
            return linked
        try:
            # S3 appends -N to the checksum of an upload in N pieces, which no file hashes to.
            coded = base64.b64decode(headers.get("x-amz-checksum-sha256", ""), validate=True)
        except binascii.Error:
            continue
        if len(coded) == 32:  # noqa: PLR2004
            return coded.hex()
    return None
