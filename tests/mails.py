"""Small messages for tests, all distinct by their number, and ways to put them into accounts.

Messages whose numbers follow each other are received a minute apart. Real and hostile mail is in
`tests.corpus`, an account on Cyrus that is filled with it in `tests.stored_mail`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from tests import corpus
from tests.server import ControlClient, NewEmail
from tests.server.model import utc_date

_START = datetime(2024, 3, 1, tzinfo=UTC)


def text_mail(number: int, *, padding: int = 0) -> bytes:
    """Return a message with the subject `mail NUMBER`, a line of text and some padding."""
    head = f"From: Bob <bob@example.org>\r\nSubject: mail {number}\r\n\r\ntext\r\n"
    return head.encode() + b"x" * padding


def random_mail(number: int, size: int = 3000) -> bytes:
    """Return a message of `size` bytes with the subject `Number NUMBER` and a random body."""
    head = f"From: s{number}@example.net\r\nSubject: Number {number}\r\n\r\n".encode()
    return head + random.Random(number).randbytes(size - len(head))


def identified_mail(number: int, size: int) -> bytes:
    """Return a message of `size` bytes that has a Message-ID."""
    field = f"Message-ID: <{number}@example.net>\r\n".encode()
    return field + random_mail(number, size - len(field))


def list_mails(first: int, count: int) -> list[bytes]:
    """Return messages as a mailing list has them."""
    plain = corpus.plain_mails()
    return [
        corpus.varied(plain[number % len(plain)], number) for number in range(first, first + count)
    ]


def received_at(number: int) -> str:
    """Return the time at which message `number` is received, as JMAP writes it."""
    return utc_date(_START + timedelta(minutes=number))


def new_emails(contents: Iterable[bytes], *mailbox_ids: str, first: int = 0) -> list[NewEmail]:
    """Return emails for `add_emails`, received a minute apart; `first` is the first number."""
    return [
        NewEmail(content, mailbox_ids, received_at=received_at(number))
        for number, content in enumerate(contents, first)
    ]


def fill_new_mailbox(control: ControlClient, contents: Iterable[bytes], name: str = "Box") -> str:
    """Create a mailbox with these messages, received a minute apart; return its id."""
    mailbox_id = control.create_mailbox(name)
    control.add_emails(new_emails(contents, mailbox_id))
    return mailbox_id
