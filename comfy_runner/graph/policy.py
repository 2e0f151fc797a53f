"""Which node classes a stranger's graph may use, and what may be connected to some of them."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from comfy_runner.errors import Problem
from comfy_runner.graph.nodes import InputSpec, NodeCatalog, NodeClass
from comfy_runner.graph.workflow import Link, Node, Workflow

ALLOW_SETTING = "COMFY_RUNNER_ALLOW_NODES"
DENY_SETTING = "COMFY_RUNNER_DENY_NODES"
ONLY_SETTING = "COMFY_RUNNER_ONLY_NODES"

ANYTHING = frozenset({"*", "COMFY_MATCHTYPE_V3"})
"""Types that fit all others (`comfy_execution/validation.py` 0.30): they say nothing."""

PLAIN = frozenset({"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"})
"""Types whose values are texts, numbers and truth values, and can do nothing."""

CHOICE = frozenset({"COMBO", "COMFY_DYNAMICCOMBO_V3"})
"""Types of inputs with a list of what they take. ComfyUI 0.30 (`execution.py` validate_inputs)
holds what stands in the node against the list, and never what a link brings."""

NEVER_LOADED = "ComfyUI is started without such nodes, and no setting changes that"
"""What the start's `--disable-api-nodes` means (`comfy/cli_args.py` 0.30.0)."""

