"""Between Cog and the runner: a prediction's inputs become a request, updates become log lines."""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import TIMEOUT_MAX
from typing import Any, Protocol

from comfy_runner.config import Config
from comfy_runner.documents import source
from comfy_runner.errors import (
    CallerError,
    InvalidInput,
    InvalidWorkflow,
    Problem,
)
from comfy_runner.fetch.policy import Policy
from comfy_runner.graph.document import MAX_DOCUMENT_BYTES, Preference
from comfy_runner.runner import Runner
from comfy_runner.runs.events import Progress
from comfy_runner.runs.files import GivenFile, numbered
from comfy_runner.runs.media import OutputFormat
from comfy_runner.runs.receipt import receipt_metrics
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Planned, Request, Update
from comfy_runner.serving import uploads
from comfy_runner.weights.progress import Downloading, Overall

TOKEN_HOSTS = {"hf_token": "huggingface.co", "civitai_token": "civitai.com"}
"""Secret input to the one host that it is sent to."""

EXACT_INTEGER = 2**53
"""Integers up to here survive every JSON reader; larger seeds are told as text in metrics."""

LINE_EVERY = 0.5
"""Least seconds between two log lines about the same node."""

FETCH_LINE_EVERY = 2.0
"""Least seconds between two log lines about downloads, but for each file's first and last."""


DEFAULTS = Config()


class Trained(Protocol):
    """What a training left for predictions."""

    @property
    def workflow(self) -> Mapping[str, Any] | None:
        """The document that came with its weights."""


def request(
    *,
    workflow_json: str,
    workflow_file: object,
    prefer: Preference,
    inputs: str,
    input_file: object,
    input_files: Sequence[object] | None,
    seed: int | None,
    randomise_seeds: bool,
    output_format: OutputFormat,
    output_quality: int,
    return_temp_files: bool,
    all_outputs: bool,
    receipt: bool,
    force_reset_cache: bool,
    timeout: float | None,
    config: Config = DEFAULTS,
    trained: Trained | None = None,
    **tokens: Any,
) -> Request:
    """The request that a prediction's inputs make; `tokens` are `cog.Secret`, see `TOKEN_HOSTS`.

    `config` has the limits for what a request brings, and where its URLs may lead. Those given
    for files are fetched here. `trained` may have a workflow for requests that bring none.

    Raises: `CallerError` for inputs that do not fit, `DownloadFailed` and `TimedOut` for URLs.
    """
    started = time.monotonic()
    limit = timeout and min(timeout, TIMEOUT_MAX)  # no thread can wait for longer
    patience = limit or source.TIMEOUT
    if workflow_file is not None and workflow_json.strip():
        raise _bad("workflow_file", "Both workflow_json and workflow_file are given.", "Give one.")
    alone = {"workflow_file": workflow_file, "input_file": input_file}
    given = {field: value for field, value in alone.items() if value is not None}
    given |= {f"input_files[{number}]": value for number, value in enumerate(input_files or ())}
    received = uploads.received(given, timeout=limit or config.run_timeout, config=config)
    files = [
        # replicate/cog-comfyui lays its one file as `input` with the file's own ending.
        replace(file, alias=f"input{file.path.suffix.lower()}") if field == "input_file" else file
        for field, file in received.items()
        if field != "workflow_file"
    ]
    return Request(
        document=_document(
            workflow_json,
            received.get("workflow_file"),
            prefer,
            patience,
            config,
            own=None if trained is None else trained.workflow,
        ),
        values=_values(inputs, patience, config),
        files=numbered(files),
        # To JSON Schema 2.0 is an integer, and Cog 0.23 hands it over as a float.
        seed=None if seed is None else int(seed),
        randomise_seeds=randomise_seeds,
        output_format=output_format,
        output_quality=int(output_quality),
        previews=return_temp_files,
        all_outputs=all_outputs,
        receipt=receipt,
        reset_cache=force_reset_cache,
        timeout=limit,
        started=started,
        credentials=credentials(tokens),
    )


def credentials(tokens: Mapping[str, Any]) -> Mapping[str, str]:
    """Host to the token that it is sent, from `cog.Secret`s by the names of `TOKEN_HOSTS`.

    Raises: `InvalidInput`.
    """
    return {
        host: token
        for name, host in TOKEN_HOSTS.items()
        if (token := _token(tokens.get(name), name))
    }


