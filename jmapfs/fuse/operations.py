"""The FUSE operations: what the kernel asks, put to the tree and the content.

Only `read` may wait for the network (promise 4): a client that waits in OPEN cannot even be
killed. Handlers are keyed by inode, and an open file's handle is its inode, so that no table is
needed to find out what is read; `_open` only keeps what an open file is, should it leave the tree.

The tree is asked in the event loop: a lookup is some microseconds in SQLite's page cache, less
than a thread costs. Listings grow with the mailbox and are made in a worker thread.

Two things are kept, so that they need not be asked for again. Listings are kept for as long as
nothing changes (see `listings`). What a file is, is kept for an *era*: until the kernel is about to
be told news, or another tree is shown. The kernel opens files by inodes that it remembers; until it
is told otherwise, so do we.

What surrounds every FUSE handler: it is counted, and no exception but FUSEError leaves it.

Any other exception would end `pyfuse3.main`, and with it the whole mount. Errors that were
foreseen become their errno; what was not is a bug: its traceback goes to the log, the caller gets
EIO, and the mount lives on.

`handler` is for those that may wait. `immediate` is for those that never do: these are plain
functions, so that no `await` can creep in between two of their steps, and each call makes one
coroutine and not two. With OPEN and RELEASE for every file that a program looks into, it shows.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, TypeVarTuple, Unpack, cast

import pyfuse3
import trio

from jmapfs.errors import BlobMismatchError, EntryNotFoundError, JmapfsError, UnreachableError
from jmapfs.fuse.directory_cache import (
    AttributeWriter,
    CachedDirectory,
    DirectoryCache,
    file_system_statistics,
    missing_entry,
)
from jmapfs.index.rows import FileRecord
from jmapfs.tree.tree import DirectoryListing, Ownership, TreeView, file_attributes

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Counting(Protocol):
    """Something with a count for each operation."""

    counts: Counter[str]


_C = TypeVar("_C", bound=Counting)


def handler(
    method: Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]]:
    """Count the calls of a handler by its name, and turn what it raises into FUSEError."""
    name = method.__name__

    @functools.wraps(method)
    async def guarded(self: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.counts[name] += 1
        try:
            return await method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a bug must not take the mount with it
            raise _fuse_error(name, error) from None

    return guarded


def immediate(
    method: Callable[Concatenate[_C, _P], _R],
) -> Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]]:
    """Make a handler of a function that does not wait; as `handler` does else."""
    name = method.__name__

    @functools.wraps(method)
    async def guarded(self: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.counts[name] += 1
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a bug must not take the mount with it
            raise _fuse_error(name, error) from None

    return guarded


def _fuse_error(name: str, error: Exception) -> pyfuse3.FUSEError:
    """Return what the kernel is told of an error, and log what is not an answer by itself."""
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, EntryNotFoundError):
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, JmapfsError):
        _log.warning("%s: %s", name, error)
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, sqlite3.Error):
        _log.error("%s: the index cannot be read: %s", name, error)
        return pyfuse3.FUSEError(errno.EIO)
    _log.error("a bug in %s", name, exc_info=error)
    return pyfuse3.FUSEError(errno.EIO)


_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# The kernel answers a READ that failed with another, for a single page. A program that waited for
# the deadline once is not to wait for it again.
_FAILURE_SECONDS: Final = 3.0

# How many files' records are kept; each takes about 450 bytes.
_KEPT_RECORDS: Final = 24 * 1024

# Handles that are not inodes: above every inode.
_FIRST_HANDLE: Final = 1 << 62


class FileContent(Protocol):
    """Where the bytes of files come from."""

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        """Return the bytes of a file from `offset`, `length` of them or up to its end."""
        ...

    def hold(self, record: FileRecord) -> None:
        """Note that a file is open, before the first of it is read."""
        ...

    def release(self, record: FileRecord) -> None:
        """Note that it is no longer open."""
        ...


@dataclass(frozen=True, slots=True)
class _OpenDirectory:
    """A listing, what is kept of it, and the number of the era that it was made in."""

    listing: DirectoryListing
    kept: CachedDirectory | None
    era: int


@dataclass(slots=True)
class _OpenFile:
    record: FileRecord
    opened: int = 0
    held: bool = False
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
        self._listing_limiter = trio.CapacityLimiter(1)
        self._content = content
        self._attributes = AttributeWriter(ownership)
        self._handles = itertools.count(_FIRST_HANDLE)
        self._directories: dict[int, _OpenDirectory] = {}
        self._era = 0
        self._listings = DirectoryCache(self._attributes)
        self.show(tree, listing_tree)
        self._abouts: dict[int, bytes] = {}
        self._open: dict[int, _OpenFile] = {}

    @immediate
    def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        try:
            return self._attributes.entry(self._tree.lookup(parent_inode, name))
        except EntryNotFoundError:
            return missing_entry()

    @immediate
    def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Nothing is kept for an inode that the kernel knows."""

    @immediate
    def getattr(
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
        era, tree = self._era, self._tree
        # First: what changes while it is listed may not be in it, and makes another version.
        version = tree.version(inode)
        kept = self._listings.get(inode, version)
        if kept is None:
            listing = await self._in_thread(self._listing_tree.listing, inode)
            # Another tree may be shown by now, whose versions are its own.
            if tree is self._tree:
                kept = self._listings.keep(inode, listing, version)
        else:
            listing = kept.listing
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(listing, kept, era)
        return pyfuse3.FileHandleT(handle)

    @immediate
    def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Hand out entries and their attributes from a position on, while the kernel takes them."""
        entry = self._attributes.entry
        directory = self._directories[fh]
        # The kernel enters these in its caches, where it has dropped what is out of date by now.
        lasting = directory.era == self._era
        if lasting and directory.kept is not None:
            directory.kept.hand_out(token, start_id)
            return
        position = start_id
        for name, attributes in directory.listing.entries(start_id):
            position += 1
            if not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), entry(attributes, lasting=lasting), position
            ):
                break

    @immediate
    def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """Drop a listing."""
        del self._directories[fh]

    @immediate
    def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a file: nothing is fetched before something is read."""
        opened = self._open.get(inode)
        if opened is None:
            about = self._tree.status_file(inode)
            if about is not None:
                return self._open_about(about.content)
            opened = self._open[inode] = _OpenFile(self._record(inode))
        elif opened.outdated:
            opened.record, opened.outdated = self._record(inode), False
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
        if not opened.held:
            # Not before: most files that are opened are read from the page cache, or not at all.
            opened.held = True
            self._content.hold(opened.record)
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
            self._record.cache_clear()
            raise
        # pyfuse3 takes whatever has the buffer interface; its annotation says bytes.
        return cast("bytes", data)

    @immediate
    def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Say once that there is nothing to flush: the kernel does not ask again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @immediate
    def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a file."""
        if self._abouts.pop(fh, None) is not None:
            return
        opened = self._open[fh]
        opened.opened -= 1
        if not opened.opened:
            del self._open[fh]
            if opened.held:
                self._content.release(opened.record)

    @handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return totals for `df`."""
        size, files = await self._in_thread(self._listing_tree.totals)
        return file_system_statistics(size=size, files=files)

    @property
    def tree(self) -> TreeView:
        """The view that is shown now; for the event loop."""
        return self._tree

    def show(self, tree: TreeView, listing_tree: TreeView) -> None:
        """Show another view from now on."""
        self._tree, self._listing_tree = tree, listing_tree
        self._record = functools.lru_cache(_KEPT_RECORDS)(tree.file)
        self._listings.clear()

    def outdate_listings(self) -> None:
        """Have the kernel remember nothing of the listings made so far; before it is told news.

        What a file is, is asked for anew as well: it may be gone, or its size have been corrected.
        """
        self._era += 1
        self._record.cache_clear()

    async def listings_done(self) -> None:
        """Return when the listings that were under way are done."""
        async with self._listing_limiter:
            pass

    def _open_about(self, content: bytes) -> pyfuse3.FileInfo:
        handle = next(self._handles)
        self._abouts[handle] = content
        # Past the page cache, which would cut it at the size that it has at the time of a READ.
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), direct_io=True, keep_cache=False)

    async def _in_thread(self, question: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> _T:
        return await trio.to_thread.run_sync(question, *args, limiter=self._listing_limiter)
