"""The soak in its short form, and that it sees what is wrong: `benchmarks/soak.py`."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from graphs import HERE

sys.path.append(str(HERE.parent / "benchmarks"))  # its modules are programs, no package
from soak_cases import png
from soak_judges import Answer, Pictures, fails, painted, written
from soak_stock import Stock, shapes

LIMIT = 400.0
"""Seconds, of which a busy machine needs most for four boots of ComfyUI."""


def test_each_fault_is_met_and_leaves_everything_as_it_was(comfyui_tree: Path) -> None:
    soak = subprocess.run(
        [sys.executable, str(HERE.parent / "benchmarks/soak.py"), "--each", "--seed", "2"],
        check=False,
        env={**os.environ, "COMFY_RUNNER_COMFYUI": str(comfyui_tree)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert "Every answer was right, and nothing is left." in soak.stdout
    for fault in ("killed idle", "stopped", "gone", "cancelled", "cut socket", "busy disk"):
        assert f"\n{fault} " in soak.stdout


def answer(*files: bytes) -> Answer:
    return Answer("succeeded", files)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer(png((1, 2, 3))), ""),
        (answer(png((1, 2, 4))), "instead of (1, 2, 3)"),
        (answer(png((1, 2, 3), side=15)), "a picture of (15, 15)"),
        (answer(), "0 files instead of 1"),
        (answer(png((1, 2, 3)), png((1, 2, 3))), "2 files instead of 1"),
        (Answer("failed", error="out of luck"), "failed: out of luck"),
    ],
)
def test_a_wrong_picture_is_seen(given: Answer, says: str) -> None:
    wrong = painted((1, 2, 3), (16, 16))(given)
    assert says in wrong
    assert bool(wrong) == bool(says)


def test_a_sampled_picture_has_to_come_back_and_to_be_the_only_one() -> None:
    pictures = Pictures()
    first, second = pictures.judge("seed", 1), pictures.judge("seed", 2)
    assert not first(answer(png((1, 1, 1))))
    assert not first(answer(png((1, 1, 1))))
    assert "another picture" in first(answer(png((2, 2, 2))))
    assert "the same picture" in second(answer(png((1, 1, 1))))


def test_a_wrong_text_is_seen() -> None:
    assert not written("é")(answer("é".encode()))
    assert "instead of" in written("é")(answer(b"e"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Answer("failed", error="node 1: below the minimum"), ""),
        (Answer("failed", error="node 1: wrong"), "does not say ['minimum']"),
        (Answer("failed", (b"x",), "minimum"), "with 1 files"),
        (Answer("succeeded", error="minimum"), "succeeded"),
        (Answer("failed", error="Traceback: minimum"), "a traceback"),
    ],
)
def test_a_wrong_error_is_seen(given: Answer, says: str) -> None:
    wrong = fails("minimum")(given)
    assert says in wrong
    assert bool(wrong) == bool(says)


def test_each_kind_of_leak_is_seen() -> None:
    counts = {"worker": {"threads": 5, "files": 9}}
    before = Stock(counts, Counter(["input/#"]))
    assert list(before.leaks(before)) == []
    for after, says in (
        (Stock(counts | {"1234 sleeping sh": {}}, before.files), "process: 1234 sleeping sh"),
        (Stock({"worker": {"threads": 50, "files": 9}}, before.files), "50 threads, 5 before"),
        (Stock({"worker": {"threads": 5, "files": 90}}, before.files), "90 files, 9 before"),
        (Stock({}, before.files), "worker: 0 threads"),
        (Stock(counts, Counter(["input/#", "input/#"])), "file: 1 more of input/#"),
    ):
        assert says in "; ".join(after.leaks(before))


def test_files_are_told_by_their_shape(tmp_path: Path) -> None:
    for name in ("runs/0a1b2c3d4e5f/x_00001.png", "runs/ffffffffffff/x_00002.png", "models/y"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert Counter(shapes(tmp_path)) == {"runs/#/x_#.png": 2}
