"""What the manifest says about the names that stand in workflows."""

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.convert.models import ModelHint
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.urls import scheme
from comfy_runner.weights.hosts.addresses import parse
from comfy_runner.weights.manifest import (
    AskedWeight,
    Found,
    Implication,
    Manifest,
    Missing,
    OnDisk,
    Reference,
    Source,
    hints_by_name,
    normalised,
    vae_approx_names,
)

PROJECT = Path(__file__).resolve().parent.parent


def entry(name: str, folder: str = "loras", **more: Any) -> dict[str, Any]:
    return {"name": name, "folders": [folder], "urls": [f"https://host/{name}"], **more}


def manifest(*entries: dict[str, Any], **top: Any) -> Manifest:
    return Manifest.parse({"version": 1, "weights": list(entries), **top})


def reference(name: str, folder: str | None = "loras") -> Reference:
    return Reference("6", "Style", "LoraLoader", "lora_name", folder, name)


def disk(**folders: Collection[str]) -> Callable[[str], Collection[str]]:
    return lambda folder: folders.get(folder, ())


def problem(outcome: object) -> Any:
    assert isinstance(outcome, Missing)
    assert (outcome.problem.node_id, outcome.problem.input) == ("6", "lora_name")
    assert outcome.problem.title == "Style"
    return outcome.problem


# Parsing


def test_the_manifest_of_the_project_lists_what_ships_with_it() -> None:
    parsed = Manifest.parse((PROJECT / "weights_manifest.json").read_text())
    shipped = [weight for weight in parsed.weights if scheme(weight.urls[0].url) == ""]
    assert {(w.label, w.size) for w in shipped} == {
        (f"{folder}/{file.name}", file.stat().st_size)
        for folder, name in [
            ("upscale_models", "realesr-animevideov3.safetensors"),
            ("diffusion_models", "tiny-flux-colours.safetensors"),
            ("text_encoders", "tiny-clip_l-16tok.pt"),
            ("vae", "tiny-mosaic-vae.pt"),
        ]
        for file in [PROJECT / "assets" / "weights" / name]
    }
    assert all(weight.sha256 and weight.license for weight in shipped)


def test_reads_every_member() -> None:
    document = {
        "version": 1,
        "bases": {"r8": "https://weights.host/default/"},
        "groups": {"boot": ["vae/ae.safetensors", "unet/x.bin"]},
        "weights": [
            {
                "name": "ae.safetensors",
                "folders": ["vae", "checkpoints"],
                "urls": [
                    "https://host/ae.safetensors",
                    {"url": "r8:/vae/ae.tar", "extract": "tar", "member": "ae.safetensors"},
                    {"url": "assets/ae.safetensors", "auth": "bearer_env", "env": "TOKEN"},
                ],
                "size": 10,
                "sha256": "a" * 64,
                "aliases": ["ae.sft"],
                "implied_by": [{"class_type": "A", "input": "i", "contains": "x"}],
                "license": "MIT",
                "license_url": "https://host/l",
                "note": "n",
                "air": "urn:air:flux1:vae:x",
                "gated": True,
                "non_commercial": True,
            },
            entry("x.bin", "unet"),
        ],
    }
    parsed = Manifest.parse(json.dumps(document))
    weight = parsed.weights[0]
    assert weight.urls == (
        Source("https://host/ae.safetensors"),
        Source("https://weights.host/default/vae/ae.tar", extract="tar", member="ae.safetensors"),
        Source("assets/ae.safetensors", auth="bearer_env", env="TOKEN"),
    )
    assert (weight.size, weight.sha256, weight.folders) == (10, "a" * 64, ("vae", "checkpoints"))
    assert (weight.license, weight.license_url, weight.note) == ("MIT", "https://host/l", "n")
    assert (weight.gated, weight.non_commercial, weight.aliases) == (True, True, ("ae.sft",))
    assert weight.implied_by == (Implication("A", "i", None, "x"),)
    assert parsed.groups == {"boot": ("vae/ae.safetensors", "diffusion_models/x.bin")}
    assert parsed.weights[1].folders == ("diffusion_models",)


