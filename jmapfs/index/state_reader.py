"""Reading the state of the index, and the rules for all readers.

Outside `pinned`, each method reads the newest commit. Within `pinned`, all methods read the same
commit, even if others are committed meanwhile.

Every row that is used is verified (`checksums`). A row that should be there but is not found also
counts as damage.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

import msgspec

from jmapfs.errors import UNDECODABLE
from jmapfs.index.checksums import row_checksum, verify, verify_rows
from jmapfs.index.rows import AccountState
from jmapfs.index.schema import columns_sql
from jmapfs.sqlite import SqliteConnection, damage_error

# The names in this table must not change: existing index files have them.
_STATE_COLUMNS: Final = {"consistent": "settled"}

STATE_FIELDS: Final = {
    _STATE_COLUMNS.get(field.name, field.name): field.name for field in fields(AccountState)
}
"""The fields of AccountState by their names in the table `meta`."""

EPOCH: Final = "(SELECT value || checksum FROM meta WHERE name = 'epoch')"
"""Selects the epoch. SQLite computes this once in a statement, not once for each row."""


class StateReader(SqliteConnection):
    """A connection that reads the state of the account; use it from one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._verified_meta: dict[str, tuple[object, ...]] = {}
        self._stored_epoch = ""

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Pin the current state in the context; a reader that is pinned already stays pinned."""
        if self._connection.in_transaction:
            yield
            return
        self.pin()
        try:
            yield
        finally:
            self.unpin()

    def pin(self) -> None:
        """Pin the current state until `unpin` or `close`: begin a read transaction."""
        self._connection.execute("BEGIN")
        # SQLite's read transaction starts with the first read, not with BEGIN.
        self._connection.execute("SELECT count(*) FROM meta").fetchone()

    def unpin(self) -> None:
        """End the read transaction, if there is one."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def version(self) -> int:
        """Return a number that changes with every commit; compare only numbers of one reader.

        See SQLite's `PRAGMA data_version`.
        """
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def state(self) -> AccountState:
        """Return which account the index belongs to, and which state of the account it has."""
        return self._state(may_lack_fields=False)

    def _state(self, *, may_lack_fields: bool) -> AccountState:
        rows = self._connection.execute("SELECT name, value, checksum FROM meta").fetchall()
        verify_rows([row[:2] for row in rows], [row[2] for row in rows])
        values = {
            STATE_FIELDS[name]: decode_json(value, Any)
            for name, value, _ in rows
            if name in STATE_FIELDS
        }
        if values and len(values) < len(STATE_FIELDS) and not may_lack_fields:
            raise damage_error("a part of the state is missing")
        try:
            return msgspec.convert(values, AccountState)
        except msgspec.ValidationError as error:
            raise damage_error(f"damaged: {error}") from error

    def epoch(self) -> str:
        """Return the epoch of the blob ids in the index (`blob_keys`)."""
        value = self._meta("epoch")
        return self.state().epoch if value is None else str(decode_json(value, str))

    def _epoch_of(self, stored: str | None) -> str:
        """Return the epoch; `stored` is what a statement has selected as `EPOCH`."""
        if stored is None or stored != self._stored_epoch:
            epoch = self.epoch()
            value = msgspec.json.encode(epoch).decode()
            self._stored_epoch = f"{value}{row_checksum('epoch', value)}"
            if stored not in {None, self._stored_epoch}:
                raise damage_error("the epoch is damaged")
            return epoch
        return self._stored_epoch[1 : self._stored_epoch.rindex('"')]

    def layout_version(self) -> int:
        """Return a number that changes when mailboxes are added, removed, moved or renamed."""
        value = self._meta("layout_version")
        return 0 if value is None else int(value)

    def _meta(self, name: str) -> str | None:
        row = self._connection.execute(
            "SELECT name, value, checksum FROM meta WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            return None
        # Each lookup reads the layout version. Equal values are verified once: this takes 1 µs.
        if row != self._verified_meta.get(name):
            verify(row[:2], row[2])
            self._verified_meta[name] = row
        return str(row[1])

    def _verified(self, table: str, source: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return rows of a table; `source` is what follows FROM."""
        rows = self._connection.execute(
            f"SELECT {columns_sql(table)} FROM {source}",  # noqa: S608 - constants
            parameters,
        ).fetchall()
        values = [row[:-1] for row in rows]
        verify_rows(values, [row[-1] for row in rows])
        return values


def decode_json(value: str, type_: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """Decode a value of the table `meta`. Bytes that cannot be decoded count as damage."""
    try:
        return msgspec.json.decode(value, type=type_)
    except UNDECODABLE as error:
        raise damage_error(f"damaged: {error}") from error
