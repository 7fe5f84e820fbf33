"""The blobs on the disk: bounded, checked, shared by the processes that mount one account.

Small blobs (up to 1 MiB) are rows of one SQLite file, large ones files of their own. Of 20,000
mails of 4 KB each takes 34 µs of CPU to keep, 100 a transaction, and 12 µs to read, 128 at once and
checked. With the kernel's caches dropped it is read in 18 µs, from a file a mail in 133 µs.
Compressed with zlib it takes half the space and twice the time (measured, tests/bench).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from jmapfs.cache.keys import checksum_of, key_of
from jmapfs.cache.large_files import LargeBlob, LargeWriter
from jmapfs.cache.lookup import CacheLookup
from jmapfs.cache.lru import CacheEntry, FreeSpace, PinnedBlobs, cost_of
from jmapfs.cache.store import CacheFiles

SMALL_BYTES: Final = 1024 * 1024

_STEP_BYTES: Final = 4 * 1024 * 1024
_UNUSED_PART: Final = 0.25
# Written down four times as often, what was used in another order than it was kept makes three and
# a half times as much to write; less often, somebody waits for it for more than 30 ms (measured).
_MOST_TOUCHED: Final = 4096


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What a disk cache holds: `bytes` of `limit` in use (as it counts them), by `blobs` blobs."""

    bytes: int
    limit: int
    blobs: int


