"""One program reading one directory, file after file: how far to read ahead of it.

What is read ahead goes into the kernel's page cache, where it is read without a word to us. So
that we hear of it, a few files in each chunk are marks: they are kept here instead, and a READ of
one says how far the reader has come. When it enters the newest chunk the next one is due, twice as
long. The kernel reads ahead within a file by the same scheme (mm/readahead.c).

Pure bookkeeping: nothing is fetched here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Final

from jmapfs.index import PlacedFile

FIRST_CHUNK: Final = 8
"""Files in the first chunk."""

LARGEST_CHUNK: Final = 512
"""Files in a chunk, at most."""

_MARK_EVERY: Final = 64
_SLOWER: Final = 4


class Stream:
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
        self, files: Sequence[PlacedFile], overtaken: Collection[str] = ()
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
