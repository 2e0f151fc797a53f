"""Example values for a model's inputs, and stand-ins for the files that nobody gave."""

import base64
import io
import math
import struct
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import av
from PIL import Image, ImageDraw

from comfy_runner.publishing.interface import Interface, Param

GIVEN = "workflows/files"
"""Folder of a project with the files that come with it, which the workflow knows by their names."""
FOLDER = "examples"
"""Folder with stand-ins for those that a caller has to give."""

SIDE = 512
RATE = 16_000
FRAMES = 16
SEED = 1

PUBLIC = {
    "image": "https://storage.googleapis.com/cog-safe-push-public/skull.jpg",
    "audio": "https://storage.googleapis.com/cog-safe-push-public/folk-music.mp3",
    "video": "https://storage.googleapis.com/cog-safe-push-public/harry-truman.webm",
}
"""Files that cog-safe-push's own tests use (cog_safe_push/predict.py), by kind."""

NO_MEDIUM = f"data:text/plain;base64,{base64.b64encode(b'no picture').decode()}"
"""A file that no node can take for a picture, a recording or a video."""
NO_SEED = 2**64
"""What Cog lets through as a seed, and the model refuses."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What a model can be called with to see that it works."""

    values: Mapping[str, Any]
    """Name of an input to its value; for a file the path in the project."""
    made: Mapping[str, bytes]
    """Path in the project to the content of each stand-in."""
    lacking: tuple[str, ...]
    """Names of inputs that need a file of which there is no stand-in."""


def examples(interface: Interface, files: Mapping[str, str]) -> Examples:
    """Values for all inputs that have to be given, for the first text, and for the seed.

    `files` is the name of each file that comes with the project to its path there: they go to the
    inputs that take such files, in order.
    """
    values: dict[str, Any] = {}
    made: dict[str, bytes] = {}
    lacking: list[str] = []
    free = [path for name, path in files.items() if name]
    told = False
    for param in interface.params:
        if param.kind == "Path" and param.required:
            path = next((path for path in free if kind(path) == kind_of(param)), "")
            if path:
                free.remove(path)
            elif kind_of(param) in MAKERS:
                ending, maker = MAKERS[kind_of(param)]
                path = f"{FOLDER}/{kind_of(param)}{ending}"
                made[path] = maker()
            if path:
                values[param.name] = path
            else:
                lacking.append(param.name)
        elif param.kind == "str" and param.default and not param.choices and not told:
            values[param.name] = param.default
            told = True
    if interface.seed:
        values["seed"] = SEED
    return Examples(values, made, tuple(lacking))


def safe_push_cases(interface: Interface) -> list[dict[str, Any]]:
    """Cases for cog-safe-push: the defaults with one seed, and a value that is refused.

    A required file is one of cog-safe-push's own. There is no first case where a file is required
    of which it has none.
    """
    values: dict[str, Any] = {}
    complete = True
    for param in interface.params:
        if param.kind == "Path":
            complete = complete and (not param.required or kind_of(param) in PUBLIC)
            if param.required and kind_of(param) in PUBLIC:
                values[param.name] = PUBLIC[kind_of(param)]
        elif not param.blank:
            values[param.name] = param.default
    seed = {"seed": SEED} if interface.seed else {}
    cases: list[dict[str, Any]] = [{"inputs": {**values, **seed}}] if complete else []
    medium = next((p.name for p in interface.params if kind_of(p) in PUBLIC), "")
    if medium and complete:
        bad = {**values, medium: NO_MEDIUM, **seed}
        cases.append({"error_contains": "failed", "inputs": bad})
    elif interface.seed and complete:
        cases.append({"error_contains": "is no seed", "inputs": {**values, "seed": NO_SEED}})
    return cases


def kind_of(param: Param) -> str:
    """`image`, `audio`, `video`, or empty for what takes another file or none."""
    return param.accept.removesuffix("/*") if param.accept in ACCEPTED else ""


def kind(path: str) -> str:
    """`image`, `audio` or `video` by the ending of a file's name; else empty."""
    return ENDINGS.get(PurePosixPath(path).suffix.lower(), "")


def _picture() -> bytes:
    """Hills under a sun, so that something can be seen to have changed."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for y in range(SIDE):
        draw.line([(0, y), (SIDE, y)], (120 + y // 8, 170 + y // 10, 230))
    draw.ellipse([340, 60, 440, 160], (250, 210, 90))
    draw.polygon([(0, 400), (140, 220), (300, 420), (0, SIDE)], (70, 110, 90))
    draw.polygon([(120, 430), (360, 260), (SIDE, 400), (SIDE, SIDE), (0, SIDE)], (50, 90, 70))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _recording() -> bytes:
    """Two seconds of a tone that rises."""
    samples = (
        int(12_000 * math.sin(2 * math.pi * (220 + 110 * n / RATE) * n / RATE))
        for n in range(2 * RATE)
    )
    content = io.BytesIO()
    with wave.open(content, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return content.getvalue()


def _video() -> bytes:
    """One second of a square that moves."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=FRAMES)
        stream.width = stream.height = SIDE // 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAMES)
        for frame in _frames():
            made = av.VideoFrame.from_image(frame)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(made))
        container.mux(stream.encode())
    return content.getvalue()


def _frames() -> Iterator[Image.Image]:
    for number in range(FRAMES):
        image = Image.new("RGB", (SIDE // 2, SIDE // 2), (60, 90, 130))
        left = 10 + 10 * number
        ImageDraw.Draw(image).rectangle([left, 90, left + 60, 150], (250, 210, 90))
        yield image


MAKERS = {"image": (".png", _picture), "audio": (".wav", _recording), "video": (".mp4", _video)}
ACCEPTED = {f"{name}/*" for name in MAKERS}
ENDINGS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff"), "image"),
    **dict.fromkeys((".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"), "audio"),
    **dict.fromkeys((".mp4", ".webm", ".mov", ".mkv", ".avi", ".ogv"), "video"),
}
