"""The Comfy Registry: which archive a version of a pack is.

`GET /nodes/ID/install?version=VERSION` answers `{"version": ..., "downloadUrl": ...}`, without a
version for the newest, as comfy-cli asks it (comfy_cli/registry/api.py). Asked for a version that
does not exist it may answer another one.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from comfy_runner.errors import DownloadFailed, InvalidInput, Problem
from comfy_runner.fetch.download import fetch
from comfy_runner.fetch.urls import is_confidential
from comfy_runner.packs.lock import ARCHIVE_URL, REGISTRY_VERSION

ENDPOINT = "https://api.comfy.org"

MAX_ANSWER = 4 * 1024**2
"""Bytes of an answer: a version's change log is in it."""


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a pack."""

    id: str
    version: str
    url: str
    """Of its zip."""


def look_up(pack: str, version: str = "", *, endpoint: str = ENDPOINT) -> Release:
    """The release of a pack in the registry; without a version the newest.

    Raises: `InvalidInput` where there is no such pack or version, `DownloadFailed` where the
    registry does not answer as it should.
    """
    url = f"{endpoint.rstrip('/')}/nodes/{quote(pack, safe='')}/install"
    if version:
        url += f"?version={quote(version, safe='')}"
    shown = f"{pack} {version}".rstrip()
    with tempfile.TemporaryDirectory(prefix="comfy-runner-registry-") as scratch:
        try:
            answer = fetch(url, Path(scratch, "answer"), max_bytes=MAX_ANSWER).path
        except DownloadFailed as err:
            if "HTTP 404" in str(err):
                raise _unknown(shown) from err
            raise DownloadFailed(f"The Comfy Registry was asked for {shown}: {err}") from err
        try:
            raw = json.loads(answer.read_bytes())
        except ValueError as err:
            raise DownloadFailed(f"The Comfy Registry's answer for {shown} is no JSON.") from err
    match raw:
        case {"version": str(found), "downloadUrl": str(archive)}:
            pass
        case _:
            raise DownloadFailed(f"The Comfy Registry's answer for {shown} names no archive.")
    if version and found != version:
        raise _unknown(shown, f" It has {found}.")
    if not (REGISTRY_VERSION.fullmatch(found) and ARCHIVE_URL.fullmatch(archive)):
        raise DownloadFailed(f"The Comfy Registry's answer for {shown} makes no sense.")
    if not is_confidential(archive):
        raise DownloadFailed(f"The Comfy Registry has {shown} over plain http, which is not used.")
    return Release(pack, found, archive)


def _unknown(shown: str, has: str = "") -> InvalidInput:
    hint = "Look for it at registry.comfy.org, or give its git address."
    what = f"The Comfy Registry has no pack {shown}.{has}"
    return InvalidInput([Problem("unknown_pack", what, hint, input="SOURCE")])
