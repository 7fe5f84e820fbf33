"""Deadlines that follow progress.

The server decides how many bytes it sends, and states sizes that may be wrong. So more time is
earned by bytes that have arrived, never by a size that is stated:

    end = begin + seconds + received bytes / LEAST_RATE

A transfer that is faster than this rate may take as long as it needs. A trickle ends soon after the
first `seconds`, whatever size is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from jmapfs.errors import DeadlineError

LEAST_RATE: Final = 256 * 1024
"""Bytes per second: a slower transfer ends before it is complete, unless it is short."""


class Deadline:
    """The moment at which something must have ended. Received bytes and pauses move it.

    `seconds` is the time from the beginning to this moment. `until` is the moment, in trio's clock.
    `on_received` is called with each number of bytes that has arrived, so that a deadline of
    somebody who waits for the same bytes can move as well.
    """

    def __init__(self, seconds: float, on_received: Callable[[int], None] | None = None) -> None:
        self.seconds = seconds
        self._began = trio.current_time()
        self._on_received = on_received
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
        self.extend(count / LEAST_RATE)
        if self._on_received is not None:
            self._on_received(count)

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
