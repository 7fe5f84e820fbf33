"""Damage to the index: what a tree shows is right, or the damage is reported."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.errors import DamageError, EntryNotFoundError, StorageError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, EmailRow
from jmapfs.index.writer import IndexWriter
from jmapfs.inodes import ROOT_INODE
from jmapfs.sqlite import is_damage
from jmapfs.tree.export import FIRST, EmailExport
from jmapfs.tree.tree import Attributes, Kind, Tree
from tests.damage import flip_bits
from tests.indexed import email, mailbox

LEAF_OF_INDEX = 10

Shown = dict[str, tuple[Attributes, str]]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the file of an index with some mailboxes, copies, and two names of one file."""
    directory = tmp_path_factory.mktemp("intact")
    database = IndexDatabase(directory)
    database.prepare()
    with database.writer() as writer:
        with writer.transaction():
            writer.replace_mailboxes(
                [
                    mailbox("A", "Inbox", role="inbox"),
                    mailbox("B", "Archive"),
                    mailbox("C", "2023", "B"),
                    mailbox("D", "Empty"),
                ]
            )
            writer.put_emails(
                email(
                    f"M{number}",
                    *(("A", "C") if number % 7 == 0 else ("A",) if number % 2 else ("B",)),
                    blob=f"G{number // 5 * 5 if number % 5 == 1 else number:020}",
                    at=1_700_000_000 + 1000 * (number // 5 if number % 5 < 2 else number),
                    size=1000 + number,
                    keywords=("$seen",) if number % 3 else (),
                    subject=f"Subject number {number}",
                    sender="Alice",
                )
                for number in range(120)
            )
            writer.set_state(
                AccountState(
                    account_id="a", email_state="1", mailbox_state="1", complete=True, epoch="e"
                )
            )
        with writer.transaction():
            writer.remove_emails(["M11"])
    return database.path.read_bytes()


def walk(reader: IndexReader) -> Shown:
    """Return what a tree shows, by paths; each name is listed and looked up, each file opened."""
    shown: Shown = {}
    tree, listing_tree = Tree(reader), Tree(reader)
    pending = [(ROOT_INODE, "")]
    while pending:
        inode, path = pending.pop()
        shown[path] = tree.attributes(inode), ""
        for name, attributes in listing_tree.listing(inode).entries():
            if name == b".jmapfs.json":
                continue
            assert tree.lookup(inode, name) == attributes
            below = f"{path}/{name.decode()}"
            if attributes.kind is Kind.DIRECTORY:
                pending.append((attributes.inode, below))
            else:
                shown[below] = attributes, tree.file(attributes.inode).content_key
    return shown


def look_up(reader: IndexReader, truth: Shown) -> Shown:
    """Return what the names and inodes of the truth lead to, without a listing."""
    tree = Tree(reader)
    inodes = {path: attributes.inode for path, (attributes, _) in truth.items()}
    shown: Shown = {"": (tree.attributes(ROOT_INODE), "")}
    for path in sorted(truth):
        if path:
            parent, _, name = path.rpartition("/")
            with contextlib.suppress(EntryNotFoundError):
                attributes = tree.lookup(inodes[parent], name.encode())
                is_file = attributes.kind is Kind.FILE
                key = tree.file(inodes[path]).content_key if is_file else ""
                shown[path] = attributes, key
    return shown


def export(reader: IndexReader) -> list[EmailRow]:
    """Return the emails that a snapshot would have."""
    with reader.pinned():
        layout = Tree(reader).layout()
        emails = EmailExport(reader, layout, layout.root)
        rows: list[EmailRow] = []
        position: int | None = FIRST
        while position is not None:
            part = emails.after(position, 40)
            rows += part.emails
            position = part.position
        return rows


@contextlib.contextmanager
def damage_reported() -> Iterator[list[bool]]:
    """Accept errors that are damage; the list is empty if there was none."""
    reported: list[bool] = []
    try:
        yield reported
    except (sqlite3.Error, StorageError) as error:
        if not is_damage(error):
            raise
        reported.append(True)


@pytest.mark.parametrize("runs", [200, pytest.param(4000, marks=pytest.mark.long)])
def test_flipped_bits_never_change_what_is_shown(intact: bytes, tmp_path: Path, runs: int) -> None:
    database = IndexDatabase(tmp_path)
    database.path.write_bytes(intact)
    with database.reader() as reader:
        shown, emails = walk(reader), export(reader)
        assert len(shown) > 120
        assert len(emails) == 119
        assert look_up(reader, shown) == shown
        reader.check()
    chance = random.Random(15)
    reported = {"walk": 0, "look up": 0, "export": 0, "check": 0}
    for run in range(runs):
        for suffix in ("-wal", "-shm"):
            Path(f"{database.path}{suffix}").unlink(missing_ok=True)
        database.path.write_bytes(intact)
        flip_bits(database.path, chance)
        results = {}
        for action in reported:
            with damage_reported() as damage, database.reader() as reader:
                match action:
                    case "walk":
                        assert walk(reader) == shown, run
                    case "look up":
                        assert look_up(reader, shown) == shown, run
                    case "export":
                        assert export(reader) == emails, run
                    case _:
                        reader.check()
            results[action] = bool(damage)
            reported[action] += results[action]
        # What any of them has found is found by the check of the whole index.
        assert results["check"] or not any(results.values()), (run, results)
    # Not all bits are used: the index has empty parts.
    assert reported["check"] > runs / 2
    assert reported["walk"] > runs / 4


def test_a_row_that_is_found_twice_never_changes_an_export(intact: bytes, tmp_path: Path) -> None:
    """A flipped bit in a page of an index of SQLite can replace a row by its neighbour."""
    database = IndexDatabase(tmp_path)
    database.path.write_bytes(intact)
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    with database.reader() as reader:
        emails = export(reader)
    reported = 0
    for pointer in cell_pointers(intact, page_size):
        damaged = bytearray(intact)
        damaged[pointer : pointer + 2] = damaged[pointer + 2 : pointer + 4]
        for suffix in ("-wal", "-shm"):
            Path(f"{database.path}{suffix}").unlink(missing_ok=True)
        database.path.write_bytes(damaged)
        with damage_reported() as damage, database.reader() as reader:
            assert export(reader) == emails, pointer
        reported += bool(damage)
    assert reported > 100


def cell_pointers(database: bytes, page_size: int) -> Iterator[int]:
    """Return where the leaves of indexes have pointers to cells, except the last of each leaf.

    See https://sqlite.org/fileformat.html#b_tree_pages.
    """
    for page in range(page_size, len(database), page_size):
        if database[page] == LEAF_OF_INDEX:
            cells = int.from_bytes(database[page + 3 : page + 5])
            yield from range(page + 8, page + 8 + 2 * (cells - 1), 2)


def test_a_damaged_row_is_not_changed(intact: bytes, tmp_path: Path) -> None:
    """A row that is written gets a new checksum: the damage would not be seen any more."""
    database = IndexDatabase(tmp_path)
    blob_id = b"G00000000000000000042"
    assert blob_id in intact
    for text in (b"G0000000000000000004x", b"G0000000000000000004\xff"):
        database.path.write_bytes(intact.replace(blob_id, text))
        with database.writer() as writer:
            for change in (move, remove):
                with pytest.raises(sqlite3.Error) as raised:
                    change(writer)
                assert is_damage(raised.value)


def move(writer: IndexWriter) -> None:
    with writer.transaction():
        writer.put_emails(
            [email("M42", "D", blob="G00000000000000000042", at=1_700_042_000, size=7)]
        )


def remove(writer: IndexWriter) -> None:
    with writer.transaction():
        writer.remove_emails(["M42"])


@pytest.mark.parametrize("missing", ["min", "max"])
def test_a_missing_journal_entry_is_damage(intact: bytes, tmp_path: Path, missing: str) -> None:
    database = IndexDatabase(tmp_path)
    database.path.write_bytes(intact)
    with database.writer() as writer:
        position = writer.journal_position()
        with writer.transaction():
            writer.remove_emails(["M12", "M13"])
        assert writer.journal_after(position).whole
    with contextlib.closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute(
            f"DELETE FROM journal WHERE sequence = (SELECT {missing}(sequence) FROM journal"  # noqa: S608 - constants
            " WHERE sequence > ?)",
            (position,),
        )
    with database.reader() as reader:
        if missing == "min":
            # The kernel is told to forget everything.
            assert not reader.journal_after(position).whole
        else:
            with pytest.raises(DamageError, match="journal"):
                reader.journal_after(position)


def test_a_missing_id_of_a_listing_is_damage(intact: bytes, tmp_path: Path) -> None:
    database = IndexDatabase(tmp_path)
    database.path.write_bytes(intact)
    with database.writer() as writer:
        with writer.transaction():
            writer.listed.begin(["M1", "M2", "M3", "M4"])
            writer.listed.mark_fetched(range(1, 3), ())
        assert writer.listed.pending() == [(3, "M3"), (4, "M4")]
    with contextlib.closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("DELETE FROM listed WHERE number = 2")
    with database.writer() as writer, pytest.raises(sqlite3.DatabaseError, match="listing"):
        writer.listed.pending()


def test_a_lost_row_of_a_new_listing_is_damage(intact: bytes, tmp_path: Path) -> None:
    """Otherwise its email would be removed from the tree."""
    database = IndexDatabase(tmp_path)
    database.path.write_bytes(intact)
    with database.writer() as writer:
        before = export(writer)
        with writer.transaction():
            writer.staged.begin()
            writer.staged.add(
                (email(f"N{number}", "A", blob=f"N{number}") for number in range(4)),
                reuse_proves_reset=False,
            )
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root, page_size = connection.execute(
            "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE name = 'staged'"
        ).fetchone()
    damaged = bytearray(database.path.read_bytes())
    cells = (root - 1) * page_size + 4
    assert damaged[cells] == 4
    damaged[cells] = 3
    database.path.write_bytes(damaged)
    with database.writer() as writer:
        with pytest.raises(sqlite3.DatabaseError) as raised, writer.transaction():
            writer.staged.apply(reset=False)
        assert is_damage(raised.value)
        assert export(writer) == before
