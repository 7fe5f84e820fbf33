"""Reads from memory, the disk cache and the server return exactly the requested bytes."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.content.confirmation import Route
from jmapfs.deadline import Deadline
from jmapfs.errors import (
    BlobMismatchError,
    BlobNotFoundError,
    OfflineError,
    StorageError,
    UnreachableError,
)
from jmapfs.jmap.emails import EmailValues
from tests.cache.small_disk import needs_root, tmpfs
from tests.cache.stored import stored
from tests.content.server import MIB, Corrections, FakeSource, mail, needs_no_network, serving


@pytest.mark.parametrize("size", [2, 8192, MIB, MIB + 1, 3 * MIB])
async def test_reads_of_any_part_are_exact(tmp_path: Path, size: int) -> None:
    data = mail(size)
    source = FakeSource({"b": data})
    async with serving(source, tmp_path) as content:
        content.hold("b")
        for offset, length in [(0, size), (size // 2, size), (size - 1, 1), (0, 1), (size - 1, 5)]:
            assert bytes(await content.read("b", size, offset, length)) == data[offset:][:length]
        content.release("b")
    assert source.asked["b"] == 1


async def test_reads_beyond_the_end_need_no_download(tmp_path: Path) -> None:
    source = FakeSource()
    async with serving(source, tmp_path) as content:
        assert await content.read("b", 10, 10, 100) == b""
        assert await content.read("b", 0, 1, 100) == b""
        assert await content.read("b", 10, 0, 0) == b""
        with pytest.raises(ValueError, match="negative"):
            await content.read("b", 10, -1, 5)
    assert not source.asked


async def test_blobs_stated_to_be_empty_are_downloaded(tmp_path: Path) -> None:
    corrections = Corrections()
    source = FakeSource({"empty": b"", "not": b"a: b"})
    async with serving(source, tmp_path, corrections=corrections) as content:
        assert await content.read("empty", 0, 0, 100) == b""
        with pytest.raises(BlobMismatchError):
            await content.read("not", 0, 0, 100)
        assert bytes(await content.read("not", 4, 0, 100)) == b"a: b"


async def test_opening_and_closing_downloads_nothing(tmp_path: Path) -> None:
    source = FakeSource()
    async with serving(source, tmp_path) as content:
        for _ in range(3):
            content.hold("b")
        for _ in range(3):
            content.release("b")
        await trio.testing.wait_all_tasks_blocked()
    assert not source.asked


@pytest.mark.parametrize("size", [8192, 2 * MIB])
async def test_later_reads_come_from_a_cache(tmp_path: Path, size: int) -> None:
    data = mail(size)
    source = FakeSource({"b": data})
    async with serving(source, tmp_path) as content:
        assert not await needs_no_network(content, "b")
        for _ in range(3):
            assert bytes(await content.read("b", size, 0, size)) == data
        assert await needs_no_network(content, "b")
        assert content.counters.hits == 2
    assert source.asked["b"] == 1
    async with serving(FakeSource(), tmp_path) as content:
        assert await needs_no_network(content, "b")
        assert bytes(await content.read("b", size, 0, size)) == data
        assert content.counters.hits == 1


async def test_an_open_blob_is_fetched_once_without_any_cache(tmp_path: Path) -> None:
    for size in (500_000, 3 * MIB):
        data = mail(size)
        source = FakeSource({"b": data})
        async with serving(source, tmp_path, disk_limit=0, memory_limit=0) as content:
            content.hold("b")
            for offset in range(0, size, 131_072):
                assert (
                    bytes(await content.read("b", size, offset, 131_072))
                    == (data[offset : offset + 131_072])
                )
            assert source.asked["b"] == 1
            content.release("b")
            await trio.testing.wait_all_tasks_blocked()
            assert not await needs_no_network(content, "b")


async def test_an_error_is_not_remembered(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b"})
    source.error = UnreachableError("no network")
    async with serving(source, tmp_path) as content:
        for _ in range(2):
            with pytest.raises(UnreachableError):
                await content.read("b", 4, 0, 4)
        source.error = None
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"
        with pytest.raises(BlobNotFoundError):
            await content.read("other", 4, 0, 4)


async def test_a_blob_that_fails_is_read_in_a_loop(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The first attempts are made at once, and few after that; other blobs are not affected."""
    autojump_clock.autojump_threshold = 0.05
    source = FakeSource({"b": b"a: b"})
    async with serving(source, tmp_path) as content:

        async def read_often(seconds: float) -> None:
            end = trio.current_time() + seconds
            while trio.current_time() < end:
                with pytest.raises(BlobNotFoundError):
                    await content.read("lost", 4, 0, 4)
                await trio.sleep(2)

        await read_often(60)
        assert 3 <= len(source.attempts) <= 9
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"
        source.attempts.clear()
        await read_often(180)
        assert len(source.attempts) <= 9
        # Read-ahead does not ask for it either.
        assert content.failures.get("lost") is not None
        # It is there again: found at the next attempt, or at once if the user requests that.
        source.blobs["lost"] = b"a: c"
        content.failures.clear()
        assert bytes(await content.read("lost", 4, 0, 4)) == b"a: c"
        assert content.failures.get("lost") is None


