"""The state machine of one run: ComfyUI's messages in, what they mean out."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar, TypeGuard

from comfy_runner.errors import Cancelled, ComfyRunnerError, MachineError, RunError
from comfy_runner.graph.workflow import Workflow


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is: a node began, or a node that counts made a step."""

    node_id: str
    title: str
    """The node's title, or its class_type when it has none."""
    nodes_done: int
    """Nodes finished or taken from the cache."""
    nodes_total: int
    step: int = 0
    """Steps that the node has done, where it counts them."""
    steps: int = 0
    """Steps that the node will do; 0 where it does not count."""


@dataclass(frozen=True, slots=True)
class NodeOutput:
    """What an output node reported: ComfyUI's `ui` object, kind to list of entries."""

    node_id: str
    output: Mapping[str, Any]


Event = Progress | NodeOutput


class State(Enum):
    """Where a run stands."""

    QUEUED = auto()
    RUNNING = auto()
    ENDING = auto()
    """Its result is known, ComfyUI is still storing it."""
    DONE = auto()


NOT_ENDING = frozenset({State.QUEUED, State.RUNNING})
NOT_DONE = NOT_ENDING | {State.ENDING}


@dataclass(frozen=True, slots=True)
class Move:
    """What one kind of message does, and in which states it may come."""

    legal: frozenset[State]
    handle: Callable[["Execution", Mapping[str, Any]], Iterator[Event]]


class Execution:
    """One run of one workflow, as far as its messages tell.

    The order of messages is that of ComfyUI 0.30 (`execution.py`, `main.py` prompt_worker): the
    run has ended when `executing` names no node; `execution_success` comes before the history is
    stored. Messages of other runs, unknown ones and repeated ones change nothing.
    """

    def __init__(self, run_id: str, workflow: Workflow) -> None:
        self.run_id = run_id
        self.state = State.QUEUED
        self.failure: ComfyRunnerError | None = None
        """Why the run failed; to be raised once it is done."""
        self.cached_count = 0
        """How many nodes' results were there already."""
        self._workflow = workflow
        self._done: set[str] = set()
        self._current = ""
        self._reported: set[tuple[str, str]] = set()

    @property
    def is_done(self) -> bool:
        """Whether ComfyUI has finished with the run, whatever its end."""
        return self.state is State.DONE

    def receive(self, message: Mapping[str, Any]) -> Iterator[Event]:
        """Take one message, `{"type": ..., "data": {...}}`, and tell what it means.

        The state changes when the iterator is run.
        """
        data = message.get("data")
        if not isinstance(data, Mapping) or data.get("prompt_id") != self.run_id:
            return
        move = self._MOVES.get(str(message.get("type")))
        if move is None or self.state not in move.legal:
            return
        yield from move.handle(self, data)

    def settle(self, history: Mapping[str, Any]) -> Iterator[Event]:
        """Take the run's entry of `/history` for the messages that were missed; the run is done.

        The entry has `outputs` (node id to ui object) and `status` (`status_str`, `messages`).
        """
        for node_id, output in history.get("outputs", {}).items():
            yield from self._node_output(str(node_id), output)
        status = history.get("status") or {}
        for kind, data in status.get("messages", ()):
            if kind == "execution_error":
                self._fail(data)
            elif kind == "execution_interrupted":
                self._interrupt(data)
        if status.get("status_str") == "error" and self.failure is None:
            self.failure = MachineError("ComfyUI reports that the run failed, and not why.")
        self.state = State.DONE

    def _start(self, _: Mapping[str, Any]) -> Iterator[Event]:
        self.state = State.RUNNING
        return iter(())

    def _cached(self, data: Mapping[str, Any]) -> Iterator[Event]:
        told = data.get("nodes")
        nodes = told if isinstance(told, list) else ()
        cached = {str(node_id) for node_id in nodes} & self._workflow.nodes.keys()
        self.cached_count = len(cached)
        self._done |= cached
        return iter(())

    def _executing(self, data: Mapping[str, Any]) -> Iterator[Event]:
        node = data.get("node")
        self._finish_current()
        if node is None:
            self.state = State.DONE
            return
        self._current = self._shown_id(data)
        yield self._progress()

    def _step(self, data: Mapping[str, Any]) -> Iterator[Event]:
        value, maximum = data.get("value"), data.get("max")
        if _is_number(value) and _is_number(maximum):
            yield self._progress(int(value), int(maximum))

    def _executed(self, data: Mapping[str, Any]) -> Iterator[Event]:
        return self._node_output(self._shown_id(data), data.get("output"))

    def _succeed(self, _: Mapping[str, Any]) -> Iterator[Event]:
        self._finish_current()
        self.state = State.ENDING
        return iter(())

    def _error(self, data: Mapping[str, Any]) -> Iterator[Event]:
        self._fail(data)
        self.state = State.ENDING
        return iter(())

    def _interrupted(self, data: Mapping[str, Any]) -> Iterator[Event]:
        self._interrupt(data)
        self.state = State.ENDING
        return iter(())

    def _node_output(self, node_id: str, output: Any) -> Iterator[Event]:
        """The output, unless the same was told before: history repeats what messages said."""
        if not isinstance(output, Mapping):
            return
        mark = (node_id, repr(output))
        if mark not in self._reported:
            self._reported.add(mark)
            yield NodeOutput(node_id, output)

    def _fail(self, data: Mapping[str, Any]) -> None:
        node_id = str(data.get("node_id", ""))
        node = self._workflow.nodes.get(node_id)
        exception_type = str(data.get("exception_type", "Exception"))
        message = str(data.get("exception_message", "")).strip() or "no message"
        self.failure = RunError(
            node_id,
            node.label if node else "",
            str(data.get("node_type") or (node.class_type if node else "")),
            exception_type,
            message,
            out_of_memory=_is_out_of_memory(exception_type, message),
        )

    def _interrupt(self, data: Mapping[str, Any]) -> None:
        node_id = str(data.get("node_id", ""))
        self.failure = Cancelled(f"The run was interrupted at node {node_id}.")

    def _finish_current(self) -> None:
        if self._current in self._workflow.nodes:
            self._done.add(self._current)

    def _progress(self, step: int = 0, steps: int = 0) -> Progress:
        node = self._workflow.nodes.get(self._current)
        return Progress(
            self._current,
            node.label if node else "",
            len(self._done),
            len(self._workflow.nodes),
            step,
            steps,
        )

    def _shown_id(self, data: Mapping[str, Any]) -> str:
        """The id in the submitted workflow: a node made by expansion has one of its own."""
        shown = data.get("display_node") or data.get("node")
        return str(shown)

    _MOVES: ClassVar[Mapping[str, Move]] = {
        "execution_start": Move(frozenset({State.QUEUED}), _start),
        "execution_cached": Move(frozenset({State.RUNNING}), _cached),
        "executing": Move(NOT_DONE, _executing),
        "progress": Move(frozenset({State.RUNNING}), _step),
        "executed": Move(NOT_DONE, _executed),
        "execution_success": Move(NOT_ENDING, _succeed),
        "execution_error": Move(NOT_ENDING, _error),
        "execution_interrupted": Move(NOT_ENDING, _interrupted),
    }


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it can be a count of steps; node packs send NaN, which JSON should not have."""
    return isinstance(value, int | float) and math.isfinite(value)


def _is_out_of_memory(exception_type: str, message: str) -> bool:
    """As ComfyUI 0.30 judges it: `is_oom` in comfy/model_management.py."""
    if "OutOfMemory" in exception_type:
        return True
    return exception_type.endswith("AcceleratorError") and "out of memory" in message.lower()
