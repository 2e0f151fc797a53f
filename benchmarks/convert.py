"""Milliseconds from the editor's own file, parsed as JSON, to a workflow that can run.

  comfy-cli   the converter of comfy-cli 1.23.0, in a process and an environment of its own
  ours        comfy_runner.convert, in this process

Both get the same catalog and the same documents and take turns, after one round that does not
count. First every workflow among the installed templates: a template's figure is the median of its
rounds, and only templates that both convert count. Whether a result is right is not looked at.
Then graphs that are made here, to see how the time grows with the number of nodes:

  chain       ImageScaleBy, one after the other
  reroutes    Reroute, one after the other: the editor's own node, which leaves no trace
  subgraphs   ImageScaleBy in subgraphs, three definitions deep, 50 nodes in each instance

The catalog is the built-in one. The first use fetches comfy-cli into the runner's home folder.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from subjects import machine, percentile_95, print_table, rounds

from comfy_runner.comfyui import saved_catalog
from comfy_runner.config import Config
from comfy_runner.convert import convert
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.nodes import NodeCatalog

VERSION = "1.23.0"
"""Of comfy-cli, whose converter is the baseline."""

SIZES = (250, 500, 1000, 2000)
"""Nodes of the graphs that are made here, besides the two at the ends."""

TIMEOUT = 60.0
"""Seconds for the baseline to end."""

BASELINE = """
import json, logging, sys, time
from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api

logging.disable()
catalog, groups = (json.loads(open(path, "rb").read()) for path in sys.argv[1:])
for line in sys.stdin:
    seconds = []
    for document in groups[line.strip()]:
        start = time.perf_counter()
        try:
            convert_ui_to_api(document, catalog)
        except (WorkflowConversionError, RecursionError):
            seconds.append(None)
        else:
            seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds), flush=True)
"""
"""What comfy-cli's Python runs: each line names a group, and is answered as a `Way` answers it."""

Graph = Mapping[str, Any]
"""A document in the editor's format."""

Figures = Sequence[float | None]
"""Seconds for each document of a group; `None` for one that was refused."""

Way = Callable[[str], Figures]
"""Converts every document of the named group."""


def main() -> None:
    """Convert, time and print."""
    options = arguments()
    print(f"Before: {machine()}")
    home = Config.from_environment().home
    python = comfy_cli(home / "benchmarks" / f"comfy-cli-{VERSION}")
    catalog = saved_catalog.builtin()
    named = templates()
    groups = {"templates": list(named.values())}
    groups |= {f"{shape} {size}": [SHAPES[shape](size)] for shape in SHAPES for size in SIZES}
    figures: dict[str, dict[str, Figures]] = {}
    with baseline(python, catalog, groups) as baseline_way:
        ways: Mapping[str, Way] = {"comfy-cli": baseline_way, "ours": our_way(catalog, groups)}
        for group in groups:
            figures[group] = compared(ways, group, options.rounds)
            print(f"{group}: done", file=sys.stderr)
    print(f"After:  {machine()}")
    show_templates(list(named), figures["templates"])
    print()
    show_growth(figures)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each (default 5)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def comfy_cli(place: Path) -> Path:
    """The Python of an environment with comfy-cli in that folder, which is made if need be."""
    python = place / "bin" / "python"
    if not (python.exists() and succeeds(python, "-c", "import comfy_cli.workflow_to_api")):
        print(f"Fetching comfy-cli {VERSION} ...", file=sys.stderr)
        uv = Path(sys.executable).with_name("uv")
        made = succeeds(uv, "venv", "--quiet", "--clear", "--python", sys.executable, place)
        install = ("pip", "install", "--quiet", "--python", python, f"comfy-cli=={VERSION}")
        if not (made and succeeds(uv, *install)):
            sys.exit(f"comfy-cli {VERSION} could not be fetched.")
    return python


def succeeds(*command: str | Path) -> bool:
    """Whether that command ends without an error."""
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603


