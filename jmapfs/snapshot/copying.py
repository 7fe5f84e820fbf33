"""Copying one state of a source into a tree: planning, fetching and placing at the same time.

    plan a part ── batches of what is wanted ──> tasks that bring them ──┐
         └── the part ─────────────────────────────────────────> place it, when all has come

A few parts are under way at a time, so memory does not grow with the account, and the network
does not wait for the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from jmapfs.errors import IncompleteError, JmapfsError, lone_errors, storage_errors
from jmapfs.snapshot.building import Builder, Plan
from jmapfs.snapshot.contents import Contents
from jmapfs.snapshot.report import Report
from jmapfs.snapshot.source import Source, Wanted
from jmapfs.tree import FIRST

_PARTS_UNDER_WAY: Final = 3
# Where so much cannot be had, it is not the mails that are at fault.
_MOST_LOST: Final = 1000

_T = TypeVar("_T")


class _Part:
    """A plan that waits for what it wants."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.complete = trio.Event()
        self._left = len(plan.wanted)
        self.settled(0)

    def settled(self, count: int) -> None:
        """Note that so much has come, or will not come."""
        self._left -= count
        if not self._left:
            self.complete.set()


class Copying:
    """Copies a source, once; `lost` is what could not be had, by blob id, and why."""

    def __init__(
        self, source: Source, builder: Builder, contents: Contents, report: Report
    ) -> None:
        self.lost: dict[str, JmapfsError] = {}
        self._source = source
        self._builder = builder
        self._contents = contents
        self._report = report
        self._copied = 0
        # Planning and placing share what they know.
        self._building = trio.CapacityLimiter(1)

    async def run(self) -> None:
        """Copy everything that can be had; the tree is whole if nothing is lost.

        Raises:
            StorageError: the destination cannot be written.
            IncompleteError: so much cannot be had that the rest was not tried.
            JmapfsError: what the source raises.
        """
        with lone_errors():
            async with trio.open_nursery() as nursery:
                batches = trio.open_memory_channel[tuple[_Part, Sequence[Wanted]]](0)
                parts = trio.open_memory_channel[_Part](_PARTS_UNDER_WAY)
                nursery.start_soon(self._plan, parts[0], batches[0])
                async with batches[1]:
                    for _ in range(self._source.tasks):
                        nursery.start_soon(self._bring, batches[1].clone())
                nursery.start_soon(self._place, parts[1])

    async def _plan(
        self,
        parts: trio.MemorySendChannel[_Part],
        batches: trio.MemorySendChannel[tuple[_Part, Sequence[Wanted]]],
    ) -> None:
        async with parts, batches:
            position: int | None = FIRST
            while position is not None:
                mails = await self._source.after(position)
                plan = await self._build(partial(self._builder.plan, mails.mails))
                part = _Part(plan)
                await parts.send(part)
                for batch in self._source.batches(plan.wanted):
                    await batches.send((part, batch))
                position = mails.position

    async def _bring(
        self, batches: trio.MemoryReceiveChannel[tuple[_Part, Sequence[Wanted]]]
    ) -> None:
        async with batches:
            async for part, batch in batches:
                failed = await self._source.bring(batch, self._contents)
                self.lost.update(failed)
                if len(self.lost) > _MOST_LOST:
                    error = next(iter(self.lost.values()))
                    raise IncompleteError(f"{len(self.lost):,} mails cannot be had: {error}")
                part.settled(len(batch))
                self._tell()

    async def _place(self, parts: trio.MemoryReceiveChannel[_Part]) -> None:
        async with parts:
            async for part in parts:
                await part.complete.wait()
                if not self.lost:
                    await self._build(partial(self._builder.place, part.plan))
                self._tell()

    def _tell(self) -> None:
        # While a part is placed, some of it is counted in neither.
        self._copied = max(self._copied, self._builder.tally.mails + len(self._contents))
        self._report.copied(self._copied, self._source.mails, self._contents.received.bytes)

    async def _build(self, work: Callable[[], _T]) -> _T:
        with storage_errors("the snapshot"):
            return await trio.to_thread.run_sync(work, limiter=self._building)