@pytest.mark.parametrize(
    ("change", "place", "text"),
    [
        ({"name": ""}, "weights[0].name", "relative path"),
        ({"name": "../x"}, "weights[0].name", "relative path"),
        ({"name": "/x"}, "weights[0].name", "relative path"),
        ({"name": "a/../b"}, "weights[0].name", "relative path"),
        ({"name": "a\\b"}, "weights[0].name", "relative path"),
        ({"name": "./a"}, "weights[0].name", "relative path"),
        ({"name": 5}, "weights[0].name", "relative path"),
        ({"folders": []}, "weights[0].folders", "at least 1"),
        ({"folders": "loras"}, "weights[0].folders", "must be a list"),
        ({"folders": [".."]}, "weights[0].folders", "relative path"),
        ({"folders": ["unet", "diffusion_models"]}, "weights[0].folders", "twice"),
        ({"urls": []}, "weights[0].urls", "at least 1"),
        ({"urls": [5]}, "weights[0].urls[0]", "must be a URL"),
        ({"urls": [{}]}, "weights[0].urls[0].url", "is missing"),
        ({"urls": ["../x"]}, "weights[0].urls[0].url", "relative path"),
        ({"urls": ["/x"]}, "weights[0].urls[0].url", "relative path"),
        ({"urls": ["file:///a/../b"]}, "weights[0].urls[0].url", r"'\.\.'"),
        ({"urls": ["r8:x"]}, "weights[0].urls[0].url", "unknown scheme"),
        ({"urls": [{"url": "a", "auth": "x"}]}, "weights[0].urls[0].auth", "none, hf, civitai"),
        ({"urls": [{"url": "a", "auth": "bearer_env"}]}, "weights[0].urls[0].env", "is missing"),
        ({"urls": [{"url": "a", "extract": "rar"}]}, "weights[0].urls[0].extract", "tar, zip"),
        ({"urls": [{"url": "a", "strip": -1}]}, "weights[0].urls[0].strip", "at least 0"),
        ({"urls": [{"url": "a", "what": 1}]}, "weights[0].urls[0].what", "no known member"),
        ({"size": 0}, "weights[0].size", "at least 1"),
        ({"size": True}, "weights[0].size", "at least 1"),
        ({"size": 10**400}, "weights[0].size", "too large"),
        ({"size": "5"}, "weights[0].size", "at least 1"),
        ({"sha256": "A" * 64}, "weights[0].sha256", "64 hexadecimal"),
        ({"sha256": "a" * 63}, "weights[0].sha256", "64 hexadecimal"),
        ({"kind": "link"}, "weights[0].kind", "file, dir"),
        ({"files": [{"path": "../x"}]}, "weights[0].files[0].path", "relative path"),
        ({"aliases": [1]}, "weights[0].aliases", "texts only"),
        ({"aliases": ["x.bin"]}, "weights[0].aliases", "taken by"),
        ({"implied_by": [{}]}, "weights[0].implied_by[0].class_type", "is missing"),
        ({"implied_by": ["A"]}, "weights[0].implied_by[0]", "must be an object"),
        (
            {"implied_by": [{"class_type": "A", "equals": []}]},
            "weights[0].implied_by[0].equals",
            "a text, a number",
        ),
        ({"gated": 1}, "weights[0].gated", "true or false"),
        ({"note": 1}, "weights[0].note", "must be a text"),
        ({"air": "x"}, "weights[0].air", "urn:air:"),
        ({"sise": 1}, "weights[0].sise", "no known member"),
    ],
)
def test_names_the_place_of_a_fault(change: dict[str, Any], place: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=text) as caught:
        manifest({**entry("x.bin"), **change})
    (fault,) = caught.value.problems
    assert (fault.code, fault.input) == ("bad_manifest", place)
    if "name" not in change and "folders" not in change:
        assert "loras/x.bin" in fault.what


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("{", "no JSON"),
        ("[]", "must be a JSON object"),
        ({"weights": []}, "version must be 1"),
        ({"version": True, "weights": []}, "version must be 1"),
        ({"version": 1}, "weights is missing"),
        ({"version": 1, "weights": {}}, "must be a list"),
        (
            '{"version": 1, "weights": [{"name": "x", "folders": ["f"], "urls": ["x"],'
            ' "implied_by": [{"class_type": "A", "input": "i", "equals": -1e999}]}]}',
            "equals must be a text, a number",
        ),
        ({"version": 1, "weights": ["x"]}, "must be an object"),
        ({"version": 1, "weights": [], "more": 1}, "no known member"),
        ({"version": 1, "weights": [], "bases": {"http": "https://x"}}, "not as a scheme"),
        ({"version": 1, "weights": [], "bases": {"r8": "ftp://x"}}, "http or https"),
        ({"version": 1, "weights": [], "groups": {"a": ["loras/x"]}}, "no weight is called"),
        ({"version": 1, "weights": [], "groups": {"a": "x"}}, "must be a list"),
        ({"version": 1, "weights": [], "groups": ["x"]}, "groups must be an object"),
    ],
)
def test_refuses_what_is_no_manifest(document: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        Manifest.parse(document)


def test_collects_every_problem_of_every_entry() -> None:
    with pytest.raises(InvalidInput) as caught:
        manifest(entry("a", size=0, sha256="x"), entry("./b"), entry("c"), {}, version=2)
    assert [problem.input for problem in caught.value.problems] == [
        "version",
        "weights[0].size",
        "weights[0].sha256",
        "weights[1].name",
        "weights[3].name",
        "weights[3].folders",
        "weights[3].urls",
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (entry("x", "unet"), entry("x", "diffusion_models")),
        (entry("x", "clip"), entry("x", "text_encoders")),
        (entry("x"), {**entry("x"), "folders": ["vae", "loras"]}),
        (entry("x", aliases=["z"]), entry("y", aliases=["z"])),
        (entry("x", aliases=["y"]), entry("y")),
        (entry("caf\u00e9"), entry("cafe\u0301")),
    ],
)
def test_a_name_in_a_folder_means_one_weight(first: Any, second: Any) -> None:
    with pytest.raises(InvalidInput, match="is taken by weights"):
        manifest(first, second)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
