"""Everything that a run will do, and every reason why it cannot, before anything happens."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from graphs import bundled, catalog, node, picture
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.config import Config
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import CallerError, InvalidInput, InvalidWorkflow, Refused, UnknownModel
from comfy_runner.graph.nodes import ModelFolder, NodeCatalog
from comfy_runner.runs.models import GUESSES
from comfy_runner.runs.plan import (
    RUN_MARK,
    FileNeed,
    Plan,
    is_url,
    needed_models,
    node_policy,
    prepare,
)
from comfy_runner.weights.manifest import Manifest

PROJECT = Path(__file__).resolve().parent.parent
OURS = Manifest.parse((PROJECT / "weights_manifest.json").read_text())

DIFFUSION = "diffusion_models/tiny-flux-colours.safetensors"
TEXT = "text_encoders/tiny-clip_l-16tok.pt"
MOSAIC = "vae/tiny-mosaic-vae.pt"

TAE = ("vae_approx/taef1_encoder.pt", "vae_approx/taef1_decoder.pt")


def manifest(*names: str, **more: Any) -> Manifest:
    """Checkpoints of these names; `more` goes to each entry."""
    entries = [
        {"name": name, "folders": ["checkpoints"], "urls": [f"https://host/{name}"], **more}
        for name in names
    ]
    return Manifest.parse({"version": 1, "weights": entries})


TAES = Manifest.parse(
    {
        "version": 1,
        "weights": [
            {
                "name": name.removeprefix("vae_approx/"),
                "folders": ["vae_approx"],
                "urls": [f"https://host/{name}"],
                "implied_by": [{"class_type": "VAELoader", "input": "vae_name", "equals": "taef1"}],
            }
            for name in TAE
        ],
    }
)
"""As ComfyUI's `VAELoader` has it: one name that stands for two files of another folder."""


def plan(
    document: Mapping[str, Any],
    values: Mapping[str, Any] | None = None,
    files: Collection[str] = (),
    *,
    weights: Manifest = OURS,
    disk: Collection[str] = (),
    seed: int | None = None,
    **more: Any,
) -> Plan:
    """`disk` is the models that are there already, as `folder/name`."""

    def on_disk(folder: str, _: ModelFolder | None) -> Collection[str]:
        return {path.partition("/")[2] for path in disk if path.startswith(f"{folder}/")}

    return prepare(
        document,
        catalog=catalog(),
        manifest=weights,
        on_disk=on_disk,
        values=values,
        files=files,
        seed=seed,
        **more,
    )


def refused(kind: type[CallerError], document: Mapping[str, Any], *given: Any, **more: Any) -> Any:
    """The problems, once it is sure that they come as this very class."""
    with pytest.raises(CallerError) as caught:
        plan(document, *given, **more)
    assert type(caught.value) is kind
    return caught.value.problems


def loaded(class_type: str = "LoadImage", **inputs: Any) -> Any:
    """A graph that loads a file and shows it."""
    return {
        "1": node(class_type, "Loader", **inputs),
        "2": node("PreviewAny", source=["1", 0]),
    }


def photo(name: Any) -> dict[str, Any]:
    return loaded(image=name)


def vae(name: str) -> dict[str, Any]:
    return loaded("VAELoader", vae_name=name)


def checkpoint(name: str) -> dict[str, Any]:
    return loaded("CheckpointLoaderSimple", ckpt_name=name)


# Models


def test_weights_that_are_missing_are_fetched() -> None:
    made = plan(bundled("text_to_picture"), disk=[TEXT])
    assert {weight.label for weight in made.weights} == {DIFFUSION, MOSAIC}
    assert made.present == (TEXT,)
    assert made.notes == ()
    assert made.outputs == ("9",)
    assert made.files == ()


def test_weights_that_are_there_are_not_fetched() -> None:
    made = plan(bundled("text_to_picture"), disk=(DIFFUSION, TEXT, MOSAIC))
    assert made.weights == ()
    assert set(made.present) == {DIFFUSION, TEXT, MOSAIC}


@pytest.mark.parametrize("there", [(), TAE[:1], TAE[1:], TAE])
def test_of_implied_weights_the_missing_ones_are_fetched(there: tuple[str, ...]) -> None:
    made = plan(vae("taef1"), disk=there, weights=TAES)
    assert [weight.label for weight in made.weights] == [name for name in TAE if name not in there]
    assert made.present == there
    assert made.notes == ()
    assert made.workflow.nodes["1"].inputs["vae_name"] == "taef1"


def test_an_implied_name_that_comfyui_lists_itself_needs_no_manifest() -> None:
    assert plan(vae("taef1"), disk=TAE, weights=Manifest()).weights == ()


def test_an_implied_name_with_half_of_its_files_is_unknown_without_a_manifest() -> None:
    (problem,) = refused(UnknownModel, vae("taef1"), disk=TAE[:1], weights=Manifest())
    assert (problem.code, problem.node_id, problem.input) == ("unknown_model", "1", "vae_name")


