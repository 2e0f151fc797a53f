"""What is in the model folders: the names that ComfyUI would list, and the files behind them."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from comfy_runner.fetch.endings import LISTED
from comfy_runner.graph.nodes import ModelFolder
from comfy_runner.weights.manifest import IMAGE_TAES
from comfy_runner.weights.weight import Weight, map_legacy

MERGED: Mapping[str, tuple[str, ...]] = {
    "diffusion_models": ("unet", "diffusion_models"),
    "text_encoders": ("text_encoders", "clip"),
    "controlnet": ("controlnet", "t2i_adapter"),
}
"""Model folders that ComfyUI fills from several, in the order in which it looks: same place."""


class ModelFolders:
    """A models folder as ComfyUI reads it."""

    def __init__(self, models: Path) -> None:
        self.models = models

    def listing(self, folder: str, shape: ModelFolder | None = None) -> frozenset[str]:
        """The names in a model folder as ComfyUI lists them: relative, with `/`.

        `shape` is what the catalog says of the folder, where it knows it: node packs make folders
        of their own. Links are followed. Unlike in ComfyUI's own list, a link that leads nowhere
        is left out: ComfyUI would offer the name and then fail to load it.
        """
        names: set[str] = set()
        places = [self.models / name for name in shape.places] if shape else self._places(folder)
        extensions = shape.extensions if shape else LISTED
        for place in places:
            for parent, subfolders, files in os.walk(place, followlinks=True):
                subfolders[:] = [name for name in subfolders if name != ".git"]
                for name in files:
                    file = Path(parent, name)
                    if (not extensions or file.suffix.lower() in extensions) and file.exists():
                        names.add(file.relative_to(place).as_posix())
        return frozenset(names)

    def holds(self, weight: Weight) -> bool:
        """Whether the weight stands in all its folders, whoever put it there."""
        return all(self.find(weight, folder) is not None for folder in weight.folders)

    def find(self, weight: Weight, folder: str) -> Path | None:
        """The file or folder that stands for the weight in a model folder; None if none does."""
        for place in self._places(folder):
            path = place / weight.name
            with suppress(OSError):
                if path.is_dir() if weight.kind == "dir" else path.is_file():
                    return path
        # VAELoader takes the first file that begins so: one of another type would be in its way.
        half = weight.name.partition(".")[0]
        if folder == "vae_approx" and half.partition("_")[0] in IMAGE_TAES:
            for place in self._places(folder):
                for file in place.glob(f"{half}.*"):
                    if file.suffix.lower() in LISTED and file.name != weight.name:
                        return file
        return None

    def _places(self, folder: str) -> list[Path]:
        present = map_legacy(folder)
        return [self.models / name for name in MERGED.get(present, (present,))]
