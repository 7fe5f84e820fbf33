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

The mailbox `UNFILED` is a row of `mailbox` while emails are in no described mailbox.

`membership` is clustered by mailbox and name, so a listing is one scan in the right
order. SQLite's BINARY order of UTF-8 is the byte order of `LC_ALL=C sort` and rsync.
"""

from typing import Final

VERSION: Final = 4
"""Incremented when the tables, or the rules for names and inodes, change.

An index of another version is made anew, except those that `MIGRATIONS` can convert.
"""

UNKNOWN_SIZE: Final = -1
"""The value of `file.stated` if it is not known which size the server states."""

UNFILED: Final = ""
"""The id of the mailbox that has the emails in no described mailbox. No server can send this id."""

APPLICATION_ID: Final = 0x6A6D6673  # "jmfs"

_COMMON_TABLES: Final = """
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE mailbox (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    parent_id TEXT,
    role TEXT,
    sort_order INTEGER NOT NULL DEFAULT 0,
    known INTEGER NOT NULL,
    digest INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE file (
    inode INTEGER PRIMARY KEY,
    blob_id TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    links INTEGER NOT NULL DEFAULT 0,
    stated INTEGER,
    UNIQUE (blob_id, received_at)
);

CREATE TABLE email (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    inode INTEGER NOT NULL,
    thread_id TEXT NOT NULL,
    stem TEXT NOT NULL,
    seen INTEGER NOT NULL
);
CREATE INDEX email_inode ON email (inode);

CREATE TABLE membership (
    mailbox INTEGER NOT NULL,
    name TEXT NOT NULL,
    email INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    PRIMARY KEY (mailbox, name)
) WITHOUT ROWID;
CREATE INDEX membership_email ON membership (email);
CREATE INDEX membership_inode ON membership (inode);

CREATE TRIGGER name_added AFTER INSERT ON membership BEGIN
    UPDATE file SET links = links + 1 WHERE inode = new.inode;
END;
CREATE TRIGGER name_removed AFTER DELETE ON membership BEGIN
    UPDATE file SET links = links - 1 WHERE inode = old.inode;
END;

CREATE TABLE keyword (
    email INTEGER NOT NULL,
    keyword TEXT NOT NULL,
    PRIMARY KEY (email, keyword)
) WITHOUT ROWID;

CREATE TABLE journal (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    mailbox INTEGER NOT NULL,
    name TEXT NOT NULL,
    inode INTEGER NOT NULL
);

CREATE TABLE departure (
    email_id TEXT PRIMARY KEY
) WITHOUT ROWID;

"""

_TABLES_OF_VERSION_2: Final = """
CREATE TABLE confirmed (
    blob_id TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    stated INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE unconfirmed (
    blob_id TEXT PRIMARY KEY
) WITHOUT ROWID;

CREATE TABLE staged (
    number INTEGER PRIMARY KEY,
    email_id TEXT NOT NULL UNIQUE,
    blob_id TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    reused INTEGER NOT NULL,
    email TEXT NOT NULL
);
CREATE INDEX staged_blob ON staged (blob_id, received_at);
"""

_TABLES_OF_VERSION_3: Final = """
CREATE TABLE listed (
    number INTEGER PRIMARY KEY,
    email_id TEXT NOT NULL UNIQUE,
    fetched INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    mailbox_ids TEXT
);

CREATE TABLE bad_email (
    email_id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    since REAL NOT NULL,
    mailbox_ids TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE undescribed (
    email INTEGER NOT NULL,
    mailbox_id TEXT NOT NULL,
    PRIMARY KEY (email, mailbox_id)
) WITHOUT ROWID;
"""

_TABLES_OF_VERSION_4: Final = """
CREATE TABLE directory (
    inode INTEGER PRIMARY KEY,
    mailbox INTEGER,
    emails INTEGER NOT NULL,
    children INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
);
"""

TABLES: Final = _COMMON_TABLES + _TABLES_OF_VERSION_2 + _TABLES_OF_VERSION_3 + _TABLES_OF_VERSION_4
"""`file.stated` is the size that the server states; NULL if it is `size`.

`directory.mailbox` is 0 for the root, NULL if there is no such directory now. `emails` and
`children` are digests of its names.
"""

MIGRATIONS: Final = {
    1: f"""
ALTER TABLE file ADD COLUMN stated INTEGER;
{_TABLES_OF_VERSION_2}
{_TABLES_OF_VERSION_3}
{_TABLES_OF_VERSION_4}
INSERT INTO unconfirmed (blob_id) SELECT blob_id FROM correction;
UPDATE file SET stated = {UNKNOWN_SIZE} WHERE blob_id IN (SELECT blob_id FROM unconfirmed);
DROP TABLE correction;
""",  # noqa: S608 - constants
    2: _TABLES_OF_VERSION_3 + _TABLES_OF_VERSION_4,
    3: _TABLES_OF_VERSION_4,
}
"""What converts an index of an earlier version to this version, by version."""
