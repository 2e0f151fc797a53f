"""Models that are fetched and read while ComfyUI boots."""

import json
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from fakes.file_server import FileServer
from graphs import bundled, node
from safetensors.numpy import save
from weight_stores import ensure, tensors, weight

from comfy_runner.config import Config
from comfy_runner.errors import DownloadFailed, InvalidInput, TimedOut
from comfy_runner.runner import Runner
from comfy_runner.runs.preloading import Ahead, Brought, Preloading, TellDownloads
from comfy_runner.runs.run import Finished, Request
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.progress import Downloading
from comfy_runner.weights.store import WeightStore, read_manifest
from comfy_runner.weights.weight import Weight

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


class First:
    """The first run's models, being fetched ahead from a server."""

    def __init__(self, config: Config, *weights: Weight, present: tuple[str, ...] = ()) -> None:
        self.updates: list[Downloading] = []
        self.store = WeightStore(config)
        ahead = Ahead(
            weights=weights,
            asked=(),
            present=present,
            credentials={},
            tell=self.updates.append,
        )
        self.preloading = Preloading(config, Manifest(), self.store, ahead)
        self.preloading.start({})

    def give_way(self, seconds: float = 30.0) -> None:
        self.preloading.give_way(time.monotonic() + seconds)


@pytest.fixture
def config(project: Config) -> Config:
    """As the project, with a disk that may be filled."""
    return replace(project, disk_reserve=0, pget="off")


def test_the_first_run_waits_for_what_is_fetched_for_it(config: Config, server: FileServer) -> None:
    first = First(config, weight("one.safetensors", server.serve("one", ONE, hold_after=500)))
    assert server.holding.wait(10)
    assert first.preloading.brought.files == 0
    server.release.set()
    first.give_way()
    assert (config.models / "loras" / "one.safetensors").read_bytes() == ONE
    brought = first.preloading.brought
    assert (brought.files, brought.size) == (1, len(ONE))
    assert 0 <= brought.waited <= brought.seconds
    assert (first.updates[-1].name, first.updates[-1].done) == ("loras/one.safetensors", len(ONE))
    first.give_way()
    first.preloading.close()


def test_what_does_not_come_is_the_first_run_s_failure_and_not_logged(
    config: Config, server: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = First(config, weight("one.safetensors", server.url("none")))
    with pytest.raises(DownloadFailed, match="404"):
        first.give_way()
    first.give_way()
    first.preloading.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_first_run_s_deadline_holds_while_it_waits(config: Config, server: FileServer) -> None:
    first = First(config, weight("one.safetensors", server.serve("one", ONE, hold_after=500)))
    with pytest.raises(TimedOut, match="while weights were fetched"):
        first.give_way(0.0)
    first.preloading.close()
    assert not (config.models / "loras" / "one.safetensors").exists()


def test_closing_ends_what_is_fetched_ahead(config: Config, server: FileServer) -> None:
    first = First(config, weight("one.safetensors", server.serve("one", ONE, hold_after=500)))
    assert server.holding.wait(10)
    first.preloading.close()
    assert not [each for each in threading.enumerate() if each.name == "preload"]
    assert not server.release.is_set()


def test_what_the_first_run_has_already_makes_no_room_for_the_rest(
    config: Config, server: FileServer
) -> None:
    config = replace(config, max_weights_bytes=1500)
    here = weight("here.safetensors", server.serve("here", ONE))
    ensure(WeightStore(config), here)
    more = weight("one.safetensors", server.serve("one", tensors(900)), size=len(tensors(900)))
    first = First(config, more, present=("loras/here.safetensors",))
    with pytest.raises(DownloadFailed):
        first.give_way()
    first.preloading.close()
    assert (config.models / "loras" / "here.safetensors").is_file()


def test_a_started_runner_need_not_have_what_its_first_run_waits_for(
    config: Config, server: FileServer
) -> None:
    url = server.serve("one", ONE, hold_after=500)
    ahead = Ahead(
        weights=(weight("one.safetensors", url),),
        asked=(),
        present=(),
        credentials={},
        tell=lambda _: None,
    )
    with Runner(config, ahead) as runner:
        assert server.holding.wait(10)
        with pytest.raises(TimedOut, match="while weights were fetched"):
            list(runner.run(Request(document=bundled("text_to_picture"), timeout=0.1)))
    assert not [each for each in threading.enumerate() if each.name == "preload"]


def test_what_was_fetched_ahead_counts_in_the_run() -> None:
    finished = Finished({"prepare": 3.0, "fetch": 1.0, "run": 2.0}, 9, 0, 1, 1, 10)
    counted = Brought(2, 500, seconds=8.0, waited=2.5).counted(finished)
    assert counted.seconds == {"prepare": 0.5, "fetch": 9.0, "run": 2.0}
    assert (counted.fetched_files, counted.fetched_bytes) == (3, 510)
    nothing = Brought(seconds=0.5, waited=0.25).counted(finished)
    assert nothing.seconds == {"prepare": 2.75, "fetch": 1.25, "run": 2.0}
    assert (nothing.fetched_files, nothing.fetched_bytes) == (1, 10)
    assert Brought().counted(finished) == finished


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
