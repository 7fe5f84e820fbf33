"""The readahead window grows while its probes are read, and shrinks otherwise."""

from __future__ import annotations

from jmapfs.content.readahead_window import (
    FIRST_CHUNK,
    LARGEST_CHUNK,
    ReadaheadWindow,
)
from jmapfs.content.reading_pattern import ReadHistory, recognize
from jmapfs.index.rows import NamedFile


def files(first: int, count: int) -> list[NamedFile]:
    return [
        NamedFile(f"{number:06}", 1000 + number, f"b{number}", 10)
        for number in range(first, first + count)
    ]


class Directory:
    """A directory without end, and a window that begins at its first file."""

    def __init__(self) -> None:
        self.window = ReadaheadWindow(7, "000000")
        self.ordered = 1
        self.probes: set[int] = set()
        self.chunks: list[int] = []

    def extend(self) -> None:
        chunk = files(self.ordered, self.window.chunk)
        probes, _ = self.window.extend(chunk)
        self.probes |= probes
        self.ordered += len(chunk)
        self.chunks.append(len(chunk))

    def read(self, number: int) -> None:
        """Read a file; the READ of a loaded file is seen only if it is a probe."""
        if number >= self.ordered:
            self.window.record_passed()
            self.extend()
        elif 1000 + number in self.probes and self.window.record_read(1000 + number):
            self.extend()


def test_chunks_double_while_they_are_read() -> None:
    directory = Directory()
    directory.extend()
    for number in range(1, 4000):
        directory.read(number)
        # The reader never passes the newest chunk.
        assert number < directory.ordered
    assert directory.chunks[0] == FIRST_CHUNK
    for before, after in zip(directory.chunks, directory.chunks[1:], strict=False):
        assert after == min(2 * before, LARGEST_CHUNK)
    assert directory.chunks[-1] == LARGEST_CHUNK


def test_nothing_more_is_loaded_after_the_reader_has_left() -> None:
    directory = Directory()
    directory.extend()
    for number in range(1, 100):
        directory.read(number)
    ordered = directory.ordered
    assert ordered < 100 + 4 * 100
    directory.read(99)
    assert directory.ordered == ordered


def test_one_chunk_is_due_at_a_time() -> None:
    directory = Directory()
    directory.extend()
    assert directory.window.record_read(1001)
    assert not directory.window.record_read(1001)
    assert not directory.window.record_read(1002)


def test_chunks_shrink_if_probes_are_not_read() -> None:
    directory = Directory()
    directory.extend()
    for number in range(1, 2000):
        directory.read(number)
    assert directory.window.chunk == LARGEST_CHUNK
    # From here on only the last of each chunk, which is no probe.
    for _ in range(4):
        directory.read(directory.ordered)
        directory.probes.clear()
    assert directory.window.chunk < LARGEST_CHUNK
    for _ in range(8):
        directory.read(directory.ordered)
        directory.probes.clear()
    assert directory.window.chunk == FIRST_CHUNK


def test_the_window_is_closed_if_nothing_is_read() -> None:
    window = ReadaheadWindow(7, "000000")
    ordered = 1
    for _ in range(6):
        chunk = files(ordered, window.chunk)
        window.extend(chunk)
        ordered += len(chunk)
        window.record_passed()
    assert window.is_closed


def test_the_window_of_parallel_processes_is_judged_later() -> None:
    """A process that reads the beginning of the window comes later than the others."""
    window = ReadaheadWindow(7, "000000")
    window.extend(files(1, 8))
    window.extend(files(9, 16))
    assert window.record_read(1000 + 23)
    window.extend(files(25, 32))
    assert not window.record_read(1000 + 2)
    assert window.is_parallel
    assert window.record_read(1000 + 50)
    assert not window.is_closed


def test_names_before_the_window_end_backwards() -> None:
    window = ReadaheadWindow(7, "000500", backwards=True)
    window.extend(files(400, 100)[::-1])
    assert window.end == "000400"
    assert window.start == "000499"
    assert window.is_before("000450", "000440")
    assert not window.is_before("000440", "000450")


def test_the_neighbours_show_what_is_read() -> None:
    """Nearest first: `r` was read, `.` was skipped, of `?` nothing is known."""
    known = {"r": True, ".": False, "?": None}

    def stride(states: str, needed: int = 2) -> int | None:
        selection = recognize(10, [(10, known[state]) for state in states], needed)
        return None if selection is None else selection.stride

    assert stride("rr") == 1
    assert stride("r") is None
    assert stride("r", needed=1) == 1
    assert stride("r??r") == 1
    assert stride(".r.r") is None
    assert stride(".r.r.r") == 2
    assert stride(".r?r.r") is None
    assert stride("..r" * 3) == 3
    assert stride("........r" * 3) is None
    # Two in a row prove nothing if others were skipped before.
    assert stride("rr" + "..r" * 3) is None
    assert stride("rrrrrr" + "..r" * 3) == 1


def test_sizes_that_are_read() -> None:
    small, large = (1000, True), (9000, False)
    selection = recognize(1000, [small, large, (9500, False), (900, True), large, small] * 2, 2)
    assert selection is not None
    assert selection.has_limit
    assert selection.accepts(1100)
    assert not selection.accepts(9000)
    # A larger file is read: the sizes do not matter.
    selection.record(9100, read=True)
    assert selection.accepts(9000)
    assert recognize(5000, [(9000, True), (1000, False), small, large] * 3, 2) is None


def test_readers_in_parallel_share_a_window() -> None:
    directory = Directory()
    directory.extend()
    # Eight readers, each a few files ahead of another.
    for number in range(1, 3000, 8):
        for offset in (3, 0, 7, 1, 5, 2, 6, 4):
            directory.read(number + offset)
    assert directory.chunks[-1] == LARGEST_CHUNK


def test_old_chunks_leave_the_window() -> None:
    directory = Directory()
    directory.extend()
    for number in range(1, 20_000):
        directory.read(number)
    assert len(directory.window.inodes) <= 4 * LARGEST_CHUNK
    assert 1001 not in directory.window.inodes


async def test_the_reads_of_few_mailboxes_are_remembered() -> None:
    history = ReadHistory()
    for mailbox in range(5000):
        history.record_read(mailbox, "name")
    assert history.was_read(4999, "name")
    assert history.was_read(4000, "name")
    assert not history.was_read(0, "name")
