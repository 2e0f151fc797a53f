"""What a start is made of, and how it is told."""

import re
import threading

import pytest

from comfy_runner.comfyui.phases import Phase, Timeline, boot_phases


def test_each_phase_begins_where_the_one_before_ends() -> None:
    phases = boot_phases(10.0, [("torch", 11.5), ("nodes", 13.0), ("ready", 13.25)], [])
    assert phases == (
        Phase("torch", 10.0, 11.5),
        Phase("nodes", 11.5, 13.0),
        Phase("ready", 13.0, 13.25),
    )
    assert [phase.seconds for phase in phases] == [1.5, 1.5, 0.25]


def test_a_node_pack_is_in_the_phase_in_which_it_began() -> None:
    packs = [("one", 10.5), ("", 11.0), ("two", 12.0), ("one", 12.25), ("", 13.0)]
    script, nodes, ready = boot_phases(10.0, [("torch", 11.0), ("nodes", 13.0), ("r", 14.0)], packs)
    assert script.parts == (Phase("one", 10.5, 11.0),)
    assert nodes.parts == (Phase("two", 12.0, 12.25), Phase("one", 12.25, 13.0))
    assert ready.parts == ()


def test_a_pack_that_is_still_loading_is_no_part_yet() -> None:
    (phase,) = boot_phases(0.0, [("nodes", 9.0)], [("one", 1.0), ("two", 2.0)])
    assert phase.parts == (Phase("one", 1.0, 2.0),)
    assert boot_phases(0.0, [], [("one", 1.0)]) == ()


def test_a_line_names_the_slowest_packs_and_counts_the_rest() -> None:
    assert str(Phase("torch", 1.0, 2.5)) == "torch 1.50 s"
    packs = tuple(Phase(f"pack{n}", float(n), n + 0.25 * n) for n in range(1, 8))
    assert str(Phase("nodes", 0.0, 14.0, packs)) == (
        "nodes 14.00 s (node packs: pack7 1.75 s, pack6 1.50 s, pack5 1.25 s, pack4 1.00 s,"
        " pack3 0.75 s, 2 more 0.75 s)"
    )


def test_a_timeline_tells_the_boot_what_went_on_meanwhile_and_all_of_it() -> None:
    timeline = Timeline()
    begun, go_on = threading.Event(), threading.Event()

    def work(answer: int) -> int:
        begun.set()
        go_on.wait(30)
        return answer

    with timeline.phase("surroundings"):
        pass
    (meanwhile,) = timeline.phases()
    assert (meanwhile.name, meanwhile.ended >= meanwhile.began) == ("surroundings", True)
    boot = [Phase("ready", meanwhile.began, meanwhile.ended)]
    with timeline.phase("warm-up"):
        pass
    thread = threading.Thread(target=timeline.timed("catalog", work), args=(1,))
    thread.start()
    assert begun.wait(30)
    try:
        lines = [re.sub(r"\d+\.\d\d", "N", line) for line in timeline.lines(boot, meanwhile.began)]
    finally:
        go_on.set()
        thread.join()
    assert lines == [
        "ready N s",
        "surroundings N s, while ComfyUI started",
        "warm-up N s",
        "catalog is still under way, after N s",
        "N s in all",
    ]
    assert [phase.name for phase in timeline.phases()] == ["surroundings", "warm-up", "catalog"]


def test_a_phase_that_fails_has_an_end_all_the_same() -> None:
    timeline = Timeline()
    with pytest.raises(ZeroDivisionError):
        timeline.timed("division", lambda number: 1 / number)(0)
    assert [phase.name for phase in timeline.phases()] == ["division"]
