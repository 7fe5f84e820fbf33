"""The mail of a server for manual use: what `scripts/cyrus fill` and `scripts/james fill` add."""

from __future__ import annotations

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
