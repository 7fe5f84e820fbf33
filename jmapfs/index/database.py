"""The index file of an account: creating and opening it, and the right to write it.

In WAL mode a reader sees the state from the beginning of its transaction. The reader and the writer
do not wait for each other. With `synchronous=FULL` a commit survives a power failure.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import trio

from jmapfs.errors import BusyError, DamageError, StorageError, storage_errors
from jmapfs.index.checksums import add_function
from jmapfs.index.lasting_reader import LastingReader, ReportingReader
from jmapfs.index.layout import LayoutCache
from jmapfs.index.rows import AccountState
from jmapfs.index.schema import APPLICATION_ID, OLDEST_VERSION, TABLES, VERSION, migrate
from jmapfs.index.writer import IndexWriter
from jmapfs.locking import process_lock
from jmapfs.private_files import UnsafePathError, create_file, private_directory
from jmapfs.sqlite import (
    connect,
    damage_error,
    delete_database,
    is_damage,
    sqlite_errors,
    transaction,
)

_log = logging.getLogger(__name__)

_BUSY_SECONDS: Final = 10.0

_PRAGMAS: Final = (
    "synchronous = FULL",
    # The page cache of a connection: 8 MiB hold the inner B-tree pages of half a million emails.
    "cache_size = -8192",
    # SQLite computes the checksums of rows with a function of jmapfs.
    "trusted_schema = ON",
)

_CONSISTENT_SECONDS: Final = 120.0
_CONSISTENT_INTERVAL: Final = 0.25

_T = TypeVar("_T")


# So large an index is checked in about 0.2 s before it is used. A larger one is checked later.
_CHECKED_AT_ONCE_BYTES: Final = 16 * 1024 * 1024


class IndexDatabase:
    """The index of one account in `directory/index.sqlite`.

    `damage` says why the index is replaced: it is damaged, and the account is listed again. It is
    None if the index is intact, as far as is known. `is_relisting` is true until a lasting reader
    has found the new index complete. `generation` changes when the file is replaced.
    The process that has the writer lease replaces the file. Other processes ask for that with the
    file `index.damaged`, and notice that the file was replaced (`look`).
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "index.sqlite"
        self.damage: str | None = None
        self.generation = 0
        self.on_damage: Callable[[], None] = _do_nothing
        self._marker = self.path.with_suffix(".damaged")
        self.is_relisting = False
        self._must_replace = False
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self._lock = threading.Lock()
        self._layouts = LayoutCache()

    def prepare(self, *, in_use: bool = False) -> None:
        """Create the index if there is no usable index; the caller holds the account's lock.

        An index of an earlier version is converted if that is possible. An index that is damaged,
        or belongs to another program or version, is deleted: the server has everything that was in
        it. If `in_use`, an index is not deleted, because other processes would go on reading the
        deleted file without noticing. Raises StorageError if the index can be neither read nor
        created.
        """
        try:
            private_directory(self.path.parent)
            is_damaged = self.must_replace
            if self.path.exists() and (is_damaged or not self._migrate_if_usable()):
                if in_use and not is_damaged:
                    raise StorageError(f"the index {self.path} is damaged: mount again")
                _log.warning(
                    "the index %s is damaged or of another version: creating a new one", self.path
                )
                delete_database(self.path)
            if not self.path.exists():
                delete_database(self.path)
                self._create()
                self._must_replace = False
                self._marker.unlink(missing_ok=True)
                self._follow_file()
            elif self._identity is None:
                self._follow_file()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot use the index {self.path}: {error}") from error

    def require_current_version(self) -> None:
        """Check the version of an index that another process writes.

        Raises StorageError if it has another version, or if it cannot be read.
        """
        if not self.path.exists():
            return
        with (
            sqlite_errors(f"read the index {self.path}"),
            contextlib.closing(self._connect("mode=ro")) as connection,
        ):
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise StorageError(
                "another version of jmapfs has mounted this account: unmount it, then mount again"
            )

    def state(self) -> AccountState:
        """Return the state that the index has; if there is no index yet, the initial state.

        Raises StorageError if the index cannot be read.
        """
        if not self.path.exists():
            return AccountState()
        with sqlite_errors(f"read the index {self.path}"), self.reader() as reader:
            return reader.state()

    @property
    def must_replace(self) -> bool:
        """Whether damage was found, by this process or another one, and the file is the old one."""
        return self._must_replace or self._marker.exists()

    def report_damage(self, error: Exception) -> None:
        """Record that the index is damaged, if the error means that. Called in any thread."""
        if not is_damage(error) or not self._is_of_this_version():
            return
        with self._lock:
            # While the account is listed again, more damage must be found in the new file.
            if self._must_replace:
                return
            self._must_replace = True
            self.damage = str(error)
            self.is_relisting = True
            self.generation += 1
        _log.error("the index %s is damaged, the account is listed again: %s", self.path, error)
        with contextlib.suppress(OSError):
            os.close(create_file(self._marker, 0o600))
        self.on_damage()

    @contextlib.contextmanager
    def damage_reported(self) -> Iterator[None]:
        """Report damage that the context raises."""
        try:
            yield
        except (sqlite3.Error, DamageError) as error:
            self.report_damage(error)
            raise

    def end_damage(self) -> None:
        """Use the new index, which is complete now."""
        with self._lock:
            if not self._must_replace and self.damage is not None:
                _log.info("the index %s is complete again", self.path)
                self.damage = None
                self.generation += 1

    def look(self, *, is_writer: bool) -> None:
        """Notice that the file was replaced, deleted or truncated, or that its damage was found."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            status = None
        identity = None if status is None else (status.st_dev, status.st_ino)
        size = 0 if status is None else status.st_size
        shrunk, self._size = identity == self._identity and size < self._size, size
        if self._identity is None:
            self._identity = identity
        elif not is_writer:
            if identity is not None and identity != self._identity:
                # The process that has the lease has made a new index.
                self.is_relisting = True
                self._follow_file()
                with self._lock:
                    self._must_replace = False
                    self.damage = None
        elif self._marker.exists():
            self.report_damage(damage_error("another process has found damage"))
        elif identity != self._identity:
            self.report_damage(damage_error("the file was deleted or replaced"))
        elif shrunk:
            self.report_damage(damage_error("the file was truncated"))

    def check(self) -> None:
        """Read the whole index, and report damage; raises StorageError if it is damaged."""
        with sqlite_errors(f"read the index {self.path}"), self.reader() as reader:
            reader.check()

    def _follow_file(self) -> None:
        """Make lasting readers open the file that is there now."""
        status = self.path.stat()
        with self._lock:
            self._identity = status.st_dev, status.st_ino
            self._size = status.st_size
            self._layouts = LayoutCache()
            self.generation += 1

    def _is_of_this_version(self) -> bool:
        """Return False for an intact index of another version: its tables are others."""
        try:
            with contextlib.closing(self._connect("mode=ro")) as connection:
                identity = [
                    connection.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("application_id", "user_version")
                ]
        except (sqlite3.Error, OSError):
            return True
        return bool(identity[0] != APPLICATION_ID or identity[1] == VERSION)

    def reader(self) -> ReportingReader:
        """Open a reader on a connection of its own; the caller closes it."""
        with self.damage_reported(), sqlite_errors(f"open the index {self.path}"):
            return ReportingReader(self, self._connect("mode=ro"), self._layouts)

    def lasting_reader(self) -> LastingReader:
        """Open a reader that follows the index if its file is replaced; the caller closes it."""
        return LastingReader(self)

    def connect_complete(self) -> tuple[sqlite3.Connection, LayoutCache]:
        """Open the index, for a lasting reader.

        Raises DamageError while the account is listed again, and StorageError if the index cannot
        be opened.
        """
        self.require_complete()
        with sqlite_errors(f"open the index {self.path}"):
            return self._connect("mode=ro"), self._layouts

    def require_complete(self) -> None:
        """Raise DamageError while the account is listed again after damage."""
        if self.is_relisting:
            if self.damage is not None or not self.state().complete:
                raise DamageError(self.describe_damage())
            self.is_relisting = False

    def describe_damage(self) -> str:
        """Return a line about the damage, for users."""
        reason = f" ({self.damage})" if self.damage else ""
        return f"the index was damaged{reason}: the account is listed again"

    def writer(self) -> IndexWriter:
        """Open a writer; the caller closes it.

        Only the process that holds the account's lock synchronizes the index. Any process may
        correct a wrong size: SQLite runs one writing transaction at a time.
        """
        with sqlite_errors(f"open the index {self.path}"):
            return IndexWriter(self._connect("mode=rw"), self._layouts)

    def _create(self) -> None:
        # The file gets its name when it is complete, so an interruption leaves no partial index.
        partial = self.path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        os.close(create_file(partial, 0o600))
        with contextlib.closing(sqlite3.connect(partial)) as connection:
            add_function(connection)
            connection.executescript(
                f"PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {VERSION};"
                f"BEGIN; {TABLES} COMMIT;"
            )
        partial.rename(self.path)
        with contextlib.closing(self._connect("mode=rw")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    def _migrate_if_usable(self) -> bool:
        """Return whether this is an intact index of this version now; raise an error if unknown."""
        try:
            with contextlib.closing(self._connect("mode=rw")) as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                application = connection.execute("PRAGMA application_id").fetchone()[0]
                if application != APPLICATION_ID:
                    return False
                if OLDEST_VERSION <= version < VERSION:
                    _log.info("converting the index %s from version %d", self.path, version)
                    # One transaction: an interruption leaves an index of the earlier version.
                    with transaction(connection):
                        migrate(connection, version)
                        IndexWriter(connection).complete_conversion()
                        connection.execute(f"PRAGMA user_version = {VERSION}")
                    version = VERSION
                if version != VERSION:
                    return False
                writer = IndexWriter(connection)
                writer.state()
                writer.listing_progress()
                if self.path.stat().st_size <= _CHECKED_AT_ONCE_BYTES:
                    writer.check()
        except UnsafePathError:
            return False
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                return False
            raise
        return True

    def _connect(self, query: str) -> sqlite3.Connection:
        connection = connect(
            self.path,
            query=query,
            busy_seconds=_BUSY_SECONDS,
            pragmas=_PRAGMAS,
            cached_statements=256,
        )
        add_function(connection)
        return connection


class WriterLease(contextlib.AbstractContextManager["WriterLease"]):
    """The right to write an index. One process at a time has it; `try_acquire` acquires it.

    The lease is the lock on the account's directory. It is released at the end of `with`.
    """

    def __init__(self, database: IndexDatabase) -> None:
        self._database = database
        self._stack = contextlib.ExitStack()
        self._writer: IndexWriter | None = None
        self._in_use = False

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def try_acquire(self) -> BusyError | None:
        """Acquire the lease if it is free, and prepare the index; otherwise return who has it.

        Raises StorageError if the index cannot be used.
        """
        if self._writer is not None:
            return None
        directory = self._database.path.parent
        with storage_errors(directory):
            private_directory(directory)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(process_lock(directory / "lock", f"this account ({directory})"))
            except BusyError as error:
                self._in_use = True
                self._database.require_current_version()
                return error
            self._database.prepare(in_use=self._in_use)
            self._writer = self._database.writer()
            stack.callback(self._close_writer)
            self._stack.push(stack.pop_all())
        return None

    def replace_damaged(self) -> IndexWriter | None:
        """Replace a damaged index by a new one if this process has the lease; return its writer.

        Raises StorageError if that is impossible.
        """
        if self._writer is not None and self._database.must_replace:
            self._writer.close()
            self._database.prepare()
            self._writer = self._database.writer()
        return self._writer

    def writer(self) -> IndexWriter | None:
        """Return the writer, or None if another process has the lease."""
        try:
            self.try_acquire()
        except StorageError as error:
            _log.error("the index cannot be written: %s", error)
        return self._writer


def _do_nothing() -> None:
    pass


async def wait_until_consistent(try_pin: Callable[[], Awaitable[_T | None]]) -> _T:
    """Return the first result of `try_pin` that is not None; try every quarter of a second.

    `try_pin` pins the current state of an index. If this state is not consistent
    (`AccountState.consistent`: the writing process is between two states), it returns None. Raises
    BusyError if no attempt succeeds within two minutes.
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
