"""The receipt: what is in it, what is kept out of it, and how it is read again."""

import hashlib
import json
import shutil
import string
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import av
import numpy
import pytest
from graphs import catalog, node, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput
from comfy_runner.graph.document import RUN_MARK
from comfy_runner.runs.contents import content_digest
from comfy_runner.runs.files import InputFolder
from comfy_runner.runs.plan import prepare
from comfy_runner.runs.receipt import (
    METRICS_BYTES,
    VERSION,
    Made,
    NodeTime,
    Pack,
    Place,
    Receipt,
    Surroundings,
    UsedFile,
    UsedWeight,
    receipt_metrics,
    workflow_digest,
)
from comfy_runner.runs.recording import Memory, Recorder, leading_to_secrets
from comfy_runner.runs.surroundings import surroundings
from comfy_runner.runs.withholding import cleaned, is_secret
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.store import WeightStore

FULL = Receipt(
    run_id="5f1b",
    began="2026-01-01T00:00:00+00:00",
    workflow_digest="d" * 64,
    workflow=picture(),
    withheld=("6.text",),
    options={"output_format": "webp", "previews": False},
    values={"6.text": "a fox"},
    seeds={"7.seed": 2**63 + 1},
    weights=(
        UsedWeight("loras", "a/b.safetensors", "a" * 64, 7, "https://h.example/b", ()),
        UsedWeight("loras", "c.safetensors", None, None, "", (Place("1", "loras", ("x", 2)),)),
    ),
    files=(UsedFile("photo.png", "b" * 64, 9, "", (Place("3", "image"),)),),
    surroundings=Surroundings(comfyui="0.30.0", packs=(Pack("faults", "1", "c0ffee", "dd"),)),
    seconds={"run": 1.5},
    node_seconds=(NodeTime("1", "Plain", 0.5),),
    fetched_bytes=3,
    peak_memory=10,
    outputs=(Made("x.png", "2", "c" * 64, 5, "pixels:dd"),),
)


def test_a_receipt_is_read_as_it_was_written() -> None:
    assert Receipt.parse(FULL.text()) == FULL
    assert Receipt.parse(FULL.as_json()) == FULL
    assert FULL.as_json()["receipt"] == VERSION


def test_members_that_a_later_program_adds_are_ignored() -> None:
    told = json.loads(FULL.text()) | {"colour": "red"}
    told["weights"][0]["taste"] = {"sweet": True}
    assert Receipt.parse(told) == FULL


def test_whole_seconds_are_seconds() -> None:
    receipt = Receipt.parse(FULL.as_json() | {"seconds": {"run": 2}})
    assert receipt.seconds == {"run": 2.0}
    assert type(receipt.seconds["run"]) is float


def test_members_that_an_earlier_program_lacked_have_defaults() -> None:
    told = {
        "receipt": 1,
        "run_id": "r",
        "began": "t",
        "workflow_digest": "d",
        "workflow": {},
    }
    receipt = Receipt.parse(told)
    assert receipt.weights == ()
    assert receipt.peak_memory is None


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("", "It is not JSON"),
        ("[" * 100_000, "It is not JSON"),
        ("[1]", 'no JSON object with the member "receipt"'),
        ('{"1": {"class_type": "X", "inputs": {}}}', 'no JSON object with the member "receipt"'),
        ('{"receipt": true}', "Its member receipt.run_id is missing"),
        ('{"receipt": 0}', 'no JSON object with the member "receipt"'),
        ('{"receipt": "1"}', 'no JSON object with the member "receipt"'),
        ('{"receipt": 2}', "has version 2; this program reads version 1"),
        ('{"receipt": 1}', "Its member receipt.run_id is missing"),
    ],
)
def test_what_is_no_receipt_is_one_clear_error(document: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Receipt.parse(document)
    assert len(caught.value.problems) == 1
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("workflow", [], "receipt.workflow does not fit"),
        ("weights", {}, "receipt.weights does not fit"),
        ("weights", [1], "receipt.weights[0] is no object"),
        ("weights", [{"folder": "a"}], "receipt.weights[0].name is missing"),
        ("files", [{"name": "a", "sha256": None, "size": 1}], "receipt.files[0].sha256 does not"),
        ("fetched_bytes", "3", "receipt.fetched_bytes does not fit"),
        ("fetched_bytes", True, "receipt.fetched_bytes does not fit"),
        ("peak_memory", "3", "receipt.peak_memory does not fit"),
        ("seconds", {"run": "2"}, "receipt.seconds.run does not fit"),
        ("surroundings", None, "receipt.surroundings is no object"),
    ],
)
def test_a_member_that_does_not_fit_is_named(member: str, value: object, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Receipt.parse(FULL.as_json() | {member: value})
    assert len(caught.value.problems) == 1
    assert f"Its member {says}" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(FULL.as_json())), JSON)
