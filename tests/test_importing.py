"""What other tools' lists of models become in a manifest, and what they do to one."""

import json
from pathlib import Path
from typing import Any

import pytest
from editor_files import TEMPLATES
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput
from comfy_runner.weights.manifests.document import Content, content, write
from comfy_runner.weights.manifests.importing import (
    Imported,
    from_cog_comfyui,
    from_manager,
    from_workflows,
)
from comfy_runner.weights.manifests.lists import Kind, read_list
from comfy_runner.weights.manifests.merging import merge
from comfy_runner.weights.weight import Source, Weight

HUB = "https://huggingface.co/o/r/resolve/main"
SHA, OTHER = "a" * 64, "b" * 64


def model(name: str = "x.safetensors", url: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name, "url": url or f"{HUB}/{name}", "directory": "loras", **more}


def workflow(*models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"nodes": [{"properties": {"models": list(models)}}], **more}


def hashed(sha256: str) -> dict[str, str]:
    return {"hash": sha256, "hash_type": "SHA256"}


def weight(name: str = "x.safetensors", **more: Any) -> Weight:
    urls = more.pop("urls", (f"{HUB}/{name}",))
    return Weight(name=name, folders=("loras",), urls=tuple(map(Source, urls)), **more)


# Workflows


def test_takes_the_models_of_nodes_subgraphs_and_the_workflow() -> None:
    inner = {"nodes": [{"properties": {"models": [model("b.safetensors")]}}]}
    bypassed = {"mode": 4, "properties": {"models": [model("c.safetensors")]}}
    document = {
        "nodes": [{"properties": {"models": [model("a.safetensors")]}}, bypassed, {}, 5],
        "definitions": {"subgraphs": [inner, 5]},
        "models": [model("d.safetensors")],
    }
    found = from_workflows({"one": document, "two": workflow(model("a.safetensors"))})
    names = [f"{letter}.safetensors" for letter in "abcd"]
    assert found.weights == tuple(map(weight, names))
    assert found.groups == {
        "one": tuple(f"loras/{name}" for name in names),
        "two": ("loras/a.safetensors",),
    }
    assert found.notes == ()


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/o/r/blob/main/x.safetensors",
        "https://huggingface.co/o/r/resolve/main/x.safetensors?download=true",
        "https://hf.co/o/r/resolve/main/x.safetensors",
        "hf://o/r/x.safetensors",
    ],
)
def test_one_file_on_hugging_face_has_one_url(url: str) -> None:
    assert from_workflows({"w": workflow(model(url=url), model())}).weights == (weight(),)


def test_old_folder_names_become_present_ones_and_subfolders_part_of_the_name() -> None:
    found = from_workflows({"w": workflow(model("s\\x.bin", directory="unet/t"))}).weights
    assert [found.label for found in found] == ["diffusion_models/t/s/x.bin"]


def test_the_most_used_url_counts_and_the_others_are_told() -> None:
    first, second = f"{HUB}/x.safetensors", f"{HUB}/other/x.safetensors"
    found = from_workflows({"w": workflow(model(url=second), model(), model())})
    assert [source.url for source in found.weights[0].urls] == [first]
    assert found.weights[0].note == f"Also given, perhaps other content: {second}"
    assert found.notes == (f"loras/x.safetensors has several URLs: {found.weights[0].note}.",)


def test_urls_with_the_same_hash_are_mirrors() -> None:
    one, two, three = (f"{HUB}/{part}/x.safetensors" for part in "abc")
    models = [model(url=one, **hashed(SHA)), model(url=two, **hashed(SHA.upper()))]
    found = from_workflows({"w": workflow(*models, model(url=three, **hashed(OTHER)))})
    assert [source.url for source in found.weights[0].urls] == [one, two]
    assert found.weights[0].sha256 == SHA
    assert found.weights[0].note.endswith(three)


def test_hashes_of_one_url_that_contradict_are_not_taken() -> None:
    found = from_workflows({"w": workflow(model(**hashed(SHA)), model(**hashed(OTHER)))})
    assert found.weights == (weight(),)


