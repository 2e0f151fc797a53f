"""What the content store keeps, names, remembers, removes and finds again."""

import hashlib
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from comfy_runner.errors import Cancelled, DownloadFailed, InvalidInput
from comfy_runner.weights.kept.files import WAYS, Place, Way
from comfy_runner.weights.kept.index import NameRow
from comfy_runner.weights.kept.objects import Collected, Object, ObjectStore
from comfy_runner.weights.kept.shelf import Shelf

DAY = 86400
NOWHERE = "0" * 64


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(models: Path) -> ObjectStore:
    return ObjectStore(models, reserve=0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def add(store: ObjectStore, content: bytes, key: str = "a download") -> Object:
    part = store.part(key)
    part.write_bytes(content)
    return store.add_file(part, sha256(content), size=len(content))


def add_tree(store: ObjectStore, **files: bytes) -> Object:
    folder = store.scratch("an archive")
    for name, content in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return store.add_tree(folder)


def put(models: Path, name: str, content: bytes = b"by hand") -> Path:
    file = models / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def ids(store: ObjectStore) -> list[str]:
    return [entry.id for entry in store.entries()]


def problem(caught: "pytest.ExceptionInfo[InvalidInput]") -> str:
    return caught.value.problems[0].code


# Files


def test_takes_a_file_over(store: ObjectStore) -> None:
    part = store.part("key")
    part.write_bytes(b"weights")
    added = store.add_file(part, sha256(b"weights").upper(), size=7)
    assert added == store.get(added.id)
    assert (added.id, added.kind, added.size) == (sha256(b"weights"), "file", 7)
    assert added.path.read_bytes() == b"weights"
    assert not part.exists()


def test_keeps_a_content_once(store: ObjectStore) -> None:
    first = add(store, b"same", "one")
    inode = first.path.stat().st_ino
    assert add(store, b"same", "another") == first
    assert first.path.stat().st_ino == inode
    assert ids(store) == [first.id]
    assert list(store.staging.iterdir()) == []


def test_the_state_beside_a_part_goes_with_it(store: ObjectStore) -> None:
    other = store.part("other")
    other.write_bytes(b"half")
    part = store.part("key")
    part.with_name(f"{part.name}.json").write_text("{}")
    add(store, b"weights", "key")
    assert list(store.staging.iterdir()) == [other]


def test_refuses_a_file_of_another_size_and_links(store: ObjectStore) -> None:
    part = store.part("key")
    part.write_bytes(b"half")
    with pytest.raises(DownloadFailed, match="has 4 bytes where 8 were expected"):
        store.add_file(part, sha256(b"half"), size=8)
    assert part.read_bytes() == b"half"
    link = store.part("link")
    link.symlink_to(part)
    with pytest.raises(DownloadFailed):
        store.add_file(link, sha256(b"half"), size=4)
    assert ids(store) == []


def test_does_not_give_out_what_is_gone_or_cut(store: ObjectStore) -> None:
    gone, cut = add(store, b"gone"), add(store, b"cut short")
    store.remember("place", "v1", cut, file_name="x", private=False, immutable=True)
    gone.path.unlink()
    os.truncate(cut.path, 3)
    assert store.get(gone.id) is None
    assert store.get(cut.id) is None
    assert store.recall("place") is None
    assert store.get(NOWHERE) is store.get("../../etc") is None


def test_a_broken_object_is_replaced_with_its_names(store: ObjectStore) -> None:
    cut = add(store, b"cut short")
    path = store.link(cut, "loras", "a.safetensors")
    os.truncate(cut.path, 3)
    assert add(store, b"cut short").path.read_bytes() == b"cut short"
    assert not path.exists()


def test_makes_nothing_before_something_is_kept(store: ObjectStore, models: Path) -> None:
    assert store.get(NOWHERE) is store.recall("place") is store.named("loras", "a") is None
    assert store.entries() == []
    assert store.gc() == Collected()
    store.touch([NOWHERE])
    store.make_room(1)
    assert not models.exists()


# Folders


def test_takes_a_folder_over(store: ObjectStore) -> None:
    added = add_tree(store, a=b"one", sub__b=b"three")
    assert (added.kind, added.size) == ("tree", 8)
    assert added == store.get(added.id)
    assert (added.path / "sub" / "b").read_bytes() == b"three"
    assert list(store.staging.iterdir()) == []
    # The same files make the same folder, whatever the order; others or other names do not.
    assert add_tree(store, sub__b=b"three", a=b"one") == added
    assert add_tree(store, a=b"one", b=b"three").id != added.id
    assert add_tree(store, a=b"three", sub__b=b"one").id != added.id


def test_refuses_folders_with_links_and_without_files(store: ObjectStore, tmp_path: Path) -> None:
    for name, target in [("file", "a"), ("folder", "."), ("lost", "nowhere")]:
        folder = tmp_path / name
        put(folder, "sub/a")
        (folder / "sub" / "link").symlink_to(target)
        with pytest.raises(DownloadFailed, match="'sub/link' is a link or a special file"):
            store.add_tree(folder)
    special = tmp_path / "special"
    special.mkdir()
    os.mkfifo(special / "pipe")
    with pytest.raises(DownloadFailed, match="special file"):
        store.add_tree(special)
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(DownloadFailed, match="it holds no file"):
        store.add_tree(tmp_path / "empty")
    assert ids(store) == []


# Names


def test_a_name_is_a_hard_link(store: ObjectStore, models: Path) -> None:
    added = add(store, b"weights")
    path = store.link(added, "loras", "Sub Dir/näme.safetensors")
    assert path == models / "loras" / "Sub Dir" / "näme.safetensors"
    assert path.samefile(added.path)
    assert not path.is_symlink()
    assert store.named("loras", "Sub Dir/näme.safetensors") == added
    assert store.named("loras", "other") is None
    assert store.link(added, "loras", "Sub Dir/näme.safetensors") == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_gets_a_name_made_of_hard_links(store: ObjectStore) -> None:
    added = add_tree(store, a=b"one", sub__b=b"three")
    path = store.link(added, "LLM", "model")
    assert stat.S_ISDIR(path.lstat().st_mode)
    assert (path / "sub" / "b").samefile(added.path / "sub" / "b")
    assert store.named("LLM", "model") == added
    inode = path.stat().st_ino
    store.link(added, "LLM", "model")
    assert path.stat().st_ino == inode
    (path / "sub" / "b").unlink()
    assert store.named("LLM", "model") is None


@pytest.mark.parametrize("second", ["file", "tree"])
@pytest.mark.parametrize("first", ["file", "tree"])
def test_a_name_may_go_to_another_object(store: ObjectStore, first: str, second: str) -> None:
    old = add(store, b"old") if first == "file" else add_tree(store, a=b"old", b=b"old too")
    new = add(store, b"new") if second == "file" else add_tree(store, a=b"new")
    path = store.link(old, "loras", "name")
    assert store.link(new, "loras", "name") == path
    assert store.named("loras", "name") == new
    assert store.get(old.id) == old
    assert os.listdir(path.parent) == ["name"]  # noqa: PTH208
    assert list(store.staging.iterdir()) == []


def test_a_file_put_there_by_hand_is_not_overwritten(store: ObjectStore, models: Path) -> None:
    added, theirs = add(store, b"weights"), put(models, "loras/a.pt")
    with pytest.raises(InvalidInput, match=r"loras/a\.pt is there already") as caught:
        store.link(added, "loras", "a.pt")
    assert problem(caught) == "name_taken"
    assert theirs.read_bytes() == b"by hand"
    store.link(added, "loras", "a.pt", replace=True)
    assert theirs.read_bytes() == b"weights"
    folder = put(models, "LLM/model/a").parent
    with pytest.raises(InvalidInput):
        store.link(add_tree(store, a=b"one"), "LLM", "model")
    assert (folder / "a").read_bytes() == b"by hand"


def test_a_name_that_a_person_took_over_is_theirs(store: ObjectStore, models: Path) -> None:
    added = add(store, b"weights")
    path = store.link(added, "loras", "a.pt")
    path.unlink()
    put(models, "loras/a.pt")
    assert store.named("loras", "a.pt") is None
    with pytest.raises(InvalidInput):
        store.link(added, "loras", "a.pt")
    store.remove(added.id)
    assert path.read_bytes() == b"by hand"


def test_a_file_with_the_same_bytes_stays_and_stays_theirs(
    store: ObjectStore, models: Path
) -> None:
    added, theirs = add(store, b"weights"), put(models, "loras/a.pt", b"weights")
    inode = theirs.stat().st_ino
    store.link(added, "loras", "a.pt")
    assert store.named("loras", "a.pt") == added
    assert theirs.stat().st_ino == inode
    store.remove(added.id)
    assert theirs.read_bytes() == b"weights"
    assert store.named("loras", "a.pt") is None


def test_what_a_person_put_into_a_folder_stays(store: ObjectStore, models: Path) -> None:
    added = add_tree(store, a=b"one", sub__b=b"two", other__c=b"three")
    path = store.link(added, "LLM", "model")
    extra = put(models, "LLM/model/sub/extra")
    assert store.named("LLM", "model") == added
    store.remove(added.id)
    assert [file for file in path.rglob("*") if not file.is_dir()] == [extra]
    assert not (path / "other").exists()


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", "a//b", "./a", "a\0b", "\udc80"])
def test_refuses_names_that_lead_elsewhere(store: ObjectStore, name: str) -> None:
    added = add(store, b"weights")
    with pytest.raises(InvalidInput) as caught:
        store.link(added, "loras", name)
    assert problem(caught) == "bad_name"
    with pytest.raises(InvalidInput):
        store.link(added, ".store", "objects")


def test_reports_a_folder_that_cannot_be_made(store: ObjectStore, models: Path) -> None:
    added = add(store, b"weights")
    put(models, "loras")
    with pytest.raises(DownloadFailed, match="could not be stored"):
        store.link(added, "loras", "a.pt")


def test_does_not_link_what_is_gone(store: ObjectStore, models: Path) -> None:
    added = add(store, b"weights")
    store.remove(added.id)
    with pytest.raises(DownloadFailed, match="removed meanwhile"):
        store.link(added, "loras", "a.pt")
    assert list((models / "loras").iterdir()) == []


@pytest.mark.parametrize("way", ["symbolic link", "copy"])
def test_other_ways_to_make_a_name(models: Path, way: Way) -> None:
    store = ObjectStore(models, reserve=0, ways=[way])
    file, tree = add(store, b"weights"), add_tree(store, a=b"one", sub__b=b"two")
    one, two = store.link(file, "loras", "sub/a.pt"), store.link(tree, "LLM", "model")
    assert (one.read_bytes(), (two / "sub" / "b").read_bytes()) == (b"weights", b"two")
    assert one.is_symlink() == two.is_symlink() == (way == "symbolic link")
    assert (one.stat().st_ino == file.path.stat().st_ino) == (way == "symbolic link")

    again = ObjectStore(models, reserve=0, ways=[way])
    assert again.gc().names == 0
    assert again.named("loras", "sub/a.pt") == file
    assert again.named("LLM", "model") == tree
    assert [entry.names for entry in again.entries()] == [("loras/sub/a.pt",), ("LLM/model",)]
    again.remove(file.id)
    again.remove(tree.id)
    assert not os.path.lexists(one)
    assert not os.path.lexists(two)


def test_a_copy_that_a_person_changed_is_theirs(models: Path) -> None:
    store = ObjectStore(models, reserve=0, ways=["copy"])
    file, tree = add(store, b"weights"), add_tree(store, a=b"one")
    one, two = store.link(file, "loras", "a.pt"), store.link(tree, "LLM", "model")
    one.write_bytes(b"changed")
    (two / "a").write_bytes(b"changed")
    assert store.named("loras", "a.pt") is store.named("LLM", "model") is None
    store.remove(file.id)
    store.remove(tree.id)
    assert one.read_bytes() == (two / "a").read_bytes() == b"changed"


def test_links_inside_the_models_folder_survive_its_move(models: Path, tmp_path: Path) -> None:
    store = ObjectStore(models, reserve=0, ways=["symbolic link"])
    store.link(add(store, b"weights"), "loras", "sub/a.pt")
    models.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "loras" / "sub" / "a.pt").read_bytes() == b"weights"


