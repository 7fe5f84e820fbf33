"""A snapshot of a mounted tree: copied through the mount, which is frozen meanwhile.

Content is read from files, as any program would read it, and comes from the mount's caches where
possible. Ids, keywords and mailboxes, which files do not show, come from the control socket.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final, TypeVar

import trio

from jmapfs.cache.disk_cache import SMALL_BYTES
from jmapfs.content.division import split_into_batches
from jmapfs.control.messages import (
    DescribeRequest,
    MailsRequest,
    StatusRequest,
    SyncRequest,
    TreeDescription,
)
from jmapfs.control.mounts import DEAD_ERRNOS
from jmapfs.control.socket_client import FreezeLease, ask, waiting_texts
from jmapfs.errors import (
    IncompleteError,
    JmapfsError,
    NotMountedError,
    RelayedError,
    UnreachableError,
    lone_errors,
)
from jmapfs.index.rows import EmailSlice
from jmapfs.private_files import open_reading, open_regular
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.online import ContentCheck
from jmapfs.snapshot.source import BlobRequest, BlobTotals, EarlySink, Sink, SnapshotReport
from jmapfs.suspension import seconds_since
from jmapfs.tree.status_file import Lacking, time_text

_T = TypeVar("_T")

_PAGE_EMAILS: Final = 2000
# A mount compares the numbers of emails once an hour.
_OLDEST_COMPARISON: Final = 2 * 3600.0
_STATUS_SECONDS: Final = 120.0
_WAITING_SECONDS: Final = 1.0
# Seconds to wait when the lease is given back. If the mount does not answer, the lease expires.
_RELEASE_SECONDS: Final = 10.0

# Two: one batch is read while another is written. The files of a directory are read in order, one
# after the other, so that the mount reads ahead.
_CONCURRENCY: Final = 2
_BATCH_FILES: Final = 128
_BATCH_BYTES: Final = 4 * 1024 * 1024
_CHUNK_BYTES: Final = 1 << 20
_READ_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class MountOpener:
    """Opens states of the mount at `mountpoint`, or of the part of it below `path`.

    With `allow_stale`, the mount may be out of date.
    """

    _mountpoint: Path
    _path: str
    _report: SnapshotReport
    _allow_stale: bool

    @contextlib.asynccontextmanager
    async def open(self, _early_sink: EarlySink) -> AsyncIterator[_MountedTree]:
        """Bring the mount up to date. Then keep it frozen at this state."""
        is_up_to_date = await self._bring_up_to_date()
        began = time.time()
        lease = await _in_thread(partial(FreezeLease, self._mountpoint, join=True))
        try:
            description = await _in_thread(
                partial(ask, self._mountpoint, DescribeRequest(lease.id, self._path))
            )
            if lease.since < began:
                self._notice(f"is frozen: copying its state of {time_text(lease.since)}")
            elif not is_up_to_date:
                synced_at = time_text(description.synced_at)
                self._notice(f"is not up to date: copying its state of {synced_at}")
            elif text := not_compared(description.compared_at):
                self._notice(text)
            if not description.consistent:
                self._notice(
                    "is between two states of the account: the snapshot will be a mixture of them"
                )
            yield _MountedTree(lease, description, self._mountpoint, self._path)
        finally:
            with trio.move_on_after(_RELEASE_SECONDS, shield=True):
                await _in_thread(lease.release)

    def _notice(self, text: str) -> None:
        self._report.notice(f"{self._mountpoint} {text}")

    async def _bring_up_to_date(self) -> bool:
        """Make the mount ask the server. If that fails and `allow_stale` is set, return False."""
        try:
            with lone_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._report_waiting)
                    await _in_thread(partial(ask, self._mountpoint, SyncRequest(self._path)))
                    nursery.cancel_scope.cancel()
        except NotMountedError:
            raise
        except JmapfsError as error:
            text = f"{self._mountpoint} cannot be brought up to date: {error}"
            if not self._allow_stale:
                text += " (--allow-stale copies it as it is)"
                raise RelayedError(text, error.exit_code) from error
            self._report.notice(text)
            return False
        return True

    async def _report_waiting(self) -> None:
        """Report that the server asks the mount to wait, until cancelled."""
        reported: set[str] = set()
        while True:
            await trio.sleep(_WAITING_SECONDS)
            with contextlib.suppress(JmapfsError):
                texts = await _in_thread(partial(waiting_texts, self._mountpoint))
                for text in texts - reported:
                    self._report.waiting(text)
                reported = texts


def not_compared(compared_at: float) -> str:
    """Return a remark if a mount has not compared the numbers of emails for long, or nothing.

    The log of the mount has the reason. For a snapshot of an account, the comparison itself warns.
    """
    if seconds_since(compared_at) <= _OLDEST_COMPARISON:
        return ""
    since = f"since {time_text(compared_at)}" if compared_at else "yet"
    return (
        f"could not compare the numbers of emails with those of the server {since}, so nothing"
        " shows whether mail is lacking"
    )


class _MountedTree:
    """A tree, or a part of a tree. A lease keeps the tree at one state."""

    concurrency = _CONCURRENCY
    # The mount does not report which files were cached.
    cached = BlobTotals(0, 0)
    # Only a connection to the server can compare digests.
    check: ContentCheck | None = None

    def __init__(
        self, lease: FreezeLease, description: TreeDescription, mountpoint: Path, path: str
    ) -> None:
        self._lease = lease
        self._mountpoint = mountpoint
        self._path = path
        self._root = mountpoint / description.root
        self._reading = trio.CapacityLimiter(1)
        self._listed: set[Path] = set()
        self.origin = Origin(
            server=description.server,
            account_id=description.account_id,
            account_name=description.account_name,
            username=description.username,
            directory=description.directory,
            location=description.location,
            origins=description.origins,
        )
        self.email_state = description.email_state
        self.epoch = description.epoch
        self.blob_ids_are_sha1 = description.blob_ids_are_sha1
        self.mail_count = description.mails
        self.mailboxes = description.mailboxes
        self.lacking = Lacking(description.bad, description.shortfall)
        self.compared_at = description.compared_at

    async def emails_after(self, position: int) -> EmailSlice:
        request = MailsRequest(self._lease.id, self._path, position, _PAGE_EMAILS)
        return await trio.to_thread.run_sync(ask, self._mountpoint, request)

    def batches(self, wanted: Sequence[BlobRequest]) -> Iterator[Sequence[BlobRequest]]:
        """Divide blobs by directory, in the order of the files, so that the mount reads ahead."""
        in_order = sorted(wanted, key=lambda one: one.file.encode())
        for _, files in groupby(in_order, key=lambda one: one.file.rpartition("/")[0]):
            yield from split_into_batches(
                files, max_blobs=_BATCH_FILES, max_bytes=_BATCH_BYTES, alone_above=SMALL_BYTES
            )

    async def download(
        self,
        batch: Sequence[BlobRequest],
        sink: Sink,
        *,
        from_server: bool = False,  # noqa: ARG002 - the mount has its own caches
    ) -> dict[str, JmapfsError]:
        failed: dict[str, JmapfsError] = {}
        if batch[0].size > SMALL_BYTES:
            await self._read_large(batch[0], sink, failed)
        else:
            pending = deque(batch)
            while pending:
                # The thread can be abandoned: a stopped daemon never answers a READ.
                found = await trio.to_thread.run_sync(
                    self._read_some, pending, failed, limiter=self._reading, abandon_on_cancel=True
                )
                await sink.write(found)
        if failed:
            await trio.to_thread.run_sync(self._require_online)
        return failed

    async def still_frozen(self) -> bool:
        """Return whether the mount still has the state. It may have been thawed meanwhile."""
        return await trio.to_thread.run_sync(self._lease.renew)

    async def _read_large(
        self, wanted: BlobRequest, sink: Sink, failed: dict[str, JmapfsError]
    ) -> None:
        try:
            await sink.write_stream(wanted, self._chunks(wanted))
        except IncompleteError as error:
            failed[wanted.blob_id] = error

    async def _chunks(self, wanted: BlobRequest) -> AsyncIterator[bytes]:
        path = self._root / wanted.file
        size = 0
        try:
            # The mount may be that of another user, whose daemon can answer anything.
            opened = await trio.to_thread.run_sync(open_regular, path)
            with io.FileIO(opened) as file:
                while chunk := await trio.to_thread.run_sync(file.read, _CHUNK_BYTES):
                    size += len(chunk)
                    yield chunk
        except OSError as error:
            raise _failure(path, error) from error
        if size != wanted.size:
            raise _wrong_size(size, wanted.size)

    def _read_some(
        self, pending: deque[BlobRequest], failed: dict[str, JmapfsError]
    ) -> list[tuple[BlobRequest, bytes]]:
        """Read pending files, for some seconds if reading is slow. Return what was read."""
        found = []
        self._list((self._root / pending[0].file).parent)
        until = time.monotonic() + _READ_SECONDS
        while pending and time.monotonic() < until:
            wanted = pending.popleft()
            path = self._root / wanted.file
            try:
                with open_reading(path) as file:
                    data = file.read()
            except OSError as error:
                failed[wanted.blob_id] = _failure(path, error)
                continue
            if len(data) != wanted.size:
                failed[wanted.blob_id] = _wrong_size(len(data), wanted.size)
                continue
            found.append((wanted, data))
        return found

    def _list(self, directory: Path) -> None:
        """List a directory once, because the kernel accepts early content only for known files."""
        if directory in self._listed:
            return
        self._listed.add(directory)
        # Errors are ignored here, because they will occur again when the files are read.
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)

    def _require_online(self) -> None:
        """Raise UnreachableError if the mount is offline. Then the emails are not the cause."""
        status = ask(self._mountpoint, StatusRequest(), timeout=_STATUS_SECONDS)
        for account in status.accounts:
            if account.account_id == self.origin.account_id and not account.online:
                raise UnreachableError(f"{self._mountpoint} is offline: {account.error}")


async def _in_thread(function: Callable[[], _T]) -> _T:
    # If this is cancelled, a connection may stay open until the process ends.
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


def _failure(path: Path, error: OSError) -> JmapfsError:
    if error.errno in DEAD_ERRNOS:
        raise NotMountedError(f"{path}: {error.strerror}") from error
    if error.errno == errno.EIO:
        # The daemon knows the reason, and logs it with the name of the file.
        return IncompleteError(
            f"{error.strerror}: the content was refused or cannot be fetched; see the log of the"
            " mount"
        )
    return IncompleteError(str(error.strerror))


def _wrong_size(size: int, stated: int) -> IncompleteError:
    return IncompleteError(f"the file has {size:,} bytes, not {stated:,}")
