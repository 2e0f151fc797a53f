"""Whether a file that was fetched is the file that was asked for."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from comfy_runner.errors import DownloadFailed, HashMismatch
from comfy_runner.fetch.endings import SAFETENSORS
from comfy_runner.fetch.staged import BUFFER, Expect, safetensors_fault

HEAD = 64 * 1024
"""Bytes at the beginning that are looked at; what is larger is no error message."""
PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
XML_ERROR = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<Error>\s*<")
"""What object stores answer, such as S3's AccessDenied."""
POINTER = b"version https://git-lfs"
JSON_ERRORS = frozenset({"error", "errors", "message", "detail", "statusCode"})
"""Names that stand in what a web interface says instead of a file."""
OTHER_KINDS: Mapping[str, re.Pattern[bytes]] = {
    "a Python pickle, which can run code when it is loaded": re.compile(rb"\x80[\x02-\x05]"),
    "a zip archive, or a PyTorch checkpoint": re.compile(rb"PK[\x03\x05]"),
    "a tar archive": re.compile(rb".{257}ustar", re.DOTALL),
    "a gzip archive": re.compile(rb"\x1f\x8b\x08"),
    "a GGUF file": re.compile(rb"GGUF"),
}
"""How files begin that are sent where safetensors were promised."""


def judge(
    path: Path,
    *,
    name: str,
    size: int | None,
    sha256: str | None,
    known_sha256: str | None = None,
    expect: Expect = "weight",
    shown: str,
) -> str:
    """The sha256 of a file that passes every check; 64 hexadecimal digits.

    `name` is what the file will be called: its ending says what it must hold. `size` in bytes and
    `sha256` are what was promised. `known_sha256` is the hash that was made while the bytes came:
    without it the file is read once more. `shown` names the file in errors. `expect` is "any" for
    a file that may be whatever it is.

    Raises: `HashMismatch` for another file than was promised; `DownloadFailed` for one that is
    empty, a web page, an error message, a pointer to a file, or broken.
    """
    count = path.stat().st_size
    # First what it is, then what it should be: that a login page has another size is no news.
    fault = _fault(path, count, PurePosixPath(name).suffix.lower(), expect)
    if fault and (size is None or count == size or not fault.startswith(_BROKEN)):
        raise DownloadFailed(f"{shown} could not be fetched: {fault}")
    if size is not None and count != size:
        raise HashMismatch(
            f"{shown} is not the file that was asked for: it has {count} bytes where {size} were "
            "expected. Correct the size or the URL."
        )
    found = known_sha256.lower() if known_sha256 is not None else _sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise HashMismatch(
            f"{shown} is not the file that was asked for: its sha256 is {found}, expected was "
            f"{sha256}. Correct the hash or the URL."
        )
    return found


_BROKEN = "it is no sound safetensors file"


def _fault(path: Path, count: int, ending: str, expect: Expect) -> str:
    """What is wrong with the content, with its cure; empty when nothing is."""
    if not count:
        return "the file is empty."
    if expect == "any":
        return ""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if PAGE.match(head) and ending not in (".html", ".htm", ".xhtml"):
        return (
            "the server sent a web page instead of the file. "
            "The page may ask for a login or a licence: open the address in a browser."
        )
    return _no_weight(path, head, count, ending) if expect == "weight" else ""


def _no_weight(path: Path, head: bytes, count: int, ending: str) -> str:
    """Why a file is not the kind of weight that its name promises; empty when it is."""
    fault = ""
    if message := _message(head, count, ending):
        fault = f"the server sent an error message instead of the file: {message}"
    elif head.startswith(POINTER):
        fault = (
            "it is a Git LFS pointer, not the file that it points to. Take the address that the "
            "host offers for a download; on Hugging Face it has /resolve/ where this has /raw/."
        )
    elif ending == ".gguf" and not head.startswith(b"GGUF"):
        fault = "it is no GGUF file."
    elif ending in SAFETENSORS and (unsound := safetensors_fault(path)):
        # A sound file's first bytes, the length of its header, can look like any other kind.
        kind = next((kind for kind, begins in OTHER_KINDS.items() if begins.match(head)), "")
        promised = f"it is {kind}, where its name promises safetensors."
        fault = promised if kind else f"{_BROKEN}: {unsound}"
    return fault


def _message(head: bytes, count: int, ending: str) -> str:
    """The error that a small file consists of, shortened; empty when it is none."""
    if count > len(head):
        return ""
    text = head.decode("utf-8-sig", "replace").strip()
    if XML_ERROR.match(head):
        # The rest may repeat a signed address, or parts of it.
        told = re.findall(r"<(?:Code|Message)>([^<]*)<", text)
    elif ending == ".json" or not text.startswith("{"):
        return ""
    else:
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        if not JSON_ERRORS & said.keys():
            return ""
        told = [str(said[name]) for name in sorted(JSON_ERRORS & said.keys())]
    told = [re.sub(r"\?\S+", "?...", part) for part in told]
    return "".join(letter for letter in ": ".join(told) if letter.isprintable())[:200]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
