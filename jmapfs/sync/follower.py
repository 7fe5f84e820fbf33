"""Keeping an index true for as long as a mount lives: when to ask the server, and what if not.

    connect ── check the account ── bring up to date ── wait for a reason ──┐
       ↑                                  ↑───────────────────────────────── ┘
       └── pause (longer each time) ── offline, when any of it fails

Reasons are a hint by push, somebody who asks, a download that failed, or time. Push is a hint and
never the truth (design): whatever it says or does not say, the account is asked.

The first round is special: where the index is not complete its errors are the caller's, since
there is nothing that could be shown.

Whether an index that another process keeps has come to what the server has now.

Its keeper may be unable to follow the server although we can talk to it: its password is an old
one, or it is a snapshot that has just ended. So it is not believed, but the server is asked for its
states (RFC 8620 §5.1), and the index has to have these, or to have been brought up to date since.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import trio

from jmapfs.errors import (
    BusyError,
    JmapfsError,
    RequestError,
    StorageError,
    UnreachableError,
    lone_errors,
)
from jmapfs.index.database import IndexDatabase
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.push import PushUnavailableError
from jmapfs.sync.listing import ListingReport
from jmapfs.sync.synchronizer import Synchronizer, check_account


class StateWaiter:
    """The coming of an index to what the server has at this moment, or later."""

    def __init__(self, client: Client, database: IndexDatabase) -> None:
        self._client = client
        self._database = database
        # The clock of the machine, as for `synced_at`: it is set by another process.
        self._began = time.time()

    async def reached(self) -> bool:
        """Tell whether the index has come there.

        Raises:
            StorageError: the index cannot be read.
            JmapfsError: what the client raises.
        """
        state = await trio.to_thread.run_sync(self._database.state)
        if not state.complete or state.synced_at >= self._began:
            return state.complete
        # A mailbox that is renamed changes its own state only.
        _, mailbox_state = await self._client.mailboxes()
        if state.mailbox_state != mailbox_state:
            return False
        return state.email_state == await self._client.email_state()


_log = logging.getLogger(__name__)

Opener = Callable[[], AbstractAsyncContextManager[Client]]
"""Opens a client for the account; each time anew, discovery included."""

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_WITH_PUSH: Final = 600.0
_GATHERING: Final = 0.05
_ARRIVAL_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """Whether the server is in reach, since when (seconds since 1970), and the last error."""

    online: bool
    since: float
    error: str | None = None


class _Request:
    """Somebody waits for a round that begins after they asked."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: JmapfsError | None = None


