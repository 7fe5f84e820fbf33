"""The cache's directory on the disk: opened, watched for damage, opened again when it recovers.

    blobs.sqlite     the small blobs, and the books of all          large/   one file a large blob
    lock             held while blobs.sqlite is being opened

Errors do not pass the cache: a cache that cannot be used is an empty one. Each kind of error is
logged once.

The SQLite file of the disk cache: opening it whatever state it is in, and its connections.

WAL, so that readers never wait; `synchronous=NORMAL`, because a crash of the machine may cost the
last inserts but not the file. What is damaged, or is not ours, is set aside and a new file begun:
everything in it can be fetched again. Several processes may have it open at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jmapfs.cache.large_files import remove_leftovers
from jmapfs.cache.lru import LruIndex

_log = logging.getLogger(__name__)

_BUSY_TIMEOUT_SECONDS: Final = 5.0
_OPENING_TIMEOUT_SECONDS: Final = 30.0
_STEP_PAGES: Final = 512

# Pages stay at 4096 bytes. With 16384, keeping a mail costs a quarter less, but beside its content
# it then takes up to 8 KB (if it has 9 KB), and 3 KB where sizes are mixed around 20 KB: less than
# 1 KB with 4096 (measured).
# Content has a table of its own, so that the LRU's updates do not rewrite it.
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
    PRAGMA user_version = 1;
    COMMIT;
"""
_IDENTITY: Final = (0x6A6D4243, 1)


class _ForeignError(sqlite3.DatabaseError):
    """A database of somebody else's, or of another version of ours."""


