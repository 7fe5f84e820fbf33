"""Follows the changes of an account, from the state of its index to the state that it has now.

The changes arrive as a chain of steps. Each step is one transaction, which also stores the new
state. The order of the steps ensures that no email is ever missing from the tree. The server is
asked for the mailboxes before the emails. New mailboxes are stored with the first emails. Mailboxes
and emails that are gone are removed with the last step.

An orphaned email is in a mailbox that the server has not described.
"""

import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeVar

import trio

from jmapfs.errors import MethodError
from jmapfs.index.rows import AccountState
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.answers import AnswerTooLargeError
from jmapfs.jmap.changes import Changes, EmailChanges
from jmapfs.jmap.client import Client
from jmapfs.jmap.emails import EmailsFound
from jmapfs.jmap.series import ChainProgress
from jmapfs.jmap.types import Mailbox
from jmapfs.sync.account_check import require_own_ids

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_MAX_ORPHAN_PASSES: Final = 3

# The errors of servers that cannot report the changes: the specified error, the error of Cyrus for
# an unknown state, and an error that another server was seen to send.
_UNKNOWN_CHANGES: Final = frozenset({"cannotCalculateChanges", "invalidArguments", "serverFail"})

_COUNT_PROPERTIES: Final = frozenset(
    {"totalEmails", "unreadEmails", "totalThreads", "unreadThreads"}
)


_ENDLESS: Final = (
    "the server says again and again that there are more changes, but does not return them"
)


class UnknownChangesError(Exception):
    """The server cannot report the changes since our state: the account has to be listed again."""


class EndlessChangesError(UnknownChangesError):
    """The server says for ever that there are more changes."""


@dataclass(frozen=True, slots=True)
class ChainStart:
    """What the next step depends on; one worker thread reads it all."""

    state: AccountState
    pending_removals: bool
    orphaned: Sequence[str]

    @classmethod
    def read(cls, writer: IndexWriter) -> "ChainStart":
        """Read it from the index."""
        return cls(writer.state(), writer.has_pending_removals(), writer.orphaned_emails())


class _MailboxUpdate(NamedTuple):
    """The state of the mailboxes, and all mailboxes; None if only counts have changed."""

    state: str
    mailboxes: Sequence[Mailbox] | None


