"""Content through a real mount: the right bytes or an error, however the server misbehaves."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.cache.small_disk import needs_root
from tests.mails import fill_new_mailbox, random_mail
from tests.mounts import Home, Mounted, command
from tests.server import ServerProcess, server_process
from tests.server.quirks import CYRUS_BLOB

pytestmark = pytest.mark.mount

# One READ and a second attempt of the kernel at it, with some air.
DEADLINE = 10.0


@contextlib.contextmanager
def box(
    home: Home, *contents: bytes, blob_ids: str = "plain", options: tuple[str, ...] = ()
) -> Iterator[tuple[ServerProcess, Mounted, list[Path]]]:
    """Mount an account that holds these mails; give their files, in this order."""
    # A capability of Cyrus says that its blob ids are SHA-1s.
    quirks: dict[str, Any] = {"blob_capability": CYRUS_BLOB} if blob_ids == "cyrus" else {}
    with server_process("empty", blob_ids=blob_ids, **quirks) as server:
        fill_new_mailbox(server.control, contents)
        with home.mounted(server.url, *options) as mount:
            files = sorted((mount.path / "Box").iterdir())
            assert len(files) == len(contents)
            yield server, mount, files


def read_soon(path: Path, seconds: float = 6) -> bytes:
    """Read a mail that could not be read: a failure may be remembered for a moment."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno != errno.EIO or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def failing_with_eio() -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == errno.EIO)


@pytest.mark.parametrize("offset", [-1000, 5000])
def test_a_wrong_size_is_an_error_once_and_is_corrected(home: Home, offset: int) -> None:
    content = random_mail(1)
    with server_process("empty", size_offsets={"*": offset}) as server:
        fill_new_mailbox(server.control, [content, random_mail(2)])
        with home.mounted(server.url) as mount:
            path, other = sorted((mount.path / "Box").iterdir())
            assert path.stat().st_size == 3000 + offset
            with path.open("rb") as file:
                # The kernel asks twice; and the second answer must not be a cut file either.
                with failing_with_eio():
                    os.pread(file.fileno(), 3000 + offset, 0)
                assert path.stat().st_size == os.fstat(file.fileno()).st_size == 3000
            assert path.read_bytes() == content
            # The content was confirmed by a second download.
            assert mount.counts().blobs == 2
            assert mount.status()["content"] == {"confirmed": 1, "refused": 0}
            assert other.stat().st_size == 3000 + offset
        assert "confirmed by a second download" in home.log()
        with home.mounted(server.url):
            assert path.stat().st_size == 3000
            assert other.stat().st_size == 3000 + offset
            assert path.read_bytes() == content


def test_a_wrong_size_of_zero_is_corrected(home: Home) -> None:
    content = random_mail(1)
    with server_process("empty", size_offsets={"*": -3000}) as server:
        fill_new_mailbox(server.control, [content])
        with home.mounted(server.url) as mount:
            (path,) = (mount.path / "Box").iterdir()
            assert path.stat().st_size == 0
            with failing_with_eio():
                path.read_bytes()
            assert path.stat().st_size == 3000
            assert path.read_bytes() == content


@pytest.mark.parametrize("offset", [-1000, 5000])
def test_a_wrong_size_never_makes_a_wrong_copy(home: Home, tmp_path: Path, offset: int) -> None:
    contents = [random_mail(1), random_mail(2)]
    with server_process("empty", size_offsets={"*": offset}) as server:
        fill_new_mailbox(server.control, contents)
        with home.mounted(server.url) as mount:
            copy = ["rsync", "-a", f"{mount.path}/Box/", str(tmp_path / "copy")]
            subprocess.run(copy, check=False, capture_output=True)
            for path in (tmp_path / "copy").glob("*.eml"):
                assert path.read_bytes() in contents
            command(*copy)
            copied = [path.read_bytes() for path in sorted((tmp_path / "copy").glob("*.eml"))]
            assert copied == contents


