"""Weights that callers give by an address: their names, who may have them, what is refused."""

import base64
import io
import logging
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import weight_stores
from fakes import weight_hosts
from fakes.file_server import FileServer, running
from fakes.weight_hosts import WeightHosts, civitai_file
from weight_stores import (
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

from comfy_runner.errors import DownloadFailed, HashMismatch, InvalidInput, Refused
from comfy_runner.weights.hosts.addresses import parse
from comfy_runner.weights.store import Addressed, WeightStore
from comfy_runner.weights.weight import Source, Weight

models, store = weight_stores.models, weight_stores.store  # fixtures
BODY = tensors(500)
OTHER = tensors(500, b"b")
PICKLE = b"\x80\x04" + bytes(100)
TOKEN = "hf_s3cretT0ken"  # noqa: S105


def asked(url: str, folder: str = "loras", **more: Any) -> Addressed:
    address = parse(url)
    assert address is not None
    return Addressed(address, folder, **more)


def serve(server: FileServer, path: str, body: bytes, **how: Any) -> str:
    """A file on a server that does all right."""
    return server.serve(path, body, **{"ranges": True, "etag": f'"{sha256(body)[:8]}"', **how})


def bring(store: WeightStore, url: str, **options: Any) -> str:
    """The name that the weight of an address got."""
    wanted = asked(url)
    return ensure(store, wanted, **options).names[wanted]


def name_of(body: bytes, stem: str, ending: str = ".safetensors") -> str:
    return f"url/{stem}-{sha256(body)[:12]}{ending}"


def code(caught: "pytest.ExceptionInfo[InvalidInput]") -> str:
    return caught.value.problems[0].code


def tar(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


# Names


def test_an_address_gets_a_name_that_stays(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "dir/My%20Style.safetensors", BODY)
    wanted = asked(url)
    first = ensure(store, wanted)
    name = first.names[wanted]
    assert name == name_of(BODY, "My Style")
    assert (store.models / "loras" / name).read_bytes() == BODY
    assert name in store.listing("loras")
    again = ensure(store, wanted)
    assert again.names == first.names
    assert (again.ensured.files, len(server.asked)) == (0, 2)
    assert (looks(server), fetches(server)) == (1, 1)


def test_other_content_gets_another_name(models: Path, server: FileServer) -> None:
    store = WeightStore(settings(models, recheck_after=0.0))
    url = serve(server, "style.safetensors", BODY)
    assert bring(store, url) == bring(store, url) == name_of(BODY, "style")
    serve(server, "style.safetensors", OTHER)
    assert bring(store, url) == name_of(OTHER, "style")
    assert store.listing("loras") == {name_of(BODY, "style"), name_of(OTHER, "style")}
    assert fetches(server) == 2


def test_a_name_may_be_given(store: WeightStore, server: FileServer) -> None:
    wanted = asked(serve(server, "x.safetensors", BODY), name="From the workflow.safetensors")
    assert ensure(store, wanted).names[wanted] == name_of(BODY, "From the workflow")


def test_the_server_may_name_the_file(store: WeightStore, server: FileServer) -> None:
    told = {"Content-Disposition": 'attachment; filename="../Real Name.SFT"'}
    url = serve(server, "download", BODY, headers=told)
    assert bring(store, url) == name_of(BODY, "Real Name", ".SFT")
    gguf = b"GGUF" + bytes(100)
    assert bring(store, serve(server, "q4.gguf", gguf)) == name_of(gguf, "q4", ".gguf")


def test_several_come_at_once_and_each_content_once(store: WeightStore, server: FileServer) -> None:
    wanted = [
        asked(serve(server, "a.safetensors", BODY)),
        asked(serve(server, "b.safetensors", OTHER)),
        asked(serve(server, "b.safetensors", OTHER), "vae"),
        asked(f"{server.url('a.safetensors')}?a=1"),
        asked(f"{server.url('a.safetensors')}?a=2"),
    ]
    outcome = ensure(store, *wanted, weight("c.safetensors", server.url("b.safetensors")))
    names = [outcome.names[one] for one in wanted]
    a, b = name_of(BODY, "a"), name_of(OTHER, "b")
    assert names == [a, b, b, a, a]
    assert fetches(server, "b.safetensors") == 1
    assert fetches(server, "a.safetensors") == 3
    assert len({update.name for update in outcome.updates}) == 4
    assert store.listing("loras") == {a, b, "c.safetensors"}
    assert len(store.objects.entries()) == 2


def test_a_data_url_is_its_own_content(store: WeightStore) -> None:
    coded = base64.b64encode(BODY).decode()
    url = f"data:application/octet-stream;base64,{coded}"
    wanted = asked(url)
    assert ensure(store, wanted).names[wanted] == name_of(BODY, "file")
    assert ensure(store, wanted).ensured.files == 0
    packed = base64.b64encode(tar({"out/x.safetensors": OTHER})).decode()
    assert bring(store, f"data:application/x-tar;base64,{packed}") == name_of(OTHER, "x")


# Hosts


@pytest.fixture
def hosts() -> Iterator[WeightHosts]:
    with weight_hosts.running() as served:
        yield served


def named(hosts: WeightHosts) -> dict[str, str]:
    """Settings that put these hosts into the places of the real ones."""
    return {
        "hf_endpoint": hosts.hosts.hf,
        "civitai_endpoint": hosts.hosts.civitai,
        "replicate_endpoint": hosts.hosts.replicate,
    }


@pytest.fixture
def hosted(models: Path, hosts: WeightHosts) -> WeightStore:
    return WeightStore(settings(models, **named(hosts)))


def test_a_repository_gives_its_one_weight(hosted: WeightStore, hosts: WeightHosts) -> None:
    hosts.add_repository("owner/style", {"lora.safetensors": len(BODY), "README.md": 5})
    commit = weight_hosts.commit("owner/style")
    headers = {"ETag": f'"{sha256(BODY)}"'}
    hosts.tell(f"/hub/owner/style/resolve/{commit}/lora.safetensors", BODY, headers=headers)
    assert bring(hosted, "owner/style") == name_of(BODY, "lora")
    before = len(hosts.asked)
    assert bring(hosted, "owner/style") == name_of(BODY, "lora")
    assert bring(hosted, "https://huggingface.co/owner/style/tree/main") == name_of(BODY, "lora")
    pinned = f"https://huggingface.co/owner/style/blob/{commit}/lora.safetensors"
    assert bring(hosted, pinned) == name_of(BODY, "lora")
    assert len(hosts.asked) == before


def test_the_hash_that_civitai_states_must_hold(hosted: WeightStore, hosts: WeightHosts) -> None:
    for version, body in ((7, BODY), (8, OTHER)):
        file = civitai_file(version + 10, version, hashes={"SHA256": sha256(BODY).upper()})
        hosts.add_version(5, version, [file])
        hosts.tell(f"/civitai/api/download/models/{version}", body)
    page = "https://civitai.com/models/5?modelVersionId="
    assert bring(hosted, f"{page}7") == name_of(BODY, "style")
    # Its host states a content that is here, so it need not be asked for the bytes.
    assert bring(hosted, f"{page}8") == name_of(BODY, "style")
    hosted.objects.remove(sha256(BODY))
    with pytest.raises(HashMismatch):
        bring(hosted, f"{page}8")
    with pytest.raises(HashMismatch, match="its sha256 is"):
        ensure(hosted, asked(f"{page}7", sha256="0" * 64))
    assert files(hosted.models) == []


def test_a_trained_tar_gives_its_weight_once(hosted: WeightStore, hosts: WeightHosts) -> None:
    body = tar({"out/lora.safetensors": BODY, "out/captions/1.txt": b"a cat", "log.txt": b"x"})
    headers = {"ETag": '"1"', "Content-Type": "application/x-tar"}
    hosts.tell("/replicate/owner/model/_weights", body, headers=headers)
    hosts.tell("/replicate/owner/model/versions/" + "a" * 64 + "/_weights", body, headers=headers)
    assert bring(hosted, "replicate.com/owner/model") == name_of(BODY, "lora")
    before = len(hosts.asked)
    assert bring(hosted, "https://replicate.com/owner/model") == name_of(BODY, "lora")
    assert len(hosts.asked) == before
    assert bring(hosted, f"owner/model:{'a' * 64}") == name_of(BODY, "lora")


def test_a_tar_behind_a_plain_url(models: Path, server: FileServer) -> None:
    store = WeightStore(settings(models, recheck_after=0.0))
    body = tar({"out/lora.safetensors": BODY, "log.txt": b"x"})
    urls = [
        serve(server, "x/trained_model.tar", body),
        serve(server, "download", body, headers={"Content-Disposition": "filename=a.tgz"}),
    ]
    for url in urls:
        wanted = asked(url, sha256=sha256(BODY))
        for count in (1, 0):
            outcome = ensure(store, wanted)
            assert outcome.names[wanted] == name_of(BODY, "lora")
            assert outcome.ensured.files == count
    assert fetches(server) == 2
    believing = WeightStore(settings(models))
    before = len(server.asked)
    assert [bring(believing, url) for url in urls] == [name_of(BODY, "lora")] * 2
    assert len(server.asked) == before
    with pytest.raises(HashMismatch):
        ensure(store, asked(urls[0], sha256="0" * 64))
    assert staged(models) == []


def test_a_zip_gives_its_one_weight(store: WeightStore, server: FileServer) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/embedding.safetensors", BODY)
    assert bring(store, serve(server, "x.zip", buffer.getvalue())) == name_of(BODY, "embedding")


def test_a_weight_for_another_folder_is_told(hosted: WeightStore, hosts: WeightHosts) -> None:
    file = civitai_file(1, 7, hashes={"SHA256": sha256(BODY)})
    hosts.add_version(5, 7, [file], kind="VAE")
    hosts.tell("/civitai/api/download/models/7", BODY)
    (note,) = ensure(hosted, asked("https://civitai.com/models/5?modelVersionId=7")).ensured.notes
    assert "belongs into the folder vae" in note


# What is refused


def test_refuses_weights_that_can_run_code(models: Path, server: FileServer) -> None:
    strict, lax = (WeightStore(settings(models, allow_pickles=allow)) for allow in (False, True))
    cases = {
        serve(server, "a.pt", PICKLE): "a.pt",
        serve(server, "b.tar", tar({"b.ckpt": PICKLE})): "b.ckpt",
        serve(server, "c", PICKLE, headers={"Content-Disposition": "filename=c.bin"}): "c.bin",
    }
    for url, name in cases.items():
        with pytest.raises(InvalidInput, match="COMFY_RUNNER_ALLOW_PICKLES") as caught:
            ensure(strict, asked(url))
        assert code(caught) == "unsafe_weight"
        stem, dot, ending = name.partition(".")
        assert bring(lax, url) == name_of(PICKLE, stem, f"{dot}{ending}")
        with pytest.raises(InvalidInput, match="COMFY_RUNNER_ALLOW_PICKLES"):
            ensure(strict, asked(url))
    assert staged(models) == []


def test_a_pickle_cannot_hide_behind_a_name(store: WeightStore, server: FileServer) -> None:
    coded = base64.b64encode(PICKLE).decode()
    urls = [
        serve(server, "a.safetensors", PICKLE),
        serve(server, "model-v1.0", PICKLE),
        serve(server, "x.tar", tar({"a.safetensors": PICKLE})),
        f"data:application/octet-stream;base64,{coded}",
    ]
    for url in urls:
        with pytest.raises(DownloadFailed, match="Python pickle"):
            ensure(store, asked(url))
    assert bring(store, serve(server, "model-v1.0", BODY)) == name_of(BODY, "model-v1.0")
    assert files(store.models) == [f"loras/{name_of(BODY, 'model-v1.0')}"]


def test_what_a_manifest_may_fetch_a_caller_may_not(store: WeightStore, server: FileServer) -> None:
    named, unnamed = serve(server, "a.pt", PICKLE), serve(server, "b", PICKLE)
    ensure(store, weight("a.pt", named), weight("b.pt", unnamed))
    with pytest.raises(InvalidInput) as caught:
        ensure(store, asked(named))
    assert code(caught) == "unsafe_weight"
    with pytest.raises(DownloadFailed, match="Python pickle"):
        ensure(store, asked(unnamed))


def test_a_stated_hash_must_hold(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "a.safetensors", BODY)
    right = asked(url, sha256=sha256(BODY).upper())
    assert ensure(store, right).names[right] == name_of(BODY, "a")
    with pytest.raises(HashMismatch):
        ensure(store, asked(url, sha256="0" * 64))


def test_all_that_cannot_be_used_is_told_at_once(store: WeightStore, server: FileServer) -> None:
    urls = [serve(server, "a.pt", PICKLE), serve(server, "b.ckpt", PICKLE)]
    with pytest.raises(InvalidInput) as caught:
        ensure(store, *map(asked, urls), asked(serve(server, "c.safetensors", BODY)))
    assert len(caught.value.problems) == 2
    assert fetches(server) == 0


# Who may have it


def refuse(server: FileServer, path: str, status: int) -> None:
    server.serve(path, b"no", status=status)


def test_what_needs_a_token_is_only_for_those_who_have_one(
    store: WeightStore, server: FileServer
) -> None:
    url = serve(server, "a.safetensors", BODY)
    mine = {"credentials": {"127.0.0.1": TOKEN}}
    name = bring(store, url, **mine)
    assert bring(store, url, **mine) == name
    assert (looks(server), fetches(server)) == (2, 1)
    refuse(server, "a.safetensors", 401)
    with pytest.raises(DownloadFailed, match="Give a token for"):
        bring(store, url)
    with pytest.raises(DownloadFailed, match=r"token for .* may be wrong"):
        bring(store, url, credentials={"127.0.0.1": "another"})
    # The same, when a caller states the hash, or another host does.
    with pytest.raises(DownloadFailed, match="Give a token for"):
        ensure(store, asked(url, sha256=sha256(BODY)))
    stated = {"X-Linked-Etag": f'"{sha256(BODY)}"'}
    evil = serve(server, "evil.safetensors", OTHER, headers=stated)
    with pytest.raises(HashMismatch):
        ensure(store, asked(evil))
    with pytest.raises(HashMismatch):
        ensure(store, asked(serve(server, "b.safetensors", OTHER), sha256=sha256(BODY)))


def test_what_turns_out_to_be_public_is_for_all(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "a.safetensors", BODY)
    mine = {"credentials": {"127.0.0.1": TOKEN}}
    name = bring(store, url, **mine)
    for _ in range(3):
        assert bring(store, url) == name
    assert bring(store, url, **mine) == name
    assert (looks(server), fetches(server)) == (2, 1)


def test_a_token_and_a_password_are_kept_by_their_host(
    store: WeightStore, server: FileServer
) -> None:
    away = server.url("b.safetensors", "localhost")
    serve(server, "b.safetensors", BODY)
    server.serve("a.safetensors", status=302, headers={"Location": away})
    bring(store, server.url("a.safetensors"), credentials={"127.0.0.1": TOKEN})
    sent = [(one.path, one.headers.get("Authorization")) for one in server.asked]
    assert {path for path, header in sent if header} == {"a.safetensors"}


def test_a_new_signature_is_no_new_copy(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "a.safetensors", BODY)
    first = bring(store, f"{url}?X-Amz-Signature=one&X-Amz-Expires=60")
    assert bring(store, f"{url}?X-Amz-Signature=two&X-Amz-Expires=60") == first
    assert (looks(server), fetches(server)) == (2, 1)
    refuse(server, "a.safetensors", 403)
    with pytest.raises(DownloadFailed, match="signed address may have expired"):
        bring(store, f"{url}?X-Amz-Signature=old&X-Amz-Expires=60")


def test_a_host_that_is_gone(models: Path) -> None:
    store = WeightStore(settings(models, recheck_after=0.0))
    with running() as server:
        public = serve(server, "a.safetensors", BODY)
        private = f"{serve(server, 'b.safetensors', OTHER)}?sig=s3cret"
        ensure(store, asked(public), asked(private))
    outcome = ensure(store, asked(public))
    assert list(outcome.names.values()) == [name_of(BODY, "a")]
    assert "does not answer; what was fetched before is used" in outcome.ensured.notes[0]
    with pytest.raises(DownloadFailed, match=r"b\.safetensors could not be fetched"):
        ensure(store, asked(private))


PAGES = ("owner/style", "https://civitai.com/models/5", "https://civitai.com/models/5?type=Model")
"""Addresses whose hosts have to say which file is meant."""


def fill(hosts: WeightHosts, *, token: str = "") -> None:
    """What stands behind `PAGES`, for everybody or for who has the token."""
    hosts.add_repository("owner/style", {"a.safetensors": len(BODY)}, token=token)
    commit = weight_hosts.commit("owner/style")
    headers = {"ETag": f'"{sha256(BODY)}"'}
    path = f"/hub/owner/style/resolve/{commit}/a.safetensors"
    hosts.tell(path, BODY, headers=headers, token=token)
    version = hosts.add_version(
        5, 7, [civitai_file(1, 7, "b.safetensors", hashes={"SHA256": sha256(OTHER)})]
    )
    hosts.add_model(5, [version])
    hosts.tell("/civitai/api/download/models/7", OTHER)


def test_a_page_whose_host_is_gone_gives_what_it_gave_before(models: Path) -> None:
    with weight_hosts.running() as hosts:
        fill(hosts)
        store = WeightStore(settings(models, recheck_after=0.0, **named(hosts)))
        first = {page: bring(store, page) for page in PAGES}
    assert set(first.values()) == {name_of(BODY, "a"), name_of(OTHER, "b")}
    for page, name in first.items():
        outcome = ensure(store, asked(page))
        assert list(outcome.names.values()) == [name]
        (note,) = outcome.ensured.notes
        assert note.endswith(" does not answer; what was fetched before is used.")
        assert outcome.ensured.files == 0
    with pytest.raises(DownloadFailed, match=r"could not be asked: connection refused\. Gave up"):
        bring(store, "owner/another")


def test_a_page_whose_host_is_broken_gives_what_it_gave_before(models: Path) -> None:
    with weight_hosts.running() as hosts:
        fill(hosts)
        store = WeightStore(settings(models, recheck_after=0.0, **named(hosts)))
        first = bring(store, "owner/style")
        (path,) = (path for path in hosts.told if path.startswith("/hub/api/"))
        hosts.told[path].status = 503
        hosts.asked.clear()
        assert bring(store, "owner/style") == first
        assert [question.path for question in hosts.asked] == [path] * 2
        # A host that answers, and has no such thing any more, is believed.
        del hosts.told[path]
        with pytest.raises(DownloadFailed, match="is private, gated or not there"):
            bring(store, "owner/style")


def test_a_page_for_those_with_a_token_gives_nothing_while_its_host_is_gone(models: Path) -> None:
    with weight_hosts.running() as hosts:
        fill(hosts, token=TOKEN)
        store = WeightStore(settings(models, recheck_after=0.0, **named(hosts)))
        bring(store, "owner/style", credentials={"huggingface.co": TOKEN})
    for credentials in ({}, {"huggingface.co": TOKEN}):
        with pytest.raises(DownloadFailed, match="could not be asked"):
            bring(store, "owner/style", credentials=credentials)


def test_what_must_not_be_asked_is_refused_and_not_only_wrong(
    models: Path, hosts: WeightHosts
) -> None:
    store = WeightStore(settings(models, private_addresses=False, **named(hosts)))
    local = [asked(f"http://127.0.0.1:9/{name}.safetensors") for name in "ab"]
    with pytest.raises(Refused) as caught:
        ensure(store, *local)
    assert [problem.code for problem in caught.value.problems] == ["refused_url"] * 2
    hosts.add_repository("o/r", {"a.safetensors": 2000, "b.safetensors": 2000})
    with pytest.raises(InvalidInput) as mixed:
        ensure(store, local[0], asked("o/r"))
    assert [each.code for each in mixed.value.problems] == ["refused_url", "ambiguous_weight"]


def test_where_a_redirect_must_not_lead_is_refused(models: Path, server: FileServer) -> None:
    url = serve(server, "a.safetensors", BODY)
    store = WeightStore(settings(models, allowed_hosts=("127.0.0.1",)))
    assert bring(store, url) == name_of(BODY, "a")
    away = {"Location": "http://elsewhere.example/b.safetensors"}
    redirected = server.serve("b.safetensors", status=302, headers=away)
    with pytest.raises(Refused, match="its host is not among those that may be asked"):
        bring(store, redirected)


def test_secrets_stand_nowhere(
    models: Path, server: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "comfy_runner")
    secrets = ("s1gned", "passw0rd", TOKEN, "envT0ken")
    store = WeightStore(settings(models), {"MY_TOKEN": "envT0ken"})
    told: list[str] = []
    for body in (BODY, b"<html>no"):
        a = serve(server, "a.safetensors", body)
        b = serve(server, "b.safetensors", body).replace("//", "//user:passw0rd@")
        c = serve(server, "c.safetensors", body)
        urls = [f"{a}?X-Amz-Signature=s1gned", b]
        source = Source(f"{c}?token=s1gned", auth="bearer_env", env="MY_TOKEN")
        everything: list[Addressed | Weight] = [*map(asked, urls), weight("c.safetensors", source)]
        for wanted in everything:
            try:
                outcome = ensure(store, wanted, credentials={"127.0.0.1": TOKEN})
            except DownloadFailed as err:
                told.append(str(err))
            else:
                told += [str(outcome.updates), *outcome.ensured.notes]
        for file in list((models / "loras").rglob("*")):
            if file.is_file():
                file.unlink()
    authorizations = {one.headers.get("Authorization", "") for one in server.asked}
    assert any(TOKEN in one for one in authorizations)
    assert any("envT0ken" in one for one in authorizations)
    kept = [file.read_bytes() for file in models.rglob("*") if file.is_file()]
    assert len(told) == 6
    assert any(b"SQLite" in content for content in kept)
    seen = "\n".join([*told, caplog.text]).encode() + b"\n".join(kept)
    assert [secret for secret in secrets if secret.encode() in seen] == []
    assert caplog.text


def test_a_persons_file_under_the_made_name_stays(store: WeightStore, server: FileServer) -> None:
    url = serve(server, "a.safetensors", BODY)
    put(store.models, f"loras/{name_of(BODY, 'a')}", content=b"mine")
    with pytest.raises(InvalidInput) as caught:
        ensure(store, asked(url))
    assert code(caught) == "name_taken"
    assert (store.models / "loras" / name_of(BODY, "a")).read_bytes() == b"mine"
