"""The files of a prediction: Cog decodes those that are sent, and those behind URLs come here."""

import re
import secrets
import tempfile
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, Self
from urllib.parse import unquote_plus, urlsplit

import coglet
from cog import __version__ as cog_version  # type: ignore[import-untyped]
from cog import types

from comfy_runner.config import Config
from comfy_runner.errors import (
    CallerError,
    Cancelled,
    DownloadFailed,
    InvalidInput,
    Problem,
    Refused,
    StartFailed,
    TimedOut,
)
from comfy_runner.fetch.download import Patience, fetch
from comfy_runner.fetch.policy import Policy
from comfy_runner.fetch.staged import Expect
from comfy_runner.fetch.transport import TICK, alarm
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.runs.files import GivenFile, safe_name

KNOWN_COG = "0.23."
"""How the versions begin of which it is known how they fetch."""

WEB = ("http", "https")

AT_ONCE = 8
"""Files that are fetched at once, as Cog does."""

SILENCE = 20.0
"""Seconds that a server may send nothing before it is asked again; at most three times."""

UPLOAD = re.compile(r"tmp[a-z0-9_]{8}")
"""How the names begin that Cog gives to what it has decoded, and we to what we have fetched."""


class Address(types.URLPath):  # type: ignore[misc]
    """A URL in the place of a file, which stands nowhere until it is fetched.

    Cog 0.23 (`cog/types.py`, coglet's `input.rs`) calls `convert` of every `URLPath` before `run`
    begins, where no cancel reaches it, and `unlink` of what that returned once the prediction has
    ended, however it did. So this returns itself, and Cog removes what was fetched.
    """

    @classmethod
    def of(cls, url: str) -> Self:
        """The address. A URL that cannot be used is refused only when it is fetched."""
        return cls(source=url, filename=_name(url), fileobj=None)

    def convert(self) -> Self:
        """The address itself."""
        return self

    def __str__(self) -> str:
        return redacted(self.source)

    def fetch(self, expect: Expect, config: Config, cancelled: Event) -> Path:
        """The file behind it, in the folder for temporary files, under a name as Cog makes them.

        Raises: as `download.fetch` does.
        """
        folder = Path(tempfile.gettempdir())
        self._path = folder / f"tmp{secrets.token_hex(4)}{self.filename}"
        fetch(
            self.source,
            self._path,
            max_bytes=config.max_input_bytes,
            expect=expect,
            cancelled=cancelled,
            # Somebody waits for it.
            patience=Patience(stall=SILENCE, retries=2, policy=Policy.of(config)),
        )
        return self._path


def take_over() -> None:
    """Have Cog hand http(s) URLs over to `received`: what it fetches itself obeys no policy.

    Raises: `StartFailed` with a Cog of which it is not known how it fetches.
    """
    versions = {"cog": cog_version, "coglet": coglet.__version__}
    known = all(version.startswith(KNOWN_COG) for version in versions.values())
    parts = isinstance(vars(types.Path).get("validate"), classmethod)
    parts = parts and {"convert", "unlink"} <= vars(types.URLPath).keys()
    if not (known and parts):
        found = " and ".join(f"{package} {version}" for package, version in versions.items())
        raise StartFailed(
            f"Nothing would keep the URLs of a request from private addresses: {found} may fetch"
            f" them otherwise than {KNOWN_COG}x does. Install cog and coglet {KNOWN_COG}x; an image"
            " gets coglet from COGLET_WHEEL, as cog.yaml says."
        )
    cogs = types.Path.validate

    def validate(_: object, value: Any) -> Path:
        if isinstance(value, str) and scheme(value) in WEB:
            return Address.of(value)
        try:
            made: Path = cogs(value)
        except ValueError:  # a broken data URI, of which Cog tells neither field nor cure
            return Address.of(value)
        return made

    types.Path.validate = classmethod(validate)


def received(
    given: Mapping[str, object], *, timeout: float, config: Config
) -> Mapping[str, GivenFile]:
    """The files, under the names that the caller gave them; those behind URLs are fetched.

    `given` is field to what Cog made of its value; the result has the same fields, in that order.
    Fetching all of
    them may take `timeout` seconds. Cog removes the files when the prediction has ended.

    Raises: `InvalidInput` with everything that is no file, for too many URLs and for a file that is
    too large, `Refused` for URLs that must not be asked, `DownloadFailed`, and `TimedOut`.
    """
    addresses = {field: value for field, value in given.items() if isinstance(value, Address)}
    files: dict[str, GivenFile] = {}
    problems: list[Problem] = []
    for field, value in given.items():
        try:
            if field not in addresses:
                files[field] = _uploaded(value, field, config.max_input_bytes)
        except InvalidInput as err:
            problems += err.problems
    if problems:
        raise InvalidInput(problems)
    _check(addresses, config)
    fetched = _fetched(addresses, timeout, config) if addresses else {}
    files |= {
        field: _uploaded(path, field, config.max_input_bytes) for field, path in fetched.items()
    }
    return {field: files[field] for field in given}


