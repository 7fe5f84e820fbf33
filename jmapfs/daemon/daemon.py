"""The daemon of a mount: opens the accounts, mounts their tree, and serves it until the end.

    open the accounts: lock, index, connection, sync
      mount, and answer the kernel and the control socket
        until the mount is gone or a signal ends it

The mount comes last: nothing can be seen before the tree is complete. The mount is unmounted only
at an orderly end. When the daemon dies of a bug, the mount stays and answers ENOTCONN to
everything. If the mount were unmounted then, a backup would find an empty directory, as if all mail
had been deleted.
"""

import contextlib
import logging
import os
import select
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from jmapfs.control.mounts import SUBTYPE, Mount, mount_at, require_mount
from jmapfs.control.socket_server import control_socket
from jmapfs.daemon import mountpoint
from jmapfs.daemon.account_list import select_accounts
from jmapfs.daemon.accounts import open_account
from jmapfs.daemon.change_feed import ChangeFeed
from jmapfs.daemon.commands import Commands
from jmapfs.daemon.freeze import Freezer
from jmapfs.daemon.mount_errors import advice, captured_stderr
from jmapfs.daemon.mountpoint import MountpointLock
from jmapfs.daemon.request import MountRequest
from jmapfs.daemon.startup import StartupReport
from jmapfs.daemon.view import MountView, content_of
from jmapfs.errors import MountpointError, lone_errors
from jmapfs.fuse.invalidation import CacheInvalidator
from jmapfs.fuse.operations import MailOperations
from jmapfs.fuse.page_cache import PageCacheWriter
from jmapfs.names import safe_text

_log = logging.getLogger(__name__)

# The number of tasks that answer the kernel. It is large, because READs that wait for the network
# must not occupy all tasks: `ls` would wait too. Requests to the server have a limit of their own.
_MAX_TASKS: Final = 256

_GRACE_SECONDS: Final = 5
_LATE_SECONDS: Final = 1
_FIRST_ANSWER_SECONDS: Final = 30


class Stopped(Exception):  # noqa: N818 - an end, not an error
    """A signal ended the daemon before the mount existed."""


def run_daemon(request: MountRequest, report: StartupReport) -> None:
    """Mount an account and serve it until it is unmounted, or SIGINT or SIGTERM comes.

    Raises Stopped if a signal came before the mount existed, and JmapfsError if mounting fails.
    """
    with lone_errors():
        trio.run(_run, request, report)


async def _run(request: MountRequest, report: StartupReport) -> None:
    # Before the directory is locked: a daemon that hangs there does not answer.
    mountpoint.check_mountpoint(request.mountpoint, request.cache_root)
    with MountpointLock(request.mountpoint) as lock:
        lock.hold()
        mountpoint.check_mountpoint(request.mountpoint, request.cache_root)
        async with trio.open_nursery() as nursery:
            signals = _Signals(nursery.cancel_scope)
            await nursery.start(signals.watch)
            await _serve(request, report, signals, lock)
            nursery.cancel_scope.cancel()
    if signals.received and not signals.mounted:
        raise Stopped


