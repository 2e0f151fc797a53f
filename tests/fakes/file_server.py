"""A small real HTTP server for tests, which misbehaves exactly as each file it serves says."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """One path of the server and how it is answered."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: bool = True
    """Whether Content-Length is sent; without it the end of the connection ends the body."""
    chunked: bool = False
    ranges: bool = False
    """Whether Range is honoured, and Accept-Ranges sent."""
    etag: str = ""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each request's connection is closed, one request after the other."""
    always_cut: int | None = None
    """The same for all further requests."""
    failures: list["Served"] = field(default_factory=list)
    """Answers to the first requests."""
    changes_to: bytes | None = None
    """Body after the first request; its ETag is then another."""
    changes_after: int = 0
    """Requests before that first one."""
    short: int | None = None
    """Most bytes that a range is answered with."""
    deaf_after: int | None = None
    """Requests after which Range is not honoured any more."""
    shifted: int = 0
    """How many bytes too late each range begins."""
    pace: float = 0.0
    """Seconds between two pieces of 64 KiB."""
    keep_alive: bool = False
    """Whether the connection stays open for another request."""
    hold_after: int | None = None
    """Bytes after which nothing more is sent until `release`."""


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    path: str
    headers: Mapping[str, str]


class FileServer:
    """Serves `files` at `url` on 127.0.0.1; what was asked stands in `asked`."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        self.connections = 0
        self.blocks: list[int] = []
        """Bytes of what was sent of bodies, with those that the client never read."""
        self.holding = threading.Event()
        """Set once a request is held."""
        self.release = threading.Event()
        """Set it to let held requests go on."""
        handler = type("Handler", (_Handler,), {"files": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]

    @property
    def sent(self) -> int:
        """Bytes of all bodies so far."""
        return sum(self.blocks)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def serve(self, path: str, body: bytes = b"", **how: Any) -> str:
        """Answer the path so. Returns its URL."""
        self.files[path] = Served(body, **how)
        return self.url(path)


class _Handler(BaseHTTPRequestHandler):
    files: FileServer

    def setup(self) -> None:
        super().setup()
        self.files.connections += 1

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.files.asked.append(Asked(self.path.lstrip("/"), dict(self.headers.items())))
        served = self.files.files.get(path, Served(b"none", status=404))
        self.close_connection = True
        # Some tests want the client to go away.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.answer(served.failures.pop(0) if served.failures else served)

    def answer(self, served: Served) -> None:
        body, status = served.body, served.status
        kind = {"Content-Type": "application/octet-stream"}
        if not served.keep_alive:
            kind["Connection"] = "close"
        self.close_connection = not served.keep_alive
        headers = {**kind, **served.headers}
        if served.etag:
            headers["ETag"] = served.etag
        if served.ranges:
            headers["Accept-Ranges"] = "bytes"
            asked = self.headers.get("Range", "")
            if served.deaf_after is not None:
                asked = asked if served.deaf_after else ""
                served.deaf_after = max(served.deaf_after - 1, 0)
            if asked and self.headers.get("If-Range") in (None, served.etag):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first) + served.shifted, min(int(last or len(body)), len(body) - 1)
                end = end if served.short is None else min(end, start + served.short - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                body, status = body[start : end + 1], 206
        if served.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif served.length:
            headers.setdefault("Content-Length", str(len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        stop = served.cuts.pop(0) if served.cuts else served.always_cut
        if served.changes_to is not None and served.changes_after:
            served.changes_after -= 1
        elif served.changes_to is not None:
            served.body, served.changes_to, served.etag = served.changes_to, None, '"changed"'
        self.send(served, body if stop is None else body[:stop], whole=stop is None)

    def send(self, served: Served, body: bytes, *, whole: bool) -> None:
        if served.hold_after is not None:
            self.wfile.write(body[: served.hold_after])
            self.wfile.flush()
            self.files.holding.set()
            self.files.release.wait(30)
            body = body[served.hold_after :]
        if not served.chunked:
            step = 64 * 1024 if served.pace else max(len(body), 1)
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.files.blocks.append(len(body[start : start + step]))
                if served.pace:
                    self.files.release.wait(served.pace)
            self.close_connection |= not whole
            return
        for start in range(0, len(body), 1000):
            piece = body[start : start + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if whole:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass

    protocol_version = "HTTP/1.1"


@contextmanager
def running() -> Iterator[FileServer]:
    """A server that listens until the end of the block."""
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join(10)
