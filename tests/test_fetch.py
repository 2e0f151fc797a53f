"""What `fetch` makes of servers that behave, and of those that do not."""

import base64
import gzip
import hashlib
import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from fakes.file_server import FileServer, Served, running
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import Cancelled, DownloadFailed, HashMismatch, InvalidInput
from comfy_runner.fetch.answers import signed_on
from comfy_runner.fetch.download import Fetched, Patience, fetch
from comfy_runner.fetch.staged import safetensors_fault
from comfy_runner.fetch.urls import clean_name, redacted

BODY = os.urandom(700_000)
HASH = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(stall=0.3, retries=3, backoff=0.01)


@pytest.fixture
def get(tmp_path: Path) -> Iterator[Callable[..., Fetched]]:
    """`fetch` into an own folder, which afterwards must hold the whole file or nothing."""
    target = tmp_path / "models" / "x.bin"

    def call(url: str, **options: object) -> Fetched:
        return fetch(url, options.pop("target", target), **{"patience": QUICK, **options})

    yield call
    for file in tmp_path.rglob("*"):
        assert not file.name.endswith(".part"), "an unfinished file was left behind"


def safetensors(tensors: dict[str, object], payload: bytes) -> bytes:
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + payload


def test_fetches_a_file_with_size_hash_and_progress(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    seen: list[tuple[int, int | None]] = []
    url = server.serve("a/model%20one.safetensors?token=s3cret", b"")
    server.serve("a/model%20one.safetensors", BODY)

    fetched = get(
        url, size=len(BODY), sha256=HASH, progress=lambda done, total: seen.append((done, total))
    )

    assert fetched.path.read_bytes() == BODY
    assert (fetched.size, fetched.sha256) == (len(BODY), HASH)
    assert fetched.name == "model one.safetensors"
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert fetched.path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("how", [{"length": False}, {"chunked": True}])
def test_fetches_a_file_of_unknown_length(
    server: FileServer, get: Callable[..., Fetched], how: dict[str, bool]
) -> None:
    assert get(server.serve("x", BODY, **how)).path.read_bytes() == BODY


def test_decodes_a_compressed_answer(server: FileServer, get: Callable[..., Fetched]) -> None:
    url = server.serve("x", gzip.compress(BODY), headers={"Content-Encoding": "gzip"})
    assert get(url, sha256=HASH).path.read_bytes() == BODY


def test_resumes_a_cut_body(server: FileServer, get: Callable[..., Fetched]) -> None:
    url = server.serve("x", BODY, ranges=True, etag='"1"', cuts=[300_000])

    assert get(url, sha256=HASH).path.read_bytes() == BODY

    assert server.asked[1].headers["Range"] == "bytes=300000-"
    assert server.asked[1].headers["If-Range"] == '"1"'


def test_resumes_more_often_than_it_retries_while_bytes_come(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    url = server.serve("x", BODY, ranges=True, etag='"1"', always_cut=100_000)
    assert get(url, sha256=HASH).path.read_bytes() == BODY
    assert len(server.asked) == 7


@pytest.mark.parametrize(
    "how", [{}, {"ranges": True}, {"ranges": True, "etag": 'W/"1"'}, {"etag": '"1"'}]
)
def test_begins_anew_where_a_server_cannot_resume(
    server: FileServer, get: Callable[..., Fetched], how: dict[str, object]
) -> None:
    url = server.serve("x", BODY, cuts=[300_000], **how)
    assert get(url, sha256=HASH).path.read_bytes() == BODY
    assert "Range" not in server.asked[1].headers


def test_begins_anew_when_the_content_changed(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    new = os.urandom(500_000)
    url = server.serve("x", BODY, ranges=True, etag='"1"', cuts=[300_000], changes_to=new)
    assert get(url).path.read_bytes() == new


def test_begins_anew_when_the_server_sends_another_part(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    wrong = Served(BODY[9:], status=206, headers={"Content-Range": "bytes 9-699999/700000"})
    first = Served(BODY, ranges=True, etag='"1"', cuts=[300_000])
    url = server.serve("x", BODY, failures=[first, wrong, Served(b"", status=416)])
    assert get(url, sha256=HASH).path.read_bytes() == BODY


@pytest.mark.parametrize(
    "how",
    [
        {"always_cut": 1000},
        {"always_cut": 0},
        {"always_cut": 1000, "chunked": True},
        {"always_cut": 0, "ranges": True, "etag": '"1"'},
    ],
)
def test_gives_up_on_a_body_that_is_always_cut(
    server: FileServer, get: Callable[..., Fetched], how: dict[str, object], tmp_path: Path
) -> None:
    url = server.serve("x", BODY, **how)
    with pytest.raises(DownloadFailed, match="Gave up after 4 attempts"):
        get(url)
    assert len(server.asked) == 4
    assert not (tmp_path / "models" / "x.bin").exists()


def test_a_short_body_without_length_is_no_success_when_the_size_is_known(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    url = server.serve("x", BODY, length=False, cuts=[1000])
    assert get(url, size=len(BODY)).path.read_bytes() == BODY
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "text", "requests"),
    [
        (400, "HTTP 400", 1),
        (401, "token", 1),
        (403, "refused access", 1),
        (404, "no such file", 1),
        (500, "HTTP 500", 4),
        (503, "HTTP 503", 4),
    ],
)
def test_reports_what_the_server_refuses(
    server: FileServer, get: Callable[..., Fetched], status: int, text: str, requests: int
) -> None:
    url = server.serve("x", b"no", status=status)
    with pytest.raises(DownloadFailed, match=text):
        get(url + "?token=s3cret")
    assert len(server.asked) == requests


@pytest.mark.parametrize("retry_after", ["0", "1", formatdate(0, usegmt=True), "nonsense"])
def test_waits_and_asks_again_when_it_is_told_to(
    server: FileServer, get: Callable[..., Fetched], retry_after: str
) -> None:
    busy = [Served(b"", status=429, headers={"Retry-After": retry_after})]
    assert get(server.serve("x", BODY, failures=busy)).sha256 == HASH


def test_waiting_can_be_cancelled(server: FileServer, get: Callable[..., Fetched]) -> None:
    cancelled = threading.Event()
    busy = Served(b"", status=503, headers={"Retry-After": "50"})
    url = server.serve("x", BODY, failures=[busy])
    outcome = in_thread(lambda: get(url, cancelled=cancelled))
    while not server.asked:
        assert not cancelled.wait(0.01)
    cancelled.set()
    assert isinstance(outcome(), Cancelled)


def test_reading_can_be_cancelled(server: FileServer, get: Callable[..., Fetched]) -> None:
    cancelled = threading.Event()
    url = server.serve("x", BODY, hold_after=1000)
    outcome = in_thread(lambda: get(url, cancelled=cancelled, patience=Patience(stall=1000)))
    assert server.holding.wait(10)
    cancelled.set()
    assert isinstance(outcome(), Cancelled)


def in_thread(call: Callable[[], object]) -> Callable[[], object]:
    """Start the call. The returned function waits for its result or error, 10 s at most."""
    results: list[object] = []

    def work() -> None:
        try:
            results.append(call())
        except (Cancelled, DownloadFailed) as err:
            results.append(err)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def outcome() -> object:
        thread.join(10)
        return results[0] if results else None

    return outcome


@pytest.mark.parametrize("hold_after", [0, 1000])
def test_gives_up_on_a_server_that_falls_silent(
    server: FileServer, get: Callable[..., Fetched], hold_after: int
) -> None:
    url = server.serve("x", BODY, hold_after=hold_after)
    with pytest.raises(DownloadFailed, match=r"sent nothing for 0\.2 s"):
        get(url, patience=Patience(stall=0.2, retries=1, backoff=0.01))


def test_follows_redirects(server: FileServer, get: Callable[..., Fetched]) -> None:
    server.serve("real/cat.png", BODY)
    url = server.serve("x", status=302, headers={"Location": "/real/cat.png?sig=1"})
    fetched = get(url)
    assert (fetched.sha256, fetched.name) == (HASH, "cat.png")


def test_gives_up_on_a_redirect_loop(server: FileServer, get: Callable[..., Fetched]) -> None:
    url = server.serve("x", status=302, headers={"Location": "/x"})
    with pytest.raises(DownloadFailed, match="more than 10 times"):
        get(url)
    assert len(server.asked) == 11


def test_does_not_follow_a_redirect_to_a_local_file(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    url = server.serve("x", status=302, headers={"Location": "file:///etc/passwd"})
    with pytest.raises(DownloadFailed, match="no web address"):
        get(url, allow_local=True)


def test_a_token_goes_to_its_host_only(server: FileServer, get: Callable[..., Fetched]) -> None:
    server.serve("there", BODY)
    away = server.url("there", host="localhost")
    back = {"Location": server.url("again")}
    server.serve("again", status=302, headers={"Location": away})
    url = server.serve("x", status=302, headers=back)

    get(url, credentials={"127.0.0.1": "s3cret", "localhost": "other"})

    sent = [asked.headers.get("Authorization") for asked in server.asked]
    assert sent == ["Bearer s3cret", "Bearer s3cret", None]


def test_no_token_goes_out_where_others_can_read_it() -> None:
    tokens = {"huggingface.co": "t", "localhost": "t", "127.0.0.1": "t"}
    assert signed_on("http://huggingface.co/x", tokens) == ("http://huggingface.co/x", "")
    for url in ("https://huggingface.co/x", "http://localhost:80/x", "http://127.0.0.1/x"):
        assert signed_on(url, tokens) == (url, "Bearer t")


def test_no_token_goes_to_a_host_that_was_not_named(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    get(server.serve("x", BODY), credentials={"huggingface.co": "s3cret"})
    assert "Authorization" not in server.asked[0].headers


def test_user_and_password_of_a_url_are_used_and_not_sent_along(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    server.serve("y", BODY)
    server.serve("x", status=302, headers={"Location": server.url("y", host="localhost")})
    get(f"http://me:p%40ss@127.0.0.1:{server.port}/x")
    expected = "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert [a.headers.get("Authorization") for a in server.asked] == [expected, None]


@pytest.mark.parametrize("expect", ["weight", "media"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<p>Log in</p>", {"Content-Type": "text/html; charset=utf-8"}),
        (b"\n <!DOCTYPE html><title>Log in</title>", {}),
        (b"<HTML>", {}),
    ],
)
def test_a_login_page_is_no_file(
    server: FileServer,
    get: Callable[..., Fetched],
    expect: str,
    body: bytes,
    headers: dict[str, str],
) -> None:
    url = server.serve("x", body, headers=headers)
    with pytest.raises(DownloadFailed, match="web page"):
        get(url, expect=expect)
    assert get(url).size == len(body)


def test_refuses_another_file_than_the_manifest_names(
    server: FileServer, get: Callable[..., Fetched], tmp_path: Path
) -> None:
    target = tmp_path / "models" / "x.bin"
    target.parent.mkdir()
    target.write_bytes(b"the old one")
    url = server.serve("x", BODY)
    with pytest.raises(HashMismatch, match=f"its sha256 is {HASH}"):
        get(url, sha256="0" * 64)
    with pytest.raises(HashMismatch, match="it has 700000 bytes where 5 were expected"):
        get(url, size=5)
    endless = server.serve("y", BODY, length=False)
    with pytest.raises(HashMismatch, match="it has more bytes where 5 were expected"):
        get(endless, size=5)
    assert target.read_bytes() == b"the old one"


@pytest.mark.parametrize("how", [{}, {"length": False}, {"chunked": True}])
def test_refuses_more_than_the_limit(
    server: FileServer, get: Callable[..., Fetched], how: dict[str, bool]
) -> None:
    url = server.serve("x", BODY, **how)
    with pytest.raises(InvalidInput, match="limit of 699999 bytes") as caught:
        get(url, max_bytes=699_999)
    assert caught.value.problems[0].code == "file_too_large"
    assert get(url, max_bytes=700_000).size == 700_000


def test_an_empty_file_is_no_file(server: FileServer, get: Callable[..., Fetched]) -> None:
    with pytest.raises(DownloadFailed, match="is empty"):
        get(server.serve("x", b""))


def test_a_server_that_is_not_there(get: Callable[..., Fetched]) -> None:
    with running() as gone:
        url = gone.url("x?token=s3cret")
    with pytest.raises(DownloadFailed, match="connection refused") as caught:
        get(url)
    assert "s3cret" not in str(caught.value)


GOOD = safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"abcd")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (GOOD, ""),
        (safetensors({"__metadata__": {"format": "pt"}}, b""), ""),
        (GOOD[:-1], "where its header says"),
        (GOOD + b"x", "where its header says"),
        (b"ab", "does not fit"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "does not fit"),
        (b"\x02" + bytes(7) + b"[]", "cannot be read"),
        (b"\x02" + bytes(7) + b"{{", "cannot be read"),
        (safetensors({"a": {"shape": [4]}}, b"abcd"), "cannot be read"),
        (safetensors({"a": {"data_offsets": [1, 4]}}, b"abcd"), "overlap or leave holes"),
    ],
)
def test_checks_the_header_of_safetensors(
    server: FileServer,
    get: Callable[..., Fetched],
    tmp_path: Path,
    content: bytes,
    fault: str,
) -> None:
    target = tmp_path / "x.safetensors"
    url = server.serve("x", content)
    if fault:
        with pytest.raises(DownloadFailed, match=fault):
            get(url, target=target, expect="weight")
        assert not target.exists()
    assert get(url, target=target, expect="any").size == len(content)
    assert (safetensors_fault(target) == "") == (fault == "")


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="a b.safetensors"', "a b.safetensors"),
        ("attachment; filename=plain.pt", "plain.pt"),
        ("attachment; filename=x.pt; filename*=UTF-8''caf%C3%A9.pt", "caf_.pt"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="..\\\\..\\\\evil.bin"', "evil.bin"),
        ("inline", "url.png"),
    ],
)
def test_takes_the_name_that_the_server_gives(
    server: FileServer, get: Callable[..., Fetched], disposition: str, name: str
) -> None:
    url = server.serve("url.png", BODY, headers={"Content-Disposition": disposition})
    assert get(url).name == name


def test_adds_an_extension_from_the_content_type(
    server: FileServer, get: Callable[..., Fetched]
) -> None:
    url = server.serve("image", BODY, headers={"Content-Type": "image/webp"})
    assert get(url + "?id=3").name == "image.webp"


@given(st.text())
def test_a_clean_name_is_always_one_safe_part_of_a_path(text: str) -> None:
    name = clean_name(text)
    assert 0 < len(name) <= 100
    assert not name.startswith(".")
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._ -")
    assert clean_name(name) == name


def test_a_clean_name_keeps_its_extension() -> None:
    assert clean_name("a" * 300 + ".safetensors") == "a" * 88 + ".safetensors"
    assert clean_name("..") == "file"
    assert clean_name(".png") == "png"


def test_decodes_data_urls(get: Callable[..., Fetched]) -> None:
    encoded = base64.b64encode(b"\x89PNG...").decode()
    fetched = get(f"data:image/png;base64,{encoded}")
    assert fetched.path.read_bytes() == b"\x89PNG..."
    assert fetched.name == "file.png"
    assert get("data:,hello%20there").path.read_bytes() == b"hello there"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x/y.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://x/y",
        "javascript:1",
        "http://",
        "http://[::1",
        "http://a b\x00c/",
        "data:nothing",
        "data:image/png;base64,%%%",
    ],
)
def test_refuses_urls_that_it_cannot_fetch(get: Callable[..., Fetched], url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        get(url)
    assert caught.value.problems[0].code == "bad_url"


def test_copies_local_files_only_where_that_is_allowed(
    get: Callable[..., Fetched], tmp_path: Path
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "w 1.bin").write_bytes(BODY)
    local = {"base": tmp_path, "allow_local": True}
    assert get("assets/w 1.bin", sha256=HASH, **local).name == "w 1.bin"
    assert get(f"file://{tmp_path}/assets/w%201.bin", sha256=HASH, **local).size == len(BODY)
    for url in ("../x", "assets/../../x", "file:../x", f"file://{tmp_path}/../x", "/etc/passwd"):
        with pytest.raises(InvalidInput, match="a path must"):
            get(url, **local)
    with pytest.raises(DownloadFailed, match="cannot be read"):
        get("assets/none.bin", **local)
    with pytest.raises(InvalidInput):
        get("assets/w 1.bin", base=tmp_path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:s3cret@host:8080/a/b.bin?token=s3cret#s3cret", "https://host:8080/a/b.bin"),
        ("http://[::1]:80/x?s3cret", "http://[::1]:80/x"),
        ("data:image/png;base64,s3cret", "data:image/png"),
        ("http://[s3cret", "an unreadable address"),
        ("http://h/a\nb", "http://h/ab"),
        ("https://me:12/SEC@RET@host/x?y", "https://host/x"),
    ],
)
def test_a_redacted_url_shows_no_secret(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_no_secret_is_logged_or_raised(
    server: FileServer, get: Callable[..., Fetched], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = server.serve("x", b"", status=500).replace("http://", "http://me:s3cret@")
    with pytest.raises(DownloadFailed) as caught:
        get(f"{url}?token=s3cret", credentials={"127.0.0.1": "s3cret"})
    assert server.asked[0].path == "x?token=s3cret"
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "urllib3" in {record.name.partition(".")[0] for record in caplog.records}
    assert "s3cret" not in caplog.text


def test_a_disk_that_refuses_is_reported(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("x", BODY)
    code = (
        "import sys, pathlib, comfy_runner.fetch.download as f, comfy_runner.errors as e\n"
        "try: f.fetch(sys.argv[1], pathlib.Path(sys.argv[2]))\n"
        "except e.DownloadFailed as err: print(err)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url, str(tmp_path / "x.bin")],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert "could not be stored" in done.stdout
    assert "Free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_exception_in_the_callback_leaves_nothing_behind(
    server: FileServer, get: Callable[..., Fetched], tmp_path: Path
) -> None:
    def strike(_done: int, _total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server.serve("x", BODY), progress=strike)
    assert list((tmp_path / "models").iterdir()) == []
