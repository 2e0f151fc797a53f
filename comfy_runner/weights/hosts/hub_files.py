"""The one weight that is meant among the files of a repository on Hugging Face."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.weights.hosts.addresses import HuggingFace
from comfy_runner.weights.hosts.api import malformed
from comfy_runner.weights.manifest import human_size

LISTED = 20
"""How many candidates an error lists."""
ENDINGS = (
    frozenset({".safetensors", ".sft"}),
    frozenset({".gguf"}),
    frozenset({".ckpt", ".pt", ".pt2", ".pth", ".bin"}),
)
"""Endings of weights; one of an earlier group is taken before those of a later one."""
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
LEFTOVER = re.compile(r"(optimizer|scheduler|random_states.*|training_args|scaler|rng_state.*)\.")
"""What trainers leave beside the weights, by the beginning of its name."""
LORA_NAMES = ("pytorch_lora_weights.safetensors", "lora.safetensors")
"""What trainers call the final LoRA, whatever steps towards it stand beside it."""
HASH = re.compile("[0-9A-Fa-f]{64}")


@dataclass(frozen=True, slots=True)
class HubEntry:
    """A file that a repository lists."""

    path: str
    size: int | None
    sha256: str | None


def choose_hub_file(
    answer: Mapping[str, Any], address: HuggingFace, folder: str, url: str
) -> HubEntry:
    """The only sensible weight in the place that the address names.

    `answer` is that of `/api/models/REPO/revision/REV?blobs=true` at `url`: `{"siblings":
    [{"rfilename", "size", "lfs": {"sha256", "size"}}]}`. Files beside each other come before
    those in folders below them.

    Raises: `InvalidInput` (`ambiguous_weight`, `no_weight`), `DownloadFailed`.
    """
    match answer:
        case {"siblings": list(siblings)}:
            entries = [_hub_entry(entry, url) for entry in siblings]
        case _:
            malformed(url)
    base = f"{address.directory}/" if address.directory else ""
    found = [
        entry
        for entry in entries
        if entry.path.startswith(base)
        and not LEFTOVER.match(PurePosixPath(entry.path).name)
        and entry.path.lower().endswith(f".{address.format}" if address.format else "")
    ]
    weights = _best(found)
    if not weights:
        _refuse_hub(address, "no_weight", "holds no weights", [])
    whole = [entry for entry in weights if not SHARD.search(entry.path)]
    if not whole:
        _refuse_hub(address, "no_weight", "holds its weights in parts only", weights)
    top = [entry for entry in whole if "/" not in entry.path[len(base) :]]
    candidates = top or whole
    folder = folder or address.model_folder
    tags = answer.get("tags")
    if folder == "loras" or (not folder and isinstance(tags, list) and "lora" in tags):
        final = [e for name in LORA_NAMES for e in candidates if e.path == f"{base}{name}"]
        candidates = final[:1] or candidates
    if len(candidates) > 1:
        _refuse_hub(address, "ambiguous_weight", f"holds {len(candidates)} weights", candidates)
    return candidates[0]


def _hub_entry(entry: object, url: str) -> HubEntry:
    match entry:
        case {"rfilename": str(path), "size": int(size), "lfs": {"sha256": str(digest)}}:
            return HubEntry(path, size, digest.lower() if HASH.fullmatch(digest) else None)
        case {"rfilename": str(path), "size": int(size)}:
            return HubEntry(path, size, None)
        case {"rfilename": str(path)}:
            return HubEntry(path, None, None)
        case _:
            return malformed(url)


def _best(entries: Sequence[HubEntry]) -> list[HubEntry]:
    for endings in ENDINGS:
        found = [e for e in entries if PurePosixPath(e.path).suffix.lower() in endings]
        if found:
            return found
    return []


def _refuse_hub(
    address: HuggingFace, code: str, told: str, candidates: Sequence[HubEntry]
) -> NoReturn:
    where = f"{address.repo_id}/{address.directory}" if address.directory else address.repo_id
    what = f"{where} on Hugging Face {told}."
    if code == "no_weight":
        hint = "Give the address of one file that ComfyUI can load."
        raise InvalidInput([Problem(code, what, hint)])
    kind = "" if address.kind == "models" else f"{address.kind}/"
    revision = "" if address.revision == "main" else f"@{address.revision}"
    root = f"hf://{kind}{address.repo_id}{revision}"
    refuse_many(what, [(f"{root}/{entry.path}", entry.size) for entry in candidates])


def refuse_many(what: str, candidates: Sequence[tuple[str, int | None]]) -> NoReturn:
    listed = ", ".join(
        text if size is None else f"{text} ({human_size(size)})"
        for text, size in candidates[:LISTED]
    )
    more = f" and {len(candidates) - LISTED} more" if candidates[LISTED:] else ""
    hint = f"Give the address of the one that is meant: {listed}{more}."
    raise InvalidInput([Problem("ambiguous_weight", what, hint)])