def templates() -> dict[str, Graph]:
    """Name to document of every installed template that is a workflow."""
    package = find_spec("comfyui_workflow_templates_json")
    if package is None or package.origin is None:
        sys.exit("The package comfyui_workflow_templates_json is missing. Run script/bootstrap.")
    found: dict[str, Graph] = {}
    for path in sorted((Path(package.origin).parent / "templates").glob("*.json")):
        document = json.loads(path.read_bytes())
        if isinstance(document, dict) and isinstance(document.get("nodes"), list):
            found[path.stem] = document
    return found


@contextmanager
def baseline(
    python: Path, catalog: NodeCatalog, groups: Mapping[str, Sequence[Graph]]
) -> Iterator[Way]:
    """comfy-cli's converter in a process that has read everything; it has ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="comfy-runner-benchmark-") as name:
        object_info, documents = Path(name, "object_info.json"), Path(name, "documents.json")
        object_info.write_text(json.dumps(catalog.raw["object_info"]))
        documents.write_text(json.dumps(groups))
        with subprocess.Popen(  # noqa: S603
            [python, "-c", BASELINE, object_info, documents],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            if process.stdin is None or process.stdout is None:
                raise AssertionError
            requests, answers = process.stdin, process.stdout

            def run(group: str) -> Figures:
                print(group, file=requests, flush=True)
                answer = answers.readline()
                if not answer:
                    sys.exit(f"comfy-cli ended while it converted {group}.")
                seconds: Figures = json.loads(answer)
                return seconds

            try:
                yield run
            finally:
                requests.close()
                process.wait(TIMEOUT)


def our_way(catalog: NodeCatalog, groups: Mapping[str, Sequence[Graph]]) -> Way:
    """Our converter in this process."""

    def run(group: str) -> Figures:
        seconds: list[float | None] = []
        for document in groups[group]:
            start = time.perf_counter()
            try:
                convert(document, catalog)
            except InvalidWorkflow:
                seconds.append(None)
            else:
                seconds.append(time.perf_counter() - start)
        return seconds

    return run


def compared(ways: Mapping[str, Way], group: str, count: int) -> dict[str, Figures]:
    """Way to the median of its rounds for each document of a group; one round goes before."""
    for way in ways.values():
        way(group)
    seconds: dict[str, list[Figures]] = {name: [] for name in ways}
    for name in rounds(list(ways), count):
        seconds[name].append(ways[name](group))
    return {name: [median(values) for values in zip(*seconds[name], strict=True)] for name in ways}


def median(values: Figures) -> float | None:
    """The median of one document's figures, unless it was refused."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def show_templates(names: Sequence[str], figures: Mapping[str, Figures]) -> None:
    """Print one line for each way, then what was refused."""
    both = [all(values) for values in zip(*figures.values(), strict=True)]
    rows = []
    base = 0.0
    for way, values in figures.items():
        common = [value for value, counts in zip(values, both, strict=True) if value and counts]
        middle = statistics.median(common)
        base = base or middle
        shown = (middle, percentile_95(common), max(common), sum(common))
        refused = sum(value is None for value in values)
        rows.append(
            (
                way,
                *(str(count) for count in (len(values), refused)),
                *(f"{figure * 1000:.2f}" for figure in shown),
                f"{middle / base:.2f}",
            )
        )
    head = ("templates", "count", "refused", "median ms", "p95 ms", "worst ms", "all ms")
    print_table((*head, "ratio to comfy-cli"), rows)
    for way, values in figures.items():
        for name, value in zip(names, values, strict=True):
            if value is None:
                print(f"{way} refuses {name}.", file=sys.stderr)


def show_growth(figures: Mapping[str, Mapping[str, Figures]]) -> None:
    """Print one line for each graph that was made here."""
    rows = []
    for shape in SHAPES:
        for size in SIZES:
            theirs, ours = (values[0] for values in figures[f"{shape} {size}"].values())
            rows.append(
                (
                    f"{shape} {size}",
                    *(milliseconds(value, part) for value in (theirs, ours) for part in (1, size)),
                    f"{ours / theirs:.2f}" if ours and theirs else "-",
                )
            )
    head = ("graph", "comfy-cli ms", "per node", "ours ms", "per node", "ratio to comfy-cli")
    print_table(head, rows)


