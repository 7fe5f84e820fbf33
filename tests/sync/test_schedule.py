"""When the next round begins, in simulated time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from jmapfs.errors import ForbiddenError, ServerError, UnreachableError
from jmapfs.suspension import SuspensionDetector
from jmapfs.sync.schedule import RoundSchedule

# ruff: noqa: ARG001 - the fixture sets the clock

pytestmark = pytest.mark.usefixtures("steady_pauses")

FAILURE = ServerError("nonsense")


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@asynccontextmanager
async def hinted_often() -> AsyncIterator[RoundSchedule]:
    """Yield a schedule that gets a hint again and again."""
    schedule = RoundSchedule()

    async def hint() -> None:
        while True:
            schedule.hint()
            await trio.sleep(0.3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hint)
        yield schedule
        nursery.cancel_scope.cancel()


async def pause(schedule: RoundSchedule, interval: float = 60) -> float:
    """Wait for the next round; return how long that took."""
    began = trio.current_time()
    await schedule.wait(interval)
    seconds = trio.current_time() - began
    schedule.begin()
    return round(seconds, 2)


async def test_after_a_success_the_interval_passes(clock: MockClock) -> None:
    schedule = RoundSchedule()
    schedule.begin()
    schedule.record_success()
    assert await pause(schedule) == 60
    assert schedule.next_try is None


async def test_a_hint_begins_a_round_soon(clock: MockClock) -> None:
    schedule = RoundSchedule()
    schedule.begin()
    schedule.hint()  # during the round
    schedule.record_success()
    assert await pause(schedule) == 0.05


async def test_hints_that_do_not_end_begin_a_round_every_two_seconds(clock: MockClock) -> None:
    async with hinted_often() as schedule:
        pauses = []
        for _ in range(40):
            schedule.record_success()
            pauses.append(await pause(schedule))
        assert sum(one <= 1 for one in pauses) <= 6
        assert pauses[-10:] == [2] * 10
    # After a quiet time, a hint begins a round soon again.
    schedule.record_success()
    await trio.sleep(30)
    schedule.hint()
    assert await pause(schedule) == 0.05


async def test_hints_shorten_only_the_first_pause(clock: MockClock) -> None:
    async with hinted_often() as schedule:
        for expected in (1, 4, 8, 16, 32, 60, 60):
            schedule.record_failure(FAILURE)
            assert await pause(schedule) == expected
    assert schedule.failures == 7


async def test_a_request_begins_a_round_at_once_and_keeps_the_pauses(clock: MockClock) -> None:
    schedule = RoundSchedule()
    for _ in range(4):
        schedule.record_failure(FAILURE)
        await pause(schedule)
    for _ in range(9):
        schedule.record_failure(FAILURE)
        schedule.request()
        assert await pause(schedule) == 0
    schedule.record_failure(FAILURE)
    assert await pause(schedule) == 32


async def test_a_server_that_fails_every_other_time(clock: MockClock) -> None:
    async with hinted_often() as schedule:
        began = trio.current_time()
        for _ in range(20):
            schedule.record_failure(FAILURE)
            await pause(schedule)
            schedule.record_success()
            await pause(schedule)
        assert trio.current_time() - began > 14 * 60


async def test_long_rounds_take_a_tenth_of_the_time(clock: MockClock) -> None:
    async with hinted_often() as schedule:
        schedule.begin()
        for expected in (2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
            await trio.sleep(30)
            schedule.record_success()
            assert await pause(schedule) == expected


async def test_only_a_round_that_fails_slowly_is_repeated_seldom(clock: MockClock) -> None:
    for error, expected in ((UnreachableError("silent"), 60), (FAILURE, 300)):
        schedule = RoundSchedule()
        schedule.begin()
        pauses = []
        for _ in range(10):
            await trio.sleep(30)
            schedule.record_failure(error)
            pauses.append(await pause(schedule))
        assert pauses[-1] == expected


async def test_a_forbidden_login_is_repeated_after_an_hour(clock: MockClock) -> None:
    schedule = RoundSchedule()
    pauses = []
    for _ in range(20):
        schedule.record_failure(ForbiddenError("no"))
        pauses.append(await pause(schedule))
    assert pauses[-1] == 3600


async def test_after_a_suspension_a_round_begins_soon(clock: MockClock) -> None:
    suspended = 100.0
    schedule = RoundSchedule(SuspensionDetector(lambda: (suspended, 0.0)))
    for _ in range(20):
        schedule.record_failure(UnreachableError("no network"))
        await pause(schedule)
    schedule.record_failure(UnreachableError("no network"))
    async with trio.open_nursery() as nursery:

        async def suspend() -> None:
            nonlocal suspended
            await trio.sleep(12)
            suspended += 8 * 3600

        nursery.start_soon(suspend)
        assert await pause(schedule) == 20
    schedule.record_failure(UnreachableError("no network yet"))
    assert await pause(schedule) == 2
    # Also without a failure: the connections are dead.
    schedule.record_success()
    await trio.sleep(30)
    suspended += 60
    assert await pause(schedule) == 0.05


async def test_a_machine_that_was_suspended_during_a_round(clock: MockClock) -> None:
    suspended = 0.0
    schedule = RoundSchedule(SuspensionDetector(lambda: (suspended, 0.0)))
    for _ in range(20):
        schedule.record_failure(UnreachableError("no network"))
        await pause(schedule)
    suspended += 60
    schedule.record_failure(UnreachableError("the connection is dead"))
    assert await pause(schedule) == 0


async def test_after_a_first_listing_new_mail_is_shown_soon(clock: MockClock) -> None:
    schedule = RoundSchedule()
    schedule.begin()
    await trio.sleep(3600)
    schedule.hint()
    schedule.record_success()
    assert await pause(schedule) == 2
