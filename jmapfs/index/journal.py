"""What changed in the tree, for those who keep a picture of it: the kernel of each mount.

One row a name that came or went, written in the transaction that changes it, so that nobody has
to compare trees, whoever wrote the change. Only the last rows are kept; a reader that fell behind
is told so and starts afresh.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

KEPT: Final = 100_000
"""How many rows are kept: a month of an ordinary account."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A name in a mailbox (its number) came or went, and the links of `inode` changed by it.

    An empty name: the size of the inode was corrected.
    """

    mailbox: int
    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class JournalPart:
    """The entries since a position, and the position they lead to.

    `whole` is false where entries in between are kept no longer, or where the position asked about
    is ahead of what is read.
    """

    entries: tuple[JournalEntry, ...]
    position: int
    whole: bool


def write(connection: sqlite3.Connection, entries: Iterable[tuple[int, str, int]]) -> None:
    """Add entries of mailbox, name and inode; none before the tree is first shown."""
    connection.executemany(
        "INSERT INTO journal (mailbox, name, inode) SELECT ?, ?, ? WHERE EXISTS"
        " (SELECT 1 FROM meta WHERE name = 'complete' AND value = 'true')",
        entries,
    )
    connection.execute(
        "DELETE FROM journal WHERE sequence <= (SELECT max(sequence) FROM journal) - ?", (KEPT,)
    )


def position(connection: sqlite3.Connection) -> int:
    """Return the position behind the newest entry."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    return int(row[0]) if row else 0


def read(connection: sqlite3.Connection, after: int) -> JournalPart:
    """Return what was written since the position `after`."""
    rows = connection.execute(
        "SELECT sequence, mailbox, name, inode FROM journal WHERE sequence > ? ORDER BY sequence",
        (after,),
    ).fetchall()
    if not rows:
        newest = position(connection)
        return JournalPart((), newest, whole=newest == after)
    entries = tuple(JournalEntry(mailbox, name, inode) for _, mailbox, name, inode in rows)
    return JournalPart(entries, rows[-1][0], whole=rows[0][0] == after + 1)
