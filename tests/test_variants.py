"""Variants of cog.yaml: what overlays do to the base, and what Cog makes of the ones there are."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from graphs import HERE
from test_schema import NoDocker

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.publishing.variants import file_name, main, merged, overlays, variant

PROJECT = HERE.parent
BASE = {
    "build": {"gpu": True, "cuda": "12.8", "run": ["one"], "system_packages": ["git"]},
    "environment": ["A=1", "B=2"],
    "run": "predict.py:Predictor",
}


def refused(overlay: dict[str, Any]) -> list[Problem]:
    with pytest.raises(InvalidInput) as caught:
        merged(BASE, overlay)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("overlay", "key", "value"),
    [
        ({"build": {"gpu": False}}, "build", BASE["build"] | {"gpu": False}),  # type: ignore[operator]
        ({"build": {"run": ["two"]}}, "build", BASE["build"] | {"run": ["one", "two"]}),  # type: ignore[operator]
        ({"environment": ["C=3", "A=4=5"]}, "environment", ["A=4=5", "B=2", "C=3"]),
        ({"image": "r8.im/me/it"}, "image", "r8.im/me/it"),
        ({"run": "other.py:Other"}, "run", "other.py:Other"),
        ({"concurrency": {"max": 1}}, "concurrency", {"max": 1}),
    ],
)
def test_an_overlay_adds_to_the_base_and_wins_over_it(
    overlay: dict[str, Any], key: str, value: Any
) -> None:
    assert merged(BASE, overlay) == {**BASE, key: value}


def test_a_null_takes_a_key_away() -> None:
    result = merged(BASE, {"build": {"cuda": None, "cudnn": None}, "environment": None})
    assert result == {
        "build": {"gpu": True, "run": ["one"], "system_packages": ["git"]},
        "run": "predict.py:Predictor",
    }


def test_the_base_stays_as_it_is() -> None:
    before = yaml.safe_dump(BASE)
    merged(BASE, {"build": {"run": ["two"], "gpu": None}, "environment": ["A=2"]})
    assert yaml.safe_dump(BASE) == before


def test_a_key_that_cog_would_pass_over_is_refused() -> None:
    top, build = refused({"enviroment": ["A=1"], "build": {"system_package": ["git"]}})
    assert (top.input, top.hint) == ("enviroment", "Did you mean environment?")
    assert (build.input, build.hint) == ("build.system_package", "Did you mean system_packages?")
    (strange,) = refused({"zzz": 1})
    assert strange.hint.startswith("It knows build, concurrency,")


def test_a_value_of_another_kind_is_refused() -> None:
    (problem,) = refused({"build": {"run": "two"}})
    assert problem.what == "build.run is a single value, but in the base a list."
    (problem,) = refused({"build": ["gpu"]})
    assert problem.what == "build is a list, but in the base a mapping."


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with what Cog looks at, and an overlay of its own."""
    for name in ("cog.yaml", "predict.py", "requirements.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "overlays", tmp_path / "overlays")
    (tmp_path / "overlays" / "mine.yaml").write_text("image: r8.im/me/mine\n")
    return tmp_path


def test_several_overlays_make_one_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cpu", "mine"], project) == 0
    assert capsys.readouterr().out == "cog-cpu-mine.yaml\n"
    made = yaml.safe_load((project / "cog-cpu-mine.yaml").read_text())
    base = yaml.safe_load((project / "cog.yaml").read_text())
    assert made["image"] == "r8.im/me/mine"
    assert made["build"]["gpu"] is False
    assert "cuda" not in made["build"]
    assert made["build"]["run"] == base["build"]["run"]
    assert made["environment"] == [*base["environment"], "COMFY_RUNNER_DEVICE=cpu"]


def test_without_a_name_the_overlays_are_listed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], project) == 0
    assert capsys.readouterr().out.split() == ["baked-weights", "cpu", "mine", "private"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mime", None, "input mime: There is no overlays/mime.yaml. There are mine."),
        ("../cog", None, "There is no overlays/../cog.yaml."),
        ("mine", "gpu: true", "input mine.yaml: gpu: Cog has no key gpu."),
        ("mine", "{", "overlays/mine.yaml is no YAML"),
        ("mine", "- a", "overlays/mine.yaml holds no mapping."),
        ("mine", "", "overlays/mine.yaml holds no mapping."),
        ("mine", b"\xff", "overlays/mine.yaml is not text in UTF-8."),
    ],
)
def test_what_is_no_overlay_is_told_and_nothing_is_written(
    project: Path,
    name: str,
    text: str | bytes | None,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        content = text if isinstance(text, bytes) else text.encode()
        (project / "overlays" / f"{name}.yaml").write_bytes(content)
    assert main([name], project) == 2
    assert says in capsys.readouterr().err
    assert not list(project.glob("cog-*"))


def test_a_folder_without_cog_yaml_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cpu"], tmp_path) == 2
    assert "There is no cog.yaml." in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_the_machines_fault(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "cog-cpu.yaml").mkdir()
    assert main(["cpu"], project) == 4
    assert "Error: " in capsys.readouterr().err


def test_each_overlay_of_ours_opens_with_what_it_is_for() -> None:
    for name in overlays(PROJECT):
        assert (PROJECT / "overlays" / f"{name}.yaml").read_text().startswith("# A")


@pytest.fixture
def docker() -> Iterator[str]:
    """The address of a Docker engine that answers a ping and fails at everything else."""
    with HTTPServer(("127.0.0.1", 0), NoDocker) as engine:
        thread = threading.Thread(target=engine.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{engine.server_port}"
        finally:
            engine.shutdown()
            thread.join()


@pytest.mark.skipif(shutil.which("cog") is None, reason="Cog's command line is not on PATH")
@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (["cpu"], ["FROM python:3.12-slim", "COMFY_RUNNER_DEVICE=cpu"]),
        (["baked-weights"], ["FROM nvidia/cuda:12.8", "COMFY_RUNNER_MODELS=/src/models"]),
        (["private"], ["RUN --mount=type=secret,id=hf_token,target=/run/secrets/hf_token mkdir"]),
        (["cpu", "private"], ["FROM python:3.12-slim", "--mount=type=secret,id=hf_token"]),
    ],
)
def test_cog_makes_a_dockerfile_of_each(
    project: Path, docker: str, names: list[str], lines: list[str]
) -> None:
    name = file_name(names)
    (project / name).write_text(variant(project, names))
    made = subprocess.run(
        ["cog", "debug", "-f", name, "--use-cog-base-image=false"],
        cwd=project,
        env={
            **os.environ,
            "DOCKER_HOST": docker,
            "COG_NO_UPDATE_CHECK": "1",
            "HOME": str(project),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    for line in lines:
        assert line in made.stdout
    assert 'ENV COG_PREDICT_TYPE_STUB="predict.py:Predictor"' in made.stdout
