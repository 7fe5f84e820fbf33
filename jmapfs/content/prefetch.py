"""Prefetch: downloads blobs into the disk cache before they are read, for use without a server.

It works in steps, and remembers nothing between two steps. For each step, the caller names some
blobs and learns which of them are cached now. A download that is running at the end of a step
continues, and the next step joins it.

Each step has a download queue, so it does not delay readers.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeVar

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.cache.lru import cost_of
from jmapfs.content.division import take_batch
from jmapfs.content.download_queue import DownloadQueue
from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import Download, DownloadState
from jmapfs.errors import AuthenticationError, JmapfsError, StorageError, UnreachableError

BlobSizes = Mapping[str, int]
"""The keys of blobs, and their sizes in bytes as the index has them."""

_T = TypeVar("_T")

_THREADS: Final = 2
# How many bytes are loaded from the disk cache, and are in memory, at a time.
_BATCH_FILES: Final = 64
_BATCH_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The blobs that are not cached, and the blobs that there was no time to check."""

    absent: list[str]
    unchecked: list[str]


@dataclass(frozen=True, slots=True)
class FetchResult:
    """Blobs that are not cached: there was no time for `remaining`, and `failed` has errors.

    `received` is how many bytes have arrived.
    """

    remaining: list[str]
    failed: dict[str, Exception]
    received: int = field(default=0, compare=False)


class _Sized(NamedTuple):
    content_key: str
    size: int


def is_temporary(error: Exception) -> bool:
    """Return whether a later attempt to fetch the same blob may succeed."""
    return isinstance(error, UnreachableError | AuthenticationError | StorageError)


class Prefetcher:
    """Fetches blobs of one account into its disk cache; for tasks of the event loop."""

    def __init__(self, content: ContentService, disk: DiskCache) -> None:
        self._content = content
        self._disk = disk
        self._threads = trio.CapacityLimiter(_THREADS)

    async def capacity(self) -> int:
        """Return the highest total `cost` of blobs that the cache can keep without evicting any."""
        return await self._in_thread(self._disk.capacity)

    @staticmethod
    def cost(size: int) -> int:
        """Return the bytes of the cache that a blob of `size` bytes uses."""
        return cost_of(size, large=size > SMALL_BYTES)

    async def missing(self, wanted: BlobSizes) -> list[str]:
        """Return the blobs that are not cached, in this order.

        Cached content of a size that is neither expected nor confirmed does not count.
        """
        sizes = await self._in_thread(partial(self._disk.sizes, list(wanted)))
        return [one for one, size in wanted.items() if not self._has_size(one, size, sizes)]

    async def check(self, wanted: BlobSizes, seconds: float) -> CheckResult:
        """Read blobs from the disk for `seconds`; return which are missing or damaged.

        The cached blobs count as used, so the blobs that are fetched next evict other blobs first.
        """
        read = partial(self._read, wanted, time.monotonic() + seconds)
        sizes, unchecked = await self._in_thread(read)
        await self._correct_sizes(wanted, sizes)
        skipped = set(unchecked)
        absent = [
            one
            for one, size in wanted.items()
            if one not in skipped and not self._has_size(one, size, sizes)
        ]
        return CheckResult(absent, unchecked)

    async def fetch(self, wanted: BlobSizes, seconds: float) -> FetchResult:
        """Fetch uncached blobs for at most `seconds`; return when they are written."""
        absent = await self._absent(wanted)
        step = _Step(self._content, wanted)
        step.begin(absent)
        received_before = step.received_bytes()
        try:
            with trio.move_on_after(seconds):
                await step.run()
        finally:
            step.stop()
        failed = step.failed()
        pending = step.pending() - failed.keys()
        missing = await self.missing({one: wanted[one] for one in absent})
        refused = StorageError("the cache cannot keep a mail: is the disk full? See the log")
        result = FetchResult(
            [one for one in missing if one in pending],
            {one: failed.get(one, refused) for one in missing if one not in pending},
            step.received_bytes() - received_before,
        )
        cached = wanted.keys() - missing
        sizes = {one: size for one, size in step.sizes.items() if one in cached}
        sizes |= await self._in_thread(partial(self._disk.sizes, list(cached - sizes.keys())))
        await self._correct_sizes(wanted, sizes)
        return result

    async def _absent(self, wanted: BlobSizes) -> list[str]:
        """Return the blobs that are not cached when this method returns, in this order.

        A blob may be written after a thread has missed it: the last step's downloads go on.
        """
        under_way = self._under_way(wanted)
        absent = await self.missing(wanted)
        while written := under_way.intersection(absent) - self._under_way(absent):
            under_way -= written
            written.difference_update(await self.missing({one: wanted[one] for one in written}))
            absent = [one for one in absent if one not in written]
        return absent

    def _under_way(self, keys: Iterable[str]) -> set[str]:
        """Return the blobs that are being downloaded or written."""
        content = self._content
        return {
            one
            for one in keys
            if content.get_download(one) is not None or content.write_behind.get(one) is not None
        }

    def _read(self, wanted: BlobSizes, deadline: float) -> tuple[dict[str, int], list[str]]:
        """Return the sizes of cached blobs, and the ids that were not checked; in a thread."""
        sizes: dict[str, int] = {}
        unchecked: list[str] = []
        pending = deque(map(_Sized._make, wanted.items()))
        while batch := take_batch(pending, max_blobs=_BATCH_FILES, max_bytes=_BATCH_BYTES):
            keys = [blob.content_key for blob in batch]
            if time.monotonic() >= deadline:
                unchecked += keys
                continue
            small = self._disk.load_many(keys)
            sizes.update((key, len(data)) for key, data in small.items())
            others = [one for one in keys if one not in small]
            for key in set(others).difference(self._disk.missing(others)):
                # Opening a blob verifies its checksum as well.
                blob = self._disk.open_large(key)
                if blob is not None:
                    with blob:
                        sizes[key] = blob.size
        return sizes, unchecked

    async def _correct_sizes(self, wanted: BlobSizes, sizes: Mapping[str, int]) -> None:
        # If another size is confirmed, this read reports it and fails. The next read succeeds.
        for key, size in sizes.items():
            if size != wanted[key] and self._has_size(key, wanted[key], sizes):
                with contextlib.suppress(JmapfsError):
                    await self._content.read(key, wanted[key], 0, 1)

    def _has_size(self, key: str, wanted: int, sizes: Mapping[str, int]) -> bool:
        return key in sizes and self._content.accepts_size(key, wanted, sizes[key])

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)


