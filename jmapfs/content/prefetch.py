"""Fetching what nobody reads yet: blobs into the disk cache, for when there is no server to ask.

A step at a time, and nothing is remembered between two: whoever wants many blobs asks for some of
them, is told what became of these, and asks for the next. What a step has begun goes on when its
time is over, and is found under way by the next one.

The blobs are those of one lane, so that who reads meanwhile is served as if nothing else went on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.cache.lru import cost_of, headroom
from jmapfs.content.batch_download import DownloadQueue
from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import Download
from jmapfs.errors import AuthenticationError, JmapfsError, StorageError, UnreachableError

BlobSizes = Mapping[str, int]
"""Blobs by their ids, with their sizes in bytes as far as they are known."""

_T = TypeVar("_T")

_THREADS: Final = 2
# What one look at the disk cache reads: it is in memory at once.
_GROUP_FILES: Final = 64
_GROUP_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checked:
    """What is on the disk: not `absent`, nor `unchecked` for want of time."""

    absent: list[str]
    unchecked: list[str]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is on the disk now: neither `left` for want of time, nor `failed` for a reason."""

    left: list[str]
    failed: dict[str, Exception]


def is_temporary(error: Exception) -> bool:
    """Tell whether it is not the blob that is at fault: another time it may well be had."""
    return isinstance(error, UnreachableError | AuthenticationError | StorageError)


class Prefetcher:
    """Brings blobs of one account to the disk; for tasks of the event loop."""

    def __init__(self, content: ContentService, disk: DiskCache) -> None:
        self._content = content
        self._disk = disk
        self._threads = trio.CapacityLimiter(_THREADS)

    @property
    def room(self) -> int:
        """How many bytes the cache keeps, as `charge` counts them, without one evicting another."""
        limit = self._disk.limit_bytes
        return limit - headroom(limit)

    @staticmethod
    def charge(size: int) -> int:
        """Return what a blob of `size` bytes takes of the cache."""
        return cost_of(size, large=size > SMALL_BYTES)

    async def missing(self, blob_ids: Collection[str]) -> list[str]:
        """Return those of the blobs that are not on the disk, in this order."""
        return await self._in_thread(partial(self._disk.missing, list(blob_ids)))

    async def check(self, wanted: BlobSizes, seconds: float) -> Checked:
        """Read blobs from the disk for `seconds`, and tell which are not there, or not whole.

        Those that are count as used: what is fetched next makes others leave the cache.
        """
        read = partial(self._read, wanted, time.monotonic() + seconds)
        sizes, unchecked = await self._in_thread(read)
        await self._correct(wanted, sizes)
        left = set(unchecked)
        absent = [one for one in wanted if one not in sizes and one not in left]
        return Checked(absent, unchecked)

    async def fetch(self, wanted: BlobSizes, seconds: float) -> Fetched:
        """Bring what is not on the disk, for `seconds`, and return when it has been written."""
        absent = await self.missing(wanted)
        step = _Step(self._content, wanted)
        step.begin(absent)
        try:
            with trio.move_on_after(seconds):
                await step.run()
        finally:
            step.stop()
        failed = step.failed()
        unsettled = step.unsettled() - failed.keys()
        missing = await self.missing(absent)
        unkept = StorageError("the cache cannot keep a mail: is the disk full? See the log")
        result = Fetched(
            [one for one in missing if one in unsettled],
            {one: failed.get(one, unkept) for one in missing if one not in unsettled},
        )
        there = wanted.keys() - missing
        sizes = {one: size for one, size in step.sizes.items() if one in there}
        sizes |= await self._in_thread(partial(self._sizes, there - sizes.keys()))
        await self._correct(wanted, sizes)
        return result

    def _read(self, wanted: BlobSizes, until: float) -> tuple[dict[str, int], list[str]]:
        """Return the sizes of what is there, and what was not read in time; in a worker thread."""
        sizes: dict[str, int] = {}
        unread: list[str] = []
        for group in _groups(wanted):
            if time.monotonic() >= until:
                unread += group
                continue
            small = self._disk.load_many(group)
            sizes.update((blob_id, len(data)) for blob_id, data in small.items())
            others = [one for one in group if one not in small]
            for blob_id in set(others).difference(self._disk.missing(others)):
                # Opening compares the checksum, too.
                blob = self._disk.open_large(blob_id)
                if blob is not None:
                    with blob:
                        sizes[blob_id] = blob.size
        return sizes, unread

    def _sizes(self, blob_ids: Iterable[str]) -> dict[str, int]:
        """Return the sizes of what is there; in a worker thread."""
        sizes = {blob_id: self._disk.size(blob_id) for blob_id in blob_ids}
        return {blob_id: size for blob_id, size in sizes.items() if size is not None}

    async def _correct(self, wanted: BlobSizes, sizes: Mapping[str, int]) -> None:
        """Have sizes corrected that were stated wrongly: a read that finds out is an error."""
        for blob_id, size in sizes.items():
            if size != wanted[blob_id]:
                with contextlib.suppress(JmapfsError):
                    await self._content.read(blob_id, wanted[blob_id], 0, 1)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)


