"""Reading the index. Nothing here writes.

Outside `pinned`, each question is answered from the newest commit. Within it, all of them are
answered from one commit, however long it takes and whatever is written meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from jmapfs.index import journal, mails, order
from jmapfs.index.connection import IndexConnection
from jmapfs.index.journal import JournalPart
from jmapfs.index.mails import ListedBlob, MailPage
from jmapfs.index.meta import read_listing_progress, read_state
from jmapfs.index.order import PlacedFile
from jmapfs.index.records import (
    AccountState,
    Counts,
    FileRecord,
    Listing,
    ListingProgress,
    MailboxRow,
)

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

    def listing(self, mailbox: int) -> Listing:
        """Return the files of a mailbox in name order."""
        listing = Listing()
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
        return order.places(self._connection, inode)

    def names_before(self, mailbox: int, name: str, count: int) -> list[str]:
        """Return the `count` names right before a name in a mailbox, the nearest first."""
        return order.names_before(self._connection, mailbox, name, count)

    def files_after(self, mailbox: int, name: str, count: int) -> list[PlacedFile]:
        """Return the `count` files right after a name in a mailbox, in order."""
        return order.files_after(self._connection, mailbox, name, count)

    def mails_after(self, inode: int, count: int) -> MailPage:
        """Return emails in order of receipt, those of some `count` files, behind an inode."""
        return mails.page_after(self._connection, inode, count)

    def listed_after(self, number: int, count: int) -> list[ListedBlob]:
        """Return the blobs of `count` emails that came into the index after the one of a number."""
        return mails.listed_after(self._connection, number, count)

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