class _Step:
    """One step, which fetches some blobs; `sizes` has the sizes of blobs that have arrived."""

    def __init__(self, content: ContentService, wanted: BlobSizes) -> None:
        self.sizes: dict[str, int] = {}
        self._content = content
        self._wanted = wanted
        self._queue = DownloadQueue(self._wait_for_room)
        self._downloads: dict[str, Download] = {}
        self._in_memory: list[tuple[str, bytes]] = []
        self._unwritten: set[str] = set()
        self._extra_errors: dict[str, Exception] = {}

    def begin(self, absent: Sequence[str]) -> None:
        """Queue the blobs that are neither in memory nor being downloaded."""
        queued = []
        for key in absent:
            download = self._content.create_download(key, self._wanted[key])
            if download is not None:
                queued.append(download)
            else:
                download = self._content.get_download(key)
            if download is not None:
                download.want_whole()
                self._downloads[key] = download
            elif (data := self._content.cached(key)) is not None:
                self._in_memory.append((key, data))
                self._unwritten.add(key)
        self._content.downloads.add(self._queue, queued)

    async def run(self) -> None:
        """Return when all blobs are written or failed, or when the server cannot be used now."""
        await self._write_cached()
        for download in self._downloads.values():
            await download.wait_until_ended()
            if download.error is not None and is_temporary(download.error):
                return
        await self._queue.wait_until_empty()
        await self._find_error()
        await self._content.write_behind.wait_until_written(self._downloads)

    def stop(self) -> None:
        self._queue.cancel()

    def pending(self) -> set[str]:
        """Return the blobs that may still arrive or still have to be written."""
        downloads = self._downloads.items()
        running = {one for one, download in downloads if download.state is not DownloadState.DONE}
        write_behind = self._content.write_behind
        unwritten = {one for one in self._downloads if write_behind.get(one) is not None}
        return running | unwritten | self._unwritten

    def received_bytes(self) -> int:
        """Return how many bytes of the blobs have arrived, also in earlier steps."""
        return sum(download.received_bytes for download in self._downloads.values())

    def failed(self) -> dict[str, Exception]:
        """Return the errors, by key."""
        errors = {one: download.error for one, download in self._downloads.items()}
        return {one: error for one, error in errors.items() if error is not None} | (
            self._extra_errors
        )

    async def _write_cached(self) -> None:
        write_behind = self._content.write_behind
        for key, data in self._in_memory:
            await write_behind.wait_for_room(len(data))
            await write_behind.add([(key, data)])
        await write_behind.wait_until_written({one for one, _ in self._in_memory})
        self._unwritten.clear()

    async def _find_error(self) -> None:
        """If a failed batch ended the queue, read one blob to get the error."""
        downloads = self._downloads.values()
        lost = [one for one in downloads if one.state is DownloadState.CANCELLED]
        if not lost or any(one.state is DownloadState.DONE for one in downloads):
            return
        key = lost[0].content_key
        try:
            await self._content.read(key, self._wanted[key], 0, 1)
        except JmapfsError as error:
            self._extra_errors[key] = error

    async def _wait_for_room(self, arrived: Sequence[tuple[str, bytes]]) -> Collection[str]:
        """Wait for room to write the blobs. Return all ids: no content is kept in memory."""
        sizes = {key: len(data) for key, data in arrived}
        self.sizes |= sizes
        await self._content.write_behind.wait_for_room(sum(sizes.values()))
        return sizes.keys()
