"""Emails in the index: the files they are, and the names these have in the mailboxes.

Which inode a file gets, where two would get the same.

The number comes from time of receipt and blob (see `names.inode`). Two blobs of one second meet
about once in 2^24 pairs: the later one is given its next choice. A listing settles such meetings
in the order of the blob ids, so that every listing of the same account ends alike.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from jmapfs.index import journal, mailboxes
from jmapfs.index.rows import EmailRecord
from jmapfs.inodes import email_inode, inode_range
from jmapfs.names import numbered_name


def allocate(connection: sqlite3.Connection, blob_id: str, received_at: int, size: int) -> int:
    """Insert a file and return its inode: the first of its choices that is free."""
    attempt = 0
    while True:
        inode = email_inode(blob_id, received_at, attempt=attempt)
        inserted = connection.execute(
            "INSERT INTO file (inode, blob_id, received_at, size, attempt) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (inode) DO NOTHING",
            (inode, blob_id, received_at, size, attempt),
        )
        if inserted.rowcount:
            return inode
        attempt += 1


def settle(connection: sqlite3.Connection) -> None:
    """Give the files of every second in which inodes met their numbers in order of the blob ids."""
    slots = {
        inode_range(received_at)
        for (received_at,) in connection.execute("SELECT received_at FROM file WHERE attempt > 0")
    }
    for slot in slots:
        _settle_slot(connection, slot)


def _settle_slot(connection: sqlite3.Connection, slot: range) -> None:
    files = connection.execute(
        "SELECT inode, blob_id, received_at, size FROM file WHERE inode BETWEEN ? AND ?"
        " ORDER BY blob_id, received_at",
        (slot[0], slot[-1]),
    ).fetchall()
    connection.execute("DELETE FROM file WHERE inode BETWEEN ? AND ?", (slot[0], slot[-1]))
    moved = []
    for inode, blob_id, received_at, size in files:
        settled = allocate(connection, blob_id, received_at, size)
        if settled != inode:
            moved.append((settled, inode))
    for table in ("email", "membership"):
        # By way of negative numbers: one file's new number may be another's old one.
        statement = f"UPDATE {table} SET inode = ? WHERE inode = ?"  # noqa: S608
        connection.executemany(statement, [(-settled, inode) for settled, inode in moved])
        connection.executemany(statement, [(settled, -settled) for settled, _ in moved])
    # The rows of `file` are new, and no name came or went by which links would be counted.
    connection.execute(
        "UPDATE file SET links = (SELECT count(*) FROM membership AS m WHERE m.inode = file.inode)"
        " WHERE inode BETWEEN ? AND ?",
        (slot[0], slot[-1]),
    )


# A mailbox's digest becomes the nanoseconds of its directory's mtime.
_DIGEST_MODULUS: Final = 1_000_000_000


class _Batch:
    """One call's work: what is looked up once, and digests to be written at its end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.corrections: dict[str, int] = dict(
            connection.execute("SELECT blob_id, size FROM correction")
        )
        self._mailbox_numbers: dict[str, int] = {}
        self._journal: list[tuple[int, str, int]] = []
        self._digests: defaultdict[int, int] = defaultdict(int)

    def mailbox_number(self, mailbox_id: str) -> int:
        number = self._mailbox_numbers.get(mailbox_id)
        if number is None:
            number = mailboxes.number(self.connection, mailbox_id)
            self._mailbox_numbers[mailbox_id] = number
        return number

    def add_name(self, mailbox: int, stem: str, email: int, inode: int) -> None:
        number = 1
        while True:
            name = numbered_name(stem, number)
            inserted = self.connection.execute(
                "INSERT INTO membership (mailbox, name, email, inode) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (mailbox, name) DO NOTHING",
                (mailbox, name, email, inode),
            )
            if inserted.rowcount:
                self._digests[mailbox] += zlib.crc32(name.encode())
                self._journal.append((mailbox, name, inode))
                return
            number += 1

    def remove_name(self, mailbox: int, stem: str, name: str, inode: int) -> None:
        """Remove a name; the last of several copies takes its place, so that no gap is left."""
        self.connection.execute(
            "DELETE FROM membership WHERE mailbox = ? AND name = ?", (mailbox, name)
        )
        number = 1
        while numbered_name(stem, number) != name:
            number += 1
        last = name
        while self._has(mailbox, candidate := numbered_name(stem, number + 1)):
            last = candidate
            number += 1
        if last != name:
            self.connection.execute(
                "UPDATE membership SET name = ? WHERE mailbox = ? AND name = ?",
                (name, mailbox, last),
            )
        self._digests[mailbox] -= zlib.crc32(last.encode())
        self._journal += [(mailbox, gone, inode) for gone in {name, last}]

    def finish(self) -> None:
        self.connection.executemany(
            "UPDATE mailbox SET digest = ((digest + ?) % ? + ?) % ? WHERE number = ?",
            [
                (delta, _DIGEST_MODULUS, _DIGEST_MODULUS, _DIGEST_MODULUS, mailbox)
                for mailbox, delta in self._digests.items()
            ],
        )
        journal.write(self.connection, self._journal)

    def _has(self, mailbox: int, name: str) -> bool:
        found = self.connection.execute(
            "SELECT 1 FROM membership WHERE mailbox = ? AND name = ?", (mailbox, name)
        ).fetchone()
        return found is not None


