"""The accounts of a mount, each with its index, caches and content."""

import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from jmapfs.account import AccountSource, account_directory, require_private_cache
from jmapfs.blob_keys import split_content_key
from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.readahead import Readahead
from jmapfs.content.service import ContentService, open_content_service
from jmapfs.daemon.index_guard import guard_index
from jmapfs.daemon.request import MountRequest
from jmapfs.daemon.startup import StartupReport
from jmapfs.errors import (
    BusyError,
    ServerError,
    StorageError,
    lone_errors,
)
from jmapfs.fuse.page_cache import KernelEpoch, PageCacheWriter
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import FileRecord
from jmapfs.inodes import to_account, to_mount
from jmapfs.jmap.http import LONGEST_WAIT
from jmapfs.sqlite import sqlite_errors
from jmapfs.sync.blob_source import open_blob_source
from jmapfs.sync.follower import AccountFollower
from jmapfs.sync.relisting import describe_stale
from jmapfs.tree.export import BlobNames, read_lacking
from jmapfs.tree.status_file import Reachability, time_text

_log = logging.getLogger(__name__)

_MEMORY_CACHE_BYTES: Final = 32 * 1024 * 1024
# Content that is read ahead has to fit into memory, because the kernel may not take it.
_READ_AHEAD_BYTES: Final = _MEMORY_CACHE_BYTES // 2
_CONCURRENCY: Final = 8

Listener = Callable[[], Awaitable[None]]


class ChangeNotifier:
    """Calls listeners after the index or the reachability of the server has changed."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` after each change from now on."""
        self._listeners.append(listener)

    async def notify(self) -> None:
        """Call all listeners; return when all calls have returned."""
        for listener in self._listeners:
            await listener()


class _ForgetFailures:
    """A listener that forgets the failures of blobs when the server is reachable again."""

    def __init__(self, follower: AccountFollower, content: ContentService) -> None:
        self._follower = follower
        self._content = content
        self._online_since = 0.0

    async def __call__(self) -> None:
        connection = self._follower.connection
        if connection.online and connection.since != self._online_since:
            self._online_since = connection.since
            self._content.failures.clear()


@dataclass(frozen=True, slots=True)
class AccountInodes:
    """Converts the inodes of an account to those of the mount, and back.

    `number` is the number of the account in the mount; a single account has the number 0.
    """

    number: int

    def to_mount(self, inode: int) -> int:
        """Convert an inode of this account to an inode of the mount."""
        return to_mount(self.number, inode) if self.number else inode

    def to_account(self, inode: int) -> int:
        """Convert an inode of the mount to an inode of this account."""
        return to_account(inode)[1] if self.number else inode


@dataclass(frozen=True, slots=True)
class AccountPageCache:
    """The kernel's page cache of one account's files.

    Content is stored only during the epoch in which the mount began. `reader` is for this object
    alone.
    """

    pages: PageCacheWriter
    inodes: AccountInodes
    reader: IndexReader
    kernel_epoch: KernelEpoch
    first_epoch: str

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        """Store contents (by inode) in the page cache; return the inodes that were not stored."""
        to_mount = self.inodes.to_mount
        # Content that was requested in one epoch may arrive in the next one. A frozen mount shows
        # an earlier epoch than the index has.
        with self.kernel_epoch.lock:
            if not self.kernel_epoch.current == self.reader.epoch() == self.first_epoch:
                return {inode for inode, _ in files}
            refused = self.pages.store([(to_mount(inode), data) for inode, data in files])
        # `files` may contain an inode twice: a file can have two names in one directory.
        return {inode for inode, _ in files if to_mount(inode) in refused} if refused else set()


class ServerPause:
    """The pause that the server has asked for. It is noted by the event loop, read by threads."""

    def __init__(self) -> None:
        self._noted = "", 0.0

    def note(self, text: str, seconds: float) -> None:
        """Store a line for the user; the pause ends after this many seconds."""
        self._noted = text, time.monotonic() + seconds

    @property
    def text(self) -> str | None:
        """The line for the user, None if there is no pause now."""
        text, until = self._noted
        return text if time.monotonic() < until else None


@dataclass(frozen=True)
class MountedAccount:
    """A mounted account: its index, its content, and the objects that keep them up to date."""

    source: AccountSource
    inodes: AccountInodes
    database: IndexDatabase
    disk: DiskCache
    content: ContentService
    follower: AccountFollower
    changes: ChangeNotifier
    readahead: Readahead
    kernel_epoch: KernelEpoch
    pause: ServerPause

    @property
    def number(self) -> int:
        """The number of the account in the mount; 0 if it is the only one."""
        return self.inodes.number

    def reachability(self) -> Reachability:
        """Return whether the server is reachable, for `.jmapfs.json`."""
        connection = self.follower.connection
        if connection.online:
            return Reachability(online=True)
        return Reachability(
            online=False,
            since=connection.since,
            error=connection.error,
            changed_at=connection.changed_at,
        )

    def require_epoch(self, inode: int, epoch: str) -> None:  # noqa: ARG002 - one account
        """Raise ServerError if the kernel may still have content of another epoch.

        The next round tells the kernel to drop it.
        """
        if epoch != self.kernel_epoch.current:
            self.follower.schedule.hint()
            raise ServerError("the server was reset a moment ago: try again")

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        """Return bytes of a file."""
        if record.epoch != self.kernel_epoch.current:
            # The file was opened before a reset of the server. The kernel would keep this content
            # under an inode that may stand for another email now.
            raise ServerError("the server was reset since the file was opened")
        if offset == 0:
            self.readahead.record_read(self.inodes.to_account(record.inode), record.size)
        return await self.content.read(record.content_key, record.size, offset, length)

    def hold(self, record: FileRecord) -> None:
        """Record that a file is open. Content that was read stays available until `release`."""
        self.content.hold(record.content_key)

    def release(self, record: FileRecord) -> None:
        """Record that a file was closed. Its content need not stay available."""
        self.content.release(record.content_key)