def is_damage(error: BaseException) -> bool:
    """Tell whether `error` says that the file is damaged or no (usable) database at all."""
    if isinstance(error, _ForeignError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class BlobStore:
    """The open file: one connection for writing, and one for each thread that reads right now.

    `damaged` is the inode of a file that turned out damaged while it was in use: if it is still
    there it is set aside first.

    Raises, here and in its methods:
        sqlite3.Error, OSError: it cannot be used.
    """

    def __init__(self, path: Path, *, damaged: int | None = None) -> None:
        self.path = path
        self.read_only = False
        self._name = os.fspath(path)
        self._uri = f"{path.absolute().as_uri()}?mode=rw"
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        with opening(path.parent):
            if damaged is not None and path.exists() and path.stat().st_ino == damaged:
                quarantine(path)
            self._writer = self._open()
            self.inode = path.stat().st_ino

    @property
    def replaced(self) -> bool:
        """Whether the path leads to another file by now: another process has set this one aside."""
        try:
            # Not `Path.stat`: this is asked before every read.
            return os.stat(self._name).st_ino != self.inode  # noqa: PTH116
        except OSError:
            return True

    @contextlib.contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for reading to one thread."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect(self._uri)
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write: all of the context or nothing of it; one thread and one process at a time."""
        with self._write_lock:
            self._check_open()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back by itself after some errors (full disk, I/O).
                if self._writer.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._writer.execute("ROLLBACK")
                raise

    def empty_log(self) -> None:
        """Bring everything from the write-ahead log to the file, and give its space back."""
        with self._write_lock:
            self._check_open()
            self._empty_log()

    def give_back_pages(self) -> None:
        """Give the pages that nothing uses back to the file system."""
        with self._write_lock:
            self._check_open()
            unused = -1
            while (left := self._pragma("freelist_count")) and left != unused:
                unused = left
                # Step by step: what is moved goes through the write-ahead log, and there may be
                # little space for that. A script, since `execute` would free a single page.
                self._writer.executescript(f"PRAGMA incremental_vacuum({_STEP_PAGES})")
                self._empty_log()

    def unused_part(self) -> float:
        """Return which part of the file is pages that nothing uses, 0 to 1."""
        with self.reader() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            unused = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return float(unused / max(pages, 1))

    def close(self) -> None:
        """Close every connection; one that is lent is closed when it comes back."""
        with self._write_lock, self._lock:
            self._closed = True
            connections = [*self._idle, self._writer]
            self._idle.clear()
            for connection in connections:
                connection.close()

    def _empty_log(self) -> None:
        self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _pragma(self, name: str) -> int:
        return int(self._writer.execute(f"PRAGMA {name}").fetchone()[0])

    def _check_open(self) -> None:
        if self._closed:
            raise sqlite3.ProgrammingError("the cache is closed")

    def _open(self) -> sqlite3.Connection:
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            return self._prepared(self._connect(self._uri))
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                _log.warning("the cache %s is set aside, a new one begun: %s", self.path, error)
                quarantine(self.path)
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                return self._prepared(self._connect(self._uri))
            return self._open_read_only(error)

    def _open_read_only(self, reason: Exception) -> sqlite3.Connection:
        # On a read-only file system SQLite cannot make the -shm that WAL needs. `immutable` does
        # without; should somebody be writing after all, the checksums catch what is torn.
        for mode in ("mode=ro", "immutable=1"):
            self._uri = f"{self.path.absolute().as_uri()}?{mode}"
            with contextlib.suppress(sqlite3.Error):
                connection = self._connect(self._uri)
                try:
                    connection.execute("SELECT bytes FROM usage").fetchone()
                except BaseException:
                    connection.close()
                    raise
                self.read_only = True
                return connection
        raise reason

    def _connect(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_TIMEOUT_SECONDS,
        )
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            # A page cache for each connection: little, the kernel's is behind it. And not mapped
            # into memory: where the disk fails, a signal would end the whole mount.
            connection.execute("PRAGMA cache_size = -1024")
            connection.execute("PRAGMA journal_size_limit = 8388608")
            # Debian's SQLite zeroes all that is deleted. Where each insert evicts, a quarter of
            # what was written was that, and a quarter of the time went to it (measured).
            connection.execute("PRAGMA secure_delete = FAST")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        try:
            if not _is_ours(connection):
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
            # A write that changes nothing: it finds out now whether writing is possible.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE usage SET clock = clock")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Tell a cache of this version from an empty file; anything else raises _ForeignError."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (application, version) == _IDENTITY:
        return True
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise _ForeignError("it is not a cache of this version")
    return False


def quarantine(path: Path) -> None:
    """Rename a file that cannot be used; one such file is kept, the last one.

    Raises:
        OSError: it cannot be renamed.
    """
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside(path)}{suffix}")


def aside(path: Path) -> Path:
    """Return where `quarantine` puts a file."""
    return path.with_name(f"{path.name}.set-aside")


@contextlib.contextmanager
def opening(directory: Path) -> Iterator[None]:
    """Let one process at a time look at the file, and set it aside."""
    try:
        descriptor = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:
        # Read-only or full: nothing can be made anew either.
        yield
        return
    try:
        deadline = time.monotonic() + _OPENING_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


_RETRY_SECONDS: Final = 30.0


class CacheUnavailableError(OSError):
    """The cache cannot be used at present; that has been logged before."""


class CacheFiles:
    """The files below `directory`, shared with other processes; made when they are not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.large = directory / "large"
        self._lock = threading.RLock()
        self._database: BlobStore | None = None
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
    def writing(self) -> Iterator[LruIndex]:
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
            ledger = LruIndex(connection, self.large)
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
        if isinstance(error, CacheUnavailableError):
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

    def _current(self, *, instead_of: BlobStore | None = None) -> BlobStore:
        with self._lock:
            database = self._database
            early = time.monotonic() < self._retry_at
            if database is not None and (
                database is not instead_of or (database.read_only and early)
            ):
                return database
            if self._closed or (database is None and early):
                raise CacheUnavailableError("the cache cannot be used at present")
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._forget()
            try:
                self._database = self._open()
            except (OSError, sqlite3.Error) as error:
                self.failed("be opened", error)
                raise CacheUnavailableError("the cache cannot be opened") from error
            return self._database

    def _open(self) -> BlobStore:
        with contextlib.suppress(OSError):
            self.large.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
        database = BlobStore(self.directory / "blobs.sqlite", damaged=self._damaged)
        self._damaged = None
        if database.read_only:
            return database
        try:
            with database.transaction() as connection:
                ledger = LruIndex(connection, self.large)
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
