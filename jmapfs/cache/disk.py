"""The blobs on the disk: bounded, checked, shared by the processes that mount one account.

Small blobs (up to 1 MiB) are rows of one SQLite file, large ones files of their own. 8 KB mails go
into SQLite at 12,000 to 13,000 a second (50 a transaction) and come back, checked, at 15,000 to
27,000; bare files without fsync, checksum or books: 3,000 to 15,000 and 50,000 (measured). What
decides is that content and books, which have to be right at any moment, share a transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from jmapfs.cache.files import CacheFiles
from jmapfs.cache.keys import checksum_of, key_of
from jmapfs.cache.large import LargeBlob, LargeWriter
from jmapfs.cache.ledger import Entry, Ledger, charge_of
from jmapfs.cache.lookup import Lookup
from jmapfs.cache.pins import Pins
from jmapfs.cache.space import FreeSpace

SMALL_BYTES: Final = 1024 * 1024

_STEP_BYTES: Final = 4 * 1024 * 1024
_UNUSED_PART: Final = 0.25
_MOST_TOUCHED: Final = 1024


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
        self._pins = Pins()
        self._lookup = Lookup(self._files, self._pins)
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
        small: list[tuple[int, Entry, bytes]] = []
        for index, (blob_id, data) in enumerate(blobs):
            if len(data) > SMALL_BYTES:
                kept[index] = self._put_large(blob_id, data)
            elif self._fits(len(data)):
                charge = charge_of(len(data), large=False)
                entry = Entry(0, key_of(blob_id), len(data), charge, checksum_of(data), large=False)
                small.append((index, entry, data))
        try:
            if small and self._make_space(sum(entry.charge for _, entry, _ in small)):
                with self._files.writing() as ledger:
                    ledger.touch(self._lookup.take_touched())
                    done = [(index, self._enter(ledger, new, data)) for index, new, data in small]
                for index, entered in done:
                    kept[index] = entered
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
            elif keep and not self._make_space(charge_of(expected_size, large=True)):
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
        return 0 < self.limit_bytes >= charge_of(size, large=large)

    def _enter(self, ledger: Ledger, new: Entry, data: bytes | None) -> bool:
        old = ledger.find(new.key)
        if old and not old.large and data is not None and old.checksum == new.checksum:
            ledger.touch([new.key])
            return True
        wanted = new.charge - (old.charge if old else 0)
        if not ledger.make_room(wanted, self.limit_bytes, self._pins, but=new.key):
            return False
        if old:
            ledger.remove(old)
        ledger.insert(new.key, new.size, new.checksum, data)
        return True

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
        charge = charge_of(writer.size, large=True)
        entry = Entry(0, key, writer.size, charge, writer.checksum.digest(), large=True)
        try:
            writer.sync()
            if not self._make_space(0):
                return False
            with self._files.writing() as ledger:
                ledger.touch(self._lookup.take_touched())
                if not self._enter(ledger, entry, None):
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