@pytest.mark.parametrize("hint", [{}, {"contains": "a."}, {"input": "ckpt_name", "contains": "a"}])
def test_what_a_node_loads_besides_leaves_the_model_that_it_names(hint: dict[str, str]) -> None:
    implied_by = [{"class_type": "CheckpointLoaderSimple", **hint}]
    besides = {"name": "b.bin", "folders": ["configs"], "urls": ["https://host/b"]}
    own = {"name": "a.ckpt", "folders": ["checkpoints"], "urls": ["https://host/a"]}
    known = Manifest.parse({"version": 1, "weights": [own, {**besides, "implied_by": implied_by}]})
    made = plan(checkpoint("a.ckpt"), weights=known)
    assert {weight.label for weight in made.weights} == {"checkpoints/a.ckpt", "configs/b.bin"}
    (problem,) = refused(UnknownModel, checkpoint("nobody knows a.ckpt"), weights=known)
    assert problem.code == "unknown_model"


def test_a_class_that_is_not_known_is_told_where_only_models_are_asked_for() -> None:
    document = {
        "1": node("NobodysLoader", ckpt_name="a.ckpt"),
        "2": node("PreviewAny", source=["1", 0]),
    }
    models = needed_models(
        document, catalog=catalog(), manifest=Manifest(), on_disk=lambda *_: frozenset[str]()
    )
    (note,) = models.notes
    assert "The class NobodysLoader of node 1 is not known here" in note


def test_where_only_models_are_asked_for_an_unknown_one_is_an_error() -> None:
    with pytest.raises(UnknownModel, match=r"elsewhere\.ckpt") as caught:
        needed_models(
            checkpoint("elsewhere.ckpt") | {"3": node("NoSuchClass", x=1)},
            catalog=catalog(),
            manifest=Manifest(),
            on_disk=lambda *_: (),
        )
    assert [problem.node_id for problem in caught.value.problems] == ["1"]


def test_a_choice_that_is_no_file_is_no_model() -> None:
    made = plan(vae("pixel_space"), weights=Manifest())
    assert (made.weights, made.present) == ((), ())


def test_a_weight_for_two_folders_is_there_when_it_is_in_both() -> None:
    both = manifest("a.safetensors", folders=["checkpoints", "vae"])
    first, second = "checkpoints/a.safetensors", "vae/a.safetensors"
    document = {
        "1": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "2": node("VAELoader", vae_name="a.safetensors"),
        "3": node("PreviewAny", source=["1", 0]),
        "4": node("PreviewAny", source=["2", 0]),
    }
    half = plan(document, weights=both, disk=[first])
    assert [weight.label for weight in half.weights] == [first]
    assert plan(document, weights=both, disk=[first, second]).weights == ()


def test_another_name_for_a_model_is_rewritten_and_told() -> None:
    made = plan(
        checkpoint("old name.ckpt"), weights=manifest("new.safetensors", aliases=["old name.ckpt"])
    )
    assert made.workflow.nodes["1"].inputs["ckpt_name"] == "new.safetensors"
    assert [weight.label for weight in made.weights] == ["checkpoints/new.safetensors"]
    assert made.notes == (
        "Node 1 (Loader) names the model 'old name.ckpt', which is 'new.safetensors' here.",
    )


def test_a_windows_path_is_rewritten_for_a_model_on_disk() -> None:
    made = plan(checkpoint("sd\\a.safetensors"), disk=["checkpoints/sd/a.safetensors"])
    assert made.workflow.nodes["1"].inputs["ckpt_name"] == "sd/a.safetensors"
    assert made.present == ("checkpoints/sd/a.safetensors",)
    assert len(made.notes) == 1


def test_a_model_that_two_nodes_name_is_fetched_once() -> None:
    document = checkpoint("a.safetensors") | {
        "3": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "4": node("PreviewAny", source=["3", 0]),
    }
    assert len(plan(document, weights=manifest("a.safetensors")).weights) == 1


def test_an_unknown_model_comes_with_the_three_nearest() -> None:
    known = ["dreamfox_v1.safetensors", "dreamfox_v3.safetensors", "dreamfix_v2.ckpt", "owl.ckpt"]
    (problem,) = refused(
        UnknownModel,
        checkpoint("dreamfox_v2.safetensors"),
        weights=manifest(*known, "dreamfox_v2_inpainting.safetensors"),
    )
    assert (problem.code, problem.node_id, problem.title, problem.input) == (
        "unknown_model",
        "1",
        "Loader",
        "ckpt_name",
    )
    assert "'dreamfox_v2.safetensors'" in problem.what
    nearest = re.findall(r"checkpoints/(\S+) \(", problem.hint)
    assert len(nearest) == 3
    assert {"dreamfox_v1.safetensors", "dreamfox_v3.safetensors"} < set(nearest)
    assert "owl" not in problem.hint


