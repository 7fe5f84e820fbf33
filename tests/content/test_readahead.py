"""Programs that read a directory are read ahead for; others cause no downloads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from jmapfs.errors import UnreachableError
from jmapfs.index.rows import NamedFile
from tests.content.directories import Directories, directories
from tests.content.server import MIB, Limits

BATCHES = Limits(50)
THOUSAND = {"A": [5000] * 1000}


@pytest.mark.parametrize("limits", [BATCHES, None], ids=["batches", "one by one"])
async def test_a_directory_is_read_ahead(tmp_path: Path, limits: Limits | None) -> None:
    async with directories(tmp_path, THOUSAND, limits=limits) as tree:
        await tree.read_all(tree.files["A"])
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        assert len(tree.source.batches) <= (40 if limits else 0)


@pytest.mark.parametrize("limits", [BATCHES, None], ids=["batches", "one by one"])
async def test_a_slow_reader_reads_from_the_page_cache(
    tmp_path: Path, limits: Limits | None
) -> None:
    async with directories(tmp_path, THOUSAND, limits=limits) as tree:
        await tree.read_all(tree.files["A"], patient=True)
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        # The first three, and the probes.
        assert tree.reads.total() < 40


async def test_opening_reads_nothing_ahead(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        for file in tree.files["A"]:
            tree.open(file)
        await tree.settled()
        assert tree.fetched == 0


@pytest.mark.parametrize("count", [1, 2])
async def test_one_or_two_files_start_no_read_ahead(tmp_path: Path, count: int) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        await tree.read_all(tree.files["A"][10 : 10 + count])
        await tree.settled()
        assert tree.fetched == count


async def test_distant_files_start_no_read_ahead(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        await tree.read_all(tree.files["A"][::20])
        await tree.settled()
        assert tree.fetched == 50


async def test_read_ahead_ends_when_the_reader_stops(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        await tree.read_all(tree.files["A"][:100])
        await tree.settled()
        fetched = tree.fetched
        assert fetched <= 100 + 3 * 100
        tree.open(tree.files["A"][100])
        await tree.settled()
        assert tree.fetched == fetched


async def test_few_blobs_are_fetched_and_not_read(tmp_path: Path) -> None:
    sizes = {name: [3000] * count for name, count in [("A", 700), ("B", 90), ("C", 5), ("D", 300)]}
    async with directories(tmp_path, sizes, limits=BATCHES) as tree:
        for name in ("A", "B", "D"):
            await tree.read_all(tree.files[name])
        await tree.settled()
        assert tree.fetched - 1090 <= 1090 // 5


async def test_a_reader_is_recognized_in_the_next_directory(tmp_path: Path) -> None:
    sizes = {f"M{number:02}": [3000] * 20 for number in range(30)}
    async with directories(tmp_path, sizes, limits=BATCHES) as tree:
        for name in sorted(sizes):
            await tree.read_all(tree.files[name])
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        # Fewer than three in each directory; the first directory has three.
        single = len(tree.source.blobs) - sum(map(len, tree.source.batches))
        assert single < 3 * len(sizes)


@pytest.mark.parametrize("parallel", [2, 16])
async def test_parallel_readers_fetch_each_blob_once(tmp_path: Path, parallel: int) -> None:
    """Programs such as `rg` take the next file as soon as one of their threads is free."""
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        await read_in_parallel(tree, tree.files["A"], parallel)
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        # Readers that need no time themselves are often ahead of the window.
        assert requests(tree) <= 150


async def test_readers_of_parts_of_a_directory_fetch_each_blob_once(tmp_path: Path) -> None:
    """`xargs -P 8 -n 100` reads eight parts of a directory at once."""
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        files = tree.files["A"]
        async with trio.open_nursery() as nursery:
            for start in range(0, 1000, 125):
                nursery.start_soon(tree.read_all, files[start : start + 125])
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)


async def test_reading_in_inode_order_is_recognized(tmp_path: Path) -> None:
    """Within a second, the order of inodes may differ from that of names."""
    chance = random.Random(3)
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        files = list(tree.files["A"])
        for start in range(0, 1000, 5):
            part = files[start : start + 5]
            chance.shuffle(part)
            files[start : start + 5] = part
        await tree.read_all(files, patient=True)
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        assert tree.reads.total() < 60


@pytest.mark.parametrize("threads", [1, 2, 8])
async def test_reading_backwards_is_read_ahead(tmp_path: Path, threads: int) -> None:
    """`rg` takes the last file first, and so does a program that reads new mail first."""
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        await read_in_parallel(tree, tree.files["A"][::-1], threads)
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        assert requests(tree) <= (60 if threads < 8 else 120)


@pytest.mark.parametrize("step", [1, -1])
async def test_directories_that_are_read_in_turn(tmp_path: Path, step: int) -> None:
    """Each thread of `rg` may read another directory."""
    sizes = {name: [3000] * 250 for name in "ABCD"}
    async with directories(tmp_path, sizes, limits=BATCHES) as tree:
        turns = zip(*(tree.files[name][::step] for name in sizes), strict=True)
        await tree.read_all([file for turn in turns for file in turn])
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        assert requests(tree) <= 100


@pytest.mark.parametrize("length", [5, 20, 100])
async def test_processes_that_read_parts_of_a_directory(tmp_path: Path, length: int) -> None:
    """`xargs -P 8 -n 20` gives each process the next 20 files."""
    async with directories(tmp_path, THOUSAND, limits=BATCHES, delay=0.02) as tree:
        files = tree.files["A"]
        left = [files[start : start + length] for start in range(0, len(files), length)]
        left.reverse()

        async def process() -> None:
            while left:
                await tree.read_all(left.pop())

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(process)
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        assert requests(tree) < 500


@pytest.mark.parametrize("stride", [2, 3, 8, -2, -3, -8])
async def test_every_nth_file_is_read_ahead(tmp_path: Path, stride: int) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        files = tree.files["A"][::stride]
        await tree.read_all(files)
        await tree.settled()
        assert tree.source.asked == dict.fromkeys((file.blob_id for file in files), 1)
        assert requests(tree) < len(files) // 3


@pytest.mark.parametrize("skipped", [(20_000,), (1000, 2000), (1000,)])
async def test_files_of_some_sizes_are_read_ahead(tmp_path: Path, skipped: tuple[int, ...]) -> None:
    """`find -size` and `rg --max-filesize` skip files by their size."""
    chance = random.Random(4)
    sizes = {"A": [chance.choice([1000, 2000, 5000, 20_000]) for _ in range(1000)]}
    async with directories(tmp_path, sizes, limits=BATCHES) as tree:
        files = [file for file in tree.files["A"] if file.size not in skipped]
        await tree.read_all(files)
        await tree.settled()
        assert part_in_vain(tree, files) < 1 / 5
        assert requests(tree) < len(files) // 5


@pytest.mark.parametrize("part", [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.1])
async def test_little_is_fetched_in_vain_for_readers_that_skip_files(
    tmp_path: Path, part: float
) -> None:
    """A program that skips files without a pattern cannot be read ahead for."""
    chance = random.Random(7)
    sizes = {"A": [chance.choice([2000, 5000, 20_000]) for _ in range(1000)]}
    async with directories(tmp_path, sizes, limits=BATCHES) as tree:
        files = [file for file in tree.files["A"] if chance.random() < part]
        await tree.read_all(files)
        await tree.settled()
        assert part_in_vain(tree, files) < 1 / 5
        if part >= 0.9:
            assert requests(tree) < len(files) // 5


def labels(number: int) -> list[str]:
    """A tenth of the mail is in threads of six, a fourth is from a list, and each is of a year."""
    return [
        *(["Threads"] if number % 60 < 6 else []),
        *(["List"] if number % 4 == 1 or number % 60 in {2, 3} else []),
        f"Year {number // 250}",
    ]


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("read", ["A", "Threads", "List", "Year 2"])
async def test_mail_in_several_mailboxes(tmp_path: Path, read: str, step: int) -> None:
    """A READ does not tell through which name a file was opened."""
    sizes = {"A": [5000] * 1000, "Threads": [], "List": [], **{f"Year {n}": [] for n in range(4)}}
    async with directories(tmp_path, sizes, labels=labels, limits=BATCHES) as tree:
        files = tree.files[read][::step]
        await tree.read_all(files)
        await tree.settled()
        assert part_in_vain(tree, files) < 1 / 5
        assert requests(tree) < max(len(files) // 5, 20)


async def test_reading_in_random_order_fetches_each_blob_once(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        files = list(tree.files["A"])
        random.Random(1).shuffle(files)
        await tree.read_all(files)
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)


async def test_a_reader_turns_back(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        files = tree.files["A"]
        await tree.read_all([*files[500:], *files[499::-1]])
        await tree.settled()
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        assert requests(tree) <= 60


async def test_readers_of_several_directories_get_equal_shares(tmp_path: Path) -> None:
    sizes = {name: [5000] * 400 for name in "ABCD"}
    async with directories(tmp_path, sizes, limits=BATCHES, delay=0.01) as tree:
        finished: list[str] = []

        async def read(name: str) -> None:
            await tree.read_all(tree.files[name])
            finished.append(name)
            if len(finished) == 1:
                # All readers have made progress.
                for other in "ABCD":
                    read = sum(file.inode in tree.pages.pages for file in tree.files[other])
                    assert read > 100, other

        async with trio.open_nursery() as nursery:
            for name in "ABCD":
                nursery.start_soon(read, name)
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)


async def test_the_bytes_of_the_window_are_never_exceeded(tmp_path: Path) -> None:
    limit = 2 * MIB
    sizes = {"A": [40_000] * 400, "B": [1000] * 500}
    async with directories(
        tmp_path, sizes, limits=Limits(50, MIB), limit_bytes=limit, delay=0.002
    ) as tree:
        size_of = {file.inode: file.size for name in sizes for file in tree.files[name]}
        blob_of = {file.blob_id: file.inode for name in sizes for file in tree.files[name]}
        done: set[int] = set()
        most = 0

        async def read(files: list[NamedFile]) -> None:
            nonlocal most
            for file in files:
                # A file that is being read is not ahead.
                done.add(file.inode)
                await tree.read(file)
                asked = {blob_of[blob_id] for blob_id in tree.source.asked}
                most = max(most, sum(size_of[inode] for inode in asked - done))

        async with trio.open_nursery() as nursery:
            for name in sizes:
                nursery.start_soon(read, tree.files[name])
        assert limit // 4 < most <= limit


async def test_large_mails_are_fetched_alone(tmp_path: Path) -> None:
    sizes = [5000] * 40
    sizes[20], sizes[25], sizes[30] = 600_000, 3 * MIB, 12 * MIB
    async with directories(tmp_path, {"A": sizes}, limits=Limits(50, MIB)) as tree:
        await tree.read_all(tree.files["A"])
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        for batch in tree.source.batches:
            assert not {"A-20", "A-25", "A-30"} & set(batch)


async def test_cached_blobs_are_read_ahead_from_the_disk(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        await tree.read_all(tree.files["A"])
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        await tree.read_all(tree.files["A"], patient=True)
        assert tree.fetched == 0
        assert tree.reads.total() < 40
        assert tree.content.counters.ahead_recalled > 900


async def test_content_that_the_kernel_refuses_stays_in_memory(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        tree.pages.refused = {file.inode for file in tree.files["A"]}
        for file in tree.files["A"]:
            tree.pages.pages.clear()
            assert await tree.read(file) == tree.source.blobs[file.blob_id]
        assert tree.source.asked == dict.fromkeys(tree.source.blobs, 1)
        # From memory: the kernel did not take them.
        assert len(tree.source.batches) <= 40


async def test_content_of_a_wrong_size_is_not_given_to_the_kernel(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        liar = tree.files["A"][50]
        tree.source.blobs[liar.blob_id] = b"short"
        await tree.read_all(tree.files["A"][:50])
        await tree.settled()
        # In a batch, and then alone.
        assert tree.source.asked[liar.blob_id] == 2
        assert liar.inode not in tree.pages.pages


async def test_read_ahead_without_a_network_fails_no_read(tmp_path: Path) -> None:
    async with directories(tmp_path, THOUSAND, limits=BATCHES) as tree:
        files = tree.files["A"]
        await tree.read_all(files[:100])
        await tree.settled()
        tree.source.error = tree.source.batch_error = UnreachableError("no network")
        fetched = [file for file in files if file.blob_id in tree.source.asked]
        await tree.read_all(fetched)
        with pytest.raises(UnreachableError):
            await tree.read(files[len(fetched)])
        tree.source.error = tree.source.batch_error = None
        await tree.read_all(files)
        assert set(tree.source.asked) == set(tree.source.blobs)


def requests(tree: Directories) -> int:
    """Return how many requests were made, alone or for several blobs."""
    alone = tree.source.asked.total() - sum(map(len, tree.source.batches))
    return len(tree.source.batches) + alone


def part_in_vain(tree: Directories, read: list[NamedFile]) -> float:
    """Return which part of the fetched bytes was not read."""
    size_of = {file.blob_id: file.size for file in tree.files["A"]}
    fetched = sum(size_of[blob_id] for blob_id in tree.source.asked)
    return 1 - sum(file.size for file in read) / fetched


async def read_in_parallel(tree: Directories, files: list[NamedFile], readers: int) -> None:
    left = list(reversed(files))

    async def reader() -> None:
        while left:
            await tree.read_all([left.pop()])

    async with trio.open_nursery() as nursery:
        for _ in range(readers):
            nursery.start_soon(reader)
