"""Whatever a run leaves behind or shows while it works, searched for the secrets it carried."""

import base64
import io
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import requests
from cog_server import PROJECT, READY, CogServer, Reply, settings
from fakes.file_server import FileServer, running
from graphs import node
from loras import lora, workflow
from PIL import Image
from program import Program

from comfy_runner.config import Config

GIVEN: Mapping[str, str] = {
    "hf_token": "hf_tokenfaceEJ7Q",
    "civitai_token": "civ-tokenB4K2M9",
    "workflow query": "wfquery+Zr8/T1=",
    "workflow user": "wfuserC3N7",
    "workflow password": "wfpass:H5x9",
    "lora query": "loraquery/L2+W6=",
    "lora password": "lorapassR8V3",
    "signature": "sigD9F1AA77",
    "picture query": "picquery$K4Y8",
    "picture user": "picuserQ6P2",
    "data URI": "datanameS5G0",
}
"""Where the caller has a secret to the secret; some with characters that URLs write otherwise."""

OURS: Mapping[str, str] = {
    "REPLICATE_API_TOKEN": "r8_oursX3J6",
    "AWS_SECRET_ACCESS_KEY": "aws/oursM7D2",
    "HF_TOKEN": "hf_oursN9B5",
    "CIVITAI_API_TOKEN": "civ_oursT4H8",
    "GITHUB_TOKEN": "ghp_oursV0C1",
    "COG_WEIGHTS_PASSWORD": "pass_oursF6L3",
}
"""Variables of the environment that the server itself is started in."""


def forms(secret: str) -> set[bytes]:
    """A secret as it may be written: plain, in a URL, in JSON, as base64."""
    plain = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    coded = {base64.b64encode(text.encode()).decode().rstrip("=") for text in (secret,)}
    return {text.encode() for text in plain | coded}


def found_in(content: bytes | str) -> set[str]:
    """Which secrets stand in it."""
    text = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    every = {**GIVEN, **OURS}
    return {name for name, secret in every.items() if any(form in text for form in forms(secret))}


def found_below(folder: Path) -> dict[str, set[str]]:
    """Which secrets stand in the files of a folder and in their names, file by file."""
    leaks: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        seen = found_in(str(path.relative_to(folder)))
        with suppress(OSError):
            seen |= found_in(str(path.readlink())) if path.is_symlink() else set()
            seen |= found_in(path.read_bytes()) if path.is_file() else set()
        if seen:
            leaks[str(path.relative_to(folder))] = seen
    return leaks


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 8, 7)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Addresses:
    """Where the request's files are, with all secrets in the addresses."""

    workflow: str
    lora: str
    private: str
    picture: str
    data: str

    @classmethod
    def on(cls, files: FileServer) -> "Addresses":
        """Serve the files, and tell their addresses."""
        place = f"127.0.0.1:{files.port}"
        files.serve("flow.json", json.dumps(graph()).encode())
        files.serve("style.safetensors", lora(1), ranges=True, etag='"1"')
        files.serve("me/private/resolve/main/own.safetensors", lora(2), ranges=True, etag='"2"')
        files.serve("photo.png", png(), headers={"Content-Type": "image/png"})
        signed = f"{files.url('gone.safetensors')}?X-Amz-Signature={GIVEN['signature']}"
        files.serve("moved.safetensors", status=302, headers={"Location": signed})
        coded = {name: quote(secret, safe="") for name, secret in GIVEN.items()}
        return cls(
            f"http://{coded['workflow user']}:{coded['workflow password']}@{place}/flow.json"
            f"?token={coded['workflow query']}",
            f"http://me:{coded['lora password']}@{place}/style.safetensors"
            f"?token={coded['lora query']}&X-Amz-Signature={coded['signature']}",
            "https://huggingface.co/me/private/blob/main/own.safetensors",
            f"http://{coded['picture user']}@{place}/photo.png?sig={coded['picture query']}",
            data_uri(png(), f"image/png;name={GIVEN['data URI']}.png"),
        )

    def values(self) -> dict[str, Any]:
        """What the request sets."""
        return {
            "20.lora_name": self.lora,
            "21.lora_name": self.private,
            "Photo.image": self.picture,
            "Other.image": self.data,
        }


