"""The index's single values: which account and state it holds, and how far a listing has come."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from typing import Any, Final

import msgspec

from jmapfs.index.records import AccountState, ListingProgress

_STATE_FIELDS: Final = {field.name for field in fields(AccountState)}
_PROGRESS: Final = "listing"


def read_state(connection: sqlite3.Connection) -> AccountState:
    """Return the state that the index holds."""
    values: dict[str, Any] = {
        name: msgspec.json.decode(value)
        for name, value in connection.execute("SELECT name, value FROM meta")
        if name in _STATE_FIELDS
    }
    return msgspec.convert(values, AccountState)


def write_state(connection: sqlite3.Connection, state: AccountState) -> None:
    """Store the state; the caller's transaction makes it one with the changes that led to it."""
    connection.executemany(
        "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
        [
            (name, msgspec.json.encode(getattr(state, name)).decode())
            for name in sorted(_STATE_FIELDS)
        ],
    )


def read_listing_progress(connection: sqlite3.Connection) -> ListingProgress | None:
    """Return how far an unfinished listing has come, or None."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (_PROGRESS,)).fetchone()
    return msgspec.json.decode(row[0], type=ListingProgress) if row else None


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
