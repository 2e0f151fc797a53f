"""Files as ComfyUI 0.30 saves them, with any texts as their metadata."""

import io
import json
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction

import av
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

Texts = Mapping[str, str]
Maker = Callable[[Texts], bytes]


def picture(frames: int = 1) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (number, 80, 160)) for number in range(frames)]


def png(texts: Texts) -> bytes:
    made = PngInfo()
    for name, text in texts.items():
        made.add_text(name, text)
    return _saved(picture(), "PNG", pnginfo=made)


def compressed_png(texts: Texts) -> bytes:
    made = PngInfo()
    for name, text in texts.items():
        made.add_text(name, text, zip=True)
    return _saved(picture(), "PNG", pnginfo=made)


def international_png(texts: Texts) -> bytes:
    made = PngInfo()
    for number, (name, text) in enumerate(texts.items()):
        made.add_itxt(name, text, "de", "Übersetzt", zip=bool(number % 2))
    return _saved(picture(), "PNG", pnginfo=made)


def animated_png(texts: Texts) -> bytes:
    """ComfyUI puts a chunk of its own behind the pixels."""
    made = PngInfo()
    for name, text in texts.items():
        made.add(b"comf", name.encode("latin-1") + b"\0" + text.encode(), after_idat=True)
    return _saved(picture(3), "PNG", pnginfo=made)


def webp(texts: Texts) -> bytes:
    return _saved(picture(3), "WEBP", exif=exif(texts))


def jpeg(texts: Texts) -> bytes:
    return _saved(picture(), "JPEG", exif=exif(texts))


def avif(texts: Texts) -> bytes:
    return _saved(picture(), "AVIF", exif=exif(texts))


def exif(texts: Texts) -> Image.Exif:
    """The prompt in Model, all others in Make and the tags before it, as ComfyUI does it."""
    made = Image.Exif()
    tag = 0x010F
    for name, text in texts.items():
        if name == "prompt":
            made[0x0110] = f"prompt:{text}"
        else:
            made[tag] = f"{name}:{text}"
            tag -= 1
    return made


def exr(texts: Texts) -> bytes:
    codec = av.CodecContext.create("exr", "w")
    codec.width = codec.height = 16
    codec.pix_fmt = "gbrpf32le"
    codec.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.float32), format="gbrpf32le")
    frame.pts, frame.time_base = 0, codec.time_base
    plain = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    attributes = b"".join(
        name.encode() + b"\0string\0" + struct.pack("<i", len(text.encode())) + text.encode()
        for name, text in texts.items()
    )
    return plain[:8] + attributes + plain[8:]


def flac(texts: Texts) -> bytes:
    return _sound(texts, "flac", "flac", "s16")


def mp3(texts: Texts) -> bytes:
    return _sound(texts, "mp3", "libmp3lame", "s16p")


def opus(texts: Texts) -> bytes:
    return _sound(texts, "opus", "libopus", "s16")


def mp4(texts: Texts) -> bytes:
    return _video(texts, "mp4", "h264", movflags="use_metadata_tags")


def mov(texts: Texts) -> bytes:
    return _video(texts, "mov", "h264", movflags="use_metadata_tags")


def webm(texts: Texts) -> bytes:
    return _video(texts, "webm", "libvpx-vp9")


def mkv(texts: Texts) -> bytes:
    return _video(texts, "matroska", "h264")


def svg(texts: Texts) -> bytes:
    """ComfyUI writes the graphs as JSON, not as text."""
    graphs = {name: json.loads(text) for name, text in texts.items()}
    inner = f"<metadata>\n <![CDATA[\n{json.dumps(graphs, indent=2)}\n ]]>\n </metadata>"
    start = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9">\n'
    return f"{start}{inner if texts else ''}<circle/></svg>".encode()


def glb(texts: Texts) -> bytes:
    document = json.dumps({"asset": {"version": "2.0", "extras": texts}, "meshes": []}).encode()
    document += b" " * (-len(document) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 20 + len(document))
    return head + struct.pack("<I4s", len(document), b"JSON") + document


def latent(texts: Texts) -> bytes:
    return save({"latent_tensor": np.zeros((1, 4, 2, 2), np.float32)}, dict(texts) or None)


def _saved(frames: list[Image.Image], kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:]} if frames[1:] else {}
    frames[0].save(file, kind, **more, **options)
    return file.getvalue()


def _sound(texts: Texts, container: str, codec: str, sample_format: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        output.metadata.update(texts)
        stream = output.add_stream(codec, rate=48000, layout="mono")
        samples = np.zeros((1, 4800), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format=sample_format, layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _video(texts: Texts, container: str, codec: str, **options: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        output.metadata.update(texts)
        stream = output.add_stream(codec, rate=8)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


MAKERS: Mapping[str, Maker] = {
    maker.__name__: maker
    for maker in (
        png,
        compressed_png,
        international_png,
        animated_png,
        webp,
        jpeg,
        avif,
        exr,
        flac,
        mp3,
        opus,
        mp4,
        mov,
        webm,
        mkv,
        svg,
        glb,
        latent,
    )
}
