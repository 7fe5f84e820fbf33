"""The content of blobs: from memory, from the disk, or from the server, and whole or not at all.

Concurrency: everything runs in the event loop but disk work (DiskThreads). A read never downloads:
it starts a flight in the service's nursery, or joins one, and waits. So a read can be cancelled at
any point, and there is no lock; between two awaits nothing changes.

Blobs of another size than was promised: reported once, however many readers found out.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.batch_download import BatchDownloader, DownloadQueue, QueuedDownload
from jmapfs.content.blob_source import BlobSource
from jmapfs.content.download import (
    Arrived,
    ContentPublisher,
    Downloader,
    PublishToKernel,
    extra_time,
)
from jmapfs.content.open_blobs import OpenBlob, OpenBlobs
from jmapfs.content.single_flight import Download, SingleFlight
from jmapfs.content.write_behind import ContentCounters, DiskThreads, WriteBehind
from jmapfs.errors import BlobMismatchError, DeadlineError, StorageError, UnreachableError

_log = logging.getLogger(__name__)

SizeMismatch = Callable[[str, int], Awaitable[None]]
"""Is told of a blob's id and its true size in bytes."""


class SizeMismatches:
    """Reports to `on_mismatch`, in tasks of `nursery`: a reader who leaves takes nothing along."""

    def __init__(
        self, on_mismatch: SizeMismatch, nursery: trio.Nursery, counters: ContentCounters
    ) -> None:
        self._on_mismatch = on_mismatch
        self._nursery = nursery
        self._counters = counters
        self._reports: dict[tuple[str, int], trio.Event] = {}
        self._closed = False

    def close(self) -> None:
        """Begin no more reports."""
        self._closed = True

    async def report(self, blob_id: str, size: int) -> None:
        """Report that a blob has `size` bytes; return when whoever is told has dealt with it."""
        reported = self._reports.get((blob_id, size))
        if reported is None and not self._closed:
            reported = self._reports[blob_id, size] = trio.Event()
            self._counters.mismatches += 1
            self._nursery.start_soon(self._tell, blob_id, size)
        if reported is not None:
            await reported.wait()

    async def _tell(self, blob_id: str, size: int) -> None:
        try:
            await self._on_mismatch(blob_id, size)
        except Exception:  # noqa: BLE001 - whatever it is, mail is still to be served
            _log.exception("the size of a mail could not be corrected")
        finally:
            self._reports.pop((blob_id, size)).set()


DEFAULT_READ_TIMEOUT: Final = 30.0
DEFAULT_DOWNLOAD_TIMEOUT: Final = 60.0

_FLUSH_SECONDS: Final = 5.0


