"""Writing emails into the index: their names, mailboxes and keywords, and the journal of changes.

An email in no mailbox is in the mailbox UNFILED. A mailbox that the server has not described gets a
row without a name. If the server still does not describe it when asked again, the emails leave it
(`file_again`): those that are in no other mailbox are in UNFILED until it is described.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from jmapfs.errors import ProtocolError
from jmapfs.index.checksums import (
    DIGEST_MODULUS,
    name_digest,
    names_digest,
    verify_rows,
)
from jmapfs.index.file_inodes import put_file, remove_unused_file
from jmapfs.index.known_email import known_email, mailbox_ids, received_at, stem_of
from jmapfs.index.schema import UNFILED
from jmapfs.jmap.answers import MOST_MAILBOXES
from jmapfs.jmap.types import Email
from jmapfs.names import name_number, numbered_name
from jmapfs.sqlite import damage_error

_UNFILED_NAME: Final = "unfiled"

# Emails may be in mailboxes that the server describes later, or never.
_MOST_MAILBOX_ROWS: Final = 2 * MOST_MAILBOXES

_MISFILED: Final = """
SELECT email.number, inode, stem FROM undescribed
JOIN mailbox ON mailbox.id = mailbox_id AND known
JOIN email ON email.number = undescribed.email
"""
_ORPHANED: Final = """
SELECT email.number, email.inode, stem FROM mailbox
JOIN membership ON membership.mailbox = mailbox.number
JOIN email ON email.number = membership.email
WHERE NOT known AND mailbox.name = '' AND mailbox.id != :unfiled
"""
_JOURNAL_ROWS: Final = 100_000  # an ordinary account has this many changes in about a month


class EmailBatch:
    """Changes to several emails in one transaction; call `finish` at the end of the transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # The confirmed sizes, by blob id and stated size.
        rows = connection.execute(
            "SELECT blob_id, size, stated, checksum FROM confirmed"
        ).fetchall()
        verify_rows([row[:-1] for row in rows], [row[-1] for row in rows])
        self._confirmed = {(blob_id, stated): size for blob_id, size, stated, _ in rows}
        self._mailbox_numbers: dict[str, int] = {}
        self._journal: list[tuple[int, str, int]] = []
        self._digests: defaultdict[int, int] = defaultdict(int)

    def put_all(self, emails: Iterable[Email]) -> None:
        """Insert or update emails. One statement finds out which are known."""
        emails = list(emails)
        ids = msgspec.json.encode([email.id for email in emails]).decode()
        known = {
            email_id
            for (email_id,) in self._connection.execute(
                "SELECT value FROM json_each(?) WHERE value IN (SELECT id FROM email)", (ids,)
            )
        }
        for email in emails:
            if email.id in known:
                self.put(email)
            else:
                self._insert(email)
                known.add(email.id)

    def put(self, email: Email) -> None:
        """Insert an email, or update its mailboxes and keywords."""
        known = known_email(self._connection, email.id)
        if known is None:
            self._insert(email)
            return
        if (known.blob_id, known.received_at) != (email.blob_id, received_at(email)):
            # blobId and receivedAt are immutable (RFC 8621 §4.1), so this is a different email.
            self._remove(known.number, known.inode, known.stem)
            self._insert(email)
            return
        self._connection.execute("UPDATE email SET seen = 1 WHERE number = ?", (known.number,))
        if known.stated != email.size:
            self._update_size(email, known.inode)
        self._update_names(email, known.number, known.inode, known.stem)
        self._update_keywords(email, known.number)

    def remove(self, email_id: str) -> None:
        """Remove an email; an unknown id is ignored."""
        known = self._connection.execute(
            "SELECT number, inode, stem FROM email WHERE id = ?", (email_id,)
        ).fetchone()
        if known is not None:
            self._remove(*known)

    def set_stated_size(self, email: Email) -> None:
        """Store only the size that the server states for an email."""
        known = known_email(self._connection, email.id)
        if known is not None and known.blob_id == email.blob_id and known.stated != email.size:
            self._update_size(email, known.inode)

    def file_again(self, *, orphaned: bool) -> bool:
        """Put emails into mailboxes that the server describes now; return whether there are any.

        If `orphaned`, also take emails out of the mailboxes that it has never described.
        """
        emails = self._connection.execute(_MISFILED).fetchall()
        if orphaned:
            emails += self._connection.execute(_ORPHANED, {"unfiled": UNFILED}).fetchall()
        for number, inode, stem in sorted(set(emails)):
            current = mailbox_ids(self._connection, number)
            undescribed = {
                mailbox_id
                for mailbox_id in current
                if self._connection.execute(
                    "SELECT 1 FROM mailbox WHERE id = ? AND (known OR name != '')", (mailbox_id,)
                ).fetchone()
                is None
            }
            self._set_undescribed(undescribed, number)
            self._set_mailboxes(current - undescribed, number, inode, stem)
        return bool(emails)

    def finish(self) -> None:
        """Write the digests of the mailboxes and the journal."""
        self._connection.executemany(
            "UPDATE mailbox SET digest = ((digest + ?) % ? + ?) % ? WHERE number = ?",
            [
                (delta, DIGEST_MODULUS, DIGEST_MODULUS, DIGEST_MODULUS, mailbox)
                for mailbox, delta in self._digests.items()
            ],
        )
        write_journal(self._connection, self._journal)

    def _insert(self, email: Email) -> None:
        received = received_at(email)
        inode = put_file(self._connection, email.blob_id, received, *self._sizes(email))
        stem = stem_of(email)
        number = self._connection.execute(
            "INSERT INTO email (id, inode, thread_id, stem, seen, keywords)"
            " VALUES (?, ?, ?, ?, 1, ?)",
            (email.id, inode, email.thread_id or "", stem, names_digest(email.keywords)),
        ).lastrowid
        assert number is not None  # noqa: S101 - for the type checker: it was an INSERT
        for mailbox_id in sorted(email.mailbox_ids or {UNFILED}):
            self._add_name(self._mailbox_number(mailbox_id), stem, number, inode)
        self._connection.executemany(
            "INSERT INTO keyword (email, keyword) VALUES (?, ?)",
            [(number, keyword) for keyword in sorted(email.keywords)],
        )

    def _remove(self, number: int, inode: int, stem: str) -> None:
        names = self._connection.execute(
            "SELECT mailbox, name FROM membership WHERE email = ?", (number,)
        ).fetchall()
        for mailbox, name in names:
            self._remove_name(mailbox, stem, name, inode)
        self._connection.execute("DELETE FROM keyword WHERE email = ?", (number,))
        self._connection.execute("DELETE FROM undescribed WHERE email = ?", (number,))
        self._connection.execute("DELETE FROM email WHERE number = ?", (number,))
        remove_unused_file(self._connection, inode)

    def _sizes(self, email: Email) -> tuple[int, int | None]:
        """Return the size of the content, and the stated size if it is another one."""
        confirmed = self._confirmed.get((email.blob_id, email.size))
        return (email.size, None) if confirmed is None else (confirmed, email.size)

    def _update_size(self, email: Email, inode: int) -> None:
        self._connection.execute(
            "UPDATE file SET size = ?, stated = ? WHERE inode = ?", (*self._sizes(email), inode)
        )
        self._connection.execute("DELETE FROM unconfirmed WHERE blob_id = ?", (email.blob_id,))
        self._journal.append((0, "", inode))

    def _update_names(self, email: Email, number: int, inode: int, stem: str) -> None:
        undescribed = {
            mailbox_id
            for (mailbox_id,) in self._connection.execute(
                "SELECT mailbox_id FROM undescribed WHERE email = ?", (number,)
            )
        }
        if undescribed:
            undescribed &= email.mailbox_ids
            self._set_undescribed(undescribed, number)
        self._set_mailboxes(email.mailbox_ids - undescribed, number, inode, stem)

    def _set_undescribed(self, undescribed: Iterable[str], number: int) -> None:
        self._connection.execute("DELETE FROM undescribed WHERE email = ?", (number,))
        self._connection.executemany(
            "INSERT INTO undescribed (email, mailbox_id) VALUES (?, ?)",
            [(number, mailbox_id) for mailbox_id in undescribed],
        )

    def _set_mailboxes(
        self, mailbox_ids: Collection[str], number: int, inode: int, stem: str
    ) -> None:
        names = dict(
            self._connection.execute(
                "SELECT mailbox, name FROM membership WHERE email = ?", (number,)
            )
        )
        current = {self._mailbox_number(each) for each in sorted(mailbox_ids or {UNFILED})}
        for mailbox in names.keys() - current:
            self._remove_name(mailbox, stem, names[mailbox], inode)
        for mailbox in current - names.keys():
            self._add_name(mailbox, stem, number, inode)

    def _update_keywords(self, email: Email, number: int) -> None:
        known = {
            keyword
            for (keyword,) in self._connection.execute(
                "SELECT keyword FROM keyword WHERE email = ?", (number,)
            )
        }
        current = set(email.keywords)
        if known == current:
            return
        self._connection.execute(
            "UPDATE email SET keywords = ? WHERE number = ?", (names_digest(current), number)
        )
        self._connection.executemany(
            "DELETE FROM keyword WHERE email = ? AND keyword = ?",
            [(number, keyword) for keyword in known - current],
        )
        self._connection.executemany(
            "INSERT INTO keyword (email, keyword) VALUES (?, ?)",
            [(number, keyword) for keyword in current - known],
        )

    def _mailbox_number(self, mailbox_id: str) -> int:
        """Return the number of a mailbox; add a row that is not `known` if the id is new."""
        if mailbox_id in self._mailbox_numbers:
            return self._mailbox_numbers[mailbox_id]
        row = self._connection.execute(
            "SELECT number FROM mailbox WHERE id = ?", (mailbox_id,)
        ).fetchone()
        if row is None:
            number = self._connection.execute(
                "INSERT INTO mailbox (id, name, known) VALUES (?, ?, 0)",
                (mailbox_id, _UNFILED_NAME if mailbox_id == UNFILED else ""),
            ).lastrowid
            assert number is not None  # noqa: S101 - for the type checker: it was an INSERT
            if number > _MOST_MAILBOX_ROWS:
                self._require_few_mailboxes()
            increment_layout_version(self._connection)
        else:
            number = int(row[0])
        self._mailbox_numbers[mailbox_id] = number
        return number

    def _require_few_mailboxes(self) -> None:
        (count,) = self._connection.execute("SELECT count(*) FROM mailbox").fetchone()
        if count > _MOST_MAILBOX_ROWS:
            raise ProtocolError(
                f"the emails of the account are in more than {_MOST_MAILBOX_ROWS:,} mailboxes,"
                " most of which the server does not describe"
            )

    def _add_name(self, mailbox: int, stem: str, email: int, inode: int) -> None:
        number = 1
        while True:
            name = numbered_name(stem, number)
            inserted = self._connection.execute(
                "INSERT INTO membership (mailbox, name, email, inode) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (mailbox, name) DO NOTHING",
                (mailbox, name, email, inode),
            )
            if inserted.rowcount:
                self._digests[mailbox] += name_digest(name)
                self._journal.append((mailbox, name, inode))
                return
            self._require_copy(mailbox, name, email)
            number = self._last_number(mailbox, stem, number) + 1

    def _last_number(self, mailbox: int, stem: str, number: int) -> int:
        """Return the highest number of a name with this stem; `number` is one. There is no gap.

        The time grows with the logarithm of the number: there may be many copies of one message.
        """
        step = 1
        while self._name_exists(mailbox, numbered_name(stem, number + step)):
            number += step
            step *= 2
        while step := step // 2:
            if self._name_exists(mailbox, numbered_name(stem, number + step)):
                number += step
        return number

    def _require_copy(self, mailbox: int, name: str, email: int) -> None:
        """Raise an error (damage) if an email has a name twice: it is not in an index of SQLite."""
        rows = self._connection.execute(
            "SELECT DISTINCT id FROM email WHERE number = ? OR number ="
            " (SELECT email FROM membership WHERE mailbox = ? AND name = ?)",
            (email, mailbox, name),
        ).fetchall()
        if len(rows) == 1:
            raise damage_error("an email is in the index twice")

    def _remove_name(self, mailbox: int, stem: str, name: str, inode: int) -> None:
        """Remove a name of an email in a mailbox.

        If there are more copies of the message, the copy with the highest number is renamed to this
        name. So the numbers have no gap.
        """
        self._connection.execute(
            "DELETE FROM membership WHERE mailbox = ? AND name = ?", (mailbox, name)
        )
        number = self._last_number(mailbox, stem, name_number(stem, name))
        last = numbered_name(stem, number)
        self._journal.append((mailbox, name, inode))
        if last != name:
            (copy,) = self._connection.execute(
                "SELECT inode FROM membership WHERE mailbox = ? AND name = ?", (mailbox, last)
            ).fetchone()
            self._connection.execute(
                "UPDATE membership SET name = ? WHERE mailbox = ? AND name = ?",
                (name, mailbox, last),
            )
            self._journal += [(mailbox, name, copy), (mailbox, last, copy)]
        self._digests[mailbox] -= name_digest(last)

    def _name_exists(self, mailbox: int, name: str) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM membership WHERE mailbox = ? AND name = ?", (mailbox, name)
        ).fetchone()
        return found is not None


def write_journal(connection: sqlite3.Connection, entries: Iterable[tuple[int, str, int]]) -> None:
    """Add journal entries of mailbox number, name and inode.

    Before the first listing is complete, nothing is written: no kernel has seen the tree yet.
    """
    is_shown = "SELECT 1 FROM meta WHERE name = 'complete' AND value = 'true'"
    if connection.execute(is_shown).fetchone() is None:
        return
    connection.executemany("INSERT INTO journal (mailbox, name, inode) VALUES (?, ?, ?)", entries)
    connection.execute(
        "DELETE FROM journal WHERE sequence <= (SELECT max(sequence) FROM journal) - ?",
        (_JOURNAL_ROWS,),
    )


def increment_layout_version(connection: sqlite3.Connection) -> None:
    """Record that the directories have changed; see `IndexReader.layout_version`."""
    # The first version is a time: no version of an earlier index in the same place is used again.
    connection.execute(
        "INSERT INTO meta (name, value) VALUES ('layout_version', ?)"
        " ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
        (str(time.time_ns() // 1000),),
    )
