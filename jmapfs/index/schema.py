"""The tables of the index.

    mailbox      one row a mailbox
    email        one row an Email: its id, and the file it is
    file         one row a blob and time of receipt: the inode, the size, the number of names
    membership   one row a name: which mailbox, which email, which file
    keyword      one row a keyword of an email
    correction   sizes that the server states wrongly, by what its bytes said
    departure    ids of emails that are gone, to be removed at the end of a chain of changes
    journal      names that came and went, for the kernels of mounts
    meta         states and progress, by name

`membership` is clustered by mailbox and name, so a listing is one scan in the order in which it
is shown. SQLite's BINARY order of UTF-8 is the byte order that `LC_ALL=C sort` and rsync use.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
"""Goes up when the tables, or the rules for names and inodes, change: the index is made anew."""

APPLICATION_ID: Final = 0x6A6D6673  # "jmfs", so that file(1) and we know our own

TABLES: Final = """
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

CREATE TABLE correction (
    blob_id TEXT PRIMARY KEY,
    size INTEGER NOT NULL
) WITHOUT ROWID;
"""
