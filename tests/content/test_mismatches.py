"""Content of another size is confirmed or refused; no lie of a server reaches a cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio

from jmapfs.content.confirmation import Route, most_bytes
from jmapfs.content.service import ContentService
from jmapfs.errors import BlobMismatchError
from tests.allocations import peak_memory
from tests.content.server import (
    MIB,
    Corrections,
    FakeSource,
    Limits,
    mail,
    needs_no_network,
    serving,
)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (50, 40),
        (40, 50),
        (2 * MIB, 50),
        (50, 2 * MIB),
        (2 * MIB, 3 * MIB),
        (3 * MIB, 2 * MIB),
    ],
)
async def test_another_size_is_reported_and_the_content_kept(
    tmp_path: Path, actual: int, expected: int
) -> None:
    data = mail(actual)
    source = FakeSource({"b": data})
    source.wrong_sizes["b"] = expected
    source.batch_limits = Limits(10)
    corrections = Corrections()
    async with serving(source, tmp_path, corrections=corrections) as content:
        with pytest.raises(BlobMismatchError):
            await content.read("b", expected, 0, 10)
        assert corrections.seen == [("b", actual)]
        assert bytes(await content.read("b", actual, 0, actual)) == data
        assert (content.counters.confirmed, content.counters.refused) == (1, 0)
    # Another process does not know that the content was confirmed.
    async with serving(source, tmp_path, corrections=corrections) as content:
        with pytest.raises(BlobMismatchError):
            await content.read("b", expected, 0, 10)
        assert corrections.seen == [("b", actual)] * 2
        assert bytes(await content.read("b", actual, 0, actual)) == data
    assert source.asked["b"] == 4


async def test_many_readers_report_a_wrong_size_once(tmp_path: Path) -> None:
    corrections = Corrections()
    failed = 0

    async def reader(content: ContentService) -> None:
        nonlocal failed
        with pytest.raises(BlobMismatchError):
            await content.read("b", 5, 0, 4)
        failed += 1

    source = FakeSource({"b": b"a: b"}, delay=0.02)
    source.wrong_sizes["b"], source.batch_limits = 5, Limits(10)
    async with (
        serving(source, tmp_path, corrections=corrections) as content,
        trio.open_nursery() as nursery,
    ):
        for _ in range(20):
            nursery.start_soon(reader, content)
    assert failed == 20
    assert corrections.seen == [("b", 4)]


async def test_a_failed_correction_has_no_other_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corrections = Corrections()
    corrections.error = ZeroDivisionError()
    source = FakeSource({"b": b"a: b"})
    source.wrong_sizes["b"], source.batch_limits = 5, Limits(10)
    async with serving(source, tmp_path, corrections=corrections) as content:
        for _ in range(2):
            with pytest.raises(BlobMismatchError):
                await content.read("b", 5, 0, 4)
        assert bytes(await content.read("b", 4, 0, 4)) == b"a: b"
    assert len(corrections.seen) == 2
    assert "corrected" in caplog.text


@pytest.mark.parametrize("size", [100, 700_000, 2 * MIB])
async def test_content_must_have_the_sha1_in_its_blob_id(tmp_path: Path, size: int) -> None:
    data = mail(size)
    right = "G" + hashlib.sha1(data, usedforsecurity=False).hexdigest()
    wrong = "G" + "0" * 40
    source = FakeSource({right: data, wrong: data, "G" + "A" * 40: data})
    source.blob_ids_are_sha1 = True
    async with serving(source, tmp_path) as content:
        for blob_id in (right, "G" + "A" * 40):
            assert len(await content.read(blob_id, size, 0, size)) == size
        for _ in range(2):
            with pytest.raises(BlobMismatchError):
                await content.read(wrong, size, 0, 10)
        assert not await needs_no_network(content, wrong)
    assert source.asked[wrong] == 4
    assert not source.questions[1:]
    source.blob_ids_are_sha1 = False
    async with serving(source, tmp_path) as content:
        assert len(await content.read(wrong, size, 0, size)) == size


@pytest.mark.parametrize("size", [50, 2 * MIB])
async def test_a_stream_that_is_far_too_long_is_given_up(tmp_path: Path, size: int) -> None:
    source = FakeSource({"b": mail(40 * MIB)})
    source.wrong_sizes["b"], source.batch_limits = size, Limits(10)
    source.chunk = 4 * MIB
    allowed = most_bytes(size) + source.chunk
    async with serving(source, tmp_path, disk_limit=256 * MIB) as content:
        with peak_memory() as peak:
            with pytest.raises(BlobMismatchError, match="sent more than"):
                await content.read("b", size, 0, 10)
            assert peak() < 2 * allowed
        assert source.sent_bytes <= 2 * allowed
        assert not await needs_no_network(content, "b")


def other_mail(size: int) -> bytes:
    return b"Message-ID: <two@example.org>\n\n" + mail(size - 31)


LIES = {
    "html": lambda data: b"<!DOCTYPE html><title>Sign in</title>".ljust(len(data)),
    "empty": lambda data: data[:0],
    "short": lambda data: data[:-40],
    "long": lambda data: data + b"x" * 40,
    "other": lambda data: mail(len(data) + 7),
    "other of equal size": lambda data: other_mail(len(data)),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("size", [3000, 2 * MIB])
@pytest.mark.parametrize("route", Route)
@pytest.mark.parametrize("lies", [1, -1])
@pytest.mark.parametrize("sha1", [False, True])
@pytest.mark.parametrize("batches", [False, True])
async def test_no_lie_reaches_a_reader_or_a_cache(
    tmp_path: Path, lie: str, size: int, route: Route, lies: int, *, sha1: bool, batches: bool
) -> None:
    data = b"Message-ID: <one@example.org>\n" + mail(size - 30)
    key = "G" + hashlib.sha1(data, usedforsecurity=False).hexdigest()
    source = FakeSource({key: data})
    source.message_ids[key] = ("one@example.org",)
    source.blob_ids_are_sha1 = sha1
    source.batch_limits = Limits(10) if batches else None
    source.lie, source.lie_routes, source.lies = LIES[lie], {route}, lies
    source.lie_type = "text/html" if lie == "html" else ""
    corrections = Corrections()
    async with serving(source, tmp_path, corrections=corrections) as content:
        try:
            assert bytes(await content.read(key, size, 0, size)) == data
        except BlobMismatchError:
            assert not await needs_no_network(content, key)
            assert content.counters.refused == 1
        source.lie = None
        assert bytes(await content.read(key, size, 0, size)) == data
        assert corrections.seen == []
    async with serving(FakeSource(), tmp_path) as content:
        assert bytes(await content.read(key, size, 0, size)) == data


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("size", [3000, 2 * MIB])
async def test_another_mail_of_equal_size_is_refused_by_its_message_id(
    tmp_path: Path, size: int, *, batches: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data = b"Message-ID: <one@example.org>\n" + mail(size - 30)
    source = FakeSource({"b": data})
    source.message_ids["b"] = ("one@example.org",)
    source.batch_limits = Limits(10) if batches else None
    source.lie = lambda _: other_mail(size)
    async with serving(source, tmp_path) as content:
        with pytest.raises(BlobMismatchError, match="Message-ID is not the one"):
            await content.read("b", size, 0, size)
        assert not await needs_no_network(content, "b")
    assert "the file of b is not served: the Message-ID" in caplog.text


@pytest.mark.parametrize("size", [3000, 2 * MIB])
async def test_a_digest_settles_a_doubt_about_a_message_id(tmp_path: Path, size: int) -> None:
    data = other_mail(size)
    source = FakeSource({"b": data})
    source.message_ids["b"] = ("made.up.by.the.server@example.org",)
    source.digest_algorithm = "sha-256"
    async with serving(source, tmp_path) as content:
        assert bytes(await content.read("b", size, 0, size)) == data
    assert source.attempts == [(Route.DOWNLOAD, False), (Route.DOWNLOAD, True)]


@pytest.mark.parametrize("cut_at", [0.1, 0.3])
async def test_an_interrupted_attempt_leaves_no_file(tmp_path: Path, cut_at: float) -> None:
    source = FakeSource({"b": mail(3 * MIB)}, delay=0.2)
    source.lie, source.lies = lambda data: data[:-40], 1
    async with serving(source, tmp_path) as content:
        with trio.move_on_after(cut_at):
            await content.read("b", 3 * MIB, 0, 10)
    # The end of the service cancels the first attempt, or the second one.
    assert len(source.attempts) == (1 if cut_at < source.delay else 2)
    assert not list((tmp_path / "cache" / "large").iterdir())
    assert source.running == 0


async def test_cached_content_of_another_size_is_fetched_once(tmp_path: Path) -> None:
    old, data = mail(2000), mail(3000)
    async with serving(FakeSource({"b": old}), tmp_path) as content:
        assert bytes(await content.read("b", 2000, 0, 2000)) == old
    source = FakeSource({"b": data})
    async with serving(source, tmp_path) as content, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(content.read, "b", 3000, 0, 3000)
    assert source.asked["b"] == 1
    async with serving(FakeSource(), tmp_path) as content:
        assert bytes(await content.read("b", 3000, 0, 3000)) == data
