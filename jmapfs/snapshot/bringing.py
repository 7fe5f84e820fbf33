"""Bringing content while an account is listed for the first time.

A listing keeps the server busy with one request and this process with writing; in between there
is time to fetch what has been listed. What comes is kept under its blob id, and finds its place
when the state is known. What turns out to be gone by then was fetched in vain.

Bringing contents from a server: what the account's cache has, batches, and the rest alone.

Nothing is put into the cache: a snapshot of everything would drive out what people read.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.content.download import ContentCheck
from jmapfs.errors import BlobMismatchError, JmapfsError, ServerError
from jmapfs.index.reader import AddedBlob, IndexReader
from jmapfs.jmap.client import Client
from jmapfs.snapshot.source import BlobRequest, BlobTotals, EarlySink, Sink, split_into_batches
from jmapfs.sqlite import index_errors

# Beyond what every request gets, a large blob gets as long as it takes at this rate.
_DEADLINE_SECONDS: Final = 120.0
_LEAST_RATE: Final = 256 * 1024
# Of those that are fetched alone, so many are one task's work.
_ALONE: Final = 8
# What is larger than this part of a batch goes alone: no one is to wait for it with others.
_LARGE_PART: Final = 4
# The cache keeps to its bounds when something is put into it, and nothing is.
_NO_LIMIT: Final = 1 << 62


class BlobFetcher:
    """The contents of an account's blobs, over one client; `cached` are those that were here."""

    def __init__(self, client: Client, cache: DiskCache | None) -> None:
        self.cached = BlobTotals(0, 0)
        self._client = client
        self._cache = cache

    @property
    def concurrency(self) -> int:
        """How many requests may be under way at a time."""
        return self._client.api.transport.concurrency

    def batches(self, wanted: Sequence[BlobRequest]) -> Iterator[Sequence[BlobRequest]]:
        """Divide what is wanted into requests: by the server's limits, the large ones alone."""
        limits = self._client.batch_limits
        if limits is None:
            room = _ALONE * SMALL_BYTES
            return split_into_batches(
                wanted, max_blobs=_ALONE, max_bytes=room, alone_above=SMALL_BYTES
            )
        largest = limits.bytes // _LARGE_PART
        return split_into_batches(
            wanted, max_blobs=limits.blobs, max_bytes=limits.bytes, alone_above=largest
        )

    async def download(self, batch: Sequence[BlobRequest], sink: Sink) -> dict[str, JmapfsError]:
        """Bring contents; see `Source.download`."""
        left = await self._from_cache(batch, sink)
        if len(left) > 1 and self._client.batch_limits is not None:
            left = await self._together(left, sink)
        failed: dict[str, JmapfsError] = {}
        for wanted in left:
            try:
                await self._alone(wanted, sink)
            except ServerError as error:
                failed[wanted.blob_id] = error
        return failed

    async def _from_cache(self, batch: Sequence[BlobRequest], sink: Sink) -> Sequence[BlobRequest]:
        if self._cache is None:
            return batch
        look = partial(self._cache.load_many, [wanted.blob_id for wanted in batch])
        found = await trio.to_thread.run_sync(look)
        if not found:
            return batch
        await sink.write([(one, found[one.blob_id]) for one in batch if one.blob_id in found])
        blobs, size = self.cached
        self.cached = BlobTotals(blobs + len(found), size + sum(map(len, found.values())))
        return [one for one in batch if one.blob_id not in found]

    async def _together(self, batch: Sequence[BlobRequest], sink: Sink) -> Sequence[BlobRequest]:
        """Bring what comes whole by one request; return what did not."""
        content = await self._client.download_batch(
            [(wanted.blob_id, wanted.size) for wanted in batch], deadline=_DEADLINE_SECONDS
        )
        # One of another length than was stated is asked for by itself before that is believed.
        arrived = [
            (wanted, content[wanted.blob_id])
            for wanted in batch
            if len(content.get(wanted.blob_id, b"")) == wanted.size and wanted.blob_id in content
        ]
        right = await trio.to_thread.run_sync(self._right, arrived)
        await sink.write(right)
        came = {wanted.blob_id for wanted, _ in right}
        return [wanted for wanted in batch if wanted.blob_id not in came]

    async def _alone(self, wanted: BlobRequest, sink: Sink) -> None:
        deadline = _DEADLINE_SECONDS + wanted.size / _LEAST_RATE
        if wanted.size <= SMALL_BYTES:
            data = await self._client.download_blob(
                wanted.blob_id, size_hint=wanted.size, deadline=deadline
            )
            await trio.to_thread.run_sync(self._check, wanted, data)
            await sink.write([(wanted, data)])
            return
        async with self._client.stream_blob(wanted.blob_id, deadline=deadline) as chunks:
            await sink.write_stream(wanted, self._checked(wanted, chunks))

    async def _checked(
        self, wanted: BlobRequest, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        check = self._new_check(wanted)
        async for chunk in chunks:
            check.update(chunk)
            yield chunk
        check.finish()

    def _right(
        self, arrived: Sequence[tuple[BlobRequest, bytes]]
    ) -> list[tuple[BlobRequest, bytes]]:
        right = []
        for wanted, data in arrived:
            with contextlib.suppress(BlobMismatchError):
                self._check(wanted, data)
                right.append((wanted, data))
        return right

    def _check(self, wanted: BlobRequest, data: bytes) -> None:
        check = self._new_check(wanted)
        check.update(data)
        check.finish()

    def _new_check(self, wanted: BlobRequest) -> ContentCheck:
        return ContentCheck(wanted.blob_id, enabled=self._client.session.blob_ids_are_sha1)


@contextlib.asynccontextmanager
async def opened_cache(directory: Path) -> AsyncIterator[DiskCache | None]:
    """Open the cache of an account's mounts, if there is one."""
    if not await trio.to_thread.run_sync(directory.is_dir):
        yield None
        return
    opening = partial(DiskCache, directory, _NO_LIMIT, reserve_bytes=0)
    cache = await trio.to_thread.run_sync(opening)
    try:
        yield cache
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(cache.close)


_STEP: Final = 1000
# One is left to the listing.
_LEFT_TO_LISTING: Final = 1


class EarlyFetcher:
    """Brings the contents of what an index says is listed, until it is told to end."""

    def __init__(
        self, reader: IndexReader, blobs: BlobFetcher, ahead: EarlySink, sink: Sink
    ) -> None:
        self._reader = reader
        self._blobs = blobs
        self._ahead = ahead
        self._receiver = sink
        self._more = trio.Event()
        self._ended = False

    def proceed(self) -> None:
        """Take note that more is listed."""
        self._more.set()

    def end(self) -> None:
        """Begin nothing more; what is under way is waited for."""
        self._ended = True
        self._more.set()

    async def run(self) -> None:
        """Bring contents.

        Raises:
            StorageError: they cannot be kept.
            JmapfsError: the server is out of reach.
        """
        send, receive = trio.open_memory_channel[Sequence[BlobRequest]](0)
        async with trio.open_nursery() as nursery:
            async with receive:
                for _ in range(max(1, self._blobs.concurrency - _LEFT_TO_LISTING)):
                    nursery.start_soon(self._bring, receive.clone())
            async with send:
                await self._order(send)

    async def _order(self, send: trio.MemorySendChannel[Sequence[BlobRequest]]) -> None:
        position = 0
        while not self._ended:
            # Before the index is asked: what is said meanwhile must not be lost.
            self._more = trio.Event()
            listed = await self._listed_after(position)
            if not listed:
                if not self._ended:
                    await self._more.wait()
                continue
            position = listed[-1].number
            candidates = [BlobRequest(one.blob_id, one.size, one.received_at, "") for one in listed]
            batches = self._blobs.batches(await self._ahead.missing(candidates))
            for batch in itertools.takewhile(lambda _: not self._ended, batches):
                await send.send(batch)

    async def _bring(self, receive: trio.MemoryReceiveChannel[Sequence[BlobRequest]]) -> None:
        async with receive:
            async for batch in receive:
                # What cannot be had now is asked for again when it belongs to the state.
                await self._blobs.download(batch, self._receiver)

    async def _listed_after(self, position: int) -> list[AddedBlob]:
        with index_errors():
            return await trio.to_thread.run_sync(self._reader.blobs_added_after, position, _STEP)
