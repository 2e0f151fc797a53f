"""How weights are brought: once, from whoever has them, unpacked, kept within the disk, whole."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import weight_stores
from fakes import hub_server
from fakes.file_server import FileServer, running
from weight_stores import (
    QUICK,
    ensure,
    fetches,
    files,
    looks,
    settings,
    sha256,
    staged,
    tensors,
    weight,
)

from comfy_runner.errors import DownloadFailed, HashMismatch
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.hub import available
from comfy_runner.weights.store import WeightStore
from comfy_runner.weights.weight import Member, Source, Weight

PROJECT = Path(__file__).resolve().parent.parent
models, store = weight_stores.models, weight_stores.store  # fixtures
MIB = 1024**2
BODY = tensors(100_000)
OTHER = tensors(100_000, b"b")


def serve(server: FileServer, path: str, body: bytes, **how: Any) -> str:
    """A file on a server that does all right."""
    return server.serve(path, body, **{"ranges": True, "etag": f'"{sha256(body)[:8]}"', **how})


def tar(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def read(models: Path, name: str) -> bytes:
    return (models / name).read_bytes()


# Once


def test_one_url_under_two_names_is_one_transfer(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "a", BODY)
    first = weight("a.safetensors", url)
    second = weight("b.safetensors", url, folders=("vae",), sha256=sha256(BODY))
    assert ensure(store, first, second).ensured.files == 1
    assert fetches(server) == 1
    assert read(store.models, "loras/a.safetensors") == read(store.models, "vae/b.safetensors")


def test_one_url_that_must_be_two_contents_is_one_failure(
    store: WeightStore, server: FileServer
) -> None:
    url = serve(server, "a", BODY)
    right = weight("a.safetensors", url, sha256=sha256(BODY))
    with pytest.raises(HashMismatch):
        ensure(store, right, weight("b.safetensors", url, sha256=sha256(OTHER)))
    ensure(store, right)
    assert files(store.models) == ["loras/a.safetensors"]


def test_content_that_the_manifest_names_is_not_fetched_again(
    store: WeightStore, server: FileServer
) -> None:
    ensure(store, weight("a.safetensors", serve(server, "a", BODY)))
    again = weight("b.safetensors", server.url("elsewhere"), sha256=sha256(BODY).upper())
    assert ensure(store, again).ensured.files == 0
    on_source = Source(server.url("elsewhere"), sha256=sha256(BODY))
    ensure(store, weight("c.safetensors", on_source))
    assert len(server.asked) == 2
    assert len(files(store.models)) == 3


def test_content_that_a_host_states_is_not_fetched_again(
    store: WeightStore, server: FileServer
) -> None:
    ensure(store, weight("a.safetensors", serve(server, "a", BODY)))
    stated = {"X-Linked-Etag": f'"{sha256(BODY)}"'}
    ensure(store, weight("b.safetensors", serve(server, "b", BODY, headers=stated)))
    assert (looks(server, "b"), fetches(server, "b")) == (1, 0)


def test_two_threads_fetch_a_file_once(models: Path, server: FileServer) -> None:
    body = os.urandom(3 * MIB)
    url = serve(server, "a", body, hold_after=2 * MIB)
    stores = [WeightStore(settings(models)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(ensure, one, weight("a.pt", url), patience=Patience()) for one in stores
        ]
        assert server.holding.wait(10)
        server.release.set()
        counts = sorted(job.result().ensured.files for job in jobs)
    assert counts == [0, 1]
    assert fetches(server) == 1


def test_a_lost_name_comes_back_without_asking_anybody(
    store: WeightStore, server: FileServer
) -> None:
    wanted = weight("a.safetensors", serve(server, "a", BODY))
    ensure(store, wanted)
    (store.models / "loras" / "a.safetensors").unlink()
    assert ensure(store, wanted).ensured.files == 0
    assert len(server.asked) == 2
    assert read(store.models, "loras/a.safetensors") == BODY


def test_a_changed_file_is_noticed_once_its_host_is_asked_again(
    models: Path, server: FileServer
) -> None:
    url = serve(server, "a", BODY)
    ensure(WeightStore(settings(models)), weight("a.safetensors", url))
    serve(server, "a", OTHER)
    believed = weight("b.safetensors", url)
    ensure(WeightStore(settings(models)), believed)
    assert len(server.asked) == 2
    asked = weight("c.safetensors", url)
    ensure(WeightStore(settings(models, recheck_after=0.0)), asked)
    assert read(models, "loras/b.safetensors") == BODY
    assert read(models, "loras/c.safetensors") == OTHER


def test_an_unchanged_file_is_looked_at_but_not_fetched_again(
    models: Path, server: FileServer
) -> None:
    url = serve(server, "a", BODY)
    store = WeightStore(settings(models, recheck_after=0.0))
    ensure(store, weight("a.safetensors", url))
    ensure(store, weight("b.safetensors", url))
    assert (looks(server), fetches(server)) == (2, 1)


def test_a_host_that_is_gone_is_told_and_what_it_gave_is_used(models: Path) -> None:
    store = WeightStore(settings(models, recheck_after=0.0))
    with running() as server:
        url = serve(server, "a", BODY)
        ensure(store, weight("a.safetensors", url))
    outcome = ensure(store, weight("b.safetensors", url))
    (note,) = outcome.ensured.notes
    assert "/a does not answer; what was fetched before is used." in note
    with pytest.raises(DownloadFailed, match="could not be fetched"):
        ensure(store, weight("c.safetensors", f"{url}nother"))


# What is wrong


def test_refuses_what_is_no_weight(store: WeightStore, server: FileServer) -> None:
    page = b"<!doctype html><title>Log in</title>"
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "page": ({"body": page, "headers": {"Content-Type": "text/html"}}, "web page"),
        "hidden-page": ({"body": page}, "web page"),
        "cut": ({"body": BODY[:-1]}, "no sound safetensors"),
        "pickle": ({"body": b"\x80\x04" + bytes(100)}, "Python pickle"),
        "empty": ({"body": b"", "ranges": False}, "empty"),
    }
    for name, (how, told) in bad.items():
        body = how.pop("body")
        url = serve(server, name, body, **how)
        with pytest.raises(DownloadFailed, match=told):
            ensure(store, weight(f"{name}.safetensors", url))
    assert files(store.models) == staged(store.models) == []


def test_hosts_must_agree_with_the_manifest(store: WeightStore, server: FileServer) -> None:
    stated = {"X-Linked-Etag": f'"{sha256(BODY)}"'}
    url = serve(server, "a", BODY, headers=stated)
    with pytest.raises(HashMismatch, match=f"its sha256 is {sha256(BODY)}, expected was 0000"):
        ensure(store, weight("a.safetensors", url, sha256="0" * 64))
    with pytest.raises(HashMismatch, match="bytes where 5 were expected"):
        ensure(store, weight("a.safetensors", url, size=5))
    lying = serve(server, "b", OTHER, headers=stated)
    with pytest.raises(HashMismatch):
        ensure(store, weight("b.safetensors", lying))
    assert fetches(server, "a") == 0
    assert files(store.models) == []


def test_a_source_that_cannot_be_used_does_not_hide_the_next_one(
    store: WeightStore, server: FileServer
) -> None:
    ensure(store, weight("a.safetensors", "../outside", serve(server, "a", BODY)))
    assert read(store.models, "loras/a.safetensors") == BODY


# Archives


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_takes_one_file_out_of_a_tar(store: WeightStore, server: FileServer, mode: str) -> None:
    body = tar({"deep/a.safetensors": BODY, "deep/b.safetensors": OTHER, "log.txt": b"hi"}, mode)
    url = serve(server, "x.tar", body)
    first = Source(url, extract="tar", member="deep/a.safetensors", sha256=sha256(body))
    second = Source(url, extract="tar", member="deep/b.safetensors")
    ensure(
        store,
        weight("a.safetensors", first, size=len(BODY), sha256=sha256(BODY)),
        weight("b.safetensors", second, sha256=sha256(OTHER)),
    )
    assert read(store.models, "loras/a.safetensors") == BODY
    assert read(store.models, "loras/b.safetensors") == OTHER
    assert fetches(server) == 1
    assert staged(store.models) == []


def test_takes_the_one_weight_out_of_a_zip(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "x", zipped({"x/a.safetensors": BODY, "x/README.md": b"hi"}))
    source = Source(url, extract="zip")
    ensure(store, weight("a.safetensors", source))
    assert read(store.models, "loras/a.safetensors") == BODY
    ensure(store, weight("b.safetensors", source))
    assert fetches(server) == 1


def test_what_is_wrong_in_an_archive_is_told_and_the_archive_is_gone(
    store: WeightStore, server: FileServer
) -> None:
    two = serve(server, "two.tar", tar({"a.safetensors": BODY, "b.safetensors": OTHER}))
    cases = {
        "holds 2 safetensors files": Source(two, extract="tar"),
        "It has no member 'c'": Source(two, extract="tar", member="c"),
        "neither|cannot be unpacked": Source(serve(server, "none", BODY), extract="zip"),
        "leads out of the folder": Source(
            serve(server, "evil", tar({"../../x.safetensors": BODY})), extract="tar"
        ),
        "no sound safetensors": Source(
            serve(server, "cut", tar({"x.safetensors": BODY[:-1]})), extract="tar"
        ),
    }
    for told, source in cases.items():
        with pytest.raises(DownloadFailed, match=told):
            ensure(store, weight("x.safetensors", source))
    source = Source(two, extract="tar", member="a.safetensors")
    with pytest.raises(HashMismatch, match=r"a\.safetensors of http://"):
        ensure(store, weight("x.safetensors", source, sha256="0" * 64))
    assert files(store.models) == staged(store.models) == []


# Folders


def test_a_folder_comes_out_of_an_archive(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "x.tar", tar({"top/config.json": b"{}", "top/sub/a.safetensors": BODY}))
    source = Source(url, extract="tar", strip=1)
    members = (Member("config.json"), Member("sub/a.safetensors", len(BODY), sha256(BODY)))
    whole = weight("whole", source, folders=("LLM", "llm"), kind="dir", files=members)
    ensure(store, whole)
    assert read(store.models, "LLM/whole/sub/a.safetensors") == BODY
    assert read(store.models, "llm/whole/config.json") == b"{}"
    ensure(store, whole)
    other = weight("other", source, folders=("LLM",), kind="dir")
    ensure(store, other)
    assert len(files(store.models)) == 6
    assert fetches(server) == 1


def test_a_folder_is_not_taken_for_the_file_of_the_same_archive(
    store: WeightStore, server: FileServer
) -> None:
    source = Source(serve(server, "x.tar", tar({"a.safetensors": BODY})), extract="tar")
    ensure(store, weight("whole", source, folders=("LLM",), kind="dir"))
    ensure(store, weight("a.safetensors", source))
    assert files(store.models) == ["LLM/whole/a.safetensors", "loras/a.safetensors"]


def test_a_folder_without_a_file_that_it_must_have_is_refused(
    store: WeightStore, server: FileServer
) -> None:
    source = Source(serve(server, "x.tar", tar({"a.safetensors": BODY})), extract="tar")
    whole = weight("whole", source, kind="dir", files=(Member("config.json"),))
    with pytest.raises(DownloadFailed, match=r"does not hold config\.json"):
        ensure(store, whole)
    nothing = weight("nothing", server.url("x"), kind="dir")
    with pytest.raises(DownloadFailed, match="Add files or extract"):
        ensure(store, nothing)


def folder_of(server: FileServer, *bases: str) -> tuple[Weight, list[str]]:
    """A weight that is a folder of four files, two of which are the same; and their paths."""
    members = (
        Member("config.json", 20),
        Member("a/vocabulary 1.txt", sha256=sha256(b"same words")),
        Member("b/vocabulary.txt", sha256=sha256(b"same words")),
        Member("model.safetensors", len(BODY), sha256(BODY)),
    )
    sources = [Source(server.url(base)) for base in bases]
    return weight("whole", *sources, folders=("LLM",), kind="dir", files=members), [
        "config.json",
        "a/vocabulary%201.txt",
        "b/vocabulary.txt",
        "model.safetensors",
    ]


CONTENTS = [b'{"a": "12345678901"}', b"same words", b"same words", BODY]


def test_a_folder_comes_file_by_file(store: WeightStore, server: FileServer) -> None:
    whole, paths = folder_of(server, "base")
    for path, content in zip(paths, CONTENTS, strict=True):
        serve(server, f"base/{path}", content)
    outcome = ensure(store, whole)
    standing = store.models / "LLM" / "whole"
    assert (standing / "a" / "vocabulary 1.txt").read_bytes() == b"same words"
    assert (standing / "b" / "vocabulary.txt").read_bytes() == b"same words"
    assert (standing / "model.safetensors").read_bytes() == BODY
    assert (outcome.ensured.files, fetches(server)) == (4, 4)
    assert staged(store.models) == []
    assert ensure(store, whole).updates == []
    shutil.rmtree(standing)
    ensure(store, whole)
    assert (standing / "model.safetensors").read_bytes() == BODY
    assert fetches(server) == 4


def test_a_folder_goes_on_at_the_next_mirror(store: WeightStore, server: FileServer) -> None:
    whole, paths = folder_of(server, "bad", "good")
    for path, content in zip(paths, CONTENTS, strict=True):
        serve(server, f"good/{path}", content)
        serve(server, f"bad/{path}", content)
    serve(server, "bad/model.safetensors", OTHER)
    ensure(store, whole)
    assert read(store.models, "LLM/whole/model.safetensors") == BODY
    assert staged(store.models) == []


def test_a_folder_that_lacks_a_file_everywhere_is_one_error(
    store: WeightStore, server: FileServer
) -> None:
    whole, paths = folder_of(server, "base", "mirror")
    for path, content in zip(paths, CONTENTS, strict=True):
        serve(server, f"base/{path}", content)
    serve(server, "base/model.safetensors", OTHER)
    with pytest.raises(DownloadFailed) as caught:
        ensure(store, whole)
    assert "/mirror/config.json could not be fetched" in str(caught.value)
    assert "/base/model.safetensors is not the file" in str(caught.value)
    assert files(store.models) == []


def test_a_folder_of_this_machine(store: WeightStore) -> None:
    base = store.models.parent / "assets" / "my folder"
    (base / "sub").mkdir(parents=True)
    (base / "sub" / "a b.txt").write_text("hello")
    members = (Member("sub/a b.txt"),)
    relative = weight("x", "assets/my folder", kind="dir", files=members)
    absolute = weight("y", base.as_uri(), kind="dir", files=members)
    ensure(store, relative, absolute)
    assert read(store.models, "loras/x/sub/a b.txt") == b"hello"
    assert read(store.models, "loras/y/sub/a b.txt") == b"hello"


def test_the_url_of_a_file_in_a_folder_keeps_its_query(
    store: WeightStore, server: FileServer
) -> None:
    serve(server, "base/a.bin", b"hello")
    url = f"{server.url('base/')}?sig=s3cret"
    ensure(store, weight("x", url, kind="dir", files=(Member("a.bin"),)))
    assert {asked.path for asked in server.asked} == {"base/a.bin?sig=s3cret"}


def test_a_folder_is_a_repository_and_its_files_come_out_of_the_xet_store(models: Path) -> None:
    body = os.urandom(300_000)
    with hub_server.running() as hub:
        hub.keep("sub/config.json", b"{}")
        hub.keep("sub/a.bin", body, xet=True)
        store = WeightStore(settings(models, hf_endpoint=hub.url))
        page = f"https://huggingface.co/{hub_server.REPO}/tree/main/sub"
        members = (Member("config.json"), Member("a.bin", len(body)))
        ensure(store, weight("x", page, kind="dir", files=members), patience=Patience())
        assert read(models, "loras/x/a.bin") == body
        assert read(models, "loras/x/config.json") == b"{}"
        assert staged(models) == []
        by_xet = [asked.path for asked in hub.asked if asked.path.startswith("/xorb/")]
        assert bool(by_xet) == available()


# Room


def sized(server: FileServer, name: str, letter: bytes) -> Weight:
    return weight(f"{name}.safetensors", serve(server, name, tensors(100_000, letter)))


def test_the_least_recently_used_goes_and_what_is_in_use_stays(
    models: Path, server: FileServer
) -> None:
    store = WeightStore(settings(models, max_weights_bytes=350_000))
    a, b, c, d, e = (sized(server, name, name.encode()) for name in "abcde")
    released: list[int] = []
    for each in (a, b, c):
        ensure(store, each)
    with store.in_use(["loras/a.safetensors"]), ExitStack() as pins:
        ensure(store, b, pins=pins)
        ensure(store, d, release=lambda: released.append(1))
        assert store.listing("loras") == {f"{name}.safetensors" for name in "abd"}
        before = len(server.asked)
        with pytest.raises(DownloadFailed, match="limit is"):
            ensure(store, c, e)
        assert len(server.asked) - before == looks(server, "c") - 1 + looks(server, "e")
        assert store.listing("loras") == {f"{name}.safetensors" for name in "abd"}
    assert released == [1]
    ensure(store, c, e, release=lambda: released.append(2))
    assert {"c.safetensors", "e.safetensors"} < store.listing("loras")
    assert released == [1, 2]


def test_what_is_wanted_and_there_does_not_go_for_what_is_missing(
    models: Path, server: FileServer
) -> None:
    store = WeightStore(settings(models, max_weights_bytes=250_000))
    a, b, c = (sized(server, name, name.encode()) for name in "abc")
    ensure(store, a, b)
    ensure(store, a, c)
    assert store.listing("loras") == {"a.safetensors", "c.safetensors"}


def test_a_disk_that_is_too_small_loses_nothing(models: Path, server: FileServer) -> None:
    ensure(WeightStore(settings(models)), sized(server, "a", b"a"))
    store = WeightStore(settings(models, disk_reserve=10**17))
    with pytest.raises(DownloadFailed, match="The disk is too small for the weights"):
        ensure(store, sized(server, "b", b"b"))
    assert store.listing("loras") == {"a.safetensors"}
    assert fetches(server) == 1


# Faults of the network


@pytest.mark.parametrize(
    "how",
    [
        {"ranges": False},
        {"ranges": False, "length": False},
        {"ranges": False, "chunked": True},
        {"cuts": [1, 50_000, 1000]},
        {"short": 70_000},
        {"shifted": 5},
        {"deaf_after": 1},
        {"changes_to": OTHER, "changes_after": 1},
    ],
)
def test_a_server_that_misbehaves_gives_the_file_all_the_same(
    store: WeightStore, server: FileServer, how: Mapping[str, Any]
) -> None:
    url = serve(server, "a", BODY, **how)
    ensure(store, weight("a.safetensors", url), patience=Patience(stall=5, retries=3, backoff=0.01))
    assert read(store.models, "loras/a.safetensors") in (BODY, OTHER)
    assert staged(store.models) == []


@pytest.mark.parametrize(
    "how",
    [
        {"always_cut": 0},
        {"status": 500, "ranges": False},
        {"status": 403, "ranges": False},
        {"status": 302, "ranges": False, "headers": {"Location": "/a"}},
        {"hold_after": 0, "ranges": False, "pace": 30},
    ],
)
def test_a_server_that_never_gives_the_file_is_one_clear_error(
    store: WeightStore, server: FileServer, how: Mapping[str, Any]
) -> None:
    url = serve(server, "a", BODY, **how)
    with pytest.raises(DownloadFailed, match=r"/a could not be fetched"):
        ensure(store, weight("a.safetensors", url))
    assert files(store.models) == []


# Killed

CHILD = """
import sys
from pathlib import Path
from comfy_runner.config import Config
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.hub import available
from comfy_runner.weights.weight import Source, Weight
from comfy_runner.weights.store import WeightStore
models, pget, *urls = sys.argv[1:]
models = Path(models)
config = Config(models=models, manifest=models / "manifest.json", disk_reserve=0, pget=pget)
store = WeightStore(config)
weights = [
    Weight(name=f"{n}.pt", folders=("loras",), urls=(Source(url),)) for n, url in enumerate(urls)
]
for update in store.ensure(weights, patience=Patience(stall=20)):
    print(update.overall.done if update.overall else 0, flush=True)