def test_a_model_folder_on_another_disk(store: ObjectStore, models: Path, tmp_path: Path) -> None:
    other = Path("/dev/shm")  # noqa: S108 - the one second filesystem that Linux always has
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("There is no second filesystem to write to.")
    elsewhere = other / f"objects-{os.getpid()}"
    elsewhere.mkdir()
    try:
        file, tree = add(store, b"weights"), add_tree(store, a=b"one")
        (models / "vae").symlink_to(elsewhere)
        one, two = store.link(file, "vae", "a.pt"), store.link(tree, "vae", "sub/model")
        assert one.is_symlink()
        assert (one.read_bytes(), (two / "a").read_bytes()) == (b"weights", b"one")
        assert store.named("vae", "a.pt") == file
        assert store.named("vae", "sub/model") == tree
        store.remove(file.id)
        store.remove(tree.id)
        assert os.listdir(elsewhere) == ["sub"]  # noqa: PTH208
    finally:
        for parent, _, files in os.walk(elsewhere, topdown=False):
            for name in files:
                Path(parent, name).unlink()
            Path(parent).rmdir()


# Origins


def test_remembers_what_a_place_gave(store: ObjectStore, models: Path) -> None:
    added = add(store, b"weights")
    before = time.time()
    store.remember(
        "https://h/a.pt?which=it",
        '"etag"',
        added,
        file_name="a.pt",
        private=True,
        immutable=False,
        shown="https://me:secret@h/a.pt?token=secret",
    )
    found = store.recall("https://h/a.pt?which=it")
    assert found is not None
    assert (found.object_id, found.version, found.file_name) == (added.id, '"etag"', "a.pt")
    assert (found.private, found.immutable, found.shown) == (True, False, "https://h/a.pt")
    assert before <= found.checked_at <= time.time()
    assert store.recall("https://h/a.pt") is None
    kept = b"".join(file.read_bytes() for file in (models / ".store").glob("index*"))
    assert b"secret" not in kept
    assert b"which=it" not in kept
    assert store.entries()[0].shown == "https://h/a.pt"


