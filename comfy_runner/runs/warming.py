"""One short run of a workflow ahead of all others, so that the first finds its models loaded."""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from comfy_runner.convert.formats import read_workflow
from comfy_runner.documents import source
from comfy_runner.errors import CallerError, ComfyRunnerError, InvalidInput, Problem
from comfy_runner.graph.inputs import bind
from comfy_runner.graph.nodes import InputSpec, NodeCatalog
from comfy_runner.graph.workflow import Workflow
from comfy_runner.runs.events import Progress
from comfy_runner.runs.files import GivenFile, numbered
from comfy_runner.runs.preloading import TellDownloads
from comfy_runner.runs.run import Finished, Request, Update
from comfy_runner.weights.progress import Downloading

log = logging.getLogger(__name__)

SETTING = "COMFY_RUNNER_WARM_UP"

FILES = "files"
"""Folder beside the workflow with the files that it names."""

STEPS = "steps"
"""What samplers, and the schedulers that some have instead, call the number of their steps."""

FIRST = "start_at_step"
"""What a sampler for a part of the steps calls its first one, counted from 0: with one step, it
would load no model if it began later (nodes.py KSamplerAdvanced, ComfyUI 0.30.0)."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """How a warm-up went."""

    seconds: float
    failure: str = ""
    """Why it did not run to its end, in words; empty where it did."""


def check(path: Path | None) -> None:
    """Raise `InvalidInput` where the setting `warm_up` names no file."""
    if path is not None and not path.is_file():
        what = f"There is no file {path}."
        hint = "Give the path of a workflow, or off."
        raise InvalidInput([Problem("bad_setting", what, hint, input=SETTING)])


def warm_up(
    path: Path,
    catalog: Callable[[], NodeCatalog],
    run: Callable[[Request], Generator[Update]],
    credentials: Mapping[str, str],
) -> Warmed:
    """Run the workflow in a file once, as short as can be; the log tells how it goes.

    Files of the folder `FILES` beside it come with it. Missing weights are fetched, with the
    `credentials`, host to token. It fails like any run, and then that is logged and told.
    """
    began = time.monotonic()
    try:
        request, count = _request(path, catalog(), credentials)
        log.info("Warm-up: %s runs once, its steps cut in %d inputs.", path.name, count)
        with closing(run(request)) as updates:
            for line in _lines(updates):
                log.info("Warm-up: %s", line)
    except ComfyRunnerError as err:
        seconds = time.monotonic() - began
        log.warning(
            "Warm-up: it failed after %.1f s, and the first prediction loads what it needs. %s%s",
            *(seconds, err, _cure(err, path)),
        )
        return Warmed(seconds, str(err))
    return Warmed(time.monotonic() - began)


def shortest(document: Mapping[str, object], catalog: NodeCatalog) -> Mapping[str, int]:
    """Address to value of all inputs to set so that the document's workflow takes fewest steps.

    Inputs count by their name and type, whatever their node; one that is connected, too.

    Raises: `InvalidWorkflow`.
    """
    conversion = read_workflow(document, catalog)
    wanted = dict(_fewest(conversion.workflow, catalog))
    bound = bind(conversion.workflow, wanted, catalog, conversion.exposed)
    return {binding.address: binding.value for binding in bound.bindings}


def _fewest(workflow: Workflow, catalog: NodeCatalog) -> Iterator[tuple[str, int]]:
    for node in workflow.nodes.values():
        known = catalog.get(node.class_type)
        specs = known.inputs(node.inputs) if known else {}
        if not any(_is_called(spec, STEPS) for spec in specs.values()):
            continue
        for name, spec in specs.items():
            for called, least in ((STEPS, 1), (FIRST, 0)):
                value = max(least, int(spec.options.get("min", least)))
                now = node.inputs.get(name)
                if _is_called(spec, called) and not (isinstance(now, int) and now <= value):
                    yield f"{node.id}.{name}", value


def _is_called(spec: InputSpec, name: str) -> bool:
    return spec.type == "INT" and spec.is_widget and spec.name.rpartition(".")[2] == name


def _request(
    path: Path, catalog: NodeCatalog, credentials: Mapping[str, str]
) -> tuple[Request, int]:
    document = source.read(path, field=str(path))
    values = shortest(document, catalog)
    folder = path.parent / FILES
    found = sorted(folder.iterdir()) if folder.is_dir() else ()
    files = [GivenFile(each, each.name) for each in found if each.is_file()]
    request = Request(
        document=document,
        values=values,
        files=numbered(files),
        randomise_seeds=False,
        credentials=credentials,
    )
    return request, len(values)


def _cure(err: ComfyRunnerError, path: Path) -> str:
    """Where to put a file that did not come with the workflow; nothing for other errors."""
    if isinstance(err, CallerError) and any(p.code == "file_not_given" for p in err.problems):
        return f" For the warm-up, put it into {path.parent / FILES}."
    return ""


def _lines(updates: Generator[Update]) -> Iterator[str]:
    """What to tell of a run: each node once, downloads now and then, and the time it took."""
    told = ""
    downloads = TellDownloads("Warm-up")
    for update in updates:
        match update:
            case Downloading():
                downloads.tell(update)
            case Progress(node_id=node_id) if node_id != told:
                told = node_id
                done = f"{update.nodes_done} of {update.nodes_total}"
                yield f"{done} nodes done; node {node_id} ({update.title})"
            case Finished(seconds):
                phases = ", ".join(f"{name} {each:.1f} s" for name, each in seconds.items())
                yield f"done in {sum(seconds.values()):.1f} s ({phases})."
