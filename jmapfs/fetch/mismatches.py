"""Blobs of another size than was promised: reported once, however many readers found out."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from jmapfs.fetch.counters import ContentCounters

_log = logging.getLogger(__name__)

SizeMismatch = Callable[[str, int], Awaitable[None]]
"""Is told of a blob's id and its true size in bytes."""


class SizeMismatches:
    """Reports to `on_mismatch`, in tasks of `nursery`: a reader who leaves takes nothing along."""

    def __init__(
        self, on_mismatch: SizeMismatch, nursery: trio.Nursery, counters: ContentCounters
    ) -> None:
        self._on_mismatch = on_mismatch
        self._nursery = nursery
        self._counters = counters
        self._reports: dict[tuple[str, int], trio.Event] = {}
        self._closed = False

    def close(self) -> None:
        """Begin no more reports."""
        self._closed = True

    async def report(self, blob_id: str, size: int) -> None:
        """Report that a blob has `size` bytes; return when whoever is told has dealt with it."""
        reported = self._reports.get((blob_id, size))
        if reported is None and not self._closed:
            reported = self._reports[blob_id, size] = trio.Event()
            self._counters.mismatches += 1
            self._nursery.start_soon(self._tell, blob_id, size)
        if reported is not None:
            await reported.wait()

    async def _tell(self, blob_id: str, size: int) -> None:
        try:
            await self._on_mismatch(blob_id, size)
        except Exception:  # noqa: BLE001 - whatever it is, mail is still to be served
            _log.exception("the size of a mail could not be corrected")
        finally:
            self._reports.pop((blob_id, size)).set()
