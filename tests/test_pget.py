"""pget under watch: whatever it does, each file is delivered or left for our own engine."""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.file_server import FileServer, Served, running
from processes import children_of, names, only_child_of, until_gone

from comfy_runner.errors import Cancelled, DownloadFailed, InvalidInput
from comfy_runner.fetch import pget, ranged
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.outside import Unfinished, without_secrets
from comfy_runner.fetch.pget import CHUNK, TINY, Pget, find, fits
from comfy_runner.fetch.staged import PartState
from comfy_runner.fetch.transfer import Delivered, Outcome, Remote, Transfer

PGET = b"multifile"
"""What stands in its command line."""
FAKE = Path(__file__).parent / "fakes" / "pget"
REAL = shutil.which("pget")
ROOT = Path(pget.__file__).parents[2]

VERSION = {"version": '"1"', "validator": '"1"'}
"""What a server tells that serves the first content of a file."""

with_pget = pytest.mark.skipif(REAL is None, reason="pget is not on PATH")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def transfer(part: Path, url: str, size: int | None, **remote: Any) -> Transfer:
    known = {"final_url": url, "size": size, "ranges": True, **VERSION, **remote}
    return Transfer(key=part.name, remote=Remote(url=url, **known), part=part)


class Call:
    """One call of the engine, and what it told."""

    def __init__(self, path: str | Path | None, **limits: Any) -> None:
        assert path is not None
        self.engine = Pget(Path(path), **{"deadline": 60.0, "stall": 30.0, **limits})
        self.outcomes: dict[str, Outcome] = {}
        self.reports: list[tuple[str, int, int | None]] = []
        self.cancelled = threading.Event()
        self.probe_again: Callable[[Remote], Remote] = lambda remote: remote
        self.after: Callable[[], None] = lambda: None
        """Called after each outcome."""

    def bring(self, *transfers: Transfer) -> dict[str, Outcome]:
        def done(transfer: Transfer, outcome: Outcome) -> None:
            assert transfer.key not in self.outcomes
            self.outcomes[transfer.key] = outcome
            self.after()

        self.engine(
            transfers,
            done=done,
            report=lambda *told: self.reports.append(told),
            cancelled=self.cancelled,
            patience=Patience(connect=5),
            probe_again=self.probe_again,
        )
        return self.outcomes


def finish(*transfers: Transfer) -> dict[str, Outcome]:
    """Let our own engine go on."""
    outcomes: dict[str, Outcome] = {}
    ranged.download(
        transfers,
        done=lambda transfer, outcome: outcomes.update({transfer.key: outcome}),
        report=lambda *_: None,
        cancelled=threading.Event(),
        patience=Patience(retries=0),
        probe_again=lambda remote: remote,
    )
    return outcomes


def prefix(one: Transfer) -> bytes:
    """What of a file stands in its part, as its state says."""
    remote = one.remote
    assert remote.size is not None
    state = PartState(size=remote.size, version=remote.version, sha256=remote.sha256)
    match state.resumed(one.part).spans:
        case ():
            return b""
        case ((0, end),):
            return one.part.read_bytes()[:end]
    raise AssertionError("It must be the first bytes.")


def pgets_of(process: int) -> list[int]:
    """The process ids of the pgets that a process started."""
    return children_of(process, PGET)


def running_pget(process: int) -> int:
    """The process id of the one pget that a process started."""
    return only_child_of(process, PGET)


# What is for pget


def test_auto_looks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(FAKE.parent), prepend=os.pathsep)
    assert find("auto") == FAKE
    assert find("off") is None
    assert find(str(FAKE)) == FAKE


def test_auto_is_content_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("auto") is None


def test_a_path_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "pget"
    text.write_text("no program")
    for wrong in (text, tmp_path / "none", tmp_path):
        with pytest.raises(InvalidInput, match=r"no program that can be run.*auto to look"):
            find(str(wrong))


def test_a_large_file_with_ranges_fits(tmp_path: Path) -> None:
    assert fits(transfer(tmp_path / "a part", "https://host.test/x?sig=1", 10**10))


