"""Whole runs on the real ComfyUI."""

import io
import json
import socket
import threading
import zipfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from editor_files import TEMPLATES
from graphs import bundled, node, picture, quick_and_slow
from PIL import Image

from comfy_runner.convert.formats import read_workflow
from comfy_runner.documents import source
from comfy_runner.errors import (
    Crashed,
    InvalidInput,
    InvalidWorkflow,
    NothingProduced,
    RunError,
    Stalled,
    StartFailed,
    TimedOut,
    UnknownModel,
)
from comfy_runner.graph.document import load
from comfy_runner.runner import Runner
from comfy_runner.runs.events import Progress
from comfy_runner.runs.files import GivenFile
from comfy_runner.runs.following import Following
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Planned, Request, Update

HERE = Path(__file__).resolve().parent
PHOTO = HERE.parent / "examples" / "astronaut.png"


def run(runner: Runner, document: dict[str, Any], **request: Any) -> list[Update]:
    return list(runner.run(Request(document=document, **request)))


def outputs(updates: list[Update]) -> list[Path]:
    return [update.path for update in updates if isinstance(update, Output)]


def names(updates: list[Update]) -> list[str]:
    return [path.name for path in outputs(updates)]


def colour(path: Path, x: float, y: float) -> tuple[int, ...]:
    """The colour at a place given in fractions of width and height."""
    with Image.open(path) as image:
        pixel = image.convert("RGB").getpixel((int(x * image.width), int(y * image.height)))
    assert isinstance(pixel, tuple)
    return pixel


def is_like(colour: tuple[int, ...], wanted: tuple[int, int, int], within: int = 80) -> bool:
    return all(abs(have - want) <= within for have, want in zip(colour, wanted, strict=True))


def test_text_becomes_a_picture_that_obeys_it(runner: Runner) -> None:
    """Prompt, seed and size reach the sampler: the model obeys colour words."""
    updates = run(
        runner,
        bundled("text_to_picture"),
        values={"Positive prompt.text": "a blue square on a yellow background", "Size.width": 160},
        seed=5,
    )
    (path,) = outputs(updates)
    assert path.name == "9_Picture_picture_00001.png"
    with Image.open(path) as image:
        assert image.size == (160, 128)
    assert is_like(colour(path, 0.5, 0.5), (0, 0, 255))
    assert is_like(colour(path, 0.03, 0.03), (255, 255, 0))
    planned = updates[0]
    assert isinstance(planned, Planned)
    assert planned.plan.seeds == {"7.seed": 5}
    steps = [u.step for u in updates if isinstance(u, Progress) and u.steps == 12]
    assert steps[-1] == 12
    assert isinstance(updates[-1], Finished)


def test_the_same_request_twice_gives_the_same_files_twice(runner: Runner) -> None:
    request = {"seed": 11}
    first = run(runner, bundled("text_to_picture"), **request)
    content = outputs(first)[0].read_bytes()
    second = run(runner, bundled("text_to_picture"), **request)
    assert names(first) == names(second)
    assert not outputs(first)[0].exists()
    with Image.open(io.BytesIO(content)) as one, Image.open(outputs(second)[0]) as two:
        assert one.tobytes() == two.tobytes()
    finished = second[-1]
    assert isinstance(finished, Finished)
    assert finished.nodes_cached == 8


def test_another_seed_gives_another_picture_and_a_blank_one_is_random(runner: Runner) -> None:
    pixels, seeds = set(), set()
    for seed in (1, 2, None, None):
        updates = run(runner, bundled("text_to_picture"), seed=seed)
        with Image.open(outputs(updates)[0]) as image:
            pixels.add(image.tobytes())
        planned = updates[0]
        assert isinstance(planned, Planned)
        seeds.add(planned.plan.seeds["7.seed"])
    assert len(pixels) == 4
    assert len(seeds) == 4


