"""Prefetch: only missing blobs are fetched, and everything that is fetched is written."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.cache.lru import LARGE_OVERHEAD_BYTES, SMALL_OVERHEAD_BYTES, headroom
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.prefetch import FetchResult, Prefetcher, is_temporary
from jmapfs.content.server_blobs import ContentStream
from jmapfs.content.service import ContentService, open_content_service
from jmapfs.deadline import Deadline
from jmapfs.errors import (
    AuthenticationError,
    BlobMismatchError,
    BlobNotFoundError,
    JmapfsError,
    MethodError,
    StorageError,
    UnreachableError,
)
from tests.cache.stored import stored
from tests.content.server import MIB, Corrections, FakeSource, Limits, mail

ENOUGH = 60.0
DONE = FetchResult([], {})


class Source(FakeSource):
    """A source that sets an event when the first batch is requested."""

    def __init__(self, blobs: dict[str, bytes], delay: float) -> None:
        super().__init__(blobs, delay)
        self.asked_for_batch = trio.Event()

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: Deadline
    ) -> dict[str, bytes]:
        self.asked_for_batch.set()
        return await super().download_batch(blobs, deadline=deadline)


@dataclass
class Account:
    """An account's content, and its prefetcher."""

    source: Source
    disk: DiskCache
    content: ContentService
    prefetcher: Prefetcher

    @property
    def sizes(self) -> dict[str, int]:
        return {blob_id: len(data) for blob_id, data in self.source.blobs.items()}

    @property
    def begun(self) -> set[str]:
        """The blobs that were requested from the source."""
        return {one for batch in self.source.batches for one in batch} | self.source.asked.keys()

    async def fetch(self, wanted: dict[str, int] | None = None) -> FetchResult:
        """Fetch blobs in one step; by default all."""
        with trio.fail_after(ENOUGH):
            return await self.prefetcher.fetch(self.sizes if wanted is None else wanted, ENOUGH)

    def assert_kept(self, but: Sequence[str] = ()) -> None:
        for blob_id, data in self.source.blobs.items():
            if blob_id not in but:
                assert stored(self.disk, blob_id) == data, blob_id


@asynccontextmanager
async def account(
    directory: Path,
    *,
    count: int = 100,
    limits: Limits | None = None,
    delay: float = 0.001,
    disk: DiskCache | None = None,
    corrections: Corrections | None = None,
    download_timeout: float = 60.0,
) -> AsyncIterator[Account]:
    source = Source({f"b{number}": b"a:%d " % number * 100 for number in range(count)}, delay)
    source.batch_limits = limits
    disk = disk or DiskCache(directory / "cache", 64 * MIB, reserve_bytes=0)
    try:
        async with open_content_service(
            source,
            disk,
            MemoryCache(8 * MIB),
            on_size_mismatch=corrections or Corrections(),
            download_timeout=download_timeout,
        ) as content:
            yield Account(source, disk, content, Prefetcher(content, disk))
    finally:
        disk.close()


@pytest.mark.parametrize("limits", [None, Limits(30, 4000)])
async def test_every_blob_is_fetched_once_and_cached(tmp_path: Path, limits: Limits | None) -> None:
    async with account(tmp_path, limits=limits) as mine:
        assert await mine.fetch() == DONE
        mine.assert_kept()
        assert mine.source.asked == dict.fromkeys(mine.source.blobs, 1)
        assert bool(mine.source.batches) == bool(limits)
        # Two requests are left to readers.
        assert mine.source.most_running <= mine.source.concurrency - 2
        assert await mine.fetch() == DONE
        assert mine.source.asked.total() == 100


async def test_cached_blobs_are_not_fetched(tmp_path: Path) -> None:
    async with account(tmp_path, limits=Limits(30)) as mine:
        there = [f"b{number}" for number in range(0, 100, 2)]
        mine.disk.put_many([(blob_id, mine.source.blobs[blob_id]) for blob_id in there])
        checked = await mine.prefetcher.check(mine.sizes, ENOUGH)
        assert checked.unchecked == []
        assert checked.absent == [one for one in mine.source.blobs if one not in there]
        assert await mine.fetch() == DONE
        mine.assert_kept()
        assert sorted(mine.source.asked) == sorted(checked.absent)


