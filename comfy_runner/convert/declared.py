"""What a workflow's author declares by nodes of our own pack: inputs and results."""

from collections import Counter

from comfy_runner.convert.app_mode import Choice
from comfy_runner.graph.declaring import RESULT, VALUES, text_of
from comfy_runner.graph.inputs import Exposed
from comfy_runner.graph.workflow import Link, Node, Workflow


def declared(workflow: Workflow) -> Choice:
    """The inputs and results that its nodes declare, in the workflow's order.

    An input is called what its node says, else as the node's title, else as the node's input;
    where two are called the same, case aside, each has its node's id before the name, and a note
    says so. A node whose value comes from another node declares nothing.
    """
    nodes = [
        node
        for node in workflow.nodes.values()
        if node.class_type in VALUES and _holds_value(node, VALUES[node.class_type])
    ]
    calls = Counter(_name(node).casefold() for node in nodes)
    exposed: list[Exposed] = []
    taken: set[str] = set()
    for node in nodes:
        name = _name(node)
        if calls[name.casefold()] > 1:
            name = f"{node.id}.{name}"
        while name.casefold() in taken:
            name = f"{node.id}.{name}"
        taken.add(name.casefold())
        exposed.append(Exposed(name, ((node.id, VALUES[node.class_type]),)))
    return Choice(
        tuple(exposed),
        tuple(node.id for node in workflow.nodes.values() if node.class_type == RESULT),
        tuple(
            f"{count} inputs are called {name!r}, so each has its node's id before the name."
            for name, count in calls.items()
            if count > 1
        ),
    )


def _holds_value(node: Node, name: str) -> bool:
    return name in node.inputs and not isinstance(node.inputs[name], Link)


def _name(node: Node) -> str:
    return text_of(node, "name") or node.title or VALUES[node.class_type]
