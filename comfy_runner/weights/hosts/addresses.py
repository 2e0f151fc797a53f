"""What people type for a weight, read into the place that is meant, and its identity."""

import hashlib
import re
from dataclasses import replace
from typing import assert_never
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit, urlunsplit

from comfy_runner.fetch.urls import is_signed, redacted, scheme
from comfy_runner.weights.hosts.kinds import (
    REPO_PART,
    REPOSITORY,
    VERSION,
    Address,
    CivitAI,
    Data,
    HuggingFace,
    Plain,
    Replicate,
    is_file,
)
from comfy_runner.weights.hosts.readers import (
    HOSTS,
    PREFIXES,
    check_printable,
    read_hub_text,
    read_hub_url,
    refuse,
)

__all__ = [
    "PREFIXES",
    "Address",
    "CivitAI",
    "Data",
    "HuggingFace",
    "Plain",
    "Replicate",
    "canonical",
    "is_immutable",
    "member_url",
    "parse",
    "shown",
]


def parse(text: str, *, bare_repositories: bool = False, hf_endpoint: str = "") -> Address | None:
    """The address in a text; None when it is an ordinary model name, such as `SDXL/x.safetensors`.

    `owner/repo`, without the ending of a file, is a repository on Hugging Face, so look first
    whether a file of that name is there. `owner/repo/path/x.safetensors` and `owner/repo@v1` look
    like model names and count only with `bare_repositories`. `hf_endpoint` is the URL of a mirror
    whose addresses mean Hugging Face too.

    Raises: `InvalidInput` (`bad_url`) for what is meant as an address and cannot be one.
    """
    text = text.strip()
    kind = scheme(text)
    if kind == "data":
        return Data(url=text)
    if kind == "file":
        refuse(text, "files of this machine have no address.", "Put it into the models folder.")
    if kind in ("http", "https"):
        return _parse_url(text, hf_endpoint)
    if kind in PREFIXES:
        check_printable(text)
        return PREFIXES[kind](text)
    if re.match(r"[\w-]+:[\w-]+:(civitai|huggingface):", text, re.IGNORECASE):
        check_printable(text)
        return PREFIXES["air"](f"air:{text}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        hint = "Give an https:// URL; S3 and Google Cloud can make a presigned one."
        refuse(text, "it is no web address.", hint)
    host, slash, _ = text.partition("/")
    if slash and host.lower() in HOSTS:
        return _parse_url(f"https://{text}", hf_endpoint)
    return _parse_bare(text, bare_repositories)


def canonical(address: Address) -> str:
    """What tells this address from others, without secrets and signatures: safe to keep.

    Every spelling of one place gives the same text, and two places never do. What lets the asker
    in is left out where `fetch.probe` takes the URL for signed, so that its host is always asked;
    what else may be secret is there as a hash. `parse` reads the text again, but for `Data`, where
    it is `sha256:` and the hash of the URL.
    """
    match address:
        case HuggingFace():
            prefix = "" if address.kind == "models" else f"{address.kind}/"
            verb, rest = ("resolve", address.path) if address.path else ("tree", address.directory)
            revision = quote(address.revision, safe="")
            path = f"{prefix}{address.repo_id}/{verb}/{revision}/{quote(rest)}".rstrip("/")
            form = f"?format={address.format}" if address.format and not address.path else ""
            return f"https://huggingface.co/{path}{form}"
        case CivitAI():
            chosen = _selectors(address)
            if address.file_id:
                chosen = {"fileId": str(address.file_id)}
            url = f"https://civitai.com/models/{address.model_id}"
            if address.version_id:
                url = f"https://civitai.com/api/download/models/{address.version_id}"
            return f"{url}?{urlencode(chosen, quote_via=quote)}" if chosen else url
        case Replicate():
            url = f"https://replicate.com/{address.owner}/{address.model}"
            return f"{url}/versions/{address.version}" if address.version else url
        case Plain():
            return _canonical_url(address.url)
        case Data():
            content = address.url.encode(errors="surrogatepass")
            return f"sha256:{hashlib.sha256(content).hexdigest()}"
        case _:
            assert_never(address)


def shown(address: Address) -> str:
    """The address as it may be shown: nothing in it is secret."""
    match address:
        case Plain() | Data():
            return redacted(address.url)
        case _:
            return canonical(address)


def is_immutable(address: Address) -> bool:
    """Whether the content behind the address can never change."""
    match address:
        case HuggingFace():
            return bool(address.path and re.fullmatch("[0-9a-f]{40}", address.revision))
        case CivitAI():
            return address.version_id is not None and address.file_id is not None
        case Data():
            return True
        case Replicate() | Plain():
            return False
        case _:
            assert_never(address)


def member_url(base: str, path: str, hf_endpoint: str) -> str:
    """The URL of one file of a folder, whose own is `base`: a repository, or where it begins.

    `base` may also be a `file:` URL or a relative path. Raises: as `parse`.
    """
    kind = scheme(base)
    if kind == "":
        return f"{base.rstrip('/')}/{path}"
    address = parse(base, hf_endpoint=hf_endpoint) if kind != "file" else None
    if isinstance(address, HuggingFace) and not address.path:
        inside = f"{address.directory}/{path}".lstrip("/")
        return canonical(replace(address, directory="", path=inside))
    parts = urlsplit(base)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(path)}").geturl()


