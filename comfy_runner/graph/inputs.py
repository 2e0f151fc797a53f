"""What a caller can set in a workflow, and setting it: addresses, values, seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph import declaring
from comfy_runner.graph.check import without_secrets
from comfy_runner.graph.nodes import InputSpec, NodeCatalog, did_you_mean
from comfy_runner.graph.values import Unfit, coerce
from comfy_runner.graph.workflow import Link, Node, Workflow

MAX_SEED = 2**32
"""Random seeds lie below this: short enough to be told and typed."""


GUESSES = 20
"""For how many unknown addresses a similar one is looked for, which takes a while each time."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """One input that the workflow's author chose to show, as in the editor's App Mode."""

    name: str
    """What the author calls it; different from all others' names."""
    targets: tuple[tuple[str, str], ...]
    """Node id and input of each place that its value goes to; the first tells type and range."""


@dataclass(frozen=True, slots=True)
class Settable:
    """One input that a caller can set."""

    address: str
    """The shortest unambiguous address, such as `KSampler.seed`."""
    node_id: str
    title: str
    """The node's title, or its class_type when it has none."""
    class_type: str
    input: str
    kind: str
    """INT, FLOAT, STRING, BOOLEAN, COMBO or another widget type; `image`, `audio`, `video` or
    `file` for an input that takes a file; `model` for one that names a model."""
    value: Any
    """What the workflow itself has there."""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[Any, ...] | None = None
    folder: str | None = None
    """Model folder of a `model`."""
    exposed: bool | None = None
    """True for an input that the author chose to show, under the author's name."""
    description: str | None = None
    """What the author says of it, where a node declares it."""

    def as_json(self) -> dict[str, Any]:
        """The members that say something, as a flat JSON object."""
        members = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: value for name, value in members.items() if value is not None or name == "value"
        }


@dataclass(frozen=True, slots=True)
class Binding:
    """One value of the request, and the input that it goes to."""

    address: str
    node_id: str
    input: str
    value: Any
    """Checked and coerced; the text as given where the input takes a file or names a model."""
    takes_file: bool


@dataclass(frozen=True, slots=True)
class Bound:
    """A workflow with a request's values in it."""

    workflow: Workflow
    bindings: tuple[Binding, ...]
    """Where each value that fits went."""
    problems: tuple[Problem, ...]
    """Every address and value that does not fit."""


def discover(
    workflow: Workflow, catalog: NodeCatalog, exposed: Sequence[Exposed] = ()
) -> tuple[Settable, ...]:
    """Everything in the workflow that can be set, in its order; nodes of unknown classes have none.

    What the author `exposed` comes first. An input that is connected is left out: its value comes
    from another node.
    """
    places = list(_places(workflow, catalog))
    by_place = {(node.id, spec.name): (node, spec) for node, spec in places}
    first = [
        replace(_settable(*by_place[entry.targets[0]], entry.name), exposed=True)
        for entry in exposed
        if entry.targets[0] in by_place
    ]
    told = {target for entry in exposed for target in entry.targets}
    others = (
        _settable(node, spec, _shortest_address(node, spec.name, places))
        for node, spec in places
        if (node.id, spec.name) not in told
        and spec.is_widget
        and not isinstance(node.inputs.get(spec.name), Link)
    )
    return (*first, *others)


