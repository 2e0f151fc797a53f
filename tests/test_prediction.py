"""A prediction's inputs as a request, and a run's updates as log lines and metrics."""

import base64
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any

import cog
import pytest
from fakes.file_server import FileServer
from graphs import bundled, catalog, picture
from saved_files import png

from comfy_runner.config import Config
from comfy_runner.errors import CallerError, DownloadFailed, InvalidInput, InvalidWorkflow, Refused
from comfy_runner.graph.document import MAX_DOCUMENT_BYTES, is_editor
from comfy_runner.runs.events import Progress
from comfy_runner.runs.files import GivenFile
from comfy_runner.runs.plan import Plan, prepare
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Planned, Request, Update
from comfy_runner.serving import prediction
from comfy_runner.serving.prediction import Narrator, metrics
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.progress import Downloading, Meter

DOCUMENT = json.dumps(picture())

Upload = Callable[..., Path]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, where Cog puts what it was sent."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def upload() -> Upload:
    """A file as Cog makes it of a caller's URL or data URI."""

    def call(content: bytes, url: str = "") -> Path:
        data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        made = cog.Path.validate(data)
        assert isinstance(made, cog.types.URLPath)
        if url:
            made.filename = cog.types.get_filename(url)
        return made.convert()

    return call


def request(**given: Any) -> Request:
    """The request of these inputs and the defaults of the others."""
    defaults: dict[str, Any] = {
        "workflow_json": "" if "workflow_file" in given else DOCUMENT,
        "workflow_file": None,
        "prefer": "prompt",
        "inputs": "",
        "input_file": None,
        "input_files": None,
        "seed": None,
        "randomise_seeds": True,
        "output_format": "original",
        "output_quality": 95,
        "return_temp_files": False,
        "all_outputs": False,
        "receipt": False,
        "force_reset_cache": False,
        "timeout": None,
        "hf_token": None,
        "civitai_token": None,
        "config": Config(private_addresses=True),
    }
    return prediction.request(**{**defaults, **given})


def problem(kind: type[CallerError], **given: Any) -> Any:
    with pytest.raises(CallerError) as caught:
        request(**given)
    assert type(caught.value) is kind
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def data_uri(content: bytes, kind: str = "application/json") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# The workflow


def test_plain_inputs_go_where_they_belong() -> None:
    made = request(
        seed=5,
        randomise_seeds=False,
        output_format="webp",
        output_quality=80,
        return_temp_files=True,
        all_outputs=True,
        force_reset_cache=True,
        timeout=12.5,
    )
    assert replace(made, started=None) == Request(
        document=picture(),
        seed=5,
        randomise_seeds=False,
        output_format="webp",
        output_quality=80,
        previews=True,
        all_outputs=True,
        reset_cache=True,
        timeout=12.5,
    )


def test_whole_numbers_are_integers_however_they_are_written() -> None:
    """2.0 is an integer to JSON Schema, and Cog 0.23 hands it over as the float that it was."""
    made = request(seed=1e19, output_quality=50.0)
    assert (made.seed, made.output_quality) == (10**19, 50)
    assert {type(made.seed), type(made.output_quality)} == {int}


def test_a_time_longer_than_any_is_a_limit_too(server: FileServer, upload: Upload) -> None:
    url = server.serve("workflow.json", DOCUMENT.encode())
    made = request(workflow_json=url, input_file=upload(b"1"), timeout=1e308)
    assert made.timeout == TIMEOUT_MAX


def test_the_workflow_comes_as_text_data_uri_url_or_file(
    server: FileServer, upload: Upload
) -> None:
    body = DOCUMENT.encode()
    url = server.serve("workflow.json", body) + "?key=1"
    for given in (
        {"workflow_json": f"\n {DOCUMENT}\n"},
        {"workflow_json": data_uri(body)},
        {"workflow_json": f" {data_uri(body, 'text/plain')} "},
        {"workflow_json": url},
        {"workflow_file": upload(body, "https://host/workflow.json")},
    ):
        assert request(**given).document == picture()


@pytest.mark.parametrize("given", ["", " \n\t"])
def test_no_workflow_is_told(given: str) -> None:
    assert problem(InvalidWorkflow, workflow_json=given).code == "no_workflow"