class ContentService:
    """Serves the content of blobs; see `open_content_service`. For tasks of the one event loop."""

    def __init__(
        self,
        source: BlobSource,
        disk: DiskCache,
        memory: MemoryCache,
        nursery: trio.Nursery,
        *,
        on_size_mismatch: SizeMismatch,
        downloads: int,
        read_timeout: float,
        download_timeout: float,
    ) -> None:
        self.counters = ContentCounters()
        self._disk = disk
        self._memory = memory
        self._nursery = nursery
        self._mismatches = SizeMismatches(on_size_mismatch, nursery, self.counters)
        self._read_timeout = read_timeout
        self._threads = DiskThreads()
        self._flights = SingleFlight()
        self._held = OpenBlobs(self._close_behind)
        self._closing = False
        self._behind = WriteBehind(disk, self._threads, self.counters)
        downloader = Downloader(source, disk, self._threads, self.counters, parallel=downloads)
        self._deliveries = ContentPublisher(
            disk,
            memory,
            self._held,
            self._behind,
            downloader,
            self._threads,
            self.counters,
            timeout=download_timeout,
        )
        self._bulk = BatchDownloader(source, self._deliveries, nursery, timeout=download_timeout)

    def hold(self, blob_id: str) -> None:
        """Keep the blob at hand once it has been read, until `release`: a file was opened."""
        self._held.hold(blob_id)

    def release(self, blob_id: str) -> None:
        """Undo one `hold`."""
        self._held.release(blob_id)

    async def read(
        self,
        blob_id: str,
        expected_size: int,
        offset: int,
        length: int,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a timeout is a DeadlineError here
    ) -> bytes | memoryview:
        """Return exactly `min(length, expected_size - offset)` bytes; none beyond the end.

        `timeout` is in seconds; None means 30 (as the service was opened), and for a large blob as
        much more as it takes at 256 KiB a second.

        Raises:
            DeadlineError: it took too long; a download goes on for a while, for the next read.
            BlobMismatchError: the blob has another size, which was reported, or other bytes.
            StorageError: there is no room for a large blob, or the disk failed twice.
            JmapfsError: what the source raises.
        """
        if offset < 0 or length < 0:
            raise ValueError("a negative offset or length")
        # Of what is said to be empty the first byte is asked for all the same: is it?
        if length == 0 or offset >= max(expected_size, 1):
            return b""
        if timeout is None:
            timeout = self._read_timeout + extra_time(expected_size)
        self._held.hold(blob_id)
        try:
            with trio.move_on_after(timeout):
                return await self._read(blob_id, expected_size, offset, length)
        finally:
            self._held.release(blob_id)
        raise DeadlineError(f"the content of a mail did not come within {timeout:.0f} s")

    async def contains(self, blob_id: str) -> bool:
        """Tell whether a read would need no network; without reading, or counting as a use."""
        if self.is_near(blob_id):
            return True
        return await self._threads.run_abandonable(partial(self._disk.contains, blob_id))

    def is_near(self, blob_id: str) -> bool:
        """Tell whether a read would need neither network nor a look at the disk cache."""
        return (
            blob_id in self._memory
            or self._behind.get(blob_id) is not None
            or self._held.get(blob_id) is not None
        )

    def near(self, blob_id: str) -> bytes | None:
        """Return the content of a small blob that is in memory, or None."""
        data = self._memory.get(blob_id)
        return self._behind.get(blob_id) if data is None else data

    @property
    def behind(self) -> WriteBehind:
        """What is on its way to the disk cache."""
        return self._behind

    def flight(self, blob_id: str) -> Download | None:
        """Return the flight of a blob that is on its way, whoever it is for; or None."""
        return self._flights.get(blob_id)

    def expect(self, blob_id: str) -> Download | None:
        """Promise to deliver a blob: reads of it now wait for the caller.

        The caller ends the flight whatever happens: by `recall`, `order` or its `withdraw`. None
        if the blob is near or on its way; whether it is on the disk is for the caller to ask.
        """
        if self._closing or self.is_near(blob_id) or self._flights.get(blob_id) is not None:
            return None
        return self._flights.begin(blob_id)

    def put_off(self, flight: Download, size: int) -> None:
        """Let a flight wait until the caller claims it; who comes to wait for it flies it at once.

        `size` is that of the blob in bytes, as far as is known.
        """
        self._bulk.put_off(flight, size)

    async def recall(self, arrived: Sequence[Arrived], show: PublishToKernel) -> None:
        """Deliver blobs from the disk cache, their checksums verified, and show them."""
        self.counters.recalled += len(arrived)
        await self._deliveries.hand_over(arrived, show)

    def order(self, lane: DownloadQueue, ordered: Iterable[QueuedDownload]) -> None:
        """Have the server's blobs brought by a lane, behind what is in it already."""
        self._bulk.order(lane, ordered)

    async def run(self, scope: trio.CancelScope) -> None:
        """Write to the disk what came from the network, until `scope` is cancelled."""
        with scope:
            await self._behind.run()

    async def flush(self) -> None:
        """Begin no more flights, and return when everything is on the disk; `run` is at work."""
        self._closing = True
        self._mismatches.close()
        await self._behind.flush()
        await self._threads.run_abandonable(self._disk.write_touches)

    async def close_files(self) -> None:
        """Close what is still held."""
        for blob in self._held.take_all():
            await self._threads.run(blob.close)

    async def _read(
        self, blob_id: str, expected_size: int, offset: int, length: int
    ) -> bytes | memoryview:
        found = await self._find(blob_id, expected_size)
        if not isinstance(found, bytes):
            try:
                return await self._threads.run_abandonable(partial(found.pread, length, offset))
            except StorageError as error:
                # Its text alone: the traceback holds on to the descriptor.
                _log.warning("a cached mail is fetched again: %s", str(error))
            self._held.forget(blob_id, found)
            await self._threads.run_abandonable(partial(self._disk.discard, blob_id))
            found = await self._find(blob_id, expected_size)
        if isinstance(found, bytes):
            return memoryview(found)[offset : offset + length]
        return await self._threads.run_abandonable(partial(found.pread, length, offset))

    async def _find(self, blob_id: str, expected_size: int) -> bytes | OpenBlob:
        found = await self._look(blob_id, expected_size)
        size = len(found) if isinstance(found, bytes) else found.size
        if size != expected_size:
            await self._mismatches.report(blob_id, size)
            raise BlobMismatchError(f"a mail has {size} bytes, not {expected_size}")
        return found

    async def _look(self, blob_id: str, expected_size: int) -> bytes | OpenBlob:
        flown = False
        while True:
            data = self.near(blob_id)
            if data is not None:
                self.counters.memory_hits += not flown
                return data
            held = self._held.get(blob_id)
            if held is not None:
                self.counters.disk_hits += not flown
                return held
            flown = True
            flight = self._flights.get(blob_id)
            if flight is None:
                if self._closing:
                    raise UnreachableError("the content of mails is no longer served")
                flight = self._flights.begin(blob_id)
                self._nursery.start_soon(self._deliveries.fly, flight, expected_size)
            else:
                self.counters.waits += 1
            data = await flight.wait()
            if data is not None:
                return data

    def _close_behind(self, blob: OpenBlob) -> None:
        if self._closing:
            # There may be no nursery any more; nothing else is going on that this could delay.
            blob.close()
            return
        self._nursery.start_soon(self._close, blob)

    async def _close(self, blob: OpenBlob) -> None:
        with trio.CancelScope(shield=True):
            await self._threads.run(blob.close)


