"""The command line as its users type it."""

import base64
import json
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.file_server import FileServer, running
from graphs import HERE, WORKFLOWS, bundled, node, picture
from PIL import Image
from program import PROGRAM, Program
from saved_files import png

from comfy_runner import __version__
from comfy_runner.comfyui import saved_catalog
from comfy_runner.comfyui.client import ComfyClient
from comfy_runner.comfyui.saved_catalog import save
from comfy_runner.config import Config
from comfy_runner.documents import source
from comfy_runner.runner import Runner

SAMPLED = WORKFLOWS / "text_to_picture.json"
PHOTO = HERE.parent / "examples" / "astronaut.png"


@pytest.fixture
def program(comfy_config: Config, runner: Runner, tmp_path: Path) -> Program:
    """The program, with the catalog of the shared ComfyUI saved in its home."""
    with ComfyClient(runner.process.base_url, runner.process.token) as client:
        save(comfy_config, client.catalog())
    return Program(comfy_config, tmp_path)


def test_run_puts_the_results_into_a_folder_and_says_where(program: Program) -> None:
    out, err = program(
        *("run", WORKFLOWS / "upscale.json"),
        *("-i", f"image=@{PHOTO}", "--out", "made", "--format", "jpg"),
    )
    (path,) = out.splitlines()
    assert path == "made/4_Upscaled-photo_upscaled_00001.jpg"
    with Image.open(program.folder / path) as image:
        assert image.size == (1024, 1024)
    assert "node 3 (Upscale)" in err
    again, _ = program(
        *("run", program.workflow(picture()), "--out", "made", "--json", "-i", "width=32")
    )
    summary = json.loads(again)
    assert summary["outputs"] == ["made/2_Save-it_plain_00001.png"]
    assert summary["nodes"] == 2
    assert source.read(program.folder / summary["outputs"][0]) == picture(width=32)


def test_a_run_is_repeated_from_its_receipt_and_compared(program: Program) -> None:
    program("run", program.workflow(picture()), "--out", "first", "--receipt")
    receipt = program.folder / "first" / "receipt.json"
    out, err = program("replay", receipt, "--out", "second")
    assert out.splitlines() == ["The same: 1 result made again."]
    assert "changed since" not in err
    (made,) = (program.folder / "second").glob("*.png")
    with Image.open(made) as again, Image.open(receipt.with_name(made.name)) as first:
        assert again.tobytes() == first.tobytes()
    assert source.read(made) == picture()

    told = json.loads(receipt.read_text())
    told["workflow"]["1"]["inputs"]["color"] = 0xFF
    receipt.write_text(json.dumps(told))
    out, err = program("replay", receipt, "--out", "third", "--json", code=1)
    assert "Note: the workflow in the receipt was changed since." in err
    found = json.loads(out)
    assert (found["same"], found["outputs"]) == (False, 1)
    assert {difference["kind"] for difference in found["differences"]} >= {"output"}


def test_what_is_no_receipt_is_refused_before_anything_is_started(program: Program) -> None:
    out, err = program("replay", program.workflow(picture()), "--json", code=2)
    assert json.loads(out)["error"]["problems"][0]["code"] == "not_a_receipt"
    assert "Starting ComfyUI" not in err


def test_an_interrupted_run_leaves_nothing(program: Program) -> None:
    slow = program.workflow({"1": node("TestSleep", "Slow", seconds=60.0, interruptible=True)})
    with subprocess.Popen(
        [PROGRAM, "run", slow],
        cwd=program.folder,
        env=program.environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would whatever it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stderr is not None
        assert any("node 1 (Slow)" in line for line in process.stderr)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert "Traceback" not in rest
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert list((program.folder / "output").iterdir()) == []


UPSCALER = (HERE.parent / "assets/weights/realesr-animevideov3.safetensors").read_bytes()


@pytest.fixture
def remote(program: Program, server: FileServer, tmp_path: Path) -> Program:
    """The program with an empty home, and a manifest whose weight comes from the server."""
    url = server.serve("weight", UPSCALER)
    entry = {"name": "realesr-animevideov3.safetensors", "folders": ["upscale_models"]}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"version": 1, "weights": [{**entry, "urls": [url]}]}))
    program.environment = {
        **program.environment,
        "COMFY_RUNNER_HOME": str(tmp_path / "home"),
        "COMFY_RUNNER_MODELS": str(tmp_path / "models"),
        "COMFY_RUNNER_MANIFEST": str(manifest),
        "COMFY_RUNNER_PGET": "off",
    }
    return program


