"""How a run is followed in the real ComfyUI when its socket breaks, and what it leaves there."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from threading import Event, Thread
from typing import Any

import pytest
from graphs import node, picture

from comfy_runner.comfyui.client import ComfyClient, Disconnected, Messages
from comfy_runner.errors import TimedOut
from comfy_runner.runner import Runner
from comfy_runner.runs.recording import Memory
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Planned, Progress, Request, Update

MADE = ["2_Save-it_plain_00001.png"]


def run(runner: Runner, document: dict[str, Any]) -> list[Update]:
    return list(runner.run(Request(document=document)))


def names(updates: Iterable[Update]) -> list[str]:
    return [update.path.name for update in updates if isinstance(update, Output)]


def sleeping(seconds: float) -> dict[str, Any]:
    return {
        "1": node("TestSleep", "Slow", seconds=seconds, interruptible=True),
        "2": node("PreviewAny", "Tell", source=["1", 0]),
    }


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Messages]:
    """The connections that runs have, each once, as they get them."""
    found: list[Messages] = []
    for name in ("listen", "connect"):
        usual = getattr(ComfyClient, name)

        def noted(*arguments: Any, usual: Callable[..., Messages] = usual) -> Messages:
            messages = usual(*arguments)
            if messages not in found:
                found.append(messages)
            return messages

        monkeypatch.setattr(ComfyClient, name, noted)
    return found


def test_a_dropped_socket_loses_no_result(runner: Runner, opened: list[Messages]) -> None:
    """The result is made while nobody listens: it is found when ComfyUI is asked."""
    made: list[str] = []
    for update in runner.run(Request(document=sleeping(0.5))):
        if isinstance(update, Progress) and len(opened) == 1:
            opened[0].close()
        made += names([update])
    assert made == ["2_Tell_text.txt"]
    assert len(opened) == 2
    assert opened[1].client_id == opened[0].client_id
    # What has had a gap is not relied on.
    run(runner, picture())
    assert len(opened) == 3


def test_runs_share_one_socket_and_one_that_is_cut_between_them_is_replaced(
    runner: Runner, opened: list[Messages]
) -> None:
    for _ in range(3):
        assert names(run(runner, picture())) == MADE
    assert len(opened) == 1
    with opened[0]._socket.dup() as cut:  # noqa: SLF001
        cut.shutdown(socket.SHUT_RDWR)
    for _ in range(2):
        assert names(run(runner, picture())) == MADE
    assert len(opened) == 2
    assert opened[1].client_id != opened[0].client_id


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_run_is_cancelled_whether_its_socket_works_or_not(
    runner: Runner, opened: list[Messages], *, is_cut: bool
) -> None:
    restarts = runner.restarts
    updates = runner.run(Request(document=sleeping(60)))
    next(update for update in updates if isinstance(update, Progress))
    if is_cut:
        opened[0].close()
    updates.close()
    assert runner.restarts == restarts
    assert names(run(runner, picture())) == MADE
    # One that was cancelled may have been struck amid a message.
    assert len(opened) == 2


class Caretaker:
    """Holds what has ComfyUI forget a run, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came, self.may_go = Event(), Event()
        usual = ComfyClient.forget

        def forget(client: ComfyClient, run_id: str) -> None:
            self.came.set()
            assert self.may_go.wait(60)
            usual(client, run_id)

        monkeypatch.setattr(ComfyClient, "forget", forget)


@pytest.fixture
def caretaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Caretaker]:
    held = Caretaker(monkeypatch)
    yield held
    held.may_go.set()


def test_a_run_is_forgotten_before_the_next_one_begins(
    runner: Runner, caretaker: Caretaker
) -> None:
    (first, *_) = run(runner, picture())
    assert isinstance(first, Planned)
    assert caretaker.came.wait(30)
    planned = Event()

    def second() -> None:
        with closing(runner.run(Request(document=picture()))) as updates:
            assert isinstance(next(updates), Planned)
            planned.set()

    thread = Thread(target=second)
    thread.start()
    # Many times what a run needs to be planned.
    assert not planned.wait(0.5)
    with ComfyClient(runner.process.base_url, runner.process.token) as client:
        assert client.history(first.run_id) is not None
        caretaker.may_go.set()
        assert planned.wait(30)
        assert client.history(first.run_id) is None
    thread.join(30)


def test_a_run_whose_time_is_over_before_the_last_one_is_forgotten_harms_nobody(
    runner: Runner, caretaker: Caretaker
) -> None:
    restarts = runner.restarts
    run(runner, picture())
    with pytest.raises(TimedOut, match="before ComfyUI had forgotten the last one"):
        list(runner.run(Request(document=picture(), timeout=0.3)))
    caretaker.may_go.set()
    assert names(run(runner, picture())) == MADE
    assert runner.restarts == restarts


def test_a_comfyui_that_does_not_forget_a_run_is_started_again(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts, usual = runner.restarts, ComfyClient.forget
    updates = runner.run(Request(document=picture()))
    planned = next(updates)
    assert isinstance(planned, Planned)

    def forget(client: ComfyClient, run_id: str) -> None:
        if run_id == planned.run_id:
            raise Disconnected(f"{run_id} is kept")
        usual(client, run_id)

    monkeypatch.setattr(ComfyClient, "forget", forget)
    assert names(updates) == MADE
    for _ in range(2):
        assert names(run(runner, picture())) == MADE
        assert runner.restarts == restarts + 1


def test_the_peak_of_memory_counts_from_before_comfyui_has_the_run(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for owner, name in ((Memory, "begin"), (ComfyClient, "submit")):
        usual = getattr(owner, name)

        def noted(
            *arguments: Any, usual: Callable[..., Any] = usual, name: str = name, **options: Any
        ) -> Any:
            calls.append(name)
            return usual(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)
    run(runner, picture())
    assert calls == ["begin", "submit"]


def test_comfyui_has_no_longer_to_take_a_run_than_the_run_has(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    usual = ComfyClient.submit

    def submit(*arguments: Any, timeout: float, **options: Any) -> None:
        given.append(timeout)
        usual(*arguments, timeout=timeout, **options)

    monkeypatch.setattr(ComfyClient, "submit", submit)
    list(runner.run(Request(document=picture(), timeout=20.0)))
    (timeout,) = given
    assert 0 < timeout < 20