UNKNOWN = "*"
"""What a custom node gives that may give anything, and takes nothing that it could hand on."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a class is refused."""

    why: str
    """One sentence."""
    instead: str = ""
    """What to do without it; one sentence."""


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """What a graph may use: every class of the catalog but those that this refuses."""

    refused: Mapping[str, Reason]
    """Class to the reason why it is refused unless a setting allows it."""
    allow: frozenset[str] = frozenset()
    """Classes that may be used, and fed, whatever the table says."""
    deny: frozenset[str] = frozenset()
    """Classes that may not be used in any case."""
    only: frozenset[str] | None = None
    """The classes that may be used, and no others; `None` for all."""
    modules: Mapping[str, Reason] = field(default_factory=dict)
    """Package of ComfyUI that it is started without, to the reason: no setting allows its
    classes, since they are never there when a graph runs."""
    plain: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    """Class to the inputs that may be given texts, numbers and truth values only, and why."""
    hands_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class of ComfyUI to the input that each output is the unchanged value of, whatever its type
    says."""


def load(
    allow: Iterable[str] = (), deny: Iterable[str] = (), only: Iterable[str] | None = None
) -> NodePolicy:
    """The policy of the bundled table (`node_policy.json`) with these settings, classes by name."""
    raw = table()
    return NodePolicy(
        refused={name: Reason(**reason) for name, reason in raw["refused"].items()},
        allow=frozenset(allow),
        deny=frozenset(deny),
        only=None if only is None else frozenset(only),
        modules={name: Reason(**reason) for name, reason in raw["modules"].items()},
        plain={name: (tuple(rule["inputs"]), rule["why"]) for name, rule in raw["plain"].items()},
        hands_on={name: tuple(inputs) for name, inputs in raw["hands_on"].items()},
    )


def table() -> dict[str, Any]:
    """The bundled table as it stands; `allowed` says why classes that look alike are not in it."""
    text = resources.files(__package__).joinpath("node_policy.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check(workflow: Workflow, catalog: NodeCatalog, policy: NodePolicy) -> list[Problem]:
    """Every node that the policy refuses, and every connection, in the workflow's order.

    `refused_class` names a node; `refused_input` a connection that ComfyUI 0.30 takes, although
    it takes no such value from the node that the value really comes from: a switch gives anything,
    so that what it gives is checked neither for its type nor against a list. Classes that the
    catalog does not have are `graph.check`'s affair.
    """
    given: _Given | None = None
    problems: list[Problem] = []
    for node in workflow.nodes.values():
        reason = _refusal(node.class_type, catalog, policy)
        if reason is not None:
            problems.append(
                node.problem(
                    "refused_class",
                    f"{node.class_type} may not be used here: {reason.why}",
                    reason.instead,
                )
            )
            continue
        problems += _hidden_links(node)
        known = catalog.get(node.class_type)
        if known is None or node.class_type in policy.allow:
            continue
        specs = known.inputs(node.inputs)
        for name, link in node.links():
            given = given or _Given(workflow, catalog, policy)
            problems += _refused_link(node, name, specs.get(name), link, given)
    return problems


def _refusal(class_type: str, catalog: NodeCatalog, policy: NodePolicy) -> Reason | None:
    """Why nodes of a class may not be used at all, with the cure; `None` when they may."""
    if class_type in policy.deny:
        return Reason("it is switched off.", f"Use another node. {DENY_SETTING} names it.")
    never = policy.modules.get(_package(class_type, catalog))
    if never is not None:
        return Reason(_continued(never.why), f"Take it out: {NEVER_LOADED}. {never.instead}")
    if policy.only is not None and class_type not in policy.only:
        what = "it is not among the classes that are allowed."
        return Reason(what, f"Use another node, or add it to {ONLY_SETTING}.")
    if class_type in policy.allow or policy.only is not None:
        return None
    reason = policy.refused.get(class_type)
    if reason is None:
        if not catalog.raw["object_info"].get(class_type, {}).get("api_node"):
            return None
        reason = Reason("It sends the request's contents to a paid service over the network.")
    return Reason(_continued(reason.why), _or_allow(reason.instead, class_type))


def _continued(sentence: str) -> str:
    """A sentence as it stands after a colon."""
    return f"{sentence[:1].lower()}{sentence[1:]}"


def _or_allow(instead: str, class_type: str) -> str:
    return f"{instead} Who runs this can allow it: {ALLOW_SETTING}={class_type}.".strip()


def _package(class_type: str, catalog: NodeCatalog) -> str:
    """The package that ComfyUI says a class is from: `nodes`, `comfy_extras`, `custom_nodes`."""
    info: Mapping[str, Any] = catalog.raw["object_info"].get(class_type, {})
    return str(info.get("python_module", "")).partition(".")[0]


def _is_core(class_type: str, catalog: NodeCatalog) -> bool:
    return _package(class_type, catalog) in ("nodes", "comfy_extras", "comfy_api_nodes")


def _hidden_links(node: Node) -> Iterator[Problem]:
    """The inputs whose value becomes a connection once ComfyUI 0.30 takes the wrapper off.

    It does so in place, after it has judged the value as one that stands in the node
    (`execution.py` validate_inputs), so that nobody judges the connection; one to a node that does
    not exist ends the thread that runs prompts.
    """
    for name, value in node.inputs.items():
        match value:
            case {"__value__": [str(), int() | float()]}:
                yield node.problem(
                    "refused_input",
                    "The list in it reads like a connection, which ComfyUI takes it for.",
                    "Write a connection as such, without the wrapper __value__.",
                    name,
                )


def _refused_link(
    node: Node, name: str, spec: InputSpec | None, link: Link, given: "_Given"
) -> Iterator[Problem]:
    """What is wrong with a connection to an allowed node; nothing where it may be."""
    catalog, policy = given.catalog, given.policy
    core = _is_core(node.class_type, catalog)
    if spec is None:
        # ComfyUI hands it to the class all the same, and CustomCombo gives it on as a number.
        if core:
            yield node.problem(
                "refused_input",
                f"{node.class_type} has no such input, and something is connected to it.",
                "Remove the connection.",
                name,
            )
        return
    inputs, why = policy.plain.get(node.class_type, ((), ""))
    if name in inputs or name.partition(".")[0] in inputs:
        bad = {kind for kind in given.types(link) if not _parts(kind) <= PLAIN}
        if bad:
            yield node.problem(
                "refused_input",
                f"It is given {_listed(bad)}, and takes text, numbers and truth values only: {why}",
                _or_allow("Connect such a value, or write it into the node.", node.class_type),
                name,
            )
        return
    wanted = _parts(spec.type)
    lists_files = spec.folder is not None or spec.takes_file
    if (wanted & CHOICE and core) or lists_files:
        bad = {kind for kind in given.types(link) if not _parts(kind) & (CHOICE | ANYTHING)}
        # Where the output says what it gives, ComfyUI compares the types, and so does graph.check.
        if bad and given.declares_nothing(link):
            yield node.problem(
                "refused_input",
                f"It takes one of a list, but what comes through node {link.node_id} is"
                f" {_listed(bad)}, which nobody holds against the list.",
                _or_allow("Write the value into the node.", node.class_type),
                name,
            )
    elif core and not wanted & ANYTHING:
        # Plain values may stand for each other: a number for a text does no harm.
        fitting = wanted | ANYTHING | (PLAIN if wanted & PLAIN else frozenset())
        bad = {kind for kind in given.types(link) if not _parts(kind) & fitting}
        if bad and given.is_followed(link):
            yield node.problem(
                "refused_input",
                f"It takes {spec.type}, but what comes through node {link.node_id} is"
                f" {_listed(bad)}.",
                "Connect an output of the right type.",
                name,
            )


def _listed(types: Iterable[str]) -> str:
    return ", ".join("a value of any type" if name == UNKNOWN else name for name in sorted(types))


class _Given:
    """Which types really come out of nodes whose outputs may be of any."""

    def __init__(self, workflow: Workflow, catalog: NodeCatalog, policy: NodePolicy) -> None:
        """Follow every value through such nodes; the work grows with the links, not with paths."""
        self.catalog = catalog
        self.policy = policy
        self._workflow = workflow
        self._types: dict[Link, set[str]] = {}
        """Output that may be of any type to what it can give."""
        users: dict[Link, list[Link]] = {}
        """Such an output to the others that hand its value on."""
        for node in workflow.nodes.values():
            known = catalog.get(node.class_type)
            for slot, declared in enumerate(known.outputs if known else ()):
                if known is None or not self._hands_on(known, slot, declared):
                    continue
                output = Link(node.id, slot)
                values = list(self._taken(node, known, slot))
                self._types[output] = {
                    kind for value in values if not isinstance(value, Link) for kind in _kind(value)
                } or (set() if values else {UNKNOWN})
                for value in values:
                    if isinstance(value, Link):
                        users.setdefault(value, []).append(output)
        for source, outputs in users.items():
            if source not in self._types:
                for output in outputs:
                    self._types[output] |= self._declared(source)
        waiting = deque(self._types)
        while waiting:
            source = waiting.popleft()
            for output in users.get(source, ()):
                if not self._types[source] <= self._types[output]:
                    self._types[output] |= self._types[source]
                    waiting.append(output)

    def is_followed(self, link: Link) -> bool:
        """Whether it comes from an output that hands on what its node is given."""
        return link in self._types

    def declares_nothing(self, link: Link) -> bool:
        """Whether it comes from an output that does not say what it gives."""
        return any(_parts(kind) & ANYTHING for kind in self._declared(link))

    def types(self, link: Link) -> frozenset[str]:
        """What can come through a link; `UNKNOWN` among it where that is not known."""
        if link in self._types:
            return frozenset(self._types[link] or {UNKNOWN})
        return frozenset(self._declared(link))

    def _declared(self, link: Link) -> set[str]:
        source = self._workflow.nodes.get(link.node_id)
        known = self.catalog.get(source.class_type) if source else None
        if known is None or not 0 <= link.slot < len(known.outputs):
            return set()  # graph.check tells
        return {known.outputs[link.slot]}

    def _hands_on(self, known: NodeClass, slot: int, declared: str) -> bool:
        named = len(self.policy.hands_on.get(known.name, ())) > slot
        return named or bool(_parts(declared) & ANYTHING)

    def _taken(self, node: Node, known: NodeClass, slot: int) -> Iterator[Any]:
        """The values that an output can be, as they stand in the node: links and literals.

        An output with a template is one of the inputs with the same (`comfy_api/latest/_io.py`
        0.30, MatchType); of other classes any input counts that may be of any type, or that the
        class does not declare, as packs' switches do with theirs.
        """
        named = self.policy.hands_on.get(node.class_type, ())
        template = known.output_matches[slot] if slot < len(known.output_matches) else ""
        specs = known.inputs(node.inputs)
        for name, value in node.inputs.items():
            spec = specs.get(name)
            if len(named) > slot:
                takes = name == named[slot]
            elif template:
                takes = spec is not None and _template(spec) == template
            else:
                takes = spec is None or bool(_parts(spec.type) & ANYTHING)
            if takes:
                yield value


def _parts(kind: str) -> set[str]:
    """The members of a type that may be a union, such as `FLOAT,INT`."""
    return {part.strip() for part in kind.split(",")}


def _template(spec: InputSpec) -> str:
    template = spec.options.get("template")
    return str(template.get("template_id", "")) if isinstance(template, Mapping) else ""


def _kind(value: Any) -> tuple[str, ...]:
    """The type of a value that stands in a node; any of JSON's can do nothing."""
    match value:
        case None:
            return ()
        case bool():
            return ("BOOLEAN",)
        case int():
            return ("INT",)
        case float():
            return ("FLOAT",)
        case _:
            return ("STRING",)
