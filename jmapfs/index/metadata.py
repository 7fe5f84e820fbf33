"""The index's single values: which account and state it holds, and how far a listing has come.

What cannot be decoded is a damaged file, as what SQLite cannot read: sqlite3.DatabaseError.
"""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from typing import Any, Final

import msgspec

from jmapfs.errors import UNDECODABLE
from jmapfs.index.rows import AccountState, ListingProgress

# Names in the table are an interface: index files of earlier versions have them.
_COLUMNS: Final = {"consistent": "settled"}
_STATE_FIELDS: Final = {
    _COLUMNS.get(field.name, field.name): field.name for field in fields(AccountState)
}
_PROGRESS: Final = "listing"


def read_state(connection: sqlite3.Connection) -> AccountState:
    """Return the state that the index holds."""
    # As bytes: for text that is none sqlite3 has an error of its own, without a code.
    rows = connection.execute("SELECT name, CAST(value AS BLOB) FROM meta").fetchall()
    values = {
        _STATE_FIELDS[name]: _decoded(value, Any) for name, value in rows if name in _STATE_FIELDS
    }
    try:
        return msgspec.convert(values, AccountState)
    except msgspec.ValidationError as error:
        raise _damage(error) from error


def write_state(connection: sqlite3.Connection, state: AccountState) -> None:
    """Store the state; the caller's transaction makes it one with the changes that led to it."""
    connection.executemany(
        "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
        [
            (name, msgspec.json.encode(getattr(state, field)).decode())
            for name, field in sorted(_STATE_FIELDS.items())
        ],
    )


def read_listing_progress(connection: sqlite3.Connection) -> ListingProgress | None:
    """Return how far an unfinished listing has come, or None."""
    row = connection.execute(
        "SELECT CAST(value AS BLOB) FROM meta WHERE name = ?", (_PROGRESS,)
    ).fetchone()
    return _decoded(row[0], ListingProgress) if row else None


def write_listing_progress(
    connection: sqlite3.Connection, progress: ListingProgress | None
) -> None:
    """Store how far a listing has come; None ends it."""
    if progress is None:
        connection.execute("DELETE FROM meta WHERE name = ?", (_PROGRESS,))
        return
    connection.execute(
        "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
        (_PROGRESS, msgspec.json.encode(progress).decode()),
    )


def _decoded(value: bytes, type_: Any) -> Any:  # noqa: ANN401 - JSON is anything
    try:
        return msgspec.json.decode(value, type=type_)
    except UNDECODABLE as error:
        raise _damage(error) from error


def _damage(error: Exception) -> sqlite3.DatabaseError:
    damage = sqlite3.DatabaseError(f"damaged: {error}")
    damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return damage