def test_any_json_is_a_receipt_or_a_problem(member: str, value: Any) -> None:
    told = FULL.as_json() | {member: value}
    with suppress(InvalidInput):
        receipt = Receipt.parse(json.dumps(told))
        assert Receipt.parse(receipt.text()).text() == receipt.text()


def test_the_digest_is_that_of_class_types_and_inputs() -> None:
    plain = workflow_digest(picture(), ())
    titled = picture()
    titled["1"]["_meta"] = {"title": "Else"}
    titled["2"]["inputs"][RUN_MARK] = "a run"
    turned = dict(reversed(picture().items()))
    assert workflow_digest(titled, ()) == workflow_digest(turned, ()) == plain
    assert workflow_digest(picture(color=1), ()) != plain
    text = '{"1":{"class_type":"A","inputs":{"b":1,"c":["2",0]}}}'
    graph = {"1": {"inputs": {"c": ["2", 0], "b": 1}, "class_type": "A"}}
    assert workflow_digest(graph, ()) == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_takes_a_file_by_its_content() -> None:
    def digest(name: str, sha256: str) -> str:
        file = UsedFile(name, sha256, 1, "", (Place("1", "image"),))
        return workflow_digest({"1": node("LoadImage", image=name)}, [file])

    assert digest("a.png", "a" * 64) == digest("b.png", "a" * 64)
    assert digest("a.png", "a" * 64) != digest("a.png", "b" * 64)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red fox, (masterpiece:1.2)?", "a red fox, (masterpiece:1.2)?"),
        ("https://h.example/a/b.png", "https://h.example/a/b.png"),
        ("see https://h.example/a?token=S now", "see https://h.example/a now"),
        ("https://me:S@h.example/a", "https://h.example/a"),
        ("ftp://me:S<S@h.example/a", "ftp://h.example/a"),
        ("https://me:12/S@h.example/a", "an unreadable address"),
        ("https://[S/x", "an unreadable address"),
        ("https://h.example:81/a", "https://h.example:81/a"),
        ("https://h.example/three@1/a.js", "https://h.example/three@1/a.js"),
        ('{"url": "https://h.example/#S"}', '{"url": "https://h.example/"}'),
        ("data:image/png;base64,SSSS", "data:image/png"),
        ("Bearer tok/en+S here", "Bearer *** here"),
        ("?t=tok%2Fen%2BS", "?t=***"),
        ("", ""),
    ],
)
def test_texts_are_kept_without_secrets(text: str, shown: str) -> None:
    assert cleaned(text, ["tok/en+S", ""]) == shown


SECRET = st.text(string.ascii_letters + string.digits + "_-.~+/=@:<>'%", min_size=12, max_size=20)


@given(SECRET)
def test_no_secret_survives_in_an_address(secret: str) -> None:
    marked = f"Q7{secret}7Q"
    for address in (
        f"https://h.example/x?token={marked}",
        f"https://me:{marked}@h.example/x",
        f"a https://{marked.replace('/', '')}@h.example, b",
        f"wss://h.example/#{marked}",
        f"data:text/plain;name={marked},abc",
    ):
        assert "Q7" not in cleaned(address, ())
    assert cleaned(marked, [marked]) == "***"


def test_metrics_are_small_whatever_the_run_was() -> None:
    many = Receipt(
        run_id="r",
        began="t",
        workflow_digest="d" * 64,
        workflow={},
        weights=tuple(UsedWeight("loras", f"{n}é" * 50, "a" * 64) for n in range(100)),
        node_seconds=tuple(NodeTime(str(n), "ü" * 200, n) for n in range(100)),
        peak_memory=5,
    )
    metrics = receipt_metrics(many)
    assert len(json.dumps(metrics)) <= METRICS_BYTES
    assert next(iter(metrics["node_seconds"])).startswith("99 ")
    assert metrics["workflow_digest"] == "d" * 64
    few = receipt_metrics(FULL)
    assert few["weights"] == {"loras/a/b.safetensors": "a" * 64, "loras/c.safetensors": None}
    assert few["node_seconds"] == {"1 Plain": 0.5}
    assert few["peak_memory"] == 10


