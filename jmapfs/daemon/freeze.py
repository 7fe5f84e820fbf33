"""The freeze: the tree stays at one state, so that even a long backup copies only one state.

A frozen tree is read in read transactions that stay open (SQLite, WAL). The index is still updated
meanwhile. These transactions do not see the updates, and the kernel keeps the entries that it has
cached. A freeze begins at a consistent state of the account. If the server is unreachable, the
freeze begins at any state, because waiting would not help.

Each freeze has one or more leases. The freeze ends when the last lease has expired or was given
back, when a user ends it, or when the daemon ends.
"""

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from jmapfs.control.messages import FreezeStatus, Lease
from jmapfs.daemon.accounts import MountedAccount
from jmapfs.daemon.view import FrozenRecords, MountView, account_directories
from jmapfs.errors import BusyError, DamageError, JmapfsError
from jmapfs.fuse.invalidation import CacheInvalidator
from jmapfs.fuse.operations import MailOperations
from jmapfs.index.database import wait_until_consistent
from jmapfs.index.reader import IndexReader
from jmapfs.sqlite import sqlite_errors
from jmapfs.tree.status_file import time_text

_log = logging.getLogger(__name__)

_FREEZE_SECONDS: Final = 300.0  # the kernel may have to drop a hundred thousand names


class _PinnedReaders(NamedTuple):
    """Readers that are pinned to one state of an account."""

    tree: IndexReader
    listings: IndexReader
    invalidation: IndexReader
    records: IndexReader


@dataclass(slots=True)
class _LeaseTimes:
    """When a lease expires.

    `deadline` is when the lease expires without another renewal. `latest` is when the lease expires
    in any case. Both are times of trio's clock. `until` is `latest` in seconds since 1970, or None
    if there is no limit.
    """

    deadline: float
    latest: float
    until: float | None


class _Freeze:
    """A current freeze; `since` is when it began, in seconds since 1970.

    `scope` is cancelled to end the freeze, and its deadline is the deadline of the last lease.
    `ended` is set when the freeze has ended.
    """

    def __init__(
        self,
        view: MountView,
        records: FrozenRecords,
        readers: Sequence[_PinnedReaders],
        stack: contextlib.ExitStack,
    ) -> None:
        self.since = time.time()
        self.view = view
        self.records = records
        self.readers = readers
        self.stack = stack
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._leases: dict[str, _LeaseTimes] = {}

    @property
    def is_ending(self) -> bool:
        return self.scope.cancel_called

    @property
    def has_leases(self) -> bool:
        """Whether there are leases that were not given back; they may have expired."""
        return bool(self._leases)

    @property
    def until(self) -> float | None:
        """The latest end of the freeze in seconds since 1970; None if it is not known."""
        times = [lease.until for lease in self._leases.values() if not _has_expired(lease)]
        limits = [until for until in times if until is not None]
        return max(limits) if limits and len(limits) == len(times) else None

    def holds(self, lease_id: str) -> bool:
        lease = self._leases.get(lease_id)
        return lease is not None and not _has_expired(lease) and not self.is_ending

    def add(self, limit: float | None) -> str:
        """Add a lease. Before its first renewal, the lease expires only after `limit` seconds."""
        lease_id = secrets.token_hex(8)
        latest, until = math.inf, None
        if limit is not None:
            latest, until = trio.current_time() + limit, time.time() + limit
        self._leases[lease_id] = _LeaseTimes(latest, latest, until)
        self._update_deadline()
        return lease_id

    def renew(self, lease_id: str, seconds: float) -> None:
        lease = self._leases[lease_id]
        lease.deadline = min(trio.current_time() + seconds, lease.latest)
        self._update_deadline()

    def remove(self, lease_id: str) -> None:
        del self._leases[lease_id]
        self._update_deadline()

    def end(self) -> None:
        self._leases.clear()
        self.scope.cancel()

    def _update_deadline(self) -> None:
        if self._leases:
            self.scope.deadline = max(lease.deadline for lease in self._leases.values())
        else:
            self.scope.cancel()


def _has_expired(lease: _LeaseTimes) -> bool:
    return lease.deadline <= trio.current_time()


