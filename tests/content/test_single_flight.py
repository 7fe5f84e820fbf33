"""One download for all readers of a blob, even if some of them leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import DownloadState
from jmapfs.errors import DeadlineError, UnreachableError
from tests.content.server import MIB, FakeSource, mail, needs_no_network, serving
from tests.waits import wait_until_async


@pytest.mark.parametrize("size", [400_000, 4 * MIB])
async def test_fifty_readers_share_one_download(tmp_path: Path, size: int) -> None:
    data = mail(size)
    source = FakeSource({"b": data}, delay=0.1)
    served = 0

    async def reader(content: ContentService, number: int) -> None:
        nonlocal served
        length = size // 50
        with trio.move_on_after(0.02 if number % 3 == 0 else 30):
            content.hold("b")
            try:
                piece = await content.read("b", size, number * length, length)
            finally:
                content.release("b")
            assert bytes(piece) == data[number * length :][:length]
            served += 1

    async with serving(source, tmp_path) as content, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(reader, content, number)
    assert served == 33
    assert source.asked["b"] == 1


async def test_the_download_outlives_its_last_reader(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b"}, delay=0.5)
    async with serving(source, tmp_path) as content:
        with trio.move_on_after(0.05):
            await content.read("b", 4, 0, 4)
        assert not await needs_no_network(content, "b")
        await wait_until_async(lambda: content.is_cached("b"))
    assert source.asked["b"] == 1


async def test_the_next_read_joins_a_download_after_a_deadline(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b"}, delay=2)
    async with serving(source, tmp_path, read_timeout=0.05) as content:
        with pytest.raises(DeadlineError):
            await content.read("b", 4, 0, 4)
        with pytest.raises(DeadlineError):
            await content.read("b", 4, 0, 4, timeout=0.01)
        assert bytes(await content.read("b", 4, 0, 4, timeout=10)) == b"a: b"
    assert source.asked["b"] == 1


async def test_a_download_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b"}, delay=60)
    async with serving(source, tmp_path, download_timeout=0.1) as content:
        with pytest.raises(DeadlineError):
            await content.read("b", 4, 0, 4)
        assert source.running == 0
        assert source.deadlines[0] <= 0.1
        source.delay = 0
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"


@pytest.mark.parametrize("size", [MIB, 2 * MIB])
async def test_bytes_that_arrive_give_a_read_more_time(tmp_path: Path, size: int) -> None:
    source = FakeSource({"b": mail(size)})
    source.chunk, source.pause = 256 * 1024, 0.2
    async with serving(source, tmp_path, read_timeout=0.4, download_timeout=0.4) as content:
        assert len(await content.read("b", size, size - 100, 100)) == 100


async def test_a_stated_size_gives_a_read_no_time(tmp_path: Path) -> None:
    """A mail said to have 2^50 bytes comes as a trickle."""
    source = FakeSource({"b": mail(MIB)})
    source.wrong_sizes["b"] = 2**50
    source.chunk, source.pause = 100, 0.05
    async with serving(source, tmp_path, read_timeout=0.3, download_timeout=0.5) as content:
        began = trio.current_time()
        with pytest.raises(DeadlineError):
            await content.read("b", 2**50, 2**40, 100)
        assert trio.current_time() - began < 1
        await wait_until_async(lambda: not source.running)
        assert trio.current_time() - began < 2


async def test_an_error_is_raised_in_all_readers(tmp_path: Path) -> None:
    source = FakeSource(delay=0.05)
    source.error = UnreachableError("no network")
    failed = 0

    async def reader(content: ContentService) -> None:
        nonlocal failed
        with pytest.raises(UnreachableError):
            await content.read("b", 4, 0, 4)
        failed += 1

    async with serving(source, tmp_path) as content, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(reader, content)
    assert failed == 10
    assert source.asked["b"] == 1


async def test_parallel_downloads_are_limited(tmp_path: Path) -> None:
    source = FakeSource({f"b{i}": b"a: b" for i in range(30)}, delay=0.01)
    async with (
        serving(source, tmp_path, parallel_downloads=3) as content,
        trio.open_nursery() as nursery,
    ):
        for blob_id in source.blobs:
            nursery.start_soon(content.read, blob_id, 4, 0, 4)
    assert source.most_running == 3
    assert sum(source.asked.values()) == 30


async def test_a_download_without_readers_does_not_start(tmp_path: Path) -> None:
    source = FakeSource({"slow": b"a: b", "b": b"a: b"}, delay=1)
    async with serving(source, tmp_path, parallel_downloads=1) as content:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(content.read, "slow", 4, 0, 4)
            await wait_until_async(lambda: source.running == 1)
            with trio.move_on_after(0.05):
                await content.read("b", 4, 0, 4)
        assert source.asked == {"slow": 1}
        source.delay = 0
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"


async def test_closing_ends_running_downloads(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b", "l": mail(2 * MIB)}, delay=60)
    ended = 0

    async def reader(content: ContentService, blob_id: str, size: int) -> None:
        nonlocal ended
        with pytest.raises(UnreachableError):
            await content.read(blob_id, size, 0, 4)
        ended += 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            async with serving(source, tmp_path) as content:
                nursery.start_soon(reader, content, "b", 4)
                nursery.start_soon(reader, content, "l", 2 * MIB)
                await wait_until_async(lambda: source.running == 2)
            with pytest.raises(UnreachableError):
                await content.read("other", 4, 0, 4)
    assert ended == 2
    assert list((tmp_path / "cache" / "large").iterdir()) == []


async def test_closing_ends_queued_downloads_that_are_read(tmp_path: Path) -> None:
    async with serving(FakeSource({"b": b"a: b"}), tmp_path) as content:
        assert content.create_download("b", 4) is not None
    with pytest.raises(UnreachableError):
        await content.read("b", 4, 0, 4)


async def test_closing_when_cancelled_still_writes(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b"})
    with trio.CancelScope() as scope:
        async with serving(source, tmp_path) as content:
            await content.read("b", 4, 0, 4)
            scope.cancel()
    async with serving(FakeSource(), tmp_path) as content:
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"


async def test_a_reader_waits_for_content_that_is_being_loaded(tmp_path: Path) -> None:
    source = FakeSource({"d": b"a: b"})
    results: list[bytes] = []

    async def reader(content: ContentService, blob_id: str) -> None:
        results.append(bytes(await content.read(blob_id, 4, 0, 4)))

    async def nobody(contents: Sequence[tuple[str, bytes]]) -> set[str]:
        raise AssertionError(contents)

    async with serving(source, tmp_path) as content:
        loaded = content.create_download("b", 4)
        cancelled = content.create_download("d", 4)
        assert loaded is not None
        assert cancelled is not None
        assert loaded.start()
        assert cancelled.start()
        assert content.create_download("b", 4) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, content, "b")
            nursery.start_soon(reader, content, "d")
            await trio.testing.wait_all_tasks_blocked()
            assert loaded.waiters == cancelled.waiters == 1
            await content.publish([(loaded, b"A: b")], nobody)
            cancelled.cancel()
        assert loaded.state is DownloadState.DONE
        assert content.is_cached("b")
        assert content.cached("b") == b"A: b"
        assert content.create_download("b", 4) is None
    assert sorted(results) == [b"A: b", b"a: b"]
    assert source.asked == {"d": 1}


async def test_a_reader_starts_a_queued_download(tmp_path: Path) -> None:
    source = FakeSource({"b": b"a: b", "c": b"A: b"})
    async with serving(source, tmp_path) as content:
        wanted = content.create_download("b", 4)
        unwanted = content.create_download("c", 4)
        assert wanted is not None
        assert unwanted is not None
        with trio.fail_after(5):
            assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"
        assert wanted.state is DownloadState.DONE
        assert not wanted.start()
        assert unwanted.start()
        unwanted.cancel()
    assert source.asked == {"b": 1}


async def test_a_reader_that_comes_during_publishing_is_answered_at_once(tmp_path: Path) -> None:
    """The kernel does not return from publishing before this reader has its answer."""
    async with serving(FakeSource(), tmp_path) as content:
        download = content.create_download("b", 4)
        assert download is not None
        assert download.start()

        async def publish(contents: Sequence[tuple[str, bytes]]) -> set[str]:
            assert contents == [("b", b"a: b")]
            assert download.state is DownloadState.PUBLISHING
            assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"
            return {"b"}

        with trio.fail_after(5):
            await content.publish([(download, b"a: b")], publish)
        assert download.state is DownloadState.DONE