def test_a_model_is_set_through_a_value() -> None:
    made = plan(
        checkpoint("a.ckpt"),
        {"Loader.ckpt_name": "b.ckpt"},
        weights=manifest("a.ckpt", "b.ckpt"),
    )
    assert [weight.name for weight in made.weights] == ["b.ckpt"]


def test_models_of_nodes_that_nothing_needs_are_not_fetched() -> None:
    document = {
        **picture(),
        "7": node("CheckpointLoaderSimple", ckpt_name="nobody knows it"),
        "8": node("VAELoader", vae_name="taef1"),
        "9": node("LoadImage", image="gone.png"),
    }
    made = plan(document)
    assert made.workflow.nodes.keys() == {"1", "2"}
    assert (made.weights, made.files) == ((), ())


def test_a_model_that_stands_in_a_folder_is_known_by_what_is_in_it() -> None:
    known = manifest("sd-turbo", kind="dir", folders=["diffusers"])
    document = loaded("DiffusersLoader", model_path="sd-turbo")
    assert [weight.label for weight in plan(document, weights=known).weights] == [
        "diffusers/sd-turbo"
    ]
    for there in ("diffusers/sd-turbo", "diffusers/sd-turbo/unet/model.safetensors"):
        assert plan(document, weights=known, disk=[there]).weights == ()
    assert plan(document, disk=["diffusers/sd-turbo"]).present == ("diffusers/sd-turbo",)


PROMPT = {
    "1": node("CLIPTextEncode", "Prompt", text="fox, (embedding:Easy:1.2)", clip=["3", 1]),
    "2": node("PreviewAny", source=["1", 0]),
    "3": node("CheckpointLoaderSimple", ckpt_name="a.ckpt"),
}


def embeddings(*names: str) -> Manifest:
    return manifest(*names, folders=["embeddings"])


def test_the_embeddings_of_a_text_are_fetched() -> None:
    there = ["checkpoints/a.ckpt"]
    made = plan(PROMPT, weights=embeddings("Easy.pt"), disk=there)
    assert [weight.label for weight in made.weights] == ["embeddings/Easy.pt"]
    assert made.notes == ()
    made = plan(PROMPT, weights=embeddings("Easy.pt"), disk=[*there, "embeddings/sub/Easy.bin"])
    assert made.weights == ()
    assert set(made.present) == {*there, "embeddings/sub/Easy.bin"}


def test_an_embedding_of_another_name_is_rewritten_in_the_text() -> None:
    made = plan(PROMPT, weights=embeddings("easy.pt"), disk=["checkpoints/a.ckpt"])
    assert made.workflow.nodes["1"].inputs["text"] == "fox, (embedding:easy.pt:1.2)"
    assert len(made.notes) == 1


def test_an_unknown_embedding_is_a_note() -> None:
    """ComfyUI leaves it out with a warning."""
    made = plan(PROMPT, disk=["checkpoints/a.ckpt"])
    assert made.weights == ()
    (note,) = made.notes
    assert note.startswith("Node 1 (Prompt) names the embedding 'Easy'")


def test_a_text_that_looks_like_a_model_is_fetched_where_it_is_known() -> None:
    document = loaded("PrimitiveString", value="b.safetensors")
    assert [w.name for w in plan(document, weights=manifest("b.safetensors")).weights] == [
        "b.safetensors"
    ]
    made = plan(document, weights=manifest("c.safetensors"))
    assert made.weights == ()
    assert "b.safetensors" in made.notes[0]


def picked(name: str, *folders: str) -> Any:
    """A plan with a combo whose folder nobody knows; the manifest has the file in these."""
    classes = {"Picker": {"input": {"required": {"file": [["a.pt"]]}}, "output": ["MODEL"]}}
    entries = [
        {"name": "b.pt", "folders": [folder], "urls": ["https://host/b"], "size": 5_000}
        for folder in folders
    ]
    return prepare(
        loaded("Picker", file=name),
        catalog=catalog().with_classes_of(NodeCatalog({"object_info": classes})),
        manifest=Manifest.parse({"version": 1, "weights": entries}),
        on_disk=lambda *_: (),
    )


def test_a_combo_of_no_known_folder_takes_what_the_manifest_has() -> None:
    assert picked("a.pt").weights == ()
    assert [weight.label for weight in picked("b.pt", "loras").weights] == ["loras/b.pt"]


def test_a_model_that_several_folders_have_is_told_with_all_of_them() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        picked("b.pt", "loras", "vae")
    told = str(caught.value)
    assert "loras/b.pt (5.0 kB), vae/b.pt (5.0 kB)" in told


def test_a_combo_s_bad_choice_is_told_once() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        picked("b.pt")
    assert [problem.code for problem in caught.value.problems] == ["not_in_list"]


