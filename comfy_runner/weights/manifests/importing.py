"""Other tools' lists of models, as weights: ComfyUI's templates, ComfyUI-Manager, cog-comfyui."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from comfy_runner.errors import InvalidInput
from comfy_runner.fetch.urls import redacted
from comfy_runner.weights.hosts import addresses
from comfy_runner.weights.manifests.schema import HASH, RELATIVE
from comfy_runner.weights.weight import Source, Weight, map_legacy

SECRETS = re.compile(r"(^|[&;])[^=&;]*(token|key|sig|secret|password|credential)[^=&;]*=", re.I)
"""A query that may hold a token or a signature."""
MANAGER_FOLDERS: Mapping[str, str] = {
    "checkpoint": "checkpoints",
    "unclip": "checkpoints",
    "clip": "text_encoders",
    "lora": "loras",
    "t2i-adapter": "controlnet",
    "t2i-style": "controlnet",
    "upscale": "upscale_models",
    "embedding": "embeddings",
    "unet": "diffusion_models",
    "diffusion_model": "diffusion_models",
    **{name: name for name in ("checkpoints", "text_encoders", "vae", "controlnet")},
    **{name: name for name in ("clip_vision", "gligen", "embeddings")},
}
"""Folder of a `save_path` `default`: `model_dir_name_map` of ComfyUI-Manager, f39cbd5."""
COG_COMFYUI_BASE = "https://weights.replicate.delivery/default/comfy-ui"
"""Where cog-comfyui keeps its archives: config.py, 66b54af."""
COG_COMFYUI_FOLDERS: Mapping[str, str] = {
    **{name: name for name in ("LLM", "FBCNN")},
    "BIREFNET": "BiRefNet",
    "FLASHVSR": "FlashVSR",
}
"""Folders that are not their key in small letters: weights_manifest.py of cog-comfyui, 66b54af."""
FILE_ENDINGS = (
    *(".ckpt", ".safetensors", ".sft", ".pt", ".pth", ".bin", ".onnx"),
    *(".torchscript", ".engine", ".patch", ".gguf", ".pkl"),
)
"""Names that do not end so are whole folders in cog-comfyui's list."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What a list gave."""

    weights: tuple[Weight, ...]
    """By folder and name."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """One for each workflow that names models, as `folder/name`."""
    bases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What could not be taken, and what had to be decided."""


def from_workflows(documents: Mapping[str, object]) -> Imported:
    """The models that workflows of the editor name, given as decoded JSON by a name of each.

    Read are `properties.models` of all nodes, bypassed ones and those of subgraphs too, and the
    workflow's own `models`: `{name, url, directory, hash?, hash_type?}`, as the front end 1.47.12
    does. A list gives its most used URL; others are mirrors where the stated hashes are equal,
    else the entry's note tells them. What is no workflow, or names no model, is told.
    """
    gathered = _Gathered()
    groups: dict[str, tuple[str, ...]] = {}
    strange, empty = [], []
    for name, document in documents.items():
        if not isinstance(document, Mapping) or not isinstance(document.get("nodes"), list):
            strange.append(name)
            continue
        labels = {label for model in _models(document) if (label := gathered.model(name, model))}
        if labels:
            groups[name] = tuple(sorted(labels))
        else:
            empty.append(name)
    if strange:
        gathered.notes.append(f"No workflows of the editor: {', '.join(strange)}.")
    if empty:
        gathered.notes.append(f"{len(empty)} of {len(documents)} workflows name no model.")
    return gathered.imported(groups)


