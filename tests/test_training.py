"""Training as packaging: what is asked for becomes one verified tar, which `setup` takes."""

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from cog_server import PROJECT, CogServer, settings
from fakes.file_server import FileServer
from graphs import bundled
from loras import lora, workflow
from test_loras import run
from weight_stores import settings as store_settings
from weight_stores import sha256, tensors

from comfy_runner.config import Config
from comfy_runner.errors import CallerError, HashMismatch, MachineError, Refused
from comfy_runner.fetch.outside import LAUNCH
from comfy_runner.runner import Runner
from comfy_runner.serving.server import BUSY
from comfy_runner.serving.trained import install
from comfy_runner.serving.training import package
from comfy_runner.serving.uploads import Address
from comfy_runner.weights.manifest import Manifest

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "weights_manifest.json").write_text('{"version": 1, "weights": []}')
    return replace(store_settings(tmp_path / "models"), home=tmp_path / "home")


@pytest.fixture
def uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as Cog makes it of what is sent."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder / "tmpabcdefghfile.bin"


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        assert all((m.mtime, m.uid, m.uname, m.mode) == (0, 0, "", 0o644) for m in archive)
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def refused(weights: str, config: Config, **more: Any) -> str:
    with pytest.raises(CallerError) as caught:
        package(weights, config=config, **more)
    assert not (config.home / "training").exists() or not any((config.home / "training").iterdir())
    return str(caught.value)


def test_the_tar_says_all_of_what_is_in_it_and_no_secret(
    config: Config, server: FileServer
) -> None:
    a = server.serve("a.safetensors", tensors(10), ranges=True) + "?token=s3cret"
    b = server.serve("files/b.safetensors", tensors(20), ranges=True)
    lines = f"# what it needs\n\nvae/mine.safetensors = {b}\nloras/sub/style={a}\nunet = {b}\n"
    path = package(lines, workflow=json.dumps(GRAPH), config=config)

    found = members(path)
    assert list(found) == [
        "manifest.json",
        "workflow.json",
        "models/diffusion_models/b.safetensors",
        "models/loras/sub/style.safetensors",
        "models/vae/mine.safetensors",
    ]
    assert json.loads(found["workflow.json"]) == GRAPH
    assert b"s3cret" not in path.read_bytes()
    (_, style, _) = Manifest.parse(found["manifest.json"]).weights
    assert (style.label, style.size) == ("loras/sub/style.safetensors", len(tensors(10)))
    assert style.sha256 == sha256(tensors(10))
    assert style.note == f"From {server.url('a.safetensors')}."
    assert found[style.urls[0].url] == tensors(10)


def test_the_same_weights_make_the_same_tar(config: Config, server: FileServer) -> None:
    url = server.serve("a.safetensors", tensors(10), ranges=True)
    text = json.dumps({"loras/a.safetensors": {"url": url, "sha256": sha256(tensors(10))}})
    first = package(text, config=config)
    content = first.read_bytes()
    assert package(f"loras = {url}", config=config) == first
    assert first.read_bytes() == content


def test_what_is_packed_is_what_is_installed(
    config: Config, tmp_path: Path, server: FileServer
) -> None:
    url = server.serve("a.safetensors", tensors(10), ranges=True)
    path = package(f"loras/x = {url}", workflow=json.dumps(GRAPH), config=config)
    there = replace(config, models=tmp_path / "elsewhere")
    found = install(str(path), there, {})
    assert (found.names, found.workflow) == (("loras/x.safetensors",), GRAPH)
    assert (there.models / "loras/x.safetensors").read_bytes() == tensors(10)


def test_a_weight_of_the_models_own_manifest_is_packed_by_its_name(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "own.safetensors").write_bytes(tensors(5))
    entry = {"name": "own.safetensors", "folders": ["vae"], "urls": ["own.safetensors"]}
    manifest = {"version": 1, "weights": [{**entry, "license": "MIT"}]}
    config.manifest.write_text(json.dumps(manifest))
    found = members(package("vae/own.safetensors", config=config))
    (weight,) = Manifest.parse(found["manifest.json"]).weights
    assert (weight.license, weight.sha256) == ("MIT", sha256(tensors(5)))
    assert found["models/vae/own.safetensors"] == tensors(5)


def test_an_upload_is_a_file_or_an_archive_with_one(config: Config, uploaded: Path) -> None:
    asked = "loras/mine.safetensors = upload"
    uploaded.write_bytes(tensors(7))
    plain = members(package(asked, upload=uploaded, config=config))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("out/lora.safetensors")
        member.size = len(tensors(7))
        archive.addfile(member, io.BytesIO(tensors(7)))
    uploaded.write_bytes(packed.getvalue())
    assert members(package(asked, upload=uploaded, config=config)) == plain
    assert plain["models/loras/mine.safetensors"] == tensors(7)
    assert [path.suffix for path in (config.home / "training").iterdir()] == [".tar"]


