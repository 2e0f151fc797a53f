"""Connections that stay open: to servers whose every byte the test decides."""

import contextlib
import ctypes
import json
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from fakes.comfyui.sockets import TEXT, frame, socket_server

from comfy_runner.comfyui.wire import SKIPPED, Disconnected, Http, Messages, listen

CONTINUED, PING, PONG = 0, 9, 10

Script = Callable[[socket.socket], None]


@contextlib.contextmanager
def http_server(*scripts: Script) -> Iterator[str]:
    """Where a server is that takes one connection for each script."""

    def serve() -> None:
        for script in scripts:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                script(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(15)


def request(connection: socket.socket) -> bytes:
    """One request with a short body."""
    came = b""
    while b"\r\n\r\n" not in came:
        came += connection.recv(4096)
    head, _, body = came.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(4096)
    return head + b"\r\n\r\n" + body


def answer(body: bytes, *more: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *more]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@contextlib.contextmanager
def http(place: str) -> Iterator[Http]:
    asking = Http(place, {"Authorization": "Bearer secret"})
    try:
        yield asking
    finally:
        asking.close()


def test_a_connection_is_used_again() -> None:
    came: list[bytes] = []

    def script(connection: socket.socket) -> None:
        for number in (b"1", b"2"):
            came.append(request(connection))
            connection.sendall(answer(number))

    with http_server(script) as place, http(place) as asking:
        answers = [asking.ask("POST", "/prompt", 10, b"{}"), asking.ask("GET", "/queue", 10)]
    assert [(told.status, told.content) for told in answers] == [(200, b"1"), (200, b"2")]
    assert came[0].startswith(b"POST /prompt HTTP/1.1\r\nHost: " + place.encode() + b"\r\n")
    assert b"\r\nAuthorization: Bearer secret\r\n" in came[0]
    assert came[0].endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize("more", [(), (b"Connection: close",)], ids=["silently", "as it said"])
def test_a_connection_that_was_closed_meanwhile_is_replaced(more: tuple[bytes, ...]) -> None:
    closed = threading.Event()

    def once(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(answer(b"once", *more))
        connection.close()
        closed.set()

    with http_server(once, once) as place, http(place) as asking:
        assert asking.ask("GET", "/", 10).content == b"once"
        assert closed.wait(10)
        assert asking.ask("GET", "/", 10).content == b"once"


def test_an_answer_in_pieces_of_unknown_length_is_whole() -> None:
    def script(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        connection.sendall(b"2\r\nde\r\n0\r\n\r\n")

    with http_server(script) as place, http(place) as asking:
        assert asking.ask("GET", "/", 10).content == b"abcde"


@pytest.mark.parametrize(
    ("said", "error"),
    [(b"", "cannot be reached"), (b"GARBAGE\r\n\r\n", "cannot be reached"), (None, "in time")],
    ids=["nothing", "no answer", "silence"],
)
def test_what_is_no_answer_is_told(said: bytes | None, error: str) -> None:
    told = threading.Event()

    def script(connection: socket.socket) -> None:
        request(connection)
        if said is None:
            assert told.wait(10)
        else:
            connection.sendall(said)

    with http_server(script) as place, http(place) as asking:
        with pytest.raises(Disconnected, match=error):
            asking.ask("GET", "/", 0.2)
        told.set()


def test_an_answer_that_comes_before_the_body_is_read_counts() -> None:
    """As aiohttp does with what is too large."""

    def script(connection: socket.socket) -> None:
        connection.recv(1000)
        # Closed with unread bytes: the peer's next write fails, what was sent to it stays readable.
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while connection.recv(1 << 16):
                pass

    with http_server(script) as place, http(place) as asking:
        assert asking.ask("POST", "/prompt", 10, b"x" * 5_000_000).status == 413


def test_a_wait_for_an_answer_can_be_interrupted() -> None:
    """By an exception that comes between two calls, as Cog's cancel does."""

    class Cancelled(BaseException):
        pass

    def strike(*_: object) -> None:
        raise Cancelled

    released = threading.Event()

    def script(connection: socket.socket) -> None:
        request(connection)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        assert released.wait(10)

    usual = signal.signal(signal.SIGUSR2, strike)
    try:
        with http_server(script) as place, http(place) as asking:
            with pytest.raises(Cancelled):
                asking.ask("GET", "/", 60)
            released.set()
    finally:
        signal.signal(signal.SIGUSR2, usual)


def test_a_cancel_strikes_while_a_large_request_is_sent() -> None:
    """Sent by another thread, as Cog's is: it strikes between two bytecodes alone."""

    class Cancelled(BaseException):
        pass

    struck, released, ended = (threading.Event() for _ in range(3))
    began = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(1000)
        began.set()
        assert released.wait(30)

    def ask() -> None:
        with contextlib.suppress(Cancelled):
            try:
                asking.ask("POST", "/prompt", 60, b"x" * 50_000_000)
            except Cancelled:
                struck.set()
                raise
            finally:
                ended.set()

    with http_server(script) as place, http(place) as asking:
        thread = threading.Thread(target=ask)
        thread.start()
        assert began.wait(10)
        strike = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert strike(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Cancelled)) == 1
        was_in_time = struck.wait(5)
        released.set()
        assert ended.wait(30)
        thread.join(10)
    assert was_in_time


def test_a_server_that_does_not_read_has_only_the_time_for_an_answer() -> None:
    told = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(1000)
        assert told.wait(10)

    with http_server(script) as place, http(place) as asking:
        with pytest.raises(Disconnected, match="in time"):
            asking.ask("POST", "/prompt", 0.2, b"x" * 50_000_000)
        told.set()


@contextlib.contextmanager
def messages(script: Script) -> Iterator[Messages]:
    with (
        socket_server(script) as url,
        listen(url.removeprefix("http://"), "someone", {}) as listening,
    ):
        yield listening


def message(kind: str, **data: object) -> bytes:
    return json.dumps({"type": kind, "data": data}).encode()


def part(first: int, payload: bytes) -> bytes:
    """One short frame, its first byte as given."""
    return bytes([first, len(payload)]) + payload


def test_a_long_message_is_left_out_as_it_comes_and_the_next_is_heard() -> None:
    text = SKIPPED + b" " * 3_000_000
    long = bytes([0x80 | TEXT, 127]) + struct.pack("!Q", len(text)) + text

    def script(connection: socket.socket) -> None:
        connection.sendall(long + frame(TEXT, message("status")) + long)
        connection.sendall(frame(TEXT, message("executing", node="1")))

    with messages(script) as listening:
        assert listening.receive(10) == {"type": "status", "data": {}}
        assert listening.receive(10) == {"type": "executing", "data": {"node": "1"}}
        assert len(listening._came) == 0  # noqa: SLF001 - nothing of it is kept


def test_a_message_in_parts_is_whole_and_a_ping_between_them_is_answered() -> None:
    whole = message("status")
    heard: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(part(TEXT, whole[:5]) + part(0x80 | PING, b"here?"))
        connection.sendall(part(CONTINUED, whole[5:9]) + part(0x80 | CONTINUED, whole[9:]))
        heard.append(connection.recv(100))

    with messages(script) as listening:
        assert listening.receive(10) == json.loads(whole)
    (pong,) = heard
    mask, payload = pong[2:6], pong[6:]
    assert pong[:2] == bytes([0x80 | PONG, 0x80 | 5])  # what a client sends is masked
    assert bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload)) == b"here?"


@pytest.mark.parametrize("first", [0xC0 | TEXT, 0x80 | 3, 0x80 | 15])
def test_what_is_no_frame_ends_the_connection(first: int) -> None:
    with (
        messages(lambda connection: connection.sendall(part(first, b"{}"))) as listening,
        pytest.raises(Disconnected, match="no frame"),
    ):
        listening.receive(10)


def test_what_came_until_now_can_be_left_out() -> None:
    second = frame(TEXT, message("second"))
    drained = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(frame(TEXT, message("first")) + second[:7])
        assert drained.wait(10)
        connection.sendall(second[7:])

    with messages(script) as listening:
        while not listening._came:  # noqa: SLF001 - until the half of a frame is here
            assert listening._read(10)  # noqa: SLF001
            listening.drain()
        drained.set()
        assert listening.receive(10) == {"type": "second", "data": {}}
        with pytest.raises(Disconnected):
            listening.receive(10)
