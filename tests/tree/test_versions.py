"""Versions of directories: what changes them and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jmapfs.errors import EntryNotFoundError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.inodes import ROOT_INODE, to_mount
from jmapfs.tree.combined import CombinedTree
from jmapfs.tree.status_file import Reachability
from jmapfs.tree.tree import Tree
from tests.indexed import email, mailbox


class Account:
    """An index with an empty `Inbox`, and its tree with a changeable reachability."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.database = IndexDatabase(directory)
        self.database.prepare()
        with self.database.writer() as writer, writer.transaction():
            writer.replace_mailboxes([mailbox("in", "Inbox")])
        self.reachability = Reachability(online=True)
        self.reader: IndexReader = stack.enter_context(self.database.reader())
        self.tree = Tree(self.reader, lambda: self.reachability)
        self.inbox = self.tree.lookup(ROOT_INODE, b"Inbox").inode

    def add(self, number: int) -> None:
        with self.database.writer() as writer, writer.transaction():
            writer.put_emails([email(f"{number}", "in", at=0)])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_every_commit_changes_the_version(tmp_path: Path, stack: ExitStack) -> None:
    account = Account(tmp_path, stack)
    seen = []
    for number in range(5):
        seen.append(account.tree.version(account.inbox))
        # Reading does not change it.
        account.tree.listing(account.inbox)
        assert account.tree.version(account.inbox) == seen[-1]
        account.add(number)
    assert len(set(seen)) == 5


def test_a_pinned_tree_has_one_version(tmp_path: Path, stack: ExitStack) -> None:
    account = Account(tmp_path, stack)
    with account.reader.pinned():
        version = account.tree.version(account.inbox)
        account.add(1)
        assert account.tree.version(account.inbox) == version
    assert account.tree.version(account.inbox) != version


def test_reachability_changes_only_the_version_of_the_root(
    tmp_path: Path, stack: ExitStack
) -> None:
    account = Account(tmp_path, stack)
    root, inbox = account.tree.version(ROOT_INODE), account.tree.version(account.inbox)
    account.reachability = Reachability(online=False, since=1.0, error="refused")
    assert account.tree.version(ROOT_INODE) != root
    assert account.tree.version(account.inbox) == inbox
    account.reachability = Reachability(online=True)
    assert account.tree.version(ROOT_INODE) == root


def test_accounts_have_separate_versions(tmp_path: Path, stack: ExitStack) -> None:
    accounts = {number: Account(tmp_path / str(number), stack) for number in (1, 2)}
    combined = CombinedTree(
        {number: account.tree for number, account in accounts.items()},
        {1: "one", 2: "two"},
        changed_at=0,
    )

    def versions() -> list[object]:
        inodes = [ROOT_INODE]
        for number, account in accounts.items():
            inodes += [to_mount(number, ROOT_INODE), to_mount(number, account.inbox)]
        return [combined.version(inode) for inode in inodes]

    def changed(before: list[object]) -> list[bool]:
        return [one != other for one, other in zip(before, versions(), strict=True)]

    before = versions()
    assert not any(changed(before))
    accounts[2].add(1)
    assert changed(before) == [True, False, False, True, True]
    before = versions()
    accounts[1].reachability = Reachability(online=False)
    assert changed(before) == [True, True, False, False, False]
    with pytest.raises(EntryNotFoundError):
        combined.version(to_mount(3, ROOT_INODE))
