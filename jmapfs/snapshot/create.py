"""Taking a snapshot: from a state of the account to a directory with a date, or to none.

A state is begun with; where mail of it vanishes before it was fetched, the next state is, with
everything that has come. Then the tree is finished, brought to the disk, and renamed, once.

Copying one state of a source into a tree: planning, fetching and placing at the same time.

    plan a part ── batches of what is wanted ──> tasks that bring them ──┐
         └── the part ─────────────────────────────────────────> place it, when all has come

A few parts are under way at a time, so memory does not grow with the account, and the network
does not wait for the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import trio

from jmapfs import __version__
from jmapfs.errors import (
    IncompleteError,
    JmapfsError,
    StorageError,
    TooMuchGoneError,
    lone_errors,
    storage_errors,
)
from jmapfs.locking import ProcessLock
from jmapfs.snapshot.builder import BaseSnapshot, BuildPlan, TreeBuilder
from jmapfs.snapshot.files import FileSystem
from jmapfs.snapshot.links import LinkStrategy
from jmapfs.snapshot.manifest import FORMAT, Description, ManifestWriter, Origin, is_intact
from jmapfs.snapshot.remove import remove_partial
from jmapfs.snapshot.repository import Repository, point_latest
from jmapfs.snapshot.source import (
    BlobRequest,
    BlobTotals,
    Sink,
    SnapshotReport,
    SnapshotSummary,
    Source,
    SourceOpener,
)
from jmapfs.snapshot.staging import (
    InterruptedRuns,
    StagedContents,
    Staging,
    begin_staging,
)
from jmapfs.snapshot.verify_record import VerificationRecord
from jmapfs.tree.export import FIRST

_PARTS_UNDER_WAY: Final = 3
# Where so much cannot be had, it is not the mails that are at fault.
_MOST_LOST: Final = 1000

_T = TypeVar("_T")


class _Part:
    """A plan that waits for what it wants."""

    def __init__(self, plan: BuildPlan) -> None:
        self.plan = plan
        self.complete = trio.Event()
        self._left = len(plan.wanted)
        self.settled(0)

    def settled(self, count: int) -> None:
        """Note that so much has come, or will not come."""
        self._left -= count
        if not self._left:
            self.complete.set()


class CopyJob:
    """Copies a source, once; `lost` is what could not be had, by blob id, and why."""

    def __init__(
        self, source: Source, builder: TreeBuilder, contents: StagedContents, report: SnapshotReport
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
                batches = trio.open_memory_channel[tuple[_Part, Sequence[BlobRequest]]](0)
                parts = trio.open_memory_channel[_Part](_PARTS_UNDER_WAY)
                nursery.start_soon(self._plan, parts[0], batches[0])
                async with batches[1]:
                    for _ in range(self._source.concurrency):
                        nursery.start_soon(self._bring, batches[1].clone())
                nursery.start_soon(self._place, parts[1])

    async def _plan(
        self,
        parts: trio.MemorySendChannel[_Part],
        batches: trio.MemorySendChannel[tuple[_Part, Sequence[BlobRequest]]],
    ) -> None:
        async with parts, batches:
            position: int | None = FIRST
            while position is not None:
                mails = await self._source.emails_after(position)
                plan = await self._build(partial(self._builder.plan, mails.emails))
                part = _Part(plan)
                await parts.send(part)
                for batch in self._source.batches(plan.wanted):
                    await batches.send((part, batch))
                position = mails.position

    async def _bring(
        self, batches: trio.MemoryReceiveChannel[tuple[_Part, Sequence[BlobRequest]]]
    ) -> None:
        async with batches:
            async for part, batch in batches:
                failed = await self._source.download(batch, self._contents)
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
        self._report.copied(self._copied, self._source.mail_count, self._contents.received.bytes)

    async def _build(self, work: Callable[[], _T]) -> _T:
        with storage_errors("the snapshot"):
            return await trio.to_thread.run_sync(work, limiter=self._building)


_ATTEMPTS: Final = 5


class _LostError(Exception):
    """Mail that could not be had, by blob id: the next state may not have it any more.

    `received` is what was brought all the same.
    """

    def __init__(self, errors: Mapping[str, JmapfsError], received: BlobTotals) -> None:
        super().__init__(f"{len(errors)} blobs")
        self.errors = errors
        self.received = received


async def create_snapshot(
    opener: SourceOpener, destination: Repository, *, max_gone: float, report: SnapshotReport
) -> SnapshotSummary:
    """Take a snapshot; return when it is on the disk, under its date.

    `max_gone` is how much of the last snapshot's mail may be gone, in percent.

    Raises:
        UsageError: the destination cannot be one.
        BusyError: another process is at work in it.
        ConfigError: it is that of another account.
        TooMuchGoneError: more than `max_gone` is gone.
        IncompleteError: some mail cannot be had.
        StorageError: it cannot be written.
        JmapfsError: what the source raises.
    """
    began = time.monotonic()
    destination.make()
    with ProcessLock(destination.lock_path, f"the snapshots in {destination.path}"):
        lost: AbstractSet[str] = frozenset()
        received = BlobTotals(0, 0)
        for attempt in itertools.count(1):
            try:
                with storage_errors(destination.path), contextlib.ExitStack() as stack:
                    taking = _SnapshotRun(destination, report, stack)
                    async with opener.open(taking) as source:
                        summary = await taking.take(source, max_gone)
            except _LostError as error:
                if attempt == _ATTEMPTS or error.errors.keys() <= lost:
                    raise _incomplete(error.errors) from None
                lost, received = error.errors.keys(), received + error.received
            else:
                return msgspec.structs.replace(
                    summary,
                    # What an earlier attempt fetched was taken over by the one that succeeded.
                    fetched=summary.fetched + received.blobs,
                    fetched_bytes=summary.fetched_bytes + received.bytes,
                    taken_over=max(0, summary.taken_over - received.blobs),
                    attempts=attempt,
                    seconds=round(time.monotonic() - began, 3),
                )
        raise AssertionError


class _Begun(NamedTuple):
    """What there is once it is known whose mail is copied."""

    partial: Staging
    file_system: FileSystem
    previous: BaseSnapshot | None
    sharing: LinkStrategy
    manifest: ManifestWriter
    builder: TreeBuilder


class _SnapshotRun:
    """One attempt, at one state of the account; `stack` is for what it opens."""

    def __init__(
        self, destination: Repository, report: SnapshotReport, stack: contextlib.ExitStack
    ) -> None:
        self._destination = destination
        self._report = report
        self._stack = stack
        self._begun: _Begun | None = None

    async def prepare(self, origin: Origin) -> Sink:
        """Begin, once it is known whose mail it is; see `EarlySink`."""
        begun = await self._begin(origin)
        return begun.partial.contents

    async def missing(self, candidates: Sequence[BlobRequest]) -> list[BlobRequest]:
        """Return what is not at hand; see `EarlySink`."""
        assert self._begun is not None  # noqa: S101 - `prepare` comes first
        return await trio.to_thread.run_sync(self._begun.builder.missing, candidates)

    async def take(self, source: Source, max_gone: float) -> SnapshotSummary:
        """Take the snapshot.

        Raises:
            _LostError: some of the state's mail cannot be had.
        """
        begun = await self._begin(source.origin)
        builder, contents = begun.builder, begun.partial.contents
        date = self._destination.next_date(datetime.now(UTC))
        # What is found from here on is found when this one has been taken: then it is doubted.
        await trio.to_thread.run_sync(self._doubt, begun.previous)
        await trio.to_thread.run_sync(builder.begin, source.mailboxes)
        copying = CopyJob(source, builder, contents, self._report)
        await copying.run()
        if copying.lost:
            raise _LostError(copying.lost, contents.received)
        if not await source.still_frozen():
            raise StorageError("the mount was thawed meanwhile: no state was held to the end")
        gone = 0 if begun.previous is None else begun.previous.missing_from(builder.placed)
        _require_kept(begun.previous, gone, max_gone)
        self._report.syncing()
        description = _described(date, source, begun, gone)
        await trio.to_thread.run_sync(begun.manifest.finish, description)
        # It may take as long as the disk does; Ctrl-C need not.
        await trio.to_thread.run_sync(begun.file_system.sync, abandon_on_cancel=True)
        # In one, so that nothing comes between: when it has its date, it is not to be a failure.
        path, obstacle = await trio.to_thread.run_sync(self._publish, begun.partial, date)
        self._report.published(path)
        if obstacle is not None:
            self._report.notice(f"the snapshot is there, but not all is tidied up: {obstacle}")
        return SnapshotSummary(
            path=str(path),
            date=date,
            email_state=description.email_state,
            mails=description.mails,
            files=description.files,
            bytes=description.bytes,
            previous=description.previous,
            new=description.new,
            gone=gone,
            fetched=contents.received.blobs - source.cached.blobs,
            fetched_bytes=contents.received.bytes - source.cached.bytes,
            cached=source.cached.blobs,
            taken_over=builder.tally.taken_over,
            links=description.links,
            attempts=1,
            seconds=0.0,
        )

    async def _begin(self, origin: Origin) -> _Begun:
        if self._begun is None:
            self._begun = await trio.to_thread.run_sync(self._opened, origin)
        return self._begun

    def _opened(self, origin: Origin) -> _Begun:
        enter = self._stack.enter_context
        leftovers = InterruptedRuns(self._destination)
        self._destination.require_origin(origin, leftovers.origins())
        begun_at = self._destination.next_date(datetime.now(UTC))
        made = enter(begin_staging(self._destination, begun_at, origin))
        file_system = enter(FileSystem(made.path))
        if leftovers.partials:
            # Only what is on the disk can be read from there; see `has_content`.
            file_system.sync()
            leftovers.take_over(made.contents)
        sharing = self._sharing(made)
        previous = self._previous(sharing)
        if previous is not None:
            enter(previous)
        manifest = enter(ManifestWriter(made.tree))
        builder = TreeBuilder(made, manifest, sharing, previous)
        enter(builder.placed)
        return _Begun(made, file_system, previous, sharing, manifest, builder)

    def _previous(self, sharing: LinkStrategy) -> BaseSnapshot | None:
        """Return the newest snapshot whose manifest is as it was written."""
        for snapshot in reversed(self._destination.snapshots()):
            if is_intact(snapshot.path):
                # What is copied is read anyway.
                return BaseSnapshot(snapshot, doubted=sharing.links == "copy")
            self._notice(f"{snapshot.path} is damaged, and is not built upon: run verify")
        return None

    def _doubt(self, previous: BaseSnapshot | None) -> None:
        """Doubt the last snapshot where verify has found damage that it may have a part in."""
        if previous is not None:
            verified = VerificationRecord.read(self._destination)
            if verified.doubts(previous.date, previous.taken):
                previous.doubt()

    def _notice(self, text: str) -> None:
        trio.from_thread.run_sync(self._report.notice, text)

    def _sharing(self, made: Staging) -> LinkStrategy:
        sharing = LinkStrategy(made.path)
        if sharing.links != "hard":
            how = {"reflink": "share blocks instead", "copy": "are copied"}[sharing.links]
            self._notice(
                f"{self._destination.path} has no hard links: files that stay the same {how}"
            )
        return sharing

    def _publish(self, made: Staging, date: str) -> tuple[Path, StorageError | None]:
        """Give the snapshot its date; return where it is, and what the next run is to tidy up."""
        path = made.publish(date)
        try:
            with storage_errors(path):
                point_latest(self._destination, date)
                remove_partial(made.path)
        except StorageError as error:
            return path, error
        return path, None


def _require_kept(previous: BaseSnapshot | None, gone: int, max_gone: float) -> None:
    if previous is None or not len(previous):
        return
    share = 100 * gone / len(previous)
    if share > max_gone:
        raise TooMuchGoneError(
            f"{gone:,} of the {len(previous):,} mails of {previous.date} are gone"
            f" ({share:.0f} %): no snapshot without them is made unless you ask for it"
            " with --max-gone 100"
        )


def _described(date: str, source: Source, begun: _Begun, gone: int) -> Description:
    tally = begun.builder.tally
    return Description(
        format=FORMAT,
        jmapfs=__version__,
        date=date,
        origin=source.origin,
        email_state=source.email_state,
        mails=tally.mails,
        files=tally.files,
        bytes=tally.bytes,
        previous=begun.previous.date if begun.previous is not None else None,
        new=tally.new,
        gone=gone,
        added_bytes=tally.new_bytes + begun.sharing.copied_bytes,
        links=begun.sharing.links,
        mailboxes=tuple(source.mailboxes),
    )


def _incomplete(errors: Mapping[str, JmapfsError]) -> JmapfsError:
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return IncompleteError(f"a mail cannot be had, so there is no snapshot: {first}")
    return IncompleteError(
        f"{len(errors):,} mails cannot be had, so there is no snapshot: {first}; and so on"
    )
