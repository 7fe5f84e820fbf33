"""What a running mount can be asked for over its control socket.

What `jmapfs prefetch` asks of a mount: which mails are not cached, and to fetch those.

    {"command": "missing", "arguments": {"inodes": [7, 8, 9], "read": true}}
    {"command": "prefetch", "arguments": {"inodes": [8, 9]}}

An answer takes a second or two, and names what there was no time for: whoever asks goes on with
that. So little goes on here when nobody asks any more, and nothing is remembered.

What `jmapfs status` shows of a running mount.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final, Self

import msgspec
import trio
import trio.lowlevel

from jmapfs.content.prefetch import CheckResult, Prefetcher, is_temporary
from jmapfs.control.socket_server import Command, SessionCommand
from jmapfs.daemon.accounts import MountedAccount
from jmapfs.daemon.freeze import Freezer, Frozen
from jmapfs.daemon.holding import Holding
from jmapfs.daemon.startup import MountRequest
from jmapfs.daemon.view import directory_names
from jmapfs.errors import EntryNotFoundError, JmapfsError, UsageError, lone_errors
from jmapfs.fuse.operations import MailOperations
from jmapfs.index.rows import FileRecord
from jmapfs.inodes import to_account
from jmapfs.tree.status_file import time_text

PREFETCH_STEP: Final = 2000
"""How many mails one request may be about."""

_SECONDS: Final = 1.0
# A lookup is some microseconds; as many as this do not make anybody wait.
_LOOKUPS: Final = 50

_Inode = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Reason(msgspec.Struct, frozen=True):
    """Why something cannot be had, in one line, and the exit code that goes with it."""

    error: str
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return the reason that an error is."""
        if isinstance(error, JmapfsError):
            return cls(str(error), error.exit_code)
        return cls(f"a bug, {type(error).__name__}: see the log", 1)


class CacheUse(msgspec.Struct, frozen=True):
    """What mails take of the cache of an account, and what that has room for, in bytes."""

    account: str
    wanted: int
    room: int


class MissingMails(msgspec.Struct):
    """The mails (inode and size) that are not in the cache.

    Those `unchecked`, for want of time, may be there or not. Those `gone` are in no directory any
    more. `caches` tells what those that were checked take together.
    """

    missing: list[tuple[int, int]] = []
    unchecked: list[int] = []
    gone: list[int] = []
    caches: list[CacheUse] = []


class FetchedMails(msgspec.Struct):
    """The mails that are not in the cache yet.

    `left` for want of time; `unreached` because of `obstacle`, which has nothing to do with them.
    Those `refused` cannot be had, for the first of them because of `refusal`. Those `gone` are in
    no directory any more.
    """

    left: list[int] = []
    unreached: list[int] = []
    obstacle: Reason | None = None
    refused: list[int] = []
    refusal: Reason | None = None
    gone: list[int] = []


class _Question(msgspec.Struct, frozen=True):
    inodes: Annotated[list[_Inode], msgspec.Meta(max_length=PREFETCH_STEP)]
    read: bool = False


