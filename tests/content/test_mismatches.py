"""A blob of another size is reported and kept; one of another digest is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import trio

from jmapfs.content.service import ContentService
from jmapfs.errors import BlobMismatchError
from tests.content.server import MIB, Corrections, FakeSource, needs_no_network, serving


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (50, 40),
        (40, 50),
        (0, 50),
        (2 * MIB, 50),
        (50, 2 * MIB),
        (2 * MIB, 3 * MIB),
        (3 * MIB, 2 * MIB),
    ],
)
async def test_another_size_is_reported_and_the_content_kept(
    tmp_path: Path, actual: int, expected: int
) -> None:
    data = os.urandom(actual)
    source = FakeSource({"b": data})
    corrections = Corrections()
    async with serving(source, tmp_path, corrections=corrections) as content:
        with pytest.raises(BlobMismatchError):
            await content.read("b", expected, 0, 10)
        assert corrections.seen == [("b", actual)]
        assert bytes(await content.read("b", actual, 0, actual)) == data
    async with serving(FakeSource(), tmp_path, corrections=corrections) as content:
        with pytest.raises(BlobMismatchError):
            await content.read("b", expected, 0, 10)
        assert corrections.seen == [("b", actual)] * 2
        assert bytes(await content.read("b", actual, 0, actual)) == data
    assert source.asked["b"] == 1


async def test_many_readers_report_a_wrong_size_once(tmp_path: Path) -> None:
    corrections = Corrections()
    failed = 0

    async def reader(content: ContentService) -> None:
        nonlocal failed
        with pytest.raises(BlobMismatchError):
            await content.read("b", 5, 0, 4)
        failed += 1

    source = FakeSource({"b": b"mail"}, delay=0.02)
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
    source = FakeSource({"b": b"mail"})
    async with serving(source, tmp_path, corrections=corrections) as content:
        for _ in range(2):
            with pytest.raises(BlobMismatchError):
                await content.read("b", 5, 0, 4)
        assert bytes(await content.read("b", 4, 0, 4)) == b"mail"
    assert len(corrections.seen) == 2
    assert "corrected" in caplog.text


@pytest.mark.parametrize("size", [100, 700_000, 2 * MIB])
async def test_content_must_have_the_sha1_in_its_blob_id(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
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
    assert source.asked[wrong] == 2
    source.blob_ids_are_sha1 = False
    async with serving(source, tmp_path) as content:
        assert len(await content.read(wrong, size, 0, size)) == size


async def test_a_stream_that_is_far_too_long_is_given_up(tmp_path: Path) -> None:
    source = FakeSource({"b": bytes(70 * MIB)})
    source.chunk = 4 * MIB
    async with serving(source, tmp_path, disk_limit=256 * MIB) as content:
        with pytest.raises(BlobMismatchError):
            await content.read("b", 2 * MIB, 0, 10)
        assert not await needs_no_network(content, "b")
