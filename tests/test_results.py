"""Result files: what they are called, which there are, and which reports are refused."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from graphs import node
from PIL import Image

from comfy_runner.errors import MachineError, NothingProduced
from comfy_runner.graph.workflow import parse
from comfy_runner.runs.media import OutputFormat
from comfy_runner.runs.results import Output, Results

WORKFLOW = parse(
    {
        "9": node("SaveImage", "Save it"),
        "12:5": node("PreviewImage"),
        "é": node("SaveText", "文本"),
    }
)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """ComfyUI's own folders, by the type of file that stands there."""
    folders = {kind: tmp_path / "comfyui" / kind for kind in ("output", "temp")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    return folders


@pytest.fixture
def make(tmp_path: Path, sources: dict[str, Path]) -> Callable[..., Results]:
    def call(
        wanted: OutputFormat = "original",
        quality: int = 90,
        *,
        previews: bool = False,
        chosen: frozenset[str] = frozenset(),
    ) -> Results:
        folder = tmp_path / "results" / "run"
        encoding = (wanted, quality)
        return Results(folder, sources, WORKFLOW, encoding, previews=previews, chosen=chosen)

    return call


@pytest.fixture
def results(make: Callable[..., Results]) -> Results:
    return make()


def reported(
    sources: Mapping[str, Path], name: str, kind: str = "output", content: bytes = b""
) -> dict[str, str]:
    """A file that a node has just made, as it reports it."""
    path = sources[kind] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or name.encode())
    subfolder, _, filename = name.rpartition("/")
    return {"filename": filename, "subfolder": subfolder, "type": kind}


def picture(sources: Mapping[str, Path], name: str, colour: str = "red") -> dict[str, str]:
    """A picture that a node has just made, as it reports it."""
    Image.new("RGB", (8, 8), colour).save(sources["output"] / name)
    return {"filename": name, "subfolder": "", "type": "output"}


def names(outputs: Iterator[Output]) -> list[str]:
    return [output.path.name for output in outputs]


def test_a_file_is_kept_under_a_name_that_tells_its_node(
    results: Results, sources: dict[str, Path], tmp_path: Path
) -> None:
    report = {"images": [reported(sources, "fox_00001_.png", content=b"fox")]}
    (output,) = results.take("9", report)
    assert output == Output(
        tmp_path / "results" / "run" / "9_Save-it_fox_00001.png", "9", "Save it"
    )
    assert output.path.read_bytes() == b"fox"
    assert results.count == 1


def test_a_result_stays_when_comfyui_s_folder_is_emptied(
    results: Results, sources: dict[str, Path]
) -> None:
    (output,) = results.take("9", {"images": [reported(sources, "a.png", content=b"fox")]})
    (sources["output"] / "a.png").unlink()
    assert output.path.read_bytes() == b"fox"
    assert not output.path.is_symlink()


def test_results_come_in_the_order_of_the_report_files_first(
    results: Results, sources: dict[str, Path]
) -> None:
    report = {
        "text": ["a caption"],
        "images": [reported(sources, "b.png"), reported(sources, "a.png")],
        "audio": [reported(sources, "c.flac")],
    }
    assert names(results.take("9", report)) == [
        "9_Save-it_b.png",
        "9_Save-it_a.png",
        "9_Save-it_c.flac",
        "9_Save-it_text.txt",
    ]
    assert results.count == 4


def test_a_file_in_a_subfolder_is_found(results: Results, sources: dict[str, Path]) -> None:
    (output,) = results.take("9", {"images": [reported(sources, "x/y/a.png", content=b"fox")]})
    assert output.path.name == "9_Save-it_a.png"
    assert output.path.read_bytes() == b"fox"


def test_two_files_of_one_name_are_both_kept(results: Results, sources: dict[str, Path]) -> None:
    report = {
        "images": [
            reported(sources, "x/a.png", content=b"1"),
            reported(sources, "y/a.png", content=b"2"),
            reported(sources, "A.PNG", content=b"3"),
        ]
    }
    outputs = list(results.take("9", report))
    assert [output.path.read_bytes() for output in outputs] == [b"1", b"2", b"3"]
    assert len({output.path.name.lower() for output in outputs}) == 3


def test_a_file_that_is_reported_twice_is_one_result(
    results: Results, sources: dict[str, Path]
) -> None:
    report = {"images": [reported(sources, "a.png")]}
    assert len([*results.take("9", report), *results.take("9", report)]) == 1