def tokens_in(environment: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Host to token, as far as the environment has one; `variables` is variable to host.

    A token that was read from a file often has the end of a line behind it.
    """
    return {
        host: token
        for name, host in variables.items()
        if (token := environment.get(name, "").strip())
    }


def printable(text: str) -> str:
    """The text on one line of a log: half a letter and control characters, as titles have them,
    in a form that can be printed."""
    kept = text.encode(errors="replace").decode()
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in kept)


def is_healthy(runner: Runner) -> bool:
    """Whether predictions can be taken; if not, the log tells why."""
    if runner.health() != "broken":
        return True
    print(f"Unhealthy: {runner.why}", flush=True)
    return False


class Narrator:
    """Tells a run's updates: as metrics, and as log lines, no more than a person can use."""

    def __init__(
        self,
        record_metric: Callable[[str, Any], None],
        *,
        fetch_line_every: float = FETCH_LINE_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`record_metric` is that of Cog's `BaseRunner`: name and value. `clock` gives seconds."""
        self._record_metric = record_metric
        self._fetch_line_every = fetch_line_every
        self._clock = clock
        self._nodes: dict[str, tuple[float, str]] = {}
        # File to whether its last line is told, in the order of their lines.
        self._fetched: dict[str, bool] = {}
        self._fetch_line = -math.inf

    def tell(self, update: Update) -> None:
        """Print and record what there is to say about one update; often nothing."""
        lines = list(self.lines(update))
        for line in lines:
            print(printable(line), flush=True)
        if isinstance(update, Downloading) and not lines:
            return  # the files of a run may tell forty states a second
        for name, value in metrics(update).items():
            self._record_metric(name, value)

    def lines(self, update: Update) -> Iterator[str]:
        """What to print about one update; often nothing."""
        match update:
            case Planned(run_id, plan):
                yield f"Run {run_id}: {len(plan.workflow.nodes)} nodes."
                yield from plan.notes
                yield from (f"Seed {address} = {value}" for address, value in plan.seeds.items())
            case Downloading():
                if self._is_fetch_due(update):
                    yield f"Fetching {update.name}: {update}"
            case Progress(node_id=node_id, step=step, steps=steps):
                line = _progress_line(update)
                if self._is_due(node_id, line, last=step == steps):
                    yield line
            case Output(path, node_id, title):
                yield f"Made {path.name} (node {node_id}, {title})"
            case Finished():
                phases = ", ".join(
                    f"{name} {value:.2f} s" for name, value in update.seconds.items()
                )
                yield (
                    f"Done: {update.outputs} result{'s' * (update.outputs != 1)},"
                    f" {update.nodes_cached} of {update.nodes_total} nodes from the cache"
                    f" ({phases})."
                )

    def _is_due(self, node_id: str, line: str, *, last: bool) -> bool:
        """Whether to print a line: the node's first and last, others seldom, none twice."""
        now = self._clock()
        when, told = self._nodes.get(node_id, (-math.inf, ""))
        if line == told or not (last or now - when >= LINE_EVERY):
            return False
        self._nodes[node_id] = (now, line)
        return True

    def _is_fetch_due(self, update: Downloading) -> bool:
        """Whether to print a line: each file's first and last, between them the files in turn."""
        now = self._clock()
        last = update.done == update.total
        if update.name in self._fetched:
            if last and self._fetched[update.name]:
                return False  # it is being verified
            turn = next((name for name, is_told in self._fetched.items() if not is_told), "")
            # One that nothing is heard of has its turn taken.
            pause = self._fetch_line_every + (0 if update.name == turn else LINE_EVERY)
            if not last and now - self._fetch_line < pause:
                return False
            del self._fetched[update.name]
        self._fetched[update.name] = last
        self._fetch_line = now
        return True


def metrics(update: Update) -> Mapping[str, Any]:
    """What an update adds to the prediction's metrics: name to value."""
    match update:
        case Planned(run_id, plan):
            seeds = {address: _exact(value) for address, value in plan.seeds.items()}
            first = {"seed": next(iter(seeds.values()))} if seeds else {}
            return {"run_id": run_id, **first, "seeds": seeds}
        case Progress(nodes_done=done, nodes_total=total):
            return {"progress": round(_fraction(update, done, total), 4)}
        case Downloading(overall=Overall() as overall):
            return _fetch_metrics(overall.done, overall.rate, overall.files_done)
        case Finished():
            seconds = {f"{name}_seconds": value for name, value in update.seconds.items()}
            counts = {"nodes": update.nodes_total, "nodes_cached": update.nodes_cached}
            count, files = update.fetched_bytes, update.fetched_files
            fetched = _fetch_metrics(count, count / update.seconds["fetch"] if count else 0, files)
            receipt = receipt_metrics(update.receipt) if update.receipt else {}
            told = {"outputs": update.outputs, **counts, **fetched, **seconds, **receipt}
            return {"progress": 1.0, **told}
        case _:
            return {}


def prepare() -> None:
    """Make the process ready for predictions: its log is shown, and Cog fetches nothing itself.

    Raises: `StartFailed` with a Cog that cannot be kept from fetching.
    """
    show_log()
    uploads.take_over()


def show_log() -> None:
    """Print what the package and ComfyUI log, one line each, wherever `print` goes just then."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if not any(isinstance(handler, LogPrinter) for handler in root.handlers):
        # Cog gives each prediction its own standard output, which `print` looks up each time.
        root.addHandler(LogPrinter(partial(print, flush=True)))
    logging.getLogger("urllib3").setLevel(logging.WARNING)


class LogPrinter(logging.Handler):
    """What is logged, written as text, one record after the other."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            self._write(self.format(record))
        except (ValueError, OSError):  # a closed or narrow stream must not stop who logs
            self.handleError(record)


def _progress_line(update: Progress) -> str:
    steps = f", step {update.step} of {update.steps}" if update.steps else ""
    place = f"node {update.node_id} ({update.title})"
    return f"{update.nodes_done} of {update.nodes_total} nodes done; {place}{steps}"


def _fraction(update: Progress, done: int, total: int) -> float:
    part = update.step / update.steps if update.steps else 0.0
    return min(1.0, (done + part) / total) if total else 0.0


def _fetch_metrics(count: int, rate: float, files: int) -> Mapping[str, Any]:
    """Bytes, bytes per second, files."""
    return {"fetched_bytes": count, "fetch_rate": round(rate), "files_fetched": files}


def _exact(value: int) -> int | str:
    return value if value <= EXACT_INTEGER else str(value)


def _document(
    workflow_json: str,
    file: GivenFile | None,
    prefer: Preference,
    timeout: float,
    config: Config,
    *,
    own: Mapping[str, Any] | None,
) -> Mapping[str, Any]:
    """The workflow's graph, from wherever the caller has it, or else the model's `own`."""
    given = workflow_json.strip()
    limits: Any = {
        "prefer": prefer,
        "timeout": timeout,
        "max_bytes": config.max_input_bytes,
        "policy": Policy.of(config),
    }
    if file is not None:
        return source.read(file.path, field="workflow_file", **limits)
    if not given and own is not None:
        return own
    if not given:
        raise InvalidWorkflow(
            [
                Problem(
                    "no_workflow",
                    "No workflow was given.",
                    "Put its JSON, or a URL of it, into workflow_json, or upload workflow_file.",
                )
            ]
        )
    return source.read(given, field="workflow_json", **limits)


def _values(inputs: str, timeout: float, config: Config) -> Mapping[str, Any]:
    """The object of address to value; `cog predict -i inputs=@file` makes it a data URI."""
    text: str | bytes = inputs.strip()
    if isinstance(text, str) and source.is_address(text):
        try:
            with source.fetched(
                text, timeout=timeout, max_bytes=MAX_DOCUMENT_BYTES, policy=Policy.of(config)
            ) as path:
                text = path.read_bytes().strip()
        except CallerError as err:
            raise type(err)(replace(problem, input="inputs") for problem in err.problems) from err
    if not text:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise _bad("inputs", f"It is not JSON: {err}.", EXAMPLE) from err
    if not isinstance(values, dict):
        raise _bad("inputs", "It is no JSON object.", EXAMPLE)
    return values


EXAMPLE = 'Write it like {"6.text": "a red fox", "KSampler.steps": 20}.'


def _token(secret: Any, field: str) -> str:
    """The token as it can stand in a header; empty when none was given."""
    token = (secret.get_secret_value() or "").strip() if secret is not None else ""
    if not re.fullmatch(r"[!-~]*", token):
        raise _bad(field, "It holds a character that no token has.", "Copy it again.")
    return str(token)


def _bad(field: str, what: str, hint: str = "") -> InvalidInput:
    return InvalidInput([Problem("bad_input", what, hint, input=field)])
