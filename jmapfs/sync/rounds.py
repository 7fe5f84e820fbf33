"""One round of a follower: brings the index up to date, as the tasks that wait for it request.

Only the process with the writer lease writes the index. Each round takes the lease if it is free.
A comparison of the numbers of emails is a part of a round, once an hour or when a task requests it.
Emails whose content was not found since the last comparison are removed then, if the server does
not list them either.
"""

import logging
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import trio

from jmapfs.errors import (
    DamageError,
    JmapfsError,
    ServerError,
    StorageError,
    TooMuchGoneError,
    UnreachableError,
)
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import Client
from jmapfs.jmap.response import RequestKind
from jmapfs.suspension import seconds_since
from jmapfs.sync.listing import ListingReport
from jmapfs.sync.synchronizer import GivenUpError, Synchronizer

_log = logging.getLogger(__name__)

_COMPARE_INTERVAL: Final = 3600.0


class RoundRequest:
    """A task waits for a round that begins after its request.

    accept_deletions: whether a stale tree follows the account.
    compare: whether the numbers of emails are compared with those of the server.
    suspects: the ids of emails whose content the server does not find: those that the server does
        not list either are removed.
    """

    def __init__(
        self, *, accept_deletions: bool = False, compare: bool = False, suspects: Iterable[str] = ()
    ) -> None:
        self.accept_deletions = accept_deletions
        self.compare = compare
        self.suspects = frozenset(suspects)
        self._done = trio.Event()
        self._error: JmapfsError | None = None

    def answer(self, error: JmapfsError | None) -> None:
        """Wake the task: the round is done, or has failed."""
        self._error = error
        self._done.set()

    async def wait(self) -> None:
        """Wait for the end of the round; raise its error."""
        await self._done.wait()
        if self._error is not None:
            raise self._error


class Rounds:
    """Brings one index up to date, round by round.

    `take_suspects` returns the ids of emails whose content was not found since its last call.

    checked_at: when a round last brought the index up to date, in seconds since 1970.
    next_comparison: when the numbers are compared next, in trio's time; infinite before a round.
    reset_reported: whether the next round lists the account again, because an id stands for another
        email than before.
    """

    def __init__(
        self,
        database: IndexDatabase,
        lease: WriterLease,
        take_suspects: Callable[[], Awaitable[Iterable[str]]],
    ) -> None:
        self.checked_at = 0.0
        self.next_comparison = math.inf
        self.reset_reported = False
        self._database = database
        self._lease = lease
        self._take_suspects = take_suspects
        self._writer: IndexWriter | None = None

    @property
    def writes_index(self) -> bool:
        """Whether this process writes the index."""
        return self._writer is not None

    async def acquire_writer(self) -> IndexWriter | None:
        """Return the writer of the index, or None if another process has the lease."""
        if self._writer is None:
            self._writer = await trio.to_thread.run_sync(self._lease.writer)
        return self._writer

    async def replace_damaged(self) -> None:
        """Replace a damaged index by a new one, if this process has the lease."""
        if self._writer is not None:
            self._writer = await trio.to_thread.run_sync(self._lease.replace_damaged)

    async def run(
        self, client: Client, report: ListingReport, requests: Sequence[RoundRequest]
    ) -> StorageError | TooMuchGoneError | GivenUpError | UnreachableError | None:
        """Bring the index up to date.

        Returns the error if the index cannot be written, if the tree stays stale, if the account
        cannot be followed, or if the server asks not to call methods for a while. The server is
        reachable in all cases, so mail can be read.
        """
        await self.replace_damaged()
        writer = await self.acquire_writer()
        if writer is None:
            return None
        if requests and client.transport.pause(RequestKind.API) > client.transport.longest_wait:
            # A task that waits wants to know whether the server is still busy.
            client.transport.end_pause(RequestKind.API)
        reset_reported, self.reset_reported = self.reset_reported, False
        try:
            synchronizer = Synchronizer(
                client,
                self._database,
                writer,
                accept_deletions=any(request.accept_deletions for request in requests),
                ask_again=bool(requests),
                reset_reported=reset_reported,
            )
            is_requested = any(request.compare for request in requests)
            is_due = trio.current_time() >= self.next_comparison
            suspects = frozenset[str]().union(*(request.suspects for request in requests))
            try:
                await synchronizer.bring_up_to_date(report, compare=is_requested or is_due)
                if is_requested or is_due:
                    suspects |= frozenset(await self._take_suspects())
                if suspects:
                    await synchronizer.check_suspects(suspects, report)
            except ServerError as error:
                if is_requested or not is_due:
                    raise
                # A server that cannot list its mail can still report the changes.
                _log.warning("the numbers of emails cannot be compared: %s", error)
                await synchronizer.bring_up_to_date(report)
            await self._plan_comparison(writer)
            await trio.to_thread.run_sync(self._database.end_damage)
        except (DamageError, sqlite3.Error) as error:
            self.reset_reported |= reset_reported
            self._database.report_damage(error)
            if isinstance(error, DamageError):
                raise
            raise StorageError(f"cannot read the index: {error}") from error
        except (StorageError, GivenUpError, UnreachableError) as error:
            self.reset_reported |= reset_reported
            if not await self._is_shown_despite(error, client, writer):
                raise
            self._postpone_comparison()
            return error
        except TooMuchGoneError as error:
            self._postpone_comparison()
            self.checked_at = time.time()
            return error
        except BaseException:
            self.reset_reported |= reset_reported
            raise
        self.checked_at = time.time()
        return None

    async def _is_shown_despite(
        self, error: JmapfsError, client: Client, writer: IndexWriter
    ) -> bool:
        """Return whether mail can be read although the round has failed."""
        # A server that limits method calls may still answer downloads.
        if isinstance(error, UnreachableError) and not client.transport.limits_methods:
            return False
        if not (await trio.to_thread.run_sync(writer.state)).complete:
            return False
        # A new index can be shown, although it is not up to date.
        await trio.to_thread.run_sync(self._database.end_damage)
        if isinstance(error, StorageError):
            _log.error("%s", error)
        return True

    async def _plan_comparison(self, writer: IndexWriter) -> None:
        if self.next_comparison < math.inf:
            self._postpone_comparison()
            return
        # The first round makes no comparison that is due: the mount can be used before that.
        age = seconds_since((await trio.to_thread.run_sync(writer.state)).compared_at)
        pause = 0.0 if age >= _COMPARE_INTERVAL else _COMPARE_INTERVAL
        self.next_comparison = trio.current_time() + pause

    def _postpone_comparison(self) -> None:
        # A comparison that is due, but cannot be made, must not begin round after round.
        if trio.current_time() >= self.next_comparison:
            self.next_comparison = trio.current_time() + _COMPARE_INTERVAL
