"""`comfy-runner new`: from a workflow to a project that runs, and to the same project again."""

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer
from graphs import bundled, catalog, node, picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_schema import NoDocker

from comfy_runner.config import PROJECT, Config
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import CallerError, InvalidInput
from comfy_runner.packs.folder import PackFolder
from comfy_runner.packs.lock import GitSource, LocalSource, LockedPack, PackLock, parse, write
from comfy_runner.publishing.gathering import gather_packs
from comfy_runner.publishing.replacing import alone
from comfy_runner.publishing_commands import new, schema_diff
from comfy_runner.serving import schema

GATED = {
    "name": "gated.safetensors",
    "folders": ["loras"],
    "urls": [{"url": "https://huggingface.co/a/b/resolve/main/gated.safetensors", "auth": "hf"}],
    "gated": True,
    "license": "Some License",
}
PLAIN = {
    "name": "plain.safetensors",
    "folders": ["loras"],
    "urls": ["https://example.com/plain.safetensors"],
}


TOKEN = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No models, no packs, and the manifest that ships."""
    for name in [name for name in os.environ if name.startswith("COMFY_RUNNER_")]:
        monkeypatch.delenv(name)
    for name in ("home", "models", "custom_nodes"):
        monkeypatch.setenv(f"COMFY_RUNNER_{name.upper()}", str(tmp_path / "own" / name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the project goes."""
    return tmp_path / "project"


def saved(tmp_path: Path, document: Any, name: str = "workflow.json") -> str:
    path = tmp_path / name
    path.write_text(json.dumps(document))
    return str(path)


def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """A manifest with these entries in the place of the one that ships."""
    place = saved(tmp_path, {"version": 1, "weights": [], **more}, "manifest.json")
    monkeypatch.setenv("COMFY_RUNNER_MANIFEST", place)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def entries(folder: Path) -> dict[str, Any]:
    """The project's weights, by name."""
    content = json.loads((folder / "weights_manifest.json").read_text())
    return {weight["name"]: weight for weight in content["weights"]}


def codes(err: CallerError) -> set[str]:
    return {problem.code for problem in err.problems}


def edit(path: Path, old: str, text: str) -> None:
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, text, 1))


