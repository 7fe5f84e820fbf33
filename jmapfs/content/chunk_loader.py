"""Loading the files of a chunk in advance, from the disk cache or the server.

Worker threads access the disk cache and notify the kernel. Everything else runs in the event loop.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.content.division import take_batch
from jmapfs.content.download_queue import DownloadQueue
from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import Download, DownloadState
from jmapfs.index.rows import NamedFile

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

    def __contains__(self, inode: object) -> bool:
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
    memory and not given to the kernel. What the kernel takes is added to `published`.
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
            if self._content.failures.get(file.content_key) is not None:
                continue
            download = self._content.create_download(file.content_key, file.size)
            if download is not None:
                download.is_imminent = True
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
        wanted = [one for one in queued if one.content_key in absent]
        self._content.downloads.add(self._queue, wanted)
        # A reader waits for a request that has begun, but not for the turn of a queue.
        for download in queued:
            download.release()
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
