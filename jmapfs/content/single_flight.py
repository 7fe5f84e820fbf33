"""One download of a blob, however many tasks wait for it.

Every task that needs a blob shares the same `Download`. A task may stop waiting at any time; the
download continues for the others. A download is in one of these states:

      ┌── the batch lacked it ──┐
      v        its turn         │    nobody waits
    QUEUED ─────────────────> RUNNING ─────────────> PUBLISHING
      │                       ^ │                        │
      │ a reader waits        │ │ a reader waits         │ published,
      v            a slot     │ v                        │ or a reader waits
    REQUESTED ────────────────┘ DONE <───────────────────┘

QUEUED: nobody waits for it. REQUESTED: a reader waits; the disk cache is searched (if it has the
blob, the download is DONE), then the download waits for one of the few slots. RUNNING: the content
is being fetched. PUBLISHING: the kernel is being given the content. A reader that starts to wait
then gets the content at once, since the kernel may need that answer before it can go on.

Not drawn: in any state, an error leads to FAILED. Three states can lead to CANCELLED: QUEUED, if
the queue is cancelled; REQUESTED, if the last reader stops waiting; RUNNING, if the queue cannot
get the content. A reader that waits for a cancelled download starts a new one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import trio


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

    `waiters` is the number of tasks that wait for it now. `abandoned` is cancelled when the last
    waiter leaves before the download has a slot. `error` is why it has failed.
    """

    def __init__(self, single_flight: SingleFlight, blob_id: str, size: int) -> None:
        self.blob_id = blob_id
        self.size = size
        self.state = DownloadState.QUEUED
        self.waiters = 0
        self.abandoned = trio.CancelScope()
        self.error: Exception | None = None
        self._single_flight = single_flight
        self._finish_early: Callable[[], None] | None = None
        self._end_event = trio.Event()
        self._data: bytes | None = None

    @property
    def ended(self) -> bool:
        """Whether it is done, has failed or was cancelled."""
        return self.state in _ENDED

    async def wait(self) -> bytes | None:
        """Return the content, or None if the caller must look for the blob again.

        Raises:
            Exception: why the download failed; the same object for all waiters.
        """
        self.waiters += 1
        if self.state is DownloadState.QUEUED:
            self._request()
        elif self._finish_early is not None:
            self._finish_early()
        try:
            await self._end_event.wait()
        finally:
            self.waiters -= 1
            if not self.waiters and self.state is DownloadState.REQUESTED:
                self.abandoned.cancel()
        if self.error is not None:
            raise self.error
        return self._data

    async def wait_until_ended(self) -> None:
        """Return when the download has ended, without starting it."""
        await self._end_event.wait()

    def start(self) -> bool:
        """Start a queued download; False if it has been started or cancelled meanwhile."""
        if self.state is not DownloadState.QUEUED:
            return False
        self.state = DownloadState.RUNNING
        return True

    def requeue(self) -> None:
        """Return a running download to a queue; if somebody waits for it, request it at once."""
        self.state = DownloadState.QUEUED
        if self.waiters:
            self._request()

    def begin_transfer(self) -> None:
        """Note that the download has a slot: from now on it runs to its end."""
        self.state = DownloadState.RUNNING

    def publish(self, finish: Callable[[], None]) -> None:
        """Note that the kernel is being given the content; a new waiter calls `finish` at once.

        The caller finishes the download afterwards if it is still PUBLISHING.
        """
        self.state = DownloadState.PUBLISHING
        self._finish_early = finish

    def finish(self, data: bytes | None) -> None:
        """Give the content to all waiters; `data` is None for a large blob, which is open now."""
        # Drop the bytes if nobody is waiting: queues keep the object.
        self._data = data if self.waiters else None
        self._end(DownloadState.DONE)

    def fail(self, error: Exception) -> None:
        """Raise an error in all waiters; a later reader starts another download."""
        self.error = error
        self._end(DownloadState.FAILED)

    def cancel(self) -> None:
        """End without content: each waiter looks for the blob again."""
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


class SingleFlight:
    """The downloads that have not ended, by blob id; `start(download)` runs one in a task.

    There is no lock: it is used in the event loop alone, and no method waits.
    """

    def __init__(self, start: Callable[[Download], None]) -> None:
        self.start = start
        self._downloads: dict[str, Download] = {}

    def get(self, blob_id: str) -> Download | None:
        """Return the download of a blob, or None."""
        return self._downloads.get(blob_id)

    def create(self, blob_id: str, size: int) -> Download:
        """Return a new, queued download of a blob that has none."""
        if blob_id in self._downloads:
            raise RuntimeError("this blob is being downloaded already")
        download = self._downloads[blob_id] = Download(self, blob_id, size)
        return download

    def remove(self, download: Download) -> None:
        """Remove a download that has ended."""
        if self._downloads.get(download.blob_id) is download:
            del self._downloads[download.blob_id]
