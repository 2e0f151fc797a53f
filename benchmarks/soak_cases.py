"""What the soak asks for: honest requests and bad ones, each with what its answer has to be."""

import base64
import io
import json
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image
from soak_judges import Colour, Judge, Pictures, fails, painted, written

from comfy_runner.config import PROJECT

sys.path.append(str(PROJECT / "tests"))  # they run the same workflows and LoRAs
from graphs import bundled, node
from loras import lora

LORAS = 3
"""How many LoRAs the file server has."""
SEEDS = 3
"""How many seeds the sampled pictures have: few, so that most come back to be compared."""
QUICK, LONG, ENDLESS = 3, 20, 10_000
"""Steps of a picture: of an honest request, of one that is held up, and of one that must not end.
"""


@dataclass(frozen=True)
class Case:
    """One request and what has to come of it."""

    name: str
    inputs: Mapping[str, Any]
    judge: Judge


def data_uri(content: bytes, kind: str) -> str:
    """The content as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(colour: Colour, side: int = 16) -> bytes:
    """A square picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def inverting(image: str) -> dict[str, Any]:
    """A picture's negative."""
    return {
        "1": node("LoadImage", image=image),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="negative"),
    }


def plain(colour: Colour = (0, 0, 0), width: int = 8, height: int = 8) -> dict[str, Any]:
    """A picture of one colour, made and saved."""
    number = int.from_bytes(bytes(colour))
    size = {"width": width, "height": height, "batch_size": 1}
    return {
        "1": node("EmptyImage", **size, color=number),
        "2": node("SaveImage", images=["1", 0], filename_prefix="plain"),
    }


def app() -> dict[str, Any]:
    """The editor's own format, with an input by the author's name and one chosen output of two."""
    paint = {"name": "color", "label": "Paint", "widget": {"name": "color"}}
    maker = {"id": 1, "type": "EmptyImage", "inputs": [paint], "widgets_values": [8, 8, 1, 0]}
    images = {"name": "images", "type": "IMAGE"}
    shown = {"id": 2, "type": "PreviewImage", "inputs": [{**images, "link": 2}]}
    saved = {"id": 3, "type": "SaveImage", "inputs": [{**images, "link": 3}]}
    return {
        "nodes": [maker, shown, {**saved, "widgets_values": ["hidden"]}],
        "links": [[2, 1, 0, 2, 0, "IMAGE"], [3, 1, 0, 3, 0, "IMAGE"]],
        "extra": {"linearData": {"inputs": [[1, "color"]], "outputs": [2]}},
        "version": 0.4,
    }


def sampling(steps: int, lora: str = "") -> dict[str, Any]:
    """The bundled picture in so many steps, with a LoRA where one is named."""
    graph = bundled("text_to_picture")
    graph["7"]["inputs"]["steps"] = steps
    if lora:
        loader = node("LoraLoaderModelOnly", model=["1", 0], strength_model=1.0, lora_name=lora)
        graph["20"] = loader
        graph["7"]["inputs"]["model"] = ["20", 0]
    return graph


class Files:
    """A web server on 127.0.0.1 with LoRAs and pictures; a path's first part says how it behaves.

    `ok` gives the file; `cut` ends the connection after half of it, `cut-once` only the first time
    that a file is asked for with another query; `silent` sends the head and then nothing.
    """

    def __init__(self) -> None:
        self.bodies = {f"{number}.safetensors": lora(number) for number in range(LORAS)}
        self.bodies |= {"red.png": png((255, 0, 0)), "evil.ckpt": b"\x80\x02}q\x00."}
        self.cut: set[str] = set()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"files": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True

    def url(self, how: str, name: str) -> str:
        """Where such a file is."""
        return f"http://127.0.0.1:{self.http.server_address[1]}/{how}/{name}"


