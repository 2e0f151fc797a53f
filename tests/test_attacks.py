"""What a stranger's request may try against the real ComfyUI: refused with a clear problem, or
harmless; nothing outside the run's folders is touched, and the next honest run works.
"""

import contextlib
import io
import json
import pickle
import re
import struct
import tarfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import av
import numpy as np
import pytest
from graphs import node, picture
from PIL import Image

from comfy_runner.comfyui.client import ComfyClient, Disconnected
from comfy_runner.errors import (
    CallerError,
    Crashed,
    InvalidInput,
    InvalidWorkflow,
    RunError,
    TimedOut,
)
from comfy_runner.runner import Runner
from comfy_runner.runs.files import GivenFile, safe_name
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request

SECRET = "the-neighbours-secret"  # noqa: S105 - a text to look for

IMAGE = {"1": node("EmptyImage", width=16, height=16, batch_size=1, color=0x336699)}


def attempt(runner: Runner, document: Any, **request: Any) -> dict[str, bytes]:
    """The results of a request, by name. Raises: what the runner raises."""
    updates = runner.run(Request(document=document, **{"timeout": 60, **request}))
    return {
        update.path.name: update.path.read_bytes()
        for update in updates
        if isinstance(update, Output)
    }


def outcome(runner: Runner, document: Any, **request: Any) -> str:
    """The text of the error, or the names of the results; it never holds the secret."""
    made: dict[str, bytes] = {}
    try:
        made = attempt(runner, document, **request)
        told = f"made {sorted(made)}"
    except (CallerError, RunError) as err:
        told = f"{type(err).__name__}: {err}"
    assert SECRET not in told
    assert not any(SECRET.encode() in content for content in made.values())
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in made)
    return told


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, files with their content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not {"__pycache__", ".store"} & set(path.parts)
    }