def _check(addresses: Mapping[str, Address], config: Config) -> None:
    """Raises: `InvalidInput` for too many, `Refused` with all that are refused by their text."""
    count = sum(scheme(address.source) in WEB for address in addresses.values())
    if count > config.max_urls:
        what = f"The files of the request are {count} URLs; {config.max_urls} are allowed."
        hint = "Send the files themselves, or have COMFY_RUNNER_MAX_URLS raised."
        raise InvalidInput([Problem("too_many_urls", what, hint)])
    policy = Policy.of(config)
    problems: list[Problem] = []
    for field, address in addresses.items():
        try:
            policy.check_url(address.source)
        except Refused as err:
            problems += (replace(problem, input=field) for problem in err.problems)
    if problems:
        raise Refused(problems)


def _fetched(
    addresses: Mapping[str, Address], timeout: float, config: Config
) -> Mapping[str, Path]:
    """All files, or the first error, which names its field and ends the others."""
    halt = Event()
    with ThreadPoolExecutor(AT_ONCE) as pool, alarm(halt, timeout):
        try:
            jobs = {
                field: pool.submit(_fetch, field, address, config, halt)
                for field, address in addresses.items()
            }
            waiting = set(jobs.values())
            while waiting:
                # Cog cancels by an exception that waits until this thread runs again.
                done, waiting = wait(waiting, TICK, FIRST_EXCEPTION)
                for job in done:
                    job.result()
            return {field: job.result() for field, job in jobs.items()}
        except Cancelled as err:
            raise TimedOut(
                f"The files behind {', '.join(addresses)} did not arrive within {timeout:g} s."
            ) from err
        finally:
            halt.set()


def _fetch(field: str, address: Address, config: Config, halt: Event) -> Path:
    # A workflow's file may be of any kind: what is none says so better than a fetcher can.
    expect: Expect = "any" if field == "workflow_file" else "media"
    try:
        return address.fetch(expect, config, halt)
    except CallerError as err:
        raise type(err)(replace(problem, input=field) for problem in err.problems) from err
    except DownloadFailed as err:
        raise DownloadFailed(f"{field}: {err}") from err


def _uploaded(path: object, field: str, max_bytes: int) -> GivenFile:
    """The file, under the name that the caller gave it.

    Cog 0.23 passes any text that is no URL through as it came, so a path of this machine would be
    read; what Cog itself made lies in the folder for temporary files, as `tmp`, eight characters,
    and the name (`cog/types.py` URLPath.convert).

    Raises: `InvalidInput`.
    """
    if not isinstance(path, Path):
        raise _bad(field, "It is neither an uploaded file, an http(s) URL nor a data URI.")
    folder = Path(tempfile.gettempdir()).resolve()
    try:
        fits = path.is_file() and not path.is_symlink() and path.resolve().parent == folder
        fits = fits and re.match(UPLOAD, path.name) is not None
    except OSError:  # a name that is too long
        fits = False
    if not fits:
        raise _bad(field, "It is not an uploaded file.", "Send the file itself, or its URL.")
    size = path.stat().st_size
    if size == 0:
        raise _bad(field, "It is empty: no byte of it arrived.", "Send it again.")
    if size > max_bytes:
        what = f"It has more than the limit of {max_bytes} bytes."
        raise InvalidInput([Problem("file_too_large", what, "Give a smaller file.", input=field)])
    return GivenFile(path, re.sub(UPLOAD, "", path.name, count=1) or path.name)


def _name(url: str) -> str:
    """The last part of the URL's path, which Cog would call its file, as a safe file name."""
    try:
        path = urlsplit(url).path if scheme(url) in WEB else ""
    except ValueError:
        path = ""
    return safe_name(unquote_plus(path.rpartition("/")[2]))


def _bad(field: str, what: str, hint: str = "") -> InvalidInput:
    return InvalidInput([Problem("bad_input", what, hint, input=field)])
