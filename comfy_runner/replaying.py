"""From a receipt back to a request, and from two receipts to what is different."""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from comfy_runner.errors import CallerError, DownloadFailed, InvalidInput, Problem
from comfy_runner.graph.workflow import Workflow, parse
from comfy_runner.runs.files import GivenFile, numbered
from comfy_runner.runs.media import OutputFormat
from comfy_runner.runs.plan import is_url
from comfy_runner.runs.receipt import (
    Made,
    Receipt,
    Surroundings,
    UsedFile,
    UsedWeight,
    workflow_digest,
)
from comfy_runner.runs.run import Request
from comfy_runner.weights.hosts.addresses import parse as parse_address
from comfy_runner.weights.progress import Downloading
from comfy_runner.weights.store import Addressed, WeightStore

log = logging.getLogger(__name__)

EXIT_DIFFERS = 1
"""Exit code for a replay that ran and made something else."""

MAX_RECEIPT_BYTES = 64 * 1024 * 1024
"""Largest receipt that is read, in bytes: a workflow has at most half of that."""

SHORT_HASH = 12
"""Digits of a hash that a sentence shows."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which two runs differ, or may differ."""

    kind: str
    """`output`, `workflow`, `weight`, `file`, `option`, `pack` or `version`."""
    what: str
    """In one sentence; "then" is the first run, "now" the second."""
    certain: bool = True
    """Whether it is known to be different; if not, a hash is missing that would tell."""

    def as_json(self) -> dict[str, Any]:
        """The difference as a flat JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of a replay."""

    differences: tuple[Difference, ...]
    """Outputs first, then what may be the reason."""
    outputs: int
    """How many results the first run had."""

    @property
    def is_same(self) -> bool:
        """Whether every result was made again, and nothing else."""
        return not any(difference.kind == "output" for difference in self.differences)

    @property
    def exit_code(self) -> int:
        """For the command line: 0, or `EXIT_DIFFERS`."""
        return 0 if self.is_same else EXIT_DIFFERS

    def lines(self) -> Iterator[str]:
        """What to tell a person, the verdict first."""
        count = f"{self.outputs} result{'s' * (self.outputs != 1)}"
        if self.is_same:
            yield f"The same: {count} made again."
        else:
            bad = sum(difference.kind == "output" for difference in self.differences)
            yield f"Not the same: {bad} difference{'s' * (bad != 1)} in {count}."
        for difference in self.differences:
            maybe = "" if difference.certain else " (may differ)"
            yield f"  {difference.kind}{maybe}: {difference.what}"

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        differences = [difference.as_json() for difference in self.differences]
        return {"same": self.is_same, "outputs": self.outputs, "differences": differences}


