"""Writing the index. Each transaction contains changes and the account state that results.

So a reader sees a change completely or not at all, even after a crash.
"""

import contextlib
import logging
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from jmapfs.index.checksums import DIGEST_MODULUS, name_digest
from jmapfs.index.directories import DirectoryTimes
from jmapfs.index.email_batch import (
    EmailBatch,
    increment_layout_version,
    write_journal,
)
from jmapfs.index.file_inodes import reassign_colliding_inodes
from jmapfs.index.known_email import known_email
from jmapfs.index.layout import Layout, LayoutCache, Parents, Placed, find_parents, lay_out
from jmapfs.index.listed import BadEmails, ListedIds
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, ListingProgress
from jmapfs.index.schema import UNFILED
from jmapfs.index.staged import StagedEmails, is_reused
from jmapfs.index.state_reader import STATE_FIELDS, decode_json
from jmapfs.jmap.types import BadEmail, Email, Mailbox
from jmapfs.sqlite import transaction

_log = logging.getLogger(__name__)

_PROGRESS: Final = "listing"

_PUT_MAILBOX: Final = """
INSERT INTO mailbox (id, name, parent_id, role, sort_order, known) VALUES (?, ?, ?, ?, ?, 1)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, parent_id = excluded.parent_id, role = excluded.role,
    sort_order = excluded.sort_order, known = 1
WHERE name IS NOT excluded.name OR parent_id IS NOT excluded.parent_id
    OR role IS NOT excluded.role OR sort_order IS NOT excluded.sort_order OR NOT known
"""


