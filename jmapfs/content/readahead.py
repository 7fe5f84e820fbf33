"""Reading ahead across files: what a program will read next is there before it asks.

A reader is recognized by what it reads: a few files near each other in one directory. What it only
opens never counts. From then on a `ReadaheadWindow` says how far ahead to fetch, from the disk
cache or the server, and the content goes into the kernel's page cache, so that the reader sends
no READ at all.

Everything runs in the event loop but SQL that grows, the disk, and the kernel. Nothing here fails a
read: what cannot be had ahead is fetched when it is asked for.

One program reading one directory, file after file: how far to read ahead of it.

What is read ahead goes into the kernel's page cache, where it is read without a word to us. So
that we hear of it, a few files in each chunk are marks: they are kept here instead, and a READ of
one says how far the reader has come. When it enters the newest chunk the next one is due, twice as
long. The kernel reads ahead within a file by the same scheme (mm/readahead.c).

Pure bookkeeping: nothing is fetched here.

Getting a chunk of files near: out of the disk cache or from the server, into the page cache.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.content.batch_download import DownloadQueue
from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import Download
from jmapfs.index.reader import IndexReader, NamedFile

FIRST_CHUNK: Final = 8
"""Files in the first chunk."""

LARGEST_CHUNK: Final = 512
"""Files in a chunk, at most."""

_MARK_EVERY: Final = 64
_SLOWER: Final = 4


class ReadaheadWindow:
    """The chunks that were ordered for one reader of a mailbox, behind the name `end`.

    `chunk` is how many files the next one is to have. `unread_bytes` is how much of what was
    ordered the reader has not come to yet, and `used_at` when it was last heard of.
    """

    def __init__(self, mailbox: int, end: str, chunk: int = FIRST_CHUNK) -> None:
        self.mailbox = mailbox
        self.end = end
        self.chunk = chunk
        self.used_at = 0.0
        self.unread_bytes = 0
        self._unread: deque[tuple[int, int]] = deque()
        self._positions: dict[int, int] = {}
        self._chunks: deque[list[int]] = deque()
        self._next_position = 0
        self._newest = 0
        self._marks: dict[int, bool] = {}

    def __contains__(self, inode: int) -> bool:
        """Tell whether a file is in one of the last chunks."""
        return inode in self._positions

    @property
    def inodes(self) -> list[int]:
        """The files of the last chunks."""
        return list(self._positions)

    def extend(
        self, files: Sequence[NamedFile], overtaken: Collection[str] = ()
    ) -> tuple[set[int], list[int]]:
        """Add a chunk; return the inodes of its marks, and those that are no longer watched.

        `overtaken` are names that have been read already: they cannot be marks.
        """
        inodes = [file.inode for file in files]
        self._newest = self._next_position
        marks = set()
        next_mark = self._newest
        for position, file in enumerate(files, self._newest):
            self._positions[file.inode] = position
            self._unread.append((position, file.size))
            self.unread_bytes += file.size
            if position >= next_mark and file.name not in overtaken:
                self._marks[position] = False
                marks.add(file.inode)
                next_mark = position + _MARK_EVERY
        self._next_position += len(inodes)
        self._chunks.append(inodes)
        self.end = files[-1].name
        dropped: list[int] = []
        # The one before the newest is still being read.
        while len(self._chunks) > 3:
            dropped += self._chunks.popleft()
        for inode in dropped:
            self._positions.pop(inode, None)
        return marks, dropped

    def read(self, inode: int) -> bool:
        """Note that a file of a chunk is being read; return whether the next chunk is due."""
        position = self._positions[inode]
        self._come_to(position)
        if position in self._marks:
            self._marks[position] = True
        if position < self._newest:
            return False
        self._adapt(position)
        # Once for each chunk.
        self._newest = self._next_position
        return True

    def passed(self) -> None:
        """Note that the reader has come out of the newest chunk: the next one is due."""
        self._come_to(self._next_position)
        self._adapt(self._next_position)
        self._newest = self._next_position

    def _come_to(self, position: int) -> None:
        while self._unread and self._unread[0][0] <= position:
            self.unread_bytes -= self._unread.popleft()[1]

    def _adapt(self, position: int) -> None:
        before = [read for mark, read in self._marks.items() if mark <= position]
        self._marks = {mark: read for mark, read in self._marks.items() if mark > position}
        used = sum(before)
        if 2 * used > len(before):
            self.chunk = min(2 * self.chunk, LARGEST_CHUNK)
        elif before:
            self.chunk = max(self.chunk // _SLOWER, FIRST_CHUNK)


# What one look at the disk cache brings: much of it would make a reader wait who wants the first.
_GROUP_FILES: Final = 64
_GROUP_BYTES: Final = 1024 * 1024

_MOST_SHOWN: Final = 32_768

_Expected = tuple[NamedFile, Download]


class KernelPageCache(Protocol):
    """The kernel's memory of what files contain."""

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        """Hand contents (by inode) to the kernel; return the inodes it did not take.

        For worker threads.
        """
        ...