@pytest.mark.parametrize("given", ["data:application/json;base64,", "data:,", "DATA:, "])
def test_an_empty_data_uri_is_the_caller_s_fault(given: str) -> None:
    found = problem(InvalidWorkflow, workflow_json=given)
    assert (found.code, found.input) == ("empty_document", "workflow_json")


def test_two_workflows_are_one_too_many(upload: Upload) -> None:
    found = problem(InvalidInput, workflow_json=DOCUMENT, workflow_file=upload(DOCUMENT.encode()))
    assert (found.code, found.input) == ("bad_input", "workflow_file")


def test_a_saved_file_is_read_and_the_caller_chooses_its_graph(
    server: FileServer, upload: Upload
) -> None:
    editor = {"nodes": [], "links": [], "version": 0.4}
    saved = png({"prompt": DOCUMENT, "workflow": json.dumps(editor)})
    for given in (
        {"workflow_file": upload(saved, "https://host/picture.png")},
        {"workflow_json": server.serve("picture.png", saved)},
        {"workflow_json": data_uri(saved, "image/png")},
    ):
        assert request(**given).document == picture()
        document = request(**given, prefer="workflow").document
        assert isinstance(document, dict)
        assert is_editor(document)
    found = problem(InvalidWorkflow, workflow_file=upload(png({})))
    assert (found.code, found.input) == ("no_embedded_workflow", "workflow_file")


def test_a_workflow_that_is_too_big_is_refused(server: FileServer, temporary: Path) -> None:
    big = temporary / "tmpabcdefghbig.json"
    big.write_bytes(b"{" + b" " * MAX_DOCUMENT_BYTES)
    for given in (
        {"workflow_file": big},
        {"workflow_json": "{" + " " * MAX_DOCUMENT_BYTES + "}"},
        {"workflow_json": server.serve("big.json", big.read_bytes())},
    ):
        found = problem(InvalidWorkflow, **given)
        assert (found.code, found.input) == ("document_too_big", next(iter(given)))
        assert "has more than the 34 MB" in found.what
    saved = png({"prompt": DOCUMENT})
    url = server.serve("picture.png", saved)
    small = Config(private_addresses=True, max_input_bytes=len(saved) - 1)
    found = problem(InvalidInput, workflow_json=url, config=small)
    assert (found.code, found.input) == ("file_too_large", "workflow_json")


def test_a_workflow_s_url_may_not_lead_to_this_machine(server: FileServer) -> None:
    url = server.serve("picture.png", png({"prompt": DOCUMENT}))
    for field in ("workflow_json", "inputs"):
        found = problem(Refused, **{field: url}, config=Config())
        assert (found.code, found.input) == ("refused_url", field)
    assert server.asked == []


@pytest.mark.parametrize("url", ["https://", "http://[::1", "data:application/json;base64,!!"])
def test_a_url_that_cannot_be_used_is_the_field_s_fault(url: str) -> None:
    for field in ("workflow_json", "inputs"):
        found = problem(InvalidInput, **{field: url})
        assert (found.code, found.input) == ("bad_url", field)


def test_a_workflow_that_cannot_be_fetched_may_be_asked_for_again(server: FileServer) -> None:
    with pytest.raises(DownloadFailed, match="no such file"):
        request(workflow_json=server.url("gone.json?key=s3cret"))


def test_nothing_that_was_fetched_stays_behind(server: FileServer, temporary: Path) -> None:
    request(workflow_json=server.serve("a.json", DOCUMENT.encode()), inputs=data_uri(b"{}"))
    problem(InvalidInput, workflow_json="https://")
    assert list(temporary.iterdir()) == []


# Values


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("", {}),
        ("  ", {}),
        ("{}", {}),
        ('{"6.text": "a fox", "KSampler.steps": 20}', {"6.text": "a fox", "KSampler.steps": 20}),
        (data_uri(b'{"6.text": "a fox"}'), {"6.text": "a fox"}),
        (data_uri(b" \n"), {}),
        (data_uri(b""), {}),
        ('{"1.image": "data:image/png;base64,Zm94"}', {"1.image": "data:image/png;base64,Zm94"}),
    ],
)
def test_values_are_an_object(given: str, values: dict[str, Any]) -> None:
    assert request(inputs=given).values == values


