"""When to save and when to leave, by a clock under the test's control."""

import pytest

from ofq.stopping import deadline
from ofq.training import pace as pace_module
from ofq.training.pace import Pace


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(pace_module, "time", clock)
    return clock


def spend(pace, clock, part, seconds):
    with pace.measure(part):
        clock.now += seconds


def test_step_fits_while_it_and_a_save_end_before_the_deadline(clock):
    pace = Pace(deadline=200.0)
    spend(pace, clock, "save", 4)
    spend(pace, clock, "step", 10)
    clock.now = 178.0
    assert pace.fits("step")  # 1.5 x (10 + 4) = 21 seconds are needed
    clock.now = 180.0
    assert not pace.fits("step")


def test_evaluation_is_judged_by_its_own_time(clock):
    pace = Pace(deadline=200.0)
    spend(pace, clock, "evaluation", 30)
    spend(pace, clock, "step", 1)
    clock.now = 170.0
    assert pace.fits("step")
    assert not pace.fits("evaluation")


def test_every_attempt_moves_on_by_something(clock):
    pace = Pace(deadline=50.0)
    spend(pace, clock, "save", 1)
    assert pace.fits("step")
    spend(pace, clock, "step", 1)
    assert not pace.fits("step")


def test_without_a_limit_everything_fits(clock):
    pace = Pace()
    spend(pace, clock, "step", 1e9)
    assert pace.fits("evaluation")


def test_longest_of_the_last_times_counts_and_fades(clock):
    pace = Pace()
    for seconds in (1, 10, 1, 1):
        spend(pace, clock, "step", seconds)
    assert pace.seconds["step"] == pytest.approx(8.1)


def test_checkpoint_is_due_after_its_interval_and_a_failed_one_is_put_off(clock):
    pace = Pace(save_every=60)
    clock.now += 59
    assert not pace.save_due()
    clock.now += 2
    assert pace.save_due()
    pace.postpone()
    assert not pace.save_due()
    clock.now += 61
    assert pace.save_due()
    spend(pace, clock, "save", 1)
    assert not pace.save_due()


@pytest.mark.parametrize(("minutes", "seconds"), [(10, 570), (1, 45), (0.1, 4.5)])
def test_deadline_leaves_half_a_minute_or_a_quarter_of_a_short_limit(minutes, seconds):
    assert deadline(1000.0, minutes) == pytest.approx(1000 + seconds)


def test_no_limit_is_no_deadline():
    assert deadline(1000.0, None) is None
