"""Brings an index up to date with the server, whatever state the index and the server have.

    no index, or an interrupted listing            list all emails, then follow the changes
    an index with a state                          follow the changes
    the server cannot report the changes           list again and compare, then follow
    an email id stands for another email           the same (the server was reset)
    too much is gone after a new listing           keep the tree until mail is back (stale)

`sync.change_chain` follows the changes, `sync.listing` and `sync.relisting` list the account.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from jmapfs.blob_keys import new_epoch
from jmapfs.errors import ServerError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.rows import AccountState, BadEmailRow, ListingProgress, StaleTree
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.sqlite import sqlite_errors
from jmapfs.suspension import seconds_since
from jmapfs.sync.account_check import (
    REUSED_IDS,
    ReusedIdsError,
    claim_index,
    require_own_ids,
)
from jmapfs.sync.bad_emails import log_new_bad_emails, name_some, retry_bad_emails
from jmapfs.sync.change_chain import (
    ChainStart,
    ChangeChain,
    EndlessChangesError,
    UnknownChangesError,
)
from jmapfs.sync.comparison import compare_and_heal
from jmapfs.sync.id_listing import list_ids
from jmapfs.sync.listing import FirstListing, ListingReport, list_emails
from jmapfs.sync.relisting import MAX_GONE, discard_listing, list_again, too_much_gone

_log = logging.getLogger(__name__)

_MAX_LISTINGS: Final = 3
# How often a stale tree is compared while its account changes, unless a user asks.
_STALE_SECONDS: Final = 600.0


class GivenUpError(ServerError):
    """The server answers, but the account cannot be followed: its changes have no end, for example.

    Other requests, such as downloads, may succeed.
    """


@dataclass(frozen=True, slots=True)
class _Listing:
    """Why the account has to be listed; `reset` says that the server uses ids again."""

    reason: str
    reset: bool = False


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What a round depends on; one worker thread reads it all.

    unconfirmed: the ids of emails whose size an earlier version took from unconfirmed content.
    bad: the bad emails.
    bad_ids: the ids of emails to be requested again, including those still shown.
    """

    chain: ChainStart
    listing: ListingProgress | None
    unconfirmed: Sequence[str]
    bad: Sequence[BadEmailRow]
    bad_ids: Sequence[str]


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
        self._chain = ChangeChain(client, writer)
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
            GivenUpError: the server reports changes without end.
            ServerError: the account cannot be listed to its end.
            StorageError: the index cannot be written.
            TooMuchGoneError: the tree is stale.
            JmapfsError: the client has raised this error.
        """
        with sqlite_errors(f"write the index {self._database.path}"):
            start = await trio.to_thread.run_sync(self._begin)
            changed = await self._run(start, report)
            if compare or self._has_listed:
                changed |= await compare_and_heal(
                    self._client, self._writer, partial(self._run_again, report)
                )
            if changed:
                await trio.to_thread.run_sync(log_new_bad_emails, self._writer, start.bad)
            return changed

    async def check_suspects(self, email_ids: Collection[str], report: ListingReport) -> None:
        """Compare emails with the server whose content was not what the index says.

        Those that the server does not list are removed. A server may return such emails although
        they are gone. If it still counts them, there is a shortfall then. If an id stands for
        another email, the account is listed again. Raises the errors of `bring_up_to_date`.
        """
        client, writer = self._client, self._writer
        listing = await list_ids(client)
        found = await client.emails([one for one in email_ids if one in listing.ids])
        unlisted = [one for one in email_ids if one not in listing.ids]
        with sqlite_errors(f"write the index {self._database.path}"):
            try:
                await trio.to_thread.run_sync(require_own_ids, client, writer, found.emails)
            except ReusedIdsError:
                self._reset_reported = True
                await self.bring_up_to_date(report)
                return
            if not listing.is_whole or not unlisted:
                return
            gone = await trio.to_thread.run_sync(self._remove_emails, unlisted)
            if gone:
                _log.warning(
                    "not listed, and their content is gone: removed the emails %s", name_some(gone)
                )
                await compare_and_heal(client, writer, partial(self._run_again, report))
                # The comparison may store emails that are in no list.
                await trio.to_thread.run_sync(self._remove_emails, gone)

    async def _run_again(self, report: ListingReport, reason: str) -> bool:
        """Follow the changes; with a `reason`, list the account again before that."""
        return await self._run(await trio.to_thread.run_sync(self._begin), report, reason)

    async def _run(self, start: _Beginning, report: ListingReport, reason: str = "") -> bool:
        client, writer, state = self._client, self._writer, start.chain.state
        changed, listing, chain_start = False, None, start.chain
        try:
            if state.stale is None:
                await self._confirm_sizes(start.unconfirmed)
                if state.complete and start.bad_ids:
                    changed = await retry_bad_emails(client, writer, start.bad_ids)
                    # They may be in mailboxes that the server has not described.
                    chain_start = await trio.to_thread.run_sync(ChainStart.read, writer)
            listing = await self._needed_listing(state, start.listing)
        except ReusedIdsError:
            listing = _Listing(REUSED_IDS, reset=True)
        if listing is None and reason:
            listing = _Listing(reason)
            _log.info("listing the account again: %s", reason)
        listings = 0
        while True:
            if listing is not None:
                if listings == _MAX_LISTINGS:
                    raise GivenUpError(
                        "the account changes while it is listed, and the server cannot report the"
                        " changes; try again later"
                    )
                listings += 1
                self._has_listed = True
                try:
                    await self._list(listing, report, complete=state.complete)
                except ReusedIdsError:
                    await trio.to_thread.run_sync(self._begin_epoch)
                    continue
                self._reset_reported = False
                chain_start = await trio.to_thread.run_sync(ChainStart.read, writer)
            try:
                changed |= await self._chain.follow(chain_start)
            except UnknownChangesError as error:
                if await self._is_current(error, listings):
                    return True
                listing = _Listing(str(error))
            except ReusedIdsError:
                listing = _Listing(REUSED_IDS, reset=True)
            else:
                return changed or listings > 0
            _log.info("listing the account again: %s", listing.reason)

    async def _is_current(self, error: UnknownChangesError, listings: int) -> bool:
        """Return whether the index is up to date although the changes cannot be followed."""
        if await self._chain.complete_if_current():
            return True
        if isinstance(error, EndlessChangesError) and listings:
            # Another listing would not help.
            raise GivenUpError(f"{error}; try again later")
        return False

    async def _needed_listing(
        self, state: AccountState, progress: ListingProgress | None
    ) -> _Listing | None:
        """Return why the account has to be listed before the changes can be followed, or None.

        Raises TooMuchGoneError if the tree is stale, and there is no reason to list again yet.
        """
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
        # If the server has the state of the tree again, its mail is probably back. But the account
        # may have had that state too when it was listed. Then only a new listing can tell.
        is_back = current == state.email_state != stale.email_state
        may_differ = current != stale.email_state or current == state.email_state
        is_due = self._ask_again or seconds_since(stale.checked_at) >= _STALE_SECONDS
        if not is_back and not (may_differ and is_due):
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
            target = FirstListing(self._client, self._writer)
            await list_emails(self._client, target, report)

    async def _confirm_sizes(self, unconfirmed: Sequence[str]) -> None:
        """Ask again for sizes that an earlier version has taken from unconfirmed content."""
        if not unconfirmed:
            return
        emails = (await self._client.emails(unconfirmed)).emails

        def confirm() -> None:
            with self._writer.transaction():
                self._writer.set_stated_sizes(emails)
                self._writer.forget_unconfirmed()

        await trio.to_thread.run_sync(confirm)

    # The following methods run in a worker thread.

    def _begin(self) -> _Beginning:
        writer = self._writer
        claim_index(self._client, self._database, writer)
        return _Beginning(
            ChainStart.read(writer),
            writer.listing_progress(),
            [
                email_id
                for blob_id in writer.unconfirmed_blobs()
                for email_id, _ in writer.emails_of_blob(blob_id)
            ],
            writer.bad_emails(),
            writer.bad.ids(),
        )

    def _begin_epoch(self) -> None:
        """Begin the first listing anew: the server was reset while it was interrupted."""
        writer = self._writer
        with writer.transaction():
            writer.remove_all_emails()
            writer.end_listing()
            writer.set_state(replace(writer.state(), email_state="", epoch=new_epoch()))

    def _remove_emails(self, email_ids: Sequence[str]) -> list[str]:
        """Remove emails; return the ids of those that were in the index."""
        writer = self._writer
        known = sorted(set(email_ids).difference(writer.unknown_emails(email_ids)))
        if known:
            with writer.transaction():
                writer.remove_emails(known)
                writer.note_change()
        return known
