"""The daemon of a mount, from the first request to the server to the last byte on disk.

    lock the account, open the index, connect, bring the index up to date
      then open the caches, mount, answer the kernel and the control socket
        until the mount is gone, or a signal ends it

The mount comes last: nothing of it can be seen before the tree is complete. It is taken down only
on an orderly end. When the daemon dies of a bug the mount stays, and answers ENOTCONN to
everything: an empty directory in its place would be a deletion of all mail to a backup.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from jmapfs.cache import DiskCache, MemoryCache
from jmapfs.errors import BusyError, MountpointError, StorageError, lone_errors
from jmapfs.fetch import open_content
from jmapfs.fuse import MailOperations
from jmapfs.index import AccountLock, IndexDatabase
from jmapfs.jmap import Client, connect
from jmapfs.mount import kernel_queue, mountpoint
from jmapfs.mount.control import control_socket
from jmapfs.mount.mountinfo import SUBTYPE, mount_at
from jmapfs.mount.places import account_directory, socket_directory, socket_name
from jmapfs.mount.report import Report
from jmapfs.mount.request import MountRequest
from jmapfs.mount.status import StatusSource
from jmapfs.names import safe_text
from jmapfs.sync import Synchronizer
from jmapfs.tree import Tree

_log = logging.getLogger(__name__)

# Tasks that answer the kernel. Waiting for the network is bounded elsewhere; here it must never
# be the reason for `ls` to wait.
_MAX_TASKS: Final = 256

_GRACE_SECONDS: Final = 5
_FIRST_ANSWER_SECONDS: Final = 30
_MEMORY_CACHE_BYTES: Final = 32 * 1024 * 1024


class Stopped(Exception):  # noqa: N818 - an end, not an error
    """A signal ended the daemon before the mount was there."""


def run_daemon(request: MountRequest, report: Report) -> None:
    """Mount an account and serve it until it is unmounted, or SIGINT or SIGTERM comes.

    Raises:
        Stopped: a signal came before the mount was there.
        JmapfsError: the mount cannot be made.
    """
    with lone_errors():
        trio.run(_run, request, report)


async def _run(request: MountRequest, report: Report) -> None:
    mountpoint.make_ready(request.mountpoint, request.cache_root, report.notice)
    async with trio.open_nursery() as nursery:
        signals = _Signals(nursery.cancel_scope)
        await nursery.start(signals.watch)
        await _serve_account(request, report, signals)
        nursery.cancel_scope.cancel()
    if signals.received and not signals.mounted:
        raise Stopped


class _Signals:
    """Ends the daemon on SIGINT and SIGTERM: gently where it is mounted, then for good."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.mounted = False
        self.received = False
        self._scope = scope

    async def watch(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            task_status.started()
            async for number in received:
                _log.info("ending on %s", signal.Signals(number).name)
                self.received = True
                break
            if self.mounted:
                pyfuse3.terminate()
                await trio.sleep(_GRACE_SECONDS)
            self._scope.cancel()


async def _serve_account(request: MountRequest, report: Report, signals: _Signals) -> None:
    source = request.source
    directory = account_directory(request.cache_root, source)
    database = IndexDatabase(directory)
    with contextlib.ExitStack() as stack:
        leads = _take_lock(stack, directory, database, report)
        async with connect(source.location, source.credentials, account=source.account) as client:
            if leads:
                writer = stack.enter_context(database.writer())
                synchronizer = Synchronizer(client, database, writer)
                await synchronizer.bring_up_to_date(report.progress)
                await trio.to_thread.run_sync(writer.checkpoint)
            await _serve_mount(request, report, signals, client, database)


def _take_lock(
    stack: contextlib.ExitStack, directory: Path, database: IndexDatabase, report: Report
) -> bool:
    """Take the account's lock, or find that another process keeps a complete index."""
    try:
        stack.enter_context(AccountLock(directory))
    except BusyError as error:
        with database.reader() as reader:
            if not reader.state().complete:
                raise BusyError(f"{error}, and has not listed it yet: try again later") from None
        report.notice(f"{error}; this mount reads along")
        return False
    database.prepare()
    return True


async def _serve_mount(
    request: MountRequest,
    report: Report,
    signals: _Signals,
    client: Client,
    database: IndexDatabase,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        blobs = database.path.parent / "blobs"
        disk = await trio.to_thread.run_sync(DiskCache, blobs, request.cache_limit)
        stack.push_async_callback(trio.to_thread.run_sync, disk.close)
        corrections = _SizeCorrections(database)
        content = await stack.enter_async_context(
            open_content(
                client,
                disk,
                MemoryCache(_MEMORY_CACHE_BYTES),
                on_size_mismatch=corrections.correct,
                sha1_blob_ids=client.session.blob_ids_are_sha1,
            )
        )
        tree = Tree(stack.enter_context(database.reader()))
        listing_tree = Tree(stack.enter_context(database.reader()))
        operations = MailOperations(tree, listing_tree, content, request.options.ownership)
        corrections.operations = operations
        status = StatusSource(request, client, tree, operations, disk)
        stack.enter_context(_mounted(operations, request))
        await _answer(request, report, signals, status)


async def _answer(
    request: MountRequest, report: Report, signals: _Signals, status: StatusSource
) -> None:
    """Answer the kernel and the control socket until the mount is gone."""
    name = socket_name(request.mountpoint)
    async with (
        control_socket(socket_directory(), name, {"status": status.answer}),
        trio.open_nursery() as nursery,
    ):
        signals.mounted = True
        nursery.start_soon(_announce, request.mountpoint, report)
        await pyfuse3.main(max_tasks=_MAX_TASKS)
        nursery.cancel_scope.cancel()


async def _announce(path: Path, report: Report) -> None:
    """Report that the mount is ready once it has answered."""
    with trio.fail_after(_FIRST_ANSWER_SECONDS):
        await trio.to_thread.run_sync(os.listdir, path, abandon_on_cancel=True)
    mount = mount_at(path)
    if mount is not None:
        kernel_queue.widen(mount)
    _log.info("%s is mounted", path)
    report.ready()


@contextlib.contextmanager
def _mounted(operations: MailOperations, request: MountRequest) -> Iterator[None]:
    options = request.options
    # A comma would begin another option.
    name = safe_text(options.fsname or request.source.label, limit=100).replace(",", "-")
    try:
        pyfuse3.init(
            operations,
            str(request.mountpoint),
            {
                f"fsname={name or SUBTYPE}",
                f"subtype={SUBTYPE}",
                "ro",
                "default_permissions",
                *options.flags,
            },
        )
    except RuntimeError as error:
        raise MountpointError(
            f"{request.mountpoint}: cannot mount ({error}): is /dev/fuse there, and fuse3"
            " installed? -o allow_other needs user_allow_other in /etc/fuse.conf"
        ) from error
    try:
        yield
    except Exception:
        # No unmounting here: see above.
        pyfuse3.close(unmount=False)
        raise
    except BaseException:
        pyfuse3.close(unmount=True)
        raise
    pyfuse3.close(unmount=True)


class _SizeCorrections:
    """Puts right what the server said wrongly of a blob's size: in the index and in the kernel."""

    def __init__(self, database: IndexDatabase) -> None:
        self.operations: MailOperations | None = None
        self._database = database

    async def correct(self, blob_id: str, size: int) -> None:
        """Note that a blob has `size` bytes."""
        _log.warning("the server stated a wrong size for blob %s: it has %d bytes", blob_id, size)
        inodes = await trio.to_thread.run_sync(self._correct_index, blob_id, size)
        for inode in inodes:
            if self.operations is not None:
                self.operations.correct_size(inode, size)
            await trio.to_thread.run_sync(_drop_attributes, inode)

    def _correct_index(self, blob_id: str, size: int) -> list[int]:
        try:
            with self._database.writer() as writer, writer.transaction():
                return writer.correct_size(blob_id, size)
        except sqlite3.Error as error:
            raise StorageError(f"cannot write the index: {error}") from error


def _drop_attributes(inode: int) -> None:
    """Make the kernel ask for the attributes again; only ever in a thread (it may wait)."""
    # ENOENT: the kernel does not know the inode, so there is nothing to drop.
    with contextlib.suppress(FileNotFoundError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=True)
