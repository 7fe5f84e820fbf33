"""A source of blobs for tests, and a content service over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.service import ContentService, open_content_service
from jmapfs.errors import BlobNotFoundError
from jmapfs.jmap.batches import BlobGetLimits

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits(BlobGetLimits):
    """The limits of one request for several blobs."""

    bytes: int = MIB


class FakeSource:
    """Blobs in a dictionary; a download takes `delay` seconds and raises `error` if it is set.

    With `batch_limits` several come at once, but for those in `unbatched`. `batches` has the ids of
    each request; `batch_error` is raised by it once it is set.
    """

    def __init__(self, blobs: dict[str, bytes] | None = None, delay: float = 0.0) -> None:
        self.blobs = blobs or {}
        self.delay = delay
        self.blob_ids_are_sha1 = False
        self.error: Exception | None = None
        self.asked: Counter[str] = Counter()
        self.deadlines: list[float] = []
        self.running = 0
        self.most_running = 0
        self.chunk = 65_536
        self.concurrency = 8
        self.batch_limits: Limits | None = None
        self.batches: list[list[str]] = []
        self.batch_error: Exception | None = None
        self.unbatched: set[str] = set()

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: float
    ) -> dict[str, bytes]:
        self.deadlines.append(deadline)
        ids = [blob_id for blob_id, _ in blobs]
        self.batches.append(ids)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(self.delay)
            if self.batch_error is not None:
                raise self.batch_error
        finally:
            self.running -= 1
        self.asked.update(ids)
        return {
            blob_id: self.blobs[blob_id]
            for blob_id in ids
            if blob_id in self.blobs and blob_id not in self.unbatched
        }

    async def download_blob(
        self, blob_id: str, *, size_hint: int | None = None, deadline: float
    ) -> bytes:
        # With a hint, a blob of quite another size would be an error and its size not corrected.
        assert size_hint is None
        async with self.stream_blob(blob_id, deadline=deadline) as chunks:
            return b"".join([chunk async for chunk in chunks])

    @asynccontextmanager
    async def stream_blob(
        self, blob_id: str, *, deadline: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked[blob_id] += 1
        self.deadlines.append(deadline)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            async with aclosing(self._chunks(blob_id)) as chunks:
                yield chunks
        finally:
            self.running -= 1

    async def _chunks(self, blob_id: str) -> AsyncGenerator[bytes, None]:
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        if blob_id not in self.blobs:
            raise BlobNotFoundError("no such blob")
        data = self.blobs[blob_id]
        for offset in range(0, len(data), self.chunk):
            yield data[offset : offset + self.chunk]
            await trio.lowlevel.checkpoint()


class Corrections:
    """Receives the reports of blobs of another size."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.error: Exception | None = None

    async def __call__(self, blob_id: str, size: int) -> None:
        self.seen.append((blob_id, size))
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error


async def needs_no_network(content: ContentService, blob_id: str) -> bool:
    """Tell whether a blob would be read from a cache."""
    if content.is_cached(blob_id):
        return True
    return not await trio.to_thread.run_sync(content._disk.missing, [blob_id])


@asynccontextmanager
async def serving(
    source: FakeSource,
    directory: Path,
    *,
    disk_limit: int = 64 * MIB,
    memory_limit: int = 8 * MIB,
    corrections: Corrections | None = None,
    parallel_downloads: int = 8,
    read_timeout: float = 30.0,
    download_timeout: float = 60.0,
) -> AsyncIterator[ContentService]:
    disk = DiskCache(directory / "cache", disk_limit, reserve_bytes=0)
    try:
        async with open_content_service(
            source,
            disk,
            MemoryCache(memory_limit),
            on_size_mismatch=corrections or Corrections(),
            parallel_downloads=parallel_downloads,
            read_timeout=read_timeout,
            download_timeout=download_timeout,
        ) as content:
            yield content
    finally:
        disk.close()
