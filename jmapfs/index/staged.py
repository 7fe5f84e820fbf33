"""A new listing of an account whose emails are in the index already: staged, compared, applied.

While the account is listed, the tree stays as it is. An email that is the same in the index is
marked as `seen`. Every other listed email becomes a row of the table `staged`. So memory is needed
for one page only, and the comparison is done in SQL. One transaction applies all of it.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from jmapfs.index.checksums import verify_rows
from jmapfs.index.email_batch import EmailBatch
from jmapfs.index.known_email import (
    KnownEmail,
    known_email,
    mailbox_ids,
    received_at,
    stem_of,
)
from jmapfs.index.rows import may_be_same_time
from jmapfs.index.schema import UNKNOWN_SIZE, columns_sql
from jmapfs.jmap.types import Email, decode
from jmapfs.sqlite import damage_error

_ROWS: Final = 1000

# A file is kept if an email with its blob and time of receipt was listed. After a reset the size
# must be the same too.
_COUNT_GONE: Final = """
SELECT count(*) FROM file WHERE
    NOT EXISTS (SELECT 1 FROM email WHERE email.inode = file.inode AND seen)
    AND NOT EXISTS (
        SELECT 1 FROM staged
        WHERE staged.blob_id = file.blob_id AND staged.received_at = file.received_at
        AND (NOT :reset OR staged.size = ifnull(file.stated, file.size))
    )
"""

_LISTED_COUNTS: Final = """
SELECT mailbox_id, count(*) FROM (
    SELECT mailbox.id AS mailbox_id FROM email
    JOIN membership ON membership.email = email.number
    JOIN mailbox ON mailbox.number = membership.mailbox WHERE seen
    UNION ALL
    SELECT key AS mailbox_id FROM staged, json_each(staged.email, '$.mailboxIds')
    UNION ALL
    SELECT value AS mailbox_id FROM listed, json_each(listed.mailbox_ids) WHERE reason IS NOT NULL
) GROUP BY mailbox_id
"""


class StagedEmails:
    """The emails of a new listing. The caller begins and commits the transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def begin(self) -> None:
        """Begin a new listing."""
        self._connection.execute("DELETE FROM staged")
        self._connection.execute("UPDATE email SET seen = 0 WHERE seen")

    def add(self, emails: Iterable[Email], *, reuse_proves_reset: bool) -> None:
        """Stage listed emails. The tree is not changed.

        If `reuse_proves_reset`, an email id with other immutable properties counts as reused.
        """
        for email in emails:
            known = known_email(self._connection, email.id)
            if known is not None and self._is_same(known, email):
                self._connection.execute(
                    "UPDATE email SET seen = 1 WHERE number = ?", (known.number,)
                )
                self._connection.execute("DELETE FROM staged WHERE email_id = ?", (email.id,))
                continue
            reused = reuse_proves_reset and is_reused(self._connection, known, email)
            self._connection.execute(
                "INSERT OR REPLACE INTO staged"
                " (email_id, blob_id, received_at, size, reused, email) VALUES (?, ?, ?, ?, ?, ?)",
                (email.id, email.blob_id, received_at(email), email.size, reused, _encoded(email)),
            )

    def keep(self, email_ids: Iterable[str]) -> None:
        """Keep emails of the tree as they are, unless the server was reset."""
        self._connection.executemany(
            "UPDATE email SET seen = 1 WHERE id = ?", ((email_id,) for email_id in email_ids)
        )

    def unlisted(self, after: str, count: int) -> list[str]:
        """Return the ids of `count` emails of the tree that were not listed, in order of ids."""
        rows = self._connection.execute(
            "SELECT id FROM email WHERE id > ? AND NOT seen"
            " AND NOT EXISTS (SELECT 1 FROM staged WHERE email_id = email.id)"
            " AND NOT EXISTS (SELECT 1 FROM listed WHERE email_id = email.id)"
            " ORDER BY id LIMIT ?",
            (after, count),
        )
        return [email_id for (email_id,) in rows]

    def listed_counts(self) -> dict[str, int]:
        """Return how many listed emails each mailbox has, by mailbox id."""
        return dict(self._connection.execute(_LISTED_COUNTS))

    def is_copy(self, email: Email) -> bool:
        """Return whether the blob of an email is listed under another id in the same mailboxes."""
        others: list[set[str]] = [
            mailbox_ids(self._connection, number)
            for (number,) in self._connection.execute(
                "SELECT number FROM file JOIN email USING (inode)"
                " WHERE blob_id = ? AND id != ? AND seen",
                (email.blob_id, email.id),
            ).fetchall()
        ]
        others += [
            set(_decoded(text).mailbox_ids)
            for (text,) in self._connection.execute(
                "SELECT email FROM staged WHERE blob_id = ? AND email_id != ?",
                (email.blob_id, email.id),
            )
        ]
        return any(email.mailbox_ids <= other for other in others)

    def has_reused_ids(self) -> bool:
        """Return whether the server uses an email id again for another email."""
        row = self._connection.execute("SELECT 1 FROM staged WHERE reused LIMIT 1").fetchone()
        return row is not None

    def count_gone(self, *, reset: bool) -> tuple[int, int]:
        """Return how many files of the tree are gone, and how many there are."""
        (gone,) = self._connection.execute(_COUNT_GONE, {"reset": reset}).fetchone()
        (total,) = self._connection.execute("SELECT count(*) FROM file").fetchone()
        return gone, total

    def apply(self, *, reset: bool) -> None:
        """Make the tree contain exactly the listed emails.

        After a `reset`, equal ids do not mean equal emails: emails that differ are removed before
        the listed emails are inserted, and confirmed sizes are forgotten.
        """
        if reset:
            self._connection.execute("DELETE FROM confirmed")
            self._connection.execute("DELETE FROM unconfirmed")
            self._connection.execute(
                "UPDATE file SET size = stated, stated = NULL WHERE stated IS NOT NULL"
                " AND stated != ?",
                (UNKNOWN_SIZE,),
            )
            # The old values of a bad email may be those of another email.
            self._connection.execute(
                "UPDATE email SET seen = 0"
                " WHERE id IN (SELECT email_id FROM listed WHERE reason IS NOT NULL)"
            )
            self.remove_unseen()
        for emails in self._staged():
            batch = EmailBatch(self._connection)
            for email in emails:
                batch.put(email)
            batch.finish()
        self.remove_unseen()
        # The listing has every email that exists.
        self._connection.execute("DELETE FROM departure")
        self._connection.execute("DELETE FROM staged")

    def _is_same(self, known: KnownEmail, email: Email) -> bool:
        """Return whether the index has this email with the same mailboxes and keywords."""
        if (known.blob_id, known.received_at, known.stated, known.stem) != (
            email.blob_id,
            received_at(email),
            email.size,
            stem_of(email),
        ):
            return False
        if mailbox_ids(self._connection, known.number) != set(email.mailbox_ids):
            return False
        keywords = self._connection.execute(
            "SELECT keyword FROM keyword WHERE email = ?", (known.number,)
        )
        return {keyword for (keyword,) in keywords} == set(email.keywords)

    def _staged(self) -> Iterator[Sequence[Email]]:
        # A row that is lost would remove its email from the tree. SQLite's index shows that.
        (result,) = self._connection.execute("PRAGMA integrity_check('staged')").fetchone()
        if result != "ok":
            raise damage_error(str(result))
        number = 0
        while rows := self._connection.execute(
            f"SELECT {columns_sql('staged')} FROM staged WHERE number > ? ORDER BY number LIMIT ?",  # noqa: S608 - constants
            (number, _ROWS),
        ).fetchall():
            verify_rows([row[:-1] for row in rows], [row[-1] for row in rows])
            yield [_decoded(row[-2]) for row in rows]
            number = rows[-1][0]

    def remove_unseen(self) -> None:
        """Remove the emails of the tree that are not marked as seen."""
        while rows := self._connection.execute(
            "SELECT id FROM email WHERE NOT seen LIMIT ?", (_ROWS,)
        ).fetchall():
            batch = EmailBatch(self._connection)
            for (email_id,) in rows:
                batch.remove(email_id)
            batch.finish()


