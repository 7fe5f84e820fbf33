"""Transfers one state of a source into the staging directory of a snapshot.

    plan a part ── batches of requests ──> download tasks ──┐
         └── the part ────────────────────────────────────> place it, when all has arrived

A few parts are processed at a time, so memory does not grow with the account, and the network does
not wait for the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final, TypeVar

import trio

from jmapfs.deadline import NO_PROGRESS, Stall
from jmapfs.errors import BlobNotFoundError, JmapfsError, ServerError, lone_errors, storage_errors
from jmapfs.snapshot.builder import BuildPlan, TreeBuilder
from jmapfs.snapshot.source import BlobRequest, SnapshotReport, Source
from jmapfs.snapshot.staging import Staging
from jmapfs.tree.export import FIRST

_PARTS: Final = 3
# If more mails than this fail, one after the other, the mails are not the cause.
_MAX_FAILED: Final = 1000

_T = TypeVar("_T")


@dataclass(slots=True)
class _Part:
    # `pending` counts the requests that are neither downloaded nor failed.
    plan: BuildPlan
    pending: int
    complete: trio.Event = field(default_factory=trio.Event)

    def finish(self, count: int) -> None:
        self.pending -= count
        if not self.pending:
            self.complete.set()


class Transfer:
    """Copies everything that can be downloaded.

    After `run`, `failed` has the blobs that could not be downloaded, with the reasons, and the
    staging directory lists their mails. If `failed` is empty, the tree is complete. With
    `skips_failed`, the tree has all other mails. `given_up` tells that so many downloads failed,
    or that nothing arrived for so long, that the others were not tried. `uncompared` counts the
    contents that are used although they could not be compared with the server, because it no longer
    has them.
    """

    def __init__(
        self,
        source: Source,
        builder: TreeBuilder,
        staging: Staging,
        report: SnapshotReport,
        *,
        skips_failed: bool,
        failed_before: AbstractSet[str],
        stalled: float,
    ) -> None:
        self.failed: dict[str, str] = {}
        self.given_up = False
        self.uncompared = 0
        self._source = source
        self._builder = builder
        self._staging = staging
        self._report = report
        self._skips_failed = skips_failed
        self._failed_before = failed_before
        self._failed_in_a_row = 0
        self._copied = 0
        self._in_flight: list[Sequence[BlobRequest]] = []
        self._stall = Stall(
            lambda: (staging.downloaded.blobs, self._copied),
            lambda: staging.received,
            lambda: bool(self._in_flight) and not self._building.borrowed_tokens,
            stalled=stalled,
        )
        # The parts that are planned and not placed.
        self._parts: deque[_Part] = deque()
        # Only one thread at a time may use the builder.
        self._building = trio.CapacityLimiter(1)

    @property
    def stalled(self) -> float:
        """Seconds without progress at the end of the run."""
        return self._stall.stalled

    async def run(self) -> None:
        """Copy the state of the source. Raises JmapfsError.

        If there is no progress for LONGEST_STALL seconds, the copy is given up. The contents that
        were requested then have failed.
        """
        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                await self._copy()
                nursery.cancel_scope.cancel()
        for part in self._parts:
            await self._build(partial(self._builder.note_missing, part.plan, self.failed))

    async def _copy(self) -> None:
        with lone_errors():
            async with trio.open_nursery() as nursery:
                batches = trio.open_memory_channel[tuple[_Part, Sequence[BlobRequest]]](0)
                parts = trio.open_memory_channel[_Part](_PARTS)
                nursery.start_soon(self._plan, parts[0], batches[0])
                async with batches[1]:
                    for _ in range(self._source.concurrency):
                        nursery.start_soon(self._download, batches[1].clone(), nursery)
                nursery.start_soon(self._place, parts[1])

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Give up when there is no progress any more. The time for work on the disk is free."""
        await self._stall.wait()
        for request in chain.from_iterable(self._in_flight):
            if self._staging.file(request.blob_id) is None:
                self.failed.setdefault(request.blob_id, NO_PROGRESS)
        self.given_up = True
        scope.cancel()

    async def _plan(
        self,
        parts: trio.MemorySendChannel[_Part],
        batches: trio.MemorySendChannel[tuple[_Part, Sequence[BlobRequest]]],
    ) -> None:
        async with parts, batches:
            position: int | None = FIRST
            while position is not None:
                emails = await self._source.emails_after(position)
                plan = await self._build(partial(self._builder.plan, emails.emails))
                await self._check_unrequested(plan)
                if plan.shared or plan.staged:
                    # Perhaps only the bad mails are left to download.
                    self._failed_in_a_row = 0
                part = _Part(plan, len(plan.requests))
                self._parts.append(part)
                await parts.send(part)
                if plan.requests:
                    for batch in self._source.batches(plan.requests):
                        await batches.send((part, batch))
                else:
                    part.complete.set()
                position = emails.position

    async def _download(
        self,
        batches: trio.MemoryReceiveChannel[tuple[_Part, Sequence[BlobRequest]]],
        nursery: trio.Nursery,
    ) -> None:
        async with batches:
            async for part, batch in batches:
                self._in_flight.append(batch)
                failed = await self._download_batch(batch)
                self._in_flight.remove(batch)
                self.failed.update((blob_id, str(error)) for blob_id, error in failed.items())
                if len(failed) < len(batch):
                    self._failed_in_a_row = 0
                # In a second attempt, perhaps only the bad mails are left to download.
                self._failed_in_a_row += len(failed.keys() - self._failed_before)
                if self._failed_in_a_row > _MAX_FAILED:
                    self.given_up = True
                    nursery.cancel_scope.cancel()
                part.finish(len(batch))
                self._report_copied()

    async def _download_batch(self, batch: Sequence[BlobRequest]) -> dict[str, JmapfsError]:
        failed = dict(await self._source.download(batch, self._staging))
        wrong = await self._check_downloads(batch)
        if wrong:
            # Perhaps the wrong content is only in the cache.
            again = [request for request in batch if request.blob_id in wrong]
            failed |= await self._source.download(again, self._staging, from_server=True)
            failed |= await self._check_downloads(again)
        return failed

    async def _check_unrequested(self, plan: BuildPlan) -> None:
        """Request all contents again that are not what the server has.

        Contents that the server no longer has are used: they may be the last copies.
        """
        check = self._source.check
        if check is not None and check.required:
            files = await self._build(partial(self._builder.unrequested, plan))
            failures = await check.failures(files)
            lost = {one for one, error in failures.items() if isinstance(error, BlobNotFoundError)}
            self.uncompared += len(lost)
            if wrong := failures.keys() - lost:
                await self._build(partial(self._builder.reject, plan, wrong))

    async def _check_downloads(self, batch: Sequence[BlobRequest]) -> dict[str, ServerError]:
        """Discard the contents that are not what the server has. Return the errors."""
        check = self._source.check
        if check is None or not check.required or check.proves_downloads:
            return {}
        staged = {one.blob_id: self._staging.file(one.blob_id) for one in batch}
        failures = await check.failures(
            {blob_id: file for blob_id, file in staged.items() if file is not None}
        )
        for blob_id in failures:
            await self._build(partial(self._staging.discard, blob_id))
        return failures

    async def _place(self, parts: trio.MemoryReceiveChannel[_Part]) -> None:
        async with parts:
            async for part in parts:
                await part.complete.wait()
                builder = self._builder
                skips = self.failed and not self._skips_failed
                work = builder.note_missing if skips else builder.place
                # Giving up must not cancel this: the mails of a part are noted once.
                with trio.CancelScope(shield=True):
                    await self._build(partial(work, part.plan, self.failed))
                    self._parts.popleft()
                self._report_copied()

    def _report_copied(self) -> None:
        # While a part is being placed, some of its mails are in neither count.
        self._copied = max(self._copied, self._builder.tally.mails + len(self._staging))
        size = self._staging.downloaded.bytes
        self._report.copied(self._copied, self._source.mail_count, size)

    async def _build(self, work: Callable[[], _T]) -> _T:
        with storage_errors(self._staging.path):
            return await trio.to_thread.run_sync(work, limiter=self._building)
