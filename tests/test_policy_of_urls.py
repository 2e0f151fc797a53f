"""Where strangers' URLs may lead."""

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer

from comfy_runner.config import Config
from comfy_runner.documents import source
from comfy_runner.errors import DownloadFailed, Refused
from comfy_runner.fetch import ranged
from comfy_runner.fetch.download import Patience, fetch
from comfy_runner.fetch.policy import OPEN, Policy, is_public
from comfy_runner.fetch.probe import probe
from comfy_runner.fetch.transfer import Outcome, Remote, Transfer

PUBLIC = Policy(private=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.1",
        "0.0.0.0",  # noqa: S104 - an address to be refused
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "no address",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(Refused, match=r"models\.example.*COMFY_RUNNER_PRIVATE_ADDRESSES"):
        PUBLIC.check_address("models.example", 443, address)
    OPEN.check_address("models.example", 443, address)
    trusting = Policy(private=False, trusted=frozenset({("models.example", 443)}))
    trusting.check_address("models.example", 443, address)
    with pytest.raises(Refused):
        trusting.check_address("models.example", 8080, address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "151.101.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)
    PUBLIC.check_address("models.example", 443, address)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/x",
        "http://LOCALHOST:8080/x",
        "http://localhost./x",
        "http://a.localhost/x",
        "http://printer.local/x",
        "http://metadata.google.internal/computeMetadata",
        "http://127.0.0.1/x",
        "https://[::1]:8188/x",
        "http://169.254.169.254/latest/meta-data",
        "http://2852039166/latest/meta-data",
        "http://127.1/x",
        "http://0x7f000001/x",
        "http://0177.0.0.1/x",
        "http://[::ffff:0:7f00:1]/x",
        "http://models.example:22/x",
        "https://models.example:25/x",
        "http://user:pass@10.0.0.1/x?token=s3cret",
    ],
)
def test_urls_that_are_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(Refused) as caught:
        PUBLIC.check_url(url)
    assert caught.value.problems[0].code == "refused_url"
    assert "s3cret" not in str(caught.value)
    assert "pass@" not in str(caught.value)
    OPEN.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/a/b/resolve/main/c.safetensors",
        "http://models.example:8080/x",
        "https://1.1.1.1/x",
        "https://16843009/x",
        "https://face.example/x",
        "https://abc.def/x",
        "data:text/plain,x",
        "http://[broken/x",
    ],
)
def test_urls_that_may_be_asked(url: str) -> None:
    PUBLIC.check_url(url)


def test_only_the_listed_hosts_may_be_asked() -> None:
    policy = Policy(hosts=("huggingface.co", "*.hf.co"), trusted=frozenset({("127.0.0.1", 81)}))
    policy.check_url("https://huggingface.co/x")
    policy.check_url("https://cdn.hf.co/x")
    policy.check_url("http://127.0.0.1:81/x")
    for url in (
        "https://hf.co.evil.example/x",
        "https://evil.example/huggingface.co",
        "http://127.0.0.1:82/x",
    ):
        with pytest.raises(Refused, match=r"huggingface\.co, \*\.hf\.co"):
            policy.check_url(url)


# Where it is asked


GUARDED = Patience(retries=0, policy=PUBLIC)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `models.example` means, in turn; the last one for ever. No real name can be had here."""
    addresses = ["127.0.0.1"]
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "models.example":
            return real(host, *arguments, **options)
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return real(address, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return addresses


@pytest.mark.usefixtures("elsewhere")
def test_a_name_that_means_this_machine_is_not_connected_to(
    server: FileServer, tmp_path: Path
) -> None:
    server.serve("x.png", b"secret", ranges=True)
    url = server.url("x.png", "models.example")
    with pytest.raises(Refused, match=r"models\.example.*private network"):
        fetch(url, tmp_path / "x", patience=GUARDED)
    with pytest.raises(Refused):
        probe(url, credentials={}, cancelled=threading.Event(), patience=GUARDED)
    with pytest.raises(Refused):
        source.read(url, policy=PUBLIC)
    assert server.asked == []
    assert fetch(url, tmp_path / "x", patience=Patience()).size == 6


def test_a_name_that_changes_its_meaning_is_judged_at_each_connection(
    server: FileServer, tmp_path: Path, elsewhere: list[str]
) -> None:
    """The probe may connect, but by the time of the transfer the name means this machine."""
    server.serve("x.sft", b"x" * 100, ranges=True, etag='"1"')
    url = server.url("x.sft", "models.example")
    found = probe(url, credentials={}, cancelled=threading.Event(), patience=Patience())
    asked = len(server.asked)
    outcomes: list[Outcome] = []

    def again(remote: Remote) -> Remote:
        return remote

    elsewhere[:] = ["::1", "127.0.0.1"]
    ranged.download(
        [Transfer(key="x", remote=found, part=tmp_path / "part")],
        done=lambda _, outcome: outcomes.append(outcome),
        report=lambda *_: None,
        cancelled=threading.Event(),
        patience=GUARDED,
        probe_again=again,
    )
    (outcome,) = outcomes
    assert isinstance(outcome, DownloadFailed)
    assert "private network" in str(outcome)
    assert len(server.asked) == asked


def test_a_redirect_is_judged_like_what_was_asked_for(server: FileServer, tmp_path: Path) -> None:
    inner = server.serve("inner", b"secret")
    trusted = Policy(private=False, trusted=frozenset({("localhost", server.port)}))
    outer = server.serve("outer", status=302, headers={"Location": inner})
    with pytest.raises(Refused):
        fetch(
            outer.replace("127.0.0.1", "localhost"),
            tmp_path / "x",
            patience=Patience(retries=0, policy=trusted),
        )
    assert [asked.path for asked in server.asked] == ["outer"]
    assert not list(tmp_path.iterdir())


def test_the_settings_say_what_may_be_asked() -> None:
    policy = Policy.of(Config(hf_endpoint="http://127.0.0.1:81", allowed_hosts=("civitai.com",)))
    policy.check_url("http://127.0.0.1:81/x")
    for url in ("http://127.0.0.1:82/x", "https://huggingface.co/x"):
        with pytest.raises(Refused):
            policy.check_url(url)
    policy.check_url("https://civitai.com/x")
    with pytest.raises(Refused):
        policy.check_url("https://example.org/x")
    assert Policy.of(Config(private_addresses=True)) == OPEN
    assert not Policy.of(Config()).trusted