class _Signals:
    """Ends the daemon on SIGINT and SIGTERM.

    `pyfuse3.terminate` ends the mount. If the mount does not end, the tasks are cancelled.
    `ready` says that the mount was reported as usable.
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self.mounted = False
        self.ready = False
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


async def _serve(
    request: MountRequest, report: StartupReport, signals: _Signals, lock: MountpointLock
) -> None:
    """Open the accounts, mount them, and answer requests until the mount is gone."""
    selected = await select_accounts(request, report)
    sources = selected.sources
    pages = PageCacheWriter()
    async with contextlib.AsyncExitStack() as stack:
        accounts = [
            await stack.enter_async_context(
                open_account(request, source, report, pages, number=number, accounts=len(sources))
            )
            for number, source in sources.items()
        ]
        # One reader is for the event loop, one for listings, and one for invalidations.
        readers = [
            tuple(stack.enter_context(account.database.lasting_reader()) for _ in range(3))
            for account in accounts
        ]
        view = MountView.of(
            accounts, [(tree, listings) for tree, listings, _ in readers], selected.changed_at
        )
        operations = MailOperations(
            view.tree,
            view.listing_tree,
            content_of(accounts),
            request.options.ownership,
            only_for=os.getuid() if "allow_root" in request.options.flags else None,
        )
        # The invalidators begin before the mount: as soon as the kernel caches a state, the kernel
        # must be told of every later change.
        invalidators = [
            CacheInvalidator(
                reader, account.inodes.to_mount, operations.start_generation, account.kernel_epoch
            )
            for account, (_, _, reader) in zip(accounts, readers, strict=True)
        ]
        for account, invalidator in zip(accounts, invalidators, strict=True):
            account.changes.add_listener(invalidator.invalidate)
        await trio.to_thread.run_sync(_prepare_mountpoint, request, report, lock)
        with _mounted(operations, request, signals, invalidators, pages) as mount:
            lock.release()
            async with trio.open_nursery() as nursery:
                freezer = Freezer(accounts, invalidators, operations, view, nursery)
                for account in accounts:
                    account.changes.add_listener(freezer.end_after_damage)
                feed = ChangeFeed(accounts, invalidators)
                commands = Commands(request, accounts, operations, pages, freezer, feed)
                with contextlib.closing(freezer):
                    async with control_socket(mount.device, commands.answer):
                        signals.mounted = True
                        nursery.start_soon(
                            _report_ready, operations.started, mount, report, signals
                        )
                        nursery.start_soon(_cancel_after_unmount, nursery.cancel_scope)
                        await pyfuse3.main(max_tasks=_MAX_TASKS)
                        nursery.cancel_scope.cancel()


async def _report_ready(
    started: trio.Event, mount: Mount, report: StartupReport, signals: _Signals
) -> None:
    """Wait until the kernel's requests are answered, then report that the mount is ready.

    The daemon never uses its own mount to find out. SIGKILL cannot end a thread that waits for an
    answer of its own process, and until the thread ends, the kernel keeps the connection: programs
    would wait for ever, instead of getting ENOTCONN.
    """
    path = mount.mountpoint
    try:
        with trio.fail_after(_FIRST_ANSWER_SECONDS):
            await started.wait()
    except trio.TooSlowError as error:
        raise MountpointError(f"{path}: mounted, but the kernel does not use it") from error
    mountpoint.raise_queue_limits(mount)
    _log.info("%s is mounted", path)
    signals.ready = True
    report.ready()


async def _cancel_after_unmount(scope: trio.CancelScope) -> None:
    """Cancel `scope` when the mount is gone.

    `pyfuse3.main` returns when all requests are answered. A READ of a program that was killed may
    still wait for the network, but nobody can receive its answer any more.
    """
    descriptor = _fuse_descriptor()
    if descriptor is None:
        _log.info("the end of the mount may have to wait for the network")
        return
    with select.epoll() as unmounted:
        # The end of the connection is an error, which is reported although no event is requested.
        unmounted.register(descriptor, 0)
        await trio.lowlevel.wait_readable(unmounted.fileno())
    await trio.sleep(_LATE_SECONDS)
    scope.cancel()


def _fuse_descriptor() -> int | None:
    """Return the descriptor of the connection to the kernel, which pyfuse3 keeps for itself."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - only names
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":  # noqa: PTH115
                return int(name)
    return None


def _prepare_mountpoint(request: MountRequest, report: StartupReport, lock: MountpointLock) -> None:
    """Make sure that nothing is in the place of the mount, just before it is mounted.

    If a dead mount of jmapfs is there, it is unmounted. Between the two mounts, the mountpoint is
    an empty directory. A backup could take that for an empty account, so this time must be short.
    """
    if mountpoint.clear_dead_mount(request.mountpoint):
        report.notice(f"{request.mountpoint}: clearing the mount of a daemon that died")
    # The directory may have been replaced while the account was listed.
    lock.hold()
    mountpoint.check_mountpoint(request.mountpoint, request.cache_root)


@contextlib.contextmanager
def _mounted(
    operations: MailOperations,
    request: MountRequest,
    signals: _Signals,
    invalidators: Sequence[CacheInvalidator],
    pages: PageCacheWriter,
) -> Iterator[Mount]:
    """Mount the operations; unmount at an orderly end, or if the mount was never ready.

    Only this mount is unmounted.
    """
    options = request.options
    # A comma in the name would begin another option.
    name = safe_text(options.fsname or request.source.label, limit=100).replace(",", "-")
    _init_fuse(
        operations,
        request.mountpoint,
        {
            f"fsname={name or SUBTYPE}",
            f"subtype={SUBTYPE}",
            "ro",
            "default_permissions",
            *options.flags,
        },
    )
    orderly = False
    mount: Mount | None = None
    try:
        mount = require_mount(request.mountpoint)
        mountpoint.require_only_mount(mount)
        yield mount
        orderly = True
    finally:
        for invalidator in invalidators:
            invalidator.stop()
        pages.stop()
        # A signal or a bug has cancelled the block. Only a signal is an orderly end. After a lazy
        # unmount, another mount can be in this place. libfuse would unmount whatever is there.
        is_ours = mount is not None and mount_at(request.mountpoint) == mount
        pyfuse3.close(unmount=is_ours and (orderly or signals.received or not signals.ready))


def _init_fuse(operations: MailOperations, path: Path, options: set[str]) -> None:
    """Mount; raises MountpointError with the reason that libfuse gives, and what to do."""
    failure: RuntimeError | None = None
    with captured_stderr() as printed:
        try:
            pyfuse3.init(operations, str(path), options)
        except RuntimeError as error:
            failure = error
    for line in printed.lines:
        _log.warning("%s", line)
    if failure is not None:
        reason = printed.reason or str(failure)
        text = ": ".join(filter(None, [reason, advice(reason, path)]))
        raise MountpointError(f"{path}: cannot mount: {text}") from failure
