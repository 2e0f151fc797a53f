"""The content store while others work in it: each test lets them in at the one wrong moment."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer
from weight_stores import ensure, put, settings, sha256, tensors, weight

from comfy_runner.errors import DownloadFailed, InvalidInput
from comfy_runner.weights.kept import care, locks
from comfy_runner.weights.kept.files import key_of
from comfy_runner.weights.kept.objects import Object, ObjectStore
from comfy_runner.weights.kept.shelf import Shelf
from comfy_runner.weights.store import WeightStore


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(models: Path) -> ObjectStore:
    return ObjectStore(models, reserve=0)


@pytest.fixture
def other(models: Path, store: ObjectStore) -> ObjectStore:
    """The same store, as another process has it."""
    assert store.models == models
    return ObjectStore(models, reserve=0)


@pytest.fixture
def shelf(store: ObjectStore) -> Shelf:
    """The store's folders."""
    found = Shelf(store.models, ())
    found.make()
    return found


def add(store: ObjectStore, content: bytes) -> Object:
    part = store.part(sha256(content))
    part.write_bytes(content)
    return store.add_file(part, sha256(content), size=len(content))


def while_waiting(monkeypatch: pytest.MonkeyPatch, lock: Path, act: Callable[[], Any]) -> None:
    """Hold a lock until somebody waits for it, who gets it once `act` is done."""
    held = locks.take(lock)
    assert held is not None
    waiting = [held]

    def sleep(_: float) -> None:
        if waiting:
            os.close(waiting.pop())
            act()

    monkeypatch.setattr(time, "sleep", sleep)