def saved(path: Path, run: str) -> Path:
    """The same picture with another run's name in it."""
    about = PngInfo()
    about.add_text("prompt", run)
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    image.putpixel((1, 1), (9, 9, 9))
    image.save(path, pnginfo=about)
    return path


def test_the_content_of_a_picture_is_its_pixels(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "a.png", "one"), saved(tmp_path / "b.png", "other")
    assert one.read_bytes() != other.read_bytes()
    assert content_digest(one) == content_digest(other) != ""
    third = tmp_path / "c.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(third)
    wide = tmp_path / "d.png"
    Image.new("RGB", (16, 4), (1, 2, 3)).save(wide)
    assert len({content_digest(path) for path in (one, third, wide)}) == 3


def test_the_content_of_an_animation_is_every_frame_and_its_time(tmp_path: Path) -> None:
    def animation(name: str, last: int, duration: int) -> str:
        frames = [Image.new("L", (8, 8), shade) for shade in (0, 100, last)]
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration)
        return content_digest(path)

    first = animation("a.gif", 200, 100)
    assert first == animation("b.gif", 200, 100)
    assert len({first, animation("c.gif", 201, 100), animation("d.gif", 200, 200)}) == 3


def film(path: Path, shade: int, comment: str) -> str:
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(3):
            image = Image.new("RGB", (32, 32), (shade, number * 50, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return content_digest(path)


def test_the_content_of_a_recording_is_its_streams(tmp_path: Path) -> None:
    first = film(tmp_path / "a.mp4", 10, "one")
    assert first.startswith("packets:")
    assert film(tmp_path / "b.mp4", 10, "other") == first
    assert film(tmp_path / "c.mp4", 90, "one") != first


def test_the_content_of_a_latent_is_its_tensors(tmp_path: Path) -> None:
    def latent(name: str, value: float, run: str) -> str:
        path = tmp_path / name
        tensors = {"latent_tensor": numpy.full((2, 3), value, dtype="float32")}
        path.write_bytes(save(tensors, {"prompt": run}))
        return content_digest(path)

    first = latent("a.latent", 1.0, "one")
    assert first.startswith("tensors:")
    assert latent("b.latent", 1.0, "other") == first
    assert latent("c.latent", 2.0, "one") != first


@pytest.mark.parametrize("name", ["x.png", "x.mp4", "x.latent", "x.txt", "x.json", "x"])
def test_a_file_that_cannot_be_read_has_no_content_of_its_own(tmp_path: Path, name: str) -> None:
    for content in (b"", b"no such thing", b"\xff" * 100):
        (tmp_path / name).write_bytes(content)
        assert content_digest(tmp_path / name) == ""


@pytest.mark.parametrize("header", [b"12", b"null", b'["x"]', b"[" * 200_000, b'{"a":' * 200_000])
def test_a_latent_with_an_odd_header_has_no_content_of_its_own(
    tmp_path: Path, header: bytes
) -> None:
    path = tmp_path / "x.latent"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"rest")
    assert content_digest(path) == ""


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "avif", "bmp"])
def test_no_cut_of_a_picture_stops_a_run(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.linear_gradient("L").resize((12, 12)).save(path)
    content, whole = path.read_bytes(), content_digest(path)
    found = []
    for length in range(len(content)):
        path.write_bytes(content[:length].ljust(len(content), b"\0"))
        content_digest(path)
        path.write_bytes(content[:length])
        found.append(content_digest(path))
    assert whole.startswith("pixels:")
    assert found[0] == found[9] == ""


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *command], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_surroundings_tell_the_packs_by_version_commit_and_files(tmp_path: Path) -> None:
    packs, tree = tmp_path / "packs", tmp_path / "ComfyUI"
    (packs / "good" / "__pycache__").mkdir(parents=True)
    (packs / "good" / "__init__.py").write_text("x = 1\n")
    (packs / "good" / "pyproject.toml").write_text('[project]\nname = "g"\nversion = "1.2"\n')
    (packs / "odd").mkdir()
    (packs / "odd" / "pyproject.toml").write_text("[project\n")
    for name, text in {"bare": 'project = "x"\n', "deep": f"a = {'[' * 5000}\n"}.items():
        (packs / name).mkdir()
        (packs / name / "pyproject.toml").write_text(text)
    (packs / "one_file.py").write_text("y = 1\n")
    for ignored in ("off.disabled", "__pycache__", ".git"):
        (packs / ignored).mkdir()
    (packs / "notes.md").write_text("")
    tree.mkdir()
    (tree / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    config = Config(comfyui=tree, custom_nodes=packs, comfyui_args=("--x=https://a:S@h/?S",))

    plain = surroundings(config)
    names = ["bare", "deep", "good", "odd", "one_file.py"]
    assert [pack.name for pack in plain.packs] == names
    assert [pack.version for pack in plain.packs] == ["", "", "1.2", "", ""]
    assert [pack.commit for pack in plain.packs] == [""] * 5
    assert plain.comfyui == "0.30.0"
    assert plain.comfyui_args == ("--x=https://h/",)

    git(packs / "good", "init", "--quiet")
    git(packs / "good", "add", ".")
    git(packs / "good", "commit", "--quiet", "-m", "first")
    head = git(packs / "good", "rev-parse", "HEAD")
    (packs / "good" / "__pycache__" / "x.pyc").write_bytes(b"1")
    committed = surroundings(config)
    assert committed.packs[2].commit == head
    assert committed.packs[2].digest == plain.packs[2].digest
    git(packs / "good", "pack-refs", "--all")
    assert surroundings(config).packs[2].commit == head
    git(packs / "good", "checkout", "--quiet", "--detach")
    assert surroundings(config).packs[2].commit == head

    (packs / "good" / "__init__.py").write_text("x = 2\n")
    (packs / "odd" / "model.bin").write_bytes(b"\0" * 2_000_000)
    changed = surroundings(config)
    pairs = zip(changed.packs, plain.packs, strict=True)
    assert [a.name for a, b in pairs if a.digest != b.digest] == ["good", "odd"]
    shutil.rmtree(packs)
    assert surroundings(config).packs == ()


def message(kind: str, run: str = "r", **more: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"prompt_id": run, **more}}