class _Step:
    """Some blobs being fetched; `sizes` are those of what has just come, as far as is seen here."""

    def __init__(self, content: ContentService, wanted: BlobSizes) -> None:
        self.sizes: dict[str, int] = {}
        self._content = content
        self._wanted = wanted
        self._lane = DownloadQueue(self._make_room)
        self._flights: dict[str, Download] = {}
        self._near: list[tuple[str, bytes]] = []
        self._unoffered: set[str] = set()
        self._alone: dict[str, Exception] = {}

    def begin(self, absent: Sequence[str]) -> None:
        """Order what is neither near nor on its way."""
        ordered = []
        for blob_id in absent:
            flight = self._content.expect(blob_id)
            if flight is not None:
                ordered.append((flight, self._wanted[blob_id]))
            else:
                flight = self._content.flight(blob_id)
            if flight is not None:
                self._flights[blob_id] = flight
            elif (data := self._content.near(blob_id)) is not None:
                self._near.append((blob_id, data))
                self._unoffered.add(blob_id)
        self._content.order(self._lane, ordered)

    async def run(self) -> None:
        """Return when everything has come and is written, or has failed, or is in vain."""
        await self._write_near()
        for flight in self._flights.values():
            await flight.ended()
            if flight.error is not None and is_temporary(flight.error):
                return
        await self._lane.done()
        await self._find_out()
        await self._content.behind.written(self._flights)

    def stop(self) -> None:
        """Fetch nothing that is not on its way."""
        self._lane.withdraw()

    def unsettled(self) -> set[str]:
        """Return what may come yet, or is still to be written."""
        underway = {one for one, flight in self._flights.items() if not flight.delivered}
        behind = self._content.behind
        waiting = {one for one in self._flights if behind.get(one) is not None}
        return underway | waiting | self._unoffered

    def failed(self) -> dict[str, Exception]:
        """Return what has failed, and why."""
        errors = {one: flight.error for one, flight in self._flights.items()}
        return {one: error for one, error in errors.items() if error is not None} | self._alone

    async def _write_near(self) -> None:
        behind = self._content.behind
        for blob_id, data in self._near:
            await behind.room(len(data))
            await behind.offer([(blob_id, data)])
        await behind.written({one for one, _ in self._near})
        self._unoffered.clear()

    async def _find_out(self) -> None:
        """Learn why nothing came, where a batch failed with everything behind it."""
        flights = self._flights
        lost = [one for one in flights if not flights[one].delivered and not flights[one].error]
        if not lost or any(flight.delivered for flight in flights.values()):
            return
        try:
            await self._content.read(lost[0], self._wanted[lost[0]], 0, 1)
        except JmapfsError as error:
            self._alone[lost[0]] = error

    async def _make_room(self, arrived: Sequence[tuple[str, bytes]]) -> Collection[str]:
        """Keep what has come from being dropped, and nothing of it from the memory of readers."""
        sizes = {blob_id: len(data) for blob_id, data in arrived}
        self.sizes |= sizes
        await self._content.behind.room(sum(sizes.values()))
        return sizes.keys()


def _groups(wanted: BlobSizes) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for blob_id, bytes_ in wanted.items():
        if group and (len(group) == _GROUP_FILES or size + bytes_ > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(blob_id)
        size += bytes_
    if group:
        yield group