def after_reading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Act once as soon as a file has been read for its hash."""
    real, acts = hashlib.file_digest, [act]

    def file_digest(*arguments: Any) -> Any:
        found = real(*arguments)
        if acts:
            acts.pop()()
        return found

    monkeypatch.setattr(hashlib, "file_digest", file_digest)


# Locks


def test_who_only_looks_at_a_lock_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "a.pin"
    while_waiting(monkeypatch, lock, lambda: None)
    assert not locks.is_held(lock)
    with locks.held(lock, shared=True):
        assert locks.is_held(lock)


# Removing


def test_a_name_that_came_meanwhile_keeps_its_object(
    store: ObjectStore, other: ObjectStore, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = add(store, b"weights")
    path = store.link(kept, "loras", "a.pt")
    again = store.models / "vae" / "b.pt"
    while_waiting(monkeypatch, shelf.locks / "store.lock", lambda: other.link(kept, "vae", "b.pt"))
    assert store.remove("loras/a.pt").names == ("loras/a.pt", "vae/b.pt")
    assert not path.exists()
    assert again.read_bytes() == kept.path.read_bytes() == b"weights"


def test_a_name_that_went_to_what_a_run_uses_stays(
    store: ObjectStore, other: ObjectStore, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = add(store, b"old"), add(store, b"new")
    path = store.link(old, "loras", "a.pt")
    lock = shelf.locks / "store.lock"
    while_waiting(monkeypatch, lock, lambda: other.link(new, "loras", "a.pt", replace=True))
    with other.pin([new.id]), pytest.raises(InvalidInput, match="is in use by a run"):
        store.remove("loras/a.pt")
    assert path.read_bytes() == b"new"


# Reading again


def test_a_sound_object_that_replaced_a_broken_one_stays(
    store: ObjectStore, other: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = add(store, b"weights")
    kept.path.write_bytes(b"cut")
    after_reading(monkeypatch, lambda: add(other, b"weights"))
    assert list(store.verify()) == []
    assert kept.path.read_bytes() == b"weights"
    assert [finding.fault for finding in store.verify()] == [""]


def test_an_object_that_was_removed_meanwhile_is_not_broken(
    store: ObjectStore, other: ObjectStore
) -> None:
    first, second = add(store, b"first"), add(store, b"second")
    findings = store.verify()
    found = next(findings)
    other.remove(({first.id, second.id} - {found.id}).pop())
    assert [*findings] == []
    assert found.fault == ""


@pytest.mark.parametrize(("code", "goes"), [(errno.EMFILE, False), (errno.EIO, True)])
def test_only_what_is_lost_is_removed_when_it_cannot_be_read(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, code: int, goes: bool
) -> None:
    kept = add(store, b"weights")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", fail)
        (finding,) = store.verify()
    assert finding.fault == f"it cannot be read: {os.strerror(code)}."
    assert finding.removed is goes
    assert kept.path.exists() is not goes


# Unfinished work


def test_what_somebody_went_on_with_meanwhile_is_no_leftover(
    store: ObjectStore, shelf: Shelf
) -> None:
    part = store.part("a download")
    part.write_bytes(b"half")
    os.utime(part, (1, 1))
    (old,) = care.leftovers(shelf)
    part.write_bytes(b"more than half")
    assert not old.remove(shelf)
    assert part.read_bytes() == b"more than half"
    (new,) = care.leftovers(shelf)
    assert new.remove(shelf)
    assert not part.exists()
    assert new.remove(shelf)


# Names


def test_a_persons_file_that_changes_while_it_is_read_is_not_taken_for_the_object(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = add(store, b"weights")
    put(store.models, "loras/a.pt", content=b"weights")
    after_reading(monkeypatch, lambda: put(store.models, "loras/a.pt", content=b"another"))
    with pytest.raises(InvalidInput, match="is there already, and is another file"):
        store.link(kept, "loras", "a.pt")
    assert store.named("loras", "a.pt") is None


@pytest.mark.parametrize("content", [b"weights", b"another"])
def test_a_persons_file_that_goes_while_it_is_read_is_in_nobodys_way(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    kept = add(store, b"weights")
    put(store.models, "loras/a.pt", content=content)
    after_reading(monkeypatch, (store.models / "loras" / "a.pt").unlink)
    path = store.link(kept, "loras", "a.pt")
    assert path.samefile(kept.path)


def test_a_link_to_nowhere_that_goes_meanwhile_does_not_stop_the_cleaning(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ObjectStore(models, reserve=0, ways=["symbolic link"])
    lost = add(store, b"weights")
    path = store.link(lost, "loras", "a.pt")
    lost.path.unlink()
    half = store.scratch("half unpacked")
    half.mkdir()
    real = Path.readlink

    def readlink(self: Path) -> Path:
        self.unlink(missing_ok=True)
        return real(self)

    monkeypatch.setattr(Path, "readlink", readlink)
    again = ObjectStore(models, reserve=0)
    assert caplog.messages == []
    assert not half.exists()
    assert not path.is_symlink()
    assert again.entries() == []


def test_two_who_make_the_same_second_name_are_both_served(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(models, "loras/a.pt", content=b"by hand")

    def hardlink_to(self: Path, target: Path) -> None:
        self.symlink_to(target)  # as the other one does, on a disk without hard links
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    wanted = weight("a.pt", "nowhere", folders=("loras", "vae"))
    assert ensure(WeightStore(settings(models)), wanted).ensured.files == 0
    assert (models / "vae" / "a.pt").read_bytes() == b"by hand"


# Finding again


def test_an_object_that_goes_while_the_disk_is_read_hides_no_other(
    store: ObjectStore, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [add(store, b"first"), add(store, b"second")]
    real, gone = Path.lstat, []

    def lstat(self: Path) -> os.stat_result:
        found = real(self)
        if self.parent == shelf.objects and not gone:
            gone.append(self.name)
            self.unlink()
        return found

    monkeypatch.setattr(Path, "lstat", lstat)
    assert {row.id for row in shelf.scan().objects} == {kept.id for kept in objects} - {*gone}
    assert len(gone) == 1


# Use


def test_a_folder_is_pinned_before_anybody_can_remove_it(store: ObjectStore) -> None:
    folder = store.scratch("an archive")
    folder.mkdir()
    (folder / "a").write_bytes(b"weights")
    with ExitStack() as pins:

        def pin(identity: str) -> None:
            assert store.get(identity) is None
            pins.enter_context(store.pin([identity]))

        added = store.add_tree(folder, pin=pin)
        with pytest.raises(InvalidInput, match="is in use by a run"):
            store.remove(added.id)
    assert store.remove(added.id).id == added.id


def test_what_another_process_brings_just_now_is_pinned_as_well(
    models: Path, other: ObjectStore, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = tensors(100)
    url = server.serve("a", body, ranges=True)
    store = WeightStore(settings(models))
    real, brought = os.open, []

    def opened(path: Any, *arguments: Any) -> int:
        if not brought and Path(path).name == f"{key_of(sha256(body))}.lock":
            # The lock is about to be taken from the one who was faster.
            brought.append(path)
            other.link(add(other, body), "loras", "a.safetensors")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", opened)
    with ExitStack() as pins:
        wanted = weight("a.safetensors", url, sha256=sha256(body))
        assert ensure(store, wanted, pins=pins).ensured.files == 0
        assert len(brought) == 1
        with pytest.raises(InvalidInput, match="is in use by a run"):
            other.remove("loras/a.safetensors")


def test_a_model_that_is_evicted_while_a_run_asks_for_it_is_told(
    models: Path, other: ObjectStore, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = WeightStore(settings(models))
    kept = add(other, b"weights")
    other.link(kept, "loras", "a.pt")
    while_waiting(monkeypatch, shelf.pin_file(kept.id), lambda: other.remove(kept.id))
    with pytest.raises(DownloadFailed, match=r"loras/a\.pt had to make room"):
        store.in_use(["loras/a.pt", "loras/by-hand.pt"]).__enter__()
    with store.in_use(["loras/a.pt"]):
        assert other.entries() == []
