"""A mount that lost mail heals itself once an hour, in simulated time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from jmapfs.index.database import IndexDatabase
from jmapfs.sync.follower import AccountFollower
from tests.jmap.fake import Arguments, FakeServer, RefusedError
from tests.sync.followed_fake import quiet_server, running_follower

# ruff: noqa: ARG001 - the fixture sets the clock


def hide(server: FakeServer, *hidden: str) -> None:
    """Leave emails out of the list, but count them."""
    total = len(server.emails)

    def email_query(arguments: Arguments) -> Arguments:
        ids = [email_id for email_id in server.emails if email_id not in hidden]
        start = arguments.get("position", 0)
        return {"ids": ids[start : start + arguments["limit"]], "queryState": "q", "total": total}

    server.methods["Email/query"] = email_query


@asynccontextmanager
async def mounted(
    server: FakeServer, directory: Path, suspects: Collection[str] = ()
) -> AsyncIterator[tuple[AccountFollower, IndexDatabase]]:
    """Yield a running follower and its index."""
    async with running_follower(server, directory, suspects) as follower:
        yield follower, IndexDatabase(directory)


def totals(server: FakeServer) -> int:
    """Return how many queries asked for the total only."""
    return sum(name == "Email/query" and a["limit"] == 1 for name, a in server.calls)


def emails(database: IndexDatabase) -> int:
    with database.reader() as reader:
        return reader.counts().emails


async def test_a_shortfall_heals_within_the_hour(tmp_path: Path, follower_clock: MockClock) -> None:
    server = quiet_server(12)
    hide(server, "M3", "M7")
    async with mounted(server, tmp_path) as (_, database):
        shortfall = database.state().shortfall
        assert shortfall is not None
        assert (shortfall.found, shortfall.expected) == (10, 12)
        hide(server)
        server.requests.clear()
        await trio.sleep(3500)
        assert (emails(database), totals(server)) == (10, 0)
        assert len(server.calls) > 50  # rounds without a comparison
        await trio.sleep(200)
        assert emails(database) == 12
        assert database.state().shortfall is None
        await trio.sleep(3 * 3600)
        # The first one healed, and compared again; then one each hour.
        assert totals(server) == 2 + 3


async def test_mail_whose_content_is_gone_goes_within_the_hour(
    tmp_path: Path, follower_clock: MockClock
) -> None:
    """The server still returns and counts it, but does not list it. What it lists stays."""
    server = quiet_server(12)
    async with mounted(server, tmp_path, ["M3", "M4"]) as (_, database):
        hide(server, "M3")
        await trio.sleep(3700)
        assert emails(database) == 11
        shortfall = database.state().shortfall
        assert shortfall is not None
        assert (shortfall.found, shortfall.expected) == (11, 12)


async def test_mail_that_the_index_lost_is_back_after_the_start(
    tmp_path: Path, follower_clock: MockClock
) -> None:
    server = quiet_server(12)
    async with mounted(server, tmp_path):
        pass
    database = IndexDatabase(tmp_path)
    with database.writer() as writer, writer.transaction():
        writer.remove_emails(["M3", "M4"])
        writer.set_state(replace(writer.state(), compared_at=0.0))
    async with mounted(server, tmp_path):
        await trio.sleep(10)
        assert emails(database) == 12


async def test_a_stale_tree_is_not_compared_all_the_time(
    tmp_path: Path, follower_clock: MockClock
) -> None:
    server = quiet_server(12)
    async with mounted(server, tmp_path) as (_, database):
        server.emails.clear()
        await trio.sleep(3700)
        assert database.state().stale is not None
        server.requests.clear()
        await trio.sleep(600)
        assert len(server.requests) < 30
        assert emails(database) == 12


async def test_a_server_that_no_longer_lists_stays_online(
    tmp_path: Path, follower_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = quiet_server(12)
    async with mounted(server, tmp_path) as (follower, database):
        hide(server, "M3")
        server.emails["M12"] = {**server.emails["M3"], "id": "M12"}
        hide(server)
        plain = server.methods["Email/query"]

        def email_query(arguments: Arguments) -> Arguments:
            if arguments["limit"] > 1:
                raise RefusedError("serverFail")
            return plain(arguments)

        server.methods["Email/query"] = email_query
        await trio.sleep(3 * 3600)
        assert follower.connection.online
        assert "offline" not in caplog.text
        assert 1 <= caplog.text.count("the numbers of emails cannot be compared") <= 3
        assert emails(database) == 12
        server.methods["Email/query"] = plain
        await trio.sleep(3700)
        assert emails(database) == 13


async def test_a_server_that_cannot_count_stays_online(
    tmp_path: Path, follower_clock: MockClock
) -> None:
    server = quiet_server(12)
    plain = server.methods["Email/get"]

    def email_get(arguments: Arguments) -> Arguments:
        if arguments.get("properties") == ["id"]:
            return {"nonsense": True}
        return plain(arguments)

    server.methods["Email/get"] = email_get
    async with mounted(server, tmp_path) as (follower, database):
        await trio.sleep(2 * 3600)
        assert follower.connection.online
        assert emails(database) == 12
