"""Connections kept alive, with requests of one round trip and bodies that fill a large buffer.

requests and urllib3 need about a millisecond of the interpreter for one request, and 16 threads
share one interpreter. Here they only make the connections, with their proxies and certificates;
a plain answer is read without them, and any other is left to `http.client`.
"""

import errno
import http.client
import io
import os
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from comfy_runner.errors import Cancelled
from comfy_runner.fetch.policy import OPEN, Policy
from comfy_runner.fetch.transport import AGENT, TICK, Flag, interruptible_session

MAX_HEAD = 64 * 1024
"""Longest head of an answer, in bytes, that is read here."""
MAX_REST = 16 * 1024
"""Most bytes of a body nobody wants that are read so that its connection can be used again."""
NO_BODY = frozenset({204, 304})
PLAIN_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
STATUS = re.compile(rb"HTTP/1\.(\d) ([2-9]\d\d)(?: [^\r\n]*)?")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Lines:
    """Connections to any hosts, kept alive. Threads may share them."""

    def __init__(
        self, cancelled: Flag, *, connect: float, stall: float, policy: Policy = OPEN
    ) -> None:
        """`connect` and `stall` are seconds, for connecting and for silence."""
        self._cancelled = cancelled
        self._connect = connect
        self._stall = stall
        self._policy = policy
        self._session = interruptible_session(cancelled, policy)
        self._origins: dict[tuple[str, str], _Origin] = {}
        self._making = threading.Lock()

    def get(self, url: str, headers: Mapping[str, str]) -> "Stream":
        """The answer to one request; a redirect is not followed.

        Raises: `Cancelled`, `Refused`, and what requests, urllib3, `http.client` and sockets raise;
        see `answers.BROKEN` and `answers.MALFORMED`.
        """
        if PLAIN_URL.fullmatch(url) is None or "/." in url:
            url = requests.Request("GET", url).prepare().url or url
        self._policy.check_url(url)
        parts = urlsplit(url)
        key = parts.scheme, parts.netloc
        if (origin := self._origins.get(key)) is None:
            with self._making:
                origin = self._origins[key] = self._origins.get(key) or self._origin(url)
        request = origin.request(url, headers)
        while origin.idle:
            # The server may have closed it while nobody looked; another thread may be faster.
            with suppress(IndexError, ConnectionError):
                return self._ask(url, origin, origin.idle.pop(), request)
        return self._ask(url, origin, self._line(origin), request)

    def close(self) -> None:
        """End all connections that nobody reads from."""
        for origin in self._origins.values():
            while origin.idle:
                origin.idle.pop().close()
        self._session.close()

    def _ask(self, url: str, origin: "_Origin", line: "_Line", request: bytes) -> "Stream":
        try:
            line.send(request)
            head, rest = line.head()
            return Stream(url, origin, line, head, rest)
        except BaseException:
            line.close()
            raise

    def _line(self, origin: "_Origin") -> "_Line":
        pool = origin.pool
        connection = pool._get_conn()  # noqa: SLF001
        connection.timeout = self._connect
        try:
            if pool.proxy is not None and origin.scheme == "https":
                pool._prepare_proxy(connection)  # noqa: SLF001
            else:
                connection.connect()
            return _Line(
                cast(urllib3.connection.HTTPConnection, connection), self._cancelled, self._stall
            )
        except BaseException:
            connection.close()
            raise

    def _origin(self, url: str) -> "_Origin":
        """The pool that requests would take, so that proxies and certificates are the same."""
        prepared = requests.Request("GET", url).prepare()
        settings = self._session.merge_environment_settings(prepared.url, {}, True, None, None)
        adapter = cast(HTTPAdapter, self._session.get_adapter(url))
        pool = adapter.get_connection_with_tls_context(
            prepared, settings["verify"], proxies=settings["proxies"], cert=settings["cert"]
        )
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2].removesuffix(DEFAULT_PORTS[parts.scheme])
        return _Origin(cast(urllib3.HTTPConnectionPool, pool), parts.scheme, host)


