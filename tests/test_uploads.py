"""Files that a prediction gives by URL: fetched under our policy, and gone afterwards."""

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import coglet
import pytest
from cog import types
from cog_server import PROJECT, READY, CogServer, Reply, ServerFailed, settings
from fakes.file_server import FileServer, running
from graphs import node, picture
from saved_files import png

from comfy_runner.config import Config
from comfy_runner.errors import (
    CallerError,
    DownloadFailed,
    InvalidInput,
    Refused,
    StartFailed,
    TimedOut,
)
from comfy_runner.runs.files import GivenFile
from comfy_runner.serving import uploads

OPEN = Config(private_addresses=True)
MINUTE = 60.0
LIMIT = 50_000
"""Bytes that a file may have on the served model."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> Path:
    """Cog that hands URLs over; the folder for temporary files."""
    monkeypatch.setattr(types.Path, "validate", vars(types.Path)["validate"])  # to be put back
    uploads.take_over()
    return temporary


def prepared(**given: str) -> dict[str, Path]:
    """What Cog gives `run` for texts in fields of the type `Path`."""
    made = {field: types.Path.validate(text) for field, text in given.items()}
    return {f: p.convert() if isinstance(p, types.URLPath) else p for f, p in made.items()}


def received(given: dict[str, Path], **more: Any) -> dict[str, GivenFile]:
    return dict(uploads.received(given, **{"timeout": MINUTE, "config": OPEN, **more}))


def refused(given: dict[str, Path], kind: type[CallerError], **more: Any) -> list[tuple[str, str]]:
    """Code and field of each problem."""
    with pytest.raises(CallerError) as caught:
        received(given, **more)
    assert type(caught.value) is kind
    return [(problem.code, problem.input) for problem in caught.value.problems]


# Cog's part


def test_cog_fetches_nothing_and_removes_what_was_fetched(taken: Path, server: FileServer) -> None:
    url = server.serve("a/My%20Photo.PNG", b"1") + "?key=2"
    given = prepared(input_file=url)
    assert server.asked == []
    assert [*taken.iterdir()] == []

    file = received(given)["input_file"]
    assert file.name == "My Photo.PNG"
    assert file.path.read_bytes() == b"1"
    assert file.path.parent == taken
    given["input_file"].unlink(missing_ok=True)  # which Cog does at the end
    assert [*taken.iterdir()] == []


def test_what_is_sent_stays_cogs(taken: Path) -> None:
    given = prepared(input_file="data:text/plain;base64,Zm94", workflow_file="a.json")
    assert given["input_file"].read_bytes() == b"fox"
    assert given["input_file"].parent == taken
    assert given["workflow_file"] == types.Path("a.json")


def test_an_address_shows_no_secret(taken: Path) -> None:  # noqa: ARG001
    (address,) = prepared(x="https://me:s3cret@example.com/a.png?key=s3cret").values()
    assert str(address) == "https://example.com/a.png"
    assert "s3cret" not in repr(address)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a+b%2Fc.png?d.png#e.png", "c.png"),
        ("https://host/..%5C..%00%0a.png", ".png"),
        ("https://host/" + "x" * 300 + ".png", "x" * 196 + ".png"),
        ("https://host/a." + "x" * 300, "a." + "x" * 198),
        ("https://host/", "file"),
        ("https://host", "file"),
        ("http://[::1", "file"),
        ("HTTPS://host/%F0%9F%A6%8A.png", "\N{FOX FACE}.png"),
        ("https://host/%ff.png", "\N{REPLACEMENT CHARACTER}.png"),
    ],
)
def test_any_address_has_a_file_name(taken: Path, url: str, name: str) -> None:  # noqa: ARG001
    (address,) = prepared(x=url).values()
    assert isinstance(address, uploads.Address)
    assert address.filename.lstrip(".") == name.lstrip(".")


@pytest.mark.parametrize("version", ["0.22.1", "0.24.0", "1.0.0"])
def test_another_cog_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    before = types.Path.validate
    monkeypatch.setattr(coglet, "__version__", version)
    with pytest.raises(StartFailed, match=rf"coglet {version} .* Install cog and coglet 0\.23"):
        uploads.take_over()
    monkeypatch.undo()
    monkeypatch.setattr(uploads, "cog_version", version)
    with pytest.raises(StartFailed, match=f"cog {version} and coglet 0.23"):
        uploads.take_over()
    assert types.Path.validate == before


@pytest.mark.parametrize(
    ("owner", "part"),
    [(types.Path, "validate"), (types.URLPath, "convert"), (types.URLPath, "unlink")],
)
def test_a_cog_without_the_parts_is_refused(
    monkeypatch: pytest.MonkeyPatch, owner: type, part: str
) -> None:
    monkeypatch.delattr(owner, part)
    with pytest.raises(StartFailed, match="private addresses"):
        uploads.take_over()


# Ours


def test_files_come_in_the_order_of_their_fields(taken: Path, server: FileServer) -> None:  # noqa: ARG001
    for number in range(12):
        server.serve(f"{number}.png", bytes([number]))
    urls = [server.url(f"{number}.png") for number in range(12)]
    urls.insert(5, "data:image/png;base64,Zm94")
    given = prepared(**{f"input_files[{number}]": url for number, url in enumerate(urls)})
    files = received(given)
    assert [*files] == [*given]
    names = [f"{number}.png" for number in range(12)]
    names.insert(5, "file.png")
    assert [file.name for file in files.values()] == names
    assert [file.path.read_bytes() for file in files.values()][11:] == [b"\x0a", b"\x0b"]


def test_a_redirect_leads_only_where_a_url_may(taken: Path, server: FileServer) -> None:
    trusting = Config(hf_endpoint=server.url("").rstrip("/"))
    with running() as private:
        private.serve("a.png", b"secret")
        server.serve("moved.png", status=302, headers={"Location": private.url("a.png")})
        server.serve("local.png", status=302, headers={"Location": "file:///etc/hostname"})
        moved = prepared(input_file=server.url("moved.png"))
        assert refused(moved, Refused, config=trusting) == [("refused_url", "input_file")]
        with pytest.raises(DownloadFailed, match=r"^input_file: .* is no web address"):
            received(prepared(input_file=server.url("local.png")), config=trusting)
        assert private.asked == []
        assert [*taken.iterdir()] == []
        assert received(moved)["input_file"].path.read_bytes() == b"secret"


def test_all_urls_that_are_refused_are_told_at_once(taken: Path, server: FileServer) -> None:
    given = prepared(
        workflow_file="http://169.254.169.254/latest/meta-data",
        input_file="https://example.com:22/a.png",
        other=server.serve("a.png", b"1"),
    )
    assert refused(given, Refused, config=Config()) == [
        ("refused_url", "workflow_file"),
        ("refused_url", "input_file"),
        ("refused_url", "other"),
    ]
    hosts = Config(private_addresses=True, allowed_hosts=("*.example.com",))
    assert refused({"other": given["other"]}, Refused, config=hosts) == [("refused_url", "other")]
    assert server.asked == []
    assert [*taken.iterdir()] == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http://[::1", "http://me:s3cret@\u2100.com/a", "data:", "data:image/png"),
        *("data:;base64,a", "data:text/plain;base64,abcde", "data://host"),
    ],
)
def test_a_url_that_cannot_be_used_is_its_fields_fault(taken: Path, url: str) -> None:  # noqa: ARG001
    assert refused(prepared(input_file=url), InvalidInput) == [("bad_url", "input_file")]


def test_a_file_may_be_as_large_as_the_limit(taken: Path, server: FileServer) -> None:
    fits = server.serve("fits.png", b"x" * 1000)
    large = server.serve("large.png", b"x" * 1001)
    endless = server.serve("endless.png", b"x" * 100_000, length=False)
    small = replace(OPEN, max_input_bytes=1000)
    assert received(prepared(a=fits), config=small)["a"].path.stat().st_size == 1000
    for url in (large, endless):
        with_one = prepared(a=url)
        assert refused(with_one, InvalidInput, config=small) == [("file_too_large", "a")]
    assert len([*taken.iterdir()]) == 1


def test_more_urls_than_allowed_are_not_asked_for(taken: Path, server: FileServer) -> None:  # noqa: ARG001
    url = server.serve("a.png", b"1")
    given = prepared(**{f"input_files[{number}]": url for number in range(3)})
    two = replace(OPEN, max_urls=2)
    assert refused(given, InvalidInput, config=two) == [("too_many_urls", "")]
    assert server.asked == []
    assert len(received(given, config=replace(OPEN, max_urls=3))) == 3


def test_one_that_fails_ends_the_others_and_nothing_stays(taken: Path, server: FileServer) -> None:
    slow = server.serve("slow.bin", b"x" * 10_000, hold_after=50)
    given = prepared(a=server.serve("good.png", b"1"), b=server.url("gone.png?key=s3cret"), c=slow)
    with pytest.raises(DownloadFailed, match=r"^b: http.*gone\.png could not .* no such file"):
        received(given)
    assert server.sent < 1000  # nobody waited for the slow one
    for path in given.values():
        path.unlink(missing_ok=True)  # which Cog does, whether a file is there or not
    assert [*taken.iterdir()] == []


def test_a_silent_server_is_given_up_on(taken: Path, server: FileServer) -> None:
    slow = server.serve("slow.bin", b"x" * 100, hold_after=0)
    with pytest.raises(TimedOut, match=r"behind input_file did not arrive within 0\.3 s"):
        received(prepared(input_file=slow), timeout=0.3)
    assert server.sent == 0
    assert [*taken.iterdir()] == []


def test_a_web_page_is_no_input_but_may_be_told_to_be_no_workflow(
    taken: Path,  # noqa: ARG001
    server: FileServer,
) -> None:
    page = server.serve("a.png", b"<html>Log in", headers={"Content-Type": "text/html"})
    with pytest.raises(DownloadFailed, match=r"^input_file: .* web page"):
        received(prepared(input_file=page))
    assert received(prepared(workflow_file=page))["workflow_file"].name == "a.png"


def test_what_is_no_file_is_told_before_anything_is_fetched(
    taken: Path, server: FileServer
) -> None:
    url = server.serve("a.png", b"1")
    given = prepared(a=url, b="/etc/hostname", c=str(taken / "tmpabcdefgh.png"))
    assert refused(given, InvalidInput) == [("bad_input", "b"), ("bad_input", "c")]
    assert server.asked == []


# Through the served model


@dataclass(frozen=True)
class Served:
    """The model that is shipped, with the settings that it is shipped with, and two web servers."""

    model: CogServer
    public: FileServer
    """One that counts as public, for the settings name it."""
    private: FileServer
    temporary: Path

    def predict(self, **given: Any) -> Reply:
        return self.model.predict(given, timeout=120)

    @property
    def left(self) -> list[str]:
        """What fetching has left in the folder for temporary files."""
        names = [path.name for path in self.temporary.iterdir()]
        return [name for name in names if name.startswith("tmp") or name.endswith(".part")]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
    comfyui_tree: Path,  # noqa: ARG001
) -> Iterator[Served]:
    """The served model, ready."""
    temporary = tmp_path_factory.mktemp("temporary")
    with running() as public, running() as private:
        environment = settings(
            tmp_path_factory.mktemp("home"),
            COMFY_RUNNER_HF_ENDPOINT=public.url("").rstrip("/"),
            COMFY_RUNNER_MAX_INPUT_BYTES=str(LIMIT),
            TMPDIR=str(temporary),
        )
        private.serve("a.png", png({}))
        public.serve("My%20Photo.png", png({}))
        public.serve("flow.json", json.dumps(picture()).encode())
        public.serve("large.png", b"x" * (LIMIT + 1))
        public.serve("empty.png")
        public.serve("moved.png", status=302, headers={"Location": private.url("a.png")})
        with CogServer(PROJECT, environment) as model:
            model.wait_ready(READY)
            yield Served(model, public, private, temporary)


def test_files_behind_urls_reach_the_workflow_and_are_gone_afterwards(served: Served) -> None:
    document = {
        "1": node("LoadImage", image="input.png"),
        "2": node("LoadImage", image="My Photo.png"),
        "3": node("SaveImage", images=["1", 0], filename_prefix="a"),
        "4": node("SaveImage", images=["2", 0], filename_prefix="b"),
    }
    served.public.serve("flow2.json", json.dumps(document).encode())
    reply = served.predict(
        workflow_file=served.public.url("flow2.json"),
        input_file=served.public.url("My%20Photo.png?key=1"),
        input_files=[served.public.url("flow.json"), "data:text/plain;base64,Zm94"],
    )
    assert reply.body["status"] == "succeeded", reply.body
    assert len(reply.body["output"]) == 2
    assert served.left == []


FIELDS = ["workflow_file", "input_file", "input_files"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("private:a.png", "it leads to this machine or a private network. Use a public address"),
        ("moved.png", "it leads to this machine or a private network. Use a public address"),
        ("large.png", f"is larger than the limit of {LIMIT} bytes."),
        ("gone.png", "could not be fetched: there is no such file (HTTP 404)."),
        ("empty.png", "could not be fetched: the file is empty."),
    ],
)
def test_a_file_that_is_not_fetched_is_told_by_its_field(
    served: Served, field: str, name: str, says: str
) -> None:
    place = served.private if name.startswith("private:") else served.public
    url = place.url(name.removeprefix("private:")) + "?key=s3cret"
    given: dict[str, Any] = {field: url}
    if field == "input_files":
        given = {field: [served.public.url("My%20Photo.png"), url]}
    if field != "workflow_file":
        given["workflow_json"] = json.dumps(picture())
    reply = served.predict(**given)
    assert (reply.status, reply.body["status"]) == (200, "failed")
    assert says in reply.body["error"]
    assert ("input_files[1]" if field == "input_files" else field) in reply.body["error"]
    assert "s3cret" not in json.dumps(reply.body)
    assert served.private.asked == []
    assert served.left == []


def test_a_cancel_does_not_wait_for_a_silent_server(served: Served) -> None:
    silent = served.public
    silent.serve("silent.png", b"x" * 100, hold_after=0)
    before = silent.sent
    document = json.dumps(picture())
    given = {"workflow_json": document, "input_files": [silent.url("silent.png")] * 3}
    events = served.model.stream(given, 60, prediction_id="silent")
    assert next(events)[0] == "start"
    assert silent.holding.wait(30)
    assert served.model.cancel("silent") == 200
    (ended,) = [content for name, content in events if name == "completed"]
    assert ended["status"] == "canceled"
    assert silent.sent == before  # the server has not even begun to answer
    assert served.left == []
    assert served.predict(workflow_json=document).body["status"] == "succeeded"


def test_a_model_on_another_cog_does_not_start(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / ".cog", tmp_path / ".cog")
    text = (PROJECT / "predict.py").read_text("utf-8")
    line = "        self.runner, self.trained = serving.start(weights)\n"
    assert line in text
    changed = text.replace(line, f"        del cog.types.URLPath.convert\n{line}")
    (tmp_path / "predict.py").write_text(changed, "utf-8")
    environment = {"PYTHONPATH": str(PROJECT)}
    with (
        CogServer(tmp_path, environment) as model,
        pytest.raises(ServerFailed, match=r"StartFailed: Nothing would keep the URLs"),
    ):
        model.wait_ready(60)


def test_a_list_with_a_text_among_urls_is_refused(served: Served) -> None:
    """Cog 0.23 hands such a list over as it is, and removes nothing of it."""
    urls = [served.public.url("flow.json"), "/etc/hostname"]
    reply = served.predict(workflow_json=json.dumps(picture()), input_files=urls)
    assert "input_files[1]" in reply.body["error"]
    assert "input_files[0]" not in reply.body["error"]
    assert served.left == []


def test_a_file_that_is_sent_has_the_same_limit(served: Served) -> None:
    for more, status in ((0, "succeeded"), (1, "failed")):
        content = base64.b64encode(b"x" * (LIMIT + more)).decode()
        given = {"input_file": f"data:application/octet-stream;base64,{content}"}
        reply = served.predict(workflow_json=json.dumps(picture()), **given)
        assert reply.body["status"] == status, reply.body
        assert served.left == []
    assert f"input input_file: It has more than the limit of {LIMIT}" in reply.body["error"]