@pytest.fixture
def neighbour(tmp_path: Path) -> Path:
    """A folder that is no affair of the run: a text, a picture and a film."""
    folder = tmp_path / "neighbour"
    folder.mkdir()
    (folder / "picture.txt").write_text(SECRET)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(folder / "picture.png")
    with av.open(str(folder / "film.ts"), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        shade = np.full((64, 64, 3), 200, np.uint8)
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return folder


@pytest.fixture(autouse=True)
def _nothing_happens_outside(runner: Runner, neighbour: Path) -> Iterator[None]:
    """Holds after every attack; and that a stranger's graph still runs."""
    process = runner.process
    folders = (neighbour, runner.config.models, runner.config.custom_nodes)
    before = [tree(folder) for folder in folders]
    around = {path.name for path in runner.config.comfyui.iterdir()}
    beside = {path.name for path in process.folder.iterdir()}
    yield
    assert [tree(folder) for folder in folders] == before
    assert {path.name for path in runner.config.comfyui.iterdir()} == around
    assert {path.name for path in process.folder.iterdir()} | {"results"} == beside | {"results"}
    assert list(process.input.iterdir()) in ([], [process.input / "3d"])
    assert attempt(runner, picture()).keys() == {"2_Save-it_plain_00001.png"}


def switch(value: Any) -> dict[str, Any]:
    """A node that hands on whatever it is given, so that ComfyUI compares no types."""
    return node("ComfySwitchNode", switch=True, on_true=value, on_false=value)


def shown(*link: Any) -> dict[str, Any]:
    return node("PreviewAny", source=list(link))


def film(frames: int = 2) -> dict[str, Any]:
    """A video, as nodes 1 and 2."""
    images = node("EmptyImage", width=16, height=16, batch_size=frames, color=0)
    return {"1": images, "2": node("CreateVideo", images=["1", 0], fps=8.0)}


REFUSED: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "a prefix that leads out of the data set's folder": (
        ("2", ""),
        IMAGE
        | {
            "2": node(
                "SaveImageDataSetToFolder",
                images=["1", 0],
                folder_name="x",
                filename_prefix="../../custom_nodes/x",
                mode="overwrite",
            )
        },
    ),
    "the same with text of the caller's own": (
        ("2", ""),
        IMAGE
        | {
            "2": node(
                "SaveImageTextDataSetToFolder",
                images=["1", 0],
                texts=["3", 0],
                folder_name="x",
                filename_prefix="NEIGHBOUR/x",
                mode="overwrite",
            ),
            "3": node("PrimitiveString", value="import os"),
        },
    ),
    "a folder through a switch": (
        ("3", "folder"),
        {
            "1": node("PrimitiveString", value="NEIGHBOUR"),
            "2": switch(["1", 0]),
            "3": node("LoadImageTextDataSetFromFolder", folder=["2", 0]),
            "4": shown("3", 1),
        },
    ),
    "a folder written into a switch": (
        ("3", "folder"),
        {
            "2": switch("NEIGHBOUR"),
            "3": node("LoadImageDataSetFromFolder", folder=["2", 0]),
            "4": node("PreviewImage", images=["3", 0]),
        },
    ),
    "a format that asks a video for the environment": (
        ("3", "values.a"),
        film()
        | {
            "3": node(
                "StringFormat",
                f_string="{a.__init__.__globals__[os].environ}",
                **{"values.a": ["2", 0]},
            ),
            "4": shown("3", 0),
        },
    ),
    "a model through a switch": (
        ("3", "ckpt_name"),
        {
            "2": switch("../../x.safetensors"),
            "3": node("CheckpointLoaderSimple", ckpt_name=["2", 0]),
            "4": shown("3", 0),
        },
    ),
    "a folder of a model through a switch": (
        ("3", "model_path"),
        {
            "2": switch("NEIGHBOUR"),
            "3": node("DiffusersLoader", model_path=["2", 0]),
            "4": shown("3", 0),
        },
    ),
    "a sound through a switch": (
        ("3", "audio"),
        {
            "2": switch("../x.mp3"),
            "3": node("LoadAudio", audio=["2", 0]),
            "4": node("PreviewAudio", audio=["3", 0]),
        },
    ),
    "a data set out of its folder": (
        ("3", ""),
        {
            "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "3": node("SaveTrainingDataset", latents=["1", 0], folder_name="../x"),
        },
    ),
    "the data sets of others": (
        ("3", ""),
        {"3": node("LoadTrainingDataset", folder_name="theirs"), "4": shown("3", 0)},
    ),
    "a model into the folder of models": (
        ("3", ""),
        {"3": node("VAESave", vae=["1", 0], filename_prefix="vae/x"), "1": node("VAELoader")},
    ),
    "an expression that writes a file": (
        ("3", "values.a"),
        IMAGE
        | {
            "2": switch(["1", 0]),
            "3": node(
                "ComfyMathExpression",
                expression="a.numpy().tofile('NEIGHBOUR/x.bin') or 1",
                **{"values.a": ["2", 0]},
            ),
            "4": shown("3", 0),
        },
    ),
    "an expression that saves a video": (
        ("3", "values.a"),
        film()
        | {
            "9": switch(["2", 0]),
            "3": node(
                "ComfyMathExpression",
                expression="a.save_to('NEIGHBOUR/x.mp4') or 1",
                **{"values.a": ["9", 0]},
            ),
            "4": shown("3", 0),
        },
    ),
    "a picture washed into a number": (
        ("2", "index"),
        IMAGE
        | {
            "2": node("CustomCombo", choice="x", index=["1", 0]),
            "3": node(
                "ComfyMathExpression",
                expression="a.numpy().tofile('NEIGHBOUR/x.bin') or 1",
                **{"values.a": ["2", 1]},
            ),
            "4": shown("3", 0),
        },
    ),
    "a connection hidden in a value": (
        ("3", "values.a"),
        IMAGE
        | {
            "3": node(
                "ComfyMathExpression",
                expression="a.numpy().tofile('NEIGHBOUR/x.bin') or 1",
                **{"values.a": {"__value__": ["1", 0]}},
            ),
            "4": shown("3", 0),
            "5": node("PreviewImage", images=["1", 0]),
        },
    ),
    "a connection to nowhere hidden in a value": (
        ("1", "source"),
        {"1": node("PreviewAny", source={"__value__": ["nowhere", 0]})},
    ),
    "a connection to nowhere by a fraction": (
        ("1", "source"),
        {"1": node("PreviewAny", source=["nowhere", 0.0])},
    ),
    "a picture reported as a path": (
        ("3", "model_file"),
        IMAGE | {"2": switch(["1", 0]), "3": node("Preview3D", model_file=["2", 0])},
    ),
    "an ending through a switch": (
        ("5", "format"),
        {
            "2": switch("x/../../../../../x.py"),
            "4": node("File3DToSplat", model_3d=["3", 0]),
            "3": node("Load3DAdvanced", model_file="none", viewport_state={}, width=8, height=8),
            "5": node("SplatToFile3D", splat=["4", 0], format=["2", 0]),
            "6": node("SaveGLB", mesh=["5", 0], filename_prefix="x"),
        },
    ),
}
"""Attacks that the node policy stops: node and input that it must name, and the graph."""