def test_an_upload_by_its_address_is_fetched_once(
    config: Config,
    uploaded: Path,
    server: FileServer,
) -> None:
    address = Address.of(server.serve("up.safetensors", tensors(7)))
    asked = "loras/a.safetensors = upload\nloras/b.safetensors = upload"
    assert len(members(package(asked, upload=address, config=config))) == 3
    assert len(server.asked) == 1
    address.unlink()
    assert list(uploaded.parent.iterdir()) == []


def test_an_upload_must_have_the_hash_that_is_given(config: Config, uploaded: Path) -> None:
    uploaded.write_bytes(tensors(7))
    entry = {"url": "upload", "sha256": sha256(tensors(7))}
    package(json.dumps({"loras/a.safetensors": entry}), upload=uploaded, config=config)
    entry["sha256"] = sha256(b"another file")
    with pytest.raises(HashMismatch):
        package(json.dumps({"loras/a.safetensors": entry}), upload=uploaded, config=config)


def test_a_name_is_installed_however_its_letters_are_composed(
    config: Config, tmp_path: Path, uploaded: Path
) -> None:
    """As macOS decomposes them."""
    uploaded.write_bytes(tensors(7))
    path = package("loras/e\u0301te\u0301.safetensors = upload", upload=uploaded, config=config)
    there = replace(config, models=tmp_path / "elsewhere")
    assert install(str(path), there, {}).names == ("loras/\u00e9t\u00e9.safetensors",)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.sft", "a.sft/b.sft"], "loras/a.sft cannot be a file and the folder of"),
        (["\u00e9" * 99 + ".sft"], "200 bytes a name and 40 folders are taken"),
        (["a/" * 38 + "a.sft"], "200 bytes a name and 40 folders are taken"),
    ],
)
def test_names_that_could_not_be_unpacked_are_not_packed(
    config: Config, uploaded: Path, names: list[str], says: str
) -> None:
    uploaded.write_bytes(tensors(7))
    weights = "".join(f"loras/{name} = upload\n" for name in names)
    assert says in refused(weights, config, upload=uploaded)


def test_an_upload_that_cannot_be_used_is_one_clear_error(config: Config, uploaded: Path) -> None:
    asked = "loras/mine.safetensors = upload"
    uploaded.write_bytes(tensors(7))
    assert "It is not said where the uploaded file belongs" in refused("", config, upload=uploaded)
    assert "No file is uploaded" in refused(asked, config)
    assert "An upload needs a name" in refused("loras = upload", config, upload=uploaded)
    assert "not an uploaded file" in refused(asked, config, upload=config.manifest)
    assert "neither an uploaded file" in refused(asked, config, upload="/etc/hostname")
    pickled = "loras/mine.ckpt = upload"
    assert "since loading others can run code" in refused(pickled, config, upload=uploaded)


def test_every_line_that_does_not_hold_is_told_at_once(config: Config) -> None:
    said = refused(
        "lora/a.safetensors = https://example.com/a.safetensors\n"
        "https://example.com/b.safetensors?x=1\n"
        "loras/../c.safetensors = https://example.com/c\n"
        "loras/d.ckpt = https://example.com/d\n"
        "vae/e.safetensors\n"
        "loras/f.safetensors = owner\n",
        config,
    )
    assert "line 1: There is no model folder 'lora'. Did you mean 'loras'" in said
    assert "line 2: It is not said which folder https://example.com/b.safetensors belongs" in said
    assert "line 3: 'loras/../c.safetensors' is no folder and name" in said
    assert "line 4: loras/d.ckpt is called 'd.ckpt'; only .safetensors" in said
    assert "line 5: 'vae/e.safetensors' is neither an address nor a weight" in said
    assert "line 6: 'owner' is neither an address nor a weight" in said


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("", "No weights are given"),
        ("{", "not JSON"),
        ('{"loras/a.safetensors": 3}', "weights, loras/a.safetensors: It is neither an address"),
        ('{"loras/a.safetensors": {"url": "https://x.y/a", "sha256": "0"}}', "neither an address"),
    ],
)
def test_a_text_that_asks_for_nothing_is_refused(config: Config, weights: str, says: str) -> None:
    assert says in refused(weights, config)


