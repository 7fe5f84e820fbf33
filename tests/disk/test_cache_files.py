"""Each file of an account in the cache, damaged in each way, and the commands that meet it.

Mail comes from the cache only if it is right. Otherwise it is downloaded again. What cannot be made
anew is refused in one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.large_files import LargeBlob
from jmapfs.errors import StorageError
from tests.disk.damage import ALL, OTHER_VERSION, REPLACED, UNREADABLE
from tests.disk.original import OTHER_USER, Files, copy_of, effective_user

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")

LOCK: Final = "lock"
FILES: Final = (
    LOCK,
    "index.sqlite",
    "index.sqlite-wal",
    "index.sqlite-shm",
    "blobs/lock",
    "blobs/blobs.sqlite",
    "blobs/blobs.sqlite-wal",
    "blobs/blobs.sqlite-shm",
    "blobs/large/*",
)
CASES: Final = [
    *((file, damage) for file in FILES for damage in ALL),
    *((file, damage) for file in (FILES[1], FILES[5]) for damage in OTHER_VERSION),
]
OFTEN: Final = {
    (LOCK, "fifo"),
    (LOCK, "link"),
    ("index.sqlite", "fifo"),
    ("index.sqlite", "of another user"),
    ("index.sqlite", "unreadable"),
    ("index.sqlite-wal", "fifo"),
    ("blobs/lock", "fifo"),
    ("blobs/blobs.sqlite", "fifo"),
    ("blobs/blobs.sqlite", "link"),
    ("blobs/blobs.sqlite", "of another user"),
    ("blobs/blobs.sqlite", "future"),
    ("blobs/blobs.sqlite-shm", "socket"),
    ("blobs/large/*", "fifo"),
    ("blobs/large/*", "flipped"),
    ("blobs/large/*", "directory"),
}
PARAMETERS: Final = [
    pytest.param(*case, marks=() if case in OFTEN else pytest.mark.long) for case in CASES
]
REFUSED: Final = {"fifo", "socket", "directory", "link", "unreadable", "of another user"}
"""What is refused at the name of a lock."""
MOUNTED: Final = [
    ("index.sqlite", "fifo"),
    ("blobs/blobs.sqlite", "fifo"),
    ("blobs/large/*", "flipped"),
]


@needs_root
@pytest.mark.parametrize(("file", "damage"), PARAMETERS)
def test_a_snapshot_of_an_account_with_a_damaged_cache(
    original: Files, file: str, damage: str
) -> None:
    with copy_of(original, "copy") as files, contextlib.ExitStack() as stack:
        path = _find(files, file)
        if damage in UNREADABLE:
            files.give_to(OTHER_USER)
        (ALL | OTHER_VERSION)[damage](path)
        if damage in UNREADABLE:
            stack.enter_context(effective_user(OTHER_USER))
        new = files.directory / "new"
        taken = files.run("snapshot", files.server.url, new)
        if file == LOCK and damage in REFUSED:
            assert taken.exit_code == StorageError.exit_code
            assert f"cannot use the lock {path}: " in taken.error
            return
        if taken.exit_code:
            assert taken.exit_code == StorageError.exit_code
            # SQLite does not say which of the files of a database it means.
            assert str(path).removesuffix("-wal").removesuffix("-shm") in taken.error
            assert damage in {"directory", "unreadable"}
            return
        [date] = [one.name for one in new.iterdir() if one.name.startswith("2")]
        _require_mail(new / date, files)


@needs_root
@pytest.mark.mount
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param(*case, marks=() if case in MOUNTED else pytest.mark.long)
        for case in CASES
        if case[1] not in UNREADABLE
    ],
)
def test_a_mount_with_a_damaged_cache(original: Files, file: str, damage: str) -> None:
    with copy_of(original, "copy") as files:
        path = _find(files, file)
        (ALL | OTHER_VERSION)[damage](path)
        home, mountpoint = files.home, files.directory / "home/mnt"
        if file == LOCK and damage in REFUSED:
            refused = home.run("mount", files.server.url, mountpoint)
            assert refused.exit_code == StorageError.exit_code
            assert f"cannot use the lock {path}: " in refused.stderr
            return
        result = home.run("mount", files.server.url, mountpoint)
        if result.exit_code:
            assert result.exit_code == StorageError.exit_code, result.stderr
            assert damage == "directory"
            assert len(result.stderr.splitlines()) == 1
            return
        try:
            _require_mail(mountpoint, files)
            assert home.run("status", mountpoint).exit_code == 0
            assert home.run("sync", mountpoint).exit_code == 0
            prefetched = home.run("prefetch", mountpoint)
            assert prefetched.exit_code in {0, StorageError.exit_code}, prefetched.stderr
            _require_mail(mountpoint, files)
        finally:
            assert home.run("umount", mountpoint).exit_code == 0
        assert "Traceback" not in home.log(), home.log()


@pytest.mark.parametrize("file", ["blobs.sqlite", "blobs.sqlite-wal", "large/*"])
@pytest.mark.parametrize("damage", REPLACED)
def test_a_file_that_is_replaced_while_the_cache_is_open(
    tmp_path: Path, file: str, damage: str
) -> None:
    """The next connection, or the next open of a large blob, must not wait for it."""
    contents = {"small": b"small" * 100, "large": b"large" * 500_000}
    with contextlib.closing(DiskCache(tmp_path / "blobs", 1 << 30)) as cache:
        _store(cache, contents)
        [path] = (tmp_path / "blobs").glob(file)
        ALL[damage](path)
        for _ in range(2):
            with ThreadPoolExecutor(4) as threads:
                for found in threads.map(partial(_load, cache), [*contents] * 4):
                    assert found in {None, *contents.values()}
            _store(cache, contents)
        # A directory may stay in the way: then the cache is empty, and says so in the log.
        if damage != "directory":
            assert {name: _load(cache, name) for name in contents} == contents


def _store(cache: DiskCache, contents: dict[str, bytes]) -> None:
    cache.put_many([("small", contents["small"])])
    writer = cache.begin_large("large", len(contents["large"]))
    if writer is not None:
        with writer:
            writer.write(contents["large"])
            writer.commit()


def _load(cache: DiskCache, name: str) -> bytes | None:
    found = cache.load(name)
    if isinstance(found, LargeBlob):
        with found:
            return found.pread(found.size, 0)
    return found


def _require_mail(tree: Path, files: Files) -> None:
    found = [hashlib.sha256(one.read_bytes()).hexdigest() for one in tree.rglob("*.eml")]
    assert tuple(sorted(found)) == files.expected


def _find(files: Files, file: str) -> Path:
    [path] = files.account.glob(file)
    return path