AUTHORITY = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:@\[\]-]+")
SIGNING = ("x-amz-", "x-goog-", "x-xet-", "x-oss-", "x-cos-", "x-tos-", "q-", "response-")
"""How the names of a signature's parts begin: S3, Google, Xet, Alibaba, Tencent, Volcano."""
SECRETS = re.compile(
    "expires|key-pair-id|policy|googleaccessid|x-id|authorization|auth|jwt|hdne?a|hdntl|hdnts"
    "|pass|passwd|pwd|sid|session|sign|md5|hmac|rlkey"
)
SECRET_WORDS = re.compile(
    "token|secret|password|api[-_]?key|access[-_]?key|auth[-_]?key|resource[-_]?key|signature"
    "|credential"
)
DIGEST = re.compile("sha256-[0-9a-f]{32}")
AZURE = re.compile(
    "sig|s[eprtvsi]|spr|sip|srt|sdd|skoid|sktid|sk[test]|skv|saoid|suoid|scid|rsc[cdelt]"
)
"""Parts of an Azure signature: without `sig` they are ordinary words."""


def _parse_bare(text: str, bare_repositories: bool) -> Address | None:
    if found := re.fullmatch(f"({REPO_PART})/({REPO_PART}):({VERSION})", text):
        return Replicate(owner=found[1], model=found[2], version=found[3])
    parts = text.split("/")
    repository, at, _ = "/".join(parts[:2]).partition("@")
    if len(parts) == 1 or not REPOSITORY.fullmatch(repository) or not text.isprintable():
        return None
    whole = len(parts) == 2 and not at  # noqa: PLR2004 - owner and name
    if whole and not is_file(text):
        return HuggingFace(repo_id=text)
    return read_hub_text(text) if bare_repositories and not whole else None


def _parse_url(text: str, hf_endpoint: str) -> Address:
    check_printable(text)
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        refuse(text, "it is malformed.")
    if not host or not AUTHORITY.fullmatch(parts.netloc):
        refuse(text, "it names no host, or not in plain letters.")
    # The reserved characters of RFC 3986, and those that are allowed as they are.
    text = quote(text, safe="!#$%&'()*+,/:;=?@[]~")
    parts = urlsplit(text)
    endpoint = hf_endpoint.rstrip("/")
    if endpoint and text.startswith(f"{endpoint}/"):
        below = parts.path[len(urlsplit(endpoint).path) :]
        return read_hub_url(text, parts._replace(path=below))
    reader = HOSTS.get(host) if port in (None, 80, 443) else None
    if reader is None:
        return Plain(url=text)
    # They all speak https, and a token must not travel in the open.
    parts = parts._replace(scheme="https", netloc=parts.netloc.removesuffix(":80"))
    return reader(urlunsplit(parts), parts)


def _selectors(address: CivitAI) -> dict[str, str]:
    values = {
        "format": address.format,
        "fp": address.fp,
        "quantType": address.quant,
        "size": address.size,
        "type": address.type,
    }
    return {key: value.lower() for key, value in values.items() if value}


def _canonical_url(url: str) -> str:
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}.get(parts.scheme.lower())
    place = host if parts.port in (None, default) else f"{host}:{parts.port}"
    path = "/".join(
        quote(unquote_to_bytes(part), safe="!$&'()*+,;=:@~") for part in parts.path.split("/")
    )
    # Bytes that are no UTF-8 must survive, or two files could get one name.
    pairs = parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape")
    azure = any(name.lower() == "sig" for name, _ in pairs)
    signed = is_signed(url)
    kept = []
    for name, value in sorted(pairs, key=lambda pair: pair[0]):
        low = name.lower()
        if low == "download" and value.lower() in ("", "0", "1", "false", "true"):
            continue
        if _is_secret(low, value) or (azure and AZURE.fullmatch(low)):
            if not value or (signed and low != "key"):
                continue
            # It may name the file, or open it where nobody asks the host whether it does.
            value = _digest(value)  # noqa: PLW2901
        kept.append((name, value))
    query = urlencode(kept, quote_via=quote, errors="surrogateescape")
    return urlunsplit((parts.scheme.lower(), place, path or "/", query, ""))


def _digest(value: str) -> str:
    """A text in place of a secret, which tells it from others; it stands for itself."""
    if DIGEST.fullmatch(value):
        return value
    return f"sha256-{hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()[:32]}"


def _is_secret(name: str, value: str) -> bool:
    if name == "key":
        # A path is the key of an object; anything else may be that, or open a door.
        return not ("/" in value or is_file(value))
    return bool(name.startswith(SIGNING) or SECRETS.fullmatch(name) or SECRET_WORDS.search(name))
