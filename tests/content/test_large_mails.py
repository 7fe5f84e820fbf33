"""The beginning of a large mail is read before the rest has arrived, if it can be confirmed."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from jmapfs.cache.large_files import LargeWriter
from jmapfs.content import arrival
from jmapfs.content.confirmation import Route
from jmapfs.content.prefetch import Prefetcher
from jmapfs.content.service import ContentService
from jmapfs.errors import BlobMismatchError, JmapfsError, StorageError, UnreachableError
from tests.content.server import MIB, FakeSource, mail, needs_no_network, serving
from tests.waits import wait_until_async

_SIZE = 20 * MIB
_PIECE = 128 * 1024


class Large:
    """A large mail on a server without SHA-1 ids, whose download URL announces the length."""

    def __init__(self, source: FakeSource, content: ContentService) -> None:
        self.source = source
        self.content = content
        [(self.key, self.data)] = source.blobs.items()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the file open while the context lasts."""
        self.content.hold("large")
        try:
            yield
        finally:
            self.content.release("large")

    async def read(self, offset: int, length: int = _PIECE) -> bytes:
        return bytes(await self.content.read(self.key, _SIZE, offset, length))

    async def read_all(self) -> None:
        """Read it as `cat` does, and compare the content."""
        with self.opened():
            for offset in range(0, _SIZE, _PIECE):
                assert await self.read(offset) == self.data[offset : offset + _PIECE]

    async def ends(self) -> None:
        """Return when no download is running."""
        await wait_until_async(lambda: self.content.get_download("large") is None)


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource({"large": b"Message-ID: <large@x>\nSubject: s\n\n" + mail(_SIZE)[:-34]})
    assert len(source.blobs["large"]) == _SIZE
    source.message_ids = {"large": ("large@x",)}
    source.announces = True
    return source


@asynccontextmanager
async def large(source: FakeSource, directory: Path) -> AsyncIterator[Large]:
    async with serving(source, directory) as content:
        yield Large(source, content)


async def test_the_head_of_a_large_mail_downloads_little(
    source: FakeSource, tmp_path: Path
) -> None:
    async with large(source, tmp_path) as mine:
        assert await mine.read(0, 1000) == mine.data[:1000]
        await mine.ends()
        assert source.sent_bytes < 2 * MIB
        assert not await needs_no_network(mine.content, "large")


async def test_the_beginning_is_served_before_the_end_has_arrived(
    source: FakeSource, tmp_path: Path
) -> None:
    async with large(source, tmp_path) as mine:
        with mine.opened():
            for offset in range(0, 4 * MIB, _PIECE):
                assert await mine.read(offset) == mine.data[offset : offset + _PIECE]
                # At most twice as much as was read, and a little more.
                assert source.sent_bytes <= 2 * (offset + _PIECE) + 2 * MIB
        await mine.ends()
        assert source.asked == {"large": 1}


async def test_a_large_mail_that_is_read_to_its_end_is_downloaded_once(
    source: FakeSource, tmp_path: Path
) -> None:
    async with large(source, tmp_path) as mine:
        await mine.read_all()
        assert source.asked == {"large": 1}
        assert source.sent_bytes == _SIZE
        assert await needs_no_network(mine.content, "large")


async def test_a_file_that_stays_open_is_downloaded_whole(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "_PAUSE_SECONDS", 0.5)
    async with large(source, tmp_path) as mine:
        with mine.opened():
            await mine.read(0)
            await trio.sleep(0.05)
            assert source.sent_bytes < 2 * MIB
            await mine.ends()
            assert source.sent_bytes == _SIZE
            assert await mine.read(_SIZE - 10) == mine.data[-10:]
        assert source.asked == {"large": 1}


