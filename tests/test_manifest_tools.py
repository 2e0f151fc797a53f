"""The tools around a manifest: locking, exports, differences, and their commands."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import weight_hosts
from fakes.file_server import FileServer
from fakes.weight_hosts import WeightHosts, civitai_file, digest
from typer.testing import CliRunner, Result

from comfy_runner.command_line import TOKEN_VARIABLES
from comfy_runner.errors import Cancelled, DownloadFailed, InvalidInput
from comfy_runner.fetch.download import Patience
from comfy_runner.manifest_commands import manifest_app
from comfy_runner.weights.hosts.locate import Hosts
from comfy_runner.weights.manifests.differences import Change, differences
from comfy_runner.weights.manifests.document import Content, content, write
from comfy_runner.weights.manifests.exports import Export, cog_block, pget_list
from comfy_runner.weights.manifests.host_look import HostLook, Stated
from comfy_runner.weights.manifests.locking import Locked, is_complete, lock
from comfy_runner.weights.weight import Member, Source, Weight

PROJECT = Path(__file__).resolve().parent.parent
BODY = b"weights of a model"
SHA = hashlib.sha256(BODY).hexdigest()
OTHER = "b" * 64
LINKED = {"X-Linked-Etag": f'"{SHA}"'}
"""How Hugging Face states a file's hash."""


@pytest.fixture
def hosts() -> Iterator[WeightHosts]:
    with weight_hosts.running() as hosts:
        yield hosts


def weight(*urls: str | Source, name: str = "x.safetensors", **more: Any) -> Weight:
    folders = more.pop("folders", ("loras",))
    sources = tuple(Source(url) if isinstance(url, str) else url for url in urls)
    return Weight(name=name, folders=folders, urls=sources, **more)


def look(base: Path, **more: Any) -> HostLook:
    how = {
        "hosts": Hosts(),
        "credentials": {},
        "environment": {},
        "cancelled": threading.Event(),
        "patience": Patience(retries=0),
        **more,
    }
    return HostLook(base, **how)


def locked(manifest: Content, asking: HostLook, **how: Any) -> Locked:
    return lock(
        manifest,
        asking,
        listing=asking.files,
        tell=lambda *_: None,
        cancelled=threading.Event(),
        **how,
    )


# Locking


