"""What `jmapfs prefetch` asks of a mount: which mails are not cached, and to fetch those.

    {"command": "missing", "arguments": {"inodes": [7, 8, 9], "read": true}}
    {"command": "prefetch", "arguments": {"inodes": [8, 9]}}

An answer takes a second or two, and names what there was no time for: whoever asks goes on with
that. So little goes on here when nobody asks any more, and nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Self

import msgspec
import trio
import trio.lowlevel

from jmapfs.errors import EntryNotFoundError, JmapfsError, lone_errors
from jmapfs.fetch import Checked, Prefetcher, is_obstacle
from jmapfs.index import FileRecord
from jmapfs.mount.account import MountedAccount
from jmapfs.mount.freezing import Freezer
from jmapfs.names import of_account

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
                records[0 if 0 in records else of_account(inode)[0]].append(record)
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
            checked = Checked(await self._prefetcher.missing(wanted), [])
        absent, unchecked = set(checked.absent), set(checked.unchecked)
        answer.missing += [(one.inode, one.size) for one in records if one.blob_id in absent]
        answer.unchecked += [one.inode for one in records if one.blob_id in unchecked]
        taken = sum(self._prefetcher.charge(wanted[one]) for one in wanted.keys() - unchecked)
        answer.caches.append(CacheUse(self._name, taken, self._prefetcher.room))

    async def fetch(self, records: Sequence[FileRecord], answer: FetchedMails) -> None:
        wanted = {record.blob_id: record.size for record in records}
        fetched = await self._prefetcher.fetch(wanted, _SECONDS)
        left = set(fetched.left)
        answer.left += [one.inode for one in records if one.blob_id in left]
        for record in records:
            error = fetched.failed.get(record.blob_id)
            if error is None:
                continue
            if is_obstacle(error):
                answer.unreached.append(record.inode)
                answer.obstacle = answer.obstacle or Reason.of(error)
            else:
                answer.refused.append(record.inode)
                answer.refusal = answer.refusal or Reason.of(error)
