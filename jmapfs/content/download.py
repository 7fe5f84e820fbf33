"""The transfer of blobs from the server, for reads, read-ahead, prefetch and snapshots.

The caller searches the disk cache first, and only missing blobs are fetched. If the server has
Blob/get, small blobs are fetched in batches (`take_batch`, `Downloader.fetch_batch`). Large blobs
are fetched alone. If a batch does not contain a blob, or contains it with a wrong size or digest,
the blob is fetched again alone. The second result is final.
"""

import hashlib
import logging
import re
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.errors import AuthenticationError, BlobMismatchError, JmapfsError, UnreachableError
from jmapfs.jmap.batches import BlobGetLimits

_log = logging.getLogger(__name__)

LEAST_RATE: Final = 256 * 1024
"""Bytes per second: a large blob gets the extra time that it needs at this rate."""

_SHA1_BLOB_ID: Final = re.compile(r"G([0-9a-f]{40})")
_WRONG_DIGEST: Final = "the content of a blob does not have the SHA-1 in its id"
# SHA-1 takes 0.6 ms for 1 MiB, which is too long for the event loop.
_HASHED_IN_LOOP_BYTES: Final = 256 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
# A download that exceeds the stated size by more than this ends with an error.
_MARGIN_BYTES: Final = 64 * 1024 * 1024
# A blob above a quarter of a batch's bytes is fetched alone: other blobs must not wait for it.
_LARGE_PART: Final = 4
# Without Blob/get, one snapshot task fetches this many small blobs, one after the other.
_SINGLES: Final = 8


class BlobSource(Protocol):
    """Downloads whole blobs; `deadline` is in seconds from now, for the whole transfer.

    Raises, in its methods and from the iteration:
        JmapfsError: the blob cannot be fetched, or the stream breaks off.
    """

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether ids of `G` and 40 hexadecimal digits are SHA-1s of the content (Cyrus)."""

    @property
    def batch_limits(self) -> BlobGetLimits | None:
        """The limits of `download_batch` now; None if blobs can only be fetched one by one."""

    @property
    def concurrency(self) -> int:
        """How many requests may run at the same time, for all callers together."""

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        """Request blobs (id, stated size) together; return the contents that arrived whole.

        Returns no content if the server does not have Blob/get.
        """

    async def download_blob(
        self, blob_id: str, *, size_hint: int | None = None, deadline: float
    ) -> bytes:
        """Return the content of a blob. Content much larger than `size_hint` is an error."""

    def stream_blob(
        self, blob_id: str, *, deadline: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Return the content of a blob chunk by chunk."""


class SizedBlob(Protocol):
    """A blob to be fetched; `size` is in bytes, as the server states it."""

    @property
    def blob_id(self) -> str:
        """Its id."""

    @property
    def size(self) -> int:
        """Its stated size."""


_Blob = TypeVar("_Blob", bound=SizedBlob)


def extra_time(size: int) -> float:
    """Return how many seconds a blob of `size` bytes gets in addition to the common timeout."""
    return size / LEAST_RATE if size > SMALL_BYTES else 0.0


def take_batch(
    pending: deque[_Blob],
    *,
    max_blobs: int,
    max_bytes: int,
    alone_above: int | None = None,
    accept: Callable[[_Blob], bool] | None = None,
) -> list[_Blob]:
    """Remove the next batch from `pending`, in order.

    A batch has at most `max_blobs` blobs and at most `max_bytes` bytes together. A blob of more
    than `alone_above` bytes (by default `max_bytes`) is a batch of its own. A blob that is not
    accepted is removed from `pending` too, but is in no batch.
    """
    batch: list[_Blob] = []
    largest = max_bytes if alone_above is None else alone_above
    room = max_bytes
    while pending and len(batch) < max_blobs:
        blob = pending[0]
        if batch and blob.size > min(largest, room):
            break
        pending.popleft()
        if accept is not None and not accept(blob):
            continue
        batch.append(blob)
        room -= blob.size
        if blob.size > largest:
            break
    return batch


def split_into_batches(
    blobs: Iterable[_Blob], *, max_blobs: int, max_bytes: int, alone_above: int
) -> Iterator[list[_Blob]]:
    """Divide blobs into batches as `take_batch` does, the large ones first."""
    small: deque[_Blob] = deque()
    for blob in blobs:
        if blob.size > alone_above:
            yield [blob]
        else:
            small.append(blob)
    while small:
        yield take_batch(small, max_blobs=max_blobs, max_bytes=max_bytes)


def take_request(
    pending: deque[_Blob], limits: BlobGetLimits | None, most: int, accept: Callable[[_Blob], bool]
) -> list[_Blob]:
    """Remove the blobs for one request from `pending`, at most `most`, and return them."""
    if limits is None:
        return take_batch(pending, max_blobs=1, max_bytes=0, accept=accept)
    return take_batch(
        pending,
        max_blobs=min(limits.blobs, most),
        max_bytes=limits.bytes,
        alone_above=limits.bytes // _LARGE_PART,
        accept=accept,
    )


