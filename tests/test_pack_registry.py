"""The Comfy Registry, served by a server of ours."""

import json

import pytest
from fakes.file_server import FileServer

from comfy_runner.errors import DownloadFailed, InvalidInput
from comfy_runner.packs.registry import Release, look_up


def serve(server: FileServer, answer: object, path: str = "nodes/fox/install") -> str:
    """Answer so. Returns the endpoint."""
    server.serve(path, json.dumps(answer).encode())
    return server.url("")


def test_a_release_is_looked_up(server: FileServer) -> None:
    answer = {
        "id": "1234",
        "version": "1.2.0",
        "downloadUrl": "https://cdn.example/fox.zip",
        "changelog": "...",
    }
    endpoint = serve(server, answer)
    assert look_up("fox", endpoint=endpoint) == Release(
        "fox", "1.2.0", "https://cdn.example/fox.zip"
    )
    look_up("fox", "1.2.0", endpoint=endpoint)
    assert [each.path for each in server.asked] == [
        *("nodes/fox/install", "nodes/fox/install?version=1.2.0")
    ]


def test_another_version_than_the_wanted_one_is_refused(server: FileServer) -> None:
    endpoint = serve(server, {"version": "1.3.0", "downloadUrl": "https://cdn.example/fox.zip"})
    with pytest.raises(InvalidInput, match=r"has no pack fox 1\.2\.0\. It has 1\.3\.0"):
        look_up("fox", "1.2.0", endpoint=endpoint)


def test_an_unknown_pack_is_told(server: FileServer) -> None:
    with pytest.raises(InvalidInput, match="The Comfy Registry has no pack fox") as caught:
        look_up("fox", endpoint=server.url(""))
    assert "registry.comfy.org" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([], "names no archive"),
        ({"version": "1"}, "names no archive"),
        ({"version": 1, "downloadUrl": "https://cdn.example/f.zip"}, "names no archive"),
        ({"version": "1", "downloadUrl": "file:///etc/passwd"}, "makes no sense"),
        ({"version": "../1", "downloadUrl": "https://cdn.example/f.zip"}, "makes no sense"),
        ({"version": "1", "downloadUrl": "http://cdn.example/f.zip"}, "plain http"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(server: FileServer, answer: object, why: str) -> None:
    with pytest.raises(DownloadFailed, match=why):
        look_up("fox", endpoint=serve(server, answer))


def test_what_is_no_json_is_refused(server: FileServer) -> None:
    server.serve("nodes/fox/install", b"<html>")
    with pytest.raises(DownloadFailed, match="is no JSON"):
        look_up("fox", endpoint=server.url(""))
