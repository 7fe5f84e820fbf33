"""One account of a mount: its index, caches and content, and what keeps them true.

Which accounts a mount shows: the one that was asked for, or all that the user can see.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import trio

from jmapfs.account import AccountSource, account_directory, mail_accounts
from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.readahead import Readahead
from jmapfs.content.service import ContentService, open_content_service
from jmapfs.daemon.startup import MountRequest, StartupReport
from jmapfs.errors import (
    UNDECODABLE,
    BusyError,
    ConfigError,
    StorageError,
    UnreachableError,
    lone_errors,
)
from jmapfs.fuse.invalidation import CacheInvalidator
from jmapfs.fuse.page_cache import PageCacheWriter
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import FileRecord
from jmapfs.inodes import account_numbers, to_account, to_mount
from jmapfs.jmap.client import Client, connect
from jmapfs.sync.follower import AccountBlobSource, AccountFollower, TotalTraffic
from jmapfs.tree.status_file import Reachability
from jmapfs.tree.tree import Tree

_log = logging.getLogger(__name__)


async def select_accounts(request: MountRequest, report: StartupReport) -> dict[int, AccountSource]:
    """Return the accounts to be shown by their numbers; a single one has the number 0.

    Which ones there are is remembered, for the day when the server cannot be asked.

    Raises:
        JmapfsError: the server cannot be asked, and nothing is remembered.
    """
    source = request.source
    if not request.all_accounts:
        return {0: source}
    memory = account_directory(request.cache_root, source) / "accounts.json"
    try:
        names = {account.id: account.name for account in await mail_accounts(source)}
    except UnreachableError as error:
        names = await trio.to_thread.run_sync(_recall, memory)
        if not names:
            raise
        report.notice(f"{error}; showing the accounts that are known")
    else:
        await trio.to_thread.run_sync(_remember, memory, names)
    if not names:
        raise ConfigError(f"{source.label}: there are no accounts with mail")
    try:
        slots = account_numbers(names)
    except ValueError as error:
        raise ConfigError(f"{source.label}: {error}: mount them one by one") from error
    return {
        slots[account_id]: replace(source, label=name, account=account_id)
        for account_id, name in names.items()
    }


def _remember(path: Path, names: dict[str, str]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(msgspec.json.encode(names))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        _log.warning("the accounts cannot be remembered: %s", error)


def _recall(path: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, *UNDECODABLE):
        return {}


_MEMORY_CACHE_BYTES: Final = 32 * 1024 * 1024
# What is read ahead has to fit, should the kernel not take it.
_READ_AHEAD_BYTES: Final = _MEMORY_CACHE_BYTES // 2
_CONCURRENCY: Final = 8


@dataclass
class MountedAccount:
    """An account that is being shown; `slot` is its number among several, 0 where it is alone."""

    source: AccountSource
    slot: int
    database: IndexDatabase
    disk: DiskCache
    content: ContentService
    keeper: AccountFollower
    traffic: TotalTraffic
    pages: PageCacheWriter
    ahead: Readahead | None = None
    news: CacheInvalidator | None = None

    def view(self, reader: IndexReader) -> Tree:
        """Return the account's tree as a reader sees it."""
        return Tree(reader, self.reachability)

    def still_view(self, reader: IndexReader) -> Tree:
        """Return a tree that says of the server's reach, too, what is true now, for good."""
        reachability = self.reachability()
        return Tree(reader, lambda: reachability)

    def reachability(self) -> Reachability:
        """Return whether the server is in reach, for `.jmapfs.json`."""
        condition = self.keeper.connection
        if condition.online:
            return Reachability(online=True)
        return Reachability(online=False, since=condition.since, error=condition.error)

    def outward(self, inode: int) -> int:
        """Return the number that the kernel knows an inode of this account by."""
        return to_mount(self.slot, inode) if self.slot else inode

    def inward(self, inode: int) -> int:
        """Return the number of this account's own that the kernel knows by another."""
        return to_account(inode)[1] if self.slot else inode

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        """Hand contents (by inode) to the kernel; return the inodes it did not take."""
        refused = self.pages.store([(self.outward(inode), data) for inode, data in files])
        # A file may be there twice: under two names in one directory.
        return {inode for inode, _ in files if self.outward(inode) in refused} if refused else set()

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        """Return bytes of a file."""
        if self.ahead is not None and offset == 0:
            self.ahead.record_read(self.inward(record.inode))
        return await self.content.read(record.blob_id, record.size, offset, length)

    def hold(self, record: FileRecord) -> None:
        """Note that a file is open."""
        self.content.hold(record.blob_id)

    def release(self, record: FileRecord) -> None:
        """Note that it is no longer open."""
        self.content.release(record.blob_id)