class _Handler(BaseHTTPRequestHandler):
    files: Files

    def do_GET(self) -> None:
        how, _, name = self.path.partition("?")[0].strip("/").partition("/")
        body = self.files.bodies.get(name)
        self.send_response(200 if body else 404)
        body = body or b"There is no such file."
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        is_cut = how == "cut" or (how == "cut-once" and self.path not in self.files.cut)
        self.files.cut.add(self.path)
        with suppress(BrokenPipeError, ConnectionResetError):
            if how == "silent":
                self.wfile.flush()
                self.files.closing.wait(60)
            else:
                self.wfile.write(body[: len(body) // 2] if is_cut else body)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


@contextmanager
def serving() -> Iterator[Files]:
    """The file server, until the end of the block."""
    files = Files()
    thread = threading.Thread(target=files.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield files
    finally:
        files.closing.set()
        files.http.shutdown()
        files.http.server_close()
        thread.join()


class Cases:
    """Requests drawn at random, no two with the same right answer but the sampled pictures."""

    def __init__(self, files: Files, chance: random.Random) -> None:
        self.files = files
        self.chance = chance
        self.pictures = Pictures()
        self._count = 0

    def honest(self, name: str = "") -> Case:
        """A request that has to succeed, of the kind that is named or of any."""
        return self._kinds()[name or self.chance.choice(HONEST)]()

    def bad(self) -> Case:
        """A request that has to be told what is wrong with it."""
        inputs, *says = self.chance.choice(self._faults())
        status = "refused" if "output_quality" in inputs else "failed"
        return Case("bad input", inputs, fails(*says, status=status))

    def sampled(self, steps: int) -> Case:
        """A sampled picture in so many steps; the judge is the one for a success."""
        seed = self.chance.randrange(SEEDS)
        return self._case(
            "sampled", sampling(steps), self.pictures.judge("sampled", steps, seed), seed=seed
        )

    def fetching(self, how: str, name: str, judge: Judge, **inputs: Any) -> Case:
        """A request for a file that the server gives in a certain way."""
        url = self.files.url(how, name)
        if name.endswith(".png"):
            return self._case("url", inverting(url), judge, **inputs)
        self._count += 1
        return self._case("lora", sampling(QUICK, f"{url}?{self._count}"), judge, **inputs)

    def _case(self, name: str, graph: Mapping[str, Any], judge: Judge, **inputs: Any) -> Case:
        return Case(name, {"workflow_json": json.dumps(graph), **inputs}, judge)

    def _kinds(self) -> Mapping[str, Callable[[], Case]]:
        return {
            "plain": self._plain,
            "sampled": lambda: self.sampled(QUICK),
            "upscaled": self._upscaled,
            "text": self._text,
            "app": self._app,
            "upload": self._upload,
            "url": lambda: self.fetching("ok", "red.png", painted((0, 255, 255), (16, 16))),
            "lora": self.lora,
        }

    def lora(self, how: str = "ok") -> Case:
        """A picture with a LoRA by address."""
        number, seed = self.chance.randrange(LORAS), self.chance.randrange(SEEDS)
        judge = self.pictures.judge("lora", number, seed)
        return self.fetching(how, f"{number}.safetensors", judge, seed=seed)

    def _plain(self) -> Case:
        colour, width, height = self._colour(), *(self.chance.randrange(8, 200) for _ in range(2))
        return self._case("plain", plain(colour, width, height), painted(colour, (width, height)))

    def _upscaled(self) -> Case:
        colour = self._colour()
        photo = data_uri(png(colour), "image/png")
        graph = bundled("upscale")
        graph["1"]["inputs"]["image"] = "input.png"
        # A network enlarges it, which keeps one colour nearly as it is, but for the edges.
        judge = painted(colour, (64, 64), tolerance=24, margin=16)
        return self._case("upscaled", graph, judge, input_file=photo)

    def _text(self) -> Case:
        text = f"a fox é漢 {self.chance.getrandbits(64):x}"
        graph = {
            "1": node("PrimitiveString", value=text),
            "2": node("PreviewAny", source=["1", 0]),
        }
        return self._case("text", graph, written(text))

    def _app(self) -> Case:
        colour = self._colour()
        values = json.dumps({"Paint": int.from_bytes(bytes(colour))})
        return self._case("app", app(), painted(colour, (8, 8)), inputs=values)

    def _upload(self) -> Case:
        colour = self._colour()
        negative = tuple(255 - part for part in colour)
        photo = data_uri(png(colour), "image/png")
        judge = painted(negative, (16, 16), 1)  # ComfyUI rounds down
        return self._case("upload", inverting("input.png"), judge, input_file=photo)

    def _colour(self) -> Colour:
        return tuple(self.chance.randbytes(3))

    def _faults(self) -> list[tuple[Any, ...]]:
        """Inputs of a request, and what its error has to say."""
        good, negative = json.dumps(plain()), json.dumps(inverting("input.png"))
        unknown = json.dumps({**plain(), "3": node("NoSuchNode", images=["1", 0])})
        no_lora = json.dumps(sampling(QUICK, "no-such-lora.safetensors"))
        no_page = json.dumps(sampling(QUICK, self.files.url("ok", "gone.safetensors")))
        pickle = json.dumps(sampling(QUICK, self.files.url("ok", "evil.ckpt")))
        return [
            ({"workflow_json": ""}, "No workflow was given."),
            ({"workflow_json": "{oops"}, "is not JSON"),
            ({"workflow_json": "[" * 100_000}, "nested too deeply"),
            ({"workflow_json": unknown}, "NoSuchNode"),
            ({"workflow_json": good, "inputs": '{"1.width": 0}'}, "below the minimum 1"),
            ({"workflow_json": good, "inputs": '{"9.nope": 1}'}, "9.nope"),
            ({"workflow_json": good, "inputs": "[]"}, "It is no JSON object."),
            ({"workflow_json": good, "output_quality": 101}, "output_quality"),
            ({"workflow_json": json.dumps(inverting("nowhere.png"))}, "nowhere.png"),
            ({"workflow_json": no_lora}, "no-such-lora.safetensors", "lora_name"),
            ({"workflow_json": no_page}, "404"),
            ({"workflow_json": pickle}, "evil.ckpt", "only .safetensors"),
            (
                {"workflow_json": negative, "input_file": data_uri(b"no picture", "image/png")},
                "node 1 (LoadImage) failed",
            ),
            (
                {"workflow_json": negative, "input_file": data_uri(b"PK no", "application/zip")},
                "cannot be unpacked",
            ),
        ]


HONEST = ("plain", "sampled", "upscaled", "text", "app", "upload", "url", "lora")