def test_a_hash_of_another_url_is_not_taken() -> None:
    elsewhere = model(url=f"{HUB}/other/x.safetensors", **hashed(SHA))
    found = from_workflows({"w": workflow(model(), model(), elsewhere)})
    assert found.weights[0].sha256 is None


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (model(directory="../x"), "no place in the models folder"),
        (model(directory=""), "no place in the models folder"),
        (model(directory=".store"), "no place in the models folder"),
        (model("../x", f"{HUB}/x"), "no place in the models folder"),
        (model(url="ftp://host/x"), "no web address"),
        (model(url="loras/x.safetensors"), "no address of a file"),
        (model(url="https://huggingface.co/o/r"), "no address of a file"),
        (model(url="https://huggingface.co/models"), "cannot be used: it is a page"),
        (model(url="https://me:s3cret@host/x.bin"), "a password, a token or a signature"),
        (model(url="https://host/x.bin?X-Amz-Signature=s3cret"), "a token or a signature"),
        (model(url="https://host/../x.bin"), "holds '..'"),
        ({"name": "x.bin", "directory": "loras"}, "no URL or no directory"),
        ({"url": "https://me:s3cret@host/x.bin"}, "it names no model"),
    ],
)
def test_tells_what_it_does_not_take(entry: dict[str, Any], why: str) -> None:
    found = from_workflows({"w": workflow(entry)})
    assert found.weights == ()
    assert found.groups == {}
    assert found.notes[0].startswith("w: ")
    assert why in found.notes[0]
    assert "s3cret" not in found.notes[0]


def test_tells_what_is_no_workflow_and_how_many_name_no_model() -> None:
    found = from_workflows({"index": [], "api": {"1": {}}, "empty": workflow()})
    assert found.notes == (
        "No workflows of the editor: index, api.",
        "1 of 3 workflows name no model.",
    )


def test_of_comfyuis_own_templates_every_entry_is_taken() -> None:
    found = read_list(str(TEMPLATES))
    given = {
        (entry["directory"], entry["name"])
        for file in TEMPLATES.glob("*.json")
        for entry in _entries(json.loads(file.read_bytes()))
    }
    assert {(weight.folders[0], weight.name) for weight in found.weights} == given
    assert len(given) > 250
    assert not [note for note in found.notes if "left out" in note]
    text = write(found.weights, found.groups)
    assert content(text) == Content(found.weights, dict(found.groups))


def _entries(value: Any) -> Any:
    """All that looks like a model entry, wherever it is."""
    if isinstance(value, dict):
        if {"name", "url", "directory"} <= value.keys():
            yield value
        for inner in value.values():
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


# ComfyUI-Manager


def listed(**more: Any) -> dict[str, Any]:
    return {
        "name": "A model",
        "type": "upscale",
        "base": "upscale",
        "save_path": "default",
        "filename": "x.safetensors",
        "url": f"{HUB}/x.safetensors",
        "size": "4.71MB",
        **more,
    }


@pytest.mark.parametrize(
    ("kind", "path", "label"),
    [
        ("upscale", "default", "upscale_models/x.safetensors"),
        ("VAE", "default", "vae/x.safetensors"),
        ("T2I-Adapter", "default", "controlnet/x.safetensors"),
        ("unet", "default", "diffusion_models/x.safetensors"),
        ("lora", "loras/SDXL/lcm", "loras/SDXL/lcm/x.safetensors"),
        ("clip", "clip", "text_encoders/x.safetensors"),
    ],
)
def test_the_managers_folder_is_the_path_or_that_of_the_type(
    kind: str, path: str, label: str
) -> None:
    found = from_manager({"models": [listed(type=kind, save_path=path)]})
    assert [weight.label for weight in found.weights] == [label]
    assert found.weights[0].note == "A model"


def test_a_file_of_the_manager_may_be_called_otherwise_than_its_url() -> None:
    civitai = listed(filename="easy.pt", url="https://civitai.com/api/download/models/9208?token=s")
    (found,) = from_manager({"models": [civitai]}).weights
    assert found.name == "easy.pt"
    assert found.urls == (Source("https://civitai.com/api/download/models/9208"),)


def test_a_whole_repository_of_the_manager_is_a_folder() -> None:
    whole = listed(filename="<huggingface>", url="o/Janus", save_path="Janus-Pro")
    (found,) = from_manager({"models": [whole]}).weights
    assert (found.label, found.kind) == ("Janus-Pro/Janus", "dir")
    assert found.urls == (Source("hf://o/Janus"),)


@pytest.mark.parametrize(
    "entry",
    [
        listed(save_path="custom_nodes/pack/models"),
        listed(type="strange"),
        listed(save_path="../x"),
        listed(filename="<huggingface>", url="https://host/x", save_path="LLM"),
        listed(url=""),
    ],
)
def test_tells_what_of_the_managers_list_it_does_not_take(entry: dict[str, Any]) -> None:
    found = from_manager({"models": [entry]})
    assert found.weights == ()
    assert "A model is left out" in found.notes[0]


