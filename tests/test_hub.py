"""Files of a Xet store through huggingface_hub: whole, or left for our own engine."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes.hub_server import COMMIT, REPO, HubServer, running
from processes import names, only_child_of, until_gone

from comfy_runner.errors import Cancelled
from comfy_runner.fetch import hub as module
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.hub import Hub, RepoFile, available, repo_file
from comfy_runner.fetch.outside import Unfinished
from comfy_runner.fetch.transfer import Delivered, Outcome, Remote, Transfer

ROOT = Path(module.__file__).parents[2]
BODY = os.urandom(3_000_000)
HIDDEN = "hf_hidden"
CHILD = b"comfy_runner.fetch.hub"
"""What stands in the child's command line."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def server() -> Iterator[HubServer]:
    with running() as server:
        yield server


def transfer(part: Path, url: str, size: int | None = len(BODY), **remote: Any) -> Transfer:
    known = {"final_url": url, "size": size, "commit": COMMIT, "xet": True, **remote}
    return Transfer(key=part.name, remote=Remote(url=url, **known), part=part)


class Call:
    """One call of the engine, and what it told."""

    def __init__(self, server: HubServer, token: str = "", **settings: Any) -> None:
        credentials = {"127.0.0.1": token, "localhost": "hidden-for-another"} if token else {}
        limits = {"deadline": 60.0, "stall": 30.0, **settings}
        self.engine = Hub(server.url, credentials=credentials, **limits)
        self.outcomes: dict[str, Outcome] = {}
        self.reports: list[tuple[str, int, int | None]] = []
        self.cancelled = threading.Event()

    def bring(self, *transfers: Transfer) -> dict[str, Outcome]:
        def done(transfer: Transfer, outcome: Outcome) -> None:
            assert transfer.key not in self.outcomes
            self.outcomes[transfer.key] = outcome

        self.engine(
            transfers,
            done=done,
            report=lambda *told: self.reports.append(told),
            cancelled=self.cancelled,
            patience=Patience(connect=5),
            probe_again=lambda remote: remote,
        )
        return self.outcomes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/model/resolve/main/x.sft", RepoFile("model", "owner/model", "x.sft")),
        ("gpt/resolve/main/a/b.sft", RepoFile("model", "gpt", "a/b.sft")),
        ("datasets/o/d/resolve/refs%2Fpr%2F1/x", RepoFile("dataset", "o/d", "x")),
        ("spaces/o/d/resolve/main/x", RepoFile("space", "o/d", "x")),
        ("o/m/resolve/main/a%20b.sft?download=true", RepoFile("model", "o/m", "a b.sft")),
        ("o/m/blob/main/x.sft", None),
        ("o/m/resolve/main/", None),
        ("o/m/resolve/main/a/../../x", None),
        ("o/m/resolve/main/a%2F..%2F..%2Fx", None),
        ("o/m/resolve/main/%2Fetc", None),
        ("o/m/resolve/main/%2E", None),
        ("o/m/resolve/main/a%5Cb", None),
        ("o/m", None),
    ],
)
def test_a_resolve_url_names_a_file_of_a_repository(path: str, expected: RepoFile | None) -> None:
    assert repo_file(f"https://hub.test/{path}", "https://hub.test") == expected
    assert repo_file(f"https://hub.test/mirror/{path}", "https://hub.test/mirror") == expected
    assert repo_file(f"https://hub.test.evil/{path}", "https://hub.test") is None


