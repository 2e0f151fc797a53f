"""HTTP whose every wait can be interrupted within a tenth of a second."""

import errno
import logging
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import requests
import urllib3
from requests.adapters import HTTPAdapter

from comfy_runner.errors import Cancelled
from comfy_runner.fetch.policy import OPEN, Policy

TICK = 0.1
"""Longest wait, in seconds, between two looks at `cancelled`."""
AGENT: Mapping[str, str] = {"Accept-Encoding": "identity", "User-Agent": "comfy-runner"}
"""Headers of every request for a file: its size and its ranges are those of the plain bytes."""


class Flag(Protocol):
    """What is looked at between two slices of waiting, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether to stop waiting."""


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


def interruptible_session(cancelled: Flag, policy: Policy = OPEN) -> requests.Session:
    """A session whose connecting and reading can be interrupted: they wait in slices of `TICK`.

    A thread that is blocked in the operating system notices neither `cancelled` nor an exception
    that another thread sends it (so Cog cancels a prediction) until the server sends something.
    Only the look-up of a host's name cannot be interrupted. `policy` says where it may lead: it is
    asked for each URL, and again for the address that a connection is made to, so that a name
    cannot mean one thing first and another then. Behind a proxy only URLs are judged.
    """

    class Sliced(socket.socket):
        def connect(self, address: Any) -> None:
            limit = self.gettimeout()
            began = time.monotonic()
            self.setblocking(False)
            code = self.connect_ex(address)
            poll = select.poll()
            poll.register(self, select.POLLOUT)
            while code == errno.EINPROGRESS:
                if cancelled.is_set():
                    raise Cancelled("The download was cancelled.")
                if limit is not None and time.monotonic() - began >= limit:
                    raise TimeoutError("timed out")
                if poll.poll(TICK * 1000):
                    code = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            self.settimeout(limit)

        def recv_into(self, *arguments: Any, **options: Any) -> int:
            return self.sliced(lambda: super(Sliced, self).recv_into(*arguments, **options))

        def sliced[T](self, call: Callable[[], T]) -> T:
            limit = self.gettimeout()
            waited_since = time.monotonic()
            try:
                while True:
                    if cancelled.is_set():
                        raise Cancelled("The download was cancelled.")
                    self.settimeout(TICK if limit is None else min(TICK, limit))
                    try:
                        return call()
                    except TimeoutError:
                        if limit is not None and time.monotonic() - waited_since >= limit:
                            raise
            finally:
                self.settimeout(limit)

    class SlicedTls(Sliced, ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            try:
                self.sliced(lambda: super(SlicedTls, self).do_handshake(block))
            except Cancelled:
                self.close()  # which ssl does after errors that it knows
                raise

    def connected(connection: urllib3.connection.HTTPConnection) -> socket.socket:
        """As urllib3 2's `create_connection`, with sockets of ours and its own errors."""
        timeout = connection.timeout if isinstance(connection.timeout, int | float) else None
        failure = OSError("the host has no address")
        try:
            places = socket.getaddrinfo(
                connection.host.strip("[]"), connection.port, type=socket.SOCK_STREAM
            )
        except (socket.gaierror, UnicodeError) as err:
            gone = err if isinstance(err, socket.gaierror) else socket.gaierror(str(err))
            raise urllib3.exceptions.NameResolutionError(connection.host, connection, gone) from err
        for family, kind, protocol, _, address in places:
            if connection.proxy is None:
                policy.check_address(
                    connection.host.strip("[]"), connection.port or 0, str(address[0])
                )
            plain = Sliced(family, kind, protocol)
            try:
                for option in connection.socket_options or ():
                    plain.setsockopt(*option)
                plain.settimeout(timeout)
                plain.connect(address)
            except OSError as err:
                plain.close()
                failure = err
            except BaseException:
                plain.close()
                raise
            else:
                return plain
        if isinstance(failure, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(connection, "timed out") from failure
        raise urllib3.exceptions.NewConnectionError(connection, str(failure)) from failure

    class HttpConnection(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connected(self)

    class HttpsConnection(urllib3.connection.HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connected(self)

    class HttpPool(urllib3.HTTPConnectionPool):
        ConnectionCls = HttpConnection

    class HttpsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = HttpsConnection

    pools = {"http": HttpPool, "https": HttpsPool}

    class Adapter(HTTPAdapter):
        def __init__(self, **tls: Any) -> None:
            self.tls = tls
            super().__init__()

        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
            policy.check_url(request.url)
            return super().send(request, *arguments, **options)

        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **(options | self.tls))
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
            proxied = super().proxy_manager_for(proxy, **(options | self.tls))
            proxied.pool_classes_by_scheme = pools
            return proxied

    class Session(requests.Session):
        def get_adapter(self, url: str) -> Any:
            # A context takes longer to make than a whole request to this machine.
            if url[:6].lower() == "https:" and not isinstance(self.adapters["https://"], Adapter):
                context = urllib3.util.ssl_.create_urllib3_context()
                context.sslsocket_class = SlicedTls
                self.mount("https://", Adapter(ssl_context=context))
            return super().get_adapter(url)

    session = Session()
    session.mount("http://", Adapter())
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