MEMBERS = st.sampled_from(
    ["name", "folders", "urls", "size", "files", "aliases", "implied_by", "kind", "gated"]
)


@given(st.dictionaries(MEMBERS, JSON))
def test_any_json_gives_a_manifest_or_its_problems(change: dict[str, Any]) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        hash(manifest({**entry("x"), **change}).weights)
    except InvalidInput as err:
        problems = err.problems
    assert all(problem.input.startswith("weights[0]") for problem in problems)


# Resolving


def test_what_is_on_disk_needs_no_manifest() -> None:
    on_disk = disk(loras=["sub/x.pt"])
    assert manifest().resolve(reference("sub/x.pt"), on_disk) == OnDisk("sub/x.pt")
    assert manifest().resolve(reference("sub\\x.pt"), on_disk) == OnDisk("sub/x.pt")


def test_what_is_on_disk_comes_before_the_manifest() -> None:
    known = manifest(entry("x.pt"), entry("y.pt", aliases=["z.pt"]))
    assert known.resolve(reference("z.pt"), disk(loras=["z.pt"])) == OnDisk("z.pt")


def test_legacy_folders_are_asked_for_by_their_present_name() -> None:
    known = manifest(entry("x.pt", "unet"))
    assert known.resolve(reference("x.pt", "unet"), disk()) == Found(known.weights[0])
    on_disk = disk(diffusion_models=["x.pt"])
    assert known.resolve(reference("x.pt", "unet"), on_disk) == OnDisk("x.pt")


