"""The beginning of a large blob, which readers get while the rest arrives.

The beginning is confirmed before it can be read; see `download`. The rest is downloaded while
readers want it: the transfer pauses if it is far ahead of them, and ends if the file is closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from jmapfs.cache.memory import OpenBlob

# The transfer pauses when it has this much more than twice what readers wanted. So a program that
# reads on rarely waits, and a program that stops has caused few downloads.
_AHEAD_BYTES: Final = 1024 * 1024
# A paused transfer occupies a request, and a slow reader must not reach the deadline of the
# download. If the file is open for so long after the first pause, the rest is downloaded.
_PAUSE_SECONDS: Final = 5.0


class Arrival:
    """What has arrived of a download: `blob` can be read up to `arrived` bytes.

    `blob` is None before the beginning `is_confirmed`. If `is_wanted_whole`, the transfer continues
    to the end, whatever readers do. For tasks of one event loop.
    """

    def __init__(self) -> None:
        self.blob: OpenBlob | None = None
        self.arrived = 0
        self.is_confirmed = False
        self.is_wanted_whole = False
        self._pauses_until = math.inf
        self._wanted = 0
        self._has_ended = False
        self._changed = trio.Event()

    async def wait_for(self, end: int) -> OpenBlob | None:
        """Return the blob when `end` bytes can be read, or None when the download has ended."""
        self._wanted = max(self._wanted, end)
        self.notify()
        try:
            while not self._has_ended:
                if self.blob is not None and self.arrived >= end:
                    return self.blob
                await self._changed.wait()
        except BaseException:
            # A reader that has waited for too long finds the content the next time.
            self.is_wanted_whole = True
            raise
        return None

    async def wait_until_wanted(self, is_open: Callable[[], bool]) -> bool:
        """Return True when the next bytes are wanted, and False if nobody needs the rest.

        `is_open` tells whether a file with this content is open.
        """
        while not self.is_wanted_whole:
            if not is_open():
                return False
            if self.arrived < 2 * self._wanted + _AHEAD_BYTES:
                return True
            self._pauses_until = min(self._pauses_until, trio.current_time() + _PAUSE_SECONDS)
            with trio.move_on_at(self._pauses_until) as scope:
                await self._changed.wait()
            self.is_wanted_whole |= scope.cancelled_caught
        return True

    def confirm(self) -> None:
        """Record that the beginning is confirmed."""
        self.is_confirmed = True

    def add(self, blob: OpenBlob, arrived: int) -> None:
        """Record that more bytes can be read."""
        self.blob, self.arrived = blob, arrived
        self.notify()

    def end(self) -> None:
        """Record the end of the download."""
        self._has_ended = True
        self.blob = None
        self.notify()

    def notify(self) -> None:
        """Make the tasks that wait look again: a reader has come, or a file was closed."""
        self._changed.set()
        self._changed = trio.Event()
