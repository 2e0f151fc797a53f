"""What the weight store fetches by a manifest, keeps, and cleans up."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import weight_stores
from fakes.file_server import FileServer
from weight_stores import (
    QUICK,
    ensure,
    fetches,
    files,
    looks,
    put,
    settings,
    sha256,
    staged,
    tensors,
    weight,
)

from comfy_runner.errors import Cancelled, DownloadFailed, HashMismatch, InvalidInput
from comfy_runner.fetch.download import Patience
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.store import Downloading, WeightStore
from comfy_runner.weights.weight import Source

PROJECT = Path(__file__).resolve().parent.parent
models, store = weight_stores.models, weight_stores.store  # fixtures
BODY = os.urandom(300_000)
MIB = 1024**2
LONG = os.urandom(3 * MIB)
"""So long that its progress shows before it is there."""


# Fetching


def test_the_weights_of_the_project_can_be_installed(models: Path) -> None:
    known = Manifest.parse((PROJECT / "weights_manifest.json").read_text())
    own = [
        weight
        for weight in known.weights
        if weight.urls and not any(urlsplit(source.url).scheme for source in weight.urls)
    ]
    assert own
    store = WeightStore(settings(models, manifest=PROJECT / "weights_manifest.json"))
    outcome = ensure(store, *own)
    assert all(store.folders.holds(weight) for weight in own)
    assert outcome.ensured.size == sum(weight.size or 0 for weight in own)


def test_fetches_what_is_missing_and_nothing_else(store: WeightStore, server: FileServer) -> None:
    put(store.models, "loras/have.pt")
    url = server.serve("new", BODY, ranges=True)
    new = weight("Sub Dir/new.pt", url, size=len(BODY), sha256=sha256(BODY))
    have = weight("have.pt", server.url("have"))

    outcome = ensure(store, new, have, new)

    file = store.models / "loras" / "Sub Dir" / "new.pt"
    assert file.read_bytes() == BODY
    assert file.stat().st_mode & 0o777 == 0o644
    assert (looks(server), fetches(server)) == (1, 1)
    assert outcome.updates[-1] == Downloading("loras/Sub Dir/new.pt", len(BODY), len(BODY))
    assert (outcome.ensured.files, outcome.ensured.size) == (1, len(BODY))
    assert files(store.models) == ["loras/Sub Dir/new.pt", "loras/have.pt"]
    assert staged(store.models) == []
    assert ensure(store, new, have).updates == []
    assert len(server.asked) == 2


def test_respects_the_umask(store: WeightStore, server: FileServer) -> None:
    before = os.umask(0o077)
    try:
        ensure(store, weight("a.pt", server.serve("a", BODY)))
    finally:
        os.umask(before)
    assert (store.models / "loras" / "a.pt").stat().st_mode & 0o777 == 0o600


def test_further_folders_get_a_second_name_of_the_file(
    store: WeightStore, server: FileServer
) -> None:
    twice = weight("a.pt", server.serve("a", BODY), folders=("loras", "vae"))
    ensure(store, twice)
    first, second = (store.models / folder / "a.pt" for folder in ("loras", "vae"))
    assert first.samefile(second)

    second.unlink()
    ensure(store, twice)
    assert first.samefile(second)

    first.unlink()
    second.unlink()
    put(store.models, "loras/a.pt")
    ensure(store, twice)
    assert second.read_bytes() == b"x"
    assert fetches(server) == 1


def test_a_link_to_nowhere_is_in_the_way(store: WeightStore, tmp_path: Path) -> None:
    put(store.models, "loras/a.pt")
    (store.models / "vae").mkdir()
    (store.models / "vae" / "a.pt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInput) as caught:
        ensure(store, weight("a.pt", "http://127.0.0.1:1/a", folders=("loras", "vae")))
    assert caught.value.problems[0].code == "name_taken"


def test_uses_a_file_of_another_size_as_it_is(store: WeightStore, server: FileServer) -> None:
    put(store.models, "loras/a.pt")
    ensure(store, weight("a.pt", server.serve("a", BODY), size=len(BODY)))
    assert (store.models / "loras" / "a.pt").read_bytes() == b"x"
    assert server.asked == []


def test_fetches_several_at_once(store: WeightStore, server: FileServer) -> None:
    # The held file goes on only after the other one has come: one after the other would not end.
    url = server.serve("held", BODY, ranges=True, hold_after=1000)
    held = weight("held.pt", url, size=len(BODY))
    other = weight("other.pt", server.serve("other", BODY))
    for update in store.ensure([held, other], patience=Patience(stall=20)):
        if update == Downloading("loras/other.pt", len(BODY), len(BODY)):
            server.release.set()
    assert store.listing("loras") == {"held.pt", "other.pt"}
    assert server.holding.is_set()


def test_takes_the_next_mirror(store: WeightStore, server: FileServer) -> None:
    wrong = server.serve("wrong", BODY[:-1])
    right = server.serve("right", BODY)
    ensure(store, weight("a.pt", server.url("none"), wrong, right, size=len(BODY)))
    assert list(dict.fromkeys(asked.path for asked in server.asked)) == ["none", "wrong", "right"]
    assert fetches(server, "wrong") == 0
    assert (store.models / "loras" / "a.pt").read_bytes() == BODY


def test_takes_the_next_mirror_when_one_turns_out_wrong(
    store: WeightStore, server: FileServer
) -> None:
    wrong = server.serve("wrong", bytes(len(BODY)))
    right = server.serve("right", BODY)
    other = weight("b.pt", server.serve("other", b"other"))
    ensure(store, weight("a.pt", wrong, right, sha256=sha256(BODY)), other)
    paths = ("wrong", "right", "other")
    assert [fetches(server, path) for path in paths] == [1, 1, 1]
    assert (store.models / "loras" / "a.pt").read_bytes() == BODY
    assert (store.models / "loras" / "b.pt").read_bytes() == b"other"


def test_reports_every_mirror_that_failed(store: WeightStore, server: FileServer) -> None:
    lost = weight("a.pt", server.url("none"), server.serve("bad", BODY), sha256="0" * 64)
    with pytest.raises(DownloadFailed) as caught:
        ensure(store, lost)
    assert "2 downloads failed" in str(caught.value)
    assert "/none could not be fetched: there is no such file" in str(caught.value)
    assert "/bad is not the file that was asked for" in str(caught.value)
    assert files(store.models) == staged(store.models) == []


def test_a_wrong_hash_stays_a_wrong_hash(store: WeightStore, server: FileServer) -> None:
    with pytest.raises(HashMismatch):
        ensure(store, weight("a.pt", server.serve("a", BODY), sha256="0" * 64))


def test_says_every_failure_before_anything_is_fetched(
    store: WeightStore, server: FileServer
) -> None:
    good = weight("good.pt", server.serve("good", BODY, ranges=True))
    small = weight("small.pt", server.serve("small", BODY, ranges=True), size=5)
    with pytest.raises(DownloadFailed) as caught:
        ensure(store, good, weight("none.pt", server.url("none")), small)
    assert "/none could not be fetched" in str(caught.value)
    assert "/small is not the file that was asked for" in str(caught.value)
    assert "good" not in str(caught.value)
    assert fetches(server) == 0


def test_the_first_failure_stops_the_others(store: WeightStore, server: FileServer) -> None:
    held = weight("held.pt", server.serve("held", BODY, ranges=True, hold_after=1000))
    bad = weight("bad.pt", server.serve("bad", BODY, etag='"1"'), sha256="0" * 64)
    with pytest.raises(HashMismatch, match=r"/bad is not the file"):
        ensure(store, held, bad, patience=Patience())
    assert files(store.models) == []


def test_can_be_cancelled(store: WeightStore, server: FileServer) -> None:
    cancelled = threading.Event()
    held = weight("held.pt", server.serve("held", LONG, ranges=True, hold_after=2 * MIB))
    updates = store.ensure([held], cancelled=cancelled)
    assert any(update.done for update in updates)
    cancelled.set()
    with pytest.raises(Cancelled):
        list(updates)
    assert files(store.models) == []


def test_closing_the_iterator_stops_everything(store: WeightStore, server: FileServer) -> None:
    held = weight("held.pt", server.serve("held", LONG, ranges=True, hold_after=2 * MIB))
    updates = store.ensure([held])
    assert any(update.done for update in updates)
    updates.close()
    assert files(store.models) == []
    names = ("weights", "looking", "engine", "download", "installing")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def test_a_silent_server_does_not_silence_the_iterator(
    store: WeightStore, server: FileServer
) -> None:
    url = server.serve("held", BODY, ranges=True, hold_after=1000)
    updates = store.ensure([weight("held.pt", url, size=len(BODY))])
    seen = [next(updates), next(updates), next(updates)]
    assert {update.name for update in seen} == {"loras/held.pt"}
    server.release.set()
    assert list(updates)[-1].done == len(BODY)


def test_a_server_that_never_answers_does_not_silence_the_iterator(
    store: WeightStore, server: FileServer
) -> None:
    updates = store.ensure([weight("held.pt", server.serve("held", BODY, hold_after=0, pace=30))])
    served = server.files["held"]
    served.headers = {"Content-Length": str(len(BODY))}
    served.failures = [replace(served, status=503, headers={"Retry-After": "60"})]
    assert next(updates) == Downloading("loras/held.pt", 0, None)
    updates.close()


def test_fetching_has_a_limit(models: Path, server: FileServer) -> None:
    store = WeightStore(settings(models, fetch_timeout=0.5))
    held = weight("held.pt", server.serve("held", BODY, ranges=True, hold_after=1000))
    with pytest.raises(DownloadFailed, match=r"longer than 0\.5 s.*COMFY_RUNNER_FETCH_TIMEOUT"):
        ensure(store, held, patience=Patience())


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    store: WeightStore, server: FileServer
) -> None:
    url = server.serve("huge", b"x", headers={"Content-Length": str(10**17)})
    with pytest.raises(DownloadFailed, match=r"100000000\.0 GB are to come.* are missing"):
        ensure(store, weight("huge.pt", url, size=10**17))
    assert fetches(server) == 0


def test_a_folder_that_cannot_be_made_is_reported(store: WeightStore, server: FileServer) -> None:
    store.models.mkdir()
    (store.models / "loras").write_text("a file where the folder should be")
    with pytest.raises(DownloadFailed, match="could not be stored"):
        ensure(store, weight("a.pt", server.serve("a", BODY)))


def test_a_model_folder_on_another_disk(store: WeightStore, server: FileServer) -> None:
    other = Path("/dev/shm")  # noqa: S108 - the one second filesystem that Linux always has
    if not other.is_dir() or other.stat().st_dev == store.models.parent.stat().st_dev:
        pytest.skip("There is no second filesystem to write to.")
    target = other / f"weights-{os.getpid()}"
    target.mkdir()
    try:
        store.models.mkdir(exist_ok=True)
        (store.models / "vae").symlink_to(target)
        url = server.serve("a", BODY)
        ensure(store, weight("a.pt", url, folders=("loras", "vae")))
        ensure(store, weight("b.pt", url, folders=("vae",)))
        assert store.listing("vae") == {"a.pt", "b.pt"}
        assert (target / "a.pt").read_bytes() == (target / "b.pt").read_bytes() == BODY
    finally:
        for file in target.iterdir():
            file.unlink()
        target.rmdir()


# Sources of this machine


def test_takes_files_of_this_machine_and_data(store: WeightStore, tmp_path: Path) -> None:
    body = tensors(1000)
    put(tmp_path, "assets/a b.safetensors", "elsewhere/c d.safetensors", content=body)
    relative = weight("a.safetensors", "assets/a b.safetensors", sha256=sha256(body))
    absolute = weight("b.pt", (tmp_path / "elsewhere" / "c d.safetensors").as_uri())
    within = weight("c.txt", "data:text/plain;base64,aGVsbG8=")
    outcome = ensure(store, relative, absolute, within)
    assert (store.models / "loras" / "a.safetensors").read_bytes() == body
    assert (store.models / "loras" / "b.pt").samefile(store.models / "loras" / "a.safetensors")
    assert (store.models / "loras" / "c.txt").read_bytes() == b"hello"
    assert outcome.ensured.files == 3
    assert staged(store.models) == []


def test_says_which_file_of_this_machine_is_missing(store: WeightStore) -> None:
    with pytest.raises(DownloadFailed, match=r"assets/a\.pt could not be fetched.*No such file"):
        ensure(store, weight("a.pt", "assets/a.pt"))


def test_a_file_of_this_machine_must_be_the_right_one(store: WeightStore, tmp_path: Path) -> None:
    put(tmp_path, "a.pt")
    with pytest.raises(HashMismatch):
        ensure(store, weight("a.pt", "a.pt", sha256="0" * 64))
    with pytest.raises(InvalidInput, match=r"must not hold '\.\.'"):
        ensure(store, weight("a.pt", "../a.pt"))
    assert files(store.models) == staged(store.models) == []


def test_a_token_of_the_environment_goes_to_its_host(models: Path, server: FileServer) -> None:
    url = server.serve("a", BODY, ranges=True)
    source = Source(url, auth="bearer_env", env="MY_TOKEN")
    with pytest.raises(DownloadFailed, match="MY_TOKEN is not set"):
        ensure(WeightStore(settings(models), {}), weight("a.pt", source))
    ensure(WeightStore(settings(models), {"MY_TOKEN": "s3cret"}), weight("a.pt", source))
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer s3cret"}


# Several processes

CHILD = """
import json, sys
from pathlib import Path
from comfy_runner.config import Config
from comfy_runner.fetch.download import Patience
from comfy_runner.weights.weight import Source, Weight
from comfy_runner.weights.store import WeightStore
models, url = Path(sys.argv[1]), sys.argv[2]
config = Config(models=models, manifest=models / "manifest.json", disk_reserve=0, pget="off")
store = WeightStore(config)
weight = Weight(name="a.pt", folders=("loras",), urls=(Source(url),))
for update in store.ensure([weight], patience=Patience(stall=20)):
    print(json.dumps(update.done), flush=True)
