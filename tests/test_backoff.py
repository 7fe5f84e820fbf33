"""The pauses after failures, in simulated time."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from jmapfs.backoff import BackOff, Pace

# ruff: noqa: ARG001 - the fixture sets the clock

pytestmark = pytest.mark.usefixtures("steady_pauses")


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


def pause(back_off: BackOff, *, hinted: bool = False) -> float:
    """Return how long the next try has to wait."""
    return back_off.due(hinted=hinted) - trio.current_time()


async def test_each_pause_is_twice_as_long_up_to_a_bound(clock: MockClock) -> None:
    back_off = BackOff(2, 60)
    assert pause(back_off) == -math.inf
    pauses = []
    for _ in range(100):
        back_off.record_failure()
        pauses.append(pause(back_off))
        clock.jump(pauses[-1])
    assert pauses[:6] == [2, 4, 8, 16, 32, 60]
    assert set(pauses[6:]) == {60}
    assert back_off.failures == 100


async def test_a_hint_shortens_only_the_first_pause(clock: MockClock) -> None:
    back_off = BackOff(2, 60, floor=1)
    back_off.record_failure()
    assert (pause(back_off), pause(back_off, hinted=True)) == (2, 1)
    clock.jump(1)
    for expected in (4, 8, 16):
        back_off.record_failure()
        assert pause(back_off, hinted=True) == pause(back_off) == expected


async def test_failures_that_alternate_with_successes_are_one_series(clock: MockClock) -> None:
    back_off = BackOff(2, 60, floor=1)
    for expected in (2, 4, 8, 16, 32, 60, 60):
        back_off.record_failure()
        assert back_off.failures == 1
        assert pause(back_off) == expected
        clock.jump(expected)
        back_off.record_success()
        assert pause(back_off, hinted=True) == -math.inf
        clock.jump(1)


@pytest.mark.parametrize(("seconds", "expected"), [(39, 8), (41, 2)])
async def test_a_series_ends_with_a_lasting_success(
    clock: MockClock, seconds: float, expected: float
) -> None:
    back_off = BackOff(2, 60)
    for _ in range(2):
        back_off.record_failure()
        clock.jump(pause(back_off))
    back_off.record_success()
    clock.jump(seconds)
    back_off.record_success()
    back_off.record_failure()
    assert pause(back_off) == expected


@pytest.mark.parametrize(
    ("longest", "seconds", "expected"),
    [(60, 119, 60), (60, 121, 2), (900, 899, 900), (900, 901, 2)],
)
async def test_the_longest_success_that_does_not_end_a_series(
    clock: MockClock, longest: float, seconds: float, expected: float
) -> None:
    back_off = BackOff(2, longest)
    for _ in range(20):
        back_off.record_failure()
        clock.jump(pause(back_off))
    back_off.record_success()
    clock.jump(seconds)
    back_off.record_failure()
    assert pause(back_off) == expected


async def test_the_pause_before_a_requested_success_does_not_count(clock: MockClock) -> None:
    """A success counts from the end of the pause that the user has interrupted."""
    back_off = BackOff(2, 60)
    for _ in range(4):
        back_off.record_failure()
        clock.jump(2)
    back_off.record_success()
    clock.jump(14 + 119)
    back_off.record_failure()
    assert pause(back_off) == 32


async def test_a_slow_try_without_a_success_does_not_end_the_series(clock: MockClock) -> None:
    back_off = BackOff(2, 60)
    for expected in (2, 4, 8):
        back_off.record_failure()
        assert pause(back_off) == expected
        clock.jump(pause(back_off) + 600)


async def test_tries_that_the_user_requests_change_no_pause(clock: MockClock) -> None:
    back_off = BackOff(2, 60, floor=1)
    back_off.record_failure(requested=True)
    assert pause(back_off) == 2
    clock.jump(2)
    back_off.record_failure()
    for _ in range(5):
        back_off.record_failure(requested=True)
        assert pause(back_off, hinted=True) == 4
    assert back_off.failures == 7
    clock.jump(4)
    back_off.record_failure()
    assert pause(back_off) == 8


async def test_long_tries_are_repeated_seldom(clock: MockClock) -> None:
    back_off = BackOff(2, 60, floor=1)
    pauses = []
    for _ in range(12):
        back_off.record_failure(took=100)
        pauses.append(pause(back_off))
        assert pause(back_off, hinted=True) == pauses[-1]
    assert pauses[:4] == [10, 20, 40, 80]
    assert pauses[-1] == 1000
    # One long try says little: the first listing of a large account takes an hour.
    back_off = BackOff(2, 60, floor=1)
    back_off.record_failure(took=3600)
    assert pause(back_off) == pause(back_off, hinted=True) == 60


async def test_the_longest_pause_depends_on_the_failure(clock: MockClock) -> None:
    back_off = BackOff(2, 60)
    for _ in range(20):
        back_off.record_failure(longest=3600)
    assert pause(back_off) == 3600
    back_off.record_failure()
    assert pause(back_off) == 60


async def test_a_restart_ends_the_pause(clock: MockClock) -> None:
    back_off = BackOff(2, 60)
    for _ in range(9):
        back_off.record_failure()
    back_off.restart()
    assert pause(back_off) == -math.inf
    back_off.record_failure()
    assert pause(back_off) == 2
    assert back_off.failures == 10


async def test_a_pace_slows_only_what_is_repeated(clock: MockClock) -> None:
    pace = Pace(0.1, 2)
    delays = []
    for _ in range(8):
        pace.record()
        delays.append(pace.next_at - trio.current_time())
        clock.jump(delays[-1])
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2])
    clock.jump(21)
    pace.record()
    assert pace.next_at - trio.current_time() == pytest.approx(0.1)
