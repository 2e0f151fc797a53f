"""Models that are fetched and read while ComfyUI boots."""

import json
import logging
import threading
from pathlib import Path

import numpy
import pytest
from graphs import bundled, node
from safetensors.numpy import save

from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput
from comfy_runner.runner import Runner
from comfy_runner.runs.preloading import (
    CHUNK,
    Preloading,
    TellDownloads,
    free_memory,
    read_ahead,
)
from comfy_runner.weights.progress import Downloading
from comfy_runner.weights.store import WeightStore, read_manifest

ONE = save({"x": numpy.zeros(232, dtype="float32")})
"""A weight of 1000 bytes."""

FAKE = Path(__file__).resolve().parent / "fakes" / "comfyui"


@pytest.fixture
def project(tmp_path: Path) -> Config:
    """A manifest with two weights, one of which comes from nowhere, and a workflow for them."""
    (tmp_path / "one.bin").write_bytes(ONE)
    entries = [
        {"name": "one.safetensors", "folders": ["loras"], "urls": ["one.bin"]},
        {"name": "two.safetensors", "folders": ["vae"], "urls": ["no.bin"]},
    ]
    groups = {"all": ["loras/one.safetensors", "vae/two.safetensors"]}
    manifest = {"version": 1, "groups": groups, "weights": entries}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return Config(
        home=tmp_path / "home",
        models=tmp_path / "models",
        manifest=tmp_path / "manifest.json",
        comfyui=FAKE,
        custom_nodes=tmp_path / "packs",
        device="cpu",
        comfyui_args=("--fault", "serve"),
    )


def with_preload(config: Config, *names: str) -> Config:
    return Config(**{**vars(config), "preload": names})


def preload(config: Config, log: pytest.LogCaptureFixture) -> str:
    """Do all that the setting asks for; what was logged of it."""
    log.set_level(logging.INFO)
    preloading = Preloading(config, read_manifest(config.manifest), WeightStore(config))
    preloading.start({})
    preloading.wait_fetched()
    assert preloading._thread is not None  # noqa: SLF001
    preloading._thread.join(30)  # noqa: SLF001
    preloading.close()
    return "\n".join(line for line in log.messages if line.startswith("Preload: "))


def test_a_weight_is_fetched_and_read(project: Config, caplog: pytest.LogCaptureFixture) -> None:
    told = preload(with_preload(project, "loras/one.safetensors"), caplog)
    assert (project.models / "loras" / "one.safetensors").read_bytes() == ONE
    assert "Preload: fetching loras/one.safetensors: " in told
    assert "Preload: 1 file, 1.0 kB, read into the page cache in " in told


def test_what_cannot_be_fetched_is_told_and_the_rest_is_read(
    project: Config, caplog: pytest.LogCaptureFixture
) -> None:
    told = preload(with_preload(project, "all"), caplog)
    assert "Preload: no.bin could not be fetched: " in told
    assert "Preload: 1 file, 1.0 kB, read" in told


def test_the_models_of_a_workflow_are_read_wherever_comfyui_finds_them(
    project: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that somebody put into the old folder is listed in the new one as well."""
    graph = bundled("text_to_picture")
    graph["30"] = node("LoraLoaderModelOnly", model=["1", 0], strength_model=1.0)
    graph["30"]["inputs"]["lora_name"] = "one.safetensors"
    graph["7"]["inputs"]["model"] = ["30", 0]
    (tmp_path / "workflow.json").write_text(json.dumps(graph))
    standing = {
        "unet/tiny-flux-colours.safetensors": 10,
        "clip/tiny-clip_l-16tok.pt": 200,
        "vae/tiny-mosaic-vae.pt": 3000,
    }
    for label, size in standing.items():
        (project.models / label).parent.mkdir(parents=True)
        (project.models / label).write_bytes(b"x" * size)
    told = preload(with_preload(project, str(tmp_path / "workflow.json")), caplog)
    assert "Preload: 4 files, 4.2 kB, read" in told


def test_a_workflow_that_is_none_stops_nothing_else(
    project: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fox.json").write_text("[]")
    path = str(tmp_path / "fox.json")
    told = preload(with_preload(project, path, "loras/one.safetensors"), caplog)
    assert f"Preload: the models of {path} are not known: " in told
    assert "Preload: 1 file, 1.0 kB, read" in told


def test_names_that_mean_nothing_are_all_refused_before_anything_starts(project: Config) -> None:
    with pytest.raises(InvalidInput) as caught:
        Runner(with_preload(project, "al", "all", "no/such.json"))
    first, second = caught.value.problems
    assert {first.input, second.input} == {"COMFY_RUNNER_PRELOAD"}
    assert first.what == "'al' is no group and no weight of the manifest, and no file."
    assert "all" in first.hint
    assert "'no/such.json'" in second.what


def test_a_started_runner_has_the_models(project: Config) -> None:
    with Runner(with_preload(project, "loras/one.safetensors")):
        assert (project.models / "loras" / "one.safetensors").is_file()


def test_a_runner_that_does_not_start_leaves_no_thread(
    project: Config, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(**{**vars(project), "preload": ("all",), "home": project.manifest / "home"})
    with pytest.raises(Exception, match="cannot be written"):
        Runner(config).start()
    assert not [each for each in threading.enumerate() if each.name == "preload"], caplog.text


def test_only_as_much_is_read_as_fits(tmp_path: Path) -> None:
    sizes = {"a": 600, "b": 500, "c": 400}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    paths = [tmp_path / name for name in ("a", "again", "b", "gone", "c")]
    found = read_ahead(paths, 1000, threading.Event())
    assert (found.files, found.size, found.too_big, found.stopped) == (2, 1000, ("b",), False)
    assert "2 files, 1.0 kB, read" in str(found)
    assert str(found).endswith("left out, for they would take too much memory: b.")


def test_reading_ends_when_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (CHUNK + 1))
    stopped = threading.Event()
    stopped.set()
    found = read_ahead([tmp_path / "a"], 2 * CHUNK, stopped)
    assert (found.files, found.size, found.stopped) == (0, 0, True)
    assert "until it was stopped" in str(found)


def test_a_container_has_no_more_free_memory_than_it_may_use(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    (tmp_path / "proc" / "self").mkdir(parents=True)
    told = "MemTotal: 800 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n"
    (tmp_path / "proc" / "meminfo").write_text(told)
    assert free_memory(tmp_path) == 600 * 1024
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path) == 1000


def test_downloads_are_told_now_and_then_and_each_end_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    teller = TellDownloads("Preload")
    updates = [("a", 1), ("a", 2), ("b", 1), ("a", 9), ("b", 2), ("a", 9), ("b", 9)]
    for name, done in updates:
        teller.tell(Downloading(name, done, 9))
    assert [line.partition(":")[2].split(":")[0] for line in caplog.messages] == [
        *(" fetching a", " fetching a", " fetching b")
    ]
