"""Files that ComfyUI saves: what is found in them, whatever is done to them."""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graphs import node, picture
from PIL import Image
from saved_files import MAKERS, avif, exif, exr, flac, glb, jpeg, latent, mp3, mp4, png, svg, webp

from comfy_runner.comfyui.client import ComfyClient
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.documents import source
from comfy_runner.documents.embedded import embedded
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.document import MAX_DOCUMENT_BYTES

GRAPH = picture()
EDITOR: dict[str, Any] = {"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}
BOTH = {"prompt": json.dumps(GRAPH), "workflow": json.dumps(EDITOR)}


def what(content: bytes) -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        source.read(content)
    (problem,) = caught.value.problems
    return problem.what


@pytest.mark.parametrize("kind", MAKERS)
def test_both_graphs_are_read_from_every_kind_of_file(kind: str) -> None:
    content = MAKERS[kind](BOTH)
    assert source.read(content) == GRAPH
    assert source.read(content, prefer="workflow") == EDITOR
    only = MAKERS[kind]({"workflow": BOTH["workflow"]})
    assert source.read(only) == EDITOR


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "jpeg"])
def test_a_workflow_of_megabytes_is_read(kind: str) -> None:
    big = {**GRAPH, "9": node("PrimitiveString", value='x "y"\n' * 800_000)}
    assert source.read(MAKERS[kind]({"prompt": json.dumps(big)})) == big


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_without_a_workflow_is_named(kind: str) -> None:
    said = what(MAKERS[kind]({}))
    assert said.startswith("It is a")
    assert said.endswith("with no metadata.")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_damaged_file_is_never_more_than_no_workflow(kind: str) -> None:
    content = MAKERS[kind](BOTH)
    generator = random.Random(kind)  # noqa: S311
    for _ in range(120):
        damaged = bytearray(content[: generator.randrange(len(content))])
        if generator.random() < 0.7:
            damaged = bytearray(content)
        for _ in range(generator.choice((0, 1, 2, 30))):
            if damaged:
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            assert source.read(bytes(damaged)) is not None
        except InvalidWorkflow as err:
            assert len(err.problems) == 1  # noqa: PT017


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_with_a_gigabyte_of_nothing_is_not_read_whole(kind: str, tmp_path: Path) -> None:
    content = MAKERS[kind]({})
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.truncate(1 << 30)
    with path.open("rb") as file:
        counted = _Counted(file)
        found = embedded(counted)
    assert found is not None
    assert found.graphs == {}
    assert counted.count < 3 * MAX_DOCUMENT_BYTES