def test_remembers_names_that_are_no_unicode(store: ObjectStore) -> None:
    added = add(store, b"weights", "key \udc80")
    options = {"private": False, "immutable": False}
    store.remember("place \udc80", "v \udc80", added, file_name="a\udc80", **options)
    found = store.recall("place \udc80")
    assert found is not None
    assert found.file_name == "a?"


def test_a_place_that_gives_something_new_is_remembered_anew(store: ObjectStore) -> None:
    old, new = add(store, b"old"), add(store, b"new")
    for version, added in [("1", old), ("2", new)]:
        store.remember("x", version, added, file_name="a", private=False, immutable=False)
    found = store.recall("x")
    assert found is not None
    assert (found.object_id, found.version) == (new.id, "2")
    store.remove(new.id)
    assert store.recall("x") is None


# Locks and pins


def test_the_lock_of_a_key_is_for_one_alone(store: ObjectStore) -> None:
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        waits.set()
        with store.locked("key", threading.Event()):
            order.append("second")

    with ThreadPoolExecutor() as pool:
        with store.locked("key", threading.Event()):
            future = pool.submit(second)
            assert waits.wait(10)
            with store.try_locked("key") as free, store.try_locked("other") as other:
                assert (free, other) == (False, True)
            order.append("first")
        future.result(10)
    assert order == ["first", "second"]
    with store.try_locked("key") as free:
        assert free


