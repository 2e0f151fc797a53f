"""What a server answers to the request for a file: redirects, headers, and when to ask again."""

import base64
import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NoReturn, Protocol
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3

from comfy_runner.errors import Cancelled
from comfy_runner.fetch.transport import AGENT, TICK
from comfy_runner.fetch.urls import bad_url, is_confidential, redacted, scheme

MAX_REDIRECTS = 10
MAX_RESUMES = 50
"""How often one body is resumed while each time brings new bytes."""
MAX_RETRY_AFTER = 60.0
"""Longest wait, in seconds, that a server may ask for."""
BUSY = frozenset({408, 425, 429, *range(500, 600)})
"""Answers after which the same request may succeed."""
SILENT = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)
"""What is raised when a connection stands and nothing comes."""
MALFORMED = (requests.exceptions.InvalidURL, urllib3.exceptions.LocationParseError)
"""What is raised when a URL cannot be asked for at all."""
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
BROKEN = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
"""What is raised when an exchange fails, whoever reads the body; `reason` says it in words."""


class Reply(Protocol):
    """An answer to one request."""

    status_code: int
    url: str

    @property
    def headers(self) -> Mapping[str, str]:
        """Found by a name in any case."""

    def close(self) -> None:
        """Let go of it, with its body read or not."""


@dataclass(frozen=True, slots=True)
class Answer[R: Reply]:
    """The answer at the end of all redirects; its body is not read yet."""

    response: R
    authorization: str
    """The Authorization header that this last address was given."""
    hops: tuple[Mapping[str, str], ...]
    """The headers of all answers, this one's last."""


def ask(
    session: requests.Session,
    url: str,
    headers: Mapping[str, str],
    *,
    authorization: str,
    timeout: tuple[float, float],
    refuse: Callable[[str], NoReturn],
) -> Answer[requests.Response]:
    """As `follow`, by requests. `timeout` is for connecting and for silence, in seconds."""

    def get(url: str, headers: Mapping[str, str]) -> requests.Response:
        sent = {**AGENT, **headers}
        return session.get(url, headers=sent, stream=True, allow_redirects=False, timeout=timeout)

    return follow(get, url, headers, authorization=authorization, refuse=refuse)


def follow[R: Reply](
    get: Callable[[str, Mapping[str, str]], R],
    url: str,
    headers: Mapping[str, str],
    *,
    authorization: str,
    refuse: Callable[[str], NoReturn],
) -> Answer[R]:
    """GET a URL and follow its redirects, at most `MAX_REDIRECTS`; the caller closes the answer.

    `get` asks once. `authorization` goes no further than the host of `url`. `refuse` is called
    with the reason where a redirect leads nowhere.
    """
    redirects = requests.sessions.SessionRedirectMixin()
    hops: list[Mapping[str, str]] = []
    for _ in range(MAX_REDIRECTS + 1):
        own = {"Authorization": authorization} if authorization else {}
        response = get(url, {**headers, **own})
        hops.append(response.headers)
        location = response.headers.get("Location")
        if location is None or response.status_code not in requests.models.REDIRECT_STATI:
            return Answer(response, authorization, tuple(hops))
        let_go(response)
        # Header bytes are read as Latin-1, and servers that send more than ASCII send UTF-8.
        following = urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
        if scheme(following) not in ("http", "https"):
            refuse(f"it redirects to {redacted(following)}, which is no web address.")
        if authorization and redirects.should_strip_auth(url, following):  # type: ignore[no-untyped-call]
            authorization = ""
        url = following
    return refuse(f"the server redirected more than {MAX_REDIRECTS} times.")


def let_go(response: Reply) -> None:
    """Close an answer; where little is left of it, so that its connection can be used again."""
    length = response.headers.get("Content-Length", "")
    if isinstance(response, requests.Response) and length.isdecimal() and int(length) <= 16 * 1024:
        with suppress(*BROKEN):
            response.raw.read(decode_content=False)
    response.close()


def signed_on(url: str, credentials: Mapping[str, str]) -> tuple[str, str]:
    """The URL without user and password, and the Authorization header for its host, if any.

    A token of `credentials` goes out under TLS alone, or to this machine.

    Raises: `InvalidInput` for a URL that is malformed or names no host.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        bad_url(url, "it is malformed.")
    if not host:
        bad_url(url, "it names no host.")
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if (token := credentials.get(host)) and is_confidential(bare):
        return bare, f"Bearer {token}"
    if parts.username or parts.password:
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        return bare, f"Basic {base64.b64encode(pair.encode()).decode()}"
    return bare, ""


class Interrupted(Exception):
    """An attempt ended early and another one may succeed."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        self.reason = reason
        """In words, a sentence."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait for."""
        super().__init__(reason)