@dataclass(slots=True, eq=False)
class _Origin:
    """One scheme, host and port, with its idle connections."""

    pool: urllib3.HTTPConnectionPool
    scheme: str
    host: str
    idle: deque["_Line"] = field(default_factory=deque)

    def request(self, url: str, headers: Mapping[str, str]) -> bytes:
        target = url.partition("#")[0]
        sent = {"Host": self.host, **AGENT, **headers}
        if self.pool.proxy is not None and self.scheme == "http":
            sent.update(self.pool.proxy_headers)
        else:
            target = target.partition("://")[2]
            target = target[len(re.split(r"[/?]", target, maxsplit=1)[0]) :]
            target = target if target.startswith("/") else f"/{target}"
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {text}" for name, text in sent.items())]
        if any("\r" in line or "\n" in line for line in lines):
            raise requests.exceptions.InvalidHeader("a line break in a header")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Line:
    """One connection; every wait ends once the flag is set, or after so many seconds of silence."""

    def __init__(
        self, connection: urllib3.connection.HTTPConnection, cancelled: Flag, stall: float
    ) -> None:
        self._connection = connection
        self._cancelled = cancelled
        self._stall = stall
        found = connection.sock
        if found is None:
            raise AssertionError("A connection has a socket.")
        self.socket: socket.socket = found
        self._is_used = False
        self._poll = select.poll()
        self._poll.register(found, select.POLLIN)
        self._is_plain = not isinstance(found, ssl.SSLSocket) and isinstance(found, socket.socket)
        if self._is_plain:
            # The system itself ends each wait, so that one call can fill a whole buffer.
            found.settimeout(None)
            slice_ = struct.pack("ll", 0, int(TICK * 1_000_000))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, slice_)
        else:
            found.settimeout(TICK)

    def close(self) -> None:
        self._connection.close()

    def send(self, request: bytes) -> None:
        """Raises: `ConnectionError` where something came that nobody asked for."""
        if self._is_used and self._poll.poll(0):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._is_used = True
        self.socket.sendall(request)

    def receive(self, buffer: memoryview, *, fill: bool = False) -> int:
        """Read some bytes, rather a full buffer with `fill`; 0 at the end.

        Raises: `TimeoutError` after silence, `Cancelled`, `OSError`.
        """
        waiting_since = 0.0
        flags = socket.MSG_WAITALL if fill else 0
        while True:
            if self._cancelled.is_set():
                raise Cancelled("The download was cancelled.")
            try:
                if self._is_plain:
                    return socket.socket.recv_into(self.socket, buffer, 0, flags)
                if isinstance(self.socket, ssl.SSLSocket):
                    return cast(int, self.socket.read(len(buffer), buffer))
                return self.socket.recv_into(buffer)
            except (BlockingIOError, TimeoutError):
                now = time.monotonic()
            waiting_since = waiting_since or now - TICK
            if now - waiting_since >= self._stall:
                raise TimeoutError("timed out")

    def head(self) -> tuple[bytes, bytes]:
        """The head of an answer without the empty line at its end, and what came after that.

        Where the head is too long or cut short it is empty, and all that came is the rest.
        """
        came = b""
        buffer = memoryview(bytearray(MAX_REST))
        while len(came) < MAX_HEAD:
            count = self.receive(buffer)
            if not count and not came:
                raise http.client.RemoteDisconnected("the connection was closed without an answer")
            came += buffer[:count]
            head, end, rest = came.partition(b"\r\n\r\n")
            if end:
                return head, rest
            if not count:
                break
        return b"", came


class _Again(io.RawIOBase):
    """What a connection brings, after bytes of it that were read already."""

    def __init__(self, came: bytes, line: _Line) -> None:
        self._came = came
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        if not self._came:
            return self._line.receive(memoryview(buffer))
        count = min(len(self._came), len(buffer))
        buffer[:count] = self._came[:count]
        self._came = self._came[count:]
        return count

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self, MAX_HEAD)