def is_reused(connection: sqlite3.Connection, known: KnownEmail | None, email: Email) -> bool:
    """Return whether an email id that the index knows stands for another email now.

    `blobId`, `receivedAt`, `size` and the header fields of an email never change (RFC 8621
    §4.1.1). Of the header fields, the index has the stem of the name.
    """
    if known is None:
        return _is_blob_reused(connection, email)
    received = received_at(email)
    if known.blob_id != email.blob_id or not may_be_same_time(known.received_at, received):
        return True
    # The stem contains the time.
    if known.received_at == received and _ascii(known.stem) != _ascii(stem_of(email)):
        return True
    if known.stated == UNKNOWN_SIZE or email.size in {known.stated, known.size}:
        # The server states the same size, or it has corrected a wrong one.
        return False
    # A server may state two sizes for two emails with one blob. The index has only one of them.
    (emails,) = connection.execute(
        "SELECT count(*) FROM email WHERE inode = ?", (known.inode,)
    ).fetchone()
    return bool(emails == 1)


def _is_blob_reused(connection: sqlite3.Connection, email: Email) -> bool:
    """Return whether an email with the same blob and time of receipt has other header fields."""
    row = connection.execute(
        "SELECT stem FROM file JOIN email USING (inode)"
        " WHERE blob_id = ? AND received_at = ? LIMIT 1",
        (email.blob_id, received_at(email)),
    ).fetchone()
    return row is not None and _ascii(row[0]) != _ascii(stem_of(email))


def _encoded(email: Email) -> str:
    document = msgspec.to_builtins(email)
    for name in ("mailboxIds", "keywords"):
        document[name] = dict.fromkeys(document[name], True)
    return msgspec.json.encode(document).decode()


def _decoded(text: str) -> Email:
    return decode(text.encode(), Email, "a staged email")


def _ascii(stem: str) -> bytes:
    # Which other characters a stem has depends on the version of Unicode.
    return stem.encode("ascii", "ignore")
