"""What the ranged engine brings from servers that behave, and from those that do not."""

import gzip
import hashlib
import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fakes.file_server import FileServer, Served, running

from comfy_runner.errors import Cancelled, DownloadFailed
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.pace import FEW
from comfy_runner.fetch.probe import probe
from comfy_runner.fetch.ranged import download
from comfy_runner.fetch.transfer import Delivered, Outcome, Remote, Transfer

SMALL = os.urandom(300_000)
LARGE = os.urandom(20_000_000)
"""Three pieces for four workers, two for one."""
QUICK = Patience(stall=0.4, retries=3, backoff=0.01)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@dataclass
class Job:
    """Calls of `download` with parts in one folder, and all that they reported."""

    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    transfers: dict[str, Transfer] = field(default_factory=dict)
    reports: list[tuple[str, int, int | None]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    on_probe: Callable[[], None] = lambda: None

    def found(self, url: str) -> Remote:
        return probe(url, credentials={}, cancelled=self.cancelled, patience=QUICK)

    def part(self, remote: Remote) -> Path:
        return self.folder / f"{remote.name}.part"

    def run(self, remotes: Sequence[Remote], **options: object) -> None:
        def done(transfer: Transfer, outcome: Outcome) -> None:
            assert transfer.key not in self.outcomes
            self.outcomes[transfer.key] = outcome
            self.transfers[transfer.key] = transfer

        def again(remote: Remote) -> Remote:
            self.on_probe()
            return self.found(remote.url)

        self.outcomes.clear()
        given = {"patience": QUICK, "workers": 4}
        download(
            [
                Transfer(key=remote.name, remote=remote, part=self.part(remote))
                for remote in remotes
            ],
            done=done,
            report=lambda *told: self.reports.append(told),
            cancelled=self.cancelled,
            probe_again=again,
            **{**given, **options},
        )

    def bring(self, url: str, **options: object) -> bytes:
        """Probe and fetch one file, which must come."""
        return self.finish(self.found(url), **options)

    def finish(self, remote: Remote, **options: object) -> bytes:
        self.run([remote], **options)
        body = self.part(remote).read_bytes()
        assert self.outcomes[remote.name] == Delivered(len(body), sha256(body))
        return body

    def fault(self, remote: Remote, **options: object) -> str:
        """Fetch one file, which must fail."""
        self.run([remote], **options)
        outcome = self.outcomes[remote.name]
        assert isinstance(outcome, DownloadFailed)
        return str(outcome)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "parts")


def test_brings_files_of_all_sizes_together(server: FileServer, job: Job) -> None:
    bodies = {"tiny": b"x", "large": LARGE, **{f"small{n}": SMALL[n:] for n in range(20)}}
    urls = [server.serve(name, body, ranges=True, etag='"1"') for name, body in bodies.items()]
    remotes = [job.found(url) for url in urls]
    delivered = {name: Delivered(len(body), sha256(body)) for name, body in bodies.items()}

    job.run(remotes)

    assert {found.name: job.part(found).read_bytes() for found in remotes} == bodies
    assert job.outcomes == delivered
    last = {name: (count, total) for name, count, total in job.reports}
    assert last == {name: (len(body), len(body)) for name, body in bodies.items()}


def test_begins_with_the_largest_file(server: FileServer, job: Job) -> None:
    bodies = {"tiny": b"x", "large": LARGE, "small": SMALL}
    remotes = [
        job.found(server.serve(name, body, ranges=True, etag='"1"'))
        for name, body in bodies.items()
    ]
    server.asked.clear()
    job.run(remotes, workers=1)
    assert [asked.path for asked in server.asked] == ["large", "large", "small", "tiny"]


def test_does_not_hash_where_nobody_wants_it(server: FileServer, job: Job) -> None:
    remote = job.found(server.serve("x", LARGE, ranges=True, etag='"1"'))
    job.run([remote], hashing=False)
    assert job.outcomes == {"x": Delivered(len(LARGE), None)}
    assert job.part(remote).read_bytes() == LARGE


