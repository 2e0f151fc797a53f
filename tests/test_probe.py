"""What `probe` finds out about a file, and what it refuses."""

import base64
import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from fakes.file_server import FileServer, Served, running

from comfy_runner.errors import Cancelled, DownloadFailed, InvalidInput
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.probe import Unreachable, probe
from comfy_runner.fetch.transfer import Remote

BODY = bytes(range(256)) * 40
HASH = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(stall=0.3, retries=3, backoff=0.01)


def look(url: str, **options: object) -> Remote:
    given = {"credentials": {}, "cancelled": threading.Event(), "patience": QUICK}
    return probe(url, **{**given, **options})


def test_finds_size_name_and_how_to_go_on(server: FileServer) -> None:
    url = server.serve("a/model%20one.safetensors", BODY, ranges=True, etag='"v1"')
    found = look(url)
    assert (found.url, found.final_url) == (url, url)
    assert (found.size, found.ranges) == (len(BODY), True)
    assert (found.validator, found.version) == ('"v1"', '"v1"')
    assert (found.name, found.sha256, found.private) == ("model one.safetensors", None, False)
    assert [asked.headers["Range"] for asked in server.asked] == ["bytes=0-0"]


@pytest.mark.parametrize(
    ("how", "size", "version"),
    [
        ({}, len(BODY), str(len(BODY))),
        ({"etag": '"v1"'}, len(BODY), '"v1"'),
        ({"length": False}, None, ""),
        ({"chunked": True, "etag": '"v1"'}, None, '"v1"'),
        ({"headers": {"Content-Encoding": "gzip"}}, None, ""),
    ],
)
def test_takes_what_a_server_without_ranges_says(
    server: FileServer, how: dict[str, object], size: int | None, version: str
) -> None:
    found = look(server.serve("x", BODY, **how))
    assert (found.size, found.ranges, found.version) == (size, False, version)


@pytest.mark.parametrize(
    ("headers", "validator", "version"),
    [
        ({"ETag": 'W/"1"'}, "", 'W/"1"'),
        ({"ETag": 'W/"1"', "Last-Modified": "yesterday"}, "yesterday", 'W/"1"'),
        ({"Last-Modified": "yesterday"}, "yesterday", "yesterday"),
        ({"ETag": '"1"', "Content-Encoding": "br"}, "", '"1"'),
    ],
)
def test_a_weak_tag_does_not_validate_a_range(
    server: FileServer, headers: dict[str, str], validator: str, version: str
) -> None:
    found = look(server.serve("x", BODY, ranges=True, headers=headers))
    assert (found.validator, found.version) == (validator, version)


def test_another_range_than_the_one_asked_for_is_none(server: FileServer) -> None:
    found = look(server.serve("x", BODY, ranges=True, shifted=3, short=1))
    assert (found.size, found.ranges) == (len(BODY), False)


def test_reads_what_hugging_face_says_with_its_redirect(server: FileServer) -> None:
    server.serve("blob", BODY, ranges=True, etag='"of the store"')
    url = server.serve(
        "o/r/resolve/main/m.safetensors",
        status=302,
        headers={
            "Location": "/blob?X-Amz-Signature=1",
            "X-Linked-Etag": f'"{HASH}"',
            "X-Linked-Size": "7",
            "X-Repo-Commit": "c" * 40,
            "X-Xet-Hash": "d" * 64,
        },
    )
    found = look(url)
    assert (found.sha256, found.commit, found.xet) == (HASH, "c" * 40, True)
    assert found.size == len(BODY), "what the store says about itself counts more"
    assert (found.validator, found.version) == ('"of the store"', f'"{HASH}"')
    assert found.final_url == server.url("blob?X-Amz-Signature=1")
    assert found.name == "m.safetensors"
    assert not found.private


def test_the_tag_of_a_small_file_on_hugging_face_is_no_sha256(server: FileServer) -> None:
    headers = {"X-Linked-Etag": '"' + "a" * 40 + '"', "X-Linked-Size": "77"}
    found = look(server.serve("x", BODY, length=False, headers=headers))
    assert (found.sha256, found.size) == (None, 77)


def test_reads_the_checksum_of_s3_unless_it_is_one_of_pieces(server: FileServer) -> None:
    coded = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    whole = server.serve("x", BODY, headers={"x-amz-checksum-sha256": coded})
    assert look(whole).sha256 == HASH
    pieces = server.serve("y", BODY, headers={"x-amz-checksum-sha256": f"{coded}-3"})
    assert look(pieces).sha256 is None


def test_a_token_goes_to_its_host_only(server: FileServer) -> None:
    server.serve("there", BODY)
    away = {"Location": server.url("there", host="localhost")}
    url = server.serve("x", status=302, headers=away)
    found = look(url, credentials={"127.0.0.1": "s3cret", "localhost": "other"})
    sent = [asked.headers.get("Authorization") for asked in server.asked]
    assert sent == ["Bearer s3cret", None]
    assert (found.authorization, found.private) == ("", True)

    stays = look(server.serve("y", BODY), credentials={"127.0.0.1": "s3cret"})
    assert (stays.authorization, stays.private) == ("Bearer s3cret", True)


@pytest.mark.parametrize(
    ("query", "private"),
    [
        ("", False),
        ("?download=true", False),
        ("?X-Amz-Signature=1", True),
        ("?x-goog-signature=1", True),
        ("?sv=1&sig=2", True),
        ("?token=1", True),
    ],
)
def test_knows_a_signed_address(server: FileServer, query: str, private: bool) -> None:
    server.serve("x", BODY)
    assert look(server.url("x") + query).private is private


