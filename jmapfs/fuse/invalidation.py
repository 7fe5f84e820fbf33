"""Invalidating the kernel's caches. The kernel is told every change, so it may cache for a day.

The changes come from the index's journal, also if another process has written them. Names that
appeared or disappeared are invalidated by name. Directories and files whose attributes changed are
invalidated by inode. Content changes only if the server was reset: then a new epoch begins
(`blob_keys`), and the content of all files is invalidated.

Invalidation runs in a worker thread. In the event loop it would deadlock: the kernel makes the
notification wait for a request on the same inode, and only the event loop can answer this request.
"""

from __future__ import annotations

import contextlib
import logging
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import pyfuse3
import trio

from jmapfs.fuse.page_cache import KernelEpoch
from jmapfs.index.layout import Layout
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import JournalPart
from jmapfs.inodes import ROOT_INODE, STATUS_FILE_INODE
from jmapfs.sqlite import sqlite_errors
from jmapfs.tree.name_changes import TreeState

_log = logging.getLogger(__name__)

# A limiter of its own: invalidations and readers must not wait for each other's threads.
_limiter: Final = trio.CapacityLimiter(4)


@dataclass
class _StaleEntries:
    """What the kernel has to drop: names in directories, and attributes of inodes.

    `moved` has the mailboxes that have moved, by the inodes of their old directories. The names of
    their emails are dropped one by one. Dropping only the name of the directory is not enough. The
    kernel would keep entries that are in use, and entries of a reply that it has not received yet.
    """

    names: set[tuple[int, str]] = field(default_factory=set)
    moved: dict[int, int] = field(default_factory=dict)
    attributes: set[int] = field(default_factory=set)
    contents: array[int] | None = None


