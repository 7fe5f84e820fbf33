"""Small blobs that are written to the disk cache in the background, and the threads for disk work.

A reader must not wait for the disk, and one transaction for many blobs is cheaper than many.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from jmapfs.cache.disk_cache import DiskCache

_T = TypeVar("_T")

_DISK_THREADS: Final = 8
_LIMIT_BYTES: Final = 16 * 1024 * 1024
_BATCH_BYTES: Final = 4 * 1024 * 1024
_WAIT_SECONDS: Final = 1.0
_TOUCHES_SECONDS: Final = 60.0


class DiskThreads:
    """Runs disk work in worker threads; their number is limited independently of other threads."""

    def __init__(self) -> None:
        self.limiter = trio.CapacityLimiter(_DISK_THREADS)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns; a cancellation takes effect only after `work` has ended."""
        return await trio.to_thread.run_sync(work, limiter=self.limiter)

    async def run_abandonable(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns; a cancellation abandons the thread and its result."""
        return await trio.to_thread.run_sync(work, limiter=self.limiter, abandon_on_cancel=True)


class WriteBehind:
    """Writes small blobs to the disk cache in the background, in the task `run`.

    The pending blobs are bounded in bytes. They can be read with `get`. A blob that does not fit is
    not written, and is downloaded again when it is needed. Blobs that arrive during a transaction
    are written together in the next one.
    """

    def __init__(self, disk: DiskCache, threads: DiskThreads) -> None:
        self._disk = disk
        self._threads = threads
        self._pending: dict[str, bytes] = {}
        self._bytes = 0
        self._changed = trio.Event()

    def get(self, key: str) -> bytes | None:
        """Return a blob that has not been written yet, or None."""
        return self._pending.get(key)

    async def add(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        """Add blobs; a blob for which there is no room within a second is not written."""
        if not self._disk.limit_bytes:
            return
        with trio.move_on_after(_WAIT_SECONDS):
            await self.wait_for_room(sum(len(data) for _, data in blobs))
        for key, data in blobs:
            if key in self._pending:
                continue
            if self._bytes + len(data) > _LIMIT_BYTES and self._pending:
                continue
            self._pending[key] = data
            self._bytes += len(data)
        self._notify()

    async def wait_for_room(self, size: int) -> None:
        """Return when there is room for `size` bytes, or when all pending blobs are written."""
        while self._bytes + size > _LIMIT_BYTES and self._pending:
            await self._changed.wait()

    async def wait_until_written(self, keys: Collection[str]) -> None:
        """Return when none of the blobs is pending: each was stored or could not be stored."""
        while not self._pending.keys().isdisjoint(keys):
            await self._changed.wait()

    async def run(self) -> None:
        """Write blobs until cancelled; after a minute without blobs, write recent uses."""
        while True:
            with trio.move_on_after(_TOUCHES_SECONDS):
                while not self._pending:
                    await self._changed.wait()
            if self._pending:
                await self._write_batch()
            else:
                await self._threads.run_abandonable(self._disk.write_touches)

    async def flush(self) -> None:
        """Return when all pending blobs are written; `run` must be running."""
        while self._pending:
            await self._changed.wait()

    async def _write_batch(self) -> None:
        batch: list[tuple[str, bytes]] = []
        size = 0
        for key, data in self._pending.items():
            if batch and size + len(data) > _BATCH_BYTES:
                break
            batch.append((key, data))
            size += len(data)
        await self._threads.run_abandonable(partial(self._disk.put_many, batch))
        for key, _ in batch:
            del self._pending[key]
        self._bytes -= size
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