def test_nothing_to_bring_is_no_fault(job: Job) -> None:
    job.run([])
    assert job.outcomes == {}


def test_keeps_connections_open(server: FileServer, job: Job) -> None:
    how = {"ranges": True, "etag": '"1"', "keep_alive": True}
    remotes = [job.found(server.serve(f"x{n}", SMALL, **how)) for n in range(12)]
    remotes.append(job.found(server.serve("y", LARGE, **how)))
    before = server.connections
    job.run(remotes, workers=2)
    assert job.outcomes["y"] == Delivered(len(LARGE), sha256(LARGE))
    assert server.connections - before == 2


def test_takes_more_connections_where_each_is_slow(server: FileServer, job: Job) -> None:
    how = {"ranges": True, "etag": '"1"', "keep_alive": True}
    remotes = [job.found(server.serve(f"x{n}", SMALL, **how)) for n in range(60)]
    for served in server.files.values():
        served.pace = 0.04
    before = server.connections
    job.run(remotes, workers=12)
    assert job.outcomes == {r.name: Delivered(len(SMALL), sha256(SMALL)) for r in remotes}
    assert FEW < server.connections - before <= 12


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"length": False},
        {"chunked": True},
        {"headers": {"Content-Encoding": "gzip"}},
        {"ranges": True, "headers": {"Content-Encoding": "gzip"}},
    ],
)
def test_takes_one_stream_from_a_server_without_ranges_or_length(
    server: FileServer, job: Job, how: dict[str, object]
) -> None:
    body = gzip.compress(SMALL) if "headers" in how else SMALL
    assert job.bring(server.serve("x", body, **how)) == SMALL


@pytest.mark.parametrize("etag", ['"1"', ""])
def test_resumes_a_cut_body(server: FileServer, job: Job, etag: str) -> None:
    url = server.serve("x", SMALL, ranges=True, etag=etag, cuts=[1, 100_000])
    assert job.bring(url) == SMALL
    assert [asked.headers["Range"] for asked in server.asked[1:]] == [
        "bytes=0-299999",
        "bytes=100000-299999",
    ]
    assert {asked.headers.get("If-Range", "") for asked in server.asked[1:]} == {etag}


@pytest.mark.parametrize("how", [{}, {"length": False}])
def test_begins_a_cut_stream_again(server: FileServer, job: Job, how: dict[str, object]) -> None:
    remote = replace(job.found(server.serve("x", SMALL, **how)), size=len(SMALL))
    server.files["x"].cuts = [100_000]
    assert job.finish(remote) == SMALL


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ({"always_cut": 0, "ranges": True, "etag": '"1"'}, 4),
        ({"always_cut": 1000, "ranges": True, "etag": '"1"'}, 60),
        ({"always_cut": 1000}, 4),
        ({"always_cut": 1000, "chunked": True}, 4),
    ],
)
def test_gives_up_on_a_body_that_is_always_cut(
    server: FileServer, job: Job, how: dict[str, object], most: int
) -> None:
    remote = job.found(server.serve("x", SMALL, **{**how, "always_cut": None}))
    server.files["x"].always_cut = how["always_cut"]
    before = len(server.asked)
    patience = replace(QUICK, backoff=0.0)
    assert "Gave up after 4 attempts" in job.fault(remote, patience=patience)
    assert 4 <= len(server.asked) - before <= most


def test_asks_for_the_rest_of_a_short_answer(server: FileServer, job: Job) -> None:
    url = server.serve("x", LARGE, ranges=True, etag='"1"', short=1_000_000)
    assert job.bring(url) == LARGE


def test_does_not_take_another_range_than_the_one_asked_for(server: FileServer, job: Job) -> None:
    remote = job.found(server.serve("x", LARGE, ranges=True, etag='"1"'))
    server.files["x"].shifted = 5
    assert job.finish(remote) == LARGE


