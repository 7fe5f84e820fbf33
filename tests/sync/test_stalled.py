"""Snapshots end two minutes after the last progress, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.account import AccountSource
from jmapfs.deadline import LONGEST_STALL
from jmapfs.errors import UnreachableError
from jmapfs.jmap.client import Client, connect
from jmapfs.jmap.login import Login
from jmapfs.snapshot.create import FailedDownloadsError, create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.jmap.fake import CREDENTIALS, SESSION_URL, Chunks, FakeServer
from tests.snapshot.commands import RecordingReport
from tests.sync.followed_fake import quiet_server

# ruff: noqa: ARG001 - the fixture sets the clock

COUNT = 12
FOR_EVER = 1e9
# Downloads during the first listing may go on for so long after it.
EARLY = 15.0
# Half a second for each attempt of the simulated server, and rounding.
MARGIN = 6.0

Answer = Callable[[str], httpx.Response | None]
"""Answers the download of a blob id; None for the plain answer."""


class FakeSource(AccountSource):
    """An account of a FakeServer."""

    server: FakeServer

    def connect(self, **options: Any) -> AbstractAsyncContextManager[Client]:
        return connect(SESSION_URL, self.login, network=self.server, **options)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """A server of 12 mails."""
    monkeypatch.setattr(trio.from_thread, "run_sync", lambda function, *given: function(*given))
    server = quiet_server(COUNT)
    server.blobs = {
        f"B{number}": (f"Subject: {number}\n\n".encode() + b"x" * 200)[: 100 + number]
        for number in range(COUNT)
    }
    return server


def answer_downloads(server: FakeServer, answer: Answer) -> None:
    def before(request: httpx.Request) -> httpx.Response | None:
        path = request.url.path
        return answer(path.split("/")[4]) if path.startswith("/jmap/download/") else None

    server.before = before


async def snapshot(
    server: FakeServer, directory: Path, *, skip_bad: bool = False
) -> SnapshotSummary:
    source = FakeSource("test", SESSION_URL, Login(CREDENTIALS))
    object.__setattr__(source, "server", server)
    report = RecordingReport()
    async with account_opener(source, directory / "cache", report, allow_stale=False) as opener:
        return await create_snapshot(
            opener, Repository(directory / "dest"), max_gone=50, report=report, skip_bad=skip_bad
        )


def trickle() -> httpx.Response:
    """Return an endless body of a byte every five seconds."""
    pieces: list[bytes | float] = [b"x", 5.0]
    return httpx.Response(200, stream=Chunks(*pieces * 100_000))


def silent() -> httpx.Response:
    return httpx.Response(200, stream=Chunks(FOR_EVER))


async def test_a_mail_that_trickles_is_named(
    server: FakeServer, tmp_path: Path, follower_clock: MockClock
) -> None:
    """It is said to have 2^50 bytes. All other mails have arrived."""
    server.emails["M3"]["size"] = 2**50
    answer_downloads(server, lambda blob: trickle() if blob == "B3" else None)
    began = trio.current_time()
    with pytest.raises(FailedDownloadsError, match=r"a mail cannot.*Mail-3_\w+\.eml.*did not end"):
        await snapshot(server, tmp_path)
    # It is tried for 45 seconds during the listing, after it, and after a second listing.
    assert trio.current_time() - began < 3 * 60 + MARGIN
    summary = await snapshot(server, tmp_path, skip_bad=True)
    assert (summary.mails, summary.missing) == (COUNT - 1, 1)


@pytest.mark.parametrize("body", [trickle, silent])
async def test_a_server_that_sends_nothing_any_more(
    server: FakeServer,
    tmp_path: Path,
    follower_clock: MockClock,
    body: Callable[[], httpx.Response],
) -> None:
    """Half of the mails have arrived."""
    arrived: set[str] = set()

    def answer(blob: str) -> httpx.Response | None:
        if len(arrived) < COUNT // 2 or blob in arrived:
            arrived.add(blob)
            return None
        return body()

    answer_downloads(server, answer)
    began = trio.current_time()
    with pytest.raises(FailedDownloadsError, match=r"mails? cannot be downloaded.*\.eml") as caught:
        await snapshot(server, tmp_path)
    assert trio.current_time() - began < LONGEST_STALL + EARLY + MARGIN
    assert caught.value.missing.count == COUNT // 2


async def test_slow_errors_are_no_progress(
    server: FakeServer, tmp_path: Path, follower_clock: MockClock
) -> None:
    """Each download fails, but only after half a minute."""
    server.delay = 8.0
    answer_downloads(server, lambda _: httpx.Response(500))
    began = trio.current_time()
    with pytest.raises(FailedDownloadsError, match=r"the others were not tried.*\.eml"):
        await snapshot(server, tmp_path)
    # Connecting and listing take some requests of eight seconds, which are progress.
    assert trio.current_time() - began < LONGEST_STALL + 12 * server.delay


@pytest.mark.parametrize("method", ["Email/query", "Email/get", "Mailbox/get", "Email/changes"])
async def test_a_listing_that_gets_no_answer(
    server: FakeServer, tmp_path: Path, follower_clock: MockClock, method: str
) -> None:
    def before(request: httpx.Request) -> httpx.Response | None:
        return silent() if method.encode() in request.content else None

    server.before = before
    began = trio.current_time()
    with pytest.raises(UnreachableError):
        await snapshot(server, tmp_path)
    assert trio.current_time() - began < LONGEST_STALL + MARGIN
