"""How far to read ahead for one program that reads a directory file after file.

A program reads forwards or backwards, all files or a *selection* (`reading_pattern`). A window
requests the files that the program will read next.

Content that is read ahead goes into the kernel's page cache, which then answers without a READ. So
some files of each chunk are probes. The content of a probe is kept in memory instead, and the READ
of a probe shows the position of the reader. When the reader enters the newest chunk, the next chunk
is due. Each chunk is twice as long as the last, as in the kernel (mm/readahead.c). If more than a
fifth of the probes are not read, the selection is wrong, and the window is closed.

This module only computes; it fetches nothing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from jmapfs.content.reading_pattern import LEAST_DENSITY, Selection
from jmapfs.index.rows import NamedFile

FIRST_CHUNK: Final = 8
"""The number of files in the first chunk."""

LARGEST_CHUNK: Final = 512
"""The largest number of files in a chunk."""

# All files of a small chunk are probes, later chunks have four of them or more.
_PROBES: Final = 4
_PROBE_EVERY: Final = 64
# So many probes must have been read before a chunk is longer than the last.
_ENOUGH_HITS: Final = 2
# How many chunks stay in the window. An older chunk is still being read when a chunk is added.
_KEPT_CHUNKS: Final = 3
# Threads of a program read about this many files at the same time, in any order.
_IN_PARALLEL: Final = 8
# So many files that are not in the selection may be read before the window is closed.
_MOST_UNEXPECTED: Final = 3


@dataclass(slots=True)
class _Probe:
    size: int
    was_read: bool = False


class ReadaheadWindow:
    """The last chunks requested for one reader of a mailbox; `end` is the name of their last file.

    A reader comes from smaller names, or with `backwards` from greater ones. `chunk` is the number
    of files that the next chunk should have. `unread_bytes` is the size of the files that were
    requested but not read yet. If `is_closed`, the program does not read what was expected.
    `is_parallel` is true if several processes read parts of the directory. A window that
    `is_cautious` grows only after probes were read.
    """

    def __init__(
        self,
        mailbox: int,
        end: str,
        chunk: int = FIRST_CHUNK,
        *,
        backwards: bool = False,
        selection: Selection | None = None,
        is_cautious: bool = False,
    ) -> None:
        self.mailbox = mailbox
        self.end = end
        self.chunk = chunk
        self.backwards = backwards
        self.selection = selection or Selection()
        self.is_closed = False
        self.unread_bytes = 0
        self._start = end
        self._unread: deque[tuple[int, int]] = deque()
        self._files: dict[int, tuple[int, NamedFile, bool]] = {}
        self._chunks: deque[Sequence[NamedFile]] = deque()
        self._next_position = 0
        self._newest_chunk = 0
        self._probes: dict[int, _Probe] = {}
        # A window begins after some files that were read. That proves little after a failure.
        self._hits, self._misses = 0.0 if is_cautious else float(_PROBES), 0.0
        self._unexpected = 0
        self._front = -1
        self._oldest_chunk = 0
        self.is_parallel = False
        self._is_doubted = False

    @property
    def inodes(self) -> list[int]:
        """The files of the last chunks."""
        return list(self._files)

    @property
    def start(self) -> str:
        """The first name that is still in the window."""
        return self._chunks[0][0].name if self._chunks else self._start

    @property
    def is_entered(self) -> bool:
        """Whether the reader has read a file in the window, or passed it."""
        return self._front >= 0

    def name_of(self, inode: int) -> str:
        """Return the name of a file in the window."""
        return self._files[inode][1].name

    def is_before(self, first: str, second: str) -> bool:
        """Return whether the reader comes to the first name before it comes to the second."""
        return second < first if self.backwards else first < second

    def choose(
        self, files: Sequence[NamedFile], is_known: Callable[[NamedFile], bool]
    ) -> list[NamedFile]:
        """Return the files for the next chunk among `files`, which follow the end of the window.

        Files that are known need not be fetched.
        """
        # An email that is twice in a mailbox has two names with one inode.
        chosen: dict[int, NamedFile] = {}
        for file in files[self.selection.stride - 1 :: self.selection.stride]:
            if len(chosen) == self.chunk:
                break
            if self.selection.accepts(file.size) and not is_known(file):
                chosen.setdefault(file.inode, file)
        return list(chosen.values())

    def extend(
        self, files: Sequence[NamedFile], chosen: Sequence[NamedFile] | None = None
    ) -> tuple[set[int], list[int]]:
        """Add a chunk; return the inodes of its probes, and the inodes that left the window.

        `files` follow the end of the window. `chosen` are those of them that are fetched, by
        default all.
        """
        chosen = files if chosen is None else chosen
        names = {file.name for file in chosen}
        is_small = len(chosen) <= FIRST_CHUNK
        spacing = 1 if is_small else min(len(chosen) // _PROBES, _PROBE_EVERY)
        # Without its READ, it would not be known whether much data was fetched in vain.
        large = sum(file.size for file in chosen) // FIRST_CHUNK
        self._newest_chunk = self._next_position
        probes = set()
        count = 0
        for position, file in enumerate(files, self._newest_chunk):
            self._files[file.inode] = position, file, self._is_expected(position, file)
            if file.name not in names:
                continue
            self._unread.append((position, file.size))
            self.unread_bytes += file.size
            if count % spacing == 0 or (file.size > large and not is_small):
                self._probes[position] = _Probe(file.size)
                probes.add(file.inode)
            count += 1
        self._next_position += len(files)
        self._chunks.append(files)
        self.end = files[-1].name
        dropped: list[int] = []
        while len(self._chunks) > _KEPT_CHUNKS:
            oldest = self._chunks.popleft()
            dropped += [file.inode for file in oldest]
            self._oldest_chunk += len(oldest)
        for inode in dropped:
            self._files.pop(inode, None)
        return probes, dropped

    def skip(self, files: Sequence[NamedFile]) -> None:
        """Move the end of the window behind files that need not be fetched."""
        whole = len(files) - len(files) % self.selection.stride
        self.end = files[max(whole, 1) - 1].name

    def set_parallel(self) -> None:
        """Record that several processes read parts of the directory."""
        if not self.is_parallel:
            self.is_parallel = True
            # Files that were taken for skipped may still be read.
            self._hits, self._misses, self._is_doubted = float(_PROBES), 0.0, False

    def record_read(self, inode: int) -> bool:
        """Record a READ of a file in the window; return whether the next chunk is due."""
        position, file, is_expected = self._files[inode]
        # A program that reads one file after the other does not come back.
        if position < self._front - _IN_PARALLEL:
            self.set_parallel()
        self._advance_to(position)
        if position in self._probes:
            self._probes[position].was_read = True
        elif not is_expected:
            self.selection.record(file.size, read=True)
            self._unexpected += 1
            self.is_closed |= self._unexpected > _MOST_UNEXPECTED
        if position < self._newest_chunk:
            return False
        self._adapt_chunk()
        # Other READs in the same chunk must not make another chunk due.
        self._newest_chunk = self._next_position
        return True

    def record_passed(self) -> None:
        """Record that the reader has passed the newest chunk, so that the next chunk is due."""
        self._advance_to(self._next_position)
        self._adapt_chunk()
        self._newest_chunk = self._next_position

    def _is_expected(self, position: int, file: NamedFile) -> bool:
        in_step = (position - self._newest_chunk + 1) % self.selection.stride == 0
        return in_step and self.selection.accepts(file.size)

    def _advance_to(self, position: int) -> None:
        self._front = max(self._front, position)
        while self._unread and self._unread[0][0] <= position:
            self.unread_bytes -= self._unread.popleft()[1]

    def _adapt_chunk(self) -> None:
        """Choose the length of the next chunk, or close the window."""
        # Threads of a program may still be about to read the last files. If processes read parts of
        # the directory, all files in the window may still be read.
        end = self._oldest_chunk if self.is_parallel else self._front - _IN_PARALLEL + 1
        probes = [self._probes.pop(each) for each in list(self._probes) if each < end]
        for probe in probes:
            self.selection.record(probe.size, read=probe.was_read)
        if probes:
            hits = sum(probe.was_read for probe in probes)
            # A size that is not accepted any more is not fetched again.
            misses = sum(
                not probe.was_read and self.selection.accepts(probe.size) for probe in probes
            )
            self._hits = self._hits / 2 + hits
            self._misses = self._misses / 2 + misses
        if self._hits >= LEAST_DENSITY * (self._hits + self._misses):
            self._is_doubted = False
            if self._hits >= _ENOUGH_HITS:
                self.chunk = min(2 * self.chunk, LARGEST_CHUNK)
        else:
            # Another process may be about to read the files: the next chunk shows that.
            self.is_closed |= self._is_doubted
            self._is_doubted = True
            self.chunk = FIRST_CHUNK
