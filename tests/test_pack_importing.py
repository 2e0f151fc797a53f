"""Packs tried in the real ComfyUI: one that is good, and those that fail in every way."""

from dataclasses import replace
from pathlib import Path

import pytest
from fakes.git_repositories import pack_files, write_files

from comfy_runner.config import Config
from comfy_runner.errors import StartFailed
from comfy_runner.packs.importing import read_log, try_packs

BOOT_LIMIT = 180.0
HANG_LIMIT = 15.0
"""Seconds for ComfyUI to come to the start-up scripts, which it runs before it imports torch."""

PACKS = {
    "good": pack_files("Good fox", "Good bear"),
    "fails": {"__init__.py": "import tiny_package_that_nobody_has\n"},
    "limps": pack_files("Limping", more={"prestartup_script.py": "raise OSError('no leg')\n"}),
    "quits": {"__init__.py": "", "prestartup_script.py": "raise SystemExit(5)\n"},
    "hangs": {
        "__init__.py": "",
        "prestartup_script.py": "import threading\nthreading.Event().wait()\n",
    },
}


@pytest.fixture
def config(comfy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings with all these packs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, files in PACKS.items():
        write_files(tmp_path / "packs" / name, files)
    return replace(comfy_config, custom_nodes=tmp_path / "packs")


def test_packs_that_fail_are_told_and_the_others_load(config: Config) -> None:
    told: list[str] = []
    names = ["good", "fails", "limps", "quits"]
    found = try_packs(config, names, limit=BOOT_LIMIT, tell=told.append)
    assert [tried.name for tried in found] == names
    good, fails, limps, quits = found
    assert (good.ok, good.classes, good.why) == (True, ("Good bear", "Good fox"), "")
    assert good.seconds is not None
    assert not fails.ok
    assert "No module named 'tiny_package_that_nobody_has'" in fails.why
    assert "__init__.py" in fails.why
    assert (limps.ok, limps.classes) == (True, ("Limping",))
    assert "no leg" in limps.why
    assert not quits.ok
    assert "exit code 5" in quits.why
    assert "It was loading the node pack quits." in quits.why
    assert told == [
        "Trying good, fails, limps, quits in ComfyUI ...",
        "Trying good, fails, limps in ComfyUI ...",
        "Trying fails alone ...",
    ]


def test_a_pack_that_hangs_is_given_up(config: Config) -> None:
    (hangs,) = try_packs(config, ["hangs"], limit=HANG_LIMIT)
    assert not hangs.ok
    assert "did not answer within 15 s. It was loading the node pack hangs." in hangs.why
    assert 'hangs/prestartup_script.py", line 2 in <module>' in hangs.why


def test_a_comfyui_that_does_not_start_is_no_packs_fault(config: Config, tmp_path: Path) -> None:
    broken = write_files(tmp_path / "comfyui", {"main.py": "raise SystemExit('broken')\n"})
    with pytest.raises(StartFailed, match="broken"):
        try_packs(replace(config, comfyui=broken), ["good"], limit=BOOT_LIMIT)


PLACE = "/x/custom_nodes"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            f"[WARNING] Skip {PLACE}/fox module for custom nodes due to the lack of"
            " NODE_CLASS_MAPPINGS or comfy_entrypoint (need one).",
            "lack of NODE_CLASS_MAPPINGS",
        ),
        (f"[WARNING] Error while calling comfy_entrypoint in {PLACE}/fox: no", "entrypoint"),
        (
            f"[WARNING] comfy_entrypoint in {PLACE}/fox is not callable, skipping.",
            "is not callable",
        ),
    ],
)
def test_a_pack_without_nodes_is_told(line: str, why: str) -> None:
    other = line.replace("fox", "foxes")
    lines = [other, line, "   0.0 seconds (IMPORT FAILED): /x/custom_nodes/fox"]
    tried = read_log(lines, "fox")
    assert (tried.ok, tried.seconds) == (False, 0.0)
    assert why in tried.why
    assert "foxes" not in tried.why


def test_of_a_long_traceback_the_last_lines_are_told() -> None:
    calls = [f'  File "{number}.py", line 1, in <module>' for number in range(50)]
    lines = [
        "[WARNING] Traceback (most recent call last):",
        *calls,
        "OSError: no",
        "",
        f"[WARNING] Cannot import {PLACE}/fox module for custom nodes: no",
        f"   0.1 seconds (IMPORT FAILED): {PLACE}/fox",
    ]
    told = read_log(lines, "fox").why.splitlines()
    assert len(told) <= 13
    assert told[-3:] == ["OSError: no", "", lines[-2]]


def test_a_pack_that_the_log_does_not_name_was_not_looked_at() -> None:
    assert "did not look at it" in read_log(["   0.1 seconds: /x/custom_nodes/a"], "fox").why


def test_nothing_is_started_for_no_packs(config: Config) -> None:
    assert try_packs(replace(config, comfyui=Path("/nowhere")), [], limit=1.0) == ()