def test_the_workflows_own_seed_is_kept_on_request(runner: Runner) -> None:
    updates = run(runner, bundled("text_to_picture"), randomise_seeds=False)
    planned = updates[0]
    assert isinstance(planned, Planned)
    assert planned.plan.seeds == {"7.seed": 1}


def test_everything_runs_again_when_the_cache_is_reset(runner: Runner) -> None:
    run(runner, picture())
    finished = run(runner, picture())[-1]
    assert isinstance(finished, Finished)
    assert finished.nodes_cached == 1
    finished = run(runner, picture(), reset_cache=True)[-1]
    assert isinstance(finished, Finished)
    assert finished.nodes_cached == 0


def test_a_photo_is_upscaled_by_real_weights(runner: Runner) -> None:
    updates = run(
        runner,
        bundled("upscale"),
        values={"Photo.image": "mine.png"},
        files=(GivenFile(PHOTO, "mine.png"),),
    )
    (path,) = outputs(updates)
    with Image.open(PHOTO) as small, Image.open(path) as large:
        assert large.size == (small.width * 4, small.height * 4)
        back = large.convert("RGB").resize(small.size, Image.Resampling.BOX)
        pairs = zip(back.tobytes(), small.convert("RGB").tobytes(), strict=True)
        difference = sum(abs(one - two) for one, two in pairs) / len(back.tobytes())
    assert difference < 6  # of 255: the same picture, four times as large


def test_a_quick_output_comes_before_the_slow_one_is_made(runner: Runner) -> None:
    with closing(runner.run(Request(document=quick_and_slow()))) as updates:
        made = next(update for update in updates if isinstance(update, Output))
    assert made.node_id == "2"
    assert made.path.is_file()


KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "animated webp": (
        {
            "1": node("EmptyImage", width=32, height=32, batch_size=3, color=255),
            "2": node("ImageAddNoise", image=["1", 0], seed=1, strength=0.5),
            "3": node(
                "SaveAnimatedWEBP",
                images=["2", 0],
                filename_prefix="sub/anim",
                fps=8.0,
                lossless=False,
                quality=70,
                method="fastest",
            ),
        },
        {"3_SaveAnimatedWEBP_anim_00001.webp"},
    ),
    "video with sound": (
        {
            "1": node("EmptyImage", width=64, height=64, batch_size=8, color=255),
            "3": node("EmptyAudio", duration=1.0, sample_rate=44100, channels=2),
            "4": node("CreateVideo", images=["1", 0], fps=8.0, audio=["3", 0]),
            "5": node("SaveVideo", video=["4", 0], filename_prefix="v", format="mp4", codec="h264"),
        },
        {"5_SaveVideo_v_00001.mp4"},
    ),
    "audio": (
        {
            "1": node("EmptyAudio", duration=1.0, sample_rate=44100, channels=1),
            "2": node("SaveAudio", audio=["1", 0], filename_prefix="audio/b"),
            "3": node("SaveAudioMP3", audio=["1", 0], filename_prefix="audio/a", quality="128k"),
        },
        {"2_SaveAudio_b_00001.flac", "3_SaveAudioMP3_a_00001.mp3"},
    ),
    "latent": (
        {
            "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "2": node("SaveLatent", samples=["1", 0], filename_prefix="latents/l"),
        },
        {"2_SaveLatent_l_00001.latent"},
    ),
    "text": (
        {
            "1": node("PrimitiveString", value="a red fox"),
            "2": node("PreviewAny", "Tell", source=["1", 0]),
            "3": node("SaveText", text=["1", 0], filename_prefix="t/note", format="txt"),
        },
        {"2_Tell_text.txt", "3_SaveText_note_00001.txt"},
    ),
    "values": (
        {"1": node("TestUiValues")},
        {
            "1_TestUiValues_text.json",
            "1_TestUiValues_number.json",
            "1_TestUiValues_table.json",
            "1_TestUiValues_not_a_number.json",
        },
    ),
    "several files in subfolders": (
        {"1": node("TestWriteFiles", subfolder="a/b", count=2, text="same")},
        {"1_TestWriteFiles_file_00000.txt", "1_TestWriteFiles_file_00001.txt"},
    ),
    "previews alone": (
        {"1": picture()["1"], "2": node("PreviewImage", images=["1", 0])},
        {"2_PreviewImage_ComfyUI_temp"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_output_comes_back(runner: Runner, kind: str) -> None:
    document, expected = KINDS[kind]
    found = names(run(runner, document))
    if kind == "previews alone":
        assert len(found) == 1
        assert found[0].startswith("2_PreviewImage_ComfyUI_temp_")
    else:
        assert set(found) == expected
        assert len(found) == len(expected)


def test_texts_and_values_hold_what_the_node_said(runner: Runner) -> None:
    made = {path.name: path.read_text() for path in outputs(run(runner, KINDS["text"][0]))}
    assert made["2_Tell_text.txt"] == "a red fox"
    made = {path.name: path.read_text() for path in outputs(run(runner, KINDS["values"][0]))}
    assert json.loads(made["1_TestUiValues_table.json"]) == {"name": "a", "size": 3}


def test_previews_come_along_only_on_request(runner: Runner) -> None:
    document = picture() | {"3": node("PreviewImage", images=["1", 0])}
    assert names(run(runner, document)) == ["2_Save-it_plain_00001.png"]
    assert len(names(run(runner, document, previews=True))) == 2


def test_pictures_are_re_encoded_on_request(runner: Runner) -> None:
    (path,) = outputs(run(runner, picture(), output_format="webp", output_quality=80))
    with Image.open(path) as image:
        assert image.format == "WEBP"
    assert path.name == "2_Save-it_plain_00001.webp"


@pytest.fixture
def two_photos(tmp_path: Path) -> tuple[GivenFile, GivenFile]:
    """Two different pictures of one name in two folders."""
    given = []
    for folder, shade in (("one", (255, 0, 0)), ("two", (0, 255, 0))):
        path = tmp_path / folder / "photo.png"
        path.parent.mkdir()
        Image.new("RGB", (8, 8), shade).save(path)
        given.append(GivenFile(path, f"{folder}.png"))
    return given[0], given[1]


SIDE_BY_SIDE = {
    "1": node("LoadImage", "Left", image="one.png"),
    "2": node("LoadImage", "Right", image="two.png"),
    "3": node("SaveImage", images=["1", 0], filename_prefix="left"),
    "4": node("SaveImage", images=["2", 0], filename_prefix="right"),
}


def test_files_of_one_name_do_not_meet(
    runner: Runner, two_photos: tuple[GivenFile, GivenFile]
) -> None:
    updates = run(runner, SIDE_BY_SIDE, files=two_photos)
    shades = {path.name[0]: colour(path, 0.5, 0.5) for path in outputs(updates)}
    assert shades == {"3": (255, 0, 0), "4": (0, 255, 0)}


def test_a_file_changed_under_the_same_name_is_seen(runner: Runner, tmp_path: Path) -> None:
    document = {
        "1": node("LoadImage", image="photo.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    for shade in ((255, 0, 0), (0, 0, 255)):
        path = tmp_path / "photo.png"
        Image.new("RGB", (8, 8), shade).save(path)
        (made,) = outputs(run(runner, document, files=(GivenFile(path, "photo.png"),)))
        assert colour(made, 0.5, 0.5) == shade


def test_an_archive_gives_its_files_with_their_tree(runner: Runner, tmp_path: Path) -> None:
    picture_file = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(picture_file, "PNG")
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("deep/er/photo.png", picture_file.getvalue())
    document = {
        "1": node("LoadImage", image="deep/er/photo.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    (made,) = outputs(run(runner, document, files=(GivenFile(archive, "all.zip"),)))
    assert colour(made, 0.5, 0.5) == (1, 2, 3)


def test_a_3d_model_goes_in_and_out(runner: Runner, tmp_path: Path) -> None:
    triangle = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    (tmp_path / "triangle.obj").write_text(triangle)
    size = {"width": 64, "height": 64}
    document = {
        "1": node("Load3DAdvanced", model_file="triangle.obj", viewport_state={}, **size),
        "2": node("SaveGLB", mesh=["1", 0], filename_prefix="mesh/out"),
    }
    given = (GivenFile(tmp_path / "triangle.obj", "triangle.obj"),)
    (made,) = outputs(run(runner, document, files=given))
    assert made.name == "2_SaveGLB_out_00001.obj"
    assert made.read_text() == triangle


def test_nothing_of_a_run_is_left_for_the_next(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(path)
    document = picture() | {"3": node("LoadImage", image="secret.png")}
    document["4"] = node("PreviewImage", images=["3", 0])
    first = run(runner, document, files=(GivenFile(path, "secret.png"),), previews=True)
    assert list(runner.process.input.iterdir()) == []
    run(runner, picture(color=1))
    assert not any(path.exists() for path in outputs(first))
    left = [*runner.process.output.rglob("*"), *runner.process.temp.rglob("*")]
    assert [p.name for p in left if p.is_file()] == ["plain_00001_.png"]


def test_all_problems_of_a_request_come_at_once_and_nothing_runs(runner: Runner) -> None:
    document = bundled("text_to_picture")
    document["1"]["inputs"]["unet_name"] = "tiny-flux-color.safetensors"
    document["4"]["inputs"]["clip"] = ["77", 0]
    document["10"] = node("LoadImage", image="missing.png")
    document["11"] = node("PreviewImag", images=["10", 0])
    with pytest.raises(InvalidWorkflow) as caught:
        run(runner, document, values={"7.steps": 0, "zzz.y": 1})
    codes = {problem.code for problem in caught.value.problems}
    assert codes == {
        "too_small",
        "no_such_address",
        "link_to_nowhere",
        "unknown_class_type",
        "unknown_model",
        "file_not_given",
    }
    assert "tiny-flux-colours.safetensors" in str(caught.value)
    assert "PreviewImage" in str(caught.value)
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]


def test_the_branch_of_an_error_tells_whose_fault_it_is(runner: Runner) -> None:
    document = bundled("text_to_picture")
    document["1"]["inputs"]["unet_name"] = "nobody-has-this.safetensors"
    with pytest.raises(UnknownModel):
        run(runner, document)
    with pytest.raises(InvalidInput):
        run(runner, bundled("text_to_picture"), values={"7.steps": 0})
    with pytest.raises(InvalidInput, match="above 0"):
        run(runner, picture(), timeout=-1)


def test_what_only_comfyui_can_judge_is_told_by_node(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    document = {
        "1": node("LoadImage", "My photo", image="broken.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    with pytest.raises(RunError, match=r"node 1 \(My photo, LoadImage\) failed"):
        run(runner, document, files=(GivenFile(path, "broken.png"),))


def test_a_failing_node_is_told_and_the_next_run_works(runner: Runner) -> None:
    document = picture() | {"3": node("TestRaise", "Bad", message="as asked")}
    with pytest.raises(RunError, match="as asked") as caught:
        run(runner, document)
    assert caught.value.node_id == "3"
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]


def test_a_run_that_makes_nothing_is_an_error(runner: Runner) -> None:
    document = {"1": node("TestWriteFiles", "Nothing", subfolder="x", count=0, text="")}
    with pytest.raises(NothingProduced, match=r"node 1 \(Nothing\) made no file"):
        run(runner, document)


SLOW = {"1": node("TestSleep", "Slow", seconds=60.0, interruptible=True)}


def test_closing_the_run_cancels_it(runner: Runner) -> None:
    with closing(runner.run(Request(document=SLOW))) as updates:
        next(update for update in updates if isinstance(update, Progress))
    assert runner.health() == "ok"
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]


def test_the_deadline_holds(runner: Runner) -> None:
    with pytest.raises(TimedOut, match=r"longer than its 0\.5 s while it ran"):
        run(runner, SLOW, timeout=0.5)
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]


def test_a_killed_comfyui_is_told_and_comes_back(runner: Runner) -> None:
    document = {"1": node("TestExit", code=7)}
    with pytest.raises(Crashed, match=r"ended during the run \(exit code 7\)") as caught:
        run(runner, document)
    assert caught.value.exit_code == 7
    assert "got prompt" in caught.value.log_tail[0]
    assert runner.health() == "restarting"
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]
    assert runner.health() == "ok"


def test_a_node_that_cannot_be_interrupted_costs_the_child(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_runner.runs.run.CANCEL_GRACE", 0.3)
    first = runner.process.base_url
    stuck = {"1": node("TestSleep", seconds=60.0, interruptible=False)}
    with pytest.raises(TimedOut):
        run(runner, stuck, timeout=0.5)
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]
    assert runner.process.base_url != first


def test_threads_end_with_their_runs(runner: Runner) -> None:
    run(runner, picture())
    before = threading.active_count()
    for _ in range(3):
        run(runner, picture())
    assert threading.active_count() == before


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(
    runner: Runner, tmp_path: Path
) -> None:
    left = runner.config.runs / "left"
    left.mkdir()
    (left / "secret.png").write_bytes(b"x")
    other = Runner(replace(runner.config, comfyui=tmp_path))
    with pytest.raises(StartFailed, match="There is no ComfyUI"):
        other.start()
    assert not left.exists()
    assert runner.process.input.is_dir()
    assert len(list(runner.config.runs.glob("*.lock"))) == 1


def test_the_deadline_holds_while_a_server_keeps_silent(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/photo.png"
        with pytest.raises(TimedOut, match="while its files were fetched"):
            run(runner, bundled("upscale"), values={"image": url}, timeout=2)


def test_a_cancel_of_the_cancel_does_not_leave_the_run_behind(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cog sends its exception again with a second cancel: it strikes while the first is served."""

    class CancelledAgain(BaseException):
        pass

    def struck(_: Following, __: float) -> bool:
        raise CancelledAgain

    stuck = {"1": node("TestSleep", seconds=60.0, interruptible=False)}
    updates = runner.run(Request(document=stuck))
    next(update for update in updates if isinstance(update, Progress))
    with monkeypatch.context() as patch:
        patch.setattr(Following, "cancel", struck)
        with pytest.raises(CancelledAgain):
            updates.close()
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]


def test_a_seed_beyond_an_inputs_range_is_wrapped(runner: Runner) -> None:
    (made,) = outputs(run(runner, bundled("text_to_picture"), seed=2**64 - 1))
    assert made.is_file()


def test_chatter_of_a_node_pack_is_no_progress(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runner, "config", replace(runner.config, stall_timeout=0.5))
        with pytest.raises(Stalled, match="no sign of progress"):
            run(runner, {"1": node("TestChatter")}, timeout=60)
    assert names(run(runner, picture())) == ["2_Save-it_plain_00001.png"]


def test_a_template_gives_one_picture_from_each_of_its_forms(runner: Runner) -> None:
    """As the editor saves it, as it exports it, and from the picture that ComfyUI saved."""
    template = (TEMPLATES / "utility_interpolation_image_upscale.json").read_bytes()
    editor = load(template)
    exported = read_workflow(editor, runner.catalog()).workflow.to_json()
    photo = GivenFile(PHOTO, "astronaut.png")

    def pixels(document: Any) -> tuple[bytes, Mapping[str, Any]]:
        (path,) = outputs(
            run(runner, document, values={"2.image": "astronaut.png"}, files=(photo,))
        )
        with Image.open(path) as image:
            return image.tobytes(), source.read(path)

    first, saved = pixels(editor)
    assert saved["2"]["class_type"] == "LoadImage"
    assert pixels(exported)[0] == first
    assert pixels(saved)[0] == first
    with Image.open(PHOTO) as image:
        assert len(first) > len(image.convert("RGB").tobytes())
