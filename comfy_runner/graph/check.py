"""Whether a graph can run: every problem that ComfyUI would find, and those that break it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from comfy_runner.errors import Problem
from comfy_runner.graph.missing import report
from comfy_runner.graph.nodes import InputSpec, NodeCatalog, NodeClass, did_you_mean, types_fit
from comfy_runner.graph.workflow import Link, Node, Workflow

SHOWN_CHOICES = 12
"""How many choices an error lists before it only counts them."""

SHOWN_CHARACTERS = 80
"""How much of a value an error shows."""

URL = re.compile(r"(\w://)(?:[^\s/?#@]*:[^\s?#]*@|[^\s/?#]*@)?([^\s?#]*)(?:[?#][^\s'\"]*)?")
"""Any URL in a text; user, password, query and fragment may be secret, the groups are not."""


MAX_DEPTH = 500
"""Nodes in one chain. ComfyUI 0.30 needs some ten seconds for so many, and at 1500 its recursion
fails; the longest chain of an official template has 26."""


def output_nodes(workflow: Workflow, catalog: NodeCatalog) -> tuple[str, ...]:
    """Ids of the nodes that are a reason to run, in order; unknown classes are not among them."""
    return tuple(
        node.id
        for node in workflow.nodes.values()
        if (known := catalog.get(node.class_type)) is not None and known.is_output
    )


def needed(workflow: Workflow, catalog: NodeCatalog) -> frozenset[str]:
    """Ids of the nodes that the outputs need; a node of an unknown class that ends a chain counts.

    Whether an unknown class is an output cannot be known, and dropping it would drop a result.
    """
    linked = {link.node_id for node in workflow.nodes.values() for _, link in node.links()}
    unknown_ends = (
        node.id
        for node in workflow.nodes.values()
        if node.class_type not in catalog and node.id not in linked
    )
    return workflow.upstream(frozenset((*output_nodes(workflow, catalog), *unknown_ends)))


def check(workflow: Workflow, catalog: NodeCatalog) -> tuple[Problem, ...]:
    """Every problem of the nodes that would run, in the workflow's order; empty when it can run.

    The rules are those of ComfyUI 0.30 (`execution.py` validate_prompt and validate_inputs), and
    in addition what it accepts and then breaks on: links to missing nodes under unknown input
    names, and unknown keys of dynamic combos. Names of models and of input files are not judged
    here: `manifest` and `plan` know what can be brought.
    """
    wanted = needed(workflow, catalog)
    problems = [
        problem
        for node_id in workflow.nodes
        if node_id in wanted
        for problem in _check_node(workflow.nodes[node_id], workflow, catalog)
    ]
    problems += report(workflow.only(wanted).nodes, catalog, {})
    cycles = list(_cycles(workflow.only(wanted)))
    problems += cycles or _depth(workflow.only(wanted))
    if not wanted:
        problems.append(
            Problem(
                "no_outputs",
                "The workflow has no output node, so running it would make nothing.",
                "Add a node such as SaveImage; a muted one is not part of an API export.",
            )
        )
    return tuple(problems)


def _check_node(node: Node, workflow: Workflow, catalog: NodeCatalog) -> Iterator[Problem]:
    known = catalog.get(node.class_type)
    specs = known.inputs(node.inputs) if known else {}
    for name, link in node.links():
        problem = _check_link(link, specs.get(name), workflow, catalog, known)
        if problem:
            yield node.problem(problem.code, problem.what, problem.hint, name)
    for name, spec in specs.items():
        if name in node.inputs:
            value = node.inputs[name]
            if known and not isinstance(value, Link):
                yield from _check_value(node, spec, value, known)
        elif spec.required:
            yield node.problem(
                "required_input_missing",
                f"The required input of type {spec.type} is missing.",
                f"Connect it or give it a value, for example through {node.id}.{name}."
                if spec.is_widget
                else "Connect it.",
                name,
            )


def _check_link(
    link: Link,
    spec: InputSpec | None,
    workflow: Workflow,
    catalog: NodeCatalog,
    taker: NodeClass | None,
) -> Problem | None:
    """What is wrong with a link, without a place; `spec` is `None` for an unknown input name."""
    source = workflow.nodes.get(link.node_id)
    if source is None:
        return Problem(
            "link_to_nowhere",
            f"It is connected to node {link.node_id}, which does not exist.",
            "Connect it to an existing node or remove the input.",
        )
    giver = catalog.get(source.class_type)
    if giver is None:
        return None
    if not 0 <= link.slot < len(giver.outputs):
        return Problem(
            "no_such_output",
            f"It is connected to output {link.slot} of node {source.id} ({source.label}),"
            f" which has {len(giver.outputs)} outputs.",
            "Outputs are counted from 0.",
        )
    given = giver.outputs[link.slot]
    if spec is None or taker is None or "@types" in taker.unchecked or types_fit(given, spec.type):
        return None
    return Problem(
        "type_mismatch",
        f"It takes {spec.type}, but output {link.slot} of node {source.id}"
        f" ({source.label}) gives {given}.",
        "Connect an output of the right type.",
    )


def _check_value(node: Node, spec: InputSpec, value: Any, known: NodeClass) -> Iterator[Problem]:
    if isinstance(value, Mapping) and "__value__" in value:
        value = value["__value__"]
    if (spec.takes_file or spec.folder is not None) and not isinstance(value, str):
        what = f"{shown(value)} is not the name of a {'file' if spec.takes_file else 'model'}."
        yield node.problem("wrong_type", what, input=spec.name)
        return
    try:
        match spec.type:
            case "INT":
                value = int(value)
            case "FLOAT":
                # Infinity and NaN have no such ratio; ComfyUI takes them, and then a node fails.
                value = float(value)
                value.as_integer_ratio()
    except (TypeError, ValueError, OverflowError):
        yield node.problem(
            "invalid_value",
            f"{shown(value)} is not {'a whole number' if spec.type == 'INT' else 'a number'}.",
            input=spec.name,
        )
        return
    if not known.checks(spec.name):
        return
    yield from (
        node.problem(problem.code, problem.what, problem.hint, spec.name)
        for problem in outside(spec, value)
    )


def outside(spec: InputSpec, value: Any) -> Iterator[Problem]:
    """What is wrong with a value's range or choice, without a place; nothing when it fits."""
    if spec.type in ("INT", "FLOAT"):
        low, high = spec.options.get("min"), spec.options.get("max")
        if low is not None and value < low:
            yield Problem("too_small", f"{value} is below the minimum {low}.", reach(spec))
        if high is not None and value > high:
            yield Problem("too_big", f"{value} is above the maximum {high}.", reach(spec))
        return
    if spec.choices is None or spec.folder is not None or spec.takes_file:
        return
    multiple = spec.options.get("multiselect") or spec.options.get("multi_select")
    values = value if multiple and isinstance(value, list) else [value]
    for item in values:
        if item not in spec.choices:
            yield Problem(
                "not_in_list",
                f"{shown(item)} is not one of its choices.",
                choices_hint(item, spec.choices),
            )