def test_goes_on_in_one_stream_when_ranges_come_to_be_ignored(server: FileServer, job: Job) -> None:
    remote = job.found(server.serve("x", LARGE, ranges=True, etag='"1"'))
    server.files["x"].deaf_after = 2
    assert job.finish(remote) == LARGE


@pytest.mark.parametrize("hold_after", [0, 1000])
def test_gives_up_on_a_server_that_falls_silent(
    server: FileServer, job: Job, hold_after: int
) -> None:
    remote = job.found(server.serve("x", SMALL, ranges=True, etag='"1"'))
    server.files["x"].hold_after = hold_after
    patience = replace(QUICK, stall=0.2, retries=1)
    assert "sent nothing for 0.2 s" in job.fault(remote, patience=patience)


@pytest.mark.parametrize("status", [429, 503])
def test_waits_as_long_as_it_is_told_to(server: FileServer, job: Job, status: int) -> None:
    remote = job.found(server.serve("x", LARGE, ranges=True, etag='"1"'))
    busy = Served(b"", status=status, headers={"Retry-After": "1"})
    server.files["x"].failures = [busy, busy, busy]
    assert job.finish(remote) == LARGE


@pytest.mark.parametrize(
    ("served", "text"),
    [
        (Served(b"", status=401), "127.0.0.1 refused access"),
        (Served(b"", status=403), "127.0.0.1 refused access"),
        (Served(b"", status=404), "no such file"),
        (Served(b"", status=500), "HTTP 500.*Gave up after 4 attempts"),
        (Served(b"<html>Log in", headers={"Content-Type": "text/html"}), "web page"),
        (Served(b"", status=302, headers={"Location": "/x"}), "more than 10 times"),
        (Served(b"", status=302, headers={"Location": "file:///etc/passwd"}), "no web address"),
    ],
)
def test_a_file_that_fails_leaves_the_others_alone(
    server: FileServer, job: Job, served: Served, text: str
) -> None:
    names = ["a", "x", "b", "c"]
    how = {"ranges": True, "etag": '"1"'}
    remotes = [job.found(server.serve(name, SMALL, **how) + "?k=s3cret") for name in names]
    remotes.append(job.found(server.serve("large", LARGE, **how)))
    server.files["x"] = served

    job.run(remotes)

    fault = job.outcomes.pop("x")
    assert isinstance(fault, DownloadFailed)
    with pytest.raises(DownloadFailed, match=text):
        raise fault
    assert "s3cret" not in str(fault)
    assert job.outcomes.pop("large") == Delivered(len(LARGE), sha256(LARGE))
    assert job.outcomes == dict.fromkeys("abc", Delivered(len(SMALL), sha256(SMALL)))


def test_a_server_that_went_away_is_told(job: Job) -> None:
    with running() as gone:
        remote = job.found(gone.serve("x", SMALL, ranges=True, etag='"1"'))
    assert "connection refused" in job.fault(remote)


@pytest.mark.parametrize("how", [{}, {"deaf_after": 0}])
def test_begins_anew_when_the_content_changes_half_way(
    server: FileServer, job: Job, how: dict[str, object]
) -> None:
    new = os.urandom(15_000_000)
    remote = job.found(server.serve("x", LARGE, ranges=True, etag='"1"'))
    server.files["x"] = Served(LARGE, ranges=True, etag='"1"', changes_to=new, **how)
    assert job.finish(remote, workers=1) == new
    assert job.transfers["x"].remote.version == '"changed"'


def test_gives_up_on_content_that_always_changes(server: FileServer, job: Job) -> None:
    versions = iter(range(1, 100))

    def change() -> None:
        # One piece comes between each time that it is looked for and the next change.
        tag = f'"{next(versions)}"'
        how = {"changes_to": SMALL, "changes_after": 1}
        server.files["x"] = Served(LARGE, ranges=True, etag=tag, **how)

    change()
    remote = job.found(server.url("x"))
    job.on_probe = change
    assert "changes all the time" in job.fault(remote, workers=1)


