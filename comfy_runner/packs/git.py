"""Git repositories of packs: which commit a branch or tag means, and the files of a commit.

What a repository brings is not run and not trusted: no hooks, no templates, no filters, no links,
and no transport but https and ssh. Credentials are those that git itself is set up with.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from comfy_runner.errors import DownloadFailed, InvalidInput, Problem
from comfy_runner.fetch.urls import redacted
from comfy_runner.packs import trees
from comfy_runner.packs.lock import COMMIT

TIMEOUT = 900.0
"""Seconds until a git command is given up."""

ABBREVIATED = re.compile(r"[0-9a-f]{7,39}")

SHA256_LENGTH = 64
"""Digits of a commit's id in a repository that hashes with SHA-256."""

SHOWN_REFS = 8
"""How many branches and tags an error names."""

SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    # A link could lead anywhere: it becomes a file that holds its target.
    "core.symlinks=false",
    # The same bytes on every machine.
    "core.autocrlf=false",
    "core.eol=lf",
    "core.attributesFile=/dev/null",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "advice.detachedHead=false",
    "gc.auto=0",
)

NOT_PASSED = re.compile(
    "GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|NAMESPACE"
    "|COMMON_DIR|PREFIX|TEMPLATE_DIR|EXTERNAL_DIFF|ALLOW_PROTOCOL|PROTOCOL_FROM_USER|TRACE.*)"
)
"""Variables that would make git work on another repository, as inside a hook, or say too much."""

ALL_REFS = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")

NOT_ASKED = "Check the address, the network, and what git is set up with for that host."


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit, and the branch or tag that it was asked for as."""

    commit: str
    ref: str = ""
    """Empty for the repository's own branch, and for a commit asked for by its id."""


def resolve(url: str, ref: str = "", environment: Mapping[str, str] = os.environ) -> Revision:
    """The commit that a branch, tag, `refs/...` or commit id means now; empty: its own branch.

    Raises: `InvalidInput` where there is no such thing, or a branch and a tag that differ;
    `DownloadFailed` where the repository cannot be asked.
    """
    if COMMIT.fullmatch(ref):
        return Revision(ref)
    is_full = not ref or ref.startswith("refs/")
    wanted = [ref or "HEAD"] if is_full else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    found = _listed(url, [*wanted, *(f"{name}^{{}}" for name in wanted)], environment)
    # What a tag's own object stands for counts, not the object.
    commits = {
        name: found.get(f"{name}^{{}}", found.get(name, "")) for name in wanted if name in found
    }
    if len(set(commits.values())) > 1:
        what = f"{redacted(url)} has both a branch and a tag {ref!r}, and they differ."
        _refuse(what, f"Write {' or '.join(commits)}.")
    if commits:
        return Revision(next(iter(commits.values())), ref)
    if ABBREVIATED.fullmatch(ref) and (commit := _completed(url, ref, environment)):
        return Revision(commit)
    if not ref:
        _refuse(f"{redacted(url)} is empty.", "Check the address.")
    return _refuse_unknown(url, ref, environment)


def checkout(
    url: str, commit: str, into: Path, environment: Mapping[str, str] = os.environ
) -> None:
    """Write the files of a commit, with those of its submodules, into a folder that is not there.

    No git metadata is left. Files in Git LFS stay pointers.

    Raises: `InvalidInput` where the repository has no such commit (any more), `DownloadFailed`.
    """
    git = _Git(into, url, environment)
    _begin(into, url, git, "sha256" if len(commit) == SHA256_LENGTH else "sha1")
    if git.run("fetch", "--quiet", "--no-tags", "--depth", "1", "origin", commit):
        # Not every server gives a commit by its id; all of them give their branches and tags.
        if why := git.run("fetch", "--quiet", "--no-tags", "origin", *ALL_REFS):
            _fail(url, why)
        if git.run("cat-file", "-e", f"{commit}^{{commit}}"):
            what = f"{redacted(url)} has no commit {commit}, or has it no more."
            hint = (
                "Its history may have been rewritten: look at what it has now, and take that with"
                " comfy-runner nodes add and --ref."
            )
            _refuse(what, hint)
    # What stands in Git LFS stays there: a pointer is the same with and without git-lfs.
    git = git.without_filters()
    if why := git.run("checkout", "--quiet", "--force", "--detach", commit):
        _fail(url, why)
    if (into / ".gitmodules").is_file():
        why = git.run("submodule", "--quiet", "update", "--init", "--recursive", "--checkout")
        if why:
            _fail(url, f"a submodule: {why}")
    trees.strip(into)


