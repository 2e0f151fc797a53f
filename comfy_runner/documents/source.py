"""The graph of a workflow, from wherever the caller has it."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from comfy_runner.config import Config
from comfy_runner.documents.embedded import HEAD, Embedded, embedded
from comfy_runner.errors import (
    CallerError,
    Cancelled,
    InvalidInput,
    InvalidWorkflow,
    Problem,
    TimedOut,
)
from comfy_runner.fetch.download import Patience, fetch
from comfy_runner.fetch.policy import OPEN, Policy
from comfy_runner.fetch.transport import alarm
from comfy_runner.fetch.urls import scheme
from comfy_runner.graph.document import (
    HOW_TO_SAVE,
    MAX_DOCUMENT_BYTES,
    Preference,
    load,
)

TIMEOUT = 60.0
"""Seconds for a workflow behind a URL where the caller sets no limit."""

SHOWN_NAMES = 6
"""How many names of a file's other metadata an error shows."""

SAVED_WITHOUT = (
    "ComfyUI writes the workflow into the files it saves, and most sites and editors take it out."
)


def read(
    source: Path | BinaryIO | bytes | str,
    *,
    prefer: Preference = "prompt",
    timeout: float = TIMEOUT,
    max_bytes: int = Config.max_input_bytes,
    field: str = "",
    policy: Policy = OPEN,
) -> Mapping[str, Any]:
    """The graph in a source: in API format, or the editor's (`document.is_editor`).

    A `Path` is a file and bytes are a file's content. A `str` is an http(s) URL, a data URI or
    JSON text, and never a path. The content is JSON as `document.load` takes it, or a file that
    ComfyUI saved: picture, video, recording, model. Where it has both formats, `prefer` chooses.
    `timeout` is in seconds and for a URL alone; `max_bytes` is for files, JSON has its own limit.
    `field` names the request's field in messages. `policy` says where a URL may lead.

    Raises: `InvalidWorkflow` for a content without a workflow, `InvalidInput` for a file or URL
    that cannot be used, `DownloadFailed`, `TimedOut`.
    """
    try:
        match source:
            case str() if is_address(source):
                with fetched(source, timeout=timeout, max_bytes=max_bytes, policy=policy) as path:
                    return _of_path(path, prefer, max_bytes)
            case str():
                return load(source, prefer)
            case bytes():
                return _of_file(BytesIO(source), prefer, max_bytes)
            case Path():
                return _of_path(source, prefer, max_bytes)
            case _:
                return _of_stream(source, prefer, max_bytes)
    except CallerError as err:
        raise type(err)(_placed(problem, field) for problem in err.problems) from err


def is_address(text: str) -> bool:
    """Whether a text says where the workflow is instead of being it."""
    return scheme(text.lstrip()[:10]) in ("http", "https", "data")


@contextmanager
def fetched(url: str, *, timeout: float, max_bytes: int, policy: Policy = OPEN) -> Iterator[Path]:
    """A file with what stands behind an http(s) URL or a data URI; the block's end removes it.

    Raises: `InvalidInput`, `DownloadFailed`, and `TimedOut` after so many seconds.
    """
    url = url.strip()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "document"
        if re.fullmatch(r"data:[^,]{0,1000},\s*", url, re.IGNORECASE):
            target.touch()  # `fetch` takes an empty file for a failed download
        else:
            late = Event()
            try:
                with alarm(late, timeout):
                    fetch(
                        url,
                        target,
                        max_bytes=max_bytes,
                        cancelled=late,
                        patience=Patience(retries=2, policy=policy),  # somebody waits for it
                    )
            except Cancelled as err:
                raise TimedOut(f"Nothing arrived from the URL within {timeout:g} s.") from err
        yield target


def _of_path(path: Path, prefer: Preference, max_bytes: int) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            return _of_stream(file, prefer, max_bytes)
    except OSError as err:
        what = f"{path} cannot be read: {err.strerror}."
        raise InvalidInput([Problem("no_file", what, "Check the path.")]) from err


def _of_stream(stream: BinaryIO, prefer: Preference, max_bytes: int) -> Mapping[str, Any]:
    if stream.seekable():
        return _of_file(stream, prefer, max_bytes)
    with tempfile.TemporaryFile() as spool:  # a pipe, which can be read only once
        while spool.tell() <= max_bytes and (chunk := stream.read(HEAD)):
            spool.write(chunk)
        return _of_file(spool, prefer, max_bytes)


def _of_file(file: BinaryIO, prefer: Preference, max_bytes: int) -> Mapping[str, Any]:
    if file.seek(0, 2) > max_bytes:
        raise _refused("document_too_big", f"It has more than {max_bytes / 1e6:.0f} MB.")
    found = embedded(file)
    if found is not None:
        return _graph_in(found, prefer)
    file.seek(0)
    content = file.read(MAX_DOCUMENT_BYTES + 1)
    if b"\0" in content[:HEAD] and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        what = f"It is an unknown binary file (it begins with {content[:8].hex(' ')})."
        raise _refused("not_a_workflow", what, HOW_TO_SAVE)
    return load(content, prefer)


def _graph_in(found: Embedded, prefer: Preference) -> Mapping[str, Any]:
    """The graph among a file's metadata."""
    graphs = {name: value for name, value in found.graphs.items() if _may_be_json(value)}
    comment = graphs.pop("comment", None)
    if not graphs and comment is not None:
        graphs = {"prompt": comment}
    if not graphs:
        raise _refused("no_embedded_workflow", *_nothing_in(found))
    try:
        return load(graphs, prefer)
    except InvalidWorkflow as err:
        raise InvalidWorkflow(
            replace(problem, what=f"It is {found.kind}. {problem.what}") for problem in err.problems
        ) from err


def _nothing_in(found: Embedded) -> tuple[str, str]:
    """What to say of a file without a workflow, and what to do."""
    if not found.can_hold:
        return f"It is {found.kind}, no workflow.", HOW_TO_SAVE
    if found.fault:
        return f"It is {found.kind} that cannot be read: {found.fault}.", "Send it again."
    names = [*found.graphs, *found.names]
    if not names:
        return f"It is {found.kind} with no metadata.", f"{SAVED_WITHOUT} {HOW_TO_SAVE}"
    shown = ", ".join(_printable(name) for name in names[:SHOWN_NAMES])
    shown += f" and {len(names) - SHOWN_NAMES} more" if names[SHOWN_NAMES:] else ""
    shown += ", as AUTOMATIC1111 writes" if names == ["parameters"] else ""
    return (
        f"It is {found.kind} without a workflow (its metadata: {shown}).",
        f"{SAVED_WITHOUT} {HOW_TO_SAVE}",
    )


def _may_be_json(value: Any) -> bool:
    """Whether it is no text, or one that may be JSON: other programs write a prompt in words."""
    return not isinstance(value, str) or value.lstrip()[:1] in ("{", "[")


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:40])


def _placed(problem: Problem, field: str) -> Problem:
    """The problem at the request's field, unless it stands somewhere already."""
    return problem if problem.where else replace(problem, input=field)


def _refused(code: str, what: str, hint: str = "") -> InvalidWorkflow:
    return InvalidWorkflow([Problem(code, what, hint)])