@contextlib.asynccontextmanager
async def open_account(
    request: MountRequest,
    source: AccountSource,
    report: StartupReport,
    pages: PageCacheWriter,
    *,
    number: int = 0,
    accounts: int = 1,
) -> AsyncIterator[MountedAccount]:
    """Open an account, and keep it up to date while the context lasts.

    `pages` receives content that is read ahead. `number` is the number of the account in the mount.
    `accounts` is how many accounts share the server's limits and the memory. Raises BusyError if
    another process is still listing the account, and JmapfsError if the account cannot be shown.
    """
    directory = account_directory(request.cache_root, source)
    require_private_cache(request.cache_root, directory)
    database = IndexDatabase(directory)
    concurrency = max(1, _CONCURRENCY // accounts)

    pause = ServerPause()

    def on_wait(text: str, seconds: float) -> None:
        pause.note(text, seconds)
        # Only a mount that is starting has a terminal.
        _log.info("%s", text)
        report.waiting(text)

    open_client = functools.partial(
        source.connect,
        concurrency=concurrency,
        # A mount shows soon that it is offline.
        longest_wait=LONGEST_WAIT,
        on_wait=on_wait,
    )

    changes = ChangeNotifier()

    async def correct_size(key: str, size: int) -> None:
        epoch, blob_id = split_content_key(key)
        await trio.to_thread.run_sync(_correct_size, database, epoch, blob_id, size)
        await changes.notify()

    async def take_suspects() -> list[str]:
        return await blobs.take_suspects()

    async with contextlib.AsyncExitStack() as stack:
        lease = stack.enter_context(WriterLease(database))
        refusal = await trio.to_thread.run_sync(lease.try_acquire)
        if refusal is not None:
            if not _is_complete(database):
                raise BusyError(f"{refusal}, and has not listed it yet: try again later")
            report.notice(
                f"{refusal} and keeps the index up to date; this mount only reads the index"
            )
        disk = await trio.to_thread.run_sync(DiskCache, directory / "blobs", request.cache_limit)
        stack.push_async_callback(_close, disk)
        await trio.to_thread.run_sync(_discard_unconfirmed, database, disk)
        follower = AccountFollower(
            open_client,
            database,
            lease,
            poll_interval=request.poll_interval,
            after_round=changes.notify,
            take_suspects=take_suspects,
        )
        blobs = stack.enter_context(
            open_blob_source(
                database,
                follower.current_client,
                describe=BlobNames().describe,
                wake=follower.schedule.hint,
                report_reset=follower.report_reset,
                lasting=True,
            )
        )
        content = await stack.enter_async_context(
            open_content_service(
                blobs,
                disk,
                MemoryCache(_MEMORY_CACHE_BYTES // accounts),
                on_size_mismatch=correct_size,
            )
        )
        changes.add_listener(_ForgetFailures(follower, content))
        reader, chunk_reader, page_reader = (
            stack.enter_context(database.lasting_reader()) for _ in range(3)
        )
        stack.enter_context(lone_errors())
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(
            functools.partial(
                follower.run, report.progress, may_start_offline=_is_complete(database)
            )
        )
        if not follower.connection.online:
            report.notice(f"offline, showing the last known state: {follower.connection.error}")
        state = await trio.to_thread.run_sync(database.state)
        if state.stale is not None:
            report.notice(
                f"{source.label}: {describe_stale(state.stale)}; showing the mail of"
                f" {time_text(state.synced_at)}, see jmapfs status"
            )
        for line in await trio.to_thread.run_sync(_lacking_lines, database):
            report.notice(f"{source.label}: {line}; see jmapfs status")
        inodes = AccountInodes(number)
        kernel_epoch = KernelEpoch(state.epoch)
        readahead = Readahead(
            content,
            disk,
            AccountPageCache(pages, inodes, page_reader, kernel_epoch, state.epoch),
            reader,
            chunk_reader,
            nursery,
            limit_bytes=_READ_AHEAD_BYTES // accounts,
        )
        nursery.start_soon(guard_index, database, follower)
        yield MountedAccount(
            source,
            inodes,
            database,
            disk,
            content,
            follower,
            changes,
            readahead,
            kernel_epoch,
            pause,
        )
        nursery.cancel_scope.cancel()


async def _close(disk: DiskCache) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(disk.close)


def _correct_size(database: IndexDatabase, epoch: str, blob_id: str, size: int) -> None:
    with (
        database.damage_reported(),
        sqlite_errors("write the index"),
        database.writer() as writer,
        writer.transaction(),
    ):
        # The server may have been reset meanwhile.
        if epoch == writer.epoch():
            writer.correct_size(blob_id, size)


def _discard_unconfirmed(database: IndexDatabase, disk: DiskCache) -> None:
    """Remove content from the cache that an earlier version has not confirmed."""
    with sqlite_errors("read the index"), database.reader() as reader:
        for blob_id in reader.unconfirmed_blobs():
            disk.discard(blob_id)


def _lacking_lines(database: IndexDatabase) -> list[str]:
    with sqlite_errors("read the index"), database.reader() as reader:
        return read_lacking(reader).lines()


def _is_complete(database: IndexDatabase) -> bool:
    try:
        return database.state().complete
    except StorageError:
        return False
