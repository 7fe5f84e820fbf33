"""Queues of downloads in advance, and the tasks that serve them.

Each reader in `readahead` and each step of a prefetch has a `DownloadQueue`. A few tasks serve the
queues in turn, one request each. The server limits concurrent requests, and the tasks leave two of
these requests to readers. A reader that needs a queued blob starts its download at once.
"""

import logging
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.content.division import take_request
from jmapfs.content.download import Downloader
from jmapfs.content.publisher import ContentPublisher, PublishToKernel
from jmapfs.content.single_flight import Download, DownloadState
from jmapfs.errors import AuthenticationError, UnreachableError
from jmapfs.jmap.batches import BlobGetLimits

_log = logging.getLogger(__name__)

_LEFT_TO_READERS: Final = 2
# Smaller batches are not divided among idle tasks: another request would cost more than it saves.
_LEAST_BATCH: Final = 32


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

    def take(self, limits: BlobGetLimits | None, idle_tasks: int) -> list[Download]:
        """Start and return the downloads for the next request; none if nothing is pending.

        `idle_tasks` is the number of tasks that share the pending downloads, including the caller.
        """
        batch = take_request(self._alone, None, 1, Download.start)
        if not batch:
            share = -(-len(self._pending) // idle_tasks)
            batch = take_request(self._pending, limits, max(share, _LEAST_BATCH), Download.start)
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


class BatchDownloader:
    """Serves download queues; its tasks run in `nursery`, and end when all queues are empty."""

    def __init__(
        self, downloader: Downloader, publisher: ContentPublisher, nursery: trio.Nursery
    ) -> None:
        self._downloader = downloader
        self._publisher = publisher
        self._nursery = nursery
        self._queues: deque[DownloadQueue] = deque()
        self._tasks = 0
        self._busy_tasks = 0

    def add(self, queue: DownloadQueue, downloads: Iterable[Download]) -> None:
        """Add downloads at the end of a queue, and start the tasks that serve it."""
        queue.add(downloads)
        self._serve(queue)

    def _serve(self, queue: DownloadQueue) -> None:
        if queue not in self._queues:
            self._queues.append(queue)
        while self._tasks < min(self._most_tasks(), len(queue)):
            self._tasks += 1
            self._nursery.start_soon(self._work)

    def _most_tasks(self) -> int:
        return max(1, self._downloader.source.concurrency - _LEFT_TO_READERS)

    async def _work(self) -> None:
        try:
            while self._queues:
                queue = self._queues.popleft()
                idle_tasks = max(1, self._most_tasks() - self._busy_tasks)
                batch = queue.take(self._downloader.source.batch_limits, idle_tasks)
                if not batch:
                    continue
                self._queues.append(queue)
                self._busy_tasks += 1
                try:
                    await self._run(queue, batch)
                except Exception:  # noqa: BLE001 - a bug must not end the mount
                    _log.exception("a bug in downloading blobs in advance")
                finally:
                    self._busy_tasks -= 1
                    for download in batch:
                        if download.state is DownloadState.RUNNING:
                            download.cancel()
                    queue.note_ended(len(batch))
        finally:
            self._tasks -= 1

    async def _run(self, queue: DownloadQueue, batch: list[Download]) -> None:
        if len(batch) > 1:
            await self._run_batch(queue, batch)
            return
        [download] = batch
        # The disk cache has been searched for small blobs, but not for large blobs.
        known_absent = download.size <= SMALL_BYTES
        data = await self._publisher.run(download, known_absent=known_absent)
        if data is not None:
            self._publisher.counters.ahead_downloaded += 1
            await queue.publish([(download.content_key, data)])

    async def _run_batch(self, queue: DownloadQueue, batch: list[Download]) -> None:
        receive = partial(self._publisher.receive_batch, publish=queue.publish)
        try:
            rest = await self._downloader.fetch_batch(
                batch, receive, deadline=self._publisher.timeout
            )
        except (UnreachableError, AuthenticationError) as error:
            # No reader needs these blobs yet. A later reader will get an error of its own.
            _log.info("downloads in advance end: %s", error)
            queue.cancel()
            return
        for download in rest:
            download.requeue()
        queue.add_alone(rest)
        self._serve(queue)
