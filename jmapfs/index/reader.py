"""Reading the index.

Outside `pinned`, each method reads the newest commit. Within `pinned`, all methods read the same
commit, even if others are committed meanwhile.

File names begin with the time of receipt. So the order of names is the order in which directories
are listed and, except for emails of the same second, the order of inodes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

import msgspec

from jmapfs.errors import UNDECODABLE
from jmapfs.index.layout import Layout, LayoutCache, lay_out
from jmapfs.index.rows import (
    AccountState,
    AddedBlob,
    BadEmailRow,
    Counts,
    DirectoryRows,
    EmailRow,
    EmailSlice,
    FileRecord,
    JournalEntry,
    JournalPart,
    MailboxRow,
    NamedFile,
)
from jmapfs.index.schema import UNFILED, UNKNOWN_SIZE
from jmapfs.inodes import inode_range
from jmapfs.sqlite import SqliteConnection, damage_error

# The names in this table must not change: existing index files have them.
_STATE_COLUMNS: Final = {"consistent": "settled"}

STATE_FIELDS: Final = {
    _STATE_COLUMNS.get(field.name, field.name): field.name for field in fields(AccountState)
}
"""The fields of AccountState by their names in the table `meta`."""

_LISTING_ROWS: Final = 1000

# SQLite computes this once in a statement, not once for each row. The JSON string has no escapes.
_EPOCH: Final = "(SELECT trim(value, '\"') FROM meta WHERE name = 'epoch')"


class IndexReader(SqliteConnection):
    """A connection that reads the index; use it from one thread at a time.

    Every method may raise sqlite3.Error if the file is damaged or the disk fails. Readers of one
    index share their `layouts`.
    """

    def __init__(self, connection: sqlite3.Connection, layouts: LayoutCache | None = None) -> None:
        super().__init__(connection)
        self._layouts = layouts or LayoutCache()

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
        # The values are read as bytes: for invalid UTF-8, sqlite3 raises an error without a code.
        rows = self._connection.execute("SELECT name, CAST(value AS BLOB) FROM meta").fetchall()
        values = {
            STATE_FIELDS[name]: decode_json(value, Any)
            for name, value in rows
            if name in STATE_FIELDS
        }
        try:
            return msgspec.convert(values, AccountState)
        except msgspec.ValidationError as error:
            raise damage_error(f"damaged: {error}") from error

    def epoch(self) -> str:
        """Return the epoch of the blob ids in the index (`blob_keys`)."""
        return str(self._connection.execute(f"SELECT ifnull({_EPOCH}, '')").fetchone()[0])

    def layout_version(self) -> int:
        """Return a number that changes when mailboxes are added, removed, moved or renamed."""
        row = self._connection.execute(
            "SELECT value FROM meta WHERE name = 'layout_version'"
        ).fetchone()
        return int(row[0]) if row else 0

    def mailboxes(self) -> list[MailboxRow]:
        """Return all mailboxes, and UNFILED if it has emails, in the order of their ids."""
        rows = self._connection.execute(
            "SELECT number, id, name, parent_id, role, sort_order, known, digest FROM mailbox"
            " ORDER BY id"
        )
        return [
            MailboxRow(number, mailbox_id, name, parent_id, role, sort_order, bool(known), digest)
            for number, mailbox_id, name, parent_id, role, sort_order, known, digest in rows
        ]

    def layout(self) -> Layout:
        """Return the directories of all mailboxes, laid out now or before."""
        version = self.layout_version()
        layout = self._layouts.get(version)
        if layout is None:
            with self.pinned():
                version, layout = self.layout_version(), lay_out(self.mailboxes())
            self._layouts.put(version, layout)
        return layout

    def directory_time(self, inode: int) -> int:
        """Return when the names of a directory changed last; 0 if it was never shown."""
        row = self._connection.execute(
            "SELECT changed_at FROM directory WHERE inode = ?", (inode,)
        ).fetchone()
        return int(row[0]) if row else 0

    def listing(self, mailbox: int) -> DirectoryRows:
        """Return the files of a mailbox in name order."""
        listing = DirectoryRows()
        # One statement reads one state, even if another state is committed meanwhile.
        cursor = self._connection.execute(
            "SELECT name, file.inode, size, received_at, links"
            " FROM membership JOIN file USING (inode) WHERE mailbox = ? ORDER BY name",
            (mailbox,),
        )
        while rows := cursor.fetchmany(_LISTING_ROWS):
            listing.extend(rows)
        return listing

    def named_file(self, mailbox: int, name: str) -> FileRecord | None:
        """Return the file with that name in a mailbox, or None."""
        row = self._connection.execute(
            f"SELECT file.inode, blob_id, size, received_at, links, ifnull({_EPOCH}, '')"  # noqa: S608 - a constant
            " FROM membership JOIN file USING (inode) WHERE mailbox = ? AND name = ?",
            (mailbox, name),
        ).fetchone()
        return FileRecord(*row) if row else None

    def file(self, inode: int) -> FileRecord | None:
        """Return the file with that inode, or None."""
        row = self._connection.execute(
            f"SELECT blob_id, size, received_at, links, ifnull({_EPOCH}, '')"  # noqa: S608 - a constant
            " FROM file WHERE inode = ?",
            (inode,),
        ).fetchone()
        return FileRecord(inode, *row) if row else None

    def inodes(self) -> array[int]:
        """Return the inodes of all files."""
        return array("Q", (row[0] for row in self._connection.execute("SELECT inode FROM file")))

    def emails_of_blob(self, blob_id: str, most: int = -1) -> list[tuple[str, int]]:
        """Return the ids and the `received_at` of the emails that have a blob, or of `most`."""
        return self._connection.execute(
            "SELECT email.id, received_at FROM file JOIN email USING (inode) WHERE blob_id = ?"
            " LIMIT ?",
            (blob_id, most),
        ).fetchall()

    def name_of_blob(self, blob_id: str) -> tuple[str, int, str] | None:
        """Return an email that has a blob: its id, a mailbox number and its name there."""
        row: tuple[str, int, str] | None = self._connection.execute(
            "SELECT email.id, mailbox, name FROM file JOIN email USING (inode)"
            " JOIN membership ON membership.email = email.number WHERE blob_id = ? LIMIT 1",
            (blob_id,),
        ).fetchone()
        return row

    def unconfirmed_blobs(self) -> list[str]:
        """Return the blobs whose size an earlier version took from unconfirmed content."""
        return [row[0] for row in self._connection.execute("SELECT blob_id FROM unconfirmed")]

    def bad_emails(self) -> list[BadEmailRow]:
        """Return the emails that the account has, but that cannot be shown, in order of ids.

        An email that the server does not return any more is shown as long as it is in the tree.
        """
        rows = self._connection.execute(
            "SELECT email_id, reason, since, mailbox_ids FROM bad_email"
            " WHERE email_id NOT IN (SELECT id FROM email) ORDER BY email_id"
        )
        return [
            BadEmailRow(email_id, reason, since, tuple(msgspec.json.decode(mailboxes)))
            for email_id, reason, since, mailboxes in rows
        ]

    def names_of(self, inode: int) -> list[tuple[int, str]]:
        """Return the names of a file, each with the number of the mailbox it is in."""
        return self._connection.execute(
            "SELECT mailbox, name FROM membership WHERE inode = ?", (inode,)
        ).fetchall()

    def files_beside(
        self, mailbox: int, name: str, count: int, *, backwards: bool = False
    ) -> list[NamedFile]:
        """Return the `count` files right after a name in a mailbox, the nearest first.

        With `backwards`, return those right before the name.
        """
        side, order = ("<", "DESC") if backwards else (">", "ASC")
        rows = self._connection.execute(
            f"SELECT name, file.inode, blob_id, size, ifnull({_EPOCH}, '')"  # noqa: S608 - constants
            " FROM membership JOIN file USING (inode)"
            f" WHERE mailbox = ? AND name {side} ? ORDER BY name {order} LIMIT ?",
            (mailbox, name, count),
        )
        return [NamedFile(*row) for row in rows]

    def distance(self, mailbox: int, first: str, second: str, most: int) -> int:
        """Return how far apart two names are in a mailbox: 1 for neighbours, and at most `most`."""
        low, high = sorted((first, second))
        row = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM membership"
            " WHERE mailbox = ? AND name > ? AND name <= ? LIMIT ?)",
            (mailbox, low, high, most),
        ).fetchone()
        return int(row[0])

    def emails_after(
        self, inode: int, count: int, directories: Mapping[int, tuple[str, str]]
    ) -> EmailSlice:
        """Return the emails of about `count` files whose inodes are greater than `inode`.

        The emails are in the order of receipt, then of blob id, then of email id. Inodes grow with
        the second of receipt, but not within a second. So a slice always contains all emails of its
        last second, and all slices together are sorted. All times before 1970 count as one second,
        and so do all times after 2105.

        `directories` maps the numbers of mailboxes to their ids and paths. Emails that are in
        none of these mailboxes are left out.
        """
        bounds = self._connection.execute(
            "SELECT inode, received_at FROM file WHERE inode > ? ORDER BY inode LIMIT 1 OFFSET ?",
            (inode, count - 1),
        ).fetchone()
        last = inode_range(bounds[1]).stop - 1 if bounds else None
        first, end = inode + 1, (1 << 63) - 1 if last is None else last
        files: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
        for email, mailbox, name in self._connection.execute(
            "SELECT email, mailbox, name FROM membership WHERE inode BETWEEN ? AND ?", (first, end)
        ):
            if (directory := directories.get(mailbox)) is not None:
                mailbox_id, path = directory
                files[email].append((mailbox_id, f"{path}/{name}"))
        keywords: defaultdict[int, list[str]] = defaultdict(list)
        for email, keyword in self._connection.execute(
            "SELECT email, keyword FROM email JOIN keyword ON keyword.email = email.number"
            " WHERE inode BETWEEN ? AND ?",
            (first, end),
        ):
            keywords[email].append(keyword)
        emails = self._connection.execute(
            "SELECT email.number, email.id, blob_id, thread_id, received_at, size, stated"
            " FROM file JOIN email USING (inode) WHERE inode BETWEEN ? AND ?"
            " ORDER BY received_at, blob_id, email.id",
            (first, end),
        )
        rows = [
            EmailRow(
                email_id,
                blob_id,
                thread_id,
                received_at,
                size,
                tuple(sorted(keywords[number])),
                tuple(sorted(files[number], key=lambda file: file[1].encode())),
                None if stated == UNKNOWN_SIZE else stated,
            )
            for number, email_id, blob_id, thread_id, received_at, size, stated in emails
            if number in files
        ]
        return EmailSlice(rows, last)

    def blobs_added_after(self, number: int, count: int) -> list[AddedBlob]:
        """Return the blobs of the next `count` emails that were added after email `number`."""
        rows = self._connection.execute(
            f"SELECT number, blob_id, size, received_at, ifnull({_EPOCH}, '')"  # noqa: S608 - a constant
            " FROM email JOIN file USING (inode) WHERE number > ? ORDER BY number LIMIT ?",
            (number, count),
        )
        return [AddedBlob(*row) for row in rows]

    def journal_after(self, position: int) -> JournalPart:
        """Return what has changed in the tree since a position in the journal."""
        rows = self._connection.execute(
            "SELECT sequence, mailbox, name, inode FROM journal WHERE sequence > ?"
            " ORDER BY sequence",
            (position,),
        ).fetchall()
        if not rows:
            newest = self.journal_position()
            return JournalPart((), newest, whole=newest == position)
        entries = tuple(JournalEntry(mailbox, name, inode) for _, mailbox, name, inode in rows)
        return JournalPart(entries, rows[-1][0], whole=rows[0][0] == position + 1)

    def journal_position(self) -> int:
        """Return the position after the newest journal entry."""
        row = self._connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'journal'"
        ).fetchone()
        return int(row[0]) if row else 0

    def counts(self) -> Counts:
        """Return the totals of the account."""
        emails, mailboxes, newest = self._connection.execute(
            """
            SELECT
                (SELECT count(*) FROM email),
                (SELECT count(*) FROM mailbox WHERE id != ?),
                (SELECT received_at FROM file ORDER BY inode DESC LIMIT 1)
            """,
            (UNFILED,),
        ).fetchone()
        return Counts(emails=emails, mailboxes=mailboxes, newest=newest or 0)

    def mailbox_counts(self) -> dict[str, int]:
        """Return how many emails each mailbox has, by mailbox id; empty mailboxes are left out."""
        return dict(
            self._connection.execute(
                "SELECT id, emails FROM mailbox JOIN (SELECT mailbox, count(*) AS emails"
                " FROM membership GROUP BY mailbox) ON mailbox = number"
            )
        )

    def count_homeless(self) -> int:
        """Return how many emails are in no mailbox, described or not."""
        row = self._connection.execute(
            "SELECT count(*) FROM mailbox JOIN membership ON mailbox = mailbox.number"
            " WHERE mailbox.id = ? AND email NOT IN (SELECT email FROM undescribed)",
            (UNFILED,),
        ).fetchone()
        return int(row[0])

    def total_size(self) -> int:
        """Return the sum of the sizes of all files; this reads the whole table."""
        # `sum` fails if the sizes that a server states exceed 63 bits together.
        row = self._connection.execute("SELECT CAST(total(size) AS INTEGER) FROM file").fetchone()
        return int(row[0])


def decode_json(value: bytes, type_: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """Decode a value of the table `meta`. Bytes that cannot be decoded count as damage."""
    try:
        return msgspec.json.decode(value, type=type_)
    except UNDECODABLE as error:
        raise damage_error(f"damaged: {error}") from error
