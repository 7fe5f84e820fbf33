"""The tables of the index.

    mailbox      a row for each mailbox
    email        a row for each Email: its id and its file
    file         a row for each blob and time of receipt: the inode, the size, the number of names
    membership   a row for each name: its mailbox, its email, its file
    undescribed  mailboxes of emails that the server has not described, even when asked again
    keyword      a row for each keyword of an email
    confirmed    the true sizes of blobs whose size the server states wrongly
    unconfirmed  blobs whose size version 1 took from content that was not confirmed
    staged       emails of a new listing of the account, before they are compared and applied
    listed       ids of a listing, and which of their emails are fetched or bad
    bad_email    emails that the account has, but that cannot be shown
    departure    ids of emails to be removed at the end of a chain of changes (pending removals)
    journal      names that were added or removed, for the kernels of mounts
    directory    when the names of each directory changed last
    meta         states and progress, by name

Each row has a checksum of its columns, which SQLite computes when it writes the row. A row that is
damaged must not be changed: its new checksum would be right. Triggers prevent that.

The mailbox `UNFILED` is a row of `mailbox` while emails are in no described mailbox.

`membership` is clustered by mailbox and name, so a listing is one scan in the right
order. SQLite's BINARY order of UTF-8 is the byte order of `LC_ALL=C sort` and rsync.
"""

import sqlite3
from collections.abc import Mapping
from typing import Final

from jmapfs.index.checksums import FUNCTION

VERSION: Final = 5
"""Incremented when the tables, or the rules for names and inodes, change.

An index of another version is made anew, except those that `migrate` can convert.
"""

OLDEST_VERSION: Final = 1
"""The oldest version that `migrate` can convert."""

UNKNOWN_SIZE: Final = -1
"""The value of `file.stated` if it is not known which size the server states."""

UNFILED: Final = ""
"""The id of the mailbox that has the emails in no described mailbox. No server can send this id."""

APPLICATION_ID: Final = 0x6A6D6673  # "jmfs"

_DEFINITIONS: Final = {
    "meta": ("name TEXT PRIMARY KEY", "value TEXT NOT NULL"),
    "mailbox": (
        "number INTEGER PRIMARY KEY",
        "id TEXT NOT NULL UNIQUE",
        "name TEXT NOT NULL",
        "parent_id TEXT",
        "role TEXT",
        "sort_order INTEGER NOT NULL DEFAULT 0",
        "known INTEGER NOT NULL",
        "digest INTEGER NOT NULL DEFAULT 0",
    ),
    "file": (
        "inode INTEGER PRIMARY KEY",
        "blob_id TEXT NOT NULL",
        "received_at INTEGER NOT NULL",
        "size INTEGER NOT NULL",
        "attempt INTEGER NOT NULL",
        "links INTEGER NOT NULL DEFAULT 0",
        "stated INTEGER",
    ),
    "email": (
        "number INTEGER PRIMARY KEY",
        "id TEXT NOT NULL UNIQUE",
        "inode INTEGER NOT NULL",
        "thread_id TEXT NOT NULL",
        "stem TEXT NOT NULL",
        "seen INTEGER NOT NULL",
        "keywords INTEGER NOT NULL DEFAULT 0",
    ),
    "membership": (
        "mailbox INTEGER NOT NULL",
        "name TEXT NOT NULL",
        "email INTEGER NOT NULL",
        "inode INTEGER NOT NULL",
    ),
    "keyword": ("email INTEGER NOT NULL", "keyword TEXT NOT NULL"),
    "journal": (
        "sequence INTEGER PRIMARY KEY AUTOINCREMENT",
        "mailbox INTEGER NOT NULL",
        "name TEXT NOT NULL",
        "inode INTEGER NOT NULL",
    ),
    "departure": ("email_id TEXT PRIMARY KEY",),
    "confirmed": (
        "blob_id TEXT PRIMARY KEY",
        "size INTEGER NOT NULL",
        "stated INTEGER NOT NULL",
    ),
    "unconfirmed": ("blob_id TEXT PRIMARY KEY",),
    "staged": (
        "number INTEGER PRIMARY KEY",
        "email_id TEXT NOT NULL UNIQUE",
        "blob_id TEXT NOT NULL",
        "received_at INTEGER NOT NULL",
        "size INTEGER NOT NULL",
        "reused INTEGER NOT NULL",
        "email TEXT NOT NULL",
    ),
    "listed": (
        "number INTEGER PRIMARY KEY",
        "email_id TEXT NOT NULL UNIQUE",
        "fetched INTEGER NOT NULL DEFAULT 0",
        "reason TEXT",
        "mailbox_ids TEXT",
    ),
    "bad_email": (
        "email_id TEXT PRIMARY KEY",
        "reason TEXT NOT NULL",
        "since REAL NOT NULL",
        "mailbox_ids TEXT NOT NULL",
    ),
    "undescribed": ("email INTEGER NOT NULL", "mailbox_id TEXT NOT NULL"),
    "directory": (
        "inode INTEGER PRIMARY KEY",
        "mailbox INTEGER",
        "emails INTEGER NOT NULL",
        "children INTEGER NOT NULL",
        "changed_at INTEGER NOT NULL",
    ),
}
"""`file.stated` is the size that the server states; NULL if it is `size`.

`email.keywords` is a digest of the keywords of the email.
`directory.mailbox` is 0 for the root, NULL if there is no such directory now. `emails` and
`children` are digests of its names.
"""

