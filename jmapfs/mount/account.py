"""One account of a mount: its index, caches and content, and what keeps them true."""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import trio

from jmapfs.cache import DiskCache, MemoryCache
from jmapfs.errors import (
    AuthenticationError,
    BusyError,
    StorageError,
    UnreachableError,
    lone_errors,
)
from jmapfs.fetch import Content, open_content
from jmapfs.index import AccountLock, FileRecord, IndexDatabase, IndexReader, IndexWriter
from jmapfs.jmap import BlobStream, Client, Traffic, connect
from jmapfs.mount.kernel_news import KernelNews
from jmapfs.mount.places import account_directory
from jmapfs.mount.report import Report
from jmapfs.mount.request import AccountSource, MountRequest
from jmapfs.names import in_account
from jmapfs.sync import Keeper
from jmapfs.tree import Reachability, Tree

_log = logging.getLogger(__name__)

_MEMORY_CACHE_BYTES: Final = 32 * 1024 * 1024
_CONCURRENCY: Final = 8


@dataclass
class MountedAccount:
    """An account that is being shown; `slot` is its number among several, 0 where it is alone."""

    source: AccountSource
    slot: int
    database: IndexDatabase
    disk: DiskCache
    content: Content
    keeper: Keeper
    traffic: _TotalTraffic
    news: KernelNews | None = None

    def view(self, reader: IndexReader) -> Tree:
        """Return the account's tree as a reader sees it."""
        return Tree(reader, self.reachability)

    def still_view(self, reader: IndexReader) -> Tree:
        """Return a tree that says of the server's reach, too, what is true now, for good."""
        reachability = self.reachability()
        return Tree(reader, lambda: reachability)

    def reachability(self) -> Reachability:
        """Return whether the server is in reach, for `.jmapfs.json`."""
        condition = self.keeper.condition
        if condition.online:
            return Reachability(online=True)
        return Reachability(online=False, since=condition.since, error=condition.error)

    def outward(self, inode: int) -> int:
        """Return the number that the kernel knows an inode of this account by."""
        return in_account(self.slot, inode) if self.slot else inode

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        """Return bytes of a file."""
        return await self.content.read(record.blob_id, record.size, offset, length)

    def hold(self, record: FileRecord) -> None:
        """Note that a file is open."""
        self.content.hold(record.blob_id)

    def release(self, record: FileRecord) -> None:
        """Note that it is no longer open."""
        self.content.release(record.blob_id)


class _TotalTraffic:
    """What all connections to a server have sent and received, the closed ones included."""

    def __init__(self) -> None:
        self._closed = Traffic()
        self._open = Traffic()

    def total(self) -> Traffic:
        """Return the sums."""
        return Traffic(
            requests=self._closed.requests + self._open.requests,
            blobs=self._closed.blobs + self._open.blobs,
            bytes=self._closed.bytes + self._open.bytes,
        )

    def begin(self, traffic: Traffic) -> None:
        """Count a new connection's traffic from now on."""
        self._closed, self._open = self.total(), traffic


class _Blobs:
    """Downloads from whatever connection there is; fails at once where there is none."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether content can be checked by its id."""
        return self._client().session.blob_ids_are_sha1

    async def download_blob(self, blob_id: str, *, deadline: float) -> bytes:
        """Return the content of a blob."""
        with self._watched():
            return await self._client().download_blob(blob_id, deadline=deadline)

    @contextlib.asynccontextmanager
    async def stream_blob(self, blob_id: str, *, deadline: float) -> AsyncIterator[BlobStream]:
        """Return the content of a blob chunk by chunk."""
        with self._watched():
            async with self._client().stream_blob(blob_id, deadline=deadline) as stream:
                yield stream

    def _client(self) -> Client:
        if self._keeper.client is None:
            raise UnreachableError(
                f"offline: {self._keeper.condition.error or 'not connected yet'}"
            )
        return self._keeper.client

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (UnreachableError, AuthenticationError):
            if self._keeper.client is not None:
                # Is it this download, or is the server gone? The keeper finds out.
                self._keeper.hint()
            raise


@contextlib.asynccontextmanager
async def open_account(
    request: MountRequest,
    source: AccountSource,
    report: Report,
    *,
    slot: int = 0,
    accounts: int = 1,
) -> AsyncIterator[MountedAccount]:
    """Open an account, bring it up to date, and keep it so while the context lasts.

    `accounts` is how many share the server's patience.

    Raises:
        BusyError: another process is still listing it.
        JmapfsError: it cannot be shown.
    """
    directory = account_directory(request.cache_root, source)
    database = IndexDatabase(directory)
    traffic = _TotalTraffic()
    concurrency = max(1, _CONCURRENCY // accounts)

    @contextlib.asynccontextmanager
    async def open_client() -> AsyncIterator[Client]:
        async with connect(
            source.location, source.credentials, account=source.account, concurrency=concurrency
        ) as client:
            traffic.begin(client.traffic)
            yield client

    async with contextlib.AsyncExitStack() as stack:
        lead = stack.enter_context(_Lead(directory, database))
        refusal = await trio.to_thread.run_sync(lead.try_now)
        if refusal is not None:
            _require_listed(database, refusal)
            report.notice(f"{refusal}; this mount reads along")
        disk = await trio.to_thread.run_sync(DiskCache, directory / "blobs", request.cache_limit)
        stack.push_async_callback(_close, disk)

        async def changed() -> None:
            if account.news is not None:
                await account.news.tell()

        keeper = Keeper(
            open_client,
            database,
            lead.take,
            poll_interval=request.poll_interval,
            changed=changed,
        )
        corrections = _SizeCorrections(database, changed)
        content = await stack.enter_async_context(
            open_content(
                _Blobs(keeper),
                disk,
                MemoryCache(_MEMORY_CACHE_BYTES // accounts),
                on_size_mismatch=corrections.correct,
            )
        )
        account = MountedAccount(source, slot, database, disk, content, keeper, traffic)
        stack.enter_context(lone_errors())
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(
            functools.partial(keeper.run, report.progress, may_start_offline=_is_complete(database))
        )
        if not keeper.condition.online:
            report.notice(f"offline, showing what is known: {keeper.condition.error}")
        try:
            yield account
        finally:
            account.news = None
            nursery.cancel_scope.cancel()


async def _close(disk: DiskCache) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(disk.close)


class _Lead:
    """The right to write the index: taken when it is free, kept to the end."""

    def __init__(self, directory: Path, database: IndexDatabase) -> None:
        self._directory = directory
        self._database = database
        self._stack = contextlib.ExitStack()
        self._writer: IndexWriter | None = None
        self._in_use = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def try_now(self) -> BusyError | None:
        """Take it if it is free; otherwise return who has it."""
        if self._writer is not None:
            return None
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(AccountLock(self._directory))
            except BusyError as error:
                self._in_use = True
                return error
            self._database.prepare(in_use=self._in_use)
            self._writer = stack.enter_context(self._database.writer())
            self._stack.push(stack.pop_all())
        return None

    def take(self) -> IndexWriter | None:
        """Return the writer, if the right is ours or free."""
        try:
            self.try_now()
        except StorageError as error:
            _log.error("the index cannot be taken over: %s", error)
        return self._writer


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
        with database.reader() as reader:
            return reader.state().complete
    except (sqlite3.Error, StorageError):
        return False
