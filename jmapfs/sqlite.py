"""The use of SQLite by the index and the disk cache: connections, transactions and damage.

    SQLite error code       meaning                                      is_damage
    SQLITE_CORRUPT          a page or an index cannot be right           yes
    SQLITE_NOTADB           the file is no database                      yes
    SQLITE_ERROR            the tables are not those of jmapfs           yes
    SQLITE_CONSTRAINT       an index and its table do not agree          yes
    SQLITE_MISMATCH         a row number is no integer                   yes
    text is not UTF-8       a row is damaged                             yes
    ForeignFileError        a database of another program or version     yes
    UnsafePathError         no regular file, or that of another user     yes
    any other               locked, disk full, input/output error, ...   no

A damaged file is never repaired: everything in it can be downloaded again.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from jmapfs.errors import DamageError, StorageError
from jmapfs.private_files import UnsafePathError, require_own_database

_DAMAGE_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
    }
)
# This error of the module sqlite3 has no code.
_UNDECODABLE: Final = "Could not decode to UTF-8"
_FILE_SUFFIXES: Final = ("-wal", "-shm", "")


class ForeignFileError(sqlite3.DatabaseError):
    """The file is a database of another program, or of another version of jmapfs."""


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that the file is damaged or is not our database."""
    # SQLite's message may quote what is damaged, and sqlite3 cannot decode the message then.
    if isinstance(error, ForeignFileError | UnsafePathError | DamageError | UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, sqlite3.OperationalError) and str(error).startswith(_UNDECODABLE)
    return code & 0xFF in _DAMAGE_CODES


def damage_error(text: str) -> sqlite3.DatabaseError:
    """Return an error for which `is_damage` is true: rows contradict each other."""
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def connect(
    path: Path,
    *,
    query: str = "mode=rw",
    busy_seconds: float,
    pragmas: Sequence[str],
    cached_statements: int = 128,
) -> sqlite3.Connection:
    """Open an existing file in autocommit mode, for use by one thread at a time.

    `query` is the part of the URI behind the `?` (https://sqlite.org/uri.html). `busy_seconds` is
    how long a statement waits for the lock of another connection. Raises sqlite3.Error if the file
    cannot be opened, or a pragma fails, and UnsafePathError if it is not a file of the user.
    """
    require_own_database(path)
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=busy_seconds,
        cached_statements=cached_statements,
    )
    try:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        # The schema is read now.
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except BaseException as error:
        connection.close()
        if isinstance(error, UnicodeDecodeError):
            raise damage_error("the schema is damaged") from error
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit everything that is written in the context, or nothing if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors (disk full, input/output) SQLite has already rolled back.
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def sqlite_errors(action: str) -> Iterator[None]:
    """Raise StorageError("cannot `action`: ...") for an error of SQLite.

    If the error means damage, this is a DamageError.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        kind = DamageError if is_damage(error) else StorageError
        raise kind(f"cannot {action}: {error}") from error
    except UnsafePathError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error


def quarantine(path: Path) -> None:
    """Rename a damaged database to `quarantined(path)`; an older file there is replaced.

    Raises OSError if the database cannot be renamed.
    """
    for suffix in _FILE_SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{quarantined(path)}{suffix}")


def quarantined(path: Path) -> Path:
    """Return where `quarantine` puts a file."""
    return path.with_name(f"{path.name}.set-aside")


def delete_database(path: Path) -> None:
    """Delete a database with its write-ahead log; files that do not exist are ignored.

    Raises OSError if a file cannot be deleted.
    """
    for suffix in _FILE_SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


class SqliteConnection:
    """An object that owns a connection and closes it at the end of `with`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        self._connection.close()