class ShownFiles:
    """The inodes whose content the kernel has been shown, or has asked for, not long ago."""

    def __init__(self) -> None:
        self._inodes: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, inode: int) -> bool:
        """Tell whether the kernel probably has the content."""
        return inode in self._inodes

    def add(self, inodes: Iterable[int]) -> None:
        """Note that the kernel has been given contents."""
        self._inodes.update(dict.fromkeys(inodes))
        while len(self._inodes) > _MOST_SHOWN:
            self._inodes.popitem(last=False)

    def asked_for(self, inode: int) -> None:
        """Note that the kernel asks for a content; if it had that, it has lost what it had."""
        if inode in self._inodes:
            self._inodes.clear()
        self.add([inode])


class ChunkLoader:
    """Brings the files that one reader is going to read, in the order in which it asks for them.

    What the kernel takes is not kept in memory as well. `marks` are inodes whose content is kept
    here instead of there; what is among `shown` is not brought again.
    """

    def __init__(
        self,
        content: ContentService,
        disk: DiskCache,
        page_cache: KernelPageCache,
        shown: ShownFiles,
        threads: trio.CapacityLimiter,
    ) -> None:
        self.marks: set[int] = set()
        self._content = content
        self._disk = disk
        self._page_cache = page_cache
        self._shown = shown
        self._threads = threads
        self._lane = DownloadQueue(self._show)
        self._awaited: dict[str, NamedFile] = {}

    def stop(self) -> None:
        """Bring nothing that is not under way."""
        self._lane.withdraw()

    async def bring(self, files: Sequence[NamedFile]) -> None:
        """Bring files; return when what the disk cache has is here, and the rest is ordered."""
        expected: list[_Expected] = []
        near: list[tuple[int, bytes]] = []
        for file in files:
            if file.inode in self._shown:
                continue
            flight = self._content.expect(file.blob_id)
            if flight is not None:
                self._content.put_off(flight, file.size)
                expected.append((file, flight))
            elif (data := self._content.near(file.blob_id)) is not None:
                near += self._for_kernel(file, data)
        left = deque(expected)
        try:
            await self._store(near)
            if left:
                await self._bring_expected(left)
        finally:
            for _, flight in left:
                if flight.claim():
                    flight.withdraw()

    async def _bring_expected(self, expected: deque[_Expected]) -> None:
        """Bring what is expected, and take it out from there as it is seen to."""
        missing = partial(self._disk.missing, [file.blob_id for file, _ in expected])
        absent = set(await trio.to_thread.run_sync(missing, limiter=self._threads))
        ordered = [one for one in expected if one[0].blob_id in absent]
        present = [one for one in expected if one[0].blob_id not in absent]
        expected.clear()
        self._order(ordered)
        expected.extend(present)
        while expected:
            await self._recall(_next_group(expected))

    def _order(self, expected: Sequence[_Expected]) -> None:
        # Not those that somebody came to wait for meanwhile: they fly already.
        ordered = [one for one in expected if one[1].claim()]
        self._awaited.update((file.blob_id, file) for file, _ in ordered)
        self._content.order(self._lane, [(flight, file.size) for file, flight in ordered])

    async def _recall(self, group: Sequence[_Expected]) -> None:
        """Deliver files from the disk cache; a large one is near enough there."""
        small = [file.blob_id for file, _ in group if file.size <= SMALL_BYTES]
        try:
            load = partial(self._disk.load_many, small)
            found = await trio.to_thread.run_sync(load, limiter=self._threads)
            self._awaited.update((file.blob_id, file) for file, _ in group)
            arrived = [
                (flight, found[file.blob_id]) for file, flight in group if file.blob_id in found
            ]
            await self._content.recall(arrived, self._show)
        finally:
            for _, flight in group:
                if not flight.landed:
                    flight.withdraw()

    async def _show(self, contents: Sequence[tuple[str, bytes]]) -> set[str]:
        """Hand contents to the kernel; return the blob ids of those that it took."""
        files = [(self._awaited.pop(blob_id, None), data) for blob_id, data in contents]
        pages = [page for file, data in files if file for page in self._for_kernel(file, data)]
        taken = await self._store(pages)
        return {file.blob_id for file, _ in files if file and file.inode in taken}

    def _for_kernel(self, file: NamedFile, data: bytes) -> list[tuple[int, bytes]]:
        # With another size the kernel would change the file's; who reads it finds that out.
        if file.inode in self.marks or len(data) != file.size:
            return []
        return [(file.inode, data)]

    async def _store(self, pages: Sequence[tuple[int, bytes]]) -> set[int]:
        if not pages:
            return set()
        store = partial(self._page_cache.store, pages)
        # The kernel may wait for an answer of ours: at the end of a mount there is none.
        refused = await trio.to_thread.run_sync(
            store, limiter=self._threads, abandon_on_cancel=True
        )
        taken = {inode for inode, _ in pages} - refused
        self._shown.add(taken)
        return taken


