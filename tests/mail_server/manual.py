"""The manual use of a server: what `scripts/cyrus` and `scripts/james` have in common."""

from __future__ import annotations

import shlex

from tests import corpus
from tests.mail_server.account import MailAccount
from tests.mail_server.append import Message

_FLAGS = ((), (r"\Seen",), (r"\Seen", r"\Answered"), (r"\Flagged", "$Work"))
_MAILBOXES = ("INBOX", "Archive/2002", "Lists/Exmh & Co", "Été")


def fill(account: MailAccount, count: int) -> None:
    """Add `count` mails to a few mailboxes of an account, and print it."""
    existing = account.mailbox_ids()
    for name in _MAILBOXES[1:]:
        if name not in existing:
            account.create_mailbox(name)
    messages = [
        Message(mail, _FLAGS[number % len(_FLAGS)])
        for number, mail in enumerate(corpus.mails(count, big=True))
    ]
    for number, name in enumerate(_MAILBOXES):
        account.fill(name, messages[number :: len(_MAILBOXES)])
    print(f"Added {count} mails to {len(_MAILBOXES)} mailboxes of {account.name}.")


def print_usage(account: MailAccount) -> None:
    """Print how to mount an account."""
    print(
        f"export JMAPFS_USERNAME={shlex.quote(account.name)} "
        f"JMAPFS_PASSWORD={shlex.quote(account.password)}",
        f"jmapfs mount {account.url} MOUNTPOINT",
        sep="\n",
    )
