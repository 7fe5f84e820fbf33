"""When the next round of a follower begins.

                        after a success                after a failure
    a task requests it  at once                        at once
    a hint              soon, but not all the time     the first pause is shorter
    nothing             when the interval has passed   when the pause has passed

A hint is a push event, the end of the event stream, a failed download, or the end of a suspension
of this machine. The pauses after failures are those of `jmapfs.backoff`.
"""

from __future__ import annotations

import time
from typing import Final

import trio

from jmapfs.backoff import BackOff, Pace
from jmapfs.errors import ForbiddenError, UnreachableError
from jmapfs.suspension import SuspensionDetector

_FIRST_PAUSE: Final = 2.0
_SHORTEST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
# A server may answer 403 to a wrong secret without saying so, and ban the address after a while.
_LONGEST_FORBIDDEN_PAUSE: Final = 3600.0
# Changes seldom come alone. Wait a little for further changes, and longer if they do not end.
_GATHER_SECONDS: Final = 0.05
_LONGEST_GATHER_SECONDS: Final = 2.0
_SUSPENSION_CHECK: Final = 10.0


class RoundSchedule:
    """Waits for the next round.

    failures: how many rounds have failed in a row; connecting is a part of a round.
    next_try: when the pause after a failure ends, in seconds since 1970; None without a failure.
    """

    def __init__(self, suspensions: SuspensionDetector | None = None) -> None:
        self.next_try: float | None = None
        self._back_off = BackOff(_FIRST_PAUSE, _LONGEST_PAUSE, floor=_SHORTEST_PAUSE)
        self._pace = Pace(_GATHER_SECONDS, _LONGEST_GATHER_SECONDS)
        self._suspensions = suspensions or SuspensionDetector()
        self._woken = trio.Event()
        self._hinted_at: float | None = None
        self._requested = False
        self._began_at: float | None = None
        self._is_requested_round = False

    @property
    def failures(self) -> int:
        """How many rounds have failed in a row."""
        return self._back_off.failures

    def hint(self) -> None:
        """Begin a round soon."""
        if self._hinted_at is None:
            self._hinted_at = trio.current_time()
        self._woken.set()

    def request(self) -> None:
        """Begin a round at once, or after the present one."""
        self._requested = True
        self._woken.set()

    def cancel_requests(self) -> None:
        """Record that all requests so far were answered."""
        self._requested = False

    def begin(self) -> None:
        """Record that a round begins: it is the answer to all requests and hints so far.

        This may be called again before the end of the round, until the server is asked.
        """
        if self._began_at is None:
            self._began_at = trio.current_time()
        self._is_requested_round |= self._requested
        self._requested, self._hinted_at = False, None

    def record_success(self) -> None:
        """Record the end of a round."""
        self._back_off.record_success()
        self.next_try = None
        took, is_requested = self._end()
        if not is_requested:
            self._pace.record(took=took)

    def record_failure(self, error: Exception) -> None:
        """Record that a round has failed."""
        took, is_requested = self._end()
        self._back_off.record_failure(
            # To wait for a server that does not answer costs nothing.
            took=0.0 if isinstance(error, UnreachableError) else took,
            longest=_LONGEST_FORBIDDEN_PAUSE if isinstance(error, ForbiddenError) else None,
            requested=is_requested,
        )
        self.next_try = time.time() + self._back_off.due() - trio.current_time()

    async def wait(self, interval: float) -> None:
        """Return when the next round is due. After a success, this takes at most `interval`."""
        end = trio.current_time() + interval
        while not self._requested:
            self._note_suspension()
            left = self._due(end) - trio.current_time()
            if left <= 0:
                return
            self._woken = trio.Event()
            with trio.move_on_after(min(left, _SUSPENSION_CHECK)):
                await self._woken.wait()

    def _due(self, end: float) -> float:
        if self.failures:
            return self._back_off.due(hinted=self._hinted_at is not None)
        if self._hinted_at is not None:
            end = min(end, self._hinted_at + _GATHER_SECONDS)
        return max(end, self._pace.next_at)

    def _end(self) -> tuple[float, bool]:
        """Return how long the round took, and whether it was requested."""
        now = trio.current_time()
        took = 0.0 if self._began_at is None else now - self._began_at
        is_requested, self._is_requested_round = self._is_requested_round, False
        self._began_at = None
        return took, is_requested

    def _note_suspension(self) -> None:
        """If this machine was suspended, begin a round soon: the network may be another one."""
        if self._suspensions.noticed():
            self._back_off.restart()
            self.hint()
