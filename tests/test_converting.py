"""The `convert` command: results under their sources' names, failures beside them."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graphs import catalog, picture
from saved_files import png

from comfy_runner.convert.editor import Conversion
from comfy_runner.convert.formats import read_workflow
from comfy_runner.converting import convert_all, to_json, write
from comfy_runner.errors import InvalidInput

PROGRAM = str(Path(sys.executable).with_name("comfy-runner"))

EDITOR: dict[str, Any] = {
    "nodes": [
        {"id": 1, "type": "EmptyImage", "widgets_values": [8, 16, 1, 0]},
        {
            "id": 2,
            "type": "SaveImage",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "widgets_values": ["fox"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}


def program(
    folder: Path, *arguments: object, code: int = 0, given: bytes = b"", **variables: str
) -> tuple[str, str]:
    """Run `comfy-runner convert` where there is no ComfyUI; its two outputs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COMFY_RUNNER_")}
    done = subprocess.run(
        [PROGRAM, "convert", *map(str, arguments)],
        cwd=folder,
        env={**environment, "COMFY_RUNNER_HOME": str(folder / "home"), **variables},
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout.decode(), done.stderr.decode()


def put(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def converted(source: str) -> Conversion:
    return read_workflow(Path(source).read_bytes(), catalog())


def test_the_workflow_is_printed_and_nothing_else(tmp_path: Path) -> None:
    out, err = program(tmp_path, put(tmp_path, "fox.json", EDITOR))
    assert json.loads(out) == {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 8, "height": 16, "batch_size": 1, "color": 0},
            "_meta": {"title": "Empty Image"},
        },
        "2": {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "fox", "images": ["1", 0]},
            "_meta": {"title": "Save Image"},
        },
    }
    assert err == ""


def test_it_reads_standard_input_and_writes_a_file(tmp_path: Path) -> None:
    out, _ = program(tmp_path, "-", "-o", "made.json", given=json.dumps(EDITOR).encode())
    assert out == ""
    assert json.loads((tmp_path / "made.json").read_text()).keys() == {"1", "2"}
    assert not list(tmp_path.glob(".*"))


def test_what_is_left_out_is_told_on_standard_error(tmp_path: Path) -> None:
    extra = {"id": 9, "type": "NoSuchNode", "outputs": [{"name": "x", "type": "X"}]}
    document = {**EDITOR, "nodes": [*EDITOR["nodes"], extra]}
    out, err = program(tmp_path, put(tmp_path, "fox.json", document))
    assert json.loads(out).keys() == {"1", "2"}
    assert "Node 9 (NoSuchNode) is left out" in err


def test_what_a_run_would_lack_is_told_though_the_workflow_is_printed(tmp_path: Path) -> None:
    camera = {"id": 9, "type": "WebcamCapture", "title": "Camera"}
    document = {**EDITOR, "nodes": [*EDITOR["nodes"], camera]}
    out, err = program(tmp_path, put(tmp_path, "fox.json", document))
    assert json.loads(out).keys() == {"1", "2", "9"}
    assert "node 9 (Camera), input image: Its value is made by the editor in a browser" in err


@pytest.mark.parametrize("packed", [False, True])
def test_a_catalog_of_other_nodes_can_be_given(tmp_path: Path, packed: bool) -> None:
    document = {"nodes": [{"id": 1, "type": "Fox", "widgets_values": ["red", 5]}], "links": []}
    path = put(tmp_path, "fox.json", document)
    program(tmp_path, path, code=2)
    fox = {
        "input": {"required": {"colour": ["STRING", {}], "tail": ["INT", {}]}},
        "output": [],
        "output_node": True,
    }
    content = json.dumps({"Fox": fox}).encode()
    info = put(tmp_path, "info", gzip.compress(content) if packed else content)
    out, _ = program(tmp_path, path, "--object-info", info)
    assert json.loads(out)["1"]["inputs"] == {"colour": "red", "tail": 5}


def test_what_is_not_known_of_this_machine_casts_no_doubt_on_a_given_catalog(
    tmp_path: Path,
) -> None:
    put(tmp_path, "custom_nodes/pack/__init__.py", b"")
    fox = {"id": 1, "type": "Fox", "outputs": [{"name": "fur", "type": "IMAGE", "links": [1]}]}
    path = put(tmp_path, "fox.json", {**EDITOR, "nodes": [fox, EDITOR["nodes"][1]]})
    classes = catalog().raw["object_info"]
    given = put(tmp_path, "info", {"SaveImage": classes["SaveImage"]})
    doubt = "Note: ComfyUI has not been started with pack"
    variables = {"COMFY_RUNNER_CUSTOM_NODES": str(tmp_path / "custom_nodes")}
    assert doubt in program(tmp_path, path, code=2, **variables)[1]
    _, err = program(tmp_path, path, "--object-info", given, code=2, **variables)
    assert "No node class 'Fox' is installed" in err
    assert doubt not in err


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"Fox": 3}', gzip.compress(b"{")[:-3]])
def test_a_file_that_is_no_catalog_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, "fox.json", EDITOR)
    out, err = program(tmp_path, path, "--object-info", put(tmp_path, "info.gz", content), code=2)
    assert out == ""
    assert "info.gz" in err
    assert "/object_info" in err