def read(path: Path) -> Receipt:
    """The receipt in a file. Raises: `InvalidInput`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECEIPT_BYTES + 1)
    except OSError as err:
        what = f"{path} cannot be read: {err.strerror}."
        raise _bad("no_file", what, "Check the path.", "receipt") from err
    if len(content) > MAX_RECEIPT_BYTES:
        what = f"{path} has more than {MAX_RECEIPT_BYTES / 1e6:.0f} MB."
        raise _bad("not_a_receipt", what, "Give a receipt.json that a run has made.", "receipt")
    return Receipt.parse(content)


def is_edited(receipt: Receipt) -> bool:
    """Whether its workflow is not the one that it was written for."""
    workflow = parse(receipt.workflow).to_json()
    return workflow_digest(workflow, receipt.files) != receipt.workflow_digest


def recover_weights(
    receipt: Receipt,
    store: WeightStore,
    *,
    values: Collection[str] = (),
    credentials: Mapping[str, str] | None = None,
) -> Generator[Downloading, None, None]:
    """Give weights that the run had by an address their names again, where that takes no secret.

    The store may have such a file under another name; and what a receipt leaves out of an address
    may be harmless, such as `?download=true`, so that the rest of it leads to a file of the same
    sha256. What cannot be had so is left to `request`, which asks for it; so are the addresses of
    which `values` has new ones. Yields as `WeightStore.ensure` does. Raises: `Cancelled`.
    """
    for weight in receipt.weights:
        known = all(place.address in values for place in weight.places)
        if known or weight.sha256 is None or weight.name in store.listing(weight.folder):
            continue
        try:
            yield from _recover(receipt, weight, weight.sha256, store, credentials or {})
        except (CallerError, DownloadFailed) as err:
            log.info("%s has to be asked for: %s", weight.label, err)


def _recover(
    receipt: Receipt,
    weight: UsedWeight,
    sha256: str,
    store: WeightStore,
    credentials: Mapping[str, str],
) -> Generator[Downloading, None, None]:
    """Raises: `CallerError` and `DownloadFailed` where the weight is not to be had."""
    kept = store.objects.get(sha256)
    withheld = any(place.address in receipt.withheld for place in weight.places)
    if kept is None and withheld and weight.source.startswith(("https://", "http://")):
        address = parse_address(weight.source)
        if address is not None:
            wanted = Addressed(address, weight.folder, sha256)
            yield from store.ensure([], [wanted], credentials=credentials)
            kept = store.objects.get(sha256)
    if kept is not None:
        store.objects.link(kept, weight.folder, weight.name)


def request(
    receipt: Receipt,
    folders: Collection[Path] = (),
    *,
    on_disk: Callable[[str], Collection[str]] = lambda _: (),
    values: Mapping[str, Any] | None = None,
    more_files: Sequence[GivenFile] = (),
    credentials: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Request:
    """The request that repeats the run: every node anew, with the seeds as they were.

    The caller's files are looked for by their sha256 in `folders`, at any depth; what was given by
    URL is fetched again where there is no such file. A weight with an address is fetched from it
    unless `on_disk` (`WeightStore.listing`) has its name; `recover_weights` brings what needs no
    question back before. `values` set what the receipt withholds
    or what is to be different, `more_files` are files that they name.

    Raises: `InvalidInput` for each file that is not found, each value that is withheld and not in
    `values`, and options that do not hold; `InvalidWorkflow`.
    """
    values = dict(values or {})
    workflow = parse(receipt.workflow)
    supplied: set[str] = set(values)
    for weight in receipt.weights:
        if not weight.places:
            continue
        if weight.name in on_disk(weight.folder):
            supplied.update(place.address for place in weight.places)
        elif weight.source:
            workflow = _addressed(workflow, weight)
    found = _find(receipt.files, folders)
    given: dict[str, GivenFile] = {file.name: file for file in more_files}
    problems: list[Problem] = []
    for number, file in enumerate(receipt.files):
        open_places = [p for p in file.places if p.address not in values]
        path = found.get(file.sha256)
        if path is not None:
            name = file.name.rpartition("/")[2]
            name = numbered([*given.values(), GivenFile(path, name)])[-1].name
            given[name] = GivenFile(path, name)
        elif is_url(file.source) and not file.source.startswith("data:"):
            name = file.source
        else:
            if open_places:
                problems.append(_not_found(file, number, open_places[0].node_id, folders, workflow))
            supplied.update(place.address for place in file.places)
            continue
        for place in open_places:
            if path is not None:
                supplied.add(place.address)
            workflow = workflow.replace_inputs(place.node_id, {place.input: name})
    problems += [
        _withheld(workflow, address) for address in receipt.withheld if address not in supplied
    ]
    options = dict(receipt.options)
    output_format = options.get("output_format", "original")
    quality = options.get("output_quality", 95)
    if output_format not in get_args(OutputFormat) or not isinstance(quality, int):
        what = f"Its option {output_format!r} with the quality {quality!r} is unknown."
        problems.append(Problem("bad_option", what, "Use the receipt as it was.", input="options"))
    if problems:
        raise InvalidInput(problems)
    return Request(
        document=workflow.to_json(),
        values=values,
        files=tuple(given.values()),
        randomise_seeds=False,
        output_format=output_format,
        output_quality=quality,
        previews=bool(options.get("previews")),
        all_outputs=bool(options.get("all_outputs")),
        reset_cache=True,
        receipt=True,
        timeout=timeout,
        credentials=credentials or {},
    )


def compare(first: Receipt, second: Receipt) -> Comparison:
    """What is different in the second run. Times, memory and sizes of downloads do not count."""
    differences = [
        *_outputs(first, second),
        *_workflows(first, second),
        *_weights(first.weights, second.weights),
        *_files(first.files, second.files),
        *_options(first.options, second.options),
        *_software(first.surroundings, second.surroundings),
    ]
    return Comparison(tuple(differences), len(first.outputs))


def _addressed(workflow: Workflow, weight: UsedWeight) -> Workflow:
    """The workflow with the weight's address where it stood before the weight had a name."""
    for place in weight.places:
        node = workflow.nodes.get(place.node_id)
        if node is not None and place.input in node.inputs:
            value = _put(node.inputs[place.input], place.within, weight.source)
            workflow = workflow.replace_inputs(place.node_id, {place.input: value})
    return workflow


