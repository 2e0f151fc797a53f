"""What packs ask of Python packages, held against what we have: who wants what, what never moves.

Pure: nothing is installed or asked for here.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from comfy_runner.errors import Problem
from comfy_runner.packs.lock import LockedPack

KERNEL = frozenset(
    {"torch", "torchvision", "torchaudio", "triton", "numpy", "safetensors", "transformers"}
    | {"comfyui-frontend-package", "comfy-kitchen", "comfy-aimdo", "cog", "coglet"}
)
"""Packages that ComfyUI and Cog stand on: one of another version breaks all other packs too."""

SAME_MODULE: Sequence[frozenset[str]] = (
    frozenset(
        {"opencv-python", "opencv-python-headless", "opencv-contrib-python"}
        | {"opencv-contrib-python-headless"}
    ),
    frozenset({"onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"}),
    frozenset({"pillow", "pillow-simd"}),
    frozenset({"tensorflow", "tensorflow-cpu", "tensorflow-gpu"}),
    frozenset({"faiss-cpu", "faiss-gpu"}),
)
"""Packages that write the same files: the one installed last wins, and removing one breaks both."""

PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")
REFUSED = (
    (re.compile("^(-e|--editable)"), "It is a folder of its author's machine."),
    (re.compile(r"(git|hg|svn|bzr)\+"), "It comes out of a repository, so no hash can pin it."),
    # uv puts the value there, a password too.
    (re.compile(r"\$\{"), "It asks for the value of a variable of this machine."),
)
"""What is not resolved for a pack, and why."""
HEAD = "# Of: "


@dataclass(frozen=True, slots=True)
class Asked:
    """One requirement of one pack."""

    pack: str
    text: str
    requirement: Requirement

    @property
    def name(self) -> str:
        """The package's name, in the one spelling that counts."""
        return canonicalize_name(self.requirement.name)


def pins(text: str) -> dict[str, str]:
    """Package to version of every `name==version` line of a requirements file."""
    found = (PIN.match(line) for line in text.splitlines())
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


def asked(packs: Iterable[LockedPack]) -> tuple[list[Asked], list[Problem]]:
    """What the packs ask for on this system, without what is left out; and what cannot be used."""
    wanted: list[Asked] = []
    problems: list[Problem] = []
    for pack in packs:
        left_out = {canonicalize_name(name) for name in pack.leave_out} | {*pack.leave_out}
        for text in pack.requirements:
            if text in left_out:
                continue
            found = _read(text)
            if isinstance(found, str):
                problems.append(_problem(pack.name, text, found))
                continue
            if _applies(found) and canonicalize_name(found.name) not in left_out:
                wanted.append(Asked(pack.name, text, found))
    return wanted, problems


def against_ours(wanted: Iterable[Asked], ours: Mapping[str, str]) -> Iterator[Problem]:
    """One problem for each requirement that would move a package of ours."""
    for each in wanted:
        have = ours.get(each.name)
        if have is None or each.requirement.specifier.contains(Version(have), prereleases=True):
            continue
        hint = (
            f"{each.name} is never moved for a pack: take a version of the pack that fits."
            if each.name in KERNEL
            else f"Take a version of the pack that fits, or move {each.name} in requirements.in."
        )
        hint += f" Or leave it out, and see: --leave-out {each.name}"
        what = f"It asks for {each.text}; we have {each.name} {have}."
        yield Problem("requirements_conflict", what, hint, input=f"pack {each.pack}")


def missing(wanted: Iterable[Asked], ours: Mapping[str, str]) -> list[Asked]:
    """Those that what we have does not meet already."""
    return [each for each in wanted if each.name not in ours or each.requirement.extras]


def shared(wanted: Sequence[Asked], text: str) -> Iterator[Problem]:
    """Who asks what of the packages that `text`, a resolver's explanation, speaks of."""
    spoken = {canonicalize_name(name) for name in re.findall(r"[A-Za-z0-9][\w.-]*", text)}
    names = dict.fromkeys(each.name for each in wanted if each.name in spoken)
    for name in names:
        asking = [each for each in wanted if each.name == name]
        what = f"{'; '.join(f'{each.pack} asks for {each.text}' for each in asking)}."
        hint = f"Take another version of a pack, or leave it out of one: --leave-out {name}"
        yield Problem("requirements_conflict", what, hint, input=f"package {name}")


def twins(
    wanted: Sequence[Asked], ours: Iterable[str], resolved: Iterable[str] = ()
) -> Iterator[str]:
    """One sentence for packages that are installed over each other.

    `resolved` are those that the packs get, with the dependencies of what they ask for.
    """
    users: dict[str, list[str]] = {name: ["comfy-runner"] for name in ours}
    for each in wanted:
        users.setdefault(each.name, []).append(each.pack)
    for name in resolved:
        users.setdefault(name, ["another package"])
    for group in SAME_MODULE:
        found = sorted(group & users.keys())
        if len(found) > 1:
            who = "; ".join(f"{name} for {', '.join(users[name])}" for name in found)
            yield (
                f"{' and '.join(found)} are installed over each other ({who}). Leave all but one"
                " out with --leave-out, or it is chance which of them works."
            )


def fingerprint(packs: Iterable[LockedPack], ours: Mapping[str, str]) -> str:
    """Changes with what the packs ask for and with what we have, and is the same everywhere."""
    lines = [f"{pack.name} {pack.requirements} {sorted(pack.leave_out)}" for pack in packs]
    lines = sorted(lines) + sorted(f"{name}=={version}" for name, version in ours.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def is_of(locked: str, mark: str) -> bool:
    """Whether a requirements lock was made for what has this `fingerprint`."""
    return f"{HEAD}{mark}" in locked.splitlines()[:5]


def written(compiled: str, ours: Iterable[str], mark: str) -> str:
    """The text of `custom_nodes/requirements.lock`: what uv compiled, less what we have.

    Installed without dependencies, it can move nothing of ours, because it names nothing of ours.
    """
    known = set(ours)
    blocks: list[str] = []
    keeps = False
    for line in compiled.splitlines():
        if line and not line.startswith((" ", "#")):
            name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
            keeps = name is not None and canonicalize_name(name[0]) not in known
        if keeps:
            blocks.append(re.sub(r"-r (\S+)\.in\b", r"\1", line))
    return "\n".join(
        (
            "# What the packs in custom_nodes.lock.json need besides requirements.lock.",
            "# Made by comfy-runner nodes lock; installed by comfy-runner nodes install.",
            f"{HEAD}{mark}",
            *blocks,
            "",
        )
    )


def _read(text: str) -> Requirement | str:
    """The requirement, or why it cannot be used."""
    for pattern, why in REFUSED:
        if pattern.search(text):
            return why
    try:
        found = Requirement(text)
        _applies(found)
    except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName) as err:
        return f"It is no requirement: {str(err).splitlines()[0].rstrip('.')}."
    except RecursionError:
        return "It is no requirement: its parentheses stand in too many others."
    if found.url is not None and not found.url.startswith("https://"):
        return "It does not come over https."
    return found


def _applies(requirement: Requirement) -> bool:
    """Whether it is meant for this system."""
    return requirement.marker is None or requirement.marker.evaluate()


def _problem(pack: str, text: str, why: str) -> Problem:
    hint = f"Install it yourself if the pack needs it, and leave it out: --leave-out {text!r}"
    return Problem("bad_requirement", f"It asks for {text!r}. {why}", hint, input=f"pack {pack}")