def with_fault(program: Program, fault: str) -> Program:
    """The program with what stands in for a ComfyUI that has this fault."""
    fake = {
        "COMFY_RUNNER_COMFYUI": str(HERE / "fakes" / "comfyui"),
        "COMFY_RUNNER_COMFYUI_ARGS": f"--fault {fault}",
    }
    program.environment = {**program.environment, **fake}
    return program


UPSCALE = ("run", WORKFLOWS / "upscale.json", "-i", f"image=@{PHOTO}")


def test_weights_come_before_the_run_and_count_in_it(remote: Program) -> None:
    out, err = remote(*UPSCALE, "--json")
    summary = json.loads(out)
    assert (summary["files_fetched"], summary["fetched_bytes"]) == (1, len(UPSCALER))
    told = [line.split(" ")[0] for line in err.splitlines()]
    assert told.index("Starting") < told.index("Fetching") < told.index("Run")
    assert "Preload" not in err
    again = json.loads(remote(*UPSCALE, "--json")[0])
    assert (again["files_fetched"], again["fetched_bytes"]) == (0, 0)


def test_weights_come_while_comfyui_boots_and_ctrl_c_ends_both(
    remote: Program, server: FileServer
) -> None:
    """This one never answers, so that the boot lasts as long as the fetch."""
    with_fault(remote, "deaf")
    for held in (False, True):
        if held:
            server.serve("weight", UPSCALER, hold_after=1000)
            (remote.folder / "models/upscale_models/realesr-animevideov3.safetensors").unlink()
            remote("cache", "rm", json.loads(remote("cache", "ls", "--json")[0])[0]["id"])
        with subprocess.Popen(
            remote.command(*UPSCALE),
            cwd=remote.folder,
            env=remote.environment,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores SIGINT, and so would whatever it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        ) as process:
            assert process.stderr is not None
            if held:
                assert server.holding.wait(30)
            else:
                assert any("1.3 of 1.3 MB" in line for line in process.stderr)
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            assert process.wait(60) == 130, rest
        assert "Traceback" not in rest
        assert psutil.wait_procs(family, timeout=30)[1] == []


def test_a_weight_that_does_not_come_is_told_once(remote: Program, server: FileServer) -> None:
    server.serve("weight", status=404)
    out, err = with_fault(remote, "serve")(*UPSCALE, "--json", code=4)
    assert json.loads(out)["error"]["code"] == "download_failed"
    assert err.count("could not be fetched") == 1
    assert err.splitlines()[-1].startswith("Error: ")


def test_bad_input_is_told_before_anything_is_fetched(remote: Program, server: FileServer) -> None:
    usual = remote.environment
    no_packs = {"COMFY_RUNNER_CUSTOM_NODES": str(remote.folder / "packs")}
    remote.environment = {**usual, **no_packs}  # else only ComfyUI knows them
    _, err = remote(*UPSCALE, "-i", "nope.x=1", code=2)
    assert "input nope.x: No node" in err
    assert "Starting ComfyUI" not in err
    remote.environment = {**usual, "COMFY_RUNNER_MAX_URLS": "0"}
    url = server.serve("other.safetensors", UPSCALER)
    with_fault(remote, "serve")(*UPSCALE, "-i", f"2.model_name={url}", code=2)
    assert server.asked == []


def test_a_failed_run_has_its_own_exit_code(program: Program) -> None:
    bad = picture() | {"3": node("TestRaise", "Bad", message="as asked")}
    out, err = program("run", program.workflow(bad), "--json", code=3)
    assert json.loads(out)["error"]["code"] == "run_failed"
    assert "Error: node 3 (Bad, TestRaise) failed: RuntimeError: as asked" in err


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{oops", "is not JSON"),
        (picture(width=0), "node 1 (Plain), input width: 0 is below the minimum 1."),
        ({"1": picture()["1"]}, "The workflow has no output node"),
    ],
)
def test_a_bad_workflow_is_told_before_anything_is_started(
    program: Program, document: Any, says: str
) -> None:
    _, err = program("run", program.workflow(document), code=2)
    assert says in err
    assert "Starting ComfyUI" not in err


def test_what_only_comfyui_can_settle_is_left_to_it(program: Program, tmp_path: Path) -> None:
    """Its packs were never started, and may know other nodes, limits and models than are known."""
    home = {"COMFY_RUNNER_HOME": str(tmp_path / "home")}
    program.environment = {**with_fault(program, "serve").environment, **home}
    for document in ({"1": {"inputs": {}}}, {"nodes": [5], "links": []}):
        _, err = program("run", program.workflow(document), code=2)
        assert "Starting ComfyUI" not in err
    _, err = program("run", program.workflow(picture(width=0)), code=2)
    assert "Starting ComfyUI" in err
    assert "below the minimum" not in err, "the one that was started has no such node"


