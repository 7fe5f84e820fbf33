"""A mount follows its account: after a sync the kernel shows what the server has, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import corpus
from tests.mail_server.account import MailAccount
from tests.mails import list_mails
from tests.mounts import Home, fixed, portable
from tests.waits import wait_until
from tests.watcher import (
    QUIET,
    TO_COME,
    Watcher,
    assert_like_a_new_mount,
    on_server,
    shown,
)

pytestmark = pytest.mark.mount


def test_emails_change_over_imap(account: MailAccount, watcher: Watcher, tmp_path: Path) -> None:
    change = watcher.change
    change(lambda: account.append("INBOX", list_mails(20, 1)[0]))
    change(lambda: account.append("Empty", list_mails(21, 1)[0]))
    # The server may merge it with an existing mailbox.
    change(lambda: account.append("INBOX", list_mails(20, 1)[0]))
    change(lambda: account.append("Work", list_mails(20, 1)[0]))
    change(lambda: account.copy("INBOX", [2, 3], "Work"))
    change(lambda: account.copy("INBOX", [2], "Lists"))
    change(lambda: account.move("INBOX", [4, 5], "Work"))
    change(lambda: account.move("Work", [1], "Empty"))
    change(lambda: account.store_flags("INBOX", [6], [r"\Seen", r"\Flagged"]))
    change(lambda: account.expunge("INBOX", [7]))
    change(lambda: account.expunge("INBOX", [2]))
    change(lambda: account.expunge("Lists", [1, 2, 3]))
    assert_like_a_new_mount(watcher, tmp_path / "other")


def test_a_flag_changes_nothing_in_the_tree(account: MailAccount, watcher: Watcher) -> None:
    before = watcher.change(lambda: account.store_flags("INBOX", [6], [r"\Seen"]))
    assert {path: fixed(status) for path, status in before.items()} == {
        path: fixed(status) for path, status in watcher.entries.items()
    }


def test_mailboxes_change_over_imap(account: MailAccount, watcher: Watcher, tmp_path: Path) -> None:
    change = watcher.change
    change(lambda: account.create_mailbox("New"), *TO_COME)
    change(lambda: account.create_mailbox("New/Deep"), *TO_COME)
    change(lambda: account.append("New/Deep", list_mails(20, 1)[0]), *TO_COME)
    change(lambda: account.rename_mailbox("Empty", "Moved"), *TO_COME)
    change(lambda: account.rename_mailbox("Work", "Play"), *TO_COME)
    change(lambda: account.rename_mailbox("Play", "Lists/Work"), *TO_COME)
    change(lambda: account.rename_mailbox("Lists/Work", "Work"), *TO_COME)
    change(lambda: account.delete_mailbox("Moved"), *TO_COME)
    change(lambda: account.delete_mailbox("New/Deep"), *TO_COME)
    change(lambda: account.delete_mailbox("Lists"), *TO_COME)
    change(lambda: account.delete_mailbox("Work/Clients"), *TO_COME)
    change(lambda: account.delete_mailbox("Work"), *TO_COME)
    assert_like_a_new_mount(watcher, tmp_path / "other")


def test_names_that_are_used_again(account: MailAccount, watcher: Watcher, tmp_path: Path) -> None:
    change = watcher.change
    first = watcher.entries
    change(lambda: account.move("INBOX", [2], "Work"))
    (moved,) = first.keys() - watcher.entries.keys()
    change(lambda: account.move("Work", [5], "INBOX"))
    assert {path: portable(status) for path, status in first.items()} == {
        path: portable(status) for path, status in watcher.entries.items()
    }
    assert moved in watcher.entries

    def away_and_back() -> None:
        account.move("INBOX", [3], "Work")
        account.move("Work", [6], "INBOX")

    change(away_and_back, perhaps=["Inbox", "INBOX", "Work"])
    change(lambda: account.rename_mailbox("Work", "Play"), *TO_COME)
    change(lambda: account.rename_mailbox("Play", "Work"), *TO_COME)
    assert {path: portable(status) for path, status in first.items()} == {
        path: portable(status) for path, status in watcher.entries.items()
    }

    def names_swapped() -> None:
        account.rename_mailbox("Work/Clients", "Temporary")
        account.rename_mailbox("Lists", "Work/Clients")
        account.rename_mailbox("Temporary", "Lists")

    def another_of_that_name() -> None:
        account.delete_mailbox("Lists")
        account.create_mailbox("Lists")
        account.fill("Lists", list_mails(20, 2))

    def a_child_takes_the_place_of_its_parent() -> None:
        account.rename_mailbox("Work/Clients", "Temporary")
        account.delete_mailbox("Work")
        account.rename_mailbox("Temporary", "Work")

    change(names_swapped)
    change(another_of_that_name)
    # For a moment, the root has both of them.
    change(a_child_takes_the_place_of_its_parent, changed_back=[""])
    assert_like_a_new_mount(watcher, tmp_path / "other")


def test_many_changes_at_once(account: MailAccount, watcher: Watcher, tmp_path: Path) -> None:
    uids: list[int] = []
    watcher.change(lambda: uids.extend(account.fill("Empty", list_mails(1000, 600))))
    assert len(uids) == 600
    watcher.change(lambda: account.expunge("Empty", uids[100:400]))
    assert_like_a_new_mount(watcher, tmp_path / "other")


# --- Without being asked


def test_changes_are_shown_without_a_sync(account: MailAccount, home: Home) -> None:
    """Cyrus 3.6 has no push, so it is polled. James announces each change."""
    options = QUIET if account.has_push else ("--poll-interval", "1")
    with home.mounted(account.url, *options) as mount:
        wait_until(lambda: mount.status()["push"] is account.has_push)
        assert not (mount.path / "Empty" / "x").exists()
        assert list((mount.path / "Empty").iterdir()) == []
        account.append("Empty", list_mails(20, 1)[0])
        wait_until(lambda: any((mount.path / "Empty").iterdir()))
        (path,) = (mount.path / "Empty").iterdir()
        account.move("Empty", [1], "Work")
        wait_until((mount.path / "Work" / path.name).exists)
        account.rename_mailbox("Work", "Play")
        wait_until((mount.path / "Play" / path.name).exists)
        account.expunge("Play", [5])
        wait_until(lambda: not (mount.path / "Play" / path.name).exists())
        assert shown(mount, mount.entries()) == on_server(account)


# --- While it is not mounted


def test_changes_between_two_mounts(mail_account: MailAccount, tmp_path: Path) -> None:
    account = mail_account
    account.create_mailbox("Work")
    account.fill("INBOX", corpus.mails(20))
    home = Home(tmp_path, account.name, account.password)
    with home.mounted(account.url) as mount:
        before = mount.files()
    account.move("INBOX", [1], "Work")
    account.copy("INBOX", [2], "Work")
    account.expunge("INBOX", [3])
    account.store_flags("INBOX", [4], [r"\Seen"])
    account.rename_mailbox("Work", "Play")
    account.append("INBOX", corpus.varied(corpus.hostile_mails()[0], 7))
    with home.mounted(account.url) as mount:
        after = mount.files()
        assert mount.counts().http["requests"] <= 12
    inbox = sorted(path for path in before if path.startswith(f"{account.inbox}/"))
    assert {path.partition("/")[0] for path in after} == {account.inbox, "Play"}
    assert len([path for path in after if path.startswith(f"{account.inbox}/")]) == 19
    assert len([path for path in after if path.startswith("Play/")]) == 2
    known = {status.st_ino for status in before.values()}
    assert len({status.st_ino for status in after.values()} - known) == 1
    kept = set(before) & set(after)
    assert len(kept) == len(inbox) - 2
    assert all(fixed(before[path])[:2] == fixed(after[path])[:2] for path in kept)
