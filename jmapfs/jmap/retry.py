"""When to try again: the cooldown that all requests share, and the retries of one request.

A server that is busy (429, 503, the `limit` problem) is busy for every request, so the pause that
it asks for delays all of them, including new ones. Other failures delay only the request that met
them.
"""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import trio

from jmapfs.errors import JmapfsError

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0
"""Seconds; a server that asks for a longer pause is asked again after this time."""

_FIRST_PAUSE = 0.5
_LONGEST_BACK_OFF = 15.0
# A busy server is waited for until the deadline. A broken one usually stays broken for longer than
# a user wants to wait for the error.
_ATTEMPTS = 4


class TransientError(Exception):
    """A failure that may pass. `error` is what to raise if it does not.

    `throttled` says that the server is busy rather than broken; `retry_after` is the pause that it
    asked for, in seconds. This exception never leaves `jmap/`.
    """

    def __init__(
        self, error: JmapfsError, *, throttled: bool = False, retry_after: float | None = None
    ) -> None:
        self.error = error
        self.throttled = throttled
        self.retry_after = retry_after
        super().__init__(str(error))


def retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110 §10.2.3), or None.

    Between 0 and LONGEST_PAUSE; None where the header is missing or unreadable.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_PAUSE)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def back_off(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row (1, 2, …), with jitter."""
    longest = min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 10), _LONGEST_BACK_OFF)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, protects no secret


class Cooldown:
    """The pause that a busy server gets, shared by all requests."""

    def __init__(self) -> None:
        self._until = float("-inf")
        self._failures = 0
        self._extended_at = float("-inf")
        self._reason: JmapfsError | None = None

    @property
    def active(self) -> bool:
        """Whether requests have to wait now."""
        return trio.current_time() < self._until

    async def wait(self, until: float) -> None:
        """Wait for the end of the pause; raise its reason at once if that is after `until`."""
        while self.active:
            if self._until >= until and self._reason is not None:
                raise self._reason.with_traceback(None)
            await trio.sleep_until(self._until)

    def extend(self, failure: TransientError, *, started: float) -> None:
        """Start or extend the pause; `started` is when the rejected request was sent."""
        # Ten requests in flight are rejected together: that is one failure, not ten.
        if started >= self._extended_at:
            self._failures += 1
            self._extended_at = trio.current_time()
        pause = back_off(self._failures)
        if failure.retry_after is not None:
            # A server that always answers "Retry-After: 0" must not cause a busy loop.
            pause = max(failure.retry_after, min(pause, 1.0))
        self._until = max(self._until, trio.current_time() + pause)
        self._reason = failure.error

    def reset(self) -> None:
        """Record a success: the next pause starts short again."""
        self._failures = 0


class RetryPolicy:
    """The retries of one request: until a moment, and a few attempts for a broken server."""

    def __init__(self, until: float) -> None:
        self.until = until
        self._failures = 0

    async def wait_after(self, failure: TransientError) -> None:
        """Wait before the next attempt; raise `failure.error` if no further attempt is useful.

        After a throttled request this does not wait: the shared cooldown does.
        """
        if failure.throttled:
            return
        self._failures += 1
        pause = back_off(self._failures)
        if self._failures >= _ATTEMPTS or trio.current_time() + pause >= self.until:
            raise failure.error from None
        logger.info("%s; trying again in %.1f s", failure.error, pause)
        await trio.sleep(pause)
