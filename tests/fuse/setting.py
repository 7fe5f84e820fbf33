"""Operations without a mount: a real tree, a content that takes notes, and a kernel of ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyfuse3
import pytest

from jmapfs.errors import ServerError
from jmapfs.fuse.operations import MailOperations
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState, FileRecord
from jmapfs.index.writer import IndexWriter
from jmapfs.inodes import ROOT_INODE
from jmapfs.jmap.types import Email
from jmapfs.tree.status_file import Reachability
from jmapfs.tree.tree import Attributes, DirectoryListing, Ownership, Tree
from tests import indexed
from tests.indexed import file_name, mailbox

CONTEXT = cast("pyfuse3.RequestContext", None)
ROOT = pyfuse3.InodeT(ROOT_INODE)
FLAGS = pyfuse3.FlagT(0)
COUNT = 300


class NotedContent:
    """Blobs of one letter, and how often each is held; `error` is raised instead if it is set."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        self.reads: list[tuple[str, int, int, int]] = []
        self.error: Exception | None = None
        self.epoch = ""

    def require_epoch(self, inode: int, epoch: str) -> None:
        assert inode
        if epoch != self.epoch:
            raise ServerError("another epoch")

    async def read(self, record: FileRecord, offset: int, length: int) -> memoryview:
        assert self.held[record.content_key] > 0
        self.reads.append((record.blob_id, record.size, offset, length))
        if self.error is not None:
            raise self.error
        return memoryview((b"x" * record.size)[offset : offset + length])

    def hold(self, record: FileRecord) -> None:
        self.held[record.content_key] += 1

    def release(self, record: FileRecord) -> None:
        self.held[record.content_key] -= 1
        assert self.held[record.content_key] >= 0


class NotedTree(Tree):
    """A tree that counts what it is asked for.

    It raises `error` once it is set, whatever name it is asked for. `meanwhile` is done once,
    after a listing was made and before it is returned.
    """

    def __init__(self, reader: IndexReader, condition: Callable[[], Reachability]) -> None:
        super().__init__(reader, condition)
        self.error: Exception | None = None
        self.meanwhile: Callable[[], object] | None = None
        self.listed: list[int] = []
        self.asked: list[int] = []

    def lookup(self, parent: int, name: bytes) -> Attributes:
        if self.error is not None:
            raise self.error
        return super().lookup(parent, name)

    def file(self, inode: int) -> FileRecord:
        self.asked.append(inode)
        return super().file(inode)

    def listing(self, inode: int) -> DirectoryListing:
        self.listed.append(inode)
        listing = super().listing(inode)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return listing


class Kernel:
    """What a kernel knows: entries that it was given, as many as it has room for at a time."""

    def __init__(self, operations: MailOperations, monkeypatch: pytest.MonkeyPatch) -> None:
        self._operations = operations
        self._room = 0
        self._taken: list[tuple[bytes, pyfuse3.EntryAttributes, int]] = []
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._reply)

    async def open(self, inode: pyfuse3.InodeT) -> pyfuse3.FileHandleT:
        return await self._operations.opendir(inode, CONTEXT)

    async def read(
        self, handle: pyfuse3.FileHandleT, position: int = 0, room: int = 10_000
    ) -> list[tuple[bytes, Any, int]]:
        """Read what there is room for, from a position on."""
        self._room, self._taken = room, []
        await self._operations.readdir(handle, position, cast("pyfuse3.ReaddirToken", self))
        return self._taken

    async def list(self, inode: pyfuse3.InodeT, room: int = 10_000) -> list[tuple[bytes, Any]]:
        """Read a directory in pieces of `room` entries."""
        handle = await self.open(inode)
        found: list[tuple[bytes, Any]] = []
        position = 0
        while taken := await self.read(handle, position, room):
            found += [(name, entry) for name, entry, _ in taken]
            position = taken[-1][2]
        await self._operations.releasedir(handle)
        return found

    def _reply(
        self, token: object, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int
    ) -> bool:
        assert token is self
        if len(self._taken) >= self._room:
            return False
        self._taken.append((name, entry, next_id))
        return True


class Setting:
    """Operations over an index with a mailbox `Inbox` of COUNT mails, and `Inbox/0-Sub`.

    `reach` is what the tree says of the server's.
    """

    def __init__(
        self, database: IndexDatabase, reader: IndexReader, listing_reader: IndexReader
    ) -> None:
        self.database = database
        self.reach = Reachability(online=True)
        self.tree = NotedTree(reader, lambda: self.reach)
        self.listing_tree = NotedTree(listing_reader, lambda: self.reach)
        self.content = NotedContent()
        ownership = Ownership(uid=12, gid=34, umask=0o027)
        self.operations = MailOperations(self.tree, self.listing_tree, self.content, ownership)

    async def inode(self, *path: bytes) -> pyfuse3.InodeT:
        inode = ROOT
        for name in path:
            entry = await self.operations.lookup(inode, pyfuse3.FileNameT(name), CONTEXT)
            inode = entry.st_ino
        return inode

    async def open(self, inode: pyfuse3.InodeT) -> pyfuse3.FileInfo:
        return await self.operations.open(inode, FLAGS, CONTEXT)

    @contextmanager
    def writing(self) -> Iterator[IndexWriter]:
        """Change the index, in one transaction."""
        with self.database.writer() as writer, writer.transaction():
            yield writer


def name(number: int) -> bytes:
    return file_name(email(number)).encode()


def email(number: int, *mailbox_ids: str) -> Email:
    return indexed.email(
        f"M{number}",
        *mailbox_ids,
        blob=f"b{number}",
        at=1_700_000_000 + number,
        size=1000 + number,
    )


def fill(database: IndexDatabase) -> None:
    database.prepare()
    with database.writer() as writer, writer.transaction():
        writer.replace_mailboxes(
            [mailbox("a", "Inbox"), mailbox("b", "0-Sub", "a"), mailbox("c", "")]
        )
        writer.put_emails(
            email(number, "a", *(["b"] if number == 7 else [])) for number in range(COUNT)
        )
        writer.set_state(AccountState(account_id="A", account_name="alice", complete=True))