class CacheInvalidator:
    """Tells the kernel all changes of one account, beginning at the current state of `reader`.

    `to_mount` converts the account's inodes to those that the kernel knows. `start_generation` is
    called in the event loop before the kernel is told of changes. `epoch` is the epoch of the
    content that the kernel may have.
    """

    def __init__(
        self,
        reader: IndexReader,
        to_mount: Callable[[int], int],
        start_generation: Callable[[], None],
        epoch: KernelEpoch,
    ) -> None:
        self._reader = reader
        self._to_mount = to_mount
        self._start_generation = start_generation
        self._epoch = epoch
        self._lock = trio.Lock()
        self._paused = False
        self._stopped = False
        self._listeners: list[Callable[[], None]] = []
        self._generation = reader.generation
        with reader.pinned():
            self._known = TreeState(
                reader.journal_position(),
                reader.layout_version(),
                reader.epoch(),
                reader.layout(),
            )
        self._epoch.begin(self._known.epoch)

    @property
    def known(self) -> TreeState:
        """The state of the index of which the kernel has been told."""
        return self._known

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` from now on after the kernel has been told of a state."""
        self._listeners.append(listener)

    async def invalidate(self) -> None:
        """Make the kernel drop changed entries; return when it has. Does nothing while paused."""
        async with self._lock:
            if not self._paused and not self._stopped:
                await self._invalidate(self._reader)

    def pause(self) -> None:
        """Tell the kernel nothing until `resume`, except with `invalidate_up_to`."""
        self._paused = True

    def resume(self) -> None:
        """End a pause."""
        self._paused = False

    async def invalidate_up_to(self, reader: IndexReader) -> None:
        """Make the kernel drop what has changed up to the state of a pinned reader."""
        async with self._lock:
            await self._invalidate(reader)

    def stop(self) -> None:
        """Tell the kernel nothing more: the mount is about to end."""
        self._stopped = True

    async def _invalidate(self, reader: IndexReader) -> None:
        with sqlite_errors("read the index"):
            stale, state = await trio.to_thread.run_sync(self._compare, reader, limiter=_limiter)
        # This happens also without changes in the index: `.jmapfs.json` may have changed, because
        # the server became reachable or unreachable.
        self._start_generation()
        # The thread can be abandoned: at the end of a mount the kernel may make it wait for a
        # request that is never answered.
        drop = partial(self._drop, stale, state.epoch)
        await trio.to_thread.run_sync(drop, limiter=_limiter, abandon_on_cancel=True)
        self._known = state
        for listener in self._listeners:
            listener()

    def _compare(self, reader: IndexReader) -> tuple[_StaleEntries, TreeState]:
        known = self._known
        with reader.pinned():
            part = reader.journal_after(known.position)
            generation = reader.generation
            is_new = generation != self._generation
            if is_new:
                # The index was damaged, and the new one has a journal of its own.
                part = replace(part, whole=False)
            version = reader.layout_version()
            layout = known.layout
            epoch = reader.epoch()
            if is_new or version != known.layout_version:
                layout = reader.layout()
            stale = _stale_entries(part, known.layout, layout)
            for inode, mailbox in stale.moved.items():
                stale.names |= {(inode, name.decode()) for name in reader.listing(mailbox).names}
            if epoch != known.epoch:
                stale.contents = reader.inodes()
        self._generation = generation
        return stale, TreeState(part.position, version, epoch, layout)

    def _drop(self, stale: _StaleEntries, epoch: str) -> None:
        is_new_epoch = stale.contents is not None
        if is_new_epoch:
            # From now on, OPEN and READ fail until the kernel has dropped everything. The kernel
            # makes the invalidation wait for READs that are under way.
            self._epoch.begin(None)
        for inode in stale.contents or ():
            if self._stopped:
                return
            with _errors_logged():
                pyfuse3.invalidate_inode(pyfuse3.InodeT(self._to_mount(inode)))
        for directory, name in stale.names:
            if self._stopped:
                return
            with _errors_logged():
                pyfuse3.invalidate_entry(
                    pyfuse3.InodeT(self._to_mount(directory)), pyfuse3.FileNameT(name.encode())
                )
        for inode in stale.attributes:
            if self._stopped:
                return
            with _errors_logged():
                pyfuse3.invalidate_inode(
                    pyfuse3.InodeT(self._to_mount(inode)), attr_only=not is_new_epoch
                )
        if self._stopped:
            return
        self._epoch.begin(epoch)
        # The content of `.jmapfs.json` is dropped too: it is small and changes often.
        with _errors_logged():
            pyfuse3.invalidate_inode(pyfuse3.InodeT(self._to_mount(STATUS_FILE_INODE)))


def _stale_entries(part: JournalPart, before: Layout, after: Layout) -> _StaleEntries:
    stale = _StaleEntries()
    if not part.whole:
        # The journal is too short. Dropping a top-level name drops all names below it.
        stale.names.update((ROOT_INODE, name) for name in before.root.children)
        stale.attributes.update(before.directories)
    inodes_of = [
        {directory.mailbox: inode for inode, directory in layout.directories.items()}
        for layout in (before, after)
    ]
    for entry in part.entries:
        stale.attributes.add(entry.inode)
        for inodes in inodes_of:
            if entry.name and (inode := inodes.get(entry.mailbox)) is not None:
                stale.names.add((inode, entry.name))
                stale.attributes.add(inode)
    if before is not after:
        for one, other in ((before, after), (after, before)):
            for inode, directory in one.directories.items():
                counterpart = other.directories.get(inode)
                if counterpart is None or counterpart.mailbox != directory.mailbox:
                    stale.names.add((directory.parent, directory.name))
                    stale.attributes |= {directory.parent, inode}
                    if one is before and directory.mailbox is not None:
                        stale.moved[inode] = directory.mailbox
    return stale


@contextlib.contextmanager
def _errors_logged() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        # The kernel does not have the entry.
        pass
    except OSError as error:
        _log.info("the kernel does not accept the invalidation: %s", error)