def test_nodes_are_timed_from_one_to_the_next() -> None:
    now = [0.0]
    recorder = Recorder("r", Surroundings(), clock=lambda: now[0])
    story = [
        (0.0, message("execution_start")),
        (1.0, message("executing", node="1", display_node="1")),
        (2.0, message("progress", node="1", value=1, max=2)),
        (3.0, message("executing", node="1.0.5", display_node="1")),
        (3.5, message("executing", run="other", node="9")),
        (4.0, message("executing", node="2", display_node=None)),
        (4.5, {"type": "status", "data": {}}),
        (4.6, {"type": "crystools.monitor", "data": None}),
        (4.75, message("execution_success")),
        (9.0, message("executing", node=None)),
    ]
    for when, told in story:
        now[0] = when
        recorder.event(told)
    receipt = recorder.finished({"run": 9.0})
    assert receipt.node_seconds == (NodeTime("1", "", 3.0), NodeTime("2", "", 0.75))
    assert receipt.seconds == {"run": 9.0}


def test_secrets_are_kept_out_wherever_they_stand(tmp_path: Path) -> None:
    document = {
        "1": node("PrimitiveString", "Title https://h.example/?k=S3C", value="token hf_S3C and on"),
        "2": node("PreviewAny", "Tell", source=["1", 0]),
        "3": node("PrimitiveString", value="see https://u:S3C@h.example/x"),
        "4": node("PreviewAny", source=["3", 0]),
        "5": node("PreviewAny", source="plain", api_key="S3C"),
        "6": node("PreviewAny", source={"__value__": [{"url": "https://h.example/?S3C"}, 1]}),
    }
    plan = prepare(document, catalog=catalog(), manifest=Manifest(), on_disk=lambda *_: ())
    recorder = Recorder("r", Surroundings(), secrets=["hf_S3C"])
    workflow = plan.to_submit("r", {})
    recorder.planned(plan, workflow, tmp_path, WeightStore(Config(models=tmp_path / "models")))
    receipt = recorder.finished({})
    assert "S3C" not in receipt.text()
    assert set(receipt.withheld) == {"1.value", "3.value", "5.api_key", "6.source"}
    assert receipt.workflow["1"]["inputs"]["value"] == "token *** and on"
    assert receipt.workflow["2"] == node("PreviewAny", "Tell", source=["1", 0])
    assert receipt.workflow_digest == workflow_digest(receipt.workflow, ())


