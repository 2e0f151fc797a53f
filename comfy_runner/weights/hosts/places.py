"""The hosts of weights, and what is known of one file at one of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit

from comfy_runner.config import Config

Extract = Literal["", "tar", "zip"]
SAME_HOST: Mapping[str, Collection[str]] = {
    "huggingface.co": ("hf.co",),
    "civitai.com": ("civitai.red", "civitai.green"),
}
"""Other names of hosts: their tokens are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """URLs of the hosts, without a slash at the end; another one is a mirror."""

    hf: str = "https://huggingface.co"
    civitai: str = "https://civitai.com"
    replicate: str = "https://replicate.com"
    github_api: str = "https://api.github.com"

    @classmethod
    def of(cls, config: Config) -> Self:
        """The hosts that the settings name."""
        return cls(
            hf=config.hf_endpoint,
            civitai=config.civitai_endpoint,
            replicate=config.replicate_endpoint,
        )

    def tokens(self, credentials: Mapping[str, str]) -> dict[str, str]:
        """Host to token, also for a host's other names and for the mirror in its place."""
        known = dict(credentials)
        for host, mirror in (("huggingface.co", self.hf), ("civitai.com", self.civitai)):
            if token := credentials.get(host):
                for other in (*SAME_HOST[host], urlsplit(mirror).hostname or host):
                    known.setdefault(other, token)
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the bytes of one address are."""

    url: str = field(repr=False)
    """What to open; it may hold secrets."""
    shown: str
    """The address as it may be shown."""
    identity: str
    """The address without secrets: the same for all its spellings."""
    name: str = ""
    """File name that the host states; safe as one part of a path, and empty where none is known."""
    size: int | None = None
    """Bytes that the URL leads to, where they are known exactly."""
    sha256: str | None = None
    """Hash of what the URL leads to, where it is known."""
    extract: Extract = ""
    """Kind of archive that the URL leads to; empty for the file itself."""
    member: str = ""
    """Path of the file inside the archive; empty where it must be found."""
    strip: int = 0
    """Leading path parts to drop from the archive's members."""
    folder: str = ""
    """Model folder that the host says it belongs into; empty where it says nothing."""
    immutable: bool = False
    """Whether this identity can never get another content."""
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Host to token, besides those that every request may use."""
    license: str = ""
    """As the host names it, such as `apache-2.0`."""
    gated: bool = False
    """Whether the host says that it wants a login, a licence or a payment first."""
