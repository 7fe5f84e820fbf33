"""A snapshot straight from an account: no mount, no FUSE, nothing but its index and its server.

The index is brought up to date, or whoever keeps it is asked to do so, and read at that one state
for as long as the copy takes. Content comes from the server, and is of the blobs of that state.

Having whoever keeps the index that a snapshot reads bring it up to date.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import trio

from jmapfs.account import AccountSource, WriterLease, account_directory
from jmapfs.control.messages import StatusRequest, SyncRequest
from jmapfs.control.mounts import mounts
from jmapfs.control.socket_client import ask
from jmapfs.errors import BusyError, JmapfsError, lone_errors
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, EmailSlice
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client, connect
from jmapfs.snapshot.fetcher import BlobFetcher, EarlyFetcher, open_cache
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.source import (
    BlobRequest,
    BlobTotals,
    EarlySink,
    Sink,
    SnapshotReport,
    SourceOpener,
)
from jmapfs.sqlite import sqlite_errors
from jmapfs.sync.follower import StateWaiter
from jmapfs.sync.synchronizer import Synchronizer, check_account
from jmapfs.tree.export import EmailExport, ExportedMailbox
from jmapfs.tree.status_file import time_text
from jmapfs.tree.tree import Tree


class IndexUpdater:
    """Another process that keeps an index."""

    def __init__(self, client: Client, database: IndexDatabase) -> None:
        self._database = database
        self._arrival = StateWaiter(client, database)

    async def ask(self, refusal: BusyError) -> BusyError | None:
        """Ask mounts to bring the index up to date; return why it is not, if that is so.

        `refusal` says who keeps it.
        """
        state = await trio.to_thread.run_sync(self._database.state)
        if not state.complete:
            return BusyError(f"{refusal}, and has not listed it yet: try again later")
        try:
            await trio.to_thread.run_sync(_sync_mounts_of, state, abandon_on_cancel=True)
        except JmapfsError as error:
            refusal = BusyError(f"{refusal}, which says: {error}")
        if await self._arrival.reached():
            return None
        return BusyError(f"{refusal}; and the index is not up to date")


def _sync_mounts_of(state: AccountState) -> None:
    """Ask the mounts that keep an index of an account to bring it up to date.

    There may be several, with a cache of their own each; the one that is meant is among them, or
    it is no mount that keeps the index.

    Raises:
        JmapfsError: the first of those that could not; the others were asked all the same.
    """
    failure: JmapfsError | None = None
    for mount in mounts():
        if not mount.ours:
            continue
        try:
            status = ask(mount.mountpoint, StatusRequest())
        except JmapfsError:
            # A mount whose daemon has died keeps no index.
            continue
        accounts = [(one.account_id, one.server, one.leads) for one in status.accounts]
        if (state.account_id, state.server, True) in accounts:
            try:
                ask(mount.mountpoint, SyncRequest())
            except JmapfsError as error:
                failure = failure or error
    if failure is not None:
        raise failure


_PART: Final = 2000
_KEEPER_SECONDS: Final = 60.0
_SETTLING_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0


@contextlib.asynccontextmanager
async def account_opener(
    source: AccountSource, cache_root: Path, report: SnapshotReport, *, allow_stale: bool = False
) -> AsyncIterator[SourceOpener]:
    """Connect to an account whose states are to be copied.

    With `allow_stale`, an older state will do where whoever keeps the index has no newer one.

    Raises:
        JmapfsError: the server cannot be asked.
    """
    directory = account_directory(cache_root, source)
    async with (
        connect(source.location, source.credentials, account=source.account) as client,
        open_cache(directory / "blobs") as cache,
    ):
        yield _AccountOpener(
            client,
            IndexDatabase(directory),
            BlobFetcher(client, cache),
            report,
            allow_stale=allow_stale,
        )


class _AccountOpener:
    def __init__(
        self,
        client: Client,
        database: IndexDatabase,
        blobs: BlobFetcher,
        report: SnapshotReport,
        *,
        allow_stale: bool,
    ) -> None:
        self._client = client
        self._database = database
        self._blobs = blobs
        self._report = report
        self._allow_stale = allow_stale
        self._is_stale = False

    @contextlib.asynccontextmanager
    async def open(self, ahead: EarlySink) -> AsyncIterator[_AccountSource]:
        """Bring the index up to date, and hold the state that it has then."""
        await self._bring_up_to_date(ahead)
        with self._database.reader() as reader:
            await self._settled(reader)
            with sqlite_errors("read the index"):
                source = await trio.to_thread.run_sync(_AccountSource, reader, self._blobs)
            yield source

    async def _settled(self, reader: IndexReader) -> None:
        """Pin a state of the account: whoever keeps the index may be between two of them."""
        with trio.move_on_after(_SETTLING_SECONDS):
            while True:
                state = await trio.to_thread.run_sync(_pinned_state, reader)
                if state.complete and state.consistent:
                    return
                if state.complete and self._is_stale:
                    self._report.notice("the index is between two states: that is no one state")
                    return
                await trio.sleep(_PAUSE_SECONDS)
        raise BusyError(
            f"another process has been bringing the index in {self._database.path.parent} up to"
            f" date for {_SETTLING_SECONDS:.0f} s: try again later"
        )

    async def _bring_up_to_date(self, ahead: EarlySink) -> None:
        keeper = IndexUpdater(self._client, self._database)
        until = trio.current_time() + _KEEPER_SECONDS
        pause = _PAUSE_SECONDS
        while True:
            refusal = await self._try_to_keep(ahead)
            if refusal is None:
                return
            obstacle = await keeper.ask(refusal)
            if obstacle is None:
                return
            if trio.current_time() >= until:
                await self._take_as_it_is(obstacle)
                return
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _take_as_it_is(self, obstacle: BusyError) -> None:
        """Be content with the state that the index has, or raise what keeps it from another."""
        state = await trio.to_thread.run_sync(self._database.state)
        if not state.complete:
            raise obstacle
        if not self._allow_stale:
            raise BusyError(f"{obstacle} (--allow-stale takes it as it is)")
        self._is_stale = True
        self._report.notice(
            f"{obstacle}; what follows is its state of {time_text(state.synced_at)}"
        )

    async def _try_to_keep(self, ahead: EarlySink) -> BusyError | None:
        """Bring the index up to date, or return who keeps it from us."""
        # Not longer than it takes: a mount that is made meanwhile is to have the index.
        with WriterLease(self._database.path.parent, self._database) as lead:
            refusal = await trio.to_thread.run_sync(lead.try_now)
            await trio.to_thread.run_sync(check_account, self._database, self._client)
            writer = lead.take() if refusal is None else None
            if writer is not None:
                await self._synchronize(writer, ahead)
        return refusal

    async def _synchronize(self, writer: IndexWriter, ahead: EarlySink) -> None:
        """Bring the index up to date; while an account is listed, content comes already."""
        synchronizer = Synchronizer(self._client, self._database, writer)
        if (await trio.to_thread.run_sync(self._database.state)).complete:
            await synchronizer.bring_up_to_date(self._report.listed)
            return
        sink = await ahead.prepare(self._origin())
        with self._database.reader() as reader:
            listing = EarlyFetcher(reader, self._blobs, ahead, sink)

            def listed(count: int, total: int | None) -> None:
                self._report.listed(count, total)
                listing.note_listed()

            with lone_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listing.run)
                    try:
                        await synchronizer.bring_up_to_date(listed)
                    finally:
                        listing.stop()

    def _origin(self) -> Origin:
        session, account = self._client.session, self._client.account
        return Origin(session.api_url, account.id, account.name, session.username)


def _pinned_state(reader: IndexReader) -> AccountState:
    """Pin the state that the index has now, instead of one that was pinned before."""
    with sqlite_errors("read the index"):
        reader.unpin()
        reader.pin()
        return reader.state()


class _AccountSource:
    """An account at the state that a reader is pinned to; in this process, through no mount."""

    def __init__(self, reader: IndexReader, blobs: BlobFetcher) -> None:
        state = reader.state()
        layout = Tree(reader).layout()
        self.origin = Origin(
            server=state.server,
            account_id=state.account_id,
            account_name=state.account_name,
            username=state.username,
        )
        self.email_state = state.email_state
        self.mail_count = reader.counts().emails
        self._in_order = EmailExport(reader, layout, layout.root)
        self.mailboxes: Sequence[ExportedMailbox] = self._in_order.mailboxes()
        self._blobs = blobs
        self.concurrency = blobs.concurrency
        self.batches = blobs.batches
        # The reader belongs to one thread at a time.
        self._reading = trio.CapacityLimiter(1)

    @property
    def cached(self) -> BlobTotals:
        """What of all that was brought was in the cache of the account's mounts."""
        return self._blobs.cached

    async def emails_after(self, position: int) -> EmailSlice:
        """Return some mails from a position on, in order."""
        with sqlite_errors("read the index"):
            return await trio.to_thread.run_sync(
                self._in_order.after, position, _PART, limiter=self._reading
            )

    async def download(self, batch: Sequence[BlobRequest], sink: Sink) -> dict[str, JmapfsError]:
        """Bring contents; see `Source.download`."""
        return await self._blobs.download(batch, sink)

    async def still_frozen(self) -> bool:
        """Tell whether all that was brought is of the one state: a pinned reader cannot lose it."""
        return True
