"""Holding the tree still: a backup that takes an hour copies one state of the account.

Frozen, the tree is read through read transactions that stay open (SQLite, WAL): the sync goes on
writing behind them, and the kernel's news are held back. It ends when asked to, after its time,
or with the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from jmapfs.errors import BusyError, JmapfsError
from jmapfs.fuse import MailOperations
from jmapfs.index import IndexReader
from jmapfs.mount.account import MountedAccount
from jmapfs.mount.showing import View

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A freeze that is on: both times in seconds since 1970."""

    since: float
    until: float


class Freezer:
    """Freezes and thaws the tree of a mount; `frozen` says whether it is, `view` what is shown."""

    def __init__(
        self,
        accounts: Sequence[MountedAccount],
        operations: MailOperations,
        live: View,
        nursery: trio.Nursery,
    ) -> None:
        self.frozen: Frozen | None = None
        self.view = live
        self._accounts = accounts
        self._operations = operations
        self._live = live
        self._nursery = nursery
        self._stack = contextlib.ExitStack()
        self._expiry = trio.CancelScope()
        self._lock = trio.Lock()

    async def freeze(self, seconds: float) -> Frozen:
        """Hold the tree as it is now, for `seconds` at most; return when the kernel agrees.

        Raises:
            BusyError: it is frozen already.
        """
        async with self._lock:
            if self.frozen is not None:
                until = time.strftime("%H:%M:%S", time.localtime(self.frozen.until))
                raise BusyError(f"the mount is frozen already, until {until}")
            # Without an await from here to `show`: no later state may be seen in between.
            readers = [self._pinned_readers(account) for account in self._accounts]
            self.view = View.of(self._accounts, [three[:2] for three in readers], still=True)
            self._operations.show(self.view.tree, self.view.listing_tree)
            now = time.time()
            self.frozen = Frozen(now, now + seconds)
            self._expiry = trio.CancelScope()
            self._nursery.start_soon(self._expire, seconds, self._expiry)
            news = [account.news for account in self._accounts if account.news is not None]
            for one in news:
                one.hold_back()
            for one, (_, _, reader) in zip(news, readers, strict=True):
                await one.tell_up_to(reader)
            _log.info("frozen for %.0f s", seconds)
            return self.frozen

    async def thaw(self, since: float | None = None) -> bool:
        """Let the tree go on; return whether it was frozen.

        With `since`, only the freeze that began then is ended: another one is somebody else's.
        """
        async with self._lock:
            if self.frozen is None or since not in {None, self.frozen.since}:
                return False
            self._expiry.cancel()
            self.frozen = None
            self.view = self._live
            self._operations.show(self.view.tree, self.view.listing_tree)
            # A listing of the frozen tree may still be under way in its thread.
            await self._operations.listings_done()
            self._stack.close()
            news = [account.news for account in self._accounts if account.news is not None]
            for one in news:
                one.let_go()
            for one in news:
                await one.tell()
            _log.info("thawed")
            return True

    def close(self) -> None:
        """Let go of the held states, at the end of the mount."""
        self._stack.close()

    async def _expire(self, seconds: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(seconds)
            _log.warning("the freeze ends after its time of %.0f s", seconds)
            # In a task of its own: thawing cancels this scope.
            self._nursery.start_soon(self._thaw_expired)

    async def _thaw_expired(self) -> None:
        try:
            await self.thaw()
        except JmapfsError as error:
            _log.error("the kernel could not be told of the thaw: %s", error)

    def _pinned_readers(
        self, account: MountedAccount
    ) -> tuple[IndexReader, IndexReader, IndexReader]:
        """Return readers that hold one state: for the event loop, for listings, for the news."""
        while True:
            with contextlib.ExitStack() as stack:
                readers = [stack.enter_context(account.database.reader()) for _ in range(3)]
                for reader in readers:
                    reader.pin()
                # Another process may have written in between.
                if len({(one.state(), one.journal_position()) for one in readers}) == 1:
                    self._stack.push(stack.pop_all())
                    return readers[0], readers[1], readers[2]
