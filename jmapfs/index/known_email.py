"""What the index knows of an email, to be compared with what the server sends."""

import sqlite3
from typing import Final, NamedTuple

from jmapfs.index.checksums import verify
from jmapfs.index.schema import UNFILED, columns_sql
from jmapfs.jmap.types import Email, unix_seconds
from jmapfs.names import email_stem

_MAILBOXES: Final = """
SELECT mailbox.id FROM membership JOIN mailbox ON mailbox.number = membership.mailbox
WHERE email = :email AND mailbox.id != :unfiled
UNION SELECT mailbox_id FROM undescribed WHERE email = :email
"""

_KNOWN_EMAIL: Final = f"""
SELECT {columns_sql("email")}, {columns_sql("file")}
FROM email LEFT JOIN file ON file.inode = email.inode WHERE id = ?
"""  # noqa: S608 - constants


class KnownEmail(NamedTuple):
    """An email in the index.

    `size` is the size of the content. `stated` is the size that the server states, or UNKNOWN_SIZE.
    """

    number: int
    inode: int
    stem: str
    blob_id: str
    received_at: int
    size: int
    stated: int


def mailbox_ids(connection: sqlite3.Connection, email: int) -> set[str]:
    """Return the ids of the mailboxes that an email is in; `email` is its number."""
    rows = connection.execute(_MAILBOXES, {"email": email, "unfiled": UNFILED})
    return {mailbox_id for (mailbox_id,) in rows}


def known_email(connection: sqlite3.Connection, email_id: str) -> KnownEmail | None:
    """Return the email with that id in the index, or None."""
    row = connection.execute(_KNOWN_EMAIL, (email_id,)).fetchone()
    if row is None:
        return None
    number, _, inode, _, stem, *_ = row
    verify(row[:7], row[7])
    verify(row[8:14], row[14])
    _, blob_id, received, size, _, stated = row[8:14]
    return KnownEmail(
        number, inode, stem, blob_id, received, size, size if stated is None else stated
    )


def stem_of(email: Email) -> str:
    """Return the stem of the names of an email."""
    sender = email.from_[0] if email.from_ else None
    return email_stem(
        received_at=received_at(email),
        sender_name=sender.name if sender else None,
        sender=sender.email if sender else None,
        subject=email.subject,
        blob=email.blob_id,
    )


def received_at(email: Email) -> int:
    """Return when the server received an email, in whole seconds since 1970."""
    return unix_seconds(email.received_at)
