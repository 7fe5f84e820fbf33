"""The index file: opening it, and handing out connections to it.

WAL mode: readers see a consistent state for as long as their transaction lasts and never wait for
the writer. `synchronous=FULL`: what a commit reported is on the disk.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import trio

from jmapfs.errors import BusyError, StorageError
from jmapfs.index.metadata import read_listing_progress, read_state
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState
from jmapfs.index.schema import APPLICATION_ID, TABLES, VERSION
from jmapfs.index.writer import IndexWriter

_log = logging.getLogger(__name__)

_BUSY_TIMEOUT_MS = 10_000

# An SQL error is a table that is not there.
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})


_CONSISTENT_SECONDS: Final = 120.0
_CONSISTENT_INTERVAL: Final = 0.25

_T = TypeVar("_T")


async def wait_until_consistent(try_pin: Callable[[], Awaitable[_T | None]]) -> _T:
    """Return the first result of `try_pin` that is not None; try every quarter of a second.

    `try_pin` pins the current state of an index and returns None if that is not consistent
    (`AccountState.consistent`): the process that writes the index is between two states.

    Raises:
        BusyError: no attempt has succeeded within two minutes.
    """
    deadline = trio.current_time() + _CONSISTENT_SECONDS
    while (pinned := await try_pin()) is None:
        if trio.current_time() >= deadline:
            raise BusyError(
                f"the index has been between two states of the account for"
                f" {_CONSISTENT_SECONDS:.0f} s: much of the account has changed, or all of it is"
                " being listed; try again later"
            )
        await trio.sleep(_CONSISTENT_INTERVAL)
    return pinned


class IndexDatabase:
    """The index of one account in `directory/index.sqlite`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "index.sqlite"

    def prepare(self, *, in_use: bool = False) -> None:
        """Make sure that a usable index is there; the caller holds the account's lock.

        An index of another version, or one that is damaged or not ours, is deleted: everything in
        it can be had from the server again. Not if it is `in_use`: its readers would go on with
        what was deleted, and never know.

        Raises:
            StorageError: it can be neither read nor made.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.exists() and not self._usable():
                if in_use:
                    raise StorageError(f"the index {self.path} is damaged: mount again")
                _log.warning("the index %s is of another version or damaged: made anew", self.path)
                self._delete()
            if not self.path.exists():
                self._delete()
                self._create()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot use the index {self.path}: {error}") from error

    def state(self) -> AccountState:
        """Return the state that the index holds; an empty one where there is none yet.

        Raises:
            StorageError: it cannot be read.
        """
        if not self.path.exists():
            return AccountState()
        try:
            with self.reader() as reader:
                return reader.state()
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the index {self.path}: {error}") from error

    def reader(self) -> IndexReader:
        """Return a reader on a connection of its own; close it."""
        return IndexReader(self._connect(read_only=True))

    def writer(self) -> IndexWriter:
        """Return a writer; close it.

        Only the holder of the account's lock follows the server with one. Who has found out that
        a size is wrong may correct it: SQLite lets one transaction write at a time.
        """
        return IndexWriter(self._connect())

    def _create(self) -> None:
        # Under another name first: a half-made index must not be taken for one.
        partial = self.path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        with contextlib.closing(sqlite3.connect(partial)) as connection:
            connection.executescript(
                f"PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {VERSION};"
                f"BEGIN; {TABLES} COMMIT;"
            )
        partial.rename(self.path)
        with contextlib.closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    def _usable(self) -> bool:
        try:
            with contextlib.closing(self._connect()) as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                application = connection.execute("PRAGMA application_id").fetchone()[0]
                read_state(connection)
                read_listing_progress(connection)
        except sqlite3.DatabaseError as error:
            # Locked, full or unreadable is not damaged.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            if code & 0xFF in _DAMAGE:
                return False
            raise
        return bool(version == VERSION and application == APPLICATION_ID)

    def _delete(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        mode = "ro" if read_only else "rw"
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=_BUSY_TIMEOUT_MS / 1000,
                cached_statements=256,
            )
        except sqlite3.Error as error:
            raise StorageError(f"cannot open the index {self.path}: {error}") from error
        try:
            connection.execute("PRAGMA synchronous = FULL")
            # One page cache serves all statements of a connection; 8 MiB hold the inner pages of
            # the trees of half a million emails.
            connection.execute("PRAGMA cache_size = -8192")
        except sqlite3.Error:
            connection.close()
            raise
        return connection