async def test_large_and_empty_blobs_are_fetched(tmp_path: Path) -> None:
    async with account(tmp_path, limits=Limits(30)) as mine:
        mine.source.blobs |= {f"large{number}": mail(2 * MIB) for number in range(3)}
        mine.source.blobs["empty"] = b""
        assert await mine.fetch() == DONE
        mine.assert_kept()
        assert mine.source.asked == dict.fromkeys(mine.source.blobs, 1)
        checked = await mine.prefetcher.check(mine.sizes, ENOUGH)
        assert (checked.absent, checked.unchecked) == ([], [])


async def test_blobs_in_memory_are_written_without_a_download(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        assert await mine.content.read("b7", 400, 0, 400) == b"a:7 " * 100
        await mine.content.write_behind.wait_until_written(["b7"])
        mine.disk.discard("b7")
        assert mine.content.is_cached("b7")
        assert await mine.fetch() == DONE
        mine.assert_kept()
        assert mine.source.asked == dict.fromkeys(mine.source.blobs, 1)


async def test_a_download_for_a_reader_is_joined(tmp_path: Path) -> None:
    async with account(tmp_path, delay=0.05) as mine, trio.open_nursery() as nursery:
        nursery.start_soon(mine.content.read, "b7", 400, 0, 400)
        await trio.testing.wait_all_tasks_blocked()
        assert await mine.fetch() == DONE
        mine.assert_kept()
        assert mine.source.asked == dict.fromkeys(mine.source.blobs, 1)


async def test_a_reader_does_not_wait_for_the_prefetch(tmp_path: Path) -> None:
    async with account(tmp_path, limits=Limits(10), count=1000, delay=0.01) as mine:
        mine.source.concurrency = 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.fetch)
            await mine.source.asked_for_batch.wait()
            with trio.fail_after(5):
                # The last one in the queue, and one that is not in it.
                assert await mine.content.read("b999", 600, 0, 600) == b"a:999 " * 100
                mine.source.blobs["other"] = b"o: er"
                assert await mine.content.read("other", 5, 0, 5) == b"o: er"
            assert len(mine.source.batches) < 50
        mine.assert_kept()


@pytest.mark.parametrize("limits", [None, Limits(30)])
async def test_a_failed_blob_does_not_affect_the_others(
    tmp_path: Path, limits: Limits | None
) -> None:
    liar = "G" + "0" * 40
    async with account(tmp_path, limits=limits) as mine:
        mine.source.blob_ids_are_sha1 = True
        mine.source.blobs[liar] = b"not these"
        result = await mine.fetch({"gone": 100} | mine.sizes)
        assert result.remaining == []
        assert isinstance(result.failed.pop("gone"), BlobNotFoundError)
        assert isinstance(result.failed.pop(liar), BlobMismatchError)
        assert result.failed == {}
        mine.assert_kept(but=[liar])


async def test_a_failed_batch_is_fetched_one_by_one(tmp_path: Path) -> None:
    async with account(tmp_path, limits=Limits(30)) as mine:
        mine.source.batch_error = MethodError("Blob/get", "serverFail", "")
        assert await mine.fetch() == DONE
        mine.assert_kept()


@pytest.mark.parametrize("limits", [None, Limits(2)])
@pytest.mark.parametrize("error", [UnreachableError("no network"), AuthenticationError("no")])
async def test_the_step_ends_without_a_network(
    tmp_path: Path, limits: Limits | None, error: JmapfsError
) -> None:
    async with account(tmp_path, limits=limits, delay=0.01) as mine:
        mine.source.error = mine.source.batch_error = error
        result = await mine.fetch()
        assert set(result.remaining) | result.failed.keys() == mine.sizes.keys()
        assert set(result.failed.values()) == {error}
        assert is_temporary(error)
        assert mine.source.asked.total() + len(mine.source.batches) < 20
        mine.source.error = mine.source.batch_error = None
        assert await mine.fetch() == DONE
        mine.assert_kept()