def test_what_a_library_prints_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text(
        "print('a notice', flush=True)\n"
        "def hf_hub_download(*_, **__):\n    print('another', flush=True)\n"
    )
    wanted = dict.fromkeys(("repo_id", "filename", "repo_type", "revision", "local_dir"), "x")
    child = subprocess.run(
        [sys.executable, "-m", "comfy_runner.fetch.hub"],
        input=json.dumps({"token": "", "files": [wanted]}),
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(child.stdout) == {"number": 0, "fault": ""}


def test_only_files_of_its_xet_store_fit(tmp_path: Path) -> None:
    hub = Hub("https://hub.test/", credentials={}, deadline=1)
    part, url = tmp_path / "part", "https://hub.test/o/m/resolve/main/x"
    assert hub.fits(transfer(part, url))
    assert not hub.fits(transfer(part, url, xet=False))
    assert not hub.fits(transfer(part, url, commit=""))
    assert not hub.fits(transfer(part, "https://other.test/o/m/resolve/main/x"))
    part.touch()
    assert hub.fits(transfer(part, url))
    part.write_bytes(b"from a former attempt")
    assert not hub.fits(transfer(part, url))


def test_a_xet_store_can_be_reached_here() -> None:
    assert available()


def test_files_come_out_of_the_xet_store(server: HubServer, tmp_path: Path) -> None:
    server.token = HIDDEN
    small = os.urandom(70_000)
    one = transfer(tmp_path / "a part", server.keep("dir/x.safetensors", BODY, xet=True))
    other = transfer(tmp_path / "b", server.keep("y z.safetensors", small, xet=True), len(small))
    call = Call(server, HIDDEN)
    assert call.bring(one, other) == {"a part": Delivered(len(BODY)), "b": Delivered(len(small))}
    assert one.part.read_bytes() == BODY
    assert other.part.read_bytes() == small
    assert names(tmp_path) == ["a part", "b"]
    assert ("a part", len(BODY), len(BODY)) in call.reports
    assert any(asked.path.startswith("/xorb/") for asked in server.asked)
    assert {to(asked) for asked in server.asked if HIDDEN in str(asked.headers)} == {
        "/api/models",
        f"/{REPO}",
    }
    assert "hidden-for-another" not in str(server.asked)


def to(asked: Any) -> str:
    return "/".join(asked.path.split("/")[:3])


def test_a_file_without_xet_comes_over_http(server: HubServer, tmp_path: Path) -> None:
    server.token = HIDDEN
    one = transfer(tmp_path / "part", server.keep("x.safetensors", BODY))
    assert Call(server, HIDDEN).bring(one) == {"part": Delivered(len(BODY))}
    assert one.part.read_bytes() == BODY
    stored = [asked for asked in server.asked if asked.path == "/storage/x.safetensors"]
    assert stored
    assert HIDDEN not in str(stored)


def test_the_commit_is_what_comes(server: HubServer, tmp_path: Path) -> None:
    one = transfer(tmp_path / "part", server.keep("x.safetensors", BODY))
    Call(server).bring(one)
    resolved = {asked.path for asked in server.asked if "/resolve/" in asked.path}
    assert resolved == {f"/{REPO}/resolve/{COMMIT}/x.safetensors"}


def test_an_unreachable_store_leaves_the_file_to_others(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.store_url = "http://127.0.0.1:1"
    one = transfer(tmp_path / "part", server.keep("x.safetensors", BODY, xet=True))
    environment = {**os.environ, "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}
    outcome = Call(server, HIDDEN, environment=environment).bring(one)["part"]
    assert isinstance(outcome, Unfinished)
    assert "error sending request" in str(outcome)
    assert names(tmp_path) == []
    assert HIDDEN not in caplog.text + str(outcome)


def test_a_refusal_and_a_missing_file_harm_no_other(server: HubServer, tmp_path: Path) -> None:
    good = transfer(tmp_path / "good", server.keep("x.safetensors", BODY, xet=True))
    bad = transfer(tmp_path / "bad", server.resolve("none.safetensors"))
    foreign = transfer(tmp_path / "foreign", "https://other.test/o/m/resolve/main/x")
    outcomes = Call(server).bring(bad, foreign, good)
    assert outcomes["good"] == Delivered(len(BODY))
    assert isinstance(outcomes["bad"], Unfinished)
    assert isinstance(outcomes["foreign"], Unfinished)
    assert names(tmp_path) == ["good"]


def test_a_gated_file_is_left(server: HubServer, tmp_path: Path) -> None:
    server.token = HIDDEN
    one = transfer(tmp_path / "part", server.keep("x.safetensors", BODY, xet=True))
    assert "GatedRepo" in str(Call(server).bring(one)["part"])


def test_a_file_of_another_size_is_not_delivered(server: HubServer, tmp_path: Path) -> None:
    one = transfer(tmp_path / "part", server.keep("x.safetensors", BODY), len(BODY) + 1)
    assert f"it has {len(BODY)} bytes" in str(Call(server).bring(one)["part"])
    assert names(tmp_path) == []


def test_what_a_killed_attempt_left_is_cleared(server: HubServer, tmp_path: Path) -> None:
    left = tmp_path / "part.hub" / "files" / "x.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(len(BODY)))
    one = transfer(tmp_path / "part", server.keep("x.safetensors", BODY, xet=True))
    Call(server).bring(one)
    assert one.part.read_bytes() == BODY
    assert names(tmp_path) == ["part"]


def test_the_users_own_cache_and_token_are_left_alone(server: HubServer, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "staging"
    stored = home / ".cache" / "huggingface" / "token"
    stored.parent.mkdir(parents=True)
    stored.write_text("hf_stored")
    before = sorted(home.rglob("*"))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(stored.parent),
        "HF_HIDDEN": "hf_variable",
    }
    one = transfer(folder / "part", server.keep("x.safetensors", BODY, xet=True))
    assert Call(server, environment=environment).bring(one) == {"part": Delivered(len(BODY))}
    assert sorted(home.rglob("*")) == before
    assert "hf_stored" not in str(server.asked)
    assert "hf_variable" not in str(server.asked)
    assert names(folder) == ["part"]


def held(server: HubServer, folder: Path) -> Transfer:
    """A file whose bytes are not sent before the server's `release`."""
    server.held = True
    return transfer(folder / "part", server.keep("x.safetensors", BODY, xet=True))


def test_a_store_that_sends_nothing_is_left(server: HubServer, tmp_path: Path) -> None:
    outcome = Call(server, stall=2.0).bring(held(server, tmp_path))["part"]
    assert isinstance(outcome, Unfinished)
    assert "no new byte for 2 s" in str(outcome)
    assert names(tmp_path) == []


@linux
def test_cancelling_kills_the_child_which_never_showed_the_token(
    server: HubServer, tmp_path: Path
) -> None:
    server.token = HIDDEN
    call = Call(server, HIDDEN)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call.bring, held(server, tmp_path))
        assert server.holding.wait(20)
        child = only_child_of(os.getpid(), CHILD)
        shown = Path(f"/proc/{child}/environ").read_bytes()
        assert HIDDEN.encode() not in shown + Path(f"/proc/{child}/cmdline").read_bytes()
        settings = dict(line.split("=", 1) for line in shown.decode().split("\0") if line)
        assert settings["HF_XET_HIGH_PERFORMANCE"] == "1"
        assert settings["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert settings["HF_HOME"].startswith(str(tmp_path))
        # Of huggingface_hub 1.0 and later it gets no more than a warning.
        assert "HF_HUB_ENABLE_HF_TRANSFER" not in settings
        with until_gone(child):
            call.cancelled.set()
            with pytest.raises(Cancelled):
                future.result(10)
    assert names(tmp_path) == []
    assert call.outcomes == {}


@linux
def test_the_child_dies_with_us(server: HubServer, tmp_path: Path) -> None:
    one = held(server, tmp_path)
    script = f"""
        import threading
        from pathlib import Path
        from comfy_runner.fetch.download import Patience
        from comfy_runner.fetch.hub import Hub
        from comfy_runner.fetch.transfer import Remote, Transfer

        url = {one.remote.url!r}
        remote = Remote(url=url, final_url=url, size={one.remote.size}, commit={COMMIT!r}, xet=True)
        Hub({server.url!r}, credentials={{}}, deadline=60)(
            [Transfer(key="x", remote=remote, part=Path({str(one.part)!r}))],
            done=print, report=print, cancelled=threading.Event(), patience=Patience(),
            probe_again=print,
        )
    """
    us = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    try:
        assert server.holding.wait(20)
        with until_gone(only_child_of(us.pid, CHILD)):
            us.kill()
    finally:
        us.kill()
        us.wait()
    assert not one.part.exists()
