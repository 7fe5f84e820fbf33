"""A mount follows its account: after `jmapfs sync` the kernel shows what the server has, at once.

The kernel keeps names and attributes for a day. So before each change everything is looked up,
what is not there included, and after it all of that is looked up again *before* any directory is
listed: a listing would put right what the kernel was not told.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from tests.cyrus import Account
from tests.mails import list_mails
from tests.mounts import Home, Mounted, fixed
from tests.waits import wait_until

pytestmark = pytest.mark.mount

QUIET = ("--poll-interval", "3600")
"""Only `jmapfs sync` brings changes."""

DIRECTORIES = ("Inbox", "Work", "Work/Clients", "Lists", "Empty")
TO_COME = ("New", "New/Deep", "Play", "Play/Clients", "Lists/Work", "Lists/Work/Clients", "Moved")

Entries = dict[str, os.stat_result]


def filled(account: Account) -> Account:
    """Make mailboxes with some mail; the first of Inbox is in Lists too."""
    for name in DIRECTORIES[1:]:
        account.create_mailbox(name)
    account.fill("INBOX", list_mails(0, 12))
    account.fill("Work", list_mails(100, 4))
    account.fill("Work/Clients", list_mails(200, 3))
    account.fill("Lists", list_mails(300, 2))
    account.copy("INBOX", [1], "Lists")
    return account


@pytest.fixture
def account(fresh_account: Callable[[], Account]) -> Account:
    return filled(fresh_account())


@pytest.fixture
def home(account: Account, tmp_path: Path) -> Home:
    return home_of(account, tmp_path)


def home_of(account: Account, directory: Path) -> Home:
    return Home(directory, account.name, account.password)


# --- Comparison of the mount with the server


def on_server(account: Account) -> dict[str, Counter[tuple[object, ...]]]:
    """Return by directory what the server has: SHA-1, size, time of receipt, number of names."""
    paths = {mailbox_id: path for path, mailbox_id in account.mailbox_ids().items()}
    tree: dict[str, Counter[tuple[object, ...]]] = {path: Counter() for path in paths.values()}
    properties = ["blobId", "size", "receivedAt", "mailboxIds"]
    all_ids = account.email_ids()
    for start in range(0, len(all_ids), 500):
        ids = all_ids[start : start + 500]
        (answer,) = account.jmap(("Email/get", {"ids": ids, "properties": properties}))
        assert not answer["notFound"]
        for email in answer["list"]:
            what = (
                email["blobId"][1:],
                email["size"],
                datetime.fromisoformat(email["receivedAt"]).timestamp(),
                len(email["mailboxIds"]),
            )
            for mailbox_id in email["mailboxIds"]:
                tree[paths[mailbox_id]][what] += 1
    return tree


def shown(mount: Mounted, entries: Entries) -> dict[str, Counter[tuple[object, ...]]]:
    """Return the same for the mount; every mail is read."""
    tree: defaultdict[str, Counter[tuple[object, ...]]] = defaultdict(Counter)
    for path, status in entries.items():
        if stat.S_ISDIR(status.st_mode):
            if path:
                tree[path].update()
            continue
        content = (mount.path / path).read_bytes()
        digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        what = (digest, status.st_size, status.st_mtime, status.st_nlink)
        tree[path.rpartition("/")[0]][what] += 1
    return dict(tree)


def without_links(status: os.stat_result) -> tuple[int, ...]:
    """Return what of a mail is never to change, whatever mailboxes it is in."""
    return (*fixed(status)[:2], *fixed(status)[3:])


def members(entries: Entries) -> dict[str, set[str]]:
    """Return the paths of the entries of each directory."""
    found: dict[str, set[str]] = {
        path: set() for path, status in entries.items() if stat.S_ISDIR(status.st_mode)
    }
    for path in entries.keys() - {""}:
        found[path.rpartition("/")[0]].add(path)
    return found


@dataclass
class Watcher:
    """Compares a mount with its account, change by change."""

    mount: Mounted
    account: Account
    entries: Entries = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entries = self.mount.entries()
        self.compare()

    def compare(self) -> None:
        assert shown(self.mount, self.entries) == on_server(self.account)

    def change(self, change: Callable[[], object], *coming: str) -> Entries:
        """Make a change, sync, and check all of the tree; return it as it was before.

        `coming` are directories that the change may make.
        """
        before = self.entries
        paths = self._paths(coming)
        looked_up = self._look_up(paths)
        assert {path for path, status in looked_up.items() if status} == set(before)
        change()
        self.mount.sync()
        looked_up = self._look_up(paths)
        self.entries = after = self.mount.entries()
        assert {path for path, status in looked_up.items() if status} == after.keys() & paths
        for path, status in looked_up.items():
            assert status is None or fixed(status) == fixed(after[path]), path
        self.compare()
        self._check_what_stayed(before)
        return before

    def _paths(self, coming: Iterable[str]) -> set[str]:
        """Return every name in every directory, whether it exists there or not."""
        directories = set(members(self.entries)).union(coming)
        names = {path.rpartition("/")[2] for path in self.entries if path.endswith(".eml")}
        return {
            path.lstrip("/")
            for directory in directories
            for path in (directory, *(f"{directory}/{name}" for name in names))
        }

    def _look_up(self, paths: Iterable[str]) -> dict[str, os.stat_result | None]:
        found: dict[str, os.stat_result | None] = dict.fromkeys(paths)
        # Existing entries last: lookups of missing names must not drop them from the caches.
        for path in sorted(found, key=lambda path: path in self.entries):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[path] = (self.mount.path / path).lstat()
        return found

    def _check_what_stayed(self, before: Entries) -> None:
        after = self.entries
        members_before, members_after = members(before), members(after)
        for path in before.keys() & after.keys():
            old, new = before[path], after[path]
            if not stat.S_ISDIR(old.st_mode):
                assert without_links(old) == without_links(new), path
            elif members_before[path] == members_after[path]:
                assert fixed(old) == fixed(new), path
            else:
                assert old.st_ino == new.st_ino, path
                assert old.st_mtime_ns != new.st_mtime_ns, path


@pytest.fixture
def mount(account: Account, home: Home) -> Iterator[Mounted]:
    with home.mounted(account.url, *QUIET) as mount:
        yield mount


@pytest.fixture
def watcher(account: Account, mount: Mounted) -> Watcher:
    return Watcher(mount, account)


def assert_like_a_new_mount(watcher: Watcher, directory: Path) -> None:
    """The tree that followed the account is that of a machine that sees it for the first time."""
    fresh = home_of(watcher.account, directory)
    with fresh.mounted(watcher.account.url, *QUIET) as other:
        assert {path: fixed(status) for path, status in other.entries().items()} == {
            path: fixed(status) for path, status in watcher.entries.items()
        }


# --- Changes


def test_emails_change_over_imap(account: Account, watcher: Watcher, tmp_path: Path) -> None:
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


def test_a_flag_changes_nothing_in_the_tree(account: Account, watcher: Watcher) -> None:
    before = watcher.change(lambda: account.store_flags("INBOX", [6], [r"\Seen"]))
    assert {path: fixed(status) for path, status in before.items()} == {
        path: fixed(status) for path, status in watcher.entries.items()
    }


def test_mailboxes_change_over_imap(account: Account, watcher: Watcher, tmp_path: Path) -> None:
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


def test_names_that_are_used_again(account: Account, watcher: Watcher, tmp_path: Path) -> None:
    change = watcher.change
    first = watcher.entries
    change(lambda: account.move("INBOX", [2], "Work"))
    (moved,) = first.keys() - watcher.entries.keys()
    change(lambda: account.move("Work", [5], "INBOX"))
    assert {path: fixed(status) for path, status in first.items()} == {
        path: fixed(status) for path, status in watcher.entries.items()
    }
    assert moved in watcher.entries

    def away_and_back() -> None:
        account.move("INBOX", [3], "Work")
        account.move("Work", [6], "INBOX")

    change(away_and_back)
    change(lambda: account.rename_mailbox("Work", "Play"), *TO_COME)
    change(lambda: account.rename_mailbox("Play", "Work"), *TO_COME)
    assert {path: fixed(status) for path, status in first.items()} == {
        path: fixed(status) for path, status in watcher.entries.items()
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
    change(a_child_takes_the_place_of_its_parent)
    assert_like_a_new_mount(watcher, tmp_path / "other")


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


def test_many_changes_at_once(account: Account, watcher: Watcher, tmp_path: Path) -> None:
    uids: list[int] = []
    watcher.change(lambda: uids.extend(account.fill("Empty", list_mails(1000, 1000))))
    assert len(uids) == 1000
    watcher.change(lambda: account.expunge("Empty", uids[100:600]))
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


def test_polling_shows_a_change(account: Account, home: Home) -> None:
    with home.mounted(account.url, "--poll-interval", "1") as mount:
        assert not (mount.path / "Empty" / "x").exists()
        assert list((mount.path / "Empty").iterdir()) == []
        account.append("Empty", list_mails(20, 1)[0])
        wait_until(lambda: any((mount.path / "Empty").iterdir()))
        (path,) = (mount.path / "Empty").iterdir()
        account.expunge("Empty", [1])
        wait_until(lambda: not path.exists())


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