def test_fills_in_what_a_host_states(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("x", BODY, ranges=True, headers=LINKED)
    result = locked(Content((weight(url, license="MIT"),)), look(tmp_path))
    assert result.content.weights == (weight(url, license="MIT", size=len(BODY), sha256=SHA),)
    assert result.filled == ("loras/x.safetensors",)
    assert (result.differing, result.failed, result.incomplete) == ((), (), ())


def test_what_is_complete_is_not_asked(server: FileServer, tmp_path: Path) -> None:
    own = Content((weight(server.url("x"), size=1, sha256=SHA),))
    assert locked(own, look(tmp_path)).content == own
    assert server.asked == []


def test_a_hash_that_no_host_states_stays_open(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("x", BODY, ranges=True)
    result = locked(Content((weight(url),)), look(tmp_path))
    assert result.content.weights == (weight(url, size=len(BODY)),)
    assert result.incomplete == ("loras/x.safetensors",)


def test_a_file_is_fetched_for_its_hash_and_not_kept(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("x", BODY, ranges=True)
    result = locked(Content((weight(url),)), look(tmp_path, scratch=tmp_path))
    assert result.content.weights[0].sha256 == SHA
    assert list(tmp_path.iterdir()) == []


def test_files_of_this_machine_and_data_urls_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "a b.bin").write_bytes(BODY)
    data = "data:,weights%20of%20a%20model"
    for url in ("a b.bin", f"file://{tmp_path}/a%20b.bin", data):
        asking = look(tmp_path, scratch=tmp_path)
        assert asking(Source(url)) == Stated(len(BODY), SHA)
    with pytest.raises(DownloadFailed, match=r"nowhere\.bin cannot be read"):
        look(tmp_path)(Source("nowhere.bin"))


def test_of_an_archive_the_source_is_filled_in(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("x.tar", BODY, ranges=True, headers=LINKED)
    own = weight(Source(url, extract="tar", member="x"), size=5)
    result = locked(Content((own,)), look(tmp_path))
    source = Source(url, extract="tar", member="x", size=len(BODY), sha256=SHA)
    assert result.content.weights == (weight(source, size=5),)
    assert result.incomplete == ()


def test_a_failure_stops_no_other_entry(server: FileServer, tmp_path: Path) -> None:
    good = server.serve("good", BODY, ranges=True, headers=LINKED)
    own = Content((weight(server.url("gone"), name="a"), weight(good, name="b")))
    result = locked(own, look(tmp_path))
    assert result.content.weights[0] == own.weights[0]
    assert result.filled == ("loras/b",)
    (failure,) = result.failed
    assert failure.startswith("loras/a: ")
    assert "HTTP 404" in failure
    assert result.incomplete == ()  # nobody has said that no host states it


def test_content_that_changed_upstream_is_told_and_not_taken(
    server: FileServer, tmp_path: Path
) -> None:
    url = server.serve("x", BODY, ranges=True, headers=LINKED)
    own = Content((weight(url, size=5, sha256=OTHER),))
    result = locked(own, look(tmp_path), again=True)
    assert result.content == own
    assert result.differing == (
        f"loras/x.safetensors: size of the file is 5 bytes here and {len(BODY)} bytes at its host.",
        f"loras/x.safetensors: sha256 of the file is {OTHER} here and {SHA} at its host.",
    )
    updated = locked(own, look(tmp_path), again=True, update=True)
    assert updated.content.weights == (weight(url, size=len(BODY), sha256=SHA),)


def test_a_hash_does_not_fill_in_beside_a_size_that_contradicts(
    server: FileServer, tmp_path: Path
) -> None:
    url = server.serve("x", BODY, ranges=True, headers=LINKED)
    own = Content((weight(url, size=5),))
    assert locked(own, look(tmp_path)).content == own


def test_mirrors_that_differ_are_told(server: FileServer, tmp_path: Path) -> None:
    first = server.serve("a", BODY, ranges=True, headers=LINKED)
    second = server.serve("b", BODY + b".", ranges=True, headers=LINKED)
    for update in (False, True):
        result = locked(Content((weight(first, second),)), look(tmp_path), update=update)
        assert result.content.weights[0].size == len(BODY)
        assert len(result.differing) == 1


def test_a_folder_on_hugging_face_gets_its_files(hosts: WeightHosts, tmp_path: Path) -> None:
    files = {"a.safetensors": 5000, "sub/b.bin": 7000, "README.md": 5, ".gitattributes": 5}
    hosts.add_repository("o/r", files)
    for source, paths in [
        ("hf://o/r", ("a.safetensors", "sub/b.bin")),
        ("hf://o/r/sub", ("b.bin",)),
    ]:
        own = Content((weight(source, kind="dir", name="r"),))
        result = locked(own, look(tmp_path, hosts=hosts.hosts))
        found = result.content.weights[0].files
        assert tuple(member.path for member in found) == paths
        assert found[-1] == Member(paths[-1], 7000, digest("sub/b.bin"))
        assert (result.failed, result.incomplete) == ((), ())


def test_each_file_of_a_folder_is_asked_for(server: FileServer, tmp_path: Path) -> None:
    server.serve("r/a%20b.bin", BODY, ranges=True, headers=LINKED)
    own = weight(server.url("r/"), kind="dir", name="r", files=(Member("a b.bin"),))
    result = locked(Content((own,)), look(tmp_path))
    assert result.content.weights[0].files == (Member("a b.bin", len(BODY), SHA),)
    unlisted = locked(Content((replace(own, files=()),)), look(tmp_path))
    assert "does not list its files" in unlisted.failed[0]


def test_civitai_states_hashes_by_its_api(hosts: WeightHosts, tmp_path: Path) -> None:
    hosts.add_version(7, 34, [civitai_file(1, 34)])
    headers = {"Content-Range": "bytes 0-0/900", "Content-Type": "application/octet-stream"}
    hosts.tell("/civitai/api/download/models/34", b"0", status=206, headers=headers)
    result = locked(Content((weight("civitai:7@34"),)), look(tmp_path, hosts=hosts.hosts))
    found = result.content.weights[0]
    assert (found.size, found.sha256) == (900, digest("style.safetensors"))


def test_only_the_named_entries_are_asked(server: FileServer, tmp_path: Path) -> None:
    names = ["a", "sub/b", "c", "d"]
    manifest = Content(
        tuple(
            weight(server.serve(name, BODY, ranges=True, headers=LINKED), name=name)
            for name in names
        ),
        {"g": ("loras/c",)},
    )
    result = locked(manifest, look(tmp_path), only=["loras/a", "sub/b", "g"])
    assert result.filled == ("loras/a", "loras/sub/b", "loras/c")
    with pytest.raises(InvalidInput, match="'z'"):
        locked(manifest, look(tmp_path), only=["a", "z"])


def test_an_interrupt_ends_all_that_waits(server: FileServer, tmp_path: Path) -> None:
    held = server.serve("held", BODY, hold_after=0)
    quick = server.serve("quick", BODY, ranges=True)
    cancelled = threading.Event()
    asking = look(tmp_path, cancelled=cancelled)

    def interrupted(*_: object) -> None:
        server.holding.wait(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lock(
            Content((weight(held, name="a"), weight(quick, name="b"))),
            asking,
            listing=asking.files,
            tell=interrupted,
            cancelled=cancelled,
        )
    assert cancelled.is_set()
    with pytest.raises(Cancelled):
        asking(Source(held))


def test_what_is_complete() -> None:
    tar = Source("a.tar", extract="tar", size=1, sha256=SHA)
    assert is_complete(weight(tar))
    assert not is_complete(weight(tar, "a"))
    assert is_complete(weight(tar, "a", size=1, sha256=SHA))
    assert not is_complete(weight("a", kind="dir"))
    assert is_complete(weight("a", kind="dir", files=(Member("x", 0, SHA),)))
    assert not is_complete(weight("a", kind="dir", files=(Member("x", 1),)))


# Cog


def blocks(export: Export) -> list[dict[str, Any]]:
    found = yaml.safe_load(export.text)["weights"]
    assert isinstance(found, list)
    return found


def test_each_folder_is_a_block_of_sources() -> None:
    export = cog_block(
        [
            weight("https://huggingface.co/o/r/resolve/main/x.safetensors"),
            weight("https://huggingface.co/o/r/resolve/v1/sub/y.bin", name="y.bin"),
            weight("assets/z.pt", name="z.pt", folders=("vae_approx",)),
        ],
        "/src/models",
    )
    assert blocks(export) == [
        {
            "name": "loras",
            "target": "/src/models/loras",
            "source": [
                {"uri": "hf://o/r", "include": ["/x.safetensors"]},
                {"uri": "https://huggingface.co/o/r/resolve/v1/sub/y.bin"},
            ],
        },
        {
            "name": "vae-approx",
            "target": "/src/models/vae_approx",
            "source": [{"uri": "assets", "include": ["/z.pt"]}],
        },
    ]
    assert export.left_out == ()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (weight("https://h/y.bin"), "it is called y.bin at its source"),
        (weight("x.safetensors"), "the project's own folder"),
        (weight("assets/a[1].pt", name="a[1].pt"), "means something else as a pattern"),
        (weight("https://h/x.safetensors?sig=s3cret"), "has a query"),
        (weight("https://me:s3cret@h/x.safetensors"), "user or password"),
        (weight("https://h/x.safetensors", gated=True), "it wants a token"),
        (weight(Source("https://h/x.safetensors", auth="civitai")), "it wants a token"),
        (weight("data:,x"), "is no web address"),
        (weight(Source("https://h/x.tar", extract="tar")), "comes as an archive (tar)"),
        (weight("https://h/x", kind="dir"), "it is a whole folder"),
    ],
)
def test_tells_what_cog_cannot_fetch(entry: Weight, why: str) -> None:
    export = cog_block([entry], "/src/models")
    assert blocks(export) == []
    (line,) = export.left_out
    assert line.startswith(f"{entry.label}: ")
    assert why in line
    assert "s3cret" not in line + export.text


def test_a_gated_file_at_the_top_of_a_repository_is_left_to_cogs_token() -> None:
    entry = weight("hf://o/r@v2/x.safetensors", gated=True)
    (block,) = blocks(cog_block([entry], "/m"))
    assert block["source"] == [{"uri": "hf://o/r@v2", "include": ["/x.safetensors"]}]


def test_the_first_source_that_fits_is_taken() -> None:
    entry = weight(Source("https://h/x.tar", extract="tar"), "https://h/x.safetensors")
    (block,) = blocks(cog_block([entry], "/m"))
    assert block["source"] == [{"uri": "https://h/x.safetensors"}]


def test_blocks_are_disjoint_and_named_as_cog_wants_it() -> None:
    names = ["SDXL/a/x.bin", "SDXL/y.bin", "SDXL_/z.bin", "\u00e9/v.bin"]
    export = cog_block(
        [weight(f"https://h/{Path(name).name}", name=name) for name in names], "/src/models/"
    )
    assert [(block["name"], block["target"]) for block in blocks(export)] == [
        ("loras-sdxl", "/src/models/loras/SDXL"),
        ("loras-sdxl-2", "/src/models/loras/SDXL_"),
        ("loras", "/src/models/loras/\u00e9"),
    ]
    assert "mounted inside /src/models/loras/SDXL" in export.left_out[0]


def test_the_shipped_manifest_as_a_block() -> None:
    shipped = content((PROJECT / "weights_manifest.json").read_bytes())
    found = blocks(cog_block(shipped.weights, "/src/models"))
    assert all(re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", block["name"]) for block in found)
    assert len({block["target"] for block in found}) == len(found)
    assert {"diffusion-models", "vae-approx"} <= {block["name"] for block in found}


@pytest.mark.parametrize("models", ["models", "/src/../x"])
def test_cog_wants_an_absolute_folder(models: str) -> None:
    with pytest.raises(InvalidInput, match="no absolute path"):
        cog_block([], models)


# pget


def test_each_file_is_a_line() -> None:
    export = pget_list(
        [
            weight("hf://o/r/sub/x.safetensors"),
            weight(
                Source("https://h/y.tar", extract="tar"),
                "https://h/y%20z.bin",
                name="y.bin",
                folders=("vae", "checkpoints"),
            ),
        ],
        "models",
    )
    assert export.text == (
        "https://huggingface.co/o/r/resolve/main/sub/x.safetensors models/loras/x.safetensors\n"
        "https://h/y%20z.bin models/vae/y.bin\n"
        "https://h/y%20z.bin models/checkpoints/y.bin\n"
    )
    assert export.left_out == ()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (weight("https://h/x", name="a b"), "holds a space"),
        (weight("https://h/x", name="a\u2003b"), "holds a space"),
        (weight(f"https://h/{'x' * 61_440}"), "too long"),
        (weight("data:,x"), "no web address"),
        (weight("assets/x"), "no web address"),
        (weight("hf://o/r"), "is no file"),
        (weight("https://me:s3cret@h/x"), "user or password"),
        (weight("https://h/x", gated=True), "it wants a token"),
        (weight(Source("https://h/x", auth="bearer_env", env="T")), "it wants a token"),
        (weight(Source("https://h/x.zip", extract="zip")), "comes as an archive (zip)"),
        (weight("hf://o/r", kind="dir"), "it is a whole folder"),
    ],
)
def test_tells_what_pget_cannot_fetch(entry: Weight, why: str) -> None:
    export = pget_list([entry], "models")
    assert export.text == ""
    (line,) = export.left_out
    assert why in line
    assert "s3cret" not in line


@pytest.mark.skipif(shutil.which("pget") is None, reason="pget is not on PATH")
def test_pget_fetches_the_list(server: FileServer, tmp_path: Path) -> None:
    entries = [
        weight(server.serve(f"{n}.bin", BODY, ranges=True), name=f"sub/{n}.bin") for n in range(3)
    ]
    export = pget_list(entries, str(tmp_path))
    environment = {**os.environ, "PGET_PID_FILE": str(tmp_path / "pid")}
    subprocess.run(
        ["pget", "multifile", "-"],
        input=export.text.encode(),
        env=environment,
        check=True,
        timeout=60,
    )
    assert all((tmp_path / "loras" / entry.name).read_bytes() == BODY for entry in entries)


# Differences


def test_manifests_that_say_the_same_have_none() -> None:
    one = Content((weight("a"), weight("b", name="y")), {"g": ("loras/y",)})
    assert not differences(one, replace(one, weights=one.weights[::-1]))


def test_tells_what_came_went_moved_and_changed() -> None:
    old = Content(
        (
            weight("https://h/a", name="gone"),
            weight("https://h/b", name="old", sha256=SHA),
            weight("https://h/c", name="same", size=1, license="MIT"),
        ),
        {"g": ("loras/gone",)},
        {"r8": "https://r8"},
    )
    new = Content(
        (
            weight("https://h/d", name="come"),
            weight("https://h/e", name="new", sha256=SHA, folders=("vae",)),
            weight("https://h/c", name="same", size=2, gated=True),
        ),
    )
    found = differences(old, new)
    assert (found.added, found.removed) == (("loras/come",), ("loras/gone",))
    assert found.moved == (("loras/old", "vae/new"),)
    assert found.changed == (
        Change("vae/new", "urls", ["https://h/b"], ["https://h/e"]),
        Change("loras/same", "size", 1, 2),
        Change("loras/same", "license", "MIT", None),
        Change("loras/same", "gated", None, True),
    )
    assert found.groups == (Change("g", "", ("loras/gone",), None),)
    assert list(found.lines()) == [
        "- loras/gone",
        "+ loras/come",
        "> loras/old is now vae/new",
        "~ vae/new urls: https://h/b -> https://h/e",
        "~ loras/same size: 1 -> 2",
        "~ loras/same license: MIT -> nothing",
        "~ loras/same gated: nothing -> True",
        "~ group g: loras/gone -> nothing",
        "~ base r8: https://r8 -> nothing",
    ]


def test_of_several_files_with_one_hash_none_has_moved() -> None:
    old = Content((weight("a", name="a", sha256=SHA), weight("b", name="b", sha256=SHA)))
    new = Content((weight("a", name="c", sha256=SHA),))
    assert differences(old, new).moved == ()


def test_without_hashes_the_same_url_has_moved() -> None:
    old, new = Content((weight("a", name="a"),)), Content((weight("a", name="b"),))
    assert differences(old, new).moved == (("loras/a", "loras/b"),)


def test_queries_are_not_shown() -> None:
    old = Content((weight("https://h/x?sig=s3cret"),))
    new = Content((weight(Source("https://h/x?sig=other", strip=1)),))
    found = differences(old, new)
    shown = " ".join(found.lines()) + json.dumps(found.as_json())
    assert "https://h/x?..." in shown
    assert "s3cret" not in shown
    assert "other" not in shown


# Commands


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> Path:
    """A folder with a manifest, which is the project's."""
    url = server.serve("x", BODY, ranges=True, headers=LINKED)
    path = tmp_path / "weights_manifest.json"
    path.write_text(write([weight(url)], {"g": ["loras/x.safetensors"]}, schema="./s.json"))
    monkeypatch.setenv("COMFY_RUNNER_MANIFEST", str(path))
    monkeypatch.setenv("COMFY_RUNNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(manifest_app, list(map(str, arguments)))


def test_validate_counts_or_names_the_faults(project: Path) -> None:
    result = run("validate")
    assert result.exit_code == 0
    assert result.stdout.endswith("weights_manifest.json: 1 weights, 1 groups, no fault.\n")
    bad = project / "bad.json"
    bad.write_text('{"version": 1, "weights": [{}]}')
    assert f"weights[0].name of {bad}" in str(run("validate", bad).exception)
    bad.write_text("{")
    assert str(bad) in str(run("diff", project / "weights_manifest.json", bad).exception)
    assert isinstance(run("validate", project / "none.json").exception, InvalidInput)


def test_schema_prints_the_schema() -> None:
    assert run("schema").stdout == (PROJECT / "weights_manifest.schema.json").read_text("utf-8")


def test_lock_writes_what_it_learnt(project: Path) -> None:
    file = project / "weights_manifest.json"
    before = content(file.read_bytes())
    file.chmod(0o640)
    checked = run("lock", "--check")
    assert isinstance(checked.exception, InvalidInput)
    assert "1 entries would get" in checked.stdout
    assert content(file.read_bytes()) == before

    result = run("lock")
    assert result.exit_code == 0
    assert "1 of 1: loras/x.safetensors" in result.stderr
    after = content(file.read_bytes())
    assert (after.weights[0].size, after.weights[0].sha256) == (len(BODY), SHA)
    assert (after.groups, after.schema) == (before.groups, before.schema)
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in project.iterdir()) == ["weights_manifest.json"]
    assert run("lock", "--check").exit_code == 0


def test_lock_tells_what_changed_upstream(project: Path, server: FileServer) -> None:
    run("lock")
    server.serve("x", BODY + b".", ranges=True, headers={"X-Linked-Etag": f'"{OTHER}"'})
    result = run("lock", "--check")
    assert isinstance(result.exception, InvalidInput)
    assert f"sha256 of the file is {SHA} here and {OTHER} at its host" in result.stderr
    assert run("lock", "--update").exit_code == 0
    assert content((project / "weights_manifest.json").read_bytes()).weights[0].sha256 == OTHER
    assert isinstance(run("lock", "--check", "--update").exception, InvalidInput)


def test_lock_writes_the_rest_when_one_entry_fails(project: Path, server: FileServer) -> None:
    file = project / "weights_manifest.json"
    own = content(file.read_bytes())
    file.write_text(write([*own.weights, weight(server.url("gone"), name="y")]))
    result = run("lock")
    assert isinstance(result.exception, DownloadFailed)
    assert "loras/y: " in result.stderr
    assert content(file.read_bytes()).weights[0].sha256 == SHA


def test_lock_downloads_what_no_host_states(project: Path, server: FileServer) -> None:
    server.serve("x", BODY, ranges=True)
    assert "lacks a size or hash that no host states. With --download it is" in run("lock").stderr
    assert run("lock", "--download", "--only", "g").exit_code == 0
    assert content((project / "weights_manifest.json").read_bytes()).weights[0].sha256 == SHA


def test_lock_says_where_it_cannot_download_to(project: Path) -> None:
    (project / "home").write_text("in the way")
    error = run("lock", "--download").exception
    assert isinstance(error, InvalidInput)
    assert error.problems[0].input == "COMFY_RUNNER_HOME"


@pytest.mark.usefixtures("project")
def test_lock_sends_the_tokens_of_every_command(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TOKEN_VARIABLES.keys() - {"CIVITAI_API_TOKEN"}:
        assert name in run("lock", "--help").stdout
    monkeypatch.setenv("CIVITAI_TOKEN", "s3cret")
    monkeypatch.setenv("COMFY_RUNNER_CIVITAI_ENDPOINT", server.url("").rstrip("/"))
    assert run("lock").exit_code == 0
    assert {asked.headers.get("Authorization") for asked in server.asked} == {"Bearer s3cret"}


def test_import_prints_writes_or_merges(project: Path) -> None:
    listed = {"name": "y.bin", "url": "https://h/y.bin", "directory": "vae"}
    (project / "one.json").write_text(json.dumps({"nodes": [], "models": [listed, {}]}))
    printed = run("import", project / "one.json")
    assert [found.label for found in content(printed.stdout).weights] == ["vae/y.bin"]
    assert content(printed.stdout).groups == {"one": ("vae/y.bin",)}
    assert "it names no model" in printed.stderr

    file = project / "weights_manifest.json"
    before = content(file.read_bytes())
    result = run("import", project / "one.json", "--into", file, "--no-groups")
    assert result.stdout == f"{file}: 1 entries added.\n"
    after = content(file.read_bytes())
    assert (after.weights[:1], after.groups) == (before.weights, before.groups)

    apart = project / "apart.json"
    assert run("import", project / "one.json", "--into", file, "-o", apart).exit_code == 0
    assert content(apart.read_bytes()).groups.keys() == {"g", "one"}
    assert isinstance(run("import", project / "none.json").exception, InvalidInput)
    error = run("import", project / "one.json", "--into", project / "none.json").exception
    assert "give --out instead" in str(error)


def test_import_reads_an_installed_package() -> None:
    result = run("import", "comfyui-workflow-templates-json")
    assert result.exit_code == 0
    assert len(content(result.stdout).weights) > 250


def test_export_prints_the_form_and_tells_the_rest(project: Path) -> None:
    assert "--format" in run("export", "--help").stdout
    result = run("export", "--format", "pget", "--models", "/m")
    assert result.stdout.endswith("/x /m/loras/x.safetensors\n")
    assert run("export", "--format", "pget").stdout.endswith(
        f" {project}/home/models/loras/x.safetensors\n"
    )
    result = run("export")
    assert yaml.safe_load(result.stdout) == {"weights": []}
    assert "Left out: loras/x.safetensors: it is called x at its source" in result.stderr


def test_diff_ends_as_diff_does(project: Path) -> None:
    file = project / "weights_manifest.json"
    other = project / "other.json"
    other.write_text(write([]))
    assert run("diff", file, file).exit_code == 0
    result = run("diff", file, other)
    assert result.exit_code == 1
    assert result.stdout.startswith("- loras/x.safetensors\n")
    told = json.loads(run("diff", file, other, "--json").stdout)
    assert told["removed"] == ["loras/x.safetensors"]
    assert isinstance(run("diff", file, project / "none.json").exception, InvalidInput)


def test_the_shipped_manifest_is_what_the_script_makes() -> None:
    subprocess.run(
        [sys.executable, PROJECT / "script" / "manifest", "--check"], check=True, timeout=120
    )
