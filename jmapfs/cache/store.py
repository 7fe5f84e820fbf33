"""The SQLite file of the disk cache: the small blobs, and the index of all blobs.

It is in WAL mode, so readers never wait. With `synchronous=NORMAL`, a crash of the machine may lose
the last inserts, but it does not damage the file. A file that is damaged when it is opened, or
belongs to another version, is quarantined, and a new one is created.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jmapfs.locking import wait_for_lock
from jmapfs.private_files import (
    UnsafePathError,
    create_file,
    open_private,
)
from jmapfs.sqlite import (
    ForeignFileError,
    connect,
    delete_database,
    is_damage,
    quarantine,
    transaction,
)

_log = logging.getLogger(__name__)

_BUSY_TIMEOUT_SECONDS: Final = 5.0
_LOCK_TIMEOUT_SECONDS: Final = 30.0
_STEP_PAGES: Final = 512

_PRAGMAS: Final = (
    "synchronous = NORMAL",
    # Each connection has a page cache. It is small, because the kernel caches pages as well. The
    # file is not mapped into memory: a disk error would then be a signal that ends the mount.
    "cache_size = -1024",
    "journal_size_limit = 8388608",
    # By default, Debian's SQLite overwrites deleted content with zeros. When each insert evicts,
    # that took a quarter of the time and of the bytes written (measured).
    "secure_delete = FAST",
)

# Pages have 4096 bytes, and a mail uses less than 1 KB in addition to its content (measured). With
# pages of 16384 bytes, storing a mail takes a quarter less time, but a mail of 9 KB uses 8 KB in
# addition, and mails of mixed sizes around 20 KB use 3 KB on average.
# Content has a table of its own, so that recording a use does not rewrite it.
_SCHEMA: Final = """
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS entry (
        number INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        used INTEGER NOT NULL,
        size INTEGER NOT NULL,
        charge INTEGER NOT NULL,
        checksum BLOB NOT NULL,
        large INTEGER NOT NULL
    );
    CREATE INDEX IF NOT EXISTS entry_used ON entry (used);
    CREATE INDEX IF NOT EXISTS entry_large ON entry (key) WHERE large;
    CREATE TABLE IF NOT EXISTS content (number INTEGER PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS usage (
        id INTEGER PRIMARY KEY CHECK (id = 0),
        bytes INTEGER NOT NULL,
        blobs INTEGER NOT NULL,
        clock INTEGER NOT NULL
    );
    INSERT OR IGNORE INTO usage VALUES (0, 0, 0, 0);
    PRAGMA application_id = 0x6A6D4243;
    PRAGMA user_version = 2;
    COMMIT;
"""
_IDENTITY: Final = (0x6A6D4243, 2)
# Its tables are the same. Only its checksums differ, row by row (see `lru`).
_IDENTITY_OF_VERSION_1: Final = (0x6A6D4243, 1)


class BlobStore:
    """The open SQLite file: a connection for writing, and one for each thread that is reading.

    `damaged` is the inode of a file that was found to be damaged. If this file is still at the
    path, it is quarantined first. `read_only` is true if nothing can be written. The constructor
    and the methods raise sqlite3.Error or OSError if the file cannot be used.
    """

    def __init__(self, path: Path, *, damaged: int | None = None) -> None:
        self.path = path
        self.read_only = False
        self._name = os.fspath(path)
        self._query = "mode=rw"
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        with _locked(path.parent):
            if damaged is not None and path.exists() and path.stat().st_ino == damaged:
                quarantine(path)
            self._writer = self._open()
            self.inode = path.stat().st_ino

    @property
    def replaced(self) -> bool:
        """Whether another process has quarantined the open file and created a new one."""
        try:
            # Not `Path.stat`, which is slower: this is called before every read.
            return os.stat(self._name).st_ino != self.inode  # noqa: PTH116
        except OSError:
            return True

    @contextlib.contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for reading to one thread."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        finally:
            with self._lock:
                keep = not self._closed
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    @contextlib.contextmanager
    def writer(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for one transaction; only one thread of one process has it."""
        with self._writable() as connection, transaction(connection):
            yield connection

    def empty_log(self) -> None:
        """Move the write-ahead log into the file, and return its space to the file system."""
        with self._writable() as connection:
            _empty_log(connection)

    def release_pages(self) -> None:
        """Return the unused pages to the file system."""
        with self._writable() as connection:
            before = -1
            while (unused := _pragma(connection, "freelist_count")) and unused != before:
                before = unused
                # A step moves few pages, because moved pages are written to the write-ahead log,
                # and there may be little space. `executescript` runs the statement to its end;
                # `execute` would stop after one page.
                connection.executescript(f"PRAGMA incremental_vacuum({_STEP_PAGES})")
                _empty_log(connection)

    def unused_part(self) -> float:
        """Return the unused part of the file, 0 to 1."""
        with self.reader() as connection:
            pages = _pragma(connection, "page_count")
            return _pragma(connection, "freelist_count") / max(pages, 1)

    def reusable_bytes(self) -> int:
        """Return the bytes that new content does not need from the file system.

        These are the unused pages of the file, and the write-ahead log. Raises sqlite3.Error.
        """
        with self.reader() as connection:
            unused = _pragma(connection, "freelist_count") * _pragma(connection, "page_size")
        with contextlib.suppress(OSError):
            unused += os.stat(f"{self._name}-wal").st_size  # noqa: PTH116
        return unused

    def close(self) -> None:
        """Close all connections; a connection that is lent is closed when it is returned."""
        with self._write_lock, self._lock:
            self._closed = True
            connections = [*self._idle, self._writer]
            self._idle.clear()
            for connection in connections:
                connection.close()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            if self._closed:
                raise sqlite3.ProgrammingError("the cache is closed")
            yield self._writer

    def _open(self) -> sqlite3.Connection:
        try:
            if not os.path.lexists(self.path):
                # Somebody has deleted the file alone. SQLite would truncate the old -shm file,
                # which other threads may have mapped: their next access would be a SIGBUS.
                delete_database(self.path)
            with contextlib.suppress(FileExistsError):
                self._create()
            return self._prepared(self._connect())
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                _log.warning(
                    "the cache %s is set aside, a new one is created: %s", self.path, error
                )
                quarantine(self.path)
                self._create()
                return self._prepared(self._connect())
            return self._open_read_only(error)

    def _create(self) -> None:
        os.close(create_file(self.path, 0o600))

    def _open_read_only(self, reason: Exception) -> sqlite3.Connection:
        # On a read-only file system SQLite cannot create the -shm file that WAL needs. With
        # `immutable`, SQLite does not need this file. If another process writes after all, the
        # checksums detect inconsistent reads.
        for query in ("mode=ro", "immutable=1"):
            self._query = query
            with contextlib.suppress(sqlite3.Error):
                connection = self._connect()
                try:
                    connection.execute("SELECT bytes FROM usage").fetchone()
                except BaseException:
                    connection.close()
                    raise
                self.read_only = True
                return connection
        raise reason

    def _connect(self) -> sqlite3.Connection:
        connection = connect(
            self.path, query=self._query, busy_seconds=_BUSY_TIMEOUT_SECONDS, pragmas=_PRAGMAS
        )
        # No column is text. A damaged row may have text that cannot be decoded.
        connection.text_factory = bytes
        return connection

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        try:
            identity = _identity(connection)
            if identity == _IDENTITY_OF_VERSION_1:
                connection.execute(f"PRAGMA user_version = {_IDENTITY[1]}")
            elif identity != _IDENTITY:
                _require_empty(connection)
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
            # A write without an effect shows now whether writing is possible.
            with transaction(connection):
                connection.execute("UPDATE usage SET clock = clock")
        except BaseException:
            connection.close()
            raise
        return connection


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _empty_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _identity(connection: sqlite3.Connection) -> tuple[int, int]:
    return _pragma(connection, "application_id"), _pragma(connection, "user_version")


def _require_empty(connection: sqlite3.Connection) -> None:
    """Raise ForeignFileError for the database of another program or version."""
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise ForeignFileError("it is not a cache of this version")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time open or replace the SQLite file."""
    try:
        descriptor = open_private(directory / "lock")
    except UnsafePathError:
        raise
    except OSError:
        # The directory is read-only or the disk is full, so no process can replace the file either.
        yield
        return
    try:
        wait_for_lock(descriptor, _LOCK_TIMEOUT_SECONDS)
        yield
    finally:
        os.close(descriptor)
