"""Following an account: from the state that the index holds to the one the server has now.

The order is what keeps a mail from ever being out of the tree. Mailboxes are asked for first, and
new ones are stored with the first emails; the mailboxes and emails that are gone go with the last
step, when what may have become of them is known. Every step is one transaction with the state it
leads to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import trio

from jmapfs.errors import MethodError
from jmapfs.index.rows import EmailRecord, MailboxRecord
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.methods import Changes, MailboxChanges
from jmapfs.sync.conversion import email_record, mailbox_record

_log = logging.getLogger(__name__)

_C = TypeVar("_C", bound=Changes)

_PASSES: Final = 3

# What servers answer when they cannot say what changed: the specified way, Cyrus's way for a
# state it does not know, and one that has been seen in the field.
_UNKNOWN_KINDS: Final = frozenset({"cannotCalculateChanges", "invalidArguments", "serverFail"})

_COUNT_PROPERTIES: Final = frozenset(
    {"totalEmails", "unreadEmails", "totalThreads", "unreadThreads"}
)


class ChangesUnknownError(Exception):
    """The server cannot say what changed since our state: the account has to be listed again."""


@dataclass(frozen=True, slots=True)
class _MailboxUpdate:
    """The state of the mailboxes, and all of them; None where none came, went, moved or changed."""

    state: str
    records: Sequence[MailboxRecord] | None


@dataclass(frozen=True, slots=True)
class _EmailStep:
    """One answer of Email/changes, with the emails that it names."""

    records: Sequence[EmailRecord]
    gone: Sequence[str]
    state: str
    more: bool


async def follow(client: Client, writer: IndexWriter) -> bool:
    """Bring the index from its state to the server's; return whether anything changed.

    Raises:
        ChangesUnknownError: the server cannot say what changed.
        JmapfsError: what the client raises.
    """
    changed = await _follow_once(client, writer)
    doubtful: list[str] = []
    for _ in range(_PASSES):
        before, doubtful = doubtful, await trio.to_thread.run_sync(writer.orphaned_emails)
        if not doubtful or doubtful == before:
            break
        # Emails are in a mailbox that is younger than our list of mailboxes, or that is gone, or
        # that the server left out. Where are they now, and which mailboxes are there?
        emails, missing = await client.emails(doubtful)
        records = [email_record(email) for email in emails]
        await trio.to_thread.run_sync(_place, writer, records, missing)
        changed |= await _follow_once(client, writer, all_mailboxes=True)
    if doubtful:
        _log.warning("%d emails are in mailboxes that the server does not describe", len(doubtful))
    await trio.to_thread.run_sync(_settle, writer)
    return changed


async def _follow_once(client: Client, writer: IndexWriter, *, all_mailboxes: bool = False) -> bool:
    # Before anything is asked: what the server has by then is in the index afterwards.
    began = time.time()
    state = await trio.to_thread.run_sync(writer.state)
    unfinished = await trio.to_thread.run_sync(writer.has_pending_removals)
    mailboxes = await _mailbox_update(client, "" if all_mailboxes else state.mailbox_state)
    changed = unfinished or not state.complete or mailboxes.state != state.mailbox_state
    since = state.email_state
    while True:
        step = await _email_step(client, since)
        if step.more and step.state == since:
            raise ChangesUnknownError("the server says there is more, and does not go on")
        changed |= step.state != since
        if changed or all_mailboxes:
            when = began if changed else state.synced_at
            await trio.to_thread.run_sync(_store, writer, mailboxes, step, when)
        if not step.more:
            return changed
        since = step.state


async def _mailbox_update(client: Client, since: str) -> _MailboxUpdate:
    """Ask what became of the mailboxes; they are few, so any real change brings all of them."""
    state = ""
    if since:
        state, real = await _mailbox_changes(client, since)
        if not real:
            return _MailboxUpdate(state, None)
    mailboxes, listed_state = await client.mailboxes()
    records = [mailbox_record(mailbox) for mailbox in mailboxes]
    # The mailboxes may be newer than the changes: these will come up again, and change nothing.
    return _MailboxUpdate(state or listed_state, records)


async def _mailbox_changes(client: Client, since: str) -> tuple[str, bool]:
    """Return the new state, and whether more than counts of emails changed."""
    real = False
    while True:
        changes = await _known(client.mailbox_changes(since))
        real |= bool(changes.created or changes.destroyed)
        real |= bool(changes.updated) and not _only_counts(changes)
        if not changes.has_more:
            return changes.new_state, real
        if changes.new_state == since:
            raise ChangesUnknownError("the server says there is more, and does not go on")
        since = changes.new_state


def _only_counts(changes: MailboxChanges) -> bool:
    # RFC 8621 §2.2: null means that anything may have changed.
    properties = changes.updated_properties
    return properties is not None and _COUNT_PROPERTIES.issuperset(properties)


async def _email_step(client: Client, since: str) -> _EmailStep:
    changes = await _known(client.email_changes(since))
    wanted = list(dict.fromkeys((*changes.created, *changes.updated)))
    emails, missing = await client.emails(wanted) if wanted else ([], [])
    # Servers may name an id in several of the three: what is there is not gone.
    gone = set(changes.destroyed).difference(email.id for email in emails).union(missing)
    return _EmailStep(
        records=[email_record(email) for email in emails],
        gone=sorted(gone),
        state=changes.new_state,
        more=changes.has_more,
    )


def _store(
    writer: IndexWriter, mailboxes: _MailboxUpdate, step: _EmailStep, synced_at: float
) -> None:
    with writer.transaction():
        state = replace(writer.state(), email_state=step.state)
        # With every step of a long chain: they are few, and it changes nothing the second time.
        gone: Sequence[str] = ()
        if mailboxes.records is not None:
            gone = writer.replace_mailboxes(mailboxes.records)
        writer.put_emails(step.records)
        # Under another id an email may come back with a later step: until then it stays.
        writer.add_pending_removals(step.gone)
        if not step.more:
            writer.apply_pending_removals()
            writer.retire_mailboxes(gone)
            if not state.complete:
                writer.settle_inodes()
            state = replace(
                state, mailbox_state=mailboxes.state, complete=True, synced_at=synced_at
            )
        # An intermediate state need not be one that the account ever had (RFC 8620 §5.2).
        settled = not step.more and not writer.orphaned_emails()
        writer.set_state(replace(state, consistent=settled))


def _settle(writer: IndexWriter) -> None:
    """Take the index for settled where all that can be known has been asked for."""
    state = writer.state()
    if not state.consistent:
        with writer.transaction():
            writer.set_state(replace(state, consistent=True))


def _place(writer: IndexWriter, records: Sequence[EmailRecord], missing: Sequence[str]) -> None:
    with writer.transaction():
        writer.put_emails(records)
        writer.remove_emails(missing)
        writer.retire_mailboxes(())


async def _known(answer: Awaitable[_C]) -> _C:
    try:
        return await answer
    except MethodError as error:
        if error.kind in _UNKNOWN_KINDS:
            raise ChangesUnknownError(str(error)) from error
        raise
