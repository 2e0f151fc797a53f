"""Turns what nodes report into result files of the run's own."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_runner.errors import MachineError, NothingProduced
from comfy_runner.graph.workflow import Workflow
from comfy_runner.runs.files import link_or_copy
from comfy_runner.runs.media import OutputFormat, reencode
from comfy_runner.runs.outputs import OutputFile, files, name_for, values


@dataclass(frozen=True, slots=True)
class Output:
    """A result file; it stays until the next run starts."""

    path: Path
    node_id: str
    title: str
    """The node's title, or its class_type when it has none."""


class Results:
    """The results of one run, as they come in."""

    def __init__(
        self,
        folder: Path,
        sources: Mapping[str, Path],
        workflow: Workflow,
        encoding: tuple[OutputFormat, int],
        *,
        previews: bool,
        chosen: frozenset[str] = frozenset(),
    ) -> None:
        """Results go to `folder`; `sources` is ComfyUI's folder for each type of file.

        `encoding` is the wanted picture format and its quality, 0 to 100. Without `previews`,
        files of type `temp` are held back and only returned when there is nothing else. Where
        nodes are `chosen`, all files of these count and no others.
        """
        folder.mkdir(parents=True)
        self.count = 0
        self._folder = folder
        self._sources = sources
        self._workflow = workflow
        self._encoding = encoding
        self._previews = previews or bool(chosen)
        self._chosen = chosen
        self._taken: set[str] = set()
        self._seen: set[OutputFile] = set()
        self._held: list[tuple[str, OutputFile]] = []

    def take(self, node_id: str, output: Mapping[str, Any]) -> Iterator[Output]:
        """The results in a node's ui object, in its order: files first, then other values.

        A text that just repeats a file beside it is left out (SaveText reports both).

        Raises: `MachineError` for a file that is not where ComfyUI says or leads elsewhere.
        """
        if self._chosen and node_id not in self._chosen:
            return
        texts: set[str] = set()
        for file in files(output):
            if file in self._seen or file.type not in self._sources:
                continue
            self._seen.add(file)
            if file.is_preview and not self._previews:
                self._held.append((node_id, file))
                continue
            result = self._keep(node_id, file)
            if result.path.suffix in (".txt", ".md", ".json"):
                texts.add(result.path.read_bytes().decode(errors="replace"))
            yield result
        for value in values(output):
            if value.text not in texts:
                path = self._path(node_id, f"{value.kind}{value.suffix}")
                # JSON may hold halves of characters, which are no UTF-8.
                path.write_bytes(value.text.encode(errors="replace"))
                yield self._counted(path, node_id)

    def rest(self, outputs: Collection[str]) -> Iterator[Output]:
        """The previews, when there is nothing else; to be called at the end of the run.

        Raises: `NothingProduced`, naming the nodes in `outputs`, when there is nothing at all.
        """
        if self.count:
            return
        for node_id, file in self._held:
            yield self._keep(node_id, file)
        if not self.count:
            nodes = self._workflow.nodes
            raise NothingProduced(
                ", ".join(f"node {node_id} ({nodes[node_id].label})" for node_id in outputs)
            )

    def _keep(self, node_id: str, file: OutputFile) -> Output:
        folder = self._sources[file.type].resolve()
        try:
            source = (folder / file.subfolder / file.filename).resolve()
            inside, there = source.is_relative_to(folder), source.is_file()
        except (OSError, ValueError):  # a name that no file can have
            inside, there = True, False
        if not inside:
            raise MachineError(f"Node {node_id} reports a file outside of ComfyUI's folders.")
        if not there:
            raise MachineError(
                f"Node {node_id} reports the file {file.filename!r}, which is not there."
            )
        path = self._path(node_id, file.filename)
        link_or_copy(source, path)
        result = reencode(path, *self._encoding)
        self._taken.add(result.name.lower())
        return self._counted(result, node_id)

    def _path(self, node_id: str, made: str) -> Path:
        node = self._workflow.nodes.get(node_id)
        return self._folder / name_for(node, node_id, made, self._taken)

    def _counted(self, path: Path, node_id: str) -> Output:
        self.count += 1
        node = self._workflow.nodes.get(node_id)
        return Output(path, node_id, node.label if node else "")