def from_manager(document: Mapping[str, Any]) -> Imported:
    """The models of ComfyUI-Manager's `model-list.json`.

    The folder is the beginning of `save_path`, or what the type says. `<huggingface>` stands for a
    whole repository: a weight of the kind `dir` without its files, which `lock` finds.
    """
    gathered = _Gathered()
    for number, model in enumerate(_list(document.get("models"))):
        if not isinstance(model, Mapping):
            gathered.notes.append(f"models[{number}] is no object.")
            continue
        path, name, url = (str(model.get(key, "")) for key in ("save_path", "filename", "url"))
        title = str(model.get("name") or name)
        note = title if title.isprintable() else ""
        if path == "default":
            path = MANAGER_FOLDERS.get(str(model.get("type", "")).lower(), "")
        if not path or path.startswith("custom_nodes"):
            gathered.skip(title, f"it belongs to no model folder ({model.get('save_path')})")
            continue
        kind: Literal["file", "dir"] = "file"
        if name == "<huggingface>":
            kind, name = "dir", PurePosixPath(url).name
            url = f"hf://{url}"
        source = _hub(url) if kind == "dir" else _web(url)
        gathered.add(title, path, name, source, kind=kind, note=note)
    return gathered.imported()


def from_cog_comfyui(
    document: Mapping[str, Any],
    synonyms: Mapping[str, Any] | None = None,
    *,
    base: str = COG_COMFYUI_BASE,
) -> Imported:
    """The models of cog-comfyui's `weights.json`, and `weight_synonyms.json` as aliases.

    Each comes as a tar named after it; a name without a model's ending is a whole folder.
    """
    gathered = _Gathered()
    for key, names in document.items():
        theirs = COG_COMFYUI_FOLDERS.get(key, key.lower())
        for number, name in enumerate(_list(names)):
            if not isinstance(name, str) or not RELATIVE.fullmatch(name):
                gathered.skip(f"{key}[{number}]", "it is no name")
                continue
            url = f"{base}/{quote(theirs)}/{quote(name)}.tar"
            path = PurePosixPath(name)
            if name.lower().endswith(FILE_ENDINGS):
                source = Source(url, extract="tar", member=path.name)
                gathered.add(name, theirs, name, source)
            else:
                source = Source(url, extract="tar", strip=1)
                gathered.add(name, theirs, name, source, kind="dir")
    for alias, name in (synonyms or {}).items():
        if not gathered.alias(alias, name):
            gathered.notes.append(f"The synonym {alias} of {name} is left out: it fits no entry.")
    return gathered.imported(bases={"r8": base})


@dataclass
class _Found:
    """What several lists say of one file."""

    uses: Counter[Source] = field(default_factory=Counter)
    hashes: dict[Source, set[str]] = field(default_factory=dict)
    kind: Literal["file", "dir"] = "file"
    note: str = ""
    aliases: list[str] = field(default_factory=list)

    def weight(self, folder: str, name: str) -> Weight:
        first, *others = [source for source, _ in self.uses.most_common()]
        stated = self.hashes.get(first, set())
        sha256 = next(iter(stated)) if len(stated) == 1 else None
        mirrors = [s for s in others if sha256 and self.hashes.get(s) == {sha256}]
        rest = [source.url for source in others if source not in mirrors]
        note = f"Also given, perhaps other content: {', '.join(rest)}" if rest else ""
        return Weight(
            name=name,
            folders=(folder,),
            urls=(first, *mirrors),
            kind=self.kind,
            sha256=sha256,
            aliases=tuple(self.aliases),
            note=". ".join(filter(None, (self.note, note))),
        )