async def test_an_unreachable_server_is_not_held_against_a_blob(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b"})
    source.error = OfflineError("offline")
    async with serving(source, tmp_path) as content:
        for _ in range(20):
            with pytest.raises(OfflineError):
                await content.read("b", 4, 0, 4)
        source.error = None
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"


async def test_a_bug_in_the_source_is_raised_in_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource({"b": b"a: b"})
    source.error = ZeroDivisionError()
    async with serving(source, tmp_path) as content:
        with pytest.raises(ZeroDivisionError):
            await content.read("b", 4, 0, 4)
        source.error = None
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"
    assert caplog.records[0].exc_info


async def test_errors_in_the_context_are_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        async with serving(FakeSource(), tmp_path):
            raise StorageError("as it is")


async def test_everything_is_cached_on_disk_at_the_end(tmp_path: Path) -> None:
    blobs = {f"b{i}": mail(9000) for i in range(300)}
    async with serving(FakeSource(blobs), tmp_path) as content, trio.open_nursery() as nursery:
        for blob_id in blobs:
            nursery.start_soon(content.read, blob_id, 9000, 0, 9000)
    disk = DiskCache(tmp_path / "cache", 64 * MIB, reserve_bytes=0)
    assert all(stored(disk, blob_id) == data for blob_id, data in blobs.items())
    disk.close()


async def test_a_damaged_disk_cache_costs_a_download(tmp_path: Path) -> None:
    data = mail(3 * MIB)
    source = FakeSource({"b": data})
    async with serving(source, tmp_path) as content:
        content.hold("b")
        assert bytes(await content.read("b", len(data), 0, 10)) == data[:10]
        for path in (tmp_path / "cache" / "large").iterdir():
            os.truncate(path, MIB)
        assert bytes(await content.read("b", len(data), 2 * MIB, 10)) == data[2 * MIB :][:10]
        content.release("b")
    assert source.asked["b"] == 2


async def test_large_blobs_are_never_whole_in_memory(tmp_path: Path) -> None:
    size = 96 * MIB

    class Endless(FakeSource):
        async def stated(self, keys: Collection[str]) -> dict[str, EmailValues]:
            await trio.lowlevel.checkpoint()
            return {key: EmailValues(key, size, 0) for key in keys}

        async def _chunks(
            self, blob_id: str, route: Route, deadline: Deadline
        ) -> AsyncGenerator[bytes, None]:
            assert (blob_id, route) == ("b", Route.DOWNLOAD)
            for number in range(size // MIB):
                deadline.received(MIB)
                yield b"a:" + bytes([number]) * (MIB - 2)

    process = psutil.Process()
    async with serving(Endless(), tmp_path, disk_limit=256 * MIB) as content:
        before = process.memory_info().rss
        content.hold("b")
        for number in (0, 50, 95):
            piece = await content.read("b", size, number * MIB, 131_072)
            assert bytes(piece) == b"a:" + bytes([number]) * 131_070
        content.release("b")
        assert process.memory_info().rss - before < 24 * MIB


@needs_root
async def test_large_blobs_are_read_without_space_on_the_disk(tmp_path: Path) -> None:
    data = mail(5 * MIB)
    source = FakeSource({"b": data, "c": data, "huge": mail(40 * MIB)})
    with tmpfs(tmp_path / "full", "2m") as directory:
        async with serving(source, directory) as content:
            for blob_id in ("b", "c", "b"):
                assert bytes(await content.read(blob_id, len(data), 100, 10)) == data[100:110]
            with pytest.raises(StorageError):
                await content.read("huge", 40 * MIB, 0, 10)
            assert not await needs_no_network(content, "b")


async def test_mails_that_wait_for_their_turn_on_a_slow_line(tmp_path: Path) -> None:
    """Each takes half a second, so that the last one waits longer than a read may take."""
    size = 10 * 65_536
    source = FakeSource({f"b{i}": mail(size) for i in range(6)})
    source.pause = 0.05
    async with (
        serving(
            source, tmp_path, parallel_downloads=1, read_timeout=1.0, download_timeout=1.0
        ) as content,
        trio.open_nursery() as nursery,
    ):
        for blob_id in source.blobs:
            nursery.start_soon(content.read, blob_id, size, 0, size)
