"""An account that changes, and what a mount shows of it, for tests of freezes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from hashlib import sha256

from tests.mails import list_mails, new_emails
from tests.mounts import Mounted, fixed
from tests.server import NewEmail, ServerProcess
from tests.waits import wait_until

State = dict[str, tuple[tuple[int, ...], bytes]]
"""All that a mount shows: by path the attributes that never change, and the content."""

STATUS_FILE = ".jmapfs.json"


def small_emails(first: int, count: int, mailbox_id: str) -> list[NewEmail]:
    """Return emails for `add_emails`; their numbers tell them apart."""
    return new_emails(list_mails(first, count), mailbox_id, first=first)


class ChangingAccount:
    """An account on the server with three mailboxes of twenty emails each."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.control = server.control
        self.ids = {box.name: box.id for box in self.control.dump().mailboxes}
        for name in ("Inbox", "Work", "Lists"):
            if name not in self.ids:
                self.ids[name] = self.control.create_mailbox(name)
        for number, name in enumerate(("Inbox", "Work", "Lists")):
            self.control.add_emails(small_emails(100 * number, 20, self.ids[name]))
        self._next = 1000

    def churn(self, times: int = 1) -> None:
        """Add, move, remove and copy an email; four changes each time."""
        for _ in range(times):
            emails = {name: self.control.dump().emails_in(box) for name, box in self.ids.items()}
            self.control.add_emails(small_emails(self._next, 1, self.ids["Inbox"]))
            self._next += 1
            if emails["Work"]:
                self.control.move_email(emails["Work"][0].id, self.ids["Work"], self.ids["Lists"])
            if emails["Lists"]:
                self.control.destroy_email(emails["Lists"][-1].id)
            if emails["Inbox"]:
                self.control.copy_email(emails["Inbox"][-1].id, self.ids["Work"])

    def tree(self) -> dict[str, Counter[str]]:
        """Return the SHA-256 of the emails that a mount must show, by top-level directory."""
        dump = self.control.dump()
        return {
            box.name: Counter(email.sha256 for email in dump.emails_in(box.id))
            for box in dump.mailboxes
        }


def read_state(mount: Mounted) -> State:
    """Return all that the mount shows, by looking it up and reading it."""
    found = {
        path: (fixed(status), b"" if (mount.path / path).is_dir() else read(mount, path))
        for path, status in mount.entries().items()
    }
    found[STATUS_FILE] = (fixed((mount.path / STATUS_FILE).lstat()), read(mount, STATUS_FILE))
    return found


def read(mount: Mounted, path: str) -> bytes:
    return (mount.path / path).read_bytes()


def tree_of(found: State) -> dict[str, Counter[str]]:
    shown: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path, (status, data) in found.items():
        directory, _, name = path.rpartition("/")
        if name.endswith(".eml"):
            shown[directory][sha256(data).hexdigest()] += 1
            assert status[5] == len(data)
        elif path and path != STATUS_FILE:
            shown[path].update()
    return dict(shown)


def assert_live(mount: Mounted, account: ChangingAccount, before: State) -> None:
    """The mount shows what the server has: first by names known before, then by listing."""
    still = {path for path in before if (mount.path / path).exists()}
    found = read_state(mount)
    assert still == before.keys() & found.keys()
    assert tree_of(found) == account.tree()
    assert json.loads(found[STATUS_FILE][1])["state"] == account.control.dump().states["Email"]


def wait_until_thawed(mount: Mounted, seconds: float = 15) -> None:
    """Wait for a thaw without a request, until the kernel has been told."""
    wait_until(lambda: not mount.is_frozen, seconds)
    # The reply comes when a thaw that is under way has ended.
    assert not mount.thaw()