def test_similar_names_are_looked_for_a_few_times_only() -> None:
    document: dict[str, Any] = {"0": node("PreviewAny", source=["1", 0])}
    for number in range(1, 60):
        document[f"{number}"] = node("CheckpointLoaderSimple", ckpt_name=f"model-{number}.ckpt")
        document[f"p{number}"] = node("PreviewAny", source=[f"{number}", 0])
    problems = refused(UnknownModel, document, weights=manifest("model-0.ckpt"))
    assert len(problems) == 59
    assert sum("Nearest" in problem.hint for problem in problems) == GUESSES


# Models from addresses

LINK = "https://me:pa55@host/own.safetensors?token=s3cret#s3cret"


@pytest.mark.parametrize("by_value", [True, False])
def test_a_url_in_a_model_input_is_asked_for_and_never_submitted(by_value: bool) -> None:
    document = checkpoint("a.ckpt" if by_value else LINK)
    values = {"CheckpointLoaderSimple.ckpt_name": LINK} if by_value else {}
    made = plan(document, values)
    (asked,) = made.asked
    assert (asked.node_id, asked.input, asked.folder) == ("1", "ckpt_name", "checkpoints")
    assert asked.text == LINK
    told = made.as_json()
    assert told["asked"] == [
        {
            "node_id": "1",
            "input": "ckpt_name",
            "folder": "checkpoints",
            "from": "https://host/own.safetensors",
            "sha256": None,
        }
    ]
    assert (made.weights, made.present, made.notes) == ((), (), ())
    graph = made.to_submit("run", {}, weights={("1", "ckpt_name"): "url/0a1b.safetensors"})
    assert graph.nodes["1"].inputs["ckpt_name"] == "url/0a1b.safetensors"
    for text in (json.dumps(told), json.dumps(graph.to_json()), str(made.workflow.to_json())):
        assert not re.search("s3cret|pa55", text)


def test_without_its_installed_name_an_address_is_not_submitted() -> None:
    made = plan(checkpoint(LINK))
    with pytest.raises(KeyError):
        made.to_submit("run", {})


def test_addresses_in_places_of_all_kinds_are_told_apart() -> None:
    other = "hf:owner/repo/x.safetensors"
    document = {
        "1": node("CheckpointLoaderSimple", ckpt_name=other),
        "2": node("LoraLoader", lora_name="a/b/c.safetensors", model=["1", 0], clip=["1", 1]),
        "3": node("VAELoader", vae_name={"__value__": other}),
        "4": node("PreviewAny", source=["2", 0]),
        "5": node("PreviewAny", source=["3", 0]),
    }
    document["2"]["inputs"] |= {"strength_model": 1.0, "strength_clip": 1.0}
    made = plan(document)
    names = {(a.node_id, a.input): f"url/{n}.safetensors" for n, a in enumerate(made.asked)}
    assert [(a.node_id, a.folder) for a in made.asked] == [
        ("1", "checkpoints"),
        ("2", "loras"),
        ("3", "vae"),
    ]
    graph = made.to_submit("run", {}, weights=names)
    assert graph.nodes["1"].inputs["ckpt_name"] == "url/0.safetensors"
    assert graph.nodes["2"].inputs["lora_name"] == "url/1.safetensors"
    assert graph.nodes["3"].inputs["vae_name"] == {"__value__": "url/2.safetensors"}


def test_the_address_of_a_node_that_nothing_needs_is_not_asked_for() -> None:
    document = {**picture(), "7": node("CheckpointLoaderSimple", ckpt_name=LINK)}
    assert plan(document).asked == ()


@pytest.mark.parametrize("value", [LINK, f"x {LINK} y"])
def test_no_problem_shows_what_is_secret_in_an_address(value: str) -> None:
    document = broken() | {"9": node("KSampler", sampler_name=value, steps=value)}
    document["10"] = node("PreviewAny", source=["9", 0])
    problems = refused(InvalidWorkflow, document, {"7.width": value, "1.image": f"x{value}"})
    assert {"not_in_list", "invalid_value", "wrong_type", "file_not_given"} <= {
        problem.code for problem in problems
    }
    assert not re.search("s3cret|pa55", "".join(map(str, problems)))


def test_a_page_that_is_no_model_is_refused_at_its_input() -> None:
    (problem,) = refused(UnknownModel, checkpoint("https://civitai.com/user/me"))
    assert (problem.code, problem.node_id, problem.input) == ("bad_url", "1", "ckpt_name")


# What an editor's file says of its models


def vae_file(*models: dict[str, Any]) -> dict[str, Any]:
    """A file whose node 1 says where its models are."""
    return editor(
        ui(1, "VAELoader", "x.pt", properties={"models": list(models)}),
        ui(2, "PreviewAny", **into("source", 1)),
        links=[[1, 1, 0, 2, 0, "*"]],
    )


SAID = {"name": "x.pt", "url": "https://there/x.pt?token=s3cret", "directory": "vae"}


