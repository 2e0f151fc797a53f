"""What `Lines` reads from answers of all kinds, and which connections it keeps."""

import http.client
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import pytest
from fakes.file_server import FileServer

from comfy_runner.fetch.answers import BROKEN
from comfy_runner.fetch.lines import Lines

BODY = bytes(range(256)) * 400


@pytest.fixture
def lines() -> Iterator[Lines]:
    with closing(Lines(threading.Event(), connect=5, stall=5)) as made:
        yield made


@contextmanager
def answering(*connections: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends these answers on each connection and then closes it; what it was asked.

    The list of what was asked holds an empty entry for each connection that was closed."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def work() -> None:
            for answers in connections:
                with suppress(OSError), listening.accept()[0] as connection:
                    connection.settimeout(10)
                    for answer in answers:
                        asked.append(connection.recv(65536))
                        connection.sendall(answer)
                asked.append(b"")

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
    thread.join(10)


def read(lines: Lines, url: str, **headers: str) -> tuple[int, bytes]:
    stream = lines.get(url, headers)
    try:
        body = bytearray()
        buffer = memoryview(bytearray(70_000))
        while count := stream.read_into(buffer):
            body += buffer[:count]
        return stream.status_code, bytes(body)
    finally:
        stream.close()


def test_all_kinds_of_answers_share_one_connection(server: FileServer, lines: Lines) -> None:
    kinds = [{}, {"ranges": True}, {"chunked": True}, {"status": 404}, {}]
    for number, how in enumerate(kinds):
        url = server.serve(f"x{number}", BODY, keep_alive=True, **how)
        assert read(lines, url) == (how.get("status", 200), BODY)
    assert server.connections == 1


def test_a_body_nobody_wants_is_read_only_where_it_is_small(
    server: FileServer, lines: Lines
) -> None:
    small = server.serve("small", BODY[:1000], keep_alive=True)
    large = server.serve("large", BODY, keep_alive=True)
    lines.get(small, {}).close()
    lines.get(large, {}).close()
    assert server.connections == 1
    assert read(lines, small) == (200, BODY[:1000])
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200\r\ncontent-length:3\r\nX: a\r\nX: b\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    ],
)
def test_reads_odd_answers(lines: Lines, answer: bytes, body: bytes) -> None:
    with answering([answer]) as (url, _):
        status, came = read(lines, url)
    assert (status // 100, came) == (2, body)


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X" * 70_000],
)
def test_an_answer_that_is_none_is_a_failure(lines: Lines, answer: bytes) -> None:
    with answering([answer]) as (url, _), pytest.raises(BROKEN):
        lines.get(url, {})


def test_asks_again_where_an_idle_connection_was_closed(lines: Lines) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    with answering([whole + b"1"], [whole + b"2"]) as (url, _):
        assert [read(lines, url)[1], read(lines, url)[1]] == [b"1", b"2"]


def test_takes_no_answer_that_nobody_asked_for(lines: Lines) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    with answering([whole + b"1" + whole + b"0"], [whole + b"2"]) as (url, _):
        assert [read(lines, url)[1], read(lines, url)[1]] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", b"/"),
        ("?a=b", b"/?a=b"),
        ("/a%20b/c?d=%2F#e", b"/a%20b/c?d=%2F"),
        ("/a b/\u00e4", b"/a%20b/%C3%A4"),
        ("/a/../b", b"/b"),
    ],
)
def test_asks_for_what_the_url_names(lines: Lines, path: str, target: bytes) -> None:
    with answering([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]) as (url, asked):
        assert read(lines, url + path, Range="bytes=0-1") == (200, b"")
        first, *sent = asked[0].split(b"\r\n")
    assert first == b"GET " + target + b" HTTP/1.1"
    assert f"Host: {url.removeprefix('http://')}".encode() in sent
    assert b"Range: bytes=0-1" in sent


def test_asks_a_proxy_for_the_whole_address(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    with answering([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]) as (url, asked):
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:word@"))
        assert read(lines, "http://models.invalid/x?y=1") == (200, b"")
    assert asked[0].startswith(b"GET http://models.invalid/x?y=1 HTTP/1.1\r\nHost: models.invalid")
    assert b"proxy-authorization: basic" in asked[0].lower()


def test_asks_a_proxy_for_a_tunnel(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    with answering([b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"]) as (url, asked):
        monkeypatch.setenv("https_proxy", url)
        with pytest.raises(BROKEN):
            lines.get("https://models.invalid/x", {})
    assert asked[0].startswith(b"CONNECT models.invalid:443 HTTP/1")


def test_a_line_break_does_not_get_into_a_header(lines: Lines, server: FileServer) -> None:
    with pytest.raises((*BROKEN, ValueError)):
        lines.get(server.url("x"), {"A": "b\r\nC: d"})
    assert server.asked == []


def test_a_closed_connection_without_an_answer_is_told(lines: Lines) -> None:
    with answering([b""]) as (url, _), pytest.raises(http.client.RemoteDisconnected):
        lines.get(url, {})