def test_a_weight_is_judged_as_in_a_run(config: Config, server: FileServer) -> None:
    url = server.serve("a.ckpt", b"\x80\x02c__builtin__\neval\n", ranges=True)
    assert "since loading others can run code" in refused(f"loras = {url}", config)
    url = server.serve("a.gguf", b"GGUF and more", ranges=True)
    assert "the file is called a.gguf" in refused(f"loras/a.safetensors = {url}", config)
    url = server.serve("a.safetensors", tensors(3), ranges=True)
    twice = f"loras = {url}\nloras/a = {url}"
    assert "Two files would be called loras/a.safetensors" in refused(twice, config)
    url = server.url("never-asked-before.safetensors")
    with pytest.raises(Refused, match="private network"):
        package(f"loras = {url}", config=replace(config, private_addresses=False))
    assert "1 are allowed" in refused(
        f"loras/a = {url}\nloras/b = {url}", replace(config, max_urls=1)
    )


def test_a_workflow_that_is_none_is_told_before_anything_is_fetched(
    config: Config, server: FileServer
) -> None:
    url = server.serve("a.safetensors", tensors(3), ranges=True)
    assert "workflow" in refused(f"loras = {url}", config, workflow="[]")
    assert not server.asked


def test_a_tar_is_not_begun_where_it_has_no_room(config: Config, uploaded: Path) -> None:
    uploaded.write_bytes(tensors(7))
    small = replace(config, disk_reserve=2**60)
    with pytest.raises(MachineError, match=r"The tar needs .* must stay so"):
        package("loras/mine.safetensors = upload", upload=uploaded, config=small)
    assert not (config.home / "training").exists()


class TrainingServer(CogServer):
    """The same server in its other mode."""

    def __enter__(self) -> Self:
        mode = ["--host", "127.0.0.1", "--x-mode", "train"]
        server = [sys.executable, "-m", "cog.server.http", *mode]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *server],
            cwd=self._project,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._printed = self._process.stdout  # type: ignore[assignment]  # it is a pipe
        self._reader = threading.Thread(target=self._read_log, name="cog log")
        self._reader.start()
        return self

    def train(self, values: dict[str, str]) -> dict[str, Any]:
        """The answer to a training; another one has ended, or it is asked for again."""
        again = threading.Event()
        while True:
            body = {"input": values}
            with self._request("POST", "/trainings", 60, json=body) as answer:
                if answer.status_code != BUSY:
                    found: dict[str, Any] = answer.json()
                    return found
            again.wait(0.02)  # nothing tells that a slot was freed


def test_a_lora_trained_through_cog_changes_the_picture(
    runner: Runner, tmp_path: Path, server: FileServer
) -> None:
    (tmp_path / "train.py").write_bytes((PROJECT / "train.py").read_bytes())
    body = lora(7)
    url = server.serve("style.safetensors", body, ranges=True, etag='"1"')
    document = workflow()
    document["20"]["inputs"]["lora_name"] = "trained/style.safetensors"
    sent = {
        "weights": f"loras/trained/style.safetensors = {url}\nloras/trained/up.sft = upload",
        "workflow": json.dumps(document),
        "upload": server.serve("up.safetensors", lora(8)),
    }
    environment = settings(
        tmp_path / "home", COMFY_RUNNER_PRIVATE_ADDRESSES="1", COG_TRAIN_TYPE_STUB="train.py:train"
    )
    with TrainingServer(tmp_path, environment) as trainer:
        trainer.wait_ready(60)
        # Cog itself would fetch it before there is a policy, and say so in other words.
        gone = trainer.train({**sent, "upload": server.url("gone.safetensors")})
        reply = trainer.train(sent)
        failed = trainer.train({**sent, "weights": "loras/a.safetensors = nowhere"})
        nothing = trainer.train({})
        private = trainer.train({**sent, "upload": "/etc/hostname"})
    assert reply["status"] == "succeeded", reply
    assert "Packed loras/trained/style.safetensors, loras/trained/up.sft" in reply["logs"]
    assert "upload: " in gone["error"]
    assert "there is no such file (HTTP 404)" in gone["error"]
    assert "No weights are given" in nothing["error"]
    assert "line 1: 'nowhere' is neither" in failed["error"]
    assert "input upload: It is neither an uploaded file" in private["error"]

    tar = tmp_path / "weights.tar"
    tar.write_bytes(base64.b64decode(reply["output"]["weights"].partition(",")[2]))
    plain = run(runner, bundled("text_to_picture"), **{"KSampler.steps": 3})
    found = install(str(tar), runner.config, {})
    with found.pins:
        assert found.names == ("loras/trained/style.safetensors", "loras/trained/up.sft")
        assert found.workflow is not None
        styled = run(runner, dict(found.workflow))
    assert styled.pixels != plain.pixels
