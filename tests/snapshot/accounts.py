"""Accounts on real servers with mail to copy, and changes to them while they are copied."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Self

from tests.mail_server.account import MailAccount
from tests.mail_server.append import Message
from tests.snapshot.commands import TakenSnapshot, tree_of
from tests.stored_mail import START


def by_directory(taken: TakenSnapshot) -> dict[str, Counter[str]]:
    """Return the SHA-256s of the files of a snapshot by directory."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for path, (digest, _, _) in tree_of(taken.path).items():
        found[str(Path(path).parent.relative_to("mail"))][digest] += 1
    return found


def churning(account: MailAccount, messages: dict[str, Counter[str]]) -> dict[str, int]:
    """Prepare an account for `Churn`; return the number of mails in each mailbox."""
    account.fill("Lists/exmh", [b"Subject: more %d\r\n\r\n." % n for n in range(400)])
    account.fill("INBOX", [b"Subject: inbox %d\r\n\r\n." % n for n in range(400)])
    before = {name: sum(counted.values()) for name, counted in messages.items()}
    return before | {name: before[name] + 400 for name in (account.inbox, "Lists/exmh")}


def arrived_in_one_state(taken: TakenSnapshot, before: dict[str, int], inbox: str) -> int:
    """Check that a snapshot has one state of a changing account; return how many mails arrived."""
    found = {name: sum(counted.values()) for name, counted in by_directory(taken).items()}
    arrived = found[inbox] + found["Work"] - before[inbox] - before["Work"]
    moved = found["Work"] - before["Work"]
    gone = before["Lists/exmh"] - found["Lists/exmh"]
    # The server moves by copying: a mail is in Work before it leaves Inbox.
    assert arrived - moved in {0, 1}, (arrived, moved, gone)
    assert moved - gone in {0, 1}, (arrived, moved, gone)
    return arrived


class Churn:
    """Adds, moves and deletes mail in a thread, at most `most` times."""

    most = 380

    def __init__(self, account: MailAccount) -> None:
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
                # The first three are in other mailboxes as well.
                self._account.move("INBOX", [number + 4], "Work")
                self._account.expunge("Lists/exmh", [number + 1])
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - raised in the test
            self.error = error