class _Counted(io.BufferedReader):
    """A file that counts what is read of it."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file.raw)
        self.count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.count += len(content)
        return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png({"parameters": "a fox\nSteps: 20"}), "AUTOMATIC1111 writes"),
        (png({"Title": "x", "prompt": "a fox"}), "a PNG picture without a workflow (its metadata:"),
        (png({"prompt": "{oops"}), "a PNG picture. The text in 'prompt' is not JSON"),
        (png({"prompt": "[1]"}), "a PNG picture. There is no workflow in it"),
        (jpeg({"parameters": "Steps: 20"}), "a JPEG picture without a workflow"),
        (png(BOTH)[:60], "a PNG picture that cannot be read: it is cut off."),
        (mp4(BOTH)[:500], "an MP4 video that cannot be read"),
        (flac({"artist": "me"}), "a FLAC recording without a workflow (its metadata: artist)"),
        (glb({"generator": "x"}), "a GLB model without a workflow (its metadata: generator)"),
        (latent({"title": "x"}), "a safetensors file without a workflow (its metadata: title)"),
        (mp3(BOTH)[mp3(BOTH).index(b"\xff\xfb") :], "an MP3 recording with no metadata"),
        (exr({})[:8] + b"name" * 64, "an EXR picture that cannot be read: its header is damaged."),
        (svg({"title": "1"}), "an SVG picture without a workflow (its metadata: title)"),
        (b"GIF89a\0\0", "a GIF picture, no workflow"),
        (b"ply\nformat ascii 1.0\n", "a PLY model, no workflow"),
        (b"PK\x03\x04rest", "a ZIP archive, no workflow"),
        (b"\n<!DOCTYPE html><html></html>", "an HTML page, no workflow"),
        (b"<?xml version='1.0'?><feed/>", "an XML document, no workflow"),
        (b"\x01\0\0\0\0\0\0\0\0", "an unknown binary file (it begins with 01 00 00"),
    ],
)
def test_what_was_found_instead_of_a_workflow_is_told(content: bytes, says: str) -> None:
    assert says in what(content)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + bytes(4)


def test_text_chunks_that_are_bombs_are_left_alone() -> None:
    start, end = png({})[:33], chunk(b"IEND", b"")
    bomb = zlib.compress(bytes(MAX_DOCUMENT_BYTES + 1))
    assert "too big" in what(start + chunk(b"zTXt", b"prompt\0\0" + bomb) + end)
    assert "too big" in what(start + chunk(b"iTXt", b"prompt\0\1\0\0\0" + bomb) + end)
    huge = struct.pack(">I", 2**31) + b"tEXtprompt\0{"
    assert "2147 MB" in what(start + huge)


def test_metadata_that_is_nested_without_end_is_told() -> None:
    header = b'{"__metadata__": ' + b"[" * 200_000
    said = what(struct.pack("<Q", len(header)) + header)
    assert (
        said == "It is a safetensors file that cannot be read: its metadata is nested too deeply."
    )


def test_a_jpeg_may_have_fill_bytes_and_segments_without_content() -> None:
    content = jpeg(BOTH)
    for between in (b"\xff", b"\xff\xff\xff", b"\xff\x01\xff\xd0"):
        assert source.read(content[:2] + between + content[2:]) == GRAPH


def test_both_graphs_may_stand_in_the_comment_of_a_jpeg() -> None:
    comment = json.dumps(BOTH).encode()
    segment = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    content = jpeg({})
    content = content[:2] + segment + content[2:]
    assert source.read(content) == GRAPH
    assert source.read(content, prefer="workflow") == EDITOR


def box(kind: bytes, content: bytes) -> bytes:
    """A part of an AVIF picture."""
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_the_metadata_of_an_avif_may_stand_in_its_own_box() -> None:
    """As ISO/IEC 14496-12 has it: item 1 is EXIF, and its only extent is all of `idat`."""
    block = bytes(4) + exif(BOTH).tobytes()
    item = box(b"infe", struct.pack(">IHH4sx", 2 << 24, 1, 0, b"Exif"))
    names = box(b"iinf", struct.pack(">IH", 0, 1) + item)
    place = struct.pack(">I2sHHHHHII", 1 << 24, b"\x44\0", 1, 1, 1, 0, 1, 0, len(block))
    meta = box(b"meta", bytes(4) + names + box(b"iloc", place) + box(b"idat", block))
    start = box(b"ftyp", b"avif" + bytes(4))
    wide = struct.pack(">I4sQ", 1, b"free", 16 + 5) + b"spare"
    assert source.read(start + wide + meta) == GRAPH
    endless = struct.pack(">I4s", 0, b"mdat")
    assert what(start + endless + meta) == "It is an AVIF picture with no metadata."


def test_a_graph_may_stand_in_what_windows_calls_the_comment() -> None:
    made = Image.Exif()
    made[0x9C9C] = f"prompt:{BOTH['prompt']}".encode("utf-16-le")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=made)
    assert source.read(file.getvalue()) == GRAPH


def test_latin_1_is_read_where_it_is_no_utf_8() -> None:
    graph = {"1": node("A", text="Grüße")}
    text = json.dumps(graph, ensure_ascii=False).encode("latin-1")
    start, end = png({})[:33], chunk(b"IEND", b"")
    assert source.read(start + chunk(b"tEXt", b"prompt\0" + text) + end) == graph


@pytest.mark.parametrize("save", [webp, jpeg, avif])
def test_names_of_metadata_may_have_capitals(save: Callable[..., bytes]) -> None:
    assert source.read(save({"Workflow": BOTH["workflow"]})) == EDITOR
    assert source.read(save({"Prompt": " " + BOTH["prompt"]})) == GRAPH


@pytest.mark.parametrize("head", [b"", b"ASCII\0\0\0", b"UNICODE\0"])
def test_both_graphs_may_stand_in_the_user_comment(head: bytes) -> None:
    text = json.dumps({"prompt": GRAPH, "workflow": EDITOR})
    made = Image.Exif()
    encoding = "utf-16-be" if head.startswith(b"U") else "utf-8"
    made.get_ifd(0x8769)[0x9286] = head + text.encode(encoding)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=made)
    assert source.read(file.getvalue()) == GRAPH
    assert source.read(file.getvalue(), prefer="workflow") == EDITOR


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv"])
def test_both_graphs_may_stand_in_a_video_s_comment(kind: str) -> None:
    content = MAKERS[kind]({"comment": json.dumps(BOTH)})
    assert source.read(content) == GRAPH
    assert source.read(content, prefer="workflow") == EDITOR


def test_what_the_real_comfyui_saves_is_read(comfy: ComfyProcess, client: ComfyClient) -> None:
    """Every output node that needs no model, with the workflow that the editor sends along."""
    video = {"format": "auto", "codec": "auto"}
    webp_options = {"fps": 6.0, "lossless": True, "quality": 80, "method": "default"}
    png_options = {"format.bit_depth": "8-bit", "format.input_color_space": "sRGB"}
    exr_options = {**png_options, "format.bit_depth": "32-bit float"}
    pictures, sound = {"images": ["1", 0]}, {"audio": ["2", 0]}
    graph = {
        "1": node("EmptyImage", width=64, height=64, batch_size=3, color=255),
        "2": node("EmptyAudio", duration=0.2, sample_rate=48000, channels=1),
        "3": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "4": node("CreateVideo", fps=8.0, **pictures),
        "png": node("SaveImage", filename_prefix="s/png", **pictures),
        "apng": node(
            "SaveAnimatedPNG", filename_prefix="s/a", fps=6.0, compress_level=4, **pictures
        ),
        "webp": node("SaveAnimatedWEBP", filename_prefix="s/w", **webp_options, **pictures),
        "png2": node(
            "SaveImageAdvanced", filename_prefix="s/b", format="png", **png_options, **pictures
        ),
        "exr": node(
            "SaveImageAdvanced", filename_prefix="s/e", format="exr", **exr_options, **pictures
        ),
        "flac": node("SaveAudio", filename_prefix="s/f", **sound),
        "mp3": node("SaveAudioMP3", filename_prefix="s/m", quality="128k", **sound),
        "opus": node("SaveAudioOpus", filename_prefix="s/o", quality="64k", **sound),
        "mp4": node("SaveVideo", filename_prefix="s/v", video=["4", 0], **video),
        "webm": node("SaveWEBM", filename_prefix="s/x", codec="vp9", fps=8.0, crf=32.0, **pictures),
        "latent": node("SaveLatent", filename_prefix="s/l", samples=["3", 0]),
    }
    run_id = "1b4e28ba-2fa1-4d2e-883f-b9a76cc3e6d1"
    with client.connect(run_id) as messages:
        client.submit(graph, run_id, {"extra_pnginfo": {"workflow": EDITOR}})
        while True:
            message = messages.receive(60)
            assert isinstance(message, dict)
            if message["type"] == "executing" and message["data"]["node"] is None:
                break
    history = client.history(run_id)
    assert history is not None
    assert source.read(json.dumps({run_id: history})) == graph
    client.forget(run_id)
    assert set(history["outputs"]) == set(graph) - {"1", "2", "3", "4"}, history["status"]
    for output in history["outputs"].values():
        saved = next(files for files in output.values() if files and files[0] is not True)[0]
        path = comfy.output / saved["subfolder"] / saved["filename"]
        assert source.read(path) == graph, path.name
        assert source.read(path, prefer="workflow") == EDITOR, path.name