@pytest.mark.parametrize("attack", REFUSED)
def test_the_policy_refuses(runner: Runner, neighbour: Path, attack: str) -> None:
    place, document = REFUSED[attack]
    document = json.loads(json.dumps(document).replace("NEIGHBOUR", str(neighbour)))
    with pytest.raises(CallerError) as caught:
        attempt(runner, document)
    code = "refused_input" if place[1] else "refused_class"
    told = {(each.code, each.node_id, each.input): each for each in caught.value.problems}
    assert told[code, *place].hint


def loader(class_type: str, name: str) -> dict[str, Any]:
    """A graph that tells what a loader loads."""
    match class_type:
        case "LoadImage" | "LoadImageMask" | "LoadImageOutput" | "WebcamCapture" | "Painter":
            field = "mask" if class_type == "Painter" else "image"
            more: dict[str, Any] = {
                "LoadImageMask": {"channel": "red"},
                "WebcamCapture": {"width": 0, "height": 0, "capture_on_queue": True},
                "Painter": {"width": 64, "height": 64, "bg_color": "#000000"},
            }.get(class_type, {})
        case "LoadAudio" | "RecordAudio":
            field, more = "audio", {}
        case "LoadVideo":
            field, more = "file", {}
        case "LoadLatent":
            field, more = "latent", {}
        case _:
            field, more = "model_file", {"viewport_state": {}, "width": 8, "height": 8}
    return {"1": node(class_type, **{field: name}, **more), "2": shown("1", 0)}


LOADERS = (
    *("LoadImage", "LoadImageMask", "LoadImageOutput", "WebcamCapture", "Painter"),
    *("LoadAudio", "RecordAudio", "LoadVideo", "LoadLatent", "Load3DAdvanced"),
)

ELSEWHERE = (
    *("../../neighbour/picture.png", "NEIGHBOUR/picture.png", "NEIGHBOUR/picture.png [input]"),
    *("../plain_00001_.png [output]", "plain_00001_.png [output]", "plain_00001_.png [temp]"),
    *("..\\..\\x.png", "file:///etc/passwd", "//etc/passwd", "x\0.png", "x" * 5000, "~/.bashrc"),
)


@pytest.mark.parametrize("class_type", LOADERS)
def test_a_loader_reads_no_other_file(runner: Runner, neighbour: Path, class_type: str) -> None:
    """Not those of the machine, and not the outputs of an earlier run."""
    assert attempt(runner, picture())
    for name in ELSEWHERE:
        document = loader(class_type, name.replace("NEIGHBOUR", str(neighbour)))
        told = outcome(runner, document)
        assert told.startswith(("InvalidInput: node 1 ", "InvalidWorkflow: node 1", "RunError: no"))


def test_the_pictures_of_a_3d_view_are_not_read_from_elsewhere(
    runner: Runner, neighbour: Path
) -> None:
    for path in ("../../x.png", str(neighbour / "picture.png")):
        view = {"image": path, "mask": path, "normal": path, "recording": path, "camera_info": {}}
        document = {
            "1": node("Load3D", model_file="none", image=view, width=8, height=8),
            "2": node("PreviewImage", images=["1", 0]),
        }
        assert "Invalid file path" in outcome(runner, document)


SAVERS: dict[str, dict[str, Any]] = {
    "SaveImage": {"images": ["1", 0]},
    "SaveImageAdvanced": {
        "images": ["1", 0],
        "format": "png",
        "format.bit_depth": "8-bit",
        "format.input_color_space": "sRGB",
    },
    "SaveAnimatedWEBP": {
        "images": ["1", 0],
        "fps": 6.0,
        "lossless": True,
        "quality": 80,
        "method": "default",
    },
    "SaveAnimatedPNG": {"images": ["1", 0], "fps": 6.0, "compress_level": 4},
    "SaveWEBM": {"images": ["1", 0], "codec": "vp9", "fps": 8.0, "crf": 32.0},
    "SaveVideo": {"video": ["2", 0], "format": "mp4", "codec": "h264"},
    "SaveAudio": {"audio": ["3", 0]},
    "SaveAudioMP3": {"audio": ["3", 0], "quality": "V0"},
    "SaveAudioOpus": {"audio": ["3", 0], "quality": "128k"},
    "SaveLatent": {"samples": ["4", 0]},
    "SaveText": {"text": ["5", 0], "format": "txt"},
}

