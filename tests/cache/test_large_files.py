"""Large blobs are written and read in chunks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.large_files import LargeBlob
from jmapfs.errors import StorageError
from tests.cache.stored import store, stored

MIB = 1024 * 1024


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    opened = DiskCache(tmp_path, 16 * MIB, reserve_bytes=0)
    yield opened
    opened.close()


def write(cache: DiskCache, blob_id: str, data: bytes) -> bool:
    writer = cache.begin_large(blob_id, len(data))
    assert writer is not None
    with writer:
        for offset in range(0, len(data), 100_000):
            writer.write(data[offset : offset + 100_000])
        return writer.commit()


def files(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "large").iterdir()]


def test_any_part_can_be_read(cache: DiskCache) -> None:
    data = os.urandom(3 * MIB + 17)
    assert write(cache, "b", data)
    blob = cache.open_large("b")
    assert blob is not None
    with blob:
        assert blob.size == len(data)
        assert blob.pread(100, 0) == data[:100]
        assert blob.pread(5 * MIB, MIB) == data[MIB:]
        assert blob.pread(100, len(data)) == b""
        assert blob.pread(100, len(data) - 1) == data[-1:]
    with pytest.raises(StorageError):
        blob.pread(1, 0)
    blob.close()


def test_a_blob_is_missing_before_commit(cache: DiskCache, tmp_path: Path) -> None:
    writer = cache.begin_large("b")
    assert writer is not None
    writer.write(b"half")
    assert cache.open_large("b") is None
    assert cache.missing(["b"])
    writer.abort()
    writer.abort()
    assert files(tmp_path) == []
    assert cache.missing(["b"])


def test_a_writer_without_commit_leaves_no_file(cache: DiskCache, tmp_path: Path) -> None:
    writer = cache.begin_large("b")
    assert writer is not None
    with writer:
        writer.write(b"half")
    assert files(tmp_path) == []


def test_a_blob_can_be_read_after_commit(cache: DiskCache) -> None:
    writer = cache.begin_large("b")
    assert writer is not None
    with writer:
        writer.write(b"mail" * 1000)
        assert writer.commit()
        blob = writer.detach()
    with blob:
        assert blob.pread(4, 4) == b"mail"
    assert stored(cache, "b") == b"mail" * 1000


def test_a_blob_that_cannot_be_stored_can_be_read(cache: DiskCache, tmp_path: Path) -> None:
    for expected in (0, 17 * MIB):
        writer = cache.begin_large("b", expected)
        assert writer is not None
        assert files(tmp_path) == [] or not expected
        with writer:
            for _ in range(17):
                writer.write(bytes(MIB))
            assert not writer.commit()
            blob = writer.detach()
        assert files(tmp_path) == []
        with blob:
            assert blob.size == 17 * MIB
            assert blob.pread(10, 17 * MIB - 10) == bytes(10)
    assert cache.statistics().blobs == 0


def test_large_blobs_are_files_even_with_a_limit_of_zero(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "none", 0)
    writer = cache.begin_large("b", 2 * MIB)
    assert writer is not None
    with writer:
        writer.write(b"mail")
        assert not writer.commit()
        with writer.detach() as blob:
            assert blob.pread(10, 0) == b"mail"
    assert files(tmp_path / "none") == []
    cache.close()


def test_open_blobs_are_not_evicted(cache: DiskCache) -> None:
    assert write(cache, "open", os.urandom(6 * MIB))
    assert write(cache, "other", os.urandom(6 * MIB))
    blob = cache.open_large("open")
    assert blob is not None
    stored(cache, "other")
    with blob:
        assert write(cache, "new", os.urandom(6 * MIB))
        assert not cache.missing(["open"])
        assert cache.missing(["other"])
    assert write(cache, "newer", os.urandom(6 * MIB))
    assert cache.missing(["open"])


def test_an_open_blob_can_be_read_after_its_removal(cache: DiskCache, tmp_path: Path) -> None:
    data = os.urandom(2 * MIB)
    write(cache, "b", data)
    blob = cache.open_large("b")
    assert blob is not None
    cache.discard("b")
    assert files(tmp_path) == []
    with blob:
        assert blob.pread(len(data), 0) == data


def test_a_forgotten_blob_is_closed_by_the_garbage_collector(cache: DiskCache) -> None:
    write(cache, "b", bytes(2 * MIB))
    blob = cache.open_large("b")
    assert blob is not None
    del blob
    # The fixture looks for leaked files.


def test_partial_files_are_removed_unless_their_writer_exists(tmp_path: Path) -> None:
    first = DiskCache(tmp_path, 16 * MIB, reserve_bytes=0)
    writer = first.begin_large("living")
    assert writer is not None
    writer.write(b"mail")
    (tmp_path / "large" / ".partial-0123").write_bytes(b"dead")
    (tmp_path / "large" / ("0" * 32)).write_bytes(b"no entry")
    second = DiskCache(tmp_path, 16 * MIB, reserve_bytes=0)
    assert len(files(tmp_path)) == 1
    with writer:
        assert writer.commit()
    assert stored(second, "living") == b"mail"
    first.close()
    second.close()


def test_writing_stops_at_the_reserve(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = cache.begin_large("b")
    assert writer is not None
    with writer:
        writer.write(bytes(MIB))
        monkeypatch.setattr("jmapfs.cache.lru.FreeSpace.shortage", lambda _self, _wanted: 1)
        with pytest.raises(OSError, match="reserve") as caught:
            writer.write(bytes(16 * MIB))
        assert caught.value.errno == errno.ENOSPC


def test_load_opens_large_blobs_and_returns_small_ones(cache: DiskCache) -> None:
    assert cache.load("b") is None
    store(cache, "s", b"small")
    write(cache, "l", bytes(2 * MIB))
    write(cache, "small-in-a-file", b"mail")
    assert cache.load("s") == b"small"
    assert cache.load("small-in-a-file") == b"mail"
    blob = cache.load("l")
    assert isinstance(blob, LargeBlob)
    blob.close()
