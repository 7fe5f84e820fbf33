"""Many blobs at once: `load_many`, `missing` and `put_many`."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from jmapfs.cache.disk_cache import SMALL_BYTES, CacheStatistics, DiskCache
from jmapfs.cache.lru import SMALL_OVERHEAD_BYTES
from tests.cache.small_disk import needs_root, tmpfs
from tests.cache.stored import small_cache, store

MIB = 1024 * 1024


def blobs(count: int, size: int = 3000) -> dict[str, bytes]:
    return {f"b{number}": os.urandom(size) for number in range(count)}


def alter(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path / "blobs.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("count", [1, 2, 100, 3000])
def test_returns_what_was_stored(cache: DiskCache, count: int) -> None:
    put = blobs(count)
    assert all(cache.put_many(list(put.items())))
    assert cache.load_many(list(put)) == put
    assert cache.missing(list(put)) == []
    assert cache.statistics().blobs == count


@pytest.mark.parametrize("size", [0, 1, 15, 16, 8192, SMALL_BYTES])
def test_blobs_of_any_size_are_loaded(cache: DiskCache, size: int) -> None:
    put = blobs(3, size)
    cache.put_many(list(put.items()))
    assert cache.load_many(list(put)) == put


def test_missing_blobs_are_left_out(cache: DiskCache) -> None:
    put = blobs(5)
    cache.put_many(list(put.items()))
    asked = ["x", *put, "y", "x"]
    assert cache.load_many(asked) == put
    assert cache.missing(asked) == ["x", "y"]
    assert cache.load_many(["x"]) == {}
    assert cache.load_many([]) == {}
    assert cache.missing([]) == []


def test_blobs_are_returned_in_the_order_of_the_request(cache: DiskCache) -> None:
    put = blobs(50)
    cache.put_many(list(put.items()))
    asked = sorted(put, key=lambda name: put[name])
    assert list(cache.load_many(asked)) == asked
    cache.discard(asked[7])
    cache.discard(asked[3])
    assert cache.missing(asked) == [asked[3], asked[7]]


def test_blob_ids_can_be_any_string(cache: DiskCache) -> None:
    put = dict.fromkeys(["", ".", "../../etc/passwd", "\x00", "é" * 255, "\ud800"], b"mail")
    cache.put_many(list(put.items()))
    assert cache.load_many(list(put)) == put


def test_large_blobs_are_left_out(cache: DiskCache) -> None:
    put = {"s": b"small", "l": bytes(SMALL_BYTES + 1), "f": b"small, in a file"}
    cache.put_many([("s", put["s"]), ("l", put["l"])])
    writer = cache.begin_large("f")
    assert writer is not None
    with writer:
        writer.write(put["f"])
        assert writer.commit()
    assert cache.load_many(["l", "f", "s"]) == {"f": put["f"], "s": put["s"]}
    assert cache.missing(["l", "f", "s"]) == []
    assert cache.load_many(["l"]) == {}
    assert cache.statistics().blobs == 3


def test_damaged_blobs_are_removed_and_the_others_returned(
    cache: DiskCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put = blobs(20)
    cache.put_many(list(put.items()))
    alter(tmp_path / "cache", "UPDATE content SET data = zeroblob(3000) WHERE number % 4 = 0")
    with caplog.at_level(logging.WARNING):
        found = cache.load_many(list(put))
    assert sum("damaged" in record.message for record in caplog.records) == 5
    assert len(found) == 15
    assert found.items() <= put.items()
    assert cache.statistics().blobs == 15
    assert set(cache.missing(list(put))) == put.keys() - found.keys()
    assert all(cache.put_many(list(put.items())))
    assert cache.load_many(list(put)) == put


def test_damaged_blobs_are_removed_when_they_are_loaded(cache: DiskCache, tmp_path: Path) -> None:
    store(cache, "b", b"mail")
    alter(tmp_path / "cache", "UPDATE content SET data = x'00'")
    assert cache.missing(["b"]) == []
    assert cache.load_many(["b"]) == {}
    assert cache.missing(["b"]) == ["b"]


def test_a_row_without_content_is_damage(cache: DiskCache, tmp_path: Path) -> None:
    cache.put_many([("a", b"mail"), ("b", b"")])
    alter(tmp_path / "cache", "DELETE FROM content")
    assert cache.load_many(["a", "b"]) == {}
    assert cache.statistics() == CacheStatistics(bytes=0, limit=64 * MIB, blobs=0)


def test_loading_is_a_use(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 5)
    cache.put_many([(name, bytes(1000)) for name in "abcde"])
    cache.load_many(["c", "x", "a"])
    cache.put_many([(name, bytes(1000)) for name in "fgh"])
    assert cache.missing("abcdefgh") == list("bde")
    store(cache, "i", bytes(1000))
    assert cache.missing("abcdefghi") == list("bcde")
    cache.close()


def test_missing_is_not_a_use(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 2)
    cache.put_many([(name, bytes(1000)) for name in "ab"])
    cache.missing(["a"])
    store(cache, "c", bytes(1000))
    assert cache.missing("abc") == ["a"]
    cache.close()


def test_many_uses_are_written_in_their_order(tmp_path: Path) -> None:
    put = blobs(6000, 10)
    cache = small_cache(tmp_path, 6000, 10)
    cache.put_many(list(put.items()))
    names = list(put)
    for start in range(5900, -1, -100):
        cache.load_many(names[start : start + 100])
    assert len(cache._touched) < 6000
    cache.close()
    with closing(sqlite3.connect(tmp_path / "c" / "blobs.sqlite")) as connection:
        numbers = [row[0] for row in connection.execute("SELECT number FROM entry ORDER BY used")]
    expected = [number for start in range(5901, 0, -100) for number in range(start, start + 100)]
    assert numbers == expected


def test_a_limit_of_zero_creates_no_file(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", 0)
    assert cache.load_many(["a", "b"]) == {}
    assert cache.missing(["b", "a"]) == ["b", "a"]
    cache.close()
    assert not (tmp_path / "c").exists()


def test_a_closed_cache_is_empty(cache: DiskCache, caplog: pytest.LogCaptureFixture) -> None:
    store(cache, "b", b"mail")
    cache.close()
    assert cache.load_many(["b"]) == {}
    assert cache.missing(["b"]) == ["b"]
    assert caplog.records == []


def test_a_blob_can_be_twice_in_a_batch(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 3)
    batch = [("a", b"1" * 1000), ("b", b"2" * 1000), ("a", b"1" * 1000), ("b", b"3" * 1000)]
    assert cache.put_many(batch) == [True] * 4
    assert cache.load_many(["b", "a"]) == {"b": b"3" * 1000, "a": b"1" * 1000}
    assert cache.statistics().blobs == 2
    cache.close()


def test_a_batch_can_evict_its_own_blobs(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 3)
    names = "abcdabcd"
    assert cache.put_many([(name, name.encode() * 1000) for name in names]) == [True] * 8
    assert cache.missing("abcd") == ["a"]
    assert cache.load_many("abcd") == {name: name.encode() * 1000 for name in "bcd"}
    assert cache.statistics().bytes == 3 * (1000 + SMALL_OVERHEAD_BYTES)
    cache.close()


def test_row_numbers_are_never_reused(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 3)
    seen: set[int] = set()
    for step in range(6):
        cache.put_many([("a", b"%d" % step), ("b", b"mail")])
        cache.discard("b")
        with cache._files.reader() as connection:
            seen.update(row[0] for row in connection.execute("SELECT number FROM entry"))
    assert len(seen) == 6
    cache.close()


@needs_root
@pytest.mark.parametrize("reopened", [False, True])
def test_a_full_disk_keeps_what_is_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, reopened: bool
) -> None:
    with tmpfs(tmp_path / "full", "8m") as directory, caplog.at_level(logging.WARNING):
        cache = DiskCache(directory, 64 * MIB, reserve_bytes=0)
        put = blobs(300)
        assert all(cache.put_many(list(put.items())))
        if reopened:
            cache.close()
        fill(directory)
        if reopened:
            cache = DiskCache(directory, 64 * MIB, reserve_bytes=0)
        for _ in range(20):
            assert cache.load_many(list(put)) == put
            assert cache.put_many([(f"n{i}", bytes(10_000)) for i in range(100)]) == [False] * 100
        assert cache.missing([*put, "n1"]) == ["n1"]
        assert cache.statistics().blobs == 300
        (directory / "ballast").unlink()
        cache._files._retry_at = 0.0
        assert store(cache, "b", b"mail")
        assert cache.load_many(["b", *put]) == {"b": b"mail", **put}
        cache.close()
        assert len(caplog.records) == len({record.getMessage() for record in caplog.records}) < 5


def fill(directory: Path) -> None:
    with (directory / "ballast").open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


@needs_root
def test_blobs_are_loaded_from_a_read_only_file_system(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "ro", "8m") as directory:
        cache = DiskCache(directory, 64 * MIB, reserve_bytes=0)
        put = blobs(300)
        cache.put_many(list(put.items()))
        cache.close()
        subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
        cache = DiskCache(directory, 64 * MIB, reserve_bytes=0)
        for _ in range(20):
            assert cache.load_many(list(put)) == put
        assert cache.missing([*put, "x"]) == ["x"]
        assert cache.put_many([("x", b"mail")]) == [False]
        cache.close()


def test_a_damaged_file_raises_no_error(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 64 * MIB, reserve_bytes=0)
    put = blobs(100, 8000)
    cache.put_many(list(put.items()))
    cache.close()
    cache = DiskCache(tmp_path, 64 * MIB, reserve_bytes=0)
    with (tmp_path / "blobs.sqlite").open("r+b") as file:
        file.seek(8192)
        for _ in range(100):
            file.write(os.urandom(4000) + bytes(96))
    for _ in range(3):
        assert cache.load_many(list(put)).items() <= put.items()
    cache.missing(list(put))
    cache.put_many(list(put.items()))
    assert cache.put_many(list(put.items())) == [True] * 100
    assert cache.load_many(list(put)) == put
    cache.close()
