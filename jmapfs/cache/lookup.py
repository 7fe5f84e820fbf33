"""Reading from the disk cache: nothing leaves it whose length and checksum are not right.

Which blobs were used is collected in memory, and written down with the next insert: a write for
each read would cost more than the read.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Collection, Iterable
from typing import Final

from jmapfs.cache.keys import checksum_of
from jmapfs.cache.large_files import LargeBlob
from jmapfs.cache.lru import WANTED, CacheEntry, PinnedBlobs, find
from jmapfs.cache.store import CacheFiles
from jmapfs.errors import StorageError

_log = logging.getLogger(__name__)

_ONE: Final = (
    "SELECT number, key, size, charge, checksum, large, data"
    " FROM entry LEFT JOIN content USING (number) WHERE key = ?"
)
_MANY: Final = (
    "SELECT number, key, size, charge, checksum, large, data"
    " FROM wanted CROSS JOIN entry ON key = substr(:keys, at, 16) LEFT JOIN content USING (number)"
)
_PRESENT: Final = "SELECT key FROM wanted CROSS JOIN entry ON key = substr(:keys, at, 16)"


class CacheLookup:
    """Finds blobs by their key; safe to use from several threads, raises nothing."""

    def __init__(self, files: CacheFiles, pins: PinnedBlobs) -> None:
        self._files = files
        self._pins = pins
        self._lock = threading.Lock()
        self._touched: dict[bytes, None] = {}

    @property
    def touched(self) -> int:
        """The number of blobs that were used and not yet written down as such."""
        return len(self._touched)

    def take_touched(self) -> list[bytes]:
        """Return the keys of the blobs used since the last call, the latest one last."""
        with self._lock:
            touched, self._touched = self._touched, {}
        return list(touched)

    def size(self, key: bytes) -> int | None:
        """Return the length of a blob in bytes, or None."""
        try:
            with self._files.reading() as connection:
                entry = find(connection, [key]).get(key)
        except (OSError, sqlite3.Error) as error:
            self._files.failed("look a blob up", error)
            return None
        return entry.size if entry else None

    def read(self, key: bytes) -> bytes | None:
        """Return a blob, or None."""
        found = self.load(key, largest=sys.maxsize)
        if isinstance(found, LargeBlob):
            raise TypeError("no blob is that large")
        return found

    def load(self, key: bytes, largest: int) -> bytes | LargeBlob | None:
        """Return a blob, or if it has a file and more than `largest` bytes, open it; or None."""
        try:
            with self._files.reading() as connection:
                row = connection.execute(_ONE, (key,)).fetchone()
        except (OSError, sqlite3.Error) as error:
            self._files.failed("read a blob", error)
            return None
        if row is None:
            return None
        entry = CacheEntry(*row[:-1])
        if entry.large and entry.size > largest:
            return self._verified(entry)
        data = self._content(entry, row[-1])
        if data is not None:
            self._touch([key])
        return data

    def load_many(self, keys: Collection[bytes], largest: int) -> dict[bytes, bytes]:
        """Return, by their keys, those blobs that are here and have at most `largest` bytes."""
        try:
            with self._files.reading() as connection:
                parameters = {"keys": b"".join(keys)}
                rows = connection.execute(f"{WANTED} {_MANY}", parameters).fetchall()
        except (OSError, sqlite3.Error) as error:
            self._files.failed("read a blob", error)
            return {}
        found: dict[bytes, bytes] = {}
        for row in rows:
            _, key, size, _, checksum, _, data = row
            if data is None or len(data) != size or checksum_of(data) != checksum:
                entry = CacheEntry(*row[:-1])
                data = self._content(entry, data) if size <= largest else None
                if data is None:
                    continue
            found[key] = data
        self._touch(found)
        return found

    def present(self, keys: Collection[bytes]) -> set[bytes]:
        """Return the keys of those blobs that are here."""
        try:
            with self._files.reading() as connection:
                parameters = {"keys": b"".join(keys)}
                rows = connection.execute(f"{WANTED} {_PRESENT}", parameters).fetchall()
        except (OSError, sqlite3.Error) as error:
            self._files.failed("look a blob up", error)
            return set()
        return {key for (key,) in rows}

    def open(self, key: bytes) -> LargeBlob | None:
        """Open a large blob, or return None."""
        try:
            with self._files.reading() as connection:
                entry = find(connection, [key]).get(key)
        except (OSError, sqlite3.Error) as error:
            self._files.failed("open a blob", error)
            return None
        return self._verified(entry) if entry and entry.large else None

    def drop(self, key: bytes, number: int | None = None) -> None:
        """Take a blob out; if `number` is given, only while it is still the same entry."""
        try:
            with self._files.writing() as ledger:
                entry = ledger.find([key]).get(key)
                if entry and number in (None, entry.number):
                    ledger.remove([entry])
        except (OSError, sqlite3.Error) as error:
            self._files.failed("drop a blob", error)

    def _content(self, entry: CacheEntry, data: bytes | None) -> bytes | None:
        """Return the content of a blob, `data` or what its file has; drop what is damaged."""
        if entry.large:
            data = self._whole(entry)
            if data is None:
                return None
        if data is None or len(data) != entry.size or checksum_of(data) != entry.checksum:
            self._bad(entry)
            return None
        return data

    def _verified(self, entry: CacheEntry) -> LargeBlob | None:
        blob = self._open(entry)
        if blob is None:
            return None
        try:
            if blob.checksum() == entry.checksum:
                self._touch([entry.key])
                return blob
        except StorageError as error:
            _log.warning("%s", str(error))
        blob.close()
        self._bad(entry)
        return None

    def _whole(self, entry: CacheEntry) -> bytes | None:
        blob = self._open(entry)
        if blob is None:
            return None
        try:
            with blob:
                return blob.pread(entry.size, 0)
        except StorageError as error:
            _log.warning("%s", str(error))
            return None

    def _open(self, entry: CacheEntry) -> LargeBlob | None:
        self._pins.pin(entry.key)
        try:
            descriptor = os.open(self._files.large / entry.key.hex(), os.O_RDONLY)
        except OSError as error:
            self._pins.unpin(entry.key)
            if isinstance(error, FileNotFoundError):
                self.drop(entry.key, entry.number)
            else:
                self._files.failed("open a large blob", error)
            return None
        blob = LargeBlob(descriptor, entry.size, lambda: self._pins.unpin(entry.key))
        if os.fstat(descriptor).st_size != entry.size:
            blob.close()
            self._bad(entry)
            return None
        return blob

    def _bad(self, entry: CacheEntry) -> None:
        _log.warning("a cached blob of %d bytes was damaged; it is dropped", entry.size)
        self.drop(entry.key, entry.number)

    def _touch(self, keys: Iterable[bytes]) -> None:
        with self._lock:
            for key in keys:
                self._touched.pop(key, None)
                self._touched[key] = None
