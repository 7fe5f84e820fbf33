"""A connection to the index that is closed at the end of a `with`."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self


class IndexConnection:
    """What reader and writer share; use one from one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an open transaction, or a pinned view, ends with it."""
        self._connection.close()
