"""Milliseconds to find every model of a workflow of 100 nodes in a manifest of 2000 weights.

98 of the nodes are LoraLoader; their names are written in turn in each way that the manifest knows:

  exact    the name itself
  alias    another name for the file
  base     the file in another folder
  case     the name in other letters

Then all ways mixed, the same with every model on disk, and names that nobody knows, where similar
ones are looked for. `first` is the first time with a manifest just read, which makes its index;
`median` and the rest are of the rounds after it. The catalog is the built-in one; nothing is read
from disk or fetched while the clock runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from subjects import machine, percentile_95, print_table

from comfy_runner.comfyui import saved_catalog
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import Workflow, parse
from comfy_runner.runs.models import Models
from comfy_runner.weights.manifest import Manifest

NODES = 100
WEIGHTS = 2000

FOLDERS = ("checkpoints", "loras", "vae", "text_encoders", "diffusion_models")

Spelling = Callable[[str], str]
"""From a name of the manifest to what stands in the workflow."""

SPELLINGS: Mapping[str, Spelling] = {
    "exact": lambda name: name,
    "alias": lambda name: f"old {name}",
    "base": lambda name: f"elsewhere/{name.rpartition('/')[2]}",
    "case": str.upper,
}


def main() -> None:
    """Resolve, time and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50, help="timed rounds of each (default 50)")
    count = parser.parse_args().rounds
    if count < 1:
        parser.error("--rounds must be 1 or more")
    print(f"Before: {machine()}")
    catalog = saved_catalog.builtin()
    entries = [entry(number) for number in range(WEIGHTS)]
    document = {"version": 1, "weights": entries}
    names = [entry["name"] for entry in entries if entry["folders"] == ["loras"]]
    loras = names[: NODES - 2]
    ways = list(SPELLINGS.values())
    mixed = [ways[number % len(ways)](name) for number, name in enumerate(loras)]
    unknown = [f"nobody/knows model {number * 7}.safetensors" for number in range(len(loras))]
    rows = [
        measured(
            kind,
            graph([spell(name) for name in loras]),
            catalog=catalog,
            document=document,
            on_disk=(),
            count=count,
        )
        for kind, spell in SPELLINGS.items()
    ]
    rows += [
        measured(
            "mixed", graph(mixed), catalog=catalog, document=document, on_disk=(), count=count
        ),
        measured(
            "on disk", graph(loras), catalog=catalog, document=document, on_disk=names, count=count
        ),
        measured(
            "unknown",
            graph(unknown),
            catalog=catalog,
            document=document,
            on_disk=names,
            count=min(count, 5),
        ),
    ]
    head = ("names", "nodes", "first ms", "min ms", "median ms", "p95 ms")
    print(f"After:  {machine()}")
    print_table(head, rows)


def measured(
    kind: str,
    workflow: Workflow,
    *,
    catalog: NodeCatalog,
    document: Mapping[str, Any],
    on_disk: Collection[str],
    count: int,
) -> tuple[str, ...]:
    """One row of the table."""
    manifest = Manifest.parse(document)
    there = frozenset(on_disk)
    seconds = []
    for _ in range(count + 1):
        start = time.perf_counter()
        Models(workflow, catalog, manifest, lambda _: there, hints={})
        seconds.append(time.perf_counter() - start)
    first, *others = seconds
    figures = (first, min(others), statistics.median(others), percentile_95(others))
    return (kind, str(len(workflow.nodes)), *(f"{figure * 1000:.2f}" for figure in figures))


def entry(number: int) -> dict[str, Any]:
    """A weight as the manifest's JSON has it."""
    name = f"set{number % 7}/model-{number}-v{number % 3}.safetensors"
    return {
        "name": name,
        "folders": [FOLDERS[number % len(FOLDERS)]],
        "urls": [f"https://host.example/{number}.safetensors"],
        "size": number + 1,
        "sha256": f"{number:064x}",
        "aliases": [f"old {name}"],
    }


def graph(loras: Collection[str]) -> Workflow:
    """A checkpoint, a LoraLoader for each name one after the other, and a node that shows."""
    nodes: dict[str, Any] = {
        "0": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": entry(0)["name"]}}
    }
    for number, lora in enumerate(loras, 1):
        before = str(number - 1)
        inputs = {
            "model": [before, 0],
            "clip": [before, 1],
            "lora_name": lora,
            "strength_model": 1.0,
            "strength_clip": 1.0,
        }
        nodes[str(number)] = {"class_type": "LoraLoader", "inputs": inputs}
    last = str(len(loras))
    nodes["show"] = {"class_type": "PreviewAny", "inputs": {"source": [last, 0]}}
    return parse(nodes)


if __name__ == "__main__":
    main()