class _Gathered:
    """Files by folder and name, as a list goes through."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], _Found] = {}
        self.notes: list[str] = []

    def skip(self, title: str, why: str) -> None:
        self.notes.append(f"{title} is left out: {why.rstrip('.')}.")

    def model(self, workflow: str, model: object) -> str:
        """Take an entry of `properties.models`. Returns its `folder/name`, or empty."""
        match model:
            case {"name": str(name), "url": str(url), "directory": str(directory), **more}:
                is_sha256 = str(more.get("hash_type", "")).upper() == "SHA256"
                stated = str(more.get("hash", "")).lower() if is_sha256 else ""
                return self.add(f"{workflow}: {name}", directory, name, _web(url), stated)
            case {"name": str(name)}:
                self.skip(f"{workflow}: {name}", "it has no URL or no directory")
            case _:
                self.skip(f"{workflow}: an entry of `models`", "it names no model")
        return ""

    def add(
        self,
        title: str,
        path: str,
        name: str,
        source: Source | str,
        sha256: str = "",
        *,
        kind: Literal["file", "dir"] = "file",
        note: str = "",
    ) -> str:
        """Take a file for `path` of the models folder. Returns its `folder/name`, or empty.

        `source` is the reason where there is none.
        """
        place = f"{path.strip('/')}/{name}".replace("\\", "/")
        folder, _, inside = place.partition("/")
        if isinstance(source, str):
            self.skip(title, source)
        elif not RELATIVE.fullmatch(place) or not path.strip("/") or folder.startswith("."):
            self.skip(title, f"{place!r} is no place in the models folder")
        else:
            folder = map_legacy(folder)
            found = self.files.setdefault((folder, inside), _Found(kind=kind, note=note))
            found.uses[source] += 1
            if HASH.fullmatch(sha256):
                found.hashes.setdefault(source, set()).add(sha256)
            return f"{folder}/{inside}"
        return ""

    def alias(self, alias: str, name: object) -> bool:
        """Give every file of the name another one, where that is free. Returns whether any is."""
        given = False
        if not RELATIVE.fullmatch(alias):
            return False
        for folder, inside in list(self.files):
            if inside == name and (folder, alias) not in self.files:
                self.files[folder, inside].aliases.append(alias)
                given = True
        return given

    def imported(
        self,
        groups: Mapping[str, tuple[str, ...]] | None = None,
        bases: Mapping[str, str] | None = None,
    ) -> Imported:
        weights = tuple(found.weight(*place) for place, found in sorted(self.files.items()))
        several = [weight for weight in weights if "perhaps other content" in weight.note]
        notes = [f"{weight.label} has several URLs: {weight.note}." for weight in several]
        places: dict[str, list[str]] = {}
        for weight in weights:
            places.setdefault(weight.urls[0].url, []).append(weight.label)
        twins = [" and ".join(labels) for labels in places.values() if len(labels) > 1]
        notes += [f"{twin} are the same file." for twin in twins]
        return Imported(weights, groups or {}, bases or {}, (*self.notes, *notes))


def _models(workflow: Mapping[str, Any]) -> Iterator[object]:
    """The model entries of a workflow: its own, its nodes', its subgraphs'."""
    yield from _list(workflow.get("models"))
    for node in _list(workflow.get("nodes")):
        match node:
            case {"properties": {"models": list(models)}}:
                yield from models
    match workflow:
        case {"definitions": {"subgraphs": list(subgraphs)}}:
            for subgraph in subgraphs:
                if isinstance(subgraph, Mapping):
                    yield from _models(subgraph)


def _list(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _hub(url: str) -> Source | str:
    parts = url.removeprefix("hf://").split("/")
    fits = len(parts) == 2 and all(re.fullmatch(r"[\w.-]+", part) for part in parts)  # noqa: PLR2004
    return Source(url) if fits else f"{url!r} is no OWNER/REPO"


def _web(url: str) -> Source | str:
    """The source as the manifest keeps it, or why it cannot.

    Of a page of Hugging Face or CivitAI it is the file's URL, without token and needless query.
    """
    try:
        address = addresses.parse(url)
    except InvalidInput as err:
        return str(err)
    match address:
        case addresses.Plain():
            parts = urlsplit(address.url)
            if "@" in parts.netloc or SECRETS.search(parts.query):
                return "its URL holds a password, a token or a signature"
            whole = parts._replace(fragment="").geturl()
            return "its URL holds '..'" if ".." in parts.path.split("/") else Source(whole)
        case None | addresses.Data() | addresses.HuggingFace(path=""):
            return f"{redacted(url)!r} is no address of a file"
        case _:
            return Source(addresses.canonical(address))
