"""The blobs on the disk: bounded, verified, shared by all processes that mount one account.

Small blobs (up to 1 MiB) are rows of one SQLite file, large ones are files. Measured with 20,000
mails of 4 KB (tests/bench): storing a mail takes 34 µs of CPU time (100 in a transaction), loading
and verifying it 12 µs (128 at once). Without the kernel's caches a mail is read in 18 µs, and from
a file of its own in 133 µs. Compression with zlib takes twice the time and half the space.

Uses of blobs are collected in memory and written with the next insert: one write for each read
would cost more than the read.
"""

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from jmapfs.cache.cache_files import CacheFiles
from jmapfs.cache.large_files import LargeBlob, LargeWriter
from jmapfs.cache.lru import (
    SELECT_ENTRY,
    WANTED,
    CacheEntry,
    Checksum,
    FreeSpace,
    PinnedBlobs,
    checksum_of,
    cost_of,
    entry_of,
    headroom,
    key_of,
    new_entry,
)
from jmapfs.errors import StorageError
from jmapfs.private_files import open_private, private_directory
from jmapfs.sqlite import delete_database, quarantined

_log = logging.getLogger(__name__)

SMALL_BYTES: Final = 1024 * 1024

_STEP_BYTES: Final = 4 * 1024 * 1024
_UNUSED_PART: Final = 0.25
# How many uses are collected before they are written. If the order of use differs from the order of
# storing, a quarter of this number causes 3.5 times as many writes. With a larger number, the
# caller waits for more than 30 ms (measured).
_MOST_TOUCHED: Final = 4096

# For one blob, this takes 9 µs less than `_LOAD_MANY` (measured).
_LOAD_ONE: Final = (
    "SELECT number, key, size, charge, checksum, large, data"
    " FROM entry LEFT JOIN content USING (number) WHERE key = ?"
)
_LOAD_MANY: Final = (
    "SELECT number, key, size, charge, checksum, large, data"
    " FROM wanted CROSS JOIN entry ON key = substr(:keys, at, 16) LEFT JOIN content USING (number)"
)
_SIZES: Final = "SELECT key, size FROM wanted CROSS JOIN entry ON key = substr(:keys, at, 16)"

_Parameters = tuple[()] | tuple[bytes | int] | dict[str, bytes]


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """The number of `blobs` in a disk cache, and how many of `limit` bytes they use."""

    bytes: int
    limit: int
    blobs: int


