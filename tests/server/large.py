"""An account of any size for benchmarks; its mails are generated when they are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from .account import Account
from .blobs import BlobScheme
from .headers import Header
from .model import NO_KEYWORDS, Email

_START = datetime(2015, 1, 1, tzinfo=UTC)
_STEP = timedelta(minutes=50)
_SEEN = frozenset({"$seen"})


def large_account(
    count: int,
    account_id: str = "Aprimary",
    *,
    blob_scheme: BlobScheme = "plain",
    mailboxes: int = 10,
) -> Account:
    """Return an account of `count` tiny mails, spread evenly over some mailboxes."""
    account = Account(account_id, "alice@example.org", blob_scheme=blob_scheme)
    account.make_header = _header
    boxes = [account.create_mailbox("Inbox", role="inbox")]
    boxes += [account.create_mailbox(f"Folder {number:02}") for number in range(1, mailboxes)]
    places = [frozenset({box}) for box in boxes]
    for number in range(count):
        blob_id, size = account.blobs.add_generated(_message, number)
        account.insert(
            Email(
                id=f"M{number:07}",
                blob_id=blob_id,
                thread_id=f"T{number:07}",
                size=size,
                received_at=_date(number).strftime("%Y-%m-%dT%H:%M:%SZ"),
                mailbox_ids=places[number % len(places)],
                keywords=NO_KEYWORDS if number % 7 == 0 else _SEEN,
            )
        )
    return account


def _date(number: int) -> datetime:
    return _START + _STEP * number


def _sender(number: int) -> str:
    return f"sender{number % 97}@example.net"


def _message(number: int) -> bytes:
    return (
        f"From: Sender {number % 97} <{_sender(number)}>\r\n"
        "To: alice@example.org\r\n"
        f"Subject: Message number {number}\r\n"
        f"Message-ID: <{number}@example.net>\r\n"
        "\r\n"
        f"This is message {number}.\r\n"
    ).encode()


def _header(number: int) -> Header:
    # Equal to the parsed header of the message, but 200 times as fast.
    return Header(
        subject=f"Message number {number}",
        addresses={
            "from": [{"name": f"Sender {number % 97}", "email": _sender(number)}],
            "to": [{"name": None, "email": "alice@example.org"}],
        },
        message_id=[f"{number}@example.net"],
    )
