"""Tests of the speed and the time left that progress shows, on a clock that the tests set."""

import io
from collections.abc import Iterator

import numpy as np
import pytest

from repsim.commands import terminal
from repsim.runtime.pace import Pace
from repsim.runtime.progress import Step, counter, expect, part_of, report_share, sharing


def reports(pace: Pace, durations: Iterator[float] | list[float], total: int, start: float = 0.0) -> Iterator[float]:
    """Report the units of a total, which take these durations, and yield the time after each."""
    now = start
    pace.report(now, 0, total)
    for done, duration in enumerate(durations, 1):
        now += duration
        pace.report(now, done, total)
        yield now


def test_nothing_is_shown_before_it_is_known() -> None:
    """The first line has neither a rate of 0 nor a time left."""
    pace = Pace()
    assert pace.text(0.0, "images") == "0 of 0"
    pace.report(1.0, 32, 5000)
    assert (pace.rate, pace.left(1.0)) == (None, None)
    assert pace.text(1.0, "images") == "32 of 5,000"
    pace.report(1.001, 64, 5000)
    assert pace.rate is None, "after a millisecond nothing is known"


@pytest.mark.parametrize("seconds", [0.01, 2.0, 100.0])
def test_steady_work_is_predicted_exactly(seconds: float) -> None:
    pace, total = Pace(), 200
    for done, now in enumerate(reports(pace, [seconds] * (total - 1), total), 1):
        if (left := pace.left(now)) is not None:
            assert left == pytest.approx((total - done) * seconds)
    assert pace.rate == pytest.approx(1 / seconds)


