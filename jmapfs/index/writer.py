"""Writing the index: transactions, and what may be done within one.

Everything that belongs together goes into one `transaction`, the state it leads to included: a
reader, or the next start after a crash, sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from jmapfs.index import emails, mailboxes
from jmapfs.index.metadata import (
    read_listing_progress,
    read_state,
    write_listing_progress,
    write_state,
)
from jmapfs.index.rows import AccountState, EmailRecord, ListingProgress, MailboxRecord
from jmapfs.sqlite import IndexConnection


class IndexWriter(IndexConnection):
    """The one writer of an index; use it from one thread at a time, within the account's lock.

    Every method may raise sqlite3.Error, which leaves the transaction undone.
    """

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all that is written within one durable step, or nothing of it."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # After some errors (a full disk) SQLite has undone it by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def state(self) -> AccountState:
        """Return the state that the index holds."""
        return read_state(self._connection)

    def set_state(self, state: AccountState) -> None:
        """Store the state that what was written leads to."""
        write_state(self._connection, state)

    def listing_progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""
        return read_listing_progress(self._connection)

    def begin_listing(self, progress: ListingProgress) -> None:
        """Begin to list all emails: from here on it is noted which ones were named."""
        self._connection.execute("UPDATE email SET seen = 0 WHERE seen")
        write_listing_progress(self._connection, progress)

    def set_listing_progress(self, progress: ListingProgress) -> None:
        """Note how far the listing has come."""
        write_listing_progress(self._connection, progress)

    def end_listing(self) -> None:
        """End the listing."""
        write_listing_progress(self._connection, None)

    def unlisted_emails(self) -> list[str]:
        """Return the ids of the emails that were not put since `begin_listing`."""
        return [row[0] for row in self._connection.execute("SELECT id FROM email WHERE NOT seen")]

    def put_emails(self, records: Iterable[EmailRecord]) -> None:
        """Add emails, or bring those that are known to what the records say.

        One that was noted as gone is there again.
        """
        records = list(records)
        emails.put(self._connection, records)
        self._connection.executemany(
            "DELETE FROM departure WHERE email_id = ?", [(record.id,) for record in records]
        )

    def remove_emails(self, email_ids: Iterable[str]) -> None:
        """Remove emails; ids that are not known are passed over."""
        emails.remove(self._connection, email_ids)

    def add_pending_removals(self, email_ids: Iterable[str]) -> None:
        """Note emails that `apply_pending_removals` will remove, also after a restart."""
        self._connection.executemany(
            "INSERT OR IGNORE INTO departure (email_id) VALUES (?)",
            [(email_id,) for email_id in email_ids],
        )

    def has_pending_removals(self) -> bool:
        """Say whether emails are noted for removal: a chain of changes was not finished."""
        return self._connection.execute("SELECT 1 FROM departure LIMIT 1").fetchone() is not None

    def apply_pending_removals(self) -> None:
        """Remove the emails that were noted."""
        rows = self._connection.execute("SELECT email_id FROM departure").fetchall()
        emails.remove(self._connection, [row[0] for row in rows])
        self._connection.execute("DELETE FROM departure")

    def replace_mailboxes(self, records: Sequence[MailboxRecord]) -> list[str]:
        """Bring the mailboxes to a complete list of them; return the ids it no longer has.

        These are still there, for `retire_mailboxes`, once their emails are known to be elsewhere.
        """
        return mailboxes.replace(self._connection, records)

    def put_mailboxes(self, records: Iterable[MailboxRecord]) -> None:
        """Add mailboxes, or bring those that are known to what the records say."""
        mailboxes.put(self._connection, records)

    def retire_mailboxes(self, mailbox_ids: Iterable[str]) -> None:
        """Remove mailboxes that are empty; one that is not stays, as one that nobody describes."""
        mailboxes.retire(self._connection, mailbox_ids)

    def orphaned_emails(self) -> list[str]:
        """Return the ids of the emails that are in mailboxes which the server does not describe."""
        return mailboxes.orphaned_emails(self._connection)

    def correct_size(self, blob_id: str, size: int) -> list[int]:
        """Store the true size of a blob, in bytes; return the inodes of its files.

        It outlives what the server says of the size in later listings.
        """
        return emails.correct_size(self._connection, blob_id, size)

    def settle_inodes(self) -> None:
        """Resolve collisions of inodes as if all emails had come at once.

        For the end of a first listing: pages come in an order that the server chooses.
        """
        emails.settle(self._connection)

    def checkpoint(self) -> None:
        """Move what was committed from the log to the index file, and empty the log."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
