"""The content of blobs, from memory, the disk cache or the server.

Everything runs in the event loop except disk work (`DiskThreads`). A read never downloads: it
starts a download in the service's nursery, or joins one, and waits. So a read can be cancelled at
any point. No lock is needed, because nothing changes between two awaits.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.memory import MemoryCache, OpenBlob, OpenBlobs
from jmapfs.content.download import Downloader
from jmapfs.content.download_queue import BatchDownloader
from jmapfs.content.publisher import (
    Arrived,
    ContentCounters,
    ContentPublisher,
    PublishToKernel,
)
from jmapfs.content.server_blobs import BlobSource
from jmapfs.content.single_flight import Download, SingleFlight
from jmapfs.content.write_behind import DiskThreads
from jmapfs.deadline import Deadline
from jmapfs.errors import BlobMismatchError, StorageError, UnreachableError

_log = logging.getLogger(__name__)

OnSizeMismatch = Callable[[str, int], Awaitable[None]]
"""Called with the key of a blob and its confirmed size in bytes."""

_FLUSH_SECONDS: Final = 5.0


class ContentService:
    """Serves the content of blobs; see `open_content_service`. For tasks of one event loop.

    `counters` is for `jmapfs status`. `failures` has the blobs that reads must not request now.
    `write_behind` has the blobs that are not in the disk cache yet. `downloads` serves the queues
    of read-ahead and prefetch.
    """

    def __init__(
        self,
        source: BlobSource,
        disk: DiskCache,
        memory: MemoryCache,
        nursery: trio.Nursery,
        *,
        on_size_mismatch: OnSizeMismatch,
        parallel_downloads: int,
        read_timeout: float,
        download_timeout: float,
    ) -> None:
        self._source = source
        self._disk = disk
        self._memory = memory
        self._nursery = nursery
        self._read_timeout = read_timeout
        self._mismatches = _SizeMismatches(on_size_mismatch, nursery)
        self._threads = DiskThreads()
        self._open_blobs = OpenBlobs(self._close_later)
        self._closing = False
        downloader = Downloader(source, self._threads.limiter)
        self._publisher = ContentPublisher(
            downloader,
            disk,
            memory,
            self._open_blobs,
            self._threads,
            parallel=parallel_downloads,
            timeout=download_timeout,
        )
        self._single_flight = SingleFlight(self._start_download)
        self.downloads = BatchDownloader(downloader, self._publisher, nursery)
        self.write_behind = self._publisher.write_behind
        self.counters: ContentCounters = self._publisher.counters
        self.failures = self._publisher.failures

    def hold(self, key: str) -> None:
        """Count one more open file. A read opens its blob; the last `release` closes the blob."""
        self._open_blobs.hold(key)

    def release(self, key: str) -> None:
        """Undo one call of `hold`."""
        self._open_blobs.release(key)
        download = self._single_flight.get(key)
        if download is not None and download.arrival is not None:
            download.arrival.notify()

    async def read(
        self,
        key: str,
        expected_size: int,
        offset: int,
        length: int,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a timeout is a DeadlineError here
    ) -> bytes | memoryview:
        """Return exactly `min(length, expected_size - offset)` bytes, or none after the end.

        `timeout` is in seconds. None means the `read_timeout` of the service (by default 30). Bytes
        of the blob that arrive meanwhile give more time (`jmapfs.deadline`).

        Raises:
            DeadlineError: the read took too long. The download goes on for a while, for the next
                read.
            BlobMismatchError: the content is refused. Or it is confirmed, but has a different size,
                which has been reported to `on_size_mismatch`.
            StorageError: there is no room for a large blob, or the disk failed twice.
            JmapfsError: the source has raised this error, or has raised it a moment ago.
        """
        if offset < 0 or length < 0:
            raise ValueError("a negative offset or length")
        # Read one byte even if the size is 0: the server may be wrong.
        if length == 0 or offset >= max(expected_size, 1):
            return b""
        deadline = Deadline(self._read_timeout if timeout is None else timeout)
        self._open_blobs.hold(key)
        try:
            with deadline.enforced("the content of a mail did not arrive in time"):
                return await self._read(key, expected_size, offset, length, deadline)
        finally:
            self.release(key)

    def is_cached(self, key: str) -> bool:
        """Tell whether a read would need neither the network nor a search of the disk cache."""
        return (
            key in self._memory
            or self.write_behind.get(key) is not None
            or self._open_blobs.get(key) is not None
        )

    def cached(self, key: str) -> bytes | None:
        """Return the content of a small blob that is in memory, or None."""
        data = self._memory.get(key)
        return self.write_behind.get(key) if data is None else data

    def accepts_size(self, key: str, expected: int, size: int) -> bool:
        """Return whether content of `size` bytes may be used for a blob of `expected` bytes."""
        return self._publisher.accepts_size(key, expected, size)

    def describe(self, key: str) -> str:
        """Return a name for a blob in messages; see `BlobSource.describe`."""
        return self._source.describe(key)

    def get_download(self, key: str) -> Download | None:
        """Return the unfinished download of a blob, or None if there is none."""
        return self._single_flight.get(key)

    def create_download(self, key: str, size: int) -> Download | None:
        """Return a new, queued download of a blob of `size` bytes, which reads will join.

        The caller runs the download with `downloads` or `publish`, or cancels it. Returns None if
        the blob is in memory or being downloaded; the disk cache is not searched.
        """
        if self._closing or self.is_cached(key) or self._single_flight.get(key) is not None:
            return None
        return self._single_flight.create(key, size)

    async def publish(self, arrived: Sequence[Arrived], publish: PublishToKernel) -> None:
        """Finish downloads whose content was found in the disk cache and verified; publish it."""
        self.counters.ahead_recalled += len(arrived)
        await self._publisher.publish(arrived, publish)

    async def run(self, scope: trio.CancelScope) -> None:
        """Write downloaded blobs to the disk cache, until `scope` is cancelled."""
        with scope:
            await self.write_behind.run()

    async def flush(self) -> None:
        """Start no more downloads, and return when `run` has written all content."""
        self._closing = True
        self._mismatches.close()
        await self.write_behind.flush()
        await self._threads.run_abandonable(self._disk.write_touches)

    async def close_files(self) -> None:
        """Close all open blobs."""
        for blob in self._open_blobs.remove_all():
            await self._threads.run(blob.close)

    async def _read(
        self, key: str, expected_size: int, offset: int, length: int, deadline: Deadline
    ) -> bytes | memoryview:
        end = min(offset + length, expected_size)
        found = await self._find(key, expected_size, end, deadline)
        if not isinstance(found, bytes):
            try:
                return await self._threads.run_abandonable(partial(found.pread, length, offset))
            except StorageError as error:
                # Log only the text of the error: its traceback would keep the descriptor open.
                _log.warning("a cached mail is fetched again: %s", str(error))
            self._open_blobs.forget(key, found)
            await self._threads.run_abandonable(partial(self._disk.discard, key))
            found = await self._find(key, expected_size, end, deadline)
        if isinstance(found, bytes):
            return memoryview(found)[offset : offset + length]
        return await self._threads.run_abandonable(partial(found.pread, length, offset))

    async def _find(
        self, key: str, expected_size: int, end: int, deadline: Deadline
    ) -> bytes | OpenBlob:
        """Return the content of a blob, or the open blob, which can be read at least up to `end`.

        If the content is confirmed but has a different size, reports this size and raises
        BlobMismatchError. Other content of a different size is dropped and downloaded once more.
        """
        while True:
            found = await self._find_any_size(key, expected_size, end, deadline)
            size = len(found) if isinstance(found, bytes) else found.size
            if size == expected_size:
                return found
            if self.accepts_size(key, expected_size, size):
                await self._mismatches.report(key, size)
                raise BlobMismatchError(f"a mail has {size} bytes, not {expected_size}")
            await self._drop(key, found)

    async def _drop(self, key: str, found: bytes | OpenBlob) -> None:
        """Remove content from all caches."""
        self._memory.remove(key)
        if not isinstance(found, bytes):
            self._open_blobs.forget(key, found)
        await self.write_behind.wait_until_written([key])
        await self._threads.run_abandonable(partial(self._disk.discard, key))

    async def _find_any_size(
        self, key: str, expected_size: int, end: int, deadline: Deadline
    ) -> bytes | OpenBlob:
        waited = False
        while True:
            # No await is allowed from here to `create`: a blob must not get two downloads.
            found: bytes | OpenBlob | None = self.cached(key)
            if found is None:
                found = self._open_blobs.get(key)
            if found is not None:
                self.counters.hits += not waited
                return found
            waited = True
            download = self._single_flight.get(key)
            if download is None:
                if (error := self.failures.get(key)) is not None:
                    raise error
                download = self._single_flight.create(key, expected_size)
            data = await download.wait(end, deadline)
            if data is not None:
                return data

    def _start_download(self, download: Download) -> None:
        if self._closing:
            # Downloads that were queued earlier fail too: the nursery to run them may have ended.
            download.fail(UnreachableError("the content of mails is no longer served"))
            return
        if not self.downloads.serve_reader(download):
            self._nursery.start_soon(self._publisher.run, download)

    def _close_later(self, blob: OpenBlob) -> None:
        if self._closing:
            # The nursery may have ended, so close here. This blocks, but delays no other task.
            blob.close()
            return
        self._nursery.start_soon(self._close, blob)

    async def _close(self, blob: OpenBlob) -> None:
        with trio.CancelScope(shield=True):
            await self._threads.run(blob.close)


class _SizeMismatches:
    """Reports blobs whose size is not the stated size; readers of one blob share one report.

    The reports run in tasks of `nursery`, so that a reader that leaves does not cancel them.
    """

    def __init__(self, on_mismatch: OnSizeMismatch, nursery: trio.Nursery) -> None:
        self._on_mismatch = on_mismatch
        self._nursery = nursery
        self._reports: dict[tuple[str, int], trio.Event] = {}
        self._closed = False

    def close(self) -> None:
        self._closed = True

    async def report(self, key: str, size: int) -> None:
        """Report that a blob has `size` bytes; return when `on_mismatch` has returned."""
        reported = self._reports.get((key, size))
        if reported is None and not self._closed:
            reported = self._reports[key, size] = trio.Event()
            self._nursery.start_soon(self._report, key, size)
        if reported is not None:
            await reported.wait()

    async def _report(self, key: str, size: int) -> None:
        try:
            await self._on_mismatch(key, size)
        except Exception:  # noqa: BLE001 - a bug must not end the mount
            _log.exception("the size of a mail could not be corrected")
        finally:
            self._reports.pop((key, size)).set()


@asynccontextmanager
async def open_content_service(
    source: BlobSource,
    disk_cache: DiskCache,
    memory_cache: MemoryCache,
    *,
    on_size_mismatch: OnSizeMismatch,
    parallel_downloads: int = 8,
    read_timeout: float = 30.0,
    download_timeout: float = 60.0,
) -> AsyncIterator[ContentService]:
    """Serve content while the context lasts; the caller closes the caches.

    `on_size_mismatch(key, size)` is awaited when a blob is confirmed to have a size other than
    expected. After that the read fails, but the content is kept. `read_timeout` and
    `download_timeout` are in seconds. A download may go on after its last reader has left, until
    `download_timeout`. At the end, pending content is written to the disk, for 5 seconds at most.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        content = ContentService(
            source,
            disk_cache,
            memory_cache,
            nursery,
            on_size_mismatch=on_size_mismatch,
            parallel_downloads=parallel_downloads,
            read_timeout=read_timeout,
            download_timeout=download_timeout,
        )
        # The shield makes sure that content that has arrived is written even after a cancellation.
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