def test_a_model_that_only_the_file_knows_comes_under_a_name_of_its_own() -> None:
    made = plan(vae_file({**SAID, "hash": "A" * 64, "hash_type": "SHA256"}), weights=Manifest())
    (asked,) = made.asked
    assert (asked.folder, asked.sha256) == ("vae", "a" * 64)
    assert asked.text == SAID["url"]
    (note,) = made.notes
    assert "'x.pt'" in note
    assert "https://there/x.pt" in note
    assert "s3cret" not in note + json.dumps(made.as_json())
    graph = made.to_submit("run", {}, weights={(asked.node_id, asked.input): "url/0a1b.pt"})
    assert graph.nodes["1"].inputs["vae_name"] == "url/0a1b.pt"


def test_a_model_that_the_manifest_knows_comes_from_there() -> None:
    made = plan(vae_file(SAID), weights=manifest("x.pt", folders=["vae"]))
    assert [weight.origin for weight in made.weights] == ["host"]
    assert (made.asked, made.notes) == ((), ())


def test_two_nodes_that_say_different_hashes_of_one_file_contradict() -> None:
    hashes = [{**SAID, "hash": letter * 64, "hash_type": "SHA256"} for letter in "ab"]
    document = vae_file(hashes[0])
    document["nodes"] += [
        ui(3, "VAELoader", "x.pt", properties={"models": [hashes[1]]}),
        ui(4, "PreviewAny", **into("source", 2)),
    ]
    document["links"].append([2, 3, 0, 4, 0, "*"])
    (problem,) = refused(UnknownModel, document, weights=manifest("x.pt", folders=["vae"]))
    assert (problem.code, problem.node_id) == ("hash_contradicts", "3")
    assert "a" * 64 in problem.what
    assert "b" * 64 in problem.what


def test_one_node_s_hash_counts_for_all_that_name_the_file() -> None:
    document = vae_file({**SAID, "hash": "a" * 64, "hash_type": "SHA256"})
    document["nodes"] += [ui(3, "VAELoader", "x.pt"), ui(4, "PreviewAny", **into("source", 2))]
    document["links"].append([2, 3, 0, 4, 0, "*"])
    (weight,) = plan(document, weights=manifest("x.pt", folders=["vae"])).weights
    assert weight.sha256 == "a" * 64


# Files


@pytest.mark.parametrize(
    ("value", "files", "source"),
    [
        ("fox.png", ["fox.png", "owl.png"], "fox.png"),
        ("set/one/fox.png", ["set/one/fox.png", "set/two/fox.png"], "set/one/fox.png"),
        ("set\\one\\fox.png", ["set/one/fox.png", "set/two/fox.png"], "set/one/fox.png"),
        ("fox.png", ["set/one/fox.png", "owl.png"], "set/one/fox.png"),
        ("set/fox.png", ["fox.png"], "fox.png"),
        ("C:\\Users\\me\\fox.png", ["fox.png"], "fox.png"),
        ("fox.png", ["fox.png", "set/fox.png"], "fox.png"),
        ("fox.png [input]", ["fox.png"], "fox.png"),
        ("clipspace/fox.png [input]", ["set/fox.png"], "set/fox.png"),
    ],
)
def test_a_file_is_found_by_path_or_unique_name(value: str, files: list[str], source: str) -> None:
    need = FileNeed("1", "image", source, is_url=False, subfolder="")
    assert plan(photo(value), files=files).files == (need,)
    assert plan(photo("other.png"), {"1.image": value}, files).files == (need,)


@pytest.mark.parametrize(
    "value",
    ["https://host/fox.png?key=1", "HTTP://host/fox.png", "data:image/png;base64,Zm94", "data:,x"],
)
def test_a_url_needs_no_file(value: str) -> None:
    need = FileNeed("1", "image", value, is_url=True, subfolder="")
    assert plan(photo(value)).files == (need,)
    assert plan(photo("fox.png"), {"image": value}).files == (need,)


def test_a_value_goes_before_what_the_workflow_names() -> None:
    (need,) = plan(photo("a.png"), {"1.image": "b.png"}, ["a.png", "b.png"]).files
    assert need.source == "b.png"


def test_a_3d_file_belongs_into_its_folder() -> None:
    document = loaded("Load3D", model_file="fox.glb", image={}, width=64, height=64)
    (need,) = plan(document, files=["fox.glb"]).files
    assert (need.input, need.subfolder) == ("model_file", "3d")


def test_a_choice_that_is_no_file_needs_none() -> None:
    document = loaded("Load3D", model_file="none", image={}, width=64, height=64)
    assert plan(document).files == ()
    document["1"]["inputs"]["model_file"] = "fox.glb"
    made = plan(document, {"1.model_file": "none"})
    assert made.files == ()
    assert made.workflow.nodes["1"].inputs["model_file"] == "none"


