"""Restarts and health, with what stands in for ComfyUI."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from graphs import HERE

from comfy_runner.comfyui.keeper import Keeper
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
from comfy_runner.errors import MachineError, StartFailed


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    """A started one that is ready; ComfyUI boots in the usual way."""
    config = Config(
        lazy_boot=False,
        fork_server=False,
        comfyui=HERE / "fakes" / "comfyui",
        models=tmp_path / "models",
        device="cpu",
        comfyui_args=("--fault", "serve"),
        max_restarts=2,
    )
    keeper = Keeper(ComfyProcess(config, tmp_path / "run"))
    assert keeper.health() == "starting"
    keeper.start()
    assert (keeper.health(), keeper.why) == ("ok", "")
    yield keeper
    keeper.close()


def behave(keeper: Keeper, fault: str, *, boot_timeout: float = 300.0) -> None:
    """Have the next start do something else."""
    config = replace(
        keeper.process.config, comfyui_args=("--fault", fault), boot_timeout=boot_timeout
    )
    keeper.process.config = config


DIED = "ComfyUI ended while it started (exit code 3)."


def test_a_boot_that_failed_with_nobody_waiting_is_told_and_counted_once(keeper: Keeper) -> None:
    behave(keeper, "dies")
    keeper.start_again("As asked", quiet=True)
    assert keeper.process.ends_within(20)
    for _ in range(3):
        assert (keeper.health(), keeper.why) == ("restarting", DIED)
    with pytest.raises(StartFailed, match="exit code 3"):
        keeper.bring_up(math.inf, low_memory=False)
    assert keeper.restarts == 2
    assert keeper.health() == "broken"
    assert keeper.why == f"2 failures without a successful run: {DIED}"
    behave(keeper, "serve")
    keeper.bring_up(math.inf, low_memory=False)
    assert keeper.health() == "broken"
    keeper.forgive()
    assert (keeper.health(), keeper.why) == ("ok", "")


def test_a_boot_that_failed_and_nobody_asked_is_counted_by_the_next_run(keeper: Keeper) -> None:
    behave(keeper, "dies")
    keeper.start_again("As asked", quiet=True)
    assert keeper.process.ends_within(20)
    behave(keeper, "serve")
    keeper.bring_up(math.inf, low_memory=False)
    assert (keeper.health(), keeper.why) == ("ok", DIED)
    keeper.start_again("It was at fault", fault=True, quiet=True)
    assert keeper.health() == "broken"


def test_a_shortened_boot_that_failed_with_nobody_waiting_is_no_fault(keeper: Keeper) -> None:
    """ComfyUI boots in the usual way then, whoever notices it first."""
    for notice in (keeper.health, lambda: keeper.bring_up(math.inf, low_memory=False)):
        process = keeper.process = ComfyProcess(
            replace(keeper.process.config, lazy_boot=True, comfyui_args=("--fault", "dies")),
            keeper.process.folder,
        )
        keeper.start_again("As asked", quiet=True)
        assert process.ends_within(20)
        behave(keeper, "serve")
        notice()
        keeper.bring_up(math.inf, low_memory=False)
        assert keeper.health() == "ok"
        assert process.has_failed_shortened
        assert keeper.why in ("", "As asked")
        process.stop()


def test_a_boot_that_is_overdue_with_nobody_waiting_is_told(keeper: Keeper) -> None:
    behave(keeper, "deaf", boot_timeout=1e-9)
    keeper.start_again("As asked", quiet=True)
    assert keeper.health() == "restarting"
    assert keeper.why == "ComfyUI did not answer within 0 s."
    assert keeper.process.alive
    behave(keeper, "serve")
    keeper.bring_up(math.inf, low_memory=False)
    assert (keeper.restarts, keeper.health()) == (2, "ok")


def test_a_boot_that_is_late_is_taken_all_the_same(keeper: Keeper) -> None:
    behave(keeper, "serve", boot_timeout=1e-9)
    keeper.start_again("As asked", quiet=True)
    assert keeper.health() in ("restarting", "ok")
    keeper.process.wait_ready(20)
    assert keeper.health() == "ok"
    keeper.bring_up(math.inf, low_memory=False)
    assert (keeper.restarts, keeper.health()) == (1, "ok")


def test_a_comfyui_that_cannot_even_be_started_is_at_fault(keeper: Keeper, tmp_path: Path) -> None:
    usual = keeper.process.config
    keeper.process.config = replace(usual, comfyui=tmp_path)
    keeper.start_again("As asked", quiet=True)
    assert keeper.health() == "restarting"
    assert keeper.why.startswith("There is no ComfyUI in ")
    with pytest.raises(StartFailed, match="There is no ComfyUI"):
        keeper.bring_up(math.inf, low_memory=False)
    assert keeper.health() == "broken"
    keeper.process.config = usual
    keeper.bring_up(math.inf, low_memory=False)
    keeper.forgive()
    assert keeper.health() == "ok"


def test_one_that_is_closed_starts_nothing_more(keeper: Keeper) -> None:
    keeper.close()
    keeper.start_again("As asked")
    assert not keeper.process.alive
    assert (keeper.health(), keeper.why, keeper.restarts) == ("broken", "It was closed.", 0)
    with pytest.raises(MachineError, match=r"takes no more runs\. It was closed\."):
        keeper.bring_up(math.inf, low_memory=False)
