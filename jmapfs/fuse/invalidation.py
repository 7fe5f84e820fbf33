"""Telling the kernel what changed, so that it may keep everything else for a day.

The news come from the index's journal, whoever wrote it. Names that came or went are dropped by
name, directories and files whose attributes changed by inode; nothing else is touched, and no
content ever: it is immutable.

All of it happens in a worker thread. In the event loop it would deadlock: the kernel makes the
notification wait for a request on the same inode, and only the event loop can answer that.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pyfuse3
import trio

from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import JournalPart
from jmapfs.inodes import ROOT_INODE, STATUS_FILE_INODE
from jmapfs.sqlite import sqlite_errors
from jmapfs.tree.layout import Layout, lay_out

_log = logging.getLogger(__name__)

# Its own, so that news never wait for a thread behind readers, nor readers behind news.
_limiter: Final = trio.CapacityLimiter(4)


@dataclass
class _StaleEntries:
    """What the kernel has to forget: names by directory, attributes by inode.

    `moved` are the mailboxes that are elsewhere now, by the inode of the directory they had. Their
    emails are forgotten name by name: with a directory's own name goes only what is not in use at
    that moment, and not what an answer on its way to the kernel is about to bring.
    """

    names: set[tuple[int, str]] = field(default_factory=set)
    moved: dict[int, int] = field(default_factory=dict)
    attributes: set[int] = field(default_factory=set)


class CacheInvalidator:
    """Keeps the kernel's picture of one account true, from the state that `reader` has now on.

    `outward` turns the account's inodes into those that the kernel knows. `coming` is called
    in the event loop before the kernel is told any news.
    """

    def __init__(
        self, reader: IndexReader, outward: Callable[[int], int], coming: Callable[[], None]
    ) -> None:
        self._reader = reader
        self._outward = outward
        self._coming = coming
        self._lock = trio.Lock()
        self._held = False
        self._stopped = False
        with reader.pinned():
            self._position = reader.journal_position()
            self._layout_version = reader.layout_version()
            self._layout = lay_out(reader.mailboxes())

    async def tell(self) -> None:
        """Tell the kernel what changed; return when it knows. Held back while frozen."""
        async with self._lock:
            if not self._held:
                await self._tell(self._reader)

    def hold_back(self) -> None:
        """Tell nothing from now on but by `tell_up_to`, until `let_go`."""
        self._held = True

    def let_go(self) -> None:
        """Let `tell` tell again what there is."""
        self._held = False

    async def tell_up_to(self, reader: IndexReader) -> None:
        """Tell what leads up to the state of a pinned reader."""
        async with self._lock:
            await self._tell(reader)

    def stop(self) -> None:
        """Tell nothing more: the mount is about to go."""
        self._stopped = True

    async def _tell(self, reader: IndexReader) -> None:
        with sqlite_errors("read the index"):
            stale, picture = await trio.to_thread.run_sync(self._compare, reader, limiter=_limiter)
        # Always: that the server went, or came back, is in no journal but in `.jmapfs.json`.
        self._coming()
        # At the end of a mount nobody may be left to answer what the kernel waits for.
        await trio.to_thread.run_sync(self._drop, stale, limiter=_limiter, abandon_on_cancel=True)
        self._position, self._layout_version, self._layout = picture

    def _compare(self, reader: IndexReader) -> tuple[_StaleEntries, tuple[int, int, Layout]]:
        with reader.pinned():
            part = reader.journal_after(self._position)
            version = reader.layout_version()
            layout = self._layout
            if version != self._layout_version:
                layout = lay_out(reader.mailboxes())
            stale = _stale(part, self._layout, layout)
            for inode, mailbox in stale.moved.items():
                stale.names |= {(inode, name.decode()) for name in reader.listing(mailbox).names}
        return stale, (part.position, version, layout)

    def _drop(self, stale: _StaleEntries) -> None:
        for directory, name in stale.names:
            if self._stopped:
                return
            _drop_name(self._outward(directory), name)
        for inode in stale.attributes:
            if self._stopped:
                return
            _drop_attributes(self._outward(inode))
        if not self._stopped:
            # Small, and it may differ each time: content and all.
            _drop_everything(self._outward(STATUS_FILE_INODE))


def _stale(part: JournalPart, before: Layout, after: Layout) -> _StaleEntries:
    stale = _StaleEntries()
    if not part.whole:
        # Too far behind to know: with a top-level name the kernel forgets all that is below it.
        stale.names.update((ROOT_INODE, name) for name in before.root.children)
        stale.attributes.update(before.directories)
    inodes_of = [
        {place.mailbox: inode for inode, place in layout.directories.items()}
        for layout in (before, after)
    ]
    for entry in part.entries:
        stale.attributes.add(entry.inode)
        for inodes in inodes_of:
            if entry.name and (directory := inodes.get(entry.mailbox)) is not None:
                stale.names.add((directory, entry.name))
                stale.attributes.add(directory)
    if before is not after:
        for one, other in ((before, after), (after, before)):
            for inode, place in one.directories.items():
                elsewhere = other.directories.get(inode)
                if elsewhere is None or elsewhere.mailbox != place.mailbox:
                    stale.names.add((place.parent, place.name))
                    stale.attributes |= {place.parent, inode}
                    if one is before and place.mailbox is not None:
                        stale.moved[inode] = place.mailbox
    return stale


def _drop_name(directory: int, name: str) -> None:
    with _unknown_is_fine():
        pyfuse3.invalidate_entry(pyfuse3.InodeT(directory), pyfuse3.FileNameT(name.encode()))


def _drop_attributes(inode: int) -> None:
    with _unknown_is_fine():
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=True)


def _drop_everything(inode: int) -> None:
    with _unknown_is_fine():
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))


@contextlib.contextmanager
def _unknown_is_fine() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        # The kernel has never heard of it, or has forgotten it by itself.
        pass
    except OSError as error:
        _log.info("the kernel does not take the news: %s", error)