def test_a_file_of_one_chunk_needs_no_ranges(tmp_path: Path) -> None:
    assert fits(transfer(tmp_path / "part", "http://host.test/x", CHUNK, ranges=False))
    assert not fits(transfer(tmp_path / "part", "http://host.test/x", CHUNK + 1, ranges=False))


@pytest.mark.parametrize(
    ("url", "size", "remote"),
    [
        ("https://host.test/x", None, {}),
        ("https://host.test/x", 0, {}),
        ("https://host.test/x", TINY - 1, {}),
        ("https://host.test/x", TINY, {"authorization": "Bearer secret"}),
        ("data:text/plain,x", TINY, {}),
        ("file:///x", TINY, {}),
        ("https://host.test/a b", TINY, {}),
        ("https://host.test/a\u00a0b", TINY, {}),
        ("https://host.test/a\nhttps://host.test/b", TINY, {}),
        ("https://host.test/" + "x" * 65_000, TINY, {}),
    ],
)
def test_what_pget_cannot_do_does_not_fit(
    tmp_path: Path, url: str, size: int | None, remote: dict[str, Any]
) -> None:
    assert not fits(transfer(tmp_path / "part", url, size, **remote))


def test_a_part_with_a_prefix_does_not_fit(tmp_path: Path) -> None:
    one = transfer(tmp_path / "part", "https://host.test/x", TINY)
    one.part.touch()
    assert fits(one)
    one.part.write_bytes(b"from a former attempt")
    assert not fits(one)


def test_what_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    one = transfer(tmp_path / "part", "https://host.test/x", TINY)
    one.part.write_bytes(b"from a former attempt")
    outcome = Call(FAKE).bring(one)["part"]
    assert isinstance(outcome, Unfinished)
    assert one.part.read_bytes() == b"from a former attempt"


# A pget that misbehaves on demand


def asked(part: Path, what: str, size: int = 2 * TINY) -> Transfer:
    """A file to which the fake does `what`."""
    return transfer(part, f"http://user:hidden-1@host.test/{what}/{size}?token=hidden-2", size)


def body(size: int) -> bytes:
    """What the fake writes."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def test_files_are_delivered_under_names_with_spaces(tmp_path: Path) -> None:
    parts = [tmp_path / "one folder" / "a part", tmp_path / "b \n part"]
    call = Call(FAKE)
    outcomes = call.bring(*(asked(part, "whole", 2 * TINY) for part in parts))
    assert outcomes == {"a part": Delivered(2 * TINY), "b \n part": Delivered(2 * TINY)}
    assert [part.read_bytes() == body(2 * TINY) for part in parts] == [True, True]
    assert names(tmp_path) == ["b \n part", "one folder"]
    assert names(tmp_path / "one folder") == ["a part"]
    assert ("a part", 2 * TINY, 2 * TINY) in call.reports


def test_success_without_the_file_is_not_believed(tmp_path: Path) -> None:
    outcomes = Call(FAKE).bring(asked(tmp_path / "a", "whole"), asked(tmp_path / "b", "nothing"))
    assert outcomes["a"] == Delivered(2 * TINY)
    assert isinstance(outcomes["b"], Unfinished)
    assert str(outcomes["b"]) == (
        "pget did not bring http://host.test/nothing/2097152: it ended with exit code 0."
    )
    assert names(tmp_path) == ["a"]


def test_of_half_a_file_the_prefix_stays(tmp_path: Path) -> None:
    one = asked(tmp_path / "part", "half")
    assert isinstance(Call(FAKE).bring(one)["part"], Unfinished)
    assert prefix(one) == body(TINY)
    assert names(tmp_path) == ["part", "part.state"]


def test_a_panic_leaves_no_empty_part(tmp_path: Path) -> None:
    outcome = Call(FAKE).bring(asked(tmp_path / "part", "panic"))["part"]
    assert "exit code 2" in str(outcome)
    assert names(tmp_path) == []


@linux
@pytest.mark.parametrize(
    ("limits", "what", "why"),
    [
        ({"stall": 1.0}, "hang", "it brought no new byte for 1 s"),
        ({"deadline": 1.0}, "drip", "it needed more than 1 s"),
    ],
)
def test_one_that_does_not_end_is_killed(
    tmp_path: Path, limits: dict[str, float], what: str, why: str
) -> None:
    outcome = Call(FAKE, **limits).bring(asked(tmp_path / "part", what))["part"]
    assert isinstance(outcome, Unfinished)
    assert why in str(outcome)
    assert pgets_of(os.getpid()) == []


class Noting(list[tuple[str, int, int | None]]):
    """A list that sets an event at the first thing it gets."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def append(self, told: tuple[str, int, int | None]) -> None:
        super().append(told)
        self.event.set()


