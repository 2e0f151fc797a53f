"""A small Hugging Face for tests: one model repository, its storage host and its Xet store."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from tests.fakes.file_server import Asked

REPO = "owner/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 64 * 1024
"""Bytes of each chunk of the Xet store."""


@dataclass
class Kept:
    """One file of the repository."""

    body: bytes
    xet: bool = False
    said_size: int | None = None
    """The size that is told, where it is not the true one."""


@dataclass
class HubServer:
    """Answers at `url` as the Hub does, at `localhost` as its storage; `asked` is what came in."""

    files: dict[str, Kept] = field(default_factory=dict)
    token: str = ""
    """What the repository wants; empty for a public one."""
    store_url: str = ""
    """Where the Xet store is said to be; here by default."""
    asked: list[Asked] = field(default_factory=list)
    holding: threading.Event = field(default_factory=threading.Event)
    """Set once somebody waits for bytes of the Xet store while `held`."""
    release: threading.Event = field(default_factory=threading.Event)
    """Set it to let them go on."""
    held: bool = False
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """The same server under another name: no token must come here."""
        return f"http://localhost:{self.port}"

    def resolve(self, path: str, revision: str = "main") -> str:
        """The URL of a file."""
        return f"{self.url}/{REPO}/resolve/{revision}/{quote(path)}"

    def keep(self, path: str, body: bytes, **how: object) -> str:
        """Put a file into the repository. Returns its URL."""
        self.files[path] = Kept(body, **how)  # type: ignore[arg-type]
        return self.resolve(path)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append(Asked(self.path, dict(self.headers.items())))
        routes = {
            rf"/{REPO}/resolve/(main|{COMMIT})/(.+)": self.resolve,
            rf"/api/models/{REPO}/xet-read-token/{COMMIT}()(.*)": self.give_access,
            r"/storage()/(.+)": self.send_stored,
            r"/store/v(\d)/reconstructions/(\w+)": self.tell_chunks,
            r"/xorb()/(.+)": self.send_chunks,
        }
        for pattern, route in routes.items():
            if found := re.fullmatch(pattern, unquote(self.path)):
                route(found[1], found[2])
                return
        self.send(404)

    def resolve(self, _: str, path: str) -> None:
        if not self.admitted():
            return
        if path not in self.hub.files:
            self.send(404, {"X-Error-Code": "EntryNotFound"})
            return
        kept = self.hub.files[path]
        sha256 = hashlib.sha256(kept.body).hexdigest()
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(kept.said_size or len(kept.body)),
            "X-Linked-Etag": f'"{sha256}"',
            "Location": f"{self.hub.storage}/storage/{quote(path)}",
        }
        if kept.xet:
            route = f"{self.hub.url}/api/models/{REPO}/xet-read-token/{COMMIT}"
            headers |= {"X-Xet-Hash": sha256, "Link": f'<{route}>; rel="xet-auth"'}
        self.send(302, headers)

    def admitted(self) -> bool:
        if self.hub.token in ("", self.headers.get("Authorization", "").removeprefix("Bearer ")):
            return True
        self.send(401, {"X-Error-Code": "GatedRepo"})
        return False

    def give_access(self, *_: str) -> None:
        if self.admitted():
            headers = {
                "X-Xet-Cas-Url": self.hub.store_url or f"{self.hub.storage}/store",
                "X-Xet-Access-Token": "access",
                "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
            }
            self.send(200, headers, b"{}")

    def send_stored(self, _: str, path: str) -> None:
        self.send(200, {}, self.hub.files[path].body)

    def tell_chunks(self, version: str, digest: str) -> None:
        """Answer as xet-core's specification of the download protocol says."""
        kept = self.named(digest)
        if kept is None or version != "1":
            self.send(404)
            return
        start, end = self.asked_range(len(kept.body))
        first, last = start // CHUNK, -(-end // CHUNK)
        begin, stop = packed(kept.body, 0, first), packed(kept.body, 0, last)
        span = {"start": first, "end": last}
        term = {"hash": digest, "range": span}
        term["unpacked_length"] = min(last * CHUNK, len(kept.body)) - first * CHUNK
        fetch = {"range": span, "url": f"{self.hub.storage}/xorb/{digest}"}
        fetch["url_range"] = {"start": len(begin), "end": len(stop) - 1}
        answer = {
            "offset_into_first_range": start - first * CHUNK,
            "terms": [term],
            "fetch_info": {digest: [fetch]},
        }
        self.send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def send_chunks(self, _: str, digest: str) -> None:
        kept = self.named(digest)
        if kept is None:
            self.send(404)
            return
        if self.hub.held:
            self.hub.holding.set()
            self.hub.release.wait(30)
        body = packed(kept.body, 0, -(-len(kept.body) // CHUNK))
        start, end = self.asked_range(len(body))
        self.send(206, {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}, body[start:end])

    def named(self, digest: str) -> Kept | None:
        for kept in self.hub.files.values():
            if hashlib.sha256(kept.body).hexdigest() == digest:
                return kept
        return None

    def asked_range(self, length: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            return 0, length
        return int(found[1]), min(int(found[2] or length) + 1, length)

    def send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def packed(body: bytes, first: int, last: int) -> bytes:
    """Chunks as a xorb holds them: version, packed length, scheme 0 (as it is), length, bytes."""
    pieces = []
    for number in range(first, last):
        piece = body[number * CHUNK : (number + 1) * CHUNK]
        length = len(piece).to_bytes(3, "little")
        pieces.append(b"\0" + length + b"\0" + length + piece)
    return b"".join(pieces)


@contextmanager
def running() -> Iterator[HubServer]:
    """A hub that listens until the end of the block."""
    hub = HubServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    http.daemon_threads = True
    hub.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        http.shutdown()
        http.server_close()
        thread.join(10)