class _Git:
    """Git in one folder, for one address."""

    def __init__(self, folder: Path | None, url: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        passed = {
            name: value for name, value in environment.items() if not NOT_PASSED.fullmatch(name)
        }
        # Submodules get the same: only a repository of this machine may name others of it.
        local = ":file" if url.startswith("file://") else ""
        self.environment = {
            **passed,
            "GIT_ALLOW_PROTOCOL": f"https:ssh{local}",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }

    def without_filters(self) -> "_Git":
        """The same with all filters off that somebody has set up: a pack may ask for any of them.

        Submodules get that, too. Raises: `DownloadFailed`.
        """
        done = self.start("config", "--null", "--name-only", "--get-regexp", r"^filter\.")
        names = sorted({name.rpartition(".")[0] for name in done.stdout.split("\0") if name})
        # Not by `-c`, for which a name ends at its first `=`.
        count = int(self.environment.get("GIT_CONFIG_COUNT") or 0)
        added: dict[str, str] = {}
        for name in names:
            for part, value in (("smudge", ""), ("process", ""), ("required", "false")):
                added |= {
                    f"GIT_CONFIG_KEY_{count}": f"{name}.{part}",
                    f"GIT_CONFIG_VALUE_{count}": value,
                }
                count += 1
        other = copy(self)
        other.environment = {**self.environment, **added, "GIT_CONFIG_COUNT": str(count)}
        return other

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one git command to its end. Raises: `DownloadFailed`."""
        command = ["git"]
        for setting in SETTINGS:
            command += ["-c", setting]
        if self.folder is not None:
            command += ["-C", str(self.folder)]
        try:
            return subprocess.run(  # noqa: S603 - our own words, no shell
                [*command, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT,
                text=True,
                errors="replace",
                check=False,
                start_new_session=True,  # without a terminal ssh fails instead of asking
            )
        except FileNotFoundError as err:
            raise DownloadFailed("git is not installed.") from err
        except subprocess.TimeoutExpired as err:
            raise DownloadFailed(f"git did not end within {TIMEOUT:.0f} s.") from err

    def run(self, *arguments: str) -> str:
        """Why the command failed, in git's last words; empty where it did not."""
        done = self.start(*arguments)
        return "" if done.returncode == 0 else _last_words(done)


def _begin(folder: Path, url: str, git: _Git, hashing: str = "sha1") -> None:
    folder.mkdir(parents=True)
    why = git.run("init", "--quiet", "--template=", f"--object-format={hashing}")
    why = why or git.run("remote", "add", "origin", url)
    if why:
        _fail(url, why)


def _listed(url: str, patterns: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Name to commit of those refs that the repository has."""
    done = _Git(None, url, environment).start("ls-remote", "--quiet", "--", url, *patterns)
    if done.returncode:
        _fail(url, _last_words(done))
    lines = (line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    return {name: commit for commit, name in lines if COMMIT.fullmatch(commit)}


def _completed(url: str, begin: str, environment: Mapping[str, str]) -> str:
    """The one commit whose id begins so; empty where there is none."""
    with tempfile.TemporaryDirectory(prefix="comfy-runner-git-") as scratch:
        folder = Path(scratch, "repository")
        git = _Git(folder, url, environment)
        _begin(folder, url, git)
        if why := git.run("fetch", "--quiet", "--no-tags", "origin", *ALL_REFS):
            _fail(url, why)
        done = git.start("rev-parse", "--quiet", "--verify", f"{begin}^{{commit}}")
    return done.stdout.strip() if done.returncode == 0 else ""


def _refuse_unknown(url: str, ref: str, environment: Mapping[str, str]) -> NoReturn:
    refs = _listed(url, ["refs/heads/*", "refs/tags/*"], environment)
    names = list(dict.fromkeys(re.sub(r"^refs/(heads|tags)/|\^\{\}$", "", name) for name in refs))
    shown = get_close_matches(ref, names, SHOWN_REFS, 0.5) or names[:SHOWN_REFS]
    hint = f"It has {', '.join(shown)}." if shown else "It has none at all."
    _refuse(f"{redacted(url)} has no branch, tag or commit {ref!r}.", hint)


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("fatal: ", "error: "))]
    return (fatal or lines or [f"exit status {done.returncode}, and not a word"])[-1]


def _refuse(what: str, hint: str) -> NoReturn:
    raise InvalidInput([Problem("unknown_revision", what, hint)])


def _fail(url: str, why: str) -> NoReturn:
    raise DownloadFailed(f"git could not fetch {redacted(url)}: {why}. {NOT_ASKED}")
