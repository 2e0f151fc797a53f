"""What a person sees: progress bars on a terminal, plain lines in a pipe, tables."""

import logging
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from comfy_runner.graph.inputs import Settable
from comfy_runner.runs import events
from comfy_runner.runs.plan import Plan
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Planned, Update
from comfy_runner.serving.prediction import LogPrinter, Narrator
from comfy_runner.weights.progress import Downloading, told
from comfy_runner.weights.weight import Weight, human_size

errors = Console(stderr=True, highlight=False, soft_wrap=True)

FETCH_LINE_EVERY = 5.0
"""Least seconds between two lines about downloads in a pipe, but for each file's first and last."""
FETCH_BARS = 8
"""Most files that have a bar of their own."""


class Narration:
    """Shows a run on standard error; on a terminal with bars, else in lines.

    Of ComfyUI's own log only warnings and errors are shown.
    """

    def __init__(self, console: Console = errors) -> None:
        self._console = console
        self._bars = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._fetches = _Fetches()
        self._lines = Narrator(lambda _name, _value: None, fetch_line_every=FETCH_LINE_EVERY)

    def __enter__(self) -> Self:
        printer = LogPrinter(self._print)
        printer.setFormatter(_Speaker("%(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[printer])
        logging.getLogger("comfy_runner").setLevel(logging.INFO)
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def boot(self) -> None:
        """ComfyUI is being started."""
        if not self._console.is_terminal:
            self._print("Starting ComfyUI ...")
        self._show("boot", _Bar("Starting ComfyUI", 0, None, ""))

    def booted(self) -> None:
        """ComfyUI is there."""
        self._remove("boot")

    def tell(self, update: Update) -> None:
        """Show one update."""
        if not self._console.is_terminal:
            for line in self._lines.lines(update):
                self._print(line)
            return
        match update:
            case Planned():
                for line in self._lines.lines(update):
                    self._print(line)
            case Downloading():
                bars = self._fetches.take(update)
                for key in self._tasks.keys() - bars.keys() - {"boot"}:
                    self._remove(key)
                for key, bar in bars.items():
                    self._show(key, bar)
            case events.Progress():
                for key in self._tasks.keys() - {"nodes"}:
                    self._remove(key)
                steps = f", step {update.step} of {update.steps}" if update.steps else ""
                part = update.step / update.steps if update.steps else 0
                state = f"node {update.node_id} ({update.title}){steps}"
                done = update.nodes_done + part
                self._show("nodes", _Bar("Running", done, update.nodes_total, state))
            case Output():
                pass  # its path is printed where it is kept
            case Finished():
                self._bars.stop()
                for line in self._lines.lines(update):
                    self._print(line)

    def result(self, path: str) -> None:
        """A result stands at this path: the one thing that goes to standard output."""
        sys.stdout.write(f"{path}\n")
        sys.stdout.flush()

    def _print(self, text: str) -> None:
        """A line of its own, above the bars."""
        self._console.print(text, markup=False)

    def _show(self, key: str, bar: "_Bar") -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(
                bar.name, total=bar.total, state=bar.state, place=bar.place
            )
        self._bars.update(
            self._tasks[key],
            description=bar.name,
            completed=bar.done,
            total=bar.total,
            state=bar.state,
        )

    def _remove(self, key: str) -> None:
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))


@dataclass(frozen=True, slots=True)
class _Bar:
    """One bar on the terminal."""

    name: str
    done: float
    total: float | None
    state: str
    """What stands behind the bar."""
    place: int = 0
    """Bars stand in the order of this number, and in that in which they came."""


class _Bars(Progress):
    """Bars in the order of their places."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich draws."""
        yield self.make_tasks_table(sorted(self.tasks, key=lambda task: task.fields["place"]))


