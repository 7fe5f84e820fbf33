"""Writing small blobs to the disk cache, behind the backs of those who wait for them.

Bounded in bytes. What waits here can be read here; what does not fit is not kept, never lost.
While one batch is being written the next one gathers: under load a transaction takes many.

Disk work off the event loop, with a limit of its own so that it never waits for other work.

What the content service has done since it was opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from jmapfs.cache.disk_cache import DiskCache

_DISK_THREADS: Final = 8

T = TypeVar("T")


class DiskThreads:
    """Runs functions in worker threads, a few at a time."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(_DISK_THREADS)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; a cancellation waits until it has."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def run_abandonable(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; cancelled, leave it to itself, and its result."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)


@dataclass(slots=True)
class ContentCounters:
    """Counts, from 0.

    `memory_hits` and `disk_hits` are reads; `waits` are reads that joined a download (or a look at
    the disk) under way; `recalled` are blobs that were read ahead from the disk, `ahead` those from
    the server; `downloads` and `downloaded_bytes` are all that came whole; `failures` are flights
    that ended with an error; `mismatches` blobs of another length or digest than promised; `unkept`
    blobs that were served but not written to the disk cache.
    """

    memory_hits: int = 0
    disk_hits: int = 0
    waits: int = 0
    recalled: int = 0
    ahead: int = 0
    downloads: int = 0
    downloaded_bytes: int = 0
    failures: int = 0
    mismatches: int = 0
    unkept: int = 0


_LIMIT_BYTES: Final = 16 * 1024 * 1024
_BATCH_BYTES: Final = 4 * 1024 * 1024
_PATIENCE_SECONDS: Final = 1.0
_TOUCHES_SECONDS: Final = 60.0


class WriteBehind:
    """The blobs that are to be written, and the task that writes them (`run`)."""

    def __init__(self, disk: DiskCache, threads: DiskThreads, counters: ContentCounters) -> None:
        self._disk = disk
        self._threads = threads
        self._counters = counters
        self._waiting: dict[str, bytes] = {}
        self._bytes = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        """Return how many blobs wait to be written."""
        return len(self._waiting)

    def get(self, blob_id: str) -> bytes | None:
        """Return a blob that waits to be written, or None."""
        return self._waiting.get(blob_id)

    async def offer(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        """Have blobs written; while there is no room wait a second for it, then let them be."""
        if not self._disk.limit_bytes:
            return
        size = sum(len(data) for _, data in blobs)
        with trio.move_on_after(_PATIENCE_SECONDS):
            await self.room(size)
        for blob_id, data in blobs:
            if blob_id in self._waiting:
                continue
            if self._bytes + len(data) > _LIMIT_BYTES and self._waiting:
                self._counters.unkept += 1
                continue
            self._waiting[blob_id] = data
            self._bytes += len(data)
        self._signal()

    async def room(self, size: int) -> None:
        """Return when there is room for so many bytes, or when nothing waits."""
        while self._bytes + size > _LIMIT_BYTES and self._waiting:
            await self._changed.wait()

    async def written(self, blob_ids: Collection[str]) -> None:
        """Return when none of these waits any more: it is on the disk, or the disk refused it."""
        while not self._waiting.keys().isdisjoint(blob_ids):
            await self._changed.wait()

    async def run(self) -> None:
        """Write, until cancelled; now and then also what the disk cache has to note."""
        while True:
            with trio.move_on_after(_TOUCHES_SECONDS):
                while not self._waiting:
                    await self._changed.wait()
            if self._waiting:
                await self._write_batch()
            else:
                await self._threads.run_abandonable(self._disk.write_touches)

    async def flush(self) -> None:
        """Return when everything has been written; `run` must be at work."""
        while self._waiting:
            await self._changed.wait()

    async def _write_batch(self) -> None:
        batch: list[tuple[str, bytes]] = []
        size = 0
        for blob_id, data in self._waiting.items():
            if batch and size + len(data) > _BATCH_BYTES:
                break
            batch.append((blob_id, data))
            size += len(data)
        kept = await self._threads.run_abandonable(lambda: self._disk.put_many(batch))
        self._counters.unkept += kept.count(False)
        for blob_id, _ in batch:
            del self._waiting[blob_id]
        self._bytes -= size
        self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