def test_a_project_is_whole_and_its_schema_current(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new(saved(tmp_path, bundled("text_to_picture")), folder, model="me/colours")
    assert schema.is_current(folder)
    for name in (
        *("cog.yaml", "predict.py", "README.md", "docs/workflow.svg", "comfy-runner.json"),
        *("requirements.txt", "custom_nodes/custom_nodes.lock.json", "script/bootstrap"),
        *(".github/workflows/ci.yaml", "cog-safe-push-configs/default.yaml", ".gitignore"),
    ):
        assert (folder / name).stat().st_size, name
    weights = json.loads((folder / "weights_manifest.json").read_text())["weights"]
    assert len(weights) == 3
    for weight in weights:
        assert (folder / weight["urls"][0]).stat().st_size == weight["size"]
    assert json.loads((folder / "workflows" / "workflow.json").read_text()) == (
        bundled("text_to_picture")
    )
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{folder} is ready")
    assert [line.split()[0] for line in told[1:]] == ["cd", "script/test", "script/push"]


def test_the_same_again_changes_nothing(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new(saved(tmp_path, bundled("upscale")), folder)
    before = tree(folder)
    capsys.readouterr()
    new(str(folder), as_json=True)
    assert json.loads(capsys.readouterr().out)["written"] == []
    assert tree(folder) == before


def test_a_project_makes_itself_anew_with_its_own_package(tmp_path: Path, folder: Path) -> None:
    new(saved(tmp_path, bundled("upscale")), folder)
    code = "import typer; from comfy_runner.publishing_commands import new; typer.run(new)"
    done = subprocess.run(
        [sys.executable, "-c", code, ".", "--json", "--yes"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["folder"], made["written"]) == (str(folder), [])


def test_what_was_chosen_holds_until_something_else_is_said(tmp_path: Path, folder: Path) -> None:
    workflow = saved(tmp_path, bundled("text_to_picture"))
    new(
        workflow,
        folder,
        name="Colours",
        value=["words=4.text", "guidance=7.cfg"],
        fix=["7.steps=3"],
        output=["Picture"],
    )
    first = (folder / "predict.py").read_text()
    assert "words: str = Input(" in first
    assert '"7.steps": 3,' in first
    assert 'outputs=["9"]' in first
    assert "negative_prompt" not in first
    new(str(folder), model="me/colours")
    assert (folder / "predict.py").read_text() == first
    new(str(folder), value=["text=4.text"])
    second = (folder / "predict.py").read_text()
    assert "text: str = Input(" in second
    assert "words" not in second
    assert '"7.steps": 3,' in second
    assert second.startswith('"""Colours:')
    new(str(folder), forget=True)
    assert "negative_prompt" in (folder / "predict.py").read_text()


def test_a_changed_workflow_tells_what_changes_and_keeps_what_is_mine(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new(saved(tmp_path, bundled("text_to_picture")), folder)
    end = "        # end: yours\n        results"
    mine = '        values["4.text"] = prompt.lower()\n'
    edit(folder / "predict.py", end, f"{mine}{end}")
    edit(folder / "README.md", "<!-- begin: yours -->\n", "<!-- begin: yours -->\nMine.\n")
    edit(folder / "cog.yaml", "    # begin: yours\n", "    # begin: yours\n    - jq\n")
    (folder / "notes.txt").write_text("mine")
    old = str(folder / ".cog" / "openapi_schema.json")
    kept = saved(tmp_path, json.loads(Path(old).read_text()), "old.json")

    changed = bundled("text_to_picture")
    del changed["7"]["inputs"]["cfg"]
    changed["7"]["inputs"] |= {"cfg": ["10", 0], "steps": 20}
    changed["10"] = node("PrimitiveFloat", "Strength", value=2.5)
    workflow = saved(tmp_path, changed)
    before = tree(folder)
    new(workflow, folder, dry_run=True)
    assert tree(folder) == before
    assert "! cfg: It is gone." in capsys.readouterr().err

    new(workflow, folder, as_json=True)
    made = json.loads(capsys.readouterr().out)
    assert {"input": "cfg", "breaking": True, "what": "It is gone."} in made["changes"]
    text = (folder / "predict.py").read_text()
    assert "strength: float = Input(" in text
    assert 'values["4.text"] = prompt.lower()' in text
    assert "\nMine.\n" in (folder / "README.md").read_text()
    assert "    - jq\n" in (folder / "cog.yaml").read_text()
    assert (folder / "notes.txt").read_text() == "mine"
    assert schema.is_current(folder)
    with pytest.raises(InvalidInput, match="can break calls"):
        schema_diff(kept, str(folder))


def test_edits_elsewhere_are_refused_until_they_are_given_up(tmp_path: Path, folder: Path) -> None:
    new(saved(tmp_path, bundled("text_to_picture")), folder)
    edit(folder / "predict.py", "class Predictor", "LIMIT = 3\n\n\nclass Predictor")
    edit(folder / "README.md", "# project", "# Mine")
    new(str(folder))  # which would write the same again
    assert "LIMIT" in (folder / "predict.py").read_text()
    assert schema.is_current(folder)
    before = tree(folder)
    with pytest.raises(InvalidInput) as caught:
        new(str(folder), value=["text=4.text"])
    assert {(each.code, each.input) for each in caught.value.problems} == {
        ("edited", "predict.py"),
        ("edited", "README.md"),
    }
    assert tree(folder) == before
    new(str(folder), value=["text=4.text"], overwrite=True)
    assert "LIMIT" not in (folder / "predict.py").read_text()
    assert "LIMIT" in (folder / "predict.py.orig").read_text()
    assert "# Mine" in (folder / "README.md.orig").read_text()


def test_every_problem_comes_at_once(tmp_path: Path, folder: Path) -> None:
    document = bundled("text_to_picture")
    document["1"]["inputs"]["unet_name"] = "of_nobody.safetensors"
    document["8"]["class_type"] = "NobodysNode"
    with pytest.raises(CallerError) as caught:
        new(
            saved(tmp_path, document),
            folder,
            model="no name",
            value=["prompt=99.text"],
            fix=["7.steps=many"],
            file=[tmp_path / "not there.png"],
        )
    assert codes(caught.value) >= {
        *("bad_model_name", "no_file", "no_such_address", "unknown_model", "unknown_class_type"),
    }
    assert any(problem.input == "7.steps" for problem in caught.value.problems)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"value": ["prompt"]}, "bad_option"),
        ({"fix": ["=1"]}, "bad_option"),
        ({"value": ["a=4.text", "a=5.text"]}, "set_twice"),
        ({"choices": ["prompt=nowhere"]}, "bad_source"),
        ({"choices": ["nobody=folder:loras"]}, "no_such_name"),
    ],
)
def test_options_that_do_not_fit_are_told(
    tmp_path: Path, folder: Path, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        new(saved(tmp_path, bundled("text_to_picture")), folder, **options)
    assert code in codes(caught.value)
    assert not folder.exists()


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path, folder: Path) -> None:
    workflow = saved(tmp_path, picture())
    for place in (tmp_path, PROJECT):
        with pytest.raises(InvalidInput, match="not empty"):
            new(workflow, place)
    with pytest.raises(InvalidInput, match="not said where"):
        new(workflow)
    folder.mkdir()
    with pytest.raises(InvalidInput, match="no project"):
        new(str(folder))


