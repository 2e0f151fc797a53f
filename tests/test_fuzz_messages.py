"""What ComfyUI and its nodes may say: whatever it is, it does not end a run by surprise."""

import io
import json
import math
import shutil
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from graphs import picture
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfy_runner.comfyui.client import parsed
from comfy_runner.errors import MachineError
from comfy_runner.graph.workflow import parse
from comfy_runner.runs.events import Execution, NodeOutput, Progress, State
from comfy_runner.runs.outputs import files, values
from comfy_runner.runs.results import Results
from comfy_runner.serving.prediction import Narrator

HALF = "\ud83d"
"""Half of an emoji, as a text that was cut in the middle of one ends with."""
RUN = "run"

NAMES = st.sampled_from(["1", "2", "node", "", "x", HALF, "\0", "../x", "a\nb"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.floats(),
    st.sampled_from([10**400, 2**64]),
    NAMES,
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FINITE = JUNK.filter(lambda value: not isinstance(value, float) or math.isfinite(value))
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "filename": NAMES | st.sampled_from(["there.txt", "link", "folder", "x" * 300]),
            "subfolder": NAMES | st.sampled_from(["..", "/", "../..", "folder"]),
            "type": st.sampled_from(["output", "temp", "input", "other"]) | NAMES,
            "text": JUNK,
        },
    ),
    max_size=3,
)
OUTPUTS = st.dictionaries(
    st.sampled_from(["images", "text", "gifs", "animated", "a/b"]) | NAMES,
    ENTRIES | JUNK,
    max_size=3,
)
KINDS = [
    *("execution_start", "execution_cached", "executing", "progress", "progress_state", "executed"),
    *("execution_success", "execution_error", "execution_interrupted", "status", "a pack's own"),
]


def contents(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """What stands in a message of this run; `numbers` are the steps that it tells."""
    names = ("node", "display_node", "node_id", "nodes", "exception_type", "node_type")
    junk = dict.fromkeys(names, NAMES | JUNK)
    steps = {"value": numbers, "max": numbers}
    return st.fixed_dictionaries(
        {"prompt_id": st.just(RUN)}, optional={**junk, **steps, "output": OUTPUTS | JUNK}
    )


def heard(messages: list[tuple[Any, Any]]) -> list[Any]:
    """The events of the messages, after which the run can still be ended."""
    execution = Execution(RUN, parse(picture()))
    order = list(State)
    events = []
    for kind, content in messages:
        before = order.index(execution.state)
        events += execution.receive({"type": kind, "data": content})
        assert order.index(execution.state) >= before
    end = {"prompt_id": RUN, "node": None}
    list(execution.receive({"type": "executing", "data": end}))
    assert execution.is_done
    return events


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(KINDS), contents(FINITE)), max_size=12))
def test_any_messages_are_understood_or_passed_over(messages: list[tuple[Any, Any]]) -> None:
    narrator = Narrator(lambda name, value: told.append((name, value)))
    told: list[tuple[str, Any]] = []
    for event in heard([("execution_start", {"prompt_id": RUN}), *messages]):
        match event:
            case Progress():
                list(narrator.lines(event))
            case NodeOutput(_, output):
                assert all(file.filename for file in files(output))
                for value in values(output):
                    assert value.suffix == ".txt" or json.loads(value.text) is not Ellipsis


@given(JUNK, JUNK, JUNK)
def test_a_message_of_any_shape_changes_nothing(kind: Any, content: Any, other: Any) -> None:
    execution = Execution(RUN, parse(picture()))
    assert list(execution.receive({"type": kind, "data": content, "other": other})) == []
    assert execution.state is State.QUEUED


@pytest.mark.parametrize(("value", "most"), [(math.nan, 5), (3, math.inf), (-math.inf, math.nan)])
def test_a_step_that_is_no_number_does_not_end_the_run(value: float, most: float) -> None:
    content = {"prompt_id": RUN, "node": "1", "value": value, "max": most}
    heard([("execution_start", {"prompt_id": RUN}), ("progress", content)])


def test_a_title_that_was_cut_in_the_middle_of_a_letter_can_be_told() -> None:
    written = io.BytesIO()
    # Strict, as standard output is; that of pytest is not.
    with redirect_stdout(io.TextIOWrapper(written, encoding="utf-8")) as printed:
        Narrator(lambda _name, _value: None).tell(Progress("1", f"Cut {HALF}", 0, 2))
    printed.flush()
    assert b"node 1 (Cut ?)" in written.getvalue()


@given(st.binary(max_size=40) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_an_object_or_an_error(text: bytes) -> None:
    with suppress(MachineError):
        assert isinstance(parsed(text), dict)


def test_an_answer_of_any_depth_is_an_error() -> None:
    with pytest.raises(MachineError):
        parsed(b"[" * 100_000)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAMES, OUTPUTS), max_size=4))
@example([("1", {"images": [{"filename": "link", "subfolder": "", "type": "output"}]})])
@example([("1", {"images": [{"filename": "there.txt", "subfolder": "", "type": "output"}]})])
@example([("1", {"images": [{"filename": "secret", "subfolder": "..", "type": "output"}]})])
def test_no_report_leads_out_of_the_output_folder(
    tmp_path: Path, reports: list[tuple[str, dict[str, Any]]]
) -> None:
    (tmp_path / "secret").write_text("s3cret")
    output = tmp_path / "output"
    if not output.exists():
        (output / "folder").mkdir(parents=True)
        (output / "there.txt").write_text("made by a node")
        (output / "link").symlink_to(tmp_path / "secret")
    folder = tmp_path / "results"
    results = Results(folder, {"output": output}, parse(picture()), ("original", 95), previews=True)
    with suppress(MachineError):
        for node_id, report in reports:
            for made in results.take(node_id, report):
                assert made.path.parent == folder
                assert b"s3cret" not in made.path.read_bytes()
    shutil.rmtree(folder)
