"""Listens for the push events of an account, and connects again if the event stream ends.

A stream that ends soon after it was opened is opened ever more seldom, also if it sends an event
each time.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from jmapfs.backoff import BackOff
from jmapfs.errors import AuthenticationError, JmapfsError
from jmapfs.jmap.client import Client
from jmapfs.jmap.push import PushUnavailableError

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0


class PushListener:
    """Calls `hint` for each push event; `active` says whether the server sends push events."""

    def __init__(self, hint: Callable[[], None]) -> None:
        self.active = False
        self._hint = hint
        self._back_off = BackOff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._stream = trio.CancelScope()

    def reconnect(self) -> None:
        """Open the event stream again: it may be dead, although it has not ended."""
        self._stream.cancel()

    @asynccontextmanager
    async def listening(self, client: Client) -> AsyncIterator[None]:
        """Listen while the context lasts."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, client)
            yield
            nursery.cancel_scope.cancel()

    async def _listen(self, client: Client) -> None:
        """Return if the server says that it sends no push events, or none to this user."""
        try:
            while True:
                try:
                    with trio.CancelScope() as self._stream:
                        async with client.push() as events:
                            # The first event means that the stream is open. It is a hint too,
                            # because something may have changed before it.
                            async for event in events:
                                _log.debug("push: %s", event)
                                self.active = True
                                self._back_off.record_success()
                                self._hint()
                except PushUnavailableError as error:
                    _log.info("polling: %s", error)
                    return
                except AuthenticationError as error:
                    # The next round finds out whether the server refuses the secret everywhere.
                    _log.info("polling: %s", error)
                    self._hint()
                    return
                except JmapfsError as error:
                    _log.info("push ended: %s", error)
                self._back_off.record_failure()
                if self.active:
                    # The next round finds out whether the server is unreachable. After that round,
                    # the shorter poll interval applies.
                    self.active = False
                    self._hint()
                await trio.sleep_until(self._back_off.due())
        finally:
            self.active = False
