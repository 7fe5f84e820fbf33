"""The FUSE operations: what the kernel asks, put to the tree and the content.

Only `read` may wait for the network (promise 4): a client that waits in OPEN cannot even be
killed. Handlers are keyed by inode, and an open file's handle is its inode, so that no table is
needed to find out what is read; `_open` only keeps what an open file is, should it leave the tree.

The tree is asked in the event loop: a lookup is some microseconds in SQLite's page cache, less
than a thread costs. Listings grow with the mailbox and are made in a worker thread.
"""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, TypeVarTuple, Unpack, cast

import pyfuse3
import trio

from jmapfs.errors import BlobMismatchError, EntryNotFoundError, UnreachableError
from jmapfs.fuse.attributes import AttributeWriter, file_system_statistics, missing_entry
from jmapfs.fuse.handlers import handler
from jmapfs.index import FileRecord
from jmapfs.tree import DirectoryListing, Ownership, TreeView, file_attributes

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# The kernel answers a READ that failed with another, for a single page. A program that waited for
# the deadline once is not to wait for it again.
_FAILURE_SECONDS: Final = 3.0

# Handles that are not inodes: above every inode.
_FIRST_HANDLE: Final = 1 << 62


class FileContent(Protocol):
    """Where the bytes of files come from."""

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        """Return the bytes of a file from `offset`, `length` of them or up to its end."""
        ...

    def hold(self, record: FileRecord) -> None:
        """Note that a file is open."""
        ...

    def release(self, record: FileRecord) -> None:
        """Note that it is no longer open."""
        ...


@dataclass(frozen=True, slots=True)
class _OpenDirectory:
    """A listing, and the number of the era that it was made in."""

    listing: DirectoryListing
    era: int


@dataclass(slots=True)
class _OpenFile:
    record: FileRecord
    opened: int = 0
    outdated: bool = False
    failure: UnreachableError | None = None
    failed_at: float = 0.0


class MailOperations(pyfuse3.Operations):
    """The operations of a mounted account.

    `tree` answers in the event loop; `listing_tree`, with a reader of its own, in worker threads.
    `counts` has the number of calls of each operation.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self, tree: TreeView, listing_tree: TreeView, content: FileContent, ownership: Ownership
    ) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._tree = tree
        self._listing_tree = listing_tree
        self._listing_limiter = trio.CapacityLimiter(1)
        self._content = content
        self._attributes = AttributeWriter(ownership)
        self._handles = itertools.count(_FIRST_HANDLE)
        self._directories: dict[int, _OpenDirectory] = {}
        self._era = 0
        self._abouts: dict[int, bytes] = {}
        self._open: dict[int, _OpenFile] = {}

    @handler
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        try:
            return self._attributes.entry(self._tree.lookup(parent_inode, name))
        except EntryNotFoundError:
            return missing_entry()

    @handler
    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Nothing is kept for an inode that the kernel knows."""

    @handler
    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes of an inode."""
        try:
            attributes = self._tree.attributes(inode)
        except EntryNotFoundError:
            # Who has a file open can go on with it when its last name is gone, as with any file.
            opened = self._open.get(inode)
            if opened is None:
                raise
            record = opened.record
            attributes = file_attributes(
                inode, size=record.size, received_at=record.received_at, links=0
            )
        return self._attributes.entry(attributes)

    @handler
    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        """Take an immutable listing, which `readdir` then answers from by position."""
        era = self._era
        listing = await self._in_thread(self._listing_tree.listing, inode)
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(listing, era)
        return pyfuse3.FileHandleT(handle)

    @handler
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """Hand out entries and their attributes from a position on, while the kernel takes them."""
        entry = self._attributes.entry
        directory = self._directories[fh]
        # The kernel enters these in its caches, where it has dropped what is out of date by now.
        lasting = directory.era == self._era
        position = start_id
        for name, attributes in directory.listing.entries(start_id):
            position += 1
            if not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), entry(attributes, lasting=lasting), position
            ):
                break

    @handler
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """Drop a listing."""
        del self._directories[fh]

    @handler
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a file: nothing is fetched before something is read."""
        about = self._tree.about(inode)
        if about is not None:
            handle = next(self._handles)
            self._abouts[handle] = about.content
            # Past the page cache, which would cut it at the size that it has at the time of a READ.
            return pyfuse3.FileInfo(
                fh=pyfuse3.FileHandleT(handle), direct_io=True, keep_cache=False
            )
        opened = self._open.get(inode)
        if opened is None:
            opened = self._open[inode] = _OpenFile(self._tree.file(inode))
            self._content.hold(opened.record)
        elif opened.outdated:
            opened.record, opened.outdated = self._tree.file(inode), False
        opened.opened += 1
        # Who opens it now has not waited yet; and the server may be back.
        opened.failure = None
        # Content is immutable: what the kernel has of it stays right.
        # A size of 0 keeps the kernel from asking for content at all, and a server that states it
        # wrongly would make an empty file of a mail: `direct_io` has it ask.
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(inode),
            keep_cache=True,
            direct_io=opened.record.size == 0,
        )

    @handler
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Return bytes of a file; the one operation that may wait for the network."""
        about = self._abouts.get(fh)
        if about is not None:
            return about[off : off + size]
        opened = self._open[fh]
        if opened.failure and trio.current_time() < opened.failed_at + _FAILURE_SECONDS:
            raise UnreachableError(f"{opened.failure} (a moment ago)")
        try:
            data = await self._content.read(opened.record, off, size)
        except UnreachableError as error:
            opened.failure, opened.failed_at = error, trio.current_time()
            raise
        except BlobMismatchError:
            # The index knows the true size by now, for who opens the file from now on. The kernel
            # asks twice for what it could not read: if it got the content the second time, who
            # goes by a size that is too small would have a cut file, and no error.
            opened.outdated = True
            raise
        # pyfuse3 takes whatever has the buffer interface; its annotation says bytes.
        return cast("bytes", data)

    @handler
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Say once that there is nothing to flush: the kernel does not ask again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @handler
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a file."""
        if self._abouts.pop(fh, None) is not None:
            return
        opened = self._open[fh]
        opened.opened -= 1
        if not opened.opened:
            del self._open[fh]
            self._content.release(opened.record)

    @handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return totals for `df`."""
        size, files = await self._in_thread(self._listing_tree.totals)
        return file_system_statistics(size=size, files=files)

    def show(self, tree: TreeView, listing_tree: TreeView) -> None:
        """Show another view from now on."""
        self._tree, self._listing_tree = tree, listing_tree

    def outdate_listings(self) -> None:
        """Have the kernel remember nothing of the listings made so far; before it is told news."""
        self._era += 1

    async def listings_done(self) -> None:
        """Return when the listings that were under way are done."""
        async with self._listing_limiter:
            pass

    async def _in_thread(self, question: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> _T:
        return await trio.to_thread.run_sync(question, *args, limiter=self._listing_limiter)
