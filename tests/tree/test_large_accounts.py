"""Accounts with very many mailboxes, very deep ones, or very many copies of one email."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmapfs.errors import ProtocolError
from jmapfs.index import email_batch, reader, writer
from jmapfs.index.database import IndexDatabase
from jmapfs.index.layout import MOST_LEVELS, Layout, find_parents, lay_out
from jmapfs.index.rows import AccountState, MailboxRow
from jmapfs.inodes import STATUS_FILE_INODE
from jmapfs.jmap.types import Mailbox
from jmapfs.tree.tree import Tree
from tests.indexed import email, file_name, mailbox

PATH_MAX = 4096


def chains(count: int, levels: int, name: str = "n") -> list[MailboxRow]:
    """Return mailboxes that are nested in chains of `levels`."""
    return [
        MailboxRow(
            number,
            f"m{number}",
            name,
            f"m{number - 1}" if number % levels else None,
            None,
            sort_order=0,
            known=True,
            digest=0,
        )
        for number in range(count)
    ]


def require_whole(layout: Layout, count: int) -> None:
    """Check that each mailbox has one directory, and that each can be opened by its path."""
    shown = [one.mailbox for one in layout.directories.values() if one.mailbox is not None]
    assert sorted(shown) == list(range(count))
    for one in layout.directories.values():
        assert len(one.path) <= MOST_LEVELS
        # This leaves room for the mount point and the name of a file.
        assert len("/".join(one.path).encode()) < PATH_MAX - 1000
        assert one is layout.root or layout.directories[one.parent].children[one.name] == one.inode


@pytest.mark.parametrize("levels", [1, 10, MOST_LEVELS, 4000])
def test_each_of_many_mailboxes_has_a_directory(levels: int) -> None:
    layout = lay_out(chains(4000, levels))
    require_whole(layout, 4000)
    assert len(layout.root.children) == 4000 // min(levels, MOST_LEVELS)


def test_a_mailbox_that_is_too_deep_is_a_top_level_directory() -> None:
    rows = chains(250, 250)
    assert find_parents(rows).too_deep == 2
    assert find_parents(chains(250, MOST_LEVELS)).too_deep == 0
    layout = lay_out(rows)
    top = {layout.directories[inode].mailbox for inode in layout.root.children.values()}
    assert top == {0, MOST_LEVELS, 2 * MOST_LEVELS}


@given(st.lists(st.text(max_size=300), min_size=1, max_size=40))
@settings(max_examples=30)
def test_no_path_is_too_long_to_be_opened(names: list[str]) -> None:
    rows = [
        MailboxRow(n, f"m{n}", name * 3, f"m{n - 1}" if n else None, None, 0, known=True, digest=0)
        for n, name in enumerate(names)
    ]
    require_whole(lay_out(rows), len(rows))


def test_a_large_cycle_has_one_top_level_directory() -> None:
    rows = [
        MailboxRow(n, f"m{n:05}", "n", f"m{(n + 1) % 90:05}", None, 0, known=True, digest=0)
        for n in range(90)
    ]
    layout = lay_out(rows)
    require_whole(layout, 90)
    assert [layout.directories[one].mailbox for one in layout.root.children.values()] == [0]


@pytest.fixture
def database(tmp_path: Path) -> IndexDatabase:
    database = IndexDatabase(tmp_path)
    database.prepare()
    with database.writer() as index, index.transaction():
        index.set_state(AccountState(account_id="a", email_state="s", complete=True))
    return database


def replace_mailboxes(database: IndexDatabase, mailboxes: list[Mailbox]) -> list[str]:
    with database.writer() as index, index.transaction():
        return index.replace_mailboxes(mailboxes)


def test_deep_mailboxes_are_reported_and_keep_their_rows(
    database: IndexDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    def deep(prefix: str) -> list[Mailbox]:
        return [
            mailbox(f"{prefix}{n}", f"n{n}", f"{prefix}{n - 1}" if n else None) for n in range(3000)
        ]

    with caplog.at_level(logging.WARNING):
        assert replace_mailboxes(database, deep("a")) == []
    assert "29 mailboxes are nested too deeply" in caplog.text
    with database.reader() as index:
        numbers = {row.number for row in index.mailboxes()}
    # A migration of the server changes all ids, but neither names nor places.
    assert replace_mailboxes(database, deep("b")) == []
    with database.reader() as index:
        rows = index.mailboxes()
    assert {row.number for row in rows} == numbers
    assert all(row.id.startswith("b") for row in rows)


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each layout that is computed, the number of its directories."""
    counts: list[int] = []

    def count_and_lay_out(rows: list[MailboxRow]) -> Layout:
        layout = lay_out(rows)
        counts.append(len(layout.directories))
        return layout

    for module in (reader, writer):
        monkeypatch.setattr(module, "lay_out", count_and_lay_out)
    monkeypatch.setattr("jmapfs.index.directories.lay_out", count_and_lay_out)
    return counts


