"""The files of a generated project: each right by the rules of who reads it."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import yaml
from graphs import bundled, catalog, node
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfy_runner.config import PROJECT
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import MachineError
from comfy_runner.graph.workflow import parse
from comfy_runner.packs.lock import GitSource, LockedPack, PackLock
from comfy_runner.publishing.choosing import design
from comfy_runner.publishing.examples import NO_SEED, PUBLIC, examples, safe_push_cases
from comfy_runner.publishing.interface import Interface, Param
from comfy_runner.publishing.keeping import Content, read
from comfy_runner.publishing.project import (
    PACKAGE,
    Project,
    cog_yaml,
    contents,
    pyproject,
    requirements,
)
from comfy_runner.publishing.readme import quoted
from comfy_runner.serving import schema
from comfy_runner.weights.manifests.document import Content as Manifest
from comfy_runner.weights.weight import Source, Weight

# Keys of cog-safe-push's config.py, which refuses all others.
SAFE_PUSH = {"model", "test_model", "test_hardware", "predict"}
SAFE_PUSH_PREDICT = {"compare_outputs", "predict_timeout", "test_cases"}
SAFE_PUSH_CASE = {"inputs", "error_contains"}

PHOTO = Param(
    name="photo",
    targets=("1.image",),
    kind="Path",
    description="A photo.",
    required=True,
    accept="image/*",
)
TEXT = Param(name="prompt", targets=("1.text",), kind="str", description="Text.", default="a fox")


def project(name: str = "text_to_picture", **changes: Any) -> Project:
    document = bundled(name)
    conversion = read_workflow(document, catalog())
    made = Project(
        name="Nice",
        model="me/nice",
        interface=design(conversion, catalog()),
        document=document,
        workflow=conversion.workflow,
        manifest=Manifest(),
    )
    return replace(made, **changes)


def text(files: dict[str, Content], path: str) -> str:
    return read(files[path]).decode()


def lay(folder: Path, files: dict[str, Content]) -> None:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read(content))
        target.chmod(0o755 if path.startswith("script/") else 0o644)


@pytest.fixture(scope="module")
def files() -> dict[str, Content]:
    return contents(project())


def test_nothing_is_left_open_in_a_template(files: dict[str, Content]) -> None:
    made = {path: read(content) for path, content in files.items() if isinstance(content, bytes)}
    assert not [path for path, content in made.items() if re.search(rb"%\{\w+\}", content)]


def test_cog_yaml_says_what_ours_says_but_for_training(files: dict[str, Content]) -> None:
    ours = yaml.safe_load((PROJECT / "cog.yaml").read_text())
    del ours["train"]
    made = text(files, "cog.yaml")
    assert yaml.safe_load(made) == ours
    assert made.count("# begin: yours") == made.count("# end: yours") == 3


def test_lines_in_the_marked_places_of_cog_yaml_count_and_are_not_inherited() -> None:
    ours = (PROJECT / "cog.yaml").read_text()
    made = cog_yaml(ours, "0.23.1")
    places = made.split("# begin: yours\n")
    extra = "# begin: yours\n    - libsndfile1\n".join(places[:2])
    extra = "# begin: yours\n".join([extra, *places[2:]])
    loaded = yaml.safe_load(extra)
    assert loaded["build"]["system_packages"][-1] == "libsndfile1"
    assert cog_yaml(extra, "0.23.1") == cog_yaml(made, "0.23.1") == made


def test_pyproject_installs_the_package_and_checks_predict_py(files: dict[str, Content]) -> None:
    ours = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    made = tomllib.loads(text(files, "pyproject.toml"))
    assert {key: made[key] for key in ("build-system", "project")} == {
        key: ours[key] for key in ("build-system", "project")
    }
    assert set(made["tool"]) == {"setuptools", "ruff"}
    rules = made["tool"]["ruff"]["lint"]
    assert rules["select"] == ours["tool"]["ruff"]["lint"]["select"]
    assert (
        rules["per-file-ignores"]["predict.py"]
        == (ours["tool"]["ruff"]["lint"]["per-file-ignores"]["predict.py"])
    )
    assert pyproject(text(files, "pyproject.toml")) == text(files, "pyproject.toml")


def test_the_package_comes_along_whole_and_runs(tmp_path: Path, files: dict[str, Content]) -> None:
    lay(tmp_path, files)
    code = (
        "from comfy_runner import cli, publishing_commands, config;"
        "from comfy_runner.publishing import project;"
        "project.check_source(config.PROJECT); print(config.PROJECT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(tmp_path), done.stderr
    ours = {
        path.relative_to(PROJECT).as_posix()
        for path in (PROJECT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in files if path.startswith(f"{PACKAGE}/")} == ours


def test_ruff_has_nothing_against_the_project(tmp_path: Path, files: dict[str, Content]) -> None:
    lay(tmp_path, files)
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *command, "--no-cache"], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_without_its_project_the_package_cannot_make_others(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    with pytest.raises(MachineError, match=r"has no comfyui\.toml.*comfy_runner\. Run it from"):
        contents(project(), tmp_path)


def test_scripts_are_right_for_the_shell(tmp_path: Path, files: dict[str, Content]) -> None:
    scripts = [path for path in files if path.startswith("script/")]
    assert {"script/lint", "script/test", "script/push", "script/server"} <= {*scripts}
    for path in scripts:
        script = tmp_path / Path(path).name
        script.write_bytes(read(files[path]))
        done = subprocess.run(["sh", "-n", script], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_value_is_one_word_of_the_shell(value: str) -> None:
    assert shlex.split(quoted(value)) == [value]


def test_script_test_hands_over_example_values_as_they_are(tmp_path: Path) -> None:
    nasty = """@it's "a" $HOME `x` \\n\nnew line; * @"""
    odd = replace(TEXT, default=nasty)
    file = {"given.png": PROJECT / "examples" / "astronaut.png"}
    made = contents(project(interface=Interface(params=(odd, PHOTO), seed=True), files=file))
    lay(tmp_path, {path: made[path] for path in ("script/test", "script/environment")})
    bin_ = tmp_path / "its own environment" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "comfy-runner").write_text('#!/bin/sh\nfor each; do printf "%s\\0" "$each"; done\n')
    (bin_ / "comfy-runner").chmod(0o755)
    for own in ([], ["-i", "steps=2"]):
        done = subprocess.run(
            [tmp_path / "script" / "test", *own],
            env={**os.environ, "COMFY_RUNNER_VENV": str(bin_.parent)},
            capture_output=True,
            check=True,
        )
        words = done.stdout.decode().split("\0")[:-1]
        ours = ["-i", f"prompt=@{nasty}", "-i", "photo=@workflows/files/given.png", "-i", "seed=1"]
        assert words == ["predict", "--project", ".", "--out", "output", *(own or ours)]
    assert made["workflows/files/given.png"] == file["given.png"]


