"""Bringing contents from a server: what the account's cache has, batches, and the rest alone.

Nothing is put into the cache: a snapshot of everything would drive out what people read.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from jmapfs.cache import SMALL_BYTES, DiskCache
from jmapfs.errors import BlobMismatchError, JmapfsError, ServerError
from jmapfs.fetch import ContentCheck
from jmapfs.jmap import Client
from jmapfs.snapshot.source import Cached, Receiver, Wanted, batches_of

# Beyond what every request gets, a large blob gets as long as it takes at this rate.
_DEADLINE_SECONDS: Final = 120.0
_LEAST_RATE: Final = 256 * 1024
# Of those that are fetched alone, so many are one task's work.
_ALONE: Final = 8
# What is larger than this part of a batch goes alone: no one is to wait for it with others.
_LARGE_PART: Final = 4
# The cache keeps to its bounds when something is put into it, and nothing is.
_NO_LIMIT: Final = 1 << 62


class Blobs:
    """The contents of an account's blobs, over one client; `cached` are those that were here."""

    def __init__(self, client: Client, cache: DiskCache | None) -> None:
        self.cached = Cached(0, 0)
        self._client = client
        self._cache = cache

    @property
    def tasks(self) -> int:
        """How many requests may be under way at a time."""
        return self._client.api.transport.concurrency

    def batches(self, wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
        """Divide what is wanted into requests: by the server's limits, the large ones alone."""
        limits = self._client.batch_limits
        if limits is None:
            room = _ALONE * SMALL_BYTES
            return batches_of(wanted, most=_ALONE, room=room, largest=SMALL_BYTES)
        largest = limits.bytes // _LARGE_PART
        return batches_of(wanted, most=limits.blobs, room=limits.bytes, largest=largest)

    async def bring(self, batch: Sequence[Wanted], receiver: Receiver) -> dict[str, JmapfsError]:
        """Bring contents; see `Source.bring`."""
        left = await self._from_cache(batch, receiver)
        if len(left) > 1 and self._client.batch_limits is not None:
            left = await self._together(left, receiver)
        failed: dict[str, JmapfsError] = {}
        for wanted in left:
            try:
                await self._alone(wanted, receiver)
            except ServerError as error:
                failed[wanted.blob_id] = error
        return failed

    async def _from_cache(self, batch: Sequence[Wanted], receiver: Receiver) -> Sequence[Wanted]:
        if self._cache is None:
            return batch
        look = partial(self._cache.load_many, [wanted.blob_id for wanted in batch])
        found = await trio.to_thread.run_sync(look)
        if not found:
            return batch
        await receiver.receive([(one, found[one.blob_id]) for one in batch if one.blob_id in found])
        blobs, size = self.cached
        self.cached = Cached(blobs + len(found), size + sum(map(len, found.values())))
        return [one for one in batch if one.blob_id not in found]

    async def _together(self, batch: Sequence[Wanted], receiver: Receiver) -> Sequence[Wanted]:
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
        await receiver.receive(right)
        came = {wanted.blob_id for wanted, _ in right}
        return [wanted for wanted in batch if wanted.blob_id not in came]

    async def _alone(self, wanted: Wanted, receiver: Receiver) -> None:
        deadline = _DEADLINE_SECONDS + wanted.size / _LEAST_RATE
        if wanted.size <= SMALL_BYTES:
            data = await self._client.download_blob(
                wanted.blob_id, size_hint=wanted.size, deadline=deadline
            )
            await trio.to_thread.run_sync(self._check, wanted, data)
            await receiver.receive([(wanted, data)])
            return
        async with self._client.stream_blob(wanted.blob_id, deadline=deadline) as chunks:
            await receiver.receive_stream(wanted, self._checked(wanted, chunks))

    async def _checked(self, wanted: Wanted, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        check = self._new_check(wanted)
        async for chunk in chunks:
            check.update(chunk)
            yield chunk
        check.finish()

    def _right(self, arrived: Sequence[tuple[Wanted, bytes]]) -> list[tuple[Wanted, bytes]]:
        right = []
        for wanted, data in arrived:
            with contextlib.suppress(BlobMismatchError):
                self._check(wanted, data)
                right.append((wanted, data))
        return right

    def _check(self, wanted: Wanted, data: bytes) -> None:
        check = self._new_check(wanted)
        check.update(data)
        check.finish()

    def _new_check(self, wanted: Wanted) -> ContentCheck:
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
