"""Getting a blob from the server: a small one into memory, a large one into a file.

Downloads are few at a time, whoever asked for them. A large blob is never whole in memory, but for
the case that there is no disk to put it on, and then one at a time.

Whether a blob is what its id says (Cyrus: `G` and the SHA-1 of the content).

Flying a flight: from the disk or else the server, into memory, and behind onto the disk.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.cache.large_files import LargeWriter
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.blob_source import BlobSource
from jmapfs.content.open_blobs import MemoryBlob, OpenBlob, OpenBlobs
from jmapfs.content.single_flight import Download
from jmapfs.content.write_behind import ContentCounters, DiskThreads, WriteBehind
from jmapfs.errors import (
    BlobMismatchError,
    DeadlineError,
    JmapfsError,
    StorageError,
    UnreachableError,
)

_SHA1_BLOB_ID: Final = re.compile(r"G([0-9a-f]{40})")


class ContentCheck:
    """Checks the content of one blob as it comes; `enabled` where the server's ids are SHA-1s."""

    def __init__(self, blob_id: str, *, enabled: bool) -> None:
        match = _SHA1_BLOB_ID.fullmatch(blob_id) if enabled else None
        self._wanted = match[1] if match else None
        self._hash = hashlib.sha1(usedforsecurity=False)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece."""
        if self._wanted is not None:
            self._hash.update(data)

    def finish(self) -> None:
        """Compare.

        Raises:
            BlobMismatchError: these are not the bytes of the blob.
        """
        if self._wanted is not None and self._hash.hexdigest() != self._wanted:
            raise BlobMismatchError("the content of a blob does not have the SHA-1 in its id")


_log = logging.getLogger(__name__)

Arrived = tuple[Download, bytes]
"""A flight, and the content of its blob."""

PublishToKernel = Callable[[list[tuple[str, bytes]]], Awaitable[Collection[str]]]
"""Shows contents (by blob id) to the kernel; returns the ids that it took."""

# Bytes a second: a large blob gets as much more time as it needs at this rate.
_LEAST_RATE: Final = 256 * 1024


def extra_time(size: int) -> float:
    """Return the seconds that a blob of `size` bytes gets beyond what every blob has."""
    return size / _LEAST_RATE if size > SMALL_BYTES else 0.0


class ContentPublisher:
    """Delivers blobs to those who wait; `timeout` is in seconds, for one small blob."""

    def __init__(
        self,
        disk: DiskCache,
        memory: MemoryCache,
        held: OpenBlobs,
        behind: WriteBehind,
        downloader: Downloader,
        threads: DiskThreads,
        counters: ContentCounters,
        *,
        timeout: float,
    ) -> None:
        self._disk = disk
        self._memory = memory
        self._held = held
        self._behind = behind
        self._downloader = downloader
        self._threads = threads
        self.counters = counters
        self._timeout = timeout

    async def fly(self, flight: Download, size: int, *, known_absent: bool = False) -> bytes | None:
        """End the flight of a blob of (presumably) `size` bytes, one way or another.

        With `known_absent` the disk cache is not looked into. Returns a small blob's content.
        """
        timeout = self._timeout + extra_time(size)
        try:
            with trio.move_on_after(timeout) as scope:
                until = trio.current_time() + timeout
                found = await self._bring(flight, size, until, known_absent=known_absent)
                return found if isinstance(found, bytes) else None
            if scope.cancelled_caught and not flight.landed:
                self.counters.failures += 1
                flight.fail(DeadlineError(f"a mail did not come within {timeout:.0f} s"))
        except AbandonedError:
            flight.withdraw()
        except Exception as error:  # noqa: BLE001 - it is raised again, in those who wait
            self._note(error)
            if not flight.landed:
                flight.fail(error)
        finally:
            if not flight.landed:
                flight.fail(UnreachableError("the content of mails is no longer served"))
        return None

    async def accept_many(self, arrived: Sequence[Arrived], show: PublishToKernel) -> None:
        """End flights whose contents came together from the server; see `hand_over`.

        Where the bytes are not those of the blob, its flight fails.
        """
        wrong = await self._downloader.check_many([(one.blob_id, data) for one, data in arrived])
        right: list[Arrived] = []
        for flight, data in arrived:
            error = wrong.get(flight.blob_id)
            if error is None:
                right.append((flight, data))
            else:
                self._note(error)
                flight.fail(error)
        self.counters.downloads += len(right)
        self.counters.ahead += len(right)
        self.counters.downloaded_bytes += sum(len(data) for _, data in right)
        await self.hand_over(right, show)
        await self._behind.offer([(flight.blob_id, data) for flight, data in right])

    async def hand_over(self, arrived: Sequence[Arrived], show: PublishToKernel) -> None:
        """End flights whose contents are here, those first that somebody waits for.

        The others are shown to the kernel before: a reader that comes a moment later finds them
        there. One that comes meanwhile is answered at once: the kernel does not take what it is
        waiting for.
        """
        unwanted: list[Arrived] = []
        for flight, data in arrived:
            if flight.waiters:
                self._land(flight, data)
            else:
                flight.put_off(partial(self._land, flight, data))
                unwanted.append((flight, data))
        shown: Collection[str] = ()
        try:
            if unwanted:
                shown = await show([(flight.blob_id, data) for flight, data in unwanted])
        finally:
            for flight, data in unwanted:
                if flight.claim():
                    self._land(flight, data, keep=flight.blob_id not in shown)

    async def _bring(
        self, flight: Download, size: int, until: float, *, known_absent: bool
    ) -> bytes | OpenBlob:
        blob_id = flight.blob_id
        found: bytes | OpenBlob | None = None
        if not known_absent:
            found = await self._threads.run_abandonable(partial(self._disk.load, blob_id))
        if found is not None:
            self.counters.disk_hits += 1
            self._land(flight, found)
            return found
        found = await self._downloader.download(flight, size, until)
        self._land(flight, found)
        if isinstance(found, bytes):
            await self._behind.offer([(blob_id, found)])
        return found

    def _land(self, flight: Download, found: bytes | OpenBlob, *, keep: bool = True) -> None:
        if not isinstance(found, bytes):
            self._held.add(flight.blob_id, found)
            flight.deliver(None)
            return
        kept = keep and self._memory.put(flight.blob_id, found)
        if not kept and self._held.holds(flight.blob_id):
            # Else each piece that is read of it would be another look at the disk, or download.
            self._held.add(flight.blob_id, MemoryBlob(found))
        flight.deliver(found)

    def _note(self, error: Exception) -> None:
        self.counters.failures += 1
        if isinstance(error, BlobMismatchError):
            self.counters.mismatches += 1
            _log.warning("a mail is not served: %s", error)
        elif not isinstance(error, JmapfsError):
            _log.error("a mail could not be fetched", exc_info=error)


_PIECE_BYTES: Final = 1024 * 1024
# SHA-1 takes 0.6 ms for 1 MiB; more than a fraction of that does not belong in the event loop.
_HASHED_AT_ONCE_BYTES: Final = 256 * 1024
# How far a blob may be from the size that was promised before it is given up.
_MARGIN_BYTES: Final = 64 * 1024 * 1024
_MOST_IN_MEMORY_BYTES: Final = 32 * 1024 * 1024


class _NoDiskError(Exception):
    """There is no file to write to, or no longer."""


class AbandonedError(Exception):
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

    async def download(self, flight: Download, size: int, until: float) -> bytes | OpenBlob:
        """Return a blob of `size` bytes, as far as is known; `until` is on trio's clock.

        Raises:
            UnwantedError: the last who waited left before it began.
            BlobMismatchError: the bytes are not those of the blob.
            StorageError: a large blob, and neither disk nor memory has room for it.
            JmapfsError: what the source raises.
        """
        if not flight.waiters and not flight.ahead:
            raise AbandonedError
        with trio.CancelScope() as flight.queue:
            await self._limiter.acquire_on_behalf_of(flight)
        queue, flight.queue = flight.queue, None
        if queue.cancelled_caught:
            raise AbandonedError
        try:
            found: bytes | OpenBlob
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

    async def _download_large(self, blob_id: str, size: int, until: float) -> OpenBlob:
        try:
            return await self._download_to_file(blob_id, size, until)
        except _NoDiskError:
            _log.warning("no space on the disk for a blob of %d bytes", size)
        return await self._download_to_memory(blob_id, size, until)

    async def _download_to_file(self, blob_id: str, size: int, until: float) -> OpenBlob:
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

    async def _download_to_memory(self, blob_id: str, size: int, until: float) -> OpenBlob:
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
        return MemoryBlob(content, partial(token.run_sync_soon, release))

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
