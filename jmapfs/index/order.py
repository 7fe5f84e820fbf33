"""What stands around a file in its directories: what reading ahead asks of the index.

Names begin with the time of receipt, so the order of names is the order in which directories are
listed and, but for ties within a second, that of inodes.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file in a directory: `name` there, `size` in bytes."""

    name: str
    inode: int
    blob_id: str
    size: int


def places(connection: sqlite3.Connection, inode: int) -> list[tuple[int, str]]:
    """Return the mailboxes that hold a file, each with its name there."""
    return connection.execute(
        "SELECT mailbox, name FROM membership WHERE inode = ?", (inode,)
    ).fetchall()


def names_before(connection: sqlite3.Connection, mailbox: int, name: str, count: int) -> list[str]:
    """Return the `count` names that come right before a name in a mailbox, the nearest first."""
    rows = connection.execute(
        "SELECT name FROM membership WHERE mailbox = ? AND name < ? ORDER BY name DESC LIMIT ?",
        (mailbox, name, count),
    )
    return [before for (before,) in rows]


def files_after(
    connection: sqlite3.Connection, mailbox: int, name: str, count: int
) -> list[PlacedFile]:
    """Return the `count` files that come right after a name in a mailbox, in order."""
    rows = connection.execute(
        "SELECT name, file.inode, blob_id, size FROM membership JOIN file USING (inode)"
        " WHERE mailbox = ? AND name > ? ORDER BY name LIMIT ?",
        (mailbox, name, count),
    )
    return [PlacedFile(*row) for row in rows]
