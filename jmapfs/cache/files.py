"""The cache's directory on the disk: opened, watched for damage, opened again when it recovers.

    blobs.sqlite     the small blobs, and the books of all          large/   one file a large blob
    lock             held while blobs.sqlite is being opened

Errors do not pass the cache: a cache that cannot be used is an empty one. Each kind of error is
logged once.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jmapfs.cache.database import BlobDatabase, aside, is_damage, opening
from jmapfs.cache.large import remove_leftovers
from jmapfs.cache.ledger import Ledger

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 30.0


class UnavailableError(OSError):
    """The cache cannot be used at present; that has been logged before."""


class CacheFiles:
    """The files below `directory`, shared with other processes; made when they are not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.large = directory / "large"
        self._lock = threading.RLock()
        self._database: BlobDatabase | None = None
        self._damaged: int | None = None
        self._retry_at = 0.0
        self._logged: set[tuple[str, object]] = set()
        self._closed = False

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to look something up.

        Raises:
            sqlite3.Error, OSError: hand it to `failed`.
        """
        database = self._current()
        if database.replaced:
            database = self._current(instead_of=database)
        with database.reader() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Ledger]:
        """Lend the books for one transaction.

        Raises:
            sqlite3.Error, OSError: nothing has changed in the books; hand it to `failed`.
        """
        database = self._current()
        if database.read_only or database.replaced:
            database = self._current(instead_of=database)
        if database.read_only:
            raise PermissionError("the cache can only be read")
        with database.transaction() as connection:
            ledger = Ledger(connection, self.large)
            yield ledger
            ledger.close()

    def empty_log(self) -> None:
        """Return to the file system what SQLite's write-ahead log occupies.

        Raises:
            sqlite3.Error, OSError: hand it to `failed`.
        """
        self._current().empty_log()

    def give_back_space(self) -> None:
        """Return to the file system what evicted blobs occupied in the SQLite file.

        Raises:
            sqlite3.Error, OSError: hand it to `failed`.
        """
        self._current().give_back_pages()

    def remove_set_aside(self) -> None:
        """Remove a file that was set aside, if there is one.

        Raises:
            OSError: hand it to `failed`.
        """
        database = self._current()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{aside(database.path)}{suffix}").unlink(missing_ok=True)

    def start_over(self) -> None:
        """Delete the SQLite file and begin a new one; other processes notice when they write next.

        Raises:
            sqlite3.Error, OSError: hand it to `failed`.
        """
        with self._lock:
            self._forget()
            with opening(self.directory):
                for suffix in ("-wal", "-shm", ""):
                    (self.directory / f"blobs.sqlite{suffix}").unlink(missing_ok=True)
            self._retry_at = 0.0
            self._current()

    def unused_part(self) -> float:
        """Return which part of the SQLite file is unused, 0 to 1.

        Raises:
            sqlite3.Error, OSError: hand it to `failed`.
        """
        return self._current().unused_part()

    def failed(self, action: str, error: Exception) -> None:
        """Take note of an error: log it if its kind is new, and give up a damaged file."""
        if isinstance(error, UnavailableError):
            return
        kind = getattr(error, "sqlite_errorname", None) or getattr(error, "errno", None)
        with self._lock:
            if self._closed:
                return
            if (action, kind or type(error)) not in self._logged:
                self._logged.add((action, kind or type(error)))
                _log.warning("the cache %s cannot %s: %s", self.directory, action, error)
            if is_damage(error) and self._database is not None:
                self._damaged = self._database.inode
                self._forget()
                self._retry_at = 0.0

    def close(self) -> None:
        """Close everything; what is asked for afterwards is not there."""
        with self._lock:
            self._closed = True
            self._forget()

    def _forget(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def _current(self, *, instead_of: BlobDatabase | None = None) -> BlobDatabase:
        with self._lock:
            database = self._database
            early = time.monotonic() < self._retry_at
            if database is not None and (
                database is not instead_of or (database.read_only and early)
            ):
                return database
            if self._closed or (database is None and early):
                raise UnavailableError("the cache cannot be used at present")
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._forget()
            try:
                self._database = self._open()
            except (OSError, sqlite3.Error) as error:
                self.failed("be opened", error)
                raise UnavailableError("the cache cannot be opened") from error
            return self._database

    def _open(self) -> BlobDatabase:
        with contextlib.suppress(OSError):
            self.large.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
        database = BlobDatabase(self.directory / "blobs.sqlite", damaged=self._damaged)
        self._damaged = None
        if database.read_only:
            return database
        try:
            with database.transaction() as connection:
                ledger = Ledger(connection, self.large)
                # The lock on the books is held: no other process is between the renaming of a
                # file and its entry.
                names = remove_leftovers(self.large)
                ledger.recount(names)
                known = {
                    key.hex() for (key,) in connection.execute("SELECT key FROM entry WHERE large")
                }
                for name in names - known:
                    (self.large / name).unlink(missing_ok=True)
                ledger.close()
        except BaseException:
            database.close()
            raise
        return database
