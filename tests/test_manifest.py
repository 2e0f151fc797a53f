"""What the manifest says about the names that stand in workflows."""

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.weights.manifest import (
    Found,
    Implication,
    Manifest,
    Missing,
    OnDisk,
    Reference,
    Source,
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
    assert {(w.label, w.size) for w in parsed.weights} == {
        (f"{folder}/{file.name}", file.stat().st_size)
        for folder, name in [
            ("upscale_models", "realesr-animevideov3.safetensors"),
            ("diffusion_models", "tiny-flux-colours.safetensors"),
            ("text_encoders", "tiny-clip_l-16tok.pt"),
            ("vae", "tiny-mosaic-vae.pt"),
        ]
        for file in [PROJECT / "assets" / "weights" / name]
    }
    assert all(weight.sha256 and weight.license for weight in parsed.weights)


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
    assert weight.plain_urls == ("https://host/ae.safetensors", "assets/ae.safetensors")
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
        ({"version": 1, "weights": ["x"]}, "must be an object"),
        ({"version": 1, "weights": [], "more": 1}, "no known member"),
        ({"version": 1, "weights": [], "bases": {"http": "https://x"}}, "not as a scheme"),
        ({"version": 1, "weights": [], "bases": {"r8": "ftp://x"}}, "http or https"),
        ({"version": 1, "weights": [], "groups": {"a": ["loras/x"]}}, "no weight is called"),
        ({"version": 1, "weights": [], "groups": {"a": "x"}}, "must be a list"),
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
    assert outcome.weight.plain_urls == (f"https://host/{listed}",)


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
def test_archives_and_folders_are_not_supported_yet(change: dict[str, Any]) -> None:
    found = problem(manifest({**entry("x.pt"), **change}).resolve(reference("x.pt"), disk()))
    assert found.code == "unsupported_weight"
    assert "cannot be fetched yet" in found.what


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
            source = outcome.weight.plain_urls[0].removeprefix("https://host/")
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