def graph(*more: str) -> dict[str, Any]:
    """Two LoRAs and two pictures to be given by address; `slow` and `bad` add such nodes."""
    document = workflow(2) | {
        "30": node("LoadImage", "Photo", image="photo.png"),
        "31": node("LoadImage", "Other", image="other.png"),
        "32": node("SaveImage", "Own", images=["30", 0], filename_prefix="own"),
        "33": node("SaveImage", "Second", images=["31", 0], filename_prefix="second"),
    }
    if "slow" in more:
        document["40"] = node("TestSleep", "Slow", seconds=60.0, interruptible=True)
        document["40"]["inputs"]["after"] = ["30", 0]
    if "bad" in more:
        document["41"] = node("TestRaise", "Bad", message="as asked")
    return document


@dataclass(frozen=True)
class Served:
    """A model that is served, in a place of its own."""

    server: CogServer
    files: FileServer
    addresses: Addresses
    home: Path
    temporary: Path


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
    comfyui_tree: Path,  # noqa: ARG001
) -> Iterator[Served]:
    """The served model, ready, with our own secrets in its environment."""
    home, temporary = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("temporary")
    with running() as files:
        environment = settings(
            home,
            COMFY_RUNNER_HF_ENDPOINT=files.url("").rstrip("/"),
            COMFY_RUNNER_PRIVATE_ADDRESSES="1",
            TMPDIR=str(temporary),
            **OURS,
        )
        with CogServer(PROJECT, environment) as server:
            server.wait_ready(READY)
            yield Served(server, files, Addresses.on(files), home, temporary)


def inputs(served: Served, **more: Any) -> dict[str, Any]:
    """The inputs of a prediction with every secret in it."""
    return {
        "workflow_json": served.addresses.workflow,
        "inputs": json.dumps(served.addresses.values()),
        "input_file": served.addresses.data,
        "input_files": [served.addresses.picture],
        "hf_token": GIVEN["hf_token"],
        "civitai_token": GIVEN["civitai_token"],
        "seed": 1,
        **more,
    }


def outputs(reply: Reply) -> list[bytes]:
    """The files of a prediction that must have succeeded."""
    assert reply.body["status"] == "succeeded", reply.body
    return [base64.b64decode(item.partition(",")[2]) for item in reply.body["output"]]


def told(reply: Reply) -> str:
    """What a reply says besides its files."""
    return json.dumps({key: reply.body[key] for key in reply.body if key != "output"})


def test_a_good_run_shows_no_secret(served: Served) -> None:
    reply = served.server.predict(inputs(served), timeout=120)

    made = outputs(reply)
    assert len(made) == 3
    assert [found_in(content) for content in made] == [set(), set(), set()]
    assert found_in(told(reply)) == set()
    # The secrets did their work: each host was asked with them.
    asked = "\n".join(f"{one.path} {dict(one.headers)}" for one in served.files.asked)
    assert {"hf_token", "lora query", "picture query", "workflow query"} <= found_in(asked)
    assert "civitai_token" not in found_in(asked)