@pytest.mark.parametrize(
    ("value", "files", "hint"),
    [
        ("fox.png", [], "files given: none"),
        ("fox.png", ["owl.png", "ant.png"], "files given: ant.png, owl.png"),
        ("fox.pgn", ["fox.png"], "Did you mean 'fox.png'?"),
        ("fox.png", ["a/fox.png", "b/fox.png"], "a/fox.png, b/fox.png"),
        ("fox.png [output]", ["fox.png"], "set 1.image to"),
        ("", ["fox.png"], "set 1.image to"),
        ("../../etc/passwd", [], "set 1.image to"),
        ("file:///etc/passwd", [], "set 1.image to"),
        ("ftp://host/fox.png", [], "set 1.image to"),
    ],
)
def test_a_file_that_did_not_come_is_a_problem(value: str, files: list[str], hint: str) -> None:
    for document, values in [(photo(value), {}), (photo("fox.png"), {"image": value})]:
        (problem,) = refused(InvalidInput, document, values, files)
        assert (problem.code, problem.node_id, problem.title, problem.input) == (
            "file_not_given",
            "1",
            "Loader",
            "image",
        )
        assert hint in str(problem)
        assert "  " not in str(problem)


def test_a_picture_pasted_as_text_and_a_full_archive_make_a_short_message() -> None:
    files = [f"set/{number:04}.png" for number in range(2000)]
    (problem,) = refused(InvalidInput, photo("fox.png"), {"1.image": "iVBORw0K" * 500_000}, files)
    assert len(str(problem)) < 600
    assert "set/0000.png, " in problem.what
    assert "and 1988 more" in problem.what


@pytest.mark.parametrize("value", [3, None, ["fox.png"], {"a": 1}, True])
def test_a_value_that_names_no_file_is_a_problem(value: Any) -> None:
    (problem,) = refused(InvalidInput, photo("fox.png"), {"1.image": value}, ["fox.png"])
    assert problem.code == "wrong_type"


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_a_file_input_becomes_a_need_or_a_problem(value: str, files: list[str]) -> None:
    try:
        (need,) = plan(photo(value), files=files).files
    except InvalidInput as err:
        codes = [problem.code for problem in err.problems]
        if codes != ["file_not_given"]:
            raise
    else:
        assert is_url(need.source) or need.source in files


# Seeds


def test_a_seed_replaces_the_workflow_s() -> None:
    made = plan(bundled("text_to_picture"), seed=77)
    assert made.seeds == {"7.seed": 77}
    assert made.workflow.nodes["7"].inputs["seed"] == 77


def test_without_a_seed_the_workflow_s_own_are_told() -> None:
    assert plan(bundled("text_to_picture")).seeds == {"7.seed": 1}


def test_a_seed_that_the_request_sets_is_kept() -> None:
    made = plan(bundled("text_to_picture"), {"KSampler.seed": 5}, seed=77)
    assert made.seeds == {"7.seed": 5}


def test_only_seeds_that_matter_are_told() -> None:
    document = bundled("text_to_picture") | {"20": node("RandomNoise", noise_seed=3)}
    assert plan(document, seed=77).seeds == {"7.seed": 77}


def test_a_seed_out_of_range_is_the_caller_s_fault() -> None:
    (problem,) = refused(InvalidInput, bundled("text_to_picture"), seed=2**64)
    assert (problem.code, problem.node_id, problem.input) == ("bad_seed", "", "seed")


# Problems together


def broken(**changes: Any) -> dict[str, Any]:
    """A graph that wants a photo and a checkpoint."""
    return {
        **photo("fox.png"),
        "3": node("CheckpointLoaderSimple", ckpt_name="unknown.ckpt"),
        "4": node("PreviewAny", source=["3", 0]),
        "5": node("EmptyImage", width=0, height=48, batch_size=1, color=0),
        "6": node("PreviewAny", source=["5", 0]),
        "7": node("EmptyImage", width=64, height=48, batch_size=1, color=0),
        "8": node("PreviewAny", source=["7", 0]),
        **changes,
    }


def test_every_kind_of_problem_is_listed_at_once() -> None:
    document = broken() | {"9": node("NoSuchClass", x=1)}
    problems = refused(
        InvalidWorkflow, document, {"7.width": "wide", "nothing.here": 1}, ["owl.jpeg"], seed=3
    )
    assert sorted((problem.code, problem.node_id or problem.input) for problem in problems) == [
        ("file_not_given", "1"),
        ("no_such_address", "nothing.here"),
        ("too_small", "5"),
        ("unknown_class_type", "9"),
        ("unknown_model", "3"),
        ("wrong_type", "7.width"),
    ]


FINE = {
    "5": node("EmptyImage", width=64, height=48, batch_size=1, color=0),
    "3": node("CheckpointLoaderSimple", ckpt_name="known.ckpt"),
}


