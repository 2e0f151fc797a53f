"""A pack's files, fetched from wherever it comes from into a folder of its own."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from comfy_runner.errors import HashMismatch, InvalidInput, MachineError, Problem
from comfy_runner.fetch.archives import unpack
from comfy_runner.fetch.download import fetch
from comfy_runner.packs import git, registry, trees
from comfy_runner.packs.asked import Asked, AskedArchive, AskedFolder, AskedGit, AskedRegistry
from comfy_runner.packs.folder import PackFolder
from comfy_runner.packs.lock import (
    ArchiveSource,
    GitSource,
    LocalSource,
    LockedPack,
    RegistrySource,
    Source,
)

MAX_BYTES = 2 * 1024**3
"""Most bytes of a pack, packed or not."""
MAX_FILES = 50_000

INIT = "__init__.py"
"""What ComfyUI 0.30 loads of a folder (nodes.py load_custom_node)."""


@dataclass(frozen=True, slots=True)
class Fetching:
    """Fetches packs for one folder of packs."""

    folder: PackFolder
    endpoint: str = registry.ENDPOINT
    """Where the Comfy Registry is."""

    def found(self, asked: Asked) -> Source:
        """Just what is to be fetched: the commit, the version; nothing is fetched yet.

        Raises: `InvalidInput` where there is no such thing, `DownloadFailed`.
        """
        match asked:
            case AskedGit(url, ref):
                revision = git.resolve(url, ref)
                return GitSource(url, revision.commit, revision.ref)
            case AskedRegistry(pack, version):
                release = registry.look_up(pack, version, endpoint=self.endpoint)
                return RegistrySource(pack, release.version, release.url)
            case AskedArchive(url):
                return ArchiveSource(url)
            case AskedFolder(path):
                return LocalSource(_relative(path, self.folder.path))
            case _:
                assert_never(asked)

    def newer(self, source: Source) -> Source:
        """What a source means now: where its branch or tag stands, the registry's newest version.

        One that cannot move is given back as it is. Raises: as `found`.
        """
        match source:
            case GitSource(url, _, ref) if ref:
                return GitSource(url, git.resolve(url, ref).commit, ref)
            case RegistrySource(id, version):
                release = registry.look_up(id, endpoint=self.endpoint)
                if release.version == version:
                    return source
                return RegistrySource(id, release.version, release.url)
        return source

    def bring(self, pack: LockedPack, into: Path) -> Source:
        """Write the pack's files into a folder that is not there. Returns the completed source.

        What is in the files is not compared with the entry's digest here.

        Raises: `HashMismatch` for an archive that is not the locked one; `InvalidInput` for what
        is no pack; `DownloadFailed`.
        """
        source = pack.source
        match source:
            case GitSource(url, commit):
                git.checkout(url, commit, into)
            case RegistrySource(id, version, url, sha256):
                where = url or registry.look_up(id, version, endpoint=self.endpoint).url
                source = replace(source, url=where, sha256=self._unpacked(where, sha256, into))
            case ArchiveSource(url, sha256):
                source = replace(source, sha256=self._unpacked(url, sha256, into))
            case LocalSource(path):
                place = self.folder.source_of(pack)
                if not place.is_dir():
                    raise InvalidInput(
                        [
                            Problem(
                                "no_folder",
                                f"There is no folder {path} beside the lock.",
                                "Put it back, or take the entry out.",
                                input=f"pack {pack.name}",
                            )
                        ]
                    )
                if not (place / INIT).is_file():  # it may be a folder of everything
                    raise InvalidInput([_no_pack(pack, place)])
                trees.copy(place, into)
            case _:
                assert_never(source)
        if not (into / INIT).is_file():
            raise InvalidInput([_no_pack(pack, into)])
        return source

    def _unpacked(self, url: str, sha256: str, into: Path) -> str:
        """Unpack the archive behind a URL. Returns its sha256."""
        with tempfile.TemporaryDirectory(prefix="archive-", dir=self.folder.staging) as scratch:
            archive, whole = Path(scratch, "archive"), Path(scratch, "whole")
            try:
                got = fetch(url, archive, sha256=sha256 or None, max_bytes=MAX_BYTES)
            except HashMismatch as err:
                hint = "Nothing of it was unpacked. To accept it, take its sha256 out of the lock."
                raise HashMismatch(f"{err} {hint}") from err
            # Links are of no use to a pack that must be the same everywhere.
            unpack(archive, whole, max_bytes=MAX_BYTES, max_files=MAX_FILES, odd="leave out")
            inside = list(whole.iterdir())
            # Archives that GitHub makes have one folder around everything.
            top = inside[0] if len(inside) == 1 and inside[0].is_dir() else whole
            trees.strip(top)
            try:
                top.rename(into)
            except OSError:
                shutil.copytree(top, into)
        return got.sha256


def check_digest(pack: LockedPack, found: str) -> None:
    """Raises: `HashMismatch` where fetched files are not those that the lock names."""
    if pack.digest and pack.digest != found:
        raise HashMismatch(
            f"Pack {pack.name} from {pack.source} has files of digest {found}; the lock has"
            f" {pack.digest}. Nothing of it was installed. If that is no surprise, have the lock"
            f" follow: comfy-runner nodes lock {pack.name}"
        )


def _relative(path: Path, start: Path) -> str:
    """The path to a folder from the lock's, with `/`."""
    try:
        return path.resolve().relative_to(start.resolve(), walk_up=True).as_posix()
    except ValueError as err:
        raise MachineError(f"{path} and {start} are on different disks.") from err


def _no_pack(pack: LockedPack, tree: Path) -> Problem:
    inner = sorted(path.parent.relative_to(tree).as_posix() for path in tree.glob(f"*/{INIT}"))
    what = f"{pack.source} is no pack of nodes: it has no {INIT} at its top."
    hint = f"Is it one of its folders: {trees.listed(inner)}?" if inner else "Check the address."
    return Problem("no_pack", what, hint, input=f"pack {pack.name}")