def test_finds_the_exact_name_in_the_folder_only() -> None:
    known = manifest(entry("x.pt"), entry("x.pt", "checkpoints"))
    assert known.resolve(reference("x.pt", "checkpoints"), disk()) == Found(known.weights[1])
    assert problem(known.resolve(reference("x.pt", "vae"), disk())).code == "unknown_model"


def test_finds_a_weight_in_each_of_its_folders() -> None:
    known = manifest({**entry("x.pt"), "folders": ["clip", "vae"]})
    for folder in ("clip", "text_encoders", "vae"):
        assert known.resolve(reference("x.pt", folder), disk()) == Found(known.weights[0])


def test_a_name_that_is_written_differently_is_rewritten() -> None:
    known = manifest(entry("sub/caf\u00e9.pt"))
    for spelling in ("sub\\caf\u00e9.pt", "sub/cafe\u0301.pt", "sub/caf\u00e9.pt [output]"):
        outcome = known.resolve(reference(spelling), disk())
        assert outcome == Found(known.weights[0], "sub/caf\u00e9.pt")


def test_an_alias_is_rewritten_to_the_name() -> None:
    known = manifest(entry("ae.safetensors", aliases=["ae.sft"]))
    assert known.resolve(reference("ae.sft"), disk()) == Found(known.weights[0], "ae.safetensors")


@pytest.mark.parametrize(
    ("listed", "asked"), [("x.pt", "SDXL/x.pt"), ("XL/x.pt", "x.pt"), ("XL/x.pt", "SDXL/x.pt")]
)
def test_a_base_name_is_installed_where_the_workflow_asks_for_it(listed: str, asked: str) -> None:
    outcome = manifest(entry(listed)).resolve(reference(asked), disk())
    assert isinstance(outcome, Found)
    assert (outcome.weight.name, outcome.rewritten_to) == (asked, None)
    assert outcome.weight.urls == (Source(f"https://host/{listed}"),)


def test_a_base_name_with_backslashes_is_rewritten_too() -> None:
    outcome = manifest(entry("x.pt")).resolve(reference("SDXL\\x.pt"), disk())
    assert isinstance(outcome, Found)
    assert (outcome.weight.name, outcome.rewritten_to) == ("SDXL/x.pt", "SDXL/x.pt")


def test_a_base_name_of_several_is_ambiguous() -> None:
    known = manifest(entry("a/x.pt", size=1500), entry("b/x.pt"))
    found = problem(known.resolve(reference("c/x.pt"), disk()))
    assert found.code == "ambiguous_model"
    assert "loras/a/x.pt (1.5 kB), loras/b/x.pt (size unknown)" in found.what


def test_a_generic_base_name_says_nothing() -> None:
    known = manifest(entry("a/diffusion_pytorch_model.safetensors"))
    asked = reference("b/diffusion_pytorch_model.safetensors")
    found = problem(known.resolve(asked, disk()))
    assert found.code == "unknown_model"
    assert "loras/a/diffusion_pytorch_model.safetensors" in found.hint


def test_another_case_is_rewritten() -> None:
    known = manifest(entry("Sub/Model.pt"))
    outcome = known.resolve(reference("sub/model.PT"), disk())
    assert outcome == Found(known.weights[0], "Sub/Model.pt")
    assert known.resolve(reference("A.pt"), disk(loras=["a.pt"])) == OnDisk("a.pt")


def test_two_files_that_differ_in_case_are_never_guessed_between() -> None:
    known = manifest(entry("s/MODEL.pt"), entry("s/Model.pt"))
    assert problem(known.resolve(reference("s/model.pt"), disk())).code == "ambiguous_model"
    on_disk = disk(loras=["A.pt", "a.pt"])
    assert problem(manifest().resolve(reference("a.PT"), on_disk)).code == "unknown_model"


def test_without_a_folder_a_name_must_be_unique_everywhere() -> None:
    known = manifest(entry("x.pt"), entry("x.pt", "vae"), entry("y.pt", "vae"))
    assert known.resolve(reference("y.pt", None), disk()) == Found(known.weights[2])
    found = problem(known.resolve(reference("x.pt", None), disk()))
    assert found.code == "ambiguous_model"
    assert "loras/x.pt" in found.what
    assert "vae/x.pt" in found.what


