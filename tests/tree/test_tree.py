"""The tree without a mount: directories, listings and attributes."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmapfs.errors import EntryNotFoundError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.layout import Directory, lay_out
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, MailboxRow, Shortfall
from jmapfs.inodes import ROOT_INODE, STATUS_FILE_INODE
from jmapfs.jmap.types import BadEmail, Email, MailboxIds
from jmapfs.tree.export import EmailExport
from jmapfs.tree.status_file import STATUS_FILE_NAME
from jmapfs.tree.tree import Attributes, Kind, Ownership, Tree
from tests.indexed import email, file_name, mailbox, put_mailboxes


def row(number: int, mailbox_id: str, name: str, parent_id: str | None = None) -> MailboxRow:
    return MailboxRow(number, mailbox_id, name, parent_id, None, sort_order=0, known=True, digest=0)


IDS = st.sampled_from("abcdefgh")
FORESTS = st.dictionaries(
    IDS, st.tuples(st.text(max_size=3) | st.sampled_from(["..", "a/b", "x", "X"]), st.none() | IDS)
)


@given(FORESTS)
def test_every_mailbox_has_exactly_one_place(forest: dict[str, tuple[str, str | None]]) -> None:
    rows = [
        row(number, mailbox_id, name, parent_id)
        for number, (mailbox_id, (name, parent_id)) in enumerate(sorted(forest.items()))
    ]
    layout = lay_out(rows)
    reached: list[Directory] = []
    waiting = [layout.root]
    while waiting:
        directory = waiting.pop()
        for name, inode in directory.children.items():
            child = layout.directories[inode]
            assert child.parent == directory.inode
            assert child.path == (*directory.path, name)
            assert layout.at(child.path) is child
            reached.append(child)
            waiting.append(child)
    assert sorted(item.mailbox for item in reached if item.mailbox is not None) == [
        row.number for row in rows
    ]
    assert len(layout.directories) == len(rows) + 1


def test_missing_parents_and_cycles() -> None:
    layout = lay_out(
        [
            row(1, "a", "lost", "nowhere"),
            row(2, "b", "one", "c"),
            row(3, "c", "two", "b"),
            row(4, "d", "self", "d"),
            row(5, "e", "below", "c"),
        ]
    )
    paths = {"/".join(item.path) for item in layout.directories.values()}
    assert paths == {"", "lost", "one", "one/two", "one/two/below", "self"}


def test_deeply_nested_mailboxes_do_not_exhaust_the_stack() -> None:
    rows = [row(0, "0", "n")] + [row(i, str(i), "n", str(i - 1)) for i in range(1, 3000)]
    assert len(lay_out(rows).directories) == 3001


@pytest.fixture
def database(tmp_path: Path) -> IndexDatabase:
    database = IndexDatabase(tmp_path)
    database.prepare()
    with database.writer() as writer, writer.transaction():
        writer.replace_mailboxes(
            [
                mailbox("in", "Inbox"),
                mailbox("sub", "20170714-024005", "in"),
                mailbox("early", "0 Early", "in"),
                mailbox("late", "Zz", "in"),
            ]
        )
        writer.put_emails(numbered_email(number) for number in range(10))
        writer.set_state(
            AccountState(
                server="https://example.org/",
                account_id="a",
                account_name="me",
                email_state="s1",
                complete=True,
                synced_at=1_700_000_000.5,
            )
        )
    return database


def numbered_email(number: int) -> Email:
    """Return an email received on 14 July 2017, `number` seconds after 02:40 UTC."""
    return email(f"e{number}", "in", at=1_500_000_000 + number, size=100 * number)


@pytest.fixture
def tree(database: IndexDatabase) -> Tree:
    return Tree(database.reader())


def walk(tree: Tree, inode: int = ROOT_INODE, path: str = "") -> dict[str, Attributes]:
    found = {}
    for name, attributes in tree.listing(inode).entries():
        at = f"{path}/{name.decode()}"
        found[at] = attributes
        assert tree.lookup(inode, name) == attributes
        assert tree.attributes(attributes.inode) == attributes
        if attributes.kind is Kind.DIRECTORY:
            found.update(walk(tree, attributes.inode, at))
    return found


def test_lookup_listing_and_attributes_agree(tree: Tree) -> None:
    found = walk(tree)
    third = f"/Inbox/{file_name(numbered_email(3))}"
    assert len(found) == 4 + 10 + 1
    assert found["/Inbox"].links == 5
    assert found[third].size == 300
    assert found[third].time_ns == 1_500_000_003 * 10**9


def test_entries_come_in_byte_order_from_any_position(tree: Tree) -> None:
    listing = tree.listing(tree.lookup(ROOT_INODE, b"Inbox").inode)
    everything = list(listing.entries())
    names = [name for name, _ in everything]
    assert names == sorted(names)
    assert len(names) == len(listing) == 13
    # One directory is before the emails, one among them, one after them.
    assert names[0] == b"0-Early"
    assert names[-1] == b"Zz"
    for start in range(len(names) + 2):
        assert list(listing.entries(start)) == everything[start:]


def test_missing_names_and_inodes_are_errors(tree: Tree) -> None:
    inbox = tree.lookup(ROOT_INODE, b"Inbox").inode
    for parent, name in ((ROOT_INODE, b"nope"), (inbox, b"\xff\xfe"), (99, b"x"), (inbox, b"...")):
        with pytest.raises(EntryNotFoundError):
            tree.lookup(parent, name)
    for question in (tree.attributes, tree.file, tree.listing):
        with pytest.raises(EntryNotFoundError):
            question(987654321)
    with pytest.raises(EntryNotFoundError):
        tree.lookup(inbox, STATUS_FILE_NAME.encode())


def test_the_status_file_is_newer_than_every_email(tree: Tree, database: IndexDatabase) -> None:
    attributes = tree.lookup(ROOT_INODE, STATUS_FILE_NAME.encode())
    assert attributes.inode == STATUS_FILE_INODE
    file = tree.status_file()
    assert file is not None
    assert attributes.size == len(file.content)
    assert attributes.time_ns // 10**9 == 1_700_000_001
    with database.writer() as writer, writer.transaction():
        writer.put_emails([email("future", "in", at=4_000_000_000)])
    fresh = Tree(database.reader())
    newest = max(item.time_ns for path, item in walk(fresh).items() if path.endswith(".eml"))
    assert fresh.attributes(STATUS_FILE_INODE).time_ns > newest


def test_bad_emails_and_a_shortfall_are_in_the_status_file(
    tree: Tree, database: IndexDatabase
) -> None:
    assert not {"bad", "bad_count", "shortfall"} & status_document(tree).keys()
    with database.writer() as writer, writer.transaction():
        writer.put_bad_emails(
            BadEmail(
                id=f"x{number}", reason="the server sends no size", mailbox_ids=MailboxIds(["in"])
            )
            for number in range(101)
        )
        shortfall = Shortfall(1_800_000_000.0, 111, 120, (("early", 0, 9),))
        writer.set_state(replace(writer.state(), synced_at=1_700_000_009.0, shortfall=shortfall))
    document = status_document(tree)
    assert (len(document["bad"]), document["bad_count"]) == (100, 101)
    assert document["bad"][0].keys() == {"id", "reason", "since"}
    assert document["shortfall"] == {
        "since": "2027-01-15T08:00:00+00:00",
        "found": 111,
        "expected": 120,
        "mailboxes": [{"path": "Inbox/0-Early", "found": 0, "expected": 9}],
    }
    file = tree.status_file()
    assert file is not None
    assert file.time_ns // 10**9 == 1_800_000_000


def test_a_directory_lacks_only_what_may_be_in_it(tree: Tree, database: IndexDatabase) -> None:
    with database.writer() as writer, writer.transaction():
        writer.put_bad_emails(
            [
                BadEmail(id="x1", reason="no size", mailbox_ids=MailboxIds(["in"])),
                BadEmail(id="x2", reason="no size", mailbox_ids=MailboxIds(["early", "late"])),
                BadEmail(id="x3", reason="listed, but not found", mailbox_ids=MailboxIds([])),
            ]
        )
        shortfall = Shortfall(1.0, 10, 16, (("in", 10, 14), ("early", 0, 2)))
        writer.set_state(replace(writer.state(), shortfall=shortfall))

    def lacking(*path: str) -> tuple[list[str], tuple[int, int] | None]:
        directory = tree.layout().at(path)
        assert directory is not None
        bad, shortfall = EmailExport(database.reader(), tree.layout(), directory).lacking()
        numbers = None if shortfall is None else (shortfall.found, shortfall.expected)
        return [one.id for one in bad], numbers

    assert lacking() == (["x1", "x2", "x3"], (10, 16))
    assert lacking("Inbox") == (["x1", "x2", "x3"], (10, 16))
    assert lacking("Inbox", "0-Early") == (["x2", "x3"], (0, 2))
    assert lacking("Inbox", "Zz") == (["x2", "x3"], None)
    assert lacking("Inbox", "20170714-024005") == (["x3"], None)
    # A server that counts by account alone does not tell where mail is lacking.
    with database.writer() as writer, writer.transaction():
        writer.set_state(replace(writer.state(), shortfall=Shortfall(1.0, 10, 16)))
    assert lacking("Inbox", "Zz") == (["x2", "x3"], (10, 16))


def status_document(tree: Tree) -> dict[str, Any]:
    file = tree.status_file()
    assert file is not None
    document: dict[str, Any] = json.loads(file.content)
    return document


def test_the_layout_follows_renames(tree: Tree, database: IndexDatabase) -> None:
    before = tree.lookup(ROOT_INODE, b"Inbox")
    assert tree.layout().at(["Inbox", "Zz"])
    with database.writer() as writer, writer.transaction():
        put_mailboxes(writer, mailbox("in", "Eingang"))
    assert tree.layout().at(["Eingang", "Zz"])
    with pytest.raises(EntryNotFoundError):
        tree.lookup(ROOT_INODE, b"Inbox")
    assert tree.lookup(ROOT_INODE, b"Eingang").inode != before.inode


def test_modes_are_read_only_and_private() -> None:
    private = Ownership(uid=1000, gid=100)
    assert private.mode(Kind.FILE) == stat.S_IFREG | 0o400
    assert private.mode(Kind.DIRECTORY) == stat.S_IFDIR | 0o700
    public = Ownership(uid=0, gid=0, umask=0o022)
    assert public.mode(Kind.FILE) == stat.S_IFREG | 0o444
    assert public.mode(Kind.DIRECTORY) == stat.S_IFDIR | 0o755


@pytest.fixture(autouse=True)
def _close_readers(monkeypatch: pytest.MonkeyPatch) -> object:
    opened: list[IndexReader] = []
    original = IndexDatabase.reader

    def reader(self: IndexDatabase) -> IndexReader:
        opened.append(original(self))
        return opened[-1]

    monkeypatch.setattr(IndexDatabase, "reader", reader)
    yield
    for item in opened:
        item.close()
