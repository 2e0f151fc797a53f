"""Seconds from start to the first picture on a machine that has no weights and no saved catalog.

The bundled workflow workflows/text_to_picture.json with four LoRAs, on the CPU. Its seven weights
come from a server on this machine that gives no more bytes a second, to all connections together,
than make the fetch about as long as a bare boot.

  boot      python main.py, until GET /system_stats answers
  fetch     WeightStore.ensure of the seven weights, alone
  turns     Runner.start, then Runner.run, which fetches: one after the other
  ahead     the same, with the weights fetched while ComfyUI starts, as `comfy-runner run` does it
  preload   the same by COMFY_RUNNER_PRELOAD, which names the workflow, as in a Cog model's setup

The last three end with the first file that the run yields, and so have the same work; `turns` is
the baseline. Each time the home, the models folder and the fork server, if any, are new. The rows
take turns in who is first; a bare boot and a run before them are not timed. ComfyUI computes with
OMP_NUM_THREADS=1 unless that is set: several threads on shared cores now and then wait for each
other for seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy
from safetensors.numpy import save_file
from subjects import Flags, bare_comfyui, lone_runner, machine, print_table, rounds, workplace

from comfy_runner.comfyui import saved_catalog
from comfy_runner.config import PROJECT, Config
from comfy_runner.runs.plan import Plan, prepare
from comfy_runner.runs.preloading import Ahead
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request
from comfy_runner.weights.store import WeightStore, read_manifest

WORKFLOW = PROJECT / "workflows" / "text_to_picture.json"
WEIGHTS = PROJECT / "assets" / "weights"

LORAS = 4
RANK = 4096
"""Of each LoRA, on the first block's attention of 128 channels: 8 MiB."""
KEY = "lora_unet_double_blocks_0_img_attn_qkv"

BLOCK = 64 * 1024
"""Bytes that the server sends at once."""

SERVER_TIMEOUT = 20.0


def main() -> None:
    """Fetch, boot, run, time and print."""
    options = arguments()
    if options.serve:
        folder, rate = options.serve
        serve(Path(folder), float(rate))
        return
    print(f"Before: {machine()}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with workplace() as config, tempfile.TemporaryDirectory(dir=config.home) as name:
        served = Path(name)
        request = Request(document=workflow(), seed=7)
        size = make_weights(served)
        named = config.home / "workflow.json"
        named.write_text(json.dumps(workflow()))
        with lone_runner(config) as runner:
            flags = Flags.of(runner)
        boot = timed_boot(config, flags)
        with server(served, options.rate * 1e6 if options.rate else size / boot) as (url, rate):
            write_manifest(config.home / "weights.json", url, served)
            slow = replace(config, manifest=config.home / "weights.json")
            rows: Mapping[str, Callable[[Config], float]] = {
                "boot": lambda home: timed_boot(home, flags),
                "fetch": lambda home: timed_fetch(home, request),
                "turns": lambda home: timed_picture(home, request, ahead=False),
                "ahead": lambda home: timed_picture(home, request, ahead=True),
                "preload": lambda home: timed_picture(
                    replace(home, preload=(str(named),)), request, ahead=False
                ),
            }
            with fresh(slow) as home:
                timed_picture(home, request, ahead=True)
            seconds: dict[str, list[float]] = {row: [] for row in rows}
            for row in rounds(list(rows), options.repeats):
                with fresh(slow) as home:
                    seconds[row].append(rows[row](home))
                print(f"{row}: {seconds[row][-1]:.2f} s", file=sys.stderr)
    print(f"After:  {machine()}")
    print(f"{size / 1e6:.0f} MB in {LORAS + 3} files, at most {rate / 1e6:.1f} MB/s")
    show(seconds)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="of each row (default 5)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="MB a second (default: the fetch is one boot long)"
    )
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeats < 1 or options.rate < 0:
        parser.error("--repeats must be 1 or more, and --rate above 0")
    return options


def workflow() -> dict[str, Any]:
    """The bundled workflow with the LoRAs in a row, and few steps."""
    graph: dict[str, Any] = json.loads(WORKFLOW.read_text())
    model: list[Any] = ["1", 0]
    for number in range(LORAS):
        loader = {"model": model, "lora_name": f"lora{number}.safetensors", "strength_model": 1.0}
        graph[str(20 + number)] = {"class_type": "LoraLoaderModelOnly", "inputs": loader}
        model = [str(20 + number), 0]
    graph["7"]["inputs"] |= {"model": model, "steps": 2}
    return graph


def make_weights(folder: Path) -> int:
    """Put all weights of the workflow there: the bundled ones, and LoRAs that change nothing.

    Returns their bytes in all.
    """
    for entry in bundled():
        (folder / entry["name"]).write_bytes((WEIGHTS / entry["name"]).read_bytes())
    for number in range(LORAS):
        down, up = (numpy.zeros(shape, dtype="float32") for shape in ((RANK, 128), (384, RANK)))
        down[0, 0] = number
        tensors = {f"{KEY}.lora_down.weight": down, f"{KEY}.lora_up.weight": up}
        save_file(tensors, folder / f"lora{number}.safetensors")
    return sum(file.stat().st_size for file in folder.iterdir())