def test_a_node_that_the_workflow_does_not_name_is_told_by_its_id(
    results: Results, sources: dict[str, Path]
) -> None:
    (output,) = results.take("77", {"images": [reported(sources, "a.png")]})
    assert (output.path.name, output.node_id, output.title) == ("77_a.png", "77", "")


def test_names_of_nothing_but_foreign_letters_still_make_a_name(results: Results) -> None:
    assert names(results.take("é", {"文": ["a", "b"]})) == ["output.json"]


# Previews


def test_previews_are_held_back_where_there_is_something_else(
    results: Results, sources: dict[str, Path]
) -> None:
    report = {"images": [reported(sources, "p.png", "temp"), reported(sources, "a.png")]}
    assert names(results.take("12:5", report)) == ["12.5_PreviewImage_a.png"]
    assert list(results.rest(["9"])) == []


def test_previews_are_returned_where_there_is_nothing_else(
    results: Results, sources: dict[str, Path]
) -> None:
    report = {"images": [reported(sources, "p.png", "temp"), reported(sources, "q.png", "temp")]}
    assert list(results.take("12:5", report)) == []
    assert names(results.rest(["12:5"])) == ["12.5_PreviewImage_p.png", "12.5_PreviewImage_q.png"]
    assert results.count == 2


def test_a_text_is_something_else(results: Results, sources: dict[str, Path]) -> None:
    report = {"images": [reported(sources, "p.png", "temp")], "text": ["a fox"]}
    assert names(results.take("12:5", report)) == ["12.5_PreviewImage_text.txt"]
    assert list(results.rest(["12:5"])) == []


def test_previews_come_at_once_when_they_are_wanted(
    make: Callable[..., Results], sources: dict[str, Path]
) -> None:
    results = make(previews=True)
    report = {"images": [reported(sources, "p.png", "temp"), reported(sources, "a.png")]}
    assert names(results.take("12:5", report)) == [
        "12.5_PreviewImage_p.png",
        "12.5_PreviewImage_a.png",
    ]


def test_of_chosen_nodes_all_counts_and_of_others_nothing(
    make: Callable[..., Results], sources: dict[str, Path]
) -> None:
    results = make(chosen=frozenset({"12:5"}))
    report = {"images": [reported(sources, "p.png", "temp"), reported(sources, "a.png")]}
    assert list(results.take("9", {**report, "text": ["a fox"]})) == []
    assert names(results.take("12:5", report)) == [
        "12.5_PreviewImage_p.png",
        "12.5_PreviewImage_a.png",
    ]
    assert list(results.rest(["12:5"])) == []


def test_files_of_the_input_folder_are_no_results(results: Results) -> None:
    report = {"images": [{"filename": "mine.png", "subfolder": "", "type": "input"}]}
    assert list(results.take("9", report)) == []
    with pytest.raises(NothingProduced):
        list(results.rest(["9"]))


def test_nothing_at_all_is_an_error_that_names_the_nodes(results: Results) -> None:
    assert list(results.take("9", {"images": [], "animated": [True]})) == []
    with pytest.raises(NothingProduced) as caught:
        list(results.rest(["9", "12:5"]))
    assert "node 9 (Save it), node 12:5 (PreviewImage) made no file" in str(caught.value)


# Values


@pytest.mark.parametrize(
    ("content", "text"), [(b"a fox", "a fox"), (b"a\r\nb\n", "a\r\nb\n"), ("ü".encode(), "ü")]
)
def test_a_text_that_repeats_a_file_is_left_out(
    results: Results, sources: dict[str, Path], content: bytes, text: str
) -> None:
    report = {"files": [reported(sources, "a.txt", content=content)], "text": [text]}
    assert names(results.take("9", report)) == ["9_Save-it_a.txt"]


def test_a_text_that_says_more_than_the_file_is_kept(
    results: Results, sources: dict[str, Path]
) -> None:
    report = {"files": [reported(sources, "a.txt", content=b"a fox")], "text": ["a red fox"]}
    assert names(results.take("9", report)) == ["9_Save-it_a.txt", "9_Save-it_text.txt"]


def test_a_file_that_is_no_text_at_all_is_kept(results: Results, sources: dict[str, Path]) -> None:
    report = {"files": [reported(sources, "a.txt", content=b"\xff\xfe\x00")], "text": ["fox"]}
    assert len(list(results.take("9", report))) == 2