def put(connection: sqlite3.Connection, records: Iterable[EmailRecord]) -> None:
    """Add emails, or bring those that are known to what the records say."""
    batch = _Batch(connection)
    for record in records:
        known = connection.execute(
            "SELECT number, inode, stem FROM email WHERE id = ?", (record.id,)
        ).fetchone()
        if known is None:
            _insert(batch, record)
            continue
        number, inode, stem = known
        if inode != _known_inode(batch, record):
            # RFC 8621 §4.1 has blobId and receivedAt immutable: this is another email.
            _remove(batch, number, inode)
            _insert(batch, record)
            continue
        connection.execute("UPDATE email SET seen = 1 WHERE number = ?", (number,))
        _update_names(batch, record, number, inode, stem)
        _update_keywords(connection, record, number)
    batch.finish()


def remove(connection: sqlite3.Connection, email_ids: Iterable[str]) -> None:
    """Remove emails; ids that are not known are passed over."""
    batch = _Batch(connection)
    for email_id in email_ids:
        known = connection.execute(
            "SELECT number, inode FROM email WHERE id = ?", (email_id,)
        ).fetchone()
        if known is not None:
            _remove(batch, *known)
    batch.finish()


def correct_size(connection: sqlite3.Connection, blob_id: str, size: int) -> list[int]:
    """Store the true size of a blob; return the inodes of its files."""
    connection.execute(
        "INSERT OR REPLACE INTO correction (blob_id, size) VALUES (?, ?)", (blob_id, size)
    )
    connection.execute("UPDATE file SET size = ? WHERE blob_id = ?", (size, blob_id))
    corrected = [
        row[0] for row in connection.execute("SELECT inode FROM file WHERE blob_id = ?", (blob_id,))
    ]
    journal.write(connection, [(0, "", inode) for inode in corrected])
    return corrected


def _insert(batch: _Batch, record: EmailRecord) -> None:
    connection = batch.connection
    inode = _known_inode(batch, record)
    if inode is None:
        size = batch.corrections.get(record.blob_id, record.size)
        inode = allocate(connection, record.blob_id, record.received_at, size)
    number = connection.execute(
        "INSERT INTO email (id, inode, thread_id, stem, seen) VALUES (?, ?, ?, ?, 1)",
        (record.id, inode, record.thread_id, record.stem),
    ).lastrowid
    assert number is not None  # noqa: S101 - for the type checker: it was an INSERT
    for mailbox_id in record.mailbox_ids:
        batch.add_name(batch.mailbox_number(mailbox_id), record.stem, number, inode)
    connection.executemany(
        "INSERT OR IGNORE INTO keyword (email, keyword) VALUES (?, ?)",
        [(number, keyword) for keyword in record.keywords],
    )


def _known_inode(batch: _Batch, record: EmailRecord) -> int | None:
    row = batch.connection.execute(
        "SELECT inode FROM file WHERE blob_id = ? AND received_at = ?",
        (record.blob_id, record.received_at),
    ).fetchone()
    return int(row[0]) if row else None


def _update_names(batch: _Batch, record: EmailRecord, number: int, inode: int, stem: str) -> None:
    names = dict(
        batch.connection.execute("SELECT mailbox, name FROM membership WHERE email = ?", (number,))
    )
    wanted = {batch.mailbox_number(mailbox_id) for mailbox_id in record.mailbox_ids}
    for mailbox in names.keys() - wanted:
        batch.remove_name(mailbox, stem, names[mailbox], inode)
    for mailbox in wanted - names.keys():
        batch.add_name(mailbox, stem, number, inode)


def _update_keywords(connection: sqlite3.Connection, record: EmailRecord, number: int) -> None:
    known = {
        row[0]
        for row in connection.execute("SELECT keyword FROM keyword WHERE email = ?", (number,))
    }
    wanted = set(record.keywords)
    connection.executemany(
        "DELETE FROM keyword WHERE email = ? AND keyword = ?",
        [(number, keyword) for keyword in known - wanted],
    )
    connection.executemany(
        "INSERT INTO keyword (email, keyword) VALUES (?, ?)",
        [(number, keyword) for keyword in wanted - known],
    )


def _remove(batch: _Batch, number: int, inode: int) -> None:
    connection = batch.connection
    stem = connection.execute("SELECT stem FROM email WHERE number = ?", (number,)).fetchone()[0]
    names = connection.execute(
        "SELECT mailbox, name FROM membership WHERE email = ?", (number,)
    ).fetchall()
    for mailbox, name in names:
        batch.remove_name(mailbox, stem, name, inode)
    connection.execute("DELETE FROM keyword WHERE email = ?", (number,))
    connection.execute("DELETE FROM email WHERE number = ?", (number,))
    if connection.execute("SELECT 1 FROM email WHERE inode = ?", (inode,)).fetchone() is None:
        connection.execute("DELETE FROM file WHERE inode = ?", (inode,))