PRIVATE_NAMES = (
    "token hf_token hfToken HF_TOKEN token2 tokens access_key secretKey private-key api_key"
    " openAIKey_api_key APIKey apikey password passphrase passwd db_pwd bearer_value client_secret"
    " secret auth authToken oauth Authorization credentials aws.secret.id api_key_1"
)

PLAIN_NAMES = (
    "max_tokens maxTokens num_tokens max_new_tokens number_of_tokens token_count tokenCount"
    " token_normalization keyframe keyFrames key_frames key author authored text monkey_api"
    " tokenizer secretary passage"
)


@pytest.mark.parametrize("name", PRIVATE_NAMES.split())
def test_inputs_that_take_secrets_are_known_by_their_names(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", PLAIN_NAMES.split())
def test_inputs_about_tokens_and_keyframes_are_no_secrets(name: str) -> None:
    assert not is_secret(name)


def taken_down(document: dict[str, Any], folder: Path) -> Receipt:
    """The receipt of a run of this document, without files and weights."""
    plan = prepare(document, catalog=catalog(), manifest=Manifest(), on_disk=lambda *_: ())
    recorder = Recorder("r", Surroundings())
    workflow = plan.to_submit("r", {})
    recorder.planned(plan, workflow, folder, WeightStore(Config(models=folder / "models")))
    return recorder.finished({})


def test_a_text_that_is_linked_into_a_secret_input_is_withheld(tmp_path: Path) -> None:
    document = {
        "1": node("PrimitiveString", value="S3C"),
        "2": node("StringConcatenate", string_a=["1", 0], string_b="S3C", delimiter="-"),
        "3": node("PreviewAny", source="x", apiKey=["2", 0]),
        "4": node("PrimitiveString", value="plain"),
        "5": node("PreviewAny", source=["4", 0]),
        "6": node("PreviewAny", source="x", maxTokens="many"),
    }
    receipt = taken_down(document, tmp_path)
    assert "S3C" not in receipt.text()
    assert set(receipt.withheld) == {"1.value", "2.string_b", "2.delimiter"}
    assert receipt.workflow["4"]["inputs"] == {"value": "plain"}
    assert receipt.workflow["6"]["inputs"] == {"source": "x", "maxTokens": "many"}


def test_what_a_loop_of_links_leads_to_is_looked_at_once() -> None:
    nodes = {"1": node("A", token=["2", 0]), "2": node("B", a=["1", 0], b=["2", 0], c=["9", 0])}
    assert leading_to_secrets(nodes, ()) == {"1", "2"}
    weight = {"1": node("A", tokens=["2", 0]), "2": node("B", name="x.safetensors", a=["3", 0])}
    assert leading_to_secrets(weight, {"x.safetensors"}) == set()


def test_results_are_taken_down_with_hash_size_and_content(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "one")
    recorder = Recorder("r", Surroundings())
    recorder.output(path, "2")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (made,) = recorder.finished({}).outputs
    assert asdict(made) == {
        "name": "a.png",
        "node_id": "2",
        "sha256": sha256,
        "size": path.stat().st_size,
        "content": content_digest(path),
    }
    short = Recorder("r", Surroundings(), whole=False)
    short.output(path, "2")
    assert short.finished({}).outputs == ()


def test_a_receipt_for_metrics_reads_no_file_and_has_the_same_digest(tmp_path: Path) -> None:
    models, inputs = tmp_path / "models", tmp_path / "inputs"
    inputs.mkdir()
    given_file = saved(tmp_path / "photo.png", "one")
    document = {
        "1": node("LoadImage", image="photo.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    plan = prepare(
        document,
        catalog=catalog(),
        manifest=Manifest(),
        on_disk=lambda *_: (),
        files=["photo.png"],
    )
    staged = InputFolder(inputs, 10**6).stage(plan.files, {"photo.png": given_file}, Event())
    workflow = plan.to_submit("r", staged)
    sha256 = hashlib.sha256(given_file.read_bytes()).hexdigest()
    receipts = []
    for whole in (True, False):
        if not whole:
            (inputs / staged["1", "image"]).write_bytes(b"other bytes, which nobody reads")
        recorder = Recorder("r", Surroundings(), whole=whole)
        recorder.planned(plan, workflow, inputs, WeightStore(Config(models=models)))
        receipts.append(recorder.finished({}))
    full, short = receipts
    assert full.files[0].sha256 == sha256
    assert short.files[0].sha256 == full.files[0].sha256[:16]
    assert short.workflow_digest == full.workflow_digest


def test_files_that_a_node_has_removed_meanwhile_cost_a_run_nothing_but_their_sizes(
    tmp_path: Path,
) -> None:
    """Without a receipt the run is noted while it goes on."""
    inputs, store = tmp_path / "inputs", WeightStore(Config(models=tmp_path / "models"))
    inputs.mkdir()
    (tmp_path / "models/loras").mkdir(parents=True)
    lora = tmp_path / "models/loras/x.safetensors"
    lora.write_bytes(b"x")
    document = {
        "0": node("UNETLoader", unet_name="u.safetensors", weight_dtype="default"),
        "1": node(
            "LoraLoaderModelOnly", model=["0", 0], lora_name="x.safetensors", strength_model=1.0
        ),
        "2": node("LoadImage", image="photo.png"),
        "3": node("PreviewAny", source=["1", 0]),
        "4": node("SaveImage", images=["2", 0], filename_prefix="x"),
    }
    listed = {"diffusion_models": ["u.safetensors"], "loras": ["x.safetensors"]}
    plan = prepare(
        document,
        catalog=catalog(),
        manifest=Manifest(),
        on_disk=lambda folder, _: listed.get(folder, []),
        files=["photo.png"],
    )
    given_file = saved(tmp_path / "photo.png", "one")
    staged = InputFolder(inputs, 10**6).stage(plan.files, {"photo.png": given_file}, Event())
    (inputs / staged["2", "image"]).unlink()
    lora.unlink()
    recorder = Recorder("r", Surroundings(), whole=False)
    recorder.planned(plan, plan.to_submit("r", staged), inputs, store)
    receipt = recorder.finished({})
    assert [(file.name, file.size) for file in receipt.files] == [("photo.png", 0)]
    assert {used.size for used in receipt.weights} == {None}
    assert receipt_metrics(receipt)["workflow_digest"] == receipt.workflow_digest


CIVITAI = "https://civitai.com/api/download/models/7"


@pytest.mark.parametrize(
    ("url", "source", "withheld"),
    [
        (
            f"{CIVITAI}?type=Model&format=SafeTensor&token=S3C",
            f"{CIVITAI}?format=safetensor&type=model",
            (),
        ),
        ("https://h.example/x.safetensors", "https://h.example/x.safetensors", ()),
        (
            "https://h.example/x.safetensors?S3C=1",
            "https://h.example/x.safetensors",
            ("1.lora_name",),
        ),
        ("https://h.example/hf_S3C/x.pt", "https://h.example/***/x.pt", ("1.lora_name",)),
    ],
)
def test_an_address_keeps_what_a_known_host_needs(
    tmp_path: Path, url: str, source: str, withheld: tuple[str, ...]
) -> None:
    document = {
        "0": node("UNETLoader", unet_name="u.safetensors", weight_dtype="default"),
        "1": node("LoraLoaderModelOnly", model=["0", 0], lora_name=url, strength_model=1.0),
        "2": node("PreviewAny", source=["1", 0]),
    }
    plan = prepare(
        document,
        catalog=catalog(),
        manifest=Manifest(),
        on_disk=lambda folder, _: ["u.safetensors"] if folder == "diffusion_models" else [],
    )
    (asked,) = plan.asked
    workflow = plan.to_submit("r", {}, weights={(asked.node_id, asked.input): "url/x.safetensors"})
    recorder = Recorder("r", Surroundings(), secrets=["hf_S3C"])
    recorder.planned(plan, workflow, tmp_path, WeightStore(Config(models=tmp_path / "models")))
    receipt = recorder.finished({})
    (weight,) = (used for used in receipt.weights if used.places)
    assert weight.source == source
    assert receipt.withheld == withheld
    assert "S3C" not in receipt.text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_the_peak_of_memory_is_that_of_the_child_since_the_begin() -> None:
    """A child takes 200 MB and gives them back, then tells; after `begin` that is forgotten."""
    program = (
        "import sys\nx = bytearray(200_000_000)\ndel x\nprint('done', flush=True)\n"
        "sys.stdin.readline()\ny = bytearray(50_000_000)\nprint('more', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "done\n"
        memory = Memory(process.pid)
        before = memory.peak()
        assert before is not None
        assert before > 200_000_000
        memory.begin()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "more\n"
        after = memory.peak()
        assert after is not None
        assert 50_000_000 < after < 150_000_000
        process.stdin.write("end\n")
        process.stdin.close()
    assert memory.peak() is None
    assert Memory(None).peak() is None
