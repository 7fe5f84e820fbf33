"""Queues of downloads in advance, and the tasks that serve them.

Each reader in `readahead` and each step of a prefetch has a `DownloadQueue`. A few tasks serve the
queues in turn, one request each. The server limits concurrent requests, and the tasks leave two of
these requests to readers. A reader that needs a queued blob starts its download at once.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.content.division import is_alone, take_request
from jmapfs.content.download import Downloader
from jmapfs.content.publisher import ContentPublisher, PublishToKernel
from jmapfs.content.single_flight import Download, DownloadState
from jmapfs.errors import AuthenticationError, UnreachableError
from jmapfs.jmap.batches import BlobGetLimits

_log = logging.getLogger(__name__)

_LEFT_TO_READERS: Final = 2
# Smaller batches are not divided among idle tasks: another request would cost more than it saves.
_LEAST_BATCH: Final = 32
_BESIDE_READER_BYTES: Final = 256 * 1024


class DownloadQueue:
    """Downloads that run in order; `publish` hands their content to the kernel."""

    def __init__(self, publish: PublishToKernel) -> None:
        self.publish = publish
        self._pending: deque[Download] = deque()
        self._alone: deque[Download] = deque()
        self._running = 0
        self._emptied = trio.Event()

    def __len__(self) -> int:
        """Return the number of downloads that wait for their turn."""
        return len(self._alone) + len(self._pending)

    async def wait_until_empty(self) -> None:
        """Return when every download that was added has ended."""
        while len(self) or self._running:
            await self._emptied.wait()

    def add(self, downloads: Iterable[Download]) -> None:
        """Add downloads at the end."""
        self._pending.extend(downloads)

    def add_alone(self, downloads: Iterable[Download]) -> None:
        """Add downloads at the front; each gets a request of its own."""
        self._alone.extend(downloads)

    def __contains__(self, download: Download) -> bool:
        """Return whether a download waits for a request with others."""
        return download in self._pending

    def take_alone(self) -> list[Download]:
        """Start and return a download that gets a request of its own, if there is one."""
        return self._started(take_request(self._alone, None, 1, Download.start))

    def take(self, limits: BlobGetLimits | None, most: int, begun: int) -> list[Download]:
        """Start and return at most `most` downloads for a request that has `begun` bytes already.

        Return none if nothing is pending.
        """
        return self._started(take_request(self._pending, limits, most, Download.start, begun))

    def take_this(self, download: Download) -> list[Download]:
        """Start and return a download that a reader waits for."""
        self._pending.remove(download)
        download.begin_transfer()
        return self._started([download])

    def _started(self, batch: list[Download]) -> list[Download]:
        self._running += len(batch)
        self._notify()
        return batch

    def note_ended(self, count: int) -> None:
        """Record the end of `count` downloads that were returned by `take`."""
        self._running -= count
        self._notify()

    def cancel(self) -> None:
        """Cancel all downloads that have not been started."""
        for waiting in (self._alone, self._pending):
            for download in waiting:
                download.cancel_queued()
            waiting.clear()
        self._notify()

    def _notify(self) -> None:
        if not len(self) and not self._running:
            self._emptied.set()
            self._emptied = trio.Event()


class _Request:
    """The downloads of one request, by the queues that they come from."""

    def __init__(self) -> None:
        self.parts: dict[DownloadQueue, list[Download]] = {}
        self.downloads: list[Download] = []

    @property
    def size(self) -> int:
        """The size of all its blobs."""
        return sum(download.size for download in self.downloads)

    def add(self, queue: DownloadQueue, downloads: Sequence[Download]) -> None:
        """Add downloads of a queue that have been started."""
        if downloads:
            self.downloads += downloads
            self.parts.setdefault(queue, []).extend(downloads)

    async def publish(self, contents: list[tuple[str, bytes]]) -> set[str]:
        """Hand contents to the kernel; return the keys that need not be kept in memory."""
        taken: set[str] = set()
        for queue, part in self.parts.items():
            keys = {download.content_key for download in part}
            if mine := [(key, data) for key, data in contents if key in keys]:
                taken.update(await queue.publish(mine))
        return taken


class BatchDownloader:
    """Serves download queues; its tasks run in `nursery`, and end when all queues are empty.

    Queues take turns. If a queue has too few downloads for a request, others add theirs.
    """

    def __init__(
        self, downloader: Downloader, publisher: ContentPublisher, nursery: trio.Nursery
    ) -> None:
        self._downloader = downloader
        self._publisher = publisher
        self._nursery = nursery
        self._queues: deque[DownloadQueue] = deque()
        self._tasks = 0

    def add(self, queue: DownloadQueue, downloads: Iterable[Download]) -> None:
        """Add downloads at the end of a queue.

        If fewer tasks are working than the server allows, downloads have been started on return.
        """
        queue.add(downloads)
        self._serve(queue)

    def serve_reader(self, download: Download) -> bool:
        """Start a queued download for a reader at once, together with the next ones of its queue.

        Return False if the caller has to start it: it is not queued, it needs a request of its own,
        or the server allows no further request.
        """
        limits = self._downloader.source.batch_limits
        # One request is left to blobs that are not queued.
        if limits is None or self._tasks >= self._downloader.source.concurrency - 1:
            return False
        queue = next((queue for queue in self._queues if download in queue), None)
        if queue is None or is_alone(download.size, limits):
            return False
        request = _Request()
        request.add(queue, queue.take_this(download))
        # The reader must not wait for many other blobs.
        begun = max(download.size, limits.bytes - _BESIDE_READER_BYTES)
        request.add(queue, queue.take(limits, limits.blobs - 1, begun))
        self._start(request)
        return True

    def _serve(self, queue: DownloadQueue) -> None:
        if queue not in self._queues:
            self._queues.append(queue)
        while self._tasks < self._most_tasks():
            request = self._next_request(self._tasks)
            if request is None:
                return
            self._start(request)

    def _start(self, request: _Request) -> None:
        self._tasks += 1
        self._nursery.start_soon(self._work, request)

    def _most_tasks(self) -> int:
        return max(1, self._downloader.source.concurrency - _LEFT_TO_READERS)

    def _next_request(self, others: int) -> _Request | None:
        """Start downloads for a request beside `others`; None if nothing is pending."""
        limits = self._downloader.source.batch_limits
        idle_tasks = max(1, self._most_tasks() - others)
        share = -(-sum(map(len, self._queues)) // idle_tasks)
        most = 1 if limits is None else min(limits.blobs, max(share, _LEAST_BATCH))
        request = _Request()
        for queue in list(self._queues):
            left = most - len(request.downloads)
            if left <= 0:
                break
            batch = [] if request.parts else queue.take_alone()
            is_full = bool(batch)
            batch = batch or queue.take(limits, left, request.size)
            request.add(queue, batch)
            # The queue gets its next turn after all others.
            self._queues.remove(queue)
            if len(queue):
                self._queues.append(queue)
            if is_full or (batch and is_alone(batch[0].size, limits)):
                break
        return request if request.parts else None

    async def _work(self, request: _Request | None) -> None:
        try:
            while request is not None:
                rest: Sequence[Download] = ()
                try:
                    rest = await self._run(request)
                except Exception:  # noqa: BLE001 - a bug must not end the mount
                    _log.exception("a bug in downloading blobs in advance")
                finally:
                    for download in request.downloads:
                        if download.state is DownloadState.RUNNING and download not in rest:
                            download.cancel()
                    for queue, part in request.parts.items():
                        queue.note_ended(len(part))
                self._request_alone(request, rest)
                if self._tasks > self._most_tasks():
                    return
                request = self._next_request(self._tasks - 1)
        finally:
            self._tasks -= 1

    def _request_alone(self, request: _Request, rest: Sequence[Download]) -> None:
        """Put downloads that a request did not get at the front of their queues."""
        for download in rest:
            download.requeue()
        for queue, part in request.parts.items():
            queue.add_alone(download for download in part if download in rest)
            self._serve(queue)

    async def _run(self, request: _Request) -> Sequence[Download]:
        """Run the downloads of a request; return those that it did not get."""
        if len(request.downloads) > 1:
            return await self._run_batch(request)
        [download] = request.downloads
        # The disk cache has been searched for small blobs, but not for large blobs.
        known_absent = download.size <= SMALL_BYTES
        data = await self._publisher.run(download, known_absent=known_absent)
        if data is not None:
            self._publisher.counters.ahead_downloaded += 1
            await request.publish([(download.content_key, data)])
        return ()

    async def _run_batch(self, request: _Request) -> Sequence[Download]:
        receive = partial(self._publisher.receive_batch, publish=request.publish)
        try:
            return await self._downloader.fetch_batch(
                request.downloads,
                receive,
                deadline=self._publisher.deadline(request.downloads),
            )
        except (UnreachableError, AuthenticationError) as error:
            # A reader that waits for one of these blobs requests it again, and gets its own error.
            _log.info("downloads in advance end: %s", error)
            for queue in request.parts:
                queue.cancel()
            return ()