def test_values_come_from_a_url_too(server: FileServer) -> None:
    assert request(inputs=server.serve("values.json", b'{"a": 1}')).values == {"a": 1}


@pytest.mark.parametrize(
    "given",
    [
        "{",
        "6.text=a fox",
        "[]",
        "3",
        "null",
        '"text"',
        "[" * 100_000,
        "9" * 5_000,
        data_uri(b"\xff\xfe"),
        data_uri(b"[1]"),
    ],
)
def test_broken_values_are_refused_with_an_example(given: str) -> None:
    found = problem(InvalidInput, inputs=given)
    assert (found.code, found.input) == ("bad_input", "inputs")
    assert '"KSampler.steps": 20' in found.hint


# Files


def test_files_have_the_names_that_the_caller_gave_them(upload: Upload) -> None:
    first = upload(b"1", "https://host/a/My%20Photo.PNG?x=1")
    second = upload(b"2", "https://host/b.wav")
    made = request(input_file=first, input_files=[second])
    assert made.files == (
        GivenFile(first, "My Photo.PNG", alias="input.png"),
        GivenFile(second, "b.wav"),
    )

    assert first.name != "My Photo.PNG"


def test_files_of_one_name_are_numbered(upload: Upload) -> None:
    uris = [upload(bytes([number])) for number in range(3)]
    made = request(input_file=uris[0], input_files=uris[1:])
    assert [file.name for file in made.files] == ["file.png", "file-2.png", "file-3.png"]
    assert made.files[0].alias == "input.png"


def test_a_data_uri_has_a_name_too(upload: Upload) -> None:
    made = upload(b"1")
    assert request(input_files=[made]).files == (GivenFile(made, "file.png"),)


def test_a_name_that_only_looks_like_cog_s_is_kept_where_nothing_else_is_left(
    temporary: Path,
) -> None:
    bare = temporary / "tmpabcdefgh"
    bare.write_bytes(b"x")
    assert request(input_file=bare).files == (GivenFile(bare, "tmpabcdefgh", alias="input"),)


FIELDS = ["workflow_file", "input_file", "input_files"]


def given_in(field: str, value: object) -> dict[str, object]:
    return {field: [value] if field == "input_files" else value}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("text", ["/etc/hostname", "file:///etc/hostname", "", "fox.png", 3])
def test_text_is_no_file(field: str, text: object) -> None:
    found = problem(InvalidInput, **given_in(field, text))
    assert found.code == "bad_input"
    assert found.input.startswith(field)