def signed(server: FileServer, body: bytes, number: int, etag: str) -> str:
    """A file behind a redirect to an address that is good for this once."""
    server.serve(f"signed{number}", body, ranges=True, etag=etag)
    away = {"Location": f"/signed{number}?X-Amz-Signature=s3cret"}
    return server.serve("x", status=302, headers=away)


def test_asks_for_a_new_address_when_a_signed_one_expires(
    server: FileServer, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    remote = job.found(signed(server, LARGE, 1, '"1"'))
    late = Served(b"Request has expired", status=403)
    job.on_probe = lambda: signed(server, LARGE, 2, '"1"') and None
    # The first piece still comes from the old address.
    server.files["signed1"] = Served(LARGE, ranges=True, etag='"1"')
    server.files["signed1"].failures = [server.files["signed1"], late, late, late]

    assert job.finish(remote, workers=1) == LARGE
    assert [asked.path.partition("?")[0] for asked in server.asked] == [
        *("x", "signed1"),
        *("signed1", "signed1"),
        *("x", "signed2"),
        "signed2",
    ]
    assert "s3cret" not in caplog.text


def test_begins_anew_when_the_new_address_has_other_content(server: FileServer, job: Job) -> None:
    remote = job.found(signed(server, LARGE, 1, '"1"'))
    server.files["signed1"] = Served(b"", status=403)
    job.on_probe = lambda: signed(server, SMALL, 2, '"2"') and None
    assert job.finish(remote) == SMALL


def test_gives_up_on_an_address_that_is_always_refused(server: FileServer, job: Job) -> None:
    remote = job.found(server.serve("x", SMALL, ranges=True, etag='"1"'))

    def answer_once() -> None:
        server.files["x"].failures = [server.files["x"], *[Served(b"", status=403)] * 9]

    server.files["x"].failures = [Served(b"", status=403)]
    job.on_probe = answer_once
    assert "HTTP 403. Gave up after 4 attempts" in job.fault(remote)


def test_can_be_cancelled_and_goes_on_later(server: FileServer, job: Job) -> None:
    remote = job.found(server.serve("x", LARGE, ranges=True, etag='"1"', keep_alive=True))
    # Two of the three pieces come, the third stops half-way.
    whole = Served(LARGE, ranges=True, etag='"1"', pace=0.001)
    held = Served(LARGE, ranges=True, etag='"1"', hold_after=2_000_000)
    server.files["x"].failures = [whole, whole, held]

    def cancel() -> None:
        assert server.holding.wait(10)
        while server.sent < len(LARGE) * 3 // 5:
            assert not job.cancelled.wait(0.01)
        job.cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        job.run([remote], patience=Patience(stall=1000))
    thread.join(10)
    assert job.outcomes == {}

    job.cancelled.clear()
    server.release.set()
    before = len(server.asked)
    assert job.finish(remote) == LARGE
    asked = [asked.headers["Range"].removeprefix("bytes=") for asked in server.asked[before:]]
    missing = sum(
        int(last) - int(first) + 1 for first, _, last in (r.partition("-") for r in asked)
    )
    assert 0 < missing < len(LARGE) * 2 // 3


def half_done(server: FileServer, job: Job) -> tuple[Remote, Path]:
    """A file of which the first half stands, as its state says; the second is zero."""
    remote = job.found(server.serve("x", LARGE, ranges=True, etag='"1"'))
    job.finish(remote)
    part = job.part(remote)
    state = part.with_name("x.part.state")
    half = len(LARGE) // 2
    with part.open("r+b") as file:
        file.truncate(half)
        file.truncate(len(LARGE))
    state.write_text(json.dumps({**json.loads(state.read_text()), "spans": [[0, half]]}))
    server.asked.clear()
    return remote, state


def asked_from(server: FileServer) -> int:
    return min(int(asked.headers["Range"][6:].partition("-")[0]) for asked in server.asked)


def test_goes_on_with_what_another_process_left(server: FileServer, job: Job) -> None:
    remote, _ = half_done(server, job)
    assert job.finish(remote) == LARGE
    assert asked_from(server) == len(LARGE) // 2
    server.asked.clear()
    assert job.finish(remote) == LARGE
    assert server.asked == [], "what stands whole is only hashed"


@pytest.mark.parametrize(
    "change",
    [
        {"boot": "another"},
        {"version": '"0"'},
        {"size": 5},
        {"format": 2},
        {"spans": [[-5, 100]]},
        {"spans": [[0, len(LARGE) + 1]]},
        {"spans": "nonsense"},
        {"spans": [[0]]},
    ],
)
def test_does_not_trust_what_is_left_of_something_else(
    server: FileServer, job: Job, change: dict[str, object]
) -> None:
    remote, state = half_done(server, job)
    state.write_text(json.dumps({**json.loads(state.read_text()), **change}))
    assert job.finish(remote) == LARGE
    assert asked_from(server) == 0


def test_trusts_after_a_restart_of_the_machine_what_a_hash_can_prove(
    server: FileServer, job: Job
) -> None:
    remote, state = half_done(server, job)
    left = {**json.loads(state.read_text()), "boot": "another", "sha256": sha256(LARGE)}
    state.write_text(json.dumps(left))
    assert job.finish(replace(remote, sha256=sha256(LARGE), version="a mirror's")) == LARGE
    assert asked_from(server) == len(LARGE) // 2


@pytest.mark.parametrize("left", [b"", b"{", b"[]"])
def test_a_broken_state_or_part_is_begun_anew(server: FileServer, job: Job, left: bytes) -> None:
    remote, state = half_done(server, job)
    state.write_bytes(left)
    assert job.finish(remote) == LARGE
    remote, state = half_done(server, job)
    job.part(remote).write_bytes(b"shorter")
    assert job.finish(remote) == LARGE
    remote, state = half_done(server, job)
    job.part(remote).unlink()
    assert job.finish(remote) == LARGE


def test_an_exception_of_the_caller_ends_all(server: FileServer, job: Job) -> None:
    remote = job.found(server.serve("x", SMALL, ranges=True, etag='"1"'))

    def strike(*_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        download(
            [Transfer(key="x", remote=remote, part=job.part(remote))],
            done=strike,
            report=lambda *_: None,
            cancelled=job.cancelled,
            patience=QUICK,
            probe_again=lambda same: same,
        )


PROGRAM = """
import os, random, signal, sys, threading, time
from pathlib import Path
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.probe import probe
from comfy_runner.fetch.ranged import download
from comfy_runner.fetch.transfer import Transfer

def bring(url, part):
    never, patience = threading.Event(), Patience(retries=1)
    found = lambda url: probe(url, credentials={}, cancelled=never, patience=patience)
    download(
        [Transfer(key="x", remote=found(url), part=Path(part))],
        done=lambda _, outcome: print(outcome, flush=True),
        report=lambda *_: None,
        cancelled=never,
        patience=patience,
        probe_again=lambda remote: found(remote.url),
    )
"""
KILLED = (
    PROGRAM
    + """
for _ in range(20):
    child = os.fork()
    if not child:
        bring(*sys.argv[1:])
        os._exit(0)
    time.sleep(random.uniform(0.05, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
)


def program(code: str, *arguments: str, **how: object) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        **how,
    ).stdout


def test_goes_on_after_a_kill_at_any_moment(server: FileServer, job: Job) -> None:
    url = server.serve("x", LARGE, ranges=True, etag='"1"', pace=0.03)
    part = job.folder / "x.part"
    program(KILLED, url, str(part))
    server.files["x"].pace = 0.0
    assert job.bring(url) == LARGE
    assert server.sent < 10 * len(LARGE)


def test_a_disk_that_refuses_is_reported(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("x", SMALL, ranges=True, etag='"1"')
    said = program(
        PROGRAM + "bring(*sys.argv[1:])",
        url,
        str(tmp_path / "x.part"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert f"could not be stored in {tmp_path}: File too large" in said
    assert "Free some space" in said