class Prefetching:
    """Answers for one mount, whose tree is what `freezer` has it show."""

    def __init__(self, accounts: Sequence[MountedAccount], freezer: Freezer) -> None:
        self._freezer = freezer
        self._parts = {account.slot: _Part(account) for account in accounts}

    async def missing(self, arguments: Mapping[str, Any]) -> object:
        """Tell what is not cached; with `read`, read what is there and tell if it is damaged."""
        question = msgspec.convert(arguments, _Question)
        answer = MissingMails()
        records = await self._records(question.inodes, answer.gone)

        async def ask(part: _Part, its: Sequence[FileRecord]) -> None:
            await part.missing(its, answer, read=question.read)

        await self._ask_each(ask, records)
        return answer

    async def prefetch(self, arguments: Mapping[str, Any]) -> object:
        """Fetch what is not cached, for a second."""
        question = msgspec.convert(arguments, _Question)
        answer = FetchedMails()
        records = await self._records(question.inodes, answer.gone)

        async def ask(part: _Part, its: Sequence[FileRecord]) -> None:
            await part.fetch(its, answer)

        await self._ask_each(ask, records)
        return answer

    async def _records(self, inodes: Iterable[int], gone: list[int]) -> dict[int, list[FileRecord]]:
        """Return the files by the number of their account; what is no file is added to `gone`."""
        records: dict[int, list[FileRecord]] = {slot: [] for slot in self._parts}
        for number, inode in enumerate(inodes, 1):
            if number % _LOOKUPS == 0:
                await trio.lowlevel.checkpoint()
            try:
                record = self._freezer.view.tree.file(inode)
            except EntryNotFoundError:
                gone.append(inode)
            else:
                records[0 if 0 in records else to_account(inode)[0]].append(record)
        return records

    async def _ask_each(
        self,
        ask: Callable[[_Part, Sequence[FileRecord]], Awaitable[None]],
        records: Mapping[int, Sequence[FileRecord]],
    ) -> None:
        """Ask all accounts that have some of the files, at the same time."""
        with lone_errors():
            async with trio.open_nursery() as nursery:
                for slot, part in self._parts.items():
                    if records[slot]:
                        nursery.start_soon(ask, part, records[slot])


class _Part:
    """One account's part in the answers."""

    def __init__(self, account: MountedAccount) -> None:
        self._name = account.source.label
        self._prefetcher = Prefetcher(account.content, account.disk)

    async def missing(
        self, records: Sequence[FileRecord], answer: MissingMails, *, read: bool
    ) -> None:
        wanted = {record.blob_id: record.size for record in records}
        if read:
            checked = await self._prefetcher.check(wanted, _SECONDS)
        else:
            checked = CheckResult(await self._prefetcher.missing(wanted), [])
        absent, unchecked = set(checked.absent), set(checked.unchecked)
        answer.missing += [(one.inode, one.size) for one in records if one.blob_id in absent]
        answer.unchecked += [one.inode for one in records if one.blob_id in unchecked]
        taken = sum(self._prefetcher.cost(wanted[one]) for one in wanted.keys() - unchecked)
        answer.caches.append(CacheUse(self._name, taken, self._prefetcher.capacity))

    async def fetch(self, records: Sequence[FileRecord], answer: FetchedMails) -> None:
        wanted = {record.blob_id: record.size for record in records}
        fetched = await self._prefetcher.fetch(wanted, _SECONDS)
        left = set(fetched.remaining)
        answer.left += [one.inode for one in records if one.blob_id in left]
        for record in records:
            error = fetched.failed.get(record.blob_id)
            if error is None:
                continue
            if is_temporary(error):
                answer.unreached.append(record.inode)
                answer.obstacle = answer.obstacle or Reason.of(error)
            else:
                answer.refused.append(record.inode)
                answer.refusal = answer.refusal or Reason.of(error)


async def mount_status(
    request: MountRequest,
    accounts: Sequence[MountedAccount],
    operations: MailOperations,
    frozen: Frozen | None,
) -> dict[str, Any]:
    """Return the status as JSON can hold it; README.md describes its members.

    With one account, what is said of it stands at the top; with several, in `accounts`.
    """
    each = [await trio.to_thread.run_sync(_account_status, account) for account in accounts]
    status = {
        "mountpoint": os.fsencode(request.mountpoint).decode(errors="backslashreplace"),
        "pid": os.getpid(),
        "frozen": frozen and _freeze(frozen),
        "fuse": dict(sorted(operations.counts.items())),
        "pages": {"stored": accounts[0].pages.stored},
    }
    if request.all_accounts:
        return status | {"accounts": each, "online": all(one["online"] for one in each)}
    return status | each[0]


def _freeze(frozen: Frozen) -> dict[str, str | None]:
    until = None if frozen.until is None else time_text(frozen.until)
    return {"since": time_text(frozen.since), "until": until}


