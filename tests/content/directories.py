"""Directories of mail for tests of read-ahead: an index, a source, a kernel, and programs.

A program reads a file as through the kernel: from the page cache, or else by a READ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.memory import MemoryCache
from jmapfs.content.readahead import Readahead
from jmapfs.content.service import ContentService, open_content_service
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import NamedFile
from tests import indexed
from tests.content.server import MIB, Corrections, FakeSource, Limits, mail


class FakePages:
    """The kernel's page cache; it knows every inode except those in `refused`."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.refused: set[int] = set()

    def store(self, files: Sequence[tuple[int, bytes]]) -> set[int]:
        for inode, data in files:
            if inode not in self.refused:
                self.pages[inode] = data
        return {inode for inode, _ in files} & self.refused


@dataclass
class Directories:
    """An account with some mailboxes, mounted for programs in this process."""

    source: FakeSource
    content: ContentService
    disk: DiskCache
    pages: FakePages
    ahead: Readahead
    files: dict[str, list[NamedFile]]
    reads: Counter[int] = field(default_factory=Counter)

    @property
    def fetched(self) -> int:
        """The number of blobs that were requested from the source."""
        return self.source.asked.total()

    def open(self, file: NamedFile) -> None:
        """Open a file and close it again."""
        self.content.hold(file.blob_id)
        self.content.release(file.blob_id)

    async def read(self, file: NamedFile) -> bytes:
        """Read a file as a program does."""
        self.content.hold(file.blob_id)
        try:
            if file.inode in self.pages.pages:
                await trio.lowlevel.checkpoint()
                return self.pages.pages[file.inode]
            self.reads[file.inode] += 1
            self.ahead.record_read(file.inode, file.size)
            data = bytes(await self.content.read(file.blob_id, file.size, 0, file.size))
            self.pages.pages[file.inode] = data
            return data
        finally:
            self.content.release(file.blob_id)

    async def read_all(self, files: Sequence[NamedFile], *, patient: bool = False) -> None:
        """Read files one after the other, as `grep -r` does, and check the content.

        A `patient` program waits after each READ until everything under way has ended.
        """
        for file in files:
            reads = self.reads.total()
            assert await self.read(file) == self.source.blobs[file.blob_id]
            if patient and self.reads.total() > reads:
                await self.settled()

    async def settled(self) -> None:
        """Return when nothing is under way."""
        with trio.fail_after(30):
            quiet = 0
            while quiet < 3:
                before = (self.fetched, len(self.pages.pages))
                await trio.testing.wait_all_tasks_blocked(0.01)
                still = before == (self.fetched, len(self.pages.pages))
                quiet = quiet + 1 if still and not self._is_working else 0

    @property
    def _is_working(self) -> bool:
        """Whether a download or a worker thread is running."""
        ahead, content = self.ahead, self.content
        limiters = (ahead._index_thread, ahead._threads, content._threads.limiter)
        return self.source.running > 0 or any(one.borrowed_tokens for one in limiters)


def content_of(blob_id: str, size: int) -> bytes:
    return mail(size, blob_id.encode())


@asynccontextmanager
async def directories(
    directory: Path,
    mailboxes: Mapping[str, Sequence[int]],
    *,
    labels: Callable[[int], Sequence[str]] = lambda _: (),
    limits: Limits | None = None,
    delay: float = 0.001,
    disk_limit: int = 256 * MIB,
    memory_limit: int = 32 * MIB,
    limit_bytes: int = 16 * MIB,
) -> AsyncIterator[Directories]:
    """Serve mailboxes, given by the sizes of their mails, while the context lasts.

    Mail with a number is also in the mailboxes that `labels` returns.
    """
    source = FakeSource(delay=delay)
    source.batch_limits = limits
    database = IndexDatabase(directory / "index")
    database.prepare()
    records = [
        indexed.email(
            f"{mailbox}{number}",
            mailbox,
            *labels(number),
            blob=f"{mailbox}-{number}",
            at=1_000_000 + number,
            size=size,
        )
        for mailbox, sizes in mailboxes.items()
        for number, size in enumerate(sizes)
    ]
    source.blobs = {one.blob_id: content_of(one.blob_id, one.size) for one in records}
    with database.writer() as writer, writer.transaction():
        writer.replace_mailboxes([indexed.mailbox(name, name) for name in mailboxes])
        writer.put_emails(records)
    disk = DiskCache(directory / "cache", disk_limit, reserve_bytes=0)
    pages = FakePages()
    try:
        with database.reader() as reader, database.reader() as chunk_reader:
            files = {row.id: _files(reader, row.number) for row in reader.mailboxes()}
            async with (
                open_content_service(
                    source, disk, MemoryCache(memory_limit), on_size_mismatch=Corrections()
                ) as content,
                trio.open_nursery() as nursery,
            ):
                ahead = Readahead(
                    content, disk, pages, reader, chunk_reader, nursery, limit_bytes=limit_bytes
                )
                yield Directories(source, content, disk, pages, ahead, files)
                nursery.cancel_scope.cancel()
    finally:
        disk.close()


def _files(reader: IndexReader, mailbox: int) -> list[NamedFile]:
    return reader.files_beside(mailbox, "", 1_000_000)