def reach(spec: InputSpec) -> str:
    """The allowed range as a sentence; empty when there is none."""
    low, high = spec.options.get("min"), spec.options.get("max")
    if low is None or high is None:
        return ""
    return f"It goes from {low} to {high}."


def choices_hint(value: Any, choices: tuple[Any, ...]) -> str:
    """What could have been meant, and the choices where they are few."""
    guess = did_you_mean(str(value), [str(choice) for choice in choices])
    if not choices:
        return "There is nothing to choose from."
    if len(choices) > SHOWN_CHOICES:
        return f"{guess} There are {len(choices)} choices.".strip()
    return f"{guess} Choose from {', '.join(str(choice) for choice in choices)}.".strip()


def shown(value: Any) -> str:
    """A value for a message: quoted, cut where it is long, URLs in it without their secrets."""
    text = without_secrets(repr(value))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _depth(workflow: Workflow) -> list[Problem]:
    """A problem where a chain of nodes is too long; the workflow has no cycle."""
    depths: dict[str, int] = {}
    for start in workflow.nodes:
        path = [start]
        while path:
            node_id = path[-1]
            left = [key for key in _sources(workflow, node_id) if key not in depths]
            if left:
                path.append(left[0])
                continue
            depths[node_id] = 1 + max((depths[k] for k in _sources(workflow, node_id)), default=0)
            path.pop()
    deepest = max(depths.values(), default=0)
    if deepest <= MAX_DEPTH:
        return []
    node_id = max(depths, key=lambda key: depths[key])
    what = f"{deepest} nodes stand in one chain that ends here; {MAX_DEPTH} are allowed."
    hint = "Split the workflow: ComfyUI's time grows with the square of a chain's length."
    return [workflow.nodes[node_id].problem("too_deep", what, hint)]


def without_secrets(text: str) -> str:
    """The text with URLs as they may be shown: without user, password, query and fragment."""
    return URL.sub(r"\1\2", text)


def _cycles(workflow: Workflow) -> Iterator[Problem]:
    """One problem for each cycle found, at its first node, naming the way round."""
    done: set[str] = set()
    for start in workflow.nodes:
        path: dict[str, Iterator[str]] = {}
        if start in done:
            continue
        path[start] = _sources(workflow, start)
        while path:
            node_id = next(reversed(path))
            source = next(path[node_id], None)
            if source is None:
                done.add(node_id)
                del path[node_id]
            elif source in path:
                ids = list(path)
                round_trip = [*ids[ids.index(source) :], source]
                yield workflow.nodes[source].problem(
                    "dependency_cycle",
                    f"Its inputs depend on its own output: {' <- '.join(round_trip)}.",
                    "Remove one of these connections.",
                )
            elif source not in done:
                path[source] = _sources(workflow, source)


def _sources(workflow: Workflow, node_id: str) -> Iterator[str]:
    return iter(
        {
            link.node_id: None
            for _, link in workflow.nodes[node_id].links()
            if link.node_id in workflow.nodes
        }
    )
