"""The directory of the disk cache. It can be damaged, full or read-only, and recover from that.

    blobs.sqlite     the small blobs, and the index of all      large/   a file for each large blob
    lock             held while blobs.sqlite is opened or replaced

The cache does not raise errors: if it cannot be used, it behaves like an empty cache. Each kind of
error is logged once. A damaged file is quarantined, and a new one is created, since everything in
it can be downloaded again. Several processes may use the files.
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

from jmapfs.cache.large_files import remove_partial_files
from jmapfs.cache.lru import LruIndex
from jmapfs.cache.store import BlobStore
from jmapfs.private_files import (
    UnsafePathError,
    private_directory,
)
from jmapfs.sqlite import (
    is_damage,
)

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 30.0


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