@pytest.mark.parametrize("field", FIELDS)
def test_files_of_this_machine_are_refused(field: str, temporary: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text(DOCUMENT)
    link, linked_folder = temporary / "link.json", temporary / "folder"
    link.symlink_to(outside)
    linked_folder.symlink_to(tmp_path)
    inside, stranger = temporary / "tmpabcdefghreal.json", temporary / "real.json"
    inside.write_text(DOCUMENT)
    stranger.write_text(DOCUMENT)  # of another program
    link_inside = temporary / "inside.json"
    link_inside.symlink_to(inside)
    for path in (
        outside,
        link,
        linked_folder / "secret.json",
        temporary / ".." / "secret.json",
        link_inside,
        stranger,
        temporary,
        temporary / "gone.json",
        Path("/dev/null"),
    ):
        assert problem(InvalidInput, **given_in(field, path)).input.startswith(field)
    request(**given_in(field, inside))


def test_every_file_that_is_none_is_told(upload: Upload) -> None:
    # One plain text in a list keeps Cog from fetching the others.
    waiting = cog.Path.validate("data:text/plain,fox")
    with pytest.raises(InvalidInput) as caught:
        request(input_files=[upload(b"1"), "/etc/hostname", waiting])
    assert [found.input for found in caught.value.problems] == ["input_files[1]", "input_files[2]"]


# Tokens


def test_a_token_goes_to_its_host_alone() -> None:
    made = request(hf_token=cog.Secret(" hf_fox\n"), civitai_token=cog.Secret("owl"))
    assert made.credentials == {"huggingface.co": "hf_fox", "civitai.com": "owl"}


@pytest.mark.parametrize("empty", [None, cog.Secret(), cog.Secret(""), cog.Secret(" \n")])
def test_an_empty_token_is_none(empty: object) -> None:
    assert request(hf_token=empty).credentials == {}


@pytest.mark.parametrize("token", ["one two", "one\ntwo", "füchse", "a\0b"])
def test_a_token_that_fits_no_header_is_refused_and_not_shown(token: str) -> None:
    found = problem(InvalidInput, hf_token=cog.Secret(token))
    assert found.input == "hf_token"
    assert token not in str(found)


# Telling


def planned(seed: int | None = 2**63) -> Plan:
    return prepare(
        bundled("text_to_picture"),
        catalog=catalog(),
        manifest=Manifest.parse(
            {
                "version": 1,
                "weights": [
                    {"name": name, "folders": [folder], "urls": ["https://host/x"], **more}
                    for folder, name, more in [
                        ("diffusion_models", "x.ckpt", {"aliases": ["old.ckpt"]}),
                        ("text_encoders", "x.ckpt", {}),
                        ("vae", "x.ckpt", {}),
                    ]
                ],
            }
        ),
        on_disk=lambda _folder, _shape: (),
        values={"1.unet_name": "old.ckpt", "2.clip_name": "x.ckpt", "3.vae_name": "x.ckpt"},
        seed=seed,
    )


def told(*updates: Update) -> tuple[list[str], list[tuple[str, Any]]]:
    """The lines and the metrics, from one narrator."""
    recorded: list[tuple[str, Any]] = []
    narrator = Narrator(lambda name, value: recorded.append((name, value)))
    with redirect_stdout(StringIO()) as out:
        for update in updates:
            narrator.tell(update)
    assert out.getvalue() == "" or out.getvalue().endswith("\n")
    return out.getvalue().splitlines(), recorded


def test_a_plan_is_told_with_its_notes_and_seeds() -> None:
    lines, recorded = told(Planned("run-1", planned()))
    assert lines == [
        "Run run-1: 9 nodes.",
        "Node 1 (Diffusion model) names the model 'old.ckpt', which is 'x.ckpt' here.",
        f"Seed 7.seed = {2**63}",
    ]
    # A number this large would lose its last digits in a browser.
    assert dict(recorded) == {
        "run_id": "run-1",
        "seed": str(2**63),
        "seeds": {"7.seed": str(2**63)},
    }


def test_a_seed_that_every_reader_can_hold_stays_a_number() -> None:
    assert metrics(Planned("run-1", planned(2**53)))["seed"] == 2**53


def test_a_plan_without_seeds_has_no_metric_for_one() -> None:
    plain = prepare(
        picture(), catalog=catalog(), manifest=Manifest(), on_disk=lambda _folder, _shape: ()
    )
    assert metrics(Planned("run-1", plain)) == {"run_id": "run-1", "seeds": {}}


def test_results_and_the_end_are_told() -> None:
    lines, recorded = told(
        Output(Path("/results/9_Save_fox.png"), "9", "Save"),
        Finished(
            {"prepare": 0.011, "fetch": 2.0, "run": 2.5},
            9,
            4,
            1,
            fetched_bytes=5_000_000,
            fetched_files=2,
        ),
    )
    assert lines == [
        "Made 9_Save_fox.png (node 9, Save)",
        "Done: 1 result, 4 of 9 nodes from the cache (prepare 0.01 s, fetch 2.00 s, run 2.50 s).",
    ]
    assert dict(recorded) == {
        "progress": 1.0,
        "outputs": 1,
        "nodes": 9,
        "nodes_cached": 4,
        "fetched_bytes": 5_000_000,
        "fetch_rate": 2_500_000,
        "files_fetched": 2,
        "prepare_seconds": 0.011,
        "fetch_seconds": 2.0,
        "run_seconds": 2.5,
    }


def test_every_node_is_told_once_with_its_last_step() -> None:
    updates = [Progress("7", "Sampler", 3, 9, step, 2000) for step in range(2001)]
    lines, recorded = told(Progress("4", "Prompt", 2, 9), *updates, Progress("8", "Decode", 4, 9))
    assert lines[0] == "2 of 9 nodes done; node 4 (Prompt)"
    assert lines[1] == "3 of 9 nodes done; node 7 (Sampler), step 0 of 2000"
    assert lines[-2] == "3 of 9 nodes done; node 7 (Sampler), step 2000 of 2000"
    assert lines[-1] == "4 of 9 nodes done; node 8 (Decode)"
    assert len(lines) < 500
    progress = [value for _, value in recorded]
    assert progress == sorted(progress)
    assert progress[0] == pytest.approx(2 / 9, abs=1e-4)
    assert progress[1000 + 1] == pytest.approx(3.5 / 9, abs=1e-4)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fetching(seconds: int, files: int) -> list[tuple[list[str], dict[str, Any]]]:
    """What is told in each tenth of a second: 10 MB/s for each file of so many seconds."""
    clock = Clock()
    meter = Meter(clock)
    recorded: dict[str, Any] = {}
    narrator = Narrator(recorded.__setitem__, clock=clock)
    names = [f"loras/{number}.safetensors" for number in range(files)]
    size = seconds * 10_000_000
    for name in names:
        meter.expect(name, size)
    told_then = []
    for tenth in range(seconds * 10 + 1):
        for name in names:
            meter.report(name, tenth * 1_000_000, size)
        recorded.clear()
        with redirect_stdout(StringIO()) as out:
            for update in meter.fresh():
                narrator.tell(update)
        told_then.append((out.getvalue().splitlines(), dict(recorded)))
        clock.now += 0.1
    return told_then


def test_downloads_side_by_side_do_not_flood_the_log() -> None:
    told_then = fetching(seconds=60, files=4)
    first, *between, last = [lines for lines, _ in told_then]
    names = [f"loras/{number}.safetensors" for number in range(4)]
    assert first == [
        f"Fetching {name}: 0 B of 600 MB (0 of 4 files, 0 B of 2.4 GB in all)" for name in names
    ]
    assert last == [
        f"Fetching {name}: 600 of 600 MB (0 of 4 files, 2.4 of 2.4 GB in all)" for name in names
    ]
    lines = [line for told_now in between for line in told_now]
    assert 20 <= len(lines) <= 30
    assert {line.split(":")[0] for line in lines[:4]} == {f"Fetching {name}" for name in names}
    assert lines[0] == (
        "Fetching loras/0.safetensors: 20 of 600 MB, 10 MB/s, 58 s left"
        " (0 of 4 files, 80 MB of 2.4 GB in all)"
    )


def test_metrics_tell_how_the_downloads_come_along() -> None:
    told_then = fetching(seconds=10, files=2)
    assert all(bool(lines) == bool(metrics) for lines, metrics in told_then)
    assert told_then[0][1] == {"fetched_bytes": 0, "fetch_rate": 0, "files_fetched": 0}
    last = told_then[-1][1]
    assert last["fetched_bytes"] == 200_000_000
    assert last["fetch_rate"] == pytest.approx(20_000_000, rel=0.01)


def test_a_file_that_is_there_is_told_once_and_again_only_when_it_begins_anew() -> None:
    clock = Clock()
    narrator = Narrator(lambda _name, _value: None, clock=clock)
    lines = []
    for second, done in [(0, 0), (1, 5), (2, 10), (9, 10), (20, 4), (21, 5), (22, 10), (30, 10)]:
        clock.now = second
        lines += [(second, line) for line in narrator.lines(Downloading("a", done, 10))]
    assert lines == [
        (0, "Fetching a: 0 of 10 B"),
        (2, "Fetching a: 10 of 10 B"),
        (20, "Fetching a: 4 of 10 B"),
        (22, "Fetching a: 10 of 10 B"),
    ]


def test_a_download_of_unknown_size_is_told() -> None:
    lines, recorded = told(Downloading("loras/x", 1_500_000, None))
    assert lines == ["Fetching loras/x: 1.5 MB"]
    assert recorded == []


def test_no_line_is_told_twice() -> None:
    lines, _ = told(*[Progress("4", "Prompt", 2, 9)] * 3)
    assert len(lines) == 1


def test_the_log_goes_to_wherever_print_goes_just_then() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    urllib3 = logging.getLogger("urllib3")
    urllib3_level = urllib3.level
    try:
        prediction.show_log()
        for text in ("first", "second"):
            with redirect_stdout(StringIO()) as out:
                logging.getLogger("comfy_runner.x").info("%s fox", text)
                logging.getLogger("urllib3.connectionpool").info("noise")
            assert out.getvalue() == f"{text} fox\n"
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
        root.setLevel(level)
        urllib3.setLevel(urllib3_level)
