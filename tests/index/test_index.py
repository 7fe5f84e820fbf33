"""The index: emails and their names, transactions, damage and crashes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmapfs.index.checksums import add_function
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState
from jmapfs.index.schema import UNFILED
from jmapfs.index.writer import IndexWriter
from jmapfs.inodes import inode_range
from jmapfs.jmap.types import Email
from jmapfs.names import key
from tests.indexed import email, file_name, mailbox, put_mailboxes
from tests.waits import wait_until


def name(blob: str, number: int = 1, *, at: int = 1000) -> str:
    """Return the name of the file of an email with that blob."""
    return file_name(email("", blob=blob, at=at), number)


@pytest.fixture
def database(tmp_path: Path) -> IndexDatabase:
    database = IndexDatabase(tmp_path)
    database.prepare()
    return database


@pytest.fixture
def writer(database: IndexDatabase) -> Iterator[IndexWriter]:
    with database.writer() as writer:
        with writer.transaction():
            writer.replace_mailboxes([mailbox("A", "Inbox"), mailbox("B", "Work")])
        yield writer


@pytest.fixture
def reader(database: IndexDatabase) -> Iterator[IndexReader]:
    with database.reader() as reader:
        yield reader


def put(writer: IndexWriter, *emails: Email) -> None:
    with writer.transaction():
        writer.put_emails(emails)


def names(reader: IndexReader, mailbox_id: str) -> list[str]:
    number = next(row.number for row in reader.mailboxes() if row.id == mailbox_id)
    return [found.decode() for found in reader.listing(number).names]


def digest(reader: IndexReader, mailbox_id: str) -> int:
    return next(row.digest for row in reader.mailboxes() if row.id == mailbox_id)


def test_an_email_is_one_file_in_all_its_mailboxes(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("1", "A", "B", size=77))
    file = reader.named_file(1, name("b1"))
    assert file is not None
    assert (file.size, file.received_at, file.links, file.blob_id) == (77, 1000, 2, "b1")
    assert reader.named_file(2, name("b1")) == reader.file(file.inode) == file


def test_two_emails_with_one_blob_have_two_names_and_one_inode(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("1", "A", blob="x"), email("2", "A", blob="x"), email("3", "A", blob="x"))
    assert names(reader, "A") == [name("x"), name("x", 2), name("x", 3)]
    assert len(set(reader.listing(1).inodes)) == 1
    assert set(reader.listing(1).links) == {3}


@pytest.mark.parametrize("gone", ["1", "2", "3"])
def test_removing_a_copy_frees_the_last_name(
    writer: IndexWriter, reader: IndexReader, gone: str
) -> None:
    put(writer, *(email(i, "A", blob="x") for i in "123"))
    before = reader.listing(1).inodes[0]
    with writer.transaction():
        writer.remove_emails([gone])
    assert names(reader, "A") == [name("x"), name("x", 2)]
    assert reader.listing(1).inodes[0] == before


def test_a_changed_email_id_changes_no_name_and_no_inode(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("old", "A", blob="x"))
    before = reader.listing(1), digest(reader, "A")
    with writer.transaction():
        writer.put_emails([email("new", "A", blob="x")])
        writer.remove_emails(["old"])
    assert (reader.listing(1), digest(reader, "A")) == before


def test_changed_mailbox_ids_keep_their_rows(writer: IndexWriter, reader: IndexReader) -> None:
    put(writer, email("1", "A"))
    with writer.transaction():
        gone = writer.replace_mailboxes([mailbox("A2", "Inbox"), mailbox("B2", "Work")])
    assert gone == []
    assert [(row.number, row.id) for row in reader.mailboxes()] == [(1, "A2"), (2, "B2")]
    assert names(reader, "A2") == [name("b1")]


def test_a_gone_mailbox_stays_while_it_has_emails(writer: IndexWriter, reader: IndexReader) -> None:
    put(writer, email("1", "A"))
    with writer.transaction():
        assert writer.replace_mailboxes([mailbox("B", "Work")]) == ["A"]
    with writer.transaction():
        writer.retire_mailboxes(["A"])
    assert names(reader, "A")
    assert writer.orphaned_emails() == ["1"]
    put(writer, email("1", "B"))
    with writer.transaction():
        writer.retire_mailboxes([])
    assert [row.id for row in reader.mailboxes()] == ["B"]


def test_putting_an_email_cancels_its_pending_removal(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("1", "A"), email("2", "A"))
    with writer.transaction():
        writer.add_pending_removals(["1", "2"])
    put(writer, email("1", "A"))
    assert writer.has_pending_removals()
    with writer.transaction():
        writer.apply_pending_removals()
    assert names(reader, "A") == [name("b1")]
    assert not writer.has_pending_removals()


def test_moving_changes_the_digests_and_flagging_does_not(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("1", "A"))
    inode, of_a, of_b = reader.listing(1).inodes[0], digest(reader, "A"), digest(reader, "B")
    put(writer, email("1", "A", keywords=("$seen",)))
    assert (digest(reader, "A"), digest(reader, "B")) == (of_a, of_b)
    put(writer, email("1", "B", keywords=("$seen",)))
    assert (names(reader, "A"), names(reader, "B")) == ([], [name("b1")])
    assert reader.listing(2).inodes[0] == inode
    assert digest(reader, "A") != of_a
    assert digest(reader, "B") != of_b
    put(writer, email("1", "A"))
    assert digest(reader, "A") == of_a


def test_an_orphaned_email_stays_in_the_tree(writer: IndexWriter, reader: IndexReader) -> None:
    put(writer, email("1", "Z"))
    assert writer.orphaned_emails() == ["1"]
    assert names(reader, "Z") == [name("b1")]
    with writer.transaction():
        put_mailboxes(writer, mailbox("Z", "Late"))
    assert writer.orphaned_emails() == []
    assert names(reader, "Z") == [name("b1")]


def file_orphans(writer: IndexWriter) -> None:
    with writer.transaction():
        writer.file_orphaned_emails()


def shown(reader: IndexReader) -> dict[str, set[str]]:
    return {row.id: set(names(reader, row.id)) for row in reader.mailboxes()}


def test_an_email_in_no_mailbox_is_unfiled(writer: IndexWriter, reader: IndexReader) -> None:
    put(writer, email("1"), email("2", "A"))
    [unfiled] = [row for row in reader.mailboxes() if row.id == UNFILED]
    assert unfiled.name == "unfiled"
    assert shown(reader) == {UNFILED: {name("b1")}, "A": {name("b2")}, "B": set()}
    assert writer.orphaned_emails() == []
    assert reader.counts().mailboxes == 2
    assert reader.count_homeless() == 1
    put(writer, email("1", "A"))
    file_orphans(writer)
    assert shown(reader) == {"A": {name("b1"), name("b2")}, "B": set()}
    put(writer, email("1"))
    with writer.transaction():
        writer.remove_emails(["1"])
    file_orphans(writer)
    assert shown(reader) == {"A": {name("b2")}, "B": set()}


def test_an_email_only_in_undescribed_mailboxes_is_unfiled(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("1", "Y", "Z"), email("2", "Z", blob="b1"), email("3", "A", "Z", blob="b1"))
    file_orphans(writer)
    assert reader.count_homeless() == 0
    expected = {UNFILED: {name("b1"), name("b1", 2)}, "A": {name("b1")}, "B": set()}
    assert shown(reader) == expected
    assert set(reader.listing(1).links) == {3}
    assert writer.orphaned_emails() == []
    # An update changes nothing, and asks for nothing again.
    position = reader.journal_position()
    put(writer, email("1", "Y", "Z", keywords=("$seen",)), email("2", "Z", blob="b1"))
    assert writer.orphaned_emails() == []
    assert shown(reader) == expected
    assert reader.journal_position() == position


def test_an_unfiled_email_moves_to_a_mailbox_that_is_described_later(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("1", "Y", "Z"), email("2", "Z"), email("3", "X"), email("4", "A", "Z"))
    file_orphans(writer)
    with writer.transaction():
        assert (
            writer.replace_mailboxes(
                [mailbox("A", "Inbox"), mailbox("B", "Work"), mailbox("Z", "Late")]
            )
            == []
        )
    assert shown(reader) == {
        UNFILED: {name("b3")},
        "A": {name("b4")},
        "B": set(),
        "Z": {name("b1"), name("b2"), name("b4")},
    }
    put(writer, email("1", "Z"), email("3", "B"))
    file_orphans(writer)
    assert UNFILED not in shown(reader)
    assert writer.orphaned_emails() == []


def test_a_staged_email_in_undescribed_mailboxes_is_unchanged(
    writer: IndexWriter, reader: IndexReader
) -> None:
    emails = [email("1", "Z"), email("2"), email("3", "A", "Z")]
    put(writer, *emails)
    file_orphans(writer)
    before = shown(reader)
    with writer.transaction():
        writer.staged.begin()
        writer.staged.add(emails, reuse_proves_reset=True)
        writer.staged.apply(reset=False)
    assert shown(reader) == before


def test_a_listing_does_not_overwrite_a_corrected_size(
    writer: IndexWriter, reader: IndexReader
) -> None:
    put(writer, email("1", "A", size=10))
    inode = reader.listing(1).inodes[0]
    with writer.transaction():
        assert writer.correct_size("b1", 12) == [inode]
    with writer.transaction():
        writer.remove_emails(["1"])
        writer.put_emails([email("1", "A", size=10)])
    assert reader.listing(1).sizes[0] == 12


def test_emails_not_put_since_the_begin_are_unlisted(writer: IndexWriter) -> None:
    put(writer, email("1", "A"), email("2", "A"))
    with writer.transaction():
        writer.mark_unlisted()
    put(writer, email("2", "A"), email("3", "A"))
    assert writer.unlisted_emails("", 10) == ["1"]


def test_a_transaction_is_all_or_nothing(writer: IndexWriter, reader: IndexReader) -> None:
    def interrupted() -> None:
        with writer.transaction():
            writer.put_emails([email("1", "A")])
            writer.set_state(AccountState(email_state="new"))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert names(reader, "A") == []
    assert reader.state().email_state == ""


def test_names_in_the_table_of_states_are_those_of_earlier_versions(
    database: IndexDatabase, writer: IndexWriter
) -> None:
    with writer.transaction():
        writer.set_state(AccountState(complete=True, consistent=False))
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        values = dict(connection.execute("SELECT name, value FROM meta"))
        assert values.keys() >= {"server", "account_id", "email_state", "complete", "synced_at"}
        assert values["settled"] == "false"
    assert not writer.state().consistent


def test_a_pinned_reader_sees_one_state(writer: IndexWriter, reader: IndexReader) -> None:
    put(writer, email("1", "A"))
    with reader.pinned():
        before = names(reader, "A")
        put(writer, email("2", "A"))
        assert names(reader, "A") == before
    assert len(names(reader, "A")) == 2


@pytest.fixture
def narrow_inodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hash in an inode so small that emails of one second often collide."""
    monkeypatch.setattr("jmapfs.inodes._RESERVED", 1 << 29)

    def narrow_range(received_at: int) -> range:
        first = (received_at + 1) << 29
        return range(first, first + 32)

    monkeypatch.setattr("jmapfs.inodes.inode_range", narrow_range)
    monkeypatch.setattr("jmapfs.index.file_inodes.inode_range", narrow_range)


