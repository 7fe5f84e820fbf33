"""The books of the disk cache: which blob is kept, what it is charged, when it was used last.

A Ledger works inside one transaction, so the totals it writes are those of the rows whatever
other process writes too, and whenever a process is killed. What is entered and touched gathers
in it, and goes to SQLite together.

`used` is a clock that ticks with every use, not the time of day: the order is exact.

How much of the file system the cache leaves to others.

What is being read in this process, and must therefore not be evicted by it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

_MOST_RESERVED_BYTES: Final = 1024**3
_RESERVED_PART: Final = 20


class FreeSpace:
    """The free space of the file system that holds `directory`.

    `reserve_bytes` is what stays free; None means 1 GiB or 5 % of the file system, whichever is
    smaller.
    """

    def __init__(self, directory: Path, reserve_bytes: int | None = None) -> None:
        self._directory = directory
        self._reserve_bytes = reserve_bytes

    def shortage(self, wanted_bytes: int) -> int:
        """Return how many bytes are missing for `wanted_bytes` more; 0 if there is room.

        Raises:
            OSError: the file system does not say.
        """
        try:
            state = os.statvfs(self._directory)
        except FileNotFoundError:
            # Not made yet, or deleted: whoever makes it finds out.
            return 0
        reserve = self._reserve_bytes
        if reserve is None:
            reserve = min(_MOST_RESERVED_BYTES, state.f_blocks * state.f_frsize // _RESERVED_PART)
        return max(0, wanted_bytes + reserve - state.f_bavail * state.f_frsize)


class PinnedBlobs:
    """Counted pins on keys; safe to use from several threads."""

    def __init__(self) -> None:
        # Reentrant: a forgotten blob is unpinned by the garbage collector, which may run anywhere.
        self._lock = threading.RLock()
        self._counts: Counter[bytes] = Counter()

    def __contains__(self, key: bytes) -> bool:
        """Tell whether somebody is reading `key`."""
        with self._lock:
            return key in self._counts

    def pin(self, key: bytes) -> None:
        """Keep `key` until `unpin` was called as often as this."""
        with self._lock:
            self._counts[key] += 1

    def unpin(self, key: bytes) -> None:
        """Take one pin away."""
        with self._lock:
            self._counts[key] -= 1
            if self._counts[key] <= 0:
                del self._counts[key]

    @contextlib.contextmanager
    def pinned(self, key: bytes) -> Iterator[None]:
        """Keep `key` for as long as the context lasts."""
        self.pin(key)
        try:
            yield
        finally:
            self.unpin(key)


# What a blob costs beside its content. Small: rows, index entries and the unused part of pages come
# to 600 to 1,200 bytes after long churn (measured). Large: an inode, and half a block at the end.
SMALL_OVERHEAD_BYTES: Final = 1024
LARGE_OVERHEAD_BYTES: Final = 4096

# Room is made for a little more than was asked for, so that not every insert has to evict.
_HEADROOM_PART: Final = 32
_MOST_HEADROOM_BYTES: Final = 16 * 1024 * 1024

# The keys of a statement are one parameter, joined: a parameter for each takes a fifth longer
# (measured), and their number is limited. A row comes for each key that is there, in their order:
# CROSS JOIN keeps the order of the tables, in SQLite.
WANTED: Final = """
    WITH RECURSIVE wanted (at) AS (
        VALUES (1) UNION ALL SELECT at + 16 FROM wanted WHERE at + 16 < length(:keys)
    )