def test_a_weight_in_two_folders_is_one_weight_without_a_folder() -> None:
    known = manifest({**entry("x.pt"), "folders": ["loras", "vae"]})
    assert known.resolve(reference("x.pt", None), disk()) == Found(known.weights[0])


def test_similar_names_are_suggested_and_never_taken() -> None:
    known = manifest(
        entry("wan2.1_t2v_1.3B_bf16.safetensors", size=2_600_000_000),
        entry("wan2.1_t2v_1.3B_fp16.safetensors"),
        entry("flux1-dev.safetensors"),
        entry("Wan2_1-T2V-1_3B_bf16.safetensors", "diffusion_models", size=5),
    )
    on_disk = disk(loras=["wan21-t2v-13B-bf16.ckpt"])
    found = problem(known.resolve(reference("Wan2_1-T2V-1_3B_bf16.sft"), on_disk))
    assert found.code == "unknown_model"
    assert "in the folder loras" in found.what
    nearest = re.findall(r"\S+/\S+ \([^)]*\)", found.hint)
    assert nearest == [
        "loras/wan2.1_t2v_1.3B_bf16.safetensors (2.6 GB)",
        "loras/wan21-t2v-13B-bf16.ckpt (on disk)",
        "diffusion_models/Wan2_1-T2V-1_3B_bf16.safetensors (5 B)",
    ]


def test_nothing_similar_gives_no_suggestion() -> None:
    found = problem(manifest(entry("flux1-dev.safetensors")).resolve(reference("qq.pt"), disk()))
    assert found.hint == "Add the model to weights_manifest.json."


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x.pt", "a/../x.pt", "C:\\x.pt", "a\nb"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    assert problem(manifest().resolve(reference(name), disk())).code == "bad_model_name"


@pytest.mark.parametrize(
    "change", [{"kind": "dir"}, {"urls": [{"url": "https://host/x.tar", "extract": "tar"}]}]
)
def test_archives_and_folders_are_found_as_files_are(change: dict[str, Any]) -> None:
    known = manifest({**entry("x.pt"), **change})
    assert known.resolve(reference("x.pt"), disk()) == Found(known.weights[0])


@given(st.text())
def test_a_normalised_name_stays_below_its_folder(text: str) -> None:
    name = normalised(text)
    if name is not None:
        assert not name.startswith("/")
        assert not {"", ".", ".."} & set(name.split("/"))
        assert "\\" not in name


@given(st.lists(st.sampled_from(["a.pt", "b.pt", "A.pt", "s/a.pt", "s/b.pt", "t/a.pt"])))
def test_whatever_is_found_is_a_file_of_that_name(names: list[str]) -> None:
    known = manifest(*(entry(name) for name in dict.fromkeys(names)))
    for asked in ("a.pt", "s/a.pt", "u/b.pt", "c.pt"):
        outcome = known.resolve(reference(asked), disk())
        if isinstance(outcome, Found):
            source = outcome.weight.urls[0].url.removeprefix("https://host/")
            assert source in names
            assert source.split("/")[-1].lower() == asked.split("/")[-1].lower()
            assert outcome.weight.name == (outcome.rewritten_to or asked)


def test_a_big_manifest_indexes_its_names() -> None:
    known = manifest(*(entry(f"s{n % 7}/model-{n}.safetensors") for n in range(2000)))
    known.resolve(reference("model-1.safetensors"), disk())
    asked: list[str] = []

    class Counted(frozenset[str]):
        def __iter__(self) -> Any:
            asked.append("walked")
            return super().__iter__()

    listed = Counted(f"own-{n}.safetensors" for n in range(2000))
    for n in range(100):
        outcome = known.resolve(reference(f"model-{n}.safetensors"), lambda _: listed)
        assert isinstance(outcome, Found)
    assert asked == []