"""


def child(store: WeightStore, url: str, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, str(store.models), url]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, **options)


def test_two_processes_fetch_a_file_once(store: WeightStore, server: FileServer) -> None:
    url = server.serve("a", LONG, ranges=True, etag='"1"', hold_after=2 * MIB)
    with child(store, url) as first:
        assert first.stdout is not None
        while json.loads(first.stdout.readline()) == 0:
            pass
        with child(store, url) as second:
            assert second.stdout is not None
            assert json.loads(second.stdout.readline()) == 0
            server.release.set()
            assert second.wait(30) == 0
        assert first.wait(30) == 0
    assert fetches(server) == 1
    assert (store.models / "loras" / "a.pt").read_bytes() == LONG


def test_a_killed_process_leaves_nothing_that_counts(
    store: WeightStore, server: FileServer
) -> None:
    url = server.serve("a", LONG, ranges=True, etag='"1"', hold_after=2 * MIB)
    with child(store, url) as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline()) == 0:
            pass
        WeightStore(settings(store.models))
        assert staged(store.models)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert store.listing("loras") == frozenset()

    again = WeightStore(settings(store.models))

    assert files(store.models) == []
    server.release.set()
    ensure(again, weight("a.pt", url))
    assert (store.models / "loras" / "a.pt").read_bytes() == LONG
    assert staged(store.models) == []


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


READ_ONLY = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
exec "$2" -c "$3" "$1" "$4"
"""


def test_a_read_only_folder_with_everything_in_place_works(
    store: WeightStore, server: FileServer
) -> None:
    url = server.serve("a", BODY, ranges=True, etag='"1"')
    ensure(store, weight("a.pt", url))
    models = str(store.models)
    command = ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", models, sys.executable, CHILD, url]
    try:
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        pytest.skip("This system has no unshare.")
    if "ermitted" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("This system lets nobody mount a disk of their own.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(server.asked) == 2


def test_what_is_cancelled_is_gone_on_with(store: WeightStore, server: FileServer) -> None:
    body = os.urandom(20 * MIB)
    url = server.serve("a", body, ranges=True, etag='"1"', pace=0.02)
    updates = store.ensure([weight("a.pt", url)], patience=QUICK)
    assert any(update.done > 2 * MIB for update in updates)
    updates.close()
    server.files["a"].pace = 0
    before = server.sent
    ensure(store, weight("a.pt", url))
    assert server.sent - before < len(body) - MIB
    assert (store.models / "loras" / "a.pt").read_bytes() == body
