"""Getting a blob from the server: a small one into memory, a large one into a file.

Downloads are few at a time, whoever asked for them. A large blob is never whole in memory, but for
the case that there is no disk to put it on, and then one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from jmapfs.cache import SMALL_BYTES, DiskCache, LargeWriter
from jmapfs.errors import BlobMismatchError, StorageError
from jmapfs.fetch.checking import ContentCheck
from jmapfs.fetch.counters import ContentCounters
from jmapfs.fetch.flights import Flight
from jmapfs.fetch.held import InMemory, Readable
from jmapfs.fetch.source import BlobSource
from jmapfs.fetch.threads import DiskThreads

_log = logging.getLogger(__name__)

_PIECE_BYTES: Final = 1024 * 1024
# SHA-1 takes 0.6 ms for 1 MiB; more than a fraction of that does not belong in the event loop.
_HASHED_AT_ONCE_BYTES: Final = 256 * 1024
# How far a blob may be from the size that was promised before it is given up.
_MARGIN_BYTES: Final = 64 * 1024 * 1024
_MOST_IN_MEMORY_BYTES: Final = 32 * 1024 * 1024


class _NoDiskError(Exception):
    """There is no file to write to, or no longer."""


class UnwantedError(Exception):
    """Nobody waits for the download any more, and it had not begun."""


class Downloader:
    """Downloads blobs and checks them; `parallel` is the number of downloads at a time."""

    def __init__(
        self,
        source: BlobSource,
        disk: DiskCache,
        threads: DiskThreads,
        counters: ContentCounters,
        *,
        parallel: int,
    ) -> None:
        self._source = source
        self._disk = disk
        self._threads = threads
        self._counters = counters
        self._limiter = trio.CapacityLimiter(parallel)
        self._memory = trio.CapacityLimiter(1)

    async def download(self, flight: Flight, size: int, until: float) -> bytes | Readable:
        """Return a blob of `size` bytes, as far as is known; `until` is on trio's clock.

        Raises:
            UnwantedError: the last who waited left before it began.
            BlobMismatchError: the bytes are not those of the blob.
            StorageError: a large blob, and neither disk nor memory has room for it.
            JmapfsError: what the source raises.
        """
        if not flight.waiters and not flight.ahead:
            raise UnwantedError
        with trio.CancelScope() as flight.queue:
            await self._limiter.acquire_on_behalf_of(flight)
        queue, flight.queue = flight.queue, None
        if queue.cancelled_caught:
            raise UnwantedError
        try:
            found: bytes | Readable
            if size <= SMALL_BYTES:
                found = await self._download_small(flight.blob_id, until)
                length = len(found)
            else:
                found = await self._download_large(flight.blob_id, size, until)
                length = found.size
        finally:
            self._limiter.release_on_behalf_of(flight)
        self._counters.downloads += 1
        self._counters.downloaded_bytes += length
        return found

    async def check_many(self, blobs: Sequence[tuple[str, bytes]]) -> dict[str, BlobMismatchError]:
        """Check the content of blobs that came whole; return what is wrong, by blob id."""
        enabled = self._source.blob_ids_are_sha1
        if sum(len(data) for _, data in blobs) > _HASHED_AT_ONCE_BYTES:
            return await self._threads.run_abandonable(partial(_mismatches, blobs, enabled=enabled))
        return _mismatches(blobs, enabled=enabled)

    async def _download_small(self, blob_id: str, until: float) -> bytes:
        data = await self._source.download_blob(blob_id, deadline=_seconds_to(until))
        for error in (await self.check_many([(blob_id, data)])).values():
            raise error
        return data

    async def _download_large(self, blob_id: str, size: int, until: float) -> Readable:
        try:
            return await self._download_to_file(blob_id, size, until)
        except _NoDiskError:
            _log.warning("no space on the disk for a blob of %d bytes", size)
        return await self._download_to_memory(blob_id, size, until)

    async def _download_to_file(self, blob_id: str, size: int, until: float) -> Readable:
        writer = await self._threads.run(partial(self._disk.begin_large, blob_id, size))
        if writer is None:
            raise _NoDiskError
        check = ContentCheck(blob_id, enabled=self._source.blob_ids_are_sha1)
        try:
            await self._stream(blob_id, size, until, partial(_write, writer, check))
            check.finish()
            if not await self._threads.run(writer.commit):
                self._counters.unkept += 1
            return writer.detach()
        finally:
            # Even when cancelled: the file must not be left behind.
            with trio.CancelScope(shield=True):
                await self._threads.run(writer.abort)

    async def _download_to_memory(self, blob_id: str, size: int, until: float) -> Readable:
        if size > _MOST_IN_MEMORY_BYTES:
            raise StorageError("there is no space on the disk for a large mail")
        owner = object()
        await self._memory.acquire_on_behalf_of(owner)
        try:
            content = bytearray()
            check = ContentCheck(blob_id, enabled=self._source.blob_ids_are_sha1)
            await self._stream(blob_id, size, until, partial(_append, content, check))
            check.finish()
        except BaseException:
            self._memory.release_on_behalf_of(owner)
            raise
        self._counters.unkept += 1
        token = trio.lowlevel.current_trio_token()
        # It is closed in a worker thread, like any other.
        release = partial(self._memory.release_on_behalf_of, owner)
        return InMemory(content, partial(token.run_sync_soon, release))

    async def _stream(
        self, blob_id: str, size: int, until: float, write: Callable[[bytearray], None]
    ) -> None:
        received = 0
        piece = bytearray()
        async with self._source.stream_blob(blob_id, deadline=_seconds_to(until)) as chunks:
            async for chunk in chunks:
                received += len(chunk)
                if received > size + _MARGIN_BYTES:
                    raise BlobMismatchError("a blob is far larger than it should be")
                piece += chunk
                if len(piece) >= _PIECE_BYTES:
                    await self._threads.run(partial(write, piece))
                    piece = bytearray()
        await self._threads.run(partial(write, piece))


def _mismatches(
    blobs: Sequence[tuple[str, bytes]], *, enabled: bool
) -> dict[str, BlobMismatchError]:
    wrong = {}
    for blob_id, data in blobs:
        check = ContentCheck(blob_id, enabled=enabled)
        check.update(data)
        try:
            check.finish()
        except BlobMismatchError as error:
            wrong[blob_id] = error
    return wrong


def _write(writer: LargeWriter, check: ContentCheck, piece: bytearray) -> None:
    check.update(piece)
    try:
        writer.write(piece)
    except OSError as error:
        raise _NoDiskError from error


def _append(content: bytearray, check: ContentCheck, piece: bytearray) -> None:
    check.update(piece)
    content += piece
    if len(content) > _MOST_IN_MEMORY_BYTES:
        raise StorageError("there is no space on the disk for a large mail")


def _seconds_to(until: float) -> float:
    return max(0.0, until - trio.current_time())
