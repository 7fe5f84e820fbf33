"""An account on a real server that is filled with mail, and what it holds."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.mail_server.account import MailAccount
from tests.mail_server.append import Message
from tests.mounts import Home

# Mailboxes on the server beside the inbox, and the directories that show them.
DIRECTORIES = {
    "Work": "Work",
    "Work/Clients": "Work/Clients",
    "Été/à la plage": "Été/à-la-plage",
    "Lists/exmh": "Lists/exmh",
}
START = datetime(2002, 8, 21, tzinfo=UTC)


@dataclass(frozen=True)
class StoredMail:
    """An account, and the messages that were stored in it, by directory."""

    account: MailAccount
    mails: dict[str, list[bytes]]

    def home(self, directory: Path) -> Home:
        """Return a user's environment with the credentials of the account."""
        return Home(directory, self.account.name, self.account.password)

    @functools.cached_property
    def digests(self) -> dict[str, Counter[str]]:
        """The SHA-256 of each message, by directory."""
        return {name: Counter(map(sha256, mails)) for name, mails in self.mails.items()}


def sha256(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def store_mails(account: MailAccount, mails: Sequence[bytes]) -> StoredMail:
    """Spread messages over the mailboxes; the first three of INBOX are in two others as well."""
    stored: dict[str, list[bytes]] = defaultdict(list)
    for name in DIRECTORIES:
        account.create_mailbox(name)
    directories = {"INBOX": account.inbox, **DIRECTORIES}
    for index, (name, directory) in enumerate(directories.items()):
        share = list(mails[index :: len(directories)])
        account.fill(
            name,
            [
                Message(mail, received=START + timedelta(minutes=7 * number + index))
                for number, mail in enumerate(share)
            ],
        )
        stored[directory] += share
    for name in ("Work", "Lists/exmh"):
        account.copy("INBOX", [1, 2, 3], name)
        stored[name] += stored[account.inbox][:3]
    return StoredMail(account, dict(stored))