def _put(value: Any, within: Sequence[Any], text: str) -> Any:
    match within, value:
        case [[], _]:
            return text
        case [[key, *rest], dict()] if key in value:
            return {**value, key: _put(value[key], rest, text)}
        case [[int(number), *rest], list()] if number < len(value):
            changed = _put(value[number], rest, text)
            return [*value[:number], changed, *value[number + 1 :]]
        case _:
            return value


def _find(files: Collection[UsedFile], folders: Collection[Path]) -> Mapping[str, Path]:
    """sha256 to a file that has it; only files of a size that is wanted are read."""
    sizes = {file.size for file in files}
    wanted = {file.sha256 for file in files}
    found: dict[str, Path] = {}
    for path in _walk(folders):
        if len(found) == len(wanted):
            break
        try:
            if path.is_file() and path.stat().st_size in sizes:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest in wanted:
                    found.setdefault(digest, path)
        except OSError:
            continue
    return found


def _walk(folders: Collection[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_file():
            yield folder
        for parent, subfolders, names in os.walk(folder):
            subfolders.sort()
            yield from (Path(parent, name) for name in sorted(names))


def _not_found(
    file: UsedFile, number: int, node_id: str, folders: Collection[Path], workflow: Workflow
) -> Problem:
    place = file.places[0]
    node = workflow.nodes.get(node_id)
    looked = ", ".join(map(str, folders))
    return Problem(
        "file_not_found",
        f"The file {file.name!r} (sha256 {file.sha256[:SHORT_HASH]}..., {file.size} bytes, number"
        f" {number + 1} of the receipt) is not"
        f" {f'in {looked}' if looked else 'known here, and no folder was given'}.",
        f"Give a folder that has it, or set {place.address} to another file.",
        node_id=node_id,
        title=node.label if node else "",
        input=place.input,
    )


def _withheld(workflow: Workflow, address: str) -> Problem:
    node_id, _, name = address.partition(".")
    node = workflow.nodes.get(node_id)
    return Problem(
        "withheld",
        "Its value held a secret, which the receipt does not have.",
        f"Give it again: -i '{address}=...'.",
        node_id=node_id,
        title=node.label if node else "",
        input=name,
    )


def _outputs(first: Receipt, second: Receipt) -> Iterator[Difference]:
    left = list(second.outputs)
    pairs: list[tuple[Made, Made]] = []
    alone: list[Made] = []
    for made in first.outputs:
        again = next((other for other in left if other.name == made.name), None)
        if again is None:  # previews have names by chance
            again = next((other for other in left if _is_alike(other, made)), None)
        if again is None:
            alone.append(made)
        else:
            left.remove(again)
            pairs.append((made, again))
    for made, again in pairs:
        if made.sha256 == again.sha256 or (made.content and made.content == again.content):
            continue
        kind, _, _ = made.content.partition(":")
        known = made.content and again.content
        how = f"its {kind} are others" if known else "its bytes are others"
        yield Difference("output", f"{made.name} (node {made.node_id}) is not the same: {how}.")
    for made in alone:
        yield Difference("output", f"{made.name} (node {made.node_id}) was not made now.")
    for made in left:
        yield Difference("output", f"{made.name} (node {made.node_id}) was not made then.")


def _is_alike(one: Made, other: Made) -> bool:
    return one.node_id == other.node_id and Path(one.name).suffix == Path(other.name).suffix


def _workflows(first: Receipt, second: Receipt) -> Iterator[Difference]:
    if first.workflow_digest == second.workflow_digest:
        return
    then, now = first.workflow, second.workflow
    for node_id in dict.fromkeys([*then, *now]):
        one, other = then.get(node_id), now.get(node_id)
        if one is None or other is None:
            yield Difference("workflow", f"Node {node_id} is only there {_when(one is None)}.")
        elif one["class_type"] != other["class_type"]:
            what = f"Node {node_id} is a {other['class_type']} now, was a {one['class_type']}."
            yield Difference("workflow", what)
        else:
            for name in dict.fromkeys([*one["inputs"], *other["inputs"]]):
                if one["inputs"].get(name) != other["inputs"].get(name):
                    yield Difference("workflow", f"Node {node_id} has another value for {name}.")


def _when(is_now: bool) -> str:
    return "now" if is_now else "then"


def _weights(then: Collection[UsedWeight], now: Collection[UsedWeight]) -> Iterator[Difference]:
    after = {weight.label: weight for weight in now}
    for weight in then:
        other = after.pop(weight.label, None)
        if other is None:
            yield Difference("weight", f"{weight.label} was used then only.")
        elif weight.sha256 and other.sha256:
            if weight.sha256 != other.sha256:
                yield _changed("weight", weight.label, weight.sha256, other.sha256)
        elif None not in (weight.size, other.size) and weight.size != other.size:
            what = f"{weight.label} has {other.size} bytes now, had {weight.size} then."
            yield Difference("weight", what)
        else:
            what = f"The hash of {weight.label} is not known, so it may be another file."
            yield Difference("weight", what, certain=False)
    for label in after:
        yield Difference("weight", f"{label} is used now only.")


def _files(then: Collection[UsedFile], now: Collection[UsedFile]) -> Iterator[Difference]:
    before = {place: file for file in then for place in file.places}
    after = {place: file for file in now for place in file.places}
    for place, file in before.items():
        other = after.get(place)
        if other is not None and other.sha256 != file.sha256:
            where = f"The file at node {place.node_id}, input {place.input}"
            yield _changed("file", where, file.sha256, other.sha256)


def _changed(kind: str, what: str, then: str, now: str) -> Difference:
    hashes = f"sha256 {now[:SHORT_HASH]}... now, {then[:SHORT_HASH]}... then"
    return Difference(kind, f"{what} is another one: {hashes}.")


def _options(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name):
            what = f"{name} is {now.get(name)!r} now, was {then.get(name)!r}."
            yield Difference("option", what)


def _software(then: Surroundings, now: Surroundings) -> Iterator[Difference]:
    for name in Surroundings.__slots__:
        one, other = getattr(then, name), getattr(now, name)
        if name != "packs" and one != other:
            yield Difference("version", f"{name} is {other or '?'!s} now, was {one or '?'!s}.")
    before, after = ({pack.name: pack for pack in around.packs} for around in (then, now))
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            yield Difference("pack", f"{name} is installed {_when(one is None)} only.")
        elif one != other:
            shown = [
                pack.version or pack.commit or pack.digest[:SHORT_HASH] for pack in (one, other)
            ]
            what = f"{shown[1]} now, {shown[0]} then" if shown[0] != shown[1] else "other files"
            yield Difference("pack", f"{name} is not the same: {what}.")


def _bad(code: str, what: str, hint: str, place: str) -> InvalidInput:
    return InvalidInput([Problem(code, what, hint, input=place)])
