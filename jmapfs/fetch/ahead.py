"""Reading ahead across files: what a program will read next is there before it asks.

A reader is recognized by what it reads: a few files near each other in one directory. What it only
opens never counts. From then on a `Stream` says how far ahead to fetch, from the disk cache or the
server, and the content goes into the kernel's page cache, so that the reader sends no READ at all.

Everything runs in the event loop but SQL that grows, the disk, and the kernel. Nothing here fails a
read: what cannot be had ahead is fetched when it is asked for.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Final

import trio

from jmapfs.cache import DiskCache
from jmapfs.fetch.content import Content
from jmapfs.fetch.stream import FIRST_CHUNK, Stream
from jmapfs.fetch.supply import PageCache, ShownFiles, Supply
from jmapfs.index import IndexReader, PlacedFile

_log = logging.getLogger(__name__)

# Two files read among the eight before this one: that is a reader. Programs that read in parallel,
# or in the order of inodes, do not take them strictly in turn.
_NEAR: Final = 8
_ENOUGH_NEAR: Final = 2
# How far behind the last chunk a read may be, and still be that of the stream.
_SLACK: Final = 64
_RECENT_SECONDS: Final = 60.0
_RECENT_NAMES: Final = 64
# A reader that has come to the end of a directory and goes on with another does so at once.
_NEXT_DIRECTORY_SECONDS: Final = 5.0
_ACTIVE_SECONDS: Final = 10.0
_MOST_STREAMS: Final = 16


class _Pursuit:
    """A reader that is read ahead for: its stream, and what brings the files."""

    def __init__(self, stream: Stream, supply: Supply) -> None:
        self.stream = stream
        self.supply = supply
        self.extending = False
        self.exhausted = False
        self.starved = False


class ReadAhead:
    """Reads ahead for the readers of one account's tree.

    `reader` is for the event loop, `chunk_reader` for worker threads. `limit_bytes` bounds what has
    been fetched and not been read yet, for all readers together. Tasks run in `nursery`.
    """

    def __init__(
        self,
        content: Content,
        disk: DiskCache,
        page_cache: PageCache,
        reader: IndexReader,
        chunk_reader: IndexReader,
        nursery: trio.Nursery,
        *,
        limit_bytes: int,
    ) -> None:
        self._content = content
        self._disk = disk
        self._page_cache = page_cache
        self._reader = reader
        self._chunk_reader = chunk_reader
        self._nursery = nursery
        self._limit_bytes = limit_bytes
        self._index_thread = trio.CapacityLimiter(1)
        self._threads = trio.CapacityLimiter(2)
        self._latest = 0
        self._shown = ShownFiles()
        self._pursuits: OrderedDict[_Pursuit, None] = OrderedDict()
        self._watched: dict[int, _Pursuit] = {}
        self._recent: defaultdict[int, OrderedDict[str, float]] = defaultdict(OrderedDict)

    def note(self, inode: int) -> None:
        """Take note that a file is being read from its beginning: by a READ, not an OPEN."""
        if inode == self._latest:
            return
        self._latest = inode
        try:
            self._take_note(inode)
        except sqlite3.Error as error:
            _log.info("nothing is read ahead: %s", error)
        except Exception:  # noqa: BLE001 - a bug here must not fail a read
            _log.exception("a bug in reading ahead")

    def _take_note(self, inode: int) -> None:
        self._shown.asked_for(inode)
        pursuit = self._watched.get(inode)
        if pursuit is None:
            for mailbox, name in self._reader.places(inode):
                self._look_around(mailbox, name)
            return
        self._use(pursuit)
        if pursuit.stream.read(inode) or pursuit.starved:
            self._extend(pursuit)

    def _use(self, pursuit: _Pursuit) -> None:
        pursuit.stream.used_at = trio.current_time()
        self._pursuits.move_to_end(pursuit)

    def _look_around(self, mailbox: int, name: str) -> None:
        now = trio.current_time()
        recent = self._recent[mailbox]
        recent[name] = now
        while len(recent) > _RECENT_NAMES:
            recent.popitem(last=False)
        before = self._reader.names_before(mailbox, name, _SLACK)
        for pursuit in self._pursuits:
            stream = pursuit.stream
            # One that came to the end of its directory is none of mail that arrived behind it.
            if stream.mailbox != mailbox or pursuit.exhausted:
                continue
            if before and before[-1] <= stream.end < name:
                self._use(pursuit)
                if not pursuit.extending:
                    stream.passed()
                    self._extend(pursuit)
                return
        since = now - _RECENT_SECONDS
        near = sum(recent.get(one, since) > since for one in before[:_NEAR])
        if near >= _ENOUGH_NEAR:
            self._begin(Stream(mailbox, name))
        elif not before and (chunk := self._chunk_of_finished(now)):
            self._begin(Stream(mailbox, name, chunk))

    def _chunk_of_finished(self, now: float) -> int:
        """Return the chunk to begin with for who has just read another directory to its end."""
        finished = [
            pursuit.stream.chunk
            for pursuit in self._pursuits
            if pursuit.exhausted and pursuit.stream.used_at > now - _NEXT_DIRECTORY_SECONDS
        ]
        return max(FIRST_CHUNK, max(finished) // 4) if finished else 0

    def _begin(self, stream: Stream) -> None:
        supply = Supply(self._content, self._disk, self._page_cache, self._shown, self._threads)
        pursuit = _Pursuit(stream, supply)
        self._pursuits[pursuit] = None
        self._use(pursuit)
        while len(self._pursuits) > _MOST_STREAMS:
            oldest, _ = self._pursuits.popitem(last=False)
            oldest.exhausted = True
            oldest.supply.stop()
            self._unwatch(oldest, oldest.stream.inodes)
        self._extend(pursuit)

    def _unwatch(self, pursuit: _Pursuit, inodes: Sequence[int]) -> None:
        for inode in inodes:
            if self._watched.get(inode) is pursuit:
                del self._watched[inode]

    def _extend(self, pursuit: _Pursuit) -> None:
        if not pursuit.extending and not pursuit.exhausted:
            pursuit.extending = True
            self._nursery.start_soon(self._bring_chunk, pursuit)

    async def _bring_chunk(self, pursuit: _Pursuit) -> None:
        try:
            await self._bring_next(pursuit)
        except Exception:  # noqa: BLE001 - a bug here must not take the mount with it
            _log.exception("a bug in reading ahead")

    async def _bring_next(self, pursuit: _Pursuit) -> None:
        stream = pursuit.stream
        try:
            files = await trio.to_thread.run_sync(
                self._chunk_reader.files_after,
                stream.mailbox,
                stream.end,
                stream.chunk,
                limiter=self._index_thread,
            )
        except sqlite3.Error as error:
            _log.info("nothing is read ahead: %s", error)
            files = []
        finally:
            pursuit.extending = False
        if pursuit.exhausted or not files:
            pursuit.exhausted = True
            return
        share, room = self._share(), self._room()
        chunk = _fitting(files, share, room)
        pursuit.starved = not chunk
        if not chunk:
            return
        marks, dropped = stream.extend(chunk, self._recent[stream.mailbox])
        pursuit.supply.marks |= marks
        pursuit.supply.marks.difference_update(dropped)
        self._unwatch(pursuit, dropped)
        self._watched.update((file.inode, pursuit) for file in chunk)
        await pursuit.supply.bring([file for file in chunk if 0 < file.size <= share])

    def _active(self) -> list[Stream]:
        since = trio.current_time() - _ACTIVE_SECONDS
        return [one.stream for one in self._pursuits if one.stream.used_at > since]

    def _share(self) -> int:
        """Return how many bytes a chunk may have at most: there are two for each reader."""
        return self._limit_bytes // (2 * max(1, len(self._active())))

    def _room(self) -> int:
        """Return how many bytes may be fetched before some have been read."""
        return self._limit_bytes - sum(stream.unread_bytes for stream in self._active())


def _fitting(files: Sequence[PlacedFile], share: int, room: int) -> Sequence[PlacedFile]:
    """Return the first files that have no more than `share` and `room` bytes together.

    One that is larger than any chunk is left to who reads it: it is a chunk, and is not fetched.
    """
    if files[0].size > share:
        return files[:1]
    total = 0
    for count, file in enumerate(files):
        total += file.size
        if total > min(share, room):
            return files[:count]
    return files
