"""The times of directories: what moves them, and what does not. The clock is set by the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from jmapfs.index.database import IndexDatabase
from jmapfs.index.layout import lay_out
from jmapfs.index.rows import AccountState
from jmapfs.index.writer import IndexWriter
from jmapfs.tree.tree import Tree
from tests.indexed import email, mailbox, put_mailboxes

START = 1_800_000_000.75
SECOND = 10**9


@dataclass
class Account:
    """An index, the time of the clock, and the times that its tree shows."""

    database: IndexDatabase
    stack: ExitStack
    now: float = START
    tree: Tree = field(init=False)

    def __post_init__(self) -> None:
        self.tree = Tree(self.stack.enter_context(self.database.reader()))

    @contextlib.contextmanager
    def changing(self, at: float) -> Iterator[IndexWriter]:
        """Change the index in one transaction, at a time after START in seconds."""
        self.now = START + at
        with self.database.writer() as writer, writer.transaction():
            yield writer

    def times(self) -> dict[str, int]:
        """Return the time of each directory by path, in seconds after START, rounded down."""
        found = {}
        for inode, directory in self.tree.layout().directories.items():
            time_ns = self.tree.attributes(inode).time_ns
            assert time_ns % SECOND == 0
            found["/".join(directory.path)] = time_ns // SECOND - int(START)
        return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def account(tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Account:
    """Return an account with two mails in A, one in B, none in C and A/D."""
    account = Account(new_index(tmp_path), stack)
    clock = SimpleNamespace(time=lambda: account.now)
    monkeypatch.setattr("jmapfs.index.directories.time", clock)
    first_listing(account)
    return account


def new_index(directory: Path) -> IndexDatabase:
    database = IndexDatabase(directory)
    database.prepare()
    return database


def first_listing(account: Account) -> None:
    """List the account in three transactions within a second."""
    with account.changing(-0.2) as writer:
        names = [mailbox(name.lower(), name) for name in "ABC"]
        writer.replace_mailboxes([*names, mailbox("d", "D", "a")])
    with account.changing(-0.1) as writer:
        writer.put_emails([email("1", "a"), email("2", "a"), email("3", "b")])
    with account.changing(0) as writer:
        writer.set_state(AccountState(account_id="A", complete=True))


UNCHANGED = {"": 0, "A": 0, "A/D": 0, "B": 0, "C": 0}


def test_the_first_listing_gives_its_time(account: Account) -> None:
    assert account.times() == UNCHANGED


def test_a_back_dated_email_moves_the_time_of_its_directory(account: Account) -> None:
    with account.changing(10) as writer:
        writer.put_emails([email("4", "b", at=1)])
    # The time is rounded up: 10.75 seconds after `int(START)`.
    assert account.times() == UNCHANGED | {"B": 11}


def test_a_moved_and_a_deleted_email(account: Account) -> None:
    with account.changing(10) as writer:
        writer.put_emails([email("1", "c")])
    assert account.times() == UNCHANGED | {"A": 11, "C": 11}
    with account.changing(20) as writer:
        writer.remove_emails(["1"])
    assert account.times() == UNCHANGED | {"A": 11, "C": 21}


def test_flags_and_sizes_move_nothing(account: Account) -> None:
    with account.changing(10) as writer:
        writer.put_emails([email("1", "a", keywords=("$seen",))])
        writer.correct_size("b2", 999)
        writer.note_change()
    assert account.times() == UNCHANGED


def test_an_email_that_comes_and_goes_in_one_transaction_moves_nothing(account: Account) -> None:
    with account.changing(10) as writer:
        writer.remove_emails(["1"])
        writer.put_emails([email("1", "a")])
    assert account.times() == UNCHANGED


def test_a_listing_that_finds_nothing_new_moves_nothing(account: Account) -> None:
    with account.changing(10) as writer:
        writer.staged.begin()
        writer.staged.add([email(id_, "a") for id_ in "12"], reuse_proves_reset=False)
        writer.staged.add([email("3", "b")], reuse_proves_reset=False)
    with account.changing(11) as writer:
        writer.staged.apply(reset=False)
    assert account.times() == UNCHANGED


def test_names_that_change_because_another_email_is_gone(account: Account) -> None:
    """Two emails with one blob: the second has the name with `_2`, until the first is gone."""
    with account.changing(10) as writer:
        writer.put_emails([email("5", "c", blob="same"), email("6", "c", blob="same")])
    assert account.times()["C"] == 11
    with account.changing(20) as writer:
        writer.remove_emails(["5"])
    assert account.times() == UNCHANGED | {"C": 21}


def test_changes_of_one_second_and_a_clock_that_was_set_back(account: Account) -> None:
    times = []
    for number, at in enumerate((10, 10.1, 10.2, -5000, 14)):
        with account.changing(at) as writer:
            writer.put_emails([email(f"x{number}", "c")])
        times.append(account.times()["C"])
    assert times == [11, 12, 13, 14, 15]
    with account.changing(-4000) as writer:
        writer.remove_emails(["1"])
    assert account.times() == UNCHANGED | {"A": 1, "C": 15}


def test_a_new_a_renamed_and_a_deleted_mailbox(account: Account) -> None:
    with account.changing(10) as writer:
        put_mailboxes(writer, mailbox("e", "E", "a"))
    assert account.times() == UNCHANGED | {"A": 11, "A/E": 11}
    with account.changing(20) as writer:
        put_mailboxes(writer, mailbox("b", "Other"))
    expected = UNCHANGED | {"": 21, "A": 11, "A/E": 11, "Other": 0}
    del expected["B"]
    assert account.times() == expected
    with account.changing(30) as writer:
        writer.retire_mailboxes(["e"])
    expected["A"] = 31
    del expected["A/E"]
    assert account.times() == expected


def test_a_mailbox_that_moves_with_its_children(account: Account) -> None:
    with account.changing(10) as writer:
        put_mailboxes(writer, mailbox("a", "A", "b"))
    assert account.times() == {"": 11, "B": 11, "B/A": 0, "B/A/D": 0, "C": 0}


def test_a_changed_id_and_a_changed_role_move_nothing(account: Account) -> None:
    with account.changing(10) as writer:
        put_mailboxes(writer, mailbox("c", "C", role="junk"))
    with account.changing(20) as writer:
        ids = {"a": "a", "b": "b", "c": "new"}
        mailboxes = [mailbox(new, old.upper()) for old, new in ids.items()]
        writer.replace_mailboxes([*mailboxes, mailbox("d", "D", "a")])
    assert account.times() == UNCHANGED


def test_siblings_whose_names_become_equal(account: Account) -> None:
    """Both directories get a key: their parent has two other names."""
    with account.changing(10) as writer:
        put_mailboxes(writer, mailbox("c", "b"))
    times = account.times()
    assert times.pop("") == 11
    assert times.pop("A") == times.pop("A/D") == 0
    assert len(times) == 2
    assert set(times.values()) == {0}


def test_a_path_never_shows_an_old_time_with_other_names(account: Account) -> None:
    """Tools identify a directory by its path."""
    with account.changing(10) as writer:
        put_mailboxes(writer, mailbox("b", "C"), mailbox("c", "B"))
    assert account.times() == UNCHANGED | {"B": 11, "C": 11}
    with account.changing(20) as writer:
        writer.remove_emails(["1", "2", "3"])
        writer.retire_mailboxes(["b", "d"])
    assert account.times() == {"": 21, "A": 21, "B": 11}
    # The mailbox c, unchanged since 11, comes to a path that showed another mailbox at 11.
    with account.changing(30) as writer:
        put_mailboxes(writer, mailbox("c", "C"))
    assert account.times() == {"": 31, "A": 21, "C": 31}
    # A new mailbox, while the clock is wrong.
    with account.changing(-5000) as writer:
        put_mailboxes(writer, mailbox("e", "B"))
    assert account.times() == {"": 32, "A": 21, "B": 12, "C": 31}


def test_a_mailbox_that_takes_the_path_of_another_one(account: Account) -> None:
    """Its own time could be earlier than a time stamp from before the change."""
    with account.changing(10) as writer:
        writer.put_emails([email("8", "b")])
    with account.changing(20) as writer:
        writer.put_emails([email("9", "c")])
    before = account.times()
    assert (before["B"], before["C"]) == (11, 21)
    with account.changing(30) as writer:
        put_mailboxes(writer, mailbox("b", "Z"), mailbox("c", "B"))
    del before["C"]
    assert account.times() == before | {"": 31, "B": 31, "Z": 11}


def test_another_mailbox_with_the_same_names(account: Account) -> None:
    """The server has deleted a mailbox and created one of that name since the last sync."""
    with account.changing(10) as writer:
        mailboxes = [mailbox("a", "A"), mailbox("b", "B"), mailbox("d", "D", "a")]
        gone = writer.replace_mailboxes([*mailboxes, mailbox("f", "C")])
        writer.retire_mailboxes(gone)
    assert account.times() == UNCHANGED


def test_emails_that_are_in_no_mailbox(account: Account) -> None:
    with account.changing(10) as writer:
        writer.put_emails([email("9")])
    assert account.times() == UNCHANGED | {"": 11, "unfiled": 11}
    with account.changing(20) as writer:
        writer.put_emails([email("9", "c")])
        writer.retire_mailboxes(())
    assert account.times() == UNCHANGED | {"": 21, "C": 21}


def test_the_paths_of_mailboxes_that_are_gone_are_bounded(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jmapfs.index.directories._UNUSED_PATHS", 3)
    for number in range(10):
        with account.changing(10 + number) as writer:
            put_mailboxes(writer, mailbox("c", f"C{number}"))
    with account.database.writer() as writer:
        layout = lay_out(writer.mailboxes())
        rows = writer._connection.execute("SELECT inode FROM directory").fetchall()
    assert len(rows) == len(layout.directories) + 3


def test_a_pinned_reader_keeps_the_times_of_its_state(account: Account, stack: ExitStack) -> None:
    reader = stack.enter_context(account.database.reader())
    frozen = Account(account.database, stack)
    frozen.tree = Tree(reader)
    with reader.pinned():
        before = frozen.times()
        with account.changing(10) as writer:
            writer.remove_emails(["1"])
            put_mailboxes(writer, mailbox("e", "E"))
        assert frozen.times() == before
    assert frozen.times() == account.times() != before


def test_a_lost_index_gets_the_time_of_its_next_listing(
    account: Account, tmp_path: Path, stack: ExitStack
) -> None:
    with account.changing(10) as writer:
        writer.remove_emails(["1"])
    lost = Account(new_index(tmp_path / "new"), stack)
    account.now = lost.now = START + 50
    with lost.database.writer() as writer, writer.transaction():
        writer.replace_mailboxes([mailbox("a", "A")])
        writer.set_state(AccountState(account_id="A", complete=True))
    assert lost.times() == {"": 50, "A": 50}
