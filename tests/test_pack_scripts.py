"""A pack's own install script."""

from dataclasses import replace
from pathlib import Path

import pytest
from fakes.git_repositories import write_files

from comfy_runner.config import Config
from comfy_runner.errors import MachineError
from comfy_runner.packs import scripts

CONFIG = replace(Config(), comfyui=Path("/nowhere"))


def test_a_script_runs_in_its_folder_and_gets_no_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = "import os\nopen('made.txt', 'w').write(os.environ.get('HF_TOKEN', 'none'))\n"
    told: list[str] = []
    scripts.run(CONFIG, write_files(tmp_path, {"install.py": code}), told.append)
    assert (tmp_path / "made.txt").read_text() == "none"
    assert told == [f"Running {tmp_path}/install.py ..."]


def test_a_script_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    code = "for n in range(20): print(n)\nprint('so sad', flush=True)\nraise SystemExit(3)\n"
    with pytest.raises(MachineError) as caught:
        scripts.run(CONFIG, write_files(tmp_path, {"install.py": code}), print)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("install.py failed with exit code 3.")
    assert lines[-1] == "  | so sad"
    assert len(lines) == 13


def test_a_pack_without_a_script_needs_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    scripts.run(CONFIG, tmp_path, told.append)
    assert told == []
