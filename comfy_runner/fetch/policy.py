"""Where a stranger's URL may lead: judged before anything is asked, and at each connection made."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self
from urllib.parse import urlsplit

from comfy_runner.config import Config
from comfy_runner.errors import Problem, Refused
from comfy_runner.fetch.urls import redacted, scheme

WEB_PORTS = frozenset({80, 443})
"""Ports below 1024 that serve the web; on others there are services that are no web servers."""
UNPRIVILEGED = 1024

EMBEDDING = {
    ipaddress.ip_network("64:ff9b::/96"): 0,
    ipaddress.ip_network("::ffff:0:0:0/96"): 0,
    ipaddress.ip_network("2002::/16"): 80,
    ipaddress.ip_network("::/96"): 0,
}
"""IPv6 networks whose addresses hold an IPv4 one, and how many bits stand after it: RFC 6052,
RFC 2765, RFC 3056, RFC 4291."""
NEVER = tuple(
    ipaddress.ip_network(text)
    for text in ("100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "fec0::/10", "64:ff9b:1::/48")
)
"""Networks behind a provider, of machines and of tests, whatever Python's tables say."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a URL may lead to."""

    private: bool = True
    """Whether addresses of this machine and of private networks may be connected to."""
    hosts: tuple[str, ...] = ()
    """Patterns of the only hosts that may be asked, such as `*.hf.co`; empty for all."""
    trusted: frozenset[tuple[str, int]] = frozenset()
    """Host and port of the mirrors that the settings name, wherever they are."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """What the settings allow the URLs of a request."""
        if config.private_addresses and not config.allowed_hosts:
            return cls()
        mirrors = {
            config.hf_endpoint: Config.hf_endpoint,
            config.civitai_endpoint: Config.civitai_endpoint,
            config.replicate_endpoint: Config.replicate_endpoint,
        }
        own = [mirror for mirror, default in mirrors.items() if mirror != default]
        return cls(
            private=config.private_addresses,
            hosts=config.allowed_hosts,
            trusted=frozenset(_place(mirror) for mirror in own),
        )

    def check_url(self, url: str) -> None:
        """Raises: `Refused` for a URL that must not be asked, whatever its name means."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            return  # whoever asks for it says what is wrong with it
        if scheme(url) not in ("http", "https") or _place(url) in self.trusted:
            return
        if self.hosts and not any(fnmatchcase(host, pattern) for pattern in self.hosts):
            listed = ", ".join(self.hosts)
            raise _refused(url, f"its host is not among those that may be asked ({listed}).", HOSTS)
        if not self.private and port is not None and port < UNPRIVILEGED and port not in WEB_PORTS:
            raise _refused(url, f"port {port} is no port of the web.", PRIVATE)
        if not self.private and _is_private_name(host):
            raise _refused(url, "it leads to this machine or a private network.", PRIVATE)

    def check_address(self, host: str, port: int, address: str) -> None:
        """Raises: `Refused` for an IP address that this host's name must not mean."""
        if self.private or (host.rstrip("."), port) in self.trusted or is_public(address):
            return
        raise _refused(
            f"http://[{host}]/" if ":" in host else f"http://{host}/",
            "its host is this machine or stands in a private network.",
            PRIVATE,
        )


OPEN = Policy()
"""Everything may be asked: for URLs of the one who runs the machine."""
PRIVATE = "Use a public address; the one who runs this can set COMFY_RUNNER_PRIVATE_ADDRESSES=1."
HOSTS = "Use one of them, or have COMFY_RUNNER_ALLOWED_HOSTS changed."


def _place(url: str) -> tuple[str, int]:
    """The host and port of an http or https URL."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    return (parts.hostname or "").rstrip("."), port


def is_public(address: str) -> bool:
    """Whether an IP address can be one of the public Internet; `%eth0` after it does not count."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        for network, behind in EMBEDDING.items():
            if found in network:
                return is_public(str(ipaddress.IPv4Address(int(found) >> behind & 0xFFFFFFFF)))
        if found.teredo is not None:
            return False
    if any(found in network for network in NEVER if network.version == found.version):
        return False
    return found.is_global and not found.is_multicast


def _is_private_name(host: str) -> bool:
    """Whether a host's name alone says that it is none of the public Internet."""
    if ":" in host:
        return not is_public(host)
    if re.fullmatch(r"[0-9a-fx.]*[0-9][0-9a-fx.]*", host):
        # As systems read numbers: 127.1, 2852039166, 0x7f000001, 0177.0.0.1.
        try:
            return not is_public(str(ipaddress.IPv4Address(socket.inet_aton(host))))
        except OSError:
            return False
    return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))


def _refused(url: str, why: str, hint: str) -> Refused:
    return Refused([Problem("refused_url", f"{redacted(url)} is not asked: {why}", hint)])
