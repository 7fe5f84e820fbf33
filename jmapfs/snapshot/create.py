"""Creates a snapshot: copies one state of a source into a dated directory.

`transfer` copies the mail. If mail of the state disappears before it is downloaded, the next
attempt copies a newer state. That attempt reuses everything that was downloaded. If the same mail
fails again, there is no snapshot, or one without this mail. At the end the tree is synced, and then
renamed to its date.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

import msgspec
import trio

from jmapfs.deadline import LONGEST_STALL
from jmapfs.errors import (
    IncompleteError,
    StorageError,
    storage_errors,
)
from jmapfs.snapshot.base import BaseSnapshot, EmailIdentities
from jmapfs.snapshot.dates import EARLIEST_RIGHT
from jmapfs.snapshot.manifest import (
    Origin,
    count_mails,
)
from jmapfs.snapshot.missing import MissingMail, MissingMails
from jmapfs.snapshot.repository import CORRECT_DATES, Repository, origin_text
from jmapfs.snapshot.source import (
    BlobRequest,
    BlobTotals,
    Sink,
    SnapshotReport,
    SnapshotSummary,
    Source,
    SourceOpener,
)
from jmapfs.snapshot.target import Scope, Target
from jmapfs.snapshot.transfer import Transfer
from jmapfs.snapshot.verify_record import VerificationRecord
from jmapfs.tree.export import FIRST

_MAX_ATTEMPTS: Final = 5
_GRACE_SECONDS: Final = 10.0
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


async def create_snapshot(
    opener: SourceOpener,
    repository: Repository,
    *,
    max_gone: float,
    report: SnapshotReport,
    skip_bad: bool = False,
    adopt: bool = False,
    force: bool = False,
) -> SnapshotSummary:
    """Create a snapshot. When this returns, the snapshot is on the disk, under its date.

    With `adopt`, the repository may belong to another account, and belongs to this one afterwards.
    With `force`, a directory that contains other things becomes a repository.
    `max_gone` is the percentage of the previous snapshot's mail that may be gone. With `skip_bad`,
    the snapshot is made without the mails that cannot be downloaded. A shortfall never prevents the
    snapshot: nobody can name the mails, and it may last for ever.

    Raises:
        UsageError: the repository cannot be created there.
        BusyError: another process is using the repository.
        ConfigError: the repository belongs to another account.
        TooMuchGoneError: more than `max_gone` percent of the mail is gone.
        FailedDownloadsError: some mail cannot be downloaded.
        StorageError: the repository cannot be written.
        JmapfsError: the errors of the source.
    """
    began = time.monotonic()
    repository.create(force=force)
    with repository.lock():
        failed: AbstractSet[str] = frozenset()
        downloaded = BlobTotals(0, 0)
        attempts, stalled = 0, 0.0
        while True:
            attempts += 1
            is_last = attempts == _MAX_ATTEMPTS
            skippable = _Skippable(failed, everything=is_last) if skip_bad else None
            try:
                with (
                    storage_errors(repository.path),
                    _Attempt(repository, report, adopt) as attempt,
                ):
                    async with opener.open(attempt) as source:
                        summary = await attempt.copy(source, max_gone, skippable, stalled)
            except FailedDownloadsError as error:
                # The time without progress is that of all attempts together.
                has_stalled = error.stalled >= LONGEST_STALL
                if is_last or error.given_up or has_stalled or error.blob_ids <= failed:
                    raise
                failed, downloaded = error.blob_ids, downloaded + error.downloaded
                # A mail that failed by its own time limit can do so again, and be named or skipped.
                stalled = max(0.0, error.stalled - _GRACE_SECONDS)
            else:
                return msgspec.structs.replace(
                    summary,
                    # `taken_over` includes the blobs of earlier attempts. Count these as fetched.
                    fetched=summary.fetched + downloaded.blobs,
                    fetched_bytes=summary.fetched_bytes + downloaded.bytes,
                    taken_over=max(0, summary.taken_over - downloaded.blobs),
                    attempts=attempts,
                    seconds=round(time.monotonic() - began, 3),
                )


class FailedDownloadsError(IncompleteError):
    """Some mails cannot be downloaded. Perhaps a newer state does not contain these mails.

    `missing` lists these mails, and `blob_ids` are their blobs. `downloaded` counts the blobs that
    were downloaded. `given_up` tells that so many failed that the others were not tried.
    `stalled` is how many seconds without progress there were last.
    """

    def __init__(
        self,
        missing: MissingMails,
        blob_ids: AbstractSet[str],
        downloaded: BlobTotals,
        *,
        given_up: bool,
        stalled: float,
    ) -> None:
        rest = "; the others were not tried" if given_up else ""
        hint = "" if given_up else " (--skip-bad makes a snapshot without such mail)"
        super().__init__(
            f"no snapshot was made: {count_mails(missing.count)} cannot be downloaded{rest}:"
            f" {missing.first[0]}{hint}"
        )
        self.missing = missing
        self.blob_ids = blob_ids
        self.downloaded = downloaded
        self.given_up = given_up
        self.stalled = stalled


class _Skippable(NamedTuple):
    """The blobs without which a snapshot may be made: those that failed before, or any blob."""

    failed_before: AbstractSet[str]
    everything: bool

    def allows(self, blob_ids: AbstractSet[str]) -> bool:
        return self.everything or blob_ids <= self.failed_before


class _Attempt(contextlib.AbstractContextManager["_Attempt"]):
    """An attempt to copy one state. It is the `EarlySink` for its source.

    The first call of `prepare` or `copy` opens the target, because the account is known then. The
    attempt closes the target.
    """

    def __init__(
        self,
        repository: Repository,
        report: SnapshotReport,
        adopt: bool,  # noqa: FBT001 - private
    ) -> None:
        self._repository = repository
        self._report = report
        self._adopt = adopt
        self._target: Target | None = None

    def __exit__(self, *_: object) -> None:
        if self._target is not None:
            self._target.close()

    async def prepare(self, origin: Origin, epoch: str, *, blob_ids_are_sha1: bool) -> Sink:
        scope = Scope(origin, epoch, blob_ids_are_sha1)
        return (await trio.to_thread.run_sync(self._open_target, scope)).staging

    async def missing(self, candidates: Sequence[BlobRequest]) -> list[BlobRequest]:
        assert self._target is not None  # noqa: S101 - `prepare` comes first
        return await trio.to_thread.run_sync(self._target.builder.missing, candidates)

    async def copy(
        self, source: Source, max_gone: float, skippable: _Skippable | None, stalled: float
    ) -> SnapshotSummary:
        target, date = await trio.to_thread.run_sync(self._begin, source)
        staging, tally = target.staging, target.builder.tally
        await self._detect_reset(source, target.base)
        await trio.to_thread.run_sync(
            staging.missing.add,
            [MissingMail(bad.id, None, None, None, (), bad.reason) for bad in source.lacking.bad],
        )
        transfer = Transfer(
            source,
            target.builder,
            staging,
            self._report,
            skips_failed=skippable is not None,
            failed_before=skippable.failed_before if skippable is not None else frozenset(),
            stalled=stalled,
        )
        await transfer.run()
        failed = transfer.failed.keys()
        # Bad emails were asked for again when the source was opened: this attempt is the second.
        if staging.missing.count and (
            transfer.given_up or skippable is None or not skippable.allows(failed)
        ):
            await trio.to_thread.run_sync(staging.missing.finish)
            raise FailedDownloadsError(
                staging.missing,
                failed,
                staging.downloaded,
                given_up=transfer.given_up,
                stalled=transfer.stalled,
            )
        if transfer.uncompared:
            mails = (
                "1 mail was" if transfer.uncompared == 1 else f"{transfer.uncompared:,} mails were"
            )
            self._report.notice(f"{mails} not compared: the server no longer has the content")
        if not await source.still_frozen():
            raise StorageError(
                "no snapshot was made: the mount was thawed during the copy, so the copy may be a"
                " mixture of several states"
            )
        description = await trio.to_thread.run_sync(target.finish, source, date, max_gone)
        self._report.syncing()
        # Ctrl-C abandons the thread, so that it does not wait for a slow disk.
        await trio.to_thread.run_sync(target.file_system.sync, abandon_on_cancel=True)
        # This thread cannot be cancelled: once the snapshot has its date, the run must succeed.
        path, error = await trio.to_thread.run_sync(target.publish, date)
        self._report.published(path)
        if description.adopted is not None:
            self._report.notice(
                f"{self._repository.path} had snapshots of {origin_text(description.adopted)}, and"
                f" continues with {origin_text(description.origin)}"
            )
        if error is not None:
            self._report.notice(f"the snapshot is complete, but cleaning up failed: {error}")
        return SnapshotSummary(
            path=str(path),
            date=description.date,
            email_state=description.email_state,
            mails=description.mails,
            files=description.files,
            bytes=description.bytes,
            previous=description.previous,
            new=description.new,
            gone=description.gone,
            links=description.links,
            fetched=staging.downloaded.blobs - source.cached.blobs,
            fetched_bytes=staging.downloaded.bytes - source.cached.bytes,
            cached=source.cached.blobs,
            taken_over=tally.taken_over,
            replaced=tally.replaced,
            missing=description.missing,
            shortfall=description.shortfall,
            attempts=1,
            seconds=0.0,
        )

    def _begin(self, source: Source) -> tuple[Target, str]:
        """Begin the tree for the source's state. Return the target and the date of the snapshot."""
        scope = Scope(source.origin, source.epoch, source.blob_ids_are_sha1)
        target = self._open_target(scope)
        now = datetime.now(UTC)
        date = self._repository.next_date(now)
        self._warn_of_clock(now, date)
        # Read the findings of `jmapfs verify` now. Later findings count against the new snapshot.
        record = VerificationRecord(self._repository.path)
        base = target.base
        if base is not None:
            # The date of a wrong clock does not tell what was found after it.
            taken = base.taken if base.taken <= now else _EARLIEST
            if record.may_be_damaged(base.date, taken):
                base.verify_content = True
            if record.may_be_damaged(base.date, taken, online=True):
                trio.from_thread.run_sync(self._require_check, source)
        target.builder.begin(source.mailboxes, source.epoch)
        return target, date

    def _warn_of_clock(self, now: datetime, date: str) -> None:
        """Tell the user that a clock is, or was, wrong. The dates of snapshots must grow."""
        future = self._repository.in_future(now)
        if future:
            text = (
                f"{future[-1].path} is dated in the future, or the clock of this machine is wrong:"
                f" the new snapshot gets the date {date}. When the clock is right, run"
                f" {CORRECT_DATES.format(self._repository.path)}"
            )
        elif now < EARLIEST_RIGHT:
            text = f"the clock of this machine is wrong: the new snapshot gets the date {date}"
        else:
            return
        trio.from_thread.run_sync(self._report.notice, text)

    def _require_check(self, source: Source) -> None:
        """Make this snapshot compare all mail: some of the base is not what the server has."""
        found = "verify --online has found mail that is not what the server has"
        if source.check is None:
            self._report.notice(f"{found}: a snapshot of the account, not of a mount, replaces it")
        elif not source.check.is_possible:
            self._report.notice(f"{found}, which has no digests now: this snapshot may link to it")
        elif not source.check.required:
            source.check.required = True
            self._report.notice(f"{found}: all mail is compared, as with --check")

    async def _detect_reset(self, source: Source, base: BaseSnapshot | None) -> None:
        """If the server was reset since the base snapshot was made, share nothing with it.

        Equal epochs prove that there was no reset. Without them, the emails are compared. Blob ids
        with a SHA-1 have the same meaning after a reset.
        """
        if base is None or source.blob_ids_are_sha1 or source.epoch == base.epoch != "":
            return
        compare = partial(EmailIdentities, base.directory, with_sizes=base.epoch != "")
        identities = await trio.to_thread.run_sync(compare)
        position: int | None = FIRST
        while position is not None and not base.is_reset:
            emails = await source.emails_after(position)
            base.is_reset = await trio.to_thread.run_sync(identities.differ_from, emails.emails)
            position = emails.position
        if base.is_reset:
            self._report.notice(
                f"the server was reset since {base.date}, and uses its ids again: all mail is"
                " fetched again"
            )

    def _open_target(self, scope: Scope) -> Target:
        if self._target is not None and self._target.staging.epoch != scope.epoch:
            # The server was reset meanwhile. The early contents may belong to other mail now.
            self._target.close()
            self._target = None
        if self._target is None:
            self._target = Target(
                self._repository,
                scope,
                adopt=self._adopt,
                notice=lambda text: trio.from_thread.run_sync(self._report.notice, text),
            )
        return self._target