def test_a_file_is_delivered_while_others_still_come(tmp_path: Path) -> None:
    call = Call(FAKE)
    call.after = call.cancelled.set
    with pytest.raises(Cancelled):
        call.bring(asked(tmp_path / "b", "hang"), asked(tmp_path / "a", "whole", 3 * TINY))
    assert call.outcomes == {"a": Delivered(3 * TINY)}
    assert (tmp_path / "a").read_bytes() == body(3 * TINY)
    assert names(tmp_path) == ["a"]


@linux
def test_a_file_that_may_still_grow_is_not_delivered(tmp_path: Path) -> None:
    outcome = Call(FAKE).bring(asked(tmp_path / "part", "growing"))["part"]
    assert isinstance(outcome, Unfinished)
    assert names(tmp_path) == []


def test_the_log_shows_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    outcome = Call(FAKE).bring(asked(tmp_path / "part", "tell"))["part"]
    assert "could not get http://host.test/tell/2097152" in caplog.text
    assert "hidden" not in caplog.text + str(outcome)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("at https://me:s3cret@e.com/x?sig=s3cret end", "at https://e.com/x end"),
        ('Get "http://e.com/x?sig=s3cret": EOF', 'Get "http://e.com/x": EOF'),
        ("/x?sig=s3cret end", "/x?... end"),
        ("token s3cret end", "token *** end"),
        (f"{'a' * 30}://me:s3cret@e.com/x", None),
        ("a" * 300_000, None),
    ],
)
def test_what_a_program_says_is_shown_without_secrets(said: str, shown: str | None) -> None:
    told = without_secrets(said, ["s3cret"] if "token" in said else [])
    assert "s3cret" not in told
    assert told == (shown or told)


def test_it_sees_no_token_and_no_foreign_setting(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HTTPS_PROXY": "http://proxy.test:3128",
        "HF_TOKEN": "hidden",
        "PGET_RETRIES": "100",
        "PGET_PID_FILE": "/run/pget.pid",
        "PGET_HEADERS": '{"Authorization": "hidden"}',
        "PGET_CACHE_SERVICE_HOSTNAME": "cache.test",
    }
    one = asked(tmp_path / "part", "surroundings")
    assert Call(FAKE, environment=environment).bring(one) == {"part": Delivered(2 * TINY)}
    seen = json.loads(one.part.read_bytes())
    assert seen["environment"]["PGET_CACHE_SERVICE_HOSTNAME"] == "cache.test"
    assert seen["environment"]["HTTPS_PROXY"] == "http://proxy.test:3128"
    assert seen["environment"]["PGET_PID_FILE"] != "/run/pget.pid"
    assert {"HF_TOKEN", "PGET_RETRIES", "PGET_HEADERS"}.isdisjoint(seen["environment"])
    assert "host.test" not in json.dumps(seen)
    assert "hidden" not in json.dumps(seen)


def test_a_program_that_cannot_start_leaves_all_unfinished(tmp_path: Path) -> None:
    outcome = Call(tmp_path / "none").bring(asked(tmp_path / "part", "whole"))["part"]
    assert isinstance(outcome, Unfinished)
    assert names(tmp_path) == []


def test_what_a_killed_attempt_left_is_not_taken_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "part.pget").write_bytes(bytes(2 * TINY))
    outcome = Call(FAKE).bring(asked(tmp_path / "part", "nothing"))["part"]
    assert isinstance(outcome, Unfinished)
    assert names(tmp_path) == []


# The real one


def served(server: FileServer, folder: Path, name: str, content: bytes, **how: Any) -> Transfer:
    url = server.serve(name, content, **{"ranges": True, "etag": '"1"', **how})
    return transfer(folder / f"{name} part", f"{url}?token=hidden", len(content))