class _Fetches:
    """The bars for the files that come just now, for those without a bar, and for all together."""

    def __init__(self) -> None:
        self._coming: dict[str, Downloading] = {}

    def take(self, update: Downloading) -> dict[str, _Bar]:
        """All bars after this update, in their order, under keys that stay."""
        if update.done == update.total:
            self._coming.pop(update.name, None)
        else:
            self._coming[update.name] = update
        coming = list(self._coming.values())
        bars = {
            one.name: _Bar(
                f"Fetching {one.name}",
                one.done,
                one.total,
                told(one.done, one.total, one.rate, one.seconds_left),
            )
            for one in coming[:FETCH_BARS]
        }
        if rest := coming[FETCH_BARS:]:
            done, rate = sum(one.done for one in rest), sum(one.rate for one in rest)
            totals = [one.total for one in rest if one.total is not None]
            total = sum(totals) if len(totals) == len(rest) else None
            state = told(done, total, rate, None)
            bars["rest"] = _Bar(f"{len(rest)} more files", done, total, state, place=1)
        overall = update.overall
        if overall is not None and overall.files > 1:
            bars["all"] = _Bar(
                f"In all, {overall.files_done} of {overall.files} files",
                overall.done,
                overall.total,
                told(overall.done, overall.total, overall.rate, overall.seconds_left),
                place=2,
            )
        return bars


class _Speaker(logging.Formatter):
    """The log's text, with who says it where that is ComfyUI."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"ComfyUI: {text}" if record.name == "comfyui" else text


def show_plan(plan: Plan, *, random_seeds: bool) -> None:
    """Print what a run would do, on standard output; with `random_seeds` it draws them anew."""
    out = table_console()
    out.print(f"{len(plan.workflow.nodes)} nodes would run.")
    for node_id in plan.outputs:
        node = plan.workflow.nodes[node_id]
        out.print(f"Returns what node {node_id} ({node.label}, {node.class_type}) makes.")
    for binding in plan.bindings:
        out.print(f"Sets {binding.address} (node {binding.node_id}, input {binding.input}).")
    for need in plan.files:
        out.print(f"Takes the file {need.as_json()['source']} for {need.node_id}.{need.input}.")
    for model in plan.present:
        out.print(f"Uses {model}, which is on disk.")
    for weight in plan.weights:
        out.print(f"Fetches {weight.described} from {weight.origin}{_marks(weight)}.")
    for asked in plan.asked:
        where = f"{asked.node_id}.{asked.input}"
        out.print(f"Fetches {asked.shown} into {asked.folder} for {where} (size unknown).")
    sizes = [weight.size for weight in plan.weights]
    if len(sizes) + len(plan.asked) > 1:
        known = [human_size(sum(filter(None, sizes)))] if any(sizes) else []
        unknown = sizes.count(None) + len(plan.asked)
        more = [f"{unknown} of unknown size"] if unknown else []
        out.print(f"To fetch in all: {', and '.join(known + more)}.")
    for address, value in plan.seeds.items():
        out.print(f"Seed {address} is {'drawn at random' if random_seeds else value}.")
    for note in plan.notes:
        out.print(note)


def _marks(weight: Weight) -> str:
    """What somebody should know before a weight is fetched."""
    marks = [
        *([weight.license] if weight.license else []),
        *(["not for commercial use"] if weight.non_commercial else []),
        *(["gated: its host wants a token, and the licence accepted"] if weight.gated else []),
    ]
    return f" ({'; '.join(marks)})" if marks else ""


def show_inputs(found: Collection[Settable]) -> None:
    """Print what can be set as a table, on standard output; what the author chose has a star."""
    if any(settable.exposed for settable in found):
        errors.print("* is what the workflow's author shows.")
    table = Table("Address", "Type", "Value", "Allowed", box=None, pad_edge=False)
    for settable in found:
        address = f"{settable.address} *" if settable.exposed else settable.address
        table.add_row(address, settable.kind, _short(settable.value), _allowed(settable))
    table_console().print(table)


def _allowed(settable: Settable) -> str:
    if settable.choices is not None:
        return _short(", ".join(str(choice) for choice in settable.choices), 60)
    if settable.folder is not None:
        return f"a file of models/{settable.folder}, or a name in the manifest"
    parts = []
    if settable.minimum is not None and settable.maximum is not None:
        parts.append(f"{settable.minimum} to {settable.maximum}")
    if settable.step is not None and settable.step != 1:
        parts.append(f"in steps of {settable.step}")
    return ", ".join(parts)


def _short(value: object, length: int = 40) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= length else f"{text[: length - 3]}..."


def table_console() -> Console:
    """Standard output without markup; in a pipe as wide as needed, so that nothing is cut."""
    out = Console(markup=False, highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 10_000
    return out
