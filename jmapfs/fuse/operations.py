"""The FUSE operations: the kernel's requests, answered from the tree and the content.

Only `read` may wait for the network: a program that waits in OPEN cannot even be killed. Handlers
are keyed by inode, and the handle of an open file is its inode; `_open` keeps the record of an open
file, because the file may leave the tree.

Lookups in the tree run in the event loop: a lookup takes some microseconds in SQLite's page cache,
and a thread would take longer. Listings grow with the mailbox and are made in a worker thread.

Two things are cached. Listings are cached until the directory changes (see `directory_cache`). The
records of files are cached for a *generation*: until the kernel is about to be told of changes, or
another tree is shown. Until then the kernel may open files by inodes that it has cached.

Handlers are wrapped: calls are counted, and errors are raised as FUSEError with their errno. Any
other exception would end `pyfuse3.main`, and with it the mount. An unexpected exception is a bug:
its traceback goes to the log, the caller gets EIO, and the mount goes on. `handler` wraps a
coroutine. `immediate` wraps a plain function, which has no `await` between two of its steps. Each
call then makes one coroutine instead of two, which is noticeable for OPEN and RELEASE.
"""

import errno
import functools
import itertools
import logging
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, TypeVarTuple, Unpack, cast

import pyfuse3
import trio

from jmapfs.errors import (
    BlobMismatchError,
    EntryNotFoundError,
    JmapfsError,
    ServerError,
    UnreachableError,
)
from jmapfs.fuse.directory_cache import (
    AttributeWriter,
    CachedDirectory,
    DirectoryCache,
    file_system_statistics,
    missing_entry,
)
from jmapfs.index.rows import FileRecord
from jmapfs.inodes import ROOT_INODE
from jmapfs.sqlite import is_damage
from jmapfs.tree.tree import DirectoryListing, Ownership, TreeView, file_attributes

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def handler(
    method: Callable[Concatenate["MailOperations", _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate["MailOperations", _P], Coroutine[Any, Any, _R]]:
    """Count the calls of a handler by its name, and turn what it raises into FUSEError."""
    name = method.__name__

    @functools.wraps(method)
    async def guarded(self: "MailOperations", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.counts[name] += 1
        try:
            return await method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a bug must not end the mount
            raise _fuse_error(name, error) from None

    return guarded


def immediate(
    method: Callable[Concatenate["MailOperations", _P], _R],
) -> Callable[Concatenate["MailOperations", _P], Coroutine[Any, Any, _R]]:
    """Do the same as `handler`, for a plain function that does not wait."""
    name = method.__name__

    @functools.wraps(method)
    async def guarded(self: "MailOperations", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.counts[name] += 1
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a bug must not end the mount
            raise _fuse_error(name, error) from None

    return guarded


def _fuse_error(name: str, error: Exception) -> pyfuse3.FUSEError:
    """Return the error for the kernel; log it unless it is an ordinary answer."""
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, EntryNotFoundError):
        return pyfuse3.FUSEError(error.errno)
    if is_damage(error):
        # It was logged once, when it was found.
        _log.debug("%s: %s", name, error)
        return pyfuse3.FUSEError(errno.EIO)
    if isinstance(error, JmapfsError):
        _log.warning("%s: %s", name, error)
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, sqlite3.Error):
        _log.error("%s: the index cannot be read: %s", name, error)
        return pyfuse3.FUSEError(errno.EIO)
    _log.error("a bug in %s", name, exc_info=error)
    return pyfuse3.FUSEError(errno.EIO)


_Ts = TypeVarTuple("_Ts")

# After a READ that failed, the kernel sends another READ for a single page. A program that has
# waited until the deadline once must not wait again.
_FAILURE_SECONDS: Final = 3.0

# How many records of files are cached; each takes about 450 bytes.
_CACHED_RECORDS: Final = 24 * 1024

# A handle that is not an inode is greater than every inode.
_FIRST_HANDLE: Final = 1 << 62


class FileContent(Protocol):
    """The content of files."""

    def require_epoch(self, inode: int, epoch: str) -> None:
        """Raise ServerError if the kernel may still have content of another epoch."""

    async def read(self, record: FileRecord, offset: int, length: int) -> bytes | memoryview:
        """Return `length` bytes of a file from `offset` on, or fewer at its end."""

    def hold(self, record: FileRecord) -> None:
        """Record that a file is open. Content that was read stays available until `release`."""

    def release(self, record: FileRecord) -> None:
        """Record that a file was closed. Its content need not stay available."""


@dataclass(frozen=True, slots=True)
class _OpenDirectory:
    """A listing, its cached entries, and the generation that it was made in."""

    listing: DirectoryListing
    cached: CachedDirectory | None
    generation: int


@dataclass(slots=True)
class _OpenFile:
    """A file that is open `opens` times; `failure` is the error of its last READ, if it failed.

    `held` is the record whose content is held, or None. It differs from `record` if the size was
    corrected or the server was reset meanwhile.
    """

    record: FileRecord
    opens: int = 0
    held: FileRecord | None = None
    outdated: bool = False
    failure: JmapfsError | None = None
    failed_at: float = 0.0


class MailOperations(pyfuse3.Operations):
    """The operations of a mount.

    The event loop uses `tree`. Worker threads use `listing_tree`, which has a reader of its own.
    `counts` has the number of calls of each operation. `started` is set when the kernel has begun
    to send requests, and they are answered. If `only_for` is a UID, only this user and
    root may enter the tree: libfuse checks that as well (`allow_root`), but the kernel does not ask
    for names and attributes that it has cached.
    """

    # A lookup of `.` or `..` finds inodes that the kernel has forgotten, for file handles and NFS.
    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self,
        tree: TreeView,
        listing_tree: TreeView,
        content: FileContent,
        ownership: Ownership,
        *,
        only_for: int | None = None,
    ) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.started = trio.Event()
        self._listing_limiter = trio.CapacityLimiter(1)
        self._content = content
        self._attributes = AttributeWriter(ownership)
        self._only_for = only_for
        self._handles = itertools.count(_FIRST_HANDLE)
        self._directories: dict[int, _OpenDirectory] = {}
        self._generation = 0
        self._listings = DirectoryCache(self._attributes)
        self.show(tree, listing_tree)
        self._status_files: dict[int, bytes] = {}
        self._open: dict[int, _OpenFile] = {}

    def init(self) -> None:
        """Begin to answer requests; called once, in the event loop, after the mount."""
        self.started.set()

    @immediate
    def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory; `.` is found in every inode."""
        if name == b".":
            return self._entry(parent_inode)
        try:
            return self._attributes.entry(self._tree.lookup(parent_inode, name))
        except EntryNotFoundError:
            return missing_entry()

    @immediate
    def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Do nothing: no state is kept for the inodes that the kernel knows."""

    @immediate
    def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes of an inode."""
        return self._entry(inode)

    def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        try:
            attributes = self._tree.attributes(inode)
        except EntryNotFoundError:
            # An open file can be used after its last name is gone, as on any file system.
            opened = self._open.get(inode)
            if opened is None:
                raise
            record = opened.record
            attributes = file_attributes(
                inode, size=record.size, received_at=record.received_at, links=0
            )
        entry = self._attributes.entry(attributes)
        if inode == ROOT_INODE and self._only_for is not None:
            entry.st_uid, entry.st_mode = self._only_for, pyfuse3.ModeT(stat.S_IFDIR | 0o700)
        return entry

    @handler
    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        """Make an immutable listing, from which `readdir` answers by position."""
        generation, tree = self._generation, self._tree
        # The version is read before the listing is made. If something changes meanwhile, the
        # listing may lack the change, and the version then shows that the listing is outdated.
        version = tree.version(inode)
        cached = self._listings.get(inode, version)
        if cached is None:
            listing = await self._in_thread(self._listing_tree.listing, inode)
            # Another tree, with versions of its own, may be shown by now.
            if tree is self._tree:
                cached = self._listings.put(inode, listing, version)
        else:
            listing = cached.listing
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(listing, cached, generation)
        return pyfuse3.FileHandleT(handle)

    @immediate
    def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Return entries and their attributes from a position on, as many as the kernel takes."""
        entry = self._attributes.entry
        directory = self._directories[fh]
        # The kernel caches these entries. Entries of an older generation must not be cached: the
        # kernel was told already to drop them, and will not be told again.
        lasting = directory.generation == self._generation
        if lasting and directory.cached is not None:
            directory.cached.reply(token, start_id)
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
        """Open a file; nothing is downloaded before the first READ."""
        opened = self._open.get(inode)
        if opened is None:
            status_file = self._tree.status_file(inode)
            if status_file is not None:
                return self._open_status_file(status_file.content)
        # After a reset of the server, a name may lead to an inode whose pages in the kernel are
        # those of another email. Reading these pages needs no READ, so OPEN is refused until the
        # kernel has dropped them.
        self._content.require_epoch(inode, self._tree.epoch(inode))
        if opened is None:
            opened = self._open[inode] = _OpenFile(self._record(inode))
        elif opened.outdated:
            opened.record, opened.outdated = self._record(inode), False
        opened.opens += 1
        # A new open retries at once.
        opened.failure = None
        # Content is immutable, so the kernel may keep its pages. For a file of size 0, however,
        # the kernel sends a READ only with `direct_io`. Without that READ, an email whose size the
        # server wrongly states as 0 would be an empty file.
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(inode), keep_cache=True, direct_io=opened.record.size == 0
        )

    @handler
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Return bytes of a file. Only this operation may wait for the network."""
        status_file = self._status_files.get(fh)
        if status_file is not None:
            return status_file[off : off + size]
        opened = self._open[fh]
        if opened.failure and trio.current_time() < opened.failed_at + _FAILURE_SECONDS:
            raise UnreachableError(f"{opened.failure} (a moment ago)")
        if opened.held is None:
            # This is not done at OPEN: most opened files are read from the page cache, or never.
            opened.held = opened.record
            self._content.hold(opened.held)
        try:
            data = await self._content.read(opened.record, off, size)
        except (UnreachableError, ServerError) as error:
            # Otherwise each of the READs that follow would download the mail again, and fail again.
            opened.failure, opened.failed_at = error, trio.current_time()
            if not isinstance(error, BlobMismatchError):
                raise
            # The index has the true size by now, for the next OPEN. Until then every READ fails.
            # The kernel repeats a READ that failed. If the second READ succeeded, a program that
            # relies on a too small size would get a truncated file and no error.
            opened.outdated = True
            self._record.cache_clear()
            raise
        # pyfuse3 takes any object with the buffer interface, although its annotation says bytes.
        return cast("bytes", data)

    @immediate
    def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Answer ENOSYS: the kernel sends no more FLUSH after that."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @immediate
    def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a file."""
        if self._status_files.pop(fh, None) is not None:
            return
        opened = self._open[fh]
        opened.opens -= 1
        if not opened.opens:
            del self._open[fh]
            if opened.held is not None:
                self._content.release(opened.held)

    @handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return totals for `df`."""
        size, files = await self._in_thread(self._listing_tree.totals)
        return file_system_statistics(size=size, files=files)

    @property
    def tree(self) -> TreeView:
        """The tree that is shown now, for the event loop."""
        return self._tree

    def show(self, tree: TreeView, listing_tree: TreeView) -> None:
        """Show another tree from now on."""
        self._tree, self._listing_tree = tree, listing_tree
        self._record = functools.lru_cache(_CACHED_RECORDS)(tree.file)
        self._listings.clear()

    def start_generation(self) -> None:
        """Drop the cached records of files, and stop the caching of entries of older listings.

        Called before the kernel is told of changes. Files may be gone, or have other sizes.
        """
        self._generation += 1
        self._record.cache_clear()

    async def wait_for_listings(self) -> None:
        """Return when the listings that are under way are done."""
        async with self._listing_limiter:
            pass

    def _open_status_file(self, content: bytes) -> pyfuse3.FileInfo:
        handle = next(self._handles)
        self._status_files[handle] = content
        # The page cache is not used: it would truncate the content at the size that the kernel has.
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), direct_io=True, keep_cache=False)

    async def _in_thread(self, function: Callable[[Unpack[_Ts]], _R], *args: *_Ts) -> _R:
        return await trio.to_thread.run_sync(function, *args, limiter=self._listing_limiter)
