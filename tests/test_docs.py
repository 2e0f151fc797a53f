"""The pages: every command in them is run, in the order of the page, against the real thing."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import requests
import typer
import yaml
from cog_server import READY, CogServer, ServerFailed
from fakes.git_repositories import Repository, pack_files, write_files
from fakes.weight_hosts import WeightHosts, civitai_file, running
from graphs import HERE, bundled, node
from loras import lora

from comfy_runner.cli import app
from comfy_runner.config import Config
from comfy_runner.serving import schema

PROJECT = HERE.parent
README = PROJECT / "README.md"
DOCS = sorted((PROJECT / "docs").glob("*.md"))
PAGES = [*DOCS, README]

SERVE = "comfy-runner serve --port 5000"
"""The line for a terminal of its own: one such server runs for all pages."""
ADDRESS = "http://127.0.0.1:5000"
TIMEOUT = 300.0
"""Seconds for the commands of one page."""

NOT_RUN = re.compile(r"not run: (?:needs )?(?P<needs>.+)")
EXITS = re.compile(r"exits with (?P<code>\d+)")
ALLOWED = {
    "Docker": {"cog", "docker"},
    "Docker and Replicate": {"cog", "script/push"},
    "a cluster": {"kubectl"},
    "sets up the environment that the tests run in": {"script/demo"},
    "runs these very tests": {"script/test"},
    "minutes": {".venv/bin/python"},
}
"""What a block may need so that it is not run, and the programs that this excuses."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    line: int
    language: str
    text: str
    note: str
    """The comment right above it."""

    @property
    def needs(self) -> str:
        """What it would need to be run; empty for a block that is run."""
        found = NOT_RUN.fullmatch(self.note)
        return found["needs"] if found else ""

    @property
    def code(self) -> int:
        """The exit status that it ends with."""
        found = EXITS.fullmatch(self.note)
        return int(found["code"]) if found else 0


FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            found["text"],
            found["note"] or "",
        )
        for found in FENCE.finditer(text)
    ]


def name(page: Path) -> str:
    return page.stem


# What a page needs


def copied(folder: Path, comfyui: Path) -> Path:
    """This project, as far as pages use it, set up in a folder."""
    for each in ("assets", "examples", "overlays", "workflows"):
        shutil.copytree(PROJECT / each, folder / each)
    for each in ("cog.yaml", "predict.py", "train.py", "weights_manifest.json"):
        shutil.copy(PROJECT / each, folder)
    (folder / "script").mkdir()
    shutil.copy(PROJECT / "script" / "select", folder / "script")
    (folder / "custom_nodes").mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".comfy").mkdir()
    (folder / ".comfy" / "ComfyUI").symlink_to(comfyui)
    return folder


@pytest.fixture
def checkout(tmp_path_factory: pytest.TempPathFactory, comfyui_tree: Path) -> Path:
    """This project as one finds it at the top of a page."""
    return copied(tmp_path_factory.mktemp("checkout"), comfyui_tree)


@pytest.fixture(scope="module")
def hosts() -> Iterator[WeightHosts]:
    """What stands for the hosts of weights."""
    with running() as served:
        yield served


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, comfyui_tree: Path, hosts: WeightHosts
) -> Mapping[str, str]:
    """The variables for the commands: the machine's, with a home for all pages and hosts that are
    here."""
    home = tmp_path_factory.mktemp("home")
    (home / "custom_nodes").mkdir()
    return {
        **os.environ,
        "PATH": f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ['PATH']}",
        "COMFY_RUNNER_HOME": str(home),
        "COMFY_RUNNER_COMFYUI": str(comfyui_tree),
        "COMFY_RUNNER_CUSTOM_NODES": str(home / "custom_nodes"),
        "COMFY_RUNNER_DEVICE": "cpu",
        "COMFY_RUNNER_VENV": sys.prefix,
        "COMFY_RUNNER_HF_ENDPOINT": hosts.hosts.hf,
        "COMFY_RUNNER_CIVITAI_ENDPOINT": hosts.hosts.civitai,
        "COMFY_RUNNER_PRIVATE_ADDRESSES": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


