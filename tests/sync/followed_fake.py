"""A follower of a FakeServer, as a mount has one; for tests in simulated time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio

from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.jmap.client import connect
from jmapfs.jmap.login import Login
from jmapfs.sync.follower import AccountFollower
from tests.jmap.fake import CREDENTIALS, SESSION_URL, FakeServer


def quiet_server(count: int) -> FakeServer:
    """Return a server whose account never changes."""
    server = FakeServer(count)
    server.change("Email/changes", newState="e1", hasMoreChanges=False)
    server.change("Mailbox/changes", newState="m1", hasMoreChanges=False)
    return server


@contextmanager
def follower_of(
    server: FakeServer, directory: Path, suspects: Collection[str] = ()
) -> Iterator[AccountFollower]:
    """Yield a follower that has not started; its index is in `directory`.

    `suspects` are the emails whose content was not found.
    """

    async def take_suspects() -> Collection[str]:
        return suspects

    database = IndexDatabase(directory)
    with WriterLease(database) as lease:
        yield AccountFollower(
            partial(connect, SESSION_URL, Login(CREDENTIALS), network=server),
            database,
            lease,
            poll_interval=60,
            after_round=trio.lowlevel.checkpoint,
            take_suspects=take_suspects,
        )


@asynccontextmanager
async def running_follower(
    server: FakeServer, directory: Path, suspects: Collection[str] = ()
) -> AsyncIterator[AccountFollower]:
    """Follow an account as a mount does, until the context ends."""
    with follower_of(server, directory, suspects) as follower:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(follower.run, lambda *_: None, may_start_offline=False))
            yield follower
            nursery.cancel_scope.cancel()
