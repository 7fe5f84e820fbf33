"""Disk work off the event loop, with a limit of its own so that it never waits for other work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

_DISK_THREADS: Final = 8

T = TypeVar("T")


class DiskThreads:
    """Runs functions in worker threads, a few at a time."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(_DISK_THREADS)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; a cancellation waits until it has."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def run_abandonable(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; cancelled, leave it to itself, and its result."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
