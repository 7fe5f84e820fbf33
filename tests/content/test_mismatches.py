"""Content of another size is confirmed or refused; no lie of a server reaches a cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio

from jmapfs.content.confirmation import Route
from jmapfs.content.service import ContentService
from jmapfs.errors import BlobMismatchError
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
    source.stated["b"] = expected
    source.batch_limits = Limits(10)
    corrections = Corrections()
    async with serving(source, tmp_path, corrections=corrections) as content:
        with pytest.raises(BlobMismatchError):
            await content.read("b", expected, 0, 10)
        assert corrections.seen == [("b", actual)]
        assert bytes(await content.read("b", actual, 0, actual)) == data
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
    source.stated["b"], source.batch_limits = 5, Limits(10)
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
    source.stated["b"], source.batch_limits = 5, Limits(10)
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


async def test_a_stream_that_is_far_too_long_is_given_up(tmp_path: Path) -> None:
    source = FakeSource({"b": mail(70 * MIB)})
    source.chunk = 4 * MIB
    async with serving(source, tmp_path, disk_limit=256 * MIB) as content:
        with pytest.raises(BlobMismatchError):
            await content.read("b", 2 * MIB, 0, 10)
        assert not await needs_no_network(content, "b")


LIES = {
    "html": lambda data: b"<!DOCTYPE html><title>Sign in</title>".ljust(len(data)),
    "empty": lambda data: data[:0],
    "short": lambda data: data[:-40],
    "long": lambda data: data + b"x" * 40,
    "other": lambda data: mail(len(data) + 7),
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
    data = mail(size)
    key = "G" + hashlib.sha1(data, usedforsecurity=False).hexdigest()
    source = FakeSource({key: data})
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
