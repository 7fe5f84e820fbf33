"""A connection to the index that is closed at the end of a `with`."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Self

from jmapfs.errors import StorageError


class IndexConnection:
    """What reader and writer share; use one from one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an open transaction, or a pinned view, ends with it."""
        self._connection.close()


@contextlib.contextmanager
def index_errors() -> Iterator[None]:
    """Let an error of SQLite in reading become a StorageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"cannot read the index: {error}") from error
