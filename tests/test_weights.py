"""What the weight store keeps, fetches and cleans up."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer, running

from comfy_runner.errors import Cancelled, DownloadFailed, HashMismatch, UnknownModel
from comfy_runner.fetch.download import Patience
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.store import Downloading, WeightStore
from comfy_runner.weights.weight import Source, Weight

PROJECT = Path(__file__).resolve().parent.parent
BODY = os.urandom(300_000)
QUICK = Patience(stall=0.5, retries=1, backoff=0.01)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running() as served:
        yield served


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "models", tmp_path)


def weight(name: str, *urls: str, folders: tuple[str, ...] = ("loras",), **more: Any) -> Weight:
    return Weight(name=name, folders=folders, urls=tuple(map(Source, urls)), **more)


def fetched(store: WeightStore, *weights: Weight, **options: Any) -> list[Downloading]:
    return list(store.ensure(weights, **{"patience": QUICK, **options}))


def files(folder: Path) -> list[str]:
    """Everything that stands in a folder but for the empty lock files."""
    found = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return sorted(file.relative_to(folder).as_posix() for file in found)


def put(store: WeightStore, *paths: str) -> None:
    for path in paths:
        file = store.models / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


# Listing


def test_lists_what_comfyui_lists(store: WeightStore) -> None:
    put(store, "loras/a.safetensors", "loras/Sub Dir/deep/b.CKPT", "loras/readme.txt")
    put(store, "loras/.git/c.pt", "loras/.hidden.sft", "loras/noextension", "vae/d.pt")
    put(store, *(f"loras/x{n}{end}" for n, end in enumerate([".pt2", ".bin", ".pth", ".pkl"])))
    assert store.listing("loras") == {
        "a.safetensors",
        "Sub Dir/deep/b.CKPT",
        ".hidden.sft",
        "x0.pt2",
        "x1.bin",
        "x2.pth",
        "x3.pkl",
    }
    assert store.listing("none") == frozenset()


def test_lists_folders_that_comfyui_merges(store: WeightStore) -> None:
    put(store, "unet/a.pt", "diffusion_models/b.pt", "clip/c.pt", "text_encoders/d.pt")
    put(store, "controlnet/e.pt", "t2i_adapter/f.pt")
    assert store.listing("unet") == store.listing("diffusion_models") == {"a.pt", "b.pt"}
    assert store.listing("clip") == store.listing("text_encoders") == {"c.pt", "d.pt"}
    assert store.listing("controlnet") == {"e.pt", "f.pt"}


def test_follows_links_that_lead_somewhere(store: WeightStore, tmp_path: Path) -> None:
    put(store, "elsewhere/sub/a.pt", "loras/b.pt")
    (store.models / "loras" / "linked").symlink_to(store.models / "elsewhere")
    (store.models / "loras" / "c.pt").symlink_to(store.models / "loras" / "b.pt")
    (store.models / "loras" / "lost.pt").symlink_to(tmp_path / "nothing.pt")
    assert store.listing("loras") == {"b.pt", "c.pt", "linked/sub/a.pt"}


# Being there


def test_a_weight_is_installed_where_comfyui_finds_it(store: WeightStore) -> None:
    put(store, "unet/a.pt", "loras/b.pt")
    assert store.installed(weight("a.pt", folders=("diffusion_models",)))
    assert store.installed(weight("b.pt", size=1))
    assert not store.installed(weight("b.pt", size=2))
    assert not store.installed(weight("b.pt", folders=("loras", "vae")))
    assert not store.installed(weight("c.pt"))


def test_a_small_autoencoder_of_another_type_is_not_overruled(store: WeightStore) -> None:
    put(store, "vae_approx/taef1_encoder.safetensors", "vae_approx/other_encoder.safetensors")
    assert store.installed(weight("taef1_encoder.pt", folders=("vae_approx",), size=5))
    assert not store.installed(weight("taef1_decoder.pt", folders=("vae_approx",)))
    assert not store.installed(weight("other_encoder.pt", folders=("vae_approx",)))


# Fetching


def test_the_weights_of_the_project_can_be_installed(tmp_path: Path) -> None:
    known = Manifest.parse((PROJECT / "weights_manifest.json").read_text())
    store = WeightStore(tmp_path, PROJECT)
    fetched(store, *known.weights)
    assert all(store.installed(weight) for weight in known.weights)


def test_fetches_what_is_missing_and_nothing_else(store: WeightStore, server: FileServer) -> None:
    put(store, "loras/have.pt")
    digest = hashlib.sha256(BODY).hexdigest()
    new = weight("Sub Dir/new.pt", server.serve("new", BODY), size=len(BODY), sha256=digest)
    have = weight("have.pt", server.url("have"))

    updates = fetched(store, new, have, new)

    file = store.models / "loras" / "Sub Dir" / "new.pt"
    assert file.read_bytes() == BODY
    assert file.stat().st_mode & 0o777 == 0o644
    assert [asked.path for asked in server.asked] == ["new"]
    assert updates[-1] == Downloading("loras/Sub Dir/new.pt", len(BODY), len(BODY))
    assert files(store.models) == ["loras/Sub Dir/new.pt", "loras/have.pt"]
    assert fetched(store, new, have) == []


def test_respects_the_umask(store: WeightStore, server: FileServer) -> None:
    before = os.umask(0o077)
    try:
        fetched(store, weight("a.pt", server.serve("a", BODY)))
    finally:
        os.umask(before)
    assert (store.models / "loras" / "a.pt").stat().st_mode & 0o777 == 0o600


def test_further_folders_get_a_second_name_of_the_file(
    store: WeightStore, server: FileServer
) -> None:
    twice = weight("a.pt", server.serve("a", BODY), folders=("loras", "vae"))
    fetched(store, twice)
    first, second = (store.models / folder / "a.pt" for folder in ("loras", "vae"))
    assert first.samefile(second)

    first.unlink()
    second.unlink()
    put(store, "loras/a.pt")
    fetched(store, twice)
    assert second.read_bytes() == b"x"
    assert len(server.asked) == 1


def test_replaces_a_file_of_another_size(store: WeightStore, server: FileServer) -> None:
    put(store, "loras/a.pt")
    fetched(store, weight("a.pt", server.serve("a", BODY), size=len(BODY)))
    assert (store.models / "loras" / "a.pt").read_bytes() == BODY


def test_fetches_several_at_once(store: WeightStore, server: FileServer) -> None:
    # The held file goes on only after the other one has come: one after the other would not end.
    held = weight("held.pt", server.serve("held", BODY, hold_after=0), size=len(BODY))
    other = weight("other.pt", server.serve("other", BODY))
    updates = store.ensure([held, other], patience=Patience(stall=20))
    for update in updates:
        if update == Downloading("loras/other.pt", len(BODY), len(BODY)):
            server.release.set()
    assert store.listing("loras") == {"held.pt", "other.pt"}
    assert server.holding.is_set()


def test_takes_the_next_mirror(store: WeightStore, server: FileServer) -> None:
    wrong = server.serve("wrong", BODY[:-1])
    right = server.serve("right", BODY)
    fetched(store, weight("a.pt", server.url("none"), wrong, right, size=len(BODY)))
    assert [asked.path for asked in server.asked] == ["none", "wrong", "right"]
    assert (store.models / "loras" / "a.pt").read_bytes() == BODY


def test_reports_every_mirror_that_failed(store: WeightStore, server: FileServer) -> None:
    lost = weight("a.pt", server.url("none"), server.serve("bad", BODY), sha256="0" * 64)
    with pytest.raises(DownloadFailed) as caught:
        fetched(store, lost)
    assert "2 downloads failed" in str(caught.value)
    assert "/none could not be fetched: there is no such file" in str(caught.value)
    assert "/bad is not the file that was asked for" in str(caught.value)
    assert files(store.models) == []


def test_a_wrong_hash_stays_a_wrong_hash(store: WeightStore, server: FileServer) -> None:
    with pytest.raises(HashMismatch):
        fetched(store, weight("a.pt", server.serve("a", BODY), sha256="0" * 64))


def test_the_first_failure_stops_the_others(store: WeightStore, server: FileServer) -> None:
    held = weight("held.pt", server.serve("held", BODY, hold_after=1000))
    server.serve("gone", b"", status=404)
    updates = store.ensure([held, weight("gone.pt", server.url("gone"))], patience=Patience())
    with pytest.raises(DownloadFailed, match="gone could not be fetched"):
        list(updates)
    assert files(store.models) == []


def test_can_be_cancelled(store: WeightStore, server: FileServer) -> None:
    cancelled = threading.Event()
    held = weight("held.pt", server.serve("held", BODY, hold_after=1000))
    updates = store.ensure([held], cancelled=cancelled)
    next(updates)
    assert server.holding.wait(10)
    cancelled.set()
    with pytest.raises(Cancelled):
        list(updates)
    assert files(store.models) == []


def test_closing_the_iterator_stops_everything(store: WeightStore, server: FileServer) -> None:
    held = weight("held.pt", server.serve("held", BODY, hold_after=1000))
    updates = store.ensure([held])
    next(updates)
    assert server.holding.wait(10)
    updates.close()  # type: ignore[attr-defined]
    assert files(store.models) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("weights")]


def test_a_silent_server_does_not_silence_the_iterator(
    store: WeightStore, server: FileServer
) -> None:
    held = weight("held.pt", server.serve("held", BODY, hold_after=1000), size=len(BODY))
    updates = store.ensure([held])
    seen = [next(updates), next(updates), next(updates)]
    assert {update.name for update in seen} == {"loras/held.pt"}
    server.release.set()
    assert list(updates)[-1].done == len(BODY)


def test_what_cannot_be_fetched_yet_is_said_before_anything_is_fetched(
    store: WeightStore, server: FileServer
) -> None:
    archive = Weight(name="a.pt", folders=("vae",), urls=(Source("https://h/a", extract="tar"),))
    with pytest.raises(UnknownModel, match=r"vae/a\.pt comes as an archive"):
        fetched(store, archive, weight("b.pt", server.serve("b", BODY)))
    assert server.asked == []


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    store: WeightStore, server: FileServer
) -> None:
    huge = weight("huge.pt", server.url("huge"), size=10**17)
    with pytest.raises(DownloadFailed, match=r"100000000\.0 GB are to be fetched .* are missing"):
        fetched(store, huge)
    assert server.asked == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "loras").write_text("a file where the folder should be")
    store = WeightStore(tmp_path / "models", tmp_path)
    with pytest.raises(DownloadFailed, match="could not be stored"):
        fetched(store, weight("a.pt", server.serve("a", BODY)))


def test_a_model_folder_on_another_disk(tmp_path: Path, server: FileServer) -> None:
    other = Path("/dev/shm")  # noqa: S108 - the one second filesystem that Linux always has
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("There is no second filesystem to write to.")
    target = other / f"weights-{os.getpid()}"
    target.mkdir()
    try:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "vae").symlink_to(target)
        store = WeightStore(tmp_path / "models", tmp_path)
        url = server.serve("a", BODY)
        fetched(store, weight("a.pt", url, folders=("loras", "vae")))
        fetched(store, weight("b.pt", url, folders=("vae",)))
        assert files(target) == ["a.pt", "b.pt"]
        assert (target / "a.pt").read_bytes() == (target / "b.pt").read_bytes() == BODY
    finally:
        for file in target.iterdir():
            file.unlink()
        target.rmdir()


# Several processes

CHILD = """
import json, sys
from pathlib import Path
from comfy_runner.fetch.download import Patience
from comfy_runner.weights.weight import Source, Weight
from comfy_runner.weights.store import WeightStore
models, url = sys.argv[1:]
store = WeightStore(Path(models), Path(models))
weight = Weight(name="a.pt", folders=("loras",), urls=(Source(url),))
try:
    for update in store.ensure([weight], patience=Patience(stall=20)):
        print(json.dumps(update.done), flush=True)