@pytest.mark.parametrize("limits", [None, Limits(10)])
async def test_a_step_ends_in_time_and_the_next_one_continues(
    tmp_path: Path, limits: Limits | None
) -> None:
    # Long enough for more than three steps on a slow machine.
    async with account(tmp_path, limits=limits, delay=1.0 if limits else 0.2) as mine:
        wanted, steps = mine.sizes, 0
        while wanted:
            before = mine.begun
            with trio.fail_after(5):
                result = await mine.prefetcher.fetch(wanted, 0.05)
            assert not result.failed
            # No more was started than may be under way at once.
            most = mine.source.concurrency * (limits.blobs if limits else 1)
            assert len(mine.begun - before) <= most
            wanted, steps = {one: wanted[one] for one in result.remaining}, steps + 1
        assert steps > 3
        mine.assert_kept()
        # The next step did not fetch again what was under way at the end of a step.
        assert mine.source.asked == dict.fromkeys(mine.source.blobs, 1)


class LateDisk(DiskCache):
    """A disk whose next answer about sizes is older than what was written meanwhile."""

    answered = threading.Event()
    proceed = threading.Event()

    def sizes(self, blob_ids: Sequence[str]) -> dict[str, int]:
        sizes = super().sizes(blob_ids)
        self.answered.set()
        self.proceed.wait(ENOUGH)
        return sizes


async def test_blobs_written_at_the_beginning_of_a_step_are_not_fetched_again(
    tmp_path: Path,
) -> None:
    disk = LateDisk(tmp_path / "cache", 64 * MIB, reserve_bytes=0)
    disk.proceed.set()
    async with account(tmp_path, count=10, limits=Limits(10), delay=0.2, disk=disk) as mine:
        assert len((await mine.prefetcher.fetch(mine.sizes, 0)).remaining) == 10
        disk.answered.clear()
        disk.proceed.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.fetch)
            await trio.to_thread.run_sync(disk.answered.wait)
            download = mine.content.get_download("b9")
            assert download is not None
            await download.wait_until_ended()
            await mine.content.write_behind.wait_until_written(mine.sizes)
            disk.proceed.set()
        mine.assert_kept()
        assert mine.source.asked == dict.fromkeys(mine.source.blobs, 1)


async def test_a_download_that_stalls_is_reported(tmp_path: Path) -> None:
    async with account(tmp_path, limits=Limits(30), download_timeout=1.0) as mine:
        mine.source.unbatched = {"b7"}
        mine.source.delay = 0.01
        stream, never = mine.source.stream_blob, trio.Event()

        @asynccontextmanager
        async def stalling(
            blob_id: str, *, fresh: bool = False, deadline: Deadline
        ) -> AsyncIterator[ContentStream]:
            async with stream(blob_id, fresh=fresh, deadline=deadline) as chunks:
                if blob_id == "b7":
                    await never.wait()
                yield chunks

        mine.source.stream_blob = stalling  # type: ignore[method-assign]
        result = await mine.fetch()
        assert result.remaining == []
        assert [type(error).__name__ for error in result.failed.values()] == ["DeadlineError"]
        mine.assert_kept(but=["b7"])


class SlowDisk(DiskCache):
    """A disk that is slower than the network."""

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        time.sleep(0.3)
        return super().put_many(blobs)


