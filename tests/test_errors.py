"""What errors say."""

import signal

import pytest

from comfy_runner import errors
from comfy_runner.errors import (
    CallerError,
    ComfyRunnerError,
    Crashed,
    DownloadFailed,
    HashMismatch,
    InvalidInput,
    MachineError,
    NothingProduced,
    Problem,
    RunError,
    describe_exit,
    listing,
)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({}, "It is wrong."),
        ({"input": "timeout"}, "input timeout: It is wrong."),
        ({"node_id": "6"}, "node 6: It is wrong."),
        ({"node_id": "6", "title": "Prompt"}, "node 6 (Prompt): It is wrong."),
        (
            {"node_id": "12:5", "title": "Prompt", "input": "text", "hint": "Mend it."},
            "node 12:5 (Prompt), input text: It is wrong. Mend it.",
        ),
    ],
)
def test_a_problem_says_where_what_and_what_to_do(place: dict[str, str], text: str) -> None:
    assert str(Problem("wrong", "It is wrong.", **place)) == text


def test_a_problem_as_json_has_no_empty_members() -> None:
    problem = Problem("wrong", "It is wrong.", node_id="6")
    assert problem.as_json() == {"code": "wrong", "what": "It is wrong.", "node_id": "6"}


def test_one_problem_is_a_line_and_several_are_a_numbered_list() -> None:
    first, second = Problem("a", "First."), Problem("b", "Second.", "Mend it.")
    assert listing([first]) == "First."
    assert listing([first, second]) == "2 problems:\n  1. First.\n  2. Second. Mend it."
    error = InvalidInput(iter([first, second]))
    assert error.problems == (first, second)
    assert str(error) == listing([first, second])


def test_every_error_has_a_code_of_its_own_and_one_of_three_branches() -> None:
    found = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ComfyRunnerError)
    ]
    assert len(found) > 12
    assert len({kind.code for kind in found}) == len(found)
    for kind in found:
        branches = [b for b in (CallerError, RunError, MachineError) if issubclass(kind, b)]
        assert len(branches) == (kind is not ComfyRunnerError)
    assert issubclass(HashMismatch, DownloadFailed)


@pytest.mark.parametrize(
    ("title", "class_type", "place"),
    [
        ("Sampler", "KSampler", "node 7 (Sampler, KSampler)"),
        ("KSampler", "KSampler", "node 7 (KSampler)"),
        ("", "KSampler", "node 7 (KSampler)"),
        ("", "", "node 7"),
    ],
)
def test_a_failed_run_names_its_node(title: str, class_type: str, place: str) -> None:
    error = RunError("7", title, class_type, "ValueError", "too small", out_of_memory=True)
    assert str(error).startswith(f"{place} failed: ValueError: too small Try a smaller size")
    assert error.out_of_memory


def test_nothing_produced_names_the_outputs() -> None:
    error = NothingProduced("node 9 (Save)")
    assert str(error).startswith("The workflow ran to its end, but node 9 (Save) made no file")
    assert not error.out_of_memory


def test_a_crash_shows_the_end_of_the_log() -> None:
    error = Crashed(-signal.SIGSEGV, ["loading", "boom"], "during the run")
    assert str(error) == "ComfyUI ended during the run (signal SIGSEGV).\n  | loading\n  | boom"
    assert "It printed nothing." in str(Crashed(1, [], "at its start"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-signal.SIGKILL, "signal SIGKILL"),
        (-63, "signal 63"),
        (-200, "signal 200"),
        (None, "status unknown"),
    ],
)
def test_an_exit_status_in_words(code: int | None, text: str) -> None:
    assert describe_exit(code) == text
