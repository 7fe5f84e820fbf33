"""A disk that is damaged, full or read-only never raises an error in the cache."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.large_files import LargeWriter
from tests.cache.small_disk import needs_root, tmpfs
from tests.cache.stored import store, stored

MIB = 1024 * 1024


def open_cache(directory: Path) -> DiskCache:
    return DiskCache(directory, 16 * MIB, reserve_bytes=0)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1);")


def other_version(path: Path) -> None:
    open_cache(path.parent).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def torn(path: Path) -> None:
    cache = open_cache(path.parent)
    cache.put_many([(f"b{i}", os.urandom(8000)) for i in range(100)])
    cache.close()
    with path.open("r+b") as file:
        file.truncate(300_000)


@pytest.mark.parametrize("spoil", [garbage, foreign, other_version, torn])
def test_an_unusable_file_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "blobs.sqlite")
    content = (tmp_path / "blobs.sqlite").read_bytes()
    with caplog.at_level(logging.WARNING):
        cache = open_cache(tmp_path)
    store(cache, "b", b"mail")
    assert stored(cache, "b") == b"mail"
    assert cache.statistics().blobs == 1
    assert (tmp_path / "blobs.sqlite.set-aside").read_bytes() == content
    assert any("set aside" in record.message for record in caplog.records)
    cache.close()


def test_an_empty_file_becomes_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "blobs.sqlite").touch()
    cache = open_cache(tmp_path)
    assert store(cache, "b", b"mail")
    cache.close()
    assert caplog.records == []


def test_a_file_damaged_during_use_is_set_aside(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.put_many([(f"b{i}", os.urandom(8000)) for i in range(100)])
    store(cache, "large", bytes(2 * MIB))
    cache.close()
    cache = open_cache(tmp_path)
    with (tmp_path / "blobs.sqlite").open("r+b") as file:
        file.seek(8192)
        for _ in range(100):
            file.write(os.urandom(4000) + bytes(96))
    found = [stored(cache, f"b{i}") for i in range(100)]
    assert None in found
    for i in range(100):
        store(cache, f"b{i}", b"%d" % i * 3000)
    for i in range(100):
        assert stored(cache, f"b{i}") in (None, b"%d" % i * 3000)
    assert store(cache, "b", b"mail")
    assert stored(cache, "b") == b"mail"
    cache.close()


def test_other_processes_notice_a_replaced_file(tmp_path: Path) -> None:
    first, second = open_cache(tmp_path), open_cache(tmp_path)
    first._files.report("test", _damage())
    assert store(first, "b", b"mail")
    assert (tmp_path / "blobs.sqlite.set-aside").exists()
    assert store(second, "c", b"mail")
    assert stored(second, "b") == b"mail"
    assert first.statistics() == second.statistics()
    assert first.statistics().blobs == 2
    first.close()
    second.close()


def _damage() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def test_a_directory_that_cannot_be_created_is_an_empty_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        cache = open_cache(tmp_path / "file" / "cache")
        for _ in range(3):
            assert not store(cache, "b", b"mail")
            assert stored(cache, "b") is None
            assert cache.missing(["b"])
            assert cache.begin_large("b") is None
            cache.discard("b")
        assert cache.statistics().blobs == 0
        cache.close()
    assert len(caplog.records) == len({record.getMessage() for record in caplog.records}) < 5


@needs_root
def test_what_does_not_fit_on_a_full_disk_is_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tmpfs(tmp_path / "full", "4m") as directory, caplog.at_level(logging.WARNING):
        cache = open_cache(directory)
        kept = {}
        for i in range(100):
            data = os.urandom(100_000)
            if store(cache, f"b{i}", data):
                kept[f"b{i}"] = data
        assert 5 < len(kept) < 40
        large = cache.begin_large("l", 3 * MIB)
        assert large is None or not _writes(large, 3)
        assert not store(cache, "l", bytes(3 * MIB))
        for blob_id, data in kept.items():
            assert stored(cache, blob_id) == data
        assert cache.statistics().blobs == len(kept)
        cache.close()
        assert 1 <= len(caplog.records) <= 4


def _writes(writer: LargeWriter, pieces: int) -> bool:
    try:
        with writer:
            for _ in range(pieces):
                writer.write(bytes(MIB))
            return writer.commit()
    except OSError:
        return False


@needs_root
def test_the_reserve_is_never_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tmpfs(tmp_path / "full", "32m") as directory, caplog.at_level(logging.WARNING):
        cache = DiskCache(directory, 1024 * MIB, reserve_bytes=8 * MIB)
        for i in range(400):
            assert store(cache, f"b{i}", os.urandom(100_000)) or i > 100
            state = os.statvfs(directory)
            assert state.f_bavail * state.f_frsize > 4 * MIB
        assert cache.statistics().blobs > 50
        assert not cache.missing(["b399"])
        cache.close()
        assert caplog.records == []


@needs_root
def test_a_disk_that_was_full_is_used_later(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "full", "1m") as directory:
        (directory / "ballast").write_bytes(bytes(MIB - 4096))
        cache = open_cache(directory)
        assert not store(cache, "b", b"mail")
        assert stored(cache, "b") is None
        (directory / "ballast").unlink()
        cache._files._retry_at = 0.0
        assert store(cache, "b", b"mail")
        assert stored(cache, "b") == b"mail"
        cache.close()


@needs_root
def test_a_read_only_file_system_is_used_for_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tmpfs(tmp_path / "ro", "8m") as directory:
        cache = open_cache(directory)
        assert store(cache, "s", b"mail")
        assert store(cache, "l", b"x" * (2 * MIB))
        cache.close()
        subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
        with caplog.at_level(logging.WARNING):
            cache = open_cache(directory)
            for _ in range(3):
                assert stored(cache, "s") == b"mail"
                blob = cache.open_large("l")
                assert blob is not None
                blob.close()
                assert not store(cache, "b", b"mail")
                assert not store(cache, "m", bytes(2 * MIB))
                cache.write_touches()
        assert cache.statistics().blobs == 2
        assert len(caplog.records) == len({record.getMessage() for record in caplog.records})
        subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True)
        cache._files._retry_at = 0.0
        assert store(cache, "b", b"mail")
        cache.close()
