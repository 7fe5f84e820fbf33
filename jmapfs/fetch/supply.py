"""Getting a chunk of files near: out of the disk cache or from the server, into the page cache."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from jmapfs.cache import SMALL_BYTES, DiskCache
from jmapfs.fetch.bulk import Lane
from jmapfs.fetch.content import Content
from jmapfs.fetch.flights import Flight
from jmapfs.index import PlacedFile

# What one look at the disk cache brings: much of it would make a reader wait who wants the first.
_GROUP_FILES: Final = 64
_GROUP_BYTES: Final = 1024 * 1024

_MOST_SHOWN: Final = 32_768

_Expected = tuple[PlacedFile, Flight]


class PageCache(Protocol):
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


class Supply:
    """Brings the files that one reader is going to read, in the order in which it asks for them.

    What the kernel takes is not kept in memory as well. `marks` are inodes whose content is kept
    here instead of there; what is among `shown` is not brought again.
    """

    def __init__(
        self,
        content: Content,
        disk: DiskCache,
        page_cache: PageCache,
        shown: ShownFiles,
        threads: trio.CapacityLimiter,
    ) -> None:
        self.marks: set[int] = set()
        self._content = content
        self._disk = disk
        self._page_cache = page_cache
        self._shown = shown
        self._threads = threads
        self._lane = Lane(self._show)
        self._awaited: dict[str, PlacedFile] = {}

    def stop(self) -> None:
        """Bring nothing that is not under way."""
        self._lane.withdraw()

    async def bring(self, files: Sequence[PlacedFile]) -> None:
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

    def _for_kernel(self, file: PlacedFile, data: bytes) -> list[tuple[int, bytes]]:
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
