"""What a person sees: progress bars on a terminal, plain lines in a pipe, tables."""

import logging
import sys
from collections.abc import Collection
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from comfy_runner.graph.inputs import Settable
from comfy_runner.runs import events
from comfy_runner.runs.plan import Plan
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Planned, Update
from comfy_runner.serving.prediction import Narrator
from comfy_runner.weights.manifest import human_size
from comfy_runner.weights.store import Downloading

errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Narration:
    """Shows a run on standard error; on a terminal with bars, else in lines.

    Of ComfyUI's own log only warnings and errors are shown.
    """

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines = Narrator(lambda _name, _value: None)

    def __enter__(self) -> Self:
        logging.basicConfig(level=logging.WARNING, handlers=[_Lines()], format="%(message)s")
        logging.getLogger("comfy_runner").setLevel(logging.INFO)
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def boot(self) -> None:
        """ComfyUI is being started."""
        self._line("Starting ComfyUI ...")
        self._task("boot", "Starting ComfyUI", None)

    def tell(self, update: Update) -> None:
        """Show one update."""
        if not errors.is_terminal:
            for line in self._lines.lines(update):
                self._line(line)
            return
        match update:
            case Planned():
                self._done("boot")
                for line in self._lines.lines(update):
                    errors.print(line, markup=False)
            case Downloading(name, done, total):
                self._task(name, f"Fetching {name}", total)
                state = f"{human_size(done)}" + (f" of {human_size(total)}" if total else "")
                self._bars.update(self._tasks[name], completed=done, state=state)
            case events.Progress():
                self._task("nodes", "Running", update.nodes_total)
                steps = f", step {update.step} of {update.steps}" if update.steps else ""
                part = update.step / update.steps if update.steps else 0
                self._bars.update(
                    self._tasks["nodes"],
                    completed=update.nodes_done + part,
                    state=f"node {update.node_id} ({update.title}){steps}",
                )
            case Output():
                pass  # its path is printed where it is kept
            case Finished():
                self._bars.stop()
                for line in self._lines.lines(update):
                    errors.print(line, markup=False)

    def result(self, path: str) -> None:
        """A result stands at this path: the one thing that goes to standard output."""
        sys.stdout.write(f"{path}\n")
        sys.stdout.flush()

    def _line(self, text: str) -> None:
        if not errors.is_terminal:
            errors.print(text, markup=False)

    def _task(self, key: str, description: str, total: float | None) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(description, total=total, state="")

    def _done(self, key: str) -> None:
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))


class _Lines(logging.Handler):
    """The log, printed above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        speaker = "ComfyUI: " if record.name == "comfyui" else ""
        try:
            errors.print(f"{speaker}{self.format(record)}", markup=False)
        except (ValueError, OSError):  # a closed or narrow stream must not stop who logs
            self.handleError(record)


def show_plan(plan: Plan, *, random_seeds: bool) -> None:
    """Print what a run would do, on standard output; with `random_seeds` it draws them anew."""
    out = _table_console()
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
        size = human_size(weight.size) if weight.size else "size unknown"
        out.print(f"Fetches {weight.label} ({size}).")
    known = sum(weight.size or 0 for weight in plan.weights)
    if len(plan.weights) > 1:
        out.print(f"To fetch in all: {human_size(known)}.")
    for address, value in plan.seeds.items():
        out.print(f"Seed {address} is {'drawn at random' if random_seeds else value}.")
    for note in plan.notes:
        out.print(note)


def show_inputs(found: Collection[Settable]) -> None:
    """Print what can be set as a table, on standard output; what the author chose has a star."""
    if any(settable.exposed for settable in found):
        errors.print("* is what the workflow's app shows.")
    table = Table("Address", "Type", "Value", "Allowed", box=None, pad_edge=False)
    for settable in found:
        address = f"{settable.address} *" if settable.exposed else settable.address
        table.add_row(address, settable.kind, _short(settable.value), _allowed(settable))
    _table_console().print(table)


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


def _table_console() -> Console:
    """Standard output without markup; in a pipe as wide as needed, so that nothing is cut."""
    out = Console(markup=False, highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 10_000
    return out
