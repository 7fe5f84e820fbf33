"""The ids of a listing, and the emails that cannot be shown (bad emails).

A listing first stores all ids, then fetches their emails. So an interrupted listing continues with
the ids that are not fetched yet. The bad emails of a listing replace the earlier ones at its end.
The caller begins and commits the transactions.
"""

import sqlite3
import time
from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from jmapfs.index.checksums import verify_rows
from jmapfs.index.schema import columns_sql
from jmapfs.jmap.types import BadEmail
from jmapfs.sqlite import damage_error

_PUT_BAD: Final = """
INSERT INTO bad_email (email_id, reason, since, mailbox_ids) VALUES (?, ?, ?, ?)
ON CONFLICT (email_id) DO UPDATE SET
    reason = excluded.reason,
    mailbox_ids = iif(excluded.mailbox_ids = '[]', mailbox_ids, excluded.mailbox_ids)
"""

# The WHERE clause tells SQLite's parser that ON does not belong to a join.
_PUT_BAD_OF_LISTING: Final = """
INSERT INTO bad_email (email_id, reason, since, mailbox_ids)
SELECT email_id, reason, ?, ifnull(mailbox_ids, '[]') FROM listed WHERE reason IS NOT NULL
ON CONFLICT (email_id) DO UPDATE SET reason = excluded.reason, mailbox_ids = excluded.mailbox_ids
"""


class ListedIds:
    """The ids of the current listing, each with whether its email is fetched."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def begin(self, email_ids: Iterable[str]) -> None:
        """Store the ids of a new listing. Their numbers are 1, 2, 3 and so on."""
        self._connection.execute("DELETE FROM listed")
        self._connection.executemany(
            "INSERT INTO listed (number, email_id) VALUES (?, ?)", enumerate(email_ids, 1)
        )

    def pending(self) -> list[tuple[int, str]]:
        """Return the ids that are not fetched yet, with their numbers, in order."""
        # All rows are verified: an email that is said to be fetched would never be asked for.
        rows = self._connection.execute(
            f"SELECT {columns_sql('listed')} FROM listed ORDER BY number"  # noqa: S608 - constants
        ).fetchall()
        verify_rows([row[:-1] for row in rows], [row[-1] for row in rows])
        if any(row[0] != number for number, row in enumerate(rows, 1)):
            raise damage_error("ids of the listing are missing")
        return [(number, email_id) for number, email_id, fetched, *_ in rows if not fetched]

    def mark_fetched(self, numbers: range, bad: Iterable[BadEmail]) -> None:
        """Store that the emails with these numbers are fetched, and which of them are bad."""
        self._connection.execute(
            "UPDATE listed SET fetched = 1 WHERE number BETWEEN ? AND ?", (numbers[0], numbers[-1])
        )
        self._connection.executemany(
            "UPDATE listed SET reason = ?, mailbox_ids = ? WHERE email_id = ?",
            ((one.reason, _encoded(one.mailbox_ids), one.id) for one in bad),
        )

    def end(self) -> None:
        """Replace the bad emails by those of this listing, and forget the listing."""
        self._connection.execute(
            "DELETE FROM bad_email WHERE email_id NOT IN"
            " (SELECT email_id FROM listed WHERE reason IS NOT NULL)"
        )
        self._connection.execute(_PUT_BAD_OF_LISTING, (time.time(),))
        self._connection.execute("DELETE FROM listed")


class BadEmails:
    """The emails that the account has, but that cannot be shown."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def ids(self) -> list[str]:
        """Return the ids of the emails to be requested again, including those still shown."""
        return [id_ for (id_,) in self._connection.execute("SELECT email_id FROM bad_email")]

    def put(self, bad: Iterable[BadEmail]) -> None:
        """Store bad emails; they keep the time at which they were found first."""
        now = time.time()
        self._connection.executemany(
            _PUT_BAD, ((one.id, one.reason, now, _encoded(one.mailbox_ids)) for one in bad)
        )

    def remove(self, email_ids: Iterable[str]) -> None:
        """Forget bad emails; unknown ids are ignored."""
        if self._connection.execute("SELECT 1 FROM bad_email LIMIT 1").fetchone() is None:
            return
        self._connection.executemany(
            "DELETE FROM bad_email WHERE email_id = ?", ((email_id,) for email_id in email_ids)
        )


def _encoded(mailbox_ids: Collection[str]) -> str:
    return msgspec.json.encode(sorted(mailbox_ids)).decode()
