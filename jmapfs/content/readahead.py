"""Read-ahead across files: the next files of a directory are fetched before they are read.

A reader (a program that reads a directory) is recognized by a few READs of files near each other;
opening a file does not count. Then a `ReadaheadWindow` decides how far ahead to fetch, and a
`ChunkLoader` loads the files from the disk cache or the server. Their content goes into the
kernel's page cache, which answers most reads without a READ.

Three things run in worker threads: SQL that returns many rows, access to the disk cache, and
notifications to the kernel. Everything else runs in the event loop. A failure of read-ahead never
makes a read fail: the content is then fetched when it is read.
"""

import logging
import sqlite3
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.content.division import take_batch
from jmapfs.content.download_queue import DownloadQueue
from jmapfs.content.readahead_window import FIRST_CHUNK, ReadaheadWindow
from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import Download, DownloadState
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import NamedFile

_log = logging.getLogger(__name__)

# One access to the disk cache loads this much. A larger access would delay the first file.
_RECALL_FILES: Final = 64
_RECALL_BYTES: Final = 1024 * 1024

_MOST_PUBLISHED: Final = 32_768


class KernelPageCache(Protocol):
    """The kernel's cache of the content of files."""

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        """Hand contents (by inode) to the kernel; return the inodes that it did not take.

        For worker threads.
        """


class PublishedFiles:
    """The inodes whose content the kernel has received recently."""

    def __init__(self) -> None:
        self._inodes: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, inode: int) -> bool:
        """Tell whether the kernel probably has the content."""
        return inode in self._inodes

    def add(self, inodes: Iterable[int]) -> None:
        """Record that the kernel has received contents."""
        self._inodes.update(dict.fromkeys(inodes))
        while len(self._inodes) > _MOST_PUBLISHED:
            self._inodes.popitem(last=False)

    def record_read(self, inode: int) -> None:
        """Record a READ.

        If the kernel has received this content before, a READ shows that the kernel has dropped it,
        and probably the content of other files too. So all inodes are forgotten.
        """
        if inode in self._inodes:
            self._inodes.clear()
        self.add([inode])


class ChunkLoader:
    """Loads the next files for one reader, in the order of the calls.

    Content that the kernel takes is not kept in memory. The content of `probes` (inodes) is kept in
    memory and not given to the kernel. Files among `published` are not loaded again.
    """

    def __init__(
        self,
        content: ContentService,
        disk: DiskCache,
        page_cache: KernelPageCache,
        published: PublishedFiles,
        threads: trio.CapacityLimiter,
    ) -> None:
        self.probes: set[int] = set()
        self._content = content
        self._disk = disk
        self._page_cache = page_cache
        self._published = published
        self._threads = threads
        self._queue = DownloadQueue(self._publish)
        self._files: dict[str, NamedFile] = {}

    def stop(self) -> None:
        """Cancel all downloads that have not been started."""
        self._queue.cancel()

    async def load(self, files: Sequence[NamedFile]) -> None:
        """Load cached files from the disk, and queue downloads of the other files."""
        downloads: deque[Download] = deque()
        pages: list[tuple[int, bytes]] = []
        for file in files:
            if file.inode in self._published or self._content.failures.get(file.content_key):
                continue
            download = self._content.create_download(file.content_key, file.size)
            if download is not None:
                self._files[file.content_key] = file
                downloads.append(download)
            elif (data := self._content.cached(file.content_key)) is not None:
                pages += self._pages(file, data)
        try:
            await self._store(pages)
            if downloads:
                await self._load_uncached(downloads)
        finally:
            for download in downloads:
                download.cancel_queued()

    async def _load_uncached(self, downloads: deque[Download]) -> None:
        """Load what is not in memory; each download is removed once it is queued or started."""
        stored = partial(self._disk.sizes, [one.content_key for one in downloads])
        sizes = await trio.to_thread.run_sync(stored, limiter=self._threads)
        absent = {
            one.content_key
            for one in downloads
            if not self._has_size(one, sizes.get(one.content_key))
        }
        # Readers may have started some of the downloads meanwhile.
        queued = [one for one in downloads if one.state is DownloadState.QUEUED]
        downloads.clear()
        downloads.extend(one for one in queued if one.content_key not in absent)
        self._content.downloads.add(
            self._queue, (one for one in queued if one.content_key in absent)
        )
        while downloads:
            batch = take_batch(
                downloads, max_blobs=_RECALL_FILES, max_bytes=_RECALL_BYTES, accept=Download.start
            )
            if batch:
                await self._recall(batch)

    async def _recall(self, batch: Sequence[Download]) -> None:
        """Load small files from the disk cache; a READ of a large file uses the disk cache."""
        small = [one.content_key for one in batch if one.size <= SMALL_BYTES]
        try:
            load = partial(self._disk.load_many, small)
            found = await trio.to_thread.run_sync(load, limiter=self._threads)
            arrived = [
                (one, found[one.content_key])
                for one in batch
                if one.content_key in found and self._has_size(one, len(found[one.content_key]))
            ]
            await self._content.publish(arrived, self._publish)
        finally:
            for download in batch:
                if not download.ended:
                    download.cancel()

    def _has_size(self, download: Download, size: int | None) -> bool:
        return size is not None and self._content.accepts_size(
            download.content_key, download.size, size
        )

    async def _publish(self, contents: Sequence[tuple[str, bytes]]) -> set[str]:
        """Hand contents to the kernel; return the keys of those that the kernel took."""
        files = [(self._files.pop(key, None), data) for key, data in contents]
        pages = [page for file, data in files if file for page in self._pages(file, data)]
        taken = await self._store(pages)
        return {file.content_key for file, _ in files if file and file.inode in taken}

    def _pages(self, file: NamedFile, data: bytes) -> list[tuple[int, bytes]]:
        # Content of a different size would change the size of the file in the kernel. A READ
        # reports the wrong size, and the index is corrected.
        if file.inode in self.probes or len(data) != file.size:
            return []
        return [(file.inode, data)]

    async def _store(self, pages: Sequence[tuple[int, bytes]]) -> set[int]:
        if not pages:
            return set()
        store = partial(self._page_cache.store, pages)
        # The thread is abandoned if the mount ends: the kernel may make the thread wait for a READ,
        # and nothing answers READs any more.
        refused = await trio.to_thread.run_sync(
            store, limiter=self._threads, abandon_on_cancel=True
        )
        taken = {inode for inode, _ in pages} - refused
        self._published.add(taken)
        return taken


