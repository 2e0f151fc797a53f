"""What a person may add to ComfyUI's arguments, as ComfyUI's own parser takes it."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfy_runner.comfyui.arguments import CACHES, DYNAMIC, MEMORY_MODES, NAMES, check, fitted
from comfy_runner.errors import InvalidInput

PARSE = """
import json, sys
from comfy.cli_args import parser
def parsed(words):
    try:
        return vars(parser.parse_args(words))
    except SystemExit:
        return None
known = sorted(name for action in parser._actions for name in action.option_strings)
print(json.dumps([known, [parsed(words) for words in json.load(sys.stdin)]],
                 default=str))
"""


def parsed(tree: Path, lines: list[list[str]]) -> tuple[set[str], list[dict[str, Any] | None]]:
    """All names of arguments, and what the real parser makes of each line; None for an error."""
    ran = subprocess.run(
        [sys.executable, "-c", PARSE],
        cwd=tree,
        env={"PYTHONPATH": str(tree)},
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    known, found = json.loads(ran.stdout)
    return set(known), found


MINE = (
    *([flag] for flag in (*MEMORY_MODES, DYNAMIC)),
    *([flag] for flag in CACHES if flag != "--cache-lru"),
    ["--cache-lru", "5"],
    ["--cache-lru=5"],
    ["--cache-ram", "4", "8", "--gpu-only", "--fast", "autotune"],
    [],
)


def test_what_comfyui_is_told_never_excludes_itself(comfyui_tree: Path) -> None:
    cases = list(itertools.product(MINE, (True, False), (True, False)))
    lines = [fitted(mine, cpu=cpu, low_memory=low) for mine, cpu, low in cases]
    _, found = parsed(comfyui_tree, lines)
    for (mine, cpu, low), told in zip(cases, found, strict=True):
        if "--cpu" in mine and not cpu:  # `choose_device` sees to it
            continue
        assert told is not None, (mine, cpu, low)
        assert told["cpu"] == cpu
        assert told["novram"] == (not cpu and (low or mine == ["--novram"]))
        if low:
            assert told["cache_none"]
            assert not told["enable_dynamic_vram"] or cpu


@pytest.mark.parametrize("mine", [["--cache-lru", "5"], ["--cache-lru=5"]])
def test_a_person_s_cache_counts_for_more_than_ours(comfyui_tree: Path, mine: list[str]) -> None:
    usual, low = (fitted(mine, cpu=True, low_memory=low) for low in (False, True))
    _, (told, told_low) = parsed(comfyui_tree, [usual, low])
    assert told is not None
    assert told_low is not None
    assert (told["cache_lru"], told["cache_classic"]) == (5, False)
    assert (told_low["cache_lru"], told_low["cache_none"]) == (0, True)


def test_other_arguments_are_passed_on_as_they_are() -> None:
    mine = ["--fast", "autotune", "--preview-size=9", "--lowvram", "--x", "-1"]
    assert fitted(mine, cpu=False, low_memory=False) == ["--cache-classic", *mine]
    assert fitted(mine, cpu=True, low_memory=False) == [
        *("--cpu", "--cache-classic"),
        *("--fast", "autotune", "--preview-size=9", "--x", "-1"),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--listen", "--listen would have ComfyUI listen"),
        ("--port=80", "--port would have ComfyUI listen"),
        ("--tls-keyfile a --tls-certfile b", "--tls-certfile would have"),
        ("--output-directory /x", "--output-directory would take ComfyUI out of the folder"),
        ("--models-directory /x", "Set COMFY_RUNNER_MODELS instead"),
        ("--quick-test-for-ci", "end at once"),
        ("--outp /x", "--outp is short for something. Write it in full."),
        ("--", "-- is short for something"),
        ("--cache-none --cache-lru 5", "--cache-none and --cache-lru exclude each other"),
        ("--lowvram --cpu", "--lowvram and --cpu exclude each other"),
        ("--cpu", "--cpu contradicts the setting COMFY_RUNNER_DEVICE=cuda"),
    ],
)
def test_what_cannot_be_given_is_told_with_its_setting(words: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(words.split(), "cuda")
    assert {problem.input for problem in caught.value.problems} == {"COMFY_RUNNER_COMFYUI_ARGS"}
    assert says in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        check(["--port", "1", "--fast", "--listen", "a", "--cache-none", "--high-ram"], "auto")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("words", ["", "--fast", "--cpu", "--cache-ram 4 --lowvram", "--fault x"])
def test_what_goes_together_is_taken(words: str) -> None:
    check(words.split(), "auto")


def test_the_names_are_those_of_comfyui_and_no_other_is_taken_for_short(
    comfyui_tree: Path,
) -> None:
    known, _ = parsed(comfyui_tree, [])
    assert set(NAMES) <= known
    for name in known - set(NAMES):
        check([name], "auto")