@with_pget
def test_many_files_come_at_once(server: FileServer, tmp_path: Path) -> None:
    contents = {f"f{n}": os.urandom(TINY + n) for n in range(12)}
    contents["large"] = os.urandom(2 * CHUNK + 12_345)
    transfers = [served(server, tmp_path, *pair) for pair in contents.items()]
    outcomes = Call(REAL).bring(*transfers)
    assert outcomes == {
        f"{name} part": Delivered(len(content)) for name, content in contents.items()
    }
    for name, content in contents.items():
        assert (tmp_path / f"{name} part").read_bytes() == content
    assert names(tmp_path) == sorted(outcomes)


@with_pget
@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refused_file_in_the_list_harms_no_other(
    server: FileServer, tmp_path: Path, status: int
) -> None:
    content = os.urandom(TINY)
    transfers = [served(server, tmp_path, f"f{n}", content) for n in range(6)]
    bad = served(server, tmp_path, "bad", content + b"x", status=status, ranges=False)
    outcomes = Call(REAL, stall=1.0).bring(*transfers[:3], bad, *transfers[3:])
    assert len(outcomes) == 7
    assert isinstance(outcomes["bad part"], Unfinished)
    for one in transfers:  # pget may go on, stop at the bad one, or wait for ever
        if outcomes[one.key] == Delivered(len(content)):
            assert one.part.read_bytes() == content
        else:
            assert isinstance(outcomes[one.key], Unfinished)
            assert content.startswith(prefix(one))
    left = [one for one in transfers if isinstance(outcomes[one.key], Unfinished)]
    finish(*left)
    assert [one.key for one in transfers if one.part.read_bytes() != content] == []


@with_pget
def test_a_silent_server_is_left(server: FileServer, tmp_path: Path) -> None:
    one = served(server, tmp_path, "x", bytes(2 * TINY), hold_after=1000)
    outcome = Call(REAL, stall=0.5).bring(one)[one.key]
    assert "no new byte for 0.5 s" in str(outcome)
    assert names(tmp_path) == []


@with_pget
def test_a_connection_that_is_always_cut_is_left(server: FileServer, tmp_path: Path) -> None:
    one = served(server, tmp_path, "x", bytes(2 * TINY), always_cut=0)
    outcome = Call(REAL, stall=0.5).bring(one)[one.key]
    assert isinstance(outcome, Unfinished)


@with_pget
def test_a_redirect_loop_is_left(server: FileServer, tmp_path: Path) -> None:
    loop = {"Location": server.url("x")}
    one = served(server, tmp_path, "x", bytes(2 * TINY), status=302, headers=loop, ranges=False)
    outcome = Call(REAL, stall=0.5).bring(one)[one.key]
    assert isinstance(outcome, Unfinished)
    assert names(tmp_path) == []


@with_pget
def test_of_a_shorter_file_the_prefix_stays(server: FileServer, tmp_path: Path) -> None:
    content = os.urandom(2 * TINY)
    one = transfer(tmp_path / "part", server.serve("x", content, ranges=True), 3 * TINY)
    assert isinstance(Call(REAL).bring(one)["part"], Unfinished)
    assert prefix(one) == content


