"""One weight: a model file, its names, and the places that it can be fetched from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from comfy_runner.fetch.urls import redacted, scheme

LEGACY_FOLDERS: Mapping[str, str] = {"unet": "diffusion_models", "clip": "text_encoders"}
"""Old folder names that ComfyUI maps to new ones: `map_legacy` in folder_paths.py, 0.30.0."""


@dataclass(frozen=True, slots=True)
class Source:
    """One place that a weight can be fetched from."""

    url: str = field(repr=False)
    """`https:`, `http:` or `file:` URL, or a path relative to the manifest's folder."""
    auth: Literal["none", "hf", "civitai", "bearer_env"] = "none"
    """Kind of token that the place wants."""
    env: str = ""
    """Environment variable that holds the token, for `bearer_env`."""
    extract: Literal["", "tar", "zip"] = ""
    """Kind of archive that the URL leads to; empty for the file itself."""
    member: str = ""
    """Path of the file inside the archive."""
    strip: int = 0
    """Leading path parts to drop from the archive's members."""
    size: int | None = None
    """Bytes of the archive."""
    sha256: str | None = None
    """Hash of the archive."""


@dataclass(frozen=True, slots=True)
class Implication:
    """A node that loads a weight without naming it."""

    class_type: str
    input: str | None = None
    """The input to look at; without one, any node of the class counts."""
    equals: str | int | float | bool | None = None
    """The value that the input has."""
    contains: str | None = None
    """Text that stands in the input's value."""

    def holds(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a node of this class with these inputs loads the weight."""
        if self.input is None:
            values: Collection[Any] = inputs.values()
        elif self.input in inputs:
            values = [inputs[self.input]]
        else:
            return False
        if self.equals is not None:
            return any(type(v) is type(self.equals) and v == self.equals for v in values)
        if self.contains is not None:
            return any(isinstance(v, str) and self.contains in v for v in values)
        return True


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a weight that is a whole folder."""

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One weight: a file under one name in one or more model folders."""

    name: str
    """Path under the model folder, with `/`."""
    folders: tuple[str, ...]
    """Model folders, legacy names mapped; the first one gets the bytes."""
    urls: tuple[Source, ...]
    """Mirrors, best first."""
    kind: Literal["file", "dir"] = "file"
    size: int | None = None
    """Bytes of the installed file."""
    sha256: str | None = None
    """Hash of the installed file: 64 hexadecimal digits."""
    files: tuple[Member, ...] = ()
    """What a weight of the kind `dir` consists of."""
    aliases: tuple[str, ...] = ()
    """Other names for exactly this file."""
    implied_by: tuple[Implication, ...] = ()
    license: str = ""
    license_url: str = ""
    note: str = ""
    air: str = ""
    gated: bool = False
    """Whether the place wants a login or an accepted licence."""
    non_commercial: bool = False

    @property
    def label(self) -> str:
        """Folder and name, such as `loras/x.safetensors`."""
        return f"{self.folders[0]}/{self.name}"

    @property
    def described(self) -> str:
        """Label and size, such as `loras/x.safetensors (1.3 GB)`."""
        size = "size unknown" if self.size is None else human_size(self.size)
        return f"{self.label} ({size})"

    @property
    def origin(self) -> str:
        """The host of the best mirror; the path of a file on this machine."""
        if not self.urls:
            return ""
        url = self.urls[0].url
        if scheme(url) in ("http", "https"):
            return urlsplit(url).hostname or ""
        return redacted(url)

    def as_json(self) -> dict[str, Any]:
        """What somebody wants to know before it is fetched, as a JSON object; `size` in bytes."""
        return {
            "folder": self.folders[0],
            "name": self.name,
            "size": self.size,
            "from": self.origin,
            "license": self.license,
            "gated": self.gated,
            "non_commercial": self.non_commercial,
        }


def map_legacy(folder: str) -> str:
    """The folder's present name."""
    return LEGACY_FOLDERS.get(folder, folder)


def human_size(size: int) -> str:
    """Bytes as people read them: `512 B`, `1.3 MB`, `23.8 GB`."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:  # noqa: PLR2004 - the step between units
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
