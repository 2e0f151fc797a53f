"""Milliseconds of one run that computes next to nothing, so that what is left is overhead.

The workflow makes a plain picture of 64 x 64 pixels and saves it (EmptyImage, SaveImage), on the
CPU. It is run in three ways, each with a ComfyUI of its own that has been started before:

  bare     POST /prompt on a connection that stays open, then a WebSocket that was opened before all
           runs is read until `executing` names no node
  runner   Runner.run in this process, until its iterator has ended: workflow checked, results
           collected, folders cleaned up
  cog      POST /predictions with workflow_json on a connection that stays open, until the answer
           with the picture in it is there

The picture is saved anew each time. The ways take turns in blocks, so that noise from outside hits
all of them. What is not timed: emptying the bare ComfyUI's output folder, which the runner does for
its own as a part of a run; waiting until Cog has a free slot again; and what the runner leaves for
the time after a run, forgetting its history, as far as it is done when the next one begins.

With --chain, a second table has a workflow of so many nodes in a row (ImageInvert), of which every
one is run each time. For each of them ComfyUI tells the state of all of them, 18 MB in a run of
300; what reads them by hand neither parses them nor looks whether they are UTF-8.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

import requests
import websocket
from subjects import (
    BareComfyUI,
    Flags,
    bare_comfyui,
    cog_server,
    local_session,
    machine,
    percentile_95,
    print_table,
    rounds,
    workplace,
)

from comfy_runner.runner import Runner
from comfy_runner.runs.files import empty
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request

TIMEOUT = 60.0
"""Seconds for one run, and for anything else that is waited for."""

WARM_UP = 5
"""Runs of each way before the timed ones."""

STATE = '{"type": "progress_state"'
"""Begin of the messages that repeat the state of all nodes."""

Graph = Mapping[str, Any]
"""A workflow in ComfyUI's API format."""

Way = Callable[[Graph], float]
"""Runs a workflow once; seconds."""


