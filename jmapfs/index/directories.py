"""When the names in each directory changed last: the times of directories, in whole seconds.

The first listing gives all directories its own time. From then on, the time of a directory changes
in the transaction that changes its names, and in no other. So no reader sees new names with an old
time or the reverse.

The new time is rounded up: it is later than every time stamp that a tool has made before the
change. It is also later than the last time of the directory, even if the clock was set back, or if
both changes are of one second. Tools that keep only the seconds, such as notmuch, see each change.

A directory that is moved to a new path keeps its time, because its names are the same. But a path
that was in use before must not show an old time with other names. So the last time of each path is
kept.
"""

import math
import sqlite3
import time
from typing import Final, NamedTuple

from jmapfs.index.checksums import verify_rows
from jmapfs.index.layout import Layout, lay_out
from jmapfs.index.reader import IndexReader
from jmapfs.index.schema import columns_sql

_ROOT: Final = 0  # `directory.mailbox` of the root
_LAYOUT_VERSION: Final = "directories"
_UNUSED_PATHS: Final = 10_000

# An email came, left, or has another name.
_UPDATE_EMAILS: Final = """
UPDATE directory SET
    emails = mailbox.digest,
    changed_at = max(:now, changed_at + 1)
FROM mailbox WHERE mailbox.number = directory.mailbox AND mailbox.digest != directory.emails
"""

_FORGET_UNUSED: Final = """
DELETE FROM directory WHERE mailbox IS NULL AND inode NOT IN (
    SELECT inode FROM directory WHERE mailbox IS NULL ORDER BY changed_at DESC LIMIT ?
)
"""


class _Row(NamedTuple):
    inode: int
    mailbox: int | None
    emails: int
    children: int
    changed_at: int

    @property
    def names(self) -> tuple[int, int]:
        """Two numbers that change when the names of the emails or of the subdirectories change."""
        return self.emails, self.children


class DirectoryTimes:
    """The times of directories. The caller begins and commits the transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def update(self, reader: IndexReader) -> tuple[int, Layout] | None:
        """Give a new time to each directory whose names this transaction has changed.

        `reader` uses the same connection. Before the first listing is complete, nothing is written:
        no directory was shown yet. If the layout has changed, return it with its version.
        """
        if not reader.state().complete:
            return None
        now = time.time()
        version = str(reader.layout_version())
        known = self._connection.execute(
            "SELECT value FROM meta WHERE name = ?", (_LAYOUT_VERSION,)
        ).fetchone()
        if known == (version,):
            self._connection.execute(_UPDATE_EMAILS, {"now": math.ceil(now)})
            return None
        mailboxes = reader.mailboxes()
        digests = {row.number: row.digest for row in mailboxes}
        layout = lay_out(mailboxes)
        self._replace(layout, digests, now)
        self._connection.execute(
            "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (_LAYOUT_VERSION, version)
        )
        return int(version), layout

    def _replace(self, layout: Layout, digests: dict[int, int], now: float) -> None:
        rows = self._connection.execute(
            f"SELECT {columns_sql('directory')} FROM directory"  # noqa: S608 - constants
        ).fetchall()
        verify_rows([row[:-1] for row in rows], [row[-1] for row in rows])
        before = [_Row(*row[:-1]) for row in rows]
        # No tool knows a time from before the first listing: this time need not be rounded up.
        seconds = math.ceil(now) if before else int(now)
        by_path = {row.inode: row for row in before}
        by_mailbox = {row.mailbox: row for row in before if row.mailbox is not None}
        after = []
        for directory in layout.directories.values():
            mailbox = _ROOT if directory.mailbox is None else directory.mailbox
            row = _Row(
                directory.inode,
                mailbox,
                digests.get(mailbox, 0),
                directory.children_digest,
                seconds,
            )
            here, earlier = by_path.get(row.inode), by_mailbox.get(mailbox)
            if here is not None and here.mailbox is not None and here.names == row.names:
                after.append(row._replace(changed_at=here.changed_at))
                continue
            if here is not None:
                row = row._replace(changed_at=max(seconds, here.changed_at + 1))
            elif earlier is not None and earlier.names == row.names:
                row = row._replace(changed_at=earlier.changed_at)
            after.append(row)
        self._connection.execute("UPDATE directory SET mailbox = NULL WHERE mailbox IS NOT NULL")
        self._connection.executemany(
            "INSERT OR REPLACE INTO directory (inode, mailbox, emails, children, changed_at)"
            " VALUES (?, ?, ?, ?, ?)",
            after,
        )
        self._connection.execute(_FORGET_UNUSED, (_UNUSED_PATHS,))
