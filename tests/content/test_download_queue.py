"""Queued downloads: batches, fair turns, and failures that do not affect other blobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from jmapfs.content.download_queue import DownloadQueue
from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import Download
from jmapfs.errors import (
    BlobMismatchError,
    BlobNotFoundError,
    JmapfsError,
    MethodError,
    ServerError,
    UnreachableError,
)
from tests.content.server import MIB, FakeSource, Limits, mail, needs_no_network, serving
from tests.waits import wait_until_async


class Order:
    """A queue, and the blobs that it has published."""

    def __init__(self, content: ContentService, source: FakeSource) -> None:
        self.content = content
        self.source = source
        self.published: list[str] = []
        self.first = trio.Event()
        self.queue = DownloadQueue(self._publish)

    def add(self, *blob_ids: str, size: int = 100) -> None:
        downloads = []
        for blob_id in blob_ids:
            blob_size = len(self.source.blobs.get(blob_id, bytes(size)))
            download = self.content.create_download(blob_id, blob_size)
            assert download is not None
            downloads.append(download)
        self.content.downloads.add(self.queue, downloads)

    def create(self, blob_id: str) -> Download | None:
        """Create a download that is in no queue yet."""
        return self.content.create_download(blob_id, len(self.source.blobs[blob_id]))

    async def read(self, blob_id: str) -> None:
        """Read a blob."""
        data = self.source.blobs[blob_id]
        assert bytes(await self.content.read(blob_id, len(data), 0, len(data))) == data

    async def wait(self) -> None:
        with trio.fail_after(10):
            await self.queue.wait_until_empty()

    async def _publish(self, arrived: Sequence[tuple[str, bytes]]) -> set[str]:
        await trio.lowlevel.checkpoint()
        for blob_id, data in arrived:
            assert data == self.source.blobs[blob_id]
            self.published.append(blob_id)
        self.first.set()
        return set()


@asynccontextmanager
async def order(
    directory: Path, limits: Limits | None, *, count: int = 100, delay: float = 0.001
) -> AsyncIterator[Order]:
    source = FakeSource({f"b{number}": b"a:%d " % number * 100 for number in range(count)}, delay)
    source.batch_limits = limits
    async with serving(source, directory) as content:
        yield Order(content, source)


async def test_batches_are_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(40, 1000), count=200) as ordered:
        ordered.add(*ordered.source.blobs)
        await ordered.wait()
        assert sorted(ordered.published) == sorted(ordered.source.blobs)
        for batch in ordered.source.batches:
            assert len(batch) <= 40
            assert sum(len(ordered.source.blobs[blob_id]) for blob_id in batch) <= 1000
        assert ordered.source.asked == dict.fromkeys(ordered.source.blobs, 1)


async def test_blobs_are_fetched_one_by_one_without_blob_get(tmp_path: Path) -> None:
    async with order(tmp_path, None, delay=0.01) as ordered:
        ordered.add(*ordered.source.blobs)
        await ordered.wait()
        assert sorted(ordered.published) == sorted(ordered.source.blobs)
        assert ordered.source.batches == []
        # Two requests are left to readers.
        assert ordered.source.most_running == ordered.source.concurrency - 2


@pytest.mark.parametrize("concurrency", [1, 2, 3])
async def test_one_request_at_a_time_if_the_server_allows_few(
    tmp_path: Path, concurrency: int
) -> None:
    async with order(tmp_path, Limits(10)) as ordered:
        ordered.source.concurrency = concurrency
        ordered.add(*ordered.source.blobs)
        await ordered.wait()
        assert len(ordered.published) == 100
        assert ordered.source.most_running == 1


async def test_blobs_missing_from_a_batch_are_fetched_alone(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(50)) as ordered:
        ordered.source.unbatched = {"b7", "b33"}
        ordered.add(*ordered.source.blobs, "gone")
        assert ordered.content.create_download("gone", 100) is None
        await ordered.wait()
        assert sorted(ordered.published) == sorted(ordered.source.blobs)
        others = dict.fromkeys(ordered.source.blobs, 1) | {"b7": 2, "b33": 2, "gone": 2}
        assert ordered.source.asked == others
        with pytest.raises(BlobNotFoundError):
            await ordered.content.read("gone", 100, 0, 100)


async def test_wrong_content_fails_only_its_blob(tmp_path: Path) -> None:
    liar = "G" + "0" * 40
    async with order(tmp_path, Limits(50)) as ordered:
        ordered.source.blob_ids_are_sha1 = True
        ordered.source.blobs[liar] = b"not these"
        ordered.add(*ordered.source.blobs)
        await ordered.wait()
        assert sorted(ordered.published) == sorted(set(ordered.source.blobs) - {liar})
        assert not ordered.content.is_cached(liar)
        with pytest.raises(BlobMismatchError):
            await ordered.content.read(liar, 9, 0, 9)


@pytest.mark.parametrize("error", [MethodError("Blob/get", "serverFail", ""), ServerError("no")])
async def test_a_failed_batch_is_fetched_one_by_one(tmp_path: Path, error: JmapfsError) -> None:
    async with order(tmp_path, Limits(50)) as ordered:
        ordered.source.batch_error = error
        ordered.add(*ordered.source.blobs)
        await ordered.wait()
        assert sorted(ordered.published) == sorted(ordered.source.blobs)


async def test_the_queue_can_be_cancelled_after_a_batch_has_failed(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(50), delay=0.02) as ordered:
        ordered.source.batch_error = ServerError("no")
        ordered.add(*ordered.source.blobs)
        await ordered.first.wait()
        ordered.queue.cancel()
        await ordered.wait()
        # Only what was under way.
        assert ordered.source.asked.total() <= 3 * ordered.source.concurrency


async def test_the_queue_ends_without_a_network(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(10), delay=0.01) as ordered:
        ordered.source.error = ordered.source.batch_error = UnreachableError("no network")
        ordered.add(*ordered.source.blobs)
        await ordered.wait()
        assert ordered.published == []
        assert len(ordered.source.batches) < 10
        ordered.source.error = ordered.source.batch_error = None
        # No reader waits for a cancelled download.
        for blob_id, data in ordered.source.blobs.items():
            with trio.fail_after(5):
                assert bytes(await ordered.content.read(blob_id, len(data), 0, 9999)) == data


async def test_a_reader_has_priority_over_the_queue(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(10), count=1000, delay=0.02) as ordered:
        ordered.source.concurrency = 3
        ordered.add(*ordered.source.blobs)
        await trio.lowlevel.checkpoint()
        with trio.fail_after(5):
            data = ordered.source.blobs["b900"]
            assert bytes(await ordered.content.read("b900", len(data), 0, 9999)) == data
        # It left the queue: it did not wait for a hundred batches.
        assert len(ordered.source.batches) < 20
        await ordered.wait()
        assert ordered.source.asked == dict.fromkeys(ordered.source.blobs, 1)


async def test_large_blobs_are_fetched_alone(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(50, MIB)) as ordered:
        ordered.source.blobs |= {"large": mail(300_000), "huge": mail(2 * MIB)}
        ordered.add("b1", "large", "b2", "huge", "b3", "b4")
        await ordered.wait()
        assert ordered.source.batches == [["b3", "b4"]]
        assert ordered.source.asked == dict.fromkeys(["b1", "b2", "b3", "b4", "large", "huge"], 1)
        assert await needs_no_network(ordered.content, "huge")


async def test_queues_take_turns(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(32), count=400, delay=0.005) as ordered:
        other = Order(ordered.content, ordered.source)
        ordered.source.concurrency = 3
        ordered.add(*(f"b{number}" for number in range(320)))
        other.add(*(f"b{number}" for number in range(320, 400)))
        await other.wait()
        assert len(ordered.published) < 200
        await ordered.wait()


async def test_a_reader_takes_the_next_downloads_of_its_queue_along(tmp_path: Path) -> None:
    """A request for one blob and a request for fifty take the same time."""
    async with order(tmp_path, Limits(50), count=400, delay=0.05) as ordered:
        ordered.source.concurrency = 3
        ordered.add(*ordered.source.blobs)
        await trio.lowlevel.checkpoint()
        data = ordered.source.blobs["b300"]
        assert bytes(await ordered.content.read("b300", len(data), 0, 9999)) == data
        [beside] = [batch for batch in ordered.source.batches if "b300" in batch]
        assert beside[0] == "b300"
        assert len(beside) == 50
        await ordered.wait()
        assert ordered.source.asked == dict.fromkeys(ordered.source.blobs, 1)


async def test_one_request_is_left_to_readers_of_other_blobs(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(10), count=400, delay=0.05) as ordered:
        ordered.source.concurrency = 5
        ordered.source.blobs["other"] = mail(100)
        ordered.add(*(f"b{number}" for number in range(400)))
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            for number in range(300, 310):
                nursery.start_soon(ordered.read, f"b{number}")
            await trio.sleep(0.02)
            with trio.fail_after(1):
                await ordered.read("other")
        await ordered.wait()


def fill_queues(first: Order, count: int) -> list[Order]:
    """Add 20 blobs to a queue, and then to each of the others; return all `count` queues."""
    queues = [first, *(Order(first.content, first.source) for _ in range(count - 1))]
    for number, each in enumerate(queues):
        each.add(*(f"b{20 * number + one}" for one in range(20)))
    return queues


async def test_queues_with_few_downloads_share_a_request(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(100), count=120, delay=0.02) as ordered:
        ordered.source.concurrency = 3
        for each in fill_queues(ordered, 6):
            await each.wait()
            # Each queue gets its own content, and no other.
            assert len(each.published) == 20
        assert list(map(len, ordered.source.batches)) == [20, 100]


async def test_a_failed_request_of_several_queues_cancels_them(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(100), count=60, delay=0.01) as ordered:
        ordered.source.concurrency = 3
        queues = fill_queues(ordered, 3)
        ordered.source.batch_error = UnreachableError("no network")
        for each in queues:
            await each.wait()
            assert each.published == []
        ordered.source.batch_error = None
        await ordered.read("b1")


async def test_a_reader_of_an_imminent_download_waits_for_its_request(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(50), count=20) as ordered:
        downloads = [ordered.create(one) for one in ordered.source.blobs]
        queued = [one for one in downloads if one is not None]
        for download in queued:
            download.is_imminent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ordered.read, "b7")
            await trio.sleep(0.02)
            assert not ordered.source.asked
            ordered.content.downloads.add(ordered.queue, queued)
            for download in queued:
                download.release()
        await ordered.wait()
        assert list(map(len, ordered.source.batches)) == [20]


async def test_an_imminent_download_that_is_released_is_requested_for_its_reader(
    tmp_path: Path,
) -> None:
    async with order(tmp_path, Limits(50), count=20) as ordered:
        download = ordered.create("b7")
        assert download is not None
        download.is_imminent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ordered.read, "b7")
            await trio.sleep(0.02)
            assert not ordered.source.asked
            download.release()
        assert ordered.source.asked == {"b7": 1}


async def test_closing_the_service_ends_the_queue(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with order(tmp_path, Limits(10), delay=60) as ordered:
            ordered.add(*ordered.source.blobs)
            await wait_until_async(lambda: ordered.source.running > 0)
    assert ordered.published == []


async def test_readers_fetch_the_blobs_of_a_cancelled_queue(tmp_path: Path) -> None:
    async with order(tmp_path, Limits(10), delay=0.01) as ordered:
        ordered.add(*ordered.source.blobs)
        ordered.queue.cancel()
        await ordered.wait()
        assert len(ordered.source.batches) <= 6
        data = ordered.source.blobs["b99"]
        assert bytes(await ordered.content.read("b99", len(data), 0, 9999)) == data
