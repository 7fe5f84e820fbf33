"""Notices that this machine was suspended, and tells how old a stored time is.

The clock of trio, CLOCK_MONOTONIC, stands still during a suspension, so timeouts do not end then.
Connections are dead afterwards, but nothing reports that. CLOCK_BOOTTIME goes on during a
suspension. If a virtual machine was suspended, both clocks have stood still, and somebody sets the
clock of the system afterwards. A clock that is set for another reason costs only new connections.
"""

import math
import time
from collections.abc import Callable
from typing import Final

_LEAST_SECONDS: Final = 5.0

Differences = tuple[float, float]


def clock_differences() -> Differences:
    """Return by how much CLOCK_BOOTTIME and CLOCK_REALTIME are ahead of CLOCK_MONOTONIC."""
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    return (
        time.clock_gettime(time.CLOCK_BOOTTIME) - now,
        time.clock_gettime(time.CLOCK_REALTIME) - now,
    )


class SuspensionDetector:
    """Tells each suspension once; `differences` is replaced in tests."""

    def __init__(self, differences: Callable[[], Differences] = clock_differences) -> None:
        self._differences = differences
        self._before = differences()

    def noticed(self) -> bool:
        """Return whether this machine was suspended, or its clock was set, since the last call."""
        before, self._before = self._before, self._differences()
        return any(
            abs(new - old) >= _LEAST_SECONDS for old, new in zip(before, self._before, strict=True)
        )


def seconds_since(moment: float) -> float:
    """Return how many seconds ago a stored time was; infinity if the clock was set back behind it.

    So something that is done once an hour is done soon after the clock was set back, instead of
    never until the clock has caught up.
    """
    seconds = time.time() - moment
    return seconds if seconds >= 0 else math.inf
