"""The books of the disk cache: which blob is kept, what it is charged, when it was used last.

A Ledger works inside one transaction, so the totals it writes are those of the rows whatever
other process writes too, and whenever a process is killed.

`used` is a clock that ticks with every use, not the time of day: the order is exact.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jmapfs.cache.pins import Pins

# What a blob costs beside its content. Small: rows, index entries and the unused part of pages come
# to 600 to 1,200 bytes after long churn (measured). Large: an inode, and half a block at the end.
SMALL_OVERHEAD_BYTES: Final = 1024
LARGE_OVERHEAD_BYTES: Final = 4096

# Room is made for a little more than was asked for, so that not every insert has to evict.
_HEADROOM_PART: Final = 32
_MOST_HEADROOM_BYTES: Final = 16 * 1024 * 1024


def charge_of(size: int, *, large: bool) -> int:
    """Return the bytes that a blob of `size` bytes is charged."""
    return size + (LARGE_OVERHEAD_BYTES if large else SMALL_OVERHEAD_BYTES)


def headroom(limit_bytes: int) -> int:
    """Return how many bytes beyond what is needed are made free by one eviction."""
    return min(limit_bytes // _HEADROOM_PART, _MOST_HEADROOM_BYTES)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the books; `number` changes when the same blob is kept anew."""

    number: int
    key: bytes
    size: int
    charge: int
    checksum: bytes
    large: bool


class Ledger:
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

    def close(self) -> None:
        """Write the totals."""
        self._connection.execute(
            "UPDATE usage SET bytes = ?, blobs = ?, clock = ?",
            (self.bytes, self.blobs, self._clock),
        )

    def find(self, key: bytes) -> Entry | None:
        """Return the row of a blob, or None."""
        return find(self._connection, key)

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note that the blobs were used, in this order."""
        rows = []
        for key in keys:
            self._clock += 1
            rows.append((self._clock, key))
        self._connection.executemany("UPDATE entry SET used = ? WHERE key = ?", rows)

    def insert(self, key: bytes, size: int, checksum: bytes, data: bytes | None) -> None:
        """Enter a blob that is not there; `data` is None when a file of its own holds it."""
        large = data is None
        charge = charge_of(size, large=large)
        self._clock += 1
        number = self._connection.execute(
            "INSERT INTO entry (key, used, size, charge, checksum, large)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key, self._clock, size, charge, checksum, large),
        ).lastrowid
        if data is not None:
            self._connection.execute("INSERT INTO content VALUES (?, ?)", (number, data))
        self.bytes += charge
        self.blobs += 1

    def remove(self, entry: Entry) -> None:
        """Take a blob out, and its file with it."""
        # While the write lock is held: later, another process may have put a new file there.
        if entry.large:
            (self._large_directory / entry.key.hex()).unlink(missing_ok=True)
        else:
            self._connection.execute("DELETE FROM content WHERE number = ?", (entry.number,))
        self._connection.execute("DELETE FROM entry WHERE number = ?", (entry.number,))
        self.bytes -= entry.charge
        self.blobs -= 1

    def make_room(self, wanted: int, limit: int, pins: Pins, *, but: bytes | None = None) -> bool:
        """Evict what was used least recently until `wanted` bytes fit below `limit`.

        Nothing pinned is evicted, nor the key `but`. Returns False, with nothing evicted, where
        that does not suffice.
        """
        excess = self.bytes + wanted - limit
        if excess <= 0:
            return True
        victims = self._victims(excess + headroom(limit), pins, but)
        if sum(entry.charge for entry in victims) < excess:
            return False
        for entry in victims:
            self.remove(entry)
        return True

    def free(self, wanted: int, pins: Pins) -> int:
        """Evict `wanted` bytes' worth, as far as there is; return how many bytes it was."""
        victims = self._victims(wanted, pins)
        for entry in victims:
            self.remove(entry)
        return sum(entry.charge for entry in victims)

    def _victims(self, wanted: int, pins: Pins, but: bytes | None = None) -> list[Entry]:
        # A list: the index must not be walked while its rows are being deleted.
        victims: list[Entry] = []
        freed = 0
        for row in self._connection.execute(f"{_SELECT} ORDER BY used"):
            if freed >= wanted:
                break
            entry = Entry(*row)
            if entry.key != but and entry.key not in pins:
                victims.append(entry)
                freed += entry.charge
        return victims

    def recount(self, large_files: Collection[str]) -> None:
        """Compute the totals anew, and drop the blobs whose file is not among `large_files`."""
        rows = self._connection.execute(f"{_SELECT} WHERE large").fetchall()
        for row in rows:
            entry = Entry(*row)
            if entry.key.hex() not in large_files:
                self.remove(entry)
        self.bytes, self.blobs = self._connection.execute(
            "SELECT coalesce(sum(charge), 0), count(*) FROM entry"
        ).fetchone()


_SELECT: Final = "SELECT number, key, size, charge, checksum, large FROM entry"


def find(connection: sqlite3.Connection, key: bytes) -> Entry | None:
    """Return the row of a blob, or None."""
    row = connection.execute(f"{_SELECT} WHERE key = ?", (key,)).fetchone()
    return Entry(*row) if row else None