MATERIAL = film() | {
    "3": node("EmptyAudio", duration=0.1, sample_rate=44100, channels=1),
    "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "5": node("PrimitiveString", value=f"not {SECRET[:8]}"),
}


@pytest.mark.parametrize("class_type", SAVERS)
def test_a_saver_writes_nowhere_else(runner: Runner, neighbour: Path, class_type: str) -> None:
    for prefix in ("../../x", f"{neighbour}/x", "a/../../../b", "%width%/../../../x"):
        saver = node(class_type, **SAVERS[class_type], filename_prefix=prefix)
        told = outcome(runner, MATERIAL | {"9": saver})
        assert told.startswith(f"RunError: node 9 ({class_type}) failed")
        assert "outside" in told


ODD_PREFIXES = (
    *("a\nb", "<script>alert(1)</script>", "$(id)", "`id`;x", "-rf", "con\u202egnp.exe", "\u0000x"),
    *("%date:yyyy-MM-dd%/%year%", "%1.seed%", "..", "", ".", "C:\\x", "\\..\\..\\x", "x" * 300),
    *("checkpoints/x", "\ud800", "%s%s%n", "{0.__class__}", "📷", ".hidden", "a" * 100 + "/b"),
)


def test_a_result_has_a_harmless_name_whatever_the_prefix(runner: Runner) -> None:
    """`outcome` holds the names against a pattern; those that no file can have are errors."""
    told = {
        prefix: outcome(
            runner, IMAGE | {"2": node("SaveImage", images=["1", 0], filename_prefix=prefix)}
        )
        for prefix in ODD_PREFIXES
    }
    failed = {prefix for prefix, text in told.items() if not text.startswith("made ['2_SaveImage")}
    assert failed == {"\u0000x", "x" * 300, "\ud800"}


def test_odd_names_of_nodes_lead_nowhere(runner: Runner) -> None:
    for odd in ("../../x\n\0\u202e", "", "__proto__", "a/b", "1" * 400, "\ud800"):
        document = {"1": IMAGE["1"], odd: node("SaveImage", f"/etc/{odd}", images=["1", 0])}
        document[odd]["inputs"]["filename_prefix"] = "x"
        assert outcome(runner, document).startswith("made [")


def test_markup_is_no_format_of_a_text(runner: Runner) -> None:
    document = MATERIAL | {"9": node("SaveText", text=["5", 0], filename_prefix="x", format="html")}
    assert "'html' is not one of its choices" in outcome(runner, document)


def test_a_path_that_is_only_shown_is_handed_back_and_not_opened(
    runner: Runner, neighbour: Path
) -> None:
    path = f"../../../../../../../..{neighbour}/picture.txt"
    made = attempt(runner, {"1": node("Preview3D", model_file=path)})
    assert json.loads(made["1_Preview3D_result.json"])[0] == path


def given(folder: Path, name: str, content: bytes | str) -> GivenFile:
    path = folder / "upload"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return GivenFile(path, name)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        check = zlib.crc32(kind + content)
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check))
    return b"".join(parts)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


PIXELS = (b"IDAT", zlib.compress(b"\0" * 1000))