class DiskCache:
    """A cache of blobs in `directory`, of at most `limit_bytes`; if this is 0, nothing is stored.

    The limit covers the content, and 1 KiB (small) or 4 KiB (large) for each blob, which SQLite and
    the file system use. The limit does not cover three things: SQLite's write-ahead log (about 8
    MiB), a large blob that is being written, and one damaged file in quarantine.

    `reserve_bytes` of the file system stay free; None means 1 GiB or 5 % of it, whichever is less.

    Synchronous, for worker threads; safe to use from several threads and several processes. No
    method raises an error. A blob that cannot be read counts as missing, and a blob that cannot be
    written is not stored. The reason is logged.
    """

    def __init__(
        self, directory: Path, limit_bytes: int, *, reserve_bytes: int | None = None
    ) -> None:
        self.limit_bytes = max(0, limit_bytes)
        self._files = CacheFiles(directory)
        self._space = FreeSpace(directory, reserve_bytes)
        self._pins = PinnedBlobs()
        self._touch_lock = threading.Lock()
        self._touched: dict[bytes, None] = {}
        if self.limit_bytes:
            self._shrink()

    def load(self, blob_id: str) -> bytes | LargeBlob | None:
        """Return the verified content of a blob, or the open blob if it has more than 1 MiB.

        Returns None if the blob is not cached. This process does not evict a blob while it is open.
        """
        key = key_of(blob_id)
        for entry, data in self._select(_LOAD_ONE, (key,)):
            if entry.key != key:
                # The row is damaged, and no content will match it.
                entry = entry._replace(key=key)  # noqa: PLW2901
            if entry.large and entry.size > SMALL_BYTES:
                return self._verified_file(entry)
            content = self._content(entry, data)
            if content is not None:
                self._touch([entry.key])
            return content
        return None

    def load_many(self, blob_ids: Sequence[str]) -> dict[str, bytes]:
        """Return those of the blobs that are cached and have at most 1 MiB, in this order.

        Their checksums are verified. The blobs count as used in this order. For 64 blobs and more,
        this takes less than half the time of calling `load` for each.
        """
        keys = {key_of(blob_id): blob_id for blob_id in blob_ids}
        found: dict[bytes, bytes] = {}
        for entry, data in self._select(f"{WANTED} {_LOAD_MANY}", {"keys": b"".join(keys)}):
            is_small = entry.key in keys and entry.size <= SMALL_BYTES
            content = self._content(entry, data) if is_small else None
            if content is not None:
                found[entry.key] = content
        self._touch(found)
        return {keys[key]: data for key, data in found.items()}

    def missing(self, blob_ids: Sequence[str]) -> list[str]:
        """Return those of the blobs that are not cached, in this order.

        The call does not count as a use of the blobs. Damaged blobs count as cached.
        """
        present = self.sizes(blob_ids)
        return [blob_id for blob_id in dict.fromkeys(blob_ids) if blob_id not in present]

    def sizes(self, blob_ids: Sequence[str]) -> dict[str, int]:
        """Return the sizes in bytes of those of the blobs that are cached, without reading them.

        The call does not count as a use of the blobs. Damaged blobs count as cached.
        """
        keys = {key_of(blob_id): blob_id for blob_id in blob_ids}
        rows = self._rows("look a blob up", f"{WANTED} {_SIZES}", {"keys": b"".join(keys)})
        return {keys[key]: size for key, size in rows if key in keys}

    def open_large(self, blob_id: str) -> LargeBlob | None:
        """Verify and open a large blob; return None if it is not cached.

        This process does not evict the blob until the blob is closed.
        """
        key = key_of(blob_id)
        rows = self._rows("look a blob up", f"{SELECT_ENTRY} WHERE key = ?", (key,))
        entry = entry_of(rows[0]) if rows else None
        return self._verified_file(entry._replace(key=key)) if entry and entry.large else None

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Store blobs, all small ones in one transaction; return for each whether it was stored."""
        kept = [False] * len(blobs)
        small: dict[int, tuple[CacheEntry, bytes]] = {}
        for index, (blob_id, data) in enumerate(blobs):
            if len(data) > SMALL_BYTES:
                kept[index] = self._put_large(blob_id, data)
            elif self._fits(len(data)):
                entry = _small_entry(key_of(blob_id), data)
                small[index] = entry, data
        with self._files.guard("keep a blob"):
            if small and self._make_space(sum(entry.cost for entry, _ in small.values())):
                with self._files.writer() as lru:
                    lru.touch(self._take_touched())
                    inserted = lru.insert(list(small.values()), self.limit_bytes, self._pins)
                for index, success in zip(small, inserted, strict=True):
                    kept[index] = success
        return kept

    def begin_large(self, blob_id: str, expected_size: int = 0) -> LargeWriter | None:
        """Return a writer for a blob in a file of its own, of about `expected_size` bytes.

        If the blob cannot be stored, its file has no name. The file can be read until it is closed,
        and is then deleted. Returns None if no file can be created.
        """
        key = key_of(blob_id)
        keep: partial[bool] | None = partial(self._keep_large, key)
        if not self._fits(expected_size, large=True):
            keep = None
        with self._files.guard("begin a large blob"):
            if not self.limit_bytes:
                private_directory(self._files.large, named=self._files.directory.parent)
            elif keep and not self._make_space(cost_of(expected_size, large=True)):
                keep = None
            self._pins.pin(key)
            unpin = partial(self._pins.unpin, key)
            try:
                return LargeWriter(self._files.large, key, self._space, keep, unpin)
            except OSError:
                unpin()
                raise
        return None

    def discard(self, blob_id: str) -> None:
        """Remove a blob, if it is cached."""
        if self.limit_bytes:
            self._remove(key_of(blob_id))

    def write_touches(self) -> None:
        """Write the recent uses of blobs now, instead of with the next insert."""
        if self._touched:
            with self._files.guard("note which blobs were used"), self._files.writer() as lru:
                lru.touch(self._take_touched())

    def statistics(self) -> CacheStatistics:
        """Return the number and size of the blobs that all processes have stored."""
        [(used, blobs)] = self._rows("be counted", "SELECT bytes, blobs FROM usage") or [(0, 0)]
        return CacheStatistics(bytes=used, limit=self.limit_bytes, blobs=blobs)

    @property
    def usable_bytes(self) -> int:
        """The highest total cost of blobs that the limit allows without an eviction."""
        return self.limit_bytes - headroom(self.limit_bytes)

    def capacity(self) -> int:
        """Return the highest total cost of blobs that can be kept, without evicting any of them.

        This is less than the limit if the disk is too small, or other files have filled it.
        """
        capacity = self.usable_bytes
        if self.limit_bytes:
            with self._files.guard("be measured"):
                available = self._space.available()
                if available is not None:
                    free = available + self._files.current().reusable_bytes()
                    capacity = min(capacity, self.statistics().bytes + max(0, free))
        return capacity

    def close(self) -> None:
        """Write the recent uses of blobs, and close; afterwards this acts like an empty cache."""
        self.write_touches()
        self._files.close()

    def _rows(
        self,
        action: str,
        query: str,
        parameters: _Parameters = (),
    ) -> list[Any]:
        """Return the rows of a query; none if the query fails or the cache has a limit of 0."""
        rows: list[Any] = []
        if self.limit_bytes:
            with self._files.guard(action), self._files.reader() as connection:
                rows = connection.execute(query, parameters).fetchall()
        return rows

    def _select(self, query: str, parameters: _Parameters) -> list[tuple[CacheEntry, object]]:
        """Return the rows of blobs, with the content of small ones."""
        rows = self._rows("read a blob", query, parameters)
        return [(entry_of(row[:-1]), row[-1]) for row in rows]

    def _has_key(self, entry: CacheEntry) -> bool:
        """Return whether the row of a blob has the key that was asked for.

        SQLite may have taken the key from the index on the keys. If that index is damaged, it leads
        to the row of another blob. Only a checksum of version 1 does not show this.
        """
        if not entry.is_of_version_1:
            return True
        query = "SELECT key FROM entry NOT INDEXED WHERE number = ?"
        return self._rows("read a blob", query, (entry.number,)) == [(entry.key,)]

    def _content(self, entry: CacheEntry, data: object) -> bytes | None:
        """Return the verified content of a blob: that of its file, or `data` if it is small."""
        if entry.large:
            blob = self._open_file(entry)
            if blob is None:
                return None
            try:
                with blob:
                    data = blob.pread(entry.size, 0)
            except StorageError as error:
                _log.warning("%s", str(error))
                return None
        if not isinstance(data, bytes) or not entry.matches(data) or not self._has_key(entry):
            self._remove_damaged(entry)
            return None
        return data

    def _verified_file(self, entry: CacheEntry) -> LargeBlob | None:
        """Open the file of a large blob, and verify its checksum."""
        blob = self._open_file(entry)
        if blob is None:
            return None
        try:
            checksum = Checksum(entry.key, entry.checksum)
            blob.add_to(checksum)
            if checksum.matches() and self._has_key(entry):
                self._touch([entry.key])
                return blob
        except StorageError as error:
            _log.warning("%s", str(error))
        blob.close()
        self._remove_damaged(entry)
        return None

    def _open_file(self, entry: CacheEntry) -> LargeBlob | None:
        unpin = partial(self._pins.unpin, entry.key)
        self._pins.pin(entry.key)
        try:
            descriptor = open_private(
                self._files.large / entry.key.hex(), os.O_RDONLY, create=False
            )
        except OSError as error:
            unpin()
            if isinstance(error, FileNotFoundError):
                self._remove(entry.key, entry.number)
            else:
                self._files.report("open a large blob", error)
            return None
        blob = LargeBlob(descriptor, entry.size, unpin)
        if os.fstat(descriptor).st_size != entry.size:
            blob.close()
            self._remove_damaged(entry)
            return None
        return blob

    def _remove_damaged(self, entry: CacheEntry) -> None:
        _log.warning("a cached blob of %d bytes was damaged; it is dropped", entry.size)
        self._remove(entry.key, entry.number, is_damaged=True)

    def _remove(self, key: bytes, number: int | None = None, *, is_damaged: bool = False) -> None:
        """Remove a blob; if `number` is given, only if its row still has this number."""
        with self._files.guard("drop a blob"), self._files.writer() as lru:
            entry = lru.find([key]).get(key)
            if entry and number in (None, entry.number):
                lru.remove([entry])
            if is_damaged:
                lru.rebuild_indexes()

    def _touch(self, keys: Iterable[bytes]) -> None:
        with self._touch_lock:
            for key in keys:
                self._touched.pop(key, None)
                self._touched[key] = None
        if len(self._touched) >= _MOST_TOUCHED:
            self.write_touches()

    def _take_touched(self) -> list[bytes]:
        """Return the keys of the blobs that were used since the last call, the latest one last."""
        with self._touch_lock:
            touched, self._touched = self._touched, {}
        return list(touched)

    def _fits(self, size: int, *, large: bool = False) -> bool:
        return 0 < self.limit_bytes >= cost_of(size, large=large)

    def _put_large(self, blob_id: str, data: bytes) -> bool:
        if not self._fits(len(data), large=True):
            return False
        writer = self.begin_large(blob_id, len(data))
        if writer is None:
            return False
        with self._files.guard("keep a large blob"), writer:
            writer.write(data)
            return writer.commit()
        return False

    def _keep_large(self, key: bytes, writer: LargeWriter) -> bool:
        if not self._fits(writer.size, large=True):
            return False
        entry = new_entry(key, writer.size, writer.checksum(), large=True)
        with self._files.guard("keep a large blob"):
            writer.sync()
            if not self._make_space(0):
                return False
            with self._files.writer() as lru:
                lru.touch(self._take_touched())
                if not all(lru.insert([(entry, None)], self.limit_bytes, self._pins)):
                    return False
                # The file is renamed before the commit, so that no row is without its file. A file
                # without a row is deleted when the cache is opened.
                writer.rename(self._files.large / key.hex())
            return True
        return False

    def _make_space(self, wanted: int) -> bool:
        """Evict if the file system is short of space for `wanted` more bytes."""
        # The space is needed twice: for a while, the content is both in the write-ahead log and in
        # the file.
        shortage = self._space.shortage(2 * wanted)
        if not shortage:
            return True
        delete_database(quarantined(self._files.current().path))
        # The log is emptied first. If the disk is too full to empty the log, this raises an error.
        # Nothing is evicted then: eviction would not free space on such a disk.
        self._files.current().empty_log()
        with self._files.writer() as lru:
            freed = lru.evict(shortage + _STEP_BYTES, self._pins)
        if freed:
            self._files.current().release_pages()
        return not self._space.shortage(wanted)

    def _shrink(self) -> None:
        """Evict if the limit is lower than it was when the cache was last open."""
        with self._files.guard("be made smaller"):
            while (excess := self.statistics().bytes - self.limit_bytes) > 0:
                with self._files.writer() as lru:
                    freed = lru.evict(min(excess, _STEP_BYTES), self._pins)
                if not freed:
                    break
            if self._files.current().unused_part() > _UNUSED_PART:
                self._files.current().release_pages()


def _small_entry(key: bytes, data: bytes) -> CacheEntry:
    return new_entry(key, len(data), checksum_of(key, data), large=False)