def _account_status(account: MountedAccount) -> dict[str, Any]:
    with account.database.reader() as reader:
        state = reader.state()
        counts = reader.counts()
    cache = account.disk.statistics()
    counters = account.content.counters
    traffic = account.traffic.total()
    keeper = account.keeper
    return {
        "account": state.account_name,
        "account_id": state.account_id,
        "server": state.server,
        "online": keeper.connection.online,
        "since": time_text(keeper.connection.since),
        "error": keeper.connection.error,
        "leads": keeper.writes_index,
        "push": keeper.push_active,
        "state": state.email_state,
        "last_sync": time_text(state.synced_at),
        "last_check": time_text(keeper.checked_at) if keeper.checked_at else None,
        "emails": counts.emails,
        "mailboxes": counts.mailboxes,
        "cache": {
            "bytes": cache.bytes,
            "limit": cache.limit,
            "blobs": cache.blobs,
            "hits": counters.hits,
        },
        "ahead": {"downloaded": counters.ahead_downloaded, "recalled": counters.ahead_recalled},
        "http": {
            "requests": traffic.requests,
            "blobs": traffic.blobs,
            "bytes": traffic.bytes,
        },
    }


_SYNC_SECONDS: Final = 600.0
_LONGEST_FREEZE: Final = 7 * 24 * 3600.0


class Commands:
    """The commands of one mount."""

    def __init__(
        self,
        request: MountRequest,
        accounts: Sequence[MountedAccount],
        operations: MailOperations,
        freezer: Freezer,
    ) -> None:
        self._request = request
        self._accounts = accounts
        self._operations = operations
        self._freezer = freezer
        self._prefetching = Prefetching(accounts, freezer)
        self._holding = Holding(accounts, freezer)

    def sessions(self) -> Mapping[str, SessionCommand]:
        """Return the commands that begin a session, by their names."""
        return {"hold": self._holding.hold}

    def table(self) -> Mapping[str, Command]:
        """Return the commands by their names."""
        return {
            "status": self.status,
            "sync": self.sync,
            "freeze": self.freeze,
            "thaw": self.thaw,
            "missing": self._prefetching.missing,
            "prefetch": self._prefetching.prefetch,
        }

    async def status(self, _arguments: Mapping[str, Any]) -> object:
        """Return the status."""
        return await mount_status(
            self._request, self._accounts, self._operations, self._freezer.frozen
        )

    async def sync(self, arguments: Mapping[str, Any]) -> object:
        """Ask the server now; answer when the tree, and the kernel, have what it says.

        With a `path`, of several accounts only the one whose directory that is in. Where one of
        them fails, the others are brought up to date all the same.
        """
        errors: list[JmapfsError] = []

        async def sync(account: MountedAccount) -> None:
            try:
                await account.keeper.sync_now()
            except JmapfsError as error:
                errors.append(error)

        with trio.move_on_after(_SYNC_SECONDS) as scope:
            async with trio.open_nursery() as nursery:
                for account in self._accounts_at(arguments.get("path")):
                    nursery.start_soon(sync, account)
        if errors:
            raise errors[0]
        if scope.cancelled_caught:
            raise JmapfsError(f"the account is not up to date after {_SYNC_SECONDS:.0f} s")
        return {}

    def _accounts_at(self, path: object) -> Sequence[MountedAccount]:
        if not isinstance(path, str) or not path:
            return self._accounts
        names = directory_names(self._accounts)
        top = path.partition("/")[0]
        # Without a directory of its own, an account is all there is.
        return [one for one in self._accounts if names.get(one.slot, top) == top]

    async def freeze(self, arguments: Mapping[str, Any]) -> object:
        """Hold the tree as it is, for `seconds`."""
        seconds = arguments.get("seconds")
        if not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST_FREEZE:
            raise UsageError("a freeze takes more than nothing and a week at most")
        return asdict(await self._freezer.freeze(float(seconds)))

    async def thaw(self, arguments: Mapping[str, Any]) -> object:
        """Let the tree go on; with `since`, only if that is when the freeze began."""
        return {"was_frozen": await self._freezer.thaw(arguments.get("since"))}