class Attempts:
    """Counts the failures of one job."""

    def __init__(self, retries: int, backoff: float) -> None:
        """As `Patience` has them."""
        self.retries = retries
        self.backoff = backoff
        self.stuck = 0
        """Failures in a row that brought nothing."""
        self.resumed = 0

    def failed(self, *, moved: bool, retry_after: float | None = None) -> float | None:
        """Seconds until the next attempt; None when it is enough. `moved`: new bytes came."""
        if moved and self.resumed < MAX_RESUMES:
            self.stuck, self.resumed = 0, self.resumed + 1
        else:
            self.stuck += 1
        if self.stuck > self.retries:
            return None
        if retry_after is not None:
            return min(retry_after, MAX_RETRY_AFTER)
        return min(self.backoff * float(2 ** max(self.stuck - 1, 0)), 15.0)


def persist[T](
    attempt: Callable[[], T],
    attempts: Attempts,
    *,
    url: str,
    done: Callable[[], int],
    timeout: tuple[float, float],
    cancelled: threading.Event,
    refuse: Callable[[str], NoReturn],
    give_up: Callable[[str], NoReturn],
) -> T:
    """What the first attempt that succeeds returns; the others raise `Interrupted` or `BROKEN`.

    `done` tells how many bytes stand, `timeout` is as for `ask`. `give_up` is called with the
    reason when it is enough, `refuse` where no attempt can help. Raises: `Cancelled`,
    `InvalidInput` for a malformed URL.
    """
    shown = redacted(url)
    while True:
        if cancelled.is_set():
            raise Cancelled(f"The download of {shown} was cancelled.")
        before = done()
        # Errors of requests hold the full URL: only their reason leaves the except block.
        malformed = False
        asked_to_wait = None
        try:
            return attempt()
        except Interrupted as interrupted:
            why, asked_to_wait = interrupted.reason, interrupted.retry_after
        except MALFORMED:
            malformed, why = True, ""
        except BROKEN as err:
            why = reason(err, connect=timeout[0], stall=timeout[1])
        if malformed:
            bad_url(url, "it is malformed.")
        if UNTRUSTED in why:
            refuse("the server's certificate is not trusted.")
        pause = attempts.failed(moved=done() > before > 0, retry_after=asked_to_wait)
        if pause is None:
            give_up(f"{why} Gave up after {attempts.stuck} attempts. Try again later.")
        logging.getLogger(__name__).info("%s: %s Trying again.", shown, why)
        wait(pause, cancelled, shown)


def wait(seconds: float, cancelled: threading.Event, shown: str) -> None:
    """Return after so many seconds. Raises: `Cancelled`."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if cancelled.wait(min(left, TICK)):
            raise Cancelled(f"The download of {shown} was cancelled.")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for; None when there is none or it makes no sense."""
    text = headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def media_type(headers: Mapping[str, str]) -> str:
    """The Content-Type without its parameters, in small letters."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether the answer says that it is a web page."""
    return media_type(headers) in ("text/html", "application/xhtml+xml")


def validator(headers: Mapping[str, str]) -> str:
    """What If-Range may say of this content; empty when nothing may."""
    if "Content-Encoding" in headers:
        return ""
    tag = headers.get("ETag", "")
    # RFC 9110, 13.1.5: a weak tag must not stand in If-Range.
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def reason(err: BaseException, *, connect: float, stall: float) -> str:
    """Why a request failed, without its URL. `connect` and `stall` are the limits, in seconds."""
    seen: list[BaseException] = []
    following: list[object] = [err]
    while following:
        cause = following.pop()
        if isinstance(cause, BaseException) and cause not in seen:
            seen.append(cause)
            following += [cause.__cause__, cause.__context__, getattr(cause, "reason", None)]
            following += cause.args
    for cause in seen:
        # Not every failure to connect is a timeout, but urllib3 derives them all from one.
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({cause.reason or 'the connection was lost'})."
        if isinstance(cause, socket.gaierror):
            return "the host name is not known."
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror.lower()}."
    for cause in seen:
        if isinstance(cause, requests.ConnectTimeout | urllib3.exceptions.ConnectTimeoutError):
            return f"no connection within {connect:g} s."
        if isinstance(cause, SILENT):
            return f"the server sent nothing for {stall:g} s."
    return "the connection broke."
