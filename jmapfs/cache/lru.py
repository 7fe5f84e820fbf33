"""Which blobs the disk cache keeps: their keys, their costs, their order of use, and their pins.

`LruIndex` works inside one transaction. So the stored totals match the rows, even if other
processes write too or a process is killed. Rows and uses are collected and written to SQLite
together. The order of use is exact: `used` is a counter that grows with every use, not the time of
day.

A server may choose any string as a blob id, so a blob id is never used in a path. The key of a blob
is a digest of the blob id. The checksum of a blob covers its key and its content, so damage of the
database cannot make one blob pass for another. Keys and checksums are SHA-256: with the SHA
instructions of today's processors, SHA-256 takes 6 µs for 8 KB in CPython, blake2b 13 µs, MD5 12 µs
(measured).

Version 1 of the cache has checksums of the content alone, with 16 bytes. Such rows are still used,
if the row itself has the key that was asked for (`DiskCache`).
"""

import hashlib
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from jmapfs.sqlite import damage_error

_KEY_BYTES: Final = 16
_CHECKSUM_BYTES: Final = 20
_CHECKSUM_BYTES_OF_VERSION_1: Final = 16
# No blob and no file has it.
_NO_KEY: Final = b"\0"


def key_of(blob_id: str) -> bytes:
    """Return the key of a blob id, 16 bytes. The id may be any string."""
    return hashlib.sha256(blob_id.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


class Checksum:
    """Computes the checksum of a blob piece by piece; `expected` is the one it is compared with."""

    def __init__(self, key: bytes, expected: bytes = b"") -> None:
        is_of_version_1 = len(expected) == _CHECKSUM_BYTES_OF_VERSION_1
        self._digest = hashlib.sha256(b"" if is_of_version_1 else key)
        self._expected = expected
        self.update = self._digest.update

    def value(self) -> bytes:
        """Return the checksum of the key and of all pieces."""
        return self._digest.digest()[:_CHECKSUM_BYTES]

    def matches(self) -> bool:
        """Return whether the blob has the expected checksum."""
        length = len(self._expected)
        return (
            length in {_CHECKSUM_BYTES, _CHECKSUM_BYTES_OF_VERSION_1}
            and self._digest.digest()[:length] == self._expected
        )


def checksum_of(key: bytes, data: bytes | memoryview) -> bytes:
    """Return the checksum of the key and the content of a blob."""
    checksum = Checksum(key)
    checksum.update(data)
    return checksum.value()


_MOST_RESERVED_BYTES: Final = 1024**3
_RESERVED_PART: Final = 20


class FreeSpace:
    """The free space of the file system that contains `directory`.

    `reserve_bytes` stay free; None means 1 GiB or 5 % of the file system, whichever is smaller.
    """

    def __init__(self, directory: Path, reserve_bytes: int | None = None) -> None:
        self._directory = directory
        self._reserve_bytes = reserve_bytes

    def shortage(self, wanted_bytes: int) -> int:
        """Return how many bytes must be freed before `wanted_bytes` more fit; 0 if they fit now.

        Raises OSError if the file system cannot be queried.
        """
        available = self.available()
        return 0 if available is None else max(0, wanted_bytes - available)

    def available(self) -> int | None:
        """Return how many bytes fit now, negative if less than the reserve is free.

        Returns None if the directory does not exist. Creating it will fail if there is no space.
        Raises OSError if the file system cannot be queried.
        """
        try:
            state = os.statvfs(self._directory)
        except FileNotFoundError:
            return None
        reserve = self._reserve_bytes
        if reserve is None:
            reserve = min(_MOST_RESERVED_BYTES, state.f_blocks * state.f_frsize // _RESERVED_PART)
        return state.f_bavail * state.f_frsize - reserve


class PinnedBlobs:
    """Counts the users of each key; this process must not evict a key with users. Thread-safe."""

    def __init__(self) -> None:
        # The lock is reentrant because the garbage collector may call `unpin` at any point.
        self._lock = threading.RLock()
        self._counts: Counter[bytes] = Counter()

    def __contains__(self, key: bytes) -> bool:
        """Tell whether a key is in use."""
        with self._lock:
            return key in self._counts

    def pin(self, key: bytes) -> None:
        """Count one more user of a key."""
        with self._lock:
            self._counts[key] += 1

    def unpin(self, key: bytes) -> None:
        """Count one user less."""
        with self._lock:
            self._counts[key] -= 1
            if self._counts[key] <= 0:
                del self._counts[key]


# What a blob costs in addition to its content. Small: rows, index entries and the unused part of
# pages take 600 to 1,200 bytes after much churn (measured). Large: an inode and half a block.
SMALL_OVERHEAD_BYTES: Final = 1024
LARGE_OVERHEAD_BYTES: Final = 4096

# Each eviction frees a little more than is needed, so that not every insert has to evict.
_HEADROOM_PART: Final = 32
_MOST_HEADROOM_BYTES: Final = 16 * 1024 * 1024

# All keys of a statement are joined in one parameter: a parameter for each key takes a fifth longer
# (measured), and the number of parameters is limited. Rows are returned in the order of the keys,
# because SQLite does not reorder the tables of a CROSS JOIN.
WANTED: Final = """
    WITH RECURSIVE wanted (at) AS (
        VALUES (1) UNION ALL SELECT at + 16 FROM wanted WHERE at + 16 < length(:keys)
    )
"""


def cost_of(size: int, *, large: bool) -> int:
    """Return how much a blob of `size` bytes counts towards the limit, in bytes."""
    return size + (LARGE_OVERHEAD_BYTES if large else SMALL_OVERHEAD_BYTES)


def headroom(limit_bytes: int) -> int:
    """Return how many bytes more than needed an eviction frees."""
    return min(limit_bytes // _HEADROOM_PART, _MOST_HEADROOM_BYTES)


class CacheEntry(NamedTuple):
    """A row of the table `entry`; a blob that is stored again gets a new `number`."""

    number: int
    key: bytes
    size: int
    cost: int
    checksum: bytes
    large: bool

    @property
    def is_of_version_1(self) -> bool:
        """Whether the checksum does not cover the key."""
        return len(self.checksum) == _CHECKSUM_BYTES_OF_VERSION_1

    def matches(self, data: bytes) -> bool:
        """Return whether a content has the size and the checksum of this blob."""
        if len(data) != self.size:
            return False
        if len(self.checksum) == _CHECKSUM_BYTES:
            # Most blobs are read here: this takes 1 µs less than the general case (measured).
            digest = hashlib.sha256(self.key)
            digest.update(data)
            return digest.digest()[:_CHECKSUM_BYTES] == self.checksum
        checksum = Checksum(self.key, self.checksum)
        checksum.update(data)
        return checksum.matches()


def entry_of(row: Sequence[Any]) -> CacheEntry:
    """Return a row of the table; if damage gave a column another type, no content matches it."""
    number, key, size, cost, checksum, large = row
    if type(key) is type(checksum) is bytes and type(size) is type(cost) is int:
        return CacheEntry(number, key, size, cost, checksum, bool(large))
    return CacheEntry(number, _NO_KEY, -1, 0, b"", bool(large))


def new_entry(key: bytes, size: int, checksum: bytes, *, large: bool) -> CacheEntry:
    """Return the row of a blob for `LruIndex.insert`, which assigns the number."""
    return CacheEntry(0, key, size, cost_of(size, large=large), checksum, large)


class LruIndex:
    """The index within a transaction of `connection`; call `save` before it commits.

    Its methods raise sqlite3.Error or OSError if the transaction must be rolled back.
    """

    def __init__(self, connection: sqlite3.Connection, large_directory: Path) -> None:
        self._connection = connection
        self._large_directory = large_directory
        row = connection.execute("SELECT bytes, blobs, clock FROM usage").fetchone()
        if row is None or any(type(value) is not int for value in row):
            raise damage_error("the totals are damaged")
        self.bytes, self.blobs, self._clock = row
        self._entries: list[tuple[object, ...]] = []
        self._contents: list[tuple[int, bytes]] = []
        self._touches: dict[bytes, None] = {}

    def save(self) -> None:
        """Write the collected rows and uses, and the totals."""
        self._write()
        self._connection.execute(
            "UPDATE usage SET bytes = ?, blobs = ?, clock = ?",
            (self.bytes, self.blobs, self._clock),
        )

    def find(self, keys: Collection[bytes]) -> dict[bytes, CacheEntry]:
        """Return the rows of the blobs that are in the cache, by their keys."""
        self._write()
        rows = self._connection.execute(
            f"{WANTED} {_SELECT_WANTED}", {"keys": b"".join(keys)}
        ).fetchall()
        return {key: entry_of(row)._replace(key=key) for key, *row in rows}

    def touch(self, keys: Collection[bytes]) -> None:
        """Record that blobs were used, in this order."""
        if self._entries:
            self._write()
        for key in keys:
            self._touches.pop(key, None)
            self._touches[key] = None

    def insert(
        self, blobs: Collection[tuple[CacheEntry, bytes | None]], limit: int, pins: PinnedBlobs
    ) -> list[bool]:
        """Insert blobs one after the other; return for each whether it is in the index now.

        A blob replaces the row with the same key. The least recently used blobs that are not pinned
        are evicted until the new blob fits below `limit`. If a content is None, it is in a file of
        its own.
        """
        known = self.find([entry.key for entry, _ in blobs])
        return [self._insert_one(known, entry, data, limit, pins) for entry, data in blobs]

    def remove(self, entries: Collection[CacheEntry]) -> None:
        """Remove blobs, and their files."""
        self._write()
        # The files are deleted while the write lock is held: after that, another process may store
        # a new file with the same name.
        for entry in entries:
            if entry.large:
                (self._large_directory / entry.key.hex()).unlink(missing_ok=True)
        numbers = [(entry.number,) for entry in entries]
        self._connection.executemany("DELETE FROM content WHERE number = ?", numbers)
        self._connection.executemany("DELETE FROM entry WHERE number = ?", numbers)
        self.bytes -= sum(entry.cost for entry in entries)
        self.blobs -= len(entries)

    def rebuild_indexes(self) -> None:
        """Rebuild the indexes of the rows: if they are damaged, they lead to other rows."""
        self._connection.execute("REINDEX entry")

    def evict(self, wanted: int, pins: PinnedBlobs) -> int:
        """Evict blobs that cost `wanted` bytes together, or all blobs; return what they cost."""
        victims = self._victims(wanted, pins)
        self.remove(victims)
        return sum(entry.cost for entry in victims)

    def recount(self, large_files: Collection[str]) -> None:
        """Compute the totals, and remove large blobs whose file is not in `large_files`."""
        rows = self._connection.execute(f"{SELECT_ENTRY} WHERE large").fetchall()
        lost = [entry for entry in map(entry_of, rows) if entry.key.hex() not in large_files]
        self.remove(lost)
        self.bytes, self.blobs, newest, latest = self._connection.execute(
            "SELECT CAST(total(charge) AS INTEGER), count(*), max(number), max(used) FROM entry"
        ).fetchone()
        # A new row must get a number that no row has.
        self._clock = max(self._clock, *(one for one in (newest, latest) if type(one) is int), 0)

    def _insert_one(
        self,
        known: dict[bytes, CacheEntry],
        new: CacheEntry,
        data: bytes | None,
        limit: int,
        pins: PinnedBlobs,
    ) -> bool:
        old = known.get(new.key)
        if old and not old.large and data is not None and old.checksum == new.checksum:
            self.touch([new.key])
            return True
        excess = self.bytes + new.cost - (old.cost if old else 0) - limit
        victims = self._victims(excess + headroom(limit), pins, new.key) if excess > 0 else []
        if sum(entry.cost for entry in victims) < excess:
            return False
        for entry in victims:
            known.pop(entry.key, None)
        replaced = [*victims, old] if old else victims
        if replaced:
            self.remove(replaced)
        known[new.key] = self._add_row(new, data)
        return True

    def _add_row(self, new: CacheEntry, data: bytes | None) -> CacheEntry:
        if self._touches:
            self._write()
        self._clock += 1
        # Use a number that no row ever had.
        entry = new._replace(number=self._clock)
        self._entries.append((*entry, self._clock))
        if data is not None:
            self._contents.append((entry.number, data))
        else:
            # The caller renames the file next. The row is written first, because that fails if the
            # disk is full.
            self._write()
        self.bytes += entry.cost
        self.blobs += 1
        return entry

    def _victims(
        self, wanted: int, pins: PinnedBlobs, exclude: bytes | None = None
    ) -> list[CacheEntry]:
        self._write()
        # The victims are collected first: rows must not be deleted while a statement reads them.
        victims: list[CacheEntry] = []
        freed = 0
        for row in self._connection.execute(f"{SELECT_ENTRY} ORDER BY used"):
            if freed >= wanted:
                break
            entry = entry_of(row)
            if entry.key != exclude and entry.key not in pins:
                victims.append(entry)
                freed += entry.cost
        return victims

    def _write(self) -> None:
        """Write the rows or the uses that were collected.

        Rows and uses are never collected at the same time: one kind is written before the other is
        collected. So their order is kept.
        """
        if self._entries:
            self._connection.executemany(
                "INSERT INTO entry (number, key, size, charge, checksum, large, used)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                self._entries,
            )
            self._connection.executemany("INSERT INTO content VALUES (?, ?)", self._contents)
            self._entries.clear()
            self._contents.clear()
        if self._touches:
            # All uses are in one statement, so that the GIL is released only once.
            self._connection.execute(
                f"{WANTED} {_TOUCH_WANTED}",
                {"keys": b"".join(self._touches), "clock": self._clock + 1},
            )
            self._clock += len(self._touches)
            self._touches.clear()


SELECT_ENTRY: Final = "SELECT number, key, size, charge, checksum, large FROM entry"
"""Selects what a CacheEntry has."""

_SELECT_WANTED: Final = (
    "SELECT substr(:keys, at, 16), number, key, size, charge, checksum, large"
    " FROM wanted CROSS JOIN entry ON key = substr(:keys, at, 16)"
)
_TOUCH_WANTED: Final = (
    "UPDATE entry SET used = :clock + at / 16 FROM wanted WHERE key = substr(:keys, at, 16)"
)