@pytest.mark.parametrize(
    ("changes", "values", "files", "kind"),
    [
        (FINE, {}, ["fox.png"], None),
        (FINE, {"7.width": "wide"}, ["fox.png"], InvalidInput),
        (FINE, {}, [], InvalidInput),
        (FINE, {"7.width": "wide"}, [], InvalidInput),
        ({"5": FINE["5"]}, {}, ["fox.png"], UnknownModel),
        ({"3": FINE["3"]}, {}, ["fox.png"], InvalidWorkflow),
        ({"5": FINE["5"]}, {"7.width": "wide"}, ["fox.png"], InvalidWorkflow),
        ({"5": FINE["5"]}, {}, [], InvalidWorkflow),
        ({}, {}, [], InvalidWorkflow),
    ],
)
def test_the_class_of_the_error_tells_whose_fault_it_is(
    changes: Any, values: Any, files: list[str], kind: type[CallerError] | None
) -> None:
    weights = manifest("known.ckpt")
    if kind is None:
        assert plan(broken(**changes), values, files, weights=weights).outputs == tuple("2468")
    else:
        refused(kind, broken(**changes), values, files, weights=weights)


def test_the_settings_say_which_nodes_a_workflow_may_use() -> None:
    for config in (
        Config(deny_nodes=("EmptyImage",)),
        Config(only_nodes=("SaveImage",)),
    ):
        (problem,) = refused(Refused, picture(), policy=node_policy(config))
        assert problem.node_id == "1"
    assert plan(picture(), policy=node_policy(Config())).outputs == ("2",)
    broken_link = picture()
    broken_link["2"]["inputs"]["images"] = ["1", 3]
    (problem,) = refused(InvalidWorkflow, broken_link, policy=node_policy(Config()))
    assert problem.code == "no_such_output"
    problems = refused(
        InvalidWorkflow, picture(width=0), policy=node_policy(Config(deny_nodes=("EmptyImage",)))
    )
    assert {problem.code for problem in problems} > {"too_small"}


@pytest.mark.parametrize(
    "document", ["", "nonsense", "[]", b"\xff", "{}", '{"1": 2}', '{"nodes": [], "links": []}']
)
def test_what_is_no_workflow_is_refused_as_such(document: Any) -> None:
    refused(InvalidWorkflow, document)


def test_a_graph_with_nothing_to_make_is_refused() -> None:
    (problem,) = refused(InvalidWorkflow, {"1": picture()["1"]})
    assert problem.code == "no_outputs"


# What comes of it


def test_the_plan_changes_nothing_of_what_it_was_given() -> None:
    document, values = bundled("text_to_picture"), {"4.text": "an owl"}
    before = json.dumps(document)
    made = plan(document, values, seed=5)
    assert json.dumps(document) == before
    assert made.workflow.nodes["4"].inputs["text"] == "an owl"
    assert [(b.address, b.node_id, b.input) for b in made.bindings] == [("4.text", "4", "text")]


def test_output_nodes_alone_are_marked_for_the_run() -> None:
    made = plan(bundled("text_to_picture"))
    graph = made.to_submit("run-1", {}).to_json()
    assert {node_id for node_id, node in graph.items() if RUN_MARK in node["inputs"]} == {"9"}
    assert graph["9"]["inputs"][RUN_MARK] == "run-1"
    every = made.to_submit("run-1", {}, all_again=True).to_json()
    assert {every[node_id]["inputs"][RUN_MARK] for node_id in every} == {"run-1"}
    assert all(RUN_MARK not in node.inputs for node in made.workflow.nodes.values())


def test_staged_names_take_the_place_of_files_and_links() -> None:
    document = photo("fox.png") | {
        "3": node("CheckpointLoaderSimple", ckpt_name="nobody knows it"),
        "4": node("LoadImage", image=["3", 0]),
        "5": node("PreviewAny", source=["4", 0]),
    }
    made = plan(document, {"4.image": "fox.png"}, ["fox.png"])
    assert [(need.node_id, need.source) for need in made.files] == [
        ("1", "fox.png"),
        ("4", "fox.png"),
    ]
    assert "3" not in made.workflow.nodes
    staged = {("1", "image"): "fox-1.png", ("4", "image"): "fox-1.png"}
    graph = made.to_submit("run-1", staged).to_json()
    assert graph["1"]["inputs"]["image"] == graph["4"]["inputs"]["image"] == "fox-1.png"


def test_the_plan_as_json_tells_all_but_secrets() -> None:
    document = bundled("text_to_picture") | {
        "20": node("LoadImage", image="https://me:pa55@host/a.png?token=s3cret#s3cret"),
        "21": node("LoadImage", "Upload", image="fox.png"),
        "22": node("PreviewAny", source=["20", 0]),
        "23": node("PreviewAny", source=["21", 0]),
    }
    uri = "data:image/png;base64,czNjcmV0"
    made = plan(document, {"21.image": uri, "4.text": "a s3cret"}, seed=9, disk=[DIFFUSION])
    told = made.as_json()
    assert told["nodes"] == 13
    assert told["outputs"][0] == {"node_id": "9", "title": "Picture"}
    assert [need["source"] for need in told["files"]] == ["https://host/a.png", "data:image/png"]
    assert {"address": "4.text", "node_id": "4", "input": "text"} in told["bindings"]
    assert {entry["folder"] for entry in told["fetch"]} == {"text_encoders", "vae"}
    assert all(entry["size"] > 0 for entry in told["fetch"])
    assert told["present"] == [DIFFUSION]
    assert told["seeds"] == {"7.seed": 9}
    text = json.dumps(told)
    assert not re.search("s3cret|pa55|czNjcmV0", text)


