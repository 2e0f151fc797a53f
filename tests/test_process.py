"""The guard, the child and its boot: with the real ComfyUI, and with one that misbehaves."""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from comfy_runner.comfyui import guard, saved_catalog
from comfy_runner.comfyui.client import ComfyClient, Disconnected
from comfy_runner.comfyui.device import choose_device
from comfy_runner.comfyui.process import OFFLINE, ComfyProcess, child_environment
from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, StartFailed

FAKE = Path(__file__).resolve().parent / "fakes" / "comfyui"
GUARD = [sys.executable, "-I", "-S", guard.__file__]


def guarded(code: str) -> subprocess.Popen[bytes]:
    """A Python program under the guard, whose standard input we hold."""
    return subprocess.Popen(
        [*GUARD, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_guard_ends_as_its_child_did(code: str, status: int) -> None:
    with guarded(code) as process:
        assert process.wait(10) == status


def test_guard_reports_a_program_that_does_not_exist() -> None:
    command = [*GUARD, "/no/such/program"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(10) == 127
        assert process.stderr is not None
        assert (
            process.stderr.read() == b"cannot start /no/such/program: No such file or directory\n"
        )


def test_guard_kills_what_its_child_leaves_behind() -> None:
    leave_one = (
        "import subprocess, sys;"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])"
    )
    with guarded(leave_one) as process:
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert reaches_end(process.stdout.fileno())


def test_guard_outlives_the_signals_that_a_terminal_sends() -> None:
    with guarded("import signal; print('up', flush=True); signal.pause()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == -signal.SIGKILL  # the child's end, not its own


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_child_dies_with_its_guard() -> None:
    with guarded("import signal; print('up', flush=True); signal.pause()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert reaches_end(process.stdout.fileno())


def test_guarded_child_has_default_signal_handlers() -> None:
    """Cog may start us with SIGTERM ignored, which exec hands on."""
    code = (
        "import signal;"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,"
        " signal.getsignal(signal.SIGINT) == signal.default_int_handler)"
    )
    command = [
        "sh",
        "-c",
        "trap '' TERM INT; exec \"$@\"",
        "sh",
        *GUARD,
        sys.executable,
        "-c",
        code,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"True True\n"


def reaches_end(descriptor: int, timeout: float = 10.0) -> bool:
    """Whether everything that could write to the pipe is gone, at the latest after a while."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(timeout * 1000):
        if not os.read(descriptor, 4096):
            return True
    return False


@pytest.fixture(
    params=[
        "guarded",
        pytest.param(
            "forked", marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
        ),
    ]
)
def forks(request: pytest.FixtureRequest) -> bool:
    """Whether ComfyUI is forked; both ways it is to be the same for who starts it."""
    if request.param == "forked":
        request.getfixturevalue("_warm_fork_server")
    return bool(request.param == "forked")


@pytest.fixture(scope="session")
def _warm_fork_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The shared fork server is there, so that a test's time is not that of its imports."""
    tree = tmp_path_factory.mktemp("warm")
    (tree / "main.py").touch()
    process = ComfyProcess(Config(comfyui=tree, models=tree / "models", device="cpu"), tree / "run")
    process.start()
    assert process.ends_within(60)
    assert process.exit_code == 0


@pytest.fixture
def faulty(tmp_path: Path, request: pytest.FixtureRequest, forks: bool) -> Iterator[ComfyProcess]:
    """A ComfyUI that has the fault given as parameter; not started."""
    process = ComfyProcess(faulty_config(tmp_path, request.param, forks=forks), tmp_path / "run")
    yield process
    process.stop()


def faulty_config(folder: Path, fault: str, *, forks: bool) -> Config:
    return Config(
        comfyui=FAKE,
        models=folder / "models",
        device="cpu",
        comfyui_args=("--fault", fault),
        fork_server=forks,
        lazy_boot=forks,
    )


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[int]:
    """Reading end of the named pipe that the stubborn fake and its children hold open."""
    pipe = tmp_path / "run" / "alive"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("faulty", ["dies"], indirect=True)
def test_death_while_starting_is_reported_with_the_last_lines(faulty: ComfyProcess) -> None:
    faulty.start()
    with pytest.raises(StartFailed) as failure:
        faulty.wait_ready(60)
    lines = str(failure.value).splitlines()
    assert lines[0] == "ComfyUI ended while it started (exit code 3)."
    assert lines[1] == "  | line 281"
    assert lines[-1] == "  | no module named torch"
    assert not faulty.alive
    assert faulty.ends_within(0)
    assert faulty.exit_code == 3
    assert faulty.tail(2) == ("line 299", "no module named torch")
    assert len(faulty.tail(1000)) == 200


@pytest.mark.parametrize("faulty", ["deaf"], indirect=True)
def test_child_that_never_answers_is_killed_at_the_limit(faulty: ComfyProcess) -> None:
    faulty.start()
    with pytest.raises(StartFailed) as failure:
        faulty.wait_ready(2)
    what, said, here, call, *_ = str(failure.value).splitlines()
    assert what == "ComfyUI did not answer within 2 s."
    assert said == "  | still loading"
    assert here == "It was here, innermost call first:"
    assert call.endswith("in deaf")
    assert not faulty.alive


@pytest.mark.parametrize("faulty", ["deaf"], indirect=True)
def test_stop_ends_the_wait_of_another_thread(faulty: ComfyProcess) -> None:
    faulty.start()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(faulty.wait_ready, 60)
        faulty.stop()
        with pytest.raises(StartFailed, match="was stopped"):
            waiting.result(20)


@pytest.mark.parametrize("faulty", ["stranger"], indirect=True)
def test_answer_of_another_server_is_not_taken_for_ours(faulty: ComfyProcess) -> None:
    faulty.start()
    with pytest.raises(StartFailed, match=r"did not answer(.|\n)*asked for /comfy_runner/health"):
        faulty.wait_ready(6)


@pytest.mark.parametrize("faulty", ["port_taken"], indirect=True)
def test_lost_port_is_replaced(faulty: ComfyProcess) -> None:
    faulty.start()
    faulty.wait_ready(30)
    assert (faulty.folder / "starts").read_text() == "3"


@pytest.mark.parametrize("faulty", ["port_always_taken"], indirect=True)
def test_ports_are_not_tried_for_ever(faulty: ComfyProcess) -> None:
    faulty.start()
    with pytest.raises(StartFailed, match="already in use"):
        faulty.wait_ready(30)


@pytest.mark.parametrize("faulty", ["stubborn"], indirect=True)
def test_stop_leaves_no_process(faulty: ComfyProcess, alive: int) -> None:
    faulty.start()
    faulty.wait_ready(30)
    assert faulty.alive
    assert not faulty.ends_within(0.01)
    faulty.stop()
    assert reaches_end(alive)
    assert not faulty.alive
    assert faulty.exit_code == -signal.SIGKILL
    faulty.stop()


STARTER = """
import signal, sys
from pathlib import Path
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
comfyui, folder, models, end, forks = sys.argv[1:]
config = Config(
    comfyui=Path(comfyui), models=Path(models), device="cpu", comfyui_args=("--fault", "stubborn"),
    fork_server=forks == "True", lazy_boot=forks == "True",
)
process = ComfyProcess(config, Path(folder))
process.start()
process.wait_ready(60)
print("ready", type(process._child.started).__name__, flush=True)
if end == "wait":
    signal.pause()
"""


@pytest.mark.parametrize("end", ["end", "wait"])
def test_nothing_outlives_the_program_that_started_it(
    tmp_path: Path, alive: int, end: str, *, forks: bool
) -> None:
    with subprocess.Popen(
        [
            *(sys.executable, "-c", STARTER, FAKE, tmp_path / "run", tmp_path / "models"),
            *(end, str(forks)),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as starter:
        assert starter.stdout is not None
        way = b"Forked" if forks else b"Guarded"
        assert starter.stdout.readline() == b"ready " + way + b"\n"
        if end == "wait":
            starter.kill()
        assert starter.wait(20) == (-signal.SIGKILL if end == "wait" else 0)
    assert reaches_end(alive)


@pytest.mark.parametrize("faulty", ["stubborn"], indirect=True)
def test_restart_uses_the_same_folder(faulty: ComfyProcess, alive: int) -> None:
    faulty.start()
    faulty.wait_ready(30)
    before = faulty.pid
    (faulty.input / "kept").touch()
    faulty.restart()
    faulty.wait_ready(30)
    assert faulty.pid != before
    assert (faulty.input / "kept").exists()
    with pytest.raises(RuntimeError, match="runs already"):
        faulty.start()
    faulty.stop()
    assert reaches_end(alive)


def test_missing_tree_is_reported_with_what_to_do(tmp_path: Path) -> None:
    process = ComfyProcess(Config(comfyui=tmp_path / "none"), tmp_path / "run")
    with pytest.raises(StartFailed, match="Run script/bootstrap"):
        process.start()
    assert process.exit_code is None
    assert process.ends_within(0)
    assert process.tail() == ()


def test_arguments_that_must_not_be_are_told_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"COMFY_RUNNER_COMFYUI_ARGS: --port would have"):
        ComfyProcess(Config(comfyui_args=("--port", "80")), tmp_path / "run")


def test_child_environment_has_what_it_needs_and_no_secret() -> None:
    passed = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": "/models",
    }
    left_out = {
        "HF_TOKEN": "x",
        "NVIDIA_API_KEY": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": "/src",
        "HTTP_PROXY": "http://user:x@proxy",
        "DATABASE": "x",
    }
    own = {"PYTHONUNBUFFERED": "1"}
    assert child_environment({**passed, **left_out}, hub=True) == {**passed, **own}
    assert child_environment({**passed, **left_out}) == {**passed, **own, **OFFLINE}


def test_nothing_looks_models_up_on_the_hub_while_a_workflow_runs() -> None:
    told = (
        "import huggingface_hub.constants, transformers.utils.hub as t;"
        "print(huggingface_hub.constants.HF_HUB_OFFLINE, t.is_offline_mode())"
    )
    environment = {**os.environ, **child_environment(os.environ)}
    ran = subprocess.run(
        [sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["True", "True"]


def test_device_is_what_is_configured_or_there(tmp_path: Path) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 'GPU 0: Some GPU'\n")
    nvidia_smi.chmod(0o755)
    gpu = {"PATH": f"{tmp_path}{os.pathsep}{os.defpath}"}
    assert choose_device(Config(device="cpu"), gpu)[0] == "cpu"
    assert choose_device(Config(device="cuda"), {})[0] == "cuda"
    assert choose_device(Config(), gpu)[0] == "cuda"
    assert choose_device(Config(comfyui_args=("--cpu",)), gpu)[0] == "cpu"
    assert choose_device(Config(), {**gpu, "CUDA_VISIBLE_DEVICES": ""})[0] == "cpu"
    assert choose_device(Config(), {**gpu, "CUDA_VISIBLE_DEVICES": "-1"})[0] == "cpu"


def test_real_comfyui_reports_a_bad_argument_at_once(comfy_config: Config, tmp_path: Path) -> None:
    process = ComfyProcess(replace(comfy_config, comfyui_args=("--no-such-flag",)), tmp_path)
    process.start()
    with pytest.raises(StartFailed, match=r"exit code 2(.|\n)*unrecognized arguments"):
        process.wait_ready(60)


def test_real_comfyui_is_ready_in_its_own_folder(comfy: ComfyProcess) -> None:
    assert comfy.alive
    assert comfy.exit_code is None
    assert comfy.device == "cpu"
    assert comfy.input.is_dir()
    assert comfy.input.parent == comfy.output.parent == comfy.temp.parent == comfy.folder


def test_printed_lines_are_passed_on_to_the_log(comfy: ComfyProcess, client: ComfyClient) -> None:
    class Waiter(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.seen = Event()

        def emit(self, record: logging.LogRecord) -> None:
            if "got prompt" in record.getMessage():
                self.seen.set()

    logger = logging.getLogger("comfyui")
    level = logger.level
    waiter = Waiter()
    logger.addHandler(waiter)
    logger.setLevel(logging.INFO)
    try:
        client.submit({"1": node("PreviewAny", source="x")}, str(uuid.uuid4()))
        assert waiter.seen.wait(10)
    finally:
        logger.removeHandler(waiter)
        logger.setLevel(level)
    assert any("got prompt" in line for line in comfy.tail())


def test_nodes_cannot_print_our_secrets(client: ComfyClient) -> None:
    """A workflow of core nodes alone can read the whole environment."""
    run_id = str(uuid.uuid4())
    workflow = {
        "1": node("EmptyImage", width=16, height=16, batch_size=1, color=0),
        "2": node("CreateVideo", images=["1", 0], fps=8.0),
        "3": {
            "class_type": "StringFormat",
            "inputs": {
                "f_string": "{a.__init__.__globals__[os].environ}",
                "values.a": ["2", 0],
            },
        },
        "4": node("PreviewAny", source=["3", 0]),
    }
    with client.connect(run_id) as messages:
        client.submit(workflow, run_id)
        text = ""
        while (message := messages.receive(20)) is not None:
            assert isinstance(message, dict)
            if message["type"] == "executed":
                text = message["data"]["output"]["text"][0]
            if message["type"] == "executing" and message["data"]["node"] is None:
                break
    assert "OMP_NUM_THREADS" in text
    assert "not-for-nodes" not in text
    assert "REPLICATE" not in text


def node(class_type: str, **inputs: object) -> dict[str, object]:
    return {"class_type": class_type, "inputs": inputs}


def test_catalog_names_the_model_folder_of_each_input(client: ComfyClient) -> None:
    catalog = client.catalog()
    assert (catalog["version"], catalog["comfyui_version"]) == (1, "0.30.0")
    found = {
        (entry["class_type"], entry["input"]): (entry["folder"], entry["extras"])
        for entry in catalog["model_inputs"]
        if not entry["class_type"].startswith("Test")
    }
    assert len(found) == 47
    assert found["CheckpointLoaderSimple", "ckpt_name"] == ("checkpoints", [])
    assert found["CheckpointLoader", "config_name"] == ("configs", [])
    assert found["UNETLoader", "unet_name"] == ("diffusion_models", [])
    assert found["VAELoader", "vae_name"] == ("vae", ["pixel_space"])
    assert found["TrainLoraNode", "existing_lora"] == ("loras", ["[None]"])
    assert found["DiffusersLoader", "model_path"] == ("diffusers", [])
    assert {class_type for class_type, _ in found} <= set(catalog["object_info"])


def test_catalog_finds_models_in_unusual_inputs(client: ComfyClient) -> None:
    catalog = client.catalog()
    found = [
        (entry["input"], entry["folder"], entry["extras"])
        for entry in catalog["model_inputs"]
        if entry["class_type"] == "TestModelInputs"
    ]
    assert found == [
        ("either", "checkpoints", []),
        ("either", "diffusion_models", []),
        ("listed_by_hand", "loras", ["None"]),
        ("dynamic.name", "vae", []),
        ("grown.lora0", "loras", []),
        ("grown.lora1", "loras", []),
    ]
    assert catalog["unchecked"]["TestModelInputs"] == ["either", "@types"]


def test_catalog_names_the_inputs_that_take_files(client: ComfyClient) -> None:
    catalog = client.catalog()
    found = {
        (entry["class_type"], entry["input"], entry["subfolder"])
        for entry in catalog["file_inputs"]
    }
    assert found == {
        ("LoadImage", "image", ""),
        ("LoadImageMask", "image", ""),
        ("LoadLatent", "latent", ""),
        ("LoadAudio", "audio", ""),
        ("LoadVideo", "file", ""),
        ("Load3D", "model_file", "3d"),
        ("Load3DAdvanced", "model_file", "3d"),
    }


def test_catalog_tells_what_is_not_checked_and_where_models_lie(client: ComfyClient) -> None:
    catalog = client.catalog()
    assert catalog["unchecked"]["LoadImage"] == ["image"]
    assert catalog["unchecked"]["Load3D"] == ["*"]
    assert "KSampler" not in catalog["unchecked"]
    checkpoints = catalog["folders"]["checkpoints"]
    assert checkpoints["places"] == ["checkpoints"]
    assert ".safetensors" in checkpoints["extensions"]


def test_probing_leaves_no_mark_behind(comfy: ComfyProcess, client: ComfyClient) -> None:
    assert "@@" not in json.dumps(client.catalog())
    assert not [path for path in comfy.folder.rglob("*") if "@@" in path.name]


def test_crash_is_seen_and_survived(sacrificed_comfy: ComfyProcess) -> None:
    comfy = sacrificed_comfy
    run_id = str(uuid.uuid4())
    with ComfyClient(comfy.base_url, comfy.token) as client, client.connect(run_id) as messages:
        with suppress(Disconnected):  # it may be gone before it has answered the request
            client.submit({"1": node("TestSegfault")}, run_id)
        with pytest.raises(Disconnected):
            deque(iter(lambda: messages.receive(10), None))
        with pytest.raises(StartFailed, match="signal SIGSEGV"):
            comfy.wait_ready(10)
        assert not comfy.alive
        assert comfy.exit_code == -signal.SIGSEGV
        assert any("Segmentation fault" in line for line in comfy.tail(200))
        with pytest.raises(Disconnected):
            client.worker_alive()
    comfy.restart()
    comfy.wait_ready(180)
    with ComfyClient(comfy.base_url, comfy.token) as client:
        assert client.worker_alive()


LISTINGS = ("model_inputs", "file_inputs")
"""Where the catalog tells which inputs list files: those change with what runs leave behind."""

API_NODES = "comfy_api_nodes"
"""Module of the classes that call paid services, which our ComfyUI runs without."""


def test_the_builtin_catalog_is_that_of_the_installed_comfyui(client: ComfyClient) -> None:
    """A reminder after an upgrade: make comfyui/core_catalog.json.gz anew."""
    live, saved = client.catalog(), saved_catalog.builtin().raw
    core = {
        name: entry
        for name, entry in live["object_info"].items()
        if not entry["python_module"].startswith("custom_nodes")
    }
    ours = {
        name: entry
        for name, entry in saved["object_info"].items()
        if not entry["python_module"].startswith(API_NODES)
    }
    assert core.keys() == ours.keys()
    lists_files = {entry["class_type"] for key in LISTINGS for entry in saved[key]}
    for name in core.keys() - lists_files:
        assert core[name] == ours[name]
    for key in LISTINGS:
        assert [entry for entry in live[key] if entry["class_type"] in core] == [
            entry for entry in saved[key] if entry["class_type"] in core
        ]
    unchecked = {name: inputs for name, inputs in saved["unchecked"].items() if name in core}
    assert {name: live["unchecked"][name] for name in unchecked} == unchecked
    assert saved["folders"].items() <= live["folders"].items()
