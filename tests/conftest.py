"""What many tests share: one real ComfyUI on the CPU, booted once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.file_server import FileServer, running
from hypothesis import HealthCheck, settings

from comfy_runner.comfyui.client import ComfyClient
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
from comfy_runner.runner import Runner

HERE = Path(__file__).resolve().parent

BOOT_TIMEOUT = 180.0

# A machine with other work on it makes examples slowly, which says nothing about the code.
settings.register_profile("ours", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("ours")

collect_ignore = ["custom_nodes", "fakes"]


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A web server of files, which misbehaves as each of them says."""
    with running() as served:
        yield served


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads on few shared cores are many times slower.

    In all tests alike, since those with the same variables share a fork server.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def comfyui_tree() -> Path:
    """The ComfyUI source tree."""
    tree = Config.from_environment().comfyui
    if not (tree / "main.py").is_file():
        pytest.fail(f"There is no ComfyUI in {tree}. Run script/bootstrap.", pytrace=False)
    return tree


@pytest.fixture(scope="session")
def comfy_config(comfyui_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings for a ComfyUI on the CPU with no models and the test nodes only."""
    home = tmp_path_factory.mktemp("home")
    # ComfyUI cannot list a folder that it has seen and that is gone: this one stays.
    (home / "models" / "upscale_models").mkdir(parents=True)
    return replace(
        Config.from_environment(),
        home=home,
        comfyui=comfyui_tree,
        models=home / "models",
        custom_nodes=HERE / "custom_nodes",
        device="cpu",
        comfyui_args=(),
        boot_timeout=BOOT_TIMEOUT,
        private_addresses=True,
    )


@pytest.fixture(scope="session")
def runner(comfy_config: Config) -> Iterator[Runner]:
    """A started runner, the same for all tests: leave no run behind."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REPLICATE_API_TOKEN", "not-for-nodes")
        with Runner(comfy_config) as runner:
            yield runner


@pytest.fixture(scope="session")
def comfy(runner: Runner) -> ComfyProcess:
    """The shared runner's ComfyUI, ready: leave no run behind in its queue."""
    return runner.process


@pytest.fixture
def client(comfy: ComfyProcess) -> Iterator[ComfyClient]:
    """A client of the shared ComfyUI."""
    with ComfyClient(comfy.base_url, comfy.token) as client:
        yield client


@pytest.fixture
def sacrificed_comfy(comfy: ComfyProcess) -> Iterator[ComfyProcess]:
    """The shared ComfyUI for a test that breaks it; it is restarted afterwards when it is broken.

    Each use may cost a boot. The address changes with a restart.
    """
    yield comfy
    with ComfyClient(comfy.base_url, comfy.token) as client:
        healthy = comfy.alive and client.worker_alive()
    if not healthy:
        comfy.restart()
        comfy.wait_ready(BOOT_TIMEOUT)
