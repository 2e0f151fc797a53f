"""Everything that one run will do, worked out before anything is fetched or started."""

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from comfy_runner.config import Config
from comfy_runner.convert.editor import NO_TIME
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import (
    CallerError,
    InvalidInput,
    InvalidWorkflow,
    Problem,
    Refused,
    UnknownModel,
)
from comfy_runner.fetch.urls import redacted
from comfy_runner.graph import inputs
from comfy_runner.graph.check import check, needed, output_nodes, shown
from comfy_runner.graph.document import RUN_MARK
from comfy_runner.graph.inputs import Binding
from comfy_runner.graph.nodes import InputSpec, ModelFolder, NodeCatalog, did_you_mean
from comfy_runner.graph.policy import NodePolicy, load
from comfy_runner.graph.policy import check as judge
from comfy_runner.graph.workflow import Node, Workflow
from comfy_runner.runs.models import Models
from comfy_runner.weights.manifest import Listing, Manifest, hints_by_name
from comfy_runner.weights.references import AskedWeight, put
from comfy_runner.weights.weight import Weight

OnDisk = Callable[[str, ModelFolder | None], Collection[str]]
"""Model folder, and what the catalog says of it, to the names in it."""

SHOWN_FILES = 12
"""How many of the given files an error lists before it only counts them."""


