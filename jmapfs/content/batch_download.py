"""Many blobs at once: fetched in batches where the server offers that, else one by one.

Each reader that is read ahead for has a lane. Lanes are served in turn, a batch each, by a few
tasks that leave some of the server's patience to whoever waits for a single blob. A blob that
somebody comes to wait for before its batch has begun leaves the lane, and is fetched at once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.content.blob_source import BatchLimits, BlobSource
from jmapfs.content.download import ContentPublisher, PublishToKernel
from jmapfs.content.single_flight import Download
from jmapfs.errors import AuthenticationError, JmapfsError, UnreachableError

_log = logging.getLogger(__name__)

QueuedDownload = tuple[Download, int]
"""The flight of a blob, and the size of the blob in bytes as far as is known."""

# How many requests are left to those who wait for one blob, where the server allows that many.
_LEFT_TO_READERS: Final = 2
# Below this a batch is not divided among idle tasks: a request costs more than it would win.
_LEAST_BATCH: Final = 32
# A blob larger than this part of a batch goes by itself: nobody is to wait for it who wants others.
_LARGE_PART: Final = 4


class DownloadQueue:
    """The blobs that one reader has ordered, in order; `show` shows them to the kernel."""

    def __init__(self, show: PublishToKernel) -> None:
        self.show = show
        self._waiting: deque[QueuedDownload] = deque()
        self._alone: deque[QueuedDownload] = deque()
        self._under_way = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        """Return how many blobs wait for their turn."""
        return len(self._alone) + len(self._waiting)

    async def done(self) -> None:
        """Return when everything that was ordered has come, or failed."""
        while len(self) or self._under_way:
            await self._changed.wait()

    def add(self, ordered: Iterable[QueuedDownload]) -> None:
        """Put blobs at the end."""
        self._waiting.extend(ordered)

    def add_alone(self, ordered: Iterable[QueuedDownload]) -> None:
        """Put blobs before all others, each to be fetched by itself."""
        self._alone.extend(ordered)

    def take(self, limits: BatchLimits | None, idle: int) -> list[QueuedDownload]:
        """Take the next blobs for one request, and begin their flights; none if nothing waits.

        `idle` is how many tasks there are to share what waits, the one that asks among them.
        """
        batch = self._next(self._alone, 1, 0, 0)
        if not batch and limits is None:
            batch = self._next(self._waiting, 1, 0, 0)
        elif not batch and limits is not None:
            share = -(-len(self._waiting) // idle)
            most = min(limits.blobs, max(share, _LEAST_BATCH))
            batch = self._next(self._waiting, most, limits.bytes // _LARGE_PART, limits.bytes)
        self._under_way += len(batch)
        self._tell()
        return batch

    @staticmethod
    def _next(
        waiting: deque[QueuedDownload], most: int, largest: int, room: int
    ) -> list[QueuedDownload]:
        batch: list[QueuedDownload] = []
        while waiting and len(batch) < most:
            flight, size = waiting[0]
            if batch and size > min(largest, room):
                break
            waiting.popleft()
            if not flight.claim():
                continue
            flight.ahead = True
            batch.append((flight, size))
            room -= size
            if size > largest:
                break
        return batch

    def took(self, count: int) -> None:
        """Note that the flights of so many blobs have ended."""
        self._under_way -= count
        self._tell()

    def withdraw(self) -> None:
        """Deliver nothing of what still waits."""
        for waiting in (self._alone, self._waiting):
            while waiting:
                flight, _ = waiting.popleft()
                if flight.claim():
                    flight.withdraw()
        self._tell()

    def _tell(self) -> None:
        if not len(self) and not self._under_way:
            self._changed.set()
            self._changed = trio.Event()


class BatchDownloader:
    """Fetches what is in the lanes; `nursery` is where its tasks run, while there is work.

    `timeout` is in seconds, for one request with what it brings.
    """

    def __init__(
        self,
        source: BlobSource,
        deliveries: ContentPublisher,
        nursery: trio.Nursery,
        *,
        timeout: float,
    ) -> None:
        self._source = source
        self._deliveries = deliveries
        self._nursery = nursery
        self._timeout = timeout
        self._turns: deque[DownloadQueue] = deque()
        self._tasks = 0
        self._busy = 0

    def order(self, lane: DownloadQueue, ordered: Iterable[QueuedDownload]) -> None:
        """Have blobs fetched behind what is in the lane already; their flights begin here.

        Whatever becomes of them, their flights end.
        """
        waiting = list(ordered)
        for flight, size in waiting:
            self.put_off(flight, size)
        lane.add(waiting)
        self._start(lane)

    def put_off(self, flight: Download, size: int) -> None:
        """Let a flight wait until it is claimed; who comes to wait for it flies it at once."""
        flight.ahead = False
        flight.put_off(partial(self._nursery.start_soon, self._deliveries.fly, flight, size))

    def _start(self, lane: DownloadQueue) -> None:
        if lane not in self._turns:
            self._turns.append(lane)
        while self._tasks < min(self._most_tasks(), len(lane)):
            self._tasks += 1
            self._nursery.start_soon(self._work)

    def _most_tasks(self) -> int:
        return max(1, self._source.concurrency - _LEFT_TO_READERS)

    async def _work(self) -> None:
        try:
            while self._turns:
                lane = self._turns.popleft()
                idle = max(1, self._most_tasks() - self._busy)
                batch = lane.take(self._source.batch_limits, idle)
                if not batch:
                    continue
                self._turns.append(lane)
                self._busy += 1
                try:
                    await self._fetch(lane, batch)
                except Exception:  # noqa: BLE001 - a bug here must not take the mount with it
                    _log.exception("a bug in fetching many blobs")
                finally:
                    self._busy -= 1
                    for flight, _ in batch:
                        if not flight.landed and flight.ahead:
                            flight.withdraw()
                    lane.took(len(batch))
        finally:
            self._tasks -= 1

    async def _fetch(self, lane: DownloadQueue, batch: list[QueuedDownload]) -> None:
        if len(batch) > 1:
            left = await self._fetch_batch(lane, batch)
            for flight, size in left:
                self.put_off(flight, size)
            lane.add_alone(left)
            self._start(lane)
            return
        [(flight, size)] = batch
        # A large one was not looked for on the disk, where that takes long.
        data = await self._deliveries.fly(flight, size, known_absent=size <= SMALL_BYTES)
        if data is not None:
            self._deliveries.counters.ahead += 1
            await lane.show([(flight.blob_id, data)])

    async def _fetch_batch(
        self, lane: DownloadQueue, batch: list[QueuedDownload]
    ) -> list[QueuedDownload]:
        """Fetch blobs by one request; return those that are to be fetched alone."""
        wanted = [(flight.blob_id, size) for flight, size in batch]
        try:
            content = await self._source.download_batch(wanted, deadline=self._timeout)
        except (UnreachableError, AuthenticationError) as error:
            # Nobody asked for these yet; who does finds out for himself, and is told.
            _log.info("reading ahead ends here: %s", error)
            lane.withdraw()
            return []
        except JmapfsError as error:
            _log.warning("a batch of blobs is fetched one by one: %s", error)
            return batch
        # One of another length than was stated is asked for by itself, before that is believed.
        arrived = [
            (flight, content[flight.blob_id])
            for flight, size in batch
            if len(content.get(flight.blob_id, b"")) == size
        ]
        await self._deliveries.accept_many(arrived, lane.show)
        came = {flight for flight, _ in arrived}
        return [ordered for ordered in batch if ordered[0] not in came]
