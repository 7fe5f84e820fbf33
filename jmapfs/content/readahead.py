"""Read-ahead across files: the next files of a directory are fetched before they are read.

A reader (a program that reads a directory) is recognized by a few READs of files near each other;
opening a file does not count. Then a `ReadaheadWindow` decides which files to fetch, in which
direction and how far ahead. A `ChunkLoader` loads them from the disk cache or the server. Their
content goes into the kernel's page cache, which answers most reads without a READ.

SQL that returns many rows runs in worker threads. Everything else runs in the event loop. A failure
of read-ahead never makes a read fail: the content is then fetched when it is read.
"""

import itertools
import logging
import sqlite3
import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.content.chunk_loader import ChunkLoader, KernelPageCache, PublishedFiles
from jmapfs.content.readahead_window import FIRST_CHUNK, ReadaheadWindow
from jmapfs.content.reading_pattern import NEIGHBOURS, Neighbour, ReadHistory, count_read, recognize
from jmapfs.content.service import ContentService
from jmapfs.errors import StorageError
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import NamedFile

_log = logging.getLogger(__name__)

# How many of the files beside this one must have been read. Programs that read in parallel, or in
# inode order, do not read strictly in name order.
_NEEDED: Final = 2
# The same while another reader of the account is active: `xargs -P` reads parts of a directory.
_NEEDED_BESIDE_READERS: Final = 1
# A failure is forgotten when so many files at once were read ahead in this directory.
_GOOD_CHUNK: Final = 64
# A READ belongs to a reader even if the file is this many files after the end of its window.
_SLACK: Final = 16
# Unless it is more than this many files after the end, and another file before it was read.
_IN_PARALLEL: Final = 8
# So does a file that is this many files before its window: it was being read when the window began.
_BEFORE_WINDOW: Final = 8
# The direction of the last reader counts as much as this many READs in order: two threads of a
# program may read the first files in reverse order.
_USUAL_TREND: Final = 2
# A reader that has finished a directory continues in the next one within this time.
_NEXT_DIRECTORY_SECONDS: Final = 5.0
_ACTIVE_SECONDS: Final = 10.0
_MOST_READERS: Final = 16
_MOST_CANDIDATES: Final = 1024
# So few files are looked up in the event loop: a thread would take longer, and other READs of the
# same program would request the files one by one meanwhile.
_FEW_CANDIDATES: Final = 64


