"""Downloads contents for a snapshot, from the cache of the account's mounts or from the server.

Nothing is put into the cache: a snapshot of everything would evict what people read.

`EarlyFetcher` downloads contents while an account is listed for the first time. A listing uses the
server and SQLite in turn, so downloads have time in between. Contents are stored by blob id. When
the state to copy is known, the contents get their places in the tree.
"""

import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.cache.large_files import LargeBlob
from jmapfs.content.division import divide
from jmapfs.content.download import Downloader, join_chunks
from jmapfs.content.server_blobs import BlobSource
from jmapfs.deadline import Deadline
from jmapfs.errors import DeadlineError, JmapfsError, ServerError, StorageError
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AddedBlob
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.source import BlobRequest, BlobTotals, EarlySink, Sink
from jmapfs.sqlite import sqlite_errors

_log = logging.getLogger(__name__)

# Seconds for each request. Bytes that arrive give it more time. A second attempt must fit into the
# time without progress (LONGEST_STALL).
_DEADLINE_SECONDS: Final = 45.0
# The size is unlimited: a snapshot adds nothing to the cache, and must not evict anything.
_NO_LIMIT: Final = 1 << 62
_THREADS: Final = 8
_CHUNK_BYTES: Final = 1 << 20

_T = TypeVar("_T")


class BlobFetcher:
    """Downloads contents of an account. `cached` counts the blobs found in the disk cache."""

    def __init__(self, source: BlobSource, cache: DiskCache | None) -> None:
        self.cached = BlobTotals(0, 0)
        self._source = source
        self._cache = cache
        self._downloader = Downloader(source, trio.CapacityLimiter(_THREADS))

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight at the same time."""
        return self._source.concurrency

    def batches(self, requests: Sequence[BlobRequest]) -> Iterator[Sequence[BlobRequest]]:
        """Divide requests into batches; see `Source.batches`."""
        return divide(requests, self._source.batch_limits)

    async def download(
        self, batch: Sequence[BlobRequest], sink: Sink, *, from_server: bool = False
    ) -> dict[str, JmapfsError]:
        """Download contents; see `Source.download`."""
        if from_server:
            await self._discard_cached(batch)
        rest = await self._write_cached(batch, sink)
        rest = await self._fetch_batch(rest, sink)
        failed: dict[str, JmapfsError] = {}
        for request in rest:
            try:
                if not await self._write_large_cached(request, sink):
                    await self._download_alone(request, sink)
            except (ServerError, DeadlineError) as error:
                # A single mail may be the cause of a time-out. `Transfer` notices if all are.
                failed[request.blob_id] = error
        return failed

    async def _fetch_batch(self, batch: Sequence[BlobRequest], sink: Sink) -> Sequence[BlobRequest]:
        """Fetch a batch with one request. Return the others, which have to be fetched alone."""
        try:
            return await self._downloader.fetch_batch(
                batch, sink.write, deadline=Deadline(_DEADLINE_SECONDS)
            )
        except DeadlineError:
            return batch

    async def _write_cached(
        self, batch: Sequence[BlobRequest], sink: Sink
    ) -> Sequence[BlobRequest]:
        """Write the contents that are in the disk cache. Return the other requests."""
        if self._cache is None:
            return batch
        load = partial(self._cache.load_many, [request.content_key for request in batch])
        loaded = await trio.to_thread.run_sync(load)
        # Earlier versions stored content whose size the server did not state.
        found = [
            (request, data)
            for request in batch
            if (data := loaded.get(request.content_key)) is not None and len(data) == request.size
        ]
        if not found:
            return batch
        await sink.write(found)
        self.cached += BlobTotals(len(found), sum(len(data) for _, data in found))
        written = {request.blob_id for request, _ in found}
        return [request for request in batch if request.blob_id not in written]

    async def _write_large_cached(self, request: BlobRequest, sink: Sink) -> bool:
        """Write a content of more than 1 MiB if it is in the disk cache; return whether it was."""
        cache = self._cache
        if cache is None or request.size <= SMALL_BYTES:
            return False
        # This verifies the checksum of the file.
        blob = await trio.to_thread.run_sync(cache.open_large, request.content_key)
        if blob is None:
            return False
        with blob:
            if blob.size != request.size:
                return False
            try:
                await sink.write_stream(request, _chunks_of(blob))
            except _CacheReadError as error:
                _log.warning("a cached mail is downloaded again: %s", error)
                return False
        self.cached += BlobTotals(1, request.size)
        return True

    async def _discard_cached(self, batch: Sequence[BlobRequest]) -> None:
        cache = self._cache
        if cache is None:
            return

        def discard() -> None:
            for request in batch:
                cache.discard(request.content_key)

        await trio.to_thread.run_sync(discard)

    async def _download_alone(self, request: BlobRequest, sink: Sink) -> None:
        deadline = Deadline(_DEADLINE_SECONDS)
        if request.size <= SMALL_BYTES:
            data = await self._downloader.fetch(request, join_chunks, deadline=deadline)
            await sink.write([(request, data)])
            return
        store = partial(sink.write_stream, request)
        await self._downloader.fetch(request, store, deadline=deadline)


class _CacheReadError(Exception):
    """A file of the cache cannot be read. Errors of the destination are other ones."""


async def _chunks_of(blob: LargeBlob) -> AsyncIterator[bytes]:
    for offset in range(0, blob.size, _CHUNK_BYTES):
        try:
            yield await trio.to_thread.run_sync(blob.pread, _CHUNK_BYTES, offset)
        except StorageError as error:
            raise _CacheReadError(str(error)) from error


@contextlib.asynccontextmanager
async def open_cache(directory: Path) -> AsyncIterator[DiskCache | None]:
    """Open the disk cache of an account's mounts, if there is one."""
    if not await trio.to_thread.run_sync(directory.is_dir):
        yield None
        return
    create = partial(DiskCache, directory, _NO_LIMIT, reserve_bytes=0)
    cache = await trio.to_thread.run_sync(create)
    try:
        yield cache
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(cache.close)


