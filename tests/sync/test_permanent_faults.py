"""A fault that lasts costs few requests, whatever wakes the follower; in simulated time."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from jmapfs.errors import StorageError
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.index.writer import IndexWriter
from jmapfs.jmap.client import connect
from jmapfs.jmap.login import Login
from jmapfs.sync.follower import AccountFollower
from tests.jmap.fake import CREDENTIALS, SESSION_URL, Arguments, Chunks, FakeServer, RefusedError

# ruff: noqa: ARG001 - the fixture sets the clock

EVENT = b'event: state\ndata: {"changed": {"A1": {"Email": "e"}}}\n\n'
NEVER = 1e6


@dataclass
class Faulty:
    """A server, and what is wrong with it. Its event stream sends `pieces` again and again."""

    server: FakeServer
    monkeypatch: pytest.MonkeyPatch
    statuses: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes | float, ...] = (EVENT, 0.2) * 50 + (EVENT, 2) * 1000

    def answer(self, request: httpx.Request) -> httpx.Response | None:
        path = request.url.path
        if "authorization" in request.headers:
            for part, status in self.statuses.items():
                if part in path:
                    return httpx.Response(status, headers=self.headers, json={"detail": "no"})
        if "/events" in path:
            return httpx.Response(
                200,
                headers={"Content-Type": "text/event-stream"},
                stream=Chunks(*self.pieces),
            )
        return None

    def method(self, name: str, answer: Callable[[Arguments], Arguments]) -> None:
        self.server.methods[name] = answer

    def refuse(self, kind: str, *names: str) -> None:
        def answer(_: Arguments) -> Arguments:
            raise RefusedError(kind)

        for name in names:
            self.method(name, answer)

    def new_states(self, name: str) -> None:
        """Answer a method with another state each time."""
        plain, numbers = self.server.methods[name], itertools.count()
        self.method(name, lambda arguments: plain(arguments) | {"state": f"x{next(numbers)}"})


Fault = Callable[[Faulty], None]
"""Makes a server faulty, for ever."""


def nothing(faulty: Faulty) -> None:
    """The server is healthy, but sends five events in a second for ever."""


def all_statuses(status: int, retry_after: str = "") -> Fault:
    def begin(faulty: Faulty) -> None:
        faulty.statuses["/jmap/"] = status
        faulty.headers = {"Retry-After": retry_after} if retry_after else {}

    return begin


def api_status(status: int) -> Fault:
    """The session is fine, but the API is not."""

    def begin(faulty: Faulty) -> None:
        plain = faulty.server.answer

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/jmap/":
                return httpx.Response(status, json={"detail": "no"})
            return plain(request)

        faulty.monkeypatch.setattr(faulty.server, "answer", answer)

    return begin


def garbage(faulty: Faulty) -> None:
    faulty.method("Email/changes", lambda _: {"nonsense": True})
    faulty.method("Mailbox/changes", lambda _: {"nonsense": True})


def forbidden_changes(faulty: Faulty) -> None:
    faulty.refuse("forbidden", "Email/changes", "Mailbox/changes")


def full_disk(faulty: Faulty) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no space left on the disk")

    faulty.monkeypatch.setattr(IndexWriter, "bad_emails", fail)


def bug(faulty: Faulty) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    faulty.monkeypatch.setattr(IndexWriter, "bad_emails", fail)


def broken_listing(faulty: Faulty) -> None:
    """The changes are not known, and the listing fails in the middle."""
    faulty.refuse("cannotCalculateChanges", "Email/changes")
    faulty.new_states("Email/get")
    plain = faulty.server.methods["Email/get"]

    def email_get(arguments: Arguments) -> Arguments:
        if len(arguments["ids"]) > 0:
            raise RefusedError("forbidden")
        return plain(arguments)

    faulty.method("Email/get", email_get)


def restless_account(faulty: Faulty) -> None:
    """The changes are not known, and the state is another one in each response."""
    faulty.refuse("cannotCalculateChanges", "Email/changes")
    faulty.new_states("Email/get")


def unknown_changes(faulty: Faulty) -> None:
    """The changes are never known. Each listing has another state."""
    faulty.refuse("cannotCalculateChanges", "Email/changes")
    plain, numbers = faulty.server.methods["Email/query"], itertools.count()
    state = ["x"]

    def email_query(arguments: Arguments) -> Arguments:
        state[0] = f"x{next(numbers)}"
        return plain(arguments)

    faulty.method("Email/query", email_query)
    get = faulty.server.methods["Email/get"]
    faulty.method("Email/get", lambda arguments: get(arguments) | {"state": state[0]})


def endless_changes(faulty: Faulty) -> None:
    numbers = itertools.count()

    def changes(_: Arguments) -> Arguments:
        state = f"x{next(numbers)}"
        return {"newState": state, "hasMoreChanges": True, "created": [], "updated": ["M1"]} | {
            "destroyed": []
        }

    faulty.method("Email/changes", changes)


def endless_mailbox_changes(faulty: Faulty) -> None:
    endless_changes(faulty)
    faulty.method("Mailbox/changes", faulty.server.methods["Email/changes"])


def restless_state(faulty: Faulty) -> None:
    """Each request for the changes has another state, and there are no changes."""
    numbers = itertools.count()

    def changes(_: Arguments) -> Arguments:
        return {"newState": f"x{next(numbers)}", "hasMoreChanges": False} | {
            "created": [],
            "updated": [],
            "destroyed": [],
        }

    for name in ("Email/changes", "Mailbox/changes"):
        faulty.method(name, changes)


def restless_session(faulty: Faulty) -> None:
    numbers = itertools.count()

    class Session(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return f"s{next(numbers)}" if name == "state" else super().__getitem__(name)

    faulty.server.session = Session(faulty.server.session)


def lost_mailbox_list(faulty: Faulty) -> None:
    faulty.refuse("forbidden", "Mailbox/get")
    faulty.server.change("Mailbox/changes", newState="m2", hasMoreChanges=False, updated=["inbox"])


def flapping(faulty: Faulty) -> None:
    """Every other round fails."""
    plain, numbers = faulty.server.methods["Mailbox/changes"], itertools.count()

    def changes(arguments: Arguments) -> Arguments:
        if next(numbers) % 2:
            raise RefusedError("forbidden")
        return plain(arguments)

    faulty.method("Mailbox/changes", changes)


def push_ends_after(*pieces: bytes) -> Fault:
    def begin(faulty: Faulty) -> None:
        faulty.pieces = pieces

    return begin


def push_status(status: int) -> Fault:
    def begin(faulty: Faulty) -> None:
        faulty.statuses["/events"] = status

    return begin


FAULTS: dict[str, tuple[Fault, int, int]] = {
    "events without changes": (nothing, 60, 40),
    **{
        f"all {status}": (all_statuses(status), 60, 20) for status in (401, 403, 404, 429, 500, 503)
    },
    "429 retry-after 0": (all_statuses(429, "0"), 90, 90),
    **{f"api {status}": (api_status(status), 60, 20) for status in (404, 429, 500, 302)},
    "garbage": (garbage, 60, 20),
    "forbidden changes": (forbidden_changes, 60, 20),
    "full disk": (full_disk, 60, 20),
    "bug": (bug, 60, 20),
    "broken listing": (broken_listing, 120, 40),
    "restless account": (restless_account, 250, 60),
    "unknown changes": (unknown_changes, 120, 60),
    "endless changes": (endless_changes, 400, 120),
    "endless mailbox changes": (endless_mailbox_changes, 400, 120),
    "restless state": (restless_state, 60, 40),
    "restless session": (restless_session, 120, 60),
    "lost mailbox list": (lost_mailbox_list, 60, 20),
    "flapping": (flapping, 80, 40),
    "push ends at once": (push_ends_after(), 60, 20),
    "one event and end": (push_ends_after(EVENT), 60, 20),
    "push garbage": (push_ends_after(b"\xff\x00" * 1000), 60, 20),
    **{
        f"push {status}": (push_status(status), 60, 40) for status in (204, 401, 403, 404, 429, 500)
    },
}


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0.002)


async def wake_often(follower: AccountFollower) -> None:
    """Wake the follower as reads do."""
    while True:
        follower.schedule.hint()
        await trio.sleep(1.7)


@asynccontextmanager
async def mounted(faulty: Faulty, directory: Path) -> AsyncIterator[AccountFollower]:
    server = faulty.server
    server.change("Email/changes", newState="e1", hasMoreChanges=False)
    server.change("Mailbox/changes", newState="m1", hasMoreChanges=False)
    with WriterLease(IndexDatabase(directory)) as lease:
        follower = AccountFollower(
            partial(connect, SESSION_URL, Login(CREDENTIALS), network=server),
            IndexDatabase(directory),
            lease,
            poll_interval=60,
            after_round=trio.lowlevel.checkpoint,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(follower.run, lambda *_: None, may_start_offline=False))
            server.before = faulty.answer
            nursery.start_soon(wake_often, follower)
            yield follower
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_permanent_fault_costs_few_requests(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    begin, in_first_minute, in_later_minute = FAULTS[fault]
    faulty = Faulty(FakeServer(12), monkeypatch)
    faulty.server.before = faulty.answer
    async with mounted(faulty, tmp_path) as follower:
        begin(faulty)
        faulty.server.requests.clear()
        await trio.sleep(60)
        first = len(faulty.server.requests)
        await trio.sleep(120)
        faulty.server.requests.clear()
        await trio.sleep(180)
        later = len(faulty.server.requests) / 3
        print("MEASURED", fault, first, later, follower.connection)
    assert first <= in_first_minute
    assert later <= in_later_minute
