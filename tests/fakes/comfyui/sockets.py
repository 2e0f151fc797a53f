"""A WebSocket server whose every byte the test decides."""

import base64
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HANDSHAKE_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

TEXT, BINARY, CLOSE = 1, 2, 8


def frame(kind: int, payload: bytes) -> bytes:
    """One final, unmasked frame."""
    if len(payload) < 126:
        return bytes([0x80 | kind, len(payload)]) + payload
    return bytes([0x80 | kind, 126]) + struct.pack("!H", len(payload)) + payload


@contextmanager
def socket_server(script: Callable[[socket.socket], None]) -> Iterator[str]:
    """Base URL of a server that takes one connection and calls `script` with it once it is open.

    The connection is closed when `script` returns.
    """

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += connection.recv(4096)
            headers = dict(
                line.lower().split(b": ", 1)
                for line in request.split(b"\r\n")
                if line.lower().startswith(b"sec-websocket-key")
            )
            assert headers
            key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
            accept = base64.b64encode(hashlib.sha1(key + HANDSHAKE_KEY).digest())  # noqa: S324
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            script(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(15)
