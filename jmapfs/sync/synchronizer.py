"""Brings an index up to date with the server, whatever state the index and the server have.

    no index, or an interrupted listing            list all emails, then follow the changes
    an index with a state                          follow the changes
    the server cannot report the changes           list again and compare, then follow
    an email id stands for another email           the same (the server was reset)
    too much is gone after a new listing           keep the tree until mail is back (stale)

Following stores the changes from the index's state to the server's. The order of the steps ensures
that no email is ever missing from the tree. The server is asked for the mailboxes before the
emails. New mailboxes are stored with the first emails. Mailboxes and emails that are gone are
removed with the last step. Each step is one transaction, which also stores the new state.

An orphaned email is in a mailbox that the server has not described.
"""

import logging
import random
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import trio

from jmapfs.errors import MethodError, ServerError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.rows import AccountState, BadEmailRow, ListingProgress, StaleTree
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.changes import Changes, EmailChanges
from jmapfs.jmap.client import Client
from jmapfs.jmap.emails import EmailsFound
from jmapfs.jmap.identity import merge_origins
from jmapfs.jmap.types import Email, Mailbox
from jmapfs.sqlite import sqlite_errors
from jmapfs.sync.account_check import identity_of, require_owner
from jmapfs.sync.comparison import compare_and_heal
from jmapfs.sync.id_listing import list_ids
from jmapfs.sync.listing import (
    FirstListing,
    ListingReport,
    ReusedIdsError,
    list_emails,
    listed_but_not_found,
)
from jmapfs.sync.relisting import (
    MAX_GONE,
    REUSED_IDS,
    discard_listing,
    list_again,
    new_epoch,
    too_much_gone,
)

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_MAX_LISTINGS: Final = 3
_MAX_ORPHAN_PASSES: Final = 3
# How many bad emails are requested again in one round.
_BAD_AT_ONCE: Final = 1000
# How often a stale tree is compared while its account changes, unless a user asks.
_STALE_SECONDS: Final = 600.0

# The errors of servers that cannot report the changes: the specified error, the error of Cyrus for
# an unknown state, and an error that another server was seen to send.
_UNKNOWN_CHANGES: Final = frozenset({"cannotCalculateChanges", "invalidArguments", "serverFail"})

_COUNT_PROPERTIES: Final = frozenset(
    {"totalEmails", "unreadEmails", "totalThreads", "unreadThreads"}
)


