"""Trained weights as `setup` gets them: by path and by address, once, verified, in place."""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cog_server import READY, CogServer
from cog_server import settings as cog_settings
from fakes.file_server import FileServer, running
from graphs import HERE
from loras import lora, workflow
from weight_stores import fetches, files, looks, put, settings, sha256, staged, tensors

from comfy_runner.config import Config
from comfy_runner.errors import DownloadFailed, HashMismatch, InvalidInput, InvalidWorkflow
from comfy_runner.fetch.archives import BadArchive
from comfy_runner.serving.trained import Installed
from comfy_runner.serving.trained import install as install_here
from comfy_runner.weights.store import WeightStore

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return settings(tmp_path / "models")


def install(source: str | Path, config: Config) -> Installed:
    return install_here(str(source), config, {})


def tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def trained(*labels: str, content: bytes | None = None, **more: bytes) -> dict[str, bytes]:
    """The members of a tar as a training makes it."""
    body = tensors(50) if content is None else content
    weights: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    for label in labels:
        folder, _, name = label.partition("/")
        members[f"models/{label}"] = body
        entry = {"name": name, "folders": [folder], "urls": [f"models/{label}"]}
        weights.append({**entry, "size": len(body), "sha256": sha256(body)})
    manifest = json.dumps({"version": 1, "weights": weights}).encode()
    return {"manifest.json": manifest, **members, **more}


TWICE = json.dumps(
    {
        "version": 1,
        "weights": [
            {
                "name": f"{name}.safetensors",
                "folders": ["loras"],
                "urls": ["models/loras/a.safetensors"],
                "size": len(tensors(50)),
                "sha256": sha256(tensors(50)),
            }
            for name in "ab"
        ],
    }
).encode()


def kept(config: Config) -> list[str]:
    """The names of all that the store has, pinned or not."""
    return sorted(name for entry in WeightStore(config).objects.entries() for name in entry.names)


def test_a_tar_by_address_is_installed_once_and_costs_one_look_afterwards(
    config: Config, server: FileServer
) -> None:
    members = trained("loras/a.safetensors", "vae/b.safetensors")
    members["workflow.json"] = json.dumps(GRAPH).encode()
    url = server.serve("out/trained.tar", tar(members), ranges=True, etag='"1"')

    first = install(f"{url}?signature=abc", config)
    assert fetches(server) > 0
    sent = server.sent
    again = install(f"{url}?signature=other", config)

    assert first.names == again.names == ("loras/a.safetensors", "vae/b.safetensors")
    assert first.workflow == again.workflow == GRAPH
    assert server.sent - sent == 1
    assert looks(server, "out/trained.tar") == 3
    assert files(config.models) == ["loras/a.safetensors", "vae/b.safetensors"]
    assert (config.models / "vae/b.safetensors").read_bytes() == tensors(50)
    assert staged(config.models) == []


def test_what_is_evicted_is_fetched_again(config: Config, server: FileServer) -> None:
    url = server.serve("t.tar", tar(trained("loras/a.safetensors")), ranges=True, etag='"1"')
    install(url, config).pins.close()
    WeightStore(config).objects.remove("loras/a.safetensors")
    assert files(config.models) == []
    install(url, config)
    assert files(config.models) == ["loras/a.safetensors"]


def test_another_content_at_the_address_takes_the_name(config: Config, server: FileServer) -> None:
    url = server.serve("t.tar", tar(trained("loras/a.safetensors")), ranges=True, etag='"1"')
    install(url, config)
    other = tar(trained("loras/a.safetensors", content=tensors(50, b"b")))
    server.serve("t.tar", other, ranges=True, etag='"2"')
    install(url, config)
    assert (config.models / "loras/a.safetensors").read_bytes() == tensors(50, b"b")


def test_a_token_out_of_a_file_may_end_in_a_line(config: Config, server: FileServer) -> None:
    url = server.serve("a/b/resolve/main/t.tar", tar(trained("loras/a.safetensors")), ranges=True)
    config = replace(config, hf_endpoint=server.url("").rstrip("/"))
    found = install_here(url, config, {"HF_TOKEN": "hf_abc\n"})
    assert found.names == ("loras/a.safetensors",)


