"""What nodes there are, without a running ComfyUI: as it was saved, or as far as files tell."""

import gzip
import hashlib
import json
import logging
import os
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_runner.comfyui.definitions import holds_classes, sound
from comfy_runner.comfyui.source import tree_version
from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph.nodes import NodeCatalog

MAKERS = [Path(__file__).with_name(name) for name in ("launcher.py", "definitions.py")]
"""What makes a catalog out of what ComfyUI tells."""

BUILTIN = Path(__file__).with_name("core_catalog.json.gz")

GZIP = b"\x1f\x8b"

KEPT = 5
"""How many catalogs are kept: a few installations may share one home."""

SOURCES = (".py", ".so", ".json", ".toml", ".yaml", ".yml", ".csv")
"""Endings of files that decide which nodes there are, and what they offer."""

API_NODES = "comfy_api_nodes"
"""Where ComfyUI has its nodes for paid services, which our ComfyUI does not load (`process`)."""

TOLD = "object_info.json"
"""In a pack's folder: its classes as `/object_info` tells them."""

SHOWN_PACKS = 5
"""How many node packs a sentence names before it only counts them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the nodes without a ComfyUI that runs."""

    catalog: NodeCatalog
    doubt: str = ""
    """Why ComfyUI may know others, in a sentence; empty for a catalog that can be relied on."""


def known(config: Config) -> Known:
    """The saved catalog, or else what ComfyUI would tell as far as that is known.

    These are the classes of ComfyUI 0.30.0 that the runner loads, and those of packs that tell
    theirs in a file, `TOLD`.
    """
    if (saved := load(config)) is not None:
        return Known(saved)
    own = builtin()
    info = {
        name: entry
        for name, entry in own.raw["object_info"].items()
        if not entry["python_module"].startswith(API_NODES)
    }
    catalog, silent = _with_packs(NodeCatalog({**own.raw, "object_info": info}), config)
    version, expected = tree_version(config.comfyui), own.raw["comfyui_version"]
    doubt = ""
    if (config.comfyui / "comfyui_version.py").is_file() and version != expected:
        doubt = f"This is ComfyUI {version}, but the nodes known here are of {expected}."
    elif silent:
        more = f" and {len(silent) - SHOWN_PACKS} more" if silent[SHOWN_PACKS:] else ""
        doubt = (
            f"ComfyUI has not been started with {', '.join(silent[:SHOWN_PACKS])}{more} in"
            f" {config.custom_nodes} as it is now, so the nodes in there are not known."
        )
    return Known(catalog, doubt)


def offline(config: Config) -> NodeCatalog:
    """All classes that are known without a ComfyUI that runs, its API nodes included."""
    (catalog, _), saved = _with_packs(builtin(), config), load(config)
    return catalog if saved is None else catalog.with_classes_of(saved)


def load(config: Config, seen: str | None = None) -> NodeCatalog | None:
    """The catalog that was saved for this very ComfyUI and these custom nodes, if there is one.

    `seen` is the `fingerprint` of other files than those that are there now.
    """
    try:
        path = _path(config, fingerprint(config) if seen is None else seen)
        raw = json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zlib.error) as err:
        log.warning("The saved catalog cannot be read and is made anew: %s", err)
        return None
    if not isinstance(raw, dict) or "object_info" not in raw:
        log.warning("The saved catalog is none and is made anew.")
        return None
    return NodeCatalog(raw)


def builtin() -> NodeCatalog:
    """The classes of ComfyUI 0.30.0 itself, its API nodes included, as with empty model folders."""
    return NodeCatalog(json.loads(gzip.decompress(BUILTIN.read_bytes())))


def read(path: Path) -> NodeCatalog:
    """The catalog in a file: what `/object_info` answers, or what was saved here; gzipped or not.

    Odd definitions of custom nodes are made sound. Raises: `InvalidInput` when the file cannot be
    read or holds something else.
    """
    try:
        content = path.read_bytes()
        raw = json.loads(gzip.decompress(content) if content.startswith(GZIP) else content)
        raw = raw if isinstance(raw, dict) else {}
        info = raw.get("object_info", raw)
        classes = sound(info) if holds_classes(info) else {}
    except OSError as err:
        raise _no_catalog(path, f"It cannot be read: {err.strerror}.") from err
    except (EOFError, ValueError, RecursionError, zlib.error) as err:
        raise _no_catalog(path, f"It is neither JSON nor gzipped JSON: {err}.") from err
    if not classes:
        raise _no_catalog(path, "It holds no node classes.")
    return NodeCatalog({**(raw if "object_info" in raw else {}), "object_info": classes})