def test_each_layout_is_computed_once_and_not_by_those_who_read(
    database: IndexDatabase, laid_out: list[int]
) -> None:
    trees = [Tree(database.reader()) for _ in range(3)]
    for count in (3, 5):
        replace_mailboxes(database, [mailbox(f"m{n}", f"n{n}") for n in range(count)])
        assert laid_out == [count + 1]
        for tree in trees:
            assert len(tree.layout().directories) == count + 1
            assert tree.attributes(STATUS_FILE_INODE).size > 0
        assert laid_out == [count + 1]
        laid_out.clear()


def test_a_layout_that_was_not_committed_is_never_shown(database: IndexDatabase) -> None:
    tree = Tree(database.reader())
    with database.writer() as index:
        with contextlib.suppress(InterruptedError), index.transaction():
            index.replace_mailboxes([mailbox("a", "Lost")])
            assert index.layout().at(["Lost"]) is not None
            raise InterruptedError
        assert tree.layout().at(["Lost"]) is None
        with index.transaction():
            index.replace_mailboxes([mailbox("a", "Kept")])
    assert tree.layout().at(["Kept"]) is not None
    assert tree.layout().at(["Lost"]) is None


def test_a_new_index_shares_no_layout_with_a_deleted_one(database: IndexDatabase) -> None:
    replace_mailboxes(database, [mailbox("a", "Old")])
    with database.reader() as index:
        assert Tree(index).layout().at(["Old"]) is not None
    for path in database.path.parent.iterdir():
        if path.is_file():
            path.unlink()
    database.prepare()
    replace_mailboxes(database, [mailbox("a", "New")])
    with database.reader() as index:
        assert list(Tree(index).layout().root.children) == ["New"]


def test_the_status_file_of_many_mailboxes_is_made_without_their_rows(
    database: IndexDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_mailboxes(database, [mailbox(f"m{n}", f"n{n}") for n in range(10)])
    tree = Tree(database.reader())
    tree.layout()

    def fail(_: object) -> list[MailboxRow]:
        raise AssertionError

    monkeypatch.setattr(reader.IndexReader, "mailboxes", fail)
    assert tree.attributes(STATUS_FILE_INODE).size > 0


def test_emails_may_not_be_in_too_many_mailboxes(
    database: IndexDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(email_batch, "_MOST_MAILBOX_ROWS", 20)
    with database.writer() as index:
        with index.transaction():
            index.put_emails([email("e1", *(f"m{n}" for n in range(20)))])
        with pytest.raises(ProtocolError, match="more than 20 mailboxes"), index.transaction():
            index.put_emails([email("e2", "m20")])
        with index.transaction():
            index.put_emails([email("e3", "m1")])
        assert index.counts().emails == 2


def count_statements(connection: sqlite3.Connection, action: Callable[[], Any]) -> int:
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    action()
    connection.set_trace_callback(None)
    return len(statements)


def test_many_copies_of_one_email_take_few_statements_each(database: IndexDatabase) -> None:
    copies = [email(f"e{n}", "in", blob="b") for n in range(1200)]
    with database.writer() as index:
        connection = index._connection

        def put(some: list[Any]) -> None:
            with index.transaction():
                index.put_emails(some)

        put(copies[:1000])
        added = count_statements(connection, lambda: put(copies[1000:]))
        few = copies[:: len(copies) // 50]

        def remove() -> None:
            with index.transaction():
                index.remove_emails(one.id for one in few)

        removed = count_statements(connection, remove)
        [box] = [row.number for row in index.mailboxes() if row.id == "in"]
        names = {name.decode() for name in index.listing(box).names}
    assert added < 200 * 40
    assert removed < len(few) * 60
    left = len(copies) - len(few)
    assert names == {file_name(copies[0], number) for number in range(1, left + 1)}