# What comes after the columns of a table.
_CONSTRAINTS: Final = {
    "file": ", UNIQUE (blob_id, received_at))",
    "membership": ", PRIMARY KEY (mailbox, name)) WITHOUT ROWID",
    "keyword": ", PRIMARY KEY (email, keyword)) WITHOUT ROWID",
    "undescribed": ", PRIMARY KEY (email, mailbox_id)) WITHOUT ROWID",
    **dict.fromkeys(
        ("meta", "departure", "confirmed", "unconfirmed", "bad_email"), ") WITHOUT ROWID"
    ),
}

_COLUMNS: Final = {
    table: tuple(each.split()[0] for each in columns) for table, columns in _DEFINITIONS.items()
}

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = _COLUMNS | {
    # Without `attempt`, lookups and listings read less. A wrong `attempt` does no harm.
    "file": ("inode", "blob_id", "received_at", "size", "links", "stated"),
}
"""The columns of each table that its checksum covers, in this order."""

_INDEXES: Final = """
CREATE INDEX email_inode ON email (inode);
CREATE INDEX membership_email ON membership (email);
CREATE INDEX membership_inode ON membership (inode);
CREATE INDEX staged_blob ON staged (blob_id, received_at);
CREATE TRIGGER name_added AFTER INSERT ON membership BEGIN
    UPDATE file SET links = links + 1 WHERE inode = new.inode;
END;
CREATE TRIGGER name_removed AFTER DELETE ON membership BEGIN
    UPDATE file SET links = links - 1 WHERE inode = old.inode;
END;
"""

_GUARDED: Final = ("mailbox", "file", "email", "membership", "directory")


def columns_sql(table: str) -> str:
    """Return the columns of a table and their checksum, for a SELECT."""
    return ", ".join(f"{table}.{column}" for column in (*COLUMNS[table], "checksum"))


def checksum_sql(table: str, row: str = "") -> str:
    """Return the SQL expression for the checksum of a row; `row` is a prefix such as `old.`."""
    return f"{FUNCTION}({', '.join(row + column for column in COLUMNS[table])})"


def _table_sql(table: str) -> str:
    checksum = f"checksum INTEGER GENERATED ALWAYS AS ({checksum_sql(table)}) STORED"
    columns = ", ".join((*_DEFINITIONS[table], checksum))
    return f"CREATE TABLE {table} ({columns}{_CONSTRAINTS.get(table, ')')};"


def _guard_sql(table: str) -> str:
    return "".join(
        f"CREATE TRIGGER {table}_{action.lower()} BEFORE {action} ON {table}"
        f" WHEN old.checksum IS NOT {checksum_sql(table, 'old.')}"
        " BEGIN SELECT RAISE(ABORT, 'a row of the index is damaged'); END;"
        for action in ("UPDATE", "DELETE")
    )


_INDEXES_AND_TRIGGERS: Final = _INDEXES + "".join(map(_guard_sql, _GUARDED))

TABLES: Final = "".join(map(_table_sql, _DEFINITIONS)) + _INDEXES_AND_TRIGGERS
"""Creates all tables."""

# Version 1 has no stated sizes, and has taken sizes from content that was not confirmed.
_AFTER_VERSION_1: Final = f"""
INSERT INTO unconfirmed (blob_id) SELECT blob_id FROM correction;
UPDATE file SET stated = {UNKNOWN_SIZE} WHERE blob_id IN (SELECT blob_id FROM unconfirmed);
DROP TABLE correction;
"""  # noqa: S608 - a constant


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Convert the tables of an earlier version, within a transaction.

    The rows of each table are copied to a new table, because a column with a checksum cannot be
    added. The caller computes the digests of the mailboxes again.
    """
    for name in ("name_added", "name_removed"):
        connection.execute(f"DROP TRIGGER {name}")
    existing = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    for table, columns in _COLUMNS.items():
        if table not in existing:
            connection.execute(_table_sql(table))
            continue
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
        connection.execute(_table_sql(table))
        present = [row[1] for row in connection.execute(f"PRAGMA table_info(old_{table})")]
        names = ", ".join(column for column in columns if column in present)
        connection.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM old_{table}")  # noqa: S608 - constants
        connection.execute(f"DROP TABLE old_{table}")
    script = _INDEXES_AND_TRIGGERS
    if version == 1:
        script = _AFTER_VERSION_1 + script
    for statement in _statements(script):
        connection.execute(statement)


def _statements(script: str) -> list[str]:
    """Split a script; `executescript` would commit the transaction."""
    statements, current = [], ""
    for line in script.replace(";", ";\n").splitlines():
        current += line + "\n"
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