def bind(
    workflow: Workflow,
    values: Mapping[str, Any],
    catalog: NodeCatalog,
    exposed: Sequence[Exposed] = (),
) -> Bound:
    """Set inputs by address, in a copy; every value that fits is set, the others are problems.

    An address is `NODE.INPUT`, where NODE is a node's id (`6`, `12:5`), its title, or its
    class_type when only one node has it; or just INPUT when only one node has such an input. Case
    is ignored where that leaves one match. The name of an `exposed` input goes before all of these,
    and sets every place that it stands for. Values are checked and coerced against the catalog.

    A value for a file input is not put into the graph: its `Binding` says so, and what stands
    there is decided once the file is at hand.
    """
    bindings: dict[tuple[str, str], Binding] = {}
    problems: list[Problem] = []
    waiting, lost = dict(values), dict[str, Problem]()
    while waiting:
        places = list(_places(workflow, catalog))
        more_inputs = False
        lost = {}
        for address, value in waiting.items():
            try:
                found = _exposed_places(address, exposed, places) or [
                    _locate(address, exposed, places, workflow, catalog, guess=len(lost) < GUESSES)
                ]
            except Unfit as unfit:
                lost[address] = unfit.problem
                continue
            for node, spec in found:
                try:
                    coerced = coerce(spec, value)
                except Unfit as unfit:
                    problems.append(replace(unfit.problem, input=address))
                    break
                if twin := bindings.get((node.id, spec.name)):
                    what = f"{twin.address!r} names the same input."
                    problems.append(Problem("set_twice", what, "Give one of them.", input=address))
                    break
                bindings[node.id, spec.name] = Binding(
                    address, node.id, spec.name, coerced, spec.takes_file
                )
                if not spec.takes_file:
                    workflow = workflow.replace_inputs(node.id, {spec.name: _as_stored(coerced)})
                    more_inputs |= spec.type == "COMFY_DYNAMICCOMBO_V3"
        # Another choice of a dynamic combo brings other inputs, which were not there to be found.
        waiting = {address: waiting[address] for address in lost} if more_inputs else {}
    problems += [replace(problem, input=address) for address, problem in lost.items()]
    # Who mixes up name and value gives an address as the name, and it may hold a token.
    shown = [replace(each, input=without_secrets(each.input)) for each in problems]
    return Bound(workflow, tuple(bindings.values()), tuple(shown))


def seeds(workflow: Workflow, catalog: NodeCatalog) -> dict[tuple[str, str], int]:
    """Every seed that stands in the workflow itself: (node id, input) to its value."""
    return {
        (node.id, spec.name): value
        for node, spec in _places(workflow, catalog)
        if spec.is_seed and isinstance(value := node.inputs.get(spec.name), int)
    }


def reseed(
    workflow: Workflow, seed: int, catalog: NodeCatalog, keep: Iterable[tuple[str, str]] = ()
) -> Workflow:
    """A copy with new seeds, all made from one; those in `keep`, as (node id, input), stay.

    Seeds that are equal in the workflow stay equal; of different ones the first becomes `seed`,
    the next `seed + 1`, and so on, so that one number repeats the whole run. A seed beyond an
    input's maximum wraps round into its range: packs have inputs of 31 bits.

    Raises: `InvalidInput` when `seed` is negative or beyond 64 bits.
    """
    if not 0 <= seed < 2**64:
        what = f"{seed} is no seed: it goes from 0 to {2**64 - 1}."
        raise InvalidInput([Problem("bad_seed", what, input="seed")])
    found = {place: value for place, value in seeds(workflow, catalog).items() if place not in keep}
    different = {value: number for number, value in enumerate(dict.fromkeys(found.values()))}
    for (node_id, name), value in found.items():
        options = specs_of(workflow.nodes[node_id], catalog)[name].options
        # Packs write limits like 1e18, too, which must not make a float of the seed.
        low, high = int(options.get("min", 0)), int(options.get("max", 2**64 - 1))
        new = low + (seed + different[value] - low) % (high - low + 1)
        workflow = workflow.replace_inputs(node_id, {name: new})
    return workflow


def specs_of(node: Node, catalog: NodeCatalog) -> Mapping[str, InputSpec]:
    """What the inputs of a node take that can be set, closer where the node itself limits them."""
    known = catalog.get(node.class_type)
    return declaring.narrowed(node, known.inputs(node.inputs)) if known else {}


def _places(workflow: Workflow, catalog: NodeCatalog) -> Iterator[tuple[Node, InputSpec]]:
    for node in workflow.nodes.values():
        for spec in specs_of(node, catalog).values():
            yield node, spec


def _settable(node: Node, spec: InputSpec, address: str) -> Settable:
    kind = spec.file_kind if spec.takes_file else "model" if spec.folder else spec.type
    return Settable(
        address,
        node.id,
        node.label,
        node.class_type,
        spec.name,
        kind,
        node.inputs.get(spec.name, spec.default),
        spec.options.get("min"),
        spec.options.get("max"),
        spec.options.get("step"),
        None if spec.takes_file or spec.folder else spec.choices,
        spec.folder,
        description=declaring.description(node) or None,
    )


