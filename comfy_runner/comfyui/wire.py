"""Connections to ComfyUI that stay open: its HTTP answers, and its messages over a WebSocket."""

import contextlib
import http.client
import json
import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import websocket

from comfy_runner.errors import MachineError

Message = dict[str, Any] | bytes
"""A JSON message with `type` and `data`, or a binary frame: 4 bytes of kind, big-endian, first."""

CONNECT_TIMEOUT = 3.0  # seconds

TICK = 0.1
"""Longest single wait in seconds: Cog's cancel strikes only between two of them."""

FRESH = 30.0
"""Seconds for which an idle HTTP connection is used again; aiohttp 3 closes it after 75."""

CHUNK = 256 * 1024
"""Most bytes that are read at once."""

SKIPPED = b'{"type": "progress_state"'
"""Begin of messages that repeat the state of all nodes: 18 MB in a run of 300 nodes."""

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = KINDS = (0, 1, 2, 8, 9, 10)
"""Kinds of frames: RFC 6455, section 5.2, as the following."""
FINAL, RESERVED, KIND = 0x80, 0x70, 0x0F
"""What the bits of a frame's first byte say."""
MASKED, LENGTH_OF_2 = 0x80, 126
"""A bit of its second byte, and the value from which on the length stands in bytes behind it."""


class Disconnected(ConnectionError):
    """The server closed the connection, refused it, or gave no answer in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said to one request."""

    request: str
    """Method and path, for an error's text."""
    status: int
    content: bytes

    @property
    def ok(self) -> bool:
        """Whether the server did what it was asked."""
        return self.status < http.client.BAD_REQUEST


class Http:
    """HTTP/1.1 with one server of this machine, over connections that stay open.

    For several threads. Its waits can be interrupted: an exception that another thread sends
    strikes within `TICK` seconds. No proxy is asked.
    """

    def __init__(self, place: str, headers: Mapping[str, str]) -> None:
        """`place` is such as `127.0.0.1:8188`; nothing is sent yet."""
        self._place = place
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._idle: deque[tuple[PatientSocket, float]] = deque()
        """With the moment until which each is good."""

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        while self._idle:
            self._idle.pop()[0].close()

    def ask(self, method: str, path: str, timeout: float, body: bytes = b"") -> Answer:
        """The answer to a request, whose body is JSON.

        Raises: `Disconnected`, when no part of the answer has come for `timeout` seconds, too.
        """
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._place}\r\n{self._headers}"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            connection = self._connection()
            connection.settimeout(timeout)
            try:
                answer, is_good = _exchange(connection, method, path, head.encode() + body)
            except BaseException:
                connection.close()
                raise
        except TimeoutError as err:
            raise Disconnected(f"ComfyUI did not answer {method} {path} in time.") from err
        except (OSError, http.client.HTTPException) as err:
            raise Disconnected(f"ComfyUI cannot be reached: {err}") from err
        if is_good:
            self._idle.append((connection, time.monotonic() + FRESH))
        else:
            connection.close()
        return answer

    def _connection(self) -> "PatientSocket":
        while self._idle:
            connection, limit = self._idle.pop()
            # What was not asked for can only be the end.
            if time.monotonic() < limit and not readable(connection, 0.0):
                return connection
            connection.close()
        return PatientSocket(fileno=opened(self._place).detach())


def _exchange(
    connection: "PatientSocket", method: str, path: str, request: bytes
) -> tuple[Answer, bool]:
    """The answer, and whether the connection can be used again."""
    is_good = False
    # A body that is too large is answered before it is read.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(request)
        is_good = True
    with http.client.HTTPResponse(connection, method=method) as response:
        response.begin()
        answer = Answer(f"{method} {path}", response.status, response.read())
        return answer, is_good and not response.will_close


class PatientSocket(socket.socket):
    """A socket that waits in slices of `TICK` to read and to write, so that it can be stopped."""

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        """As that of every socket."""
        limit = self.gettimeout()
        since = time.monotonic()
        while not readable(self, TICK):
            if limit is not None and time.monotonic() - since >= limit:
                raise TimeoutError("timed out")
        return super().recv_into(*arguments, **options)

    def sendall(self, content: Any, flags: int = 0) -> None:
        """As that of every socket with a timeout, which is for all of the content."""
        limit = self.gettimeout()
        since = time.monotonic()
        left = memoryview(content)
        while left:
            # A socket with a timeout sends what there is room for.
            if _is_ready(self, select.POLLOUT, TICK):
                left = left[super().send(left, flags) :]
            if left and limit is not None and time.monotonic() - since >= limit:
                raise TimeoutError("timed out")


