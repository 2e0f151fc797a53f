"""Re-encoding pictures on request, without losing what the new format cannot hold."""

import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageOps, ImageSequence

from comfy_runner.runs.outputs import free_name

log = logging.getLogger(__name__)

OutputFormat = Literal["original", "webp", "jpg", "png"]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""What is re-encoded; anything else stays as the workflow made it."""

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,  # this and the next one for broken EXIF
    TypeError,
    Image.DecompressionBombError,  # more pixels than Pillow takes: 179 million
)
"""What Pillow 13 raises for pictures that are broken or too large, reading or writing them."""


def reencode(picture: Path, wanted: OutputFormat, quality: int) -> Path:
    """Write the picture in the wanted format beside it and return the new file's path.

    `quality` is 0 to 100 and counts for jpg and webp; 100 makes a webp lossless. The file is
    returned as it is, and the log says why, when it has that format already, is no picture that
    Pillow reads, or would lose its transparency or its frames: jpg has neither. No file that
    stands there is replaced: the new one's name is made different. Nothing half-written is left:
    Pillow removes what it could not finish.
    """
    if wanted == "original" or picture.suffix.lower() not in PICTURES:
        return picture
    folder = picture.parent
    name = free_name(picture.stem, f".{wanted}", lambda name: (folder / name).exists())
    target = folder / name
    try:
        with Image.open(picture) as image:
            if _holds(image, wanted):
                return picture
            frames = getattr(image, "n_frames", 1)
            if wanted == "jpg" and (frames > 1 or _is_transparent(image)):
                what = "animated" if frames > 1 else "transparent"
                log.info("%s stays as it is: it is %s, which jpg cannot hold.", picture.name, what)
                return picture
            _save(image, target, wanted, quality, frames)
    except UNREADABLE as err:
        log.warning("%s stays as it is: %s", picture.name, err)
        return picture
    return target


def _holds(image: Image.Image, wanted: str) -> bool:
    formats = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "MPO": "jpg"}
    return formats.get(image.format or "") == wanted


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel lets something through: an alpha channel alone says nothing."""
    if not image.has_transparency_data:
        return False
    lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255  # noqa: PLR2004 - opaque in 8 bits


def _save(image: Image.Image, target: Path, wanted: str, quality: int, frames: int) -> None:
    options: Mapping[str, Any] = {}
    match wanted:
        case "jpg":
            options = {"quality": quality, "optimize": True}
        case "webp":
            options = {"quality": quality, "lossless": quality == 100}  # noqa: PLR2004 - the best
    kind = "JPEG" if wanted == "jpg" else wanted.upper()
    if frames > 1:
        copies = [frame.copy() for frame in ImageSequence.Iterator(image)]
        options = {
            **options,
            "save_all": True,
            "append_images": copies[1:],
            "duration": [frame.info.get("duration", 100) for frame in copies],
            "loop": image.info.get("loop", 0),
        }
        copies[0].save(target, kind, **options)
        return
    plain = _in_eight_bits(ImageOps.exif_transpose(image))
    if wanted == "jpg":
        plain = plain.convert("RGB")
    elif plain.mode not in ("RGB", "RGBA", "L", "LA"):
        plain = plain.convert("RGBA" if plain.has_transparency_data else "RGB")
    # Of another mode's profile the new file's colours would make nothing.
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    plain.save(target, kind, **options, icc_profile=profile)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """The picture itself, or a 16-bit grey one scaled: Pillow 13 would cut it off at 255."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value / 256).convert("L")
