"""Bringing an index up to date, whatever state it and the server are in.

no index, or a listing that was interrupted    list, then follow
an index with a state                          follow
the server cannot say what changed             list again and compare, then follow
"""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import replace
from typing import Final

import trio

from jmapfs.errors import ConfigError, ServerError, StorageError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.rows import AccountState
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.origins import origin_of
from jmapfs.jmap.session import Session
from jmapfs.sync.changes import ChangesUnknownError, follow
from jmapfs.sync.conversion import mailbox_record
from jmapfs.sync.listing import ListingReport, list_emails

_log = logging.getLogger(__name__)

_LISTINGS: Final = 3


class Synchronizer:
    """Keeps one index true to one account; its owner holds the account's lock."""

    def __init__(self, client: Client, database: IndexDatabase, writer: IndexWriter) -> None:
        self._client = client
        self._database = database
        self._writer = writer
        self._lock = trio.Lock()

    async def bring_up_to_date(self, report: ListingReport) -> bool:
        """Make the index what the server has now; return whether it changed.

        Raises:
            ConfigError: the index is that of another account.
            ServerError: the account cannot be listed to its end.
            StorageError: the index cannot be written.
            JmapfsError: what the client raises.
        """
        async with self._lock:
            try:
                changed = await self._bring_up_to_date(report)
            except sqlite3.Error as error:
                raise StorageError(
                    f"cannot write the index {self._database.path}: {error}"
                ) from error
            return changed

    async def _bring_up_to_date(self, report: ListingReport) -> bool:
        state = await trio.to_thread.run_sync(self._claim)
        progress = await trio.to_thread.run_sync(self._writer.listing_progress)
        if state.email_state and progress is None:
            try:
                return await follow(self._client, self._writer)
            except ChangesUnknownError as error:
                if await self._stands():
                    return True
                _log.warning("the account is listed again: %s", error)
        for _ in range(_LISTINGS):
            await list_emails(self._client, self._writer, report)
            try:
                await follow(self._client, self._writer)
            except ChangesUnknownError as error:
                if await self._stands():
                    return True
                _log.warning("the account changed while it was listed: %s", error)
            else:
                return True
        raise ServerError(
            "the account changes while it is listed, and the server cannot say how; try again"
        )

    def _claim(self) -> AccountState:
        """Check that the index is this account's, or make it so when it is new."""
        client, writer = self._client, self._writer
        state = writer.state()
        server, account = client.session.api_url, client.account
        if not state.account_id:
            state = replace(
                state,
                server=server,
                account_id=account.id,
                account_name=account.name,
                username=client.session.username,
            )
            with writer.transaction():
                writer.set_state(state)
        else:
            _check(state, self._database, client)
        return state

    async def _stands(self) -> bool:
        """Say whether the server's emails are still at the index's state.

        This is what is left to ask of a server that cannot say what changed. Its mailboxes are
        few: they are compared whole, and the index completed with them.
        """
        began = time.time()
        state = await trio.to_thread.run_sync(self._writer.state)
        mailboxes, mailbox_state = await self._client.mailboxes()
        if await self._client.email_state() != state.email_state:
            return False
        records = [mailbox_record(mailbox) for mailbox in mailboxes]

        def complete() -> None:
            with self._writer.transaction():
                self._writer.apply_pending_removals()
                self._writer.retire_mailboxes(self._writer.replace_mailboxes(records))
                if not state.complete:
                    self._writer.settle_inodes()
                known = state.complete and state.consistent
                if not known or state.mailbox_state != mailbox_state:
                    self._writer.set_state(
                        replace(
                            state,
                            mailbox_state=mailbox_state,
                            complete=True,
                            consistent=True,
                            synced_at=began,
                        )
                    )

        await trio.to_thread.run_sync(complete)
        return True


def check_account(database: IndexDatabase, client: Client) -> None:
    """Check that what is indexed is what the client leads to, now and for as long as it is used.

    A new index is anybody's.

    Raises:
        ConfigError: the index belongs to another account, or another server.
        StorageError: the index cannot be read.
    """
    state = database.state()
    if state.account_id:
        _check(state, database, client)
    server, account_id = client.session.api_url, client.account_id

    def vet(session: Session) -> None:
        # Its answers would be stored before the next round began with a check.
        if origin_of(session.api_url) != origin_of(server):
            raise ConfigError(
                f"the index in {database.path.parent} belongs to account {account_id} at {server},"
                f" and the server's API is at {session.api_url} now"
            )
        if account_id not in session.accounts:
            raise ConfigError(f"the server's session no longer has the account {account_id}")

    client.api.vet = vet


def _check(state: AccountState, database: IndexDatabase, client: Client) -> None:
    server, account_id = client.session.api_url, client.account.id
    if (origin_of(state.server), state.account_id) != (origin_of(server), account_id):
        raise ConfigError(
            f"the index in {database.path.parent} belongs to account {state.account_id} at"
            f" {state.server}, not to {account_id} at {server}: choose another --cache-dir, or"
            " remove that directory if the account has really moved"
        )