def test_waiting_for_a_lock_can_be_cancelled(store: ObjectStore) -> None:
    stop = threading.Event()

    def wait() -> None:
        with store.locked("key", stop):
            pass

    with ThreadPoolExecutor() as pool, store.locked("key", threading.Event()):
        future = pool.submit(wait)
        stop.set()
        with pytest.raises(Cancelled):
            future.result(10)


def test_what_is_pinned_is_not_removed(store: ObjectStore) -> None:
    added = add(store, b"weights")
    store.link(added, "loras", "a.pt")
    with store.pin([added.id, NOWHERE]), store.pin([added.id]):
        for what in (added.id, "loras/a.pt"):
            with pytest.raises(InvalidInput, match="in use by a run") as caught:
                store.remove(what)
            assert problem(caught) == "in_use"
        assert store.entries()[0].pinned
    assert not store.entries()[0].pinned
    store.remove(added.id)


def test_an_object_may_be_pinned_before_it_is_there(models: Path) -> None:
    store = ObjectStore(models, reserve=0, limit=10)
    with store.pin([sha256(b"first")]):
        first = add(store, b"first")
        second = add(store, b"other")
        store.make_room(5)
    assert ids(store) == [first.id]
    assert store.get(second.id) is None


# Removing


def test_removes_an_object_with_its_names(store: ObjectStore, models: Path) -> None:
    added = add(store, b"weights")
    paths = [store.link(added, folder, "a.pt") for folder in ("loras", "vae")]
    removed = store.remove(added.id)
    assert removed.names == ("loras/a.pt", "vae/a.pt")
    assert not any(path.exists() for path in paths)
    assert store.entries() == []
    assert list((models / ".store" / "objects").iterdir()) == []