def test_an_entry_of_the_managers_list_that_is_none_is_told() -> None:
    found = from_manager({"models": [5, listed()]})
    assert len(found.weights) == 1
    assert found.notes == ("models[0] is no object.",)


# cog-comfyui


def test_cog_comfyuis_files_come_in_archives() -> None:
    found = from_cog_comfyui(
        {"UNET": ["a.safetensors"], "LLM": ["sub/b.bin"], "BIREFNET": ["C.pth"]}
    )
    base = "https://weights.replicate.delivery/default/comfy-ui"
    assert {weight.label: weight.urls for weight in found.weights} == {
        "diffusion_models/a.safetensors": (
            Source(f"{base}/unet/a.safetensors.tar", extract="tar", member="a.safetensors"),
        ),
        "LLM/sub/b.bin": (Source(f"{base}/LLM/sub/b.bin.tar", extract="tar", member="b.bin"),),
        "BiRefNet/C.pth": (Source(f"{base}/BiRefNet/C.pth.tar", extract="tar", member="C.pth"),),
    }
    assert '"r8:unet/a.safetensors.tar"' in write(found.weights, None, found.bases)


def test_what_is_no_name_in_cog_comfyuis_list_is_not_shown() -> None:
    found = from_cog_comfyui({"LORAS": ["a.safetensors", {"url": "https://h/x?token=s3cret"}]})
    assert found.notes == ("LORAS[1] is left out: it is no name.",)


def test_a_name_without_a_models_ending_is_a_folder() -> None:
    (found,) = from_cog_comfyui({"INSIGHTFACE": ["models/buffalo_l"]}).weights
    assert (found.label, found.kind) == ("insightface/models/buffalo_l", "dir")
    assert found.urls[0].strip == 1


def test_synonyms_become_aliases() -> None:
    document = {"VAE": ["ae.safetensors", "old.safetensors"]}
    synonyms = {
        "ae.sft": "ae.safetensors",
        "old.safetensors": "ae.safetensors",
        "z": "nothing.bin",
    }
    found = from_cog_comfyui(document, synonyms)
    assert found.weights[0].aliases == ("ae.sft",)
    assert [note.split()[2] for note in found.notes] == ["old.safetensors", "z"]


def test_two_folders_of_cog_comfyui_that_are_one_are_told() -> None:
    found = from_cog_comfyui({"UNET": ["a.bin"], "DIFFUSION_MODELS": ["a.bin"]})
    assert len(found.weights) == 1
    assert "several URLs" in found.notes[0]


STRANGE = st.text(max_size=6) | st.sampled_from(
    [
        "loras",
        "vae/x",
        "x.bin",
        "a/b.pt",
        "\ud800",
        "\n",
        " ",
        "..",
        f"{HUB}/x",
        "https://h/x y?z#a",
    ]
)
CHANGES = st.dictionaries(
    st.sampled_from(["name", "url", "directory", "filename", "save_path", "type", "hash"]),
    st.one_of(STRANGE, st.none(), st.integers()),
    max_size=2,
)
OBJECTS = CHANGES.map(lambda change: {**listed(), **model(), **change})


@given(st.lists(OBJECTS, max_size=4), st.lists(STRANGE | st.none(), max_size=4))
def test_whatever_a_list_says_gives_a_manifest_that_holds(
    models: list[dict[str, Any]], names: list[str | None]
) -> None:
    for found in (
        from_workflows({"w": workflow(*models)}),
        from_manager({"models": models}),
        from_cog_comfyui({"VAE": [*names, "x.bin"]}, {name or "": "x.bin" for name in names}),
    ):
        content(write(found.weights, found.groups, found.bases))


# Where lists are