def test_weights_of_other_callers_are_never_suggested() -> None:
    on_disk = disk(loras=["url/0a1b2c3d4e.safetensors", "own/0a1b2c3d4f.safetensors"])
    found = problem(manifest().resolve(reference("0a1b2c3d4e.safetensors"), on_disk))
    assert "own/0a1b2c3d4f" in found.hint
    assert "url/" not in found.hint


def test_a_name_as_long_as_a_book_is_compared_with_none() -> None:
    known = manifest(entry("x" * 400 + ".pt"))
    found = problem(known.resolve(reference("x" * 400 + "y.pt"), disk()))
    assert found.hint == "Add the model to weights_manifest.json."


def test_similar_names_are_left_out_where_they_are_not_wanted() -> None:
    known = manifest(entry("model-1.pt"))
    assert "model-1" in problem(known.resolve(reference("model-2.pt"), disk())).hint
    outcome = known.resolve(reference("model-2.pt"), disk(), suggest=False)
    assert "model-1" not in problem(outcome).hint


def test_without_a_folder_the_disk_is_searched_too() -> None:
    on_disk = disk(vae=["x.pt"])
    outcome = manifest().resolve(reference("x.pt", None), on_disk, folders=["loras", "vae"])
    assert outcome == OnDisk("x.pt", "vae")


@pytest.mark.parametrize("text", ["a/x.pt", "X.PT", "old.pt", "s\\x.pt"])
def test_a_text_that_may_be_no_model_is_never_rewritten(text: str) -> None:
    known = manifest(entry("x.pt", aliases=["old.pt"]), entry("s/x.pt", "vae"))
    asked = Reference("6", "Style", "C", "lora_name", None, text, certain=False)
    assert problem(known.resolve(asked, disk())).code == "unknown_model"
    exact = Reference("6", "Style", "C", "lora_name", None, "x.pt", certain=False)
    assert known.resolve(exact, disk()) == Found(known.weights[0])


# Names that are written otherwise


def written(name: str, form: Any, folder: str = "loras") -> Reference:
    return Reference("6", "Style", "C", "lora_name", folder, name, form=form)


@pytest.mark.parametrize(
    ("form", "name", "listed"),
    [
        ("token", "easy", "easy.pt"),
        ("token", "easy", "sd15/easy.safetensors"),
        ("stem", "easy", "deep/er/easy.safetensors"),
        ("lora", "here/easy.safetensors", "there/easy.safetensors"),
    ],
)
def test_some_names_mean_files_of_any_subfolder(form: Any, name: str, listed: str) -> None:
    assert manifest().resolve(written(name, form), disk(loras=[listed])) == OnDisk(listed)
    known = manifest(entry(listed))
    outcome = known.resolve(written(name, form), disk())
    assert isinstance(outcome, Found)
    assert outcome.rewritten_to is None


def test_an_embedding_goes_where_the_text_says() -> None:
    known = manifest(entry("easy.pt", "embeddings"))
    outcome = known.resolve(written("sd15/easy", "token", "embeddings"), disk())
    assert isinstance(outcome, Found)
    assert (outcome.weight.name, outcome.rewritten_to) == ("sd15/easy.pt", None)


def test_an_embedding_in_other_letters_is_rewritten() -> None:
    known = manifest(entry("Easy.pt", "embeddings"))
    outcome = known.resolve(written("easy", "token", "embeddings"), disk())
    assert outcome == Found(known.weights[0], "Easy.pt")


# Addresses


@pytest.mark.parametrize(
    "text",
    [
        "https://host/x.safetensors?sig=s3cret",
        "hf:owner/repo/x.safetensors",
        "urn:air:sdxl:lora:civitai:1@2",
        "civitai.com/models/1?token=s3cret",
        "owner/repo",
        "owner/repo/sub/x.safetensors",
    ],
)
def test_an_address_is_asked_for(text: str) -> None:
    asked = manifest().resolve(reference(text, "clip"), disk())
    assert isinstance(asked, AskedWeight)
    assert (asked.node_id, asked.input, asked.folder) == ("6", "lora_name", "text_encoders")
    assert (asked.address, asked.text) == (parse(text, bare_repositories=True), text)
    assert "s3cret" not in repr(asked)
    assert "s3cret" not in json.dumps(asked.as_json())