@pytest.mark.parametrize("size", [3000, 1_500_000])
def test_wrong_bytes_are_detected_and_not_cached(impatient: Home, size: int) -> None:
    content = random_mail(1, size)
    with box(impatient, content, blob_ids="cyrus") as (server, mount, (path,)):
        server.control.set_quirks(download_fault="wrong-bytes", blob_fault="wrong-bytes")
        for _ in range(2):
            with failing_with_eio():
                path.read_bytes()
        server.control.set_quirks(download_fault=None, blob_fault=None)
        assert path.read_bytes() == content
        assert mount.status()["cache"]["blobs"] <= 1
        counters = mount.status()["content"]
        assert counters["refused"] >= 2
        assert counters["confirmed"] == 0
    assert "SHA-1" in impatient.log()


@pytest.mark.parametrize(
    ("fault", "size"),
    [
        *((fault, 3000) for fault in ("short", "cut", "stall", "not-found")),
        *(("short", 1_500_000), ("cut", 1_500_000)),
    ],
)
def test_failed_downloads_are_errors_and_never_short_files(
    impatient: Home, tmp_path: Path, fault: str, size: int
) -> None:
    content = random_mail(1, size)
    with box(impatient, content) as (server, mount, (path,)):
        blob_fault = "not-found" if fault == "not-found" else "truncated"
        server.control.set_quirks(download_fault=fault, blob_fault=blob_fault)
        started = time.monotonic()
        with failing_with_eio():
            path.read_bytes()
        assert time.monotonic() - started < DEADLINE
        assert path.stat().st_size == size
        target = tmp_path / "copy"
        if fault != "stall":
            copied = subprocess.run(
                ["rsync", "-a", f"{mount.path}/", target], check=False, capture_output=True
            )
            assert copied.returncode == 23
            assert not list(target.rglob("*.eml"))
        server.control.reset_quirks()
        assert read_soon(path) == content
        command("rsync", "-a", f"{mount.path}/", target)
        assert [each.read_bytes() for each in target.rglob("*.eml")] == [content]


def test_a_download_that_fails_once_is_tried_again(impatient: Home) -> None:
    content = random_mail(1)
    with box(impatient, content) as (server, _, (path,)):
        server.control.set_quirks(download_fault="cut", download_fault_count=1)
        assert path.read_bytes() == content


def test_readers_of_one_mail_share_a_download(home: Home) -> None:
    content = random_mail(1, 400_000)
    with box(home, content, options=("--cache-size", "1M")) as (server, mount, (path,)):
        server.control.set_quirks(download_delay=0.5)
        with ThreadPoolExecutor(16) as pool:
            read = list(pool.map(lambda _: path.read_bytes(), range(16)))
        assert read == [content] * 16
        assert list(server.control.counts().blobs.values()) == [1]
        assert mount.counts().blobs == 1


def test_processes_that_read_one_mail_share_a_download(home: Home) -> None:
    content = random_mail(1, 400_000)
    with box(home, content) as (server, _, (path,)):
        server.control.set_quirks(download_delay=0.5)
        with contextlib.ExitStack() as stack:
            readers = [
                stack.enter_context(subprocess.Popen(["sha256sum", path], stdout=subprocess.PIPE))
                for _ in range(16)
            ]
            sums = {reader.communicate()[0].split()[0].decode() for reader in readers}
        assert sums == {sha256(content).hexdigest()}
        assert list(server.control.counts().blobs.values()) == [1]


def test_many_readers_of_many_mails_in_a_small_cache(home: Home) -> None:
    contents = [random_mail(number, 60_000) for number in range(64)]
    with box(home, *contents, options=("--cache-size", "1M")) as (server, mount, files):
        server.control.set_quirks(download_delay=0.02)
        work = list(range(len(files))) * 4
        random.Random(1).shuffle(work)
        with ThreadPoolExecutor(16) as pool:
            read = list(pool.map(lambda number: files[number].read_bytes(), work))
        assert read == [contents[number] for number in work]
        assert set(server.control.counts().blobs.values()) == {1}
        cache = mount.status()["cache"]
        assert cache["bytes"] <= cache["limit"] == 1 << 20


