"""What a training is asked to pack: lines or JSON, read into weights and where they belong."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from comfy_runner.comfyui import saved_catalog
from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.endings import WEIGHTS
from comfy_runner.graph.nodes import did_you_mean
from comfy_runner.serving.training_tar import check_loadable
from comfy_runner.weights.hosts.addresses import CivitAI, HuggingFace, parse, shown
from comfy_runner.weights.manifests.schema import HASH, RELATIVE
from comfy_runner.weights.store import Addressed, read_manifest
from comfy_runner.weights.weight import Weight, map_legacy

UPLOAD = "upload"
"""What stands for the uploaded file in the place of an address."""
EXAMPLE = "Write it like loras/style.safetensors = https://example.com/style.safetensors"


@dataclass(frozen=True, slots=True)
class Asked:
    """One weight to pack."""

    what: Weight | Addressed | None
    """A weight of the model's own manifest, or one by its address; None for the upload."""
    folder: str
    """The model folder, legacy names mapped."""
    name: str
    """What it is to be called; without an ending it gets that of the file, empty for its own."""
    sha256: str | None = None
    """The hash that an upload must have; that of an address stands in `what`."""


def asked(text: str, config: Config, *, has_upload: bool = False) -> tuple[Asked, ...]:
    """The weights that a text asks for, in its order.

    One a line: `FOLDER/NAME = ADDRESS`, `FOLDER = ADDRESS` to keep the name, an address alone where
    it says its folder as an AIR does, or `FOLDER/NAME` of the model's own manifest; `upload` is the
    uploaded file. Empty lines and those that begin with `#` do not count. Or a JSON object of
    `FOLDER/NAME` to an address, or to `{"url": ADDRESS, "sha256": HASH}`.

    Raises: `InvalidInput` with every line that does not hold.
    """
    problems: list[Problem] = []
    own = {weight.label: weight for weight in read_manifest(config.manifest).weights}
    reader = _Reader(config, own)
    found: list[Asked] = []
    for place, left, right, sha256 in _lines(text):
        try:
            found.append(reader.read(left, right, sha256))
        except InvalidInput as err:
            problems += (replace(each, input=place) for each in err.problems)
    uploaded = [one for one in found if one.what is None]
    if has_upload and not uploaded and not problems:
        hint = "Add a line such as loras/style.safetensors = upload."
        what = "It is not said where the uploaded file belongs."
        problems.append(Problem("unused_upload", what, hint, input="weights"))
    elif not found and not problems:
        problems.append(Problem("nothing_asked", "No weights are given.", EXAMPLE, input="weights"))
    if uploaded and not has_upload:
        problems.append(Problem("no_upload", "No file is uploaded.", input=UPLOAD))
    count = sum(isinstance(one.what, Addressed) for one in found)
    if count > config.max_urls:
        what = f"There are {count} addresses; {config.max_urls} are allowed."
        hint = "Pack less, or have COMFY_RUNNER_MAX_URLS raised."
        problems.append(Problem("too_many_urls", what, hint, input="weights"))
    if problems:
        raise InvalidInput(problems)
    return tuple(found)


def _lines(text: str) -> Iterator[tuple[str, str, str, str | None]]:
    """Place in the request, left side, right side and hash of each entry."""
    if text.lstrip().startswith("{"):
        yield from _members(text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            # The = of an address alone stands after its : or ?.
            found = re.fullmatch(r"\s*([^=:?]+?)\s*=\s*(\S.*?)\s*", line)
            left, right = found.groups() if found else ("", line.strip())
            yield f"weights, line {number}", left, right, None


def _members(text: str) -> Iterator[tuple[str, str, str, str | None]]:
    try:
        members = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise InvalidInput(
            [Problem("no_json", f"It is not JSON: {err}.", EXAMPLE, input="weights")]
        ) from err
    for left, member in members.items():
        place = f"weights, {left}"
        match member:
            case str(address):
                yield place, left, address, None
            case {"url": str(address), "sha256": str(sha256)} if HASH.fullmatch(sha256):
                yield place, left, address, sha256
            case {"url": str(address), **rest} if not rest:
                yield place, left, address, None
            case _:
                what = "It is neither an address nor an object of url and sha256."
                raise InvalidInput([Problem("bad_weight", what, EXAMPLE, input=place)])


class _Reader:
    """Reads one entry after the other."""

    def __init__(self, config: Config, own: Mapping[str, Weight]) -> None:
        self._config = config
        self._own = own
        self._known = saved_catalog.builtin().raw["folders"]

    def read(self, left: str, right: str, sha256: str | None) -> Asked:
        """What an entry asks for. Raises: `InvalidInput`."""
        if not left and (weight := self._own.get(right)):
            return self._of_manifest(weight)
        if right == UPLOAD:
            folder, name = self._target(left)
            if PurePosixPath(name).suffix.lower() not in WEIGHTS:
                # Cog keeps no names of what is sent in the request itself.
                raise _bad("An upload needs a name.", "Write loras/style.safetensors = upload.")
            return Asked(None, folder, name, sha256)
        hf = self._config.hf_endpoint
        address = parse(right, bare_repositories=True, hf_endpoint=hf)
        if address is None:
            what = f"{right!r} is neither an address nor a weight of the model's manifest."
            raise _bad(what, did_you_mean(right, self._own) or EXAMPLE)
        folder, name = "", ""
        if left:
            folder, name = self._target(left)
        elif isinstance(address, CivitAI | HuggingFace):
            folder = address.model_folder
        if not folder:
            raise _bad(f"It is not said which folder {shown(address)} belongs into.", EXAMPLE)
        return Asked(Addressed(address, folder, sha256), folder, name)

    def _of_manifest(self, weight: Weight) -> Asked:
        if weight.kind == "dir":
            raise _bad(f"{weight.label} is a whole folder, which is not packed.", "Name files.")
        check_loadable(weight.name, self._config, weight.label)
        return Asked(weight, weight.folders[0], weight.name)

    def _target(self, left: str) -> tuple[str, str]:
        """Folder and name, which may be empty."""
        folder, _, name = left.partition("/")
        folder = map_legacy(folder)
        if not RELATIVE.fullmatch(left.removesuffix("/")) or folder.startswith("."):
            raise _bad(f"{left!r} is no folder and name.", EXAMPLE)
        guess = "" if folder in self._known else did_you_mean(folder, self._known)
        if guess:
            raise _bad(f"There is no model folder {folder!r}.", guess)
        if name and PurePosixPath(name).suffix.lower() in WEIGHTS:
            check_loadable(name, self._config, left)
        return folder, name


def _bad(what: str, hint: str) -> InvalidInput:
    return InvalidInput([Problem("bad_weight", what, hint)])
