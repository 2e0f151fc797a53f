"""Requirements resolved and installed by the real uv, from tiny wheels instead of an index."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from fakes.wheels import wheel

from comfy_runner.comfyui.bytecode import is_compiled
from comfy_runner.errors import DownloadFailed, InvalidInput, MachineError
from comfy_runner.packs import environment, requirements
from comfy_runner.packs.environment import Ours
from comfy_runner.packs.lock import LocalSource, LockedPack

OURS = Ours({"numpy": "2.5.0", "torch": "2.11.0"}, {"numpy": "2.5.0", "torch": "2.11.0"})


@pytest.fixture
def offline(tmp_path: Path) -> Mapping[str, str]:
    """Variables of a uv that knows our wheels alone."""
    wheels = tmp_path / "wheels"
    wheel(wheels, "tiny", "1.0")
    wheel(wheels, "tiny", "2.0")
    wheel(wheels, "numpy", "2.5.0")
    wheel(wheels, "numpy", "1.0")
    wheel(wheels, "uses-tiny", "1.0", ["tiny<2"])
    wheel(wheels, "uses-numpy", "1.0", ["numpy"])
    wheel(wheels, "old-numpy", "1.0", ["numpy<2"])
    config = tmp_path / "uv.toml"
    config.write_text(f'no-index = true\nfind-links = ["{wheels}"]\n')
    return {
        **os.environ,
        "UV_CONFIG_FILE": str(config),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_DEFAULT_INDEX": "https://none.invalid/simple",
    }


def pack(name: str, *texts: str) -> LockedPack:
    return LockedPack(name=name, source=LocalSource(name), requirements=texts)


def test_all_packs_are_resolved_together_and_with_ours(
    tmp_path: Path, offline: Mapping[str, str]
) -> None:
    packs = [pack("fox", "tiny"), pack("bear", "uses-tiny", "uses-numpy", "numpy>=2")]
    text = environment.resolve(packs, OURS, tmp_path, offline).text
    assert requirements.pins(text) == {"tiny": "1.0", "uses-tiny": "1.0", "uses-numpy": "1.0"}
    assert text.count("--hash=sha256:") == 3
    assert "#   fox\n" in text
    assert environment.is_current(text, packs, OURS)
    assert not environment.is_current(text, packs[:1], OURS)


def test_versions_stay_where_they_fit(tmp_path: Path, offline: Mapping[str, str]) -> None:
    first = environment.resolve([pack("bear", "tiny<2")], OURS, tmp_path, offline).text
    packs = [pack("fox", "uses-numpy", "tiny")]
    kept = environment.resolve(packs, OURS, tmp_path, offline, before=first).text
    assert requirements.pins(kept) == {"tiny": "1.0", "uses-numpy": "1.0"}
    fresh = environment.resolve(packs, OURS, tmp_path, offline).text
    assert requirements.pins(fresh)["tiny"] == "2.0"


def test_a_build_gets_no_tokens(tmp_path: Path) -> None:
    meant = {"UV_INDEX_OURS_PASSWORD": "y", "https_proxy": "z", "PATH": ""}
    tokens = {"HF_TOKEN": "x", "registry_password": "x"}
    passed = environment._Uv(tmp_path, {**meant, **tokens}).environment  # noqa: SLF001
    assert not tokens.keys() & passed.keys()
    assert meant.items() <= passed.items()


def test_what_we_have_needs_no_index(tmp_path: Path) -> None:
    nowhere = {"PATH": "", "UV_DEFAULT_INDEX": "https://none.invalid"}
    packs = [pack("fox", "numpy>=2"), pack("bear")]
    text = environment.resolve(packs, OURS, tmp_path, nowhere).text
    assert requirements.pins(text) == {}
    assert environment.is_current("", [pack("bear")], OURS)
    assert not environment.is_current("tiny==1.0\n", [pack("bear")], OURS)


def test_packs_in_conflict_are_told_with_what_each_asks_for(
    tmp_path: Path, offline: Mapping[str, str]
) -> None:
    packs = [pack("fox", "tiny==2.0"), pack("bear", "tiny==1.0"), pack("cat", "uses-numpy")]
    with pytest.raises(InvalidInput) as caught:
        environment.resolve(packs, OURS, tmp_path, offline)
    first, *others = caught.value.problems
    assert first.what.startswith("The packs' requirements do not go together, or not with ours: ")
    assert "unsatisfiable" in first.what
    assert [f"{problem.input}: {problem.what}" for problem in others] == [
        "package tiny: fox asks for tiny==2.0; bear asks for tiny==1.0."
    ]


def test_a_dependency_that_would_move_ours_is_refused(
    tmp_path: Path, offline: Mapping[str, str]
) -> None:
    with pytest.raises(InvalidInput, match="numpy") as caught:
        environment.resolve([pack("fox", "old-numpy")], OURS, tmp_path, offline)
    assert caught.value.problems[1].what == "fox asks for old-numpy."


def test_a_pack_that_moves_torch_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    packs = [pack("fox", "torch==2.1.0"), pack("bear", "numpy<2", "git+https://x.example/a")]
    with pytest.raises(InvalidInput) as caught:
        environment.resolve(packs, OURS, tmp_path, {"PATH": ""})
    assert [problem.input for problem in caught.value.problems] == [
        *("pack bear", "pack fox", "pack bear")
    ]


def test_an_index_that_cannot_be_asked_is_no_conflict(
    tmp_path: Path, offline: Mapping[str, str]
) -> None:
    index = {
        **{name: value for name, value in offline.items() if name != "UV_CONFIG_FILE"},
        "UV_NO_CONFIG": "1",
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        "UV_HTTP_RETRIES": "0",
    }
    with pytest.raises(DownloadFailed, match="uv could not resolve"):
        environment.resolve([pack("fox", "tiny")], OURS, tmp_path, index)


def test_a_project_without_requirements_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"requirements\.txt cannot be read"):
        environment.ours(tmp_path)


def test_ours_are_what_runs_and_what_development_needs(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy==2.5.0\n")
    (tmp_path / "requirements.lock").write_text("numpy==2.5.0 \\\n  --hash=x\npytest==9\n")
    found = environment.ours(tmp_path)
    assert found.runtime == {"numpy": "2.5.0"}
    assert found.everything == {"numpy": "2.5.0", "pytest": "9"}


@pytest.fixture
def python(tmp_path: Path, offline: Mapping[str, str]) -> Path:
    """The interpreter of an empty environment."""
    uv = environment._Uv(tmp_path, offline)  # noqa: SLF001 - the same program
    made = uv.run("venv", "--offline", "--python", sys.executable, str(tmp_path / "venv"))
    assert made.returncode == 0, made.stderr
    return tmp_path / "venv" / "bin" / "python"


def installed(python: Path) -> str:
    code = "import tiny; print(tiny.VERSION)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_what_was_locked_is_installed_by_its_hash(
    tmp_path: Path, offline: Mapping[str, str], python: Path
) -> None:
    locked = tmp_path / "requirements.lock"
    resolved = environment.resolve([pack("fox", "uses-tiny")], OURS, tmp_path, offline)
    locked.write_text(resolved.text)
    environment.install(locked, tmp_path, python, {**offline, "PYTHONDONTWRITEBYTECODE": "1"})
    assert installed(python) == "1.0"
    [module] = (python.parents[1] / "lib").rglob("tiny.py")
    assert is_compiled(module)


def test_a_file_with_another_hash_is_not_installed(
    tmp_path: Path, offline: Mapping[str, str], python: Path
) -> None:
    locked = tmp_path / "requirements.lock"
    locked.write_text(f"tiny==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(DownloadFailed, match=r"(?i)hash mismatch"):
        environment.install(locked, tmp_path, python, offline)
    assert installed(python) == ""


def test_a_file_without_a_hash_is_not_installed(
    tmp_path: Path, offline: Mapping[str, str], python: Path
) -> None:
    locked = tmp_path / "requirements.lock"
    locked.write_text("tiny==1.0\n")
    with pytest.raises(DownloadFailed, match=r"--require-hashes"):
        environment.install(locked, tmp_path, python, offline)
    assert installed(python) == ""


def test_a_lock_of_nothing_needs_no_uv(tmp_path: Path) -> None:
    locked = tmp_path / "requirements.lock"
    locked.write_text("# nothing\n")
    environment.install(locked, tmp_path, environment={"PATH": ""})


def test_what_this_environment_lacks_is_told_by_pack() -> None:
    packs = [pack("fox", "tiny==9", "pytest>=1"), pack("bear", "pytest<1"), pack("cat", "pytest")]
    found = environment.unmet(packs, Ours({}, {}))
    assert set(found) == {"fox", "bear"}
    assert found["fox"] == ["tiny==9 is not installed."]
    assert found["bear"][0].startswith("It asks for pytest<1; pytest ")


def test_a_package_by_its_address_does_not_outlive_its_pack() -> None:
    text = "# head\na @ https://x.example/a-1.0-py3-none-any.whl \\\n    --hash=sha256:00\n"
    assert not environment.is_current(text, [pack("fox")], OURS)
    assert environment.is_current("# head\n\n", [pack("fox")], OURS)
