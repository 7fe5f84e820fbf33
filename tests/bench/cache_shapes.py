"""Compares the disk cache with other storage layouts: speed and overhead on the disk.

Each layout has an index in SQLite that is always consistent, and verifies checksums, like the disk
cache. They run in alternation, so that load on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import shutil
import sqlite3
import time
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jmapfs.cache.disk_cache import DiskCache
from tests.bench.disk import drop_caches
from tests.bench.figures import Figure, Machine
from tests.bench.harness import bench_directory, rounds
from tests.bench.tables import markdown
from tests.corpus import mails

_BUDGET_SECONDS = 300

_SCHEMA = """
    CREATE TABLE entry (
        number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL,
        size INTEGER NOT NULL, checksum BLOB NOT NULL
    );
    CREATE INDEX entry_used ON entry (used);
    CREATE TABLE content (number INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""
_READ = """
    WITH RECURSIVE wanted (at) AS (
        VALUES (1) UNION ALL SELECT at + 16 FROM wanted WHERE at + 16 < length(:keys)
    )
    SELECT checksum, data
    FROM wanted CROSS JOIN entry ON key = substr(:keys, at, 16) JOIN content USING (number)
"""


@dataclass(frozen=True)
class Mail:
    blob_id: str
    key: bytes
    content: bytes


class Layout(ABC):
    """A cache in a directory, a new or an existing one."""

    @abstractmethod
    def insert(self, batch: Sequence[Mail]) -> None: ...

    @abstractmethod
    def read(self, batch: Sequence[Mail]) -> int:
        """Read the mails, verify their checksums, and return how many were correct."""

    @abstractmethod
    def close(self) -> None: ...


class _Ours(Layout):
    """The disk cache itself."""

    def __init__(self, directory: Path) -> None:
        self._cache = DiskCache(directory, 2**40, reserve_bytes=0)

    def insert(self, batch: Sequence[Mail]) -> None:
        self._cache.put_many([(mail.blob_id, mail.content) for mail in batch])

    def read(self, batch: Sequence[Mail]) -> int:
        return len(self._cache.load_many([mail.blob_id for mail in batch]))

    def close(self) -> None:
        self._cache.close()


class _OneByOne(_Ours):
    """The disk cache, with one call for each mail."""

    def read(self, batch: Sequence[Mail]) -> int:
        return sum(self._cache.load(mail.blob_id) is not None for mail in batch)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def _blake2b(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _crc32(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


class _OneFile(Layout):
    """Index and content in one SQLite file."""

    def __init__(
        self,
        directory: Path,
        *,
        checksum: Callable[[bytes], bytes] = _sha256,
        compress: Callable[[bytes], bytes] = bytes,
        decompress: Callable[[bytes], bytes] = bytes,
        page: int = 4096,
        cache: int = 1024,
        mmap: int = 0,
    ) -> None:
        self._checksum, self._compress, self._decompress = checksum, compress, decompress
        self._count = 0
        path = directory / "index.sqlite"
        new = not path.exists()
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute(f"PRAGMA page_size = {page}")
        self._connection.execute(f"PRAGMA cache_size = {-cache}")
        self._connection.execute(f"PRAGMA mmap_size = {mmap}")
        if new:
            self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(_SCHEMA)
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def insert(self, batch: Sequence[Mail]) -> None:
        self._enter(batch, [self._compress(mail.content) for mail in batch])

    def read(self, batch: Sequence[Mail]) -> int:
        keys = b"".join([mail.key for mail in batch])
        rows = self._connection.execute(_READ, {"keys": keys}).fetchall()
        return sum(self._checksum(self._decompress(data)) == checksum for checksum, data in rows)

    def close(self) -> None:
        self._connection.close()

    def _enter(self, batch: Sequence[Mail], contents: Sequence[bytes]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT INTO entry (number, used, key, size, checksum) VALUES (?, ?, ?, ?, ?)",
            [
                (number, number, mail.key, len(mail.content), self._checksum(mail.content))
                for number, mail in enumerate(batch, self._count)
            ],
        )
        self._connection.executemany(
            "INSERT INTO content VALUES (?, ?)", enumerate(contents, self._count)
        )
        self._connection.execute("COMMIT")
        self._count += len(batch)


class _FileEach(_OneFile):
    """The index in SQLite, and a file for each mail, checksum first, in 256 directories."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._directory = directory
        for number in range(256):
            (directory / f"{number:02x}").mkdir(exist_ok=True)

    def insert(self, batch: Sequence[Mail]) -> None:
        for mail in batch:
            with self._path(mail).open("wb", buffering=0) as file:
                file.write(_sha256(mail.content) + mail.content)
        self._enter(batch, [])

    def read(self, batch: Sequence[Mail]) -> int:
        correct = 0
        for mail in batch:
            with self._path(mail).open("rb", buffering=0) as file:
                data = file.read()
            correct += _sha256(data[16:]) == data[:16]
        return correct

    def _path(self, mail: Mail) -> Path:
        name = mail.key.hex()
        return self._directory / name[:2] / name


@dataclass(frozen=True)
class _Candidate:
    """A layout, and the number of mails in each call."""

    make: Callable[[Path], Layout]
    inserted: int = 100
    read: int = 128


_CANDIDATES: Mapping[str, _Candidate] = {
    "the disk cache": _Candidate(_Ours),
    "the disk cache, 50 and 64 at once": _Candidate(_Ours, 50, 64),
    "the disk cache, 200 and 256 at once": _Candidate(_Ours, 200, 256),
    "the disk cache, read one by one": _Candidate(_OneByOne),
    "one SQLite file": _Candidate(_OneFile),
    "one SQLite file, pages of 16 KiB": _Candidate(lambda path: _OneFile(path, page=16384)),
    "one SQLite file, pages of 32 KiB": _Candidate(lambda path: _OneFile(path, page=32768)),
    "one SQLite file, 16 MiB of page cache": _Candidate(lambda path: _OneFile(path, cache=16384)),
    "one SQLite file, memory-mapped": _Candidate(lambda path: _OneFile(path, mmap=2**30)),
    "one SQLite file, BLAKE2b": _Candidate(lambda path: _OneFile(path, checksum=_blake2b)),
    "one SQLite file, CRC-32": _Candidate(lambda path: _OneFile(path, checksum=_crc32)),
    "one SQLite file, zlib at level 1": _Candidate(
        lambda path: _OneFile(
            path, compress=lambda data: zlib.compress(data, 1), decompress=zlib.decompress
        )
    ),
    "a file a mail": _Candidate(_FileEach),
}


def measure(count: int, runs: int) -> list[Figure]:
    """Write `count` mails in each layout; read them in the same order and in another one.

    Microseconds are per mail, opening and closing included. CPU time includes the kernel.
    """
    stored = [_mail(content) for content in mails(count)]
    results: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with bench_directory() as directory:
        for _ in rounds(runs, _BUDGET_SECONDS):
            for name, candidate in _CANDIDATES.items():
                for what, value in _measured(candidate, directory / "layout", stored).items():
                    results[name, what].append(value)
    return [
        Figure(f"{name}: {what}", "B" if what == "beside the content" else "µs", tuple(values))
        for (name, what), values in results.items()
    ]


def _measured(candidate: _Candidate, directory: Path, stored: Sequence[Mail]) -> dict[str, float]:
    inserting, reading = partial(_inserted, candidate), partial(_read, candidate)
    content = sum(len(mail.content) for mail in stored)
    shuffled = random.Random(1).sample(stored, len(stored))
    directory.mkdir()
    try:
        _, insert = _each(directory, stored, inserting)
        used = sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
        _, warm = _each(directory, stored, reading)
        drop_caches(directory)
        cold_seconds, cold = _each(directory, stored, reading)
        drop_caches(directory)
        other_seconds, _ = _each(directory, shuffled, reading)
    finally:
        shutil.rmtree(directory)
    return {
        "insert, CPU": insert,
        "read, CPU": warm,
        "read, page cache dropped": cold_seconds,
        "read, page cache dropped, CPU": cold,
        "read in another order, page cache dropped": other_seconds,
        "beside the content": (used - content) / len(stored),
    }


def _each(
    directory: Path, stored: Sequence[Mail], use: Callable[[Path, Sequence[Mail]], None]
) -> tuple[float, float]:
    """Return the duration per mail and the CPU time per mail, in microseconds."""
    seconds, cpu = time.perf_counter(), time.process_time()
    use(directory, stored)
    scale = 1e6 / len(stored)
    return (time.perf_counter() - seconds) * scale, (time.process_time() - cpu) * scale


def _inserted(candidate: _Candidate, directory: Path, stored: Sequence[Mail]) -> None:
    with contextlib.closing(candidate.make(directory)) as layout:
        for start in range(0, len(stored), candidate.inserted):
            layout.insert(stored[start : start + candidate.inserted])


def _read(candidate: _Candidate, directory: Path, stored: Sequence[Mail]) -> None:
    correct = 0
    with contextlib.closing(candidate.make(directory)) as layout:
        for start in range(0, len(stored), candidate.read):
            correct += layout.read(stored[start : start + candidate.read])
    if correct != len(stored):
        raise RuntimeError(f"{correct} of {len(stored)} mails were read correctly")


def _mail(content: bytes) -> Mail:
    blob_id = f"G{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"
    return Mail(blob_id, hashlib.sha256(blob_id.encode()).digest()[:16], content)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cache_shapes", description=__doc__)
    parser.add_argument("--mails", type=int, default=20_000, metavar="N", help="number of mails")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each layout")
    options = parser.parse_args()
    print(markdown(Machine.this(), measure(options.mails, options.runs)))


if __name__ == "__main__":
    main()
