"""The objects of an account: mailboxes and emails."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from .headers import Header

NO_KEYWORDS: frozenset[str] = frozenset()


@dataclass(slots=True)
class Mailbox:
    """A mailbox. Its parent need not exist, and its name is not checked."""

    id: str
    name: str
    parent_id: str | None = None
    role: str | None = None
    sort_order: int = 0
    is_subscribed: bool = True
    may_read_items: bool = True


@dataclass(slots=True)
class Email:
    """An email. `received_at` is a UTCDate, which sorts by time."""

    id: str
    blob_id: str
    thread_id: str
    size: int
    received_at: str
    mailbox_ids: frozenset[str]
    keywords: frozenset[str] = NO_KEYWORDS
    header: Header | None = None  # None: not yet parsed


def utc_date(moment: str | datetime) -> str:
    """Return a UTCDate of whole seconds, such as 2024-03-01T10:15:00Z (RFC 8620 §1.4)."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # strftime does not pad years before 1000.
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
