"""A mount whose secret the server refuses: how often the secret is sent, in simulated time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.jmap.client import Client
from jmapfs.sync.follower import AccountFollower
from tests.jmap.fake import FakeServer
from tests.sync.followed_fake import follower_of


class _Round:
    """In place of a Synchronizer: one request."""

    def __init__(self, client: Client, *_: object, **__: object) -> None:
        self._client = client

    async def bring_up_to_date(self, *_: object, **__: object) -> None:
        await self._client.email_state()


# ruff: noqa: ARG001 - the fixture sets the clock


@pytest.fixture
def followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[AccountFollower, FakeServer]]:
    """A follower that has not started, and its server."""
    monkeypatch.setattr("jmapfs.sync.rounds.Synchronizer", _Round)
    monkeypatch.setattr("jmapfs.sync.follower.check_account", lambda *_: None)
    server = FakeServer()
    with follower_of(server, tmp_path) as follower:
        yield follower, server


async def wake_often(follower: AccountFollower) -> None:
    """Wake the follower in every way, as reads, push events and commands do."""
    while True:
        follower.schedule.hint()
        follower.report_reset()
        await trio.sleep(1)


async def test_stale_password_is_sent_twice_in_ten_minutes(
    followed: tuple[AccountFollower, FakeServer], follower_clock: MockClock
) -> None:
    follower, server = followed
    refused: list[float] = []

    def refuse(request: httpx.Request) -> httpx.Response | None:
        if "authorization" in request.headers:
            refused.append(trio.current_time())
            return httpx.Response(401, json={"detail": "Invalid credentials"})
        return None

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(follower.run, lambda *_: None, may_start_offline=False))
        assert follower.connection.online
        server.before = refuse
        server.requests.clear()
        nursery.start_soon(wake_often, follower)
        await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert len(refused) == 2
    # The follower looks every minute whether the pause is over.
    assert 300 <= refused[1] - refused[0] <= 300 + 72
    # Without the secret there are no more requests either: discovery makes one before each.
    assert len(server.requests) <= 4
    assert follower.client is None
    assert "does not accept the credentials" in str(follower.connection.error)
    assert "jmapfs sync" in str(follower.connection.error)


async def test_forbidden_login_is_repeated_ever_more_seldom(
    followed: tuple[AccountFollower, FakeServer], follower_clock: MockClock
) -> None:
    """A server may mean a wrong secret, and not say so."""
    follower, server = followed

    def forbid(request: httpx.Request) -> httpx.Response | None:
        if "authorization" in request.headers:
            return httpx.Response(403, json={"detail": "Zugriff verweigert"})
        return None

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(follower.run, lambda *_: None, may_start_offline=False))
        server.before = forbid
        server.requests.clear()
        follower.schedule.hint()
        await trio.sleep(86_400)
        sent = [one for one in server.requests if "authorization" in one.headers]
        assert 24 <= len(sent) <= 45
        assert "does not permit this: 403" in str(follower.connection.error)
        # The user need not wait.
        server.before = None
        await follower.sync_now()
        assert follower.connection.online
        nursery.cancel_scope.cancel()


async def test_a_secret_that_only_push_refuses_stops_nothing_else(
    followed: tuple[AccountFollower, FakeServer], follower_clock: MockClock
) -> None:
    follower, server = followed
    refused = 0

    def refuse_push(request: httpx.Request) -> httpx.Response | None:
        nonlocal refused
        if request.headers.get("accept") == "text/event-stream":
            refused += 1
            return httpx.Response(401, json={"detail": "Invalid credentials"})
        return None

    server.before = refuse_push
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(follower.run, lambda *_: None, may_start_offline=False))
        await trio.sleep(600)
        assert follower.connection.online
        assert not follower.push_active
        await follower.sync_now()
        # The server may ban an address after a number of refused requests.
        assert refused == 1
        nursery.cancel_scope.cancel()
