"""What the hosts state of the files that a manifest's sources lead to: sizes, hashes, listings."""

import hashlib
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.download import Patience, fetch
from comfy_runner.fetch.probe import probe
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.weights.hosts import addresses
from comfy_runner.weights.hosts.api import HostApi, Refusal, malformed
from comfy_runner.weights.hosts.locate import locate_source
from comfy_runner.weights.hosts.places import Hosts, Place
from comfy_runner.weights.manifests.schema import HASH, RELATIVE
from comfy_runner.weights.weight import Member, Source


@dataclass(frozen=True, slots=True)
class Stated:
    """What is known of the file that a source leads to; None where nobody says it."""

    size: int | None = None
    """Bytes."""
    sha256: str | None = None
    """64 hexadecimal digits."""


class HostLook:
    """Asks the hosts themselves: by their APIs, a small request for the file, or all of it."""

    def __init__(
        self,
        base: Path,
        *,
        hosts: Hosts,
        credentials: Mapping[str, str],
        environment: Mapping[str, str],
        cancelled: threading.Event,
        patience: Patience | None = None,
        scratch: Path | None = None,
    ) -> None:
        """`base` is the folder that relative paths start at, `environment` has the tokens of
        `bearer_env`. With the folder `scratch` a file whose hash nobody states is fetched there,
        hashed and removed.
        """
        self._base = base
        self._scratch = scratch
        self._environment = environment
        self._hosts = hosts
        self._credentials = credentials
        self._cancelled = cancelled
        self._patience = patience or Patience()

    def __call__(self, source: Source) -> Stated:
        """What the source leads to.

        Raises: `DownloadFailed`, `InvalidInput`, `Cancelled`.
        """
        place = self._locate(replace(source, size=None, sha256=None))
        credentials = {**self._credentials, **place.credentials}
        match scheme(place.url):
            case "" | "file":
                return _hashed(place.url, self._base)
            case "data":
                return self._fetched(place.url, credentials)
        remote = probe(
            place.url, credentials=credentials, cancelled=self._cancelled, patience=self._patience
        )
        stated = Stated(place.size or remote.size, place.sha256 or remote.sha256)
        if stated.sha256 is None and self._scratch is not None:
            return self._fetched(place.url, credentials)
        return stated

    def files(self, source: Source) -> tuple[Member, ...]:
        """The files of a repository on Hugging Face, but for its cards and dot files.

        Raises: `DownloadFailed`, `InvalidInput`, `Cancelled`.
        """
        address = addresses.parse(source.url, hf_endpoint=self._hosts.hf)
        if not isinstance(address, addresses.HuggingFace) or address.path:
            raise DownloadFailed(
                f"{redacted(source.url)} does not list its files. Write their paths into `files`."
            )
        api = HostApi(self._credentials, cancelled=self._cancelled, patience=self._patience)
        revision = quote(address.revision, safe="")
        url = (
            f"{self._hosts.hf}/api/{address.kind}/{address.repo_id}/revision/{revision}?blobs=true"
        )
        page = f"https://huggingface.co/{address.repo_id}"
        answer = api.read(url, Refusal(f"the repository {address.repo_id}", "HF_TOKEN", page))
        siblings = answer.get("siblings")
        found = [_sibling(entry) for entry in siblings] if isinstance(siblings, list) else [None]
        base = f"{address.directory}/" if address.directory else ""
        members: list[Member] = []
        for member in found:
            if member is None:
                malformed(url)
            name = PurePosixPath(member.path).name
            if member.path.startswith(base) and not name.startswith(".") and name != "README.md":
                members.append(replace(member, path=member.path[len(base) :]))
        return tuple(members)

    def _locate(self, source: Source) -> Place:
        return locate_source(
            source,
            hosts=self._hosts,
            credentials=self._credentials,
            cancelled=self._cancelled,
            patience=self._patience,
            environment=self._environment,
        )

    def _fetched(self, url: str, credentials: Mapping[str, str]) -> Stated:
        with tempfile.TemporaryDirectory(prefix="lock-", dir=self._scratch) as folder:
            fetched = fetch(
                url,
                Path(folder, "file"),
                credentials=credentials,
                cancelled=self._cancelled,
                patience=self._patience,
            )
        return Stated(fetched.size, fetched.sha256)


def _sibling(entry: object) -> Member | None:
    """A file as Hugging Face lists it; None for what is none."""
    match entry:
        case {"rfilename": str(path), **rest} if RELATIVE.fullmatch(path):
            pass
        case _:
            return None
    match rest:
        case {"size": int(size), "lfs": {"sha256": str(sha256)}} if HASH.fullmatch(sha256):
            return Member(path, size, sha256)
        case {"size": int(size)}:
            return Member(path, size)
        case _:
            return Member(path)


def _hashed(url: str, base: Path) -> Stated:
    """Size and hash of a file on this machine. Raises: `DownloadFailed`."""
    path = Path(unquote(urlsplit(url).path)) if scheme(url) == "file" else base / url
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return Stated(os.fstat(file.fileno()).st_size, sha256)
    except OSError as err:
        raise DownloadFailed(f"{redacted(url)} cannot be read: {err.strerror}.") from err