"""


def kill_in_the_middle(models: Path, pget: str, after: int, *urls: str) -> None:
    """A process that fetches, and is killed as soon as so many bytes stand."""
    command = [sys.executable, "-c", CHILD, str(models), pget, *urls]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= after:
                break
        process.send_signal(signal.SIGKILL)


def test_killed_at_any_moment_it_goes_on(models: Path, server: FileServer) -> None:
    bodies = [os.urandom(12 * MIB), os.urandom(9 * MIB), os.urandom(MIB)]
    size = sum(map(len, bodies))
    urls = [serve(server, str(n), body, pace=0.02) for n, body in enumerate(bodies)]
    moments = random.Random(5).sample(range(size * 3 // 4), 3)  # noqa: S311 - no secret
    for moment in [*sorted(moments), size * 3 // 4]:
        kill_in_the_middle(models, "off", moment, *urls)
        for name in store_names(models):
            assert read(models, f"loras/{name}") == bodies[int(name[0])]
    for served in server.files.values():
        served.pace = 0
    store, before = WeightStore(settings(models)), server.sent
    ensure(store, *(weight(f"{n}.pt", url) for n, url in enumerate(urls)))
    assert server.sent - before < size
    assert [read(models, f"loras/{n}.pt") for n in range(3)] == bodies
    assert staged(models) == []
    assert all(not finding.fault for finding in store.objects.verify())


def store_names(models: Path) -> list[str]:
    folder = models / "loras"
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []


def test_a_killed_folder_goes_on(models: Path, server: FileServer) -> None:
    body = os.urandom(9 * MIB)
    serve(server, "base/a.bin", body)
    serve(server, "base/b.bin", body[::-1], pace=0.01)
    whole = weight(
        "whole", server.url("base"), kind="dir", files=(Member("a.bin"), Member("b.bin"))
    )
    store = WeightStore(settings(models))
    updates = store.ensure([whole], patience=QUICK)
    assert any(update.overall and update.overall.done > 10 * MIB for update in updates)
    updates.close()
    server.files["base/b.bin"].pace = 0
    before = server.sent
    ensure(store, whole)
    assert server.sent - before < 9 * MIB
    assert read(models, "loras/whole/a.bin") == body
    assert read(models, "loras/whole/b.bin") == body[::-1]


# With pget

needs_pget = pytest.mark.skipif(shutil.which("pget") is None, reason="There is no pget on PATH.")


@needs_pget
def test_pget_brings_what_fits_it(models: Path, server: FileServer) -> None:
    store = WeightStore(settings(models, pget="auto"))
    large, small = os.urandom(40_000_000), tensors(1000)
    wanted = [
        weight("a.pt", serve(server, "a", large), size=len(large), sha256=sha256(large)),
        weight("b.safetensors", serve(server, "b", small)),
        weight("c.pt", serve(server, "c", large[::-1])),
    ]
    outcome = ensure(store, *wanted, patience=Patience())
    assert read(models, "loras/a.pt") == large
    assert read(models, "loras/b.safetensors") == small
    assert read(models, "loras/c.pt") == large[::-1]
    by_pget = {asked.path for asked in server.asked if "pget" in asked.headers["User-Agent"]}
    assert by_pget == {"a", "c"}
    assert outcome.ensured.size == 2 * len(large) + len(small)
    assert staged(models) == []


@needs_pget
def test_what_pget_brings_is_judged(models: Path, server: FileServer) -> None:
    store = WeightStore(settings(models, pget="auto"))
    wrong = bytes(2 * MIB)
    with pytest.raises(HashMismatch):
        ensure(store, weight("a.pt", serve(server, "a", wrong), sha256="0" * 64))
    with pytest.raises(DownloadFailed, match="no sound safetensors"):
        ensure(store, weight("a.safetensors", serve(server, "a", wrong)))
    right = os.urandom(2 * MIB)
    mirrors = [serve(server, "a", wrong), serve(server, "b", right)]
    ensure(store, weight("a.pt", *mirrors, sha256=sha256(right)))
    assert read(models, "loras/a.pt") == right
    assert staged(models) == []


@needs_pget
def test_our_own_fetcher_finishes_what_a_killed_pget_began(
    models: Path, server: FileServer
) -> None:
    body = os.urandom(64_000_000)
    url = serve(server, "a", body, pace=0.03)
    store = WeightStore(settings(models, pget="auto"))
    updates = store.ensure([weight("a.pt", url, sha256=sha256(body))], patience=Patience())
    killed: list[int] = []
    for _ in updates:
        if not killed and any("pget" in asked.headers["User-Agent"] for asked in server.asked):
            killed = [child for child in children() if is_pget(child)]
            for child in killed:
                os.kill(child, signal.SIGKILL)
            server.files["a"].pace = 0
    assert killed
    assert read(models, "loras/a.pt") == body
    assert staged(models) == []


@needs_pget
def test_killed_with_pget_it_goes_on(models: Path, server: FileServer) -> None:
    body = os.urandom(48_000_000)
    url = serve(server, "a", body, pace=0.01)
    kill_in_the_middle(models, "auto", 16_000_000, url)
    server.files["a"].pace = 0
    store = WeightStore(settings(models, pget="auto"))
    ensure(store, weight("a.pt", url), patience=Patience())
    assert read(models, "loras/a.pt") == body
    assert staged(models) == []


def children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_pget(process: int) -> bool:
    return b"multifile" in Path(f"/proc/{process}/cmdline").read_bytes()