def test_ci_lints_tests_and_pushes_on_demand(files: dict[str, Content]) -> None:
    made = yaml.safe_load(text(files, ".github/workflows/ci.yaml"))
    triggers = made[True]  # YAML 1.1 reads `on` so
    assert set(triggers["workflow_dispatch"]["inputs"]) == {"ignore_schema_checks", "cog_version"}
    assert set(made["jobs"]) == {"lint", "test", "push"}
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in made["jobs"].items()
    }
    assert commands["lint"] == ["script/lint"]
    assert commands["test"] == ["script/test"]
    assert commands["push"][-1].startswith("script/push")
    assert "secrets.COG_TOKEN" in text(files, ".github/workflows/ci.yaml")
    assert "secrets.REPLICATE_API_TOKEN" in text(files, ".github/workflows/ci.yaml")


def test_ci_of_a_model_with_large_weights_asks_for_a_machine() -> None:
    weight = Weight(name="x.safetensors", folders=("loras",), urls=(Source("https://a.b/x"),))
    for each in (weight, replace(weight, size=20 * 10**9)):
        made = yaml.safe_load(text(contents(project(needed=(each,))), ".github/workflows/ci.yaml"))
        assert made["jobs"]["test"]["runs-on"] == "${{ vars.TEST_RUNNER }}"


def test_the_config_of_cog_safe_push_holds_what_it_knows(files: dict[str, Content]) -> None:
    made = yaml.safe_load(text(files, "cog-safe-push-configs/default.yaml"))
    assert set(made) == SAFE_PUSH
    assert set(made["predict"]) == SAFE_PUSH_PREDICT
    assert (made["model"], made["test_model"]) == ("me/nice", "me/nice-test")
    properties = schema.generate(text(files, "predict.py"))["components"]["schemas"]["Input"]
    cases = made["predict"]["test_cases"]
    assert [set(case) for case in cases] == [{"inputs"}, SAFE_PUSH_CASE]
    for case in cases:
        assert set(case["inputs"]) <= set(properties["properties"])
        assert all(isinstance(v, bool | int | float | str) for v in case["inputs"].values())
    assert cases[1]["inputs"]["seed"] == NO_SEED


def test_a_required_file_has_an_address_in_the_tests_of_cog_safe_push() -> None:
    first, second = safe_push_cases(Interface(params=(PHOTO,)))
    assert first == {"inputs": {"photo": PUBLIC["image"]}}
    assert second["error_contains"] == "failed"
    assert second["inputs"]["photo"].startswith("data:text/plain")
    assert safe_push_cases(Interface(params=(replace(PHOTO, accept=".glb"),))) == []