_LISTED_AT_ONCE: Final = 1000
# The listing needs one of the concurrent requests.
_LEFT_TO_LISTING: Final = 1


class EarlyFetcher:
    """Until `stop`, downloads the contents of an index that is being filled.

    `stopped` tells whether `stop` was called.
    """

    def __init__(
        self, reader: IndexReader, fetcher: BlobFetcher, early: EarlySink, origin: Origin
    ) -> None:
        self._reader = reader
        self._fetcher = fetcher
        self._early = early
        self._origin = origin
        self._more_listed = trio.Event()
        self.stopped = False

    def note_listed(self) -> None:
        """Report that more emails are in the index."""
        self._more_listed.set()

    def stop(self) -> None:
        """Start no more downloads. `run` returns when all current downloads have ended."""
        self.stopped = True
        self._more_listed.set()

    async def run(self) -> None:
        """Download contents.

        Raises StorageError if contents cannot be stored, ConfigError if the repository belongs to
        another account, or JmapfsError if the server is offline.
        """
        # The index has an epoch when it has emails.
        await self._wait_for_emails()
        if self.stopped:
            return
        state = await self._read(self._reader.state)
        sink = await self._early.prepare(
            self._origin, state.epoch, blob_ids_are_sha1=state.blob_ids_are_sha1
        )
        send, receive = trio.open_memory_channel[Sequence[BlobRequest]](0)
        async with trio.open_nursery() as nursery:
            async with receive:
                for _ in range(max(1, self._fetcher.concurrency - _LEFT_TO_LISTING)):
                    nursery.start_soon(self._download, receive.clone(), sink)
            async with send:
                await self._send_batches(send)

    async def _wait_for_emails(self) -> None:
        while not self.stopped:
            # Make the event first: `note_listed` may be called while the index is read.
            self._more_listed = trio.Event()
            if await self._added_after(0):
                return
            if not self.stopped:
                await self._more_listed.wait()

    async def _send_batches(self, send: trio.MemorySendChannel[Sequence[BlobRequest]]) -> None:
        position = 0
        while not self.stopped:
            self._more_listed = trio.Event()
            added = await self._added_after(position)
            if not added:
                if not self.stopped:
                    await self._more_listed.wait()
                continue
            position = added[-1].number
            candidates = [
                BlobRequest(one.blob_id, one.size, one.received_at, "", epoch=one.epoch)
                for one in added
            ]
            batches = self._fetcher.batches(await self._early.missing(candidates))
            for batch in itertools.takewhile(lambda _: not self.stopped, batches):
                await send.send(batch)

    async def _download(
        self, receive: trio.MemoryReceiveChannel[Sequence[BlobRequest]], sink: Sink
    ) -> None:
        async with receive:
            async for batch in receive:
                # Errors are ignored: if the blob is in the copied state, it is downloaded again.
                await self._fetcher.download(batch, sink)

    async def _added_after(self, position: int) -> list[AddedBlob]:
        return await self._read(partial(self._reader.blobs_added_after, position, _LISTED_AT_ONCE))

    async def _read(self, read: Callable[[], _T]) -> _T:
        with sqlite_errors("read the index"):
            return await trio.to_thread.run_sync(read)