async def test_a_slow_reader_does_not_reach_the_deadline(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its reads ends a pause. All pauses together are short."""
    monkeypatch.setattr(arrival, "_PAUSE_SECONDS", 0.2)
    async with large(source, tmp_path) as mine:
        with mine.opened():
            await mine.read(0)
            reads = 1
            while mine.content.get_download("large") is not None:
                await mine.read(reads * _PIECE)
                await trio.sleep(0.05)
                reads += 1
            assert source.sent_bytes == _SIZE
            # As fast as it reads, it would need about 75.
            assert reads < 40


async def test_several_readers_share_the_arriving_mail(source: FakeSource, tmp_path: Path) -> None:
    async with large(source, tmp_path) as mine:

        async def check(offset: int) -> None:
            assert await mine.read(offset) == mine.data[offset : offset + _PIECE]

        with mine.opened():
            async with trio.open_nursery() as nursery:
                for offset in range(0, _SIZE, MIB):
                    nursery.start_soon(check, offset)
    assert source.asked == {"large": 1}


async def test_the_end_of_a_large_mail(source: FakeSource, tmp_path: Path) -> None:
    async with large(source, tmp_path) as mine:
        assert await mine.read(_SIZE - 1000) == mine.data[-1000:]
        assert source.asked == {"large": 1}


async def test_a_reader_that_gives_up_leaves_the_download_running(
    source: FakeSource, tmp_path: Path
) -> None:
    async with large(source, tmp_path) as mine:
        source.delay = 0.1
        with trio.move_on_after(0.05):
            await mine.read(_SIZE - 1000)
        await mine.ends()
        assert await needs_no_network(mine.content, "large")


async def test_prefetch_gets_all_of_a_mail_whose_head_is_read(
    source: FakeSource, tmp_path: Path
) -> None:
    async with large(source, tmp_path) as mine:
        prefetcher = Prefetcher(mine.content, mine.content._disk)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetcher.fetch, {"large": _SIZE}, 30.0)
            await mine.read(0, 1000)
        assert await needs_no_network(mine.content, "large")


async def test_prefetch_gets_all_of_a_mail_that_a_reader_requests_first(
    source: FakeSource, tmp_path: Path
) -> None:
    source.blobs["other"] = mail(_SIZE)
    source.concurrency = 1
    async with serving(source, tmp_path) as content:
        prefetcher = Prefetcher(content, content._disk)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetcher.fetch, {"other": _SIZE, "large": _SIZE}, 30.0)
            await wait_until_async(lambda: content.get_download("large") is not None)
            await content.read("large", _SIZE, 0, 1000)
        assert await needs_no_network(content, "large")
    assert source.asked == {"large": 1, "other": 1}


async def test_a_disk_that_becomes_full_after_the_beginning(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other download may provide the rest."""
    write = LargeWriter.write

    def write_a_part(writer: LargeWriter, data: bytes) -> None:
        if writer.size > 4 * MIB:
            raise OSError(errno.ENOSPC, "no space")
        write(writer, data)

    monkeypatch.setattr(LargeWriter, "write", write_a_part)
    async with large(source, tmp_path) as mine:
        with mine.opened():
            assert await mine.read(0) == mine.data[:_PIECE]
            with pytest.raises(StorageError):
                await mine.read(8 * MIB)
        assert source.asked == {"large": 1}


# --- What cannot be confirmed early


def with_sha1_ids(source: FakeSource) -> None:
    source.blob_ids_are_sha1 = True
    [data] = source.blobs.values()
    source.blobs = {f"G{hashlib.sha1(data, usedforsecurity=False).hexdigest()}": data}


def without_an_announced_length(source: FakeSource) -> None:
    source.announces = False


@pytest.mark.parametrize("change", [without_an_announced_length, with_sha1_ids])
async def test_a_beginning_that_is_not_confirmed_waits_for_the_end(
    source: FakeSource, tmp_path: Path, change: Callable[[FakeSource], None]
) -> None:
    change(source)
    async with large(source, tmp_path) as mine:
        assert await mine.read(0, 1000) == mine.data[:1000]
        assert source.sent_bytes == _SIZE


async def test_a_sha1_proves_nothing_before_the_last_byte(
    source: FakeSource, tmp_path: Path
) -> None:
    """The server has lost the end of a mail, and sends zeros."""
    with_sha1_ids(source)
    source.lie = lambda data: data[: _SIZE // 2] + bytes(_SIZE // 2)
    async with large(source, tmp_path) as mine:
        with pytest.raises(BlobMismatchError):
            await mine.read(0, 1000)


def other_mail(data: bytes) -> bytes:
    return data.replace(b"large@x", b"other@x", 1)


def too_long(data: bytes) -> bytes:
    return data + b"more"


def too_short(data: bytes) -> bytes:
    return data[: _SIZE // 2]


def web_page(data: bytes) -> bytes:
    return (b"<!DOCTYPE html><html>" + data)[: len(data)]


def no_header(data: bytes) -> bytes:
    return b"\n\n" + data[2:]


@pytest.mark.parametrize("lie", [other_mail, too_long, too_short, web_page, no_header])
@pytest.mark.parametrize("lies", [1, -1])
async def test_no_lie_about_a_large_mail_reaches_a_reader(
    source: FakeSource, tmp_path: Path, lie: Callable[[bytes], bytes], lies: int
) -> None:
    source.lie, source.lies = lie, lies
    async with large(source, tmp_path) as mine:
        if lies > 0:
            # The second attempt is right.
            assert await mine.read(0, 1000) == mine.data[:1000]
        else:
            with pytest.raises(JmapfsError):
                await mine.read(0, 1000)


async def test_a_mail_that_breaks_off_after_its_beginning(
    source: FakeSource, tmp_path: Path
) -> None:
    """What was read stays true, what follows is an error, and the next open tries again."""
    async with large(source, tmp_path) as mine:
        with mine.opened():
            source.break_after = 6 * MIB
            assert await mine.read(0) == mine.data[:_PIECE]
            with pytest.raises(UnreachableError):
                await mine.read(8 * MIB)
        assert not await needs_no_network(mine.content, "large")
        source.break_after = None
        await mine.read_all()


async def test_a_mail_that_is_another_one_at_its_end(source: FakeSource, tmp_path: Path) -> None:
    """After a part was served, no other route may provide the rest."""
    async with large(source, tmp_path) as mine:
        with mine.opened():
            assert await mine.read(0) == mine.data[:_PIECE]
            source.message_ids = {"large": ("other@x",)}
            with pytest.raises(BlobMismatchError):
                await mine.read(_SIZE - 10)
            assert source.attempts == [(Route.DOWNLOAD, False)]
        assert not await needs_no_network(mine.content, "large")