@pytest.mark.parametrize("name", ["owner/repo", "owner/repo/x.safetensors"])
def test_a_file_goes_before_a_repository_of_the_same_spelling(name: str) -> None:
    assert manifest().resolve(reference(name), disk(loras=[name])) == OnDisk(name)
    known = manifest(entry(name))
    assert known.resolve(reference(name), disk()) == Found(known.weights[0])


def test_a_model_in_a_folder_is_no_repository() -> None:
    found = problem(manifest().resolve(reference("SDXL/x.safetensors"), disk()))
    assert found.code == "unknown_model"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("file:///etc/x.safetensors", "file:///etc/x.safetensors"),
        ("https://civitai.com/user/me?token=s3cret", "https://civitai.com/user/me"),
    ],
)
def test_what_cannot_be_an_address_is_refused_at_its_input(text: str, shown: str) -> None:
    found = problem(manifest().resolve(reference(text), disk()))
    assert found.code == "bad_url"
    assert shown in found.what
    assert "s3cret" not in str(found)


def test_an_unknown_name_is_shown_without_secrets() -> None:
    found = problem(manifest().resolve(reference("x.safetensors?token=s3cret"), disk()))
    assert "s3cret" not in str(found)


# What the workflow itself says


def hint(name: str = "x.pt", **more: Any) -> ModelHint:
    said = {"url": f"https://there/{name}", "directory": "loras", "sha256": None, "node_id": "6"}
    return ModelHint(name, **{**said, **more})


def told(known: Manifest, *said: ModelHint, name: str = "x.pt", **more: Any) -> Any:
    folder = more.pop("folder", "loras")
    return known.resolve(reference(name, folder), disk(), hints=hints_by_name(said), **more)


def test_a_hint_is_used_for_a_name_that_the_manifest_does_not_have() -> None:
    for known in (manifest(), manifest(entry("other/x.pt")), manifest(entry("X.pt"))):
        asked = told(known, hint(sha256="a" * 64))
        assert isinstance(asked, AskedWeight)
        assert (asked.folder, asked.shown) == ("loras", "https://there/x.pt")
        assert asked.sha256 == "a" * 64


@pytest.mark.parametrize("listed", [entry("x.pt"), entry("y.pt", aliases=["x.pt"])])
def test_the_manifest_s_own_url_goes_before_a_hint(listed: dict[str, Any]) -> None:
    known = manifest(listed)
    outcome = told(known, hint())
    assert isinstance(outcome, Found)
    assert outcome.weight == known.weights[0]


def test_what_is_on_disk_needs_no_hint() -> None:
    said = hints_by_name([hint(sha256="a" * 64)])
    assert manifest().resolve(reference("x.pt"), disk(loras=["x.pt"]), hints=said) == OnDisk("x.pt")


def test_the_hash_of_a_hint_is_required_of_the_manifest_s_file() -> None:
    outcome = told(manifest(entry("x.pt")), hint(sha256="a" * 64))
    assert isinstance(outcome, Found)
    assert outcome.weight.sha256 == "a" * 64
    same = told(manifest(entry("x.pt", sha256="a" * 64)), hint(sha256="a" * 64))
    assert isinstance(same, Found)


def test_a_hash_that_contradicts_names_both() -> None:
    found = problem(told(manifest(entry("x.pt", sha256="b" * 64)), hint(sha256="a" * 64)))
    assert found.code == "hash_contradicts"
    assert "a" * 64 in found.what
    assert "b" * 64 in found.what
    twice = problem(told(manifest(), hint(sha256="a" * 64), hint(sha256="b" * 64)))
    assert twice.code == "hash_contradicts"