def test_mail_that_was_read_is_cached_across_mounts(home: Home) -> None:
    contents = [*(random_mail(number) for number in range(5)), random_mail(9, 1_500_000)]
    with server_process("empty") as server:
        fill_new_mailbox(server.control, contents)
        for blobs in (len(contents), 0):
            server.control.reset_counts()
            with home.mounted(server.url) as mount:
                files = sorted((mount.path / "Box").iterdir())
                assert [path.read_bytes() for path in files] == contents
                assert mount.counts().blobs == blobs
            assert server.control.counts().blob_reads == blobs


def test_a_flipped_byte_in_the_cache_is_detected(home: Home) -> None:
    contents = [random_mail(1), random_mail(2), random_mail(3, 1_500_000)]
    with server_process("empty") as server:
        fill_new_mailbox(server.control, contents)
        with home.mounted(server.url) as mount:
            files = sorted((mount.path / "Box").iterdir())
            assert [path.read_bytes() for path in files] == contents
        flip_bytes(home.cache, contents[0])
        server.control.reset_counts()
        with home.mounted(server.url) as mount:
            assert [path.read_bytes() for path in files] == contents
            assert mount.counts().blobs == 2  # random_mail(2) is as it was
        with home.mounted(server.url) as mount:
            assert [path.read_bytes() for path in files] == contents
            assert mount.counts().blobs == 0


def flip_bytes(cache: Path, small: bytes) -> None:
    """Change one byte of a small blob, in its database, and of every large one, in its file."""
    flipped = 0
    for path in cache.rglob("blobs/*"):
        if path.is_file() and path.read_bytes()[:15] == b"SQLite format 3":
            with contextlib.closing(sqlite3.connect(path)) as connection:
                changed = bytes([*small[:100], small[100] ^ 1, *small[101:]])
                flipped += connection.execute(
                    "UPDATE content SET data = ? WHERE data = ?", (changed, small)
                ).rowcount
                connection.commit()
    for path in cache.rglob("blobs/large/*"):
        with path.open("r+b") as file:
            file.seek(700_000)
            byte = file.read(1)[0]
            file.seek(700_000)
            file.write(bytes([byte ^ 1]))
        flipped += 1
    assert flipped == 2


@pytest.mark.parametrize("size", ["0", "1K"])
def test_a_mount_without_a_disk_cache(home: Home, size: str) -> None:
    contents = [random_mail(1), random_mail(2, 1_500_000)]
    with box(home, *contents, options=("--cache-size", size)) as (_, mount, files):
        for _ in range(2):
            assert [path.read_bytes() for path in files] == contents
        assert mount.status()["cache"]["blobs"] == 0
    kept = [path for path in home.cache.rglob("*") if path.is_file()]
    assert not [path for path in kept if contents[0][100:200] in path.read_bytes()]


@needs_root
def test_a_disk_that_is_full(home: Home) -> None:
    contents = [random_mail(number, 300_000) for number in range(12)] + [random_mail(20, 3_000_000)]
    with server_process("empty") as server:
        fill_new_mailbox(server.control, contents)
        with home.mounted(server.url):
            pass
        (blobs,) = home.cache.glob("*/blobs")
        options = ["-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(blobs)]
        if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
            pytest.skip("this machine mounts no tmpfs")
        try:
            for _ in range(2):
                with home.mounted(server.url) as mount:
                    files = sorted((mount.path / "Box").iterdir())
                    assert [path.read_bytes() for path in files] == contents
                    assert mount.status()["cache"]["bytes"] < 2 << 20
        finally:
            subprocess.run(["umount", "-l", str(blobs)], check=True)


def test_a_big_mail_in_random_pieces(home: Home) -> None:
    content = random_mail(1, 3_500_000)
    with box(home, content) as (_, mount, (path,)):
        chance = random.Random(7)
        with path.open("rb", buffering=0) as file:
            for _ in range(200):
                offset = chance.randrange(len(content) + 1000)
                length = chance.choice([1, 100, 4096, 70_000])
                expected = content[offset : offset + length]
                assert os.pread(file.fileno(), length, offset) == expected
        assert mount.counts().blobs == 1
        assert sha256(path.read_bytes()).digest() == sha256(content).digest()
