"""The node catalog on disk, so that a workflow can be checked without a running ComfyUI."""

import gzip
import hashlib
import json
import logging
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from comfy_runner.comfyui.definitions import holds_classes, sound
from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph.nodes import NodeCatalog

LAUNCHER = Path(__file__).with_name("launcher.py")

BUILTIN = Path(__file__).with_name("core_catalog.json.gz")

GZIP = b"\x1f\x8b"

KEPT = 5
"""How many catalogs are kept: a few installations may share one home."""

log = logging.getLogger(__name__)


def load(config: Config) -> NodeCatalog | None:
    """The catalog that was saved for this very ComfyUI and these custom nodes, if there is one."""
    try:
        raw = json.loads(gzip.decompress(_path(config).read_bytes()))
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


def save(config: Config, raw: Mapping[str, Any]) -> NodeCatalog:
    """Keep what `ComfyClient.catalog()` gave; a disk that takes no file costs only time later.

    Odd definitions of custom nodes are made sound.
    """
    raw = {**raw, "object_info": sound(raw["object_info"])}
    catalog, path = NodeCatalog(raw), _path(config)
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


def of(config: Config, ask: Callable[[], Mapping[str, Any]]) -> NodeCatalog:
    """The saved catalog, or else the one that a running ComfyUI gives, which is then saved."""
    return load(config) or save(config, ask())


def _no_catalog(path: Path, what: str) -> InvalidInput:
    hint = "Give what ComfyUI answers at /object_info."
    return InvalidInput([Problem("no_catalog", what, hint, input=str(path))])


def _age(path: Path) -> float:
    """Negative, so that the newest comes first."""
    return -path.stat().st_mtime


def _path(config: Config) -> Path:
    return config.cache / f"catalog-{_fingerprint(config)}.json.gz"


def _fingerprint(config: Config) -> str:
    """Changes with every source file of ComfyUI and of the node packs, by size and time.

    With the installed packages too, without which a node pack may not load, and with the launcher,
    which asks for the catalog.
    """
    digest = hashlib.sha256(f"{sys.version} {config.comfyui_args}".encode())
    for path in (LAUNCHER, Path(sysconfig.get_path("purelib"))):
        digest.update(f"\0{path}\0{path.stat().st_mtime_ns}".encode())
    for folder in (config.comfyui, config.custom_nodes):
        # Packs are often links to where they are worked on; ComfyUI's own may lead to all weights.
        for path in sorted(_sources(folder, follow_links=folder == config.custom_nodes)):
            try:
                status = path.stat()
            except OSError:  # a link that leads nowhere
                status = path.lstat()
            digest.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _sources(folder: Path, *, follow_links: bool) -> Iterator[Path]:
    seen: set[Path] = set()
    for path, folders, names in folder.walk(follow_symlinks=follow_links):
        real = path.resolve()
        if real in seen:  # links may go round in circles
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        yield from (path / name for name in names if name.endswith((".py", ".json", ".toml")))