def _shortest_address(node: Node, name: str, places: list[tuple[Node, InputSpec]]) -> str:
    """`title.input`, `class_type.input`, or `id.input`: the first that only this input has."""
    ids = {other.id for other, _ in places}
    for selector in (node.title, node.class_type):
        if not selector or selector in ids:
            continue
        others = {other.id for other, _ in places if selector in (other.title, other.class_type)}
        if others == {node.id}:
            return f"{selector}.{name}"
    return f"{node.id}.{name}"


def _exposed_places(
    address: str, exposed: Sequence[Exposed], places: list[tuple[Node, InputSpec]]
) -> list[tuple[Node, InputSpec]]:
    """Every place that an exposed name stands for; exact case goes before any case."""
    for fold in (str, str.casefold):
        for entry in exposed:
            if fold(entry.name) == fold(address):
                return [p for p in places if (p[0].id, p[1].name) in entry.targets]
    return []


def _locate(
    address: str,
    exposed: Sequence[Exposed],
    places: list[tuple[Node, InputSpec]],
    workflow: Workflow,
    catalog: NodeCatalog,
    *,
    guess: bool,
) -> tuple[Node, InputSpec]:
    """The one input that an address means.

    Both parts may hold dots, so every split is tried; a node's id goes before its title, a title
    before a class_type, exact case before any case.
    """
    settable = [place for place in places if _can_be_set(*place)]
    for fold in (str, str.casefold):
        for rank in (_by_id, _by_title, _by_class, _by_input_alone):
            found = [(node, spec) for node, spec in settable if rank(fold, address, node, spec)]
            if len(found) == 1:
                return found[0]
            if found:
                ways = ", ".join(f"{node.id}.{spec.name}" for node, spec in found)
                raise Unfit(
                    "ambiguous_address",
                    f"{len(found)} inputs are called so.",
                    f"Use a node's id: {ways}.",
                )
    connected = next((node for node, spec in places if f"{node.id}.{spec.name}" == address), None)
    if connected is not None:
        raise Unfit(
            "not_settable",
            "This input takes a connection, not a value.",
            _what_can_be_set([place for place in settable if place[0] is connected]),
        )
    node = next((n for n in workflow.nodes.values() if address.startswith(f"{n.id}.")), None)
    if node is not None and node.class_type in catalog:
        raise Unfit(
            "no_such_input",
            f"Node {node.id} ({node.label}) has no such input.",
            _what_can_be_set([place for place in settable if place[0].id == node.id]),
        )
    known = [entry.name for entry in exposed]
    known += [
        f"{selector}.{spec.name}"
        for other, spec in settable
        for selector in (other.id, other.title, other.class_type)
        if selector
    ]
    raise Unfit(
        "no_such_address",
        "No node of the workflow has this id, title or class_type with such an input.",
        (guess and did_you_mean(address, known))
        or "`comfy-runner inputs WORKFLOW` lists what can be set.",
    )


def _what_can_be_set(places: list[tuple[Node, InputSpec]]) -> str:
    names = ", ".join(spec.name for _, spec in places)
    return f"It has {names}." if names else "None of its inputs can be set."


def _can_be_set(node: Node, spec: InputSpec) -> bool:
    """Widgets, connected or not, and any other input that has a plain value in the workflow."""
    value = node.inputs.get(spec.name)
    return spec.is_widget or (spec.name in node.inputs and not isinstance(value, Link))


def _by_id(fold: Any, address: str, node: Node, spec: InputSpec) -> bool:
    return bool(fold(address) == fold(f"{node.id}.{spec.name}"))


def _by_title(fold: Any, address: str, node: Node, spec: InputSpec) -> bool:
    return bool(node.title) and bool(fold(address) == fold(f"{node.title}.{spec.name}"))


def _by_class(fold: Any, address: str, node: Node, spec: InputSpec) -> bool:
    return bool(fold(address) == fold(f"{node.class_type}.{spec.name}"))


def _by_input_alone(fold: Any, address: str, node: Node, spec: InputSpec) -> bool:
    """Only unconnected widgets: those are what a person sees as the workflow's own inputs."""
    unconnected = spec.is_widget and not isinstance(node.inputs.get(spec.name), Link)
    return unconnected and bool(fold(address) == fold(spec.name))


def _as_stored(value: Any) -> Any:
    """Lists are wrapped, since ComfyUI takes a bare one for a link."""
    return {"__value__": value} if isinstance(value, list) else value
