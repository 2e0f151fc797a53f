"""The state machine of a run, fed with what a real ComfyUI sent (recordings/)."""

import json
from typing import Any

import pytest
from graphs import HERE
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import Cancelled, MachineError, RunError
from comfy_runner.graph.workflow import parse
from comfy_runner.runs.events import Event, Execution, NodeOutput, Progress, State


class Recording:
    """One run: its id, graph, messages in order, and its entry of /history."""

    def __init__(self, name: str) -> None:
        lines = (HERE / "recordings" / f"{name}.jsonl").read_text().splitlines()
        first, *messages, last = map(json.loads, lines)
        self.run_id: str = first["run_id"]
        self.workflow = parse(first["graph"])
        self.messages: list[dict[str, Any]] = messages
        self.history: dict[str, Any] = last["history"]

    def execution(self) -> Execution:
        return Execution(self.run_id, self.workflow)


NAMES = ["sampled", "sampled_again", "failed", "interrupted"]
RECORDINGS = {name: Recording(name) for name in NAMES}


def replay(execution: Execution, messages: list[dict[str, Any]]) -> list[Event]:
    return [event for message in messages for event in execution.receive(message)]


def test_a_run_is_told_from_its_first_node_to_its_output() -> None:
    recording = RECORDINGS["sampled"]
    execution = recording.execution()
    events = replay(execution, recording.messages)
    steps = [e for e in events if isinstance(e, Progress)]
    assert {e.title for e in steps} == {n.title for n in recording.workflow.nodes.values()}
    assert [e.nodes_done for e in steps] == sorted(e.nodes_done for e in steps)
    assert {e.nodes_total for e in steps} == {9}
    sampling = [e.step for e in steps if e.steps]
    assert sampling[-1] == 12
    assert sampling == sorted(sampling)
    output = events[-1]
    assert isinstance(output, NodeOutput)
    assert output.node_id == "9"
    assert output.output["images"][0]["filename"] == "picture_00001_.png"
    assert execution.is_done
    assert execution.failure is None
    assert execution.cached_count == 0


def test_a_cached_run_gives_its_outputs_again() -> None:
    recording = RECORDINGS["sampled_again"]
    execution = recording.execution()
    events = replay(execution, recording.messages)
    assert [type(e) for e in events] == [NodeOutput]
    assert execution.cached_count == 9
    assert execution.is_done


def test_a_failing_node_is_named_with_its_own_words() -> None:
    recording = RECORDINGS["failed"]
    execution = recording.execution()
    replay(execution, recording.messages)
    assert execution.is_done
    failure = execution.failure
    assert isinstance(failure, RunError)
    assert (failure.node_id, failure.title, failure.class_type) == ("3", "Bad", "TestRaise")
    assert str(failure) == "node 3 (Bad, TestRaise) failed: RuntimeError: as asked"
    assert not failure.out_of_memory


def test_an_interrupted_run_is_no_success() -> None:
    recording = RECORDINGS["interrupted"]
    execution = recording.execution()
    replay(execution, recording.messages)
    assert isinstance(execution.failure, Cancelled)
    assert execution.is_done


def test_out_of_memory_is_recognised() -> None:
    recording = RECORDINGS["failed"]
    execution = recording.execution()
    for message in recording.messages:
        data = {**message["data"], "exception_type": "torch.OutOfMemoryError"}
        list(execution.receive({**message, "data": data}))
    assert isinstance(execution.failure, RunError)
    assert execution.failure.out_of_memory


@pytest.mark.parametrize("name", NAMES)
def test_every_prefix_can_be_settled_from_history_to_the_same_end(name: str) -> None:
    recording = RECORDINGS[name]
    whole = recording.execution()
    outputs = [e for e in replay(whole, recording.messages) if isinstance(e, NodeOutput)]
    for length in range(len(recording.messages) + 1):
        execution = recording.execution()
        events = replay(execution, recording.messages[:length])
        assert execution.is_done == (length == len(recording.messages))
        events += execution.settle(recording.history)
        assert execution.is_done
        assert [e for e in events if isinstance(e, NodeOutput)] == outputs
        assert type(execution.failure) is type(whole.failure)
        assert str(execution.failure) == str(whole.failure)


@given(st.sampled_from(NAMES), st.data())
def test_lost_repeated_and_shuffled_messages_never_break_it(name: str, data: st.DataObject) -> None:
    recording = RECORDINGS[name]
    messages = data.draw(st.lists(st.sampled_from(recording.messages), max_size=30))
    execution = recording.execution()
    states = [execution.state]
    for message in messages:
        list(execution.receive(message))
        states.append(execution.state)
    order = list(State)
    assert [order.index(s) for s in states] == sorted(order.index(s) for s in states)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(
        [
            *("execution_start", "execution_cached", "executing", "progress", "executed"),
            *("execution_error", "execution_interrupted", "execution_success", "unknown"),
        ]
    ),
    st.dictionaries(st.sampled_from(["node", "nodes", "value", "max", "output", "node_id"]), JUNK),
)
def test_odd_messages_of_node_packs_never_break_it(kind: str, content: dict[str, Any]) -> None:
    recording = RECORDINGS["sampled"]
    execution = recording.execution()
    replay(execution, recording.messages[:5])
    list(execution.receive({"type": kind, "data": {**content, "prompt_id": recording.run_id}}))


def test_messages_of_other_runs_change_nothing() -> None:
    other = RECORDINGS["failed"]
    execution = RECORDINGS["sampled"].execution()
    assert replay(execution, other.messages) == []
    assert execution.state is State.QUEUED


def test_a_failure_without_a_reason_is_still_a_failure() -> None:
    execution = RECORDINGS["sampled"].execution()
    list(execution.settle({"outputs": {}, "status": {"status_str": "error", "messages": []}}))
    assert isinstance(execution.failure, MachineError)


def test_outputs_of_expanded_nodes_belong_to_the_node_that_was_submitted() -> None:
    recording = RECORDINGS["sampled"]
    execution = recording.execution()
    replay(execution, recording.messages[:5])
    data = {"node": "9.0.1", "display_node": "9", "output": {"text": ["x"]}}
    message = {"type": "executed", "data": {**data, "prompt_id": recording.run_id}}
    assert list(execution.receive(message)) == [NodeOutput("9", {"text": ["x"]})]
