"""Downloads counted while they come: bytes, rates, time left, and what is told of them when."""

import threading
from collections.abc import Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.weights.progress import Downloading, Meter, Overall, Steps, bytes_of

MB = 1_000_000


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(clock)


def come(
    meter: Meter, clock: Clock, at: int, *, seconds: float, rate: int, total: int | None
) -> int:
    """Report the bytes of the file `a` ten times a second. Returns how many stand then."""
    for _ in range(round(seconds * 10)):
        clock.now += 0.1
        at += rate // 10
        meter.report("a", at, total)
    return at


def only(updates: list[Downloading]) -> Downloading:
    (update,) = updates
    return update


def test_a_file_is_fresh_once_after_each_news_of_it(meter: Meter) -> None:
    assert meter.fresh() == []
    meter.expect("a", 10)
    meter.expect("b", None)
    assert meter.fresh() == [Downloading("a", 0, 10), Downloading("b", 0, None)]
    assert meter.fresh() == []
    meter.report("b", 1, None)
    meter.report("b", 2, 7)
    assert meter.fresh() == [Downloading("b", 2, 7)]


def test_a_file_that_nobody_expected_counts_from_its_first_report(meter: Meter) -> None:
    meter.report("a", 3, 5)
    assert meter.fresh() == [Downloading("a", 3, 5)]
    assert meter.overall().files == 1


def test_a_rate_is_that_of_the_last_seconds(meter: Meter, clock: Clock) -> None:
    meter.report("a", 0, 1000 * MB)
    assert only(meter.fresh()).rate == 0
    at = come(meter, clock, 0, seconds=20, rate=10 * MB, total=1000 * MB)
    assert only(meter.fresh()).rate == pytest.approx(10 * MB, rel=0.01)
    at = come(meter, clock, at, seconds=10, rate=50 * MB, total=1000 * MB)
    update = only(meter.fresh())
    assert update.rate == pytest.approx(50 * MB, rel=0.01)
    assert update.seconds_left == pytest.approx((1000 * MB - at) / (50 * MB), rel=0.01)


def test_a_rate_falls_to_nothing_when_nothing_comes(meter: Meter, clock: Clock) -> None:
    meter.report("a", 0, 1000 * MB)
    come(meter, clock, 0, seconds=20, rate=10 * MB, total=1000 * MB)
    assert only(meter.heartbeat()).rate > 0
    rates = []
    for _ in range(6):
        clock.now += 1
        rates.append(only(meter.heartbeat()).rate)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0
    assert meter.overall().rate == 0
    assert meter.overall().seconds_left is None


def test_what_an_earlier_run_left_is_no_speed(meter: Meter, clock: Clock) -> None:
    meter.expect("a", 2000 * MB)
    clock.now += 1
    meter.report("a", 1000 * MB, 2000 * MB)
    come(meter, clock, 1000 * MB, seconds=2, rate=10 * MB, total=2000 * MB)
    assert only(meter.fresh()).rate == pytest.approx(10 * MB, rel=0.01)
    assert meter.overall().rate == pytest.approx(10 * MB, rel=0.01)
    assert meter.overall().done == 1020 * MB


def test_a_download_that_begins_anew_goes_back_but_its_rate_does_not(
    meter: Meter, clock: Clock
) -> None:
    meter.report("a", 0, 100 * MB)
    come(meter, clock, 0, seconds=5, rate=10 * MB, total=100 * MB)
    meter.report("a", 0, 100 * MB)
    update = only(meter.fresh())
    assert update.done == 0
    assert update.rate == pytest.approx(10 * MB, rel=0.05)
    come(meter, clock, 0, seconds=5, rate=10 * MB, total=100 * MB)
    assert meter.overall().rate == pytest.approx(10 * MB, rel=0.05)


def test_all_files_together(meter: Meter, clock: Clock) -> None:
    for key in "abc":
        meter.expect(key, 100 * MB)
    meter.report("a", 0, 100 * MB)
    meter.report("b", 0, 100 * MB)
    for step in range(1, 51):
        clock.now += 0.1
        meter.report("a", step * MB, 100 * MB)
        meter.report("b", 2 * step * MB, 100 * MB)
    meter.finish("b")
    overall = meter.overall()
    assert overall == Overall(150 * MB, 300 * MB, overall.rate, files_done=1, files=3)
    assert overall.rate == pytest.approx(30 * MB, rel=0.05)
    assert overall.seconds_left == pytest.approx(5, rel=0.05)
    assert {update.overall for update in meter.fresh()} == {overall}


def test_nobody_knows_the_time_left_where_a_size_is_unknown(meter: Meter, clock: Clock) -> None:
    meter.expect("a", 100 * MB)
    meter.expect("b", None)
    meter.report("a", 0, None)
    come(meter, clock, 0, seconds=2, rate=10 * MB, total=None)
    overall = meter.overall()
    assert (overall.total, overall.seconds_left) == (None, None)
    assert meter.fresh()[0].seconds_left == pytest.approx(8, rel=0.05)
    meter.finish("b")
    assert meter.overall().total == 100 * MB


