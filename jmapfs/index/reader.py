"""Reading the index.

Outside `pinned`, each method reads the newest commit. Within `pinned`, all methods read the same
commit, even if others are committed meanwhile.

Every row that is used is verified (`checksums`). A file or a directory that should be there but is
not found also counts as damage.

File names begin with the time of receipt. So the order of names is the order in which directories
are listed and, except for emails of the same second, the order of inodes.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from itertools import repeat
from operator import itemgetter
from typing import Any, Final
from zlib import crc32

import msgspec

from jmapfs.errors import UNDECODABLE
from jmapfs.index.checksums import row_checksum, verify, verify_rows
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
from jmapfs.index.schema import COLUMNS, UNFILED, UNKNOWN_SIZE, checksum_sql, columns_sql
from jmapfs.inodes import inode_range
from jmapfs.sqlite import SqliteConnection, damage_error

# The names in this table must not change: existing index files have them.
_STATE_COLUMNS: Final = {"consistent": "settled"}

STATE_FIELDS: Final = {
    _STATE_COLUMNS.get(field.name, field.name): field.name for field in fields(AccountState)
}
"""The fields of AccountState by their names in the table `meta`."""

_LISTING_ROWS: Final = 1000

DIGEST_MODULUS: Final = 1_000_000_000
"""The digest of a mailbox is the sum of the digests of its names, modulo this number."""

# A name with a time from 1970 on; see `names`.
_DATED_NAME: Final = re.compile(r"(\d{8}-\d{6})_")

# SQLite computes this once in a statement, not once for each row. `_epoch_of` verifies it.
_EPOCH: Final = "(SELECT value || checksum FROM meta WHERE name = 'epoch')"

# What is verified of a name and its file. A missing row of a file has no checksum that is right.
_NAMED_COLUMNS: Final = (
    "name, email, membership.inode, membership.checksum,"
    " blob_id, received_at, size, links, stated, file.checksum"
)
_NAMED_SOURCE: Final = (
    " FROM membership LEFT JOIN file ON file.inode = membership.inode WHERE mailbox = ?"
)
_NAMED_FILES: Final = f"SELECT {_NAMED_COLUMNS}, {_EPOCH}{_NAMED_SOURCE}"
_NAMED_FILE: Final = f"{_NAMED_FILES} AND name = ?"
_LISTING: Final = f"SELECT {_NAMED_COLUMNS}{_NAMED_SOURCE} ORDER BY name"
_FILE_OF_INODE: Final = f"SELECT {columns_sql('file')}, {_EPOCH} FROM file WHERE inode = ?"  # noqa: S608 - constants


class IndexReader(SqliteConnection):
    """A connection that reads the index; use it from one thread at a time.

    Every method may raise sqlite3.Error if the file is damaged or the disk fails. Readers of one
    index share their `layouts`. `generation` changes if the reader has found a new file.
    """

    generation = 0

    def __init__(self, connection: sqlite3.Connection, layouts: LayoutCache | None = None) -> None:
        super().__init__(connection)
        self._layouts = layouts or LayoutCache()
        self._stored_epoch = ""

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
        return self._state(may_lack_fields=False)

    def _state(self, *, may_lack_fields: bool) -> AccountState:
        rows = self._connection.execute("SELECT name, value, checksum FROM meta").fetchall()
        verify_rows([row[:2] for row in rows], [row[2] for row in rows])
        values = {
            STATE_FIELDS[name]: decode_json(value, Any)
            for name, value, _ in rows
            if name in STATE_FIELDS
        }
        if values and len(values) < len(STATE_FIELDS) and not may_lack_fields:
            raise damage_error("a part of the state is missing")
        try:
            return msgspec.convert(values, AccountState)
        except msgspec.ValidationError as error:
            raise damage_error(f"damaged: {error}") from error

    def epoch(self) -> str:
        """Return the epoch of the blob ids in the index (`blob_keys`)."""
        value = self._meta("epoch")
        return self.state().epoch if value is None else str(decode_json(value, str))

    def _epoch_of(self, stored: str | None) -> str:
        """Return the epoch; `stored` is what a statement has selected as `_EPOCH`."""
        if stored is None or stored != self._stored_epoch:
            epoch = self.epoch()
            value = msgspec.json.encode(epoch).decode()
            self._stored_epoch = f"{value}{row_checksum('epoch', value)}"
            if stored not in {None, self._stored_epoch}:
                raise damage_error("the epoch is damaged")
            return epoch
        return self._stored_epoch[1 : self._stored_epoch.rindex('"')]

    def layout_version(self) -> int:
        """Return a number that changes when mailboxes are added, removed, moved or renamed."""
        value = self._meta("layout_version")
        return 0 if value is None else int(value)

    def _meta(self, name: str) -> str | None:
        row = self._connection.execute(
            "SELECT name, value, checksum FROM meta WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            return None
        verify(row[:2], row[2])
        return str(row[1])

    def mailboxes(self) -> list[MailboxRow]:
        """Return all mailboxes, and UNFILED if it has emails, in the order of their ids."""
        with self.pinned():
            # The table and the index on the ids are read, and must not differ.
            rows = self._connection.execute(
                f"SELECT {columns_sql('mailbox')} FROM mailbox NOT INDEXED"  # noqa: S608 - constants
            ).fetchall()
            ids = self._connection.execute(
                "SELECT id FROM mailbox INDEXED BY sqlite_autoindex_mailbox_1 ORDER BY id"
            ).fetchall()
        verify_rows([row[:-1] for row in rows], [row[-1] for row in rows])
        rows.sort(key=itemgetter(1))
        if [(row[1],) for row in rows] != ids:
            raise damage_error("the mailboxes are not those of their index")
        return [
            MailboxRow(number, mailbox_id, name, parent_id, role, sort_order, bool(known), digest)
            for number, mailbox_id, name, parent_id, role, sort_order, known, digest, _ in rows
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
            f"SELECT {columns_sql('directory')} FROM directory WHERE inode = ?",  # noqa: S608 - constants
            (inode,),
        ).fetchone()
        if row is None:
            if self.state().complete:
                raise damage_error("a directory has no time")
            return 0
        verify(row[:-1], row[-1])
        return int(row[-2])

    def listing(self, mailbox: int) -> DirectoryRows:
        """Return the files of a mailbox in name order."""
        listing = DirectoryRows()
        with self.pinned():
            digest = self._connection.execute(
                f"SELECT {columns_sql('mailbox')} FROM mailbox WHERE number = ?",  # noqa: S608 - constants
                (mailbox,),
            ).fetchone()
            cursor = self._connection.execute(_LISTING, (mailbox,))
            while rows := cursor.fetchmany(_LISTING_ROWS):
                names, emails, inodes, checksums, *file = zip(*rows, strict=True)
                verify_rows(zip(repeat(mailbox), names, emails, inodes), checksums)
                verify_rows(zip(inodes, *file[:-1], strict=True), file[-1])
                _, received_at, sizes, links, *_ = file
                listing.extend(names, inodes, sizes, received_at, links)
        if digest is not None:
            verify(digest[:-1], digest[-1])
        if sum(map(crc32, listing.names)) % DIGEST_MODULUS != (digest[-2] if digest else 0):
            raise damage_error("names of a mailbox are missing")
        return listing

    def named_file(self, mailbox: int, name: str) -> FileRecord | None:
        """Return the file with that name in a mailbox, or None."""
        row = self._connection.execute(_NAMED_FILE, (mailbox, name)).fetchone()
        if row is None:
            return self._named_file_of_index(mailbox, name)
        _, email, inode, checksum, blob_id, received_at, size, links, stated, *rest = row
        verify((mailbox, name, email, inode), checksum)
        verify((inode, blob_id, received_at, size, links, stated), rest[0])
        return FileRecord(inode, blob_id, size, received_at, links, self._epoch_of(rest[1]))

    def _named_file_of_index(self, mailbox: int, name: str) -> FileRecord | None:
        """Return None if other tables and indexes do not have a name either."""
        inodes = _inodes_of_name(name)
        if inodes is None:
            return None
        with self.pinned():
            if self._connection.execute(_NAMED_FILE, (mailbox, name)).fetchone():
                # It was added since the caller looked.
                return self.named_file(mailbox, name)
            found = self._connection.execute(
                "SELECT 1 FROM membership INDEXED BY membership_inode"
                " WHERE inode BETWEEN ? AND ? AND mailbox = ? AND name = ?",
                (inodes[0], inodes[-1], mailbox, name),
            ).fetchone()
            if found or not self._has_all_names(inodes):
                raise damage_error("a name is missing")
        return None

    def _has_all_names(self, inodes: range) -> bool:
        """Return whether the index on the inodes has all names of some files, and only names."""
        files = self._verified("file", "file WHERE inode BETWEEN ? AND ?", inodes[0], inodes[-1])
        for inode, _, _, _, links, _ in files:
            names = self.names_of(inode)
            rows = [self._connection.execute(_NAMED_FILE, name).fetchone() for name in names]
            if len(names) != links or None in rows:
                return False
        return True

    def file(self, inode: int) -> FileRecord | None:
        """Return the file with that inode, or None."""
        row = self._connection.execute(_FILE_OF_INODE, (inode,)).fetchone()
        if row is None:
            with self.pinned():
                row = self._connection.execute(_FILE_OF_INODE, (inode,)).fetchone()
                if row is None:
                    email = "SELECT 1 FROM email WHERE inode = ?"
                    if self.names_of(inode) or self._connection.execute(email, (inode,)).fetchone():
                        raise damage_error("a file is missing")
                    return None
        _, blob_id, received_at, size, links, stated, checksum, epoch = row
        verify((inode, blob_id, received_at, size, links, stated), checksum)
        return FileRecord(inode, blob_id, size, received_at, links, self._epoch_of(epoch))

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
            f"{_NAMED_FILES} AND name {side} ? ORDER BY name {order} LIMIT ?",
            (mailbox, name, count),
        ).fetchall()
        files = []
        for each, email, inode, checksum, *file, of_file, epoch in rows:
            verify((mailbox, each, email, inode), checksum)
            verify((inode, *file), of_file)
            files.append(NamedFile(each, inode, file[0], file[2], self._epoch_of(epoch)))
        return files

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
        if Counter(inode for *_, inode in names) != links or {
            (number, inode) for number, _, inode, *_ in emails
        } != {(number, inode) for _, _, number, inode in names}:
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

    def _verified(self, table: str, source: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return rows of a table; `source` is what follows FROM."""
        rows = self._connection.execute(
            f"SELECT {columns_sql(table)} FROM {source}",  # noqa: S608 - constants
            parameters,
        ).fetchall()
        values = [row[:-1] for row in rows]
        verify_rows(values, [row[-1] for row in rows])
        return values

    def blobs_added_after(self, number: int, count: int) -> list[AddedBlob]:
        """Return the blobs of the next `count` emails that were added after email `number`."""
        rows = self._connection.execute(
            f"SELECT {columns_sql('file')}, number, {_EPOCH} FROM email"  # noqa: S608 - constants
            " LEFT JOIN file ON file.inode = email.inode WHERE number > ? ORDER BY number LIMIT ?",
            (number, count),
        ).fetchall()
        verify_rows((row[:-3] for row in rows), (row[-3] for row in rows))
        return [
            AddedBlob(row[-2], blob_id, size, received_at, self._epoch_of(row[-1]))
            for row in rows
            for _, blob_id, received_at, size, *_ in (row[:-3],)
        ]

    def journal_after(self, position: int) -> JournalPart:
        """Return what has changed in the tree since a position in the journal."""
        rows = self._connection.execute(
            "SELECT sequence, mailbox, name, inode, checksum FROM journal WHERE sequence > ?"
            " ORDER BY sequence",
            (position,),
        ).fetchall()
        verify_rows((row[:-1] for row in rows), (row[-1] for row in rows))
        if rows and rows[-1][0] - rows[0][0] + 1 != len(rows):
            raise damage_error("a part of the journal is missing")
        if not rows:
            newest = self.journal_position()
            return JournalPart((), newest, whole=newest == position)
        entries = tuple(JournalEntry(mailbox, name, inode) for _, mailbox, name, inode, _ in rows)
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

    def check(self) -> None:
        """Read the whole index; raises sqlite3.DatabaseError if any part of it is damaged.

        For half a million emails, this takes some seconds.
        """
        with self.pinned():
            (result,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
            if result != "ok":
                raise damage_error(str(result))
            for table in COLUMNS:
                if self._connection.execute(
                    f"SELECT 1 FROM {table} WHERE checksum IS NOT {checksum_sql(table)} LIMIT 1"  # noqa: S608 - constants
                ).fetchone():
                    raise damage_error(f"a row of the table {table} is damaged")
            self.state()
            for mailbox in self.mailboxes():
                self.listing(mailbox.number)

    def total_size(self) -> int:
        """Return the sum of the sizes of all files; this reads the whole table."""
        # `sum` fails if the sizes that a server states exceed 63 bits together.
        row = self._connection.execute("SELECT CAST(total(size) AS INTEGER) FROM file").fetchone()
        return int(row[0])


def _inodes_of_name(name: str) -> range | None:
    """Return the inodes that an email with this name may have, or None if no email has it."""
    match = _DATED_NAME.match(name)
    if match is None:
        return None
    try:
        time = datetime.strptime(f"{match[1]}+0000", "%Y%m%d-%H%M%S%z")
    except ValueError:
        return None
    return inode_range(int(time.timestamp()))


def name_digest(name: str) -> int:
    """Return what a name adds to the digest of its mailbox."""
    return crc32(name.encode())


def names_digest(names: Iterable[str]) -> int:
    """Return the digest of names or keywords, in any order."""
    return sum(map(name_digest, names)) % DIGEST_MODULUS


def decode_json(value: str, type_: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """Decode a value of the table `meta`. Bytes that cannot be decoded count as damage."""
    try:
        return msgspec.json.decode(value, type=type_)
    except UNDECODABLE as error:
        raise damage_error(f"damaged: {error}") from error
