"""Reading the index. Nothing here writes.

Outside `pinned`, each question is answered from the newest commit. Within it, all of them are
answered from one commit, however long it takes and whatever is written meanwhile.

What stands around a file in its directories: what reading ahead asks of the index.

Names begin with the time of receipt, so the order of names is the order in which directories are
listed and, but for ties within a second, that of inodes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from jmapfs.index import journal
from jmapfs.index.journal import JournalPart
from jmapfs.index.metadata import read_listing_progress, read_state
from jmapfs.index.rows import (
    AccountState,
    Counts,
    DirectoryRows,
    EmailRow,
    EmailSlice,
    FileRecord,
    ListingProgress,
    MailboxRow,
)
from jmapfs.inodes import inode_range
from jmapfs.sqlite import IndexConnection


@dataclass(frozen=True, slots=True)
class NamedFile:
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
) -> list[NamedFile]:
    """Return the `count` files that come right after a name in a mailbox, in order."""
    rows = connection.execute(
        "SELECT name, file.inode, blob_id, size FROM membership JOIN file USING (inode)"
        " WHERE mailbox = ? AND name > ? ORDER BY name LIMIT ?",
        (mailbox, name, count),
    )
    return [NamedFile(*row) for row in rows]


_EMAILS: Final = """
SELECT email.number, email.id, thread_id, blob_id, received_at, size
FROM file JOIN email USING (inode) WHERE inode BETWEEN ? AND ?
ORDER BY received_at, blob_id, email.id
"""


@dataclass(frozen=True, slots=True)
class AddedBlob:
    """The blob of an email, whose `number` says when the email came into the index."""

    number: int
    blob_id: str
    size: int
    received_at: int


def blobs_added_after(connection: sqlite3.Connection, number: int, count: int) -> list[AddedBlob]:
    """Return the blobs of emails in the order in which these came into the index."""
    rows = connection.execute(
        "SELECT number, blob_id, size, received_at FROM email JOIN file USING (inode)"
        " WHERE number > ? ORDER BY number LIMIT ?",
        (number, count),
    )
    return [AddedBlob(*row) for row in rows]


def _emails_after(
    connection: sqlite3.Connection,
    inode: int,
    count: int,
    directories: Mapping[int, tuple[str, str]],
) -> EmailSlice:
    bounds = connection.execute(
        "SELECT inode, received_at FROM file WHERE inode > ? ORDER BY inode LIMIT 1 OFFSET ?",
        (inode, count - 1),
    ).fetchone()
    last = inode_range(bounds[1]).stop - 1 if bounds else None
    first, end = inode + 1, (1 << 63) - 1 if last is None else last
    files: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for email, mailbox, name in connection.execute(
        "SELECT email, mailbox, name FROM membership WHERE inode BETWEEN ? AND ?", (first, end)
    ):
        directory = directories.get(mailbox)
        if directory is not None:
            mailbox_id, path = directory
            files[email].append((mailbox_id, f"{path}/{name}"))
    keywords: defaultdict[int, list[str]] = defaultdict(list)
    for email, keyword in connection.execute(
        "SELECT email, keyword FROM email JOIN keyword ON keyword.email = email.number"
        " WHERE inode BETWEEN ? AND ?",
        (first, end),
    ):
        keywords[email].append(keyword)
    rows = [
        EmailRow(
            email_id,
            blob_id,
            thread_id,
            received_at,
            size,
            tuple(sorted(keywords[number])),
            tuple(sorted(files[number], key=lambda file: file[1].encode())),
        )
        for number, email_id, thread_id, blob_id, received_at, size in connection.execute(
            _EMAILS, (first, end)
        )
        if number in files
    ]
    return EmailSlice(rows, last)


_CHUNK: Final = 1000


class IndexReader(IndexConnection):
    """Questions to the index, on one connection of its own; use it from one thread at a time.

    Every method may raise sqlite3.Error where the file is damaged or the disk fails.
    """

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Hold one state of the index: a read transaction; within another, the other's state."""
        if self._connection.in_transaction:
            yield
            return
        self.pin()
        try:
            yield
        finally:
            self.unpin()

    def pin(self) -> None:
        """Hold one state of the index until the reader is closed, or unpinned."""
        self._connection.execute("BEGIN")
        # A transaction of SQLite begins with its first read, not with BEGIN.
        self._connection.execute("SELECT count(*) FROM meta").fetchone()

    def unpin(self) -> None:
        """Hold no state any more."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def version(self) -> int:
        """Return a number that changes with every commit; it compares within this reader only.

        See SQLite's `PRAGMA data_version`.
        """
        row = self._connection.execute("PRAGMA data_version").fetchone()
        return int(row[0])

    def state(self) -> AccountState:
        """Return which state of which account this is."""
        return read_state(self._connection)

    def listing_progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""
        return read_listing_progress(self._connection)

    def layout_version(self) -> int:
        """Return a number that changes when mailboxes come, go, or change place or name."""
        row = self._connection.execute(
            "SELECT value FROM meta WHERE name = 'layout_version'"
        ).fetchone()
        return int(row[0]) if row else 0

    def mailboxes(self) -> list[MailboxRow]:
        """Return all mailboxes, in the order of their ids."""
        rows = self._connection.execute(
            "SELECT number, id, name, parent_id, role, sort_order, known, digest FROM mailbox"
            " ORDER BY id"
        )
        return [
            MailboxRow(number, mailbox_id, name, parent_id, role, sort_order, bool(known), digest)
            for number, mailbox_id, name, parent_id, role, sort_order, known, digest in rows
        ]

    def mailbox_times(self, mailbox: int) -> tuple[int, int]:
        """Return the newest `received_at` in a mailbox (0: empty) and the mailbox's digest."""
        row = self._connection.execute(
            """
            SELECT
                (SELECT file.received_at FROM membership JOIN file USING (inode)
                 WHERE mailbox = :mailbox ORDER BY name DESC LIMIT 1),
                (SELECT digest FROM mailbox WHERE number = :mailbox)
            """,
            {"mailbox": mailbox},
        ).fetchone()
        return row[0] or 0, row[1] or 0

    def listing(self, mailbox: int) -> DirectoryRows:
        """Return the files of a mailbox in name order."""
        listing = DirectoryRows()
        # One statement is one state, whatever is committed while it runs.
        cursor = self._connection.execute(
            "SELECT name, file.inode, size, received_at, links"
            " FROM membership JOIN file USING (inode) WHERE mailbox = ? ORDER BY name",
            (mailbox,),
        )
        while rows := cursor.fetchmany(_CHUNK):
            listing.extend(rows)
        return listing

    def named_file(self, mailbox: int, name: str) -> FileRecord | None:
        """Return the file of that name in a mailbox, or None."""
        row = self._connection.execute(
            "SELECT file.inode, blob_id, size, received_at, links"
            " FROM membership JOIN file USING (inode) WHERE mailbox = ? AND name = ?",
            (mailbox, name),
        ).fetchone()
        return FileRecord(*row) if row else None

    def file(self, inode: int) -> FileRecord | None:
        """Return the file with that inode, or None."""
        row = self._connection.execute(
            "SELECT blob_id, size, received_at, links FROM file WHERE inode = ?", (inode,)
        ).fetchone()
        return FileRecord(inode, *row) if row else None

    def places(self, inode: int) -> list[tuple[int, str]]:
        """Return the mailboxes that hold a file, each with its name there."""
        return places(self._connection, inode)

    def names_before(self, mailbox: int, name: str, count: int) -> list[str]:
        """Return the `count` names right before a name in a mailbox, the nearest first."""
        return names_before(self._connection, mailbox, name, count)

    def files_after(self, mailbox: int, name: str, count: int) -> list[NamedFile]:
        """Return the `count` files right after a name in a mailbox, in order."""
        return files_after(self._connection, mailbox, name, count)

    def emails_after(
        self, inode: int, count: int, directories: Mapping[int, tuple[str, str]]
    ) -> EmailSlice:
        """Return the emails of about `count` files whose inodes are greater than `inode`.

        They are in the order of receipt, then of blob id, then of email id. A slice ends with a
        whole second, so that it can be sorted by itself: inodes grow with the second of receipt.
        Before 1970 and after 2105 all emails have the same second.

        `directories` maps the numbers of mailboxes to their ids and paths. Emails that are in
        none of them are left out.
        """
        return _emails_after(self._connection, inode, count, directories)

    def blobs_added_after(self, number: int, count: int) -> list[AddedBlob]:
        """Return the blobs of `count` emails that came into the index after the one of a number."""
        return blobs_added_after(self._connection, number, count)

    def journal(self, after: int) -> JournalPart:
        """Return what changed in the tree since a position in the journal."""
        return journal.read(self._connection, after)

    def journal_position(self) -> int:
        """Return the position in the journal that belongs to what is read now."""
        return journal.position(self._connection)

    def counts(self) -> Counts:
        """Return the totals of the account."""
        emails, mailboxes, newest = self._connection.execute(
            """
            SELECT
                (SELECT count(*) FROM email),
                (SELECT count(*) FROM mailbox),
                (SELECT received_at FROM file ORDER BY inode DESC LIMIT 1)
            """
        ).fetchone()
        return Counts(emails=emails, mailboxes=mailboxes, newest=newest or 0)

    def size(self) -> int:
        """Return how many bytes all files have; this reads the whole table of files."""
        row = self._connection.execute("SELECT coalesce(sum(size), 0) FROM file").fetchone()
        return int(row[0])
