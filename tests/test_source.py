"""Where a workflow may come from: text, files, URLs, data URIs, pipes."""

import base64
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer, Served
from graphs import picture
from saved_files import mp4, png

from comfy_runner.documents.source import is_address, read
from comfy_runner.errors import CallerError, DownloadFailed, InvalidInput, InvalidWorkflow, TimedOut
from comfy_runner.graph.document import MAX_DOCUMENT_BYTES

GRAPH = picture()
EDITOR: dict[str, Any] = {"nodes": [], "links": [], "version": 0.4}
TEXT = json.dumps({"prompt": GRAPH, "workflow": EDITOR})
SAVED = {"prompt": json.dumps(GRAPH), "workflow": json.dumps(EDITOR)}
CONTENTS = [TEXT.encode(), TEXT.encode("utf-16"), png(SAVED), mp4(SAVED)]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def data_uri(content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("content", CONTENTS)
def test_a_workflow_is_the_same_from_everywhere(
    content: bytes, server: FileServer, tmp_path: Path, temporary: Path
) -> None:
    path = tmp_path / "picture.txt"  # names do not count
    path.write_bytes(content)
    url = server.serve("workflow", content) + "?key=1"
    for source in (path, content, io.BytesIO(content), url, data_uri(content), f" {url}\n"):
        assert read(source) == GRAPH
        assert read(source, prefer="workflow") == EDITOR
    assert list(temporary.iterdir()) == []


def test_text_is_never_a_path(tmp_path: Path) -> None:
    path = tmp_path / "workflow.json"
    path.write_text(TEXT)
    for text in (str(path), path.as_uri(), f"file:{path}"):
        with pytest.raises(InvalidWorkflow, match="not JSON"):
            read(text)
    assert read(TEXT) == GRAPH


@pytest.mark.parametrize("content", CONTENTS)
def test_a_pipe_is_read(content: bytes) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:  # noqa: PTH123
        with open(writing, "wb") as end:  # noqa: PTH123
            end.write(content)
        assert read(pipe) == GRAPH


@pytest.mark.parametrize("uri", ["data:,", "data:application/json;base64,", "DATA:, "])
def test_an_empty_data_uri_holds_no_workflow(uri: str) -> None:
    with pytest.raises(InvalidWorkflow, match="No workflow was given"):
        read(uri)


def test_a_path_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidInput, match=why) as caught:
            read(path, field="WORKFLOW")
        assert caught.value.problems[0].code == "no_file"
        assert caught.value.problems[0].input == "WORKFLOW"


def problem(source: Any, **options: Any) -> tuple[type[CallerError], str, str]:
    with pytest.raises(CallerError) as caught:
        read(source, field="here", **options)
    (found,) = caught.value.problems
    return type(caught.value), found.code, found.input


def test_every_problem_stands_at_the_field(server: FileServer) -> None:
    assert problem("{oops") == (InvalidWorkflow, "not_json", "here")
    assert problem(png({})) == (InvalidWorkflow, "no_embedded_workflow", "here")
    assert problem("https://") == (InvalidInput, "bad_url", "here")
    assert problem("data:x;base64,!!") == (InvalidInput, "bad_url", "here")
    url = server.serve("big", png(SAVED))
    assert problem(url, max_bytes=100) == (InvalidInput, "file_too_large", "here")
    assert problem(png(SAVED), max_bytes=100) == (InvalidWorkflow, "document_too_big", "here")


def test_json_has_a_limit_of_its_own(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.write(b"{" + b" " * MAX_DOCUMENT_BYTES)
    url = server.serve("big", path.read_bytes())
    for source in (path, url):
        assert problem(source) == (InvalidWorkflow, "document_too_big", "here")
    with path.open("wb") as file:
        file.write(png(SAVED))
        file.truncate(MAX_DOCUMENT_BYTES * 2)
    assert read(path) == GRAPH


def test_a_url_that_gives_nothing_is_not_the_caller_s_fault(server: FileServer) -> None:
    with pytest.raises(DownloadFailed, match="no such file"):
        read(server.url("gone.json?key=s3cret"))
    server.files["slow"] = Served(body=b"{" * 100, hold_after=10)
    with pytest.raises(TimedOut, match=r"within 0\.3 s"):
        read(server.url("slow"), timeout=0.3)
    server.release.set()


def test_a_page_behind_a_url_is_named(server: FileServer) -> None:
    with pytest.raises(InvalidWorkflow, match="It is an HTML page, no workflow"):
        read(server.serve("page", b"<!doctype html><title>Sign in</title>"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a/b", True),
        (" HTTP://a", True),
        ("data:,x", True),
        ("{}", False),
        ("file:///a", False),
        ("a.json", False),
        ("C:/a.json", False),
    ],
)
def test_an_address_is_told_from_a_text(text: str, expected: bool) -> None:
    assert is_address(text) is expected
