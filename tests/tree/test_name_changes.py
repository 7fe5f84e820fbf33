"""The changes of names between two states, compared with the whole trees of these states."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from jmapfs.index import email_batch
from jmapfs.index.database import IndexDatabase
from jmapfs.index.layout import lay_out
from jmapfs.index.reader import IndexReader
from jmapfs.index.writer import IndexWriter
from jmapfs.tree.name_changes import NameChange, TreeState, name_changes
from tests.indexed import email, file_name, mailbox

Shown = tuple[TreeState, dict[str, int], frozenset[str]]
"""A state, its files (inodes by path) and its directories."""


class Account:
    """An index that is complete, with two mailboxes."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.database = IndexDatabase(directory)
        self.database.prepare()
        self.writer: IndexWriter = stack.enter_context(self.database.writer())
        self.reader: IndexReader = stack.enter_context(self.database.reader())
        self.mailboxes = {"A": mailbox("A", "Inbox"), "B": mailbox("B", "Work")}
        with self.writer.transaction():
            self.writer.set_state(replace(self.writer.state(), complete=True, epoch="1"))
        self.store_mailboxes()

    def store_mailboxes(self) -> None:
        with self.writer.transaction():
            self.writer.retire_mailboxes(
                self.writer.replace_mailboxes(list(self.mailboxes.values()))
            )

    def rename(self, mailbox_id: str, name: str, parent: str | None = None) -> None:
        self.mailboxes[mailbox_id] = mailbox(mailbox_id, name, parent)
        self.store_mailboxes()

    def put(self, email_id: str, *mailbox_ids: str, blob: str | None = None) -> None:
        with self.writer.transaction():
            self.writer.put_emails([email(email_id, *mailbox_ids, blob=blob)])

    def remove(self, *email_ids: str) -> None:
        with self.writer.transaction():
            self.writer.remove_emails(email_ids)

    def shown(self) -> Shown:
        with self.reader.pinned():
            layout = lay_out(self.reader.mailboxes())
            state = TreeState(
                self.reader.journal_position(),
                self.reader.layout_version(),
                self.reader.epoch(),
                layout,
            )
            files = {}
            for directory in layout.directories.values():
                if directory.mailbox is not None:
                    rows = self.reader.listing(directory.mailbox)
                    for name, inode in zip(rows.names, rows.inodes, strict=True):
                        files["/".join((*directory.path, name.decode()))] = inode
        directories = ("/".join(one.path) for one in layout.directories.values())
        return state, files, frozenset(filter(None, directories))

    def changes(self, before: Shown) -> list[NameChange]:
        changes = name_changes(self.reader, before[0], self.shown()[0])
        assert changes is not None
        return changes


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with ExitStack() as stack:
        yield Account(tmp_path, stack)


def moved_with_directories(path: str, moved: Mapping[str, str]) -> str:
    """Return the path after the innermost directory of it that has moved."""
    parts = path.split("/")
    for length in range(len(parts), 0, -1):
        new = moved.get("/".join(parts[:length]))
        if new is not None:
            return "/".join((new, *parts[length:]))
    return path


def assert_leads_to(changes: list[NameChange], before: Shown, after: Shown) -> None:
    """Apply the changes to the earlier tree: this gives the later one."""
    files, directories = dict(before[1]), set(before[2])
    for one in changes:
        if one.old is not None and not one.directory:
            inode = files.pop(one.old)
            if one.new is not None:
                assert after[1][one.new] == inode
        elif one.old is not None and one.new is None:
            directories.remove(one.old)
    renamed = {
        one.old: one.new for one in changes if one.directory and one.old and one.new is not None
    }
    files = {moved_with_directories(path, renamed): inode for path, inode in files.items()}
    directories = {moved_with_directories(path, renamed) for path in directories}
    for one in changes:
        if one.new is not None and not one.directory:
            assert one.new not in files
            files[one.new] = after[1][one.new]
        elif one.new is not None and one.old is None:
            assert one.new not in directories
            directories.add(one.new)
    assert files == after[1]
    assert directories == after[2]


def test_arrival_copy_move_and_deletion(account: Account) -> None:
    file = file_name(email("1"))
    steps = (
        (("A",), NameChange(new=f"Inbox/{file}")),
        (("A", "B"), NameChange(new=f"Work/{file}")),
        (("B",), NameChange(old=f"Inbox/{file}")),
        (("A",), NameChange(f"Work/{file}", f"Inbox/{file}")),
    )
    for mailbox_ids, change in steps:
        before = account.shown()
        account.put("1", *mailbox_ids)
        assert account.changes(before) == [change]
    before = account.shown()
    account.remove("1")
    assert account.changes(before) == [NameChange(f"Inbox/{file}")]


