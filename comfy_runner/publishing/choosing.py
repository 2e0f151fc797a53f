"""The interface of a workflow's model: what its author chose, or else what suits it, checked."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from comfy_runner.convert.editor import Conversion
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph.check import output_nodes, shown
from comfy_runner.graph.inputs import bind, seeds
from comfy_runner.graph.nodes import NodeCatalog, did_you_mean
from comfy_runner.graph.workflow import Link, Node, Workflow
from comfy_runner.publishing.candidates import Candidate, candidates, remarks, running
from comfy_runner.publishing.interface import Interface, Param
from comfy_runner.publishing.naming import identifier, is_usable
from comfy_runner.publishing.params import param
from comfy_runner.publishing.roles import Place, Role, goals_of, spec_of
from comfy_runner.runs.plan import is_url

Lists = Callable[[str], Sequence[str]]
"""From `folder:NAME` or `group:NAME` to the names that a model may choose from."""

SOURCES = ("folder:", "group:")

FILM_SAVERS = frozenset({"SaveWEBM", "VHS_VideoCombine"})
"""Output classes that take pictures and make no picture of them."""

SHOWS = ("Preview", "Compare", "LossGraph", "CreateBoundingBoxes")
"""What stands in the names of output classes that only show something."""


def design(
    conversion: Conversion,
    catalog: NodeCatalog,
    *,
    chosen: Mapping[str, str] | None = None,
    fixed: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    choices: Mapping[str, str] | None = None,
    present: Collection[str] = (),
    lists: Lists = lambda _: (),
    tokens: Sequence[str] = (),
) -> Interface:
    """What the model of a workflow takes and gives.

    `chosen` is the name of each input to the address that it sets, in the wanted order; None for
    the default choice of `candidates`. An address is that of a `Candidate`, which stands for all
    its targets but those that are chosen or fixed by themselves, or its name, or as `inputs.bind`
    takes it. `fixed` is address to a value that is set for good. `outputs` are ids or titles of the
    nodes whose results count; without any it is the app's choice, or else every output that is no
    mere preview. `choices` is the name of an input to where its choices come from: `folder:NAME` or
    `group:NAME`, which `lists` looks up. `present` are the names of files that come with the
    project. `tokens` are those of `hf_token` and `civitai_token` that its weights need.

    Raises: `InvalidInput` with every problem.
    """
    made = _Design(conversion, catalog, fixed or {}, outputs)
    made.choose(chosen)
    params = tuple(made.params(choices or {}, present, lists))
    made.check_files(present)
    made.check_seeds()
    if made.problems:
        raise InvalidInput(made.problems)
    return Interface(
        params=params,
        fixed={".".join(place): value for place, value in made.fixed.items()},
        outputs=made.outputs,
        seed=made.has_seed(),
        pictures=any(
            _makes_pictures(made.workflow.nodes[node_id], catalog)
            for node_id in made.outputs or output_nodes(made.workflow, catalog)
        ),
        tokens=tuple(tokens),
        notes=tuple(made.notes),
    )


class _Design:
    """Collects what a model takes and gives, with all that is wrong about it."""

    def __init__(
        self,
        conversion: Conversion,
        catalog: NodeCatalog,
        fixed: Mapping[str, Any],
        outputs: Sequence[str],
    ) -> None:
        bound = bind(conversion.workflow, fixed, catalog, conversion.exposed)
        self.workflow: Workflow = bound.workflow
        self.fixed: dict[Place, Any] = {(b.node_id, b.input): b.value for b in bound.bindings}
        self.problems: list[Problem] = [*bound.problems]
        self.notes: list[str] = []
        self._files = {(b.node_id, b.input) for b in bound.bindings if b.takes_file}
        self._catalog = catalog
        self.outputs = self._outputs(outputs, conversion.outputs)
        self._conversion = replace(conversion, workflow=self.workflow, outputs=self.outputs)
        self._candidates = candidates(self._conversion, catalog)
        self._inputs: dict[str, Candidate] = {}

    def choose(self, chosen: Mapping[str, str] | None) -> None:
        """Take what the author chose, or the default choice."""
        if chosen is None:
            for each in self._candidates:
                left = tuple(place for place in each.targets if place not in self.fixed)
                if each.is_default and left:
                    self._inputs[each.name] = replace(each, targets=left)
            self.notes += remarks(self._candidates)
            return
        found = {name: self._found(name, address) for name, address in chosen.items()}
        # What is named by itself is taken out of what stands for several places.
        alone = {one.targets for one in found.values() if one is not None and len(one.targets) == 1}
        apart = {place for (place,) in alone} | self.fixed.keys()
        owners: dict[Place, str] = {}
        for name, one in found.items():
            if one is None or not self._is_name(name):
                continue
            several = len(one.targets) > 1
            left = tuple(p for p in one.targets if not (several and p in apart)) or one.targets
            for place in left:
                if place in self.fixed:
                    what = f"Its input {'.'.join(place)} is to be fixed, too."
                    self._blame("chosen_and_fixed", what, "Choose it or fix it.", name)
                elif place in owners:
                    what = f"It sets {'.'.join(place)}, as {owners[place]} does."
                    self._blame("set_twice", what, "Leave one of them out.", name)
                owners[place] = name
            self._inputs[name] = replace(one, targets=left)

    def params(
        self, choices: Mapping[str, str], present: Collection[str], lists: Lists
    ) -> Iterator[Param]:
        """The inputs, in their order."""
        for name in choices.keys() - self._inputs.keys():
            guess = did_you_mean(name, self._inputs)
            self._blame("no_such_name", "No input of the model is called so.", guess, name)
        for name, one in self._inputs.items():
            source = choices.get(name, "")
            listed = self._listed(name, source, lists) if source else ()
            specs = [spec_of(self.workflow, self._catalog, place) for place in one.targets]
            if one.role is Role.STRUCTURE:
                what = f"It is a {specs[0].type} that no input of a model can set."
                self._blame("not_an_input", what, "Leave it out.", name)
                continue
            if source and specs[0].type not in ("COMBO", "STRING"):
                what = f"It is a {specs[0].type}, which is no name to choose."
                self._blame("no_choices", what, "Give choices for a model.", name)
                continue
            is_present = str(one.value).removesuffix(" [input]") in present
            yield param(
                name,
                one,
                specs,
                goals=goals_of(self.workflow, self._catalog, one.targets[0]),
                is_present=is_present,
                choices_from=source,
                listed=listed,
            )

    def check_files(self, present: Collection[str]) -> None:
        """See that every file that a run needs is fixed to one that is there, or is an input."""
        for place in self._files:
            value = str(self.fixed[place])
            if value not in present and not is_url(value):
                what = f"The project has no file {value!r}."
                hint = "Give the file to the project, or fix the input to its URL."
                self._blame("file_not_given", what, hint, ".".join(place))
        given = {place for one in self._inputs.values() for place in one.targets}
        runs = running(self._conversion, self._catalog)
        for one in self._candidates:
            for place in one.targets:
                needs = one.role is Role.FILE and one.value and place[0] in runs
                if needs and place not in given | self.fixed.keys() and one.value not in present:
                    self.notes.append(
                        f"Node {place[0]} ({one.settable.title}) reads the file {shown(one.value)},"
                        " which is no input of the model and does not come with the project."
                    )

    def check_seeds(self) -> None:
        """Tell of every seed that the common input does not reach: a node of its own holds it."""
        given = {place for one in self._inputs.values() for place in one.targets}
        reached = seeds(self.workflow, self._catalog).keys() | given | self.fixed.keys()
        runs = running(self._conversion, self._catalog)
        for one in self._candidates:
            node_id = one.targets[0][0]
            if one.role is Role.SEED and one.targets[0] not in reached and node_id in runs:
                self.notes.append(
                    f"Node {node_id} ({one.settable.title}) holds a seed, which is the same in each"
                    f" run unless {one.address} is among the chosen inputs."
                )

    def has_seed(self) -> bool:
        """Whether a seed is left for the common input."""
        taken = {place for one in self._inputs.values() for place in one.targets}
        runs = running(self._conversion, self._catalog)
        found = seeds(self.workflow, self._catalog).keys() - taken - self.fixed.keys()
        return any(node_id in runs for node_id, _ in found)

    def _blame(self, code: str, what: str, hint: str, name: str) -> None:
        self.problems.append(Problem(code, what, hint, input=name))

    def _is_name(self, name: str) -> bool:
        if is_usable(name):
            return True
        made = identifier(name)
        other = made if is_usable(made) else f"{made or 'the'}_input"
        what = f"An input of a model cannot be called {name!r}."
        self._blame("bad_name", what, f"Call it, for example, {other}.", name)
        return False

    def _listed(self, name: str, source: str, lists: Lists) -> Sequence[str]:
        if not source.startswith(SOURCES) or not source.partition(":")[2]:
            what = f"Choices cannot come from {source!r}."
            self._blame("bad_source", what, "Write folder:NAME or group:NAME.", name)
            return ()
        listed = lists(source)
        if not listed:
            hint = "Fetch the models, or name another source."
            self._blame("no_choices", f"There is nothing in {source}.", hint, name)
        return listed

    def _found(self, name: str, address: str) -> Candidate | None:
        """What an address stands for; ids go first, then names, titles, classes, inputs alone."""
        places = [(one, place) for one in self._candidates for place in one.targets]
        for fold in (str, str.casefold):
            for rank in (_by_id, _by_name, _by_title, _by_class, _by_input):
                found = [
                    (one, place)
                    for one, place in places
                    if rank(fold, address, one, place, self.workflow.nodes[place[0]])
                ]
                if len({one.name for one, _ in found}) > 1:
                    ways = ", ".join(".".join(place) for _, place in found)
                    what = f"{len(found)} inputs are called {address!r}."
                    self._blame("ambiguous_address", what, f"Use a node's id: {ways}.", name)
                    return None
                if found:
                    one, place = found[0]
                    alone = rank is _by_id and place != one.targets[0]
                    return replace(one, targets=(place,)) if alone else one
        self._blame("no_such_address", *self._why_not(address), name)
        return None

    def _why_not(self, address: str) -> tuple[str, str]:
        """What is wrong with an address, and what may have been meant."""
        for node in self.workflow.nodes.values():
            for name, link in node.links():
                if address in (f"{node.id}.{name}", f"{node.title}.{name}"):
                    source = self.workflow.nodes.get(link.node_id)
                    title = f" ({source.label})" if source else ""
                    what = f"{address!r} gets its value from node {link.node_id}{title}."
                    own = [
                        one.address for one in self._candidates if one.targets[0][0] == link.node_id
                    ]
                    return what, f"Choose {', '.join(own)}." if own else ""
        known = [".".join(place) for one in self._candidates for place in one.targets]
        known += [one.name for one in self._candidates]
        what = f"The workflow has no input {address!r} that can be set."
        return what, did_you_mean(address, known) or "An address is NODE.INPUT, such as 6.text."

    def _outputs(self, wanted: Sequence[str], app: Sequence[str]) -> tuple[str, ...]:
        """Ids of the nodes whose results count; empty for all outputs."""
        nodes = self.workflow.nodes
        known = output_nodes(self.workflow, self._catalog)
        made: dict[str, None] = {}
        for each in wanted:
            ids = [key for key in nodes if key == each] or [
                key for key in known if each.casefold() in (nodes[key].title.casefold(), key)
            ]
            if len(ids) == 1 and (ids[0] in known or nodes[ids[0]].class_type not in self._catalog):
                made[ids[0]] = None
                continue
            listed = ", ".join(f"{key} ({nodes[key].label})" for key in known)
            what = f"{len(ids)} outputs are called {each!r}." if ids else f"No output is {each!r}."
            if len(ids) == 1:
                what = f"Node {ids[0]} ({nodes[ids[0]].label}) is no output: it saves nothing."
            self._blame("no_such_output", what, f"The outputs are {listed}.", "output")
        if made or wanted or app:
            return tuple(made or app)
        shows = [key for key in known if any(word in nodes[key].class_type for word in SHOWS)]
        if not shows or len(shows) == len(known):
            return ()
        told = ", ".join(f"{key} ({nodes[key].label})" for key in shows)
        self.notes.append(f"What is only shown is no result of the model: node {told}.")
        return tuple(key for key in known if key not in shows)


def _by_id(fold: Any, address: str, _: Candidate, place: Place, __: Node) -> bool:
    return bool(fold(address) == fold(".".join(place)))


def _by_name(_: Any, address: str, one: Candidate, __: Place, ___: Node) -> bool:
    return identifier(address) == one.name and "." not in address


def _by_title(fold: Any, address: str, _: Candidate, place: Place, node: Node) -> bool:
    return bool(node.title) and bool(fold(address) == fold(f"{node.title}.{place[1]}"))


def _by_class(fold: Any, address: str, _: Candidate, place: Place, node: Node) -> bool:
    return bool(fold(address) == fold(f"{node.class_type}.{place[1]}"))


def _by_input(fold: Any, address: str, _: Candidate, place: Place, __: Node) -> bool:
    return bool(fold(address) == fold(place[1]))


def _makes_pictures(node: Node, catalog: NodeCatalog) -> bool:
    """Whether an output saves pictures; of one of an unknown class it may be."""
    known = catalog.get(node.class_type)
    if known is None or node.class_type in FILM_SAVERS:
        return node.class_type not in FILM_SAVERS
    return any(
        spec.required and {"IMAGE", "MASK"} & {*spec.type.split(",")}
        for spec in known.inputs(node.inputs).values()
        if isinstance(node.inputs.get(spec.name), Link)
    )
