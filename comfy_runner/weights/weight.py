"""One weight: a model file, its names, and the places that it can be fetched from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

LEGACY_FOLDERS: Mapping[str, str] = {"unet": "diffusion_models", "clip": "text_encoders"}
"""Old folder names that ComfyUI maps to new ones: `map_legacy` in folder_paths.py, 0.30.0."""


@dataclass(frozen=True, slots=True)
class Source:
    """One place that a weight can be fetched from."""

    url: str
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
    def unsupported(self) -> tuple[str, str] | None:
        """What keeps the weight from being fetched, and the cure; None when nothing does."""
        if self.plain_urls:
            return None
        return (
            f"the model {self.label} comes as an archive or a folder, which cannot be fetched yet.",
            "Put it into the models folder by hand, or give a URL of the file itself.",
        )

    @property
    def plain_urls(self) -> tuple[str, ...]:
        """The mirrors that lead to the file itself; empty when it cannot be fetched yet."""
        if self.kind == "dir":
            return ()
        return tuple(source.url for source in self.urls if not source.extract)


def map_legacy(folder: str) -> str:
    """The folder's present name."""
    return LEGACY_FOLDERS.get(folder, folder)