def test_reads_files_by_what_they_look_like(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    for document, label in [
        (workflow(model()), "loras/x.safetensors"),
        ({"models": [listed()]}, "upscale_models/x.safetensors"),
        ({"VAE": ["ae.safetensors"]}, "vae/ae.safetensors"),
    ]:
        file.write_text(json.dumps(document))
        assert [weight.label for weight in read_list(str(file)).weights] == [label]


def test_reads_synonyms_from_the_file_beside(tmp_path: Path) -> None:
    (tmp_path / "weights.json").write_text('{"VAE": ["ae.safetensors"]}')
    (tmp_path / "weight_synonyms.json").write_text('{"ae.sft": "ae.safetensors"}')
    assert read_list(str(tmp_path / "weights.json")).weights[0].aliases == ("ae.sft",)


def test_an_unreadable_file_of_a_folder_is_told_and_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.json").write_text(json.dumps(workflow(model())))
    (tmp_path / "bad.json").write_text("{")
    found = read_list(str(tmp_path))
    assert found.groups == {"sub/good": ("loras/x.safetensors",)}
    assert "bad.json is no JSON" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        (None, None, "no_file"),
        ("{", None, "bad_list"),
        ('{"1": {"class_type": "A"}}', None, "bad_list"),
        ("[]", Kind.MANAGER, "bad_list"),
    ],
)
def test_refuses_what_is_no_list(
    tmp_path: Path, text: str | None, kind: Kind | None, code: str
) -> None:
    if text is not None:
        (tmp_path / "list.json").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_list(str(tmp_path / "list.json"), kind)
    assert caught.value.problems[0].code == code
    assert caught.value.problems[0].hint


@pytest.mark.parametrize("source", ["a" * 5000, "https://me:s3cret@host/list.json?key=s3cret"])
def test_refuses_what_is_no_file(source: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_list(source)
    assert caught.value.problems[0].code == "no_file"
    assert caught.value.problems[0].hint
    assert "s3cret" not in str(caught.value)


# Merging


def merged(own: Weight, new: Weight) -> tuple[Weight, tuple[str, ...]]:
    result = merge(Content((own,)), Imported((new,)))
    assert result.added == ()
    assert result.completed == ((own.label,) if result.content.weights[0] != own else ())
    return result.content.weights[0], result.conflicts


def test_an_entry_of_the_manifest_keeps_what_it_says() -> None:
    own = weight(license="MIT", note="mine", sha256=SHA, size=5, urls=["https://mine/x"])
    kept, conflicts = merged(own, weight(note="theirs"))
    assert kept == own
    assert conflicts == (
        f"loras/x.safetensors has other URLs in the list, perhaps other content:"
        f" {HUB}/x.safetensors.",
    )


def test_an_entry_gets_the_hash_that_the_list_has_for_its_url() -> None:
    assert merged(weight(note="mine"), weight(sha256=SHA)) == (weight(note="mine", sha256=SHA), ())


def test_an_entry_gets_mirrors_with_its_hash() -> None:
    own = weight(sha256=SHA, urls=["https://mine/x"])
    fuller, conflicts = merged(own, weight(sha256=SHA, size=7))
    assert [source.url for source in fuller.urls] == ["https://mine/x", f"{HUB}/x.safetensors"]
    assert (fuller.size, conflicts) == (7, ())


@pytest.mark.parametrize(
    ("own", "new", "text"),
    [
        (weight(sha256=SHA), weight(sha256=OTHER), "another sha256"),
        (weight(size=5), weight(size=6, sha256=SHA), "another size"),
    ],
)
def test_what_contradicts_is_told_and_not_taken(own: Weight, new: Weight, text: str) -> None:
    kept, (conflict,) = merged(own, new)
    assert kept == own
    assert text in conflict


def test_names_that_are_aliases_in_the_manifest_are_not_taken() -> None:
    own = Content((weight("a.bin", aliases=("x.safetensors",)),))
    result = merge(own, Imported((weight(), weight("b.bin", aliases=("a.bin", "c.bin")))))
    assert result.added == ("loras/b.bin",)
    assert result.content.weights[1].aliases == ("c.bin",)
    assert len(result.conflicts) == 2
    content(write(result.content.weights))


def test_groups_and_bases_of_the_manifest_stay() -> None:
    own = Content((weight(),), {"g": ("loras/x.safetensors",)}, {"r8": "https://mine"}, "./s.json")
    new = Imported(
        (weight("y.bin"),),
        {"g": ("loras/y.bin",), "h": ("loras/y.bin",), "i": ("loras/z.bin",)},
        {"r8": "https://theirs", "own": "https://own"},
    )
    result = merge(own, new)
    assert result.content.groups == {"g": ("loras/x.safetensors",), "h": ("loras/y.bin",)}
    assert result.content.bases == {"r8": "https://mine", "own": "https://own"}
    assert result.content.schema == "./s.json"
    assert [conflict.split()[2] for conflict in result.conflicts] == ["g", "i"]
