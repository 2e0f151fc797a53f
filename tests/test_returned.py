"""What a prediction gives back, as files and as errors."""

import base64
from pathlib import Path

import pytest

from comfy_runner.errors import (
    ComfyRunnerError,
    InvalidInput,
    InvalidWorkflow,
    MachineError,
    Refused,
)
from comfy_runner.runs.results import Output
from comfy_runner.serving.prediction import Narrator
from comfy_runner.serving.returned import PredictionFailed, Results, failure


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_files_are_kept_under_the_names_that_the_log_tells(tmp_path: Path) -> None:
    results = Results(tmp_path)
    narrator = Narrator(lambda _name, _value: None)
    for name in ("9_Picture_00001.png", "receipt.json"):
        (line,) = narrator.lines(Output(tmp_path / "elsewhere" / name, "9", "Picture"))
        results.hear(f"Run 1: 2 nodes.\n{line}\n")
    results.keep(uri(b"one"))
    results.keep(uri(b"{}", "application/json"))
    assert results.outputs == [
        str(tmp_path / "9_Picture_00001.png"),
        str(tmp_path / "receipt.json"),
    ]
    assert (tmp_path / "9_Picture_00001.png").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("image/jpeg", "output.jpg"),
        ("video/x-matroska", "output.mkv"),
        ("audio/wav", "output.wav"),
        ("application/zip", "output.zip"),
        ("", "output"),
        ("application/x-never-heard", "output"),
    ],
)
def test_a_file_without_a_name_is_called_by_its_kind(tmp_path: Path, kind: str, name: str) -> None:
    assert Results(tmp_path).keep(uri(b"x", kind)) == str(tmp_path / name)


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for content in (b"one", b"two"):
        results.hear("Made a.png (node 1, A)\n")
        results.keep(uri(content))
    assert (tmp_path / "a.png").read_bytes() == b"one"
    assert (tmp_path / "a-2.png").read_bytes() == b"two"


@pytest.mark.parametrize("said", ["Made ../a.png (node", "Made .. (node 1", "Made a/b (node 1"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, said: str) -> None:
    results = Results(tmp_path / "out")
    (tmp_path / "out").mkdir()
    results.hear(said)
    assert results.keep(uri(b"x")) == str(tmp_path / "out" / "output.png")


def test_what_is_no_file_stays_and_files_in_it_become_paths(tmp_path: Path) -> None:
    results = Results(tmp_path)
    output = {"text": "data: none", "n": [1, None], "made": [uri(b"x"), "data:,plain%20text"]}
    kept = results.keep(output)
    made = [str(tmp_path / "output.png"), str(tmp_path / "output")]
    assert kept == {"text": "data: none", "n": [1, None], "made": made}
    assert (tmp_path / "output").read_bytes() == b"plain text"
    assert results.keep("data:image/png;base64,***") == "data:image/png;base64,***"


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (
            "Prediction failed: Generator iteration error: RuntimeError: no two",
            PredictionFailed,
            "RuntimeError: no two",
        ),
        ("RunError: node 3 (Bad) failed", PredictionFailed, "node 3 (Bad) failed"),
        ("Prediction failed: InvalidWorkflow: It has no nodes", InvalidWorkflow, "It has no nodes"),
        ("comfy_runner.errors.Refused: Not here.", Refused, "Not here."),
        ("Input validation error: 404 Client Error", InvalidInput, "Input validation error: 404"),
        ("Crashed: ComfyUI ended.", MachineError, "ComfyUI ended."),
        ("Worker crashed", MachineError, "Worker crashed"),
        ("Problem: odd", PredictionFailed, "Problem: odd"),
    ],
)
def test_a_failure_is_of_the_branch_of_who_is_at_fault(
    said: str, kind: type[ComfyRunnerError], text: str
) -> None:
    error = failure(said)
    assert type(error) is kind
    assert text in str(error)
