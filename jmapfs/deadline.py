"""Deadlines that follow progress.

The server decides how many bytes it sends, and states sizes that may be wrong. So more time is
earned by bytes that have arrived, never by a size that is stated:

    time left = min(seconds, time left + received bytes / LEAST_RATE)

A transfer that is faster than this rate may take as long as it needs. A trickle ends soon after the
first `seconds`, whatever size is stated and however much arrived before. A request that waits for
its turn has its time refilled by the bytes of the others: the line is busy then.

An operation of many transfers has no deadline, because a large account takes long. It has to make
progress: something that it needs must be finished (an email listed, a content accepted) at least
every LONGEST_STALL seconds. Bytes give more time at the same rate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

from jmapfs.errors import DeadlineError, lone_errors

_T = TypeVar("_T")

LONGEST_STALL: Final = 120.0
"""Seconds without progress after which an operation of many transfers is given up."""

NO_PROGRESS: Final = f"there was no progress for {LONGEST_STALL:.0f} seconds"
"""The text of errors about that."""

_CHECK_SECONDS: Final = 2.0

LEAST_RATE: Final = 16 * 1024
"""Bytes per second: a slower transfer ends before it is complete, unless it is short.

This is an eighth of a line of 1 Mbit/s, which eight requests share.
"""


class Deadline:
    """The moment at which something must have ended. Received bytes and pauses move it.

    `seconds` is the time from the beginning to this moment. `until` is the moment, in trio's clock.
    `on_received` is called with each number of bytes that has arrived. `followers` returns the
    deadlines of those who wait for the same bytes: these are refilled too.
    """

    def __init__(
        self,
        seconds: float,
        on_received: Callable[[int], None] = lambda _: None,
        followers: Callable[[], Iterable[Deadline]] = tuple,
    ) -> None:
        self.seconds = seconds
        self._most_left = seconds
        self._began = trio.current_time()
        self._on_received = on_received
        self._followers = followers
        self._scopes: set[trio.CancelScope] = set()

    @property
    def until(self) -> float:
        """When it ends, in trio's clock."""
        return self._began + self.seconds

    @property
    def left(self) -> float:
        """How many seconds are left; 0 if none."""
        return max(0.0, self.until - trio.current_time())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return trio.current_time() >= self.until

    def received(self, count: int) -> None:
        """Record that `count` bytes have arrived: this gives more time."""
        self.refill(count)
        self._on_received(count)

    def refill(self, count: int) -> None:
        """Give more time: `count` bytes have arrived, here or for a request that is served first.

        The time left is not more than at the beginning, apart from pauses.
        """
        self.extend(max(0.0, min(count / LEAST_RATE, self._most_left - self.left)))
        for follower in self._followers():
            follower.refill(count)

    def extend(self, seconds: float) -> None:
        """Give more time: somebody has asked for a pause."""
        self.seconds += seconds
        for scope in self._scopes:
            scope.deadline = self.until

    @contextmanager
    def limit(self) -> Iterator[trio.CancelScope]:
        """Cancel the block when the time is over."""
        with trio.CancelScope(deadline=self.until) as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    @contextmanager
    def enforced(self, text: str) -> Iterator[None]:
        """Cancel the block when the time is over, and raise a DeadlineError with `text`."""
        with self.limit() as scope:
            yield
        if scope.cancelled_caught:
            raise DeadlineError(text)


class Stall:
    """Notices that an operation makes no progress any more.

    `measure` returns what was finished so far, `received` how many bytes have arrived. While
    `is_waiting` returns false, the operation is busy with something else, such as the disk, and
    the time does not count. Nor does the time in which this process is stopped: the server cannot
    make progress then. `longest` is how many seconds without progress are too many. `stalled` is
    how many seconds without progress there were, at the beginning in an earlier operation.
    """

    def __init__(
        self,
        measure: Callable[[], object],
        received: Callable[[], int],
        is_waiting: Callable[[], bool],
        longest: float = LONGEST_STALL,
        *,
        stalled: float = 0.0,
    ) -> None:
        self.stalled = stalled
        self._longest = longest
        self._measure = measure
        self._received = received
        self._is_waiting = is_waiting

    async def wait(self) -> None:
        """Return when there was no progress for too long."""
        finished, received = self._measure(), self._received()
        while self.stalled < self._longest:
            began = trio.current_time()
            await trio.sleep(_CHECK_SECONDS)
            if self._is_waiting():
                self.stalled += min(trio.current_time() - began, 2 * _CHECK_SECONDS)
            self.stalled = max(0.0, self.stalled - (self._received() - received) / LEAST_RATE)
            received = self._received()
            if (now := self._measure()) != finished:
                self.stalled, finished = 0.0, now

    async def limit(self, work: Callable[[], Awaitable[_T]], text: str) -> _T:
        """Return what `work` returns; raise a DeadlineError if there is no progress."""
        results: list[_T] = []

        async def run() -> None:
            results.append(await work())
            nursery.cancel_scope.cancel()

        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await self.wait()
                nursery.cancel_scope.cancel()
        if not results:
            raise DeadlineError(text)
        return results[0]
