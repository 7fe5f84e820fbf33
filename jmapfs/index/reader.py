"""Reading the tree from the index: its mailboxes, directories, names and files.

File names begin with the time of receipt. So the order of names is the order in which directories
are listed and, except for emails of the same second, the order of inodes.
"""

from __future__ import annotations

import re
import sqlite3
from array import array
from datetime import datetime
from itertools import repeat
from operator import itemgetter
from typing import Final
from zlib import crc32

from jmapfs.index.checksums import DIGEST_MODULUS, verify, verify_rows
from jmapfs.index.email_reader import EmailReader
from jmapfs.index.layout import Layout, LayoutCache, lay_out
from jmapfs.index.rows import (
    DirectoryRows,
    FileRecord,
    JournalEntry,
    JournalPart,
    MailboxRow,
    NamedFile,
)
from jmapfs.index.schema import COLUMNS, checksum_sql, columns_sql
from jmapfs.index.state_reader import EPOCH
from jmapfs.inodes import inode_range
from jmapfs.sqlite import damage_error

_LISTING_ROWS: Final = 1000

# A name with a time from 1970 on; see `names`.
_DATED_NAME: Final = re.compile(r"(\d{8}-\d{6})_")

# What is verified of a name and its file. A missing row of a file has no checksum that is right.
_NAMED_COLUMNS: Final = (
    "name, email, membership.inode, membership.checksum,"
    " blob_id, received_at, size, links, stated, file.checksum"
)
_NAMED_SOURCE: Final = (
    " FROM membership LEFT JOIN file ON file.inode = membership.inode WHERE mailbox = ?"
)
_NAMED_FILES: Final = f"SELECT {_NAMED_COLUMNS}, {EPOCH}{_NAMED_SOURCE}"
_NAMED_FILE: Final = f"{_NAMED_FILES} AND name = ?"
_LISTING: Final = f"SELECT {_NAMED_COLUMNS}{_NAMED_SOURCE} ORDER BY name"
_FILE_OF_INODE: Final = f"SELECT {columns_sql('file')}, {EPOCH} FROM file WHERE inode = ?"  # noqa: S608 - constants


class IndexReader(EmailReader):
    """A connection that reads the index; use it from one thread at a time.

    Every method may raise sqlite3.Error if the file is damaged or the disk fails. Readers of one
    index share their `layouts`. `generation` changes if the reader has found a new file.
    """

    generation = 0

    def __init__(self, connection: sqlite3.Connection, layouts: LayoutCache | None = None) -> None:
        super().__init__(connection)
        self._layouts = layouts or LayoutCache()

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
            if len(set(names)) != links or None in rows:
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

    def journal_after(self, position: int) -> JournalPart:
        """Return what has changed in the tree since a position in the journal."""
        with self.pinned():
            rows = self._verified(
                "journal", "journal WHERE sequence > ? ORDER BY sequence", position
            )
            newest = self.journal_position()
        if not rows:
            return JournalPart((), newest, whole=newest == position)
        first = rows[0][0]
        if [row[0] for row in rows] != list(range(first, newest + 1)):
            raise damage_error("a part of the journal is missing")
        entries = tuple(JournalEntry(mailbox, name, inode) for _, mailbox, name, inode in rows)
        return JournalPart(entries, newest, whole=first == position + 1)

    def journal_position(self) -> int:
        """Return the position after the newest journal entry."""
        row = self._connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'journal'"
        ).fetchone()
        return int(row[0]) if row else 0

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
