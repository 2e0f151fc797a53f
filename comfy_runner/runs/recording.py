"""Takes down a run while it goes on, for its receipt."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comfy_runner.graph.document import RUN_MARK
from comfy_runner.graph.workflow import Workflow
from comfy_runner.runs.contents import content_digest, sha256_of
from comfy_runner.runs.plan import Plan
from comfy_runner.runs.receipt import (
    FILE_DIGITS,
    Made,
    NodeTime,
    Place,
    Receipt,
    Surroundings,
    UsedFile,
    UsedWeight,
    workflow_digest,
)
from comfy_runner.runs.withholding import HIDDEN, cleaned, is_secret, without
from comfy_runner.weights.hosts.addresses import Data, Plain
from comfy_runner.weights.store import WeightStore
from comfy_runner.weights.weight import Weight

STAGED_HASH = re.compile(rf"-([0-9a-f]{{{FILE_DIGITS}}})(?=\.|$)")
"""The part of a staged file's name that `InputFolder.stage` makes from its content."""


class Recorder:
    """Takes down one run as it goes on: `planned`, then `event` and `output`, then `finished`."""

    def __init__(
        self,
        run_id: str,
        around: Surroundings,
        *,
        secrets: Collection[str] = (),
        options: Mapping[str, Any] | None = None,
        comfyui: int | None = None,
        whole: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`secrets` are taken out wherever they stand. `options` are those of the request.

        `comfyui` is ComfyUI's process id, `clock` gives seconds. If not `whole`,
        no file is read and the store is only asked for names: the receipt is for metrics then.
        """
        self._run_id = run_id
        self._around = around
        self._secrets = tuple(sorted(filter(None, secrets), key=len, reverse=True))
        self._options = dict(options or {})
        self._whole = whole
        self._clock = clock
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._workflow: dict[str, Any] = {}
        self._digest = ""
        self._withheld: list[str] = []
        self._values: Mapping[str, Any] = {}
        self._seeds: Mapping[str, int] = {}
        self._weights: tuple[UsedWeight, ...] = ()
        self._files: tuple[UsedFile, ...] = ()
        self._fetched = 0
        self._current, self._since = "", 0.0
        self._times: dict[str, float] = {}
        self._outputs: list[Made] = []
        self._memory = Memory(comfyui)

    def planned(
        self, plan: Plan, workflow: Workflow, inputs: Path, store: WeightStore, fetched: int = 0
    ) -> None:
        """Take down what is going to run, once everything is in place.

        For a receipt that is not whole it may have begun: nothing of the files is read but sizes,
        and one that a node has removed by then has none: 0 for a file, None for a weight.

        `workflow` is the graph to submit, `inputs` ComfyUI's input folder with the files in it,
        `fetched` the bytes of weights that were fetched.
        """
        self._fetched = fetched
        self._files = tuple(self._used_files(plan, workflow, inputs))
        self._weights = tuple(self._used_weights(plan, workflow, store))
        names = {(p.node_id, p.input): file.name for file in self._files for p in file.places}
        nodes = workflow.to_json()
        hidden = leading_to_secrets(nodes, {used.name for used in self._weights})
        for node_id, node in nodes.items():
            self._workflow[node_id] = self._clean_node(node_id, node, names, hidden)
        self._values = {
            self._clean(binding.address): self._workflow[binding.node_id]["inputs"][binding.input]
            for binding in plan.bindings
            if binding.node_id in self._workflow
        }
        self._seeds = dict(plan.seeds)
        self._options["previews"] = bool(self._options.get("previews") or plan.chosen)
        self._digest = workflow_digest(self._workflow, self._files)

    def begin(self) -> None:
        """Count ComfyUI's memory from now on; for right before it is given the run."""
        self._memory.begin()

    def event(self, message: Mapping[str, Any]) -> None:
        """Take down one message of ComfyUI, `{"type": ..., "data": {...}}`, as it comes in."""
        told = message.get("data")
        if not isinstance(told, Mapping) or told.get("prompt_id") != self._run_id:
            return
        match message.get("type"):
            case "executing":
                node = told.get("display_node") or told.get("node")
                self._turn_to("" if told.get("node") is None else str(node))
            case "execution_success" | "execution_error" | "execution_interrupted":
                self._turn_to("")

    def output(self, path: Path, node_id: str) -> None:
        """Take down a result file, for a whole receipt."""
        if self._whole:
            sha256, size = sha256_of(path), path.stat().st_size
            self._outputs.append(Made(path.name, node_id, sha256, size, content_digest(path)))

    def finished(self, seconds: Mapping[str, float]) -> Receipt:
        """The receipt of a run that succeeded; `seconds` is phase to its seconds."""
        self._turn_to("")
        titles = {
            node_id: str(node.get("_meta", {}).get("title") or node["class_type"])
            for node_id, node in self._workflow.items()
        }
        return Receipt(
            run_id=self._run_id,
            began=self._began,
            workflow_digest=self._digest,
            workflow=self._workflow,
            withheld=tuple(dict.fromkeys(self._withheld)),
            options=self._options,
            values=self._values,
            seeds=self._seeds,
            weights=self._weights,
            files=self._files,
            surroundings=self._around,
            seconds=dict(seconds),
            node_seconds=tuple(
                NodeTime(node_id, titles.get(node_id, ""), taken)
                for node_id, taken in self._times.items()
            ),
            fetched_bytes=self._fetched,
            peak_memory=self._memory.peak(),
            outputs=tuple(self._outputs),
        )

    def _turn_to(self, node_id: str) -> None:
        now = self._clock()
        if self._current:
            self._times[self._current] = self._times.get(self._current, 0.0) + now - self._since
        self._current, self._since = node_id, now

    def _used_files(self, plan: Plan, workflow: Workflow, inputs: Path) -> Iterator[UsedFile]:
        places: dict[str, list[Place]] = {}
        for need in plan.files:
            places.setdefault(need.source, []).append(Place(need.node_id, need.input))
        is_url = {need.source: need.is_url for need in plan.files}
        for source, found in places.items():
            staged = str(workflow.nodes[found[0].node_id].inputs[found[0].input])
            path = inputs / staged
            # What came from a URL has a name only in the input folder, with a part of its hash.
            name = STAGED_HASH.sub("", path.name) if is_url[source] else source
            shown = self._clean(source) if is_url[source] else ""
            size = _size(path) or 0
            sha256 = sha256_of(path) if self._whole else STAGED_HASH.findall(path.name)[-1]
            yield UsedFile(self._clean(name), sha256, size, shown, tuple(found))
            if shown not in ("", source):
                self._withheld += [place.address for place in found]

    def _used_weights(
        self, plan: Plan, workflow: Workflow, store: WeightStore
    ) -> Iterator[UsedWeight]:
        entries = store.objects.entries() if self._whole else ()
        sources = {entry.id: entry.shown for entry in entries}
        used: dict[str, tuple[str, list[Place]]] = {label: ("", []) for label in plan.present}
        used |= {weight.label: (self._clean(weight.origin), []) for weight in plan.weights}
        for asked in plan.asked:
            reference = asked.reference
            name = _inside(workflow.nodes[asked.node_id].inputs[reference.input], reference.within)
            if reference.form not in ("path", "lora") or not isinstance(name, str):
                continue
            # Not cleaned as other texts are: a known host's query says which file is meant.
            shown = without(asked.shown, self._secrets)
            _, places = used.setdefault(f"{asked.folder}/{name}", (shown, []))
            place = Place(reference.node_id, reference.input, reference.within)
            places.append(place)
            if isinstance(asked.address, Plain | Data) and shown != asked.address.url:
                self._withheld.append(place.address)
        for label, (source, places) in used.items():
            folder, _, name = label.partition("/")
            known = store.objects.named(folder, name)
            sha256, size = (known.id, known.size) if known else (None, None)
            if known is None:
                there = store.folders.find(Weight(name=name, folders=(folder,), urls=()), folder)
                size = _size(there) if there else None
            source = source or self._clean(sources.get(known.id, "") if known else "")  # noqa: PLW2901
            yield UsedWeight(folder, name, sha256, size, source, tuple(places))

    def _clean_node(
        self,
        node_id: str,
        node: Mapping[str, Any],
        names: Mapping[tuple[str, str], str],
        hidden: Collection[str],
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name, value in node["inputs"].items():
            if name == RUN_MARK:
                continue
            inputs[name] = names.get((node_id, name))
            if inputs[name] is None:
                hide = node_id in hidden or is_secret(name)
                is_link = isinstance(value, list)
                inputs[name] = value if is_link else self._clean_value(value, hide=hide)
                if inputs[name] != value:
                    self._withheld.append(f"{node_id}.{name}")
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, Mapping) else None
        titled = {"_meta": {"title": self._clean(title)}} if isinstance(title, str) else {}
        return {"class_type": node["class_type"], "inputs": inputs, **titled}

    def _clean_value(self, value: Any, *, hide: bool) -> Any:
        match value:
            case str() if hide and value:
                return HIDDEN
            case str():
                return self._clean(value)
            case list():
                return [self._clean_value(item, hide=hide) for item in value]
            case dict():
                return {
                    self._clean(key): self._clean_value(item, hide=hide or is_secret(key))
                    for key, item in value.items()
                }
            case _:
                return value

    def _clean(self, text: str) -> str:
        return cleaned(text, self._secrets)


class Memory:
    """The most memory that ComfyUI has had since `begin`, as Linux counts it; None elsewhere."""

    def __init__(self, pid: int | None) -> None:
        """`pid` is ComfyUI's process id; None where it is not known."""
        self._process = Path(f"/proc/{pid}")

    def begin(self) -> None:
        """Count from now on: proc(5), `clear_refs`."""
        with suppress(OSError):
            (self._process / "clear_refs").write_text("5")

    def peak(self) -> int | None:
        """Bytes."""
        try:
            status = (self._process / "status").read_text()
        except OSError:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None


def leading_to_secrets(nodes: Mapping[str, Any], weights: Collection[str]) -> set[str]:
    """The ids of all nodes from which a text may come into an input that takes a secret.

    What comes out of a node that names one of the `weights` is no text.
    """
    ahead = [
        value
        for node in nodes.values()
        for name, value in node["inputs"].items()
        if is_secret(name)
    ]
    found: set[str] = set()
    while ahead:
        match ahead.pop():
            case [str(node_id), int()] if node_id in nodes and node_id not in found:
                values = nodes[node_id]["inputs"].values()
                if not any(isinstance(value, str) and value in weights for value in values):
                    found.add(node_id)
                    ahead += values
    return found


def _size(path: Path) -> int | None:
    """Bytes; None for a file that is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _inside(value: Any, within: Iterable[str | int]) -> Any:
    for key in within:
        value = value[key]
    return value
