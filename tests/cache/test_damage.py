"""Damage to the disk cache: a blob is returned as it was stored, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmapfs.cache.disk_cache import SMALL_BYTES, DiskCache
from jmapfs.cache.lru import key_of
from tests.cache.stored import store, stored
from tests.damage import flip_bits

RUNS = 150

# All small blobs have one size, and so have all large ones: only a checksum tells them apart.
BLOBS = {f"b{number}": bytes([number]) * 700 for number in range(40)}
LARGE = {f"l{number}": bytes([number]) * (SMALL_BYTES + 1) for number in range(3)}


def make_version_1(directory: Path) -> None:
    """Turn a cache into one of version 1: its checksums do not cover the keys."""
    content = {key_of(blob_id): data for blob_id, data in (BLOBS | LARGE).items()}
    with contextlib.closing(sqlite3.connect(directory / "blobs.sqlite")) as connection, connection:
        for key, data in content.items():
            checksum = hashlib.sha256(data).digest()[:16]
            connection.execute("UPDATE entry SET checksum = ? WHERE key = ?", (checksum, key))
        connection.execute("PRAGMA user_version = 1")


@pytest.fixture(scope="module", params=["version 1", "version 2"])
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a cache with BLOBS and LARGE."""
    directory = tmp_path_factory.mktemp("intact")
    with opened(directory) as cache:
        assert all(cache.put_many([*BLOBS.items(), *LARGE.items()]))
    if request.param == "version 1":
        make_version_1(directory)
    return directory


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[DiskCache]:
    cache = DiskCache(directory, 64 * 2**20, reserve_bytes=0)
    try:
        yield cache
    finally:
        cache.close()


def check(cache: DiskCache) -> int:
    """Compare all small blobs, read one by one and together; return how many were returned."""
    together = cache.load_many(list(BLOBS))
    for blob_id, data in BLOBS.items():
        assert stored(cache, blob_id) in {None, data}
        assert together.get(blob_id) in {None, data}
    return len(together)


def store_again(cache: DiskCache) -> None:
    """Store the small blobs; the first attempt may find that the file has to be replaced."""
    for _ in range(2):
        cache.put_many(list(BLOBS.items()))


def test_a_cache_of_version_1_is_used(intact: Path, tmp_path: Path) -> None:
    shutil.copytree(intact, tmp_path / "c")
    with opened(tmp_path / "c") as cache:
        assert check(cache) == len(BLOBS)
        assert all(stored(cache, blob_id) == data for blob_id, data in LARGE.items())
        assert store(cache, "b1", b"new")
        assert stored(cache, "b1") == b"new"
    with contextlib.closing(sqlite3.connect(tmp_path / "c" / "blobs.sqlite")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_flipped_bits_never_give_another_blob(intact: Path, tmp_path: Path) -> None:
    database = (intact / "blobs.sqlite").read_bytes()
    shutil.copytree(intact, tmp_path / "c")
    path = tmp_path / "c" / "blobs.sqlite"
    chance = random.Random(15)
    total = 0
    for _ in range(RUNS):
        for old in path.parent.glob("blobs.sqlite*"):
            old.unlink()
        path.write_bytes(database)
        flip_bits(path, chance)
        with opened(path.parent) as cache:
            total += check(cache)
            store_again(cache)
            assert check(cache) == len(BLOBS)
    # Most blobs survive three flipped bits, unless the whole file cannot be read.
    assert total > RUNS * len(BLOBS) / 2


@pytest.mark.parametrize("occurrence", [0, 1])
def test_an_index_that_leads_to_another_blob(intact: Path, tmp_path: Path, occurrence: int) -> None:
    """The row number after a key is changed: once in the row, once in the index of keys."""
    shutil.copytree(intact, tmp_path / "c")
    path = tmp_path / "c" / "blobs.sqlite"
    key = key_of("b7")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        query = "SELECT number FROM entry WHERE key = ?"
        (number,) = connection.execute(query, (key,)).fetchone()
    data = bytearray(path.read_bytes())
    places = [match.end() for match in re.finditer(re.escape(key + bytes([number])), data)]
    assert len(places) == 2
    data[places[occurrence] - 1] += 1
    path.write_bytes(data)
    with opened(path.parent) as cache:
        check(cache)
        store_again(cache)
        assert check(cache) == len(BLOBS)


def test_large_files_that_changed_places(intact: Path, tmp_path: Path) -> None:
    shutil.copytree(intact, tmp_path / "c")
    one, other = (tmp_path / "c" / "large" / key_of(name).hex() for name in ("l0", "l1"))
    one.rename(tmp_path / "l")
    other.rename(one)
    (tmp_path / "l").rename(other)
    with opened(tmp_path / "c") as cache:
        assert stored(cache, "l0") is None
        assert cache.open_large("l1") is None
        assert stored(cache, "l2") == LARGE["l2"]


def test_swapped_rows_are_not_returned(cache: DiskCache, tmp_path: Path) -> None:
    """Content and checksum of two blobs are exchanged: only the key shows it."""
    for blob_id in ("a", "b"):
        store(cache, blob_id, blob_id.encode() * 100)
    path = tmp_path / "cache" / "blobs.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE content SET number = 3 - number + 10")
        connection.execute("UPDATE content SET number = number - 10")
        sums = dict(connection.execute("SELECT number, checksum FROM entry"))
        for number, checksum in sums.items():
            values = checksum, 3 - number
            connection.execute("UPDATE entry SET checksum = ? WHERE number = ?", values)
    assert stored(cache, "a") is None
    assert cache.load_many(["a", "b"]) == {}
    assert stored(cache, "b") is None