class _DigestCheck:
    """Compares content with the SHA-1 in the blob id, if the id has one and this is `enabled`."""

    def __init__(self, blob_id: str, *, enabled: bool) -> None:
        match = _SHA1_BLOB_ID.fullmatch(blob_id) if enabled else None
        self._expected = match[1] if match else None
        self._hash = hashlib.sha1(usedforsecurity=False)

    def update(self, data: bytes) -> None:
        if self._expected is not None:
            self._hash.update(data)

    def is_right(self) -> bool:
        return self._expected is None or self._hash.hexdigest() == self._expected


class Downloader:
    """Downloads blobs from `source` and verifies their content; `limiter` bounds its threads."""

    def __init__(self, source: BlobSource, limiter: trio.CapacityLimiter) -> None:
        self.source = source
        self._limiter = limiter

    def divide(self, blobs: Iterable[_Blob]) -> Iterator[list[_Blob]]:
        """Divide blobs into requests that the current limits of the server allow."""
        limits = self.source.batch_limits
        if limits is None:
            most, room, largest = _SINGLES, _SINGLES * SMALL_BYTES, SMALL_BYTES
        else:
            most, room, largest = limits.blobs, limits.bytes, limits.bytes // _LARGE_PART
        return split_into_batches(blobs, max_blobs=most, max_bytes=room, alone_above=largest)

    async def fetch_batch(
        self,
        batch: Sequence[_Blob],
        write: Callable[[list[tuple[_Blob, bytes]]], Awaitable[None]],
        *,
        deadline: float,
    ) -> Sequence[_Blob]:
        """Fetch blobs with one request, `write` the correct ones, and return the others.

        The caller fetches the others alone. If there is only one blob, it is returned.

        Raises:
            UnreachableError, AuthenticationError: other requests would fail as well.
        """
        if len(batch) < 2:
            return batch
        try:
            contents = await self.source.download_batch(
                [(blob.blob_id, blob.size) for blob in batch], deadline=deadline
            )
        except (UnreachableError, AuthenticationError):
            raise
        except JmapfsError as error:
            _log.warning("a batch of blobs is fetched one by one: %s", error)
            return batch
        arrived = [
            (blob, contents[blob.blob_id])
            for blob in batch
            if blob.blob_id in contents and len(contents[blob.blob_id]) == blob.size
        ]
        wrong = await self._mismatches([(blob.blob_id, data) for blob, data in arrived])
        correct = [(blob, data) for blob, data in arrived if blob.blob_id not in wrong]
        if correct:
            await write(correct)
        written = {blob.blob_id for blob, _ in correct}
        return [blob for blob in batch if blob.blob_id not in written]

    async def download_small(
        self, blob_id: str, *, size_hint: int | None = None, deadline: float
    ) -> bytes:
        """Return the content of a blob, in memory.

        Raises BlobMismatchError if the digest is wrong, and the errors of the source.
        """
        data = await self.source.download_blob(blob_id, size_hint=size_hint, deadline=deadline)
        if await self._mismatches([(blob_id, data)]):
            raise BlobMismatchError(_WRONG_DIGEST)
        return data

    @asynccontextmanager
    async def stream(
        self, blob_id: str, size: int, *, deadline: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a blob of `size` bytes for reading in chunks of about 1 MiB.

        Raises, from the iteration:
            BlobMismatchError: the content is far too long, or (at the end) the digest is wrong.
            JmapfsError: what the source raises.
        """
        async with (
            self.source.stream_blob(blob_id, deadline=deadline) as chunks,
            aclosing(self._verified(blob_id, size, chunks)) as verified,
        ):
            yield verified

    async def _verified(
        self, blob_id: str, size: int, chunks: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        check = _DigestCheck(blob_id, enabled=self.source.blob_ids_are_sha1)
        received = joined = 0
        parts: list[bytes] = []
        async for part in chunks:
            check.update(part)
            received += len(part)
            if received > size + _MARGIN_BYTES:
                raise BlobMismatchError("a blob is far larger than it should be")
            parts.append(part)
            joined += len(part)
            if joined >= _CHUNK_BYTES:
                yield b"".join(parts)
                parts.clear()
                joined = 0
        if not check.is_right():
            raise BlobMismatchError(_WRONG_DIGEST)
        if parts:
            yield b"".join(parts)

    async def _mismatches(self, blobs: Sequence[tuple[str, bytes]]) -> set[str]:
        """Return the ids of the blobs whose digest is wrong."""
        enabled = self.source.blob_ids_are_sha1
        if sum(len(data) for _, data in blobs) <= _HASHED_IN_LOOP_BYTES:
            return _mismatches(blobs, enabled=enabled)
        verify = partial(_mismatches, blobs, enabled=enabled)
        return await trio.to_thread.run_sync(verify, limiter=self._limiter, abandon_on_cancel=True)


def _mismatches(blobs: Sequence[tuple[str, bytes]], *, enabled: bool) -> set[str]:
    wrong = set()
    for blob_id, data in blobs:
        check = _DigestCheck(blob_id, enabled=enabled)
        check.update(data)
        if not check.is_right():
            wrong.add(blob_id)
    return wrong
