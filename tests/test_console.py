"""What a person sees of a run: bars on a terminal, lines in a pipe."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from graphs import catalog, picture
from rich.console import Console

from comfy_runner.console import Narration, show_plan
from comfy_runner.runs import events
from comfy_runner.runs.plan import prepare
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Finished, Planned, Update
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.progress import Downloading, Overall

MB = 1_000_000


@pytest.fixture(autouse=True)
def as_anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm")
    root, ours = logging.getLogger(), logging.getLogger("comfy_runner")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def tell(narration: Narration, *updates: Update) -> None:
    for update in updates:
        narration.tell(update)


def told(*updates: Update, terminal: bool, show: Callable[..., None] = tell) -> str:
    """All that was written about these updates, which `show` tells."""
    out = StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=140, height=50, soft_wrap=True, highlight=False
    )
    with Narration(console) as narration:
        show(narration, *updates)
    return out.getvalue()


def screen(*updates: Update, show: Callable[..., None] = tell) -> list[str]:
    """The bars that stand on a terminal at the end, without the drawn part."""
    # They are drawn a last time, and then each line is wiped out.
    frames = re.split(r"\x1b\[2K(?:\x1b\[1A)?|\r", told(*updates, terminal=True, show=show))
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).strip() for frame in frames]
    last = next(frame for frame in reversed(frames) if frame)
    return [
        re.sub(r"[ \u2501\u2578\u257a]+|\d:\d\d:\d\d", " ", line).strip()
        for line in last.splitlines()
    ]


def state(number: int, done: int, total: int | None, files_done: int = 0) -> Downloading:
    """One of 20 files of 100 MB, when so many MB of it stand."""
    overall = Overall((files_done * 100 + done) * MB, 2000 * MB, 10 * MB, files_done, 20)
    return Downloading(
        f"loras/{number}.safetensors", done * MB, total and total * MB, 5 * MB, overall
    )


def test_a_file_has_a_bar_with_bytes_rate_and_time_left() -> None:
    update = Downloading("loras/[a] b.safetensors", 120 * MB, 2160 * MB, 85 * MB)
    assert screen(update) == [
        "Fetching loras/[a] b.safetensors 120 MB of 2.2 GB, 85 MB/s, 24 s left"
    ]


def test_all_files_together_have_the_last_bar() -> None:
    assert screen(state(1, 10, 100), state(2, 20, None)) == [
        "Fetching loras/1.safetensors 10 of 100 MB, 5.0 MB/s, 18 s left",
        "Fetching loras/2.safetensors 20 MB, 5.0 MB/s",
        "In all, 0 of 20 files 20 MB of 2.0 GB, 10 MB/s, 3 min 18 s left",
    ]


def test_what_is_fetched_while_comfyui_starts_has_its_bars_below() -> None:
    def show(narration: Narration, *updates: Update) -> None:
        narration.boot()
        tell(narration, *updates)

    below = ["Fetching loras/1.safetensors 10 of 100 MB, 5.0 MB/s, 18 s left"]
    both = screen(state(1, 10, 100), show=show)
    assert both[:2] == ["Starting ComfyUI", *below]

    def show_on(narration: Narration, *updates: Update) -> None:
        show(narration, *updates)
        narration.booted()

    assert screen(state(1, 10, 100), show=show_on)[:1] == below


def test_of_many_files_some_have_bars_and_the_rest_one_together() -> None:
    bars = screen(*[state(number, number, 100) for number in range(12)])
    assert [bar.split(" ")[1] for bar in bars[:8]] == [f"loras/{n}.safetensors" for n in range(8)]
    assert bars[8:] == [
        "4 more files 38 of 400 MB, 20 MB/s",
        "In all, 0 of 20 files 11 MB of 2.0 GB, 10 MB/s, 3 min 19 s left",
    ]


def test_a_file_that_is_there_makes_room_for_another() -> None:
    begun = [state(number, 1, 100) for number in range(10)]
    bars = screen(*begun, state(3, 100, 100), state(0, 100, 100), state(9, 2, 100, 2))
    assert [bar.split(" ")[1] for bar in bars[:-1]] == [
        f"loras/{number}.safetensors" for number in (1, 2, 4, 5, 6, 7, 8, 9)
    ]
    assert bars[-1].startswith("In all, 2 of 20 files 202 MB of 2.0 GB")


def test_the_bars_of_downloads_go_when_nodes_run() -> None:
    bars = screen(state(1, 10, 100), events.Progress("7", "Sampler", 3, 9, 5, 20))
    assert bars == ["Running node 7 (Sampler), step 5 of 20"]


def test_in_a_pipe_a_file_has_its_first_and_last_line() -> None:
    quick = [state(number, done, 100) for done in (0, 50, 100) for number in (1, 2)]
    lines = told(*quick, terminal=False).splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "Fetching loras/1.safetensors: 0 B of 100 MB, 5.0 MB/s, 20 s left",
        "Fetching loras/2.safetensors: 0 B of 100 MB, 5.0 MB/s, 20 s left",
        "Fetching loras/1.safetensors: 100 of 100 MB",
        "Fetching loras/2.safetensors: 100 of 100 MB",
    ]
    assert lines[0].endswith("left (0 of 20 files, 0 B of 2.0 GB in all)")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_plan_and_the_end_are_lines_everywhere(terminal: bool) -> None:
    plan = prepare(
        picture(), catalog=catalog(), manifest=Manifest(), on_disk=lambda _folder, _shape: ()
    )
    text = told(
        Planned("run-1", plan), Finished({"fetch": 0.0, "run": 1.0}, 9, 4, 1), terminal=terminal
    )
    assert "Run run-1: " in text
    assert "Done: 1 result, 4 of 9 nodes from the cache (fetch 0.00 s, run 1.00 s)." in text


def test_a_result_is_a_line_in_a_pipe_and_no_bar(tmp_path: Path) -> None:
    output = Output(tmp_path / "fox.png", "2", "Save it")
    assert told(output, terminal=False) == "Made fox.png (node 2, Save it)\n"
    assert screen(state(1, 10, 100), output) == screen(state(1, 10, 100))


def test_the_notes_of_a_plan_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    plan = prepare(
        picture(), catalog=catalog(), manifest=Manifest(), on_disk=lambda _folder, _shape: ()
    )
    show_plan(replace(plan, notes=("Node 3 ([bold]Old[/]) is left out.",)), random_seeds=False)
    assert capsys.readouterr().out.splitlines() == [
        "2 nodes would run.",
        "Returns what node 2 (Save it, SaveImage) makes.",
        "Node 3 ([bold]Old[/]) is left out.",
    ]


def test_the_log_stands_among_it_and_comfyui_s_lines_say_so() -> None:
    root = logging.getLogger()
    root.handlers[:] = []
    out = StringIO()
    with Narration(Console(file=out, width=140, soft_wrap=True, highlight=False)):
        logging.getLogger("comfyui").warning("[red] %s", "careful")
        logging.getLogger("comfyui").info("noise")
        logging.getLogger("comfy_runner.weights").info("Fetched loras/x.")
    assert out.getvalue() == "ComfyUI: [red] careful\nFetched loras/x.\n"