@pytest.fixture(scope="module")
def address(
    tmp_path_factory: pytest.TempPathFactory, comfyui_tree: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Where the model is served, ready, by the command that the pages give."""
    checkout = copied(tmp_path_factory.mktemp("served"), comfyui_tree)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = str(free.getsockname()[1])
    program, *arguments = shlex.split(SERVE.replace("5000", port))
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    url = ADDRESS.replace("5000", port)
    printed = checkout / "server.log"
    with printed.open("wb") as log:
        server = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_ready(server, url, printed)
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)


def wait_ready(server: subprocess.Popen[bytes], url: str, printed: Path) -> None:
    """Returns when predictions are taken."""
    deadline = time.monotonic() + READY
    while server.poll() is None and time.monotonic() < deadline:
        try:
            health = requests.get(f"{url}/health-check", timeout=10).json()
        except requests.ConnectionError:
            health = {"status": "not listening"}
        if health["status"] == "READY":
            return
        assert health["status"] != "SETUP_FAILED", health
        time.sleep(0.2)  # the server has no event to wait for
    pytest.fail(f"It is not ready:\n{printed.read_text(errors='replace')}", pytrace=False)


def a_style(hosts: WeightHosts) -> bytes:
    """What stands for a LoRA on CivitAI. Returns its content."""
    body = lora(1)
    file = civitai_file(1, 7, hashes={"SHA256": hashlib.sha256(body).hexdigest()})
    hosts.add_model(43331, [hosts.add_version(43331, 7, [file])])
    hosts.tell("/civitai/api/download/models/7", body)
    return body


def prepare_models(checkout: Path, hosts: WeightHosts) -> Mapping[str, str]:
    """A workflow whose LoRA is on CivitAI, and a manifest with a group."""
    body = a_style(hosts)
    graph = bundled("text_to_picture")
    style = "https://civitai.com/models/43331"
    inputs = {"lora_name": style, "model": ["1", 0], "clip": ["2", 0]}
    graph["20"] = node("LoraLoader", **inputs, strength_model=1.0, strength_clip=0.0)
    graph["7"]["inputs"] |= {"model": ["20", 0], "steps": 3}
    (checkout / "my_workflow.json").write_text(json.dumps(graph))
    (checkout / "style.safetensors").write_bytes(body)
    weight = {"name": "style.safetensors", "folders": ["loras"], "urls": ["style.safetensors"]}
    manifest = {
        "version": 1,
        "weights": [weight],
        "groups": {"styles": ["loras/style.safetensors"]},
    }
    (checkout / "my_weights.json").write_text(json.dumps(manifest))
    return {}


def prepare_packs(checkout: Path, hosts: WeightHosts) -> Mapping[str, str]:  # noqa: ARG001
    """A repository in place of one on GitHub, a pack in a folder, and a workflow without it."""
    repository = Repository(checkout / "hosted" / "ComfyUI-KJNodes")
    repository.commit(pack_files("ImageResizeKJv2"))
    write_files(checkout / "my-pack", pack_files("MyNode"))
    graph = {"1": node("ImageResizeKJv2"), "2": node("PreviewAny", source=["1", 0])}
    (checkout / "my_workflow.json").write_text(json.dumps(graph))
    return {"kijai/ComfyUI-KJNodes": repository.url}


OWN_PACKS = {"COMFY_RUNNER_CUSTOM_NODES": "custom_nodes"}
"""For a page that changes which node packs there are: those of its folder alone."""

PREPARATIONS = {"models": prepare_models, "custom-nodes": prepare_packs}
"""What a page needs besides this project and a server, by its name. Each tells which words of the
page stand for a public host, and what to write for them."""


def script_of(page: Path, captured: Path) -> str:
    """The commands of a page as one script, which notes the line that it has come to."""
    lines = ["set -eu"]
    for block in blocks(page):
        if block.language != "sh" or block.needs or block.text.strip() == SERVE:
            continue
        lines.append(f"echo {block.line} >{captured}/at")
        output = f'>"{captured}/{block.line}" 2>&1'
        if block.code:
            lines += [
                f"code=0\n(\n{block.text}) {output} || code=$?",
                f'[ "$code" = {block.code} ]',
            ]
        else:
            lines.append(f"{{\n{block.text}}} {output}")
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_a_page_runs(
    page: Path,
    checkout: Path,
    environment: Mapping[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    missing = [each for each in ("bash", "curl", "git", "jq") if shutil.which(each) is None]
    if missing:
        pytest.skip(f"The pages use {', '.join(missing)}.")
    prepare = PREPARATIONS.get(page.stem)
    places = dict(prepare(checkout, request.getfixturevalue("hosts"))) if prepare else {}
    script = script_of(page, tmp_path)
    if ADDRESS in script:
        places[ADDRESS] = request.getfixturevalue("address")
    for public, local in places.items():
        script = script.replace(public, local)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=checkout,
        env={**environment, **(OWN_PACKS if page.stem == "custom-nodes" else {})},
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        line = (tmp_path / "at").read_text().strip()
        told = (tmp_path / line).read_text(errors="replace")
        pytest.fail(f"{page.name}:{line} ended with {done.returncode}:\n{told}", pytrace=False)
    check_shown(page, tmp_path)


def check_shown(page: Path, captured: Path) -> None:
    """Whether each line that a page shows as printed was printed by the block before it."""
    ran = 0
    for block in blocks(page):
        if block.language == "sh" and not block.needs:
            ran = block.line
        elif block.language == "text":
            printed = (captured / str(ran)).read_text(errors="replace")
            for line in block.text.splitlines():
                assert line.strip() in printed, f"{page.name}:{block.line}"


# What the pages say besides


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_not_run_can_be_read_at_least(page: Path) -> None:
    for block in blocks(page):
        match block.language:
            case "json":
                assert json.loads(block.text)
            case "yaml":
                assert list(yaml.safe_load_all(block.text))
            case "sh":
                subprocess.run(["bash", "-n", "-c", block.text], check=True)
                if block.needs:
                    assert programs(block.text) <= ALLOWED[block.needs]
                elif SERVE in block.text:
                    assert block.text.strip() == SERVE
            case other:
                assert other in ("", "text"), f"{page.name}:{block.line}"
        known = NOT_RUN.fullmatch(block.note) or EXITS.fullmatch(block.note)
        assert known or not block.note, f"{page.name}:{block.line}"


def test_a_block_is_found_with_the_comment_above_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A\n\n<!-- not run: needs Docker -->\n```sh\nls\n```\n\n```text\nb\n```\n")
    assert blocks(page) == [
        Block(3, "sh", "ls\n", "not run: needs Docker"),
        Block(8, "text", "b\n", ""),
    ]
    assert [block.needs for block in blocks(page)] == ["Docker", ""]


def programs(text: str) -> set[str]:
    """The programs that a block starts."""
    found = set()
    for line in text.replace("\\\n", " ").splitlines():
        tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
        tokens.whitespace_split = True
        starts = True
        for word in tokens:
            if set(word) <= set("|&;()"):
                starts = True
            elif starts and not re.match(r"\w+=", word):
                found.add(word)
                starts = False
    return found


def test_the_programs_of_a_block_are_found() -> None:
    text = "A=1 cog build \\\n  -t x && docker run x | jq .\nkubectl get pods; ls 'a|b'\n"
    assert programs(text) == {"cog", "docker", "jq", "kubectl", "ls"}


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "SECURITY.md"], ids=name)
def test_every_link_to_a_file_of_ours_leads_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, f"{target}#{anchor}"


def test_the_readme_names_every_page_and_every_command() -> None:
    text = README.read_text()
    for page in DOCS:
        assert f"(docs/{page.name})" in text
    rows = set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    commands = typer.main.get_group(app).commands
    assert rows == set(commands)


def test_every_setting_is_told() -> None:
    text = (PROJECT / "docs" / "settings.md").read_text()
    told = re.findall(r"^\| `COMFY_RUNNER_(\w+)` \|", text, re.MULTILINE)
    settings = {field.name.upper() for field in fields(Config)} - {"PROJECT"}
    assert len(told) == len(set(told))
    assert set(told) == settings


# The probes for Kubernetes


@pytest.fixture(scope="module")
def probes() -> Mapping[str, list[str]]:
    """Probe to the command that it runs in the container."""
    (text,) = (b.text for b in blocks(PROJECT / "docs" / "deploy.md") if b.language == "yaml")
    (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    return {
        probe: container[probe]["exec"]["command"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }


def passes(command: list[str], url: str) -> bool:
    command = [part.replace(ADDRESS, url) for part in command]
    assert url in command[-1]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


PREDICTOR = """
from pathlib import Path

from cog import BaseRunner


class Predictor(BaseRunner):
    def setup(self) -> None:
        if Path("no weights").exists():
            raise RuntimeError("no weights")

    def healthcheck(self) -> bool:
        return not Path("ill").exists()

    def run(self) -> str:
        return "done"
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model without ComfyUI, whose setup fails, or whose health does, where a file says so."""
    if shutil.which("curl") is None:
        pytest.skip("The probes use curl.")
    (tmp_path / "predict.py").write_text(PREDICTOR)
    (tmp_path / "cog.yaml").write_text("run: predict.py:Predictor\n")
    schema.write(tmp_path)
    return tmp_path


def passing(probes: Mapping[str, list[str]], url: str) -> set[str]:
    """The probes that would pass."""
    return {probe for probe, command in probes.items() if passes(command, url)}


def test_the_probes_pass_while_a_model_is_well(
    probes: Mapping[str, list[str]], model: Path
) -> None:
    with CogServer(model) as server:
        url = server.base_url
        server.wait_ready(READY)
        assert passing(probes, url) == set(probes)
        (model / "ill").touch()
        answer = requests.get(f"{url}/health-check", timeout=10)
        assert (answer.status_code, answer.json()["status"]) == (200, "UNHEALTHY")
        assert passing(probes, url) == set()
    assert passing(probes, url) == set()


def test_the_probes_do_not_pass_when_setup_failed(
    probes: Mapping[str, list[str]], model: Path
) -> None:
    (model / "no weights").touch()
    with CogServer(model) as server:
        url = server.base_url
        with pytest.raises(ServerFailed, match="no weights"):
            server.wait_ready(READY)
        assert requests.get(f"{url}/health-check", timeout=10).status_code == 200
        assert passing(probes, url) == set()
