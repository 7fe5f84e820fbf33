"""What is known of the mails of a frozen tree beyond what its files show.

Ids, keywords and mailboxes, at the state that the freeze holds. They are read in worker threads, on
readers of their own: neither the event loop nor the kernel waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import trio

from jmapfs.errors import BusyError, UsageError
from jmapfs.index.reader import IndexReader
from jmapfs.sqlite import sqlite_errors
from jmapfs.tree.export import EmailExport
from jmapfs.tree.layout import Directory, Layout
from jmapfs.tree.tree import Tree

_SECONDS: Final = 120.0

_T = TypeVar("_T")


class Records:
    """The records of a frozen tree, by the directories of its accounts; a single one has none.

    Each method may raise:
        UsageError: there is no directory at that path, or it is the top of several accounts.
        BusyError: the freeze has ended, or there is no answer in time.
        StorageError: the index cannot be read.
    """

    def __init__(self, readers: Mapping[str | None, IndexReader]) -> None:
        self._accounts = {root: _AccountRecords(reader) for root, reader in readers.items()}
        # Readers are for one thread at a time.
        self._limiter = trio.CapacityLimiter(1)
        self._closed = False

    async def describe(self, path: str) -> dict[str, Any]:
        """Return whose mail the directory at `path` has, and what there is at and below it.

        `mails` is a number for people: of a part of the tree, copies of a mail that came in the
        same second count as one. `bytes` are those of all files, each once.
        """
        account, root, names = self._place(path)
        description = await self._in_thread(lambda: account.describe(names))
        return {"root": root, "directory": "/".join(names), **description}

    async def mails(self, path: str, position: int, count: int) -> object:
        """Return some `count` mails at and below `path`, from a position on, and the next one."""
        account, _, names = self._place(path)
        return await self._in_thread(lambda: account.mails(names, position, count))

    async def close(self) -> None:
        """Answer nothing more; return when nobody uses the readers."""
        self._closed = True
        async with self._limiter:
            pass

    def _place(self, path: str) -> tuple[_AccountRecords, str, tuple[str, ...]]:
        """Return the account that a path is of, its directory, and the names below that."""
        names = tuple(name for name in path.split("/") if name)
        if None in self._accounts:
            return self._accounts[None], "", names
        if not names:
            raise UsageError("a mount of several accounts: name one of its directories")
        account = self._accounts.get(names[0])
        if account is None:
            raise _no_directory(names)
        return account, names[0], names[1:]

    async def _in_thread(self, question: Callable[[], _T]) -> _T:
        if self._closed:
            raise BusyError("the freeze has ended")
        try:
            with trio.fail_after(_SECONDS), sqlite_errors("read the index"):
                return await trio.to_thread.run_sync(question, limiter=self._limiter)
        except trio.TooSlowError:
            raise BusyError(f"no answer within {_SECONDS:.0f} s: the mount is busy") from None


class _AccountRecords:
    """The records of one account, on a pinned reader; used from one thread at a time."""

    def __init__(self, reader: IndexReader) -> None:
        self._reader = reader
        self._tree = Tree(reader)
        # Whoever asks for mails asks for all there are, part by part.
        self._latest: tuple[Directory, EmailExport] | None = None

    def describe(self, names: tuple[str, ...]) -> dict[str, Any]:
        directory = self._directory(names)
        state = self._reader.state()
        mails, size = self._totals(directory)
        return {
            "server": state.server,
            "account_id": state.account_id,
            "account_name": state.account_name,
            "username": state.username,
            "email_state": state.email_state,
            "synced_at": state.synced_at,
            "settled": state.consistent,
            "mailboxes": self._in_order(directory).mailboxes(),
            "mails": mails,
            "bytes": size,
        }

    def mails(self, names: tuple[str, ...], position: int, count: int) -> msgspec.Raw:
        part = self._in_order(self._directory(names)).after(position, count)
        # Not in the event loop: any number of mails may have come in one second.
        return msgspec.Raw(msgspec.json.encode({"mails": part.emails, "after": part.position}))

    @property
    def _layout(self) -> Layout:
        return self._tree.layout()

    def _directory(self, names: tuple[str, ...]) -> Directory:
        directory = self._layout.at(names)
        if directory is None:
            raise _no_directory(names)
        return directory

    def _in_order(self, directory: Directory) -> EmailExport:
        if self._latest is None or self._latest[0] is not directory:
            self._latest = directory, EmailExport(self._reader, self._layout, directory)
        return self._latest[1]

    def _totals(self, directory: Directory) -> tuple[int, int]:
        if directory.mailbox is None:
            return self._reader.counts().emails, self._reader.total_size()
        sizes: dict[int, int] = {}
        for one in self._layout.directories.values():
            if one.mailbox is not None and one.path[: len(directory.path)] == directory.path:
                # Whoever asked may have gone.
                trio.from_thread.check_cancelled()
                listing = self._reader.listing(one.mailbox)
                sizes.update(zip(listing.inodes, listing.sizes, strict=True))
        return len(sizes), sum(sizes.values())


def _no_directory(names: tuple[str, ...]) -> UsageError:
    return UsageError(f"{'/'.join(names)}: there is no such directory in the mount")
