"""Taking a snapshot: from a state of the account to a directory with a date, or to none.

A state is begun with; where mail of it vanishes before it was fetched, the next state is, with
everything that has come. Then the tree is finished, brought to the disk, and renamed, once.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import trio

from jmapfs import __version__
from jmapfs.errors import (
    IncompleteError,
    JmapfsError,
    StorageError,
    TooMuchGoneError,
    storage_errors,
)
from jmapfs.lock import ProcessLock
from jmapfs.snapshot.building import Builder
from jmapfs.snapshot.contents import Received
from jmapfs.snapshot.copying import Copying
from jmapfs.snapshot.destination import Destination
from jmapfs.snapshot.latest import point_latest
from jmapfs.snapshot.manifest import ManifestWriter, is_intact
from jmapfs.snapshot.partial import Leftovers, Partial, begin_partial
from jmapfs.snapshot.previous import Previous
from jmapfs.snapshot.records import FORMAT, Description, Origin
from jmapfs.snapshot.removal import remove_partial
from jmapfs.snapshot.report import Report, Summary
from jmapfs.snapshot.sharing import Sharing
from jmapfs.snapshot.source import Receiver, Source, SourceOpener, Wanted
from jmapfs.snapshot.syncing import FileSystem
from jmapfs.snapshot.verified import Verified

_ATTEMPTS: Final = 5


class _LostError(Exception):
    """Mail that could not be had, by blob id: the next state may not have it any more.

    `received` is what was brought all the same.
    """

    def __init__(self, errors: Mapping[str, JmapfsError], received: Received) -> None:
        super().__init__(f"{len(errors)} blobs")
        self.errors = errors
        self.received = received


async def take_snapshot(
    opener: SourceOpener, destination: Destination, *, max_gone: float, report: Report
) -> Summary:
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
        received = Received(0, 0)
        for attempt in itertools.count(1):
            try:
                with storage_errors(destination.path), contextlib.ExitStack() as stack:
                    taking = _Taking(destination, report, stack)
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

    partial: Partial
    file_system: FileSystem
    previous: Previous | None
    sharing: Sharing
    manifest: ManifestWriter
    builder: Builder


class _Taking:
    """One attempt, at one state of the account; `stack` is for what it opens."""

    def __init__(
        self, destination: Destination, report: Report, stack: contextlib.ExitStack
    ) -> None:
        self._destination = destination
        self._report = report
        self._stack = stack
        self._begun: _Begun | None = None

    async def prepare(self, origin: Origin) -> Receiver:
        """Begin, once it is known whose mail it is; see `Ahead`."""
        begun = await self._begin(origin)
        return begun.partial.contents

    async def unknown(self, candidates: Sequence[Wanted]) -> list[Wanted]:
        """Return what is not at hand; see `Ahead`."""
        assert self._begun is not None  # noqa: S101 - `prepare` comes first
        return await trio.to_thread.run_sync(self._begun.builder.unknown, candidates)

    async def take(self, source: Source, max_gone: float) -> Summary:
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
        copying = Copying(source, builder, contents, self._report)
        await copying.run()
        if copying.lost:
            raise _LostError(copying.lost, contents.received)
        if not await source.still_held():
            raise StorageError("the mount was thawed meanwhile: no state was held to the end")
        gone = 0 if begun.previous is None else begun.previous.missing_from(builder.placed)
        _require_kept(begun.previous, gone, max_gone)
        self._report.finishing()
        description = _described(date, source, begun, gone)
        await trio.to_thread.run_sync(begun.manifest.finish, description)
        # It may take as long as the disk does; Ctrl-C need not.
        await trio.to_thread.run_sync(begun.file_system.sync, abandon_on_cancel=True)
        # In one, so that nothing comes between: when it has its date, it is not to be a failure.
        path, obstacle = await trio.to_thread.run_sync(self._publish, begun.partial, date)
        self._report.made(path)
        if obstacle is not None:
            self._report.notice(f"the snapshot is there, but not all is tidied up: {obstacle}")
        return Summary(
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
        leftovers = Leftovers(self._destination)
        self._destination.require_origin(origin, leftovers.origins())
        begun_at = self._destination.next_date(datetime.now(UTC))
        made = enter(begin_partial(self._destination, begun_at, origin))
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
        builder = Builder(made, manifest, sharing, previous)
        enter(builder.placed)
        return _Begun(made, file_system, previous, sharing, manifest, builder)

    def _previous(self, sharing: Sharing) -> Previous | None:
        """Return the newest snapshot whose manifest is as it was written."""
        for snapshot in reversed(self._destination.snapshots()):
            if is_intact(snapshot.path):
                # What is copied is read anyway.
                return Previous(snapshot, doubted=sharing.links == "copy")
            self._notice(f"{snapshot.path} is damaged, and is not built upon: run verify")
        return None

    def _doubt(self, previous: Previous | None) -> None:
        """Doubt the last snapshot where verify has found damage that it may have a part in."""
        if previous is not None:
            verified = Verified.read(self._destination)
            if verified.doubts(previous.date, previous.taken):
                previous.doubt()

    def _notice(self, text: str) -> None:
        trio.from_thread.run_sync(self._report.notice, text)

    def _sharing(self, made: Partial) -> Sharing:
        sharing = Sharing(made.path)
        if sharing.links != "hard":
            how = {"reflink": "share blocks instead", "copy": "are copied"}[sharing.links]
            self._notice(
                f"{self._destination.path} has no hard links: files that stay the same {how}"
            )
        return sharing

    def _publish(self, made: Partial, date: str) -> tuple[Path, StorageError | None]:
        """Give the snapshot its date; return where it is, and what the next run is to tidy up."""
        path = made.publish(date)
        try:
            with storage_errors(path):
                point_latest(self._destination, date)
                remove_partial(made.path)
        except StorageError as error:
            return path, error
        return path, None


def _require_kept(previous: Previous | None, gone: int, max_gone: float) -> None:
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
