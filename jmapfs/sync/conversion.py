"""From what JMAP says of mailboxes and emails to what the index keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from jmapfs.index.rows import EmailRecord, MailboxRecord
from jmapfs.jmap.types import Email, Mailbox
from jmapfs.names import email_stem

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)


def mailbox_record(mailbox: Mailbox) -> MailboxRecord:
    """Return what the index keeps of a mailbox."""
    return MailboxRecord(
        id=mailbox.id,
        name=mailbox.name or "",
        parent_id=mailbox.parent_id,
        role=mailbox.role or None,
        sort_order=mailbox.sort_order or 0,
    )


def email_record(email: Email) -> EmailRecord:
    """Return what the index keeps of an email, its file name included."""
    # Whole seconds: a part of a second would have to survive every server and every backup tool.
    received_at = (email.received_at - _EPOCH) // _SECOND
    sender = email.from_[0] if email.from_ else None
    return EmailRecord(
        id=email.id,
        blob_id=email.blob_id,
        thread_id=email.thread_id or "",
        received_at=received_at,
        size=email.size,
        stem=email_stem(
            received_at=received_at,
            sender_name=sender.name if sender else None,
            sender=sender.email if sender else None,
            subject=email.subject,
            blob=email.blob_id,
        ),
        mailbox_ids=_true_keys(email.mailbox_ids),
        keywords=_true_keys(email.keywords or {}),
    )


def _true_keys(values: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(sorted(key for key, value in values.items() if value))