class AccountFollower:
    """Keeps one index true to one account.

    `client` is there while the server is in reach: after a round that succeeded. `checked_at`
    is when the index was last found to be what the server has, in seconds since 1970. `push_active`
    says whether the server tells of changes by itself.
    """

    def __init__(
        self,
        opener: Opener,
        database: IndexDatabase,
        take_lead: Callable[[], IndexWriter | None],
        *,
        poll_interval: float,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self.client: Client | None = None
        self.connection = ConnectionState(online=False, since=time.time())
        self.checked_at = 0.0
        self.push_active = False
        self._opener = opener
        self._database = database
        self._take_lead = take_lead
        self._writer: IndexWriter | None = None
        self._poll_interval = poll_interval
        self._changed = changed
        self._woken = trio.Event()
        self._requests: list[_Request] = []

    @property
    def writes_index(self) -> bool:
        """Whether this process writes the index."""
        return self._writer is not None

    def wake(self) -> None:
        """Something may have changed, or the server may be gone: look soon."""
        self._woken.set()

    async def sync_now(self) -> None:
        """Bring the index up to date; return when that, and telling of it, is done.

        Raises:
            BusyError: another process keeps the index, and does not bring it up to date soon.
            JmapfsError: the server cannot be asked.
        """
        await self._next_round()
        # Only now: the round took the lead if it was free.
        if self.writes_index:
            return
        if self.client is not None:
            arrival = StateWaiter(self.client, self._database)
            with trio.move_on_after(_ARRIVAL_SECONDS) as waiting:
                while not await arrival.reached():  # noqa: ASYNC110 - in another process
                    await trio.sleep(_PAUSE_SECONDS)
            if not waiting.cancelled_caught:
                # It is a round that tells of what has come.
                await self._next_round()
                return
        raise BusyError("another process keeps this account's index: ask its mount")

    async def _next_round(self) -> None:
        """Return when a round is done that begins from now on; raises its error."""
        request = _Request()
        self._requests.append(request)
        self.wake()
        await request.done.wait()
        if request.error is not None:
            raise request.error

    async def run(
        self,
        report: ListingReport,
        *,
        may_start_offline: bool,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep the index true until cancelled; started when there is something to be shown.

        Raises:
            JmapfsError: before it has started: the account cannot be shown.
        """
        self._writer = await trio.to_thread.run_sync(self._take_lead)
        starting = _Starting(task_status)
        pause = _FIRST_PAUSE
        while True:
            try:
                with lone_errors():
                    async with self._opener() as client:
                        await self._stay(client, report, starting)
            except JmapfsError as error:
                if not starting.done and not (may_start_offline and _is_outage(error)):
                    raise
                if self.connection.online:
                    pause = _FIRST_PAUSE
                await self._went_offline(error)
            except Exception as error:
                if not starting.done:
                    raise
                _log.exception("a bug in following the account")
                await self._went_offline(UnreachableError(f"a bug, {type(error).__name__}"))
            starting.finish()
            await self._wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _stay(self, client: Client, report: ListingReport, starting: _Starting) -> None:
        """Go round after round while the server answers."""
        await trio.to_thread.run_sync(check_account, self._database, client)
        async with self._listening(client):
            while True:
                await self._round(client, report)
                starting.finish()
                await self._wait(self._interval())
                # Changes seldom come alone: gather those that are on their way.
                await trio.sleep(_GATHERING)

    async def _round(self, client: Client, report: ListingReport) -> None:
        self._woken = trio.Event()
        requests, self._requests = self._requests, []
        error: JmapfsError | None = UnreachableError("it ended before it was done")
        try:
            error = await self._synchronize(client, report)
            self.client = client
            if not self.connection.online:
                _log.info("online")
                self.connection = ConnectionState(online=True, since=time.time())
            self.connection = replace(self.connection, error=str(error) if error else None)
            # Whoever asked is to find the news in place: the kernel is told first.
            await self._changed()
        except JmapfsError as failure:
            error = failure
            raise
        finally:
            _answer(requests, error)

    async def _synchronize(self, client: Client, report: ListingReport) -> StorageError | None:
        """Bring the index up to date; return what kept it from being written, if anything did."""
        if self._writer is None:
            self._writer = await trio.to_thread.run_sync(self._take_lead)
        if self._writer is None:
            return None
        try:
            await Synchronizer(client, self._database, self._writer).bring_up_to_date(report)
        except StorageError as error:
            # A full disk here says nothing of the server: mail can still be read from it.
            if not (await trio.to_thread.run_sync(self._writer.state)).complete:
                raise
            _log.error("%s", error)
            return error
        self.checked_at = time.time()
        return None

    async def _went_offline(self, error: JmapfsError) -> None:
        self.client = None
        if self.connection.online or self.connection.error is None:
            _log.warning("offline: %s", error)
        since = time.time() if self.connection.online else self.connection.since
        self.connection = ConnectionState(online=False, since=since, error=str(error))
        requests, self._requests = self._requests, []
        _answer(requests, error)
        try:
            await self._changed()
        except JmapfsError as failure:
            # The mount lives on; the next round tells it.
            _log.error("the kernel could not be told: %s", failure)

    def _interval(self) -> float:
        interval = self._poll_interval
        # Push says when the server changed, not when the process that leads has written that down.
        if self.push_active and self.writes_index:
            interval = max(interval, _WITH_PUSH)
        return interval * random.uniform(0.9, 1.1)  # noqa: S311 - no secret

    async def _wait(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._woken.wait()
        self._woken = trio.Event()

    @asynccontextmanager
    async def _listening(self, client: Client) -> AsyncIterator[None]:
        """Listen to push while the context lasts."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, client)
            yield
            nursery.cancel_scope.cancel()

    async def _listen(self, client: Client) -> None:
        """Turn what push says into hints, until the server says that it has none."""
        pause = _FIRST_PAUSE
        try:
            while True:
                try:
                    async with client.push() as events:
                        # The first event is the connection itself, and a reason to catch up.
                        async for event in events:
                            _log.debug("push: %s", event)
                            self.push_active = True
                            pause = _FIRST_PAUSE
                            self.wake()
                except PushUnavailableError as error:
                    _log.info("asking every %.0f s: %s", self._poll_interval, error)
                    return
                except JmapfsError as error:
                    _log.info("push broke off: %s", error)
                if self.push_active:
                    # Is the server gone? And from here on time is the reason to ask again.
                    self.push_active = False
                    self.wake()
                await trio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self.push_active = False


class _Starting:
    """Says once that the keeper has started."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self.done = False
        self._task_status = task_status

    def finish(self) -> None:
        if not self.done:
            self.done = True
            self._task_status.started()


def _answer(requests: Iterable[_Request], error: JmapfsError | None) -> None:
    for request in requests:
        request.error = error
        request.done.set()


def _is_outage(error: JmapfsError) -> bool:
    """Say whether the server is merely not there, as opposed to not being the right one."""
    return isinstance(error, UnreachableError) or (
        isinstance(error, RequestError) and error.status >= 500
    )