def _next_group(expected: deque[_Expected]) -> list[_Expected]:
    """Take the first files that make one look at the disk cache, and begin their flights."""
    group: list[_Expected] = []
    size = 0
    while expected and len(group) < _GROUP_FILES:
        file, flight = expected[0]
        if group and size + file.size > _GROUP_BYTES:
            break
        expected.popleft()
        if flight.claim():
            group.append((file, flight))
            size += file.size
    return group


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


class _Reader:
    """A reader that is read ahead for: its stream, and what brings the files."""

    def __init__(self, stream: ReadaheadWindow, supply: ChunkLoader) -> None:
        self.stream = stream
        self.supply = supply
        self.extending = False
        self.exhausted = False
        self.starved = False


class Readahead:
    """Reads ahead for the readers of one account's tree.

    `reader` is for the event loop, `chunk_reader` for worker threads. `limit_bytes` bounds what has
    been fetched and not been read yet, for all readers together. Tasks run in `nursery`.
    """

    def __init__(
        self,
        content: ContentService,
        disk: DiskCache,
        page_cache: KernelPageCache,
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
        self._pursuits: OrderedDict[_Reader, None] = OrderedDict()
        self._watched: dict[int, _Reader] = {}
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

    def _use(self, pursuit: _Reader) -> None:
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
            self._begin(ReadaheadWindow(mailbox, name))
        elif not before and (chunk := self._chunk_of_finished(now)):
            self._begin(ReadaheadWindow(mailbox, name, chunk))

    def _chunk_of_finished(self, now: float) -> int:
        """Return the chunk to begin with for who has just read another directory to its end."""
        finished = [
            pursuit.stream.chunk
            for pursuit in self._pursuits
            if pursuit.exhausted and pursuit.stream.used_at > now - _NEXT_DIRECTORY_SECONDS
        ]
        return max(FIRST_CHUNK, max(finished) // 4) if finished else 0

    def _begin(self, stream: ReadaheadWindow) -> None:
        supply = ChunkLoader(
            self._content, self._disk, self._page_cache, self._shown, self._threads
        )
        pursuit = _Reader(stream, supply)
        self._pursuits[pursuit] = None
        self._use(pursuit)
        while len(self._pursuits) > _MOST_STREAMS:
            oldest, _ = self._pursuits.popitem(last=False)
            oldest.exhausted = True
            oldest.supply.stop()
            self._unwatch(oldest, oldest.stream.inodes)
        self._extend(pursuit)

    def _unwatch(self, pursuit: _Reader, inodes: Sequence[int]) -> None:
        for inode in inodes:
            if self._watched.get(inode) is pursuit:
                del self._watched[inode]

    def _extend(self, pursuit: _Reader) -> None:
        if not pursuit.extending and not pursuit.exhausted:
            pursuit.extending = True
            self._nursery.start_soon(self._bring_chunk, pursuit)

    async def _bring_chunk(self, pursuit: _Reader) -> None:
        try:
            await self._bring_next(pursuit)
        except Exception:  # noqa: BLE001 - a bug here must not take the mount with it
            _log.exception("a bug in reading ahead")

    async def _bring_next(self, pursuit: _Reader) -> None:
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

    def _active(self) -> list[ReadaheadWindow]:
        since = trio.current_time() - _ACTIVE_SECONDS
        return [one.stream for one in self._pursuits if one.stream.used_at > since]

    def _share(self) -> int:
        """Return how many bytes a chunk may have at most: there are two for each reader."""
        return self._limit_bytes // (2 * max(1, len(self._active())))

    def _room(self) -> int:
        """Return how many bytes may be fetched before some have been read."""
        return self._limit_bytes - sum(stream.unread_bytes for stream in self._active())


def _fitting(files: Sequence[NamedFile], share: int, room: int) -> Sequence[NamedFile]:
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
