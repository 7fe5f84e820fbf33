"""Snapshots of an account without a mount: from its index and its server.

First the index is brought up to date, by this process or by the mount that writes the index. Then a
reader is pinned to one consistent state for the whole copy, and its blobs are downloaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from jmapfs.account import AccountSource, account_directory, require_private_cache
from jmapfs.control.messages import AccountStatus, StatusRequest, SyncRequest
from jmapfs.control.mounts import own_mounts
from jmapfs.control.socket_client import ask_mount
from jmapfs.deadline import NO_PROGRESS, Stall
from jmapfs.errors import (
    BusyError,
    DeadlineError,
    JmapfsError,
    StorageError,
    TooMuchGoneError,
    lone_errors,
)
from jmapfs.index.database import IndexDatabase, WriterLease, wait_until_consistent
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, EmailSlice
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.identity import AccountIdentity, merge_origins
from jmapfs.snapshot.fetcher import BlobFetcher, EarlyFetcher, open_cache
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.online import ContentCheck, origin_of_account
from jmapfs.snapshot.source import BlobTotals, EarlySink, SnapshotReport, SourceOpener
from jmapfs.sqlite import sqlite_errors
from jmapfs.sync.account_check import StateWaiter, check_account, identity_of
from jmapfs.sync.blob_source import AccountBlobSource, open_blob_source
from jmapfs.sync.relisting import MAX_GONE, too_much_gone
from jmapfs.sync.synchronizer import Synchronizer
from jmapfs.tree.export import BlobNames, EmailExport
from jmapfs.tree.status_file import time_text

_PART_EMAILS: Final = 2000
_UPDATE_SECONDS: Final = 60.0
# A download may bring nothing for so long after the first listing.
_EARLY_SECONDS: Final = 10.0
_FIRST_PAUSE: Final = 0.25
_MAX_PAUSE: Final = 5.0


@contextlib.asynccontextmanager
async def account_opener(
    source: AccountSource,
    cache_root: Path,
    report: SnapshotReport,
    *,
    allow_stale: bool,
    max_gone: float = MAX_GONE,
    checks: bool = False,
) -> AsyncIterator[SourceOpener]:
    """Connect to an account. The result opens states of the account.

    If the index cannot be brought up to date, `allow_stale` permits an older state. The index does
    not follow the account if it was listed again, and more than `max_gone` percent of its mail is
    gone. With `checks`, all contents are compared with the digests of the server. Raises UsageError
    if the server has no digests, and JmapfsError if it cannot be reached, or refuses.
    """
    directory = account_directory(cache_root, source)
    require_private_cache(cache_root, directory)
    async with (
        source.connect(on_wait=lambda text, _: report.waiting(text)) as client,
        open_cache(directory / "blobs") as cache,
    ):
        check = ContentCheck(client, required=checks)
        database = IndexDatabase(directory)
        names = BlobNames()
        with open_blob_source(database, lambda: client, describe=names.describe) as blob_source:
            blobs = BlobFetcher(blob_source, cache)
            yield _AccountOpener(
                client, database, blob_source, blobs, check, report, allow_stale, max_gone
            )


@dataclass(slots=True)
class _AccountOpener:
    """Opens the current state of an account for each attempt."""

    _client: Client
    _database: IndexDatabase
    _blob_source: AccountBlobSource
    _blobs: BlobFetcher
    _check: ContentCheck
    _report: SnapshotReport
    _allow_stale: bool
    _max_gone: float
    _is_stale: bool = False
    _is_hopeless: bool = False
    _suspects: Sequence[str] = ()

    @contextlib.asynccontextmanager
    async def open(self, early: EarlySink) -> AsyncIterator[_PinnedAccount]:
        """Bring the index up to date, and pin its state.

        Raises BusyError if the index is old or inconsistent while another process writes it, and
        TooMuchGoneError if it does not follow the account because most mail is gone.
        """
        # Content that the last attempt did not find may belong to mail that is gone.
        self._suspects = await self._blob_source.take_suspects()
        try:
            await self._bring_up_to_date(early)
        except TooMuchGoneError as error:
            if not self._allow_stale:
                raise
            await self._accept_stale(error)
        with self._database.reader() as reader:
            yield await wait_until_consistent(
                lambda: trio.to_thread.run_sync(self._try_pin, reader)
            )

    def _try_pin(self, reader: IndexReader) -> _PinnedAccount | None:
        """Pin the current state of the index. Return None if this state must not be copied."""
        with sqlite_errors("read the index"):
            reader.unpin()
            reader.pin()
            state = reader.state()
            if not state.complete or not (state.consistent or self._is_stale):
                return None
            if not state.consistent:
                trio.from_thread.run_sync(
                    self._report.notice,
                    "the index is between two states of the account: the snapshot will be a mixture"
                    " of them",
                )
            return _PinnedAccount(reader, state, self._blobs, self._check)

    async def _bring_up_to_date(self, early: EarlySink) -> None:
        """Bring the index up to date, or make its writer do that.

        Raises BusyError and TooMuchGoneError.
        """
        busy = await self._try_to_update(early)
        if busy is None:
            return
        waiter = StateWaiter(self._client, self._database)
        deadline = trio.current_time() + _UPDATE_SECONDS
        pause = _FIRST_PAUSE
        while (obstacle := await self._request_update(busy, waiter)) is not None:
            if self._is_hopeless or trio.current_time() >= deadline:
                await self._accept_stale(obstacle)
                return
            await trio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)
            busy = await self._try_to_update(early)
            if busy is None:
                return

    async def _try_to_update(self, early: EarlySink) -> BusyError | None:
        """Bring the index up to date. If another process has the lease, return who has it."""
        # Give the lease back soon: a mount that starts meanwhile needs it.
        with WriterLease(self._database) as lease:
            busy, is_complete = await trio.to_thread.run_sync(self._acquire, lease)
            writer = lease.writer() if busy is None else None
            if writer is not None:
                await self._synchronize(writer, early, is_complete=is_complete)
        return busy

    def _acquire(self, lease: WriterLease) -> tuple[BusyError | None, bool]:
        busy = lease.try_acquire()
        check_account(self._database, self._client)
        return busy, self._database.state().complete

    async def _synchronize(
        self, writer: IndexWriter, early: EarlySink, *, is_complete: bool
    ) -> None:
        """Bring the index up to date. Download contents during the first listing."""
        synchronizer = Synchronizer(self._client, self._database, writer, max_gone=self._max_gone)
        stall = self._client.stall()
        text = f"no snapshot was made, because the account is not listed: {NO_PROGRESS}"
        if is_complete:
            update = partial(synchronizer.bring_up_to_date, self._report.listed, compare=True)
            await stall.limit(update, text)
            if self._suspects:
                await synchronizer.check_suspects(self._suspects, self._report.listed)
            return
        origin = origin_of_account(self._client)
        with self._database.reader() as reader:
            fetcher = EarlyFetcher(reader, self._blobs, early, origin)

            def listed(count: int, total: int | None) -> None:
                self._report.listed(count, total)
                fetcher.note_listed()

            with lone_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fetch_early, fetcher)
                    try:
                        update = partial(synchronizer.bring_up_to_date, listed, compare=True)
                        await stall.limit(update, text)
                    finally:
                        fetcher.stop()

    async def _fetch_early(self, fetcher: EarlyFetcher) -> None:
        """Download until the listing ends. What does not arrive soon after that is given up."""
        traffic, transport = self._client.traffic, self._client.transport
        stall = Stall(
            lambda: traffic.blobs,
            lambda: traffic.bytes,
            lambda: fetcher.stopped and transport.is_waiting,
            _EARLY_SECONDS,
        )
        with contextlib.suppress(DeadlineError):
            await stall.limit(fetcher.run, NO_PROGRESS)

    async def _request_update(self, busy: BusyError, waiter: StateWaiter) -> BusyError | None:
        # `busy` names the process that writes the index. Returns None if the index is up to date.
        state = await trio.to_thread.run_sync(self._database.state)
        if not state.complete:
            return BusyError(f"{busy}, and has not listed all of it yet: try again later")
        try:
            sync = partial(_sync_mounts, state, SyncRequest(suspects=list(self._suspects)))
            await trio.to_thread.run_sync(sync, abandon_on_cancel=True)
        except JmapfsError as error:
            busy = BusyError(f"{busy}, which reports: {error}")
            # Waiting does not help if its disk is full.
            self._is_hopeless = error.exit_code == StorageError.exit_code
        if await waiter.reached():
            return None
        state = await trio.to_thread.run_sync(self._database.state)
        if state.stale is not None:
            raise too_much_gone(state.stale)
        return BusyError(f"{busy}; the index is not up to date")

    async def _accept_stale(self, obstacle: JmapfsError) -> None:
        """Use the present state of the index if the user allows that; otherwise raise an error."""
        state = await trio.to_thread.run_sync(self._database.state)
        if not state.complete:
            raise obstacle
        if not self._allow_stale:
            raise BusyError(f"{obstacle} (--allow-stale copies it as it is)")
        self._is_stale = True
        self._report.notice(f"{obstacle}; copying its state of {time_text(state.synced_at)}")


def _sync_mounts(state: AccountState, request: SyncRequest) -> None:
    """Ask all mounts of this user that write an index of this account to bring it up to date.

    There may be several such mounts, each with its own index in its own cache directory. Asks all
    of them, then raises the first error.
    """
    failure: JmapfsError | None = None
    for mount in own_mounts():
        # Root does not wait for the daemons of other users, which do not write root's index.
        if mount.owner != os.geteuid():
            continue
        try:
            status = ask_mount(mount, StatusRequest())
        except JmapfsError:
            # A mount whose daemon has died writes no index.
            continue
        if any(one.leads and _is_account(one, state) for one in status.accounts):
            try:
                ask_mount(mount, request)
            except JmapfsError as error:
                failure = failure or error
    if failure is not None:
        raise failure


def _is_account(status: AccountStatus, state: AccountState) -> bool:
    """Return whether a mount shows the account of an index; it may have an index of its own."""
    shown = AccountIdentity(
        location=status.location,
        origins=merge_origins([status.server]),
        username="",
        account_id=status.account_id,
    )
    return shown.is_same_account(identity_of(state))


class _PinnedAccount:
    """A `Source`: the state of an account that a reader is pinned to."""

    def __init__(
        self,
        reader: IndexReader,
        state: AccountState,
        blobs: BlobFetcher,
        check: ContentCheck,
    ) -> None:
        self.check: ContentCheck | None = check
        layout = reader.layout()
        self.origin = Origin(
            server=state.server,
            account_id=state.account_id,
            account_name=state.account_name,
            username=state.username,
            location=state.location,
            origins=state.origins,
        )
        self.email_state = state.email_state
        self.epoch = state.epoch
        self.blob_ids_are_sha1 = state.blob_ids_are_sha1
        self.mail_count = reader.counts().emails
        self.concurrency = blobs.concurrency
        self._export = EmailExport(reader, layout, layout.root)
        self.mailboxes = self._export.mailboxes()
        self.lacking = self._export.lacking()
        self.compared_at = state.compared_at
        self.batches = blobs.batches
        self.download = blobs.download
        self._blobs = blobs
        # Only one thread at a time may use a reader.
        self._reading = trio.CapacityLimiter(1)

    @property
    def cached(self) -> BlobTotals:
        return self._blobs.cached

    async def emails_after(self, position: int) -> EmailSlice:
        with sqlite_errors("read the index"):
            return await trio.to_thread.run_sync(
                partial(self._export.after, position, _PART_EMAILS), limiter=self._reading
            )

    async def still_frozen(self) -> bool:
        # A pinned reader keeps its state.
        return True