def test_more_bytes_than_there_should_be_make_the_size_unknown(meter: Meter) -> None:
    meter.expect("a", 10)
    meter.report("a", 11, None)
    assert only(meter.fresh()) == Downloading("a", 11, None)


def test_a_finished_file_is_whole_however_it_came(meter: Meter) -> None:
    meter.expect("linked", 10)
    meter.report("unknown", 7, None)
    for key in ("linked", "unknown"):
        meter.finish(key)
    assert meter.fresh() == [Downloading("linked", 10, 10), Downloading("unknown", 7, 7)]
    assert (meter.overall().files_done, meter.overall().rate) == (2, 0)
    assert meter.overall().seconds_left == 0


def test_a_file_that_comes_again_is_not_done(meter: Meter) -> None:
    meter.expect("a", 10)
    meter.finish("a")
    meter.report("a", 0, 10)
    assert meter.overall().files_done == 0


def test_the_last_state_is_told_again_about_once_a_second(meter: Meter, clock: Clock) -> None:
    assert meter.heartbeat() == []
    meter.report("a", 1, 10)
    meter.report("b", 1, 10)
    assert [update.name for update in meter.heartbeat()] == ["a", "b"]
    told: list[tuple[float, str]] = []
    for tenth in range(1, 26):
        clock.now = 1000 + tenth / 10
        if tenth == 5:
            meter.report("a", 2, 10)
        told += [(tenth / 10, update.name) for update in meter.heartbeat()]
    assert told == [(0.5, "a"), (1.5, "a"), (2.5, "a")]


def test_threads_may_report_at_once() -> None:
    meter = Meter()
    begin = threading.Barrier(4)

    def report(key: str) -> None:
        begin.wait()
        for done in range(1001):
            meter.report(key, done, 1000)
        meter.finish(key)

    threads = [threading.Thread(target=report, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    seen: dict[str, Downloading] = {}
    while any(thread.is_alive() for thread in threads):
        seen |= {update.name: update for update in meter.fresh()}
    for thread in threads:
        thread.join()
    seen |= {update.name: update for update in meter.fresh()}
    assert seen == {key: Downloading(key, 1000, 1000) for key in "0123"}
    overall = meter.overall()
    assert (overall.done, overall.total, overall.files_done) == (4000, 4000, 4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 10**12),
            st.none() | st.integers(0, 10**12),
            st.floats(0, 10),
        )
    )
)
def test_no_report_makes_nonsense(reports: list[tuple[str, int, int | None, float]]) -> None:
    clock = Clock()
    meter = Meter(clock)
    for key, done, total, pause in reports:
        clock.now += pause
        meter.report(key, done, total)
        for update in meter.fresh():
            assert update.rate >= 0
            assert update.total is None or update.done <= update.total
            assert update.overall is not None
            assert update.overall.rate >= 0
            assert str(update)


# Words


def updates() -> Iterator[tuple[Downloading, str]]:
    overall = Overall(4_000 * MB, 9_100 * MB, 100 * MB, files_done=3, files=5)
    yield Downloading("a", 0, None), "0 B"
    yield Downloading("a", 512, 2_100), "512 B of 2.1 kB"
    yield Downloading("a", 1_500_000, None, 400_000.0), "1.5 MB, 400 kB/s"
    yield (
        Downloading("a", 120 * MB, 2_160 * MB, 85 * MB, overall),
        "120 MB of 2.2 GB, 85 MB/s, 24 s left (3 of 5 files, 4.0 of 9.1 GB in all)",
    )
    yield Downloading("a", 10 * MB, 210 * MB, MB), "10 of 210 MB, 1.0 MB/s, 3 min 20 s left"
    yield Downloading("a", 0, 7_500 * MB, MB), "0 B of 7.5 GB, 1.0 MB/s, 2 h 5 min left"
    yield Downloading("a", 5 * MB, 5 * MB, MB), "5.0 of 5.0 MB"
    yield (
        Downloading("a", MB, 2 * MB, 0.0, Overall(MB, None, 0.0, 0, 2)),
        "1.0 of 2.0 MB (0 of 2 files, 1.0 MB in all)",
    )
    yield Downloading("a", MB, 2 * MB, 0.0, Overall(MB, 2 * MB, 0.0, 0, 1)), "1.0 of 2.0 MB"


@pytest.mark.parametrize(("update", "words"), [*updates()])
def test_a_state_in_words(update: Downloading, words: str) -> None:
    assert str(update) == words


def test_units_are_said_once_where_they_are_the_same() -> None:
    assert bytes_of(4_000 * MB, 9_100 * MB) == "4.0 of 9.1 GB"
    assert bytes_of(120 * MB, 9_100 * MB) == "120 MB of 9.1 GB"
    assert bytes_of(120 * MB, None) == "120 MB"


def test_the_steps_of_a_generator_end_with_its_result() -> None:
    def counting() -> Generator[int, None, str]:
        yield 1
        yield 2
        return "done"

    steps = Steps(counting())
    assert [*steps] == [1, 2]
    assert steps.result == "done"