class ChangeChain:
    """Stores the changes of one account in its index."""

    def __init__(self, client: Client, writer: IndexWriter) -> None:
        self._client = client
        self._writer = writer

    async def follow(self, start: ChainStart) -> bool:
        """Store the changes since the index's state; return whether there were any.

        Raises UnknownChangesError if the server cannot report them, and ReusedIdsError if an id
        stands for another email than before. Other errors are those of the client.
        """
        changed, start = await self._follow_once(start)
        previous: Sequence[str] = ()
        for _ in range(_MAX_ORPHAN_PASSES):
            if not start.orphaned or start.orphaned == previous:
                break
            previous = start.orphaned
            # The mailbox of an orphaned email is newer than our list, or deleted, or the server has
            # left it out. So get these emails and all mailboxes again.
            found = await self._client.emails(previous)
            start = await trio.to_thread.run_sync(self._put_orphaned, found)
            changed_again, start = await self._follow_once(start, all_mailboxes=True)
            changed |= changed_again or bool(found.bad)
        if start.orphaned:
            _log.warning(
                "%d emails are in mailboxes that the server does not describe: they are in their"
                " old directory, or in unfiled",
                len(start.orphaned),
            )
        if not start.state.consistent:
            # Further requests would not help: the server does not describe these mailboxes.
            changed |= await trio.to_thread.run_sync(self._end_inconsistent)
        return changed

    async def complete_if_current(self) -> bool:
        """Complete the index if the server still has the Email state of the index.

        Returns False if the server has a different state. This is for servers that cannot report
        changes, but can report their Email state. All mailboxes are stored; there are few.
        """
        began = time.time()
        state = await trio.to_thread.run_sync(self._writer.state)
        mailboxes, mailbox_state = await self._client.mailboxes()
        if await self._client.email_state() != state.email_state:
            return False

        def complete() -> None:
            writer = self._writer
            with writer.transaction():
                writer.apply_pending_removals()
                writer.retire_mailboxes(writer.replace_mailboxes(mailboxes))
                writer.file_orphaned_emails()
                if not state.complete:
                    writer.reassign_colliding_inodes()
                new = replace(state, mailbox_state=mailbox_state, complete=True, consistent=True)
                if new != state:
                    writer.set_state(replace(new, synced_at=began))

        await trio.to_thread.run_sync(complete)
        return True

    async def _follow_once(
        self, start: ChainStart, *, all_mailboxes: bool = False
    ) -> tuple[bool, ChainStart]:
        # The time is taken before the first request: the index will have all earlier changes.
        began = time.time()
        state = start.state
        mailboxes, emails = await self._changes(state, all_mailboxes=all_mailboxes)
        changed = (
            start.pending_removals or not state.complete or mailboxes.state != state.mailbox_state
        )
        since = state.email_state
        progress = ChainProgress(since)
        while True:
            if emails.has_more and not progress.add(
                emails.new_state, emails.ids, emails.emails or await self._known_ids(emails.gone)
            ):
                raise EndlessChangesError(_ENDLESS)
            if self._client.blob_ids_are_sha1 and _is_earlier(emails.new_state, since):
                raise UnknownChangesError("the server has gone back to an earlier state")
            changed |= emails.new_state != since
            if changed or all_mailboxes:
                synced_at = began if changed else state.synced_at
                start = await trio.to_thread.run_sync(self._store, mailboxes, emails, synced_at)
            if not emails.has_more:
                return changed, start
            since = emails.new_state
            emails = await _known(self._client.email_changes(since))

    async def _changes(
        self, state: AccountState, *, all_mailboxes: bool
    ) -> tuple[_MailboxUpdate, EmailChanges]:
        """Get the changes of the mailboxes, and the first part of the changes of the emails."""
        client = self._client
        if all_mailboxes or not state.mailbox_state:
            mailboxes, mailbox_state = await client.mailboxes()
        else:
            changes, emails = await _known(client.changes(state.mailbox_state, state.email_state))
            if not changes.has_more and _only_counts(changes):
                return _MailboxUpdate(changes.new_state, None), emails
            if emails.has_more and emails.new_state == state.email_state:
                raise EndlessChangesError(_ENDLESS)
            # There are few mailboxes, so get all of them, at their own state. If there are more
            # changes, they need not be requested: the server may have no end of them.
            mailboxes, mailbox_state = await client.mailboxes()
        # Emails are requested after the mailboxes, so that no email is in a mailbox newer than the
        # list.
        emails = await _known(client.email_changes(state.email_state))
        return _MailboxUpdate(mailbox_state, mailboxes), emails

    async def _known_ids(self, ids: Sequence[str]) -> set[str]:
        """Return the ids that the index has."""
        return set(ids).difference(await trio.to_thread.run_sync(self._writer.unknown_emails, ids))

    # The following methods run in a worker thread.

    def _store(
        self, mailboxes: _MailboxUpdate, emails: EmailChanges, synced_at: float
    ) -> ChainStart:
        writer = self._writer
        with writer.transaction():
            state = replace(writer.state(), email_state=emails.new_state, consistent=False)
            # Every step of a chain repeats this. There are few mailboxes, and storing them again
            # changes nothing.
            gone: Sequence[str] = ()
            if mailboxes.mailboxes is not None:
                gone = writer.replace_mailboxes(mailboxes.mailboxes)
            require_own_ids(self._client, writer, emails.emails)
            writer.put_emails(emails.emails)
            writer.put_bad_emails(emails.bad)
            # Emails are removed in the last step: a step may bring an email back under a new id.
            writer.add_pending_removals(emails.gone)
            # Between two steps, the index may have a state that the account never had (RFC 8620
            # §5.2).
            if not emails.has_more:
                writer.apply_pending_removals()
                writer.retire_mailboxes(gone)
                if not state.complete:
                    writer.reassign_colliding_inodes()
                state = replace(
                    state,
                    mailbox_state=mailboxes.state,
                    complete=True,
                    consistent=not writer.orphaned_emails(),
                    synced_at=synced_at,
                )
            writer.set_state(state)
            return ChainStart.read(writer)

    def _put_orphaned(self, found: EmailsFound) -> ChainStart:
        writer = self._writer
        with writer.transaction():
            require_own_ids(self._client, writer, found.emails)
            writer.put_emails(found.emails)
            writer.put_bad_emails(found.bad)
            writer.remove_emails(found.not_found)
            writer.retire_mailboxes(())
            return ChainStart.read(writer)

    def _end_inconsistent(self) -> bool:
        writer = self._writer
        with writer.transaction():
            changed = writer.file_orphaned_emails()
            writer.set_state(replace(writer.state(), consistent=True))
        return changed


def _only_counts(changes: Changes) -> bool:
    """Return whether only the numbers of emails in the mailboxes have changed."""
    if changes.created or changes.destroyed:
        return False
    # RFC 8621 §2.2: null means that anything may have changed.
    properties = changes.updated_properties
    return not changes.updated or (
        properties is not None and _COUNT_PROPERTIES.issuperset(properties)
    )


def _is_earlier(state: str, since: str) -> bool:
    """Return whether a Cyrus has gone back, for example to a backup.

    Its states are numbers. It answers a request for the changes since a later state with its
    current state, and with no changes.
    """
    return state.isdecimal() and since.isdecimal() and int(state) < int(since)


async def _known(response: Awaitable[_T]) -> _T:
    try:
        return await response
    except MethodError as error:
        if error.kind in _UNKNOWN_CHANGES:
            raise UnknownChangesError(str(error)) from error
        raise
    except AnswerTooLargeError as error:
        # Some servers ignore the most changes that a response may have. A list has pages.
        raise UnknownChangesError(str(error)) from error
