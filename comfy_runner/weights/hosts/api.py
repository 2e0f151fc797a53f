"""Small questions to the hosts of weights: JSON in bounded answers, and what a refusal means."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any, NoReturn

import requests

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.answers import (
    BUSY,
    Attempts,
    Interrupted,
    ask,
    persist,
    retry_after,
    signed_on,
)
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.probe import Unreachable
from comfy_runner.fetch.transport import interruptible_session
from comfy_runner.fetch.urls import redacted

MAX_ANSWER = 10_000_000
"""Most bytes of an answer: repositories with thousands of files have a few million."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What to do when a host does not hand something out."""

    subject: str
    """What was asked for, such as `the repository o/r`."""
    token_name: str
    """Environment variable that the host's token comes from."""
    licence: str = ""
    """Page where a licence can be accepted."""

    def text(self, status: int, *, signed: bool) -> str:
        """The refusal and its cure, for an HTTP status. `signed`: a token was sent."""
        token = f"set {self.token_name} to a token that may read it"
        if signed:
            token = f"the token in {self.token_name} may not read it: set another one"
        accept = f", or accept the licence on {self.licence} first" if self.licence else ""
        match status:
            case 401:
                told = f"is private, gated or not there (HTTP {status}). Check the address, or"
                return f"{self.subject} {told} {token}{accept}."
            case 403:
                return f"{self.subject} is not for everybody (HTTP {status}): {token}{accept}."
            case 404 | 410:
                told = f"does not exist, or is private (HTTP {status}). Check the address, or"
                return f"{self.subject} {told} {token}."
            case _:
                return f"{self.subject} could not be looked up: the host answered HTTP {status}."


class HostApi:
    """Asks hosts; credentials go to their own host only, and no further by a redirect."""

    def __init__(
        self, credentials: Mapping[str, str], *, cancelled: Event, patience: Patience
    ) -> None:
        """`credentials` maps a host's name to its bearer token."""
        self._credentials = credentials
        self._cancelled = cancelled
        self._patience = patience

    def read(self, url: str, refusal: Refusal) -> Mapping[str, Any]:
        """The JSON object that a URL answers with.

        Raises: `DownloadFailed`, also for an answer that is no JSON object; its kind `Unreachable`
        where no answer could be had; `InvalidInput` for a URL that cannot be used; `Cancelled`.
        """
        _, body = self._get(url, "application/json", refusal, body=True)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            malformed(url)
        return answer

    def resolve(self, url: str, accept: str, refusal: Refusal) -> str:
        """The URL at the end of all redirects; it may be signed. Raises as `read` does."""
        return self._get(url, accept, refusal, body=False)[0]

    def _get(self, url: str, accept: str, refusal: Refusal, *, body: bool) -> tuple[str, bytes]:
        patience = self._patience
        timeout = (patience.connect, patience.stall)
        bare, authorization = signed_on(url, self._credentials)
        shown = redacted(bare)

        def refuse(why: str) -> NoReturn:
            raise DownloadFailed(f"{shown} could not be asked: {why}")

        def give_up(why: str) -> NoReturn:
            raise Unreachable(f"{shown} could not be asked: {why}")

        def attempt() -> tuple[str, bytes]:
            answer = ask(
                session,
                bare,
                {"Accept": accept},
                authorization=authorization,
                timeout=timeout,
                refuse=refuse,
            )
            with answer.response as response:
                status = response.status_code
                if status in BUSY:
                    busy = f"the server is busy or broken (HTTP {status})."
                    raise Interrupted(busy, retry_after(response.headers))
                if status != 200:  # noqa: PLR2004
                    told = refusal.text(status, signed=bool(authorization))
                    raise DownloadFailed(f"{told[0].upper()}{told[1:]}")
                return response.url, _bounded(response, shown) if body else b""

        with interruptible_session(self._cancelled, patience.policy) as session:
            return persist(
                attempt,
                Attempts(patience.retries, patience.backoff),
                url=url,
                done=lambda: 0,
                timeout=timeout,
                cancelled=self._cancelled,
                refuse=refuse,
                give_up=give_up,
            )


def _bounded(response: requests.Response, shown: str) -> bytes:
    pieces = bytearray()
    while piece := response.raw.read1(1 << 16, decode_content=True):
        pieces += piece
        if len(pieces) > MAX_ANSWER:
            raise DownloadFailed(f"{shown} answered with more than {MAX_ANSWER} bytes.")
    return bytes(pieces)


def malformed(url: str) -> NoReturn:
    """Raises: `DownloadFailed` for an answer in a shape that is not known."""
    raise DownloadFailed(
        f"{redacted(url)} answered in a way that is not understood. "
        "Give the address of the file itself."
    )
