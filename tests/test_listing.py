"""What stands in the model folders, as ComfyUI lists it."""

from pathlib import Path

import pytest
from weight_stores import put, weight

from comfy_runner.graph.nodes import ModelFolder
from comfy_runner.weights.listing import ModelFolders


@pytest.fixture
def folders(tmp_path: Path) -> ModelFolders:
    return ModelFolders(tmp_path / "models")


def test_lists_what_comfyui_lists(folders: ModelFolders) -> None:
    put(folders.models, "loras/a.safetensors", "loras/Sub Dir/deep/b.CKPT", "loras/readme.txt")
    put(folders.models, "loras/.git/c.pt", "loras/.hidden.sft", "loras/noextension", "vae/d.pt")
    endings = enumerate([".pt2", ".bin", ".pth", ".pkl"])
    put(folders.models, *(f"loras/x{number}{ending}" for number, ending in endings))
    assert folders.listing("loras") == {
        "a.safetensors",
        "Sub Dir/deep/b.CKPT",
        ".hidden.sft",
        "x0.pt2",
        "x1.bin",
        "x2.pth",
        "x3.pkl",
    }
    assert folders.listing("none") == frozenset()


def test_lists_folders_that_comfyui_merges(folders: ModelFolders) -> None:
    put(folders.models, "unet/a.pt", "diffusion_models/b.pt", "clip/c.pt", "text_encoders/d.pt")
    put(folders.models, "controlnet/e.pt", "t2i_adapter/f.pt")
    assert folders.listing("unet") == folders.listing("diffusion_models") == {"a.pt", "b.pt"}
    assert folders.listing("clip") == folders.listing("text_encoders") == {"c.pt", "d.pt"}
    assert folders.listing("controlnet") == {"e.pt", "f.pt"}


def test_lists_a_folder_of_a_node_pack_as_the_catalog_describes_it(folders: ModelFolders) -> None:
    put(folders.models, "one/a.gguf", "two/sub/b.gguf", "two/c.pt", "three/d")
    both = ModelFolder(("one", "two"), frozenset({".gguf"}))
    assert folders.listing("packed", both) == {"a.gguf", "sub/b.gguf"}
    assert folders.listing("all", ModelFolder(("three",), frozenset())) == {"d"}


def test_follows_links_that_lead_somewhere(folders: ModelFolders, tmp_path: Path) -> None:
    put(folders.models, "elsewhere/sub/a.pt", "loras/b.pt")
    (folders.models / "loras" / "linked").symlink_to(folders.models / "elsewhere")
    (folders.models / "loras" / "c.pt").symlink_to(folders.models / "loras" / "b.pt")
    (folders.models / "loras" / "lost.pt").symlink_to(tmp_path / "nothing.pt")
    assert folders.listing("loras") == {"b.pt", "c.pt", "linked/sub/a.pt"}


def test_a_weight_is_there_where_comfyui_finds_it(folders: ModelFolders) -> None:
    put(folders.models, "unet/a.pt", "loras/b.pt", "LLM/whole/config.json")
    assert folders.holds(weight("a.pt", folders=("diffusion_models",)))
    assert folders.holds(weight("b.pt"))
    assert not folders.holds(weight("b.pt", folders=("loras", "vae")))
    assert not folders.holds(weight("c.pt"))
    assert folders.holds(weight("whole", folders=("LLM",), kind="dir"))
    assert not folders.holds(weight("whole", folders=("LLM",)))


def test_a_file_that_somebody_put_there_counts_whatever_its_size(folders: ModelFolders) -> None:
    put(folders.models, "loras/b.pt")
    assert folders.holds(weight("b.pt", size=2, sha256="0" * 64))


def test_a_small_autoencoder_of_another_type_is_not_overruled(folders: ModelFolders) -> None:
    put(folders.models, "vae_approx/taef1_encoder.safetensors")
    put(folders.models, "vae_approx/other_encoder.safetensors")
    assert folders.holds(weight("taef1_encoder.pt", folders=("vae_approx",)))
    assert not folders.holds(weight("taef1_decoder.pt", folders=("vae_approx",)))
    assert not folders.holds(weight("other_encoder.pt", folders=("vae_approx",)))
