"""Writes a network down as a workflow in API format, node by node.

Rules are those of the front end 1.47.12 (`utils/executionUtil.ts` graphToPrompt).
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from comfy_runner.convert import packs, ui
from comfy_runner.convert.missing import may_be_output, report
from comfy_runner.convert.network import Kind, NetNode, execution_order
from comfy_runner.convert.resolve import Broken, Scope, Value
from comfy_runner.convert.shapes import MISSING, Shape
from comfy_runner.convert.text import DYNAMIC_MARKS, SAVERS, Dice, expand
from comfy_runner.convert.ui import UiNode
from comfy_runner.convert.widgets import branch_of, widget_of
from comfy_runner.errors import InvalidWorkflow, Problem
from comfy_runner.graph.check import choices_hint, output_nodes
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import TOO_DEEP, Link, Node, Workflow, is_too_deep

FILE_SAVERS = SAVERS | packs.SAVERS
"""Classes whose `filename_prefix` has its `%...%` replaced."""

WHAT_BROWSER = "Its value is made by the editor in a browser at the moment of sending."
CURE_BROWSER = "Replace the node by one that loads a file."


class Writing:
    """Writes the nodes of a network down, one by one."""

    def __init__(
        self,
        root: Scope,
        catalog: NodeCatalog,
        seed: int | None,
        replace_text: Callable[[str], str],
    ) -> None:
        """`seed` decides what is left to chance; `replace_text` writes out `%...%`."""
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        """Inputs that only a browser fills."""
        self.fed: dict[tuple[str, str], list[tuple[str, str]]] = {}
        """Id and input of an instance to the nodes and inputs that its own value went to."""
        self._root = root
        self._catalog = catalog
        self._seed = seed
        self._replace_text = replace_text
        self._nodes: dict[str, Node] = {}
        self._unknown: dict[str, UiNode] = {}
        """Nodes of classes that are not in the catalog, by their id in the API workflow."""
        self._skipped = False
        """Whether a node was left out that others may be connected to."""
        self._faults: dict[str, list[Problem]] = {}
        """What is wrong with each node; it counts only where an output needs the node."""

    def workflow(self) -> Workflow:
        """The whole workflow, its nodes in the order of the editor's object: numbers first.

        Raises: `InvalidWorkflow` with every problem of the nodes that an output needs.
        """
        self._write_all(self._root, execution_order(self._root.network), silent=False)
        numbered = sorted((key for key in self._nodes if ui.number(key) is not None), key=int)
        others = (key for key in self._nodes if ui.number(key) is None)
        workflow = Workflow({key: self._nodes[key] for key in (*numbered, *others)})
        if self._skipped:
            workflow = _cut_to(workflow, frozenset(workflow.nodes))
        return self._without_faults(workflow) if self._unknown or self._faults else workflow

    def _without_faults(self, workflow: Workflow) -> Workflow:
        """The workflow without unknown nodes, once no output needs one, or any node at fault."""
        wanted = self._wanted(workflow)
        problems = [p for key, faults in self._faults.items() if key in wanted for p in faults]
        absent = {
            key: node
            for key, node in self._unknown.items()
            if key in wanted and key not in self._faults
        }
        problems += report(absent, self._catalog)
        if problems:
            raise InvalidWorkflow(problems)
        self.notes += [str(problem) for faults in self._faults.values() for problem in faults]
        self.notes += [
            f"Node {key} ({node.title or node.type}) is left out: nothing needs it, and no node"
            f" class {node.type!r} is installed."
            for key, node in self._unknown.items()
        ]
        return _cut_to(workflow, frozenset(workflow.nodes) - self._unknown.keys())

    def _write_all(self, scope: Scope, nodes: Iterable[NetNode], *, silent: bool) -> None:
        """Every live node of one scope; those inside an instance directly after it.

        With `silent` no output node is written: they stand in an instance that is switched off.
        """
        for node in nodes:
            off = node.is_off
            if node.network is not None:
                # Inside a definition the editor sends the inner nodes even so (`executionUtil.ts`).
                if not off or scope.outer is not None:
                    inner = scope.enter(node, node.network)
                    self._write_all(inner, inner.network.nodes.values(), silent=silent or off)
                continue
            if off:
                continue
            remark = packs.REMARKS.get(node.node.type)
            if remark is not None:
                self.notes.append(f"Node {scope.path}{node.node.id} ({node.node.type}): {remark}.")
            if silent and (node.shape is None or node.shape.is_output):
                self._skipped = True
            elif node.shape is not None:
                self._write(scope, node, node.shape)
            elif node.kind is Kind.UNKNOWN:
                self._write_unknown(scope, node)

    def _write(self, scope: Scope, node: NetNode, shape: Shape) -> None:
        node_id = scope.path + node.node.id
        inputs = {
            name: self._sent(node, shape, name, value, f"{node_id}.{name}")
            for name, value in node.values.items()
            if value is not MISSING and name not in node.links
        }
        inputs = self._with_links(scope, node, shape, inputs)
        packs.roll(node.node, inputs, self._seed, node_id)
        title = node.node.title or shape.title
        written = Node(node_id, node.node.type, inputs, title, {"_meta": {"title": title}})
        self._nodes[node_id] = written
        self._refuse(node_id, node)
        self._judge(written, shape)

    def _judge(self, written: Node, shape: Shape) -> None:
        """Note what is wrong with a node's values."""
        for widget in shape.widgets:
            value = written.inputs.get(widget.name)
            if widget.is_browsers and not isinstance(value, Link):
                self.problems.append(
                    written.problem("browser_only", WHAT_BROWSER, CURE_BROWSER, widget.name)
                )
            children = widget.children
            if children and isinstance(value, str | int) and branch_of(widget, value) is None:
                what = f"{value!r} is not one of its choices, so what follows it is unknown."
                hint = choices_hint(value, tuple(children))
                self._fault(written.problem("unknown_option", what, hint, widget.name))
        for name, value in written.inputs.items():
            if value.__class__ in (dict, list) and is_too_deep(value):
                self._fault(written.problem("too_deep", TOO_DEEP, input=name))

    def _fault(self, problem: Problem) -> None:
        self._faults.setdefault(problem.node_id, []).append(problem)

    def _write_unknown(self, scope: Scope, node: NetNode) -> None:
        """Its links alone, which tell what needs it and what it needs."""
        node_id = scope.path + node.node.id
        inputs = {
            name: found
            for name, link_id in node.links.items()
            if isinstance(found := scope.source(link_id, "*"), Link)
        }
        self._unknown[node_id] = node.node
        self._nodes[node_id] = Node(node_id, node.node.type, inputs, node.node.title)
        self._refuse(node_id, node)

    def _refuse(self, node_id: str, node: NetNode) -> None:
        """Note a fault where only the front end of the node's pack knows what it does."""
        reason = packs.refusal(node.node)
        if reason:
            what = f"A node of type {node.node.type!r} cannot be converted. {reason}"
            hint = "Replace it by other nodes, or export the workflow in the API format."
            self._fault(self._nodes[node_id].problem("needs_front_end", what, hint))

    def _with_links(
        self, scope: Scope, node: NetNode, shape: Shape, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """The inputs with what the node's links bring; a link in place of a widget's value."""
        node_id = scope.path + node.node.id
        for name, link_id in node.links.items():
            match scope.end_of(link_id, node, name):
                case Link() as link:
                    inputs[name] = link
                    continue
                case Value(value, place):
                    if value is not MISSING:
                        inputs[name] = _wrapped(value)
                        self.fed.setdefault(place, []).append((node_id, name))
                    continue
                case Broken(what, cure):
                    title = node.node.title or shape.title
                    self._fault(Problem("broken_link", what, cure, node_id, title, name))
            own = node.values.get(name, MISSING)
            if own is not MISSING:
                inputs[name] = self._sent(node, shape, name, own, f"{node_id}.{name}")
        return inputs

    def _sent(self, node: NetNode, shape: Shape, name: str, value: Any, place: str) -> Any:
        """A widget's value as it is sent."""
        if value.__class__ is str:
            if "%" in value and name == "filename_prefix" and node.node.type in FILE_SAVERS:
                return self._replace_text(value)
            if any(mark in value for mark in DYNAMIC_MARKS):
                widget = widget_of(shape, node.values, name)
                if widget is not None and widget.options.get("dynamicPrompts") is True:
                    return expand(value, Dice(self._seed or 0, place))
            return value
        if value.__class__ is list:
            widget = widget_of(shape, node.values, name)
            kind = {"__type__": "CURVE"} if widget is not None and widget.type == "CURVE" else {}
            return {**kind, **_wrapped(value)}
        return value

    def _wanted(self, workflow: Workflow) -> frozenset[str]:
        """Ids of the nodes that the outputs need, with what may be outputs of unknown classes.

        Where there is no output at all, every connected node of an unknown class is wanted.
        """
        taken = {link.node_id for node in workflow.nodes.values() for _, link in node.links()}
        connected = {key for key in self._unknown if workflow.nodes[key].inputs or key in taken}
        roots = {*output_nodes(workflow, self._catalog)}
        roots |= {
            key for key in connected if may_be_output(self._unknown[key], is_taken=key in taken)
        }
        return workflow.upstream(frozenset(roots or connected))


def _cut_to(workflow: Workflow, kept: frozenset[str]) -> Workflow:
    """Only these nodes, and no input that is connected to any other."""
    nodes = {}
    for key, node in workflow.nodes.items():
        if key in kept:
            lost = [name for name, link in node.links() if link.node_id not in kept]
            if lost:
                inputs = {name: value for name, value in node.inputs.items() if name not in lost}
                node = dataclasses.replace(node, inputs=inputs)  # noqa: PLW2901
            nodes[key] = node
    return Workflow(nodes)


def _wrapped(value: Any) -> Any:
    """A list in a wrapper, since ComfyUI takes a bare one for a link."""
    return {"__value__": value} if value.__class__ is list else value