@with_pget
def test_a_longer_file_is_not_delivered(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("x", bytes(3 * TINY), ranges=True)
    outcome = Call(REAL).bring(transfer(tmp_path / "part", url, 2 * TINY))["part"]
    assert isinstance(outcome, Unfinished)
    assert names(tmp_path) == []


@with_pget
@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_file_that_changes_meanwhile_is_left_unless_its_hash_will_tell(
    server: FileServer, tmp_path: Path, sha256: str | None
) -> None:
    change = {"etag": '"1"', "changes_to": os.urandom(2 * CHUNK)}
    url = server.serve("x", bytes(2 * CHUNK), ranges=True, **change)
    call = Call(REAL)
    call.probe_again = lambda remote: replace(remote, version='"2"')
    outcome = call.bring(transfer(tmp_path / "part", url, 2 * CHUNK, sha256=sha256))["part"]
    if sha256:
        assert outcome == Delivered(2 * CHUNK)
        assert names(tmp_path) == ["part"]
    else:
        assert isinstance(outcome, Unfinished)
        assert "its content changed meanwhile" in str(outcome)
        assert names(tmp_path) == []


def test_where_nobody_tells_whether_a_file_changed_it_is_not_delivered(tmp_path: Path) -> None:
    def probe_again(_: Remote) -> Remote:
        raise DownloadFailed("The server is gone.")

    call, one = Call(FAKE), asked(tmp_path / "part", "whole")
    call.probe_again = probe_again
    assert isinstance(call.bring(one)["part"], Unfinished)
    assert prefix(one) == body(2 * TINY)[:-1]


def held(server: FileServer, folder: Path, content: bytes, whole: int, stop: int) -> Transfer:
    """A file of which the first `whole` chunks come, and `stop` bytes of each other."""
    one = served(server, folder, "x", content, hold_after=stop)
    server.files["x"].failures += [Served(content, ranges=True, etag='"1"') for _ in range(whole)]
    return one


@linux
@with_pget
def test_cancelling_kills_it_and_keeps_the_prefix(server: FileServer, tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK)
    call, first_chunk = Call(REAL), threading.Event()
    call.reports = Noting(first_chunk)
    with ThreadPoolExecutor(1) as pool:
        one = held(server, tmp_path, content, 1, 1000)
        future = pool.submit(call.bring, one)
        assert first_chunk.wait(10)
        assert server.holding.wait(10)
        with until_gone(running_pget(os.getpid())):
            call.cancelled.set()
            with pytest.raises(Cancelled):
                future.result(10)
    assert prefix(one)
    assert content.startswith(prefix(one))
    assert call.outcomes == {}


@linux
@with_pget
def test_its_command_and_environment_show_no_url(server: FileServer, tmp_path: Path) -> None:
    call = Call(REAL)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call.bring, held(server, tmp_path, bytes(2 * TINY), 0, 1000))
        assert server.holding.wait(10)
        process = Path(f"/proc/{running_pget(os.getpid())}")
        for shown in ("cmdline", "environ"):
            text = (process / shown).read_bytes()
            assert b"hidden" not in text
            assert str(server.port).encode() not in text
        server.release.set()
        assert future.result(20) == {"x part": Delivered(2 * TINY)}


@linux
@with_pget
def test_it_dies_with_us(server: FileServer, tmp_path: Path) -> None:
    one = held(server, tmp_path, bytes(2 * TINY), 0, 1000)
    script = f"""
        import threading
        from pathlib import Path
        from comfy_runner.fetch.download import Patience
        from comfy_runner.fetch.pget import Pget
        from comfy_runner.fetch.transfer import Remote, Transfer

        url = {one.remote.url!r}
        remote = Remote(url=url, final_url=url, size={one.remote.size}, ranges=True)
        Pget(Path({REAL!r}), deadline=60)(
            [Transfer(key="x", remote=remote, part=Path({str(one.part)!r}))],
            done=print, report=print, cancelled=threading.Event(), patience=Patience(),
            probe_again=print,
        )
    """
    us = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert server.holding.wait(20)
        with until_gone(running_pget(us.pid)):
            us.kill()
    finally:
        us.kill()
        us.wait()
    assert not one.part.exists()


@linux
@with_pget
def test_killed_at_any_moment_it_leaves_nothing_wrong(tmp_path: Path) -> None:
    rng = random.Random(5)  # noqa: S311 (the same moments each time)
    content = os.urandom(2 * CHUNK + TINY)
    prefixes = set()
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        with running() as server, ThreadPoolExecutor(1) as pool:
            one = held(server, folder, content, rng.randrange(3), rng.randrange(CHUNK))
            future = pool.submit(Call(REAL).bring, one)
            assert server.holding.wait(10)
            os.kill(running_pget(os.getpid()), 9)
            assert isinstance(future.result(10)[one.key], Unfinished)
            left = prefix(one)
            assert content.startswith(left)
            prefixes.add(len(left))
            server.release.set()
            assert isinstance(finish(one)[one.key], Delivered)
            assert one.part.read_bytes() == content
    assert len(prefixes) > 1