def test_removes_a_name_and_with_the_last_one_the_object(store: ObjectStore) -> None:
    added = add(store, b"weights")
    for folder in ("loras", "vae"):
        store.link(added, folder, "a.pt")
    store.remove("vae/a.pt")
    assert store.entries()[0].names == ("loras/a.pt",)
    store.remove("loras/a.pt")
    assert store.entries() == []


def test_does_not_remove_what_it_does_not_have(store: ObjectStore, models: Path) -> None:
    theirs = put(models, "loras/a.pt")
    for what in ("loras/a.pt", NOWHERE, "../x"):
        with pytest.raises(InvalidInput) as caught:
            store.remove(what)
        assert problem(caught) == "not_in_store"
    assert theirs.exists()


# Room


def test_evicts_the_least_recently_used_within_the_limit(models: Path) -> None:
    store = ObjectStore(models, reserve=0, limit=30)
    first, second, third = (add(store, content * 10) for content in (b"1", b"2", b"3"))
    path = store.link(second, "loras", "a.pt")
    theirs = put(models, "loras/theirs.pt")
    store.touch([first.id])
    store.make_room(0)
    assert len(ids(store)) == 3
    store.make_room(10)
    assert ids(store) == [third.id, first.id]
    assert not path.exists()
    assert theirs.exists()


def test_a_folder_counts_whole(models: Path) -> None:
    store = ObjectStore(models, reserve=0, limit=30)
    tree = add_tree(store, a=b"x" * 10, b=b"y" * 10)
    path = store.link(tree, "LLM", "model")
    kept = add(store, b"z" * 10)
    store.make_room(5)
    assert ids(store) == [kept.id]
    assert not path.exists()


def test_evicts_nothing_in_vain(models: Path) -> None:
    store = ObjectStore(models, reserve=0, limit=30)
    pinned, kept, free = (add(store, content * 10) for content in (b"1", b"2", b"3"))
    calls: list[str] = []
    with store.pin([pinned.id]):
        with pytest.raises(DownloadFailed) as caught:
            store.make_room(11, keep=[kept.id], release=lambda: calls.append("released"))
        assert str(caught.value).startswith(
            "The model store is too small: 11 B are to come, its limit is 30 B, 30 B are in it "
            "and 10 B of them could go, so 1 B are missing. Raise COMFY_RUNNER_MAX_WEIGHTS_BYTES"
        )
        assert len(ids(store)) == 3
        assert calls == []
        store.make_room(10, keep=[kept.id], release=lambda: calls.append("released"))
    assert ids(store) == [pinned.id, kept.id]
    assert store.get(free.id) is None
    assert calls == ["released"]


def test_the_disk_that_cannot_hold_it_is_named(models: Path) -> None:
    store = ObjectStore(models, reserve=1000)
    added = add(store, b"weights" * 1000)
    with pytest.raises(DownloadFailed) as caught:
        store.make_room(10**17)
    text = str(caught.value)
    assert text.startswith("The disk is too small for the weights: 100000000.0 GB are to come, ")
    assert "of which 1.0 kB must stay so, and 8.2 kB could be freed" in text
    assert "or lower COMFY_RUNNER_DISK_RESERVE." in text
    assert store.get(added.id) == added

    with pytest.raises(DownloadFailed, match="are missing"):
        ObjectStore(models, reserve=10**17).make_room(1)


def test_what_others_have_linked_frees_nothing(models: Path, tmp_path: Path) -> None:
    store = ObjectStore(models, reserve=0)
    added = add(store, b"weights" * 1000)
    (tmp_path / "theirs").hardlink_to(added.path)
    with pytest.raises(DownloadFailed, match=" and 0 B could be freed"):
        store.make_room(10**17)


# Looking after it


def test_reads_objects_again(store: ObjectStore) -> None:
    good, bad = add(store, b"good"), add(store, b"bad")
    bad_tree = add_tree(store, a=b"one", b=b"two")
    lost = add(store, b"lost")
    path = store.link(bad, "loras", "a.pt")
    path.write_bytes(b"BAD")
    (bad_tree.path / "a").write_bytes(b"ONE")
    lost.path.unlink()
    found = {finding.id: finding for finding in store.verify()}
    assert found[good.id].fault == ""
    assert found[bad.id].names == ("loras/a.pt",)
    assert f"its content has the hash {sha256(b'BAD')} now" in found[bad.id].fault
    assert found[lost.id].fault == "it is gone."
    assert [found[x.id].removed for x in (good, bad, bad_tree, lost)] == [False, True, True, True]
    assert ids(store) == [good.id]
    assert not path.exists()


def test_a_broken_object_in_use_is_only_reported(store: ObjectStore) -> None:
    bad = add(store, b"bad")
    bad.path.write_bytes(b"BAD")
    with store.pin([bad.id]):
        assert [(finding.fault != "", finding.removed) for finding in store.verify()] == [
            (True, False)
        ]
    assert ids(store) == [bad.id]


def test_cleaning_keeps_what_can_be_gone_on_with(store: ObjectStore, models: Path) -> None:
    fresh, old, held = (store.part(key) for key in ("fresh", "old", "held"))
    for part in (fresh, old, held):
        part.write_bytes(b"half")
        part.with_name(f"{part.name}.json").write_text("{}")
    scratch = put(store.scratch("archive"), "half/unpacked")
    long_ago = time.time() - 2 * DAY
    for file in (old, old.with_name(f"{old.name}.json"), held):
        os.utime(file, (long_ago, long_ago))
    with store.locked("held", threading.Event()), store.locked("archive", threading.Event()):
        again = ObjectStore(models, reserve=0)
        assert [part.exists() for part in (fresh, old, held)] == [True, False, True]
        assert not old.with_name(f"{old.name}.json").exists()
        assert scratch.exists()
    assert again.gc().staging == 1
    assert not scratch.exists()
    assert again.gc(staging_age=0).staging == 4
    assert list(store.staging.iterdir()) == []
    assert [path.name for path in (models / ".store" / "locks").iterdir()] == ["store.lock"]


def test_cleaning_keeps_what_is_only_just_begun(store: ObjectStore, models: Path) -> None:
    begun, wrong = store.part("begun while the folder was listed"), store.part("by a wrong clock")
    for part, ahead in ((begun, 1), (wrong, 2 * DAY)):
        part.write_bytes(b"half")
        os.utime(part, (time.time() + ahead,) * 2)
    ObjectStore(models, reserve=0)
    assert [part.exists() for part in (begun, wrong)] == [True, False]


def test_cleaning_brings_index_and_disk_together(store: ObjectStore, models: Path) -> None:
    orphan, lost, good = add(store, b"orphan"), add(store, b"lost"), add(store, b"good")
    gone, taken = (store.link(good, "loras", name) for name in ("gone", "taken"))
    gone.unlink()
    taken.unlink()
    put(models, "loras/taken")
    store.remove(orphan.id)
    orphan.path.write_bytes(b"orphan")
    lost.path.unlink()
    done = store.gc()
    assert (done.adopted, done.lost, done.names) == (1, 1, 2)
    assert sorted(ids(store)) == sorted([orphan.id, good.id])
    assert taken.read_bytes() == b"by hand"
    assert store.gc() == Collected()


@pytest.mark.parametrize("what", ["start", "link", "remove"])
def test_a_name_whose_maker_died_at_once_is_the_stores(
    store: ObjectStore, models: Path, what: str
) -> None:
    added, other = add(store, b"weights"), add(store, b"other")
    Shelf(models, WAYS).index.begin_name(NameRow("loras/a.pt", added.id))
    path = models / "loras" / "a.pt"
    path.parent.mkdir()
    path.hardlink_to(added.path)
    (path.parent / Place.of(models, store.staging, "loras/a.pt").beside.name).write_bytes(b"half")
    match what:
        case "start":
            ObjectStore(models, reserve=0)
            assert store.named("loras", "a.pt") == added
        case "link":
            store.link(other, "loras", "a.pt")
            assert store.named("loras", "a.pt") == other
        case "remove":
            store.remove(added.id)
            assert not path.exists()
            assert store.gc().names == 0
    assert [file for file in path.parent.iterdir() if file != path] == []


def test_a_link_that_leads_nowhere_goes(models: Path) -> None:
    store = ObjectStore(models, reserve=0, ways=["symbolic link"])
    added = add(store, b"weights")
    path = store.link(added, "loras", "a.pt")
    added.path.unlink()
    ObjectStore(models, reserve=0)
    assert not os.path.lexists(path)


@pytest.mark.parametrize("how", ["text", "empty", "gone", "cut", "torn", "foreign"])
def test_a_broken_index_is_made_anew(models: Path, how: str) -> None:
    ways: list[Way] = ["hard link", "symbolic link"]
    store = ObjectStore(models, reserve=0, ways=ways)
    file, tree = add(store, b"weights"), add_tree(store, a=b"one", sub__b=b"two")
    theirs = put(models, "loras/theirs.pt")
    store.link(file, "loras", "sub/a.pt")
    store.link(tree, "LLM", "model")
    ObjectStore(models, reserve=0, ways=["symbolic link"]).link(file, "vae", "a.pt")
    index = models / ".store" / "index.sqlite"
    match how:
        case "text":
            index.write_bytes(b"this is no database at all, not even a little" * 100)
        case "empty":
            os.truncate(index, 0)
        case "gone":
            index.unlink()
        case "cut":
            os.truncate(index, index.stat().st_size // 2)
        case "torn":
            content = bytearray(index.read_bytes())
            content[4096:] = os.urandom(len(content) - 4096)
            index.write_bytes(content)
        case "foreign":
            content = bytearray(index.read_bytes())
            content[60:64] = (99).to_bytes(4, "big")  # user_version, in SQLite's header
            index.write_bytes(content)

    assert store.named("loras", "sub/a.pt") == file
    assert store.named("LLM", "model") == tree
    assert store.named("vae", "a.pt") == file
    assert {entry.id: entry.names for entry in store.entries()} == {
        file.id: ("loras/sub/a.pt", "vae/a.pt"),
        tree.id: ("LLM/model",),
    }
    broken = index.with_name("index.sqlite.broken")
    assert broken.exists() == (how not in ("empty", "gone"))
    assert store.gc() == Collected(locks=5)
    store.remove(file.id)
    store.remove(tree.id)
    assert [path for path in models.glob("[!.]*/**/*") if not path.is_dir()] == [theirs]
