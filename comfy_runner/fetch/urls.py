"""What a URL may show and what its file is called: nothing here opens one."""

import re
from collections.abc import Mapping
from typing import NoReturn
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from comfy_runner.errors import InvalidInput, Problem

# The standard library's table differs from machine to machine.
EXTENSIONS: Mapping[str, str] = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
    "image/avif": ".avif",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/quicktime": ".mov",
    "video/x-matroska": ".mkv",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "model/gltf-binary": ".glb",
    "application/json": ".json",
    "text/plain": ".txt",
}

SIGNATURES = frozenset(
    {
        *("x-amz-signature", "x-amz-security-token", "x-goog-signature", "x-oss-signature"),
        *("x-cos-signature", "x-tos-signature", "q-signature", "signature", "sig", "sign"),
        *("hdnea", "hdnts", "hdntl", "md5", "policy", "rlkey", "session", "key", "jwt"),
        *("auth", "authorization", "api_key", "apikey", "password"),
    }
)
"""Names in a query, in small letters, whose values let the asker in; so does a name with `token`
in it."""


def scheme(url: str) -> str:
    """The URL's scheme in small letters; empty for a relative one."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    return found[1].lower() if found else ""


def is_signed(url: str) -> bool:
    """Whether the URL's query holds a signature, a token or the like."""
    names = [name.lower() for name, _ in parse_qsl(urlsplit(url).query)]
    return any(name in SIGNATURES or "token" in name for name in names)


def is_confidential(url: str) -> bool:
    """Whether nobody on the way can read what is sent there: TLS, or this machine."""
    host = urlsplit(url).hostname or ""
    return scheme(url) == "https" or host in ("localhost", "::1") or host.startswith("127.")


def redacted(url: str) -> str:
    """The URL as it may be shown: without user, password, query, fragment and `data:` payload."""
    # A password may hold a slash that should have been quoted, and readers then end the host there.
    url = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#@]*:[^?#]*@", r"\1", url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "an unreadable address"
    if parts.scheme == "data":
        shown = f"data:{re.split('[;,]', parts.path, maxsplit=1)[0]}"
    else:
        place = f"[{host}]" if ":" in host else host
        place += f":{port}" if port else ""
        shown = urlunsplit((parts.scheme, place, parts.path, "", ""))
    shown = "".join(letter if letter.isprintable() else "?" for letter in shown)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."  # noqa: PLR2004


def clean_name(name: str) -> str:
    """A file name that is safe as one part of a path: at most 100 of `A-Za-z0-9._ -`.

    Folders are cut off, other characters become `_`, the extension is kept; `file` when nothing
    is left.
    """
    last = re.split(r"[/\\]", name)[-1]
    last = re.sub(r"[^A-Za-z0-9._ -]", "_", last).lstrip(". ").rstrip(". ")
    stem, dot, extension = last.rpartition(".")
    if not dot or not extension or len(extension) > 15:  # noqa: PLR2004
        stem, extension = last, ""
    ending = f".{extension}" if extension else ""
    return f"{(stem or 'file')[: 100 - len(ending)].rstrip()}{ending}"


def bad_url(url: str, why: str) -> NoReturn:
    """Raises: `InvalidInput` with the code `bad_url`."""
    raise InvalidInput([Problem("bad_url", f"{redacted(url)!r} cannot be fetched: {why}")])