class _UnknownChangesError(Exception):
    """The server cannot report the changes since our state: the account has to be listed again."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """Why the account has to be listed; `reset` says that the server uses ids again."""

    reason: str
    reset: bool = False


@dataclass(frozen=True, slots=True)
class _IndexStatus:
    """The data from the index on which the next step depends; one worker thread reads it all.

    `unconfirmed` has the ids of emails whose size an earlier version took from unconfirmed content,
    `bad` those of emails for which the server has not sent usable values.
    """

    state: AccountState
    listing: ListingProgress | None
    pending_removals: bool
    orphaned: Sequence[str]
    unconfirmed: Sequence[str]
    bad: Sequence[str]


@dataclass(frozen=True, slots=True)
class _MailboxUpdate:
    """The state of the mailboxes, and all mailboxes; None if only counts have changed."""

    state: str
    mailboxes: Sequence[Mailbox] | None


class Synchronizer:
    """Brings one index up to date with one account; the caller holds the account's lock.

    max_gone: how much of the tree's mail may be gone after a new listing, in percent.
    accept_deletions: whether the index follows the account even if more is gone.
    ask_again: whether a stale tree is compared again at once if the account has changed.
    reset_reported: whether the server is known to use ids again.
    """

    def __init__(
        self,
        client: Client,
        database: IndexDatabase,
        writer: IndexWriter,
        *,
        max_gone: float = MAX_GONE,
        accept_deletions: bool = False,
        ask_again: bool = True,
        reset_reported: bool = False,
    ) -> None:
        self._client = client
        self._database = database
        self._writer = writer
        self._max_gone = 100.0 if accept_deletions else max_gone
        self._ask_again = ask_again
        self._reset_reported = reset_reported
        self._has_listed = False

    async def bring_up_to_date(self, report: ListingReport, *, compare: bool = False) -> bool:
        """Bring the index to the state that the server has now; return whether the index changed.

        With `compare`, and after a listing, the numbers of emails are compared with those of the
        server; if they differ, the account is listed again.

        Raises:
            ConfigError: the index belongs to another account.
            ServerError: the account cannot be listed to its end.
            StorageError: the index cannot be written.
            TooMuchGoneError: the tree is stale.
            JmapfsError: the client has raised this error.
        """
        with sqlite_errors(f"write the index {self._database.path}"):
            bad = await trio.to_thread.run_sync(self._writer.bad_emails)
            changed = await self._bring_up_to_date(report)
            if compare or self._has_listed:
                changed |= await compare_and_heal(
                    self._client, self._writer, partial(self._bring_up_to_date, report)
                )
            return await trio.to_thread.run_sync(self._log_bad, bad) or changed

    async def drop_unlisted(self, email_ids: Iterable[str], report: ListingReport) -> None:
        """Remove those of some emails that the server does not list.

        A server may return such emails although they are gone. If it still counts them, there is a
        shortfall then. Raises the errors of `bring_up_to_date`.
        """
        listing = await list_ids(self._client)
        unlisted = [one for one in email_ids if one not in listing.ids]
        if not listing.is_whole or not unlisted:
            return
        with sqlite_errors(f"write the index {self._database.path}"):
            gone = await trio.to_thread.run_sync(self._remove_emails, unlisted)
            if gone:
                _log.warning(
                    "not listed, and their content is gone: removed the emails %s", ", ".join(gone)
                )
                await compare_and_heal(
                    self._client, self._writer, partial(self._bring_up_to_date, report)
                )
                # The comparison may store emails that are in no list.
                await trio.to_thread.run_sync(self._remove_emails, gone)

    async def _bring_up_to_date(self, report: ListingReport, reason: str = "") -> bool:
        """Follow the changes; with a `reason`, list the account again before that."""
        status = await trio.to_thread.run_sync(self._claim)
        await self._confirm_sizes(status)
        retried = await self._retry_bad_emails(status)
        listing = await self._needed_listing(status)
        if listing is None and reason:
            listing = _Listing(reason)
            _log.warning("listing the account again: %s", reason)
        listings = 0
        while True:
            if listing is not None:
                if listings == _MAX_LISTINGS:
                    raise ServerError(
                        "the account changes while it is listed, and the server cannot report the"
                        " changes; try again later"
                    )
                listings += 1
                self._has_listed = True
                try:
                    await self._list(listing, report, complete=status.state.complete)
                except ReusedIdsError:
                    await trio.to_thread.run_sync(self._begin_epoch)
                    continue
                status = await trio.to_thread.run_sync(self._status)
            try:
                changed = await self._follow(status)
            except _UnknownChangesError as error:
                if await self._complete_if_current():
                    return True
                listing = _Listing(str(error))
            except ReusedIdsError:
                listing = _Listing(REUSED_IDS, reset=True)
            else:
                return changed or retried or listings > 0
            _log.warning("listing the account again: %s", listing.reason)

    async def _needed_listing(self, status: _IndexStatus) -> _Listing | None:
        """Return why the account has to be listed before the changes can be followed, or None.

        Raises TooMuchGoneError if the tree is stale, and there is no reason to list again yet.
        """
        state, progress = status.state, status.listing
        if state.stale is not None:
            return await self._needed_comparison(state, state.stale, progress)
        if progress is not None:
            return _Listing(progress.reason, progress.reset or self._reset_reported)
        if not state.email_state:
            return _Listing("")
        return _Listing(REUSED_IDS, reset=True) if self._reset_reported else None

    async def _needed_comparison(
        self, state: AccountState, stale: StaleTree, progress: ListingProgress | None
    ) -> _Listing:
        # If ids are still in use for other emails, a new listing finds that again.
        listing = _Listing(stale.reason)
        if progress is None or not progress.finished:
            return listing
        if 100 * stale.gone <= self._max_gone * stale.total:
            # What was staged is accepted.
            return listing
        current = await self._client.email_state()
        # A server that has the state of the tree again is no longer reset.
        is_back = current == state.email_state
        is_due = self._ask_again or time.time() >= stale.checked_at + _STALE_SECONDS
        if current == stale.email_state or not (is_back or is_due):
            raise too_much_gone(stale)
        await trio.to_thread.run_sync(discard_listing, self._writer)
        return listing

    async def _list(self, listing: _Listing, report: ListingReport, *, complete: bool) -> None:
        if complete:
            await list_again(
                self._client,
                self._writer,
                report,
                reason=listing.reason,
                reset=listing.reset,
                max_gone=self._max_gone,
            )
        else:
            target = FirstListing(self._writer, ids_prove=self._client.blob_ids_are_sha1)
            await list_emails(self._client, target, report)

    async def _confirm_sizes(self, status: _IndexStatus) -> None:
        """Ask again for sizes that an earlier version has taken from unconfirmed content."""
        if status.state.stale is not None or not status.unconfirmed:
            return
        emails = (await self._client.emails(status.unconfirmed)).emails

        def confirm() -> None:
            with self._writer.transaction():
                self._writer.set_stated_sizes(emails)
                self._writer.forget_unconfirmed()

        await trio.to_thread.run_sync(confirm)

    async def _retry_bad_emails(self, status: _IndexStatus) -> bool:
        """Request the bad emails again; return whether some can be shown now."""
        if status.state.stale is not None or not status.state.complete or not status.bad:
            return False
        ids = random.sample(status.bad, min(len(status.bad), _BAD_AT_ONCE))
        found = await self._client.emails(ids)

        bad = [*found.bad, *listed_but_not_found(found.not_found)]

        def store() -> None:
            writer = self._writer
            known = {(row.id, row.reason) for row in writer.bad_emails()}
            news = [
                one for one in bad if (one.id, one.reason) not in known and not one.is_unanswered
            ]
            if not found.emails and not news:
                return
            with writer.transaction():
                writer.put_emails(found.emails)
                writer.put_bad_emails(news)
                if found.emails:
                    writer.note_change()

        await trio.to_thread.run_sync(store)
        return bool(found.emails)

    async def _follow(self, status: _IndexStatus) -> bool:
        """Store the changes since the index's state; return whether there were any."""
        changed, status = await self._follow_once(status)
        previous: Sequence[str] = ()
        for _ in range(_MAX_ORPHAN_PASSES):
            if not status.orphaned or status.orphaned == previous:
                break
            previous = status.orphaned
            # The mailbox of an orphaned email is newer than our list, or deleted, or the server has
            # left it out. So get these emails and all mailboxes again.
            found = await self._client.emails(previous)
            status = await trio.to_thread.run_sync(self._put_orphaned, found)
            changed_again, status = await self._follow_once(status, all_mailboxes=True)
            changed |= changed_again
        if status.orphaned:
            _log.warning(
                "%d emails are in mailboxes that the server does not describe", len(status.orphaned)
            )
            changed |= await trio.to_thread.run_sync(self._file_orphaned_emails)
        if not status.state.consistent:
            # Further requests would not help: the server does not describe these mailboxes.
            await trio.to_thread.run_sync(self._mark_consistent)
        return changed

    async def _follow_once(
        self, status: _IndexStatus, *, all_mailboxes: bool = False
    ) -> tuple[bool, _IndexStatus]:
        # The time is taken before the first request: the index will have all earlier changes.
        began = time.time()
        state = status.state
        mailboxes, emails = await self._changes(state, all_mailboxes=all_mailboxes)
        changed = (
            status.pending_removals or not state.complete or mailboxes.state != state.mailbox_state
        )
        since = state.email_state
        while True:
            _check_progress(emails, since)
            if self._client.blob_ids_are_sha1 and _is_earlier(emails.new_state, since):
                raise _UnknownChangesError("the server has gone back to an earlier state")
            changed |= emails.new_state != since
            if changed or all_mailboxes:
                synced_at = began if changed else state.synced_at
                status = await trio.to_thread.run_sync(self._store, mailboxes, emails, synced_at)
            if not emails.has_more:
                return changed, status
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
            since = state.mailbox_state
            only_counts = _only_counts(changes)
            while changes.has_more:
                _check_progress(changes, since)
                since = changes.new_state
                changes = await _known(client.mailbox_changes(since))
                only_counts &= _only_counts(changes)
            if only_counts:
                return _MailboxUpdate(changes.new_state, None), emails
            # There are few mailboxes, so get all of them. They may be newer than the reported
            # state. The next changes then repeat what is already stored.
            mailbox_state = changes.new_state
            mailboxes, _ = await client.mailboxes()
        # Emails are requested after the mailboxes, so that no email is in a mailbox newer than the
        # list.
        emails = await _known(client.email_changes(state.email_state))
        return _MailboxUpdate(mailbox_state, mailboxes), emails

    async def _complete_if_current(self) -> bool:
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

    # The following methods run in a worker thread.

    def _claim(self) -> _IndexStatus:
        """Check that the index belongs to this account. A new index is assigned to this account."""
        client = self._client
        status = self._status()
        state = status.state
        if state.account_id:
            require_owner(state, self._database, client)
        else:
            state = replace(
                state,
                account_id=client.account.id,
                account_name=client.account.name,
                epoch="" if client.blob_ids_are_sha1 else new_epoch(),
            )
        identity = client.identity
        is_there = state.server in {"", client.session.api_url}
        state = replace(
            state,
            location=identity.location,
            # Snapshots of an earlier version name only the origin that the API had then.
            origins=merge_origins(identity.origins, identity_of(state).origins),
            server=client.session.api_url,
            moved_at=state.moved_at if is_there else time.time(),
            username=identity.username or state.username,
            blob_ids_are_sha1=client.blob_ids_are_sha1,
        )
        if state != status.state:
            with self._writer.transaction():
                self._writer.set_state(state)
        return replace(status, state=state)

    def _begin_epoch(self) -> None:
        """Begin the first listing anew: the server was reset while it was interrupted."""
        writer = self._writer
        with writer.transaction():
            writer.remove_all_emails()
            writer.end_listing()
            writer.set_state(replace(writer.state(), email_state="", epoch=new_epoch()))

    def _require_own_ids(self, emails: Sequence[Email]) -> None:
        """Raise ReusedIdsError if an id stands for another email in the index."""
        if not self._client.blob_ids_are_sha1 and self._writer.reused_ids(emails):
            raise ReusedIdsError

    def _status(self) -> _IndexStatus:
        writer = self._writer
        return _IndexStatus(
            writer.state(),
            writer.listing_progress(),
            writer.has_pending_removals(),
            writer.orphaned_emails(),
            [
                email_id
                for blob_id in writer.unconfirmed_blobs()
                for email_id, _ in writer.emails_of_blob(blob_id)
            ],
            writer.bad.ids(),
        )

    def _store(
        self, mailboxes: _MailboxUpdate, emails: EmailChanges, synced_at: float
    ) -> _IndexStatus:
        writer = self._writer
        with writer.transaction():
            state = replace(writer.state(), email_state=emails.new_state, consistent=False)
            # Every step of a chain repeats this. There are few mailboxes, and storing them again
            # changes nothing.
            gone: Sequence[str] = ()
            if mailboxes.mailboxes is not None:
                gone = writer.replace_mailboxes(mailboxes.mailboxes)
            self._require_own_ids(emails.emails)
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
            return self._status()

    def _put_orphaned(self, found: EmailsFound) -> _IndexStatus:
        with self._writer.transaction():
            self._require_own_ids(found.emails)
            self._writer.put_emails(found.emails)
            self._writer.put_bad_emails(found.bad)
            self._writer.remove_emails(found.not_found)
            self._writer.retire_mailboxes(())
            return self._status()

    def _remove_emails(self, email_ids: Sequence[str]) -> list[str]:
        """Remove emails; return the ids of those that were in the index."""
        writer = self._writer
        known = sorted(set(email_ids).difference(writer.unknown_emails(email_ids)))
        if known:
            with writer.transaction():
                writer.remove_emails(known)
                writer.note_change()
        return known

    def _log_bad(self, before: Sequence[BadEmailRow]) -> bool:
        """Log each new bad email; return whether the bad emails have changed."""
        writer = self._writer
        bad = writer.bad_emails()
        known = {row.id for row in before}
        for row in bad:
            if row.id not in known:
                _log.warning("email %s cannot be shown: %s", row.id, row.reason)
        if bad == before:
            return False
        with writer.transaction():
            writer.note_change()
        return True

    def _file_orphaned_emails(self) -> bool:
        with self._writer.transaction():
            return self._writer.file_orphaned_emails()

    def _mark_consistent(self) -> None:
        with self._writer.transaction():
            self._writer.set_state(replace(self._writer.state(), consistent=True))


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


def _check_progress(changes: Changes | EmailChanges, since: str) -> None:
    if changes.has_more and changes.new_state == since:
        raise _UnknownChangesError("the server reports more changes but does not return them")


async def _known(response: Awaitable[_T]) -> _T:
    try:
        return await response
    except MethodError as error:
        if error.kind in _UNKNOWN_CHANGES:
            raise _UnknownChangesError(str(error)) from error
        raise
