"""The commands that a running mount carries out for clients of its control socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

import trio
import trio.lowlevel

from jmapfs.content.prefetch import CheckResult, Prefetcher, is_temporary
from jmapfs.control.messages import (
    AccountStatus,
    AnyRequest,
    CacheStatus,
    CacheUse,
    ChangesRequest,
    ContentStatus,
    DescribeRequest,
    Done,
    Failure,
    FreezeRequest,
    HttpStatus,
    Lease,
    MailsRequest,
    MissingMails,
    MissingRequest,
    MountStatus,
    PagesStatus,
    PrefetchedMails,
    PrefetchRequest,
    ReadaheadStatus,
    RenewRequest,
    StaleStatus,
    StatusRequest,
    SyncRequest,
    Thawed,
    ThawRequest,
)
from jmapfs.daemon.accounts import MountedAccount
from jmapfs.daemon.change_feed import ChangeFeed
from jmapfs.daemon.freeze import Freezer
from jmapfs.daemon.request import MountRequest
from jmapfs.daemon.view import account_directories
from jmapfs.errors import (
    EntryNotFoundError,
    JmapfsError,
    StorageError,
    UsageError,
    lone_errors,
)
from jmapfs.fuse.operations import MailOperations
from jmapfs.fuse.page_cache import PageCacheWriter
from jmapfs.index.rows import AccountState, Counts, FileRecord, StaleTree
from jmapfs.inodes import to_account
from jmapfs.sqlite import sqlite_errors
from jmapfs.tree.export import read_lacking
from jmapfs.tree.status_file import SHOWN_BAD, Lacking, time_text

_SYNC_SECONDS: Final = 600.0
_LONGEST_FREEZE: Final = 7 * 24 * 3600.0
_PREFETCH_SECONDS: Final = 1.0
# A lookup takes some microseconds: this many do not delay other tasks noticeably.
_LOOKUPS: Final = 50


class Commands:
    """The commands of one mount."""

    def __init__(
        self,
        request: MountRequest,
        accounts: Sequence[MountedAccount],
        operations: MailOperations,
        pages: PageCacheWriter,
        freezer: Freezer,
        feed: ChangeFeed,
    ) -> None:
        self._request = request
        self._accounts = accounts
        self._operations = operations
        self._pages = pages
        self._freezer = freezer
        self._feed = feed
        self._prefetchers = {account.number: _AccountPrefetcher(account) for account in accounts}

    async def answer(self, request: AnyRequest) -> object:  # noqa: PLR0911 - one for each request
        """Carry out a request, and return its reply.

        Raises JmapfsError if it cannot be carried out.
        """
        match request:
            case StatusRequest():
                return await self.status()
            case SyncRequest():
                return await self.sync(request)
            case FreezeRequest():
                return await self.freeze(request)
            case RenewRequest(lease, seconds):
                _require_duration(seconds)
                return self._freezer.renew(lease, seconds)
            case ThawRequest(lease):
                return Thawed(await self._freezer.thaw(lease))
            case DescribeRequest(lease, path):
                return await self._freezer.records(lease).describe(path)
            case MailsRequest(lease, path, position, count):
                return await self._freezer.records(lease).mails(path, position, count)
            case MissingRequest(inodes, read):
                return await self._find_missing(inodes, read=read)
            case PrefetchRequest(inodes):
                return await self._prefetch(inodes)
            case ChangesRequest(after, seconds):
                return await self._feed.after(after, seconds)

    async def status(self) -> MountStatus:
        """Return the status of the mount."""
        return MountStatus(
            mountpoint=os.fsencode(self._request.mountpoint).decode(errors="backslashreplace"),
            pid=os.getpid(),
            frozen=self._freezer.frozen,
            fuse=dict(sorted(self._operations.counts.items())),
            pages=PagesStatus(self._pages.stored),
            accounts=[
                await trio.to_thread.run_sync(_account_status, account)
                for account in self._accounts
            ],
            all_accounts=self._request.all_accounts,
        )

    async def sync(self, request: SyncRequest) -> Done:
        """Bring the accounts up to date, and compare the numbers of emails; see `SyncRequest`.

        A secret that the server has refused is sent again, and emails that have failed may be
        requested again. With `retry_login`, a pause that the server has asked for ends too. If one
        account fails, the other accounts are brought up to date all the same.
        """
        errors: list[JmapfsError] = []

        async def sync(account: MountedAccount) -> None:
            account.content.failures.clear()
            try:
                await account.follower.sync_now(
                    accept_deletions=request.accept_deletions,
                    compare=True,
                    suspects=request.suspects,
                )
            except JmapfsError as error:
                errors.append(error)

        with trio.move_on_after(_SYNC_SECONDS) as scope:
            async with trio.open_nursery() as nursery:
                for account in self._accounts_at(request.path):
                    if request.retry_login:
                        account.source.login.retry_now()
                        account.follower.end_pauses()
                    nursery.start_soon(sync, account)
        if errors:
            raise errors[0]
        if scope.cancelled_caught:
            raise JmapfsError(f"the account is not up to date after {_SYNC_SECONDS:.0f} s")
        return Done()

    async def freeze(self, request: FreezeRequest) -> Lease:
        """Freeze the tree; see `FreezeRequest`."""
        _require_duration(request.seconds)
        if request.limit is not None:
            _require_duration(request.limit)
        return await self._freezer.freeze(request.seconds, limit=request.limit, join=request.join)

    def _accounts_at(self, path: str) -> Sequence[MountedAccount]:
        if not path:
            return self._accounts
        names = account_directories(self._accounts)
        top = path.partition("/")[0]
        # A single account has no directory of its own.
        return [one for one in self._accounts if names.get(one.number, top) == top]

    async def _find_missing(self, inodes: Iterable[int], *, read: bool) -> MissingMails:
        reply = MissingMails()

        async def find(prefetcher: _AccountPrefetcher, records: Sequence[FileRecord]) -> None:
            await prefetcher.find_missing(records, reply, read=read)

        await self._for_each_account(find, await self._records(inodes, reply.gone))
        return reply

    async def _prefetch(self, inodes: Iterable[int]) -> PrefetchedMails:
        reply = PrefetchedMails()

        async def fetch(prefetcher: _AccountPrefetcher, records: Sequence[FileRecord]) -> None:
            await prefetcher.fetch(records, reply)

        await self._for_each_account(fetch, await self._records(inodes, reply.gone))
        return reply

    async def _records(self, inodes: Iterable[int], gone: list[int]) -> dict[int, list[FileRecord]]:
        """Return files by account number; add the inodes that have no file to `gone`."""
        records: dict[int, list[FileRecord]] = {number: [] for number in self._prefetchers}
        for count, inode in enumerate(inodes, 1):
            if count % _LOOKUPS == 0:
                await trio.lowlevel.checkpoint()
            try:
                record = self._freezer.view.tree.file(inode)
            except EntryNotFoundError:
                gone.append(inode)
            else:
                records[0 if 0 in records else to_account(inode)[0]].append(record)
        return records

    async def _for_each_account(
        self,
        function: Callable[[_AccountPrefetcher, Sequence[FileRecord]], Awaitable[None]],
        records: Mapping[int, Sequence[FileRecord]],
    ) -> None:
        """Call `function` at the same time for each account that has some of the files."""
        with lone_errors():
            async with trio.open_nursery() as nursery:
                for number, prefetcher in self._prefetchers.items():
                    if records[number]:
                        nursery.start_soon(function, prefetcher, records[number])


class _AccountPrefetcher:
    """Adds the results of one account to the replies about prefetching."""

    def __init__(self, account: MountedAccount) -> None:
        self._name = account.source.label
        self._content = account.content
        self._disk = account.disk
        self._prefetcher = Prefetcher(account.content, account.disk)

    async def find_missing(
        self, records: Sequence[FileRecord], reply: MissingMails, *, read: bool
    ) -> None:
        wanted = {record.content_key: record.size for record in records}
        if read:
            checked = await self._prefetcher.check(wanted, _PREFETCH_SECONDS)
        else:
            checked = CheckResult(await self._prefetcher.missing(wanted), [])
        absent, unchecked = set(checked.absent), set(checked.unchecked)
        reply.missing += [(one.inode, one.size) for one in records if one.content_key in absent]
        reply.unchecked += [one.inode for one in records if one.content_key in unchecked]
        used = sum(self._prefetcher.cost(wanted[one]) for one in wanted.keys() - unchecked)
        reply.caches.append(await self._use(used))

    async def fetch(self, records: Sequence[FileRecord], reply: PrefetchedMails) -> None:
        wanted = {record.content_key: record.size for record in records}
        fetched = await self._prefetcher.fetch(wanted, _PREFETCH_SECONDS)
        reply.received += fetched.received
        left = set(fetched.remaining)
        reply.left += [one.inode for one in records if one.content_key in left]
        for record in records:
            error = fetched.failed.get(record.content_key)
            if error is None:
                continue
            if is_temporary(error):
                reply.unreached.append(record.inode)
                reply.obstacle = reply.obstacle or Failure.of(error)
            else:
                reply.refused.append(record.inode)
                reply.refusal = reply.refusal or self._failure(record, error)
        reply.caches.append(await self._use(0))

    async def _use(self, wanted: int) -> CacheUse:
        capacity = await self._prefetcher.capacity()
        return CacheUse(self._name, wanted, capacity, self._disk.usable_bytes)

    def _failure(self, record: FileRecord, error: Exception) -> Failure:
        failure = Failure.of(error)
        name = self._content.describe(record.content_key)
        return Failure(f"{name}: {failure.error}", failure.exit_code)


def _require_duration(seconds: float) -> None:
    if not 0 < seconds <= _LONGEST_FREEZE:
        raise UsageError("a freeze must last more than 0 seconds, and at most a week")


def _account_status(account: MountedAccount) -> AccountStatus:
    database = account.database
    state, counts, lacking = AccountState(), Counts(0, 0, 0), Lacking()
    error = account.follower.connection.error
    if database.damage is not None:
        error = f"{database.describe_damage()}{f'; {error}' if error else ''}"
    try:
        with sqlite_errors("read the index"), database.reader() as reader:
            state = reader.state()
            counts = reader.counts()
            lacking = read_lacking(reader)
    except StorageError as failure:
        error = error or str(failure)
    cache = account.disk.statistics()
    counters = account.content.counters
    traffic = account.follower.traffic()
    follower = account.follower
    next_try = follower.schedule.next_try
    return AccountStatus(
        account=state.account_name,
        account_id=state.account_id,
        server=state.server,
        online=follower.connection.online,
        since=time_text(follower.connection.since),
        error=error,
        leads=follower.writes_index,
        push=follower.push_active,
        state=state.email_state,
        last_sync=time_text(state.synced_at),
        last_check=time_text(follower.checked_at) if follower.checked_at else None,
        emails=counts.emails,
        mailboxes=counts.mailboxes,
        cache=CacheStatus(
            bytes=cache.bytes, limit=cache.limit, blobs=cache.blobs, hits=counters.hits
        ),
        ahead=ReadaheadStatus(
            downloaded=counters.ahead_downloaded, recalled=counters.ahead_recalled
        ),
        http=HttpStatus(requests=traffic.requests, blobs=traffic.blobs, bytes=traffic.bytes),
        stale=None if state.stale is None else _stale_status(state.stale),
        content=ContentStatus(confirmed=counters.confirmed, refused=counters.refused),
        location=state.location,
        bad=lacking.bad[:SHOWN_BAD],
        bad_count=len(lacking.bad),
        shortfall=lacking.shortfall,
        waiting=account.pause.text,
        failures=follower.schedule.failures,
        next_try=None if next_try is None else time_text(next_try),
    )


def _stale_status(stale: StaleTree) -> StaleStatus:
    return StaleStatus(
        since=time_text(stale.since),
        gone=stale.gone,
        total=stale.total,
        reset=stale.reset,
        reason=stale.reason,
    )
