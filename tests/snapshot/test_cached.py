"""What is in the disk cache of an account's mounts is not downloaded for a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmapfs.account import account_directory
from jmapfs.blob_keys import content_key
from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.large_files import LargeBlob
from jmapfs.errors import StorageError
from jmapfs.index.database import IndexDatabase
from jmapfs.snapshot.source import SnapshotSummary
from tests.snapshot.served import LARGE_BYTES, MAILS, ServedAccount


def cache_all(served: ServedAccount) -> Path:
    """Put all mail of the account into its disk cache, and return the directory of the cache."""
    directory = account_directory(served.directory / "cache", served.source)
    database = IndexDatabase(directory)
    account = served.server.primary
    cache = DiskCache(directory / "blobs", 1 << 30, reserve_bytes=0)
    emails = [
        (content_key(database.state().epoch, one.blob_id), account.blobs.read(one.blob_id) or b"")
        for one in account.emails.values()
    ]
    assert all(cache.put_many(emails))
    cache.close()
    return directory / "blobs"


async def next_snapshot(served: ServedAccount, name: str) -> tuple[SnapshotSummary, int]:
    """Create a first snapshot in a new directory; also return how many blobs were requested."""
    before = served.server.counts.blob_reads
    summary = await ServedAccount(
        served.server, served.source, served.directory, dest_name=name
    ).snapshot()
    return summary, served.server.counts.blob_reads - before


async def test_cached_mail_is_not_downloaded_whatever_its_size(served: ServedAccount) -> None:
    await served.snapshot()
    directory = cache_all(served)
    summary, requested = await next_snapshot(served, "second")
    assert (requested, summary.fetched, summary.fetched_bytes) == (0, 0, 0)
    assert summary.cached == MAILS + 1

    # A damaged file is not copied, but downloaded.
    [large] = (directory / "large").iterdir()
    content = bytearray(large.read_bytes())
    content[LARGE_BYTES // 2] ^= 1
    large.write_bytes(content)
    summary, requested = await next_snapshot(served, "third")
    assert (requested, summary.fetched, summary.cached) == (1, 1, MAILS)
    assert summary.fetched_bytes == LARGE_BYTES


async def test_a_cache_that_fails_while_it_is_read_costs_a_download(
    served: ServedAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.snapshot()
    cache_all(served)
    pread, opened = LargeBlob.pread, []

    def fail_at_the_second_reading(self: LargeBlob, length: int, offset: int) -> bytes:
        opened.append(offset)
        if len(opened) > LARGE_BYTES >> 20 and offset:
            raise StorageError("cannot read a file of the cache")
        return pread(self, length, offset)

    monkeypatch.setattr(LargeBlob, "pread", fail_at_the_second_reading)
    summary, requested = await next_snapshot(served, "second")
    assert (requested, summary.fetched, summary.cached) == (1, 1, MAILS)