def test_both_graphs_of_a_picture_can_be_had(tmp_path: Path) -> None:
    path = put(
        tmp_path, "fox.png", png({"prompt": json.dumps(picture()), "workflow": json.dumps(EDITOR)})
    )
    assert json.loads(program(tmp_path, path)[0]) == picture()
    assert json.loads(program(tmp_path, path, "--prefer", "workflow")[0]).keys() == {"1", "2"}


def test_several_go_to_a_folder_and_one_that_fails_stops_none(tmp_path: Path) -> None:
    good, bad = put(tmp_path, "a/good.json", EDITOR), put(tmp_path, "b/bad.one.json", {"x": 1})
    api = put(tmp_path, "c/api.json", picture())
    out, err = program(tmp_path, good, bad, api, "--out-dir", "made", code=2)
    made = tmp_path / "made"
    assert {path.name for path in made.iterdir()} == {
        "good.json",
        "bad.one.error.json",
        "api.json",
    }
    assert out.splitlines() == ["made/good.json", "made/bad.one.error.json", "made/api.json"]
    assert json.loads((made / "api.json").read_text()) == picture()
    error = json.loads((made / "bad.one.error.json").read_text())["error"]
    assert error["code"] == "invalid_workflow"
    assert error["problems"][0]["what"] in error["message"]
    assert "1 of 3 could not be converted." in err


def test_a_second_call_leaves_no_result_of_the_first_that_is_not_true(tmp_path: Path) -> None:
    source, made = put(tmp_path, "fox.json", EDITOR), tmp_path / "made"
    made.mkdir()
    list(convert_all([str(source)], made, converted))
    put(tmp_path, "fox.json", {"x": 1})
    (failed,) = convert_all([str(source)], made, converted)
    assert failed.error is not None
    assert [path.name for path in made.iterdir()] == ["fox.error.json"]
    put(tmp_path, "fox.json", EDITOR)
    list(convert_all([str(source)], made, converted))
    assert [path.name for path in made.iterdir()] == ["fox.json"]


def test_files_that_differ_in_their_ending_alone_keep_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    sources = [put(tmp_path, name, EDITOR) for name in ("fox.json", "fox.txt", "hare.json")]
    list(convert_all([str(source) for source in sources], made, converted))
    assert {path.name for path in made.iterdir()} == {
        "fox.json.json",
        "fox.txt.json",
        "hare.json",
    }


def test_two_files_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    sources = [put(tmp_path, name, EDITOR) for name in ("a/fox.json", "b/fox.json")]
    with pytest.raises(InvalidInput, match=r"fox\.json"):
        list(convert_all([str(source) for source in sources], made, converted))
    assert not list(made.iterdir())


def test_a_result_that_would_be_called_like_an_error_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    sources = [put(tmp_path, name, EDITOR) for name in ("fox.error.json", "fox.json")]
    with pytest.raises(InvalidInput, match="fox"):
        list(convert_all([str(source) for source in sources], made, converted))
    assert not list(made.iterdir())


def test_no_workflow_is_overwritten_by_its_own_result(tmp_path: Path) -> None:
    sources = [put(tmp_path, name, EDITOR) for name in ("fox.json", "hare.json")]
    before = [source.read_bytes() for source in sources]
    _, err = program(tmp_path, "fox.json", "hare.json", "--out-dir", ".", code=2)
    assert "--out-dir" in err
    assert [source.read_bytes() for source in sources] == before


def test_each_is_told_before_the_next_is_read(tmp_path: Path) -> None:
    first, second = put(tmp_path, "a.json", EDITOR), tmp_path / "b.json"
    made = tmp_path / "made"
    made.mkdir()
    running = convert_all([str(first), str(second)], made, converted)
    assert next(running).path == made / "a.json"
    put(tmp_path, "b.json", EDITOR)
    assert next(running).error is None


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://example.com/flows/red%20fox.json?x=1", "red fox.json"),
        ("https://example.com/", "workflow.json"),
        ("data:application/json,{}", "workflow.json"),
        ("-", "workflow.json"),
    ],
)
def test_what_has_no_file_name_gets_one(tmp_path: Path, address: str, name: str) -> None:
    conversion = read_workflow(EDITOR, catalog())
    (done,) = convert_all([address], tmp_path, lambda _: conversion)
    assert done.path == tmp_path / name


def test_a_link_stays_one_and_a_device_stays_what_it_is(tmp_path: Path) -> None:
    source, target = put(tmp_path, "fox.json", EDITOR), tmp_path / "there" / "made.json"
    target.parent.mkdir()
    (tmp_path / "link.json").symlink_to(target)
    write(tmp_path / "link.json", to_json(converted(str(source))))
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads(target.read_text()).keys() == {"1", "2"}
    out, _ = program(tmp_path, source, "-o", "/dev/stdout")
    assert json.loads(out).keys() == {"1", "2"}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = put(tmp_path, "fox.json", EDITOR)
    for target in ("gone/made.json", "."):
        _, err = program(tmp_path, source, "-o", target, code=2)
        assert f"--out: {target} cannot be written" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("fox.json", "fox.json"), "Give --out-dir DIR."),
        (("fox.json", "-o", "x.json", "--out-dir", "y"), "Both --out and --out-dir"),
        (("gone.json",), "gone.json cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    put(tmp_path, "fox.json", EDITOR)
    out, err = program(tmp_path, *options, code=2)
    assert (out, told in " ".join(err.split())) == ("", True)