class Freezer:
    """Freezes and thaws the tree of a mount.

    `invalidators` has one for each account, in the order of the accounts. Tasks run in `nursery`.
    """

    def __init__(
        self,
        accounts: Sequence[MountedAccount],
        invalidators: Sequence[CacheInvalidator],
        operations: MailOperations,
        live: MountView,
        nursery: trio.Nursery,
    ) -> None:
        self._accounts = accounts
        self._invalidators = invalidators
        self._operations = operations
        self._live = live
        self._nursery = nursery
        self._freeze: _Freeze | None = None
        # The lock is held while a freeze begins or ends, and while the kernel is told of it.
        self._lock = trio.Lock()

    @property
    def view(self) -> MountView:
        """What the mount shows."""
        freeze = self._freeze
        return self._live if freeze is None or freeze.is_ending else freeze.view

    @property
    def frozen(self) -> FreezeStatus | None:
        """The current freeze, or None."""
        freeze = self._freeze
        if freeze is None or freeze.is_ending:
            return None
        until = None if freeze.until is None else time_text(freeze.until)
        return FreezeStatus(time_text(freeze.since), until)

    async def freeze(
        self, seconds: float, *, limit: float | None = None, join: bool = False
    ) -> Lease:
        """Freeze the tree under a lease of `seconds`; return when the kernel shows that state.

        The lease lasts for `seconds` unless it is renewed; renewals do not extend it beyond `limit`
        seconds from now. With `join`, the lease joins the current freeze, if there is one. Without
        `join`, BusyError is raised if the tree is frozen already. BusyError is also raised if the
        account does not reach a consistent state in time, or if the kernel does not answer in time.
        """

        async def try_to_freeze() -> Lease | None:
            return await self._try_to_freeze(seconds, limit, join=join)

        try:
            with trio.fail_after(_FREEZE_SECONDS):
                return await wait_until_consistent(try_to_freeze)
        except trio.TooSlowError:
            raise BusyError(f"the mount is not frozen after {_FREEZE_SECONDS:.0f} s") from None

    def renew(self, lease_id: str, seconds: float) -> Lease:
        """Renew a lease: it lasts for `seconds` from now.

        Raises BusyError if it has expired, or the freeze has ended.
        """
        freeze = self._require(lease_id)
        freeze.renew(lease_id, seconds)
        return Lease(lease_id, freeze.since)

    def records(self, lease_id: str) -> FrozenRecords:
        """Return the records of the frozen tree to which a lease belongs.

        Raises BusyError if it has expired, or the freeze has ended.
        """
        return self._require(lease_id).records

    async def thaw(self, lease_id: str | None = None) -> bool:
        """Give back one lease, or end the freeze; return whether that lease or freeze existed.

        If the freeze ends, this returns when the kernel has been told.
        """
        freeze = self._freeze
        if freeze is None:
            return False
        was_frozen = not freeze.is_ending
        if lease_id is None:
            freeze.end()
        elif freeze.holds(lease_id):
            freeze.remove(lease_id)
        else:
            was_frozen = False
        if freeze.is_ending:
            await freeze.ended.wait()
        return was_frozen

    def close(self) -> None:
        """Close the readers of a freeze at the end of the mount."""
        if self._freeze is not None:
            self._freeze.stack.close()

    def _require(self, lease_id: str) -> _Freeze:
        if self._freeze is None or not self._freeze.holds(lease_id):
            raise BusyError("the freeze has ended")
        return self._freeze

    async def _try_to_freeze(
        self, seconds: float, limit: float | None, *, join: bool
    ) -> Lease | None:
        """Try to freeze the tree; return None if the caller must try again a moment later.

        The lock is not held between two attempts, so a thaw does not wait for them.
        """
        async with self._lock:
            freeze = self._freeze
            if freeze is not None and not freeze.is_ending and not join:
                raise BusyError(f"the mount is frozen already, {_end_of(freeze.until)}")
            freeze = freeze or self._begin()
            if freeze is None or freeze.is_ending:
                return None
            lease_id = freeze.add(limit)
            try:
                # If the lease joins a freeze, this is needed too: the request that began the freeze
                # may have been cancelled before the kernel was told.
                await self._tell_kernel(freeze)
            except BaseException:
                # The client is gone, so nothing else would give this lease back.
                if freeze.holds(lease_id):
                    freeze.remove(lease_id)
                raise
            if freeze.holds(lease_id):
                freeze.renew(lease_id, seconds)
            _log.info("frozen")
            return Lease(lease_id, freeze.since)

    def _begin(self) -> _Freeze | None:
        """Show the tree at its current state from now on.

        Returns None if the current state is between two states of an account. There is no await in
        this method, because the kernel must not see a later state meanwhile.
        """
        with contextlib.ExitStack() as stack:
            for account in self._accounts:
                account.database.require_complete()
            with sqlite_errors("read the index"):
                readers = [_pinned_readers(account, stack) for account in self._accounts]
            if any(
                account.follower.connection.online and not its.tree.state().consistent
                for account, its in zip(self._accounts, readers, strict=True)
            ):
                return None
            view = MountView.of(
                self._accounts,
                [(its.tree, its.listings) for its in readers],
                self._live.list_changed_at,
                frozen=True,
            )
            names = account_directories(self._accounts)
            records = FrozenRecords(
                {
                    names.get(account.number): its.records
                    for account, its in zip(self._accounts, readers, strict=True)
                }
            )
            freeze = self._freeze = _Freeze(view, records, readers, stack.pop_all())
        self._operations.show(view.tree, view.listing_tree)
        for invalidator in self._invalidators:
            invalidator.pause()
        self._nursery.start_soon(self._end_after, freeze)
        return freeze

    async def _tell_kernel(self, freeze: _Freeze) -> None:
        """Have the kernel drop what is older than the frozen state."""
        for invalidator, readers in zip(self._invalidators, freeze.readers, strict=True):
            await invalidator.invalidate_up_to(readers.invalidation)

    async def end_after_damage(self) -> None:
        """End a freeze of an index that was damaged: the live tree is intact again."""
        freeze = self._freeze
        if freeze is None:
            return
        for account, readers in zip(self._accounts, freeze.readers, strict=True):
            database = account.database
            if readers.tree.generation != database.generation:
                with contextlib.suppress(DamageError):
                    await trio.to_thread.run_sync(database.require_complete)
                    _log.warning("the freeze ends because the index was damaged")
                    freeze.end()

    async def _end_after(self, freeze: _Freeze) -> None:
        # This runs in a task of its own, because the task of a request may be cancelled.
        with freeze.scope:
            await trio.sleep_forever()
        if freeze.has_leases:
            _log.warning("the freeze ends because its last lease has expired")
        try:
            async with self._lock:
                await self._end(freeze)
        except JmapfsError as error:
            _log.error("the kernel could not be told of the thaw: %s", error)
        # This is not done after a cancellation: `close` closes the readers then.
        self._freeze = None
        freeze.ended.set()

    async def _end(self, freeze: _Freeze) -> None:
        self._operations.show(self._live.tree, self._live.listing_tree)
        # A worker thread may still be listing or describing the frozen tree.
        await self._operations.wait_for_listings()
        await freeze.records.close()
        freeze.stack.close()
        for invalidator in self._invalidators:
            invalidator.resume()
        for invalidator in self._invalidators:
            await invalidator.invalidate()
        _log.info("thawed")


def _pinned_readers(account: MountedAccount, stack: contextlib.ExitStack) -> _PinnedReaders:
    """Return readers that are pinned to one state of the account; `stack` closes them."""
    while True:
        with contextlib.ExitStack() as attempt:
            readers = _PinnedReaders(
                *(attempt.enter_context(account.database.reader()) for _ in _PinnedReaders._fields)
            )
            for reader in readers:
                reader.pin()
            # Another process may have written in between.
            if len({(one.state(), one.journal_position()) for one in readers}) == 1:
                stack.push(attempt.pop_all())
                return readers


def _end_of(until: float | None) -> str:
    if until is None:
        return "until a process releases it"
    return f"until {time.strftime('%H:%M:%S', time.localtime(until))}"
