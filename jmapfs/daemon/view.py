"""What a mount shows: the tree of its account, or those of several accounts as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jmapfs.daemon.accounts import MountedAccount
from jmapfs.errors import EntryNotFoundError
from jmapfs.fuse.operations import FileContent
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import FileRecord
from jmapfs.inodes import to_account
from jmapfs.names import sibling_names
from jmapfs.tree.combined import CombinedTree
from jmapfs.tree.tree import TreeView


@dataclass(frozen=True, slots=True)
class MountView:
    """One view of everything: `tree` for the event loop, `listing_tree` for worker threads."""

    tree: TreeView
    listing_tree: TreeView

    @classmethod
    def of(
        cls,
        accounts: Sequence[MountedAccount],
        readers: Sequence[tuple[IndexReader, IndexReader]],
        *,
        still: bool = False,
    ) -> MountView:
        """Return the view of accounts through two readers each; `still` where these are pinned."""
        trees = [
            (account.still_view(one), account.still_view(other))
            if still
            else (account.view(one), account.view(other))
            for account, (one, other) in zip(accounts, readers, strict=True)
        ]
        if accounts[0].slot == 0:
            return cls(*trees[0])
        slots = [account.slot for account in accounts]
        names = directory_names(accounts)
        return cls(
            CombinedTree({slot: tree for slot, (tree, _) in zip(slots, trees, strict=True)}, names),
            CombinedTree({slot: tree for slot, (_, tree) in zip(slots, trees, strict=True)}, names),
        )


def directory_names(accounts: Sequence[MountedAccount]) -> dict[int, str]:
    """Return the directories of several accounts by their numbers; a single one has none."""
    if accounts[0].slot == 0:
        return {}
    by_id = sibling_names({str(one.slot): one.source.label for one in accounts})
    return {one.slot: by_id[str(one.slot)] for one in accounts}


def content_of(accounts: Sequence[MountedAccount]) -> FileContent:
    """Return where the bytes of the accounts' files come from."""
    if accounts[0].slot == 0:
        return accounts[0]
    return _CombinedContent({account.slot: account for account in accounts})


class _CombinedContent:
    def __init__(self, accounts: dict[int, MountedAccount]) -> None:
        self._accounts = accounts

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        """Return bytes of a file."""
        return await self._of(record).read(record, offset, length)

    def hold(self, record: FileRecord) -> None:
        """Note that a file is open."""
        self._of(record).hold(record)

    def release(self, record: FileRecord) -> None:
        """Note that it is no longer open."""
        self._of(record).release(record)

    def _of(self, record: FileRecord) -> MountedAccount:
        slot, _ = to_account(record.inode)
        account = self._accounts.get(slot)
        if account is None:
            raise EntryNotFoundError(f"inode {record.inode} is of no account")
        return account