def test_a_workflow_comes_from_many_places(program: Program) -> None:
    saved = png({"prompt": json.dumps(picture()), "workflow": '{"nodes": []}'})
    path = program.folder / "saved.png"
    path.write_bytes(saved)
    uri = f"data:image/png;base64,{base64.b64encode(saved).decode()}"
    with running() as server:
        for place in (path, uri, server.serve("saved.png", saved), "-"):
            out, _ = program("inputs", place, "--json", given=saved)
            assert json.loads(out)[0]["class_type"] == "EmptyImage"
    out, _ = program("check", path)
    assert "2 nodes would run." in out
    _, err = program("check", "-", "--prefer", "workflow", code=2, given=saved)
    assert "The workflow has no nodes" in err
    out, err = program("run", PHOTO, "--json", code=2)
    assert "input WORKFLOW: It is a PNG picture with no metadata." in err
    assert json.loads(out)["error"]["problems"][0]["code"] == "no_embedded_workflow"
    assert "'nope' is not" in program("run", path, "--prefer", "nope", code=2)[1]


def test_bad_options_are_told(program: Program) -> None:
    workflow = WORKFLOWS / "upscale.json"
    assert "Write ADDRESS=VALUE." in program("run", workflow, "-i", "image", code=2)[1]
    assert "There is no file" in program("run", workflow, "-i", "image=@nope.png", code=2)[1]
    text = ("run", SAMPLED, "-i", f"Positive prompt.text=@{PHOTO}")
    assert "It takes STRING, not a file." in program(*text, code=2)[1]
    assert "two: @@" in program("run", SAMPLED, "-i", "4.text=@home", code=2)[1]
    out, _ = program("check", SAMPLED, "-i", "4.text=@@home")
    assert "Sets 4.text" in out
    (program.folder / "file").write_text("")
    assert "file cannot be written" in program("run", SAMPLED, "--out", "file", code=2)[1]
    assert "nope.json cannot be read" in program("run", "nope.json", code=2)[1]
    assert "is no IP address" in program("serve", "--host", "localhost", code=2)[1]
    assert "No such option" in program("run", workflow, "--nope", code=2)[1]


