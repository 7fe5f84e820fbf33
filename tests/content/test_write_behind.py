"""WriteBehind is bounded; blobs can be read before they are written."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.content.write_behind import DiskThreads, WriteBehind
from tests.content.server import MIB, FakeSource, serving


class StuckDisk(DiskCache):
    """A disk that writes nothing before an event."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 64 * MIB, reserve_bytes=0)
        self.let = threading.Event()
        self.batches: list[int] = []

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        self.let.wait(10)
        self.batches.append(len(blobs))
        return super().put_many(blobs)


async def test_a_slow_disk_delays_readers_for_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = StuckDisk(tmp_path)
    behind = WriteBehind(disk, DiskThreads())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(behind.run)
        for i in range(16):
            await behind.add([(f"b{i}", bytes(MIB))])
        assert behind.get("b15") == bytes(MIB)
        with trio.fail_after(3):
            await behind.add([("dropped", bytes(MIB))])
        assert behind.get("dropped") is None
        # The disk writes again after some time.
        monkeypatch.setattr("jmapfs.content.write_behind._WAIT_SECONDS", 30)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(behind.add, [("waited", bytes(MIB))])
            await trio.testing.wait_all_tasks_blocked()
            disk.let.set()
        await behind.flush()
        assert behind.get("waited") is None
        nursery.cancel_scope.cancel()
    assert disk.missing(["waited", "dropped"]) == ["dropped"]
    assert disk.statistics().blobs == 17
    disk.close()


async def test_many_blobs_are_written_in_one_transaction(tmp_path: Path) -> None:
    disk = StuckDisk(tmp_path)
    behind = WriteBehind(disk, DiskThreads())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(behind.run)
        for i in range(200):
            await behind.add([(f"b{i}", bytes(8000))])
            await trio.lowlevel.checkpoint()
        disk.let.set()
        await behind.flush()
        nursery.cancel_scope.cancel()
    assert sum(disk.batches) == 200
    assert len(disk.batches) <= 3
    disk.close()


async def test_blobs_can_be_read_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let = threading.Event()
    put_many = DiskCache.put_many

    def slow(self: DiskCache, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        let.wait(10)
        return put_many(self, blobs)

    monkeypatch.setattr(DiskCache, "put_many", slow)
    source = FakeSource({"b": b"a: b"})
    async with serving(source, tmp_path, memory_limit=0) as content:
        for _ in range(3):
            assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"
        let.set()
    assert source.asked["b"] == 1
