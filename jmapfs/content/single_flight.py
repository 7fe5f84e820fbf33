"""One download of a blob, even if several tasks wait for the blob.

Every task that needs a blob shares the same `Download`. A task may stop waiting at any time; the
download continues for the others. A download is in one of these states:

      ┌── the batch lacked it ──┐
      v        its turn         │    nobody waits
    QUEUED ─────────────────> RUNNING ─────────────> PUBLISHING
      │                       ^ │                        │
      │ a reader waits        │ │ a reader waits         │ published,
      v            a slot     │ v                        │ or a reader waits
    REQUESTED ────────────────┘ DONE <───────────────────┘

QUEUED: nobody waits for the download. REQUESTED: a reader waits. The disk cache is searched; if it
has the blob, the download is DONE. Otherwise the download waits for one of the few slots. RUNNING:
the content is being fetched. PUBLISHING: the kernel is being given the content. A reader that comes
during PUBLISHING gets the content at once: the kernel may be waiting for this answer.

Two states are not drawn. After an error, a download is FAILED. It is CANCELLED if the queue is
cancelled (from QUEUED), if the last reader stops waiting (from REQUESTED), or if the queue cannot
get the content or nobody needs the rest (from RUNNING). A reader that waits for a cancelled
download starts a new one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.cache.memory import OpenBlob
from jmapfs.content.arrival import Arrival
from jmapfs.deadline import Deadline


class DownloadState(enum.Enum):
    """The states of a `Download`; see the module's docstring."""

    QUEUED = enum.auto()
    REQUESTED = enum.auto()
    RUNNING = enum.auto()
    PUBLISHING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()


_ENDED = frozenset({DownloadState.DONE, DownloadState.FAILED, DownloadState.CANCELLED})


class Download:
    """The download of one blob; `size` is its stated size in bytes.

    `waiters` is the number of tasks that wait for it now. While it `is_imminent`, a waiter does not
    request it: it will be started or released in a moment. `abandoned` is cancelled if the last
    waiter leaves before the download has a slot. `error` is the reason of a failure. `arrival` is
    the beginning of a large blob, which can be read before the end. `deadlines` are those of the
    tasks that wait: bytes that arrive move them. `received_bytes` counts these bytes.
    """

    def __init__(self, single_flight: SingleFlight, key: str, size: int) -> None:
        self.content_key = key
        self.size = size
        self.state = DownloadState.QUEUED
        self.waiters = 0
        self.deadlines: set[Deadline] = set()
        self.received_bytes = 0
        self.is_imminent = False
        self.abandoned = trio.CancelScope()
        self.error: Exception | None = None
        self.arrival = Arrival() if size > SMALL_BYTES else None
        self._single_flight = single_flight
        self._finish_early: Callable[[], None] | None = None
        self._end_event = trio.Event()
        self._data: bytes | None = None

    @property
    def ended(self) -> bool:
        """Whether the download is done, has failed or was cancelled."""
        return self.state in _ENDED

    async def wait(self, end: int, deadline: Deadline) -> bytes | OpenBlob | None:
        """Wait for the first `end` bytes, and return the content.

        Bytes that arrive meanwhile move the `deadline`, which the caller enforces.

        An open blob can be read up to `end`. None: the caller must look for the blob again.

        Raises:
            Exception: the download failed. All waiters get the same object.
        """
        self.waiters += 1
        self.deadlines.add(deadline)
        if self.state is DownloadState.QUEUED and not self.is_imminent:
            self._request()
        elif self._finish_early is not None:
            self._finish_early()
        found: OpenBlob | None = None
        try:
            if self.arrival is not None:
                found = await self.arrival.wait_for(end)
            else:
                await self._end_event.wait()
        finally:
            self.waiters -= 1
            self.deadlines.discard(deadline)
            if not self.waiters and self.state is DownloadState.REQUESTED:
                self.abandoned.cancel()
        if found is not None:
            return found
        if self.error is not None:
            raise self.error
        return self._data

    async def wait_until_ended(self) -> None:
        """Return when the download has ended, without starting it."""
        await self._end_event.wait()

    def received(self, count: int) -> None:
        """Record that `count` bytes of it, or of the same request, have arrived."""
        self.received_bytes += count

    def want_whole(self) -> None:
        """Record that all of it must be downloaded, even if readers need only the beginning."""
        if self.arrival is not None:
            self.arrival.is_wanted_whole = True
            self.arrival.notify()

    def start(self) -> bool:
        """Start a queued download; False if it has been started or cancelled meanwhile."""
        if self.state is not DownloadState.QUEUED:
            return False
        self.state = DownloadState.RUNNING
        self.want_whole()
        return True

    def release(self) -> None:
        """Note that it is not imminent any more; if a task waits for it, request it at once."""
        self.is_imminent = False
        if self.state is DownloadState.QUEUED and self.waiters:
            self._request()

    def requeue(self) -> None:
        """Put a running download back into QUEUED; if a task waits for it, request it at once."""
        self.state = DownloadState.QUEUED
        if self.waiters:
            self._request()

    def begin_transfer(self) -> None:
        """Record that the download has a slot. From now on it runs to its end."""
        self.state = DownloadState.RUNNING

    def publish(self, finish: Callable[[], None]) -> None:
        """Record that the kernel is being given the content; a new waiter calls `finish` at once.

        If the download is still PUBLISHING after that, the caller finishes it.
        """
        self.state = DownloadState.PUBLISHING
        self._finish_early = finish

    def finish(self, data: bytes | None) -> None:
        """Give the content to all waiters; `data` is None for a large blob, which is open now."""
        # Drop the bytes if no task waits: a queue may keep this object for long.
        self._data = data if self.waiters else None
        self._end(DownloadState.DONE)

    def fail(self, error: Exception) -> None:
        """Raise an error in all waiters; a later reader starts another download."""
        self.error = error
        self._end(DownloadState.FAILED)

    def cancel(self) -> None:
        """End the download without content. Each waiter then looks for the blob again."""
        self._end(DownloadState.CANCELLED)

    def cancel_queued(self) -> None:
        """Cancel the download if it has not been started."""
        if self.state is DownloadState.QUEUED:
            self.cancel()

    def _request(self) -> None:
        self.state = DownloadState.REQUESTED
        self._single_flight.start(self)

    def _end(self, state: DownloadState) -> None:
        self.state = state
        self._finish_early = None
        self._single_flight.remove(self)
        self._end_event.set()
        if self.arrival is not None:
            self.arrival.end()


class SingleFlight:
    """The unfinished downloads by content key; `start(download)` runs a download in a task.

    There is no lock: the object is used only in the event loop, and no method waits.
    """

    def __init__(self, start: Callable[[Download], None]) -> None:
        self.start = start
        self._downloads: dict[str, Download] = {}

    def get(self, key: str) -> Download | None:
        """Return the download of a blob, or None."""
        return self._downloads.get(key)

    def create(self, key: str, size: int) -> Download:
        """Return a new, queued download of a blob that is not being downloaded."""
        if key in self._downloads:
            raise RuntimeError("this blob is being downloaded already")
        download = self._downloads[key] = Download(self, key, size)
        return download

    def remove(self, download: Download) -> None:
        """Remove a download that has ended."""
        if self._downloads.get(download.content_key) is download:
            del self._downloads[download.content_key]