@dataclass(frozen=True, slots=True)
class FileNeed:
    """An input that takes a file, and where that file comes from."""

    node_id: str
    input: str
    source: str
    """The name of a given file, an http(s) URL or a data URI."""
    is_url: bool
    subfolder: str
    """Where in ComfyUI's input folder it belongs."""

    def as_json(self) -> dict[str, Any]:
        """The need as a JSON object; a URL without its secrets, a data URI without content."""
        source = redacted(self.source) if self.is_url else self.source
        return {"node_id": self.node_id, "input": self.input, "source": source}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will happen in one run."""

    workflow: Workflow
    """The nodes that will run, with the request's values; files are not in place yet."""
    outputs: tuple[str, ...]
    """Ids of the nodes whose results come back."""
    chosen: frozenset[str]
    """Those of them that the workflow's author chose, whose previews are results too."""
    weights: tuple[Weight, ...]
    """Weights of the manifest to fetch first."""
    asked: tuple[AskedWeight, ...]
    """Models to fetch first from addresses that the request or the workflow gives."""
    present: tuple[str, ...]
    """Models that are on disk already, as `folder/name`."""
    files: tuple[FileNeed, ...]
    bindings: tuple[Binding, ...]
    seeds: Mapping[str, int]
    """Address of each seed to its value."""
    notes: tuple[str, ...]
    """What was changed in the graph besides the request's values, one sentence each."""

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON object for programs."""
        return {
            "nodes": len(self.workflow.nodes),
            "outputs": [
                {"node_id": node_id, "title": self.workflow.nodes[node_id].label}
                for node_id in self.outputs
            ],
            "bindings": [
                {"address": b.address, "node_id": b.node_id, "input": b.input}
                for b in self.bindings
            ],
            "files": [need.as_json() for need in self.files],
            "fetch": [weight.as_json() for weight in self.weights],
            "asked": [asked.as_json() for asked in self.asked],
            "present": list(self.present),
            "seeds": dict(self.seeds),
            "notes": list(self.notes),
        }

    def to_submit(
        self,
        run_id: str,
        staged: Mapping[tuple[str, str], str],
        *,
        weights: Mapping[tuple[str, str], str] | None = None,
        all_again: bool = False,
    ) -> Workflow:
        """The graph to post: files under their staged names, output nodes marked for this run.

        The mark makes a node run again whatever is cached; with `all_again` every node has one.
        `staged` is (node id, input) to the name in ComfyUI's input folder, for all of `files`;
        `weights` is (node id, input) to the name in the model folder, for all of `asked`.
        """
        workflow = self.workflow
        for asked in self.asked:
            name = (weights or {})[asked.node_id, asked.input]
            workflow = put(workflow, asked.reference, name)
        for (node_id, name), value in staged.items():
            workflow = workflow.replace_inputs(node_id, {name: value})
        for node_id in self.workflow.nodes if all_again else self.outputs:
            workflow = workflow.replace_inputs(node_id, {RUN_MARK: run_id})
        return workflow


def prepare(
    document: str | bytes | Mapping[str, Any],
    *,
    catalog: NodeCatalog,
    manifest: Manifest,
    on_disk: OnDisk,
    values: Mapping[str, Any] | None = None,
    files: Collection[str] = (),
    seed: int | None = None,
    now: datetime = NO_TIME,
    outputs: Collection[str] = (),
    all_outputs: bool = False,
    policy: NodePolicy | None = None,
) -> Plan:
    """Work out a run from a document and a request; nothing is fetched, written or started.

    `on_disk` lists a model folder (`WeightStore.listing`), `values` is address to value (see
    `inputs.bind`), `files` the names of the files that come with the request. With a `seed`, every
    seed that the request does not set is made from it, and so is what an editor's document leaves
    to chance. `now` is the local time, which such a document may ask for in file names. Of the
    output nodes only those run whose ids are in `outputs`, or else those that the document's author
    chose; all where neither says any, or `all_outputs` are wanted. `policy` says which nodes may be
    used; all may without one.

    Raises: `CallerError` with every problem found. It is `Refused` when the policy is against all,
    `InvalidInput` when the fault is in the request's values alone, `UnknownModel` when it is in
    models alone, else `InvalidWorkflow`.
    """

    conversion = read_workflow(document, catalog, seed=seed, now=now)
    bound = inputs.bind(conversion.workflow, values or {}, catalog, conversion.exposed)
    workflow, bad_values = bound.workflow, list(bound.problems)
    if seed is not None:
        keep = {(binding.node_id, binding.input) for binding in bound.bindings}
        try:
            workflow = inputs.reseed(workflow, seed, catalog, keep)
        except InvalidInput as err:
            bad_values += err.problems
    for binding in bound.bindings:
        if binding.takes_file:  # in place of a link, too, whose nodes are needed no more then
            value = str(binding.value)
            workflow = workflow.replace_inputs(binding.node_id, {binding.input: value})
    no_outputs = [_no_output(id_) for id_ in outputs if id_ not in output_nodes(workflow, catalog)]
    if no_outputs:
        raise InvalidInput(no_outputs)
    chosen = frozenset[str]() if all_outputs else frozenset(outputs or conversion.outputs)
    workflow = _cut(workflow, chosen, catalog)
    set_here = {(binding.node_id, binding.input) for binding in bound.bindings}
    lacking = {
        (problem.node_id, problem.input): problem
        for problem in conversion.problems
        if problem.node_id in workflow.nodes and (problem.node_id, problem.input) not in set_here
    }
    bad_graph = [
        lacking.pop((problem.node_id, problem.input), problem)
        for problem in check(workflow, catalog)
    ]
    bad_graph += lacking.values()
    refused = {(p.node_id, p.input) for p in bad_graph if p.code == "not_in_list"}
    hints = hints_by_name(conversion.models)
    listing = _listing(on_disk, catalog)
    models = Models(workflow, catalog, manifest, listing, hints=hints, refused=refused)
    # What a combo offers may change with the disk even where its folder is not known.
    bad_graph = [
        problem
        for problem in bad_graph
        if problem.code != "not_in_list" or (problem.node_id, problem.input) not in models.settled
    ]
    needs, bad_files = _file_needs(workflow, catalog, files)
    refusals = judge(workflow, catalog, policy) if policy is not None else []
    _raise_all(bad_values, bad_graph, models.problems, bad_files, refusals)
    return Plan(
        workflow=models.workflow,
        outputs=tuple(
            key for key in output_nodes(workflow, catalog) if not chosen or key in chosen
        ),
        chosen=chosen,
        weights=tuple(models.missing.values()),
        asked=tuple(models.asked),
        present=tuple(models.present),
        files=tuple(needs),
        bindings=bound.bindings,
        seeds={
            f"{node_id}.{name}": value
            for (node_id, name), value in inputs.seeds(workflow, catalog).items()
        },
        notes=(*conversion.notes, *models.notes),
    )


def needed_models(
    document: str | bytes | Mapping[str, Any],
    *,
    catalog: NodeCatalog,
    manifest: Manifest,
    on_disk: OnDisk,
    outputs: Collection[str] = (),
    all_outputs: bool = False,
) -> Models:
    """The models that a workflow needs as it stands, whatever else may be wrong with it.

    What nodes of classes that the catalog does not have need is not known: a note names each such
    class. See `prepare`.

    Raises: `InvalidWorkflow` where the document is no workflow, `UnknownModel`.
    """
    conversion = read_workflow(document, catalog)
    chosen = frozenset[str]() if all_outputs else frozenset(outputs or conversion.outputs)
    workflow = _cut(conversion.workflow, chosen & conversion.workflow.nodes.keys(), catalog)
    hints = hints_by_name(conversion.models)
    models = Models(workflow, catalog, manifest, _listing(on_disk, catalog), hints=hints)
    if models.problems:
        raise UnknownModel(models.problems)
    classes = {node.class_type: node.id for node in workflow.nodes.values()}
    models.notes += [
        f"The class {class_type} of node {node_id} is not known here, so the models that such nodes"
        " load may be missing. `comfy-runner check --refresh` asks ComfyUI for its classes."
        for class_type, node_id in classes.items()
        if catalog.get(class_type) is None
    ]
    return models


def node_policy(config: Config) -> NodePolicy:
    """Which nodes the settings let a workflow use."""
    return load(config.allow_nodes, config.deny_nodes, config.only_nodes or None)


def _cut(workflow: Workflow, chosen: frozenset[str], catalog: NodeCatalog) -> Workflow:
    """The nodes that run: those that the chosen outputs need, or all outputs where none is."""
    return workflow.only(workflow.upstream(chosen) if chosen else needed(workflow, catalog))


def _no_output(node_id: str) -> Problem:
    what = f"The workflow has no node {node_id!r} that gives results."
    return Problem("no_such_output", what, "Give ids of nodes that save or show.", input="outputs")


def _listing(on_disk: OnDisk, catalog: NodeCatalog) -> Listing:
    """Lists a model folder, each only once."""
    return functools.cache(lambda folder: on_disk(folder, catalog.model_folder(folder)))


def _raise_all(
    bad_values: Collection[Problem],
    bad_graph: Collection[Problem],
    bad_models: Collection[Problem],
    bad_files: Collection[Problem],
    refusals: Collection[Problem],
) -> None:
    problems = [*bad_values, *bad_graph, *bad_models, *bad_files, *refusals]
    if not problems:
        return
    kind: type[CallerError] = InvalidWorkflow
    if len(refusals) == len(problems):
        kind = Refused
    elif not bad_graph and not bad_models and not refusals:
        kind = InvalidInput
    elif len(bad_models) == len(problems):
        kind = UnknownModel
    raise kind(problems)


def _literals(workflow: Workflow, catalog: NodeCatalog) -> Iterator[tuple[Node, InputSpec, str]]:
    """Every text that stands in a node itself, with the spec of its input."""
    for node in workflow.nodes.values():
        known = catalog.get(node.class_type)
        for spec in known.inputs(node.inputs).values() if known else ():
            value = node.inputs.get(spec.name)
            if isinstance(value, str):
                yield node, spec, value


def _file_needs(
    workflow: Workflow, catalog: NodeCatalog, files: Collection[str]
) -> tuple[list[FileNeed], list[Problem]]:
    """What each file input needs."""
    needs: list[FileNeed] = []
    problems: list[Problem] = []
    for node, spec, value in _literals(workflow, catalog):
        if not spec.takes_file:
            continue
        source = _source(value, files)
        if source is not None:
            needs.append(FileNeed(node.id, spec.name, source, is_url(source), spec.subfolder))
        elif value not in (spec.choices or ()):
            problems.append(_no_file(node, spec, value, files))
    return needs, problems


def is_url(text: str) -> bool:
    """Whether a file input's value says where to get the file instead of which one it is."""
    return re.match(r"(https?://|data:)", text, re.IGNORECASE) is not None


def _source(value: str, files: Collection[str]) -> str | None:
    """The URL itself, or the given file that the value means: by its path, or its unique name."""
    if is_url(value):
        return value
    wanted = value.removesuffix(" [input]").replace("\\", "/")
    if wanted in files:
        return wanted
    same_name = [file for file in files if file.rpartition("/")[2] == wanted.rpartition("/")[2]]
    return same_name[0] if len(same_name) == 1 else None


def _no_file(node: Node, spec: InputSpec, value: str, files: Collection[str]) -> Problem:
    names = sorted(files)
    given = ", ".join(names[:SHOWN_FILES]) or "none"
    given += f" and {len(names) - SHOWN_FILES} more" if names[SHOWN_FILES:] else ""
    guess = did_you_mean(value, files)
    return node.problem(
        "file_not_given",
        f"The {spec.file_kind} {shown(value)} did not come with the request"
        f" (files given: {given}).",
        f"{guess} Send a file of that name (-f FILE on the command line), or set"
        f" {node.id}.{spec.name} to a file's name, an http(s) URL or a data URI.".strip(),
        spec.name,
    )