# If two of the eight files before this one were read recently, a program is reading the directory.
# Programs that read in parallel, or in inode order, do not read strictly in name order.
_NEAR: Final = 8
_ENOUGH_NEAR: Final = 2
# A READ belongs to a reader even if the file is this many files after the end of its window.
_SLACK: Final = 64
_RECENT_SECONDS: Final = 60.0
_RECENT_NAMES: Final = 64
# A reader that has finished a directory continues in the next one within this time.
_NEXT_DIRECTORY_SECONDS: Final = 5.0
_ACTIVE_SECONDS: Final = 10.0
_MOST_READERS: Final = 16


class _Reader:
    """A program that reads a directory. The next files are read ahead for it.

    `extending` is true while the next chunk is being chosen. `starved` is true if there was no room
    for the last chunk. `finished` is true at the end of the directory.
    """

    def __init__(self, window: ReadaheadWindow, loader: ChunkLoader) -> None:
        self.window = window
        self.loader = loader
        self.extending = False
        self.finished = False
        self.starved = False


class Readahead:
    """Reads ahead for all readers of one account's tree.

    The event loop uses `reader`; worker threads use `chunk_reader`. `limit_bytes` bounds the
    content that was requested but not read yet, for all readers together. Tasks run in `nursery`.
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
        self._published = PublishedFiles()
        self._readers: OrderedDict[_Reader, None] = OrderedDict()
        self._watched: dict[int, _Reader] = {}
        self._recent: defaultdict[int, OrderedDict[str, float]] = defaultdict(OrderedDict)

    def record_read(self, inode: int) -> None:
        """Record a READ of the beginning of a file; never raises an error."""
        if inode == self._latest:
            return
        self._latest = inode
        try:
            self._record_read(inode)
        except sqlite3.Error as error:
            _log.info("nothing is read ahead: %s", error)
        except Exception:  # noqa: BLE001 - a bug here must not fail a read
            _log.exception("a bug in reading ahead")

    def _record_read(self, inode: int) -> None:
        self._published.record_read(inode)
        reader = self._watched.get(inode)
        if reader is None:
            for mailbox, name in self._reader.names_of(inode):
                self._find_reader(mailbox, name)
            return
        self._mark_used(reader)
        if reader.window.record_read(inode) or reader.starved:
            self._extend(reader)

    def _mark_used(self, reader: _Reader) -> None:
        reader.window.used_at = trio.current_time()
        self._readers.move_to_end(reader)

    def _find_reader(self, mailbox: int, name: str) -> None:
        """Find the reader that has read a file outside all windows, or recognize a new reader."""
        now = trio.current_time()
        recent = self._recent[mailbox]
        recent[name] = now
        while len(recent) > _RECENT_NAMES:
            recent.popitem(last=False)
        before = self._reader.names_before(mailbox, name, _SLACK)
        for reader in self._readers:
            window = reader.window
            # A reader that has finished its directory will not read mail that arrives later.
            if window.mailbox != mailbox or reader.finished:
                continue
            if before and before[-1] <= window.end < name:
                self._mark_used(reader)
                if not reader.extending:
                    window.record_passed()
                    self._extend(reader)
                return
        since = now - _RECENT_SECONDS
        near = sum(recent.get(one, since) > since for one in before[:_NEAR])
        if near >= _ENOUGH_NEAR:
            self._add_reader(ReadaheadWindow(mailbox, name))
        elif not before and (chunk := self._chunk_of_finished_reader(now)):
            self._add_reader(ReadaheadWindow(mailbox, name, chunk))

    def _chunk_of_finished_reader(self, now: float) -> int:
        """If a reader has just finished another directory, return the first chunk, otherwise 0."""
        finished = [
            reader.window.chunk
            for reader in self._readers
            if reader.finished and reader.window.used_at > now - _NEXT_DIRECTORY_SECONDS
        ]
        return max(FIRST_CHUNK, max(finished) // 4) if finished else 0

    def _add_reader(self, window: ReadaheadWindow) -> None:
        loader = ChunkLoader(
            self._content, self._disk, self._page_cache, self._published, self._threads
        )
        reader = _Reader(window, loader)
        self._readers[reader] = None
        self._mark_used(reader)
        while len(self._readers) > _MOST_READERS:
            oldest, _ = self._readers.popitem(last=False)
            oldest.finished = True
            oldest.loader.stop()
            self._unwatch(oldest, oldest.window.inodes)
        self._extend(reader)

    def _unwatch(self, reader: _Reader, inodes: Sequence[int]) -> None:
        for inode in inodes:
            if self._watched.get(inode) is reader:
                del self._watched[inode]

    def _extend(self, reader: _Reader) -> None:
        if not reader.extending and not reader.finished:
            reader.extending = True
            self._nursery.start_soon(self._load_next_chunk, reader)

    async def _load_next_chunk(self, reader: _Reader) -> None:
        try:
            files = await self._next_chunk(reader)
            await reader.loader.load(files)
        except Exception:  # noqa: BLE001 - a bug must not end the mount
            _log.exception("a bug in reading ahead")

    async def _next_chunk(self, reader: _Reader) -> list[NamedFile]:
        """Extend the window of a reader, and return the files that have to be loaded."""
        window = reader.window
        try:
            files = await trio.to_thread.run_sync(
                self._chunk_reader.files_after,
                window.mailbox,
                window.end,
                window.chunk,
                limiter=self._index_thread,
            )
        except sqlite3.Error as error:
            _log.info("nothing is read ahead: %s", error)
            files = []
        finally:
            reader.extending = False
        if reader.finished or not files:
            reader.finished = True
            return []
        share, room = self._share(), self._room()
        chunk = _fitting(files, share, room)
        reader.starved = not chunk
        if not chunk:
            return []
        probes, dropped = window.extend(chunk, self._recent[window.mailbox])
        reader.loader.probes |= probes
        reader.loader.probes.difference_update(dropped)
        self._unwatch(reader, dropped)
        self._watched.update((file.inode, reader) for file in chunk)
        return [file for file in chunk if 0 < file.size <= share]

    def _active_windows(self) -> list[ReadaheadWindow]:
        since = trio.current_time() - _ACTIVE_SECONDS
        return [one.window for one in self._readers if one.window.used_at > since]

    def _share(self) -> int:
        """Return how many bytes a chunk may have. Each active reader has two chunks."""
        return self._limit_bytes // (2 * max(1, len(self._active_windows())))

    def _room(self) -> int:
        """Return how many bytes may still be requested before readers have read more."""
        return self._limit_bytes - sum(window.unread_bytes for window in self._active_windows())


def _fitting(files: Sequence[NamedFile], share: int, room: int) -> Sequence[NamedFile]:
    """Return the first files that have at most `share` and `room` bytes together.

    If the first file alone is larger than `share`, it is returned alone. The caller does not load
    such a file in advance.
    """
    if files[0].size > share:
        return files[:1]
    total = 0
    for count, file in enumerate(files):
        total += file.size
        if total > min(share, room):
            return files[:count]
    return files