class IndexWriter(IndexReader):
    """A connection that writes the index, and reads it; use it from one thread at a time.

    Every method may raise sqlite3.Error; the transaction is then rolled back. `listed` has the ids
    of a listing, `staged` the emails of a new listing of the account, `bad` the bad emails.
    """

    def __init__(self, connection: sqlite3.Connection, layouts: LayoutCache | None = None) -> None:
        super().__init__(connection, layouts)
        self.listed = ListedIds(connection)
        self.staged = StagedEmails(connection)
        self.bad = BadEmails(connection)
        self._directory_times = DirectoryTimes(connection)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything that is written in the context, or nothing if it raises.

        Directories whose names have changed get a new time.
        """
        with transaction(self._connection):
            yield
            laid_out = self._directory_times.update(self)
        if laid_out is not None:
            self._layouts.put(*laid_out)

    def layout(self) -> Layout:
        """Return the directories of all mailboxes; within a transaction, those that it leads to."""
        return lay_out(self.mailboxes()) if self._connection.in_transaction else super().layout()

    def set_state(self, state: AccountState) -> None:
        """Store the state that the changes of this transaction lead to."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
            [
                (name, msgspec.json.encode(getattr(state, field)).decode())
                for name, field in sorted(STATE_FIELDS.items())
            ],
        )

    def complete_conversion(self) -> None:
        """Write what the tables of an earlier version lack, within the caller's transaction."""
        for update, query in (
            ("UPDATE mailbox SET digest", "SELECT mailbox, name FROM membership"),
            ("UPDATE email SET keywords", "SELECT email, keyword FROM keyword"),
        ):
            digests: defaultdict[int, int] = defaultdict(int)
            for number, name in self._connection.execute(query):
                digests[number] += name_digest(name)
            self._connection.execute(f"{update} = 0")
            self._connection.executemany(
                f"{update} = ? WHERE number = ?",
                [(digest % DIGEST_MODULUS, number) for number, digest in digests.items()],
            )
        self.set_state(self._state(may_lack_fields=True))
        self._directory_times.update(self)

    def note_change(self) -> None:
        """Store that the index has changed now, without new states of the server."""
        self.set_state(replace(self.state(), synced_at=time.time()))

    def listing_progress(self) -> ListingProgress | None:
        """Return how far an unfinished listing has come, or None."""
        value = self._meta(_PROGRESS)
        return None if value is None else decode_json(value, ListingProgress)

    def set_listing_progress(self, progress: ListingProgress) -> None:
        """Store how far the current listing has come."""
        self._connection.execute(
            "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
            (_PROGRESS, msgspec.json.encode(progress).decode()),
        )

    def end_listing(self) -> None:
        """End the listing."""
        self._connection.execute("DELETE FROM meta WHERE name = ?", (_PROGRESS,))

    def mark_unlisted(self) -> None:
        """Mark all emails as not listed; putting an email marks it as listed."""
        self._connection.execute("UPDATE email SET seen = 0 WHERE seen")

    def unlisted_emails(self, after: str, count: int) -> list[str]:
        """Return the ids of `count` emails neither listed nor put since `mark_unlisted`."""
        rows = self._connection.execute(
            "SELECT id FROM email WHERE id > ? AND NOT seen"
            " AND NOT EXISTS (SELECT 1 FROM listed WHERE email_id = email.id)"
            " ORDER BY id LIMIT ?",
            (after, count),
        )
        return [email_id for (email_id,) in rows]

    def unknown_emails(self, email_ids: Iterable[str]) -> list[str]:
        """Return the ids that are neither in the tree nor those of bad emails, in order."""
        rows = self._connection.execute(
            "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM email)"
            " AND value NOT IN (SELECT email_id FROM bad_email)",
            (msgspec.json.encode(list(email_ids)).decode(),),
        )
        return sorted(email_id for (email_id,) in rows)

    def reused_ids(self, emails: Iterable[Email]) -> list[str]:
        """Return the ids that stand for other emails in the index: the server was reset."""
        return [
            email.id
            for email in emails
            if is_reused(self._connection, known_email(self._connection, email.id), email)
        ]

    def set_stated_sizes(self, emails: Iterable[Email]) -> None:
        """Store the sizes that the server states, and nothing else, of emails in the index."""
        batch = EmailBatch(self._connection)
        for email in emails:
            batch.set_stated_size(email)
        batch.finish()

    def forget_unconfirmed(self) -> None:
        """Forget which blobs had an unconfirmed size: their stated sizes are stored now."""
        self._connection.execute("DELETE FROM unconfirmed")

    def remove_all_emails(self) -> None:
        """Remove all emails of an index that is not shown yet."""
        self.mark_unlisted()
        self.staged.remove_unseen()

    def put_emails(self, emails: Iterable[Email]) -> None:
        """Insert or update emails. Their pending removal is cancelled, and they are not bad."""
        emails = list(emails)
        batch = EmailBatch(self._connection)
        batch.put_all(emails)
        batch.finish()
        if self.has_pending_removals():
            self._connection.executemany(
                "DELETE FROM departure WHERE email_id = ?", [(email.id,) for email in emails]
            )
        self.bad.remove(email.id for email in emails)

    def put_bad_emails(self, bad: Iterable[BadEmail]) -> None:
        """Store emails that cannot be shown, and remove them from the tree.

        Those about which the server says nothing stay in the tree.
        """
        bad = list(bad)
        self._remove(one.id for one in bad if not one.is_unanswered)
        self.bad.put(bad)

    def remove_emails(self, email_ids: Iterable[str]) -> None:
        """Remove emails, bad ones too; unknown ids are ignored."""
        email_ids = list(email_ids)
        self._remove(email_ids)
        self.bad.remove(email_ids)

    def _remove(self, email_ids: Iterable[str]) -> None:
        batch = EmailBatch(self._connection)
        for email_id in email_ids:
            batch.remove(email_id)
        batch.finish()

    def add_pending_removals(self, email_ids: Iterable[str]) -> None:
        """Store the ids of emails that `apply_pending_removals` will remove, even after a crash."""
        self._connection.executemany(
            "INSERT OR IGNORE INTO departure (email_id) VALUES (?)",
            [(email_id,) for email_id in email_ids],
        )

    def has_pending_removals(self) -> bool:
        """Return whether removals are pending, because a chain of changes is not finished."""
        return self._connection.execute("SELECT 1 FROM departure LIMIT 1").fetchone() is not None

    def apply_pending_removals(self) -> None:
        """Remove the emails whose removal is pending."""
        rows = self._connection.execute("SELECT email_id FROM departure").fetchall()
        self.remove_emails(email_id for (email_id,) in rows)
        self._connection.execute("DELETE FROM departure")

    def replace_mailboxes(self, mailboxes: Sequence[Mailbox]) -> list[str]:
        """Store the complete list of mailboxes; return the known ids that are not in the list.

        The rows of missing mailboxes stay until `retire_mailboxes`, because their emails may be
        moved to other mailboxes before that. If only the id of a mailbox has changed (a server
        migration), its row gets the new id. So no email is missing from the tree meanwhile.
        """
        known = [row for row in self.mailboxes() if row.known]
        removed = {row.id for row in known}.difference(mailbox.id for mailbox in mailboxes)
        added = {mailbox.id for mailbox in mailboxes}.difference(row.id for row in known)
        parents = find_parents(mailboxes)
        numbers: dict[tuple[int, str], int] = {}
        new_ids = {
            path: id_
            for id_, path in _unique_paths(mailboxes, parents, numbers).items()
            if id_ in added
        }
        paths = _unique_paths(known, find_parents(known), numbers)
        gone = []
        for mailbox_id in sorted(removed):
            path = paths.get(mailbox_id)
            new_id = new_ids.get(path) if path else None
            if new_id is None or not self._change_mailbox_id(mailbox_id, new_id):
                gone.append(mailbox_id)
        changed = 0
        for mailbox in mailboxes:
            changed += self._connection.execute(
                _PUT_MAILBOX,
                (
                    mailbox.id,
                    mailbox.name or "",
                    mailbox.parent_id,
                    mailbox.role or None,
                    mailbox.sort_order or 0,
                ),
            ).rowcount
        if changed:
            increment_layout_version(self._connection)
            self._file_again(orphaned=False)
            if parents.too_deep:
                _log.warning(
                    "%d mailboxes are nested too deeply: they are top-level directories",
                    parents.too_deep,
                )
        return gone

    def _change_mailbox_id(self, old_id: str, new_id: str) -> bool:
        """Change the id of a mailbox; return False if there is a row with the new id already.

        If emails with the new mailbox id are stored first, they create such a row.
        """
        changed = self._connection.execute(
            "UPDATE OR IGNORE mailbox SET id = ? WHERE id = ?", (new_id, old_id)
        ).rowcount
        if changed:
            increment_layout_version(self._connection)
        return bool(changed)

    def retire_mailboxes(self, mailbox_ids: Iterable[str]) -> None:
        """Mark mailboxes as unknown to the server, and remove all unknown mailboxes that are empty.

        A mailbox with emails stays: the server may have left it out by mistake.
        """
        self._connection.executemany(
            "UPDATE mailbox SET known = 0 WHERE id = ?",
            [(mailbox_id,) for mailbox_id in mailbox_ids],
        )
        removed = self._connection.execute(
            "DELETE FROM mailbox WHERE NOT known AND NOT EXISTS"
            " (SELECT 1 FROM membership WHERE membership.mailbox = mailbox.number)"
        )
        if removed.rowcount:
            increment_layout_version(self._connection)

    def file_orphaned_emails(self) -> bool:
        """Take emails out of mailboxes that the server has never described, and forget these.

        Those that are in no other mailbox are in UNFILED until the server describes one. Return
        whether there were any.
        """
        changed = self._file_again(orphaned=True)
        self.retire_mailboxes(())
        return changed

    def _file_again(self, *, orphaned: bool) -> bool:
        batch = EmailBatch(self._connection)
        changed = batch.file_again(orphaned=orphaned)
        batch.finish()
        return changed

    def orphaned_emails(self) -> list[str]:
        """Return the ids of the emails in mailboxes that the server has not described."""
        return [
            row[0]
            for row in self._connection.execute(
                "SELECT DISTINCT email.id FROM mailbox"
                " JOIN membership ON membership.mailbox = mailbox.number"
                " JOIN email ON email.number = membership.email"
                " WHERE NOT known AND mailbox.id != ?",
                (UNFILED,),
            )
        ]

    def correct_size(self, blob_id: str, size: int) -> list[int]:
        """Store the confirmed size of a blob, in bytes; return the inodes of its files.

        Later listings do not overwrite this size, unless the server states another one then.
        """
        self._connection.execute(
            "INSERT OR REPLACE INTO confirmed (blob_id, size, stated)"
            " SELECT blob_id, ?, ifnull(stated, size) FROM file WHERE blob_id = ? LIMIT 1",
            (size, blob_id),
        )
        self._connection.execute(
            "UPDATE file SET size = :size, stated = nullif(ifnull(stated, size), :size)"
            " WHERE blob_id = :blob",
            {"size": size, "blob": blob_id},
        )
        self._connection.execute("DELETE FROM unconfirmed WHERE blob_id = ?", (blob_id,))
        rows = self._connection.execute("SELECT inode FROM file WHERE blob_id = ?", (blob_id,))
        inodes = [inode for (inode,) in rows]
        write_journal(self._connection, [(0, "", inode) for inode in inodes])
        return inodes

    def reassign_colliding_inodes(self) -> None:
        """Assign colliding inodes again, as if all emails had been added at once.

        Call this at the end of a first listing. Without the call, inodes would depend on the order
        in which the server lists the emails.
        """
        reassign_colliding_inodes(self._connection)


def _unique_paths(
    mailboxes: Iterable[Placed], parents: Parents, numbers: dict[tuple[int, str], int]
) -> dict[str, int]:
    """Return a number for the path of each mailbox by id, without those that several have.

    `numbers` has the numbers of paths, by the number of the parent's path and the name.
    """
    names = {mailbox.id: mailbox.name or "" for mailbox in mailboxes}
    children: defaultdict[str | None, list[str]] = defaultdict(list)
    for mailbox_id, parent_id in parents.by_id.items():
        children[parent_id].append(mailbox_id)
    paths: dict[str, int] = {}
    pending = [(mailbox_id, 0) for mailbox_id in children[None]]
    while pending:
        mailbox_id, parent = pending.pop()
        path = numbers.setdefault((parent, names[mailbox_id]), len(numbers) + 1)
        paths[mailbox_id] = path
        pending += [(each, path) for each in children.get(mailbox_id, ())]
    occurrences = Counter(paths.values())
    return {mailbox_id: path for mailbox_id, path in paths.items() if occurrences[path] == 1}
