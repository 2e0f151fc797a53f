"""HTTP sessions whose every wait can be interrupted within a tenth of a second."""

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from comfy_runner.errors import Cancelled

TICK = 0.1
"""Longest wait, in seconds, between two looks at `cancelled`."""


@contextmanager
def alarm(event: threading.Event, seconds: float) -> Iterator[None]:
    """Sets the event when the block has not ended after so many seconds."""
    timer = threading.Timer(max(seconds, 0.0), event.set)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def interruptible_session(cancelled: threading.Event) -> requests.Session:
    """A session whose reads can be interrupted: they wait in slices of `TICK`.

    A thread that is blocked in the operating system notices neither `cancelled` nor an exception
    that another thread sends it (so Cog cancels a prediction) until the server sends something.
    """

    class Sliced(socket.socket):
        def recv_into(self, *arguments: Any, **options: Any) -> int:
            limit = self.gettimeout()
            waited_since = time.monotonic()
            try:
                while True:
                    if cancelled.is_set():
                        raise Cancelled("The download was cancelled.")
                    self.settimeout(TICK if limit is None else min(TICK, limit))
                    try:
                        return super().recv_into(*arguments, **options)
                    except TimeoutError:
                        if limit is not None and time.monotonic() - waited_since >= limit:
                            raise
            finally:
                self.settimeout(limit)

    class SlicedTls(Sliced, ssl.SSLSocket):
        pass

    def sliced(plain: socket.socket) -> socket.socket:
        limit = plain.gettimeout()
        wrapped = Sliced(plain.family, plain.type, plain.proto, fileno=plain.detach())
        wrapped.settimeout(limit)
        return wrapped

    class HttpConnection(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return sliced(super()._new_conn())

    class HttpsConnection(urllib3.connection.HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return sliced(super()._new_conn())

    class HttpPool(urllib3.HTTPConnectionPool):
        ConnectionCls = HttpConnection

    class HttpsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = HttpsConnection

    context = urllib3.util.ssl_.create_urllib3_context()
    context.sslsocket_class = SlicedTls
    pools = {"http": HttpPool, "https": HttpsPool}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **options, ssl_context=context)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
            proxied = super().proxy_manager_for(proxy, **options, ssl_context=context)
            proxied.pool_classes_by_scheme = pools
            return proxied

    session = requests.Session()
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    # Without this a netrc file would override our own header, and follow redirects.
    session.auth = lambda request: request
    logging.getLogger("urllib3.connectionpool").addFilter(_without_query)
    return session


def _without_query(record: logging.LogRecord) -> bool:
    """A log filter that cuts the query strings, which may hold tokens, out of urllib3's lines."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            re.sub(r"\?\S*", "?...", part) if isinstance(part, str) else part
            for part in record.args
        )
    return True
