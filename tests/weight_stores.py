"""What tests of the weight store share: small models, stores over them, and what was asked for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer

from comfy_runner.config import Config
from comfy_runner.fetch.download import Patience
from comfy_runner.weights.progress import Downloading, Steps
from comfy_runner.weights.store import Addressed, Ensured, WeightStore
from comfy_runner.weights.weight import Source, Weight

QUICK = Patience(stall=0.5, retries=1, backoff=0.01)
PROBE = "bytes=0-0"
"""The range of a request that only looks."""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder that is still to be made."""
    return tmp_path / "models"


@pytest.fixture
def store(models: Path) -> WeightStore:
    """A store over it with the usual settings."""
    return WeightStore(settings(models))


def tensors(size: int, letter: bytes = b"a") -> bytes:
    """A sound safetensors file with so many bytes of tensors."""
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + letter * size


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def settings(models: Path, **more: Any) -> Config:
    """A store's settings: nothing but our own fetcher, and a disk that may be filled."""
    manifest = models.parent / "weights_manifest.json"
    usual = {"private_addresses": True, "disk_reserve": 0, "pget": "off"}
    return Config(**{"models": models, "manifest": manifest, **usual, **more})


def weight(
    name: str, *urls: str | Source, folders: tuple[str, ...] = ("loras",), **more: Any
) -> Weight:
    sources = tuple(Source(url) if isinstance(url, str) else url for url in urls)
    return Weight(name=name, folders=folders, urls=sources, **more)


@dataclass
class Outcome:
    """What one `ensure` told and gave."""

    ensured: Ensured
    updates: Sequence[Downloading] = field(default_factory=tuple)

    @property
    def names(self) -> Mapping[Addressed, str]:
        return self.ensured.names


def ensure(store: WeightStore, *wanted: Weight | Addressed, **options: Any) -> Outcome:
    """Have all in place, with little patience."""
    steps = Steps(
        store.ensure(
            [one for one in wanted if isinstance(one, Weight)],
            [one for one in wanted if isinstance(one, Addressed)],
            **{"patience": QUICK, **options},
        )
    )
    updates = [*steps]
    return Outcome(steps.result, updates)


def files(models: Path) -> list[str]:
    """Everything that stands in a models folder, but for the store's own files."""
    found = (file for file in models.rglob("*") if file.is_file() or file.is_symlink())
    names = (file.relative_to(models).as_posix() for file in found)
    return sorted(name for name in names if not name.startswith(".store/"))


def staged(models: Path) -> list[str]:
    """What is unfinished."""
    return sorted(path.name for path in (models / ".store" / "staging").iterdir())


def put(models: Path, *paths: str, content: bytes = b"x") -> None:
    for path in paths:
        file = models / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def looks(server: FileServer, path: str = "") -> int:
    """How often somebody only looked at a path, or at any."""
    ranges = [asked.headers.get("Range") for asked in server.asked if _is(asked.path, path)]
    return ranges.count(PROBE)


def fetches(server: FileServer, path: str = "") -> int:
    """How often somebody asked for the bytes of a path, or of any."""
    ranges = [asked.headers.get("Range") for asked in server.asked if _is(asked.path, path)]
    return len(ranges) - ranges.count(PROBE)


def _is(asked: str, path: str) -> bool:
    return path in ("", asked.partition("?")[0])
