"""When `Pace` adds connections."""

import threading

from comfy_runner.fetch.pace import ENOUGH, FEW, LOOK, Pace


def look(pace: Pace, came: int, *, waiting: bool = True) -> int:
    threading.Event().wait(LOOK * 1.5)
    return pace.more(came, waiting=waiting)


def test_doubles_up_to_the_most_as_long_as_all_get_faster() -> None:
    pace = Pace(FEW * 3)
    enough = ENOUGH * FEW
    assert look(pace, enough) == FEW
    assert look(pace, enough * 50) == FEW
    assert pace.now == FEW * 3
    assert look(pace, enough * 5000) == 0


def test_adds_none_without_use() -> None:
    pace = Pace(FEW * 3)
    enough = ENOUGH * FEW
    assert look(pace, enough - 1) == 0, "that tells too little"
    assert look(pace, enough, waiting=False) == 0, "there is nothing to do"
    assert look(pace, enough * 50) == FEW
    assert look(pace, enough * 52) == 0, "the last step brought nothing"


def test_begins_with_no_more_than_allowed() -> None:
    assert Pace(1).now == 1
    assert Pace(FEW * 9).now == FEW