def editor(*nodes: dict[str, Any], links: list[Any], **extra: Any) -> dict[str, Any]:
    """A document in the editor's format."""
    return {"nodes": list(nodes), "links": links, "version": 0.4, "extra": extra}


def ui(node_id: int, class_type: str, *values: Any, **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": class_type, "widgets_values": list(values), **more}


def into(name: str, link: int) -> dict[str, Any]:
    return {"inputs": [{"name": name, "type": "*", "link": link}]}


TWO_SAVED = (
    ui(1, "EmptyImage", 8, 8, 1, 0, title="Red"),
    ui(2, "EmptyImage", 16, 16, 1, 0),
    ui(3, "SaveImage", "red", **into("images", 1)),
    ui(4, "PreviewImage", **into("images", 2)),
)
TWO_LINKS = [[1, 1, 0, 3, 0, "IMAGE"], [2, 2, 0, 4, 0, "IMAGE"]]


def test_the_editors_format_makes_the_plan_of_its_export() -> None:
    made = plan(editor(*TWO_SAVED, links=TWO_LINKS), {"Red.width": "32"})
    exported = {
        "1": node("EmptyImage", "Red", width=32, height=8, batch_size=1, color=0),
        "2": node("EmptyImage", "Empty Image", width=16, height=16, batch_size=1, color=0),
        "3": node("SaveImage", "Save Image", filename_prefix="red", images=["1", 0]),
        "4": node("PreviewImage", "Preview Image", images=["2", 0]),
    }
    assert made.workflow.to_json() == exported
    assert (made.outputs, made.chosen) == (("3", "4"), frozenset())


def test_only_the_outputs_that_an_app_shows_are_run() -> None:
    app = {"inputs": [["2", "width"]], "outputs": ["4"]}
    document = editor(*TWO_SAVED, links=TWO_LINKS, linearData=app)
    made = plan(document, {"width": 24})
    assert (made.outputs, made.chosen) == (("4",), frozenset({"4"}))
    assert made.workflow.nodes.keys() == {"2", "4"}
    assert made.workflow.nodes["2"].inputs["width"] == 24
    everything = plan(document, all_outputs=True)
    assert (everything.outputs, everything.chosen) == (("3", "4"), frozenset())


def test_the_request_chooses_outputs_in_place_of_the_app() -> None:
    app = {"inputs": [["2", "width"]], "outputs": ["4"]}
    document = editor(*TWO_SAVED, links=TWO_LINKS, linearData=app)
    made = plan(document, outputs=["3"])
    assert (made.outputs, made.chosen) == (("3",), frozenset({"3"}))
    assert made.workflow.nodes.keys() == {"1", "3"}
    with pytest.raises(InvalidInput, match="no node '1' that gives results"):
        plan(document, outputs=["3", "1"])


def test_a_dynamic_prompt_follows_from_the_seed() -> None:
    """The editor chooses at random; here one number repeats the whole run."""
    choices = {f"colour {number}" for number in range(20)}
    document = editor(
        ui(1, "PrimitiveStringMultiline", "x"),
        ui(2, "CLIPTextEncode", "{" + "|".join(sorted(choices)) + "}"),
        links=[],
    )
    texts = [prepare_text(document, seed) for seed in (None, None, 1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert len(set(texts)) > 1
    assert set(texts) <= choices


def prepare_text(document: Mapping[str, Any], seed: int | None) -> Any:
    """The text of node 2, which needs no more than the document and the seed."""
    workflow = read_workflow(document, catalog(), seed=seed).workflow
    return workflow.nodes["2"].inputs["text"]


def test_what_only_a_browser_makes_is_refused_where_it_is_needed() -> None:
    viewer = ui(1, "Load3D", "none", title="Viewer")
    save = ui(2, "SaveImage", "x", **into("images", 1))
    links = [[1, 1, 0, 2, 0, "IMAGE"]]
    (problem,) = refused(InvalidWorkflow, editor(viewer, save, links=links))
    assert (problem.code, problem.node_id, problem.input) == ("browser_only", "1", "image")
    unneeded = editor(
        viewer,
        *TWO_SAVED[1:2],
        ui(4, "SaveImage", **into("images", 2)),
        links=[[2, 2, 0, 4, 0, "IMAGE"]],
    )
    assert plan(unneeded).workflow.nodes.keys() == {"2", "4"}