@pytest.mark.usefixtures("narrow_inodes")
@settings(max_examples=25, deadline=None)
@given(st.permutations([f"blob{number}" for number in range(20)]))
def test_colliding_inodes_do_not_depend_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, blobs: list[str]
) -> None:
    results = []
    for order in (blobs, sorted(blobs)):
        database = IndexDatabase(tmp_path_factory.mktemp("index"))
        database.prepare()
        with database.writer() as writer, database.reader() as reader:
            put(writer, *(email(blob, "A", blob=blob, at=5) for blob in order))
            with writer.transaction():
                writer.reassign_colliding_inodes()
            listing = reader.listing(1)
            assert len(set(listing.inodes)) == 20
            for inode, file_name_ in zip(listing.inodes, listing.names, strict=True):
                file = reader.file(inode)
                assert file is not None
                assert key(file.blob_id) in file_name_.decode()
                assert file.links == 1
            results.append(listing)
    assert results[0] == results[1]


def test_the_real_inode_range_is_wide() -> None:
    assert len(inode_range(5)) == 1 << 24


def test_an_index_is_private_and_kept_by_prepare(database: IndexDatabase) -> None:
    assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
    database.prepare()
    with database.writer() as writer:
        put(writer, email("1", "A"))
    database.prepare()
    with database.reader() as reader:
        assert reader.counts().emails == 1