def main() -> None:
    """Run, time and print."""
    options = arguments()
    print(f"Before: {machine()}")
    with ExitStack() as stack:
        config = stack.enter_context(workplace())
        runner = stack.enter_context(Runner(config))
        comfyui = stack.enter_context(bare_comfyui(config, Flags.of(runner)))
        server = stack.enter_context(cog_server(config))
        ways: Mapping[str, Way] = {
            "bare": stack.enter_context(bare_way(comfyui)),
            "runner": runner_way(runner),
            "cog": stack.enter_context(cog_way(server)),
        }
        small = measured(ways, itertools.repeat(picture()), options.runs, options.block)
        # A colour of its own for each run, or else the nodes are in the cache.
        chains = (chain(options.chain, color) for color in itertools.count(1))
        long = measured(ways, chains, -(-options.runs // 10), 1) if options.chain else {}
        print(f"After:  {machine()}")
    show(small)
    if long:
        print(f"\nA chain of {options.chain} nodes:")
        show(long)


def measured(
    ways: Mapping[str, Way], graphs: Iterator[Graph], runs: int, block: int
) -> Mapping[str, list[float]]:
    """The seconds of each run; the ways take turns after each `block` of them."""
    for way in ways.values():
        for _ in range(min(WARM_UP, runs)):
            way(next(graphs))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name in rounds(list(ways), -(-runs // block)):
        count = min(block, runs - len(seconds[name]))
        seconds[name] += [ways[name](next(graphs)) for _ in range(count)]
    return seconds


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100, help="timed runs each (default 100)")
    parser.add_argument("--block", type=int, default=10, help="runs in a row (default 10)")
    parser.add_argument(
        "--chain",
        type=int,
        default=0,
        metavar="NODES",
        help="time a long chain, too; a tenth as often",
    )
    options = parser.parse_args()
    if options.runs < 1 or options.block < 1:
        parser.error("--runs and --block must be 1 or more")
    if options.chain and options.chain < 2:  # noqa: PLR2004 - one makes, one saves
        parser.error("--chain must be 2 or more")
    return options


def picture() -> Graph:
    """The workflow that makes and saves a plain picture."""
    return chain(2, 0xFF0000)


def chain(count: int, color: int) -> Graph:
    """A workflow of `count` nodes, each with the picture of the one before; the last one saves."""
    plain = {"width": 64, "height": 64, "batch_size": 1, "color": color}
    graph: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": plain}}
    for number in range(2, count):
        inputs = {"image": [str(number - 1), 0]}
        graph[str(number)] = {"class_type": "ImageInvert", "inputs": inputs}
    saved = {"images": [str(count - 1), 0], "filename_prefix": "plain"}
    return {**graph, str(count): {"class_type": "SaveImage", "inputs": saved}}


def marked(graph: Graph) -> Graph:
    """The graph with a last node that runs although it may be cached.

    ComfyUI counts inputs that it does not know when it looks whether a node has to run again.
    """
    *_, (last, node) = graph.items()
    return {**graph, last: {**node, "inputs": {**node["inputs"], "nonce": uuid.uuid4().hex}}}


@contextmanager
def bare_way(comfyui: BareComfyUI) -> Iterator[Way]:
    """The prompt posted by hand, the messages read until its end."""
    client_id = uuid.uuid4().hex
    url = f"{comfyui.base_url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
    messages = websocket.create_connection(
        url, timeout=TIMEOUT, http_no_proxy=["*"], skip_utf8_validation=True
    )

    def run(graph: Graph) -> float:
        empty(comfyui.output)
        start = time.perf_counter()
        body = {"prompt": marked(graph), "client_id": client_id}
        reply = session.post(f"{comfyui.base_url}/prompt", json=body, timeout=TIMEOUT)
        prompt_id = reply.json()["prompt_id"]
        saved = False
        while True:
            text = messages.recv()
            if text.startswith(STATE):
                continue
            message = json.loads(text)
            if message["data"].get("prompt_id") != prompt_id:
                continue
            if message["type"] == "executed":
                saved = bool(message["data"]["output"]["images"])
            if message["type"] == "executing" and message["data"]["node"] is None:
                break
        seconds = time.perf_counter() - start
        if not (saved and any(comfyui.output.iterdir())):
            sys.exit("The bare ComfyUI saved no picture.")
        return seconds

    with local_session() as session:
        try:
            yield run
        finally:
            messages.close()


def runner_way(runner: Runner) -> Way:
    """The runner, asked as predict.py asks it."""

    def run(graph: Graph) -> float:
        document = json.dumps(graph)
        start = time.perf_counter()
        updates = list(runner.run(Request(document=document)))
        seconds = time.perf_counter() - start
        if sum(isinstance(update, Output) for update in updates) != 1:
            sys.exit(f"The runner made no picture: {updates}")
        return seconds

    return run


@contextmanager
def cog_way(base_url: str) -> Iterator[Way]:
    """Cog's HTTP server, asked for a whole answer."""

    def run(graph: Graph) -> float:
        body = {"input": {"workflow_json": json.dumps(graph)}}
        await_slot(session, base_url)
        start = time.perf_counter()
        reply = session.post(f"{base_url}/predictions", json=body, timeout=TIMEOUT)
        prediction = reply.json()
        seconds = time.perf_counter() - start
        if prediction.get("status") != "succeeded" or len(prediction["output"]) != 1:
            sys.exit(f"The prediction made no picture: HTTP {reply.status_code} {prediction}")
        return seconds

    with local_session() as session:
        yield run


def await_slot(session: requests.Session, base_url: str) -> None:
    """Return when the server would take a prediction: it frees the slot after it has answered."""
    deadline = time.monotonic() + TIMEOUT
    freed = Event()
    while session.get(f"{base_url}/health-check", timeout=TIMEOUT).json()["status"] != "READY":
        if time.monotonic() > deadline:
            sys.exit(f"The Cog server has no free slot after {TIMEOUT:.0f} s.")
        freed.wait(0.002)  # nothing sets it: Cog does not tell


def show(seconds: Mapping[str, list[float]]) -> None:
    """Print one line for each way."""
    bare = statistics.median(seconds["bare"])
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        figures = (min(values), median, percentile_95(values), median - bare)
        milliseconds = [f"{figure * 1000:.1f}" for figure in figures]
        rows.append((name, str(len(values)), *milliseconds, f"{median / bare:.2f}"))
    head = ("way", "runs", "min ms", "median ms", "p95 ms", "more than bare ms", "ratio to bare")
    print_table(head, rows)


if __name__ == "__main__":
    main()
