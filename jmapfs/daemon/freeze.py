"""Holding the tree still: a backup that takes an hour copies one state of the account.

Frozen, the tree is read through read transactions that stay open (SQLite, WAL): the sync goes on
writing behind them, and the kernel's news are held back. A freeze begins where the index is at a
state of the account, not between two; unless the server is out of reach, so that nobody leads it
there. It ends when somebody asks for
that, and with the daemon. Besides, one that was asked for ends after its time; one that began with
a hold ends when the last of those who hold it lets go.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from jmapfs.daemon.accounts import MountedAccount
from jmapfs.daemon.records import Records
from jmapfs.daemon.view import MountView, directory_names
from jmapfs.errors import BusyError, JmapfsError
from jmapfs.fuse.operations import MailOperations
from jmapfs.index.reader import IndexReader

_log = logging.getLogger(__name__)

_HOLD_SECONDS: Final = 300.0  # the kernel may have to forget a hundred thousand names
_SETTLING_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Frozen:
    """A freeze that is on: both times in seconds since 1970; None for as long as it is held."""

    since: float
    until: float | None


@dataclass(frozen=True, slots=True)
class Held:
    """A freeze that somebody holds, and what is known of the mails at its state."""

    frozen: Frozen
    records: Records


class _Readers(NamedTuple):
    """Readers that are pinned to one state of an account."""

    tree: IndexReader
    listings: IndexReader
    news: IndexReader
    records: IndexReader


class Freezer:
    """Freezes and thaws the tree of a mount; `frozen` says whether it is, `view` what is shown."""

    def __init__(
        self,
        accounts: Sequence[MountedAccount],
        operations: MailOperations,
        live: MountView,
        nursery: trio.Nursery,
    ) -> None:
        self.view = live
        self._accounts = accounts
        self._operations = operations
        self._live = live
        self._nursery = nursery
        self._held: Held | None = None
        self._holders = 0
        self._readers: list[_Readers] = []
        self._stack = contextlib.ExitStack()
        self._expiry = trio.CancelScope()
        self._lock = trio.Lock()

    @property
    def frozen(self) -> Frozen | None:
        """The freeze that is on."""
        return None if self._held is None else self._held.frozen

    async def freeze(self, seconds: float) -> Frozen:
        """Hold the tree as it is now, for `seconds` at most; return when the kernel agrees.

        Raises:
            BusyError: it is frozen already, or the account is still being listed anew.
        """
        until = trio.current_time() + _SETTLING_SECONDS
        while True:
            async with self._lock:
                if self.frozen is not None:
                    raise BusyError(f"the mount is frozen already, {_end_of(self.frozen)}")
                held = self._begin(seconds)
                if held is not None:
                    await self._freeze(held, seconds)
                    return held.frozen
            await self._next_try(until)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[Held]:
        """Hold the tree at one state while the context lasts: that of the freeze which is on.

        If none is on, one begins, and ends with the last who holds it. It may end before that: see
        `thaw`.

        Raises:
            BusyError: the kernel does not agree in time, or the account is being listed anew.
        """
        held: Held | None = None
        try:
            with trio.fail_after(_HOLD_SECONDS):
                until = trio.current_time() + _SETTLING_SECONDS
                while True:
                    async with self._lock:
                        held = self._held or self._begin(None)
                        if held is not None:
                            self._holders += 1
                            # Also if somebody else began: they may have gone before it agreed.
                            await self._tell_kernel()
                            _log.info("held by %d", self._holders)
                            break
                    await self._next_try(until)
        except trio.TooSlowError:
            raise BusyError(f"the mount is not frozen after {_HOLD_SECONDS:.0f} s") from None
        else:
            yield held
        finally:
            if held is not None and held is self._held:
                self._holders -= 1
                if not self._holders and held.frozen.until is None:
                    # Not in this task, which may be cancelled; and at the end of the mount nobody
                    # may be left to answer what the kernel waits for.
                    self._nursery.start_soon(self._thaw_unheld, held)

    async def thaw(self, since: float | None = None) -> bool:
        """Let the tree go on, whoever holds it; return whether it was frozen.

        With `since`, only the freeze that began then is ended: another one is somebody else's.
        """
        async with self._lock:
            if self.frozen is None or since not in {None, self.frozen.since}:
                return False
            await self._end()
            return True

    def holds(self, held: Held) -> bool:
        """Tell whether a freeze that was held is still on."""
        return self._held is held

    def close(self) -> None:
        """Let go of the held states, at the end of the mount."""
        self._stack.close()

    async def _freeze(self, held: Held, seconds: float) -> None:
        """Let a freeze that has begun end after its time, and the kernel know of it."""
        self._expiry = trio.CancelScope()
        self._nursery.start_soon(self._expire, seconds, self._expiry)
        try:
            await self._tell_kernel()
        except trio.Cancelled:
            # Nobody waits for it any more, and so nobody would end it.
            self._nursery.start_soon(self._thaw_unheld, held)
            raise
        _log.info("frozen for %.0f s", seconds)

    async def _next_try(self, until: float) -> None:
        """Wait a moment for an account to come from one state to the next.

        Not within the lock: whoever wants to thaw has nothing to wait for.
        """
        if trio.current_time() >= until:
            raise BusyError(
                f"the account has been between two states for {_SETTLING_SECONDS:.0f} s, since"
                " much of it changed or all of it is listed anew: try again later"
            )
        await trio.sleep(_PAUSE_SECONDS)

    def _begin(self, seconds: float | None) -> Held | None:
        """Show the tree as it is now; without an await: no later state may be seen in between.

        None where that is between two states of an account, and the next one is to be expected.
        """
        readers = [self._pinned_readers(account) for account in self._accounts]
        if any(
            account.keeper.connection.online and not its.tree.state().consistent
            for account, its in zip(self._accounts, readers, strict=True)
        ):
            self._stack.close()
            return None
        self.view = MountView.of(
            self._accounts, [(one.tree, one.listings) for one in readers], still=True
        )
        self._operations.show(self.view.tree, self.view.listing_tree)
        names = directory_names(self._accounts)
        now = time.time()
        self._held = Held(
            Frozen(now, None if seconds is None else now + seconds),
            Records(
                {
                    names.get(account.slot): its.records
                    for account, its in zip(self._accounts, readers, strict=True)
                }
            ),
        )
        self._holders = 0
        self._readers = readers
        for account in self._accounts:
            if account.news is not None:
                account.news.hold_back()
        return self._held

    async def _tell_kernel(self) -> None:
        """Tell the kernel what leads up to the state that is held."""
        for account, readers in zip(self._accounts, self._readers, strict=True):
            if account.news is not None:
                await account.news.tell_up_to(readers.news)

    async def _end(self) -> None:
        held, self._held = self._held, None
        self._expiry.cancel()
        self.view = self._live
        self._operations.show(self.view.tree, self.view.listing_tree)
        # A listing of the frozen tree may still be under way in its thread, or an answer.
        await self._operations.listings_done()
        if held is not None:
            await held.records.close()
        self._stack.close()
        news = [account.news for account in self._accounts if account.news is not None]
        for one in news:
            one.let_go()
        for one in news:
            await one.tell()
        _log.info("thawed")

    async def _expire(self, seconds: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(seconds)
            _log.warning("the freeze ends after its time of %.0f s", seconds)
            # In a task of its own: thawing cancels this scope.
            self._nursery.start_soon(self._thaw_expired)

    async def _thaw_expired(self) -> None:
        with _logged():
            await self.thaw()

    async def _thaw_unheld(self, held: Held) -> None:
        with _logged():
            async with self._lock:
                # Somebody else may hold it by now, or it is another that is on.
                if self._held is held and not self._holders:
                    await self._end()

    def _pinned_readers(self, account: MountedAccount) -> _Readers:
        while True:
            with contextlib.ExitStack() as stack:
                readers = _Readers(
                    *(stack.enter_context(account.database.reader()) for _ in _Readers._fields)
                )
                for reader in readers:
                    reader.pin()
                # Another process may have written in between.
                if len({(one.state(), one.journal_position()) for one in readers}) == 1:
                    self._stack.push(stack.pop_all())
                    return readers


def _end_of(frozen: Frozen) -> str:
    if frozen.until is None:
        return "for as long as somebody holds it"
    return f"until {time.strftime('%H:%M:%S', time.localtime(frozen.until))}"


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except JmapfsError as error:
        _log.error("the kernel could not be told of the thaw: %s", error)