def test_what_has_no_other_name_is_no_change(account: Account) -> None:
    account.put("1", "A", blob="x")
    before = account.shown()
    with account.writer.transaction():
        account.writer.put_emails([email("1", "A", blob="x", size=20, keywords=("$seen",))])
        account.writer.correct_size("x", 30)
    account.put("2", "B")
    account.remove("2")
    # The server has given the email another id.
    account.put("3", "A", blob="x")
    account.remove("1")
    assert account.changes(before) == []
    assert before[0].position < account.shown()[0].position


def test_a_removed_copy_frees_the_last_name(account: Account) -> None:
    for email_id in "123":
        account.put(email_id, "A", blob="x")
    for gone in "12":
        before = account.shown()
        account.remove(gone)
        (change,) = account.changes(before)
        assert change == NameChange(min(before[1].keys() - account.shown()[1].keys()))


def test_a_renamed_mailbox_is_one_change(account: Account) -> None:
    account.rename("C", "Lists", "B")
    for number in range(3):
        account.put(f"{number}", "B", "C")
    before = account.shown()
    account.rename("B", "Job")
    assert account.changes(before) == [NameChange("Work", "Job", directory=True)]
    before = account.shown()
    account.rename("C", "Lists")
    account.remove("0")
    file = file_name(email("0"))
    assert account.changes(before) == [
        NameChange("Job/Lists", "Lists", directory=True),
        *(NameChange(f"{directory}/{file}") for directory in ("Job", "Job/Lists")),
    ]


def test_a_mailbox_with_its_mail(account: Account) -> None:
    before = account.shown()
    account.rename("C", "Lists", "B")
    account.put("1", "C")
    file = file_name(email("1"))
    new = [
        NameChange(new="Work/Lists", directory=True),
        NameChange(new=f"Work/Lists/{file}"),
    ]
    assert account.changes(before) == new
    before = account.shown()
    account.remove("1")
    del account.mailboxes["C"]
    account.store_mailboxes()
    assert account.changes(before) == [
        NameChange(f"Work/Lists/{file}"),
        NameChange("Work/Lists", directory=True),
    ]


def test_a_replaced_mailbox_with_the_same_mail_is_no_change(account: Account) -> None:
    account.put("1", "A")
    before = account.shown()
    account.mailboxes["Z"] = account.mailboxes.pop("A")
    account.rename("C", "Other")
    account.put("1", "C")
    account.store_mailboxes()
    account.mailboxes["Z"] = mailbox("Z", "Inbox")
    account.store_mailboxes()
    account.put("1", "Z")
    del account.mailboxes["C"]
    account.store_mailboxes()
    assert account.changes(before) == []


def test_a_reset_and_a_short_journal_are_unknown(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = account.shown()
    with account.writer.transaction():
        account.writer.set_state(replace(account.writer.state(), epoch="2"))
    assert name_changes(account.reader, before[0], account.shown()[0]) is None
    monkeypatch.setattr(email_batch, "_JOURNAL_ROWS", 3)
    before = account.shown()
    for number in range(3):
        account.put(f"{number}", "A")
    assert len(account.changes(before)) == 3
    account.put("3", "A")
    assert name_changes(account.reader, before[0], account.shown()[0]) is None


@pytest.mark.parametrize("seed", range(20))
def test_random_changes_lead_from_each_state_to_each_later_one(account: Account, seed: int) -> None:
    randoms = random.Random(seed)
    states = [account.shown()]
    for _ in range(6):
        for _ in range(randoms.randrange(8)):
            change_something(account, randoms)
        states.append(account.shown())
    for later, after in enumerate(states):
        for before in states[: later + 1]:
            changes = name_changes(account.reader, before[0], after[0])
            assert changes is not None
            assert_leads_to(changes, before, after)
            assert all(one.old != one.new for one in changes)


def change_something(account: Account, randoms: random.Random) -> None:
    ids = sorted(account.mailboxes)
    match randoms.randrange(8):
        case 0 | 1 | 2:
            boxes = randoms.sample(ids, randoms.randint(1, min(3, len(ids))))
            # Few ids and fewer blobs: the emails move, and are copies of each other.
            email_id = randoms.randrange(9)
            account.put(f"{email_id}", *boxes, blob=f"x{email_id // 3}")
        case 3:
            account.remove(f"{randoms.randrange(9)}")
        case 4:
            new_id = f"M{randoms.randrange(5)}"
            account.rename(new_id, f"Name {randoms.randrange(4)} {new_id}")
        case 5 | 6:
            # Not below itself: the parent comes earlier in the alphabet.
            one = randoms.choice(ids)
            parents = [None, *(other for other in ids if other < one)]
            account.rename(one, f"Name {one} {randoms.randrange(3)}", randoms.choice(parents))
        case _ if len(ids) > 1:
            # The mailbox stays while it has mail.
            del account.mailboxes[randoms.choice(ids)]
            account.store_mailboxes()


def test_a_state_that_was_taken_back_is_unknown(account: Account) -> None:
    frozen = account.shown()
    account.put("1", "A")
    shown = account.shown()
    account.put("2", "A")
    assert name_changes(account.reader, shown[0], frozen[0]) is None