class _Reader:
    """A program that reads a directory. The next files are read ahead for it.

    `used_at` is the time of its last READ. `extending` is true while the next chunk is being
    chosen. `starved` is true if there was no room for the last chunk. `finished` is true at the end
    of the directory, and after a failure.
    """

    def __init__(self, window: ReadaheadWindow, loader: ChunkLoader) -> None:
        self.window = window
        self.loader = loader
        self.used_at = trio.current_time()
        self.extending = False
        self.finished = False
        self.starved = False

    def was_used_within(self, seconds: float) -> bool:
        """Return whether the last READ was less than `seconds` ago."""
        return self.used_at > trio.current_time() - seconds


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
        self._history = ReadHistory()

    def record_read(self, inode: int, size: int) -> None:
        """Record a READ of the beginning of a file of `size` bytes; never raises an error."""
        if inode == self._latest:
            return
        self._latest = inode
        try:
            self._record_read(inode, size)
        except (sqlite3.Error, StorageError) as error:
            _log.info("nothing is read ahead: %s", error)
        except Exception:  # noqa: BLE001 - a bug here must not fail a read
            _log.exception("a bug in reading ahead")

    def _record_read(self, inode: int, size: int) -> None:
        self._published.record_read(inode)
        reader = self._watched.get(inode)
        if reader is None:
            names = self._reader.names_of(inode)
            for mailbox, name in names:
                self._history.record_read(mailbox, name)
            if not self._find_reader(names):
                self._begin_window(names, size)
            return
        window = reader.window
        self._history.record_read(window.mailbox, window.name_of(inode))
        self._mark_used(reader)
        is_due = window.record_read(inode)
        if window.is_closed:
            self._give_up(reader)
        elif is_due or reader.starved:
            self._extend(reader)

    def _mark_used(self, reader: _Reader) -> None:
        reader.used_at = trio.current_time()
        self._readers.move_to_end(reader)

    def _find_reader(self, names: Sequence[tuple[int, str]]) -> bool:
        """Find the reader that has read a file outside all windows; return whether there is one.

        `names` are the names of the file, each with its mailbox. Only one of them was used.
        """
        # The mailbox of the reader that was used last comes first.
        for mailbox in dict.fromkeys(one.window.mailbox for one in reversed(self._readers)):
            readers = [one for one in self._readers if one.window.mailbox == mailbox]
            for name in (name for place, name in names if place == mailbox):
                if any(self._is_reader_of(reader, name) for reader in readers):
                    return True
        return False

    def _is_reader_of(self, reader: _Reader, name: str) -> bool:
        """Return whether a reader has read a file of its mailbox; extend its window if needed."""
        # A reader that has finished its directory will not read mail that arrives later.
        has_passed = None if reader.finished else self._has_passed(reader.window, name)
        if has_passed is None:
            return False
        self._mark_used(reader)
        if has_passed and not reader.extending:
            reader.window.record_passed()
            if reader.window.is_closed:
                self._give_up(reader)
            else:
                self._extend(reader)
        return True

    def _has_passed(self, window: ReadaheadWindow, name: str) -> bool | None:
        """Return whether the reader of a window has passed its end, or None if it reads elsewhere.

        False: the file is in the window, or just before it.
        """
        if window.is_before(window.end, name):
            distance = self._reader.distance(window.mailbox, window.end, name, _SLACK + 1)
            if distance > _SLACK:
                return None
            # Another process may read another part of the directory (`xargs -P`).
            return None if distance > _IN_PARALLEL and self._is_run(window, name) else True
        if not window.is_before(name, window.start):
            return False
        if not window.is_entered:
            return None
        distance = self._reader.distance(window.mailbox, name, window.start, _BEFORE_WINDOW + 1)
        return False if distance <= _BEFORE_WINDOW else None

    def _is_run(self, window: ReadaheadWindow, name: str) -> bool:
        """Return whether the file right before this one was read recently."""
        files = self._reader.files_beside(window.mailbox, name, 1, backwards=not window.backwards)
        return any(self._neighbour(window.mailbox, file)[1] for file in files)

    def _begin_window(self, names: Sequence[tuple[int, str]], size: int) -> None:
        """Begin a window if a program reads one of the mailboxes that a file is in.

        `names` are the names of the file, each with its mailbox.
        """
        found = [each for place in names if (each := self._recognize(*place, size)) is not None]
        if len(found) > 1:
            # If a program reads the larger mailbox, it will need the files of the smaller one too.
            found.sort(key=lambda each: (-each[0], self._count_files_ahead(each[1])))
        if found:
            self._add_reader(found[0][1])

    def _recognize(self, mailbox: int, name: str, size: int) -> tuple[int, ReadaheadWindow] | None:
        """Return a window if the files beside this one show that a program reads the mailbox.

        The number says how many of them were read without a gap.
        """
        # A reader that goes forwards comes from smaller names.
        sides = {
            is_backwards: self._reader.files_beside(
                mailbox, name, NEIGHBOURS, backwards=not is_backwards
            )
            for is_backwards in (False, True)
        }
        files = itertools.chain(*sides.values())
        trend = self._history.trend(mailbox, files, name) + self._usual_trend()
        needed = self._needed(mailbox)
        chunk = self._chunk_of_other_readers()
        count = 0
        for is_backwards, side in sides.items():
            if (trend > 0) if is_backwards else (trend < 0):
                continue
            neighbours = [self._neighbour(mailbox, file) for file in side]
            selection = recognize(size, neighbours, needed)
            if selection is not None:
                chunk = max(chunk, FIRST_CHUNK)
                count = count_read(neighbours)
                break
        else:
            if not chunk or all(sides.values()):
                return None
            # A reader continues at one end of the next directory.
            is_backwards, selection = not sides[True], None
        return count, ReadaheadWindow(
            mailbox,
            name,
            chunk,
            backwards=is_backwards,
            selection=selection,
            is_cautious=self._history.has_failed,
        )

    def _count_files_ahead(self, window: ReadaheadWindow) -> int:
        last = "" if window.backwards else chr(sys.maxunicode)
        return self._reader.distance(window.mailbox, window.end, last, _MOST_CANDIDATES)

    def _neighbour(self, mailbox: int, file: NamedFile) -> Neighbour:
        """Return the size of a file, and whether it was read recently."""
        if self._history.was_read(mailbox, file.name):
            return file.size, True
        # A program may have read the file from the page cache.
        is_known = (
            file.inode not in self._published
            and self._content.get_download(file.content_key) is None
        )
        return file.size, False if is_known else None

    def _needed(self, mailbox: int) -> int:
        """Return how many files must have been read before a window begins."""
        is_beside = any(each.was_used_within(_NEXT_DIRECTORY_SECONDS) for each in self._readers)
        return self._history.needed(mailbox, _NEEDED_BESIDE_READERS if is_beside else _NEEDED)

    def _usual_trend(self) -> int:
        """Return the trend of the reader that was used last: a program keeps its direction."""
        latest = next(reversed(self._readers), None)
        if latest is None or not latest.was_used_within(_NEXT_DIRECTORY_SECONDS):
            return 0
        return -_USUAL_TREND if latest.window.backwards else _USUAL_TREND

    def _chunk_of_other_readers(self) -> int:
        """If a reader has just finished a directory, return the first chunk of the next, or 0."""
        if self._history.has_failed:
            return 0
        finished = [
            reader.window.chunk
            for reader in self._readers
            if reader.finished and reader.was_used_within(_NEXT_DIRECTORY_SECONDS)
        ]
        return max(FIRST_CHUNK, max(finished) // 4) if finished else 0

    def _add_reader(self, window: ReadaheadWindow) -> None:
        loader = ChunkLoader(
            self._content, self._disk, self._page_cache, self._published, self._threads
        )
        reader = _Reader(window, loader)
        beside = [
            other.window
            for other in self._readers
            if other.window.mailbox == window.mailbox
            and other.was_used_within(_ACTIVE_SECONDS)
            and not other.finished
        ]
        if beside:
            # Several processes read parts of the directory.
            for each in (*beside, window):
                each.set_parallel()
        for other in list(self._readers):
            if self._is_opposite(other.window, window):
                self._remove(other)
        self._readers[reader] = None
        while len(self._readers) > _MOST_READERS:
            self._remove(next(iter(self._readers)))
        self._extend(reader)

    def _is_opposite(self, window: ReadaheadWindow, other: ReadaheadWindow) -> bool:
        """Return whether a window begins here in a direction in which nobody reads."""
        return (
            window.mailbox == other.mailbox
            and window.backwards != other.backwards
            and not window.is_entered
            and self._reader.distance(window.mailbox, window.start, other.end, _SLACK) < _SLACK
        )

    def _give_up(self, reader: _Reader) -> None:
        """Stop reading ahead for a program that does not read what was expected."""
        if not reader.window.is_parallel:
            self._history.record_failure(reader.window.mailbox)
        self._remove(reader)

    def _remove(self, reader: _Reader) -> None:
        self._readers.pop(reader, None)
        reader.finished = True
        reader.loader.stop()
        self._unwatch(reader, reader.window.inodes)

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
            files, chosen = await self._candidates(window)
        except (sqlite3.Error, StorageError) as error:
            _log.info("nothing is read ahead: %s", error)
            files, chosen = [], []
        finally:
            reader.extending = False
        if reader.finished or not files:
            reader.finished = True
            return []
        share, room = self._share(), self._room()
        fitting = _fitting(chosen, share, room)
        reader.starved = bool(chosen) and not fitting
        if not chosen:
            window.skip(files)
        if not fitting:
            return []
        if window.chunk >= _GOOD_CHUNK:
            self._history.forget_failures(window.mailbox)
        chunk = files[: files.index(fitting[-1]) + 1]
        probes, dropped = window.extend(chunk, fitting)
        reader.loader.probes |= probes
        reader.loader.probes.difference_update(dropped)
        self._unwatch(reader, dropped)
        self._watched.update((file.inode, reader) for file in chunk)
        return [file for file in fitting if 0 < file.size <= share]

    async def _candidates(self, window: ReadaheadWindow) -> tuple[list[NamedFile], list[NamedFile]]:
        """Return files that follow the end of a window, and those of them that are expected."""
        count = window.chunk * window.selection.stride
        files: list[NamedFile] = []
        chosen: list[NamedFile] = []
        # Other programs may have read the next files, or the reader skips many.
        for most in (4 * count if window.selection.has_limit else count, _MOST_CANDIDATES):
            if most <= _FEW_CANDIDATES:
                files = self._reader.files_beside(
                    window.mailbox, window.end, most, backwards=window.backwards
                )
            else:
                look_up = partial(
                    self._chunk_reader.files_beside,
                    window.mailbox,
                    window.end,
                    most,
                    backwards=window.backwards,
                )
                files = await trio.to_thread.run_sync(look_up, limiter=self._index_thread)
            chosen = window.choose(files, self._is_known)
            if len(files) < most or 2 * len(chosen) >= window.chunk:
                break
        return files, chosen

    def _is_known(self, file: NamedFile) -> bool:
        """Return whether a file was read, or is in a window."""
        return file.inode in self._published or file.inode in self._watched

    def _active_windows(self) -> list[ReadaheadWindow]:
        return [one.window for one in self._readers if one.was_used_within(_ACTIVE_SECONDS)]

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
    if files and files[0].size > share:
        return files[:1]
    total = 0
    for count, file in enumerate(files):
        total += file.size
        if total > min(share, room):
            return files[:count]
    return files
