"""What a mount shows: one tree, the content of its files, and the descriptions of its emails.

One account is shown as it is. Several accounts are directories of a combined tree. Descriptions
have what files do not show: ids, keywords and mailboxes. Only a frozen tree has descriptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import trio

from jmapfs.control.messages import TreeDescription
from jmapfs.daemon.account_list import directory_names
from jmapfs.daemon.accounts import MountedAccount
from jmapfs.errors import BusyError, EntryNotFoundError, UsageError
from jmapfs.fuse.operations import FileContent
from jmapfs.index.layout import Directory
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import FileRecord
from jmapfs.inodes import to_account
from jmapfs.sqlite import sqlite_errors
from jmapfs.tree.combined import CombinedTree
from jmapfs.tree.export import EmailExport
from jmapfs.tree.tree import Tree, TreeView

_DESCRIPTION_SECONDS: Final = 120.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class MountView:
    """One state of all accounts. The event loop uses `tree`; worker threads use `listing_tree`.

    `list_changed_at` is when the list of the accounts changed last (see `AccountList`).
    """

    tree: TreeView
    listing_tree: TreeView
    list_changed_at: int

    @classmethod
    def of(
        cls,
        accounts: Sequence[MountedAccount],
        readers: Sequence[tuple[IndexReader, IndexReader]],
        list_changed_at: int,
        *,
        frozen: bool = False,
    ) -> MountView:
        """Return the view of accounts, with two readers each; if `frozen`, they are pinned."""
        trees = []
        for account, (reader, listing_reader) in zip(accounts, readers, strict=True):
            reachability = account.reachability
            if frozen:
                reachability = _constant(account.reachability())
            trees.append((Tree(reader, reachability), Tree(listing_reader, reachability)))
        if accounts[0].number == 0:
            return cls(*trees[0], list_changed_at)
        numbers = [account.number for account in accounts]
        names = account_directories(accounts)
        tree, listing_tree = (
            CombinedTree(dict(zip(numbers, side, strict=True)), names, list_changed_at)
            for side in zip(*trees, strict=True)
        )
        return cls(tree, listing_tree, list_changed_at)


def account_directories(accounts: Sequence[MountedAccount]) -> dict[int, str]:
    """Return the directories of accounts by account number; a single account has none."""
    if accounts[0].number == 0:
        return {}
    return directory_names({one.number: one.source.label for one in accounts})


def content_of(accounts: Sequence[MountedAccount]) -> FileContent:
    """Return the object that reads the files of these accounts."""
    if accounts[0].number == 0:
        return accounts[0]
    return _CombinedContent({account.number: account for account in accounts})


class _CombinedContent:
    def __init__(self, accounts: dict[int, MountedAccount]) -> None:
        self._accounts = accounts

    def require_epoch(self, inode: int, epoch: str) -> None:
        """Raise ServerError if the kernel may still have content of another epoch."""
        self._account(inode).require_epoch(inode, epoch)

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        return await self._account(record.inode).read(record, offset, length)

    def hold(self, record: FileRecord) -> None:
        """Record that a file is open. Content that was read stays available until `release`."""
        self._account(record.inode).hold(record)

    def release(self, record: FileRecord) -> None:
        """Record that a file was closed. Its content need not stay available."""
        self._account(record.inode).release(record)

    def _account(self, inode: int) -> MountedAccount:
        number, _ = to_account(inode)
        account = self._accounts.get(number)
        if account is None:
            raise EntryNotFoundError(f"inode {inode} belongs to no account")
        return account


class FrozenRecords:
    """The emails of a frozen tree with their ids, keywords and mailboxes.

    `readers` are pinned, and keyed by the directories of their accounts (None for a single
    account). They are read in worker threads: neither the event loop nor the kernel waits.

    Each method may raise:
        UsageError: there is no directory at that path, or it is the top of several accounts.
        BusyError: the freeze has ended, or the answer took too long.
        StorageError: the index cannot be read.
    """

    def __init__(self, readers: Mapping[str | None, IndexReader]) -> None:
        self._accounts = {root: _AccountRecords(reader) for root, reader in readers.items()}
        # A reader is for one thread at a time.
        self._limiter = trio.CapacityLimiter(1)
        self._closed = False

    async def describe(self, path: str) -> TreeDescription:
        """Describe the directory at `path`, and everything below it."""
        account, root, names = self._find(path)
        return await self._in_thread(lambda: account.describe(root, names))

    async def mails(self, path: str, position: int, count: int) -> msgspec.Raw:
        """Return about `count` emails at and below `path` as JSON, beginning at a position."""
        account, _, names = self._find(path)
        return await self._in_thread(lambda: account.mails(names, position, count))

    async def close(self) -> None:
        """Refuse further calls; return when no call uses the readers any more."""
        self._closed = True
        async with self._limiter:
            pass

    def _find(self, path: str) -> tuple[_AccountRecords, str, tuple[str, ...]]:
        """Return the account of a path, the directory of the account, and the names below it."""
        names = tuple(name for name in path.split("/") if name)
        if None in self._accounts:
            return self._accounts[None], "", names
        if not names:
            raise UsageError("a mount of several accounts: name one of its directories")
        account = self._accounts.get(names[0])
        if account is None:
            raise _no_directory(names)
        return account, names[0], names[1:]

    async def _in_thread(self, read: Callable[[], _T]) -> _T:
        if self._closed:
            raise BusyError("the freeze has ended")
        try:
            with trio.fail_after(_DESCRIPTION_SECONDS), sqlite_errors("read the index"):
                return await trio.to_thread.run_sync(read, limiter=self._limiter)
        except trio.TooSlowError:
            raise BusyError(
                f"no answer within {_DESCRIPTION_SECONDS:.0f} s: the mount is busy"
            ) from None


class _AccountRecords:
    """The records of one account through a pinned reader, for one thread at a time."""

    def __init__(self, reader: IndexReader) -> None:
        self._reader = reader
        self._tree = Tree(reader)
        # The export is kept, because a client requests all emails of one directory part by part.
        self._latest: tuple[Directory, EmailExport] | None = None

    def describe(self, root: str, names: tuple[str, ...]) -> TreeDescription:
        directory = self._directory(names)
        state = self._reader.state()
        export = self._export(directory)
        lacking = export.lacking()
        return TreeDescription(
            server=state.server,
            account_id=state.account_id,
            account_name=state.account_name,
            username=state.username,
            email_state=state.email_state,
            synced_at=state.synced_at,
            consistent=state.consistent,
            root=root,
            directory="/".join(names),
            mails=self._count(directory),
            mailboxes=export.mailboxes(),
            epoch=state.epoch,
            blob_ids_are_sha1=state.blob_ids_are_sha1,
            location=state.location,
            origins=state.origins,
            bad=lacking.bad,
            shortfall=lacking.shortfall,
            compared_at=state.compared_at,
        )

    def mails(self, names: tuple[str, ...], position: int, count: int) -> msgspec.Raw:
        part = self._export(self._directory(names)).after(position, count)
        # The JSON is encoded in this thread: it has all emails of a second and can be large.
        return msgspec.Raw(msgspec.json.encode(part))

    def _directory(self, names: tuple[str, ...]) -> Directory:
        directory = self._tree.layout().at(names)
        if directory is None:
            raise _no_directory(names)
        return directory

    def _export(self, directory: Directory) -> EmailExport:
        if self._latest is None or self._latest[0] is not directory:
            records = EmailExport(self._reader, self._tree.layout(), directory)
            self._latest = directory, records
        return self._latest[1]

    def _count(self, directory: Directory) -> int:
        """Return the number of emails; for a part of the tree this is an estimate.

        For a part of the tree, the files are counted: copies of a message from the same second
        share one file.
        """
        if directory.mailbox is None:
            return self._reader.counts().emails
        inodes: set[int] = set()
        for one in self._tree.layout().directories.values():
            if one.mailbox is not None and one.path[: len(directory.path)] == directory.path:
                # The client may have disconnected.
                trio.from_thread.check_cancelled()
                inodes.update(self._reader.listing(one.mailbox).inodes)
        return len(inodes)


def _constant(value: _T) -> Callable[[], _T]:
    return lambda: value


def _no_directory(names: tuple[str, ...]) -> UsageError:
    return UsageError(f"{'/'.join(names)}: there is no such directory in the mount")
