"""Flying a flight: from the disk or else the server, into memory, and behind onto the disk."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

import trio

from jmapfs.cache import SMALL_BYTES, DiskCache, MemoryCache
from jmapfs.errors import BlobMismatchError, DeadlineError, JmapfsError, UnreachableError
from jmapfs.fetch.behind import WriteBehind
from jmapfs.fetch.counters import ContentCounters
from jmapfs.fetch.download import Downloader, UnwantedError
from jmapfs.fetch.flights import Flight
from jmapfs.fetch.held import HeldBlobs, InMemory, Readable
from jmapfs.fetch.threads import DiskThreads

_log = logging.getLogger(__name__)

Arrived = tuple[Flight, bytes]
"""A flight, and the content of its blob."""

Show = Callable[[list[tuple[str, bytes]]], Awaitable[Collection[str]]]
"""Shows contents (by blob id) to the kernel; returns the ids that it took."""

# Bytes a second: a large blob gets as much more time as it needs at this rate.
_LEAST_RATE: Final = 256 * 1024


def extra_time(size: int) -> float:
    """Return the seconds that a blob of `size` bytes gets beyond what every blob has."""
    return size / _LEAST_RATE if size > SMALL_BYTES else 0.0


class Deliveries:
    """Delivers blobs to those who wait; `timeout` is in seconds, for one small blob."""

    def __init__(
        self,
        disk: DiskCache,
        memory: MemoryCache,
        held: HeldBlobs,
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

    async def fly(self, flight: Flight, size: int, *, known_absent: bool = False) -> bytes | None:
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
        except UnwantedError:
            flight.withdraw()
        except Exception as error:  # noqa: BLE001 - it is raised again, in those who wait
            self._note(error)
            if not flight.landed:
                flight.fail(error)
        finally:
            if not flight.landed:
                flight.fail(UnreachableError("the content of mails is no longer served"))
        return None

    async def accept_many(self, arrived: Sequence[Arrived], show: Show) -> None:
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

    async def hand_over(self, arrived: Sequence[Arrived], show: Show) -> None:
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
        self, flight: Flight, size: int, until: float, *, known_absent: bool
    ) -> bytes | Readable:
        blob_id = flight.blob_id
        found: bytes | Readable | None = None
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

    def _land(self, flight: Flight, found: bytes | Readable, *, keep: bool = True) -> None:
        if not isinstance(found, bytes):
            self._held.add(flight.blob_id, found)
            flight.deliver(None)
            return
        kept = keep and self._memory.put(flight.blob_id, found)
        if not kept and self._held.holds(flight.blob_id):
            # Else each piece that is read of it would be another look at the disk, or download.
            self._held.add(flight.blob_id, InMemory(found))
        flight.deliver(found)

    def _note(self, error: Exception) -> None:
        self.counters.failures += 1
        if isinstance(error, BlobMismatchError):
            self.counters.mismatches += 1
            _log.warning("a mail is not served: %s", error)
        elif not isinstance(error, JmapfsError):
            _log.error("a mail could not be fetched", exc_info=error)
