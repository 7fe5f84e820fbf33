"""The directory of the disk cache. It can be damaged, full or read-only, and recover from that.

    blobs.sqlite     the small blobs, and the index of all      large/   a file for each large blob
    lock             held while blobs.sqlite is opened or replaced

The cache does not raise errors: if it cannot be used, it behaves like an empty cache. Each kind of
error is logged once. A file that is damaged, or belongs to another version, is quarantined, and a
new one is created, since everything in it can be downloaded again. Several processes may use the
files.

The file is in WAL mode, so readers never wait. With `synchronous=NORMAL`, a crash of the machine
may lose the last inserts, but it does not damage the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jmapfs.cache.large_files import remove_partial_files
from jmapfs.cache.lru import LruIndex
from jmapfs.locking import wait_for_lock
from jmapfs.private_files import (
    UnsafePathError,
    create_file,
    open_private,
    private_directory,
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
_RETRY_SECONDS: Final = 30.0
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


class CacheUnavailableError(OSError):
    """The cache cannot be used at present; the reason has been logged."""


class _Guard:
    """A context that suppresses errors of SQLite and the file system, and reports them."""

    def __init__(self, files: CacheFiles, action: str) -> None:
        self._files = files
        self._action = action

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: object, _traceback: object) -> bool:
        if not isinstance(error, OSError | sqlite3.Error):
            return False
        self._files.report(self._action, error)
        return True


class CacheFiles:
    """The files below `directory`, which is created if needed and shared with other processes.

    The other methods raise sqlite3.Error or OSError if the files cannot be used. In that case
    nothing has changed. So call these methods within `guard`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.large = directory / "large"
        self._lock = threading.RLock()
        self._store: BlobStore | None = None
        self._damaged: int | None = None
        self._retry_at = 0.0
        self._logged: set[tuple[str, object]] = set()
        self._closed = False

    def guard(self, action: str) -> _Guard:
        """Return a context that suppresses errors and logs: "the cache ... cannot `action`"."""
        return _Guard(self, action)

    @contextlib.contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for reading."""
        store = self.current()
        if store.replaced:
            store = self.current(instead_of=store)
        with store.reader() as connection:
            yield connection

    @contextlib.contextmanager
    def writer(self) -> Iterator[LruIndex]:
        """Lend the index for one transaction."""
        store = self.current()
        if store.read_only or store.replaced:
            store = self.current(instead_of=store)
        if store.read_only:
            raise PermissionError("the cache can only be read")
        with store.writer() as connection:
            index = LruIndex(connection, self.large)
            yield index
            index.save()

    def report(self, action: str, error: Exception) -> None:
        """Log an error if its kind is new. Close a damaged file, which will be quarantined."""
        if isinstance(error, CacheUnavailableError):
            return
        kind = getattr(error, "sqlite_errorname", None) or getattr(error, "errno", None)
        with self._lock:
            if self._closed:
                return
            if (action, kind or type(error)) not in self._logged:
                self._logged.add((action, kind or type(error)))
                _log.warning("the cache %s cannot %s: %s", self.directory, action, error)
            if is_damage(error) and self._store is not None:
                self._damaged = self._store.inode
                self._close_store()
                self._retry_at = 0.0

    def close(self) -> None:
        """Close everything; afterwards the object behaves like an empty cache."""
        with self._lock:
            self._closed = True
            self._close_store()

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            with contextlib.suppress(sqlite3.Error):
                store.close()

    def current(self, *, instead_of: BlobStore | None = None) -> BlobStore:
        """Return the open SQLite file; if it is the failed `instead_of`, reopen it first."""
        with self._lock:
            store = self._store
            too_early = time.monotonic() < self._retry_at
            if store is not None and (store is not instead_of or (store.read_only and too_early)):
                return store
            if self._closed or (store is None and too_early):
                raise CacheUnavailableError("the cache cannot be used at present")
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._close_store()
            for is_last in (False, True):
                try:
                    self._store = self._open()
                    break
                except (OSError, sqlite3.Error) as error:
                    self.report("be opened", error)
                    # If the damage is known now, the file is quarantined by the second attempt.
                    if is_last or self._damaged is None:
                        raise CacheUnavailableError("the cache cannot be opened") from error
            assert self._store is not None  # noqa: S101 - for the type checker
            return self._store

    def _open(self) -> BlobStore:
        try:
            private_directory(self.large, named=self.directory.parent)
        except UnsafePathError:
            raise
        except OSError:
            # It may be read-only.
            pass
        store = BlobStore(self.directory / "blobs.sqlite", damaged=self._damaged)
        self._damaged = None
        if store.read_only:
            return store
        try:
            with store.writer() as connection:
                index = LruIndex(connection, self.large)
                # The write lock is held, so every file that another process has renamed has a row.
                names = remove_partial_files(self.large)
                index.recount(names)
                rows = connection.execute("SELECT key FROM entry WHERE large")
                known = {key.hex() for (key,) in rows if isinstance(key, bytes)}
                for name in names - known:
                    with contextlib.suppress(OSError):
                        (self.large / name).unlink()
                index.save()
        except BaseException as error:
            if is_damage(error):
                self._damaged = store.inode
            store.close()
            raise
        return store