class DiskCache:
    """A cache of blobs in `directory`, of `limit_bytes` at most; 0 means that nothing is kept.

    What counts as bytes is the content, and for each blob 1 KiB (small) or 4 KiB (large), which is
    what SQLite and the file system spend on it. Not counted: SQLite's write-ahead log (some 8 MiB),
    a large blob while it is being written, and one file that was damaged and set aside.

    Synchronous, for worker threads; safe to use from several threads and several processes.
    Nothing is raised: what cannot be read is not there, what cannot be written is not kept, and
    the reason is logged.

    `reserve_bytes` of the file system stay free; None means 1 GiB or 5 % of it, whichever is less.
    """

    def __init__(
        self, directory: Path, limit_bytes: int, *, reserve_bytes: int | None = None
    ) -> None:
        self.limit_bytes = max(0, limit_bytes)
        self._files = CacheFiles(directory)
        self._space = FreeSpace(directory, reserve_bytes)
        self._pins = PinnedBlobs()
        self._lookup = CacheLookup(self._files, self._pins)
        if self.limit_bytes:
            self._shrink()

    def get(self, blob_id: str) -> bytes | None:
        """Return the blob, small or large, its checksum verified; or None."""
        if not self.limit_bytes:
            return None
        data = self._lookup.read(key_of(blob_id))
        self._note_touches()
        return data

    def load(self, blob_id: str) -> bytes | LargeBlob | None:
        """Return the blob like `get`, or open it like `open_large` where it has more than 1 MiB."""
        if not self.limit_bytes:
            return None
        found = self._lookup.load(key_of(blob_id), SMALL_BYTES)
        self._note_touches()
        return found

    def load_many(self, blob_ids: Sequence[str]) -> dict[str, bytes]:
        """Return those of the blobs that are here and have at most 1 MiB, in the order asked for.

        Their checksums are verified, and they count as used in that order. With 64 blobs or more,
        one costs less than half of what `load` does.
        """
        if not self.limit_bytes:
            return {}
        keys = {key_of(blob_id): blob_id for blob_id in blob_ids}
        found = self._lookup.load_many(keys, SMALL_BYTES)
        self._note_touches()
        return {keys[key]: data for key, data in found.items()}

    def missing(self, blob_ids: Sequence[str]) -> list[str]:
        """Return those of the blobs, small or large, that are not here; that is not a use of any.

        They keep their order. Those whose content is damaged count as being here.
        """
        if not self.limit_bytes:
            return list(blob_ids)
        keys = {key_of(blob_id): blob_id for blob_id in blob_ids}
        present = self._lookup.present(keys)
        return [blob_id for key, blob_id in keys.items() if key not in present]

    def open_large(self, blob_id: str) -> LargeBlob | None:
        """Open a blob that has a file of its own, its checksum verified; None if there is none.

        It is pinned until it is closed.
        """
        return self._lookup.open(key_of(blob_id)) if self.limit_bytes else None

    def contains(self, blob_id: str) -> bool:
        """Tell whether the blob is here, without reading it or counting that as a use."""
        return self.size(blob_id) is not None

    def size(self, blob_id: str) -> int | None:
        """Return the length of the blob in bytes, without reading it; None if it is not here."""
        return self._lookup.size(key_of(blob_id)) if self.limit_bytes else None

    def pinned(self, blob_id: str) -> AbstractContextManager[None]:
        """Keep the blob from being evicted by this process for as long as the context lasts."""
        return self._pins.pinned(key_of(blob_id))

    def put(self, blob_id: str, data: bytes) -> bool:
        """Keep a blob; False where it is not kept: too large, no space, or an error."""
        return self.put_many([(blob_id, data)])[0]

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Keep blobs, the small ones in one transaction; tell for each whether it is kept."""
        kept = [False] * len(blobs)
        small: dict[int, tuple[CacheEntry, bytes]] = {}
        for index, (blob_id, data) in enumerate(blobs):
            if len(data) > SMALL_BYTES:
                kept[index] = self._put_large(blob_id, data)
            elif self._fits(len(data)):
                charge = cost_of(len(data), large=False)
                entry = CacheEntry(
                    0, key_of(blob_id), len(data), charge, checksum_of(data), large=False
                )
                small[index] = (entry, data)
        try:
            if small and self._make_space(sum(entry.charge for entry, _ in small.values())):
                with self._files.writing() as ledger:
                    ledger.touch(self._lookup.take_touched())
                    entered = ledger.enter(list(small.values()), self.limit_bytes, self._pins)
                for index, success in zip(small, entered, strict=True):
                    kept[index] = success
        except (OSError, sqlite3.Error) as error:
            self._files.failed("keep a blob", error)
        return kept

    def begin_large(self, blob_id: str, expected_size: int = 0) -> LargeWriter | None:
        """Begin to write a blob to a file of its own.

        One that cannot be kept (see `expected_size`, in bytes) goes to a file without a name,
        which is as good for reading but gone once closed. None where there cannot be a file.
        """
        key = key_of(blob_id)
        keep: partial[bool] | None = partial(self._keep_large, key)
        if not self._fits(expected_size, large=True):
            keep = None
        try:
            if not self.limit_bytes:
                self._files.large.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif keep and not self._make_space(cost_of(expected_size, large=True)):
                keep = None
            self._pins.pin(key)
            try:
                return LargeWriter(
                    self._files.large, self._space, keep, partial(self._pins.unpin, key)
                )
            except OSError:
                self._pins.unpin(key)
                raise
        except (OSError, sqlite3.Error) as error:
            self._files.failed("begin a large blob", error)
            return None

    def discard(self, blob_id: str) -> None:
        """Drop the blob, if it is here."""
        if self.limit_bytes:
            self._lookup.drop(key_of(blob_id))

    def write_touches(self) -> None:
        """Write down which blobs were used last; else the next insert does that."""
        if not self._lookup.touched:
            return
        try:
            with self._files.writing() as ledger:
                ledger.touch(self._lookup.take_touched())
        except (OSError, sqlite3.Error) as error:
            self._files.failed("note which blobs were used", error)

    def statistics(self) -> CacheStatistics:
        """Return what is kept right now, by all processes."""
        used = blobs = 0
        if self.limit_bytes:
            try:
                with self._files.reading() as connection:
                    used, blobs = connection.execute("SELECT bytes, blobs FROM usage").fetchone()
            except (OSError, sqlite3.Error) as error:
                self._files.failed("be counted", error)
        return CacheStatistics(bytes=used, limit=self.limit_bytes, blobs=blobs)

    def clear(self) -> None:
        """Drop every blob; what is open for reading stays readable."""
        try:
            self._files.start_over()
        except (OSError, sqlite3.Error) as error:
            self._files.failed("be cleared", error)

    def close(self) -> None:
        """Write down what was used last, and close; afterwards nothing is here."""
        self.write_touches()
        self._files.close()

    def _note_touches(self) -> None:
        if self._lookup.touched >= _MOST_TOUCHED:
            self.write_touches()

    def _fits(self, size: int, *, large: bool = False) -> bool:
        return 0 < self.limit_bytes >= cost_of(size, large=large)

    def _put_large(self, blob_id: str, data: bytes) -> bool:
        if not self._fits(len(data), large=True):
            return False
        writer = self.begin_large(blob_id, len(data))
        if writer is None:
            return False
        try:
            with writer:
                writer.write(data)
                return writer.commit()
        except OSError as error:
            self._files.failed("keep a large blob", error)
            return False

    def _keep_large(self, key: bytes, writer: LargeWriter) -> bool:
        if not self._fits(writer.size, large=True):
            return False
        charge = cost_of(writer.size, large=True)
        entry = CacheEntry(0, key, writer.size, charge, writer.checksum.digest(), large=True)
        try:
            writer.sync()
            if not self._make_space(0):
                return False
            with self._files.writing() as ledger:
                ledger.touch(self._lookup.take_touched())
                if not all(ledger.enter([(entry, None)], self.limit_bytes, self._pins)):
                    return False
                # Before the commit: an entry never comes to be without its file. A file without
                # an entry is swept away at the next opening.
                writer.rename(self._files.large / key.hex())
        except (OSError, sqlite3.Error) as error:
            self._files.failed("keep a large blob", error)
            return False
        return True

    def _make_space(self, wanted: int) -> bool:
        """Evict where the file system is short of space for `wanted` bytes more."""
        # Twice: it is in the write-ahead log and in the file for a while.
        shortage = self._space.shortage(2 * wanted)
        if not shortage:
            return True
        self._files.remove_set_aside()
        # Before anything is evicted: where the disk is so full that even this fails, what is here
        # stays, since nobody would get its space.
        self._files.empty_log()
        with self._files.writing() as ledger:
            freed = ledger.free(shortage + _STEP_BYTES, self._pins)
        if freed:
            self._files.give_back_space()
        return not self._space.shortage(wanted)

    def _shrink(self) -> None:
        """Come below a limit that is lower than it was when the cache was last open."""
        try:
            while (excess := self.statistics().bytes - self.limit_bytes) > 0:
                with self._files.writing() as ledger:
                    freed = ledger.free(min(excess, _STEP_BYTES), self._pins)
                if not freed:
                    break
            if self._files.unused_part() > _UNUSED_PART:
                self._files.give_back_space()
        except (OSError, sqlite3.Error) as error:
            self._files.failed("be made smaller", error)
