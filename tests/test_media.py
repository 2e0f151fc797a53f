"""Pictures in another format: what is kept, and what stays as it is."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, ImageSequence

from comfy_runner.runs.media import OutputFormat, reencode

SIZE = (40, 30)


def plain() -> Image.Image:
    """A soft RGB picture that all of the formats hold well."""
    grey = Image.radial_gradient("L").resize(SIZE)
    return Image.merge("RGB", (grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grey))


def see_through() -> Image.Image:
    """The same with an alpha channel from 0 to 255."""
    picture = plain()
    picture.putalpha(Image.linear_gradient("L").resize(SIZE))
    return picture


def movie(mode: str = "RGB") -> list[Image.Image]:
    """Three frames, each of its own colour."""
    colours = [(255, 0, 0, 255), (0, 255, 0, 128), (0, 0, 255, 0)]
    return [Image.new("RGBA", SIZE, colour).convert(mode) for colour in colours]


def written(tmp_path: Path, name: str, picture: Image.Image, **options: Any) -> Path:
    path = tmp_path / name
    picture.save(path, **options)
    return path


def animated(tmp_path: Path, name: str, mode: str = "RGB", **options: Any) -> Path:
    first, *others = movie(mode)
    timing = {"duration": [50, 120, 300], "loop": 3}
    return written(
        tmp_path, name, first, save_all=True, append_images=others, **{**timing, **options}
    )


def difference(left: Image.Image, right: Image.Image) -> int:
    """The greatest difference of any two values, 0 to 255."""
    bands = ImageChops.difference(left, right).getextrema()
    return max(int(band[1]) for band in bands) if isinstance(bands[0], tuple) else int(bands[1])


def frames(path: Path, mode: str) -> tuple[Sequence[Image.Image], list[int]]:
    """Every frame, and how long it stays, in milliseconds."""
    with Image.open(path) as image:
        copies = [frame.copy() for frame in ImageSequence.Iterator(image)]
    return [copy.convert(mode) for copy in copies], [copy.info["duration"] for copy in copies]


@pytest.mark.parametrize("source", ["png", "jpg", "webp"])
@pytest.mark.parametrize("wanted", ["png", "jpg", "webp"])
def test_a_picture_gets_the_wanted_format(
    tmp_path: Path, source: str, wanted: OutputFormat
) -> None:
    picture = written(tmp_path, f"a.{source}", plain(), quality=95)
    before = picture.read_bytes()
    result = reencode(picture, wanted, 90)
    assert result == tmp_path / f"a.{wanted}"
    with Image.open(result) as image:
        assert image.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[wanted]
        assert image.size == SIZE
        assert difference(image.convert("RGB"), plain()) < 30
    assert picture.read_bytes() == before


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bin"])
def test_original_changes_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    assert reencode(tmp_path / name, "original", 50) == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.gif", "a.bmp", "a.tiff", "a.mp4", "a.txt", "a.exr", "a"])
@pytest.mark.parametrize("wanted", ["png", "jpg", "webp"])
def test_other_kinds_of_files_stay(tmp_path: Path, name: str, wanted: OutputFormat) -> None:
    plain().save(tmp_path / name, "PNG")
    assert reencode(tmp_path / name, wanted, 50) == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_content_tells_the_format_and_not_the_name(tmp_path: Path) -> None:
    picture = written(tmp_path, "a.JPEG", plain(), format="PNG")
    assert reencode(picture, "png", 50) == picture
    assert reencode(picture, "jpg", 50).name == "a.jpg"


@pytest.mark.parametrize("wanted", ["jpg", "webp"])
def test_quality_makes_the_size(tmp_path: Path, wanted: OutputFormat) -> None:
    noisy = Image.effect_noise((200, 200), 60).convert("RGB")
    sizes = []
    for quality in (0, 30, 60, 95):
        picture = written(tmp_path, f"{quality}.png", noisy)
        sizes.append(reencode(picture, wanted, quality).stat().st_size)
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("make", [plain, see_through])
def test_quality_100_makes_a_webp_lossless(tmp_path: Path, make: Any) -> None:
    original = make()
    with Image.open(reencode(written(tmp_path, "a.png", original), "webp", 100)) as image:
        # Colours of pixels that nobody can see need not be kept.
        shown = [
            Image.alpha_composite(Image.new("RGBA", SIZE, "white"), picture.convert("RGBA"))
            for picture in (image, original)
        ]
        assert difference(*shown) == 0
    with Image.open(reencode(written(tmp_path, "b.png", original), "webp", 99)) as image:
        assert difference(image.convert("RGB"), original.convert("RGB")) > 0


@pytest.mark.parametrize(("source", "wanted"), [("png", "webp"), ("webp", "png")])
def test_transparency_is_kept(tmp_path: Path, source: str, wanted: OutputFormat) -> None:
    picture = written(tmp_path, f"a.{source}", see_through(), lossless=True)
    with Image.open(reencode(picture, wanted, 90)) as image:
        assert image.mode == "RGBA"
        assert difference(image.getchannel("A"), see_through().getchannel("A")) == 0


@pytest.mark.parametrize("source", ["png", "webp"])
def test_what_is_transparent_stays_when_jpg_is_wanted(tmp_path: Path, source: str) -> None:
    picture = written(tmp_path, f"a.{source}", see_through())
    assert reencode(picture, "jpg", 90) == picture
    assert [path.name for path in tmp_path.iterdir()] == [picture.name]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_channel_that_hides_nothing_is_no_transparency(tmp_path: Path, mode: str) -> None:
    picture = written(tmp_path, "a.png", plain().convert(mode))
    result = reencode(picture, "jpg", 90)
    assert result.name == "a.jpg"
    with Image.open(result) as image:
        assert difference(image, plain().convert(mode).convert("RGB")) < 30


@pytest.mark.parametrize("wanted", ["jpg", "webp"])
def test_a_palette_is_no_obstacle(tmp_path: Path, wanted: OutputFormat) -> None:
    palette = plain().convert("P", palette=Image.Palette.ADAPTIVE)
    with Image.open(reencode(written(tmp_path, "a.png", palette), wanted, 95)) as image:
        assert difference(image.convert("RGB"), palette.convert("RGB")) < 60


def test_a_transparent_colour_of_a_palette_counts(tmp_path: Path) -> None:
    palette = Image.new("P", SIZE)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 20, 30))
    picture = written(tmp_path, "a.png", palette, transparency=0)
    assert reencode(picture, "jpg", 90) == picture
    with Image.open(reencode(picture, "webp", 100)) as image:
        assert image.convert("RGBA").getpixel((10, 10)) == (0, 0, 255, 255)
        assert image.convert("RGBA").getchannel("A").getpixel((30, 10)) == 0


@pytest.mark.parametrize("wanted", ["jpg", "webp"])
@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_colour_modes_look_the_same(tmp_path: Path, mode: str, wanted: OutputFormat) -> None:
    original = plain().convert(mode)
    name, form = ("a.jpg", "JPEG") if mode == "CMYK" else ("a.png", "PNG")
    picture = written(tmp_path, name, original, format=form, quality=95)
    if mode == "CMYK" and wanted == "jpg":
        assert reencode(picture, wanted, 95) == picture
        return
    with Image.open(reencode(picture, wanted, 95)) as image:
        assert difference(image.convert("RGB"), original.convert("RGB")) < 60


@pytest.mark.parametrize("wanted", ["jpg", "webp"])
def test_16_bits_are_scaled_and_not_cut_off(tmp_path: Path, wanted: OutputFormat) -> None:
    deep = Image.new("I;16", SIZE, 128 * 256)
    with Image.open(reencode(written(tmp_path, "a.png", deep), wanted, 95)) as image:
        assert image.convert("L").getpixel((5, 5)) == pytest.approx(128, abs=2)


@pytest.mark.parametrize("source", ["jpg", "webp", "png"])
@pytest.mark.parametrize("wanted", ["png", "webp", "jpg"])
def test_a_picture_that_is_to_be_turned_is_turned(
    tmp_path: Path, source: str, wanted: OutputFormat
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture = written(tmp_path, f"a.{source}", plain(), exif=exif)
    if source == wanted:
        assert reencode(picture, wanted, 90) == picture
        return
    with Image.open(reencode(picture, wanted, 90)) as image:
        assert image.size == SIZE[::-1]
        assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
@pytest.mark.parametrize("value", [0, 2, 10, 12, 255])
def test_broken_exif_never_ends_a_run(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "fox", 72.5
    raw = written(tmp_path, "a.jpg", plain(), exif=exif).read_bytes()
    begin = raw.index(b"Exif")
    results = set()
    for place in range(begin, begin + len(exif.tobytes())):
        picture = tmp_path / f"{place}.jpg"
        picture.write_bytes(raw[:place] + bytes([value]) + raw[place + 1 :])
        results.add(reencode(picture, "png", 90).suffix)
    assert ".png" in results


@pytest.mark.parametrize("wanted", ["jpg", "webp"])
def test_a_colour_profile_is_kept_where_it_still_holds(
    tmp_path: Path, wanted: OutputFormat
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = written(tmp_path, "a.png", plain(), icc_profile=profile)
    grey = written(tmp_path, "b.png", plain().convert("L"), icc_profile=profile)
    with Image.open(reencode(picture, wanted, 90)) as image:
        assert image.info["icc_profile"] == profile
    with Image.open(reencode(grey, wanted, 90)) as image:
        assert not image.info.get("icc_profile")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(("source", "wanted"), [("png", "webp"), ("webp", "png")])
def test_an_animation_stays_one(
    tmp_path: Path, source: str, wanted: OutputFormat, mode: str
) -> None:
    picture = animated(tmp_path, f"a.{source}", mode, lossless=True)
    result = reencode(picture, wanted, 100)
    assert result.suffix == f".{wanted}"
    found, durations = frames(result, mode)
    assert durations == [50, 120, 300]
    shown = [frame.getchannel("A") if mode == "RGBA" else frame for frame in found]
    expected = [frame.getchannel("A") if mode == "RGBA" else frame for frame in movie(mode)]
    assert [difference(*pair) for pair in zip(shown, expected, strict=True)] == [0, 0, 0]
    with Image.open(result) as image:
        assert image.info["loop"] == 3


@pytest.mark.parametrize("source", ["png", "webp"])
def test_an_animation_stays_as_it_is_when_jpg_is_wanted(tmp_path: Path, source: str) -> None:
    picture = animated(tmp_path, f"a.{source}")
    assert reencode(picture, "jpg", 90) == picture
    assert [path.name for path in tmp_path.iterdir()] == [picture.name]


def test_no_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    picture = written(tmp_path, "a.png", plain())
    for name in ("a.webp", "a-2.webp"):
        (tmp_path / name).write_text("other")
    assert reencode(picture, "webp", 90) == tmp_path / "a-3.webp"
    assert (tmp_path / "a.webp").read_text() == "other"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x04\x00\x00\x00WEBPVP8 ",
    ],
)
@pytest.mark.parametrize("wanted", ["png", "jpg", "webp"])
def test_what_is_no_picture_stays(tmp_path: Path, content: bytes, wanted: OutputFormat) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(content)
    assert reencode(picture, wanted, 90) == picture
    assert picture.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("make", ["png", "webp", "apng", "awebp", "jpg"])
def test_a_cut_picture_stays_and_leaves_nothing_half_written(tmp_path: Path, make: str) -> None:
    name = f"a.{make.removeprefix('a')}"
    picture = (
        animated(tmp_path, name)
        if make.startswith("a")
        else written(tmp_path, name, Image.effect_noise((300, 300), 80).convert("RGB"))
    )
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) * 3 // 4])
    wanted: OutputFormat = "webp" if make.endswith("png") else "png"
    assert reencode(picture, wanted, 90) == picture
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_the_new_format_cannot_hold_stays(tmp_path: Path) -> None:
    long = written(tmp_path, "long.png", Image.new("L", (16_400, 1)))
    assert reencode(long, "webp", 90) == long
    assert [path.name for path in tmp_path.iterdir()] == ["long.png"]


def test_a_picture_with_more_pixels_than_pillow_takes_stays(tmp_path: Path) -> None:
    picture = written(tmp_path, "a.png", Image.new("1", (8, 8)))
    huge = bytearray(picture.read_bytes())
    huge[16:24] = (20_000).to_bytes(4) + (20_000).to_bytes(4)
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4)
    picture.write_bytes(huge)
    assert reencode(picture, "webp", 90) == picture


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["a.png", "a.webp", "a.jpg", "still.png"]), st.data())
def test_a_damaged_picture_never_ends_a_run(tmp_path: Path, name: str, data: st.DataObject) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    moving = name in ("a.png", "a.webp")
    picture = animated(tmp_path, name) if moving else written(tmp_path, name, plain())
    raw = bytearray(picture.read_bytes())
    for place in data.draw(st.lists(st.integers(8, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    # Otherwise a picture of a billion pixels would be painted.
    if name.endswith(".png"):
        raw[16:24] = SIZE[0].to_bytes(4) + SIZE[1].to_bytes(4)
    picture.write_bytes(raw)
    result = reencode(picture, data.draw(st.sampled_from(["png", "webp", "jpg"])), 90)
    assert set(tmp_path.iterdir()) == {picture, result}
