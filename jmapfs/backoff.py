"""Pauses after failures: when something that has failed is tried again.

    failure        1st   2nd   3rd   4th   …
    pause          2 s   4 s   8 s   16 s  … up to the longest

A *hint* is a reason to try again soon that does not come from the user, such as a push event or a
read that failed. A hint shortens only the first of these pauses, and never below a floor: the fault
itself often causes hints. A try that the user requests waits for nothing, and changes no pause.

A success ends the pauses. But failures soon after a success continue the series: a server that
fails every other time must not be asked without pauses. The series ends when the success has lasted
ten times as long as the last pause. Two minutes are also enough, or the length of the pause if that
is more: the network of a traveller fails again and again.

A try that takes long is repeated more seldom, so that no fault keeps a processor, a disk or a
server busy: the longest pause is at least ten times as long as the try that failed. But the first
pause does not depend so much on one long try: it is at most the longest of short tries.
"""

from __future__ import annotations

import math
import random
from typing import Final

import trio

_CALM_FACTOR: Final = 10.0
_CALM_SECONDS: Final = 120.0
_TOOK_FACTOR: Final = 10.0
# Above this number of doublings, each pause is the longest.
_MAX_DOUBLINGS: Final = 30


class BackOff:
    """Computes the pauses; it waits for nothing itself. All times are in seconds, in trio's clock.

    first, longest: the first pause, and the longest unless tries take long.
    floor: how much of the first pause remains if there is a hint.
    failures: how many tries have failed in a row.
    retry_at: when the pause after the last failure ends.
    """

    def __init__(self, first: float, longest: float, *, floor: float | None = None) -> None:
        self.failures = 0
        self.retry_at = -math.inf
        self._first = first
        self._longest = longest
        self._floor = first if floor is None else floor
        # The length of the series, which a success does not end at once.
        self._series = 0
        self._pause = 0.0
        self._hinted_at = -math.inf
        self._succeeded_at = math.inf

    def record_failure(
        self, *, took: float = 0.0, longest: float | None = None, requested: bool = False
    ) -> None:
        """Begin the pause after a try that took `took` seconds.

        `longest` replaces the longest pause. With `requested`, the user has asked for the try: the
        pause is then not longer than the one before.
        """
        now = trio.current_time()
        calm = min(_CALM_FACTOR * self._pause, max(_CALM_SECONDS, self._pause))
        if now - took - max(self._succeeded_at, self.retry_at) >= calm:
            self._series = 0
        self._succeeded_at = math.inf
        self.failures += 1
        if not requested or not self._series:
            self._series += 1
        limit = max(self._longest if longest is None else longest, _TOOK_FACTOR * took)
        first = max(self._first, min(took / _TOOK_FACTOR, self._longest))
        pause = min(first * 2.0 ** min(self._series - 1, _MAX_DOUBLINGS), limit)
        self._pause = pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, no secret
        self.retry_at = now + self._pause
        floor = max(self._floor, min(took / _TOOK_FACTOR, self._longest))
        self._hinted_at = now + floor if self._series == 1 else math.inf

    def record_success(self) -> None:
        """End the pause."""
        if self.failures:
            self.failures = 0
            self._succeeded_at = trio.current_time()

    def restart(self) -> None:
        """End the pause and the series, as if nothing had failed before the next try."""
        self._series = 0
        self.retry_at = self._hinted_at = -math.inf

    def due(self, *, hinted: bool = False) -> float:
        """Return when to try again; in the past if nothing has failed since the last success."""
        if not self.failures:
            return -math.inf
        return min(self._hinted_at, self.retry_at) if hinted else self.retry_at


class Pace:
    """Spaces out something that happens again and again, by the same pauses; nothing has failed."""

    def __init__(self, first: float, longest: float) -> None:
        self._back_off = BackOff(first, longest)

    @property
    def next_at(self) -> float:
        """When it may happen again."""
        return self._back_off.retry_at

    def record(self, *, took: float = 0.0) -> None:
        """Record that it has happened, and how many seconds it took."""
        self._back_off.record_failure(took=took)
        self._back_off.record_success()
