"""How a run is followed in the real ComfyUI when its socket breaks, and what it leaves there."""

import socket
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from graphs import node, picture

from comfy_runner.comfyui.client import ComfyClient, Messages
from comfy_runner.runner import Runner
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


def test_a_run_is_forgotten_before_the_next_one_begins(runner: Runner) -> None:
    (planned, *_) = run(runner, picture())
    assert isinstance(planned, Planned)
    updates = runner.run(Request(document=picture()))
    next(updates)
    with ComfyClient(runner.process.base_url, runner.process.token) as client:
        assert client.history(planned.run_id) is None
    updates.close()
