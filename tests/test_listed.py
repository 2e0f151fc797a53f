"""The names that choices are made of."""

from pathlib import Path

import pytest

from comfy_runner.errors import InvalidInput
from comfy_runner.publishing.listed import names
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.manifest import Manifest


def test_a_folder_gives_what_comfyui_would_list(tmp_path: Path) -> None:
    for name in ("b.safetensors", "sub/a.safetensors", "notes.txt"):
        path = tmp_path / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folders = ModelFolders(tmp_path)
    assert names("folder:loras", folders, Manifest()) == ("b.safetensors", "sub/a.safetensors")
    assert names("folder:none", folders, Manifest()) == ()


def test_a_group_gives_its_weights_by_name(tmp_path: Path) -> None:
    groups = {"styles": ("loras/two.safetensors", "loras/sub/one.safetensors")}
    found = names("group:styles", ModelFolders(tmp_path), Manifest(groups=groups))
    assert found == ("sub/one.safetensors", "two.safetensors")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("group:stiles", "no group 'stiles'. Did you mean 'styles'?"),
        ("loras", "'loras' names neither a model folder nor a group. Write folder:NAME"),
    ],
)
def test_another_source_is_refused(tmp_path: Path, source: str, says: str) -> None:
    manifest = Manifest(groups={"styles": ()})
    with pytest.raises(InvalidInput, match=says.replace("?", r"\?")):
        names(source, ModelFolders(tmp_path), manifest)
