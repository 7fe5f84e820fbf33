"""Random readers, queues and failures: each blob has one download, and every reader an answer."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar
from unittest import mock

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from jmapfs.content.confirmation import Route
from jmapfs.content.download_queue import DownloadQueue
from jmapfs.content.publisher import PublishToKernel
from jmapfs.content.service import ContentService
from jmapfs.content.single_flight import Download
from jmapfs.content.write_behind import DiskThreads
from jmapfs.deadline import Deadline
from jmapfs.errors import BlobNotFoundError, JmapfsError, MethodError, UnreachableError
from jmapfs.jmap.emails import EmailValues
from tests.content.server import MIB, FakeSource, Limits, mail, serving

_T = TypeVar("_T")

_READ_TIMEOUT = 30.0
_DOWNLOAD_TIMEOUT = 60.0
_LARGE = MIB + 1
_BLOBS = 3
# More than any download takes with its time in queues.
_PATIENCE = 3600.0


class Blob(NamedTuple):
    """A blob of the server: how it is served, its true size, and the one that is stated."""

    kind: Literal["good", "missing", "only alone", "stuck"]
    size: int
    stated: int
    delay: float


class Read(NamedTuple):
    """A read that is cancelled after `patience` seconds."""

    at: float
    blob: int
    patience: float


class Batch(NamedTuple):
    """Blobs that are queued, or recalled from the disk; see `_Kernel`."""

    at: float
    blobs: list[int]
    recalled: bool
    cancelled_after: float | None
    kernel_fails: bool


# Close together, so that much happens at once; some after the deadlines.
times = st.one_of(
    st.integers(0, 12).map(lambda tenths: tenths / 10), st.sampled_from([29.0, 31.0, 61.0])
)
delays = st.sampled_from([0.0, 0.0, 0.001, 0.5, 1.0, 3.0, 61.0])
sizes = st.sampled_from([0, 2, 100, 100, _LARGE])
blobs = st.builds(
    Blob,
    st.sampled_from(["good", "good", "good", "good", "missing", "only alone", "stuck"]),
    sizes,
    st.sampled_from([0, 0, 0, 0, 1, _LARGE]),
    delays,
).map(lambda blob: blob._replace(stated=blob.stated or blob.size))
numbers = st.integers(0, _BLOBS - 1)
reads = st.builds(Read, times, numbers, st.sampled_from([0.0, 0.001, 0.7, 20.0, 200.0]))
batches = st.builds(
    Batch,
    times,
    st.lists(numbers, min_size=1, unique=True),
    st.booleans(),
    st.none() | delays,
    st.booleans(),
)
errors = st.sampled_from(["", "", "", "", "batch", "outage"])


class _Source(FakeSource):
    """A server that fails at times; `most_transfers` is of one blob at the same time."""

    def __init__(self, served: Sequence[Blob], failures: Sequence[str]) -> None:
        super().__init__()
        self.served = {f"b{number}": blob for number, blob in enumerate(served)}
        self.failures = list(failures)
        self.transfers: Counter[str] = Counter()
        self.most_transfers = 0

    def content(self, blob_id: str) -> bytes:
        return mail(self.served[blob_id].size, blob_id.encode())

    async def stated(self, keys: Collection[str]) -> dict[str, EmailValues]:
        await trio.lowlevel.checkpoint()
        return {key: EmailValues(key, self.served[key].stated, 0) for key in keys}

    @asynccontextmanager
    async def transfer(self, *blob_ids: str) -> AsyncIterator[None]:
        self.transfers.update(blob_ids)
        self.most_transfers = max(self.most_transfers, *self.transfers.values())
        try:
            kinds = {self.served[blob_id].kind for blob_id in blob_ids}
            delay = max(self.served[blob_id].delay for blob_id in blob_ids)
            await trio.sleep(10_000 if "stuck" in kinds else delay)
            failure = self.failures.pop() if self.failures else ""
            if failure == "outage":
                raise UnreachableError("no network")
            if failure == "batch" and len(blob_ids) > 1:
                raise MethodError("Blob/get", "serverFail")
            yield
        finally:
            self.transfers.subtract(blob_ids)

    async def download_batch(
        self, blobs: Sequence[tuple[str, int]], *, deadline: Deadline
    ) -> dict[str, bytes]:
        with deadline.limit():
            async with self.transfer(*(blob_id for blob_id, _ in blobs)):
                return {
                    blob_id: self.content(blob_id)
                    for blob_id, _ in blobs
                    if self.served[blob_id].kind in ("good", "stuck")
                }
        raise UnreachableError("no answer")

    async def _chunks(
        self, blob_id: str, route: Route, deadline: Deadline
    ) -> AsyncGenerator[bytes, None]:
        async with self.transfer(blob_id):
            if self.served[blob_id].kind == "missing":
                raise BlobNotFoundError("no such blob")
            assert route in Route
            deadline.received(len(self.content(blob_id)))
            yield self.content(blob_id)


class _Kernel:
    """Takes no content of a blob while a READ of it waits, as the kernel does (page locks)."""

    def __init__(self) -> None:
        self.reading: Counter[str] = Counter()
        self.changed = trio.Event()
        self.stuck = False

    def note(self, blob_id: str, change: int) -> None:
        self.reading[blob_id] += change
        self.changed.set()
        self.changed = trio.Event()

    async def publish(self, contents: Sequence[tuple[str, bytes]], *, fails: bool) -> set[str]:
        await trio.sleep(0.5)
        taken = set()
        for blob_id, _ in contents:
            with trio.move_on_after(1) as scope:
                while self.reading[blob_id]:
                    await self.changed.wait()
            self.stuck |= scope.cancelled_caught
            taken.add(blob_id)
            await trio.sleep(0.1)
        if fails:
            raise RuntimeError("a bug")
        return taken


class _Run:
    def __init__(self, content: ContentService, source: _Source) -> None:
        self.content = content
        self.source = source
        self.kernel = _Kernel()
        self.stopped = False

    async def read(self, read: Read) -> None:
        await trio.sleep(read.at)
        blob_id = f"b{read.blob}"
        size = self.source.served[blob_id].stated
        self.kernel.note(blob_id, 1)
        try:
            with trio.fail_after(_READ_TIMEOUT + 8), trio.move_on_after(read.patience):
                data = bytes(await self.content.read(blob_id, size, 0, max(size, 1)))
                assert data == self.source.content(blob_id)
        except JmapfsError as error:
            if not self.stopped and "no longer served" in str(error):
                raise
        finally:
            self.kernel.note(blob_id, -1)

    async def load(self, batch: Batch) -> None:
        await trio.sleep(batch.at)

        async def publish(contents: Sequence[tuple[str, bytes]]) -> set[str]:
            return await self.kernel.publish(contents, fails=batch.kernel_fails)

        queue = DownloadQueue(publish)
        created = [
            self.content.create_download(blob_id, self.source.served[blob_id].stated)
            for blob_id in (f"b{number}" for number in batch.blobs)
        ]
        downloads = [one for one in created if one is not None]
        if batch.recalled:
            await self._recall(downloads, publish, fails=batch.kernel_fails)
            return
        self.content.downloads.add(queue, downloads)
        if batch.cancelled_after is not None:
            await trio.sleep(batch.cancelled_after)
            queue.cancel()
        await queue.wait_until_empty()

    async def _recall(
        self, downloads: Sequence[Download], publish: PublishToKernel, *, fails: bool
    ) -> None:
        started = [one for one in downloads if one.start()]
        await trio.sleep(0.2)
        # Only content of the right size is recalled.
        arrived = [
            (one, data)
            for one in started
            if len(data := self.source.content(one.content_key)) == one.size < _LARGE
        ]
        try:
            await self.content.publish(arrived, publish)
        except RuntimeError:
            assert fails
        finally:
            for one in started:
                if not one.ended:
                    one.cancel()


async def _inline(_threads: DiskThreads, work: Callable[[], _T]) -> _T:
    # The virtual time would pass while a thread works.
    await trio.sleep(0.15)
    return work()


async def _play(
    source: _Source,
    reads: list[Read],
    batches: list[Batch],
    disk_limit: int,
    stop_at: float | None,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with (
            trio.open_nursery() as readers,
            serving(
                source,
                Path(directory),
                disk_limit=disk_limit,
                parallel_downloads=2,
                read_timeout=_READ_TIMEOUT,
                download_timeout=_DOWNLOAD_TIMEOUT,
            ) as content,
        ):
            run = _Run(content, source)
            for read in reads:
                readers.start_soon(run.read, read)
            async with trio.open_nursery() as loads:
                for batch in batches:
                    loads.start_soon(run.load, batch)
                if stop_at is not None:
                    await trio.sleep(stop_at)
                    loads.cancel_scope.cancel()
                    run.stopped = True
            if stop_at is None:
                await trio.sleep(_PATIENCE)
                assert not any(source.transfers.values())
                assert not any(content.get_download(blob_id) for blob_id in source.served)
                assert not content._publisher._slots.borrowed_tokens
        assert source.most_transfers <= 1
        assert not run.kernel.stuck


@settings(max_examples=200)
@given(
    served=st.lists(blobs, min_size=_BLOBS, max_size=_BLOBS),
    reads=st.lists(reads, min_size=4, max_size=12),
    batches=st.lists(batches, min_size=1, max_size=4),
    failures=st.lists(errors, max_size=8),
    limits=st.sampled_from([None, Limits(2), Limits(40)]),
    disk_limit=st.sampled_from([0, 0, 64 * MIB]),
    stop_at=st.none() | times,
)
def test_every_reader_is_answered(
    served: list[Blob],
    reads: list[Read],
    batches: list[Batch],
    failures: list[str],
    limits: Limits | None,
    disk_limit: int,
    stop_at: float | None,
) -> None:
    source = _Source(served, failures)
    source.batch_limits = limits
    with (
        mock.patch.object(DiskThreads, "run", _inline),
        mock.patch.object(DiskThreads, "run_abandonable", _inline),
    ):
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(_play, source, reads, batches, disk_limit, stop_at, clock=clock)
