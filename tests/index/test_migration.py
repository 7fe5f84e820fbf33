"""An index of version 1, 2 or 3 is converted: nothing has to be listed again."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tarfile
import time
from pathlib import Path

import pytest

from jmapfs.errors import StorageError
from jmapfs.index import schema
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.index.layout import lay_out
from jmapfs.jmap.types import BadEmail, Email
from jmapfs.locking import process_lock
from tests.compatibility.test_previous_version import FILES
from tests.indexed import email


@pytest.fixture
def database(tmp_path: Path) -> IndexDatabase:
    """Return an index that commit d5894c1 has written, with one corrected size."""
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path / "files", filter="data")
    [old] = (tmp_path / "files").rglob("index.sqlite")
    (tmp_path / "account").mkdir()
    shutil.copy(old, tmp_path / "account")
    database = IndexDatabase(tmp_path / "account")
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        blob_id, size = connection.execute("SELECT blob_id, size FROM file LIMIT 1").fetchone()
        connection.execute("INSERT INTO correction VALUES (?, ?)", (blob_id, size))
        connection.commit()
    return database


def rows(database: IndexDatabase) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        return connection.execute(
            "SELECT mailbox, name, inode, blob_id, received_at, size, links"
            " FROM membership JOIN file USING (inode) ORDER BY mailbox, name"
        ).fetchall()


def test_version_1_is_converted(database: IndexDatabase) -> None:
    before = rows(database)
    assert before
    for _ in range(2):
        database.prepare()
        assert rows(database) == before
    with database.reader() as reader:
        assert reader.state().complete
        assert reader.epoch() == ""
        assert reader.state().stale is None
        [blob] = reader.unconfirmed_blobs()
        record = reader.file(int(str(before[0][2])))
        assert record is not None
        assert record.content_key == record.blob_id
        assert blob in {str(row[3]) for row in before}


# What the versions added to the tables of the version before.
STEPS = {
    2: """
        ALTER TABLE file ADD COLUMN stated INTEGER;
        CREATE TABLE confirmed (
            blob_id TEXT PRIMARY KEY, size INTEGER NOT NULL, stated INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE unconfirmed (blob_id TEXT PRIMARY KEY) WITHOUT ROWID;
        CREATE TABLE staged (
            number INTEGER PRIMARY KEY, email_id TEXT NOT NULL UNIQUE, blob_id TEXT NOT NULL,
            received_at INTEGER NOT NULL, size INTEGER NOT NULL, reused INTEGER NOT NULL,
            email TEXT NOT NULL
        );
        CREATE INDEX staged_blob ON staged (blob_id, received_at);
        DROP TABLE correction;
    """,
    3: """
        CREATE TABLE listed (
            number INTEGER PRIMARY KEY, email_id TEXT NOT NULL UNIQUE,
            fetched INTEGER NOT NULL DEFAULT 0, reason TEXT, mailbox_ids TEXT
        );
        CREATE TABLE bad_email (
            email_id TEXT PRIMARY KEY, reason TEXT NOT NULL, since REAL NOT NULL,
            mailbox_ids TEXT NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE undescribed (
            email INTEGER NOT NULL, mailbox_id TEXT NOT NULL, PRIMARY KEY (email, mailbox_id)
        ) WITHOUT ROWID;
    """,
    4: """
        CREATE TABLE directory (
            inode INTEGER PRIMARY KEY, mailbox INTEGER, emails INTEGER NOT NULL,
            children INTEGER NOT NULL, changed_at INTEGER NOT NULL
        );
    """,
}


def make_newer(database: IndexDatabase, version: int) -> None:
    """Turn the index of version 1 into one of a later version, as that version would have."""
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        for step in range(2, version + 1):
            connection.executescript(STEPS[step])
        connection.execute(f"PRAGMA user_version = {version}")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_directories_get_the_time_of_the_conversion(database: IndexDatabase, version: int) -> None:
    make_newer(database, version)
    before = int(time.time())
    database.prepare()
    with database.reader() as reader:
        inodes = lay_out(reader.mailboxes()).directories
        times = {inode: reader.directory_time(inode) for inode in inodes}
        assert len(times) > 1
        assert all(before <= at <= time.time() for at in times.values())
    # Nothing changes if there is nothing to convert.
    database.prepare()
    with database.writer() as writer:
        with writer.transaction():
            writer.note_change()
        assert {inode: writer.directory_time(inode) for inode in inodes} == times


def test_version_2_is_converted(database: IndexDatabase) -> None:
    before = rows(database)
    make_newer(database, 2)
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        # Version 2 listed pages of emails, not ids.
        progress = '{"email_state": "s", "anchor": "M1", "listed": 5}'
        connection.execute("INSERT INTO meta VALUES ('listing', ?)", (progress,))
        connection.commit()
    database.prepare()
    assert rows(database) == before
    with database.writer() as writer:
        assert writer.bad_emails() == []
        state = writer.state()
        assert (state.shortfall, state.compared_at) == (None, 0.0)
        interrupted = writer.listing_progress()
        assert interrupted is not None
        assert interrupted.ids is None
        writer.put_bad_emails([BadEmail(id="M1", reason="no size")])
        assert [bad.id for bad in writer.bad_emails()] == ["M1"]


def test_an_interrupted_conversion_changes_nothing(
    database: IndexDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(database)

    def interrupted(connection: sqlite3.Connection, version: int) -> None:
        schema.migrate(connection, version)
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("jmapfs.index.database.migrate", interrupted)
        with pytest.raises(StorageError):
            database.prepare()
    assert rows(database) == before
    database.prepare()
    assert rows(database) == before


def test_the_stated_size_replaces_an_unconfirmed_one(database: IndexDatabase) -> None:
    database.prepare()
    with database.writer() as writer:
        [blob] = writer.unconfirmed_blobs()
        [(email_id, received_at), *_] = writer.emails_of_blob(blob)
        stated: Email = email(email_id, "any", blob=blob, at=received_at, size=12345)
        with writer.transaction():
            writer.set_stated_sizes([stated])
        assert writer.unconfirmed_blobs() == []
        sizes = [row[5] for row in rows(database) if row[3] == blob]
        assert set(sizes) == {12345}


def test_an_older_process_that_writes_the_index_is_named(database: IndexDatabase) -> None:
    with (
        process_lock(database.path.parent / "lock", "the account"),
        WriterLease(database) as lease,
        pytest.raises(StorageError, match="another version"),
    ):
        lease.try_acquire()
