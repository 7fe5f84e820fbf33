"""Suspensions of the machine, and stored times after the clock was set."""

from __future__ import annotations

import math
import time

import pytest

from jmapfs.suspension import SuspensionDetector, clock_differences, seconds_since


@pytest.mark.parametrize("clock", [0, 1])
@pytest.mark.parametrize("step", [8 * 3600.0, -3600.0])
def test_each_jump_of_a_clock_is_noticed_once(clock: int, step: float) -> None:
    differences = [100.0, 1.7e9]
    detector = SuspensionDetector(lambda: (differences[0], differences[1]))
    assert not detector.noticed()
    differences[clock] += step
    assert detector.noticed()
    assert not detector.noticed()


def test_clocks_that_are_adjusted_slowly_are_no_suspension() -> None:
    differences = [100.0, 1.7e9]
    detector = SuspensionDetector(lambda: (differences[0], differences[1]))
    for _ in range(1000):
        differences[1] += 0.01
        assert not detector.noticed()


def test_the_differences_stay_equal_while_the_machine_runs() -> None:
    before = clock_differences()
    time.sleep(0.02)
    assert clock_differences() == pytest.approx(before, abs=0.01)


def test_a_time_in_the_future_is_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert seconds_since(400.0) == 600.0
    assert seconds_since(1000.0) == 0.0
    assert seconds_since(1001.0) == math.inf
