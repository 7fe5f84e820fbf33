"""Compares a mount with its account, change by change.

The kernel keeps names and attributes for a day. So all names are looked up before each change, also
those that do not exist yet. After the change they are looked up again *before* any directory is
listed, because a listing would repair what the kernel was not told.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.mail_server.account import MailAccount
from tests.mails import list_mails
from tests.mounts import Home, Mounted, fixed, portable

QUIET = ("--poll-interval", "3600")
"""Only `jmapfs sync` brings changes, or push."""

MAILBOXES = ("Work", "Work/Clients", "Lists", "Empty")
TO_COME = ("New", "New/Deep", "Play", "Play/Clients", "Lists/Work", "Lists/Work/Clients", "Moved")

Entries = dict[str, os.stat_result]


def fill_mailboxes(account: MailAccount) -> None:
    """Make mailboxes with some mail; the first of Inbox is in Lists too."""
    for name in MAILBOXES:
        account.create_mailbox(name)
    account.fill("INBOX", list_mails(0, 12))
    account.fill("Work", list_mails(100, 4))
    account.fill("Work/Clients", list_mails(200, 3))
    account.fill("Lists", list_mails(300, 2))
    account.copy("INBOX", [1], "Lists")


def home_of(account: MailAccount, directory: Path) -> Home:
    """Return a user's environment with the credentials of the account."""
    return Home(directory, account.name, account.password)


def on_server(account: MailAccount) -> dict[str, Counter[tuple[object, ...]]]:
    """Return by directory what the server has: SHA-1, size, time of receipt, number of names."""
    paths = {mailbox_id: path for path, mailbox_id in account.mailbox_ids().items()}
    tree: dict[str, Counter[tuple[object, ...]]] = {path: Counter() for path in paths.values()}
    properties = ["blobId", "size", "receivedAt", "mailboxIds"]
    all_ids = account.email_ids()
    for start in range(0, len(all_ids), 500):
        ids = all_ids[start : start + 500]
        (answer,) = account.jmap(("Email/get", {"ids": ids, "properties": properties}))
        assert not answer["notFound"]
        digests = account.sha1s(email["blobId"] for email in answer["list"])
        for email in answer["list"]:
            what = (
                digests[email["blobId"]],
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
    account: MailAccount
    entries: Entries = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entries = self.mount.entries()
        self.compare()

    def compare(self) -> None:
        assert shown(self.mount, self.entries) == on_server(self.account)

    def change(
        self,
        change: Callable[[], object],
        *coming: str,
        changed_back: Collection[str] = (),
        perhaps: Collection[str] = (),
    ) -> Entries:
        """Make a change, sync, and check all of the tree; return it as it was before.

        `coming` are directories that the change may make. The names in `changed_back` are others
        between two steps of the sync. Those in `perhaps` are, if push shows the middle of the
        change.
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
        self._check_what_stayed(before, changed_back, perhaps)
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

    def _check_what_stayed(
        self, before: Entries, changed_back: Collection[str], perhaps: Collection[str]
    ) -> None:
        after = self.entries
        members_before, members_after = members(before), members(after)
        for path in before.keys() & after.keys():
            old, new = before[path], after[path]
            if not stat.S_ISDIR(old.st_mode):
                assert without_links(old) == without_links(new), path
            elif (
                members_before[path] == members_after[path]
                and path not in changed_back
                and (path not in perhaps or int(old.st_mtime) == int(new.st_mtime))
            ):
                assert fixed(old) == fixed(new), path
            else:
                assert old.st_ino == new.st_ino, path
                assert int(old.st_mtime) < int(new.st_mtime), path
                assert new.st_mtime_ns == new.st_ctime_ns, path


def assert_like_a_new_mount(watcher: Watcher, directory: Path) -> None:
    """The tree that followed the account is that of a machine that sees it for the first time."""
    fresh = home_of(watcher.account, directory)
    with fresh.mounted(watcher.account.url, *QUIET) as other:
        assert {path: portable(status) for path, status in other.entries().items()} == {
            path: portable(status) for path, status in watcher.entries.items()
        }
