"""uv at work for packs: all requirements resolved together with ours, then installed by hash."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from comfy_runner.comfyui import bytecode
from comfy_runner.comfyui.process import SECRET
from comfy_runner.errors import DownloadFailed, InvalidInput, MachineError, Problem
from comfy_runner.packs import requirements
from comfy_runner.packs.lock import LockedPack
from comfy_runner.packs.requirements import Asked

TIMEOUT = 1800.0
"""Seconds until uv is given up."""

PIP_TIMEOUT = 30.0
"""Seconds that pip has to tell which index it is set up with."""

PLATFORM = ("--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28")
"""What `script/lock` resolves for: the machine that Cog builds for."""

NO_SOLUTION = "No solution found"
CONSTRAINTS = "ours.txt"
COMPILED = "compiled.txt"

MEANT_FOR_UV = re.compile("(UV|PIP|SSL|NETRC).*|.*_PROXY", re.IGNORECASE)
"""Variables that uv needs, though there may be a password in them."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What all packs together need."""

    text: str
    """For `custom_nodes/requirements.lock`."""
    notes: tuple[str, ...]
    """What the author should know, one sentence each."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What the project pins."""

    runtime: Mapping[str, str]
    """Package to version of what an image gets: `requirements.txt`, which is there too."""
    everything: Mapping[str, str]
    """With what only development needs, and what Cog brings."""


def ours(project: Path) -> Ours:
    """What the project pins. Raises: `MachineError` where it has no `requirements.txt`."""
    try:
        runtime = requirements.pins((project / "requirements.txt").read_text(encoding="utf-8"))
    except OSError as err:
        what = f"{project}/requirements.txt cannot be read: {err.strerror}."
        raise MachineError(f"{what} Packs are resolved together with it.") from err
    locked = project / "requirements.lock"
    more = requirements.pins(locked.read_text(encoding="utf-8")) if locked.is_file() else {}
    return Ours(runtime, {**more, **runtime})


def is_current(locked: str, packs: Sequence[LockedPack], pinned: Ours) -> bool:
    """Whether a requirements lock is what `resolve` would make anew."""
    if not any(pack.requirements for pack in packs):
        return _names_none(locked)
    return requirements.is_of(locked, requirements.fingerprint(packs, pinned.runtime))


def resolve(
    packs: Sequence[LockedPack],
    pinned: Ours,
    project: Path,
    environment: Mapping[str, str] = os.environ,
    *,
    before: str = "",
) -> Resolution:
    """One set of packages that meets all packs' requirements and leaves ours where they are.

    Nothing is installed. The index may be asked, unless what we have meets everything already.
    Versions stay what they are in `before`, the text of an earlier resolution, where they fit.

    Raises: `InvalidInput` with every requirement that does not go with ours, and with every pack's
    part in a conflict; `DownloadFailed` where uv cannot work.
    """
    have = pinned.everything
    wanted, problems = requirements.asked(packs)
    problems += requirements.against_ours(wanted, have)
    if problems:
        raise InvalidInput(problems)
    needed = requirements.missing(wanted, have)
    compiled = _compiled(needed, have, _Uv(project, environment), before) if needed else ""
    text = requirements.written(compiled, have, requirements.fingerprint(packs, pinned.runtime))
    notes = requirements.twins(wanted, have, requirements.pins(text))
    return Resolution(text, tuple(notes))


