"""A source of blobs for tests, and a content service over it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.confirmation import Route
from jmapfs.content.server_blobs import ContentStream
from jmapfs.content.service import ContentService, open_content_service
from jmapfs.deadline import Deadline
from jmapfs.errors import BlobNotFoundError, UnreachableError
from jmapfs.jmap.batches import BlobGetLimits
from jmapfs.jmap.blob_get import BlobDigest, DigestAlgorithm
from jmapfs.jmap.emails import EmailValues

MIB = 1024 * 1024


def mail(size: int, seed: bytes = b"") -> bytes:
    """Return a mail of `size` bytes; it has a header line if there is room for one."""
    head = b"a: " + (seed or os.urandom(32).hex().encode()) + b"\n"
    return (head * (size // len(head) + 1))[:size]


@dataclass(frozen=True, slots=True)
class Limits(BlobGetLimits):
    """The limits of one request for several blobs."""

    bytes: int = MIB


class FakeSource:
    """Blobs in a dictionary; a download takes `delay` seconds and raises `error` if it is set.

    With `batch_limits` several come at once, but for those in `unbatched`. `batches` has the ids of
    each request; `batch_error` is raised by it once it is set. `wrong_sizes` has the sizes that the
    server states wrongly, `message_ids` the message ids that it states. `lie` changes what a route
    sends; `lies` is how often, -1 for always. If it `announces`, the download URL states the length
    of the content. `sent_bytes` counts what was sent alone. A download ends after `break_after`.
    `pause` is the time between two chunks.
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
        self.announces = False
        self.sent_bytes = 0
        self.break_after: int | None = None
        self.pause = 0.0
        self.concurrency = 8
        self.batch_limits: Limits | None = None
        self.batches: list[list[str]] = []
        self.batch_error: Exception | None = None
        self.unbatched: set[str] = set()
        self.wrong_sizes: dict[str, int] = {}
        self.message_ids: dict[str, tuple[str, ...]] = {}
        self.questions: list[list[str]] = []
        self.digest_algorithm: DigestAlgorithm | None = None
        self.lie: Callable[[bytes], bytes] | None = None
        self.lie_type = ""
        self.lie_routes: set[Route] = set(Route)
        self.lies = -1
        self.attempts: list[tuple[Route, bool]] = []

    def sent(self, key: str, route: Route) -> tuple[bytes, str]:
        """Return what a route sends, and its content type."""
        if key not in self.blobs:
            raise BlobNotFoundError("no such blob")
        data = self.blobs[key]
        if self.lie is None or route not in self.lie_routes or not self.lies:
            return data, ""
        self.lies -= 1
        return self.lie(data), self.lie_type if route is Route.DOWNLOAD else ""

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: Deadline
    ) -> dict[str, bytes]:
        self.deadlines.append(deadline.left)
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
            blob_id: self.sent(blob_id, Route.BLOB_GET)[0]
            for blob_id in ids
            if blob_id in self.blobs and blob_id not in self.unbatched
        }

    @asynccontextmanager
    async def stream_blob(
        self, blob_id: str, *, fresh: bool = False, deadline: Deadline
    ) -> AsyncIterator[ContentStream]:
        self.attempts.append((Route.DOWNLOAD, fresh))
        async with self._stream(blob_id, Route.DOWNLOAD, deadline) as stream:
            yield stream

    @asynccontextmanager
    async def stream_ranges(
        self, key: str, size: int, *, deadline: Deadline
    ) -> AsyncIterator[ContentStream]:
        assert self.batch_limits is not None
        assert size >= 0
        self.attempts.append((Route.BLOB_GET, False))
        async with self._stream(key, Route.BLOB_GET, deadline) as stream:
            yield stream

    async def stated(self, keys: Collection[str]) -> dict[str, EmailValues]:
        self.questions.append(list(keys))
        await trio.lowlevel.checkpoint()
        return {
            key: EmailValues(
                key,
                self.wrong_sizes.get(key, len(self.blobs[key])),
                0,
                self.message_ids.get(key, ()),
            )
            for key in keys
            if key in self.blobs
        }

    async def digests(self, keys: Collection[str]) -> dict[str, BlobDigest]:
        await trio.lowlevel.checkpoint()
        algorithm = self.digest_algorithm
        if algorithm is None:
            return {}
        name = "sha1" if algorithm == "sha" else "sha256"
        return {
            key: BlobDigest(
                algorithm, hashlib.new(name, self.blobs[key]).digest(), len(self.blobs[key])
            )
            for key in keys
        }

    def describe(self, key: str) -> str:
        return f"the file of {key}"

    @asynccontextmanager
    async def _stream(
        self, blob_id: str, route: Route, deadline: Deadline
    ) -> AsyncIterator[ContentStream]:
        self.asked[blob_id] += 1
        self.deadlines.append(deadline.left)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            async with aclosing(self._chunks(blob_id, route, deadline)) as chunks:
                content_type = self.lie_type if self._is_lie(route) else ""
                yield _Stream(chunks, content_type, self._announced_length(blob_id, route))
        finally:
            self.running -= 1

    def _announced_length(self, blob_id: str, route: Route) -> int | None:
        if not self.announces or route is not Route.DOWNLOAD or blob_id not in self.blobs:
            return None
        data = self.blobs[blob_id]
        return len(data if self.lie is None or not self._is_lie(route) else self.lie(data))

    def _is_lie(self, route: Route) -> bool:
        return (
            self.lie is not None
            and route is Route.DOWNLOAD
            and route in self.lie_routes
            and self.lies != 0
        )

    async def _chunks(
        self, blob_id: str, route: Route, deadline: Deadline
    ) -> AsyncGenerator[bytes, None]:
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        data, _ = self.sent(blob_id, route)
        for offset in range(0, len(data), self.chunk):
            if self.break_after is not None and offset >= self.break_after:
                raise UnreachableError("the connection broke off")
            chunk = data[offset : offset + self.chunk]
            self.sent_bytes += len(chunk)
            deadline.received(len(chunk))
            yield chunk
            await trio.sleep(self.pause)


class _Stream:
    def __init__(
        self, chunks: AsyncIterator[bytes], content_type: str, announced_length: int | None
    ) -> None:
        self.content_type = content_type
        self.announced_length = announced_length
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)


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
