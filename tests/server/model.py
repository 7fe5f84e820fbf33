"""The objects of an account: mailboxes and emails as the server keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from .message import Header

NOTHING: frozenset[str] = frozenset()


@dataclass(slots=True)
class Mailbox:
    """A mailbox. Nothing checks that its parent exists, or that its name makes sense."""

    id: str
    name: str
    parent_id: str | None = None
    role: str | None = None
    sort_order: int = 0
    is_subscribed: bool = True
    may_read_items: bool = True


@dataclass(slots=True)
class Email:
    """An email. `received_at` is a UTCDate, so that its order is the order of time."""

    id: str
    blob_id: str
    thread_id: str
    size: int
    received_at: str
    mailbox_ids: frozenset[str]
    keywords: frozenset[str] = NOTHING
    header: Header | None = None  # None: parsed from the blob when asked for


def utc_date(moment: str | datetime) -> str:
    """Return a UTCDate of whole seconds, such as 2024-03-01T10:15:00Z (RFC 8620 §1.4)."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # isoformat, because strftime does not fill up years before 1000.
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