def save(config: Config, raw: Mapping[str, Any], seen: str | None = None) -> NodeCatalog:
    """Keep what `ComfyClient.catalog()` gave; a disk that takes no file costs only time later.

    `seen` is the `fingerprint` of the files that ComfyUI was started with, where they may be others
    by now; empty where it is not known: then nothing is kept. Odd definitions of custom nodes are
    made sound.
    """
    raw = {**raw, "object_info": sound(raw["object_info"])}
    catalog = NodeCatalog(raw)
    if seen == "":
        return catalog
    path = _path(config, fingerprint(config) if seen is None else seen)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".catalog-", dir=path.parent) as folder:
            part = Path(folder, "part")
            part.write_bytes(gzip.compress(json.dumps(raw).encode(), compresslevel=1))
            part.replace(path)
        for old in sorted(path.parent.glob("catalog-*.gz"), key=_age)[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as err:
        log.warning("The catalog cannot be saved: %s", err)
    return catalog


def of(config: Config, ask: Callable[[], Mapping[str, Any]], seen: str) -> NodeCatalog:
    """The saved catalog of a running ComfyUI, or else the one that it gives, which is then saved.

    `seen` as for `save`.
    """
    saved = load(config, seen) if seen else None
    return save(config, ask(), seen) if saved is None else saved


def _no_catalog(path: Path, what: str) -> InvalidInput:
    hint = "Give what ComfyUI answers at /object_info."
    return InvalidInput([Problem("no_catalog", what, hint, input=str(path))])


def _age(path: Path) -> float:
    """Negative, so that the newest comes first."""
    return -path.stat().st_mtime


def _path(config: Config, seen: str) -> Path:
    return config.cache / f"catalog-{seen}.json.gz"


def fingerprint(config: Config) -> str:
    """What names the files and settings that decide which nodes there are, in 16 digits.

    It changes with every source file of ComfyUI and of the node packs, by size and time; with the
    packages that are installed, without which a pack may not load; with what makes the catalog; and
    with the settings that nodes can look at when they tell what they offer.
    """
    settings = (config.comfyui_args, config.device, config.hub_at_run_time)
    digest = hashlib.sha256(f"{sys.version} {settings}".encode())
    for path in (*MAKERS, Path(sysconfig.get_path("purelib"))):
        digest.update(f"\0{path}\0{path.stat().st_mtime_ns}".encode())
    for folder in (config.comfyui, config.custom_nodes):
        # Packs are often links to where they are worked on; ComfyUI's own may lead to all weights.
        follow_links = folder == config.custom_nodes
        digest.update(f"\0{folder}".encode())
        for path_, status in _sources(str(folder), set(), follow_links=follow_links):
            digest.update(os.fsencode(f"\0{path_}\0{status.st_size}\0{status.st_mtime_ns}"))
    return digest.hexdigest()[:16]


def _sources(
    folder: str, seen: set[tuple[int, int]], *, follow_links: bool
) -> Iterator[tuple[str, os.stat_result]]:
    """Every source file below a folder and its state, in the order of their names.

    Written with `os.scandir`: pathlib takes three times as long, and every command waits for it.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if _is_folder(entry, follow_links=follow_links):
            if entry.name.startswith((".", "__pycache__")):
                continue
            if follow_links:  # links may go round in circles
                status = entry.stat()
                place = (status.st_dev, status.st_ino)
                if place in seen:
                    continue
                seen.add(place)
            yield from _sources(entry.path, seen, follow_links=follow_links)
        elif entry.name.endswith(SOURCES):
            try:
                yield entry.path, entry.stat()
            except OSError:  # a link that leads nowhere
                yield entry.path, entry.stat(follow_symlinks=False)


def _is_folder(entry: os.DirEntry[str], *, follow_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:  # a link that leads to itself
        return False


def _with_packs(catalog: NodeCatalog, config: Config) -> tuple[NodeCatalog, list[str]]:
    """The catalog with the classes of packs that tell them, as ours does; and the other packs."""
    silent = []
    for pack in _packs(config):
        try:
            told = read(pack / TOLD) if (pack / TOLD).is_file() else None
        except InvalidInput as err:
            log.warning("What a node pack tells of its classes is left out: %s", err)
            told = None
        if told is None:
            silent.append(pack.name)
        else:
            catalog = catalog.with_classes_of(told)
    return catalog, silent


def _packs(config: Config) -> list[Path]:
    """The node packs that ComfyUI would load (nodes.py init_external_custom_nodes, 0.30.0).

    Which of them `--whitelist-custom-nodes` names is not looked at.
    """
    arguments = config.comfyui_args
    if "--disable-all-custom-nodes" in arguments and "--whitelist-custom-nodes" not in arguments:
        return []
    if not config.custom_nodes.is_dir():
        return []
    return [
        path
        for path in sorted(config.custom_nodes.iterdir())
        if path.suffix != ".disabled" and (path.suffix == ".py" or (path / "__init__.py").is_file())
    ]
