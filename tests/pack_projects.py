"""A project with a folder of packs, whose commands run as functions, without network."""

from pathlib import Path

import pytest
from fakes.git_repositories import Repository
from fakes.wheels import wheel

from comfy_runner.config import Config
from comfy_runner.packs import adding, asked, installing
from comfy_runner.packs.adding import Entered, Wishes
from comfy_runner.packs.fetching import Fetching
from comfy_runner.packs.folder import PackFolder
from comfy_runner.packs.installing import Installed
from comfy_runner.packs.lock import LockedPack

PINS = "numpy==2.5.0\ntorch==2.11.0\n"


class Project:
    """A project in a folder of its own; packs are neither tried nor their packages installed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
        self.path = folder / "project"
        self.path.mkdir()
        (self.path / "requirements.txt").write_text(PINS)
        self.nodes = self.path / "custom_nodes"
        self.config = config
        self.folder = PackFolder(config)
        self.told: list[str] = []
        self.endpoint = ""
        wheels = folder / "wheels"
        wheel(wheels, "tiny", "1.0")
        wheel(wheels, "tiny", "2.0")
        uv = folder / "uv.toml"
        uv.write_text(f'no-index = true\nfind-links = ["{wheels}"]\n')
        monkeypatch.setenv("UV_CONFIG_FILE", str(uv))
        monkeypatch.setenv("UV_CACHE_DIR", str(folder / "uv-cache"))
        monkeypatch.setenv("UV_DEFAULT_INDEX", "https://none.invalid/simple")

    @property
    def fetching(self) -> Fetching:
        return Fetching(self.folder, self.endpoint)

    def add(self, source: str | Repository, ref: str = "", **wishes: object) -> Entered:
        text = source.url if isinstance(source, Repository) else source
        wish = Wishes(**{"install": False, **wishes})  # type: ignore[arg-type]
        return adding.add(self.config, self.fetching, asked.read(text, ref), wish, self.told.append)

    def lock(self, *names: str, upgrade: bool = False) -> Entered:
        return adding.refresh(
            self.config, self.fetching, names, upgrade=upgrade, limit=None, tell=self.told.append
        )

    def install(self, *, frozen: bool = False, overwrite: bool = False) -> Installed:
        return installing.install(
            self.config,
            self.fetching,
            frozen=frozen,
            overwrite=overwrite,
            deps=False,
            tell=self.told.append,
        )

    def locked(self, name: str) -> LockedPack:
        """The entry of that name; there must be one."""
        found = self.folder.read().get(name)
        assert found is not None
        return found

    def names(self) -> set[str]:
        """What stands in the folder of packs."""
        return {path.name for path in self.nodes.iterdir()}


def make_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project without packs."""
    path = folder / "project"
    config = Config(project=path, home=folder / "home", custom_nodes=path / "custom_nodes")
    return Project(folder, monkeypatch, config)