def test_user_and_password_do_not_stay_in_the_url(server: FileServer) -> None:
    server.serve("x", BODY)
    found = look(f"http://me:s3cret@127.0.0.1:{server.port}/x")
    assert (found.url, found.private) == (server.url("x"), True)
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (401, {}, "127.0.0.1 refused access .* Give a token for 127.0.0.1"),
        (403, {"X-Error-Code": "GatedRepo"}, "GatedRepo.* Accept the model's licence"),
        (
            404,
            {"X-Error-Code": "EntryNotFound", "X-Error-Message": "No such entry."},
            "EntryNotFound: No such entry",
        ),
        (410, {}, "no such file"),
        (418, {}, "HTTP 418"),
    ],
)
def test_says_why_a_server_refuses(
    server: FileServer, status: int, headers: dict[str, str], text: str
) -> None:
    url = server.serve("x", b"no", status=status, headers=headers)
    with pytest.raises(DownloadFailed, match=text) as caught:
        look(f"{url}?download=s3cret")
    assert "s3cret" not in str(caught.value)
    assert len(server.asked) == 1


def test_a_refused_token_and_an_expired_signature_have_cures_of_their_own(
    server: FileServer,
) -> None:
    url = server.serve("x", b"no", status=403)
    with pytest.raises(DownloadFailed, match=r"token for 127\.0\.0\.1 may be wrong"):
        look(url, credentials={"127.0.0.1": "s3cret"})
    with pytest.raises(DownloadFailed, match="may have expired"):
        look(f"{url}?X-Amz-Signature=1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_asks_again_where_that_may_help(server: FileServer, status: int) -> None:
    busy = [Served(b"", status=status, headers={"Retry-After": "0"})]
    assert look(server.serve("x", BODY, failures=busy)).size == len(BODY)
    with pytest.raises(Unreachable, match=f"HTTP {status}.*Gave up after 4 attempts"):
        look(server.serve("y", b"", status=status))


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with running() as gone:
        url = gone.url("x?token=s3cret")
    with pytest.raises(Unreachable, match="connection refused") as caught:
        look(url)
    assert "s3cret" not in str(caught.value)


def test_refuses_a_redirect_loop_and_one_to_a_local_file(server: FileServer) -> None:
    with pytest.raises(DownloadFailed, match="more than 10 times"):
        look(server.serve("x", status=302, headers={"Location": "/x"}))
    assert len(server.asked) == 11
    with pytest.raises(DownloadFailed, match="no web address"):
        look(server.serve("y", status=302, headers={"Location": "file:///etc/passwd"}))


def test_refuses_a_login_page_but_not_a_model_that_is_called_one(server: FileServer) -> None:
    page = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(DownloadFailed, match="web page"):
        look(server.serve("x", b"<p>Log in</p>", headers=page))
    attached = {**page, "Content-Disposition": 'attachment; filename="a.safetensors"'}
    assert look(server.serve("y", BODY, headers=attached)).name == "a.safetensors"
    other = {**page, "Content-Disposition": 'attachment; filename="a.html"'}
    with pytest.raises(DownloadFailed, match="web page"):
        look(server.serve("z", BODY, headers=other))


@pytest.mark.parametrize(
    "served",
    [
        Served(b""),
        Served(b"", status=416, headers={"Content-Range": "bytes */0"}),
    ],
)
def test_an_empty_file_is_no_file(server: FileServer, served: Served) -> None:
    server.files["x"] = served
    with pytest.raises(DownloadFailed, match="is empty"):
        look(server.url("x"))


def test_asks_without_a_range_where_a_range_is_refused(server: FileServer) -> None:
    found = look(server.serve("x", BODY, failures=[Served(b"", status=416)]))
    assert (found.size, found.ranges) == (len(BODY), False)


@pytest.mark.parametrize("url", ["", "x/y", "ftp://h/x", "http://", "http://[::1", "data:,x"])
def test_refuses_urls_that_it_cannot_ask(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        look(url)
    assert caught.value.problems[0].code == "bad_url"


@pytest.fixture
def silent() -> Iterator[tuple[str, threading.Event]]:
    """The port of a server that takes connections and says nothing, and its first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connected = threading.Event()
        ended = threading.Event()

        def take() -> None:
            with listening.accept()[0]:
                connected.set()
                ended.wait(30)

        thread = threading.Thread(target=take)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", connected
        if not connected.is_set():
            socket.create_connection(listening.getsockname()).close()
        ended.set()
        thread.join(10)


@pytest.mark.parametrize("kind", ["http", "https"])
def test_can_be_cancelled_at_a_server_that_says_nothing(
    silent: tuple[str, threading.Event], kind: str
) -> None:
    place, connected = silent
    cancelled = threading.Event()
    outcomes: list[BaseException] = []

    def work() -> None:
        try:
            look(f"{kind}://{place}/x", cancelled=cancelled, patience=Patience(stall=1000))
        except Cancelled as err:
            outcomes.append(err)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert connected.wait(10)
    cancelled.set()
    thread.join(10)
    assert [type(err) for err in outcomes] == [Cancelled]


def test_no_secret_is_logged_or_raised(
    server: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = server.serve("x", b"", status=500).replace("http://", "http://me:s3cret@")
    attempt: Callable[[], Remote] = lambda: look(  # noqa: E731
        f"{url}?token=s3cret", credentials={"127.0.0.1": "s3cret"}
    )
    with pytest.raises(DownloadFailed) as caught:
        attempt()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None
    assert "s3cret" not in caplog.text