class Messages:
    """What ComfyUI tells one client, in order; for one thread at a time.

    Close it, or use `with`.
    """

    def __init__(self, connection: socket.socket, client_id: str) -> None:
        """`connection` is past the handshake, and belongs to this object from now on."""
        self.client_id = client_id
        """What a prompt has to name so that its messages come here."""
        self._socket = connection
        self._socket.setblocking(False)
        self._came = bytearray()
        """What has come and was not told yet; begins with a frame's first byte."""
        self._to_skip = 0
        """How many of the next bytes belong to a message that is left out."""
        self._parts: list[bytes] = []
        """Of a message that comes in several frames: those that are here."""
        self._kind = TEXT
        """The kind of that message."""

    def receive(self, timeout: float) -> Message | None:
        """The next message; None when none came within `timeout` seconds.

        A frame that has come in part is kept and completed by a later call. `progress_state`
        messages are left out.

        Raises: `Disconnected` when the socket is closed. `MachineError` for text that is no JSON.
        """
        deadline = time.monotonic() + timeout
        is_late = False
        while (told := self._next()) is None:
            left = deadline - time.monotonic()
            if is_late or not self._read(max(left, 0.0)):
                return None
            is_late = left <= 0
        kind, payload = told
        return payload if kind == BINARY else parsed(payload)

    def drain(self) -> None:
        """Leave out everything that has come until now.

        Raises: `Disconnected` when the server has closed the connection.
        """
        while True:
            while self._next() is not None:
                pass
            if not self._read(0.0):
                return

    def close(self) -> None:
        """Close the socket; a run that goes on does so unheard."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, timeout: float) -> bool:
        """Take in what has come; whether something came within `timeout` seconds."""
        try:
            try:
                read = self._socket.recv(CHUNK)
            except BlockingIOError:
                if not readable(self._socket, timeout):
                    return False
                read = self._socket.recv(CHUNK)
        except OSError as err:
            raise Disconnected(f"ComfyUI's socket broke: {err}") from err
        if not read:
            raise Disconnected("ComfyUI's socket broke: it was closed.")
        self._came += read
        return True

    def _next(self) -> tuple[int, bytes] | None:
        """Kind and content of the next message; None where it has not come as a whole."""
        while (frame := self._frame()) is not None:
            first, payload = frame
            kind = first & KIND
            if kind == CLOSE:
                raise Disconnected("ComfyUI closed the socket.")
            if kind == PING:
                self._answer(payload)
            if kind in (PING, PONG):  # which may come between the parts of a message
                continue
            if kind != CONTINUED:
                self._kind = kind
            self._parts.append(payload)
            if first & FINAL:
                whole, self._parts = b"".join(self._parts), []
                return self._kind, whole
        return None

    def _frame(self) -> tuple[int, bytes] | None:
        """First byte and content of the next frame; None where it has not come as a whole."""
        came = self._came
        while True:
            if self._to_skip:
                skipped = min(self._to_skip, len(came))
                del came[:skipped]
                self._to_skip -= skipped
            if len(came) < 2:  # noqa: PLR2004 - the shortest head
                return None
            first, length, start = came[0], came[1], 2
            if first & RESERVED or length & MASKED or first & KIND not in KINDS:
                raise Disconnected("ComfyUI's socket broke: what came is no frame.")
            if length >= LENGTH_OF_2:
                start = 4 if length == LENGTH_OF_2 else 10
                if len(came) < start:
                    return None
                length = int.from_bytes(came[2:start])
            if first == FINAL | TEXT and came.startswith(SKIPPED, start):
                self._to_skip = start + length
                continue
            end = start + length
            if len(came) < end:
                return None
            payload = bytes(came[start:end])
            del came[:end]
            return first, payload

    def _answer(self, ping: bytes) -> None:
        """Say that somebody is here, which aiohttp asks when a node pack has it do so."""
        pong = websocket.ABNF.create_frame(ping, PONG).format()
        try:
            self._socket.sendall(pong)
        except OSError as err:
            raise Disconnected(f"ComfyUI's socket broke: {err}") from err


def listen(place: str, client_id: str, headers: Mapping[str, str]) -> Messages:
    """The messages for a client, from now on. Raises: `Disconnected`."""
    try:
        plain = opened(place)
        try:
            # websocket-client 1 reads not one byte behind the handshake, and goes through the
            # environment's proxy where it is given no socket.
            websocket.create_connection(
                f"ws://{place}/ws?clientId={quote(client_id, safe='')}",
                timeout=CONNECT_TIMEOUT,
                socket=plain,
                header=dict(headers),
                suppress_origin=True,  # it is a browser's word for which page asks
            )
        except BaseException:
            plain.close()
            raise
    except (OSError, websocket.WebSocketException) as err:
        raise Disconnected(f"ComfyUI takes no socket: {err}") from err
    return Messages(plain, client_id)


def opened(place: str) -> socket.socket:
    """A new connection to `127.0.0.1:8188` or the like. Raises: `OSError`."""
    host, _, port = place.rpartition(":")
    connection = socket.create_connection((host, int(port)), CONNECT_TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def readable(connection: socket.socket, timeout: float) -> bool:
    """Whether there is something to read, or an end, within `timeout` seconds."""
    return _is_ready(connection, select.POLLIN, timeout)


def _is_ready(connection: socket.socket, event: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(timeout * 1000))


def parsed(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`. Raises: `MachineError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise MachineError(f"ComfyUI sent something that is no JSON: {text[:100]!r}") from err
    if not isinstance(value, dict):
        raise MachineError(f"ComfyUI sent something that is no JSON object: {text[:100]!r}")
    return value
