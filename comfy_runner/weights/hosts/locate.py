"""Where the bytes of an address are: its URL, and what its host says of the file beforehand."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from threading import Event
from typing import assert_never
from urllib.parse import quote, unquote, urlsplit

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.archives import promised
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.urls import clean_name, redacted, scheme
from comfy_runner.weights.hosts.addresses import (
    Address,
    CivitAI,
    Data,
    HuggingFace,
    Plain,
    Replicate,
    canonical,
    is_immutable,
    parse,
    shown,
)
from comfy_runner.weights.hosts.api import HostApi, Refusal, malformed
from comfy_runner.weights.hosts.civitai_files import choose_civitai_file
from comfy_runner.weights.hosts.hub_files import choose_hub_file
from comfy_runner.weights.hosts.kinds import is_file
from comfy_runner.weights.hosts.places import Extract, Hosts, Place
from comfy_runner.weights.weight import Source, map_legacy

__all__ = ["Hosts", "Place", "locate", "locate_source", "wrong_folder"]

TOGETHER = frozenset({"checkpoints", "diffusion_models", "text_encoders"})
"""Model folders that hosts do not keep apart."""
RELEASE = re.compile(
    r"https://github\.com/([^/?#]+)/([^/?#]+)/releases/(?:download/([^/?#]+)|latest/download)"
    r"/([^/?#]+)"
)


def locate(
    address: Address,
    *,
    hosts: Hosts,
    credentials: Mapping[str, str],
    cancelled: Event,
    patience: Patience,
    folder: str = "",
) -> Place:
    """Where the bytes are. Hosts are asked only for what the address itself leaves open.

    `credentials` maps a host's name to its bearer token. `folder` is the model folder that the
    file is wanted for; it may tell a LoRA from what stands beside it.

    Raises: `InvalidInput` where several files could be meant (`ambiguous_weight`) or none fits
    (`no_weight`), naming the addresses to choose from; `DownloadFailed`, and its kind
    `fetch.probe.Unreachable` where a host does not answer; `Cancelled`.
    """
    stated = _stated(address, hosts)
    known = {**credentials, **stated}
    if "github.com" in known:
        known.setdefault(_host(hosts.github_api), known["github.com"])
    api = HostApi(known, cancelled=cancelled, patience=patience)
    match address:
        case HuggingFace():
            place = (
                _hub_file(address, hosts) if address.path else _search(address, hosts, api, folder)
            )
        case CivitAI():
            place = _on_civitai(address, hosts, api)
        case Replicate():
            version = f"/versions/{address.version}" if address.version else ""
            url = f"{hosts.replicate}/{address.owner}/{address.model}{version}/_weights"
            place = _plain_place(address, url, extract="tar")
        case Plain():
            place = _release(address, hosts, api, known) or _plain_place(
                address, address.url, extract=promised(urlsplit(address.url).path)
            )
        case Data():
            place = _plain_place(address, address.url)
        case _:
            assert_never(address)
    return replace(place, credentials=stated)


def locate_source(
    source: Source,
    *,
    hosts: Hosts,
    credentials: Mapping[str, str],
    cancelled: Event,
    patience: Patience,
    environment: Mapping[str, str] | None = None,
    folder: str = "",
) -> Place:
    """Where the bytes of a manifest's source are; archives and hashes are as the source says.

    A `file:` URL and a relative path stay as they are written. `auth` `hf` and `civitai` need
    nothing more than `credentials`, which go to their own hosts alone. `environment` has the
    token for `bearer_env`, which goes to the source's own host.

    Raises: as `locate`, and `DownloadFailed` where `environment` lacks the token.
    """
    address = parse(source.url, hf_endpoint=hosts.hf) if _is_web(source.url) else None
    own: dict[str, str] = {}
    if source.auth == "bearer_env":
        token = (environment or {}).get(source.env, "")
        if not token:
            raise DownloadFailed(
                f"{redacted(source.url)} wants a token, and the environment variable {source.env}"
                " is not set. Set it, or take the source out of the manifest."
            )
        web = hosts.hf if isinstance(address, HuggingFace) else source.url
        own = {_host(hosts.civitai if isinstance(address, CivitAI) else web): token}
    if address is None:
        place = Place(
            url=source.url,
            shown=redacted(source.url),
            identity=redacted(source.url),
            name=_name_in(source.url),
        )
    else:
        place = locate(
            address,
            hosts=hosts,
            credentials={**credentials, **own},
            cancelled=cancelled,
            patience=patience,
            folder=folder,
        )
    return replace(
        place,
        extract=source.extract,
        member=source.member,
        strip=source.strip,
        size=source.size or place.size,
        sha256=source.sha256 or place.sha256,
        credentials={**place.credentials, **own},
    )


def wrong_folder(stated: str, asked: str) -> str:
    """A note that a host puts the file into another model folder; empty where all is well."""
    stated, asked = map_legacy(stated), map_legacy(asked)
    if not stated or not asked or stated == asked or {stated, asked} <= TOGETHER:
        return ""
    return f"Its host says that it belongs into the folder {stated}; it is used in {asked}."


def _is_web(url: str) -> bool:
    return scheme(url) not in ("", "file")


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _stated(address: Address, hosts: Hosts) -> dict[str, str]:
    """The token that stood in the address, for its host."""
    match address:
        case HuggingFace(token=token) if token:
            return {_host(hosts.hf): token}
        case CivitAI(token=token) if token:
            return {_host(hosts.civitai): token}
        case Replicate(token=token) if token:
            return {_host(hosts.replicate): token}
        case _:
            return {}


def _name_in(url: str) -> str:
    """The last part of a URL's path as a file name; empty where it looks like none.

    It might be `download.php`, and the answer then says what the file is called.
    """
    last = unquote(PurePosixPath(urlsplit(url).path).name)
    return clean_name(last) if is_file(last) else ""


def _plain_place(address: Address, url: str, *, extract: Extract = "") -> Place:
    return Place(
        url=url,
        shown=shown(address),
        identity=canonical(address),
        name=_name_in(url) if isinstance(address, Plain) else "",
        extract=extract,
        immutable=is_immutable(address),
    )


def _hub_file(address: HuggingFace, hosts: Hosts) -> Place:
    prefix = "" if address.kind == "models" else f"{address.kind}/"
    revision = quote(address.revision, safe="")
    return Place(
        url=f"{hosts.hf}/{prefix}{address.repo_id}/resolve/{revision}/{quote(address.path)}",
        shown=shown(address),
        identity=canonical(address),
        name=clean_name(address.path),
        extract=promised(address.path),
        folder=address.model_folder,
        immutable=is_immutable(address),
    )


def _search(address: HuggingFace, hosts: Hosts, api: HostApi, folder: str) -> Place:
    """The one weight of a repository, at the commit that the revision stands for now."""
    prefix = "" if address.kind == "models" else f"{address.kind}/"
    page = f"https://huggingface.co/{prefix}{address.repo_id}"
    url = (
        f"{hosts.hf}/api/{address.kind}/{address.repo_id}/revision/"
        f"{quote(address.revision, safe='')}?blobs=true"
    )
    refusal = Refusal(f"the repository {address.repo_id} on Hugging Face", "HF_TOKEN", page)
    answer = api.read(url, refusal)
    commit = answer.get("sha")
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
        malformed(url)
    found = choose_hub_file(answer, address, folder, url)
    pinned = replace(address, revision=commit, path=found.path)
    return replace(
        _hub_file(pinned, hosts),
        size=found.size,
        sha256=found.sha256,
        license=_license(answer),
        gated=answer.get("gated") not in (None, False),
    )


def _license(answer: Mapping[str, object]) -> str:
    match answer:
        case {"cardData": {"license": str(name)}}:
            return name
        case {"tags": list(tags)}:
            named = (tag for tag in tags if isinstance(tag, str) and tag.startswith("license:"))
            return next(named, "").removeprefix("license:")
        case _:
            return ""


def _on_civitai(address: CivitAI, hosts: Hosts, api: HostApi) -> Place:
    found = choose_civitai_file(address, hosts.civitai, api)
    pinned = replace(address, version_id=found.version_id, file_id=found.file_id)
    return Place(
        url=f"{hosts.civitai}{found.path}",
        shown=shown(pinned),
        identity=canonical(pinned),
        name=clean_name(found.name),
        sha256=found.sha256,
        extract=promised(found.name),
        folder=found.folder or address.model_folder,
        # Without a hash nobody would notice that the host takes the traits for another file's.
        immutable=found.sha256 is not None and is_immutable(pinned),
        gated=found.gated,
    )


def _release(
    address: Plain, hosts: Hosts, api: HostApi, credentials: Mapping[str, str]
) -> Place | None:
    """A file of a release on GitHub, where a token is known: a private one has no other way."""
    found = RELEASE.fullmatch(address.url.partition("?")[0].partition("#")[0])
    if found is None or _host(hosts.github_api) not in credentials:
        return None
    owner, repository, tag, name = found.groups()
    base = f"{hosts.github_api}/repos/{owner}/{repository}/releases"
    url = f"{base}/tags/{tag}" if tag else f"{base}/latest"
    subject = f"the release {tag or 'latest'} of {owner}/{repository} on GitHub"
    refusal = Refusal(subject, "GITHUB_TOKEN")
    match api.read(url, refusal):
        case {"assets": list(assets)}:
            pass
        case _:
            malformed(url)
    for asset in assets:
        match asset:
            case {"id": int(number), "name": str(called), "size": int(size)}:
                if called != unquote(name):
                    continue
            case _:
                malformed(url)
        digest = str(asset.get("digest")).removeprefix("sha256:")
        return replace(
            _plain_place(address, address.url, extract=promised(urlsplit(address.url).path)),
            url=api.resolve(f"{base}/assets/{number}", "application/octet-stream", refusal),
            size=size,
            sha256=digest if re.fullmatch("[0-9a-f]{64}", digest) else None,
        )
    raise DownloadFailed(f"{subject[0].upper()}{subject[1:]} has no file {unquote(name)!r}.")
