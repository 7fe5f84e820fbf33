"""Deadlines that follow received bytes, and operations that make no progress; in simulated time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from jmapfs.deadline import LEAST_RATE, LONGEST_STALL, Deadline, Stall
from jmapfs.errors import DeadlineError, ProtocolError

# ruff: noqa: ARG001 - the fixture sets the clock


async def test_received_bytes_move_a_deadline(autojump_clock: MockClock) -> None:
    deadline = Deadline(10)

    async def receive() -> None:
        with deadline.enforced("too late"):
            for _ in range(100):
                await trio.sleep(1)
                if trio.current_time() < 50.5:
                    deadline.received(LEAST_RATE)

    with pytest.raises(DeadlineError, match="too late"):
        await receive()
    assert trio.current_time() == pytest.approx(60)
    assert deadline.passed
    assert deadline.left == 0


async def test_pauses_move_a_deadline(autojump_clock: MockClock) -> None:
    deadline = Deadline(10)
    with deadline.limit() as scope:
        await trio.sleep(5)
        deadline.extend(30)
        await trio.sleep(33)
    assert not scope.cancelled_caught
    assert deadline.left == pytest.approx(2)


async def test_fast_bytes_save_no_time_for_a_trickle(autojump_clock: MockClock) -> None:
    deadline = Deadline(10)
    deadline.received(1000 * LEAST_RATE)
    with deadline.limit() as scope:
        for _ in range(100):
            await trio.sleep(1)
            deadline.received(1)
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(10, abs=0.1)


async def test_received_bytes_are_passed_on(autojump_clock: MockClock) -> None:
    counts: list[int] = []
    reader = Deadline(5)
    download = Deadline(10, counts.append, lambda: [reader])
    await trio.sleep(4)
    download.received(LEAST_RATE)
    assert (download.left, reader.left) == pytest.approx((7, 2))
    download.refill(LEAST_RATE)
    assert (download.left, reader.left) == pytest.approx((8, 3))
    assert counts == [LEAST_RATE]


class Work:
    """An operation whose progress and bytes a test sets."""

    def __init__(self) -> None:
        self.finished = 0
        self.received = 0
        self.is_waiting = True

    def stall(self) -> Stall:
        return Stall(lambda: self.finished, lambda: self.received, lambda: self.is_waiting)


async def test_an_operation_without_progress_ends(autojump_clock: MockClock) -> None:
    work = Work()

    async def run() -> None:
        for _ in range(10):
            await trio.sleep(100)
            work.finished += 1
        await trio.sleep_forever()

    with pytest.raises(DeadlineError, match="nothing comes"):
        await work.stall().limit(run, "nothing comes")
    assert trio.current_time() == pytest.approx(1000 + LONGEST_STALL, abs=3)


@pytest.mark.parametrize(
    ("rate", "ends"), [(1, True), (LEAST_RATE // 2, True), (LEAST_RATE, False)]
)
async def test_bytes_are_progress_only_if_they_come_fast_enough(
    autojump_clock: MockClock, rate: int, *, ends: bool
) -> None:
    work = Work()

    async def trickle() -> str:
        for _ in range(3600):
            await trio.sleep(1)
            work.received += rate
        return "done"

    if ends:
        with pytest.raises(DeadlineError):
            await work.stall().limit(trickle, "too slow")
        assert trio.current_time() < 3 * LONGEST_STALL
    else:
        assert await work.stall().limit(trickle, "too slow") == "done"


async def test_work_on_the_disk_does_not_count(autojump_clock: MockClock) -> None:
    work = Work()
    work.is_waiting = False

    async def slow_disk() -> str:
        await trio.sleep(3600)
        return "done"

    assert await work.stall().limit(slow_disk, "too slow") == "done"


async def test_the_time_of_a_stopped_process_does_not_count(autojump_clock: MockClock) -> None:
    work = Work()

    async def stop() -> str:
        await trio.sleep(5)
        # The process notices only afterwards that an hour has passed.
        autojump_clock.jump(3600)
        await trio.sleep(LONGEST_STALL / 2)
        return "done"

    assert await work.stall().limit(stop, "too slow") == "done"


async def test_an_error_of_the_operation_is_raised_alone() -> None:
    async def fail() -> None:
        raise ProtocolError("odd")

    with pytest.raises(ProtocolError, match="odd"):
        await Work().stall().limit(fail, "too slow")