@contextlib.asynccontextmanager
async def open_account(
    request: MountRequest,
    source: AccountSource,
    report: StartupReport,
    pages: PageCacheWriter,
    *,
    slot: int = 0,
    accounts: int = 1,
) -> AsyncIterator[MountedAccount]:
    """Open an account, bring it up to date, and keep it so while the context lasts.

    `pages` is where content goes that is read ahead. `accounts` is how many share the server's
    patience.

    Raises:
        BusyError: another process is still listing it.
        JmapfsError: it cannot be shown.
    """
    directory = account_directory(request.cache_root, source)
    database = IndexDatabase(directory)
    traffic = TotalTraffic()
    concurrency = max(1, _CONCURRENCY // accounts)

    @contextlib.asynccontextmanager
    async def open_client() -> AsyncIterator[Client]:
        async with connect(
            source.location, source.credentials, account=source.account, concurrency=concurrency
        ) as client:
            traffic.begin(client.traffic)
            yield client

    async with contextlib.AsyncExitStack() as stack:
        lead = stack.enter_context(WriterLease(database))
        refusal = await trio.to_thread.run_sync(lead.try_acquire)
        if refusal is not None:
            _require_listed(database, refusal)
            report.notice(f"{refusal}; this mount reads along")
        disk = await trio.to_thread.run_sync(DiskCache, directory / "blobs", request.cache_limit)
        stack.push_async_callback(_close, disk)

        async def changed() -> None:
            if account.news is not None:
                await account.news.tell()

        keeper = AccountFollower(
            open_client,
            database,
            lead,
            poll_interval=request.poll_interval,
            after_round=changed,
        )
        corrections = _SizeCorrections(database, changed)
        content = await stack.enter_async_context(
            open_content_service(
                AccountBlobSource(keeper),
                disk,
                MemoryCache(_MEMORY_CACHE_BYTES // accounts),
                on_size_mismatch=corrections.correct,
            )
        )
        account = MountedAccount(source, slot, database, disk, content, keeper, traffic, pages)
        reader, chunk_reader = (stack.enter_context(database.reader()) for _ in range(2))
        stack.enter_context(lone_errors())
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(
            functools.partial(keeper.run, report.progress, may_start_offline=_is_complete(database))
        )
        account.ahead = Readahead(
            content,
            disk,
            account,
            reader,
            chunk_reader,
            nursery,
            limit_bytes=_READ_AHEAD_BYTES // accounts,
        )
        if not keeper.connection.online:
            report.notice(f"offline, showing what is known: {keeper.connection.error}")
        try:
            yield account
        finally:
            account.news = account.ahead = None
            nursery.cancel_scope.cancel()


async def _close(disk: DiskCache) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(disk.close)


class _SizeCorrections:
    """Puts right what the server said wrongly of a blob's size: in the index, then the kernel."""

    def __init__(self, database: IndexDatabase, changed: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._changed = changed

    async def correct(self, blob_id: str, size: int) -> None:
        """Note that a blob has `size` bytes."""
        _log.warning("the server stated a wrong size for blob %s: it has %d bytes", blob_id, size)
        await trio.to_thread.run_sync(self._correct_index, blob_id, size)
        await self._changed()

    def _correct_index(self, blob_id: str, size: int) -> None:
        try:
            with self._database.writer() as writer, writer.transaction():
                writer.correct_size(blob_id, size)
        except sqlite3.Error as error:
            raise StorageError(f"cannot write the index: {error}") from error


def _require_listed(database: IndexDatabase, refusal: BusyError) -> None:
    if not _is_complete(database):
        raise BusyError(f"{refusal}, and has not listed it yet: try again later")


def _is_complete(database: IndexDatabase) -> bool:
    try:
        return database.state().complete
    except StorageError:
        return False
