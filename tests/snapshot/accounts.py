"""Accounts on Cyrus that are filled for snapshots, and what happens to them meanwhile."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Self

from tests.cyrus import Account, Message
from tests.cyrus_mail import START
from tests.snapshot.snapshots import Taken, tree_of


def by_directory(taken: Taken) -> dict[str, Counter[str]]:
    """Return the SHA-256s of the files of a snapshot, by the directory they are in."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for path, (digest, _, _) in tree_of(taken.path).items():
        found[str(Path(path).parent.relative_to("mail"))][digest] += 1
    return found


def churning(account: Account, messages: dict[str, Counter[str]]) -> dict[str, int]:
    """Make an account fit for `Churn`; return how many mails are in each mailbox before it."""
    account.fill("Lists/exmh", [b"Subject: more %d\r\n\r\n." % n for n in range(400)])
    account.fill("INBOX", [b"Subject: inbox %d\r\n\r\n." % n for n in range(400)])
    before = {name: sum(counted.values()) for name, counted in messages.items()}
    return before | {name: before[name] + 400 for name in ("Inbox", "Lists/exmh")}


def arrived_in_one_state(taken: Taken, before: dict[str, int]) -> int:
    """Check that a snapshot among changes is of one state; return how many mails had arrived."""
    found = {name: sum(counted.values()) for name, counted in by_directory(taken).items()}
    arrived = found["Inbox"] + found["Work"] - before["Inbox"] - before["Work"]
    moved = found["Work"] - before["Work"]
    gone = before["Lists/exmh"] - found["Lists/exmh"]
    # A step at a time: it is in Work before it has left Inbox where the server copies to move.
    assert arrived - moved in {0, 1}, (arrived, moved, gone)
    assert moved - gone in {0, 1}, (arrived, moved, gone)
    return arrived


class Churn:
    """Mail that arrives, moves and vanishes until it is told to stop, `rounds` times at most."""

    most = 380

    def __init__(self, account: Account) -> None:
        self._account = account
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self.rounds < self.most:
                number = self.rounds
                mail = b"Subject: churn %d\r\n\r\n%d\r\n" % (number, number)
                self._account.fill("INBOX", [Message(mail, received=START)])
                # The first three are in both.
                self._account.move("INBOX", [number + 4], "Work")
                self._account.expunge("Lists/exmh", [number + 1])
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - raised in the test
            self.error = error