def test_a_host_that_tells_no_version_is_asked_for_all_of_it_again(
    config: Config, server: FileServer
) -> None:
    url = server.serve("t.tar", tar(trained("loras/a.safetensors")))
    install(url, config)
    server.serve("t.tar", tar(trained("loras/a.safetensors", content=tensors(50, b"b"))))
    install(url, config)
    assert (config.models / "loras/a.safetensors").read_bytes() == tensors(50, b"b")


def test_a_host_that_is_gone_does_not_stop_a_second_start(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as server:
        url = server.serve("t.tar", tar(trained("loras/a.safetensors")), ranges=True, etag='"1"')
        install(url, config)
    assert install(url, config).names == ("loras/a.safetensors",)
    assert "does not answer; what was fetched before is used" in capsys.readouterr().out


def test_a_tar_of_this_machine_is_read_once_and_stays(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "my weights.tar"
    path.write_bytes(tar(trained("loras/a.safetensors")))
    before = path.stat()
    install(path, config)
    with path.open("r+b") as file:  # a second reading would find this
        file.write(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert install(path.as_uri(), config).names == ("loras/a.safetensors",)
    assert path.stat().st_size == before.st_size


def test_a_newer_tar_at_the_path_is_read(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "weights.tar"
    path.write_bytes(tar(trained("loras/a.safetensors")))
    install(path, config)
    path.write_bytes(tar(trained("loras/b.safetensors")))
    assert install(path, config).names == ("loras/b.safetensors",)


def test_the_tar_of_another_training_is_a_lora(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "trained_model.tar"
    members = {
        "output/flux_train_replicate/lora.safetensors": tensors(9),
        "output/flux_train_replicate/config.yaml": b"job: extension",
        "captions/a.txt": b"a fox",
    }
    path.write_bytes(tar(members))
    found = install(path, config)
    assert (found.names, found.workflow) == (("loras/lora.safetensors",), None)
    assert (config.models / "loras/lora.safetensors").read_bytes() == tensors(9)


def test_installed_weights_are_not_evicted_while_the_process_runs(
    config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "weights.tar"
    path.write_bytes(tar(trained("loras/a.safetensors")))
    for _ in range(2):  # fresh, and known
        found = install(path, config)
        objects = WeightStore(config).objects
        assert [entry.pinned for entry in objects.entries()] == [True, True]
        with pytest.raises(InvalidInput, match="in use"):
            objects.remove("loras/a.safetensors")
        found.pins.close()


@pytest.mark.parametrize(
    ("members", "kind", "says"),
    [
        (
            trained("vae/good.safetensors", "loras/a.safetensors")
            | {"models/loras/a.safetensors": tensors(50, b"z")},
            HashMismatch,
            r"loras/a\.safetensors of .*weights\.tar is not the file .* sha256",
        ),
        (
            trained("loras/a.safetensors") | {"models/loras/a.safetensors": tensors(51)},
            HashMismatch,
            "bytes where",
        ),
        (
            trained("loras/a.safetensors", content=b"no tensors"),
            DownloadFailed,
            "no sound safetensors",
        ),
        (
            trained("loras/a.ckpt", content=b"\x80\x02c__builtin__\neval\n"),
            InvalidInput,
            r"loras/a\.ckpt of .* since loading others can run code",
        ),
        (trained("loras/run.py", content=b"import os"), InvalidInput, "name of no model file"),
        (
            trained("loras/a.safetensors", **{"models/vae/more.safetensors": tensors(1)}),
            BadArchive,
            "does not name its member 'models/vae/more.safetensors'",
        ),
        (
            trained("loras/a.safetensors") | {"../../x.safetensors": tensors(1)},
            BadArchive,
            "leads out of the folder",
        ),
        (
            {"manifest.json": b'{"version": 1, "weights": [{}]}', "models/x/y.safetensors": b"x"},
            InvalidInput,
            r"of manifest\.json of .*weights\.tar",
        ),
        (
            trained("loras/a.safetensors", **{"workflow.json": b"[1"}),
            InvalidWorkflow,
            r"workflow\.json of",
        ),
        (
            trained("loras/a.safetensors") | {"manifest.json": TWICE},
            BadArchive,
            "names one member for two weights",
        ),
        ({"a.txt": b"nothing"}, BadArchive, "no safetensors file"),
    ],
)
def test_a_tar_that_does_not_hold_leaves_nothing_behind(
    config: Config, tmp_path: Path, members: dict[str, bytes], kind: type[Exception], says: str
) -> None:
    path = tmp_path / "weights.tar"
    path.write_bytes(tar(members))
    with pytest.raises(kind, match=says):
        install(path, config)
    assert files(config.models) == []
    assert kept(config) == []
    assert staged(config.models) == []


def test_a_manifest_must_state_what_its_files_are(config: Config, tmp_path: Path) -> None:
    entry = {"name": "a.safetensors", "folders": ["loras"]}
    path = tmp_path / "weights.tar"
    for url, says in [
        ("models/loras/a.safetensors", "does not say the size and sha256"),
        ("https://example.com/a.safetensors", "holds no file for"),
    ]:
        manifest = json.dumps({"version": 1, "weights": [{**entry, "urls": [url]}]}).encode()
        members = {"manifest.json": manifest, "models/loras/a.safetensors": tensors(3)}
        path.write_bytes(tar(members))
        with pytest.raises(BadArchive, match=says):
            install(path, config)


def test_pickles_come_where_the_setting_allows_them(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "weights.tar"
    path.write_bytes(tar(trained("loras/a.ckpt", content=b"\x80\x02.")))
    allowed = replace(config, allow_pickles=True)
    assert install(path, allowed).names == ("loras/a.ckpt",)


def test_the_file_of_a_person_keeps_its_name(config: Config, tmp_path: Path) -> None:
    put(config.models, "loras/a.safetensors", content=tensors(8))
    path = tmp_path / "weights.tar"
    path.write_bytes(tar(trained("loras/a.safetensors")))
    with pytest.raises(InvalidInput, match=r"loras/a\.safetensors"):
        install(path, config)
    assert (config.models / "loras/a.safetensors").read_bytes() == tensors(8)


def test_a_source_that_cannot_be_used_is_one_clear_error(
    config: Config, tmp_path: Path, server: FileServer
) -> None:
    with pytest.raises(InvalidInput, match=r"no file gone\.tar.*path or the address of a tar"):
        install("gone.tar", config)
    with pytest.raises(InvalidInput, match="is a folder, no tar"):
        install(tmp_path, config)
    with pytest.raises(InvalidInput, match="is a device or pipe, no tar"):
        install(os.devnull, config)
    with pytest.raises(InvalidInput, match="There is no file"):
        install("file://[weights.tar", config)
    with pytest.raises(DownloadFailed, match=r"gone\.tar could not be fetched: there is no such"):
        install(server.url("gone.tar"), config)
    with pytest.raises(BadArchive, match="neither a tar nor a zip"):
        install(server.serve("x.tar", tensors(900)), config)
    assert files(config.models) == []
    assert kept(config) == []


def test_a_server_starts_with_what_was_trained_and_runs_its_workflow(
    tmp_path: Path,
    comfyui_tree: Path,  # noqa: ARG001
    server: FileServer,
) -> None:
    graph = workflow()
    graph["20"]["inputs"]["lora_name"] = "style.safetensors"
    members = trained("loras/style.safetensors", content=lora(1))
    members["workflow.json"] = json.dumps(graph).encode()
    url = server.serve("t.tar", tar(members), ranges=True, etag='"1"')
    environment = cog_settings(tmp_path, COG_WEIGHTS=url, COMFY_RUNNER_PRIVATE_ADDRESSES="1")
    with CogServer(HERE.parent, environment) as served:
        assert "loras/style.safetensors" in str(served.wait_ready(READY)) + "\n".join(served.log)
        body = served.predict({"seed": 1}, timeout=120).body
        assert body["status"] == "succeeded", body
        assert len(body["output"]) == 1
