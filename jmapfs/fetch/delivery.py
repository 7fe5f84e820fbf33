"""Flying a flight: from the disk or else the server, into memory, and behind onto the disk."""

from __future__ import annotations

import logging
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
        self._counters = counters
        self._timeout = timeout

    async def fly(self, flight: Flight, size: int) -> None:
        """End the flight of a blob of (presumably) `size` bytes, one way or another."""
        timeout = self._timeout + extra_time(size)
        try:
            with trio.move_on_after(timeout) as scope:
                await self._bring(flight, size, trio.current_time() + timeout)
            if scope.cancelled_caught and not flight.landed:
                self._counters.failures += 1
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

    async def accept(self, flight: Flight, data: bytes) -> None:
        """End a flight whose content somebody else has fetched.

        Raises:
            BlobMismatchError: these are not the bytes of the blob; so the flight has failed.
        """
        try:
            await self._downloader.check(flight.blob_id, data)
        except BlobMismatchError as error:
            self._note(error)
            flight.fail(error)
            raise
        except BaseException:
            flight.withdraw()
            raise
        self._land(flight, data)
        await self._behind.offer(flight.blob_id, data)

    async def _bring(self, flight: Flight, size: int, until: float) -> None:
        blob_id = flight.blob_id
        found: bytes | Readable | None
        found = await self._threads.run_abandonable(partial(self._disk.load, blob_id))
        if found is not None:
            self._counters.disk_hits += 1
            self._land(flight, found)
            return
        found = await self._downloader.download(flight, size, until)
        self._land(flight, found)
        if isinstance(found, bytes):
            await self._behind.offer(blob_id, found)

    def _land(self, flight: Flight, found: bytes | Readable) -> None:
        if not isinstance(found, bytes):
            self._held.add(flight.blob_id, found)
            flight.deliver(None)
            return
        kept = self._memory.put(flight.blob_id, found)
        if not kept and self._held.holds(flight.blob_id):
            # Else each piece that is read of it would be another look at the disk, or download.
            self._held.add(flight.blob_id, InMemory(found))
        flight.deliver(found)

    def _note(self, error: Exception) -> None:
        self._counters.failures += 1
        if isinstance(error, BlobMismatchError):
            self._counters.mismatches += 1
            _log.warning("a mail is not served: %s", error)
        elif not isinstance(error, JmapfsError):
            _log.error("a mail could not be fetched", exc_info=error)
