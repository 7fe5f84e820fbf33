"""All emails of an account, in order, with everything that is known of them: for copies of it.

The order is that of receipt, then of blob id, then of email id. It is read in pages that end with
a whole second, so that a page can be sorted by itself: inodes grow with the second of receipt.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from jmapfs.names import inode_slot

_EMAILS: Final = """
SELECT email.number, email.id, thread_id, inode, blob_id, received_at, size
FROM file JOIN email USING (inode) WHERE inode BETWEEN ? AND ?
ORDER BY received_at, blob_id, email.id
"""


@dataclass(frozen=True, slots=True)
class MailRow:
    """An email: `size` in bytes, `received_at` in seconds since 1970 (UTC).

    `names` are its file names, each with the number of the mailbox it is in.
    """

    email_id: str
    thread_id: str
    blob_id: str
    received_at: int
    size: int
    keywords: tuple[str, ...]
    names: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class MailPage:
    """Some emails in order; `last` is the inode after which the next page begins, or None."""

    rows: list[MailRow]
    last: int | None


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """The blob of an email, whose `number` says when the email came into the index."""

    number: int
    blob_id: str
    size: int
    received_at: int


def listed_after(connection: sqlite3.Connection, number: int, count: int) -> list[ListedBlob]:
    """Return the blobs of emails in the order in which these came into the index."""
    rows = connection.execute(
        "SELECT number, blob_id, size, received_at FROM email JOIN file USING (inode)"
        " WHERE number > ? ORDER BY number LIMIT ?",
        (number, count),
    )
    return [ListedBlob(*row) for row in rows]


def page_after(connection: sqlite3.Connection, inode: int, count: int) -> MailPage:
    """Return the emails whose inodes come after `inode`: some `count` files, up to a whole second.

    Beyond what inodes can tell apart (before 1970, after 2105) a second is all of that time.
    """
    bounds = connection.execute(
        "SELECT inode, received_at FROM file WHERE inode > ? ORDER BY inode LIMIT 1 OFFSET ?",
        (inode, count - 1),
    ).fetchone()
    last = inode_slot(bounds[1]).stop - 1 if bounds else None
    first, end = inode + 1, (1 << 63) - 1 if last is None else last
    names: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for email, mailbox, name in connection.execute(
        "SELECT email, mailbox, name FROM membership WHERE inode BETWEEN ? AND ?", (first, end)
    ):
        names[email].append((mailbox, name))
    keywords: defaultdict[int, list[str]] = defaultdict(list)
    for email, keyword in connection.execute(
        "SELECT email, keyword FROM email JOIN keyword ON keyword.email = email.number"
        " WHERE inode BETWEEN ? AND ?",
        (first, end),
    ):
        keywords[email].append(keyword)
    rows = [
        MailRow(
            email_id,
            thread_id,
            blob_id,
            received_at,
            size,
            tuple(sorted(keywords[number])),
            tuple(names[number]),
        )
        for number, email_id, thread_id, _, blob_id, received_at, size in connection.execute(
            _EMAILS, (first, end)
        )
    ]
    return MailPage(rows, last)
