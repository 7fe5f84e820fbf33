"""The disk cache: returns what was stored or nothing; bounded; evicts in the order of use."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from jmapfs.cache.disk_cache import SMALL_BYTES, CacheStatistics, DiskCache
from jmapfs.cache.large_files import LargeWriter
from jmapfs.cache.lru import LARGE_OVERHEAD_BYTES, SMALL_OVERHEAD_BYTES
from tests.cache.stored import small_cache, store, stored

MIB = 1024 * 1024


def held(cache: DiskCache, names: str) -> str:
    return "".join(name for name in names if not cache.missing([name]))


@pytest.mark.parametrize("size", [0, 1, 8192, SMALL_BYTES, SMALL_BYTES + 1, 3 * MIB])
def test_returns_what_was_stored(cache: DiskCache, size: int) -> None:
    data = os.urandom(size)
    assert stored(cache, "b") is None
    assert cache.missing(["b"])
    assert store(cache, "b", data)
    assert not cache.missing(["b"])
    assert cache.sizes(["b"]) == {"b": size}
    assert stored(cache, "b") == data


@pytest.mark.parametrize(
    "blob_id", ["", ".", "../../etc/passwd", "a/b", "\x00", "é" * 255, "\ud800"]
)
def test_a_blob_id_is_never_a_path(cache: DiskCache, tmp_path: Path, blob_id: str) -> None:
    before = set(tmp_path.iterdir())
    for size in (10, SMALL_BYTES + 10):
        data = os.urandom(size)
        assert store(cache, blob_id, data)
        assert stored(cache, blob_id) == data
    assert set(tmp_path.iterdir()) == before
    assert all(len(path.name) == 32 for path in (tmp_path / "cache" / "large").iterdir())


def test_is_private(cache: DiskCache, tmp_path: Path) -> None:
    store(cache, "s", b"small")
    store(cache, "l", bytes(2 * MIB))
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_content_remains_after_closing(tmp_path: Path) -> None:
    first = DiskCache(tmp_path, 8 * MIB, reserve_bytes=0)
    store(first, "s", b"small")
    store(first, "l", b"x" * (2 * MIB))
    before = first.statistics()
    first.close()
    assert stored(first, "s") is None
    assert not store(first, "s", b"small")
    second = DiskCache(tmp_path, 8 * MIB, reserve_bytes=0)
    assert stored(second, "s") == b"small"
    assert stored(second, "l") == b"x" * (2 * MIB)
    assert second.statistics() == before
    second.close()


def test_the_totals_are_exact(cache: DiskCache) -> None:
    assert cache.statistics() == CacheStatistics(bytes=0, limit=64 * MIB, blobs=0)
    store(cache, "s", bytes(100))
    store(cache, "l", bytes(2 * MIB))
    store(cache, "s", bytes(100))
    expected = 100 + SMALL_OVERHEAD_BYTES + 2 * MIB + LARGE_OVERHEAD_BYTES
    assert cache.statistics() == CacheStatistics(bytes=expected, limit=64 * MIB, blobs=2)
    cache.discard("l")
    cache.discard("l")
    assert cache.statistics().blobs == 1
    cache.discard("s")
    assert cache.statistics() == CacheStatistics(bytes=0, limit=64 * MIB, blobs=0)


def test_replaces_a_blob_of_other_content(cache: DiskCache) -> None:
    for size in (100, 200, 2 * MIB, 3 * MIB, 300):
        data = os.urandom(size)
        assert store(cache, "b", data)
        assert stored(cache, "b") == data
        assert cache.statistics().blobs == 1
    assert cache.statistics().bytes == 300 + SMALL_OVERHEAD_BYTES


def test_evicts_the_least_recently_used(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 4)
    for name in "abcd":
        assert store(cache, name, bytes(1000))
    stored(cache, "a")
    store(cache, "b", bytes(1000))
    assert store(cache, "e", bytes(1000))
    assert held(cache, "abcde") == "abde"
    assert cache.statistics().bytes <= cache.limit_bytes
    cache.close()


def test_the_order_of_use_remains_after_closing(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 4)
    for name in "abcd":
        store(cache, name, bytes(1000))
    stored(cache, "a")
    cache.close()
    cache = small_cache(tmp_path, 4)
    store(cache, "e", bytes(1000))
    assert held(cache, "abcde") == "acde"
    cache.close()


def pinned(cache: DiskCache, name: str) -> LargeWriter:
    """Return a writer, which pins the blob that it would replace."""
    writer = cache.begin_large(name)
    assert writer is not None
    return writer


def test_pinned_blobs_are_not_evicted(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 3)
    for name in "abc":
        store(cache, name, bytes(1000))
    with pinned(cache, "a"), pinned(cache, "a"):
        assert store(cache, "d", bytes(1000))
        assert held(cache, "abcd") == "acd"
        with pinned(cache, "c"), pinned(cache, "d"):
            assert not store(cache, "e", bytes(1000))
            assert held(cache, "acde") == "acd"
    assert store(cache, "f", bytes(1000))
    assert held(cache, "acdf") == "cdf"
    cache.close()


def test_blobs_larger_than_the_limit_are_refused(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", 10_000, reserve_bytes=0)
    assert store(cache, "a", bytes(1000))
    assert not store(cache, "b", bytes(10_000))
    assert not store(cache, "c", bytes(2 * MIB))
    assert held(cache, "abc") == "a"
    cache.close()


def test_a_limit_of_zero_creates_no_file(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", 0)
    assert not store(cache, "a", b"mail")
    assert stored(cache, "a") is None
    assert cache.open_large("a") is None
    cache.discard("a")
    cache.write_touches()
    assert cache.statistics() == CacheStatistics(bytes=0, limit=0, blobs=0)
    cache.close()
    assert not (tmp_path / "c").exists()


def test_a_batch_is_stored_in_order(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 4)
    blobs = [(name, name.encode() * 1000) for name in "abcdef"]
    blobs.insert(3, ("huge", bytes(100_000)))
    assert cache.put_many(blobs) == [True, True, True, False, True, True, True]
    assert held(cache, "abcdef") == "cdef"
    assert cache.put_many([]) == []
    cache.close()


def test_a_lower_limit_takes_effect_at_opening(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 64 * MIB, reserve_bytes=0)
    cache.put_many([(f"b{i}", os.urandom(100_000)) for i in range(200)])
    store(cache, "l", bytes(5 * MIB))
    cache.close()
    cache = DiskCache(tmp_path, 8 * MIB, reserve_bytes=0)
    assert 6 * MIB < cache.statistics().bytes <= 8 * MIB
    assert stored(cache, "l") == bytes(5 * MIB)
    cache.close()
    assert (tmp_path / "blobs.sqlite").stat().st_size < 4 * MIB


def test_the_file_does_not_grow_with_evicted_blobs(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 4 * MIB, reserve_bytes=0)
    for batch in range(60):
        cache.put_many(
            [(f"{batch}-{i}", os.urandom((batch * 37 + i * 997) % 20_000)) for i in range(50)]
        )
    stored = cache.statistics().bytes
    cache.close()
    assert 3.5 * MIB < stored <= 4 * MIB
    assert (tmp_path / "blobs.sqlite").stat().st_size < 4.5 * MIB


def test_damaged_blobs_are_removed(
    cache: DiskCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(cache, "s", b"x" * 5000)
    store(cache, "l", b"y" * (2 * MIB))
    store(cache, "short", b"z" * (2 * MIB))
    with sqlite3.connect(tmp_path / "cache" / "blobs.sqlite") as connection:
        connection.execute("UPDATE content SET data = zeroblob(5000)")
    connection.close()
    for blob_id, length in (("l", 2 * MIB), ("short", MIB)):
        name = hashlib.sha256(blob_id.encode()).digest()[:16].hex()
        with (tmp_path / "cache" / "large" / name).open("r+b") as file:
            file.seek(1000)
            file.write(b"!")
            file.truncate(length)
    with caplog.at_level(logging.WARNING):
        assert stored(cache, "s") is None
        assert cache.open_large("l") is None
        assert cache.open_large("short") is None
    assert sum("damaged" in record.message for record in caplog.records) == 3
    assert cache.missing(["s"])
    assert cache.statistics().blobs == 0
    assert store(cache, "s", b"x" * 5000)
    assert stored(cache, "s") == b"x" * 5000


def test_a_large_blob_without_its_file_is_missing(cache: DiskCache, tmp_path: Path) -> None:
    store(cache, "l", bytes(2 * MIB))
    for path in (tmp_path / "cache" / "large").iterdir():
        path.unlink()
    assert stored(cache, "l") is None
    assert cache.statistics().blobs == 0


def test_many_threads_can_use_a_cache(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 300_000, reserve_bytes=0)
    wrong: list[str] = []

    def work(seed: int) -> None:
        for step in range(150):
            name = f"b{(seed * 31 + step * 7) % 60}"
            data = name.encode() * 200
            if step % 3 == 0:
                store(cache, name, data)
            elif (found := stored(cache, name)) not in (None, data):
                wrong.append(f"{name}: {found!r}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.statistics().blobs > 0
    assert cache.statistics().bytes <= 300_000
    cache.close()


def test_the_reserve_of_free_space_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, 64 * MIB, reserve_bytes=10 * MIB)
    cache.put_many([(f"b{i}", bytes(100_000)) for i in range(20)])
    free = os.statvfs(tmp_path)
    available = 10 * MIB + 50_000

    def statvfs(_path: object) -> os.statvfs_result:
        return os.statvfs_result(
            (4096, 1, free.f_blocks, 0, available, *tuple(free)[5:10], free.f_fsid)
        )

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert store(cache, "fits", bytes(10_000))
    # Evicting does not help here: another program takes all the space.
    assert not store(cache, "b", bytes(100_000))
    assert cache.statistics().blobs < 21
    for _ in range(40):
        store(cache, "b", bytes(100_000))
    assert cache.statistics().blobs == 0
    monkeypatch.undo()
    assert store(cache, "b", bytes(100_000))
    cache.close()