@pytest.mark.parametrize(
    "damage", ["garbage", "version", "empty", "foreign", "state", "listing", "text"]
)
def test_a_damaged_or_foreign_index_is_replaced(database: IndexDatabase, damage: str) -> None:
    with database.writer() as writer:
        put(writer, email("1", "A"))
    match damage:
        case "garbage":
            database.path.write_bytes(b"not a database" * 1000)
        case "empty":
            database.path.write_bytes(b"")
        case "state" | "listing":
            value = "complete" if damage == "state" else damage
            with sqlite3.connect(database.path) as connection:
                add_function(connection)
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, '7')", (value,))
            connection.close()
        case "text":
            with database.writer() as writer, writer.transaction():
                writer.set_state(AccountState(email_state="MARKED"))
            data = database.path.read_bytes()
            assert b"MARKED" in data
            database.path.write_bytes(data.replace(b"MARKED", b"MARK\xff\xff"))
        case _:
            pragma = "user_version" if damage == "version" else "application_id"
            connection = sqlite3.connect(database.path)
            connection.execute(f"PRAGMA {pragma} = 4711")
            connection.close()
    database.prepare()
    with database.reader() as reader:
        assert reader.counts().emails == 0


@pytest.mark.parametrize("round_", range(5))
def test_kill_9_leaves_a_committed_state(tmp_path: Path, round_: int) -> None:
    """Each transaction stores the number of emails as the state, so that both can be compared."""
    database = IndexDatabase(tmp_path)
    database.prepare()
    child = os.fork()
    if child == 0:
        with database.writer() as writer:
            for number in range(1, 100_000):
                with writer.transaction():
                    writer.put_emails([email(f"{number}-{part}", "A") for part in range(3)])
                    writer.set_state(AccountState(email_state=str(3 * number)))
        os._exit(0)
    try:
        with database.reader() as reader:
            wait_until(lambda: reader.counts().emails > 20 * round_)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    database.prepare()
    with database.reader() as reader:
        assert reader.counts().emails == int(reader.state().email_state or 0)
        assert len(reader.listing(1)) == reader.counts().emails
