"""What following an account costs, and what open files, two mounts and changes over JMAP show.

The changes that Cyrus and James have in common are in tests/real_servers/test_changes.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.cyrus import Account
from tests.mails import list_mails
from tests.mounts import Home, Mounted, fixed
from tests.waits import wait_until
from tests.watcher import (
    QUIET,
    TO_COME,
    Watcher,
    assert_like_a_new_mount,
    fill_mailboxes,
    home_of,
    on_server,
    shown,
)

pytestmark = pytest.mark.mount


@pytest.fixture
def account(fresh_account: Callable[[], Account]) -> Account:
    account = fresh_account()
    fill_mailboxes(account)
    return account


# --- Changes


def test_changes_over_jmap(account: Account, watcher: Watcher, tmp_path: Path) -> None:
    change = watcher.change
    ids = account.mailbox_ids()
    emails = account.email_ids(ids["Inbox"])
    change(lambda: account.add_to_mailbox(emails[3], ids["Work"]))
    change(lambda: account.add_to_mailbox(emails[3], ids["Empty"]))
    change(lambda: account.remove_from_mailbox(emails[3], ids["Inbox"]))
    change(lambda: account.set_emails(update={emails[4]: {"mailboxIds": {ids["Lists"]: True}}}))
    change(lambda: account.set_emails(update={emails[5]: {"keywords/$seen": True}}))
    change(lambda: account.set_emails(destroy=[emails[3], emails[6]]))
    change(lambda: account.create_mailbox_by_jmap("New"), *TO_COME)
    change(lambda: account.set_mailboxes(update={ids["Work"]: {"name": "Play"}}), *TO_COME)
    change(
        lambda: account.set_mailboxes(
            update={ids["Work"]: {"name": "Work", "parentId": ids["Lists"]}}
        ),
        *TO_COME,
    )
    change(
        lambda: account.set_mailboxes(destroy=[ids["Work/Clients"]], onDestroyRemoveEmails=True),
        *TO_COME,
    )
    change(
        lambda: account.set_mailboxes(destroy=[ids["Work"]], onDestroyRemoveEmails=True),
        *TO_COME,
    )
    assert_like_a_new_mount(watcher, tmp_path / "other")


# --- What it costs


def test_a_flag_invalidates_nothing_in_the_kernel(account: Account, mount: Mounted) -> None:
    paths = [mount.path / path for path in mount.files()]
    contents = [path.read_bytes() for path in paths]
    counts = mount.counts()
    account.store_flags("INBOX", [1, 2, 6], [r"\Seen"])
    mount.sync()
    assert [path.read_bytes() for path in paths] == contents
    for path in paths:
        path.stat()
    assert (mount.path / "Inbox").stat()
    done = mount.counts() - counts
    assert done.fuse["open"] == len(paths)
    assert (done.reads, done.blobs) == (0, 0)
    assert (done.fuse.get("lookup", 0), done.fuse.get("getattr", 0)) == (0, 0)


def test_unchanged_entries_stay_in_the_kernel_caches(account: Account, mount: Mounted) -> None:
    entries = mount.entries()
    inbox = [path for path in entries if path.startswith("Inbox/")]
    others = [path for path in entries if path and not path.startswith("Inbox")]
    contents = {path: (mount.path / path).read_bytes() for path in inbox}

    def look(paths: Iterable[str]) -> tuple[int, int]:
        counts = mount.counts()
        for path in paths:
            (mount.path / path).stat()
        done = mount.counts() - counts
        return done.fuse.get("lookup", 0), done.fuse.get("getattr", 0)

    assert look(inbox + others) == (0, 0)
    account.append("INBOX", list_mails(20, 1)[0])
    mount.sync()
    assert look(others) == (0, 0)
    # The mailbox that got a mail is looked at again, once; the mail in it is not.
    lookups, attributes = look(inbox)
    assert lookups == 0
    assert attributes <= 1
    assert (mount.path / "Inbox").stat().st_mtime_ns != entries["Inbox"].st_mtime_ns
    counts = mount.counts()
    assert {path: (mount.path / path).read_bytes() for path in inbox} == contents
    assert (mount.counts() - counts).reads == 0

    # A moved email invalidates its own names and link count, and nothing else.
    account.move("INBOX", [1], "Work")
    mount.sync()
    stayed = [path for path in inbox + others if (mount.path / path).exists()]
    assert len(stayed) == len(inbox) + len(others) - 1
    account.append("Empty", list_mails(21, 1)[0])
    mount.sync()
    assert look(path for path in stayed if not path.startswith("Empty")) == (0, 0)


@pytest.mark.parametrize("size", [20, 3000])
def test_a_small_change_costs_a_handful_of_requests(
    fresh_account: Callable[[], Account], tmp_path: Path, size: int
) -> None:
    account = fresh_account()
    account.create_mailbox("Work")
    account.fill("INBOX", list_mails(0, size))
    changes: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "append": lambda: account.append("Work", list_mails(5000, 1)[0]),
        "flag": lambda: account.store_flags("INBOX", [1], [r"\Seen"]),
        "copy": lambda: account.copy("INBOX", [2], "Work"),
        "move": lambda: account.move("INBOX", [3], "Work"),
        "expunge": lambda: account.expunge("INBOX", [4]),
        "create": lambda: account.create_mailbox("New"),
    }
    requests = {}
    with home_of(account, tmp_path).mounted(account.url, *QUIET) as mount:
        for name, change in changes.items():
            change()
            counts = mount.counts()
            mount.sync()
            requests[name] = (mount.counts() - counts).http["requests"]
        assert mount.status()["emails"] == size
    # The changes of mailboxes and emails, and the emails themselves, share one request. If the
    # mailboxes have changed, all of them are requested, then the changes of the emails again. The
    # command also compares the numbers of emails, with one request.
    assert requests == {
        "nothing": 2,
        "append": 2,
        "flag": 2,
        "copy": 2,
        "move": 2,
        "expunge": 2,
        "create": 4,
    }


# --- Open files and directories


def test_an_open_mail_that_is_expunged_can_be_read_to_its_end(
    account: Account, mount: Mounted
) -> None:
    mail = list_mails(20, 1)[0] + b"0123456789abcde\r\n" * 100_000
    account.append("Empty", mail)
    mount.sync()
    (path,) = (mount.path / "Empty").iterdir()
    with path.open("rb", buffering=0) as file:
        assert file.read(100) == mail[:100]
        before = os.fstat(file.fileno())
        account.expunge("Empty", [1])
        mount.sync()
        assert not path.exists()
        assert list((mount.path / "Empty").iterdir()) == []
        after = os.fstat(file.fileno())
        assert (after.st_ino, after.st_size, after.st_nlink) == (
            before.st_ino,
            before.st_size,
            0,
        )
        # What the kernel has read ahead is dropped, so that the daemon is asked.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        counts = mount.counts()
        file.seek(0)
        assert b"".join(iter(lambda: file.read(65536), b"")) == mail
        assert (mount.counts() - counts).reads > 0
    with pytest.raises(FileNotFoundError):
        path.open()


def test_a_listing_that_is_older_than_a_change(account: Account, mount: Mounted) -> None:
    """An open listing shows the earlier state, and the kernel does not cache its entries."""
    account.fill("Empty", list_mails(1000, 2000))
    mount.sync()
    with os.scandir(mount.path / "Empty") as listing:
        names = [next(listing).name]
        account.expunge("Empty", list(range(1, 2001, 2)))
        account.copy("Empty", [2000], "Work")
        mount.sync()
        names += [entry.name for entry in listing]
    assert len(names) == 2000
    there = [path.name for path in (mount.path / "Empty").iterdir()]
    assert len(there) == 1000
    found = [name for name in names if (mount.path / "Empty" / name).exists()]
    assert found == there
    links = [(mount.path / "Empty" / name).stat().st_nlink for name in there]
    assert links == [1] * 999 + [2]


def test_a_working_directory_that_is_renamed(account: Account, mount: Mounted) -> None:
    inside = os.open(mount.path / "Work" / "Clients", os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = os.listdir(inside)  # noqa: PTH208 - a file descriptor
        account.rename_mailbox("Work", "Play")
        mount.sync()
        assert [path.name for path in (mount.path / "Play" / "Clients").iterdir()] == names
        with pytest.raises(FileNotFoundError):
            os.stat(names[0], dir_fd=inside)
        account.rename_mailbox("Play", "Work")
        mount.sync()
        assert [name for name in names if os.stat(name, dir_fd=inside).st_size] == names
    finally:
        os.close(inside)


# --- Without being asked, and two of them


def test_two_mounts_of_one_account(account: Account, home: Home) -> None:
    often = ("--poll-interval", "1")
    with (
        home.mounted(account.url, *often) as first,
        home.mounted(account.url, *often, path=home.directory / "second") as second,
    ):
        assert "this mount only reads the index" in second.result.stderr
        assert (first.status()["leads"], second.status()["leads"]) == (True, False)
        second.entries()
        account.move("INBOX", [2], "Empty")
        first.sync()
        (moved,) = (first.path / "Empty").iterdir()
        wait_until((second.path / "Empty" / moved.name).exists)
        wait_until(lambda: not (second.path / "Inbox" / moved.name).exists())
        assert fixed((second.path / "Empty" / moved.name).stat()) == fixed(moved.stat())
        assert {path: fixed(status) for path, status in second.entries().items()} == {
            path: fixed(status) for path, status in first.entries().items()
        }

        first.umount()
        wait_until(lambda: second.status()["leads"])
        account.expunge("Empty", [1])
        assert home.run("sync", second.path).exit_code == 0
        assert not (second.path / "Empty" / moved.name).exists()
        assert shown(second, second.entries()) == on_server(account)


def test_the_second_mount_takes_over_at_a_sync(account: Account, home: Home) -> None:
    with (
        home.mounted(account.url, *QUIET) as first,
        home.mounted(account.url, *QUIET, path=home.directory / "second") as second,
    ):
        second.entries()
        assert home.run("sync", second.path).exit_code == 0
        account.move("INBOX", [2], "Empty")
        result = home.run("sync", second.path)
        assert result.exit_code == 9
        assert "another process" in result.stderr
        first.sync()
        assert home.run("sync", second.path).exit_code == 0
        assert shown(second, second.entries()) == on_server(account)
        first.umount()
        account.move("INBOX", [3], "Empty")
        second.sync()
        assert second.status()["leads"]
        assert shown(second, second.entries()) == on_server(account)
