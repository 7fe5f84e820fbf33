"""Emails and mailboxes for tests that fill an index without a server."""

from __future__ import annotations

from datetime import UTC, datetime

from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.types import Address, Email, Keywords, Mailbox, MailboxIds
from jmapfs.names import email_stem, numbered_name


def email(
    email_id: str,
    *mailbox_ids: str,
    blob: str | None = None,
    at: int = 1000,
    size: int = 10,
    keywords: tuple[str, ...] = (),
    subject: str | None = None,
    sender: str | None = None,
) -> Email:
    """Return an email with the blob id `b<email_id>`, received `at` seconds after 1970."""
    return Email(
        id=email_id,
        blob_id=blob or f"b{email_id}",
        thread_id="t",
        mailbox_ids=MailboxIds(mailbox_ids),
        keywords=Keywords(keywords),
        size=size,
        received_at=datetime.fromtimestamp(at, UTC),
        subject=subject,
        from_=None if sender is None else (Address(name=sender),),
    )


def file_name(of: Email, number: int = 1) -> str:
    """Return the name of the file of an email, the `number`-th with this stem in a mailbox."""
    stem = email_stem(
        received_at=int(of.received_at.timestamp()),
        sender_name=of.from_[0].name if of.from_ else None,
        sender=None,
        subject=of.subject,
        blob=of.blob_id,
    )
    return numbered_name(stem, number)


def mailbox(
    mailbox_id: str, name: str, parent_id: str | None = None, *, role: str | None = None
) -> Mailbox:
    return Mailbox(id=mailbox_id, name=name, parent_id=parent_id, role=role)


def put_mailboxes(writer: IndexWriter, *mailboxes: Mailbox) -> None:
    """Add mailboxes to those that are known, or replace those with the same ids."""
    known = {
        row.id: mailbox(row.id, row.name, row.parent_id, role=row.role)
        for row in writer.mailboxes()
        if row.known
    }
    writer.replace_mailboxes(list((known | {one.id: one for one in mailboxes}).values()))