BAD_FILES: dict[str, tuple[str, bytes | str]] = {
    "bomb.png": ("LoadImage", png(header(60000, 60000), PIXELS, (b"IEND", b""))),
    "cut.png": ("LoadImage", png(header(64, 64))),
    "svg.png": (
        "LoadImage",
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink">'
        '<image x:href="file://NEIGHBOUR/picture.png"/></svg>',
    ),
    "real.svg": (
        "LoadImage",
        '<!DOCTYPE svg [<!ENTITY x SYSTEM "file://NEIGHBOUR/picture.txt">]>'
        '<svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>',
    ),
    "postscript.png": ("LoadImage", "%!PS\n(NEIGHBOUR/picture.txt) (r) file showpage\n"),
    "list.ffconcat": ("LoadVideo", "ffconcat version 1.0\nfile NEIGHBOUR/film.ts\n"),
    "list.mp4": ("LoadVideo", "ffconcat version 1.0\nfile NEIGHBOUR/film.ts\n"),
    "playlist.mp4": ("LoadVideo", "#EXTM3U\n#EXTINF:1,\nNEIGHBOUR/film.ts\n#EXT-X-ENDLIST\n"),
    "web.m3u8": ("LoadVideo", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
    "session.sdp": ("LoadVideo", "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"),
    "dash.mpd": ("LoadVideo", "<MPD><Period><BaseURL>file://NEIGHBOUR/film.ts</BaseURL></Period>"),
    "huge.latent": ("LoadLatent", b"\xff" * 7 + b"\x7f{}"),
    "pickle.latent": ("LoadLatent", pickle.dumps({"a": 1})),
    "scene.gltf": (
        "LoadImage",
        '{"asset":{"version":"2.0"},"buffers":[{"uri":"file://NEIGHBOUR/picture.txt"}]}',
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_lies_fails_in_its_node(
    runner: Runner, neighbour: Path, tmp_path: Path, name: str
) -> None:
    class_type, content = BAD_FILES[name]
    if isinstance(content, str):
        content = content.replace("NEIGHBOUR", str(neighbour))
    document = loader(class_type, name)
    if class_type == "LoadVideo":
        document["2"] = node("GetVideoComponents", video=["1", 0])
        document["3"] = node("PreviewImage", images=["2", 0])
    fault: Any = InvalidInput if class_type == "LoadVideo" else RunError
    with pytest.raises(fault, match=f"input file {name}: It is a list|node [12] "):
        attempt(runner, document, files=(given(tmp_path, name, content),))


@pytest.mark.parametrize("class_type", ["LoadVideo", "LoadImage"])
def test_a_playlist_does_not_lead_to_a_film_elsewhere(
    runner: Runner, neighbour: Path, tmp_path: Path, class_type: str
) -> None:
    content = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{neighbour}/film.ts\n#EXT-X-ENDLIST\n"
    document = loader(class_type, "x.m3u8")
    if class_type == "LoadVideo":
        document["2"] = node("GetVideoComponents", video=["1", 0])
        document["3"] = node("PreviewImage", images=["2", 0])
    with pytest.raises((CallerError, RunError)):
        attempt(runner, document, files=(given(tmp_path, "x.m3u8", content),))


def test_broken_exif_is_no_harm(runner: Runner, tmp_path: Path) -> None:
    """A directory of fields that points to itself, and a count that goes beyond the file."""
    loop = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHII", 1, 0x8769, 4, 1, 8) + b"\0\0\0\x08"
    endless = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 4
    for exif in (loop, endless):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
        document = loader("LoadImage", "x.jpg")
        told = outcome(runner, document, files=(given(tmp_path, "x.jpg", file.getvalue()),))
        assert told == "made ['2_PreviewAny_text.txt']"


def test_texts_in_a_picture_are_not_unpacked_without_limit(runner: Runner, tmp_path: Path) -> None:
    bomb = (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10_000_000))
    content = png(header(8, 8), *[bomb] * 8, PIXELS, (b"IEND", b""))
    told = outcome(runner, loader("LoadImage", "x.png"), files=(given(tmp_path, "x.png", content),))
    assert told == "made ['2_PreviewAny_text.txt']"


def test_names_of_given_files_are_made_harmless(runner: Runner, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    for name in ("a\nb.png", "../../x.png", "x [output].png", "-x.png", "%d.png", "\u202egnp.png"):
        document = loader("LoadImage", "other")
        told = outcome(
            runner,
            document,
            files=(given(tmp_path, name, file.getvalue()),),
            values={"1.image": safe_name(name)},
        )
        assert told == "made ['2_PreviewAny_text.txt']"


def test_a_link_in_an_archive_leads_nowhere(
    runner: Runner, neighbour: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "x.tar"
    with tarfile.open(packed, "w") as archive:
        for name, kind, target in (
            ("picture.png", tarfile.SYMTYPE, f"{neighbour}/picture.png"),
            ("hard.png", tarfile.LNKTYPE, f"{neighbour}/picture.png"),
            ("way", tarfile.SYMTYPE, str(neighbour)),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    for name in ("picture.png", "hard.png", "way/picture.png"):
        document = loader("LoadImage", name)
        told = outcome(runner, document, files=(GivenFile(packed, "x.tar"),))
        assert "did not come with the request" in told


def test_a_folder_of_an_earlier_request_is_not_there(runner: Runner, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    packed = tmp_path / "x.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("of-the-first/x.png", file.getvalue())
        archive.writestr("of-the-first/x.txt", SECRET)
    document = {
        "1": node("LoadImageTextDataSetFromFolder", folder="of-the-first"),
        "2": shown("1", 1),
    }
    made = attempt(runner, document, files=(GivenFile(packed, "x.zip"),))
    assert made == {"2_PreviewAny_text.txt": SECRET.encode()}
    assert outcome(runner, document).startswith("InvalidWorkflow: node 1 ")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "owned")


def test_a_pickled_model_runs_nothing(runner: Runner, neighbour: Path) -> None:
    """The owner's own folder may hold such files; a caller's address may not lead to one."""
    folder = runner.config.models / "upscale_models"
    model = folder / "evil.pth"
    model.write_bytes(pickle.dumps(Evil(neighbour / "owned")))
    document = {
        "1": node("UpscaleModelLoader", model_name="evil.pth"),
        "2": node("ImageUpscaleWithModel", upscale_model=["1", 0], image=["3", 0]),
        "3": IMAGE["1"],
        "4": node("PreviewImage", images=["2", 0]),
    }
    try:
        with pytest.raises(RunError, match=r"node 1 .*UnpicklingError"):
            attempt(runner, document)
    finally:
        model.unlink()
    assert not (neighbour / "owned").exists()


DOCUMENTS: dict[str, tuple[str, Any]] = {
    "an unknown input connected to nowhere": (
        "input x: ",
        IMAGE | {"2": node("PreviewImage", images=["1", 0], x=["nowhere", 0])},
    ),
    "a node without inputs that nobody needs": (
        "no inputs object",
        IMAGE | {"2": node("PreviewImage", images=["1", 0]), "3": {"class_type": "EmptyImage"}},
    ),
    "an unknown input nested deep": (
        "nested deeper",
        {"1": node("PreviewAny", source="x", x=json.loads("[" * 900 + "]" * 900))},
    ),
    "text nested too deep to be read": ("nested too deeply", "[" * 200_000),
    "a number that is none": (
        "not a whole number",
        '{"1":{"class_type":"EmptyImage","inputs":{"width":NaN,"height":8,"batch_size":1,'
        '"color":0}},"2":{"class_type":"PreviewImage","inputs":{"images":["1",0]}}}',
    ),
    "a number without end": (
        "not a whole number",
        '{"1":{"class_type":"EmptyImage","inputs":{"width":1e999,"height":8,"batch_size":1,'
        '"color":0}},"2":{"class_type":"PreviewImage","inputs":{"images":["1",0]}}}',
    ),
    "a refused class with a space of no width": (
        "is installed",
        {"1": node("SaveImageDataSetToFolder\u200b", images=["2", 0]), "2": IMAGE["1"]},
    ),
    "a refused class in full width": ("is installed", {"1": node("\uff33aveLoRA", lora=["2", 0])}),
    "classes that Python has": (
        "3 problems",
        {"1": node("__proto__"), "2": node("__class__"), "3": node("object")},
    ),
    "more pixels than there is memory": (
        "RunError: node 1",
        picture(width=16384, height=16384, batch_size=4096),
    ),
    "a power tower": (
        "RunError: node 1",
        {
            "1": node("ComfyMathExpression", expression="9**9**a", **{"values.a": 9}),
            "2": shown("1", 0),
        },
    ),
    "an expression that looks behind": (
        "RunError: node 1",
        {
            "1": node("ComfyMathExpression", expression="a.__class__", **{"values.a": 1}),
            "2": shown("1", 0),
        },
    ),
    "an expression that fills the memory": (
        "RunError: node 1",
        {
            "1": node("ComfyMathExpression", expression="a.zfill(10**15)", **{"values.a": "x"}),
            "2": shown("1", 0),
        },
    ),
    "a format that fills the memory": (
        "RunError: node 1",
        {
            "1": node("StringFormat", f_string="{a:>999999999999999}", **{"values.a": "x"}),
            "2": shown("1", 0),
        },
    ),
    "a format that looks behind a text": (
        "made ['2_PreviewAny_text.txt']",
        {
            "1": node("StringFormat", f_string="{a.__class__.__mro__}", **{"values.a": "x"}),
            "2": shown("1", 0),
        },
    ),
    "inputs that Python would take for its own": (
        "made ['2_SaveImage_x_00001.png']",
        IMAGE
        | {
            "2": node(
                "SaveImage",
                images=["1", 0],
                filename_prefix="x",
                self=1,
                cls=2,
                prompt={},
                extra_pnginfo={"a": 1},
                unique_id="z",
            )
        },
    ),
    "an input named like the method's object": (
        "has no such input",
        IMAGE | {"2": node("SaveImage", images=["1", 0], filename_prefix="x", self=["1", 0])},
    ),
    "a title that is none": (
        "made ['2_SaveImage_x_00001.png']",
        {
            "1": {**IMAGE["1"], "_meta": [1]},
            "2": {
                **node("SaveImage", images=["1", 0], filename_prefix="x"),
                "_meta": {"title": {"a": 1}},
            },
        },
    ),
}
"""What a document may try: a part of what it comes to, and the document."""


@pytest.mark.parametrize("attack", DOCUMENTS)
def test_an_odd_document_is_told_or_harmless(runner: Runner, attack: str) -> None:
    expected, document = DOCUMENTS[attack]
    assert expected in outcome(runner, document)


def test_a_forged_mark_does_not_bring_back_what_was_cached(runner: Runner, tmp_path: Path) -> None:
    """ComfyUI believes a graph that says that its file has not changed."""
    shades = []
    for shade in ((255, 0, 0), (0, 0, 255)):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), shade).save(file, "PNG")
        document = loader("LoadImage", "x.png")
        document["1"]["is_changed"] = ["same"]
        document["2"] = node("SaveImage", images=["1", 0], filename_prefix="x")
        made = attempt(runner, document, files=(given(tmp_path, "x.png", file.getvalue()),))
        with Image.open(io.BytesIO(made["2_SaveImage_x_00001.png"])) as image:
            shades.append(image.getpixel((0, 0)))
    assert shades == [(255, 0, 0), (0, 0, 255)]


def test_very_many_nodes_that_nobody_needs_are_dropped(runner: Runner) -> None:
    many = {f"n{number}": IMAGE["1"] for number in range(20_000)}
    assert outcome(runner, many | picture()) == "made ['2_Save-it_plain_00001.png']"


def test_a_pattern_without_end_costs_the_child_and_no_more(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the interpreter to itself, so that ComfyUI answers nobody: it is killed."""
    monkeypatch.setattr("comfy_runner.runs.run.CANCEL_GRACE", 0.3)
    pattern = node(
        "RegexMatch",
        string="a" * 40 + "!",
        regex_pattern="(a+)+$",
        case_insensitive=False,
        multiline=False,
        dotall=False,
    )
    with pytest.raises(TimedOut):
        attempt(runner, {"1": pattern, "2": shown("1", 0)}, timeout=1)


PARTLY_WRONG = {
    "7": node("WebcamCapture", image="x", width=0, height=0, capture_on_queue=True),
    "8": node("PreviewImage", images=["7", 0]),
}
"""What only ComfyUI finds wrong, when it has already taken what is right of the graph."""


def test_nothing_runs_on_after_a_graph_was_refused(runner: Runner, client: ComfyClient) -> None:
    busy = {"5": node("TestSleep", seconds=3.0, interruptible=False)}
    with pytest.raises(InvalidWorkflow, match="node 7"):
        attempt(runner, busy | PARTLY_WRONG)
    assert client.queue() == ((), ())


def test_a_dead_worker_is_noticed_when_a_run_waits_for_it(
    runner: Runner, client: ComfyClient
) -> None:
    """It dies between two runs, so that the next one never begins."""
    with contextlib.suppress(Disconnected):  # ComfyUI ends with its worker
        client.submit({"1": node("TestKillWorker")}, str(uuid.uuid4()))
    tick, end = Event(), time.monotonic() + 30
    while runner.process.alive and time.monotonic() < end:
        tick.wait(0.05)
    try:
        with contextlib.suppress(Crashed):
            attempt(runner, picture())
        assert attempt(runner, picture())
    except Crashed:
        runner.process.restart()
        runner.process.wait_ready(runner.config.boot_timeout)
        raise