def test_the_node_s_own_hint_goes_before_those_of_the_file() -> None:
    others = [hint(url="https://other/x.pt", node_id=node_id) for node_id in ("", "7")]
    assert told(manifest(), *others, hint()).shown == "https://there/x.pt"
    assert told(manifest(), *others).shown == "https://other/x.pt"


def test_a_hint_counts_for_its_folder_only() -> None:
    assert problem(told(manifest(), hint(directory="vae"))).code == "unknown_model"
    assert told(manifest(), hint(directory="clip"), folder="text_encoders").folder == (
        "text_encoders"
    )
    assert told(manifest(), hint(directory="")).folder == "loras"


def test_a_hint_tells_the_folder_where_comfyui_has_such_a_one() -> None:
    known = ["loras", "vae"]
    assert told(manifest(), hint(), folder=None, folders=known).folder == "loras"
    for directory in ("custom_nodes", "../loras", ""):
        outcome = told(manifest(), hint(directory=directory), folder=None, folders=known)
        assert problem(outcome).code == "unknown_model"


@pytest.mark.parametrize("url", ["", "x.pt", "file:///etc/x.pt", "owner/repo"])
def test_a_hint_without_an_address_leaves_the_other_steps(url: str) -> None:
    outcome = told(manifest(entry("X.pt")), hint(url=url, sha256="a" * 64))
    assert isinstance(outcome, Found)
    assert (outcome.rewritten_to, outcome.weight.sha256) == ("X.pt", "a" * 64)


# What a person wants to know


def test_a_weight_tells_what_matters_before_it_is_fetched() -> None:
    urls = ["https://host/x?token=1", "https://other/x"]
    (weight,) = manifest(entry("x.pt", urls=urls, license="MIT", gated=True)).weights
    assert weight.as_json() == {
        "folder": "loras",
        "name": "x.pt",
        "size": None,
        "from": "host",
        "license": "MIT",
        "gated": True,
        "non_commercial": False,
    }
    assert manifest(entry("x.pt", urls=["assets/x.pt"])).weights[0].origin == "assets/x.pt"


# Weights that no input names


def test_a_node_can_imply_weights() -> None:
    by_name = {"class_type": "VAELoader", "input": "vae_name", "equals": "taef1"}
    known = manifest(
        entry("taef1_encoder.pt", "vae_approx", implied_by=[by_name]),
        entry("taef1_decoder.pt", "vae_approx", implied_by=[by_name, by_name]),
        entry("always.pt", implied_by=[{"class_type": "Detect"}]),
        entry("part.pt", implied_by=[{"class_type": "Prompt", "contains": "embedding:part"}]),
        entry("one.pt", implied_by=[{"class_type": "Mode", "input": "mode", "equals": 1}]),
        entry("any.pt", implied_by=[{"class_type": "Mode", "input": "mode"}]),
    )
    encoder, decoder, always, part, one, any_mode = known.weights
    assert known.implied("VAELoader", {"vae_name": "taef1"}) == (encoder, decoder)
    assert known.implied("VAELoader", {"vae_name": "ae"}) == ()
    assert known.implied("VAELoader", {}) == ()
    assert known.implied("Detect", {}) == (always,)
    assert known.implied("Prompt", {"text": "by embedding:part", "clip": ["1", 0]}) == (part,)
    assert known.implied("Prompt", {"text": "by part"}) == ()
    assert known.implied("Mode", {"mode": 1}) == (one, any_mode)
    assert known.implied("Mode", {"mode": True}) == (any_mode,)
    assert known.implied("Unknown", {}) == ()


def test_offers_the_small_autoencoders_as_comfyui_does() -> None:
    listing = [
        "taef1_encoder.pt",
        "taef1_decoder.safetensors",
        "taesd_encoder.pt",
        "taesd3_decoder.pt",
        "taesdxl_other.pt",
        "taehv.safetensors",
        "lighttaew2_2.pth",
        "sub/taesd_decoder.pt",
        "other.pt",
    ]
    assert vae_approx_names(listing) == {
        "taef1",
        "taehv.safetensors",
        "lighttaew2_2.pth",
        "pixel_space",
    }