def bundled() -> list[dict[str, Any]]:
    """The manifest's entries for what the workflow itself needs."""
    text = WORKFLOW.read_text()
    listed = json.loads((PROJECT / "weights_manifest.json").read_text())["weights"]
    return [entry for entry in listed if f'"{entry["name"]}"' in text]


def write_manifest(path: Path, base_url: str, folder: Path) -> None:
    """A manifest that has the server's files."""
    folders = {entry["name"]: entry["folders"] for entry in bundled()}
    weights = [
        {
            "name": file.name,
            "folders": folders.get(file.name, ["loras"]),
            "urls": [f"{base_url}/{file.name}"],
            "size": file.stat().st_size,
        }
        for file in sorted(folder.iterdir())
    ]
    path.write_text(json.dumps({"version": 1, "weights": weights}))


@contextmanager
def fresh(config: Config) -> Iterator[Config]:
    """The same settings with a new home and no models."""
    with tempfile.TemporaryDirectory(dir=config.home, prefix="home-") as name:
        yield replace(config, home=Path(name), models=Path(name, "models"))


def planned(config: Config, request: Request) -> Plan:
    """What the run will do, as it is known without ComfyUI."""
    return prepare(
        request.document,
        catalog=saved_catalog.known(config).catalog,
        manifest=read_manifest(config.manifest),
        on_disk=WeightStore(config).listing,
        seed=request.seed,
    )


def timed_boot(config: Config, flags: Flags) -> float:
    """Seconds until a bare ComfyUI answers."""
    began = time.perf_counter()
    with bare_comfyui(config, flags):
        return time.perf_counter() - began


def timed_fetch(config: Config, request: Request) -> float:
    """Seconds until all weights are in place."""
    began = time.perf_counter()
    weights = planned(config, request).weights
    with closing(WeightStore(config).ensure(weights)) as updates:
        for _ in updates:
            pass
    return time.perf_counter() - began


def timed_picture(config: Config, request: Request, *, ahead: bool) -> float:
    """Seconds until the run yields its first file, with the weights fetched `ahead` or not."""
    began = time.perf_counter()
    plan = planned(config, request) if ahead else None
    wanted = Ahead.of(plan, request, lambda _: None) if plan else None
    with lone_runner(config, wanted) as runner, closing(runner.run(request)) as updates:
        for update in updates:
            if isinstance(update, Output):
                return time.perf_counter() - began
    sys.exit("The run made no picture.")


class Bucket:
    """So many bytes a second for all who take from it."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def take(self, count: int) -> None:
        """Return when so many bytes may be sent."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self._rate
            wait = self._free - time.monotonic()
        if wait > 0:
            time.sleep(wait)


class Handler(BaseHTTPRequestHandler):
    """Files of a folder, whole or in ranges, at the pace of the bucket."""

    protocol_version = "HTTP/1.1"
    folder: ClassVar[Path]
    bucket: ClassVar[Bucket]

    def do_GET(self) -> None:
        """Answer one request."""
        content = (self.folder / Path(self.path).name).read_bytes()
        first, last = 0, len(content) - 1
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked:
            begin, _, end = asked.partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{len(content)}-{self.path}"')
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        for start in range(first, last + 1, BLOCK):
            block = content[start : min(start + BLOCK, last + 1)]
            self.bucket.take(len(block))
            try:
                self.wfile.write(block)
            except OSError:  # the client has gone
                self.close_connection = True
                return

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def serve(folder: Path, rate: float) -> None:
    """Serve a folder with so many bytes a second until SIGTERM; the port is printed."""
    Handler.folder, Handler.bucket = folder, Bucket(rate)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        print(http.server_address[1], flush=True)
        http.serve_forever()


@contextmanager
def server(folder: Path, rate: float) -> Iterator[tuple[str, float]]:
    """The base URL of a server for the folder, in a process of its own, and its rate."""
    command = [sys.executable, __file__, "--serve", str(folder), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            if not port:
                sys.exit("The server did not start.")
            yield f"http://127.0.0.1:{port}", rate
        finally:
            process.terminate()
            process.wait(SERVER_TIMEOUT)


def show(seconds: Mapping[str, list[float]]) -> None:
    """Print one line for each row."""
    turns = statistics.median(seconds["turns"])
    print_table(
        ("row", "count", "min s", "median s", "max s", "ratio to turns"),
        [
            (
                row,
                str(len(values)),
                f"{min(values):.2f}",
                f"{statistics.median(values):.2f}",
                f"{max(values):.2f}",
                f"{statistics.median(values) / turns:.2f}",
            )
            for row, values in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