class Stream:
    """An answer whose body is read in large steps, without a copy. `close` it at the end."""

    PATIENCE = 0.5
    """Seconds after which a step returns what has come so far."""

    def __init__(self, url: str, origin: _Origin, line: _Line, head: bytes, rest: bytes) -> None:
        self.url = url
        """What was asked."""
        self._origin = origin
        self._line: _Line | None = line
        self._rest = rest
        self._late: OSError | None = None
        self._odd: urllib3.HTTPResponse | None = None
        first, *lines = head.split(b"\r\n")
        status = STATUS.fullmatch(first)
        self.headers: Mapping[str, str] = _headers(lines)
        length = self.headers.get("Content-Length", "")
        self._left = int(length) if length.isdecimal() else 0
        """Bytes of the body that did not come yet, with those in `_rest`."""
        odd = any(line[:1] in (b" ", b"\t", b"") or b":" not in line for line in lines)
        odd = odd or "Transfer-Encoding" in self.headers or "Content-Encoding" in self.headers
        if odd or status is None or int(status[2]) in NO_BODY or not length.isdecimal():
            self._read_by_library(line, head + b"\r\n\r\n" + rest if head else rest)
            return
        self.status_code = int(status[2])
        told = self.headers.get("Connection", "").lower()
        self._is_kept = status[1] == b"1" and "close" not in told

    def _read_by_library(self, line: _Line, came: bytes) -> None:
        answer = http.client.HTTPResponse(cast(socket.socket, _Again(came, line)), method="GET")
        answer.begin()
        self.status_code = answer.status
        self._plain = answer
        self._odd = urllib3.HTTPResponse(
            body=answer,
            headers=urllib3.HTTPHeaderDict(answer.msg.items()),
            status=answer.status,
            preload_content=False,
            decode_content=False,
            original_response=answer,
        )
        self.headers = self._odd.headers
        self._is_kept = not answer.will_close
        self._rest, self._left = b"", 0

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer. Returns the bytes read; 0 at the end of the body, whole or not.

        Raises: `OSError`, `http.client.HTTPException` or urllib3's `HTTPError`, but only once
        every byte that came before has been returned; `Cancelled` at once.
        """
        if self._late is not None:
            raise self._late
        line = self._line
        if line is None:
            return 0
        if self._odd is not None:
            return self._read_oddly(self._odd, buffer)
        wanted = min(len(buffer), self._left)
        filled = min(len(self._rest), wanted)
        if filled:
            buffer[:filled] = self._rest[:filled]
            self._rest = self._rest[filled:]
        until = time.monotonic() + self.PATIENCE
        while filled < wanted:
            try:
                count = line.receive(buffer[filled:wanted], fill=True)
            except OSError as err:
                if not filled:
                    raise
                self._late = err
                break
            filled += count
            if not count or time.monotonic() > until:
                break
        self._left -= filled
        return filled

    def _read_oddly(self, answer: urllib3.HTTPResponse, buffer: memoryview) -> int:
        # A short step: what has been read of it is lost when the connection breaks.
        short = buffer[: 64 * 1024]
        if "Content-Encoding" not in self.headers:
            return self._plain.readinto(short)
        decoded = answer.read1(len(short), decode_content=True)
        buffer[: len(decoded)] = decoded
        return len(decoded)

    def close(self) -> None:
        """Keep the connection where next to nothing of the body is left, drop it otherwise."""
        line, self._line = self._line, None
        if line is None:
            return
        is_whole = self._plain.isclosed() if self._odd is not None else self._left == 0
        if not is_whole and self._odd is None and self._left <= MAX_REST and self._is_kept:
            self._line = line
            with suppress(OSError, Cancelled):
                self.read_into(memoryview(bytearray(MAX_REST)))
            self._line = None
            is_whole = self._left == 0
        if is_whole and self._is_kept and not self._rest:
            self._origin.idle.append(line)
        else:
            line.close()


def _headers(lines: list[bytes]) -> Mapping[str, str]:
    headers = CaseInsensitiveDict[str]()
    for line in lines:
        name, _, text = line.decode("latin-1").partition(":")
        text = text.strip()
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers
