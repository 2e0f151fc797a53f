"""What the content store is like after kills, on full disks, and with others at work in it."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from comfy_runner.weights.kept.objects import Collected, Object, ObjectStore

PROJECT = Path(__file__).resolve().parent.parent
LIMIT = 1_500_000
"""Bytes that the shared store may hold: about half of what `WORKER` adds to it."""

COMMON = """
import hashlib, mmap, os, random, sys, threading
from pathlib import Path
from comfy_runner.errors import ComfyRunnerError, DownloadFailed
from comfy_runner.weights.kept.objects import ObjectStore

def content(number):
    return bytes([number]) * (100_000 + 10_000 * number)

def add(store, number, size=None):
    data = content(number) if size is None else bytes([number]) * size
    part = store.part(f"file {number}")
    part.write_bytes(data)
    return store.add_file(part, hashlib.sha256(data).hexdigest(), size=len(data))

def add_tree(store, number):
    folder = store.scratch(f"tree {number}")
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "sub/c"):
        (folder / name).write_bytes(content(number) + name.encode())
    return store.add_tree(folder)
"""

WORKER = (
    COMMON
    + """
models, seed, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
store = ObjectStore(models, reserve=0, limit=limit)
print("ready", flush=True)
while True:
    number, is_tree = chance.randrange(1, 10), chance.random() < 0.3
    key = f"{'tree' if is_tree else 'file'} {number}"
    with store.locked(key, threading.Event()):
        added = add_tree(store, number) if is_tree else add(store, number)
        try:
            folder, name = ("LLM", f"m{number % 3}") if is_tree else ("loras", f"{number % 4}.pt")
            store.link(added, folder, name)
            store.remember(key, "1", added, file_name=name, private=False, immutable=False)
        except DownloadFailed as err:
            assert "removed meanwhile" in str(err), err
    try:
        store.make_room(chance.randrange(limit))
    except DownloadFailed as err:
        assert "too small" in str(err), err
"""
)

USER = (
    COMMON
    + """
store = ObjectStore(Path(sys.argv[1]), reserve=0, limit=len(content(1)))
wanted = hashlib.sha256(content(1)).hexdigest()
brought = 0
while brought < 10:
    with store.pin([wanted]):
        found = store.get(wanted)
        if found is None:
            with store.locked("file 1", threading.Event()):
                found = store.get(wanted) or add(store, 1)
            brought += 1
        path = store.link(found, "loras", "a.pt")
        assert path.read_bytes() == content(1)
        assert store.get(wanted) == found
    try:
        store.make_room(1)
    except DownloadFailed as err:
        assert "too small" in str(err), err  # the other one uses it
"""
)

PINNER = (
    COMMON
    + """
store = ObjectStore(Path(sys.argv[1]), reserve=0)
with store.pin([sys.argv[2]]):
    print("pinned", flush=True)
    sys.stdin.read()
"""
)


def child(code: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, **options)


def content(number: int) -> bytes:
    return bytes([number]) * (100_000 + 10_000 * number)


def add(store: ObjectStore, content: bytes) -> Object:
    sha256 = hashlib.sha256(content).hexdigest()
    part = store.part(f"{threading.get_ident()}")
    part.write_bytes(content)
    return store.add_file(part, sha256, size=len(content))


def check(store: ObjectStore, models: Path) -> None:
    """Every name is whole and right, and the index knows all that stands and nothing else."""
    entries = {entry.id: entry for entry in store.entries()}
    objects = models / ".store" / "objects"
    assert set(entries) == {path.name for path in objects.iterdir()}
    for finding in store.verify():
        assert finding.fault == ""
    listed = {name: entry.id for entry in entries.values() for name in entry.names}
    whole = {content(number) for number in range(1, 10)}
    assert {f"loras/{path.name}" for path in (models / "loras").glob("*")} <= set(listed)
    for path in (models / "loras").glob("*"):
        assert path.read_bytes() in whole
    for folder in (models / "LLM").glob("*"):
        assert f"LLM/{folder.name}" in listed
        assert sorted(p.relative_to(folder).as_posix() for p in folder.glob("**/*")) == [
            "a",
            "b",
            "sub",
            "sub/c",
        ]
        [data] = {(folder / name).read_bytes()[: -len(name)] for name in ("a", "b", "sub/c")}
        assert data in whole
    # A name that nobody knows would keep the bytes of an object after its end.
    for entry in entries.values():
        path = objects / entry.id
        for file in [path] if entry.kind == "file" else [p for p in path.rglob("*") if p.is_file()]:
            assert file.stat().st_nlink == 1 + len(entry.names)
    assert {path.suffix for path in store.staging.iterdir()} <= {".part"}


def test_kills_leave_nothing_that_is_half(tmp_path: Path) -> None:
    chance = random.Random(5)  # noqa: S311 - it protects nothing
    kept = 0
    for round_ in range(7):
        workers = [child(WORKER, tmp_path, 3 * round_ + n, LIMIT) for n in range(3)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            with pytest.raises(subprocess.TimeoutExpired):  # else it has failed
                worker.wait(chance.uniform(0.01, 0.2))
            worker.kill()
            worker.communicate(timeout=10)
        store = ObjectStore(tmp_path, reserve=0)
        check(store, tmp_path)
        assert store.gc().names == 0
        kept += len(store.entries())  # in one round all may just have been removed for room
    assert kept
    ours = add(store, b"after it all")
    store.link(ours, "loras", "mine.pt", replace=True)
    assert store.named("loras", "mine.pt") == ours


def test_two_processes_add_use_and_evict_the_same_object(tmp_path: Path) -> None:
    with child(USER, tmp_path) as first, child(USER, tmp_path) as second:
        assert (first.wait(60), second.wait(60)) == (0, 0)
    store = ObjectStore(tmp_path, reserve=0)
    assert len(store.entries()) <= 1
    assert all(finding.fault == "" for finding in store.verify())


def test_threads_that_keep_the_same_content(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, reserve=0)
    data = os.urandom(200_000)
    start = threading.Barrier(8)

    def work(number: int) -> tuple[Object, Path]:
        start.wait(10)
        added = add(store, data)
        return added, store.link(added, "loras", f"{number % 2}.pt")

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    [added] = {added for added, _ in results}
    assert all(path.samefile(added.path) for _, path in results)
    assert [entry.names for entry in store.entries()] == [("loras/0.pt", "loras/1.pt")]


def test_stores_that_begin_at_once_share_one_index(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def work(number: int) -> str:
        start.wait(10)
        return add(ObjectStore(tmp_path, reserve=0), bytes([number])).id

    with ThreadPoolExecutor(8) as pool:
        added = set(pool.map(work, range(8)))
    assert {entry.id for entry in ObjectStore(tmp_path, reserve=0).entries()} == added
    assert not (tmp_path / ".store" / "index.sqlite.broken").exists()


def test_a_pin_ends_with_its_process(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, reserve=0)
    added = add(store, b"weights")
    with child(PINNER, tmp_path, added.id, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "pinned\n"
        assert store.entries()[0].pinned
        assert store.gc() == Collected()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not store.entries()[0].pinned
    store.remove(added.id)


# Disks of our own, where the system lets us mount one

SMALL_DISK = """
set -e
mount -t tmpfs -o size=16m none "$1"
exec "$2" -W error -c "$3" "$1"
"""


@cache
def may_mount(folder: Path) -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def on_a_small_disk(folder: Path, code: str) -> Any:
    """What the code prints as JSON; its first argument is an empty disk of 16 MiB."""
    if not may_mount(folder):
        pytest.skip("This system lets nobody mount a disk of their own.")
    command = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", str(folder), sys.executable, code]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


START = (
    COMMON
    + """
import json, shutil, subprocess
models = Path(sys.argv[1]) / "models"
MIB = 1024 ** 2
def ids(store):
    return [number for number in range(1, 10) for entry in store.entries()
            if entry.id == hashlib.sha256(bytes([number]) * (4 * MIB)).hexdigest()]
"""
)


def test_evicts_what_the_disk_lacks_and_no_more(tmp_path: Path) -> None:
    result = on_a_small_disk(
        tmp_path,
        START
        + """
store = ObjectStore(models, reserve=MIB)
for number in (1, 2, 3):
    store.link(add(store, number, 4 * MIB), "loras", f"{number}.pt")
store.touch([hashlib.sha256(bytes([1]) * (4 * MIB)).hexdigest()])
half = store.part("unfinished")
half.write_bytes(b"x" * MIB)
calls = []
try:
    store.make_room(30 * MIB, release=lambda: calls.append(1))
except DownloadFailed as err:
    text = str(err)
before = (ids(store), half.exists(), len(calls))
store.make_room(2 * MIB + MIB // 2, release=lambda: calls.append(1))
first = (ids(store), half.exists(), len(calls))
store.make_room(6 * MIB, release=lambda: calls.append(1))
second = (ids(store), half.exists(), len(calls))
names = sorted(path.name for path in (models / "loras").iterdir())
print(json.dumps([text, before, first, second, names]))
""",
    )
    text, *states, names = result
    assert "31.5 MB are to come" in text
    assert "1.0 MB must stay so, and 13.6 MB could be freed" in text
    # The unfinished download goes first, then what was used longest ago.
    assert states == [[[1, 2, 3], True, 0], [[1, 2, 3], False, 0], [[1, 3], False, 1]]
    assert names == ["1.pt", "3.pt"]


def test_mapped_files_free_nothing_and_only_two_go_in_vain(tmp_path: Path) -> None:
    result = on_a_small_disk(
        tmp_path,
        START
        + """
store = ObjectStore(models, reserve=0)
maps = []
for number in (1, 2, 3):
    with store.link(add(store, number, 4 * MIB), "loras", f"{number}.pt").open("rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
try:
    store.make_room(10 * MIB)
except DownloadFailed as err:
    text = str(err)
left = ids(store)
def release():
    while maps:
        maps.pop().close()
release()
store.make_room(10 * MIB, release=lambda: 1 / 0)
for number in (1, 2):
    with store.link(add(store, number, 4 * MIB), "loras", f"{number}.pt").open("rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
store.make_room(11 * MIB, release=release)
print(json.dumps([text, left, ids(store)]))
""",
    )
    text, left, after = result
    assert "did not free their space, so a running program still has them open" in text
    assert left == [3]
    assert after == [2]


def test_a_full_disk_is_said_and_can_be_emptied(tmp_path: Path) -> None:
    result = on_a_small_disk(
        tmp_path,
        START
        + """
store = ObjectStore(models, reserve=0)
kept = add(store, 1, 4 * MIB)
path = store.link(kept, "loras", "1.pt")
try:
    with (models / "theirs").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
said = []
for work in (
    lambda: store.remember("x", "1", kept, file_name="n" * 9999, private=False, immutable=False),
    lambda: ObjectStore(models, reserve=0, ways=["copy"]).link(kept, "vae", "1.pt"),
):
    try:
        work()
    except DownloadFailed as err:
        said.append("could not be stored under" in str(err))
store.touch([kept.id])
whole = path.read_bytes() == kept.path.read_bytes()
left = [p.name for p in (models / "vae").iterdir()]
ObjectStore(models, reserve=0).make_room(3 * MIB)
print(json.dumps([said, whole, left, ids(store), path.exists()]))
""",
    )
    assert result == [[True, True], True, [], [], False]


def test_a_models_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    result = on_a_small_disk(
        tmp_path,
        START
        + """
store = ObjectStore(models, reserve=0)
kept, tree = add(store, 1, 4 * MIB), add_tree(store, 2)
store.link(kept, "loras", "1.pt")
store.link(tree, "LLM", "m")
store.remember("x", "1", kept, file_name="1.pt", private=False, immutable=True)
def look():
    store = ObjectStore(models, reserve=0)
    with store.pin([kept.id, "0" * 64]):
        store.touch([kept.id])
        found = [store.get(kept.id) == kept, store.named("loras", "1.pt") == kept,
                 store.named("LLM", "m") == tree, store.recall("x") is not None]
    store.link(kept, "loras", "1.pt")
    store.make_room(MIB)
    said = []
    for work in (lambda: store.try_locked("key").__enter__(), lambda: store.make_room(14 * MIB),
                 lambda: store.link(kept, "vae", "1.pt"), lambda: store.remove(kept.id)):
        try:
            work()
        except DownloadFailed as err:
            said.append(True)
    return [found, said, len(store.entries()), all(not f.fault for f in store.verify())]
def remount(how):
    subprocess.run(["mount", "-o", f"remount,{how}", sys.argv[1]], check=True)
remount("ro")
with_index = look()
remount("rw")
(models / ".store" / "index.sqlite").write_bytes(b"broken" * 1000)
remount("ro")
print(json.dumps([with_index, look()]))
""",
    )
    with_index, without = result
    assert with_index == [[True, True, True, True], [True] * 4, 2, True]
    assert without == [[True, True, True, False], [True] * 4, 2, True]
