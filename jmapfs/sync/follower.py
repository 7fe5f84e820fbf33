"""Follows an account while a mount exists: when the server is asked, and what happens on errors.

    connect ── check the account ── bring up to date ── wait for a reason ──┐
       ↑                                  ↑─────────────────────────────────┘
       └── pause (longer each time) ── offline, if any of it fails

The part from one "bring up to date" to the next is a round (`sync.rounds`). A round begins
because of a push event, a request, a failed download, or because time has passed. A push event is
only a hint: whatever it contains, the server is asked for the changes.

If the index is not complete when the follower starts, an error of the first round is raised to the
caller, because there is nothing to show yet.

Several processes may follow one account. Only one process has the writer lease of the index. The
other processes are read-only followers: they see what the first process stores.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from jmapfs.deadline import NO_PROGRESS
from jmapfs.errors import (
    AuthenticationError,
    BusyError,
    DamageError,
    JmapfsError,
    OfflineError,
    RequestError,
    TooMuchGoneError,
    UnreachableError,
    lone_errors,
)
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.jmap.client import Client
from jmapfs.jmap.http import Traffic
from jmapfs.jmap.response import RequestKind
from jmapfs.suspension import SuspensionDetector
from jmapfs.sync.account_check import StateWaiter, check_account
from jmapfs.sync.listing import ListingReport
from jmapfs.sync.push_listener import PushListener
from jmapfs.sync.relisting import too_much_gone
from jmapfs.sync.rounds import RoundRequest, Rounds
from jmapfs.sync.schedule import RoundSchedule

_log = logging.getLogger(__name__)

ClientOpener = Callable[[], AbstractAsyncContextManager[Client]]
"""Opens a new client for the account, which includes the discovery of its session."""

_POLL_INTERVAL_WITH_PUSH: Final = 600.0
# How soon after a new index was begun another one is begun, if it is damaged as well.
_BETWEEN_DAMAGE_SECONDS: Final = 300.0
_SUSPENSION_CHECK: Final = 5.0
_OTHER_WRITER_SECONDS: Final = 10.0
_OTHER_WRITER_FIRST_PAUSE: Final = 0.25
_OTHER_WRITER_LONGEST_PAUSE: Final = 2.0


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """Whether the server is reachable, since when (seconds since 1970), and the last error.

    `changed_at` is when the error changed while the server was unreachable.
    """

    online: bool
    since: float
    error: str | None = None
    changed_at: float = 0.0


class AccountFollower:
    """Keeps one index up to date with one account.

    client: the open client, None while the server is unreachable.
    connection: whether the server is reachable.
    schedule: when the next round begins.

    `after_round` is called after every round, and when the server becomes unreachable. A round that
    compares the numbers of emails with those of the server calls `take_suspects` for the ids of
    emails whose content was not found.
    """

    def __init__(
        self,
        open_client: ClientOpener,
        database: IndexDatabase,
        lease: WriterLease,
        *,
        poll_interval: float,
        after_round: Callable[[], Awaitable[None]],
        take_suspects: Callable[[], Awaitable[Iterable[str]]],
    ) -> None:
        self.client: Client | None = None
        self.connection = ConnectionState(online=False, since=time.time())
        self.schedule = RoundSchedule()
        self._open_client = open_client
        self._database = database
        self._rounds = Rounds(database, lease, take_suspects)
        self._poll_interval = poll_interval
        self._after_round = after_round
        self._push = PushListener(self.schedule.hint)
        self._requests: list[RoundRequest] = []
        self._damage_passes_at = -math.inf
        self._earlier_traffic = Traffic()
        self._traffic = Traffic()

    @property
    def writes_index(self) -> bool:
        """Whether this process writes the index."""
        return self._rounds.writes_index

    @property
    def push_active(self) -> bool:
        """Whether the server sends push events."""
        return self._push.active

    @property
    def checked_at(self) -> float:
        """When this process last brought the index up to date, in seconds since 1970."""
        return self._rounds.checked_at

    def traffic(self) -> Traffic:
        """Return the traffic of all clients so far, including closed clients."""
        earlier, current = self._earlier_traffic, self._traffic
        return Traffic(
            requests=earlier.requests + current.requests,
            blobs=earlier.blobs + current.blobs,
            bytes=earlier.bytes + current.bytes,
        )

    def end_pauses(self) -> None:
        """Let the next requests be sent at once, even if the server has asked to wait."""
        if self.client is not None:
            for kind in RequestKind:
                self.client.transport.end_pause(kind)

    def current_client(self) -> Client:
        """Return the open client; raise OfflineError while the server is unreachable."""
        if self.client is None:
            raise OfflineError(f"offline: {self.connection.error or 'not connected yet'}")
        return self.client

    def report_reset(self) -> None:
        """Begin a round that lists the account again: an id stands for another email than before.

        Call this only for servers whose blob ids do not contain a SHA-1.
        """
        self._rounds.reset_reported = True
        self.schedule.hint()

    async def sync_now(
        self,
        *,
        accept_deletions: bool = False,
        compare: bool = False,
        suspects: Iterable[str] = (),
    ) -> None:
        """Bring the index up to date; return when the round and `after_round` are done.

        With `accept_deletions`, a stale tree follows the account. With `compare`, the numbers of
        emails are compared with those of the server. `suspects` are the ids of emails whose content
        the server does not find: those that the server does not list either are removed.

        Raises JmapfsError if the server cannot be asked. Raises TooMuchGoneError if the tree is
        stale. Raises BusyError if another process writes the index, but does not bring it up to
        date in time.
        """
        await self._next_round(
            RoundRequest(accept_deletions=accept_deletions, compare=compare, suspects=suspects)
        )
        # The check comes after the round, because the round takes the lease if the lease is free.
        if self.writes_index:
            return
        stale = (await trio.to_thread.run_sync(self._database.state)).stale
        if stale is not None:
            if accept_deletions:
                raise BusyError(
                    "another process writes the index of this account: name its mountpoint"
                )
            raise too_much_gone(stale)
        if self.client is not None:
            waiter = StateWaiter(self.client, self._database)
            with trio.move_on_after(_OTHER_WRITER_SECONDS) as waiting:
                pause = _OTHER_WRITER_FIRST_PAUSE
                while not await waiter.reached():
                    await trio.sleep(pause)
                    pause = min(2 * pause, _OTHER_WRITER_LONGEST_PAUSE)
            if not waiting.cancelled_caught:
                # The next round calls `after_round` for what the other process has stored.
                await self._next_round(RoundRequest())
                return
        raise BusyError(
            "another process writes the index of this account, and has not brought it up to date:"
            " use its mount"
        )

    async def _next_round(self, request: RoundRequest) -> None:
        """Wait for a round that begins after this call; raise the error of that round."""
        self._requests.append(request)
        self.schedule.request()
        await request.wait()

    async def run(
        self,
        report: ListingReport,
        *,
        may_start_offline: bool,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Follow the account until cancelled; report the start when there is something to show.

        Raises JmapfsError only before that start, if the account cannot be shown.
        """
        await self._rounds.acquire_writer()
        startup = _Startup(task_status)
        while True:
            self.schedule.begin()
            try:
                with lone_errors():
                    async with self._open_client() as client:
                        self._earlier_traffic, self._traffic = self.traffic(), client.traffic
                        await self._follow(client, report, startup)
            except DamageError as error:
                self._database.report_damage(error)
                if trio.current_time() < self._damage_passes_at:
                    # The new index is damaged as well: the disk is probably faulty.
                    if not startup.done:
                        raise
                    self.schedule.record_failure(error)
                    await self._go_offline(error)
                else:
                    self._damage_passes_at = trio.current_time() + _BETWEEN_DAMAGE_SECONDS
                    continue
            except JmapfsError as error:
                if not startup.done and not (may_start_offline and _is_outage(error)):
                    raise
                self.schedule.record_failure(error)
                await self._go_offline(error)
            except Exception as error:
                if not startup.done:
                    raise
                _log.exception("a bug in following the account")
                self.schedule.record_failure(error)
                await self._go_offline(UnreachableError(f"a bug, {type(error).__name__}"))
            startup.finish()
            await self.schedule.wait(0)

    async def _follow(self, client: Client, report: ListingReport, startup: _Startup) -> None:
        """Run round after round while the server answers."""
        await self._rounds.replace_damaged()
        await trio.to_thread.run_sync(check_account, self._database, client)
        async with self._push.listening(client), _dropping_dead_connections(client, self._push):
            while True:
                await self._round(client, report)
                startup.finish()
                await self.schedule.wait(self._interval())

    async def _round(self, client: Client, report: ListingReport) -> None:
        self.schedule.begin()
        requests, self._requests = self._requests, []
        error: JmapfsError | None = UnreachableError("the round was interrupted")
        try:
            run = partial(self._rounds.run, client, report, requests)
            error = await client.stall().limit(run, NO_PROGRESS)
            self.client = client
            if not self.connection.online:
                _log.info("online")
                self.connection = ConnectionState(online=True, since=time.time())
            # A stale tree has a status of its own.
            failure = None if isinstance(error, TooMuchGoneError) else error
            if failure is not None and self.connection.error != str(failure):
                _log.warning("not up to date: %s", failure)
            self.connection = replace(self.connection, error=str(failure) if failure else None)
            # `after_round` comes before the answers, so that the kernel knows the changes then.
            await self._after_round()
            if failure is not None:
                self.schedule.record_failure(failure)
            else:
                self.schedule.record_success()
        except JmapfsError as outage:
            error = outage
            raise
        finally:
            for request in requests:
                request.answer(error)

    async def _go_offline(self, error: JmapfsError) -> None:
        self.client = None
        text = str(error)
        if isinstance(error, AuthenticationError) and error.remark:
            text += f" ({error.remark})"
        if self.connection.online or self.connection.error is None:
            _log.warning("offline: %s", text)
        before, now = self.connection, time.time()
        self.connection = ConnectionState(
            online=False,
            since=now if before.online else before.since,
            error=text,
            changed_at=before.changed_at if text == before.error else now,
        )
        requests, self._requests = self._requests, []
        self.schedule.cancel_requests()
        for request in requests:
            request.answer(error)
        try:
            await self._after_round()
        except JmapfsError as failure:
            # The mount goes on. The next round will tell the kernel.
            _log.error("the kernel could not be notified: %s", failure)

    def _interval(self) -> float:
        interval = self._poll_interval
        # A push event says that the server has changes, not that another process has stored them.
        if self.push_active and self.writes_index:
            interval = max(interval, _POLL_INTERVAL_WITH_PUSH)
        interval *= random.uniform(0.9, 1.1)  # noqa: S311 - no secret
        return max(0.0, min(interval, self._rounds.next_comparison - trio.current_time()))


@asynccontextmanager
async def _dropping_dead_connections(client: Client, push: PushListener) -> AsyncIterator[None]:
    """Within the context, open new connections when this machine was suspended.

    Otherwise dead connections are noticed only after the timeouts: 18 seconds for a request, two
    minutes for the event stream.
    """

    async def watch() -> None:
        suspensions = SuspensionDetector()
        while True:
            await trio.sleep(_SUSPENSION_CHECK)
            if suspensions.noticed():
                _log.info("new connections: this machine was suspended, or its clock was set")
                push.reconnect()
                await client.transport.close_connections()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield
        nursery.cancel_scope.cancel()


class _Startup:
    """Reports to the nursery, only once, that the follower has started."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self.done = False
        self._task_status = task_status

    def finish(self) -> None:
        if not self.done:
            self.done = True
            self._task_status.started()


def _is_outage(error: JmapfsError) -> bool:
    """Return whether the server is only temporarily unreachable, not wrongly configured."""
    return isinstance(error, UnreachableError) or (
        isinstance(error, RequestError) and error.status >= 500
    )