def milliseconds(seconds: float | None, parts: int) -> str:
    """The time that one of so many parts takes."""
    return "refused" if seconds is None else f"{seconds * 1000 / parts:.{4 if parts > 1 else 1}f}"


def scale(number: int, link: int, links: Sequence[int]) -> dict[str, Any]:
    """ImageScaleBy, with the link that comes in and those that go out."""
    return node(number, "ImageScaleBy", link, links, values=["nearest-exact", 1.0])


def reroute(number: int, link: int, links: Sequence[int]) -> dict[str, Any]:
    """Reroute, as the editor saves it."""
    return node(number, "Reroute", link, links, name="", kind="*")


def node(
    number: int,
    class_type: str,
    link: int,
    links: Sequence[int],
    *,
    name: str = "image",
    kind: str = "IMAGE",
    values: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """A node with one input and one output for pictures."""
    stored = {} if values is None else {"widgets_values": values}
    return {
        "id": number,
        "type": class_type,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": link}],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": links}],
        "properties": {},
        **stored,
    }


def line(make: Callable[[int, int, Sequence[int]], dict[str, Any]], count: int) -> Graph:
    """`count` nodes one after the other, a picture before and SaveImage after them."""
    first, last = count + 1, count + 2
    nodes = [make(number, number, [number + 1]) for number in range(1, count + 1)]
    picture = node(first, "EmptyImage", 0, [1], values=[64, 64, 1, 0]) | {"inputs": []}
    saved = node(last, "SaveImage", count + 1, [], name="images", values=["plain"])
    return {
        "version": 0.4,
        "last_node_id": last,
        "last_link_id": count + 1,
        "nodes": [picture, *nodes, saved | {"outputs": []}],
        "links": [
            [number, number - 1 or first, 0, number if number <= count else last, 0, "IMAGE"]
            for number in range(1, count + 2)
        ],
        "extra": {},
    }


def subgraphs(count: int) -> Graph:
    """Instances in a row; each holds 2 of another definition, that 5 of a third, that 5 nodes."""
    ids = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(3)]
    inside = [instance(ids[1]), instance(ids[2]), scale]
    definitions = [definition(*parts) for parts in zip(ids, inside, (2, 5, 5), strict=True)]
    graph = line(instance(ids[0]), count // 50)
    return {**graph, "definitions": {"subgraphs": definitions}}


def instance(definition_id: str) -> Callable[[int, int, Sequence[int]], dict[str, Any]]:
    """What makes an instance of that definition."""
    return lambda number, link, links: node(number, definition_id, link, links)


def definition(
    definition_id: str,
    make: Callable[[int, int, Sequence[int]], dict[str, Any]],
    count: int,
) -> dict[str, Any]:
    """A subgraph of `count` nodes one after the other, from its only input to its only output."""
    own_input, own_output = -10, -20  # the editor's ids for the two
    links = [
        {
            "id": number,
            "origin_id": number - 1 or own_input,
            "origin_slot": 0,
            "target_id": number if number <= count else own_output,
            "target_slot": 0,
            "type": "IMAGE",
        }
        for number in range(1, count + 2)
    ]
    port = {"id": f"{definition_id}-port", "name": "image", "type": "IMAGE"}
    return {
        "id": definition_id,
        "version": 1,
        "name": "Line",
        "state": {"lastNodeId": count, "lastLinkId": count + 1},
        "inputNode": {"id": own_input},
        "outputNode": {"id": own_output},
        "inputs": [{**port, "linkIds": [1]}],
        "outputs": [{**port, "linkIds": [count + 1]}],
        "widgets": [],
        "nodes": [make(number, number, [number + 1]) for number in range(1, count + 1)],
        "links": links,
    }


SHAPES: Mapping[str, Callable[[int], Graph]] = {
    "chain": lambda count: line(scale, count),
    "reroutes": lambda count: line(reroute, count),
    "subgraphs": subgraphs,
}
"""Kind of graph to what makes one with so many nodes, subgraphs written out."""


if __name__ == "__main__":
    main()
