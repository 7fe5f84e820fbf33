"""What a program reads in a directory: which files, and in which direction.

A *selection* is all files, every n-th file, or the files of some sizes. `recognize` finds it from
the files beside the one that is being read. `ReadHistory` remembers what was read a short time ago,
and where a selection was wrong.
"""

import itertools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import trio

from jmapfs.index.rows import NamedFile

NEIGHBOURS: Final = 32
"""`recognize` needs this many files on each side."""

LEAST_DENSITY: Final = 0.88
"""The least part of the files that a program must read, so that less than a fifth of the data is
fetched in vain."""

# If a program skips files without a pattern, so many files near each other must have been read.
_NEEDED_AFTER_SKIPS: Final = 6
# The same after a program in this directory has not read what was expected: once, twice, …
_NEEDED_AFTER_FAILURES: Final = (6, 12, 24)
# Sizes divide files that are read from others only if there are some of both.
_LEAST_READ: Final = 4
_LEAST_SKIPPED: Final = 2
_LEAST_SIZES: Final = 8
# The same distance three times in a row is a stride.
_LEAST_GAPS: Final = 3
_LARGEST_STRIDE: Final = 8

_RECENT_SECONDS: Final = 60.0
_RECENT_NAMES: Final = 64
# With all their names, so many mailboxes take about 16 MB.
_RECENT_MAILBOXES: Final = 1024
_TREND_READS: Final = 8


class Selection:
    """Which files of a directory a program reads: every `stride`-th, and those of some sizes.

    The sizes are learned: if the program skips only files that are larger than all files that it
    reads, or only smaller ones, the other files are not accepted.
    """

    def __init__(self, stride: int = 1) -> None:
        self.stride = stride
        self._read: list[int] = []
        self._skipped: list[int] = []

    def record(self, size: int, *, read: bool) -> None:
        """Record that the program has read or skipped a file of this size."""
        sizes = self._read if read else self._skipped
        sizes.append(size)
        if len(sizes) > _LEAST_SIZES:
            # Only the extremes matter, and how many there are.
            sizes.sort()
            del sizes[len(sizes) // 2]

    def accepts(self, size: int) -> bool:
        """Return whether the program probably reads a file of this size."""
        if len(self._read) < _LEAST_READ or len(self._skipped) < _LEAST_SKIPPED:
            return True
        if max(self._read) < min(self._skipped):
            return size < min(self._skipped)
        if max(self._skipped) < min(self._read):
            return size > max(self._skipped)
        return True

    @property
    def has_limit(self) -> bool:
        """Whether the program reads only files of some sizes."""
        return bool(self._skipped) and not all(map(self.accepts, self._skipped))


Neighbour = tuple[int, bool | None]
"""The size of a file, and whether it was read a short time ago; None if that is not known."""


def recognize(size: int, neighbours: Sequence[Neighbour], needed: int) -> Selection | None:
    """Return what a program reads that has come to a file of `size` bytes, or None.

    `neighbours` are the files on the side that it came from, the nearest first. At least `needed`
    of them must have been read. None: so few of them were read that nothing can be predicted.
    """
    # The file itself counts, too.
    read, skipped, longest_run, is_dense = 1, 0, 0, False
    for _, was_read in neighbours:
        read += was_read is True
        skipped += was_read is False
        if was_read:
            is_dense = read >= LEAST_DENSITY * (read + skipped)
            longest_run = read - 1 if is_dense else longest_run
    if longest_run >= (needed if is_dense else max(needed, _NEEDED_AFTER_SKIPS)):
        return Selection()
    return _stride(neighbours) or _sizes(size, neighbours)


def count_read(neighbours: Sequence[Neighbour]) -> int:
    """Return how many of the nearest files were read, up to the first that was not."""
    near = itertools.takewhile(lambda each: each[1] is not False, neighbours)
    return sum(was_read is True for _, was_read in near)


def _stride(neighbours: Sequence[Neighbour]) -> Selection | None:
    positions = [0]
    for position, (_, was_read) in enumerate(neighbours, 1):
        if was_read is None:
            break
        if was_read:
            positions.append(position)
    positions = positions[: _LEAST_GAPS + 1]
    gaps = {second - first for first, second in itertools.pairwise(positions)}
    if len(positions) <= _LEAST_GAPS or len(gaps) > 1:
        return None
    [stride] = gaps
    return Selection(stride) if 1 < stride <= _LARGEST_STRIDE else None


def _sizes(size: int, neighbours: Sequence[Neighbour]) -> Selection | None:
    selection = Selection()
    selection.record(size, read=True)
    # What lies before the first file that was read was not skipped.
    count = max((at for at, (_, was_read) in enumerate(neighbours, 1) if was_read), default=0)
    known = 1
    for neighbour, was_read in neighbours[:count]:
        if was_read is not None:
            selection.record(neighbour, read=was_read)
            known += 1
    return selection if selection.has_limit and known >= _LEAST_SIZES else None


class ReadHistory:
    """The files that were read recently, by mailbox and name, and the failures of read-ahead."""

    def __init__(self) -> None:
        self._read: OrderedDict[int, OrderedDict[str, float]] = OrderedDict()
        self._failures: defaultdict[int, list[float]] = defaultdict(list)
        self._failed_at = -math.inf

    def record_read(self, mailbox: int, name: str) -> None:
        """Record a READ of a file."""
        read = self._read.setdefault(mailbox, OrderedDict())
        self._read.move_to_end(mailbox)
        if len(self._read) > _RECENT_MAILBOXES:
            self._read.popitem(last=False)
        read[name] = trio.current_time()
        read.move_to_end(name)
        if len(read) > _RECENT_NAMES:
            read.popitem(last=False)

    def was_read(self, mailbox: int, name: str) -> bool:
        """Return whether a file was read recently."""
        since = trio.current_time() - _RECENT_SECONDS
        return self._recent(mailbox).get(name, -math.inf) > since

    def trend(self, mailbox: int, files: Iterable[NamedFile], name: str) -> int:
        """Return a positive number if some files and then `name` were read in ascending order.

        A negative number means that they were read in descending order.
        """
        read = self._recent(mailbox)
        names = sorted((one.name for one in files if one.name in read), key=read.__getitem__)
        latest = [*names[-_TREND_READS:], name]
        return sum(
            (first < second) - (first > second) for first, second in itertools.pairwise(latest)
        )

    def _recent(self, mailbox: int) -> OrderedDict[str, float]:
        return self._read.get(mailbox) or OrderedDict()

    def record_failure(self, mailbox: int) -> None:
        """Record that a program has not read what was expected."""
        self._failed_at = trio.current_time()
        self._failures[mailbox].append(self._failed_at)

    def forget_failures(self, mailbox: int) -> None:
        """Record that much was read as expected."""
        self._failures.pop(mailbox, None)
        self._failed_at = -math.inf

    @property
    def has_failed(self) -> bool:
        """Whether a program has not read what was expected, in any mailbox, a short time ago."""
        return self._failed_at > trio.current_time() - _RECENT_SECONDS

    def needed(self, mailbox: int, usual: int) -> int:
        """Return how many files beside another must have been read; `usual` if nothing failed."""
        since = trio.current_time() - _RECENT_SECONDS
        failures = [each for each in self._failures.pop(mailbox, []) if each > since]
        if failures:
            self._failures[mailbox] = failures
        if not failures and not self.has_failed:
            return usual
        most = len(_NEEDED_AFTER_FAILURES)
        return _NEEDED_AFTER_FAILURES[min(max(len(failures), 1), most) - 1]
