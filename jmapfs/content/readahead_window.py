"""How far to read ahead for one program that reads a directory file after file.

Content that is read ahead goes into the kernel's page cache, which then answers without a READ. So
a few files of each chunk are probes. The content of a probe is kept in memory instead, and the READ
of a probe shows the position of the reader. When the reader enters the newest chunk, the next chunk
is due. Each chunk is twice as long as the last. The kernel reads ahead within a file by this scheme
(mm/readahead.c).

This module only computes; it fetches nothing.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Final

from jmapfs.index.rows import NamedFile

FIRST_CHUNK: Final = 8
"""The number of files in the first chunk."""

LARGEST_CHUNK: Final = 512
"""The largest number of files in a chunk."""

_PROBE_EVERY: Final = 64
_SHRINK_FACTOR: Final = 4
# How many chunks stay in the window. An older chunk is still being read when a chunk is added.
_KEPT_CHUNKS: Final = 3


class ReadaheadWindow:
    """The last chunks requested for one reader of a mailbox; `end` is the name of their last file.

    `chunk` is the number of files that the next chunk should have. `unread_bytes` is the size of
    the files that were requested but not read yet. `used_at` is the time of the reader's last READ.
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
        self._newest_chunk = 0
        self._probes: dict[int, bool] = {}

    @property
    def inodes(self) -> list[int]:
        """The files of the last chunks."""
        return list(self._positions)

    def extend(
        self, files: Sequence[NamedFile], read_names: Collection[str] = ()
    ) -> tuple[set[int], list[int]]:
        """Add a chunk; return the inodes of its probes, and the inodes that left the window.

        `read_names` are the names of files that were read already. These files cannot be probes.
        """
        inodes = [file.inode for file in files]
        self._newest_chunk = self._next_position
        probes = set()
        next_probe = self._newest_chunk
        for position, file in enumerate(files, self._newest_chunk):
            self._positions[file.inode] = position
            self._unread.append((position, file.size))
            self.unread_bytes += file.size
            if position >= next_probe and file.name not in read_names:
                self._probes[position] = False
                probes.add(file.inode)
                next_probe = position + _PROBE_EVERY
        self._next_position += len(inodes)
        self._chunks.append(inodes)
        self.end = files[-1].name
        dropped: list[int] = []
        while len(self._chunks) > _KEPT_CHUNKS:
            dropped += self._chunks.popleft()
        for inode in dropped:
            self._positions.pop(inode, None)
        return probes, dropped

    def record_read(self, inode: int) -> bool:
        """Record a READ of a file in the window; return whether the next chunk is due."""
        position = self._positions[inode]
        self._advance_to(position)
        if position in self._probes:
            self._probes[position] = True
        if position < self._newest_chunk:
            return False
        self._adapt_chunk(position)
        # Other READs in the same chunk must not make another chunk due.
        self._newest_chunk = self._next_position
        return True

    def record_passed(self) -> None:
        """Record that the reader has passed the newest chunk, so that the next chunk is due."""
        self._advance_to(self._next_position)
        self._adapt_chunk(self._next_position)
        self._newest_chunk = self._next_position

    def _advance_to(self, position: int) -> None:
        while self._unread and self._unread[0][0] <= position:
            self.unread_bytes -= self._unread.popleft()[1]

    def _adapt_chunk(self, position: int) -> None:
        passed = [read for probe, read in self._probes.items() if probe <= position]
        self._probes = {probe: read for probe, read in self._probes.items() if probe > position}
        if 2 * sum(passed) > len(passed):
            self.chunk = min(2 * self.chunk, LARGEST_CHUNK)
        elif passed:
            self.chunk = max(self.chunk // _SHRINK_FACTOR, FIRST_CHUNK)