@asynccontextmanager
async def open_content_service(
    source: BlobSource,
    disk_cache: DiskCache,
    memory_cache: MemoryCache | None = None,
    *,
    on_size_mismatch: SizeMismatch,
    downloads: int = 8,
    read_timeout: float = DEFAULT_READ_TIMEOUT,
    download_timeout: float = DEFAULT_DOWNLOAD_TIMEOUT,
) -> AsyncIterator[ContentService]:
    """Serve content for as long as the context lasts; the caches stay the caller's to close.

    `on_size_mismatch(blob_id, size)` is awaited when a blob turns out to have another size than
    was expected, before that read fails; the content is kept. `downloads` is how many there are at
    a time. `read_timeout` and `download_timeout` are in seconds; a download may go on after the
    last reader has left, until its own time is over. At the end, what came last is written to the
    disk, for 5 seconds at most.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        content = ContentService(
            source,
            disk_cache,
            MemoryCache() if memory_cache is None else memory_cache,
            nursery,
            on_size_mismatch=on_size_mismatch,
            downloads=downloads,
            read_timeout=read_timeout,
            download_timeout=download_timeout,
        )
        # Shielded: whatever ends the service, what has come is written first.
        writing = trio.CancelScope(shield=True)
        nursery.start_soon(content.run, writing)
        try:
            yield content
        except Exception as error:  # noqa: BLE001 - else the nursery would wrap it in a group
            failure = error
        finally:
            with trio.move_on_after(_FLUSH_SECONDS, shield=True):
                await content.flush()
            writing.cancel()
            nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await content.close_files()
    if failure is not None:
        raise failure