def install(
    locked: Path,
    project: Path,
    python: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Install what a requirements lock names, each file checked by its hash, and compile it.

    `python` is the interpreter of the environment; ours by default.

    Raises: `DownloadFailed`, in uv's own words.
    """
    if _names_none(locked.read_text(encoding="utf-8")):
        return
    done = _Uv(project, environment).run(
        *("pip", "install", "--python", str(python or sys.executable)),
        *("--no-deps", "--require-hashes", "--requirement", str(locked)),
    )
    if done.returncode:
        raise DownloadFailed(f"uv could not install {locked}:\n{_words(done.stderr)}")
    # Whatever comes of it, the packages are there; -P keeps our modules out of their way.
    subprocess.run(  # noqa: S603 - our own words, no shell
        [str(python or sys.executable), "-P", str(bytecode.__file__)],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        check=False,
    )


def unmet(packs: Iterable[LockedPack], pinned: Ours) -> dict[str, list[str]]:
    """Pack to what it asks for and this environment lacks, one sentence each."""
    wanted, problems = requirements.asked(packs)
    found: dict[str, list[str]] = {}
    for problem in (*problems, *requirements.against_ours(wanted, pinned.everything)):
        found.setdefault(problem.input.removeprefix("pack "), []).append(problem.what)
    for each in wanted:
        try:
            have = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            found.setdefault(each.pack, []).append(f"{each.text} is not installed.")
            continue
        if not each.requirement.specifier.contains(Version(have), prereleases=True):
            what = f"It asks for {each.text}; {each.name} {have} is installed."
            found.setdefault(each.pack, []).append(what)
    return found


def _names_none(locked: str) -> bool:
    """Whether a requirements lock has no package, be it by its version or by an address."""
    return all(not line or line.startswith("#") for line in locked.splitlines())


def _compiled(needed: Sequence[Asked], pinned: Mapping[str, str], uv: "_Uv", before: str) -> str:
    """What uv makes of the packs' requirements with ours as constraints."""
    with tempfile.TemporaryDirectory(prefix="comfy-runner-uv-") as scratch:
        folder = Path(scratch)
        text = "".join(f"{name}=={version}\n" for name, version in sorted(pinned.items()))
        (folder / CONSTRAINTS).write_text(text)
        (folder / COMPILED).write_text(before, encoding="utf-8")
        for each in needed:
            with (folder / f"{each.pack}.in").open("a", encoding="utf-8") as file:
                file.write(f"{each.text}\n")
        files = sorted({f"{each.pack}.in" for each in needed})
        done = uv.run(
            *("pip", "compile", "--python", sys.executable, *PLATFORM),
            *("--no-header", "--generate-hashes", "--output-file", COMPILED),
            *("--constraints", CONSTRAINTS, *files),
            folder=folder,
        )
        if done.returncode == 0:
            return (folder / COMPILED).read_text(encoding="utf-8")
    words = _words(done.stderr)
    if NO_SOLUTION not in words:
        raise DownloadFailed(f"uv could not resolve the packs' requirements:\n{words}")
    told = " ".join(words.partition(NO_SOLUTION)[2].partition(":")[2].split())
    what = f"The packs' requirements do not go together, or not with ours: {told}"
    conflict = Problem("requirements_conflict", what, "Nothing was installed or changed.")
    raise InvalidInput([conflict, *requirements.shared(needed, words)])


def _words(stderr: str) -> str:
    """What uv said, without colours and frames."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
    # Multiplication signs and what boxes are drawn with.
    return re.sub("[\u00d7\u2500-\u25ff]+ ?", "", text).strip() or "It said nothing."


class _Uv:
    """The uv program, set up with the index that pip uses unless it has its own."""

    def __init__(self, project: Path, environment: Mapping[str, str]) -> None:
        # To read what a package asks for, its own build script may have to run.
        passed = {
            name: value
            for name, value in environment.items()
            if MEANT_FOR_UV.fullmatch(name) or not SECRET.search(name.upper())
        }
        self.environment = {**passed, "NO_COLOR": "1", **_index(environment)}
        beside = str(Path(sys.executable).parent)
        own = str(project / ".uv" / "venv" / "bin")
        path = os.pathsep.join((environment.get("PATH", os.defpath), beside, own))
        self.program = shutil.which("uv", path=path)

    def run(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end. Raises: `DownloadFailed` where there is none, or it takes too long."""
        if self.program is None:
            raise DownloadFailed("uv was not found. Run script/bootstrap, or install uv.")
        try:
            return subprocess.run(  # noqa: S603 - our own words, no shell
                [self.program, *arguments[:2], "--quiet", *arguments[2:]],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT,
                text=True,
                errors="replace",
                check=False,
            )
        except subprocess.TimeoutExpired as err:
            raise DownloadFailed(f"uv did not end within {TIMEOUT:.0f} s.") from err


def _index(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that give uv the index and certificates that pip is set up with."""
    found: dict[str, str] = {}
    if not environment.get("UV_DEFAULT_INDEX") and not environment.get("UV_INDEX_URL"):
        index = environment.get("PIP_INDEX_URL") or _index_of_pip(environment)
        if index:
            found["UV_DEFAULT_INDEX"] = index
    if environment.get("PIP_CERT") and not environment.get("SSL_CERT_FILE"):
        found["SSL_CERT_FILE"] = environment["PIP_CERT"]
    return found


def _index_of_pip(environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PIP_TIMEOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