def test_examples_are_files_of_their_kinds() -> None:
    kinds = ("image", "audio", "video")
    params = [replace(PHOTO, name=kind, accept=f"{kind}/*") for kind in kinds]
    odd = replace(PHOTO, name="shape", accept=".glb")
    made = examples(Interface(params=(*params, odd)), {})
    assert made.lacking == ("shape",)
    image, audio, video = (io.BytesIO(made.made[made.values[kind]]) for kind in kinds)
    assert Image.open(image).size == (512, 512)
    with wave.open(audio) as sound:
        assert sound.getnframes() == 2 * sound.getframerate()
    with av.open(video) as container:
        assert len(list(container.decode(video=0))) == 16


def test_a_given_file_goes_to_the_input_of_its_kind() -> None:
    params = (replace(PHOTO, name="sound", accept="audio/*"), PHOTO)
    given = {"a.PNG": "workflows/files/a.PNG", "b.mp3": "workflows/files/b.mp3"}
    made = examples(Interface(params=params), given)
    assert made.values == {"sound": given["b.mp3"], "photo": given["a.PNG"]}
    assert made.made == {}


def test_the_readme_lists_inputs_weights_and_calls() -> None:
    odd = replace(TEXT, name="style", description="a | b <i>c</i>", choices=("x|y", "z"))
    weight = Weight(
        name="x.safetensors",
        folders=("loras",),
        urls=(Source("https://huggingface.co/a/b/resolve/main/x.safetensors"),),
        size=1_300_000_000,
        license="Some License",
        license_url="https://example.com/license",
        gated=True,
        non_commercial=True,
    )
    interface = Interface(
        params=(TEXT, odd, PHOTO), seed=True, pictures=True, tokens=("hf_token",), outputs=("9",)
    )
    made = text(
        contents(project(interface=interface, needed=(weight,), local=("vae/mine.pt",))),
        "README.md",
    )
    table = [line for line in made.splitlines() if line.startswith("| `")]
    cells = {re.split(r"(?<!\\)\|", line)[1].strip("` "): line for line in table}
    assert {"prompt", "style", "photo", "seed", "output_format", "hf_token"} <= set(cells)
    assert all(len(re.split(r"(?<!\\)\|", line)) == 6 for line in table)
    assert "**required**" in cells["photo"]
    assert "<i>" not in cells["style"].replace("\\<", "")
    told = cells["loras/x.safetensors"]
    assert "1.3 GB" in told
    assert "[Some License](https://example.com/license)" in told
    assert "**gated**" in told
    assert "**non-commercial**" in told
    assert "**no address known**" in cells["vae/mine.pt"]
    assert "node 9 (Picture)" in made
    assert "cog run -i 'prompt=a fox' -i photo=@examples/image.png -i seed=1" in made
    body = re.search(r"<<'JSON'\n(.*?)\nJSON\n", made, re.DOTALL)
    assert body
    assert json.loads(body[1])["input"]["prompt"] == "a fox"
    code = re.search(r"```python\n(.*?)```", made, re.DOTALL)
    assert code
    compile(code[1], "README.md", "exec")


def test_texts_of_the_workflow_are_no_markup_of_the_readme() -> None:
    prompt = "Begin:\n```\n<img src=x>\n````\nend"
    odd = '9"` <img src=x>\n# Title'
    interface = Interface(params=(replace(TEXT, default=prompt),), outputs=("9", odd))
    graph = parse({"9": node("SaveImage", "A <b>title</b>"), odd: node("SaveImage", "B")})
    given = replace(project(interface=interface), workflow=graph)
    made = text(contents(given), "README.md")
    outside = re.sub(r"(?ms)^(```+)\w+$.*?^\1$", "", made)
    assert "<img" not in outside.replace("\\<", "")
    assert "<b>" not in outside.replace("\\<", "")
    assert [line for line in outside.splitlines() if line.startswith("# ")] == ["# Nice"]
    assert "cog run -i 'prompt=Begin:" in made


def test_packs_of_nodes_are_installed_by_the_scripts_and_by_the_image() -> None:
    lock = PackLock((LockedPack(name="p", source=GitSource("https://a.b/p", "0" * 40)),))
    made = contents(project(packs=lock, pack_requirements="onnx==1.2 \\\n  --hash=sha256:0\n"))
    assert "nodes install --frozen" in text(made, "script/environment")
    assert ". script/environment" in text(made, "script/push")
    assert text(made, "requirements.txt").endswith("# Of the packs in custom_nodes.\nonnx==1.2\n")
    without = contents(project())
    assert "nodes install" not in text(without, "script/environment")
    assert text(without, "requirements.txt") == (PROJECT / "requirements.txt").read_text()


def test_packages_of_packs_never_repeat_or_move_ours() -> None:
    ours = "numpy==2.5.5\nPyYAML==6.0.3\n"
    made = requirements(ours, "numpy==1.0\npyyaml==5.0\nextra_one==1\n")
    assert made == f"{ours}# Of the packs in custom_nodes.\nextra_one==1\n"
    assert requirements(made, "other==2\n") == f"{ours}# Of the packs in custom_nodes.\nother==2\n"
    assert requirements(made, "") == ours
