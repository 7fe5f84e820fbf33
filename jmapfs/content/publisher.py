"""Runs downloads, and publishes content to readers, the kernel, memory and the disk cache.

Small blobs are written to the disk cache in the background (`write_behind`). Large blobs are
streamed into a file of the cache. If the disk is full, one large blob at a time is whole in memory.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

import trio

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.large_files import LargeWriter
from jmapfs.cache.memory import MemoryBlob, MemoryCache, OpenBlob, OpenBlobs
from jmapfs.content.arrival import Arrival
from jmapfs.content.download import Downloader, join_chunks
from jmapfs.content.failures import BlobFailures
from jmapfs.content.single_flight import Download, DownloadState
from jmapfs.content.write_behind import DiskThreads, WriteBehind
from jmapfs.deadline import Deadline
from jmapfs.errors import (
    BlobMismatchError,
    DeadlineError,
    JmapfsError,
    ServerError,
    StorageError,
    UnreachableError,
)

_log = logging.getLogger(__name__)

Arrived = tuple[Download, bytes]
"""A running download, and the content that has arrived for it."""

PublishToKernel = Callable[[list[tuple[str, bytes]]], Awaitable[Collection[str]]]
"""Gives contents (by key) to the kernel; returns the keys that need not be kept in memory."""

_MOST_CONFIRMED: Final = 4096
_LARGEST_IN_MEMORY_BYTES: Final = 32 * 1024 * 1024


@dataclass(slots=True)
class ContentCounters:
    """Counters for `jmapfs status`; all begin at 0.

    `hits` are reads that needed no download. `ahead_downloaded` counts blobs that were read ahead
    from the server, `ahead_recalled` those that were read ahead from the disk cache. `confirmed`
    counts contents that were accepted with another size than expected. `refused` counts downloads
    whose content was refused.
    """

    hits: int = 0
    ahead_downloaded: int = 0
    ahead_recalled: int = 0
    confirmed: int = 0
    refused: int = 0


class _DiskFullError(Exception):
    """No file could be created, or the file cannot grow."""


class _NotWantedError(Exception):
    """Nobody needs the rest of a large blob."""


class ContentPublisher:
    """Runs the downloads of one account, and publishes their content.

    At most `parallel` single blobs are downloaded at a time. A download gets `timeout` seconds, and
    more with each byte that arrives (`jmapfs.deadline`).
    """

    def __init__(
        self,
        downloader: Downloader,
        disk: DiskCache,
        memory: MemoryCache,
        open_blobs: OpenBlobs,
        threads: DiskThreads,
        *,
        parallel: int,
        timeout: float,
    ) -> None:
        self.counters = ContentCounters()
        self.failures = BlobFailures()
        self._timeout = timeout
        self._confirmed: OrderedDict[str, int] = OrderedDict()
        self.write_behind = WriteBehind(disk, threads)
        self._downloader = downloader
        self._disk = disk
        self._memory = memory
        self._open_blobs = open_blobs
        self._threads = threads
        self._slots = trio.CapacityLimiter(parallel)
        self._waiting: set[Deadline] = set()
        self._large_in_memory = trio.CapacityLimiter(1)

    def accepts_size(self, key: str, expected: int, size: int) -> bool:
        """Return whether content of `size` bytes may be used for a blob of another expected size.

        Only if the content was confirmed. For worker threads too.
        """
        return size == expected or self._confirmed.get(key) == size

    async def run(self, download: Download, *, known_absent: bool = False) -> bytes | None:
        """Run a download from the disk cache or the server to its end; never raises an error.

        If `known_absent`, the disk cache is not searched. Returns the content of a small blob.
        """
        deadline = self.deadline([download])
        found: bytes | OpenBlob | None = None
        try:
            with deadline.limit() as scope:
                found = await self._obtain(download, deadline, known_absent=known_absent)
            if scope.cancelled_caught and not download.ended:
                late = DeadlineError(
                    f"a mail could not be downloaded within {deadline.seconds:.0f} s"
                )
                self.failures.record(download.content_key, late)
                download.fail(late)
            return found if isinstance(found, bytes) else None
        except _NotWantedError:
            download.cancel()
        except Exception as error:  # noqa: BLE001 - it is raised again in the readers
            self._note_failure(download, error)
            self.failures.record(download.content_key, error)
            if not download.ended:
                download.fail(error)
        finally:
            if not download.ended:
                download.fail(UnreachableError("the content of mails is no longer served"))
        return None

    def deadline(self, downloads: Sequence[Download]) -> Deadline:
        """Return the deadline of a request for these blobs, which begins now."""

        def received(count: int) -> None:
            for download in downloads:
                download.received(count)
            for waiting in self._waiting:
                waiting.refill(count)

        def followers() -> Iterator[Deadline]:
            return chain.from_iterable(download.deadlines for download in downloads)

        return Deadline(self._timeout, received, followers)

    async def receive_batch(self, arrived: Sequence[Arrived], publish: PublishToKernel) -> None:
        """Finish downloads whose content arrived in one response, and queue it to be written."""
        self.counters.ahead_downloaded += len(arrived)
        for download, data in arrived:
            self._note_size(download, len(data))
        await self.publish(arrived, publish)
        await self.write_behind.add([(download.content_key, data) for download, data in arrived])

    async def publish(self, arrived: Sequence[Arrived], publish: PublishToKernel) -> None:
        """Finish downloads whose content has arrived, first those that have readers.

        The other downloads are published to the kernel before they are finished. A program that
        reads the file a moment later then finds the content in the page cache. A READ that arrives
        in between must be answered at once: it has locked its page, and publishing waits for this
        lock.
        """
        unread: list[Arrived] = []
        for download, data in arrived:
            if download.waiters:
                self._finish(download, data)
            else:
                download.publish(partial(self._finish, download, data))
                unread.append((download, data))
        taken: Collection[str] = ()
        try:
            if unread:
                taken = await publish([(download.content_key, data) for download, data in unread])
        finally:
            for download, data in unread:
                if download.state is DownloadState.PUBLISHING:
                    self._finish(download, data, keep=download.content_key not in taken)

    async def _obtain(
        self, download: Download, deadline: Deadline, *, known_absent: bool
    ) -> bytes | OpenBlob | None:
        found: bytes | OpenBlob | None = None
        if not known_absent:
            found = await self._threads.run_abandonable(partial(self._load, download))
        if found is not None:
            self.counters.hits += 1
            self._finish(download, found)
            return found
        self._waiting.add(deadline)
        try:
            with download.abandoned:
                await self._slots.acquire_on_behalf_of(download)
        finally:
            self._waiting.discard(deadline)
        if download.abandoned.cancelled_caught:
            download.cancel()
            return None
        download.begin_transfer()
        try:
            if download.arrival is None:
                found = await self._downloader.fetch(download, join_chunks, deadline=deadline)
            else:
                found = await self._download_large(download, download.arrival, deadline)
        finally:
            self._slots.release_on_behalf_of(download)
        self._note_size(download, _size_of(found))
        self._finish(download, found)
        if isinstance(found, bytes):
            await self.write_behind.add([(download.content_key, found)])
        return found

    def _load(self, download: Download) -> bytes | OpenBlob | None:
        """Return content from the disk cache; in a worker thread.

        Content of a size that is neither expected nor confirmed is removed. It may come from an
        earlier version, which stored content without confirming it.
        """
        found = self._disk.load(download.content_key)
        if found is None or self.accepts_size(download.content_key, download.size, _size_of(found)):
            return found
        if not isinstance(found, bytes):
            found.close()
        self._disk.discard(download.content_key)
        return None

    def _note_size(self, download: Download, size: int) -> None:
        """Record the size of accepted content."""
        if size == download.size:
            return
        self.counters.confirmed += 1
        self._confirmed[download.content_key] = size
        while len(self._confirmed) > _MOST_CONFIRMED:
            self._confirmed.popitem(last=False)

    def _note_failure(self, download: Download, error: Exception) -> None:
        if isinstance(error, BlobMismatchError):
            self.counters.refused += 1
            _log.warning("%s is not served: %s", self._name(download), error)
        elif not isinstance(error, JmapfsError):
            _log.error("%s could not be fetched", self._name(download), exc_info=error)
        elif isinstance(error, ServerError):
            _log.info("%s could not be fetched: %s", self._name(download), error)

    def _name(self, download: Download) -> str:
        return self._downloader.source.describe(download.content_key)

    def _finish(self, download: Download, found: bytes | OpenBlob, *, keep: bool = True) -> None:
        self.failures.forget(download.content_key)
        if not isinstance(found, bytes):
            self._open_blobs.add(download.content_key, found)
            download.finish(None)
            return
        kept = keep and self._memory.put(download.content_key, found)
        if not kept and self._open_blobs.is_held(download.content_key):
            # Otherwise each READ of a part of the blob would need a disk access or a download.
            self._open_blobs.add(download.content_key, MemoryBlob(found))
        download.finish(found)

    async def _download_large(
        self, download: Download, arrival: Arrival, deadline: Deadline
    ) -> OpenBlob:
        try:
            return await self._downloader.fetch(
                download,
                partial(self._write_file, download, arrival),
                deadline=deadline,
                confirm_early=arrival.confirm,
            )
        except _DiskFullError as error:
            _log.warning("no space on the disk for a blob of %d bytes", download.size)
            if arrival.is_confirmed:
                # Readers have a part of these bytes. Another download could have other bytes.
                raise StorageError("the disk became full while a mail arrived") from error
        return await self._download_to_memory(download, deadline)

    async def _write_file(
        self, download: Download, arrival: Arrival, chunks: AsyncIterator[bytes]
    ) -> OpenBlob:
        """Write a content to a file of the disk cache. If `chunks` raises, nothing is kept.

        As soon as the beginning is confirmed, readers get what is written, and the transfer goes on
        while they want it.
        """
        begin = partial(self._disk.begin_large, download.content_key, download.size)
        writer = await self._threads.run(begin)
        if writer is None:
            raise _DiskFullError
        try:
            async for chunk in chunks:
                try:
                    await self._threads.run(partial(writer.write, chunk))
                except OSError as error:
                    raise _DiskFullError from error
                if arrival.is_confirmed and writer.size < download.size:
                    await self._show_beginning(download, arrival, writer)
            await self._threads.run(writer.commit)
            return writer.detach()
        finally:
            # A cancellation must not leave the file behind.
            with trio.CancelScope(shield=True):
                await self._threads.run(writer.abort)

    async def _show_beginning(
        self, download: Download, arrival: Arrival, writer: LargeWriter
    ) -> None:
        """Give readers what was written; raise _NotWantedError if they do not want the rest."""
        arrival.add(arrival.blob or writer.open_beginning(download.size), writer.size)
        is_open = partial(self._open_blobs.is_held, download.content_key)
        if not await arrival.wait_until_wanted(is_open):
            raise _NotWantedError

    async def _download_to_memory(self, download: Download, deadline: Deadline) -> OpenBlob:
        if download.size > _LARGEST_IN_MEMORY_BYTES:
            raise StorageError("there is no space on the disk for a large mail")
        owner = object()
        await self._large_in_memory.acquire_on_behalf_of(owner)
        try:
            content = await self._downloader.fetch(download, _collect, deadline=deadline)
        except BaseException:
            self._large_in_memory.release_on_behalf_of(owner)
            raise
        token = trio.lowlevel.current_trio_token()
        # The blob is closed in a worker thread, like all open blobs.
        release = partial(self._large_in_memory.release_on_behalf_of, owner)
        return MemoryBlob(content, partial(token.run_sync_soon, release))


async def _collect(chunks: AsyncIterator[bytes]) -> bytearray:
    content = bytearray()
    async for chunk in chunks:
        content += chunk
        if len(content) > _LARGEST_IN_MEMORY_BYTES:
            raise StorageError("there is no space on the disk for a large mail")
    return content


def _size_of(found: bytes | OpenBlob) -> int:
    return len(found) if isinstance(found, bytes) else found.size