def test_a_picture_that_comfyui_saved_will_do(tmp_path: Path, folder: Path) -> None:
    metadata = PngInfo()
    metadata.add_text("prompt", json.dumps(picture()))
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=metadata)
    new(str(tmp_path / "made.png"), folder)
    assert json.loads((folder / "workflows" / "workflow.json").read_text()) == picture()
    assert json.loads((folder / "weights_manifest.json").read_text())["weights"] == []


def test_a_given_file_comes_along_and_need_not_be_sent(tmp_path: Path, folder: Path) -> None:
    document = bundled("upscale")
    name = document["1"]["inputs"]["image"]
    workflow = saved(tmp_path, document)
    new(workflow, folder)
    assert "photo: Path = Input(" in (folder / "predict.py").read_text()
    assert (folder / "examples" / "image.png").is_file()
    (tmp_path / name).write_bytes((PROJECT / "examples" / "astronaut.png").read_bytes())
    new(workflow, folder, file=[tmp_path / name])
    for _ in range(2):
        assert "photo: Path | None = Input(" in (folder / "predict.py").read_text()
        assert (folder / "workflows" / "files" / name).is_file()
        assert not (folder / "examples").exists()
        new(str(folder))


def test_gated_weights_make_a_token_an_input(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(tmp_path, monkeypatch, weights=[GATED, PLAIN, *_shipped()])
    new(saved(tmp_path, _flux_with("gated.safetensors")), folder)
    assert "hf_token: Secret | None = Input(" in (folder / "predict.py").read_text()
    assert "**gated**" in (folder / "README.md").read_text()
    names = [
        w["name"] for w in json.loads((folder / "weights_manifest.json").read_text())["weights"]
    ]
    assert "gated.safetensors" in names
    assert "plain.safetensors" not in names


def _flux_with(lora: str) -> dict[str, Any]:
    """The bundled graph with a LoRA."""
    document = bundled("text_to_picture")
    document["10"] = node("LoraLoaderModelOnly", "Style", model=["1", 0], lora_name=lora)
    document["10"]["inputs"]["strength_model"] = 1.0
    document["7"]["inputs"]["model"] = ["10", 0]
    return document


def _shipped() -> list[dict[str, Any]]:
    """The entries of the manifest that ships which the bundled graphs need, by their own URLs."""
    found = json.loads((PROJECT / "weights_manifest.json").read_text())["weights"][:4]
    return [entry | {"urls": [(PROJECT / entry["urls"][0]).as_uri()]} for entry in found]


def test_the_manifest_keeps_what_its_author_and_lock_wrote(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(tmp_path, monkeypatch, weights=[PLAIN, *_shipped()])
    new(saved(tmp_path, _flux_with("plain.safetensors")), folder)
    place = folder / "weights_manifest.json"
    content = json.loads(place.read_text())
    locked = next(w for w in content["weights"] if w["name"] == "plain.safetensors")
    locked |= {"size": 5, "sha256": "0" * 64}
    content["weights"].append(PLAIN | {"name": "mine.safetensors"})
    content["groups"] = {"styles": ["loras/mine.safetensors", "loras/plain.safetensors"]}
    place.write_text(json.dumps(content))
    new(str(folder))
    assert set(entries(folder)) == {w["name"] for w in content["weights"]}
    found = {w["name"]: w for w in json.loads(place.read_text())["weights"]}
    assert (found["plain.safetensors"]["size"], found["plain.safetensors"]["sha256"]) == (
        5,
        "0" * 64,
    )
    assert json.loads(place.read_text())["groups"] == content["groups"]

    content["groups"] = {}
    place.write_text(json.dumps(content))
    new(saved(tmp_path, bundled("text_to_picture")), folder)
    names = entries(folder)
    assert "mine.safetensors" in names
    assert "plain.safetensors" not in names


def test_sizes_and_hashes_are_asked_for(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    monkeypatch.setenv("COMFY_RUNNER_PRIVATE_ADDRESSES", "1")
    sha256 = "5" * 64
    url = server.serve("plain", b"12345", ranges=True, headers={"X-Linked-ETag": f'"{sha256}"'})
    entries_ = [PLAIN | {"urls": [url]}, GATED | {"urls": [server.url("gone")]}, *_shipped()]
    manifest(tmp_path, monkeypatch, weights=entries_)
    document = _flux_with("plain.safetensors")
    document["11"] = document["10"] | {"inputs": document["10"]["inputs"] | {"model": ["10", 0]}}
    document["11"]["inputs"]["lora_name"] = "gated.safetensors"
    document["7"]["inputs"]["model"] = ["11", 0]
    new(saved(tmp_path, document), folder, lock=True)
    assert entries(folder)["plain.safetensors"]["size"] == 5
    assert "size" not in entries(folder)["gated.safetensors"]
    assert {asked.path for asked in server.asked} == {"plain", "gone"}


def test_choices_come_from_a_group_of_the_manifest(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"styles": ["loras/gated.safetensors", "loras/plain.safetensors"]}
    manifest(tmp_path, monkeypatch, weights=[GATED, PLAIN, *_shipped()], groups=groups)
    workflow = saved(tmp_path, _flux_with("plain.safetensors"))
    new(workflow, folder, value=["style=10.lora_name"], choices=["style=group:styles"])
    made = json.loads((folder / ".cog" / "openapi_schema.json").read_text())
    assert made["components"]["schemas"]["style"]["enum"] == [
        "gated.safetensors",
        "plain.safetensors",
    ]
    content = json.loads((folder / "weights_manifest.json").read_text())
    assert content["groups"] == groups
    assert {"gated.safetensors", "plain.safetensors"} <= {w["name"] for w in content["weights"]}


def test_a_text_that_looks_like_a_secret_is_told_and_gets_into_no_schema(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = bundled("text_to_picture")
    document["4"]["inputs"]["text"] = f"from https://example.com/a.png?token={TOKEN}"
    new(saved(tmp_path, document), folder, fix=[f"5.text=hf_{TOKEN}"])
    told = " ".join(capsys.readouterr().err.split())
    assert "node 4 (Positive prompt) has as text looks like a secret" in told
    assert "fixed at 5.text looks like a secret" in told
    assert TOKEN not in told
    known = {path for path, content in tree(folder).items() if TOKEN.encode() in content}
    assert known == {"workflows/workflow.json", "predict.py", "comfy-runner.json"}
    assert f"?token={TOKEN}" not in (folder / "predict.py").read_text()


def test_a_secret_that_only_the_editor_knows_is_told_too(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = bundled("text_to_picture")
    document["4"]["_meta"]["note"] = {"deep": [f"https://me:{TOKEN}@example.com/"]}
    new(saved(tmp_path, document), folder)
    assert "looks like a secret" in " ".join(capsys.readouterr().err.split())
    document["4"]["_meta"]["note"] = "https://example.com/?download=true, max_tokens, hf_hub"
    new(saved(tmp_path, document), folder)
    assert "secret" not in capsys.readouterr().err


def test_two_at_once_do_not_get_into_each_others_way(tmp_path: Path, folder: Path) -> None:
    document = saved(tmp_path, bundled("text_to_picture"))
    new(document, folder)
    before = tree(folder)
    with alone(folder), pytest.raises(InvalidInput, match="at work"):
        new(document, folder, value=["words=4.text"])
    assert tree(folder) == before


def test_what_appears_meanwhile_is_not_written_over(
    tmp_path: Path, folder: Path, server: FileServer
) -> None:
    document = saved(tmp_path, bundled("text_to_picture"))
    content = json.dumps({"1": node("PreviewAny", source="a")}).encode()
    url = server.serve("slow.json", content, hold_after=10)

    def another() -> None:
        server.holding.wait(60)
        try:
            new(document, folder)
        finally:
            server.release.set()

    thread = threading.Thread(target=another)
    thread.start()
    with pytest.raises(InvalidInput, match="meanwhile"):
        new(url, folder)
    thread.join()
    assert json.loads((folder / "workflows" / "workflow.json").read_text()) == (
        bundled("text_to_picture")
    )


def test_a_model_that_is_only_here_is_told(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loras = Config.from_environment().models / "loras"
    loras.mkdir(parents=True)
    (loras / "mine.safetensors").write_bytes(b"0" * 100)
    new(saved(tmp_path, _flux_with("mine.safetensors")), folder)
    assert "loras/mine.safetensors is on this machine" in capsys.readouterr().err
    assert "**no address known**" in (folder / "README.md").read_text()


def test_packs_of_the_workflow_come_along() -> None:
    config = Config.from_environment()
    local = config.custom_nodes / "mine"
    (local / "sub").mkdir(parents=True)
    (local / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (local / "sub" / "a.txt").write_text("a")
    git = GitSource("https://example.com/theirs", "0" * 40)
    packs = (
        LockedPack(name="mine", source=LocalSource("mine"), classes=("MyNode",)),
        LockedPack(name="theirs", source=git, classes=("TheirNode",)),
        LockedPack(name="unused", source=git, classes=("Unused",)),
    )
    (config.custom_nodes / "custom_nodes.lock.json").write_text(write(PackLock(packs)))
    document = picture() | {
        key: node(name) for key, name in (("7", "MyNode"), ("8", "TheirNode"), ("9", "Nobodys"))
    }
    old = PackLock((LockedPack(name="own", source=git, classes=("Other",)),))
    lock, files, notes = gather_packs(
        document,
        read_workflow(document, catalog()),
        builtin=catalog(),
        folder=PackFolder(config),
        project=old,
    )
    assert [pack.name for pack in lock.packs] == ["mine", "own", "theirs"]
    assert set(files) == {"custom_nodes/mine/__init__.py", "custom_nodes/mine/sub/a.txt"}
    assert parse(write(lock), "lock") == lock
    assert len(notes) == 1
    assert "Nobodys" in notes[0]


def on_a_terminal(arguments: list[str], typed: str, code: int = 0) -> str:
    """What `new` prints on a terminal on which somebody types this."""
    program = "import typer; from comfy_runner.publishing_commands import new; typer.run(new)"
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
        cwd=PROJECT,
    )
    os.close(side)
    os.write(main, typed.encode())
    shown = b""
    try:
        while chunk := os.read(main, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(main)
    assert process.wait(60) == code, shown.decode()
    return shown.decode()


def test_on_a_terminal_the_inputs_can_be_ticked(tmp_path: Path, folder: Path) -> None:
    workflow = saved(tmp_path, bundled("text_to_picture"))
    shown = on_a_terminal([workflow, str(folder)], "2 99\n2, 3\n\n")
    assert "There is no 99." in shown
    assert "negative_prompt" in shown
    inputs = json.loads((folder / "comfy-runner.json").read_text())["choices"]["inputs"]
    assert inputs["prompt"] == "4.text"
    assert "negative_prompt" not in inputs
    assert "width" not in inputs


def test_on_a_terminal_breaking_changes_are_asked_for(tmp_path: Path, folder: Path) -> None:
    new(saved(tmp_path, bundled("text_to_picture")), folder)
    before = tree(folder)
    shown = on_a_terminal([str(folder), "--input", "text=4.text"], "n\n", code=2)
    assert "Some calls that are right today would break" in shown
    assert tree(folder) == before
    on_a_terminal([str(folder), "--input", "text=4.text"], "y\n")
    assert "text: str = Input(" in (folder / "predict.py").read_text()


def test_enter_takes_the_default_choice(tmp_path: Path, folder: Path) -> None:
    on_a_terminal([saved(tmp_path, bundled("upscale")), str(folder)], "\n")
    assert json.loads((folder / "comfy-runner.json").read_text())["choices"]["inputs"] is None


@pytest.mark.skipif(shutil.which("cog") is None, reason="Cog's command line is not on PATH")
def test_cog_itself_reads_the_project(tmp_path: Path, folder: Path) -> None:
    new(saved(tmp_path, bundled("text_to_picture")), folder)
    edit(folder / "cog.yaml", "    # begin: yours\n", "    # begin: yours\n    - libsndfile1\n")
    ours = folder / schema.SCHEMA
    expected = json.loads(ours.read_text())
    ours.unlink()
    shown = {}
    with HTTPServer(("127.0.0.1", 0), NoDocker) as docker:
        thread = threading.Thread(target=docker.serve_forever, args=(0.05,))
        thread.start()
        try:
            for command in ("build", "debug"):
                shown[command] = subprocess.run(
                    ["cog", command, "--use-cog-base-image=false"],
                    cwd=folder,
                    env={
                        **os.environ,
                        "DOCKER_HOST": f"tcp://127.0.0.1:{docker.server_port}",
                        "COG_NO_UPDATE_CHECK": "1",
                        "HOME": str(tmp_path),
                    },
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=False,
                )
        finally:
            docker.shutdown()
            thread.join()
    assert ours.exists(), shown["build"].stderr
    assert json.loads(ours.read_text()) | {"info": None} == expected | {"info": None}
    dockerfile = shown["debug"].stdout
    assert 'ENV COG_PREDICT_TYPE_STUB="predict.py:Predictor"' in dockerfile
    assert "libsndfile1" in dockerfile
    assert "COMFY_RUNNER_COMFYUI=/opt/ComfyUI" in dockerfile


def test_the_project_tests_itself(
    tmp_path: Path, folder: Path, comfyui_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new(saved(tmp_path, bundled("text_to_picture")), folder)
    end = "        # end: yours\n        results"
    mine = '        values["4.text"] = prompt.replace("red", "blue")\n'
    edit(folder / "predict.py", end, f"{mine}{end}")
    for name in ("MODELS", "CUSTOM_NODES"):
        monkeypatch.delenv(f"COMFY_RUNNER_{name}")
    settings = {
        "COMFY_RUNNER_VENV": sys.prefix,
        "COMFY_RUNNER_COMFYUI": str(comfyui_tree),
        "COMFY_RUNNER_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [folder / "script" / "test"],
        env={**os.environ, **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (made,) = done.stdout.split()
    with Image.open(folder / made) as image:
        red, _, blue = image.convert("RGB").getpixel((64, 64))
    assert blue > red + 60