async def test_downloads_wait_for_a_slow_disk(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path / "cache", 128 * MIB, reserve_bytes=0)
    async with account(tmp_path, disk=disk, limits=Limits(10)) as mine:
        mine.source.blobs = {f"b{number}": mail(MIB // 2) for number in range(80)}
        assert await mine.fetch() == DONE
        mine.assert_kept()
        assert mine.source.asked == dict.fromkeys(mine.source.blobs, 1)


class FullDisk(DiskCache):
    """A disk without any space left."""

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        return [False] * len(blobs)


async def test_blobs_that_the_disk_refuses_are_reported(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path / "cache", MIB, reserve_bytes=0)
    async with account(tmp_path, disk=disk, limits=Limits(30)) as mine:
        # It is written to a file without a name.
        mine.source.blobs["large"] = mail(2 * MIB)
        for _ in range(2):
            result = await mine.fetch()
            assert result.remaining == []
            assert result.failed.keys() == mine.source.blobs.keys()
            assert {type(error) for error in result.failed.values()} == {StorageError}


async def test_damaged_blobs_are_fetched_again(tmp_path: Path) -> None:
    async with account(tmp_path, limits=Limits(30)) as mine:
        mine.source.blobs["large"] = mail(2 * MIB)
        assert await mine.fetch() == DONE
        with sqlite3.connect(tmp_path / "cache" / "blobs.sqlite") as database:
            database.execute("UPDATE content SET data = zeroblob(length(data)) WHERE number = 7")
        database.close()
        (large,) = (tmp_path / "cache" / "large").iterdir()
        large.write_bytes(b"x" * 2 * MIB)
        absent = (await mine.prefetcher.check(mine.sizes, ENOUGH)).absent
        assert len(absent) == 2
        assert "large" in absent
        assert await mine.fetch() == DONE
        mine.assert_kept()


async def test_checked_blobs_are_not_evicted(tmp_path: Path) -> None:
    small = DiskCache(tmp_path / "cache", 200 * (1000 + SMALL_OVERHEAD_BYTES), reserve_bytes=0)
    async with account(tmp_path, disk=small) as mine:
        old, other, new = (
            {f"{kind}{number}": b"a:" + number.to_bytes(2, "big") * 499 for number in range(90)}
            for kind in ("old", "other", "new")
        )
        small.put_many(list(old.items()))
        small.put_many(list(other.items()))
        mine.source.blobs = old | new
        assert (
            sum(map(mine.prefetcher.cost, mine.sizes.values())) <= await mine.prefetcher.capacity()
        )
        checked = await mine.prefetcher.check(mine.sizes, ENOUGH)
        assert checked.absent == list(new)
        assert await mine.fetch(dict.fromkeys(new, 1000)) == DONE
        mine.assert_kept()
        assert len(small.missing(list(other))) > 60


async def test_a_check_ends_in_time(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        assert await mine.fetch() == DONE
        checked = await mine.prefetcher.check(mine.sizes, 0)
        assert checked.absent == []
        assert checked.unchecked == list(mine.sizes)


@pytest.mark.parametrize("size", [100, 2 * MIB])
@pytest.mark.parametrize("offset", [-50, 50])
async def test_a_wrong_size_is_corrected(tmp_path: Path, size: int, offset: int) -> None:
    corrections = Corrections()
    async with account(tmp_path, limits=Limits(30), corrections=corrections) as mine:
        mine.source.blobs["lie"] = mail(size)
        mine.source.wrong_sizes["lie"] = size + offset
        wanted = mine.sizes | {"lie": size + offset}
        assert await mine.fetch(wanted) == DONE
        assert corrections.seen == [("lie", size)]
        mine.assert_kept()
        assert (await mine.prefetcher.check(wanted, ENOUGH)).absent == []
        assert corrections.seen == [("lie", size)] * 2
        # The batch has not the stated size, so the blob is fetched once more.
        assert mine.source.asked["lie"] <= 2


async def test_closing_the_service_does_not_wait(tmp_path: Path) -> None:
    slow = account(tmp_path, limits=Limits(30), delay=60)
    async with trio.open_nursery() as nursery, slow as mine:
        nursery.start_soon(mine.prefetcher.fetch, mine.sizes, 60.0)
        await mine.source.asked_for_batch.wait()
        nursery.cancel_scope.cancel()


async def test_cost_and_capacity(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        prefetcher = mine.prefetcher
        assert await prefetcher.capacity() == 64 * MIB - headroom(64 * MIB)
        assert prefetcher.cost(SMALL_BYTES) == SMALL_BYTES + SMALL_OVERHEAD_BYTES
        assert prefetcher.cost(2 * MIB) == 2 * MIB + LARGE_OVERHEAD_BYTES


async def test_the_disk_is_read_in_worker_threads(tmp_path: Path) -> None:
    """All access to the disk is in worker threads."""
    loop = threading.current_thread()

    class Watched(DiskCache):
        def load_many(self, blob_ids: Sequence[str]) -> dict[str, bytes]:
            assert threading.current_thread() is not loop
            return super().load_many(blob_ids)

        def missing(self, blob_ids: Sequence[str]) -> list[str]:
            assert threading.current_thread() is not loop
            return super().missing(blob_ids)

        def sizes(self, blob_ids: Sequence[str]) -> dict[str, int]:
            assert threading.current_thread() is not loop
            return super().sizes(blob_ids)

    disk = Watched(tmp_path / "cache", 64 * MIB, reserve_bytes=0)
    async with account(tmp_path, disk=disk) as mine:
        await mine.prefetcher.check(mine.sizes, ENOUGH)
        assert await mine.fetch() == DONE
