"""Readers of an index that report damage, and that find the new index after damage.

A damaged index is replaced by a new one, which is complete only when the account was listed again.
Until then, a `LastingReader` raises DamageError: nothing partial is ever shown.
"""

import functools
import inspect
import sqlite3
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from jmapfs.errors import DamageError
from jmapfs.index.layout import LayoutCache
from jmapfs.index.reader import IndexReader
from jmapfs.sqlite import is_damage

_P = ParamSpec("_P")
_R = TypeVar("_R")

_GENERATION_BITS: Final = 32  # SQLite's data version has 32 bits


class Source(Protocol):
    """The index that a reader reads; `generation` changes when its file is replaced."""

    generation: int

    def report_damage(self, error: Exception) -> None:
        """Record that the index is damaged, if the error means that."""

    def connect_complete(self) -> tuple[sqlite3.Connection, LayoutCache]:
        """Open the index if it is complete, or raise DamageError."""


class ReportingReader(IndexReader):
    """A reader that reports damage, and raises DamageError for it.

    `generation` is that of the file that it reads.
    """

    def __init__(
        self, source: Source, connection: sqlite3.Connection, layouts: LayoutCache
    ) -> None:
        self.generation = source.generation
        self._source = source
        super().__init__(connection, layouts)

    def report(self, error: Exception) -> None:
        """Report damage, unless the file was replaced already."""
        if self.generation == self._source.generation:
            self._source.report_damage(error)


class LastingReader(ReportingReader):
    """A reader that lasts as long as a mount; it follows the index when its file is replaced."""

    def __init__(self, source: Source) -> None:
        generation = source.generation
        super().__init__(source, *source.connect_complete())
        self.generation = generation

    @property
    def _connection(self) -> sqlite3.Connection:
        if self.generation != self._source.generation and not self._opened.in_transaction:
            self._reopen()
        return self._opened

    @_connection.setter
    def _connection(self, connection: sqlite3.Connection) -> None:
        self._opened = connection

    def _reopen(self) -> None:
        generation = self._source.generation
        connection, self._layouts = self._source.connect_complete()
        before, self._opened = self._opened, connection
        self.generation = generation
        before.close()

    def version(self) -> int:
        """Return a number that changes with every commit, and with every new file."""
        version = super().version()
        return self.generation << _GENERATION_BITS | version

    def close(self) -> None:
        """Close the connection, without opening the index again."""
        self._opened.close()


def _reporting(
    method: Callable[Concatenate[Any, _P], _R],
) -> Callable[Concatenate[Any, _P], _R]:
    @functools.wraps(method)
    def reporting(self: ReportingReader, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            self.report(error)
            raise DamageError(f"cannot read the index: {error}") from error

    return reporting


for _name, _method in inspect.getmembers(IndexReader, inspect.isfunction):
    if not _name.startswith("_") and _name not in {"pinned", "close"}:
        setattr(ReportingReader, _name, _reporting(_method))
