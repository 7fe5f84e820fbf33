"""Waits for a condition, with a deadline, in place of fixed sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import trio

_INTERVAL = 0.02


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Return as soon as `condition` holds; fail the test if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(_INTERVAL)


async def wait_until_async(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Do the same on trio: other tasks run in between."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await trio.sleep(_INTERVAL)


def has_ended(pid: int) -> bool:
    """Return whether a process has ended; a zombie has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
