"""Parses the header of a message into Email properties (RFC 8621 §4.1.2, §4.1.3).

The parser of the standard library raises exceptions on hostile mail. Here the result is always a
value or null, and text that JSON can represent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.policy import default as modern
from email.utils import parsedate_to_datetime
from typing import Any

_MESSAGE_ID = re.compile(r"<([^<>\s]+)>")
_THREAD_FIELD = re.compile(
    rb"^(?:message-id|in-reply-to|references):(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE
)
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_ADDRESS_FIELDS = ("from", "to", "cc", "bcc", "replyTo", "sender")


@dataclass(frozen=True, slots=True)
class Header:
    """The header fields of a mail; None is null."""

    subject: str | None = None
    addresses: dict[str, list[dict[str, str | None]] | None] | None = None
    message_id: list[str] | None = None
    in_reply_to: list[str] | None = None
    references: list[str] | None = None
    sent_at: str | None = None

    def properties(self) -> dict[str, Any]:
        """Return the fields as Email properties."""
        addresses = self.addresses or {}
        return {
            "subject": self.subject,
            **{name: addresses.get(name) for name in _ADDRESS_FIELDS},
            "messageId": self.message_id,
            "inReplyTo": self.in_reply_to,
            "references": self.references,
            "sentAt": self.sent_at,
        }


def parse_header(raw: bytes) -> Header:
    """Parse the header of a message, which may be malformed."""
    end = _HEADER_END.search(raw)
    try:
        message = BytesHeaderParser(policy=modern).parsebytes(raw[: end.end()] if end else raw)
    except Exception:  # noqa: BLE001  the email package raises many types
        return Header()
    return Header(
        subject=_text(message, "Subject"),
        addresses={
            name: _addresses(message, "Reply-To" if name == "replyTo" else name)
            for name in _ADDRESS_FIELDS
        },
        message_id=_message_ids(message, "Message-ID"),
        in_reply_to=_message_ids(message, "In-Reply-To"),
        references=_message_ids(message, "References"),
        sent_at=_date(message),
    )


def message_ids(raw: bytes) -> list[bytes]:
    """Return the message ids that assign a mail to a thread: its own and its references."""
    end = _HEADER_END.search(raw)
    fields = _THREAD_FIELD.findall(raw, 0, end.end() if end else len(raw))
    return [each for field in fields for each in re.findall(rb"<([^<>\s]+)>", field)]


def _clean(value: str) -> str:
    """Return text without lone surrogates: raw 8-bit as UTF-8, invalid bytes replaced."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text(message: EmailMessage, name: str) -> str | None:
    try:
        value = message[name]
        return None if value is None else _clean(str(value)).strip()
    except Exception:  # noqa: BLE001
        return None


def _addresses(message: EmailMessage, name: str) -> list[dict[str, str | None]] | None:
    try:
        value = message[name]
        if value is None:
            return None
        return [
            {"name": _clean(each.display_name) or None, "email": _clean(each.addr_spec)}
            for each in getattr(value, "addresses", ())
        ]
    except Exception:  # noqa: BLE001
        return None


def _message_ids(message: EmailMessage, name: str) -> list[str] | None:
    value = _text(message, name)
    return None if value is None else (_MESSAGE_ID.findall(value) or None)


def _date(message: EmailMessage) -> str | None:
    value = _text(message, "Date")
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value).isoformat()
    except Exception:  # noqa: BLE001
        return None