FAULTS: Mapping[str, dict[str, str]] = {
    "a LoRA that is not there": {"20.lora_name": "style.safetensors>gone.safetensors"},
    "a LoRA that is a web page": {"20.lora_name": "style.safetensors>page.safetensors"},
    "a LoRA of another kind": {"20.lora_name": "style.safetensors>style.ckpt"},
    "a LoRA that a signed address should give": {
        "20.lora_name": "style.safetensors>moved.safetensors"
    },
    "a picture that a signed address should give": {"Photo.image": "photo.png>moved.safetensors"},
    "a picture that is not there": {"Photo.image": "photo.png>gone.png"},
    "a picture that is none": {"Photo.image": "photo.png>page.safetensors"},
    "a host that does not answer": {"Photo.image": "127.0.0.1:>127.0.0.1:1"},
    "an address in place of a number": {"7.steps": ""},
    "an address in place of a choice": {"7.sampler_name": ""},
    "an address that nobody knows": {"nobody.text": ""},
    "a scheme that is not taken": {"20.lora_name": "http:>ftp:"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_error_shows_a_secret(served: Served, fault: str) -> None:
    page = {"Content-Type": "text/html"}
    served.files.serve("page.safetensors", b"<html>Log in</html>", headers=page)
    served.files.serve("style.ckpt", b"\x80\x02c__builtin__\neval\n", ranges=True)
    values = served.addresses.values()
    for address, change in FAULTS[fault].items():
        old, _, new = change.partition(">")
        values[address] = values.get(address, served.addresses.lora).replace(old, new, 1)
    reply = served.server.predict(inputs(served, inputs=json.dumps(values)), timeout=120)
    assert reply.body["status"] == "failed", reply.body
    assert found_in(told(reply)) == set()


@pytest.mark.parametrize(
    "change",
    [
        ("flow.json", "gone.json"),
        ("flow.json", "photo.png"),
        ("flow.json", "moved.safetensors"),
        ("127.0.0.1:", "127.0.0.1:1"),
        ("http:", "ftp:"),
        ("http:", "https:"),
    ],
)
def test_no_error_about_the_workflows_address_shows_a_secret(
    served: Served, change: tuple[str, str]
) -> None:
    address = served.addresses.workflow.replace(*change)
    reply = served.server.predict(inputs(served, workflow_json=address), timeout=120)
    assert reply.body["status"] == "failed", reply.body
    assert found_in(told(reply)) == set()


def test_an_address_that_an_editors_file_keeps_is_shown_nowhere(served: Served) -> None:
    """The editor keeps where a model is to be had beside the node that loads it."""
    url = served.addresses.lora.replace("style", "kept")
    served.files.serve("kept.safetensors", lora(9), ranges=True, etag='"9"')
    document = {
        "nodes": [
            {
                "id": 1,
                "type": "LoraLoaderModelOnly",
                "inputs": [{"name": "model", "type": "MODEL", "link": 1}],
                "outputs": [{"name": "MODEL", "type": "MODEL", "links": [2]}],
                "widgets_values": ["kept-by-editor.safetensors", 1.0],
                "properties": {
                    "models": [
                        {"name": "kept-by-editor.safetensors", "url": url, "directory": "loras"}
                    ]
                },
            },
            {
                "id": 2,
                "type": "UNETLoader",
                "outputs": [{"name": "MODEL", "type": "MODEL", "links": [1]}],
                "widgets_values": ["tiny-flux-colours.safetensors", "default"],
            },
            {
                "id": 3,
                "type": "PreviewAny",
                "inputs": [{"name": "source", "type": "*", "link": 2}],
                "widgets_values": [],
            },
        ],
        "links": [[1, 2, 0, 1, 0, "MODEL"], [2, 1, 0, 3, 0, "*"]],
        "version": 0.4,
    }
    given = {"workflow_json": json.dumps(document), "hf_token": GIVEN["hf_token"]}
    reply = served.server.predict(given, timeout=120)
    assert [found_in(content) for content in outputs(reply)] == [set()]
    assert "kept.safetensors" in reply.body["logs"]
    assert found_in(told(reply)) == set()


def test_an_unfinished_download_has_no_secret_in_its_name_or_state(served: Served) -> None:
    body = lora(8) + b"\0" * 200_000
    how = {"ranges": True, "etag": '"8"', "hold_after": 100_000}
    served.files.serve("large.safetensors", body, **how)
    values = served.addresses.values()
    values["20.lora_name"] = values["20.lora_name"].replace("style", "large")
    ended: list[Reply] = []
    waiting = threading.Thread(
        target=lambda: ended.append(
            served.server.predict(inputs(served, inputs=json.dumps(values)), timeout=120)
        )
    )
    waiting.start()
    assert served.files.holding.wait(60)
    leaks = {**found_below(served.home), **found_below(served.temporary)}
    for process in psutil.Process(served.server.pid).children(recursive=True):
        if seen := found_in("\0".join(process.cmdline())):
            leaks[f"arguments of {process.pid}"] = seen
    served.files.release.set()
    waiting.join(120)
    assert leaks == {}
    assert found_in(told(*ended)) == set()


def test_an_address_that_the_workflow_itself_names_is_shown_nowhere(served: Served) -> None:
    document = graph()
    document["20"]["inputs"]["lora_name"] = served.addresses.lora
    document["30"]["inputs"]["image"] = served.addresses.picture
    values = {"Other.image": served.addresses.data, "21.lora_name": served.addresses.private}
    given = inputs(served, workflow_json=json.dumps(document), inputs=json.dumps(values))
    reply = served.server.predict(given, timeout=120)
    assert [found_in(content) for content in outputs(reply)] == [set(), set(), set()]
    assert found_in(told(reply)) == set()


def test_a_failing_and_a_crashing_node_show_no_secret(served: Served) -> None:
    for bad in (graph("bad"), graph() | {"41": node("TestExit", code=9)}):
        given = inputs(served, workflow_json=json.dumps(bad))
        reply = served.server.predict(given, timeout=120)
        assert reply.body["status"] == "failed", reply.body
        assert found_in(told(reply)) == set()


def comfyui_of(family: list[psutil.Process]) -> psutil.Process:
    """The ComfyUI among the processes."""
    programs = ("launcher.py", "forkserver.py")
    launched = [
        process
        for process in family
        if any(name in " ".join(process.cmdline()) for name in programs)
    ]
    return launched[-1]  # its parent, which has the same arguments, comes before it


def test_no_process_and_no_queue_shows_a_secret_while_a_run_goes_on(served: Served) -> None:
    given = inputs(served, workflow_json=json.dumps(graph("slow")))
    events = served.server.stream(given, 120, prediction_id="watched")
    logs: list[str] = []
    leaks: dict[str, set[str]] = {}
    for event, content in events:
        logs.append(json.dumps(content) if event in ("log", "metric") else "")
        if event == "log" and "node 40 (Slow)" in content["data"]:
            family = psutil.Process(served.server.pid).children(recursive=True)
            for process in [psutil.Process(served.server.pid), *family]:
                leaks[f"arguments of {process.pid}"] = found_in("\0".join(process.cmdline()))
            comfyui = comfyui_of(family)
            for process in (comfyui, *comfyui.children(recursive=True), comfyui.parent()):
                assert process is not None
                leaks[f"environment of {process.pid}"] = found_in(
                    Path(f"/proc/{process.pid}/environ").read_bytes()
                )
            (port,) = (
                connection.laddr.port
                for connection in comfyui.net_connections()
                if connection.status == psutil.CONN_LISTEN
            )
            address = f"http://127.0.0.1:{port}"
            for path in ("queue", "history", "api/jobs", "internal/logs", "internal/logs/raw"):
                answer = requests.get(f"{address}/{path}", timeout=30)
                assert answer.status_code == 403, path
                leaks[path] = found_in(answer.content)
            leaks |= {f"home {name}": seen for name, seen in found_below(served.home).items()}
            assert served.server.cancel("watched") == 200
    assert leaks
    assert {place: seen for place, seen in leaks.items() if seen} == {}
    assert found_in("".join(logs)) == set()


def test_nothing_with_a_secret_is_left_behind(served: Served) -> None:
    """After all that went before: in the home folder, the models, temporary files and the logs."""
    outputs(served.server.predict(inputs(served), timeout=120))

    assert (served.home / "models" / ".store" / "index.sqlite").is_file()
    assert found_below(served.home) == {}
    assert found_below(served.temporary) == {}
    assert found_in("\n".join(served.server.log)) == set()
    assert found_in(json.dumps(served.server.health())) == set()


@pytest.mark.parametrize("place", ["inputs", "input_file", "input_files", "workflow_file"])
@pytest.mark.parametrize(
    "change", [("flow.json", "gone.json"), ("127.0.0.1:", "127.0.0.1:1"), ("127.0.0.1", "\u2100")]
)
def test_no_error_about_another_address_shows_a_secret(
    served: Served, place: str, change: tuple[str, str]
) -> None:
    address = served.addresses.workflow.replace(*change)
    given: dict[str, Any] = {place: [address] if place == "input_files" else address}
    given |= {"workflow_json": ""} if place == "workflow_file" else {}
    reply = served.server.predict(inputs(served, **given), timeout=120)
    assert reply.body["status"] == "failed", reply.body
    assert found_in(told(reply)) == set()


def test_an_address_in_place_of_an_inputs_name_is_not_repeated(served: Served) -> None:
    values = json.dumps({served.addresses.lora: "20.lora_name"})
    reply = served.server.predict(inputs(served, inputs=values), timeout=120)
    assert reply.body["status"] == "failed", reply.body
    assert found_in(told(reply)) == set()


@pytest.fixture
def program(comfy_config: Config, tmp_path: Path) -> Iterator[tuple[Program, FileServer]]:
    """The command line, with our own secrets in its environment."""
    work = tmp_path / "work"
    work.mkdir()
    with running() as files:
        more = {
            "COMFY_RUNNER_HOME": str(tmp_path / "home"),
            "COMFY_RUNNER_MODELS": str(tmp_path / "models"),
            "COMFY_RUNNER_HF_ENDPOINT": files.url("").rstrip("/"),
            "COMFY_RUNNER_PRIVATE_ADDRESSES": "1",
            "TMPDIR": str(tmp_path / "temporary"),
        }
        (tmp_path / "temporary").mkdir()
        tokens = {
            **OURS,
            "HF_TOKEN": GIVEN["hf_token"],
            "CIVITAI_API_TOKEN": GIVEN["civitai_token"],
        }
        yield Program(comfy_config, work, **more, **tokens), files


def test_the_command_line_shows_and_leaves_no_secret(
    program: tuple[Program, FileServer], tmp_path: Path
) -> None:
    run, files = program
    addresses = Addresses.on(files)
    values = [f"-i{address}={value}" for address, value in addresses.values().items()]
    with subprocess.Popen(
        run.command("run", addresses.workflow, *values, "--seed", 1, "--json"),
        cwd=run.folder,
        env=run.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        lines: list[str] = []
        leaks: dict[str, set[str]] = {}
        for line in process.stderr:
            lines.append(line)
            if not leaks and re.search(r"node \d+ \(", line):
                family = psutil.Process(process.pid).children(recursive=True)
                for child in family:
                    # It may have ended meanwhile.
                    with suppress(psutil.NoSuchProcess, OSError):
                        leaks[str(child.cmdline()[:3])] = found_in("\0".join(child.cmdline()))
                        leaks[f"environment of {child.pid}"] = found_in(
                            Path(f"/proc/{child.pid}/environ").read_bytes()
                        )
        out = process.stdout.read()
        assert process.wait(120) == 0, lines
    assert leaks
    assert {place: seen for place, seen in leaks.items() if seen} == {}
    assert len(json.loads(out)["outputs"]) == 3
    assert found_in(out + "".join(lines)) == set()
    assert found_below(tmp_path) == {}


def test_what_the_command_line_refuses_shows_no_secret(
    program: tuple[Program, FileServer], tmp_path: Path
) -> None:
    run, files = program
    addresses = Addresses.on(files)
    gone = addresses.workflow.replace("flow.json", "gone.json")
    flow = run.workflow(graph())
    lost = addresses.lora.replace("style", "gone")
    for arguments, code in (
        (("check", gone), 4),
        (("inputs", gone, "--json"), 4),
        (("check", flow, "-i", f"7.steps={lost}", "--json"), 2),
        (("check", flow, "-i", f"nobody.text={lost}"), 2),
        (("pull", "--url", lost), 2),
    ):
        out, err = run(*arguments, code=code)
        assert found_in(out + err) == set(), arguments
    assert found_below(tmp_path) == {}


def test_a_search_finds_what_is_there(tmp_path: Path) -> None:
    """So that the tests above would fail."""
    for number, form in enumerate(sorted(forms(GIVEN["lora query"]))):
        (tmp_path / f"{number}.bin").write_bytes(b"\0" + form + b"\0")
    (tmp_path / "by-name-r8_oursX3J6.txt").write_text("")
    seen = found_below(tmp_path)
    assert seen.pop("by-name-r8_oursX3J6.txt") == {"REPLICATE_API_TOKEN"}
    assert len(seen) >= 3
    assert all(names == {"lora query"} for names in seen.values())
