"""Reading the emails of the index: in order, for snapshots; by blob; and how many there are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jmapfs.index.checksums import names_digest, verify_rows
from jmapfs.index.rows import AddedBlob, BadEmailRow, Counts, EmailRow, EmailSlice
from jmapfs.index.schema import UNFILED, UNKNOWN_SIZE, columns_sql
from jmapfs.index.state_reader import EPOCH, StateReader
from jmapfs.inodes import inode_range
from jmapfs.sqlite import damage_error


class EmailReader(StateReader):
    """A connection that reads the emails of the account; use it from one thread at a time."""

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
        bounds = self._verified(
            "file", "file WHERE inode > ? ORDER BY inode LIMIT 1 OFFSET ?", inode, count - 1
        )
        last = inode_range(bounds[0][2]).stop - 1 if bounds else None
        first, end = inode + 1, (1 << 63) - 1 if last is None else last
        files: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
        with self.pinned():
            names = self._verified(
                "membership", "membership WHERE inode BETWEEN ? AND ?", first, end
            )
            for mailbox, name, email, _ in names:
                if (directory := directories.get(mailbox)) is not None:
                    mailbox_id, path = directory
                    files[email].append((mailbox_id, f"{path}/{name}"))
            keywords: defaultdict[int, list[str]] = defaultdict(list)
            for email, keyword in self._verified(
                "keyword",
                "email JOIN keyword ON keyword.email = email.number WHERE inode BETWEEN ? AND ?",
                first,
                end,
            ):
                keywords[email].append(keyword)
            emails = self._emails_between(first, end, names, keywords)
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

    def _emails_between(
        self,
        first: int,
        end: int,
        names: Sequence[tuple[Any, ...]],
        keywords: Mapping[int, Sequence[str]],
    ) -> list[tuple[Any, ...]]:
        """Return the emails of a range of inodes, in order.

        Raises an error if they are not those of the `names` and `keywords` of this range (damage).
        """
        files = self._verified("file", "file WHERE inode BETWEEN ? AND ?", first, end)
        emails = self._verified("email", "email WHERE inode BETWEEN ? AND ?", first, end)
        links = {inode: links for inode, _, _, _, links, _ in files}
        # A damaged index of SQLite may lead to one row twice, and not to another one.
        if (
            len({(mailbox, name) for mailbox, name, *_ in names}) != len(names)
            or Counter(inode for *_, inode in names) != links
            or Counter((number, inode) for number, _, inode, *_ in emails)
            != Counter({(number, inode) for _, _, number, inode in names})
        ):
            raise damage_error("emails or their names are missing")
        if any(email[-1] != names_digest(keywords.get(email[0], ())) for email in emails):
            raise damage_error("keywords are missing")
        by_inode = {file[0]: file for file in files}
        found = []
        for number, email_id, inode, thread_id, *_ in emails:
            _, blob_id, received_at, size, _, stated = by_inode[inode]
            found.append((number, email_id, blob_id, thread_id, received_at, size, stated))
        found.sort(key=lambda each: (each[4], each[2], each[1]))
        return found

    def blobs_added_after(self, number: int, count: int) -> list[AddedBlob]:
        """Return the blobs of the next `count` emails that were added after email `number`."""
        rows = self._connection.execute(
            f"SELECT {columns_sql('file')}, number, {EPOCH} FROM email"  # noqa: S608 - constants
            " LEFT JOIN file ON file.inode = email.inode WHERE number > ? ORDER BY number LIMIT ?",
            (number, count),
        ).fetchall()
        verify_rows((row[:-3] for row in rows), (row[-3] for row in rows))
        return [
            AddedBlob(row[-2], blob_id, size, received_at, self._epoch_of(row[-1]))
            for row in rows
            for _, blob_id, received_at, size, *_ in (row[:-3],)
        ]

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
        rows = self._verified(
            "bad_email",
            "bad_email WHERE email_id NOT IN (SELECT id FROM email) ORDER BY email_id",
        )
        return [
            BadEmailRow(email_id, reason, since, tuple(msgspec.json.decode(mailboxes)))
            for email_id, reason, since, mailboxes in rows
        ]

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