def test_a_taken_port_is_told_before_anything_is_started(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, err = program("serve", "--port", port, code=2)
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in err


def test_check_tells_what_would_happen_and_every_problem(program: Program) -> None:
    out, _ = program("check", WORKFLOWS / "upscale.json", "-i", f"image=@{PHOTO}")
    assert "4 nodes would run." in out
    assert "Takes the file astronaut.png for 1.image." in out
    assert "realesr-animevideov3.safetensors" in out
    out, _ = program(
        *("check", SAMPLED, "--json"),
        *("-i", "7.steps=0", "-i", "nope.x=1"),
        code=2,
    )
    codes = [problem["code"] for problem in json.loads(out)["problems"]]
    assert sorted(codes) == ["no_such_address", "too_small"]
    _, err = program("check", program.workflow({"1": node("NoSuchNode")}), code=2)
    assert "No node class 'NoSuchNode' is installed" in err
    assert "Seed 7.seed is drawn at random." in program("check", SAMPLED)[0]
    assert "Seed 7.seed is 1." in program("check", SAMPLED, "--keep-seeds")[0]
    out, _ = program("check", SAMPLED, "--json", "--seed", 3)
    plan = json.loads(out)
    assert plan["problems"] == []
    assert plan["seeds"] == {"7.seed": 3}
    assert plan["outputs"] == [{"node_id": "9", "title": "Picture"}]


def test_no_command_but_a_run_waits_for_comfyui(program: Program, tmp_path: Path) -> None:
    """There is none here, and no catalog of an earlier one."""
    alone = {"COMFY_RUNNER_HOME": str(tmp_path / "home"), "COMFY_RUNNER_COMFYUI": "/nowhere"}
    no_packs = {"COMFY_RUNNER_CUSTOM_NODES": str(tmp_path / "packs")}
    program.environment = {**program.environment, **alone, **no_packs}
    assert "9 nodes would run." in program("check", SAMPLED)[0]
    assert "Positive prompt.text" in program("inputs", SAMPLED)[0]
    assert json.loads(program("convert", SAMPLED)[0]).keys() == bundled("text_to_picture").keys()
    assert (
        "Nothing was changed." in program("new", SAMPLED, tmp_path / "made", "--dry-run", "-y")[0]
    )
    _, err = program("run", program.workflow(picture(width=0)), code=2)
    assert "node 1 (Plain), input width: 0 is below the minimum 1." in err
    assert not (tmp_path / "home").exists()


def test_what_is_known_without_comfyui_is_what_it_tells(
    comfy_config: Config, runner: Runner, tmp_path: Path
) -> None:
    told = runner.catalog().raw
    known = saved_catalog.known(replace(comfy_config, home=tmp_path)).catalog.raw
    ours = {name for name, entry in told["object_info"].items() if is_of_a_pack(entry)}
    assert ours
    assert told["object_info"].keys() - ours == known["object_info"].keys()
    assert told["folders"] == known["folders"]


def is_of_a_pack(entry: dict[str, Any]) -> bool:
    return str(entry["python_module"]).startswith("custom_nodes.")


def test_the_nodes_of_packs_are_known_once_comfyui_was_started(
    program: Program, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    program.environment = {**program.environment, "COMFY_RUNNER_HOME": str(home)}
    workflow = program.workflow({"1": node("TestExit", code=9)})
    note = "Note: ComfyUI has not been started with "
    cure = "`comfy-runner check --refresh WORKFLOW` starts it once to make sure."
    out, err = program("check", workflow, code=2)
    assert (out, err.startswith(note), err.count(cure)) == ("", True, 1)
    assert cure in json.loads(program("check", workflow, "--json", code=2)[0])["doubt"]
    fine = program.folder / "fine.json"
    fine.write_text(json.dumps(picture()))
    out, err = program("check", fine)
    assert "2 nodes would run." in out
    assert (err.startswith(note), err.count(cure)) == (True, 1)
    assert cure in json.loads(program("check", fine, "--json")[0])["doubt"]
    for command in ("inputs", "convert"):
        assert program(command, workflow)[1].count(note) == (command == "inputs")
    _, err = program("new", workflow, tmp_path / "made", "-y", code=2)
    assert err.startswith(note)
    out, err = program("check", workflow, "--refresh")
    assert "Asking ComfyUI for its nodes ..." in err
    assert program("check", workflow) == (out, "")
    assert "doubt" not in json.loads(program("check", fine, "--json")[0])
    assert list((home / "runs").iterdir()) == []


def test_inputs_lists_what_can_be_set(program: Program) -> None:
    out, _ = program("inputs", WORKFLOWS / "text_to_picture.json")
    assert "Positive prompt.text" in out
    assert "0 to 18446744073709551615" in out
    out, _ = program("inputs", program.workflow(bundled("upscale")), "--json")
    assert json.loads(out)[0] == {
        "address": "Photo.image",
        "node_id": "1",
        "title": "Photo",
        "class_type": "LoadImage",
        "input": "image",
        "kind": "image",
        "value": "astronaut.png",
    }


def test_inputs_tells_what_an_app_shows_and_what_is_wrong(program: Program) -> None:
    app = {
        "nodes": [{"id": 1, "type": "EmptyImage", "widgets_values": [8, 16, 1, 0]}],
        "extra": {"linearData": {"inputs": [[1, "height"], [1, "gone"]]}},
    }
    out, err = program("inputs", program.workflow(app))
    assert out.splitlines()[1].startswith("height * ")
    assert "* is what the workflow's author shows." in err
    assert "Note: The app shows input gone of node 1" in err
    out, _ = program("inputs", program.workflow("{}"), "--json", code=2)
    assert json.loads(out)["error"]["problems"][0]["code"] == "empty_workflow"


def test_doctor_tells_where_things_are(program: Program, comfy_config: Config) -> None:
    found = json.loads(program("doctor", "--json")[0])
    assert found["comfyui.path"] == str(comfy_config.comfyui)
    assert found["comfyui.version"] == "0.30.0"
    assert found["python.version"].startswith("3.12.")
    program.environment = {**program.environment, "COMFY_RUNNER_COMFYUI": "/nowhere"}
    out, _ = program("doctor", code=4)
    assert "FAIL comfyui.path: /nowhere\n     Run script/bootstrap" in out


def test_a_missing_comfyui_is_the_machines_fault(program: Program) -> None:
    program.environment = {**program.environment, "COMFY_RUNNER_COMFYUI": "/nowhere"}
    _, err = program("run", program.workflow(picture()), code=4)
    assert "There is no ComfyUI in /nowhere. Run script/bootstrap." in err


def test_a_bad_setting_is_named(program: Program) -> None:
    program.environment = {**program.environment, "COMFY_RUNNER_DEVICE": "toaster"}
    _, err = program("check", program.workflow(picture()), code=2)
    assert "COMFY_RUNNER_DEVICE: 'toaster' is not auto, cpu or cuda." in err


def test_the_schema_is_up_to_date(program: Program) -> None:
    program("schema", "--check")


def test_help_names_every_command(program: Program) -> None:
    out, _ = program("--help")
    commands = ("run", "check", "inputs", "predict", "serve", "schema", "install", "doctor")
    assert all(f"  {command} " in out for command in commands)
    assert __version__ in program("--version")[0]
