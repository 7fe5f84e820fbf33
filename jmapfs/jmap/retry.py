"""How long requests wait before they are sent, or sent again.

A server that is busy (429, 503, the `limit` problem) is busy for every request of that kind. The
cooldown, which is the pause that such a server asks for, delays all requests of the kind, also new
ones. Other failures delay only the request that failed.
"""

import logging
import random
from collections.abc import Callable

import trio

from jmapfs.deadline import Deadline
from jmapfs.errors import JmapfsError
from jmapfs.jmap.http_errors import TransientError, wait_text

_log = logging.getLogger(__name__)

_SHOW_AFTER = 3.0
_FIRST_PAUSE = 0.5
_LONGEST_BACK_OFF = 15.0
# How many pauses in a row are as short as the server allows.
_TRUSTED_PAUSES = 4
# The number of attempts if the server is broken. It is small because a broken server usually stays
# broken, and the user waits for the error. For a busy server, only the deadline ends the attempts.
_ATTEMPTS = 4


def back_off(failures: int) -> float:
    """Return the seconds to wait, with jitter, after this number of failures in a row."""
    longest = min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 10), _LONGEST_BACK_OFF)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, protects no secret


class Cooldown:
    """The pause of all requests of one kind while the server is busy.

    `on_wait` gets a line for the user if the server asks for a pause (Retry-After), and a request
    has waited for three seconds; also the seconds until the pause ends. `reason` is the error that
    began the pause. `limited` tells that the server works, but had too many requests.
    """

    def __init__(self, on_wait: Callable[[str, float], None] | None = None) -> None:
        self.reason: JmapfsError | None = None
        self._on_wait = on_wait
        self._until = float("-inf")
        self._failures = 0
        self._extended_at = float("-inf")
        self._request: str | None = None
        self.limited = False
        self._shown = False

    @property
    def active(self) -> bool:
        """Whether requests have to wait now."""
        return trio.current_time() < self._until

    @property
    def requested(self) -> bool:
        """Whether the server asked for the pause."""
        return self._request is not None

    @property
    def seconds_requested(self) -> float:
        """How many seconds are left of a pause that the server asked for; 0 if there is none."""
        return max(0.0, self._until - trio.current_time()) if self.requested else 0.0

    def end(self) -> None:
        """End the pause now. Requests that wait for its end wait nevertheless."""
        self._until = float("-inf")

    async def wait(self, until: float) -> None:
        """Wait until the pause ends. If it ends after `until`, raise its reason at once."""
        while self.active:
            if self._until >= until and self.reason is not None:
                raise self.reason.with_traceback(None)
            await self._sleep()

    async def sit_out(self, longest: float) -> float:
        """Wait until a pause ends that the server asked for. Return the seconds waited.

        If that would take more than `longest` seconds, raise the reason at once.
        """
        started = trio.current_time()
        while self.active and self._request is not None and self.reason is not None:
            if self._until > started + longest:
                raise self.reason.with_traceback(None)
            await self._sleep()
        return trio.current_time() - started

    async def _sleep(self) -> None:
        if self._on_wait is not None and self._request is not None:
            await trio.sleep_until(min(self._until, trio.current_time() + _SHOW_AFTER))
            if self.active and not self._shown:
                self._shown = True
                self._on_wait(self._request, self._until - trio.current_time())
        await trio.sleep_until(self._until)

    def extend(self, failure: TransientError, *, started: float, host: str) -> None:
        """Start or extend the pause; `started` is when the rejected request was sent."""
        # If ten requests in flight are rejected together, they count as one failure.
        if started >= self._extended_at:
            self._failures += 1
            self._extended_at = trio.current_time()
        pause = back_off(self._failures)
        if failure.retry_after is not None:
            # A server that always answers "Retry-After: 0" must not cause a busy loop.
            if self._failures <= _TRUSTED_PAUSES:
                pause = min(pause, 1.0)
            pause = max(failure.retry_after, pause)
            self._request = f"{host} asks to wait {wait_text(failure.retry_after)}"
            self._shown = self._shown and self.active
        elif not self.active:
            self._request = None
        self._until = max(self._until, trio.current_time() + pause)
        self.reason = failure.error
        self.limited = failure.limited

    def reset(self) -> None:
        """Record a success. The next pause will be short again."""
        self._failures = 0


class RetryPolicy:
    """Limits the time for the retries of one request, and their number if the server is broken."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._failures = 0

    async def wait_after(self, failure: TransientError) -> None:
        """Wait before the next attempt; raise `failure.error` if no further attempt is useful.

        If the request was throttled, return at once: the next attempt waits for the cooldown.
        """
        if failure.throttled:
            return
        self._failures += 1
        pause = back_off(self._failures)
        if self._failures >= _ATTEMPTS or pause >= self._deadline.left:
            raise failure.error from None
        _log.info("%s; trying again in %.1f s", failure.error, pause)
        await trio.sleep(pause)
