"""A run on the real ComfyUI, repeated from its receipt, and what two receipts tell."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer
from graphs import HERE, bundled, node, picture
from loras import lora, workflow
from PIL import Image
from weight_stores import fetches, settings, sha256, tensors

from comfy_runner.errors import InvalidInput
from comfy_runner.replaying import compare, is_edited, read, recover_weights, request
from comfy_runner.runner import Runner
from comfy_runner.runs.files import GivenFile
from comfy_runner.runs.receipt import (
    Pack,
    Place,
    Receipt,
    Surroundings,
    UsedFile,
    UsedWeight,
    receipt_metrics,
)
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Request
from comfy_runner.weights.store import WeightStore

PHOTO = HERE.parent / "examples" / "astronaut.png"


@dataclass(frozen=True)
class Recorded:
    """A run and its receipt; its files go when the next one starts."""

    receipt: Receipt
    pictures: tuple[bytes, ...]
    """Pixels of each result that is a picture."""


def recorded(runner: Runner, asked: Request) -> Recorded:
    """Run a request."""
    pictures: list[bytes] = []
    receipt: Receipt | None = None
    for update in runner.run(replace(asked, receipt=True)):
        match update:
            case Output(path) if path.suffix == ".png":
                with Image.open(path) as image:
                    pictures.append(image.tobytes())
            case Finished():
                receipt = update.receipt
    assert receipt is not None
    return Recorded(receipt, tuple(pictures))


def written(receipt: Receipt, folder: Path) -> Receipt:
    """The receipt after it was kept in a file."""
    path = folder / "receipt.json"
    path.write_text(receipt.text())
    assert read(path) == receipt
    return read(path)


def test_the_same_receipt_replayed_gives_the_same_picture(runner: Runner, tmp_path: Path) -> None:
    values = {"Positive prompt.text": "a blue square", "KSampler.steps": 4}
    asked = Request(document=bundled("text_to_picture"), values=values)  # with a random seed
    first = recorded(runner, asked)
    receipt = written(first.receipt, tmp_path)
    assert not is_edited(receipt)

    again = recorded(runner, request(receipt, on_disk=runner.store.listing))
    comparison = compare(receipt, again.receipt)

    assert again.pictures == first.pictures
    assert len(first.pictures) == 1
    assert comparison.is_same, list(comparison.lines())
    assert comparison.differences == ()
    assert comparison.exit_code == 0
    assert list(comparison.lines()) == ["The same: 1 result made again."]
    # The file itself is another one: it names the run that made it.
    assert receipt.outputs[0].sha256 != again.receipt.outputs[0].sha256
    assert receipt.seeds == again.receipt.seeds
    assert receipt.workflow_digest == again.receipt.workflow_digest


def test_a_receipt_tells_what_the_run_was_made_of(runner: Runner) -> None:
    values = {"KSampler.steps": 3}
    receipt = recorded(
        runner, Request(document=bundled("text_to_picture"), values=values, seed=7)
    ).receipt
    assert receipt.seeds == {"7.seed": 7}
    assert receipt.values == {"KSampler.steps": 3}
    assert receipt.withheld == ()
    assert {weight.label for weight in receipt.weights} == {
        "diffusion_models/tiny-flux-colours.safetensors",
        "text_encoders/tiny-clip_l-16tok.pt",
        "vae/tiny-mosaic-vae.pt",
    }
    assert all(weight.sha256 and weight.size for weight in receipt.weights)
    assert receipt.surroundings.comfyui == "0.30.0"
    assert len(receipt.surroundings.comfyui_tree) == 64
    assert receipt.surroundings.torch
    assert [pack.name for pack in receipt.surroundings.packs] == ["breakdowns", "faults"]
    assert receipt.peak_memory is not None
    assert receipt.peak_memory > 100e6
    ran = {time.node_id: time for time in receipt.node_seconds}
    assert ran["7"].title == "Sampler"
    assert sum(time.seconds for time in ran.values()) <= receipt.seconds["run"]
    metrics = receipt_metrics(receipt)
    assert metrics["workflow_digest"] == receipt.workflow_digest
    assert "7 Sampler" in metrics["node_seconds"]


def test_another_seed_is_told_and_is_the_reason(runner: Runner) -> None:
    steps = {"KSampler.steps": 3}
    document = bundled("text_to_picture")
    receipt = recorded(runner, Request(document=document, values=steps, seed=1)).receipt
    other = request(receipt, values={"7.seed": 2})
    comparison = compare(receipt, recorded(runner, other).receipt)
    assert not comparison.is_same
    assert comparison.exit_code == 1
    verdict, *reasons = comparison.lines()
    assert verdict == "Not the same: 1 difference in 1 result."
    assert "its pixels are others" in reasons[0]
    assert reasons[1] == "  workflow: Node 7 has another value for seed."
    assert comparison.as_json()["same"] is False


def side_by_side() -> dict[str, Any]:
    return {
        "1": node("LoadImage", "Left", image="one.png"),
        "2": node("LoadImage", "Right", image="two.png"),
        "3": node("SaveImage", images=["1", 0], filename_prefix="left"),
        "4": node("SaveImage", images=["2", 0], filename_prefix="right"),
    }


def test_the_callers_files_are_found_by_what_is_in_them(runner: Runner, tmp_path: Path) -> None:
    shades = {"one.png": (255, 0, 0), "two.png": (0, 255, 0)}
    kept = tmp_path / "kept" / "deep"
    kept.mkdir(parents=True)
    for name, shade in shades.items():
        Image.new("RGB", (8, 8), shade).save(tmp_path / name)
        # Under other names, and among files of the same size.
        shutil.copy(tmp_path / name, kept / f"renamed-{name[0]}.bin")
        (kept / f"a-{name}").write_bytes(b"x" * (tmp_path / name).stat().st_size)
    given = tuple(GivenFile(tmp_path / name, name) for name in shades)
    first = recorded(runner, Request(document=side_by_side(), files=given))
    receipt = written(first.receipt, tmp_path)
    assert [file.name for file in receipt.files] == ["one.png", "two.png"]
    assert receipt.workflow["1"]["inputs"]["image"] == "one.png"

    again = recorded(runner, request(receipt, [kept]))
    assert again.pictures == first.pictures
    assert compare(receipt, again.receipt).differences == ()

    with pytest.raises(InvalidInput) as caught:
        request(receipt, [tmp_path / "nowhere"])
    assert [problem.code for problem in caught.value.problems] == ["file_not_found"] * 2
    assert "node 1 (Left), input image: The file 'one.png'" in str(caught.value)
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8), (0, 0, 255)).save(other)
    changed = request(
        receipt,
        [kept],
        values={"2.image": "other.png"},
        more_files=[GivenFile(other, "other.png")],
    )
    comparison = compare(receipt, recorded(runner, changed).receipt)
    kinds = [difference.kind for difference in comparison.differences]
    assert kinds == ["output", "workflow", "file"]


def test_a_weight_from_an_address_is_told_without_its_secret_and_replayed(
    runner: Runner, server: FileServer, tmp_path: Path
) -> None:
    url = server.serve("replayed.safetensors", lora(31), ranges=True, etag='"31"')
    secret = f"{url}?token=s3cretQ"
    server.serve("photo.png", PHOTO.read_bytes(), headers={"Content-Type": "image/png"})
    document = workflow() | {
        "30": node("LoadImage", "Photo", image="x.png"),
        "31": node("SaveImage", images=["30", 0], filename_prefix="x"),
    }
    values = {"20.lora_name": secret, "Photo.image": f"{server.url('photo.png')}?sig=s3cretP"}
    first = recorded(runner, Request(document=document, values=values, seed=1))
    receipt = written(first.receipt, tmp_path)

    assert "s3cret" not in receipt.text()
    (asked,) = (weight for weight in receipt.weights if weight.places)
    assert asked.source == url
    assert asked.name.startswith("url/replayed-")
    assert asked.sha256
    assert set(receipt.withheld) == {"20.lora_name", "30.image"}
    assert receipt.files[0].name == "photo.png"

    # Here the weight has its name; elsewhere its address has to be given again, with the secret.
    here = request(receipt, [PHOTO.parent], on_disk=runner.store.listing)
    again = recorded(runner, here)
    assert again.pictures == first.pictures
    assert [d.kind for d in compare(receipt, again.receipt).differences] == []
    with pytest.raises(InvalidInput, match=r"input lora_name.*-i '20.lora_name=...'"):
        request(receipt, [PHOTO.parent])
    elsewhere = request(receipt, [PHOTO.parent], values={"20.lora_name": secret})
    assert compare(receipt, recorded(runner, elsewhere).receipt).is_same


def test_a_weight_from_a_public_address_is_asked_again_where_it_is_not() -> None:
    weight = UsedWeight("loras", "url/x.pt", "a" * 64, 1, "https://h/x.pt", (Place("1", "lora"),))
    workflow = {"1": node("L", lora="url/x.pt"), "2": node("P", a=["1", 0])}
    receipt = simple(workflow=workflow, weights=(weight,))
    for there, name in (((), "https://h/x.pt"), (("url/x.pt",), "url/x.pt")):
        asked = request(receipt, on_disk=lambda _, there=there: there)
        assert isinstance(asked.document, Mapping)
        assert asked.document["1"]["inputs"]["lora"] == name


def test_a_weight_whose_address_lost_only_what_is_harmless_is_not_asked_for(
    runner: Runner, server: FileServer, tmp_path: Path
) -> None:
    body = lora(32)
    url = server.serve("harmless.safetensors", body, ranges=True, etag='"32"')
    values = {"20.lora_name": f"{url}?download=true"}
    first = recorded(runner, Request(document=workflow(), values=values, seed=1))
    receipt = written(first.receipt, tmp_path)
    assert receipt.withheld == ("20.lora_name",)

    runner.store.objects.remove(sha256(body))
    assert [*recover_weights(receipt, runner.store)][-1].done == len(body)
    again = recorded(runner, request(receipt, on_disk=runner.store.listing))
    assert again.pictures == first.pictures
    assert compare(receipt, again.receipt).differences == ()


LORA = tensors(300)


def withholding(source: str) -> Receipt:
    """The receipt of a run with the weight `LORA`, whose address had more than it tells."""
    place = Place("1", "lora", ("here",))
    weight = UsedWeight("loras", "url/x-abc.safetensors", sha256(LORA), len(LORA), source, (place,))
    document = {"1": node("L", "Style", lora={"here": source}), "2": node("P", a=["1", 0])}
    return simple(workflow=document, weights=(weight,), withheld=("1.lora",))


def test_a_weight_that_the_store_has_under_another_name_is_not_asked_for(
    server: FileServer, tmp_path: Path
) -> None:
    store = WeightStore(settings(tmp_path / "models"))
    file = tmp_path / "file"
    file.write_bytes(LORA)
    store.objects.add_file(file, sha256(LORA), size=len(LORA))
    receipt = withholding(server.serve("x.safetensors", LORA))
    with pytest.raises(InvalidInput, match=r"node 1 \(Style\), input lora"):
        request(receipt, on_disk=store.listing)
    assert [*recover_weights(receipt, store)] == []
    request(receipt, on_disk=store.listing)
    assert (store.models / "loras" / receipt.weights[0].name).read_bytes() == LORA
    assert server.asked == []


def test_a_weight_that_only_its_whole_address_gives_is_asked_for(
    server: FileServer, tmp_path: Path
) -> None:
    store = WeightStore(settings(tmp_path / "models"))
    others = {
        server.serve("refused.safetensors", b"no", status=403),
        server.serve("another.safetensors", tensors(300, b"b"), ranges=True),
        "data:application/octet-stream",
        "",
    }
    for source in others:
        receipt = withholding(source)
        list(recover_weights(receipt, store))
        with pytest.raises(InvalidInput, match=r"Give it again: -i '1\.lora=\.\.\.'"):
            request(receipt, on_disk=store.listing)
    assert store.listing("loras") == set()


def test_a_weight_whose_address_is_given_anew_is_not_looked_for(
    server: FileServer, tmp_path: Path
) -> None:
    store = WeightStore(settings(tmp_path / "models"))
    receipt = withholding(server.serve("x.safetensors", LORA, ranges=True))
    assert [*recover_weights(receipt, store, values=["1.lora"])] == []
    assert server.asked == []
    list(recover_weights(receipt, store))
    assert fetches(server) == 1


def test_a_run_without_a_receipt_has_its_metrics(runner: Runner) -> None:
    asked = Request(document=picture(), randomise_seeds=False)
    full = recorded(runner, asked).receipt
    (short,) = (made.receipt for made in runner.run(asked) if isinstance(made, Finished))
    assert short is not None
    assert short.workflow_digest == full.workflow_digest
    assert short.outputs == ()
    assert short.surroundings == Surroundings()
    assert full.outputs


def test_a_file_from_a_public_address_is_fetched_again(runner: Runner, server: FileServer) -> None:
    url = server.serve("photo.png", PHOTO.read_bytes(), headers={"Content-Type": "image/png"})
    document = {
        "1": node("LoadImage", "Photo", image="x.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    first = recorded(runner, Request(document=document, values={"1.image": url}))
    assert first.receipt.withheld == ()
    again = recorded(runner, request(first.receipt))
    assert again.pictures == first.pictures
    assert compare(first.receipt, again.receipt).differences == ()
    assert [asked.path for asked in server.asked] == ["photo.png", "photo.png"]


def test_every_kind_of_result_is_the_same_again(runner: Runner) -> None:
    document = {
        "1": node("EmptyImage", width=64, height=64, batch_size=4, color=255),
        "2": node("ImageAddNoise", image=["1", 0], seed=3, strength=0.2),
        "3": node("EmptyAudio", duration=1.0, sample_rate=44100, channels=2),
        "4": node("CreateVideo", images=["2", 0], fps=8.0, audio=["3", 0]),
        "5": node("SaveVideo", video=["4", 0], filename_prefix="v", format="mp4", codec="h264"),
        "6": node("SaveAudio", audio=["3", 0], filename_prefix="a"),
        "7": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "8": node("SaveLatent", samples=["7", 0], filename_prefix="l"),
        "9": node("PreviewImage", images=["2", 0]),
        "10": node("PreviewAny", source=["12", 0]),
        "11": node(
            "SaveAnimatedWEBP",
            images=["2", 0],
            filename_prefix="w",
            fps=8.0,
            lossless=True,
            quality=70,
            method="fastest",
        ),
        "12": node("PrimitiveString", value="a red fox"),
    }
    asked = Request(document=document, previews=True, randomise_seeds=False)
    first = recorded(runner, asked).receipt
    again = recorded(runner, request(first)).receipt
    kinds = {made.content.partition(":")[0] for made in first.outputs}
    assert kinds == {"pixels", "packets", "tensors", ""}
    assert len(first.outputs) == len(again.outputs) == 9
    comparison = compare(first, again)
    assert comparison.is_same, list(comparison.lines())
    changed = recorded(runner, request(first, values={"2.seed": 4})).receipt
    bad = [d for d in compare(first, changed).differences if d.kind == "output"]
    assert len(bad) == 6  # four previews, the video and the animation


def test_what_a_receipt_withholds_must_be_given_again(runner: Runner) -> None:
    document = {
        "1": node("PrimitiveString", "Secret", value="https://me:s3cretU@h.example/?k=s3cretV"),
        "2": node("PreviewAny", source=["1", 0]),
    }
    receipt = recorded(runner, Request(document=document)).receipt
    assert "s3cret" not in receipt.text()
    assert receipt.withheld == ("1.value",)
    with pytest.raises(InvalidInput, match=r"node 1 \(Secret\), input value.*-i '1.value=...'"):
        request(receipt)
    assert request(receipt, values={"1.value": "x"}).values == {"1.value": "x"}


def simple(**changes: Any) -> Receipt:
    """A receipt as a run might have made it."""
    base = Receipt(
        run_id="r",
        began="2026-01-01T00:00:00+00:00",
        workflow_digest="d",
        workflow=picture(),
    )
    return replace(base, **changes)


DIFFERENT: Mapping[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another weight": (
        {"weights": (UsedWeight("loras", "x.safetensors", "a" * 64),)},
        {"weights": (UsedWeight("loras", "x.safetensors", "b" * 64),)},
        "weight: loras/x.safetensors is another one: sha256 bbbbbbbbbbbb... now, aaaaaaaaaaaa...",
    ),
    "a weight of another size": (
        {"weights": (UsedWeight("loras", "x.safetensors", None, 5),)},
        {"weights": (UsedWeight("loras", "x.safetensors", None, 6),)},
        "weight: loras/x.safetensors has 6 bytes now, had 5 then.",
    ),
    "a weight without a hash": (
        {"weights": (UsedWeight("loras", "x.safetensors", None, 5),)},
        {"weights": (UsedWeight("loras", "x.safetensors", "b" * 64, 5),)},
        "weight (may differ): The hash of loras/x.safetensors is not known",
    ),
    "another ComfyUI": (
        {"surroundings": Surroundings(comfyui="0.30.0")},
        {"surroundings": Surroundings(comfyui="0.31.0")},
        "version: comfyui is 0.31.0 now, was 0.30.0.",
    ),
    "another pack": (
        {"surroundings": Surroundings(packs=(Pack("a", "1"), Pack("b", "1", "", "x")))},
        {"surroundings": Surroundings(packs=(Pack("b", "1", "", "y"), Pack("c")))},
        "pack: a is installed then only.",
    ),
    "a pack with other files": (
        {"surroundings": Surroundings(packs=(Pack("b", "1", "", "x"),))},
        {"surroundings": Surroundings(packs=(Pack("b", "1", "", "y"),))},
        "pack: b is not the same: other files.",
    ),
    "another option": (
        {"options": {"output_format": "webp"}},
        {"options": {"output_format": "jpg"}},
        "option: output_format is 'jpg' now, was 'webp'.",
    ),
    "another node": (
        {},
        {"workflow_digest": "e", "workflow": picture() | {"1": node("LoadImage")}},
        "workflow: Node 1 is a LoadImage now, was a EmptyImage.",
    ),
    "one node less": (
        {},
        {"workflow_digest": "e", "workflow": {"1": picture()["1"]}},
        "workflow: Node 2 is only there then.",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_each_difference_is_named(case: str) -> None:
    then, now, says = DIFFERENT[case]
    lines = list(compare(simple(**then), simple(**now)).lines())
    assert any(line.startswith(f"  {says}") for line in lines), lines


def test_what_is_the_same_is_not_mentioned() -> None:
    assert compare(simple(), simple(run_id="s", seconds={"run": 2.0})).differences == ()


def test_a_receipt_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        read(tmp_path / "none.json")
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(picture()))
    with pytest.raises(InvalidInput, match='no JSON object with the member "receipt"'):
        read(path)


def test_an_edited_workflow_is_noticed() -> None:
    file = UsedFile("x.png", "c" * 64, 1)
    receipt = simple(files=(file,))
    assert is_edited(receipt)


def test_options_that_nobody_knows_are_refused() -> None:
    with pytest.raises(InvalidInput, match="option 'tiff' with the quality 95 is unknown"):
        request(simple(options={"output_format": "tiff"}))