def test_values_are_strict_json_in_files(results: Results) -> None:
    report = {"scores": [float("nan"), float("-inf"), 0.5], "deep": [{"x": [float("inf")]}]}
    outputs = list(results.take("9", report))
    assert names(iter(outputs)) == ["9_Save-it_scores.json", "9_Save-it_deep.json"]
    assert [json.loads(output.path.read_text()) for output in outputs] == [
        [None, None, 0.5],
        {"x": [None]},
    ]


def test_half_a_character_does_not_stop_a_text(results: Results) -> None:
    text = json.loads('"fox \\ud83e"')
    (output,) = results.take("9", {"text": [text]})
    assert output.path.read_bytes() == b"fox ?"


# Reports that do not hold


@pytest.mark.parametrize(
    ("subfolder", "filename"),
    [("..", "secret.png"), ("", "../secret.png"), ("", "/etc/hostname"), ("/etc", "hostname")],
)
def test_a_path_that_leads_outside_is_refused(
    results: Results, sources: dict[str, Path], subfolder: str, filename: str, tmp_path: Path
) -> None:
    (sources["output"].parent / "secret.png").write_bytes(b"secret")
    report: dict[str, Any] = {
        "images": [{"filename": filename, "subfolder": subfolder, "type": "output"}]
    }
    with pytest.raises(MachineError, match="outside of ComfyUI's folders"):
        list(results.take("9", report))
    assert list((tmp_path / "results" / "run").iterdir()) == []


def test_a_link_that_leads_outside_is_refused(results: Results, sources: dict[str, Path]) -> None:
    (sources["output"].parent / "secret.png").write_bytes(b"secret")
    (sources["output"] / "a.png").symlink_to(sources["output"].parent / "secret.png")
    report = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}
    with pytest.raises(MachineError, match="outside of ComfyUI's folders"):
        list(results.take("9", report))


def test_a_link_that_stays_inside_gives_its_file(
    results: Results, sources: dict[str, Path]
) -> None:
    reported(sources, "x/real.png", content=b"fox")
    (sources["output"] / "latest.png").symlink_to(sources["output"] / "x" / "real.png")
    report = {"images": [{"filename": "latest.png", "subfolder": "", "type": "output"}]}
    (output,) = results.take("9", report)
    assert output.path.name == "9_Save-it_latest.png"
    assert not output.path.is_symlink()
    assert output.path.read_bytes() == b"fox"


@pytest.mark.parametrize("filename", ["gone.png", "folder", "a\0b.png", "x" * 300])
def test_a_file_that_is_not_there_is_an_error(
    results: Results, sources: dict[str, Path], filename: str
) -> None:
    (sources["output"] / "folder").mkdir()
    report = {"images": [{"filename": filename, "subfolder": "", "type": "output"}]}
    with pytest.raises(MachineError, match=r"node|Node 9 reports the file .* not there"):
        list(results.take("9", report))
    assert results.count == 0


# Formats


def test_pictures_get_the_wanted_format_and_other_files_stay(
    make: Callable[..., Results], sources: dict[str, Path]
) -> None:
    results = make("webp")
    report = {"images": [picture(sources, "a.png")], "audio": [reported(sources, "b.flac")]}
    assert names(results.take("9", report)) == ["9_Save-it_a.webp", "9_Save-it_b.flac"]


@pytest.mark.parametrize("wanted", ["webp", "jpg", "png"])
@pytest.mark.parametrize("order", [("a.png", "a.jpg", "a.webp"), ("a.webp", "a.jpg", "a.png")])
def test_pictures_that_differ_in_their_ending_alone_stay_apart(
    make: Callable[..., Results],
    sources: dict[str, Path],
    wanted: OutputFormat,
    order: tuple[str, ...],
) -> None:
    colours = ("red", "lime", "blue")
    report = {"images": [picture(sources, *pair) for pair in zip(order, colours, strict=True)]}
    outputs = list(make(wanted).take("9", report))
    assert len({output.path for output in outputs}) == 3
    for output, strongest in zip(outputs, range(3), strict=True):
        with Image.open(output.path) as image:
            found = image.convert("RGB").getpixel((4, 4))
        assert isinstance(found, tuple)
        assert found.index(max(found)) == strongest
        assert output.path.suffix == f".{wanted}"
