"""Real git repositories and archives of small packs, made on the spot."""

import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

WHO = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}

Files = Mapping[str, str]


def pack_files(*classes: str, more: Files | None = None) -> dict[str, str]:
    """The files of a pack with these node classes, each of which gives a text."""
    mapping = ", ".join(f"{name!r}: Node" for name in classes)
    code = (
        "class Node:\n"
        "    @classmethod\n"
        "    def INPUT_TYPES(cls):\n"
        "        return {'required': {}}\n\n"
        "    RETURN_TYPES = ('STRING',)\n"
        "    FUNCTION = 'run'\n"
        "    CATEGORY = 'test'\n\n"
        "    def run(self):\n"
        "        return ('a',)\n\n\n"
        f"NODE_CLASS_MAPPINGS = {{{mapping}}}\n"
    )
    return {"__init__.py": code, **(more or {})}


def write_files(folder: Path, files: Files) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class Repository:
    """A repository with one branch, `main`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch", "main")

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        """Run git in it. Returns what it prints."""
        done = subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *arguments],
            cwd=self.folder,
            env={**os.environ, **WHO},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def commit(self, files: Files, message: str = "More") -> str:
        """Write files and commit them with all else. Returns the commit."""
        write_files(self.folder, files)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.head

    def forget(self) -> None:
        """Drop every commit that no branch or tag leads to."""
        self.git("reflog", "expire", "--expire=now", "--all")
        self.git("gc", "--quiet", "--prune=now")


def tarball(files: Files, top: str = "") -> bytes:
    """A tar.gz of these files, within one folder around them all where `top` names it."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{top}/{name}" if top else name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return raw.getvalue()