def test_what_an_earlier_run_did_is_no_work() -> None:
    pace = Pace()
    pace.report(0.0, 900, 1000)
    pace.report(10.0, 910, 1000)
    assert (pace.rate, pace.left(10.0)) == (1.0, 90.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_time_left_is_within_30_percent_of_irregular_work(seed: int) -> None:
    """After a tenth of the work, whose units differ by a factor of ten."""
    rng = np.random.default_rng(seed)
    durations = np.exp(rng.uniform(-1.15, 1.15, 400))
    pace, end = Pace(), durations.sum()
    for done, now in enumerate(reports(pace, list(durations[:-20]), 400), 1):
        if done > 40:
            left = pace.left(now)
            assert left is not None
            assert left == pytest.approx(end - now, rel=0.3)


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    """Two minutes later the speed before has little weight left."""
    pace = Pace()
    now = list(reports(pace, [1.0] * 100 + [4.0] * 50, 1000))[-1]
    assert pace.rate == pytest.approx(1 / 4, rel=0.3)
    assert pace.left(now) == pytest.approx(850 * 4, rel=0.3)


def test_a_prediction_is_shown_at_once_and_soon_outweighed() -> None:
    pace = Pace()
    pace.expect(600.0)
    pace.report(0.0, 0, 100)
    assert pace.left(0.0) == 600
    assert pace.left(50.0) == 550, "it counts down while a unit runs"
    assert pace.text(0.0, "%") == "0 %, 10 min 0 s left"
    for done in range(1, 21):  # twice as slow as predicted
        pace.report(12.0 * done, done, 100)
    assert pace.left(240.0) == pytest.approx(960, rel=0.05)


def test_the_time_left_grows_while_a_unit_is_overdue() -> None:
    pace = Pace()
    for done in range(10):
        pace.report(float(done), done, 11)
    left = [value for since in (0, 1, 5, 50, 500) if (value := pace.left(9.0 + since)) is not None]
    assert len(left) == 5
    assert left[:2] == [2.0, 1.0]
    assert left[2:] == sorted(left[2:])
    assert min(left) > 0


def test_a_sign_of_life_changes_no_speed() -> None:
    quiet, lively = Pace(), Pace()
    for done in range(5):
        for pace in (quiet, lively):
            pace.report(10.0 * done, done, 20)
        for part in range(1, 10):
            lively.report(10.0 * done + part, done, 20)
    assert lively.rate == quiet.rate
    assert lively.left(45.0) == quiet.left(45.0)


def test_a_new_kind_of_work_starts_the_measurement_again() -> None:
    pace = Pace()
    pace.report(0.0, 0, 100)
    pace.report(50.0, 0, 100)
    pace.expect(None)
    pace.report(60.0, 10, 100)
    pace.report(61.0, 20, 100)
    assert pace.rate == 10.0


def test_less_done_than_before_is_a_new_start() -> None:
    pace = Pace()
    pace.report(0.0, 5, 10)
    pace.report(1.0, 9, 10)
    pace.report(2.0, 1, 10)
    assert pace.rate is None


@pytest.mark.parametrize(
    ("seconds", "unit", "shown"),
    [
        (0.001, "images", "1,000 images/s"),
        (0.2, "images", "5.0 images/s"),
        (0.2, "", "5.0 a second"),
        (30.0, "images", "30 s each"),
        (0.2, "%", "40 %"),
    ],
)
def test_rates_are_shown_in_readable_units(seconds: float, unit: str, shown: str) -> None:
    pace = Pace()
    pace.report(0.0, 0, 100)
    pace.report(40 * seconds, 40, 100)
    pace.report(1040 * seconds, 40, 100)
    if 40 * seconds < 0.5:
        assert shown not in pace.text(40 * seconds, unit)
        pace = Pace()
        pace.report(0.0, 0, 10_000)
        pace.report(1000 * seconds, 1000, 10_000)
    text = pace.text(40 * seconds, unit)
    assert shown in text
    assert "0.0" not in text


# --- reports from within a unit


def test_a_loop_inside_of_a_unit_reports_its_share() -> None:
    class Shares(Step):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def share(self, share: float) -> None:
            self.seen.append(share)

    report_share(1, 2)  # nobody listens
    step = Shares()
    with sharing(step):
        report_share(1, 4)
        with sharing(lambda: None):
            report_share(2, 4)  # to a function that takes no shares
        report_share(3, 4)
    report_share(4, 4)
    assert step.seen == [0.25, 0.75]


def test_a_counter_repeats_what_is_done_as_a_sign_of_life() -> None:
    seen: list[tuple[int, int]] = []
    step = counter(3, lambda done, total: seen.append((done, total)))
    step.skip(1)
    with sharing(step):
        report_share(1, 2)
    step()
    assert seen == [(1, 3), (2, 3)]
    counter(3, None)()


def test_predictions_reach_listeners_that_take_them() -> None:
    bar = terminal.Bar("comparing", "%")
    expect(bar, 100.0)
    expect(lambda *_: None, 100.0)
    expect(None, 100.0)
    bar.pace.report(0.0, 0, 100)
    assert bar.pace.left(0.0) == 100.0
    part = part_of(bar, 50, 200)
    assert part is not None
    expect(part, 5.0)  # of the part alone
    assert bar.pace.left(0.0) == 100.0
    expect(part, None)
    part(10, 20)
    assert (bar.pace.done, bar.pace.total, bar.pace.rate) == (60, 200, None)
    assert part_of(None, 1, 2) is None


# --- lines of a log file


def test_a_log_has_a_line_every_half_minute_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    bar = terminal.Bar("extracting", "images", clock=lambda: now)
    bar.print_line()
    for second in range(100):
        now = float(second)
        if second < 50:  # then one unit takes long, and only the thread of the lines calls
            bar(10 * second, 2000)
        bar.print_line()
    assert capsys.readouterr().err.splitlines() == [
        "extracting: 300 of 2,000, 10 images/s, 2 min 50 s left",
        "extracting: 490 of 2,000, 10 images/s, 2 min 20 s left",
        "extracting: 490 of 2,000, 10 images/s, 1 min 50 s left",
    ]


def test_a_log_gets_lines_while_a_unit_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread prints them, however long the work reports nothing."""
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(terminal, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    with terminal.progress_bar("working", "steps") as advance:
        advance(1, 10)
        before = log.getvalue()
        while log.getvalue() == before:
            pass
    ended = log.getvalue()
    assert set(ended.splitlines()) == {"working: 1 of 10"}
