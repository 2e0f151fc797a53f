"""Our own node pack in the real ComfyUI: what it reports, gives on, saves and refuses."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from editor_files import document, ui
from graphs import HERE, node
from PIL import Image

from comfy_runner.comfyui.saved_catalog import builtin
from comfy_runner.command_line import offline_catalog
from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput, RunError
from comfy_runner.packs.folder import PackFolder
from comfy_runner.runner import Runner
from comfy_runner.runs.files import GivenFile
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request

PACKS = HERE.parent / "custom_nodes"
PHOTO = HERE.parent / "examples" / "astronaut.png"


@pytest.fixture(scope="module")
def with_pack(comfy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A started runner whose ComfyUI has the project's own packs."""
    home = tmp_path_factory.mktemp("with-pack")
    config = replace(comfy_config, home=home, models=home / "models", custom_nodes=PACKS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with Runner(config) as runner:
            yield runner


def run(runner: Runner, graph: dict[str, Any], **request: Any) -> list[Path]:
    updates = runner.run(Request(document=graph, **request))
    return [update.path for update in updates if isinstance(update, Output)]


def width_node(value: Any, **more: Any) -> dict[str, Any]:
    return node("ComfyRunnerInteger", name="width", value=value, **more)


def graph() -> dict[str, Any]:
    """A photo made smaller, and a caption; the photo alone is a result."""
    return {
        "1": node("ComfyRunnerText", name="caption", value="as it is"),
        "2": width_node(64, description="Pixels.", minimum=8, maximum=128, step=8),
        "3": node("ComfyRunnerNumber", name="by", value=0.5, minimum=0.1, maximum=2.0),
        "4": node("ComfyRunnerSwitch", name="invert", value=False),
        "5": node("ComfyRunnerChoice", name="style", value="plain", choices="plain\ngrand"),
        "6": node("ComfyRunnerImage", name="photo", image="photo.png"),
        "7": node(
            "ImageScale",
            image=["6", 0],
            upscale_method="area",
            width=["2", 0],
            height=0,
            crop="disabled",
        ),
        "8": node("ImageScaleBy", image=["7", 0], upscale_method="area", scale_by=["3", 0]),
        "9": node("ImageInvert", image=["8", 0]),
        "10": node("ComfySwitchNode", switch=["4", 0], on_false=["8", 0], on_true=["9", 0]),
        "11": node("ComfyRunnerResult", images=["10", 0], name="small: photo"),
        "12": node("StringConcatenate", string_a=["5", 0], string_b=["1", 0], delimiter=", "),
        "13": node("SaveText", text=["12", 0], filename_prefix="said", format="txt"),
        "14": node("SaveImage", images=["11", 0], filename_prefix="plain"),
    }


def test_what_the_pack_says_of_its_classes_is_what_stands_in_its_file(with_pack: Runner) -> None:
    """After a change: write what ComfyUI answers of these classes into object_info.json."""
    info = with_pack.catalog().raw["object_info"]
    live = {name: info[name] for name in info if name.startswith("ComfyRunner")}
    live["ComfyRunnerImage"]["input"]["required"]["image"][0] = []
    kept = json.loads((PACKS / "comfy_runner_nodes" / "object_info.json").read_text())
    assert live == kept


def test_the_lock_is_that_of_the_pack_as_it_is() -> None:
    """`comfy-runner nodes lock` renews it."""
    folder = PackFolder(Config(custom_nodes=PACKS))
    (pack,) = folder.read().packs
    assert folder.state(pack).standing == "same"
    told = json.loads((PACKS / "comfy_runner_nodes" / "object_info.json").read_text())
    assert set(pack.classes) == set(told)


def test_its_classes_are_known_before_comfyui_has_been_started(tmp_path: Path) -> None:
    known = offline_catalog(Config(home=tmp_path, custom_nodes=PACKS), None)
    text = known.get("ComfyRunnerText")
    assert text is not None
    assert text.inputs({}).keys() >= {"name", "value"}
    assert known.model_folder("loras") == builtin().model_folder("loras")
    assert "KSampler" in known


def test_a_workflow_takes_and_gives_what_its_author_declared(with_pack: Runner) -> None:
    values = {"width": 32, "by": 2, "photo": "mine.png"}
    (path,) = run(with_pack, graph(), values=values, files=(GivenFile(PHOTO, "mine.png"),))
    assert path.name == "11_ComfyRunnerResult_small_photo_00001.png"
    with Image.open(path) as made, Image.open(PHOTO) as given:
        assert made.width == 64
        assert made.height == pytest.approx(64 * given.height / given.width, abs=2)
        small = given.convert("RGB").resize(made.size)
        brightness = [sum(image.resize((1, 1)).getpixel((0, 0))) for image in (made, small)]
    assert brightness[0] == pytest.approx(brightness[1], abs=24)


def test_every_kind_of_value_reaches_its_place(with_pack: Runner) -> None:
    values = {"caption": "a fox", "STYLE": "grand", "invert": "yes"}
    files = (GivenFile(PHOTO, "photo.png"),)
    paths = run(with_pack, graph(), values=values, files=files, all_outputs=True)
    made = {path.name.partition("_")[0]: path for path in paths}
    assert made.keys() == {"11", "13", "14"}
    assert made["13"].read_text() == "grand, a fox"
    with (
        Image.open(made["11"]) as result,
        Image.open(made["14"]) as saved,
        Image.open(PHOTO) as given,
    ):
        assert result.width == 32
        assert result.tobytes() == saved.tobytes()
        assert result.info.keys() == saved.info.keys()
        bright = sum(given.convert("RGB").resize((1, 1)).getpixel((0, 0)))
        inverted = sum(result.resize((1, 1)).getpixel((0, 0)))
    assert inverted == pytest.approx(3 * 255 - bright, abs=24)


def test_a_document_of_the_editor_runs_likewise(with_pack: Runner) -> None:
    nodes = [
        ui(1, "ComfyRunnerImage", ["photo", "photo.png", "What to turn.", "image"]),
        ui(2, "ImageRotate", ["90 degrees"], links={"image": 1}),
        ui(3, "ComfyRunnerInteger", ["width", 64, "", 8, 128, 8]),
        ui(4, "ImageScale", ["area", 64, 0, "disabled"], links={"image": 2, "width": 3}),
        ui(5, "ComfyRunnerResult", ["turned"], links={"images": 4}),
        ui(6, "PreviewImage", links={"images": 5}),
    ]
    links = [
        *((1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 4, 0, "IMAGE"), (3, 3, 0, 4, 1, "INT")),
        *((4, 4, 0, 5, 0, "IMAGE"), (5, 1, 0, 6, 0, "IMAGE")),
    ]
    values = {"photo": "mine.png", "width": 16}
    files = (GivenFile(PHOTO, "mine.png"),)
    (path,) = run(with_pack, document(nodes, links), values=values, files=files)
    with Image.open(path) as made:
        assert made.width == 16


def test_the_callers_value_is_refused_before_anything_runs(with_pack: Runner) -> None:
    values = {"width": 12, "by": 3, "style": "odd", "photo": "mine.png"}
    with pytest.raises(InvalidInput) as caught:
        run(with_pack, graph(), values=values, files=(GivenFile(PHOTO, "mine.png"),))
    assert [(problem.input, problem.code) for problem in caught.value.problems] == [
        ("width", "off_step"),
        ("by", "too_big"),
        ("style", "not_in_list"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (width_node(4, minimum=8), "ValueError: Input 'width': 4 is below its minimum 8."),
        (width_node(9, maximum=8), "ValueError: Input 'width': 9 is above its maximum 8."),
        (width_node(9, step=4), "Input 'width': 9 is not on its grid of 4 from 0."),
        (width_node(9, minimum=2, step=4), "Input 'width': 9 is not on its grid of 4 from 2."),
        (width_node(9, minimum=7, maximum=5), "its minimum 7 is above its maximum 5."),
        (
            node("ComfyRunnerNumber", name="by", value=0.5, minimum=0.75),
            "Input 'by': 0.5 is below its minimum 0.75.",
        ),
        (
            node("ComfyRunnerChoice", name="style", value="odd", choices="plain\n grand "),
            "Input 'style': 'odd' is none of its choices: plain, grand.",
        ),
    ],
)
def test_a_node_refuses_its_own_value_and_names_the_input(
    with_pack: Runner, wrong: dict[str, Any], message: str
) -> None:
    shown = {"1": wrong, "2": node("PreviewAny", source=["1", 0])}
    with pytest.raises(RunError) as caught:
        run(with_pack, shown)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("class_type", "words"),
    [
        ("Text", "a text"),
        ("Integer", "a whole number"),
        ("Number", "a number"),
        ("Switch", "true or false"),
    ],
)
def test_no_node_gives_on_what_is_not_of_its_type(
    with_pack: Runner, class_type: str, words: str
) -> None:
    """A switch gives anything, and ComfyUI lets it in."""
    blank = {"width": 8, "height": 8, "batch_size": 1, "color": 0}
    shown = {
        "1": node("EmptyImage", **blank),
        "2": node("ComfySwitchNode", switch=True, on_true=["1", 0], on_false=["1", 0]),
        "3": node(f"ComfyRunner{class_type}", name="it", value=["2", 0]),
        "4": node("PreviewAny", source=["3", 0]),
    }
    with pytest.raises(RunError, match=f"TypeError: Input 'it': it takes {words}, not a Tensor"):
        run(with_pack, shown)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("../../up/%year%", "2_ComfyRunnerResult_up_year_00001.png"),
        ("/", "2_ComfyRunnerResult_result_00001.png"),
        ("Füchse", "2_ComfyRunnerResult_F-chse_00001.png"),
        ("fox" * 100, f"2_ComfyRunnerResult_{'fox' * 20}.png"),
    ],
)
def test_a_results_name_leads_nowhere_else(with_pack: Runner, name: str, made: str) -> None:
    saved = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("ComfyRunnerResult", images=["1", 0], name=name),
    }
    assert [path.name for path in run(with_pack, saved)] == [made]