"""


def cost_of(size: int, *, large: bool) -> int:
    """Return the bytes that a blob of `size` bytes is charged."""
    return size + (LARGE_OVERHEAD_BYTES if large else SMALL_OVERHEAD_BYTES)


def headroom(limit_bytes: int) -> int:
    """Return how many bytes beyond what is needed are made free by one eviction."""
    return min(limit_bytes // _HEADROOM_PART, _MOST_HEADROOM_BYTES)


class CacheEntry(NamedTuple):
    """A row of the books; `number` changes when the same blob is kept anew."""

    number: int
    key: bytes
    size: int
    charge: int
    checksum: bytes
    large: bool


class LruIndex:
    """The books, open in the transaction of `connection`; call `close` before it commits.

    Raises, in its methods:
        sqlite3.Error, OSError: nothing was changed, once the transaction is rolled back.
    """

    def __init__(self, connection: sqlite3.Connection, large_directory: Path) -> None:
        self._connection = connection
        self._large_directory = large_directory
        self.bytes, self.blobs, self._clock = connection.execute(
            "SELECT bytes, blobs, clock FROM usage"
        ).fetchone()
        self._entries: list[tuple[object, ...]] = []
        self._contents: list[tuple[int, bytes]] = []
        self._touches: dict[bytes, None] = {}

    def close(self) -> None:
        """Write what has gathered, and the totals."""
        self._write()
        self._connection.execute(
            "UPDATE usage SET bytes = ?, blobs = ?, clock = ?",
            (self.bytes, self.blobs, self._clock),
        )

    def find(self, keys: Collection[bytes]) -> dict[bytes, CacheEntry]:
        """Return the rows of those blobs that are there."""
        self._write()
        return find(self._connection, keys)

    def touch(self, keys: Collection[bytes]) -> None:
        """Note that the blobs were used, in this order."""
        if self._entries:
            self._write()
        for key in keys:
            self._touches.pop(key, None)
            self._touches[key] = None

    def enter(
        self, blobs: Collection[tuple[CacheEntry, bytes | None]], limit: int, pins: PinnedBlobs
    ) -> list[bool]:
        """Enter blobs one after the other, and tell for each whether it is in the books now.

        Each replaces what had its key, and evicts what was used least recently, but nothing pinned,
        until it fits below `limit`. A content of None says that a file of its own holds it.
        """
        known = self.find([entry.key for entry, _ in blobs])
        return [self._enter(known, entry, data, limit, pins) for entry, data in blobs]

    def remove(self, entries: Collection[CacheEntry]) -> None:
        """Take blobs out, and their files with them."""
        self._write()
        # While the write lock is held: later, another process may have put a new file there.
        for entry in entries:
            if entry.large:
                (self._large_directory / entry.key.hex()).unlink(missing_ok=True)
        numbers = [(entry.number,) for entry in entries]
        self._connection.executemany("DELETE FROM content WHERE number = ?", numbers)
        self._connection.executemany("DELETE FROM entry WHERE number = ?", numbers)
        self.bytes -= sum(entry.charge for entry in entries)
        self.blobs -= len(entries)

    def free(self, wanted: int, pins: PinnedBlobs) -> int:
        """Evict `wanted` bytes' worth, as far as there is; return how many bytes it was."""
        victims = self._victims(wanted, pins)
        self.remove(victims)
        return sum(entry.charge for entry in victims)

    def recount(self, large_files: Collection[str]) -> None:
        """Compute the totals anew, and drop the blobs whose file is not among `large_files`."""
        rows = self._connection.execute(f"{_SELECT} WHERE large").fetchall()
        lost = [
            entry for entry in map(CacheEntry._make, rows) if entry.key.hex() not in large_files
        ]
        self.remove(lost)
        self.bytes, self.blobs = self._connection.execute(
            "SELECT coalesce(sum(charge), 0), count(*) FROM entry"
        ).fetchone()

    def _enter(
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
        wanted = new.charge - (old.charge if old else 0)
        evicted = self._make_room(wanted, limit, pins, but=new.key)
        if evicted is None:
            return False
        for entry in evicted:
            known.pop(entry.key, None)
        if old:
            self.remove([old])
        known[new.key] = self._insert(new, data)
        return True

    def _make_room(
        self, wanted: int, limit: int, pins: PinnedBlobs, *, but: bytes
    ) -> Collection[CacheEntry] | None:
        """Evict what was used least recently until `wanted` bytes fit below `limit`.

        Nothing pinned is evicted, nor the key `but`. Returns what was evicted; None, with nothing
        evicted, where that does not suffice.
        """
        excess = self.bytes + wanted - limit
        if excess <= 0:
            return ()
        victims = self._victims(excess + headroom(limit), pins, but)
        if sum(entry.charge for entry in victims) < excess:
            return None
        self.remove(victims)
        return victims

    def _insert(self, new: CacheEntry, data: bytes | None) -> CacheEntry:
        if self._touches:
            self._write()
        self._clock += 1
        # A number that nothing ever had.
        entry = new._replace(number=self._clock)
        self._entries.append((*entry, self._clock))
        if data is not None:
            self._contents.append((entry.number, data))
        else:
            # Its file gets its name next: there must be space for the row by then.
            self._write()
        self.bytes += entry.charge
        self.blobs += 1
        return entry

    def _victims(
        self, wanted: int, pins: PinnedBlobs, but: bytes | None = None
    ) -> list[CacheEntry]:
        self._write()
        # A list: the index must not be walked while its rows are being deleted.
        victims: list[CacheEntry] = []
        freed = 0
        for row in self._connection.execute(f"{_SELECT} ORDER BY used"):
            if freed >= wanted:
                break
            entry = CacheEntry(*row)
            if entry.key != but and entry.key not in pins:
                victims.append(entry)
                freed += entry.charge
        return victims

    def _write(self) -> None:
        """Bring to SQLite what has gathered, entries or touches: never both, in their order."""
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
            # One statement, so that the GIL is handed over once and not for each of them.
            self._connection.execute(
                f"{WANTED} {_TOUCH_WANTED}",
                {"keys": b"".join(self._touches), "clock": self._clock + 1},
            )
            self._clock += len(self._touches)
            self._touches.clear()


_SELECT: Final = "SELECT number, key, size, charge, checksum, large FROM entry"
_SELECT_WANTED: Final = (
    "SELECT number, key, size, charge, checksum, large"
    " FROM wanted CROSS JOIN entry ON key = substr(:keys, at, 16)"
)
_TOUCH_WANTED: Final = (
    "UPDATE entry SET used = :clock + at / 16 FROM wanted WHERE key = substr(:keys, at, 16)"
)


def find(connection: sqlite3.Connection, keys: Collection[bytes]) -> dict[bytes, CacheEntry]:
    """Return the rows of those blobs that are there, by their keys."""
    rows = connection.execute(f"{WANTED} {_SELECT_WANTED}", {"keys": b"".join(keys)})
    return {entry.key: entry for entry in map(CacheEntry._make, rows)}