except OSError as err:
    print(repr(err))
"""


def child(store: WeightStore, url: str, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, str(store.models), url]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, **options)


def test_two_processes_fetch_a_file_once(store: WeightStore, server: FileServer) -> None:
    url = server.serve("a", BODY, hold_after=1000)
    with child(store, url) as first:
        assert server.holding.wait(30)
        with child(store, url) as second:
            assert second.stdout is not None
            assert json.loads(second.stdout.readline()) == 0
            server.release.set()
            assert second.wait(30) == 0
        assert first.wait(30) == 0
    assert len(server.asked) == 1
    assert (store.models / "loras" / "a.pt").read_bytes() == BODY


def test_a_killed_process_leaves_nothing_that_counts(
    store: WeightStore, server: FileServer
) -> None:
    url = server.serve("a", BODY, hold_after=200_000)
    with child(store, url) as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline()) == 0:
            pass
        WeightStore(store.models, store.project)
        assert [name.startswith(".staging/") for name in files(store.models)] == [True]
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert store.listing("loras") == frozenset()

    again = WeightStore(store.models, store.project)

    assert files(store.models) == []
    server.release.set()
    fetched(again, weight("a.pt", url))
    assert (store.models / "loras" / "a.pt").read_bytes() == BODY


def test_a_full_disk_leaves_nothing_behind(store: WeightStore, server: FileServer) -> None:
    url = server.serve("a", BODY)
    limit = (100_000, 100_000)
    with child(
        store,
        url,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    ) as process:
        _, errors = process.communicate(timeout=30)
    assert "DownloadFailed" in errors
    assert "could not be stored" in errors
    assert files(store.models) == []
